//! The system call filter of a container, from a profile in Docker's format or that of the runtime spec.

use std::collections::BTreeSet;

use coracle_sys::file;
use serde::Deserialize;
use serde_json::{Value, json};

use super::options::Seccomp;
use crate::error::{Context, Error, Kind, Result};
use crate::store::DOCUMENT_LIMIT;

/// The built-in profile: a list of what is allowed.
const DEFAULT: &str = include_str!("seccomp.json");

/// A profile: the runtime spec's fields, and those of Docker's format that depend on machine and container.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    #[serde(default)]
    flags: Vec<String>,
    listener_path: Option<String>,
    listener_metadata: Option<String>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Value>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
    #[serde(rename = "comment")]
    _comment: Option<String>,
    /// The name of an errno, which older profiles have beside its number.
    #[serde(rename = "errno")]
    _errno: Option<String>,
}

/// When a rule counts. An empty condition includes all and excludes none.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Condition {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// The runtime spec's `linux.seccomp` for a container with the capabilities `capabilities`.
///
/// # Errors
/// Where the file can't be read or is no profile.
pub(crate) fn profile(seccomp: &Seccomp, capabilities: &BTreeSet<&str>) -> Result<Option<Value>> {
    match seccomp {
        Seccomp::Unconfined => Ok(None),
        Seccomp::Default => resolve(DEFAULT, capabilities).map(Some),
        Seccomp::File(path) => {
            let reading = || format!("reading the seccomp profile {path:?}");
            let bytes = file::read_given(path, DOCUMENT_LIMIT).context(reading)?;
            resolve(&String::from_utf8_lossy(&bytes), capabilities).context(reading).map(Some)
        }
    }
}

/// The built-in filter of a process with these capabilities, as `linux.seccomp` has it.
///
/// # Errors
/// None that is known.
pub fn default_seccomp(capabilities: &BTreeSet<String>) -> Result<Option<Value>> {
    profile(&Seccomp::Default, &capabilities.iter().map(String::as_str).collect())
}

fn resolve(text: &str, capabilities: &BTreeSet<&str>) -> Result<Value> {
    let profile: Profile = crate::image::parse(text.as_bytes(), "the profile")?;
    let mut architectures = profile.architectures;
    let native = native_architecture();
    for map in profile.arch_map.into_iter().filter(|map| map.architecture == native) {
        architectures.push(map.architecture);
        architectures.extend(map.sub_architectures);
    }
    let mut syscalls = Vec::new();
    for rule in profile.syscalls {
        if counts(&rule, capabilities)? {
            let mut entry = json!({ "names": rule.names, "action": rule.action });
            add(&mut entry, "errnoRet", rule.errno_ret);
            add(&mut entry, "args", rule.args.filter(|args| !args.is_empty()));
            syscalls.push(entry);
        }
    }
    let mut seccomp = json!({
        "defaultAction": profile.default_action, "architectures": architectures, "syscalls": syscalls,
    });
    add(&mut seccomp, "defaultErrnoRet", profile.default_errno_ret);
    add(&mut seccomp, "flags", Some(profile.flags).filter(|flags| !flags.is_empty()));
    add(&mut seccomp, "listenerPath", profile.listener_path);
    add(&mut seccomp, "listenerMetadata", profile.listener_metadata);
    Ok(seccomp)
}

fn add<T: serde::Serialize>(object: &mut Value, key: &str, value: Option<T>) {
    if let Some(value) = value {
        object[key] = json!(value);
    }
}

fn native_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "SCMP_ARCH_AARCH64",
        "riscv64" => "SCMP_ARCH_RISCV64",
        _ => "SCMP_ARCH_X86_64",
    }
}

/// Whether a rule counts on this machine for a container with these capabilities, as containers/common and
/// Docker have it: everything included must hold, and nothing excluded may.
fn counts(rule: &Rule, capabilities: &BTreeSet<&str>) -> Result<bool> {
    let arch = oci_spec::image::Arch::default().to_string();
    let has_cap = |cap: &String| capabilities.contains(cap.as_str());
    let (includes, excludes) = (&rule.includes, &rule.excludes);
    for kernel in includes.min_kernel.iter().chain(&excludes.min_kernel) {
        // This runtime asks for Linux 5.12, and profiles ask for 4.8.
        if !is_older_than_ours(kernel) {
            let why = format!("minKernel {kernel:?} is newer than 5.12, which this version can't decide");
            return Err(Error::new(Kind::Unsupported, why));
        }
    }
    let included = includes.caps.iter().all(has_cap)
        && (includes.arches.is_empty() || includes.arches.iter().any(|a| is_arch(a, &arch)));
    let excluded = excludes.caps.iter().any(has_cap)
        || excludes.arches.iter().any(|a| is_arch(a, &arch))
        || excludes.min_kernel.is_some();
    Ok(included && !excluded)
}

fn is_arch(name: &str, native: &str) -> bool {
    // A 64-bit x86 kernel runs the others' programs, and the rules are compiled for each.
    name == native
        || (native == "amd64" && matches!(name, "x32" | "x86"))
        || (native == "arm64" && name == "arm")
}

fn is_older_than_ours(version: &str) -> bool {
    let mut numbers = version.split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) <= (5, 12),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule_for<'a>(seccomp: &'a Value, name: &str) -> Vec<&'a Value> {
        let rules = seccomp["syscalls"].as_array().unwrap();
        rules.iter().filter(|r| r["names"].as_array().unwrap().iter().any(|n| n == name)).collect()
    }

    #[test]
    fn the_default_profile_refuses_what_is_not_listed() {
        let seccomp = profile(&Seccomp::Default, &BTreeSet::new()).unwrap().unwrap();
        assert_eq!(seccomp["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(seccomp["defaultErrnoRet"], 1);
        for name in ["mount", "bpf", "kexec_load", "init_module", "unshare", "setns", "reboot", "add_key"] {
            assert!(rule_for(&seccomp, name).is_empty(), "{name} is allowed");
        }
        assert!(!rule_for(&seccomp, "execve").is_empty());
    }

    #[test]
    fn clone3_does_not_exist_without_cap_sys_admin() {
        let without = profile(&Seccomp::Default, &BTreeSet::new()).unwrap().unwrap();
        assert_eq!(rule_for(&without, "clone3")[0]["errnoRet"], 38);
        let with = profile(&Seccomp::Default, &BTreeSet::from(["CAP_SYS_ADMIN"])).unwrap().unwrap();
        assert_eq!(rule_for(&with, "clone3")[0]["action"], "SCMP_ACT_ALLOW");
        assert!(!rule_for(&with, "mount").is_empty());
    }

    #[test]
    fn a_profile_of_the_runtime_spec_is_taken_as_it_is() {
        let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],
            "syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO","errnoRet":13}]}"#;
        let seccomp = resolve(text, &BTreeSet::new()).unwrap();
        assert_eq!(rule_for(&seccomp, "chmod")[0]["errnoRet"], 13);
        assert_eq!(seccomp["architectures"], json!(["SCMP_ARCH_X86_64"]));
    }

    #[test]
    fn a_profile_with_an_unknown_field_is_refused() {
        let error =
            resolve(r#"{"defaultAction":"SCMP_ACT_ALLOW","sycalls":[]}"#, &BTreeSet::new()).unwrap_err();
        assert!(error.to_string().contains("unknown field `sycalls`"), "{error}");
    }
}
