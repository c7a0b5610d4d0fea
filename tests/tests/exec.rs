//! `exec`: one more process in a running container.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Stdio;

use coracle_tests::{Spec, cgroup, command, privileged};
use serde_json::json;

#[test]
fn the_exit_code_is_the_commands() {
    privileged(|host| {
        let container = host.sleeper();
        container.exec(&["sh", "-c", "exit 0"]).exits(0);
        container.exec(&["sh", "-c", "exit 42"]).exits(42);
        container.exec(&["sh", "-c", "kill -KILL $$"]).exits(137);
        container.remove();
    });
}

#[test]
fn it_is_in_every_namespace_of_the_container() {
    privileged(|host| {
        let container = host.sleeper();
        let script = "for n in cgroup ipc mnt net pid uts; do readlink /proc/self/ns/$n; done";
        let inside = container.exec(&["sh", "-c", script]).succeeds().lines();
        let first = container.exec(&["sh", "-c", &script.replace("self", "1")]).succeeds().lines();
        assert_eq!(inside, first);
        container.remove();
    });
}

#[test]
fn it_is_in_every_cgroup_of_the_container() {
    privileged(|host| {
        let container = host.sleeper();
        let inside = container.exec(&["cat", "/proc/self/cgroup"]).succeeds().text();
        let first = container.exec(&["cat", "/proc/1/cgroup"]).succeeds().text();
        assert_eq!(inside, first);
        container.remove();
    });
}

#[test]
fn options_set_environment_directory_and_user() {
    privileged(|host| {
        let container = host.sleeper();
        let run = container.exec_with(&["--env", "EXTRA=yes"], &["sh", "-c", "echo $EXTRA $PATH"]).succeeds();
        assert!(run.text().starts_with("yes /usr/local/sbin"), "{run:?}");
        let run = container.exec_with(&["--cwd", "/home/user"], &["pwd"]).succeeds();
        assert_eq!(run.text(), "/home/user");
        let run = container.exec_with(&["--user", "1000:2000"], &["sh", "-c", "id -u; id -g"]).succeeds();
        assert_eq!(run.lines(), ["1000", "2000"]);
        container.remove();
    });
}

#[test]
fn a_process_document_can_come_through_a_pipe_but_not_be_waited_for_in_vain() {
    privileged(|host| {
        if !host.needs_coracle("a process document that is a pipe without a writer") {
            return;
        }
        let container = host.sleeper();
        let id = container.id();
        let process = json!({"user": {"uid": 0, "gid": 0}, "args": ["echo", "piped"], "cwd": "/", "env": []});
        let piped = format!("(sleep 0.2; echo '{process}') | $RUNTIME exec --process /dev/stdin {id}");
        assert_eq!(host.shell(&piped).succeeds().text(), "piped");
        let fifo = host.directory().join("fifo");
        host.shell(&format!("mkfifo {}", fifo.display())).succeeds();
        let exec = |path: &str| host.call(&["exec", "--process", path, id]);
        exec(fifo.to_str().unwrap()).fails_with(&["fifo", "a pipe that nobody writes"]);
        exec("/dev/zero").fails_with(&["/dev/zero", "neither a file nor a pipe"]);
        container.remove();
    });
}

#[test]
fn a_process_document_says_it_all() {
    privileged(|host| {
        let container = host.sleeper();
        let file = host.directory().join("process.json");
        let process = json!({
            "user": {"uid": 1000, "gid": 1000, "additionalGids": [2000]},
            "args": ["sh", "-c", "id -u; id -G; pwd; echo $WORD; exit 3"],
            "env": ["PATH=/bin", "WORD=from-a-file"],
            "cwd": "/tmp"
        });
        fs::write(&file, process.to_string()).unwrap();
        let run = host.call(&["exec", "--process", file.to_str().unwrap(), container.id()]).exits(3);
        assert_eq!(run.lines(), ["1000", "1000 2000", "/tmp", "from-a-file"]);
        container.remove();
    });
}

#[test]
fn capabilities_are_the_containers_own() {
    privileged(|host| {
        let container = host.sleeper();
        let script = "grep ^Cap /proc/self/status";
        let inside = container.exec(&["sh", "-c", script]).succeeds().text();
        let first = container.exec(&["grep", "^Cap", "/proc/1/status"]).succeeds().text();
        assert_eq!(inside, first);
        let more = container.exec_with(&["--cap", "CAP_NET_ADMIN"], &["sh", "-c", script]).succeeds().text();
        let bit = |text: &str, set: &str| {
            let line = text.lines().find(|line| line.starts_with(set)).unwrap().to_owned();
            u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap() >> 12 & 1
        };
        assert_eq!((bit(&inside, "CapEff"), bit(&more, "CapEff")), (0, 1));
        assert_eq!(bit(&more, "CapInh"), 0);
        container.remove();
    });
}

#[test]
fn detached_it_returns_with_a_pid_file() {
    privileged(|host| {
        let container = host.sleeper();
        let file = host.directory().join("pid");
        let options = ["--detach", "--pid-file", file.to_str().unwrap()];
        container.exec_with(&options, &["sleep", "1001"]).succeeds();
        let pid = fs::read_to_string(&file).unwrap();
        command::eventually("the command runs", || {
            fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap() == "sleep\x001001\x00"
        });
        container.remove();
    });
}

#[test]
fn a_command_that_is_not_there_is_named() {
    privileged(|host| {
        let container = host.sleeper();
        let run = container.exec(&["no-such-command"]);
        run.fails_with(&["no-such-command", "executable file not found in $PATH"]);
        container.exec(&["/no/such/file"]).fails_with(&["no such file or directory"]);
        container.exec(&["/etc/passwd"]).fails_with(&["permission denied"]);
        container.exec_with(&["--cwd", "/nowhere"], &["true"]).fails_with(&["/nowhere"]);
        container.remove();
    });
}

#[test]
fn a_stopped_container_takes_no_more() {
    privileged(|host| {
        let container = host.bundle(Spec::new()).start();
        container.becomes("stopped");
        container.exec(&["true"]).fails_with(&["stopped"]);
        container.call("delete").succeeds();
    });
}

#[test]
fn a_bad_user_is_an_error_and_never_root() {
    privileged(|host| {
        // runc 1.1 takes 4294967296 as root.
        if !host.needs_coracle("a strict reading of users") {
            return;
        }
        let container = host.sleeper();
        for user in ["1000abc", "-1", "4294967296", "0x3e8", "1000:", "1000:x"] {
            let run = container.exec_with(&["--user", user], &["id", "-u"]);
            let taken = run.text();
            assert!(run.code != 0 || taken == "1000", "--user {user:?} was taken as {taken}");
        }
        container.remove();
    });
}

#[test]
fn streams_are_handed_through() {
    privileged(|host| {
        let container = host.sleeper();
        let script = format!("printf 'a\\0b' | $RUNTIME exec {} sh -c 'cat; echo error >&2'", container.id());
        let run = host.shell(&script).succeeds();
        assert_eq!((run.stdout.as_slice(), run.stderr.as_str()), (b"a\0b".as_slice(), "error\n"));
        container.remove();
    });
}

#[test]
fn a_signal_to_the_runtime_reaches_the_command() {
    privileged(|host| {
        let container = host.sleeper();
        let mut command = std::process::Command::new(host.runtime());
        let script = "trap 'exit 9' TERM; echo ready >/tmp/ready; while :; do sleep 0.02; done";
        command.args(["exec", container.id(), "sh", "-c", script]).stdin(Stdio::null());
        let mut child = command.spawn().unwrap();
        let ready = container.bundle().rootfs().join("tmp/ready");
        command::eventually("the command runs", || ready.exists());
        command::tool("kill", &["-TERM", &child.id().to_string()]);
        assert_eq!(command::code(command::wait(&mut child, "exec")), 9);
        container.remove();
    });
}

#[test]
fn it_obeys_the_containers_seccomp_profile() {
    privileged(|host| {
        let rules = json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99}]);
        let spec = Spec::new().seccomp("SCMP_ACT_ALLOW", &rules).args(["sleep", "1000"]);
        let container = host.bundle(spec).start();
        let run = container.exec(&["mkdir", "/tmp/new"]);
        assert!(run.code == 1 && !run.stderr.is_empty(), "{run:?}");
        container.remove();
    });
}

#[test]
fn inherited_descriptors_do_not_reach_the_command() {
    privileged(|host| {
        let container = host.sleeper();
        let script =
            format!("exec $RUNTIME exec {} ls -l /proc/self/fd 3</ 4</root 7</dev/zero", container.id());
        let listing = host.shell(&script).succeeds();
        let open = listing.lines().iter().filter(|line| line.starts_with('l')).count();
        assert_eq!(open, 4, "{}", listing.text());
        container.remove();
    });
}

/// A container that may look into processes would see what the runtime was started with, secrets too.
#[test]
fn the_callers_environment_is_not_to_be_seen_inside() {
    privileged(|host| {
        let look = "while :; do for p in /proc/[0-9]*; do [ $p = /proc/1 ] || cat $p/environ; done; done >>/tmp/seen 2>&1";
        let spec = Spec::new().capabilities(&["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"]).script(look);
        let container = host.bundle(spec).start();
        let id = container.id();
        host.shell(&format!("for i in $(seq 60); do SECRET=unseen-hunter2 $RUNTIME exec {id} true; done"))
            .succeeds();
        let seen = fs::read(container.bundle().rootfs().join("tmp/seen")).unwrap();
        let seen = String::from_utf8_lossy(&seen);
        assert!(seen.contains("_CORACLE_ORIGIN") || !host.is_coracle(), "nothing was seen at all");
        assert!(!seen.contains("unseen-hunter2"));
        container.remove();
    });
}

#[test]
fn it_goes_into_a_cgroup_below_the_containers_own() {
    privileged(|host| {
        let container = host.sleeper();
        let own = format!("/{}", container.id());
        let is_unified = cgroup::is_unified();
        for hierarchy in cgroup::hierarchies_of(&own) {
            fs::create_dir(hierarchy.join("below")).unwrap();
            // A cpuset of version 1 holds nobody before it has processors and memory.
            for file in ["cpuset.cpus", "cpuset.mems"].iter().filter(|_| !is_unified) {
                if let Ok(value) = fs::read_to_string(hierarchy.join(file)) {
                    fs::write(hierarchy.join("below").join(file), value).unwrap();
                }
            }
        }
        let below = if is_unified { "below" } else { "pids,memory:/below" };
        let told =
            container.exec_with(&["--cgroup", below], &["cat", "/proc/self/cgroup"]).succeeds().lines();
        let is_below = |name: &str| {
            let has = |line: &&String| line.split(':').nth(1).unwrap().split(',').any(|own| own == name);
            told.iter().find(has).unwrap().ends_with("/below")
        };
        if is_unified {
            assert!(is_below(""), "{told:?}");
        } else {
            assert!(is_below("pids") && is_below("memory") && !is_below("cpu"), "{told:?}");
        }
        container.exec_with(&["--cgroup", &below.replace("below", "../..")], &["true"]).fails_with(&[".."]);
        container
            .exec_with(&["--cgroup", &below.replace("below", "nowhere")], &["true"])
            .fails_with(&["nowhere"]);
        container.remove();
    });
}

/// As systemd in a container does, or another engine.
#[test]
fn it_goes_to_where_the_first_process_is_once_the_container_passes_controllers_down() {
    privileged(|host| {
        if !cgroup::is_unified() {
            host.skip("cgroups that pass controllers down hold no processes on version 2 alone");
            return;
        }
        for below in ["below", "be:low"] {
            let script = format!(
                "cd /sys/fs/cgroup && mkdir {below} && echo 1 >{below}/cgroup.procs &&
                echo +pids >cgroup.subtree_control && echo done && sleep 1000"
            );
            let spec = Spec::new().without_mount("/sys/fs/cgroup").script(&script);
            let container =
                host.bundle(spec.mount("/sys/fs/cgroup", "cgroup", "cgroup", &["rw", "nosuid"])).start();
            command::eventually("it passes controllers down", || container.output().contains("done"));
            let run = container.exec(&["cat", "/proc/self/cgroup"]).succeeds();
            assert_eq!(run.text(), format!("0::/{below}"));
            container.remove();
        }
    });
}

/// As execvp(3) has it, and not as root would see it.
#[test]
fn a_program_that_this_user_may_not_execute_is_looked_for_further_on() {
    privileged(|host| {
        let container = host.bundle(Spec::new().args(["sleep", "1000"])).start();
        let roots = container.bundle().rootfs().join("roots");
        fs::create_dir(&roots).unwrap();
        fs::copy(container.bundle().rootfs().join("bin/busybox"), roots.join("id")).unwrap();
        fs::set_permissions(&roots, fs::Permissions::from_mode(0o700)).unwrap();
        let options = ["--user", "1000:1000", "--env", "PATH=/roots:/bin"];
        assert_eq!(container.exec_with(&options, &["id", "-u"]).succeeds().text(), "1000");
        fs::remove_file(container.bundle().rootfs().join("bin/id")).unwrap();
        container.exec_with(&options, &["id", "-u"]).fails_with(&["permission denied"]);
        container.remove();
    });
}

#[test]
fn additional_groups_and_no_new_privileges_are_set() {
    privileged(|host| {
        let container = host.sleeper();
        let options = [
            "--user",
            "1000:1000",
            "--additional-gids",
            "2000",
            "--additional-gids",
            "3000",
            "--no-new-privs",
        ];
        let script = "id -G; grep NoNewPrivs /proc/self/status";
        let told = container.exec_with(&options, &["sh", "-c", script]).succeeds().lines();
        assert_eq!(told, ["1000 2000 3000", "NoNewPrivs:\t1"]);
        container.remove();
    });
}

#[test]
fn what_a_process_document_does_not_say_is_as_the_container_has_it() {
    privileged(|host| {
        let spec = Spec::new().set("/process/oomScoreAdj", 100).args(["sleep", "1000"]);
        let container = host.bundle(spec).start();
        let file = host.directory().join("process.json");
        let of =
            |pid: &str| format!("grep ^Cap /proc/{pid}/status; ulimit -n; cat /proc/{pid}/oom_score_adj");
        let process = json!({"args": ["sh", "-c", of("self")], "env": ["PATH=/bin"], "cwd": "/"});
        fs::write(&file, process.to_string()).unwrap();
        let run = host.call(&["exec", "--process", file.to_str().unwrap(), container.id()]).succeeds();
        let first = container.exec(&["sh", "-c", &of("1")]).succeeds();
        assert_eq!(run.lines(), first.lines());
        container.remove();
    });
}

#[test]
fn a_fifo_of_the_host_keeps_its_owner() {
    privileged(|host| {
        let container = host.sleeper();
        let fifo = host.directory().join("fifo");
        let path = fifo.display();
        let exec = format!("$RUNTIME exec --user 1000 {} true", container.id());
        host.shell(&format!("mkfifo {path} && {{ : >{path} & {exec} <{path}; }}")).succeeds();
        assert_eq!(fs::metadata(&fifo).unwrap().uid(), 0);
        container.remove();
    });
}
