//! What oci-spec takes for wrong and the specification does not.

use std::collections::BTreeSet;
use std::fmt;

use oci_spec::runtime::Capability;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// The document `text`, which a whole configuration would have at the pointer `base`, with the scheduler's flags renamed
/// to what oci-spec expects, with root for a user that is not named, without a limit of tasks that is null, and without
/// capabilities that nobody knows: those
/// "MUST be logged as a warning" (runtime-spec 1.3, config.md, "Linux Process"), which comes with it. `None` where there
/// is nothing of that.
pub(super) fn repaired(text: &[u8], base: &str) -> Option<(Vec<u8>, Vec<String>)> {
    // A value would keep one of two that stand under the same name.
    serde_json::from_slice::<Unique>(text).ok()?;
    let before: Value = serde_json::from_slice(text).ok()?;
    let mut document = before.clone();
    let at = if base == "/process" { "" } else { "/process" };
    let mut unknown = BTreeSet::new();
    if let Some(process) = document.pointer_mut(at).filter(|process| process.is_object()) {
        name_user(process);
        rename_flags(process);
        unknown = take_unknown(process);
    }
    let pids = PIDS.strip_prefix(base).and_then(|at| document.pointer_mut(at)).and_then(Value::as_object_mut);
    if let Some(pids) = pids.filter(|pids| pids.get("limit").is_some_and(Value::is_null)) {
        pids.remove("limit");
    }
    if document == before {
        return None;
    }
    let unknown: Vec<String> = unknown.into_iter().collect();
    let warning = format!("ignoring unknown or unavailable capabilities: [{}]", unknown.join(" "));
    let warnings = if unknown.is_empty() { Vec::new() } else { vec![warning] };
    Some((document.to_string().into_bytes(), warnings))
}

/// Where the limit of tasks is.
const PIDS: &str = "/linux/resources/pids";

/// Whether the configuration `text` has a limit of tasks: without one oci-spec reads 0, which is a limit (runtime-spec 1.3,
/// config-linux.md, "PIDs").
pub(super) fn limits_tasks(text: &[u8]) -> bool {
    let document: Value = serde_json::from_slice(text).unwrap_or_default();
    document.pointer(PIDS).and_then(|pids| pids.get("limit")).is_some_and(|limit| !limit.is_null())
}

/// Any document in which no name stands twice in one object.
struct Unique;

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        let mut names = BTreeSet::new();
        while let Some((name, Self)) = map.next_entry::<String, Self>()? {
            if !names.insert(name) {
                return Err(A::Error::custom("a name stands twice"));
            }
        }
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self, A::Error> {
        while list.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }
}

fn name_user(process: &mut Value) {
    let is_absent = |value: Option<&Value>| value.is_none_or(Value::is_null);
    if is_absent(process.get("user")) {
        process["user"] = Value::Object(serde_json::Map::new());
    }
    for id in ["uid", "gid"] {
        if process["user"].is_object() && is_absent(process["user"].get(id)) {
            process["user"][id] = 0.into();
        }
    }
}

fn rename_flags(process: &mut Value) {
    let flags = process.pointer_mut("/scheduler/flags").and_then(Value::as_array_mut);
    for flag in flags.into_iter().flatten() {
        match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => *flag = "SCHED_RESET_ON_FORK".into(),
            Some("SCHED_FLAG_DL_OVERRUN") => *flag = "SCHED_FLAG_D_L_OVERRUN".into(),
            _ => {}
        }
    }
}

fn take_unknown(process: &mut Value) -> BTreeSet<String> {
    let mut unknown = BTreeSet::new();
    let sets = process.get_mut("capabilities").and_then(Value::as_object_mut);
    for set in sets.into_iter().flat_map(serde_json::Map::values_mut).filter_map(Value::as_array_mut) {
        set.retain(|name| {
            let is_unknown = name.is_string() && Capability::deserialize(name).is_err();
            unknown.extend(name.as_str().filter(|_| is_unknown).map(str::to_owned));
            !is_unknown
        });
    }
    unknown
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{Process, Spec};

    use super::super::json::read;

    #[test]
    fn who_names_no_user_means_root() {
        let (process, _) = read::<Process>(br#"{"cwd": "/", "args": ["true"]}"#, "/process").unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
        let (process, _) = read::<Process>(br#"{"cwd": "/", "user": null}"#, "/process").unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
        let text = br#"{"ociVersion": "1.2.0", "process": {"cwd": "/", "user": {"uid": null, "gid": 7}}}"#;
        let user = read::<Spec>(text, "").unwrap().0.process().clone().unwrap().user().clone();
        assert_eq!((user.uid(), user.gid()), (0, 7));
    }

    #[test]
    fn no_limit_of_tasks_is_none_and_zero_is_a_limit_since_1_3() {
        let limit = |version: &str, pids: &str| {
            let text =
                format!(r#"{{"ociVersion": "{version}", "linux": {{"resources": {{"pids": {pids}}}}}}}"#);
            let spec = super::super::parse(text.as_bytes()).unwrap();
            let resources = spec.linux().as_ref().unwrap().resources().clone().unwrap();
            resources.pids().as_ref().map(|pids| pids.limit())
        };
        let all = ["{}", r#"{"limit": null}"#, r#"{"limit": 0}"#, r#"{"limit": 7}"#];
        assert_eq!(all.map(|pids| limit("1.3.0", pids)), [None, None, Some(0), Some(7)]);
        assert_eq!(all.map(|pids| limit("1.2.1", pids)), [None, None, None, Some(7)]);
        assert_eq!(limit("1.0.2-dev", all[2]), None);
    }

    #[test]
    fn what_stands_twice_stays_wrong() {
        let error = read::<Process>(br#"{"cwd": "/", "cwd": "/tmp"}"#, "/process").unwrap_err().to_string();
        assert!(error.starts_with("/process/cwd: it stands twice"), "{error}");
    }

    #[test]
    fn capabilities_that_nobody_knows_are_passed_over_with_a_warning() {
        let text = r#"{"user": {"uid": 0, "gid": 0}, "cwd": "/", "capabilities":
            {"bounding": ["CAP_KILL", "CAP_FLY"], "permitted": ["FLY"], "effective": ["CAP_FLY"]}}"#;
        let (process, warnings) = read::<Process>(text.as_bytes(), "/process").unwrap();
        assert_eq!(warnings, ["ignoring unknown or unavailable capabilities: [CAP_FLY FLY]"]);
        let sets = process.capabilities().clone().unwrap();
        let counts =
            [sets.bounding(), sets.permitted(), sets.effective()].map(|set| set.as_ref().unwrap().len());
        assert_eq!(counts, [1, 0, 0]);
        let error = read::<Process>(text.replace("\"CAP_FLY\"]", "7]").as_bytes(), "/process").unwrap_err();
        assert!(error.to_string().starts_with("/process/capabilities/"), "{error}");
    }
}
