//! `volume/tmpfs`: volumes in memory.

use coracle_isolator::{Adjustment, Config, Error, Isolator, Result, adjusted};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::disk::Size;
use crate::of_type;

/// Gives mounts of the type `tmpfs` that name no size the one that the operator says: the kernel's own is half of the
/// machine's memory.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Tmpfs {
    size: Option<String>,
}

impl Isolator for Tmpfs {
    fn name(&self) -> &str {
        "volume/tmpfs"
    }

    fn configure(&mut self, options: &Map<String, Value>) -> Result<()> {
        let settings: Self =
            serde_json::from_value(Value::Object(options.clone())).map_err(|e| Error::new(e.to_string()))?;
        if let Some(size) = &settings.size {
            check(size)?;
        }
        *self = settings;
        Ok(())
    }

    fn prepare(&self, config: &Config<'_>) -> Result<Adjustment> {
        let mut adjustment = Adjustment::default();
        let mut changed = Vec::new();
        for (i, mount) in of_type(config.spec, "tmpfs") {
            let options = mount.options().as_deref().unwrap_or_default();
            let is_sized = options.iter().any(|o| o.starts_with("size=") || o.starts_with("nr_blocks="));
            if let Some(size) = self.size.as_ref().filter(|_| !is_sized) {
                let mut mount = mount.clone();
                let more = format!("size={size}");
                mount.set_options(Some(options.iter().cloned().chain([more]).collect()));
                changed.push((i, mount));
            }
        }
        adjustment.mounts = adjusted(config.spec.mounts().as_deref().unwrap_or_default(), &changed);
        Ok(adjustment)
    }
}

/// As tmpfs(5) has it: bytes, with k, m or g a multiple, with % a share of the memory.
fn check(size: &str) -> Result<()> {
    let is_share = size.strip_suffix('%').is_some_and(|share| share.parse::<u32>().is_ok());
    let is_known = is_share || Size::parse(size).is_some();
    if is_known {
        return Ok(());
    }
    Err(Error::new(format!("{size:?} is no size")).with_hint("write bytes, or 64k, 64m, 1g, 10%"))
}

#[cfg(test)]
mod tests {
    use coracle_isolator::{CgroupVersion, Kind};
    use oci_spec::runtime::Spec;
    use serde_json::json;

    use super::*;

    fn prepared(tmpfs: &Tmpfs, options: &[&str]) -> Result<Adjustment> {
        let mounts = json!([{"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": options}]);
        let spec: Spec = serde_json::from_value(json!({"ociVersion": "1.2.0", "mounts": mounts})).unwrap();
        let bundle = std::path::Path::new("/");
        tmpfs.prepare(&Config { id: "c", kind: Kind::Oci, bundle, spec: &spec, cgroup: CgroupVersion::V2 })
    }

    #[test]
    fn who_names_no_size_gets_the_operators() {
        let limited = Tmpfs { size: Some("64m".to_owned()) };
        let mounts = prepared(&limited, &["nosuid"]).unwrap().mounts;
        assert_eq!(mounts[0].options().as_deref().unwrap(), ["nosuid", "size=64m"]);
        assert!(prepared(&limited, &["size=1g"]).unwrap().mounts.is_empty());
        assert!(prepared(&Tmpfs::default(), &[]).unwrap().mounts.is_empty());
    }

    #[test]
    fn what_is_no_size_is_no_option() {
        let configured = |size: &str| {
            let options = json!({"size": size});
            Tmpfs::default().configure(options.as_object().unwrap()).map_err(|e| e.to_string())
        };
        assert_eq!(configured("big").unwrap_err(), "\"big\" is no size; write bytes, or 64k, 64m, 1g, 10%");
        assert!(configured("50%").is_ok() && configured("12345").is_ok());
    }
}
