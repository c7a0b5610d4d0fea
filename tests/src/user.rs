//! Callers of the runtime that are not root: a user without privilege, and the root of a user namespace of that user, as
//! podman calls a runtime without privilege.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::Spec;
use crate::command::{eventually, tool};

/// A user and a group that no machine has.
pub const USER: u32 = 4242;

/// The first of the IDs that are allotted to the user in `/etc/subuid` and `/etc/subgid`, and how many.
pub const RANGE: (u32, u32) = (300_000, 65_536);

/// Who calls the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// The host's root.
    Root,
    /// A user without privilege.
    User,
    /// The root of a user namespace in which that user alone is mapped.
    Namespaced,
}

impl Caller {
    /// The program that calls `runtime` as this caller; `work` is a directory of the test's.
    pub(crate) fn calling(self, runtime: PathBuf, work: &Path) -> PathBuf {
        if self == Self::Root {
            return runtime;
        }
        allot();
        let name = runtime.file_name().expect("the runtime has a name");
        let (own, script) = (work.join("user/bin").join(name), work.join("user").join(name));
        fs::create_dir_all(work.join("user/bin")).expect("make a directory for the runtime");
        // Where the tests lie, others may not be allowed to look.
        fs::copy(&runtime, &own).expect("copy the runtime");
        let session = PathBuf::from(format!("/run/user/{USER}"));
        // A runtime's directory of states stays, once made.
        for name in ["coracle", "runc", "crun"] {
            fs::create_dir_all(session.join(name)).expect("make the user's session");
            private(&session.join(name));
        }
        private(&session);
        let enter = if self == Self::Namespaced { namespace(&session) } else { String::new() };
        let text = format!(
            "#!/bin/sh\nexec {} {enter} env -i PATH=\"$PATH\" XDG_RUNTIME_DIR={} {} \"$@\"\n",
            as_user(USER),
            session.display(),
            own.display(),
        );
        fs::write(&script, text).expect("write the script that calls the runtime");
        for file in [&own, &script] {
            fs::set_permissions(file, fs::Permissions::from_mode(0o755)).expect("make it executable");
        }
        script
    }

    /// Who owns what the test makes for the caller; `None` for root.
    pub(crate) fn owner(self) -> Option<u32> {
        (self != Self::Root).then_some(USER)
    }
}

/// The words of a shell that run what follows as user and group `user`.
pub fn as_user(user: u32) -> String {
    format!("setpriv --reuid {user} --regid {user} --clear-groups")
}

fn private(directory: &Path) {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).expect("make it private");
    chown(directory, Some(USER), Some(USER)).expect("give it to the user");
}

/// Makes the user known and gives it ranges of IDs, on this test host alone.
fn allot() {
    let (first, count) = RANGE;
    for (file, line) in [
        ("passwd", format!("traveller:x:{USER}:{USER}::/:/bin/sh")),
        ("group", format!("traveller:x:{USER}:")),
        ("subuid", format!("traveller:{first}:{count}")),
        ("subgid", format!("traveller:{first}:{count}")),
    ] {
        let (real, own) = (Path::new("/etc").join(file), Path::new("/run/test").join(file));
        if !real.exists() {
            continue;
        }
        let mut text = fs::read_to_string(&real).expect("read a list of users");
        text.push_str(&format!("{line}\n"));
        fs::write(&own, text).expect("write a list of users");
        tool("busybox", &["mount", "--bind", &own.to_string_lossy(), &real.to_string_lossy()]);
    }
}

/// Makes a user namespace of the user's, and a mount namespace in it, as podman does; returns the words that enter them.
fn namespace(session: &Path) -> String {
    let told = session.join("pid");
    let script = format!(
        "exec {} unshare --user --map-root-user --mount sh -c 'echo $$ >{}; exec sleep 1000'",
        as_user(USER),
        told.display()
    );
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::null());
    #[expect(clippy::zombie_processes, reason = "the host's first process awaits it, and ends it")]
    let _holder = command.spawn().expect("start a process that holds a user namespace");
    let pid = || fs::read_to_string(&told).unwrap_or_default().trim().to_owned();
    let sleeps = || fs::read_to_string(format!("/proc/{}/comm", pid())).is_ok_and(|comm| comm == "sleep\n");
    eventually("a user namespace", sleeps);
    format!("nsenter --target {} --user --mount --preserve-credentials", pid())
}

/// A container in which the user is root, and nobody else is anybody.
#[must_use]
pub fn single() -> Spec {
    let own = json!([{"containerID": 0, "hostID": USER, "size": 1}]);
    mapped(own.clone(), own)
}

/// A container whose users and groups are mapped by `users` and `groups`.
#[must_use]
pub fn mapped(users: Value, groups: Value) -> Spec {
    let spec = without_groups(Spec::new().namespace("user"));
    spec.set("/linux/uidMappings", users).set("/linux/gidMappings", groups)
}

/// The usual mounts, but for the group of terminals, which is not mapped.
#[must_use]
pub fn without_groups(spec: Spec) -> Spec {
    let options = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    spec.without_mount("/dev/pts").mount("/dev/pts", "devpts", "devpts", &options)
}
