//! `gpu/cdi`: devices by name, as vendors describe them (Container Device Interface 0.8,
//! github.com/cncf-tags/container-device-interface/blob/v0.8.0/SPEC.md).

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use coracle_isolator::{Adjustment, Config, Error, HookAdjustment, Isolator, Result, pointer};
use coracle_sys::Errno;
use coracle_sys::file::{self, CWD, Resolve};
use oci_spec::runtime::{Hook, LinuxIntelRdt, Mount, Spec};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::device_node::Node;
use crate::{failed, made};

/// What annotations that name devices begin with, as CDI says.
pub const ANNOTATIONS: &str = "cdi.k8s.io/";

/// The longest document that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// Gives a container the devices that its annotations `cdi.k8s.io/…` name: `vendor.com/class=name`, with commas between
/// them. What a device takes (nodes, mounts, variables, hooks, groups) stands in the vendor's documents.
#[derive(Debug, Default)]
pub struct Cdi(Settings);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// Where the documents are. What a later one says of a device goes before what an earlier one says.
    directories: Vec<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { directories: ["/etc/cdi", "/var/run/cdi"].map(PathBuf::from).into() }
    }
}

/// A vendor's document.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    cdi_version: String,
    /// `vendor.com/class`.
    kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    #[serde(default)]
    devices: Vec<Device>,
    /// For each container that gets any of the devices.
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Device {
    name: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    container_edits: Edits,
}

/// What changes in a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Bind>,
    hooks: Vec<VendorHook>,
    #[serde(rename = "additionalGids")]
    groups: Vec<u32>,
    intel_rdt: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Bind {
    host_path: PathBuf,
    container_path: PathBuf,
    r#type: Option<String>,
    #[serde(default)]
    options: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct VendorHook {
    hook_name: String,
    path: PathBuf,
    args: Option<Vec<String>>,
    env: Option<Vec<String>>,
    timeout: Option<i64>,
}

impl Isolator for Cdi {
    fn name(&self) -> &str {
        "gpu/cdi"
    }

    fn configure(&mut self, options: &Map<String, Value>) -> Result<()> {
        self.0 = crate::settings(options)?;
        Ok(())
    }

    fn prepare(&self, config: &Config<'_>) -> Result<Adjustment> {
        let mut adjustment = Adjustment::default();
        let wanted = wanted(config.spec);
        if wanted.is_empty() {
            return Ok(adjustment);
        }
        let documents = self.documents()?;
        let mut used: Vec<usize> = Vec::new();
        for (annotation, name) in wanted {
            let at = |e: Error| e.at(pointer("/annotations", annotation));
            let (index, device) = find(&documents, name).map_err(at)?;
            let (file, document) = &documents[index];
            let in_file = |e: Error| at(Error::new(format!("device {name:?} in {}: {e}", file.display())));
            if !used.contains(&index) {
                used.push(index);
                document.container_edits.apply(&mut adjustment).map_err(in_file)?;
            }
            device.container_edits.apply(&mut adjustment).map_err(in_file)?;
        }
        Ok(adjustment)
    }
}

/// The devices that a container's annotations name, each with its annotation, in the annotations' order.
fn wanted(spec: &Spec) -> Vec<(&str, &str)> {
    let all = spec.annotations().iter().flatten().filter(|(name, _)| name.starts_with(ANNOTATIONS));
    let mut all: Vec<(&str, &str)> = all.map(|(name, devices)| (name.as_str(), devices.as_str())).collect();
    all.sort_unstable();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (name, devices) in all {
        for device in devices.split(',').map(str::trim) {
            if !wanted.iter().any(|(_, other)| *other == device) {
                wanted.push((name, device));
            }
        }
    }
    wanted
}

type Found = (PathBuf, Document);

impl Cdi {
    /// All documents, those that go before others first.
    fn documents(&self) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for dir in self.0.directories.iter().rev() {
            let opened = match file::open_dir(dir) {
                Err(e) if e.errno() == Errno::ENOENT => continue,
                opened => opened.map_err(failed)?,
            };
            let names = file::list(opened.as_fd()).map_err(failed)?;
            let mut names: Vec<String> =
                names.into_iter().filter_map(|name| name.into_string().ok()).collect();
            names.sort_unstable();
            for name in names {
                let path = dir.join(&name);
                let read: fn(&[u8]) -> Parsed = match name.rsplit_once('.') {
                    Some((_, "json")) => from_json,
                    Some((_, "yaml" | "yml")) => from_yaml,
                    _ => continue,
                };
                found.push((path.clone(), load(&path, read)?));
            }
        }
        Ok(found)
    }
}

/// A document, or why a text is none.
type Parsed = std::result::Result<Document, String>;

fn load(path: &Path, read: fn(&[u8]) -> Parsed) -> Result<Document> {
    let named = |why: String| Error::new(format!("{}: {why}", path.display()));
    let text = file::read(CWD, path, LONGEST, Resolve::Host).map_err(|e| named(e.to_string()))?;
    let document = read(&text).map_err(named)?;
    document.check().map_err(named)?;
    Ok(document)
}

fn from_json(text: &[u8]) -> Parsed {
    serde_json::from_slice(text).map_err(|e| e.to_string())
}

fn from_yaml(text: &[u8]) -> Parsed {
    let text = std::str::from_utf8(text).map_err(|e| e.to_string())?;
    let value = coracle_yaml::read(text).map_err(|e| e.to_string())?;
    serde_json::from_value(value).map_err(|e| e.to_string())
}

impl Document {
    fn check(&self) -> std::result::Result<(), String> {
        const VERSIONS: [&str; 6] = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0"];
        if !VERSIONS.contains(&self.cdi_version.as_str()) {
            return Err(format!("cdiVersion {:?} is none of {}", self.cdi_version, VERSIONS.join(", ")));
        }
        let is_part = |part: &str| part.starts_with(|c: char| c.is_ascii_alphanumeric());
        match self.kind.split_once('/') {
            Some((vendor, class)) if is_part(vendor) && is_part(class) && !class.contains('/') => Ok(()),
            _ => Err(format!("its kind {:?} is not of the form vendor.com/class", self.kind)),
        }
    }
}

/// The document, by its number, and the device that `name` means.
fn find<'d>(documents: &'d [Found], name: &str) -> Result<(usize, &'d Device)> {
    let (kind, device) = name.split_once('=').ok_or_else(|| {
        Error::new(format!("{name:?} is no device")).with_hint("write vendor.com/class=name")
    })?;
    let mut found =
        documents.iter().enumerate().filter(|(_, (_, document))| document.kind == kind).filter_map(
            |(index, (_, document))| {
                Some((index, document.devices.iter().find(|known| known.name == device)?))
            },
        );
    let first = found.next().ok_or_else(|| Error::new(format!("there is no device {name:?}")))?;
    let directory = |index: usize| documents[index].0.parent();
    match found.next() {
        Some((other, _)) if directory(other) == directory(first.0) => Err(Error::new(format!(
            "{} and {} both have device {name:?}",
            documents[first.0].0.display(),
            documents[other].0.display()
        ))),
        _ => Ok(first),
    }
}

impl Edits {
    fn apply(&self, adjustment: &mut Adjustment) -> Result<()> {
        adjustment.process.env.extend(self.env.iter().cloned());
        adjustment.process.additional_gids.extend(self.groups.iter().filter(|gid| **gid != 0));
        for node in &self.device_nodes {
            node.add(&mut adjustment.linux)?;
        }
        for mount in &self.mounts {
            adjustment.mounts.push(mount.mount());
        }
        for hook in &self.hooks {
            hook.add(&mut adjustment.hooks)?;
        }
        if let Some(rdt) = &self.intel_rdt {
            adjustment.linux.intel_rdt = Some(made::<LinuxIntelRdt>("intelRdt", rdt.clone())?);
        }
        Ok(())
    }
}

impl Bind {
    fn mount(&self) -> Mount {
        let mut mount = Mount::default();
        mount.set_source(Some(self.host_path.clone())).set_destination(self.container_path.clone());
        mount.set_typ(self.r#type.clone());
        let mut options = self.options.clone();
        let is_named = self.r#type.as_deref().unwrap_or("bind") != "bind"
            || options.iter().any(|o| o == "bind" || o == "rbind");
        if !is_named {
            options.push("rbind".to_owned());
        }
        mount.set_options(Some(options));
        mount
    }
}

impl VendorHook {
    fn add(&self, hooks: &mut HookAdjustment) -> Result<()> {
        let list = match self.hook_name.as_str() {
            "prestart" => &mut hooks.prestart,
            "createRuntime" => &mut hooks.create_runtime,
            "createContainer" => &mut hooks.create_container,
            "startContainer" => &mut hooks.start_container,
            other => return Err(Error::new(format!("a hook {other:?} can't be added to a container"))),
        };
        let hook = json!({"path": self.path, "args": self.args, "env": self.env, "timeout": self.timeout});
        list.push(made::<Hook>("hook", hook)?);
        Ok(())
    }
}
