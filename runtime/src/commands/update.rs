//! `update`: gives a container new limits.

use coracle_isolator::{Cgroup, Handles};
use coracle_isolator_host::Registry;
use coracle_sys::file::{self, Resolve};
use oci_spec::runtime::{Linux, LinuxResources, Spec};
use serde_json::{Map, Value, json};

use crate::cli::{self, Global};
use crate::error::{Code, Context, Error, Result};
use crate::isolators;
use crate::stages::spec;
use crate::state::{Record, State, Status};

/// Writes the limits that are asked for, leaves the others as they are, and keeps the new ones in the container's
/// configuration.
///
/// # Errors
/// `IllegalState` where the container has stopped; what an isolator says, and then the limits are as they were.
pub fn update(global: &Global, options: &cli::Update) -> Result<u8> {
    let id = &options.id;
    let attempt = || -> Result<()> {
        let mut asked = asked(options)?;
        let state = State::open(&global.root, id)?;
        let record =
            state.record()?.filter(|record| record.status() != Status::Stopped).ok_or_else(not_running)?;
        let text = state.config()?;
        let spec = spec::parse(&text)?;
        keep_checking(&mut asked["resources"], &spec);
        let new = spec::parse_linux(asked.to_string().as_bytes()).context(|| "reading the options")?;
        apply(&isolators::all(global)?, &record, &spec, &new)?;
        if let (Some(place), Some(resources)) = (&record.cgroup, new.resources()) {
            place.tell(resources)?;
        }
        state.keep_config(merged(&text, asked)?.to_string().as_bytes())
    };
    attempt().context(|| format!("updating container {id:?}"))?;
    Ok(0)
}

fn not_running() -> Error {
    Error::new(Code::IllegalState, "container not running")
}

/// What is to change in the `linux` of the configuration: the limits of the file, with those of the options over them.
fn asked(options: &cli::Update) -> Result<Value> {
    let mut asked = match &options.file {
        None => Value::Object(Map::new()),
        Some(path) => {
            let from = if path.as_os_str() == "-" { "/proc/self/fd/0".as_ref() } else { path.as_path() };
            let text = file::read(file::CWD, from, spec::LARGEST, Resolve::Host)
                .context(|| "reading --resources")?;
            spec::parse_resources(&text).context(|| format!("reading {from:?}"))?;
            serde_json::from_slice(&text).map_err(|e| Error::new(Code::InvalidSpec, e.to_string()))?
        }
    };
    merge(&mut asked, options.limits.clone());
    // No list of device rules is no wish to deny all devices.
    if asked["devices"].as_array().is_some_and(Vec::is_empty) {
        asked["devices"] = Value::Null;
    }
    Ok(json!({"resources": asked, "intelRdt": options.rdt}))
}

/// A container whose configuration wants limits to be checked against what is in use wants new ones checked, too.
fn keep_checking(resources: &mut Value, spec: &Spec) {
    let own = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()?.memory().as_ref());
    let checks = own.and_then(|memory| memory.check_before_update()) == Some(true);
    if checks && resources["memory"].is_object() && resources["memory"]["checkBeforeUpdate"].is_null() {
        resources["memory"]["checkBeforeUpdate"] = true.into();
    }
}

fn apply(isolators: &Registry, record: &Record, spec: &Spec, new: &Linux) -> Result<()> {
    let resources = &new.resources().clone().unwrap_or_default();
    let place = record.cgroup.as_ref().ok_or_else(|| Error::new(Code::Unsupported, "it has no cgroups"))?;
    let cgroup = place.open()?.into_handles().remembering();
    let handles = Handles { id: &record.id, pidfd: None, cgroup: &cgroup, spec };
    let shares =
        |()| new.intel_rdt().as_ref().map_or(Ok(()), |rdt| isolators.update_intel_rdt(&handles, rdt));
    isolators.update(&handles, resources).and_then(shares).map_err(|failure| {
        let failure = Error::from(failure);
        match put_back(isolators, &cgroup, &handles, resources) {
            Ok(()) => failure,
            Err(left) => {
                failure.hint(format!("and some limits are new, as the old could not be put back: {left}"))
            }
        }
    })
}

/// Files get back what they held; device rules, which are no file's content, what the configuration says.
fn put_back(
    isolators: &Registry,
    cgroup: &Cgroup,
    handles: &Handles<'_>,
    new: &LinuxResources,
) -> Result<()> {
    let files = cgroup.put_back().map_err(Error::from);
    if new.devices().is_none() {
        return files;
    }
    let old = handles.spec.linux().as_ref().and_then(|linux| linux.resources().clone());
    let mut devices = LinuxResources::default();
    devices.set_devices(Some(old.and_then(|old| old.devices().clone()).unwrap_or_default()));
    files.and(isolators.update(handles, &devices).map_err(Error::from))
}

/// The configuration `text` with what is new in its `linux`.
fn merged(text: &[u8], new: Value) -> Result<Value> {
    let mut config: Value = serde_json::from_slice(text)
        .map_err(|e| Error::new(Code::System, format!("the kept configuration is malformed: {e}")))?;
    merge(&mut config["linux"], new);
    Ok(config)
}

/// Sets what `new` sets in `old`: objects field by field, everything else whole; null sets nothing.
fn merge(old: &mut Value, new: Value) {
    match (old, new) {
        (_, Value::Null) => {}
        (Value::Object(old), Value::Object(new)) => {
            let set = new.into_iter().filter(|(_, value)| !value.is_null());
            set.for_each(|(key, value)| merge(old.entry(key).or_insert(Value::Null), value));
        }
        (old, new) => *old = new,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_field_stays_as_it_is() {
        let config = json!({"ociVersion": "1.3.0", "linux": {"resources": {
            "memory": {"limit": 1, "swap": 2}, "pids": {"limit": 3},
        }}});
        let new = json!({"resources": {"memory": {"limit": 9, "swap": null}, "cpu": {"shares": 5}}});
        let merged = merged(config.to_string().as_bytes(), new).unwrap();
        let wanted = json!({"memory": {"limit": 9, "swap": 2}, "pids": {"limit": 3}, "cpu": {"shares": 5}});
        assert_eq!(merged["linux"]["resources"], wanted);
        assert_eq!(merged["ociVersion"], "1.3.0");
    }

    #[test]
    fn a_configuration_without_limits_gets_them() {
        let merged =
            merged(br#"{"ociVersion": "1.3.0"}"#, json!({"resources": {"pids": {"limit": 3}}})).unwrap();
        assert_eq!(merged["linux"]["resources"]["pids"]["limit"], 3);
    }

    #[test]
    fn options_go_before_the_file_and_an_empty_list_of_devices_says_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = json!({"devices": [], "memory": {"limit": 1, "swap": 2}}).to_string();
        std::io::Write::write_all(&mut file.as_file(), text.as_bytes()).unwrap();
        let limits = json!({"memory": {"limit": 9}});
        let options = cli::Update { file: Some(file.path().to_owned()), limits, ..cli::Update::default() };
        let wanted = json!({"devices": null, "memory": {"limit": 9, "swap": 2}});
        assert_eq!(asked(&options).unwrap()["resources"], wanted);
    }
}
