//! What is left when somebody is killed, and how it goes on.

use std::fs;
use std::io::Write;
use std::process::Command;

use coracle_tests::pod::{IMAGE, Pods};
use coracle_tests::{command, privileged};

const TALKER: &str = "
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  containers:
  - {name: talks, image: IMAGE, command: [sh, -c, 'n=0; while test ! -e /tmp/end; do n=$((n+1)); echo $n; sleep 0.01; done; exit 9']}
  - {name: sleeps, image: IMAGE, command: [sleep, '1000']}
";

/// Waits for the end, with this exit code, of a container that is nobody's child. Before Linux 6.15 it is known only as long as
/// nobody has reaped the process.
#[track_caller]
fn ends(pods: &Pods<'_>, container: &str, code: i32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let is_kept = (numbers.next(), numbers.next()) >= (Some(6), Some(15));
    let told = pods.call(&["wait", container]).code;
    assert!(told == code || told == 255 && !is_kept, "expected exit code {code}, got {told}");
}

fn kill(pid: &serde_json::Value) {
    let pid = pid.as_i64().unwrap();
    command::tool("kill", &["-KILL", &pid.to_string()]);
    command::eventually("it is gone", || {
        fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z"))
    });
}

#[test]
fn a_supervisor_that_dies_is_replaced_and_its_containers_go_on_without_losing_a_line() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", TALKER);
        let before = pods.inspect("web");
        let pid = pods.container("web", "talks")["pid"].clone();
        kill(&before["supervisor"]);
        pods.call(&["inspect", "web"]).fails_with(&["has no supervisor", "coracle recover"]);
        assert!(pods.call(&["ls"]).succeeds().text().contains("Unknown"));
        assert_eq!(host.call(&["recover"]).succeeds().lines(), ["web"]);
        assert_eq!(host.call(&["recover"]).succeeds().text(), "");
        assert_eq!(pods.container("web", "talks")["pid"], pid);
        pods.exec("web/talks", &["touch", "/tmp/end"]).succeeds();
        ends(&pods, "web/talks", 9);
        let logs = pods.logs("web/talks");
        let numbers: Vec<usize> = logs.lines().map(|line| line.parse().unwrap()).collect();
        assert!(
            numbers.len() > 1 && numbers.iter().enumerate().all(|(index, number)| index + 1 == *number),
            "{logs}"
        );
        pods.remove("web");
    });
}

#[test]
fn a_pod_that_was_started_again_goes_on_without_its_supervisor() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", TALKER);
        pods.call(&["stop", "web"]).succeeds();
        pods.call(&["start", "web"]).succeeds();
        let pid = pods.container("web", "sleeps")["pid"].clone();
        kill(&pods.inspect("web")["supervisor"]);
        host.call(&["recover"]).succeeds();
        std::thread::sleep(std::time::Duration::from_millis(500));
        let sleeps = pods.container("web", "sleeps");
        assert_eq!((&sleeps["state"], &sleeps["pid"]), (&"running".into(), &pid), "{sleeps}");
        pods.remove("web");
    });
}

#[test]
fn how_a_container_ended_is_known_though_nobody_was_there() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", TALKER);
        kill(&pods.inspect("web")["supervisor"]);
        let states = "/run/coracle/.pods/web/containers/talks/record.json";
        let record: serde_json::Value = serde_json::from_slice(&fs::read(states).unwrap()).unwrap();
        let pid = record["process"]["pid"].as_i64().unwrap();
        fs::write(format!("/proc/{pid}/root/tmp/end"), "").unwrap();
        command::eventually("it has ended", || {
            fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z"))
        });
        host.call(&["recover"]).succeeds();
        ends(&pods, "web/talks", 9);
        pods.remove("web");
    });
}

#[test]
fn containers_below_others_are_found_again() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", TALKER);
        let image = IMAGE;
        let file = pods.file(&format!("{{name: child, image: '{image}', command: [sleep, '1000']}}"));
        pods.call(&["launch", "-f", file.to_str().unwrap(), "web/sleeps"]).succeeds();
        kill(&pods.inspect("web")["supervisor"]);
        host.call(&["recover"]).succeeds();
        assert_eq!(pods.container("web", "sleeps/child")["state"], "running");
        pods.exec("web/sleeps/child", &["true"]).succeeds();
        pods.call(&["kill", "web/sleeps/child", "KILL"]).succeeds();
        ends(&pods, "web/sleeps/child", 137);
        pods.remove("web");
    });
}

#[test]
fn a_pod_whose_keeper_is_killed_fails() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", TALKER);
        kill(&pods.inspect("web")["keeper"]);
        pods.is("web", "Failed");
        assert!(pods.inspect("web")["message"].as_str().unwrap().contains("holder of the pod's namespaces"));
        pods.remove("web");
    });
}

#[test]
fn a_pod_that_lost_both_supervisor_and_keeper_can_be_removed() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", TALKER);
        let told = pods.inspect("web");
        kill(&told["supervisor"]);
        kill(&told["keeper"]);
        host.call(&["recover"]).succeeds();
        pods.is("web", "Failed");
        pods.call(&["rm", "web"]).succeeds();
    });
}

#[test]
fn a_pod_without_a_supervisor_is_removed_by_force() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", TALKER);
        kill(&pods.inspect("web")["supervisor"]);
        pods.call(&["rm", "web"]).fails_with(&["has no supervisor", "coracle recover"]);
        pods.remove("web");
        assert_eq!(pods.call(&["ls", "--quiet"]).succeeds().text(), "");
    });
}

#[test]
fn a_pod_on_a_full_disk_gets_a_new_supervisor_and_can_be_removed() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let disk = host.directory();
        command::tool("mount", &["-t", "tmpfs", "-o", "size=1m", "tmpfs", disk.to_str().unwrap()]);
        let root = disk.join("states");
        let root = root.to_str().unwrap();
        let file = pods.file("");
        let spec = TALKER.replace("IMAGE", IMAGE);
        fs::write(
            &file,
            format!("apiVersion: v1\nkind: Pod\nmetadata: {name}\nspec:{spec}", name = "{name: web}"),
        )
        .unwrap();
        let call = |args: &[&str]| host.call(&[&["--root", root], args].concat());
        let store = pods.store.directory().to_str().unwrap().to_owned();
        call(&["pod", "run", "--store", &store, "-f", file.to_str().unwrap()]).succeeds();
        let mut filler = fs::File::create(disk.join("filler")).unwrap();
        while filler.write_all(&[b'x'; 4096]).is_ok() {}
        kill(&call(&["pod", "inspect", "web"]).succeeds().json()["supervisor"]);
        assert_eq!(call(&["recover"]).succeeds().lines(), ["web"]);
        let told = call(&["pod", "inspect", "web"]).succeeds().json();
        assert!(told["message"].as_str().unwrap().contains("no space left on device"), "{told}");
        call(&["pod", "rm", "--force", "web"]).succeeds();
        drop(filler);
        command::tool("umount", &[disk.to_str().unwrap()]);
    });
}

#[test]
fn a_container_whose_record_was_cut_short_goes_with_its_pod() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", TALKER);
        let pid = pods.container("web", "talks")["pid"].to_string();
        kill(&pods.inspect("web")["supervisor"]);
        let record = "/run/coracle/.pods/web/containers/talks/record.json";
        fs::OpenOptions::new().write(true).open(record).unwrap().set_len(100).unwrap();
        host.call(&["recover"]).succeeds();
        pods.remove("web");
        command::eventually("it is gone", || !fs::exists(format!("/proc/{pid}")).unwrap());
    });
}

#[test]
fn a_pod_that_was_only_begun_goes_with_recover() {
    privileged(|host| {
        let Some(_) = Pods::new(host) else { return };
        fs::create_dir_all("/run/coracle/.pods/half").unwrap();
        host.call(&["recover"]).succeeds();
        assert!(!fs::exists("/run/coracle/.pods").unwrap());
    });
}

#[test]
fn a_host_is_drained_and_takes_no_pods_until_it_is_opened_again() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("one", TALKER);
        pods.run("two", TALKER);
        host.call(&["drain", "--within", "10"]).succeeds();
        for name in ["one", "two"] {
            assert_eq!(pods.inspect(name)["phase"], "Failed");
        }
        pods.make("run", "three", TALKER).fails_with(&["the host is being drained", "coracle drain --off"]);
        host.call(&["drain", "--off"]).succeeds();
        pods.run("three", TALKER);
        for name in ["one", "two", "three"] {
            pods.remove(name);
        }
    });
}

#[test]
fn the_input_of_a_container_stays_open_and_can_be_written_to() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  restartPolicy: Never
  containers:
  - {name: reads, image: IMAGE, stdin: true, stdinOnce: true, command: [sh, -c, 'read line; echo \"got $line\"']}
";
        pods.run("web", spec);
        kill(&pods.inspect("web")["supervisor"]);
        host.call(&["recover"]).succeeds();
        assert_eq!(pods.container("web", "reads")["state"], "running");
        host.shell("echo a word | $RUNTIME pod attach --stdin web/reads").succeeds();
        ends(&pods, "web/reads", 0);
        assert_eq!(pods.logs("web/reads"), "got a word");
        pods.remove("web");
    });
}

#[test]
fn a_pods_deadline_counts_from_its_own_start() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", &format!("  activeDeadlineSeconds: 600{TALKER}"));
        kill(&pods.inspect("web")["supervisor"]);
        let file = "/run/coracle/.pods/web/pod.json";
        let mut record: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        // As if it had run for as long as the machine, and had no more time than that.
        record["document"]["spec"]["activeDeadlineSeconds"] = record["started"]["secs"].clone();
        record["started"]["secs"] = 0.into();
        fs::write(file, record.to_string()).unwrap();
        host.call(&["recover"]).succeeds();
        pods.is("web", "Failed");
        assert_eq!(pods.container("web", "sleeps")["exit"]["reason"], "DeadlineExceeded");
        pods.remove("web");
    });
}

#[test]
fn a_container_whose_end_is_on_record_is_not_run_again() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", TALKER);
        pods.exec("web/talks", &["touch", "/tmp/end"]).succeeds();
        pods.call(&["wait", "web/talks"]).exits(9);
        kill(&pods.inspect("web")["supervisor"]);
        // As if it had been killed when what was left of the container had just been removed.
        let file = "/run/coracle/.pods/web/members/talks.json";
        let mut life: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        (life["done"], life["removing"]) = (false.into(), true.into());
        fs::write(file, life.to_string()).unwrap();
        host.call(&["recover"]).succeeds();
        pods.becomes("web", "talks", "state", "exited");
        assert_eq!(pods.container("web", "talks")["exit"]["exitCode"], 9);
        pods.remove("web");
    });
}

#[test]
fn a_container_whose_launch_was_cut_off_before_it_ran_is_launched_again() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  restartPolicy: Never
  initContainers:
  - {name: first, image: IMAGE, command: [sh, -c, 'while test ! -e /tmp/end; do sleep 0.01; done']}
  containers:
  - {name: main, image: IMAGE, command: ['true']}
";
        pods.make("create", "web", spec).succeeds();
        let mut starting = Command::new(host.runtime()).args(["pod", "start", "web"]).spawn().unwrap();
        pods.becomes("web", "first", "state", "running");
        kill(&pods.inspect("web")["supervisor"]);
        assert!(!starting.wait().unwrap().success());
        // As if it had been killed in the middle of the launch of the second.
        let states = "/run/coracle/.pods/web/containers";
        let record = fs::read(format!("{states}/first/record.json")).unwrap();
        let mut record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        (record["id"], record["phase"]) = ("web/main".into(), "creating".into());
        for key in ["process", "cgroup", "mounts_over", "mounted"] {
            record[key] = serde_json::Value::Null;
        }
        record["isolators"] = serde_json::json!([]);
        fs::create_dir(format!("{states}/main")).unwrap();
        fs::write(format!("{states}/main/record.json"), record.to_string()).unwrap();
        host.call(&["recover"]).succeeds();
        pods.exec("web/first", &["touch", "/tmp/end"]).succeeds();
        pods.call(&["wait", "web/main"]).exits(0);
        assert_eq!(pods.container("web", "main")["exit"]["reason"], "Completed");
        pods.remove("web");
    });
}

#[test]
fn a_container_below_another_whose_launch_was_cut_off_is_launched_when_asked_for_again() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", TALKER);
        kill(&pods.inspect("web")["supervisor"]);
        // As if it had been killed when the container was on record and nothing of it was there.
        let file = "/run/coracle/.pods/web/members/sleeps~child.json";
        let child =
            format!("{{\"name\": \"child\", \"image\": \"{IMAGE}\", \"command\": [\"sleep\", \"1000\"]}}");
        fs::write(file, format!("{{\"nested\": {child}}}")).unwrap();
        host.call(&["recover"]).succeeds();
        let document = pods.file(&child);
        pods.call(&["launch", "-f", document.to_str().unwrap(), "web/sleeps"]).succeeds();
        assert_eq!(pods.container("web", "sleeps/child")["state"], "running");
        pods.remove("web");
    });
}
