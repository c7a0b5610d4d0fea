//! `network`: which networks there are, whether they can take containers, and what is left over.

use coracle_isolator::Isolator;
use coracle_isolator_network::conflist::Conflist;
use coracle_isolator_network::{Cni, NetworkCni};

use crate::cli::{Global, NetworkVerb};
use crate::error::{Code, Error, Result};
use crate::isolators;

/// Does what is asked, and returns 1 where a network can't take containers.
///
/// # Errors
/// Where the configuration can't be read, or there is no such network or container.
pub fn network(global: &Global, verb: &NetworkVerb) -> Result<u8> {
    let isolator = configured(global)?;
    let cni = isolator.cni();
    match verb {
        NetworkVerb::List => list(cni),
        NetworkVerb::Status(name) => status(cni, name.as_deref()),
        NetworkVerb::Check(id) => {
            cni.check(&isolator.known_by(id))?;
            Ok(0)
        }
        NetworkVerb::Collect => collect(global, cni),
    }
}

/// The isolator, as the operator has configured it.
///
/// # Errors
/// Where the configuration can't be read.
pub fn configured(global: &Global) -> Result<NetworkCni> {
    let mut isolator = NetworkCni::new(&global.root);
    if let Some(options) = isolators::options_of(global, isolator.name())? {
        isolator.configure(&options)?;
    }
    Ok(isolator)
}

fn list(cni: &Cni) -> Result<u8> {
    crate::print("NETWORK          CNI     PLUGINS                          FILE\n");
    for (file, network) in cni.networks()? {
        let row = match network {
            Ok(list) => {
                let plugins = list.types().collect::<Vec<_>>().join(",");
                format!("{:<16} {:<7} {plugins:<32} {file}\n", list.name, list.cni_version)
            }
            Err(error) => format!("{:<16} {:<7} {:<32} {file}: {error}\n", "-", "-", "-"),
        };
        crate::print(&row);
    }
    Ok(0)
}

fn status(cni: &Cni, name: Option<&str>) -> Result<u8> {
    let networks = cni.networks()?.into_iter().filter_map(|(_, list)| list.ok());
    let asked: Vec<Conflist> = networks.filter(|list| name.is_none_or(|name| name == list.name)).collect();
    if let (Some(name), true) = (name, asked.is_empty()) {
        return Err(Error::new(Code::NotFound, format!("no network {name:?} is configured"))
            .hint("see coracle network ls"));
    }
    let mut code = 0;
    for network in asked {
        let told = match cni.status(&network) {
            Ok(()) => "ready".to_owned(),
            Err(error) => {
                code = 1;
                error.to_string()
            }
        };
        crate::print(&format!("{:<16} {told}\n", network.name));
    }
    Ok(code)
}

fn collect(global: &Global, cni: &Cni) -> Result<u8> {
    let collected = cni.collect(true)?;
    for id in collected.detached {
        crate::print(&format!("{id}\n"));
    }
    let mut failures = collected.failures.into_iter();
    let first = failures.next();
    global.warn(failures.map(|failure| failure.to_string()));
    first.map_or(Ok(0), |error| Err(error.into()))
}
