//! What containers write, and who reads it.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use coracle_tests::pod::Pods;
use coracle_tests::{Host, command, privileged};

#[test]
fn streams_are_told_apart_and_logs_are_followed_to_the_end() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  restartPolicy: Never
  containers:
  - {name: main, image: IMAGE, command: [sh, -c, 'echo out; echo err >&2; sleep 0.3; printf last']}
";
        pods.run("job", spec);
        let followed = pods.call(&["logs", "--follow", "job"]).exits(0);
        assert_eq!((followed.text().as_str(), followed.stderr.as_str()), ("out\nlast", "err\n"));
        let timed = pods.call(&["logs", "--timestamps", "--tail", "1", "job"]).exits(0).text();
        assert!(timed.ends_with("Z last") && timed.starts_with("20"), "{timed}");
        pods.remove("job");
    });
}

#[test]
fn who_prints_again_and_again_ends_when_nobody_reads_it_any_more() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  restartPolicy: Always
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: IMAGE, command: [sh, -c, 'while :; do echo line; sleep 0.1; done']}
  - {name: again, image: IMAGE, command: [sleep, '0.3']}
";
        pods.run("job", spec);
        for verb in ["logs --follow", "top", "watch"] {
            let line = format!("timeout 30 sh -c '$RUNTIME pod {verb} job | head -n 1'");
            assert_ne!(host.shell(&line).succeeds().text(), "", "{verb}");
        }
        pods.call(&["rm", "--force", "job"]).succeeds();
    });
}

#[test]
fn logs_are_rotated_by_size_and_number() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  restartPolicy: Never
  containers:
  - {name: main, image: IMAGE, command: [sh, -c, 'i=0; while test $i -lt 2000; do echo line $i; i=$((i+1)); done']}
";
        let metadata = "  annotations: {io.coracle/log-size: '10000', io.coracle/log-files: '3'}\n";
        pods.make_with("run", "job", metadata, spec).succeeds();
        pods.call(&["wait", "job"]).exits(0);
        let files = std::fs::read_dir("/run/coracle/.pods/job/logs/main").unwrap().count();
        assert_eq!(files, 3);
        assert!(pods.logs("job").ends_with("line 1999"));
        pods.remove("job");
    });
}

#[test]
fn a_full_disk_costs_entries_of_the_log_which_are_counted_and_nothing_else() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: IMAGE, command: [sh, -c, 'head -c 400000 /dev/zero; sleep 1000']}
";
        pods.make("create", "job", spec).succeeds();
        let logs = "/run/coracle/.pods/job/logs";
        std::fs::create_dir_all(logs).unwrap();
        command::tool("mount", &["-t", "tmpfs", "-o", "size=64k", "tmpfs", logs]);
        pods.call(&["start", "job"]).succeeds();
        command::eventually("bytes are lost", || {
            pods.container("job", "main")["logBytesLost"].as_u64() > Some(0)
        });
        assert_eq!(pods.container("job", "main")["state"], "running");
        pods.call(&["stop", "job"]).succeeds();
        command::tool("umount", &[logs]);
        pods.remove("job");
    });
}

/// What comes from `source`, digested by md5sum(1), with `pause` after each piece.
fn digest(mut source: impl Read, pause: Duration) -> String {
    let mut md5sum = Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut sink = md5sum.stdin.take().unwrap();
    let mut chunk = vec![0; 1 << 20];
    loop {
        match source.read(&mut chunk).unwrap() {
            0 => break,
            length => sink.write_all(&chunk[..length]).unwrap(),
        }
        std::thread::sleep(pause);
    }
    drop(sink);
    let told = md5sum.wait_with_output().unwrap();
    String::from_utf8_lossy(&told.stdout).split(' ').next().unwrap().to_owned()
}

/// Has a container write so many bytes that nobody can foresee, and digest them itself.
fn many_attach(host: &Host, bytes: usize) {
    let Some(pods) = Pods::new(host) else { return };
    let writes = format!("head -c {bytes} /dev/urandom | tee /tmp/way");
    let spec = format!(
        "
  restartPolicy: Never
  containers:
  - name: main
    image: IMAGE
    stdin: true
    command: [sh, -c, 'mkfifo /tmp/way; read go; md5sum < /tmp/way >&2 & {writes}; wait']
"
    );
    pods.run("job", &spec);
    let attach = |options: &[&str]| {
        let mut command = Command::new(host.runtime());
        command.args(["pod", "attach"]).args(options).arg("job");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let (mut gone, mut slow, mut fast) = (attach(&[]), attach(&[]), attach(&["--stdin"]));
    std::thread::sleep(Duration::from_secs(2));
    let begin = Instant::now();
    fast.stdin.take().unwrap().write_all(b"go\n").unwrap();
    gone.stdout.take().unwrap().read_exact(&mut [0; 1000]).unwrap();
    gone.kill().unwrap();
    gone.wait().unwrap();
    let slowly = slow.stdout.take().unwrap();
    let slowly = std::thread::spawn(move || digest(slowly, Duration::from_millis(1)));
    let seen = digest(fast.stdout.take().unwrap(), Duration::ZERO);
    assert_eq!(slowly.join().unwrap(), seen);
    host.counted(&format!("{} MiB to one reader and a slow one in {:?}", bytes >> 20, begin.elapsed()));
    let mut sum = String::new();
    fast.stderr.take().unwrap().read_to_string(&mut sum).unwrap();
    assert_eq!(sum.split(' ').next().unwrap(), seen);
    for mut reader in [fast, slow] {
        reader.wait().unwrap();
    }
    pods.remove("job");
}

#[test]
fn many_attach_and_each_gets_every_byte_though_one_is_slow_and_one_is_gone() {
    privileged(|host| many_attach(host, 64 << 20));
}

#[test]
#[ignore = "takes a minute: make test-faults"]
fn a_gigabyte_comes_through_byte_for_byte() {
    privileged(|host| many_attach(host, 1 << 30));
}

#[test]
fn a_late_reader_gets_the_tail_and_a_second_writer_is_refused() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  restartPolicy: Never
  containers:
  - {name: main, image: IMAGE, stdin: true, command: [sh, -c, 'echo early; read word; echo got $word']}
";
        pods.run("job", spec);
        command::eventually("it has spoken", || pods.logs("job") == "early");
        let mut first = Command::new(host.runtime());
        first.args(["pod", "attach", "--stdin", "--tail", "job"]);
        let mut first = first.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut early = [0; 6];
        first.stdout.as_mut().unwrap().read_exact(&mut early).unwrap();
        assert_eq!(&early, b"early\n");
        pods.call(&["attach", "--stdin", "job"]).fails_with(&["somebody is attached"]);
        first.stdin.take().unwrap().write_all(b"boat\n").unwrap();
        let rest = first.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&rest.stdout), "got boat\n");
        pods.remove("job");
    });
}

#[test]
fn a_program_ends_with_the_caller_that_asked_for_it() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: IMAGE, command: [sleep, '1000']}
";
        pods.run("web", spec);
        let mut caller = Command::new(host.runtime());
        let mut caller = caller.args(["pod", "exec", "web/main", "sleep", "1234"]).spawn().unwrap();
        let runs = || pods.exec("web/main", &["ps", "-o", "args"]).succeeds().text().contains("sleep 1234");
        command::eventually("it runs", runs);
        caller.kill().unwrap();
        caller.wait().unwrap();
        command::eventually("it has ended", || !runs());
        pods.remove("web");
    });
}

#[test]
fn a_terminal_is_attached_to_and_has_the_size_that_is_asked_for() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        if !host.needs_program("script") {
            return;
        }
        let spec = "
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: IMAGE, tty: true, command: [sh, -c, 'read word; stty size; echo $word >&2; tty; exit 3']}
";
        pods.run("web", spec);
        let attach = "stty rows 33 cols 77; $RUNTIME pod attach --stdin web";
        let talk = format!("(sleep 0.5; echo hello; sleep 1) | script -qec '{attach}' /dev/null");
        let said = host.shell(&talk).text();
        assert!(said.contains("33 77") && said.contains("hello") && said.contains("/dev/"), "{said}");
        pods.call(&["wait", "web/main"]).exits(3);
        pods.remove("web");
    });
}

#[test]
fn a_program_with_a_terminal_ends_as_it_should_and_loses_no_last_line() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        if !host.needs_program("script") {
            return;
        }
        let spec = "
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: IMAGE, command: [sleep, '1000']}
";
        pods.run("web", spec);
        for _ in 0..5 {
            let talk = "script -qec \"$RUNTIME pod exec -it web/main sh -c 'tty; echo last; exit 7'\" /dev/null </dev/null";
            let said = host.shell(talk).exits(7).text();
            assert!(said.contains("/dev/") && said.contains("last"), "{said}");
        }
        pods.remove("web");
    });
}

#[test]
fn a_supervisor_of_three_containers_is_small() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  terminationGracePeriodSeconds: 0
  containers:
  - {name: one, image: IMAGE, command: [sleep, '1000']}
  - {name: two, image: IMAGE, command: [sleep, '1000']}
  - {name: three, image: IMAGE, command: [sleep, '1000']}
";
        pods.run("web", spec);
        pods.exec("web/one", &["true"]).succeeds();
        let pid = pods.inspect("web")["supervisor"].clone();
        std::thread::sleep(Duration::from_millis(1500));
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let of = |key: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
        };
        host.counted(&format!(
            "a supervisor of three containers: {} KiB resident, {} of them its own",
            of("VmRSS"),
            of("RssAnon")
        ));
        assert!(of("VmRSS") <= 2048, "{status}");
        pods.remove("web");
    });
}

#[test]
fn a_terminal_that_nobody_has_open_for_a_while_is_read_again() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  restartPolicy: Never
  containers:
  - {name: main, image: IMAGE, tty: true, command: [sh, -c, 'exec </dev/null >/dev/null 2>&1; sleep 0.5; echo later >/dev/console']}
";
        pods.run("web", spec);
        pods.call(&["wait", "web"]).exits(0);
        assert_eq!(pods.logs("web").trim_end(), "later");
        pods.remove("web");
    });
}

#[test]
fn the_end_of_the_input_is_told_to_a_program_with_a_terminal() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", "  containers: [{name: main, image: IMAGE, command: [sleep, '1000']}]\n");
        let said = host.shell("echo word | timeout 20 $RUNTIME pod exec -it web cat").exits(0).text();
        assert!(said.contains("word"), "{said}");
        pods.remove("web");
    });
}

#[test]
fn lines_on_a_callers_terminal_begin_at_its_left_edge() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        if !host.needs_program("script") {
            return;
        }
        let spec = "
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: IMAGE, tty: true, command: [sh, -c, 'read word; echo one; echo two']}
  - {name: other, image: IMAGE, command: [sleep, '1000']}
";
        pods.run("web", spec);
        let exec =
            "script -qec \"$RUNTIME pod exec -it web/other sh -c 'echo one; echo two'\" /dev/null </dev/null";
        let attach =
            "(sleep 0.5; echo hello; sleep 1) | script -qec '$RUNTIME pod attach --stdin web' /dev/null";
        for talk in [exec, attach] {
            // How a terminal shows the end of script's own input, whenever that comes.
            let said = host.shell(talk).text().replace("^@", "");
            assert!(said.contains("one\r\ntwo"), "{talk}: {said:?}");
        }
        pods.remove("web");
    });
}

#[test]
fn a_signal_that_ends_the_caller_leaves_its_terminal_as_it_was() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        if !host.needs_program("script") {
            return;
        }
        let spec = "
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: IMAGE, tty: true, command: [sleep, '1000']}
";
        pods.run("web", spec);
        for verb in ["exec -it web sleep 1234", "attach --stdin web"] {
            for (signal, code) in [("TERM", 143), ("HUP", 129)] {
                let call =
                    format!("timeout --foreground --preserve-status -s {signal} 2 $RUNTIME pod {verb}");
                let look = "test \"$(stty -g)\" = \"$before\" && echo as before";
                let talk = format!("before=$(stty -g); {call}; echo code $?; {look}");
                let said = host.shell(&format!("script -qec '{talk}' /dev/null </dev/null")).text();
                let told = said.contains(&format!("code {code}")) && said.contains("as before");
                assert!(told, "{verb}, {signal}: {said}");
            }
        }
        pods.remove("web");
    });
}

#[test]
fn who_would_write_to_a_container_that_does_not_run_is_told_so() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let slow = "  annotations: {io.coracle/back-off: '5m,5m'}\n";
        let spec = "
  containers:
  - {name: main, image: IMAGE, stdin: true, command: ['false']}
  - {name: deaf, image: IMAGE, command: ['false']}
";
        pods.make_with("run", "web", slow, spec).succeeds();
        for name in ["main", "deaf"] {
            pods.becomes("web", name, "restarts", 2);
            pods.becomes("web", name, "state", "back-off");
        }
        let attach = |name: &str| pods.call(&["attach", "--stdin", &format!("web/{name}")]);
        attach("main").fails_with(&["container \"main\" does not run"]);
        attach("deaf").fails_with(&["has no standard input", "stdin or tty must be true"]);
        pods.remove("web");
    });
}
