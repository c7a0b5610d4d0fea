//! systemd as the cgroup manager (`--systemd-cgroup`): containers are scopes.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

use coracle_tests::command::{eventually, tool};
use coracle_tests::host::runtime_path;
use coracle_tests::pod::Pods;
use coracle_tests::{Container, Host, Outcome, Spec, cgroup, privileged, with_systemd};
use serde_json::json;

/// What systemd says of a unit's property.
fn property(unit: &str, name: &str) -> String {
    tool("systemctl", &["show", "--value", "--property", name, unit]).trim().to_owned()
}

/// The unit's cgroup, from the root of each hierarchy.
fn group(unit: &str) -> String {
    property(unit, "ControlGroup")
}

/// What a file of it holds, by its name on version 2.
fn limit(cgroup: &str, file: &str) -> String {
    let file = match file {
        "memory.max" if !cgroup::is_unified() => "memory.limit_in_bytes",
        file => file,
    };
    cgroup::read(cgroup, file).unwrap_or_else(|| panic!("{file} of {cgroup}"))
}

fn is_forgotten(unit: &str) -> bool {
    property(unit, "LoadState") == "not-found"
}

/// A container that sleeps in a scope of this name.
fn sleeper(name: &str) -> Spec {
    let limits = json!({
        "memory": {"limit": 64 << 20}, "pids": {"limit": 20}, "cpu": {"quota": 50_000, "period": 100_000},
    });
    let path = format!("coracle-test.slice:x:{name}");
    Spec::new().args(["sleep", "1000"]).set("/linux/resources", limits).cgroup(&path)
}

#[test]
fn a_container_is_a_scope_with_its_limits_and_goes_with_it() {
    with_systemd(|host| {
        let container = host.bundle(sleeper("limits")).start();
        let unit = "x-limits.scope";
        assert_eq!(property(unit, "Slice"), "coracle-test.slice");
        assert_eq!(property(unit, "Delegate"), "yes");
        assert_eq!(property(unit, "TasksMax"), "20");
        assert_eq!(property(unit, "CPUQuotaPerSecUSec"), "500ms");
        assert!(group(unit).ends_with("coracle.slice/coracle-test.slice/x-limits.scope"));
        let processes = limit(&group(unit), "cgroup.procs");
        assert_eq!(processes.lines().count(), 1, "the holder is gone, the container there: {processes:?}");
        host.call(&["delete", "--force", container.id()]).succeeds();
        assert!(is_forgotten(unit));
    });
}

#[test]
fn annotations_set_properties_of_the_scope() {
    with_systemd(|host| {
        let annotation = |name: &str| format!("/annotations/org.systemd.property.{name}");
        let spec = sleeper("asked")
            .set(&annotation("TimeoutStopSec"), json!("7"))
            .set(&annotation("After"), json!("['basic.target']"))
            .set(&annotation("CollectMode"), json!("'inactive-or-failed'"));
        let container = host.bundle(spec).start();
        assert_eq!(property("x-asked.scope", "TimeoutStopUSec"), "7s");
        assert!(property("x-asked.scope", "After").contains("basic.target"));
        assert_eq!(property("x-asked.scope", "CollectMode"), "inactive-or-failed");
        host.call(&["delete", "--force", container.id()]).succeeds();
        let wrong = sleeper("wrong").set(&annotation("After"), json!("basic.target"));
        systemd(host, "create", &wrong)
            .fails_with(&["/annotations/org.systemd.property.After", "not a value"]);
    });
}

#[test]
fn limits_outlive_a_reload_of_systemd_and_new_ones_are_told_to_it() {
    with_systemd(|host| {
        let container = host.bundle(sleeper("reload")).start();
        let unit = "x-reload.scope";
        let files = group(unit);
        let pids = || limit(&files, "pids.max");
        tool("systemctl", &["daemon-reload"]);
        assert_eq!(pids(), "20");
        host.call(&["update", "--pids-limit", "30", container.id()]).succeeds();
        tool("systemctl", &["daemon-reload"]);
        assert_eq!((pids().as_str(), property(unit, "TasksMax").as_str()), ("30", "30"));
        host.call(&["delete", "--force", container.id()]).succeeds();
    });
}

/// On version 1 systemd allows again what it was not told of.
#[test]
fn devices_stay_out_of_reach_when_systemd_is_reloaded() {
    with_systemd(|host| {
        let script = "mknod /dev/opened c 10 229 && sleep 1000";
        let fuse = json!({"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"});
        let allowed = sleeper("open").set("/linux/resources/devices", json!([fuse]));
        let start = |spec: Spec| host.bundle(spec.script(script).capabilities(&["CAP_MKNOD"])).start();
        let [without, with] = [sleeper("closed"), allowed].map(start);
        let open = |container: &Container<'_>| {
            host.call(&["exec", container.id(), "sh", "-c", "exec 3</dev/opened"])
        };
        let refused = ["/dev/opened", "Operation not permitted"];
        eventually("the node is there", || open(&with).code == 0);
        open(&without).fails_with(&refused);
        tool("systemctl", &["daemon-reload"]);
        open(&with).succeeds();
        open(&without).fails_with(&refused);

        let file = host.directory().join("resources.json");
        let other = json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"});
        fs::write(&file, json!({"devices": [other]}).to_string()).unwrap();
        host.call(&["update", "--resources", file.to_str().unwrap(), with.id()]).succeeds();
        tool("systemctl", &["daemon-reload"]);
        open(&with).fails_with(&refused);
        [without, with].iter().for_each(Container::remove);
    });
}

/// Also where there is no systemd: the container is one without, whose record says otherwise.
#[test]
fn limits_that_systemd_can_not_be_told_of_stay_as_they_were() {
    privileged(|host| {
        if !host.needs_coracle("a record that names a scope") {
            return;
        }
        let limits = json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 20}});
        let spec = Spec::new().set("/linux/resources", limits).args(["sleep", "1000"]);
        let container = host.bundle(spec).start();
        let state = Path::new("/run/coracle").join(container.id());
        let (record, config) = (state.join("record.json"), state.join("config.json"));
        let (own, kept) = (fs::read_to_string(&record).unwrap(), fs::read_to_string(&config).unwrap());
        let mut scope: serde_json::Value = serde_json::from_str(&own).unwrap();
        scope["cgroup"]["unit"] =
            json!({"name": "no-such-coracle.scope", "slice": "system.slice", "user": null});
        fs::write(&record, scope.to_string()).unwrap();
        let update = host.call(&["update", "--pids-limit", "30", "--memory", "32m", container.id()]);
        let update = update.fails_with(&["updating container"]);
        // The one is told where there is no systemd, the other by it.
        let words = ["systemd", "no-such-coracle.scope"];
        assert!(words.iter().any(|word| update.stderr.contains(word)), "{}", update.stderr);
        fs::write(&record, own).unwrap();
        let pids = cgroup::read(&format!("/{}", container.id()), "pids.max");
        assert_eq!(pids.as_deref(), Some("20"));
        assert_eq!(fs::read_to_string(&config).unwrap(), kept);
        container.remove();
    });
}

#[test]
fn an_update_of_a_part_of_a_limit_is_reckoned_with_the_rest() {
    with_systemd(|host| {
        let limits = json!({"cpu": {"quota": 25_000, "period": 50_000}});
        let container = host.bundle(sleeper("parts").set("/linux/resources", limits)).start();
        host.call(&["update", "--cpu-quota", "40001", container.id()]).succeeds();
        assert_eq!(property("x-parts.scope", "CPUQuotaPerSecUSec"), "810ms");
        let files = group("x-parts.scope");
        if cgroup::is_unified() {
            assert_eq!(limit(&files, "cpu.max"), "40001 50000");
        } else {
            let parts = ["cpu.cfs_quota_us", "cpu.cfs_period_us"].map(|file| limit(&files, file));
            assert_eq!(parts, ["40001", "50000"]);
        }
        host.call(&["delete", "--force", container.id()]).succeeds();
    });
}

#[test]
fn a_scope_of_another_container_is_refused_and_left_alone() {
    with_systemd(|host| {
        let first = host.bundle(sleeper("twice")).start();
        let second = host.bundle(sleeper("twice"));
        second.try_create().fails_with(&["starting unit x-twice.scope", "/linux/cgroupsPath of its own"]);
        assert_eq!(host.call(&["state", first.id()]).json()["status"], "running");
        assert_eq!(host.call(&["state", second.id()]).code, 1, "nothing is left of the second");
        host.call(&["delete", "--force", first.id()]).succeeds();
    });
}

#[test]
fn runs_one_after_the_other_leave_no_scope() {
    with_systemd(|host| {
        let bundle = host.bundle(sleeper("again").args(["true"]));
        for _ in 0..10 {
            bundle.run().succeeds();
            assert!(is_forgotten("x-again.scope"));
        }
    });
}

#[test]
fn a_runtime_that_is_killed_takes_its_scope_with_it() {
    with_systemd(|host| {
        let bundle = host.bundle(sleeper("killed").hook("prestart", &["/bin/sleep", "60"]));
        let mut runtime = bundle.command("create").spawn().unwrap();
        eventually("the scope stands", || property("x-killed.scope", "ActiveState") == "active");
        runtime.kill().unwrap();
        runtime.wait().unwrap();
        host.call(&["delete", "--force", bundle.id()]).succeeds();
        eventually("the scope is gone", || is_forgotten("x-killed.scope"));
    });
}

/// A user that every machine has, with a systemd of its own.
struct Session<'h> {
    host: &'h Host,
    user: u32,
    group: u32,
}

impl Session<'_> {
    fn id(host: &Host, flag: &str) -> u32 {
        host.shell(&format!("id {flag} games")).succeeds().text().parse().unwrap()
    }

    fn path(&self, name: &str) -> String {
        format!("/run/user/{}/{name}", self.user)
    }

    /// Runs a command of the runtime as the user. It begins in the user's own cgroups, as a session's commands do.
    fn call(&self, under: &str, args: &str) -> Outcome {
        let (session, own) = (self.path(""), self.path("coracle-test"));
        self.host.shell(&format!(
            "cd / && setpriv --reuid games --regid games --clear-groups env XDG_RUNTIME_DIR={session} \
            systemd-run --user --quiet --wait --pipe --collect --setenv=XDG_RUNTIME_DIR={session} \
            {under} {own} --systemd-cgroup {args}"
        ))
    }

    /// A bundle whose files are the user's.
    fn bundle(&self, spec: Spec) -> String {
        let directory = self.host.bundle(spec).directory().to_str().unwrap().to_owned();
        tool("chown", &["-R", &format!("{}:{}", self.user, self.group), &directory]);
        directory
    }
}

/// Starts the user's systemd for the test, and stops it afterwards.
fn with_session(host: &Host, test: impl FnOnce(&Session<'_>)) {
    if !cgroup::is_unified() {
        return host.skip("users' systemds are given no controller of version 1");
    }
    let session = Session { host, user: Session::id(host, "-u"), group: Session::id(host, "-g") };
    let unit = format!("user@{}.service", session.user);
    tool("systemctl", &["start", "--no-block", &unit]);
    // On an emulated processor its start takes its time.
    let comes =
        format!("for i in $(seq 50); do [ -S {} ] && exit; sleep 1; done; exit 1", session.path("bus"));
    if (0..2).all(|_| host.shell(&comes).code != 0) {
        return host.skip("the user \"games\" can't have a systemd of its own here");
    }
    let (runtime, own) = (runtime_path(), session.path("coracle-test"));
    tool("install", &["-m", "755", runtime.to_str().unwrap(), &own]);
    test(&session);
    tool("systemctl", &["stop", &unit]);
}

#[test]
fn a_users_container_is_a_scope_of_the_users_systemd() {
    with_systemd(|host| {
        with_session(host, |session| {
            let map = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
            let spec = sleeper("users").namespace("user").without_mount("/dev/pts");
            let spec = spec.set("/linux/uidMappings", map(session.user));
            let bundle = session.bundle(spec.set("/linux/gidMappings", map(session.group)));
            session.call("", &format!("run --detach --bundle {bundle} box")).succeeds();
            let own = format!("user.slice/user-{0}.slice/user@{0}.service", session.user);
            let scope = format!("/sys/fs/cgroup/{own}/coracle.slice/coracle-test.slice/x-users.scope");
            let read = |file: &str| fs::read_to_string(Path::new(&scope).join(file)).unwrap();
            assert_eq!((read("pids.max").as_str(), read("memory.max").as_str()), ("20\n", "67108864\n"));
            session.call("", "exec box true").succeeds();
            session.call("", "update --pids-limit 30 box").succeeds();
            assert_eq!(read("pids.max"), "30\n");
            session.call("", "delete --force box").succeeds();
            eventually("the scope is gone", || !Path::new(&scope).exists());
        });
    });
}

#[test]
fn the_root_of_a_users_namespace_has_scopes_of_the_users_systemd() {
    with_systemd(|host| {
        with_session(host, |session| {
            let spec = sleeper("rooted").args(["cat", "/proc/self/cgroup"]).without_namespace("cgroup");
            let bundle = session.bundle(spec.without_mount("/dev/pts"));
            let under = "unshare --user --map-root-user --mount";
            let run = session.call(under, &format!("run --bundle {bundle} box")).succeeds();
            let own =
                format!("user@{}.service/coracle.slice/coracle-test.slice/x-rooted.scope", session.user);
            assert!(run.text().ends_with(&own), "{run:?}");
        });
    });
}

#[test]
fn where_systemd_does_not_run_the_way_out_is_told() {
    privileged(|host| {
        if Path::new("/run/systemd/private").exists() {
            return host.skip("systemd runs here");
        }
        let outcome = systemd(host, "run", &sleeper("x"));
        outcome.fails_with(&["connecting to systemd", "is systemd running?", "--cgroup-manager cgroupfs"]);
    });
}

#[test]
fn a_path_that_is_no_scope_is_refused_by_name() {
    privileged(|host| {
        for path in ["/a/b", "x.slice:only-two", "no-slice:x:y", "x.slice:x:a/b"] {
            let outcome = systemd(host, "create", &sleeper("x").cgroup(path));
            outcome.fails_with(&["/linux/cgroupsPath", path]);
        }
    });
}

#[test]
fn a_bus_that_is_silent_is_not_waited_for_without_end() {
    privileged(|host| {
        if Path::new("/run/systemd/private").exists() {
            return host.skip("systemd runs here");
        }
        fs::create_dir_all("/run/dbus").unwrap();
        let silent = UnixListener::bind("/run/dbus/system_bus_socket").unwrap();
        let outcome = systemd(host, "create", &sleeper("x"));
        outcome.fails_with(&["authenticating with D-Bus", "no answer within 15 seconds"]);
        drop(silent);
        fs::remove_dir_all("/run/dbus").unwrap();
    });
}

fn systemd(host: &Host, verb: &str, spec: &Spec) -> Outcome {
    let bundle = host.bundle(spec.clone());
    let directory = bundle.directory().to_str().unwrap().to_owned();
    host.call(&["--systemd-cgroup", verb, "--bundle", &directory, bundle.id()])
}

#[test]
fn a_pod_is_a_scope_in_the_slice_of_its_node_and_goes_with_it() {
    with_systemd(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let image = coracle_tests::pod::IMAGE;
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
            resources: {{limits: {{pids: 50}}}}\n  containers:\n  \
            - {{name: main, image: '{image}', command: [sleep, '1000'], resources: {{limits: {{memory: 64Mi}}}}}}\n"
        );
        let (file, store) = (pods.file(&text), pods.store.directory().to_str().unwrap().to_owned());
        let run = ["pod", "run", "--parent", "org/team-a", "--store", &store, "-f", file.to_str().unwrap()];
        host.call(&[&["--systemd-cgroup"], &run[..]].concat()).succeeds();
        let unit = "web.pod.scope";
        assert_eq!((property(unit, "TasksMax").as_str(), property(unit, "Delegate").as_str()), ("50", "yes"));
        let scope = group(unit);
        assert!(scope.ends_with("coracle-org-team\\x2da.slice/web.pod.scope"), "{scope:?}");
        let main = format!("{scope}/main");
        assert_eq!(limit(&main, "memory.max"), "67108864");
        tool("systemctl", &["daemon-reload"]);
        assert_eq!([limit(&scope, "pids.max"), limit(&main, "memory.max")], ["50", "67108864"]);
        pods.exec("web/main", &["true"]).succeeds();
        pods.call(&["kill", "web/main", "KILL"]).succeeds();
        pods.becomes("web", "main", "restarts", 1);
        pods.becomes("web", "main", "state", "running");
        pods.remove("web");
        eventually("the scope is gone", || is_forgotten(unit));
    });
}
