//! `update`: gives a container new limits.

use coracle_isolator::{Cgroup, Handles};
use coracle_isolator_host::Registry;
use coracle_sys::file;
use oci_spec::runtime::{Linux, LinuxDeviceCgroup, LinuxResources, Spec};
use serde_json::{Map, Value, json};

use crate::cgroup::Place;
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
        let record = state
            .record()?
            .filter(|record| record.status() != Status::Stopped)
            .ok_or_else(Error::not_running)?;
        let place = record.cgroup.as_ref();
        let place = place.ok_or_else(|| Error::new(Code::Unsupported, "it has no cgroups"))?;
        let text = state.config()?;
        let spec = spec::parse(&text)?;
        keep_checking(&mut asked["resources"], &spec);
        let kept = merged(&text, asked.clone())?;
        if place.unit.is_some() {
            complete(&mut asked["resources"], &kept["linux"]["resources"]);
        }
        let new = spec::parse_linux(asked.to_string().as_bytes()).context(|| "reading the options")?;
        let keep = || state.keep_config(kept.to_string().as_bytes());
        let isolators = isolators::all(global)?;
        let applied = apply(&isolators, (&record, place), &spec, &new, keep);
        global.warn(isolators.take_warnings());
        applied
    };
    attempt().context(|| format!("updating container {id:?}"))?;
    Ok(0)
}

/// What is to change in the `linux` of the configuration: the limits of the file, with those of the options over them.
fn asked(options: &cli::Update) -> Result<Value> {
    let mut asked = match &options.file {
        None => Value::Object(Map::new()),
        Some(path) => {
            let from = if path.as_os_str() == "-" { "/proc/self/fd/0".as_ref() } else { path.as_path() };
            let text = file::read_given(from, spec::LARGEST).context(|| "reading --resources")?;
            spec::parse_resources(&text).context(|| format!("reading {from:?}"))?;
            serde_json::from_slice(&text).map_err(|e| Error::new(Code::InvalidSpec, e.to_string()))?
        }
    };
    merge(&mut asked, options.limits.clone());
    // No limit of tasks is no wish to change it, and oci-spec would read 0.
    if asked.pointer("/pids/limit").is_none_or(Value::is_null) {
        asked.as_object_mut().map(|asked| asked.remove("pids"));
    }
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

/// What systemd must be told together with what is asked for: it has a quota for each second, and a limit for swap alone.
/// Of the processor it writes all anew, rounded, so the isolators write all of that after it.
fn complete(asked: &mut Value, kept: &Value) {
    let of_cpu = asked["cpu"].is_object().then_some(["/cpu/quota", "/cpu/period"]);
    let of_swap = asked.pointer("/memory/swap").is_some_and(Value::is_number).then_some("/memory/limit");
    for pointer in of_cpu.into_iter().flatten().chain(of_swap) {
        let is_asked = asked.pointer(pointer).is_some_and(|value| !value.is_null());
        if let Some(value) = kept.pointer(pointer).filter(|_| !is_asked) {
            let (section, field) = pointer[1..].split_once('/').unwrap_or_default();
            asked[section][field] = value.clone();
        }
    }
}

/// Sets the limits `new` and has them kept: all, or none.
fn apply(
    isolators: &Registry,
    (record, place): (&Record, &Place),
    spec: &Spec,
    new: &Linux,
    keep: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let of = |linux: Option<&Linux>| linux.and_then(|linux| linux.resources().clone()).unwrap_or_default();
    let wanted = with_rules(of(Some(new)), &record.device_rules);
    let mut old = of(spec.linux().as_ref());
    old.set_devices(Some(old.devices().clone().unwrap_or_default()));
    let old = with_rules(old, &record.device_rules);
    let cgroup = place.open()?.into_handles().remembering();
    let handles = Handles { id: &record.id, pidfd: None, cgroup: &cgroup, spec };
    let mut is_told = false;
    let attempt = || -> Result<()> {
        isolators.update(&handles, &wanted)?;
        if place.unit.is_some() {
            place.tell(&wanted)?;
            is_told = true;
            isolators.update(&handles, &wanted)?;
        }
        if let Some(rdt) = new.intel_rdt() {
            isolators.update_intel_rdt(&handles, rdt)?;
        }
        keep()
    };
    attempt().map_err(|failure| {
        // systemd first: it writes what it is told.
        let told = if is_told { place.tell_back(&wanted, &old) } else { Ok(()) };
        let put_back = put_back(isolators, &cgroup, &handles, (&wanted, &old));
        let rdt = spec.linux().as_ref().and_then(|linux| linux.intel_rdt().as_ref());
        let shared = rdt.filter(|_| new.intel_rdt().is_some());
        let shared = shared.map_or(Ok(()), |rdt| isolators.update_intel_rdt(&handles, rdt));
        match told.and(put_back).and(shared.map_err(Error::from)) {
            Ok(()) => failure,
            Err(left) => {
                failure.hint(format!("and some limits are new, as the old could not be put back: {left}"))
            }
        }
    })
}

/// Where `resources` have a list of device rules: that one, and then those that isolators gave the container.
fn with_rules(mut resources: LinuxResources, added: &[LinuxDeviceCgroup]) -> LinuxResources {
    if let Some(rules) = resources.devices().clone() {
        resources.set_devices(Some([&rules, added].concat()));
    }
    resources
}

/// Files get back what they held; device rules, which are no file's content, what they were made of.
fn put_back(
    isolators: &Registry,
    cgroup: &Cgroup,
    handles: &Handles<'_>,
    (new, old): (&LinuxResources, &LinuxResources),
) -> Result<()> {
    let files = cgroup.put_back().map_err(Error::from);
    if new.devices().is_none() {
        return files;
    }
    let mut devices = LinuxResources::default();
    devices.set_devices(Some(old.devices().clone().unwrap_or_default()));
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
    fn systemd_is_told_what_it_reckons_with() {
        let kept = json!({"cpu": {"quota": 40000, "period": 50000, "shares": 5}, "memory": {"limit": 512, "swap": 1024}});
        let completed = |asked: Value| {
            let mut asked = asked;
            complete(&mut asked, &kept);
            asked
        };
        let cpu = json!({"cpu": {"quota": 40000, "period": 50000}});
        assert_eq!(completed(json!({"cpu": {"quota": 40000}})), cpu);
        assert_eq!(completed(json!({"cpu": {"period": 50000, "quota": null}})), cpu);
        let memory = json!({"memory": {"swap": 1024, "limit": 512}});
        assert_eq!(completed(json!({"memory": {"swap": 1024}})), memory);
        for alone in [json!({"memory": {"limit": 512}}), json!({"pids": {"limit": 1}}), json!({"cpu": null})]
        {
            assert_eq!(completed(alone.clone()), alone);
        }
    }

    #[test]
    fn the_rules_that_isolators_gave_stay() {
        let rules = json!([{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"}]);
        let added: Vec<LinuxDeviceCgroup> = serde_json::from_value(rules.clone()).unwrap();
        let resources = |json| serde_json::from_value::<LinuxResources>(json).unwrap();
        let given = with_rules(resources(json!({"devices": [{"allow": false}]})), &added);
        assert_eq!(given.devices().as_ref().unwrap().last(), added.first());
        assert!(with_rules(resources(json!({})), &added).devices().is_none());
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
