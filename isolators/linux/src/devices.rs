//! `linux/devices`: devices of the host that every container gets.

use coracle_isolator::{Adjustment, Config, Error, Isolator, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::device_node::Node;

/// Gives every container the devices of its option `add`: each as `PATH`, or `PATH:ACCESS` with the letters of
/// `linux.resources.devices` (`r` read, `w` write, `m` mknod). They are looked up on the host at each launch.
#[derive(Debug, Default)]
pub struct Devices(Vec<Node>);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    add: Vec<String>,
}

impl Isolator for Devices {
    fn name(&self) -> &str {
        "linux/devices"
    }

    fn configure(&mut self, options: &Map<String, Value>) -> Result<()> {
        let settings: Settings = crate::settings(options)?;
        self.0 = settings.add.iter().map(|device| node(device)).collect::<Result<_>>()?;
        Ok(())
    }

    fn prepare(&self, _: &Config<'_>) -> Result<Adjustment> {
        let mut adjustment = Adjustment::default();
        for node in &self.0 {
            node.add(&mut adjustment.linux).map_err(|e| {
                e.with_hint("the options of linux/devices name it: is it there on this host?")
            })?;
        }
        Ok(adjustment)
    }
}

fn node(text: &str) -> Result<Node> {
    let (path, access) = text.split_once(':').unwrap_or((text, "rwm"));
    let is_access = !access.is_empty() && access.chars().all(|letter| "rwm".contains(letter));
    if !path.starts_with('/') || !is_access {
        return Err(
            Error::new(format!("add: {text:?} is no device")).with_hint("write /dev/NAME or /dev/NAME:rw")
        );
    }
    Ok(Node::of_host(path, access))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_no_device_is_refused() {
        for text in ["fuse", "/dev/fuse:", "/dev/fuse:rx", ":rw"] {
            let options = json!({"add": [text]});
            let refused = Devices::default().configure(options.as_object().unwrap()).unwrap_err();
            assert!(refused.to_string().contains(&format!("{text:?} is no device")), "{refused}");
        }
    }
}
