//! `network`, and the options of `run --image` that concern networks.

use coracle_image::bundle;
use coracle_isolator_network::{ANNOTATION, Network, PortMapping, Wanted};
use lexopt::prelude::*;

use super::words::{nothing, only_id, usage};
use crate::error::Result;

/// What `network` is to do.
#[derive(Debug, Clone)]
pub enum NetworkVerb {
    /// Prints the networks that are configured.
    List,
    /// Asks the plugins of one network, or of all, whether they can take containers.
    Status(Option<String>),
    /// Asks the plugins whether what a container has is as it should be.
    Check(String),
    /// Detaches those whose containers are gone, and lets plugins give up what else they have.
    Collect,
}

/// The options of `network`.
pub(super) fn network(parser: &mut lexopt::Parser) -> Result<NetworkVerb> {
    let wrong = |why: &str| usage(why).hint("coracle network ls | status [NAME] | check ID | gc");
    let Some(verb) = parser.next()? else { return Err(wrong("network needs ls, status, check or gc")) };
    let Value(verb) = verb else { return Err(verb.unexpected().into()) };
    let verb = match verb.to_str() {
        Some("ls" | "list") => NetworkVerb::List,
        Some("gc") => NetworkVerb::Collect,
        Some("check") => return Ok(NetworkVerb::Check(only_id(parser, "network check")?)),
        Some("status") => match parser.next()? {
            None => NetworkVerb::Status(None),
            Some(Value(name)) => NetworkVerb::Status(Some(name.string()?)),
            Some(other) => return Err(other.unexpected().into()),
        },
        _ => return Err(wrong("network does nothing but ls, status, check and gc")),
    };
    nothing(parser)?;
    Ok(verb)
}

/// What the command line asks of a container's networks.
#[derive(Debug, Clone, Default)]
pub(super) struct Networks {
    pub(super) wanted: Wanted,
    names: Vec<String>,
}

impl Networks {
    /// Adds what `--network` names.
    pub(super) fn join(&mut self, names: &str) {
        self.names.extend(names.split(',').map(str::to_owned));
    }

    /// Adds a mapping of a port.
    pub(super) fn publish(&mut self, mapping: &str) -> Result<()> {
        self.wanted.ports.push(PortMapping::parse(mapping)?);
        Ok(())
    }

    /// Says all of it in the options of a bundle.
    pub(super) fn apply(&mut self, options: &mut bundle::Options) -> Result<()> {
        match &self.names.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [] | ["none"] => {}
            ["host"] => options.network = bundle::Network::Host,
            names if names.iter().any(|name| ["none", "host"].contains(name)) => {
                let special = if names.contains(&"host") { "host" } else { "none" };
                return Err(usage(format!("--network {special} and others exclude each other")));
            }
            names => {
                self.wanted.networks = names.iter().map(|name| Network::named(name)).collect();
                let text = serde_json::to_string(&self.wanted).map_err(|e| usage(e.to_string()))?;
                options.annotations.insert(ANNOTATION.to_owned(), text);
                return Ok(());
            }
        }
        match self.wanted == Wanted::default() {
            true => Ok(()),
            false => {
                Err(usage("--publish and --dns are for containers on networks").hint("add --network bridge"))
            }
        }
    }
}
