//! The labels of security modules: applied through the host's procfs, or a clear error.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;
use std::process::Command;

use coracle_tests::command::{eventually, tool};
use coracle_tests::{Host, Spec, privileged};
use serde_json::json;

fn has_apparmor() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|answer| answer.starts_with('Y'))
}

/// A profile that allows everything but to write to `/forbidden`, loaded for one test.
struct Profile {
    path: String,
    has_mounted: bool,
}

impl Profile {
    /// `None`, counted, where it can't be loaded. Every test has a name of its own: they share the kernel's profiles.
    fn load(host: &Host, name: &str) -> Option<Self> {
        if !has_apparmor() {
            host.skip("AppArmor is not enabled");
            return None;
        }
        if !host.needs_program("apparmor_parser") {
            return None;
        }
        let has_mounted = !fs::exists("/sys/kernel/security/apparmor").unwrap();
        if has_mounted {
            tool("mount", &["-t", "securityfs", "none", "/sys/kernel/security"]);
        }
        let path = host.directory().join("profile");
        let allowed = "file, capability, mount, umount, pivot_root, network, unix, signal, ptrace, dbus,";
        fs::write(&path, format!("profile {name} {{ {allowed} deny /forbidden w, }}\n")).unwrap();
        let profile = Self { path: path.to_str().unwrap().to_owned(), has_mounted };
        profile.parser("--replace");
        Some(profile)
    }

    fn parser(&self, what: &str) {
        let run = Command::new("apparmor_parser").args([what, "--skip-cache", &self.path]).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        self.parser("--remove");
        if self.has_mounted {
            tool("umount", &["/sys/kernel/security"]);
        }
    }
}

#[test]
fn a_profile_confines_the_container_and_what_is_executed_in_it() {
    privileged(|host| {
        let name = "coracle-test-confined";
        let Some(_profile) = Profile::load(host, name) else { return };
        let spec = Spec::new()
            .set("/process/apparmorProfile", name)
            .script("touch /forbidden || echo refused; touch /allowed && exec sleep 1000");
        let container = host.bundle(spec).start();
        let current = || fs::read_to_string(format!("/proc/{}/attr/current", container.pid())).unwrap();
        assert_eq!(current().trim_end(), "coracle-test-confined (enforce)");
        eventually("the script to run", || container.output().contains("refused"));
        let run = container.exec(&["cat", "/proc/self/attr/current"]).succeeds();
        assert_eq!(run.text(), "coracle-test-confined (enforce)");
        container.remove();
    });
}

#[test]
fn c02_a_mount_over_proc_does_not_keep_the_profile_from_being_applied() {
    privileged(|host| {
        let name = "coracle-test-c02";
        let Some(_profile) = Profile::load(host, name) else { return };
        let fake = host.directory();
        fs::create_dir_all(fake.join("self/attr/apparmor")).unwrap();
        fs::write(fake.join("self/attr/apparmor/exec"), "").unwrap();
        fs::write(fake.join("self/attr/exec"), "").unwrap();
        let spec = Spec::new()
            .set("/process/apparmorProfile", name)
            .without_mount("/proc")
            .bind(fake.to_str().unwrap(), "/proc", &[])
            .set("/linux/maskedPaths", json!([]))
            .set("/linux/readonlyPaths", json!([]))
            .args(["sleep", "1000"]);
        let container = host.bundle(spec).start();
        let current = fs::read_to_string(format!("/proc/{}/attr/current", container.pid())).unwrap();
        assert_eq!(current.trim_end(), "coracle-test-c02 (enforce)");
        container.exec_with(&["--detach"], &["sleep", "1001"]).succeeds();
        let pids = host.call(&["ps", "--format", "json", container.id()]).succeeds().json();
        for pid in pids.as_array().unwrap() {
            let current = fs::read_to_string(format!("/proc/{pid}/attr/current")).unwrap();
            assert_eq!(current.trim_end(), "coracle-test-c02 (enforce)");
        }
        for file in ["self/attr/apparmor/exec", "self/attr/exec"] {
            assert_eq!(fs::read_to_string(fake.join(file)).unwrap(), "");
        }
        container.remove();
    });
}

#[test]
fn a_profile_that_can_not_be_applied_is_told_at_create() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new().set("/process/apparmorProfile", "no-such-profile"));
        let words: &[&str] = &["apparmor failed to apply profile", "/process/apparmorProfile"];
        bundle.try_create().fails_with(words);
        let why = if has_apparmor() { "no such file or directory" } else { "disabled or not supported" };
        bundle.run().fails_with(&[words, &[why]].concat());
    });
}

#[test]
fn a_profile_of_an_executed_process_that_can_not_be_applied_is_told() {
    privileged(|host| {
        let container = host.sleeper();
        let process = json!({
            "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["true"], "apparmorProfile": "no-such-profile"
        });
        let path = host.directory().join("process.json");
        fs::write(&path, process.to_string()).unwrap();
        let run = host.call(&["exec", "--process", path.to_str().unwrap(), container.id()]);
        run.fails_with(&["apparmor failed to apply profile", "/process/apparmorProfile"]);
        container.remove();
    });
}

#[test]
fn labels_of_selinux_are_refused_where_there_is_none() {
    privileged(|host| {
        if fs::exists("/sys/fs/selinux/enforce").unwrap() {
            return host.skip("SELinux is enabled");
        }
        let why = "selinux label is specified in config, but selinux is disabled or not supported";
        for field in ["/process/selinuxLabel", "/linux/mountLabel"] {
            let bundle = host.bundle(Spec::new().set(field, "system_u:system_r:container_t:s0"));
            bundle.try_create().fails_with(&[field, why]);
            bundle.run().fails_with(&[field, why]);
        }
    });
}
