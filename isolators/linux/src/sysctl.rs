//! `linux/sysctl`: kernel parameters that containers get, and those that they may ask for.

use std::collections::BTreeMap;

use coracle_isolator::{Adjustment, Config, Error, Isolator, Result, pointer};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Looks after `linux.sysctl`. That a parameter belongs to one of the container's own namespaces is seen to elsewhere,
/// whatever the options.
#[derive(Debug, Default)]
pub struct Sysctl(Settings);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// What each container gets that has the namespace for it and does not set it itself.
    set: BTreeMap<String, String>,
    /// What a container may ask for, by name or, with a `*` at the end, by what its name begins with; all, where there is
    /// no list.
    allow: Option<Vec<String>>,
}

impl Isolator for Sysctl {
    fn name(&self) -> &str {
        "linux/sysctl"
    }

    fn configure(&mut self, options: &Map<String, Value>) -> Result<()> {
        self.0 = crate::settings(options)?;
        match self.0.set.keys().find(|name| namespace(name).is_none()) {
            Some(name) => Err(Error::new(format!("set: {name} is the whole machine's, not a container's"))),
            None => Ok(()),
        }
    }

    fn prepare(&self, config: &Config<'_>) -> Result<Adjustment> {
        let mut adjustment = Adjustment::default();
        let asked = config.spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref());
        let names = || asked.into_iter().flat_map(|asked| asked.keys());
        if let Some(allow) = &self.0.allow
            && let Some(name) =
                names().find(|name| !allow.iter().any(|pattern| covers(pattern, &dotted(name))))
        {
            return Err(Error::new(format!("{name} is not allowed on this host"))
                .at(pointer("/linux/sysctl", name))
                .with_hint(format!("its operator allows {}", allow.join(", "))));
        }
        let free = self.0.set.iter().filter(|(name, _)| {
            namespace(name).is_some_and(|kind| has_new(config.spec, kind))
                && !names().any(|asked| dotted(asked) == dotted(name))
        });
        adjustment.linux.sysctl = free.map(|(name, value)| (name.clone(), value.clone())).collect();
        Ok(adjustment)
    }
}

/// With dots: parameters may be written as paths.
fn dotted(name: &str) -> String {
    if name.contains('/') { name.replace('/', ".") } else { name.to_owned() }
}

fn covers(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix))
}

/// The namespace that a parameter belongs to.
fn namespace(name: &str) -> Option<LinuxNamespaceType> {
    let name = dotted(name);
    match name.as_str() {
        _ if name.starts_with("net.") => Some(LinuxNamespaceType::Network),
        "kernel.domainname" | "kernel.hostname" => Some(LinuxNamespaceType::Uts),
        "kernel.sem" => Some(LinuxNamespaceType::Ipc),
        _ if ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| name.starts_with(prefix)) => {
            Some(LinuxNamespaceType::Ipc)
        }
        _ => None,
    }
}

/// Whether the container makes a namespace of this kind. One that it joins has been set up by others.
fn has_new(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref());
    namespaces
        .unwrap_or_default()
        .iter()
        .any(|namespace| namespace.typ() == kind && namespace.path().is_none())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use coracle_isolator::{CgroupVersion, Kind};
    use serde_json::json;

    use super::*;

    fn prepared(options: Value, linux: Value) -> Result<BTreeMap<String, String>> {
        let mut isolator = Sysctl::default();
        isolator.configure(options.as_object().unwrap())?;
        let spec = serde_json::from_value(json!({"ociVersion": "1.3.0", "linux": linux})).unwrap();
        let config = Config {
            id: "one",
            kind: Kind::Oci,
            bundle: Path::new("/"),
            spec: &spec,
            cgroup: CgroupVersion::V2,
        };
        isolator.prepare(&config).map(|adjustment| adjustment.linux.sysctl)
    }

    #[test]
    fn what_is_set_goes_to_new_namespaces_and_not_over_what_the_container_sets() {
        let options = json!({"set": {"net.ipv4.ip_forward": "1", "net.ipv4.ping_group_range": "0 0",
            "kernel.shm_rmid_forced": "1"}});
        let linux = json!({"namespaces": [{"type": "network"}, {"type": "ipc", "path": "/ns"}],
            "sysctl": {"net/ipv4/ip_forward": "0"}});
        let set = prepared(options, linux).unwrap();
        assert_eq!(set.keys().collect::<Vec<_>>(), ["net.ipv4.ping_group_range"]);
    }

    #[test]
    fn only_what_is_allowed_may_be_asked_for() {
        let options = json!({"allow": ["net.ipv4.*", "kernel.sem"]});
        let asking = |name: &str| prepared(options.clone(), json!({"sysctl": {name: "1"}}));
        for name in ["net.ipv4.tcp_syncookies", "net/ipv4/tcp_syncookies", "kernel.sem"] {
            assert!(asking(name).is_ok(), "{name}");
        }
        let refused = asking("net.core.somaxconn").unwrap_err().to_string();
        assert!(
            refused.contains("/linux/sysctl/net.core.somaxconn: net.core.somaxconn is not allowed"),
            "{refused}"
        );
        assert!(refused.contains("net.ipv4.*, kernel.sem"), "{refused}");
        assert!(asking("kernel.semantic").is_err());
    }

    #[test]
    fn a_parameter_of_the_whole_machine_is_not_set() {
        let refused = prepared(json!({"set": {"vm.swappiness": "1"}}), json!({})).unwrap_err();
        assert!(refused.to_string().contains("vm.swappiness is the whole machine's"), "{refused}");
    }
}
