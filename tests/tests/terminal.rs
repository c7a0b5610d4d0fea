//! Terminals: sent over a console socket by `create` and `exec`, or kept by `run`.

use coracle_tests::terminal::ConsoleSocket;
use coracle_tests::{Host, Outcome, Spec, command, privileged};
use serde_json::json;

#[test]
fn create_sends_the_terminal_over_the_console_socket() {
    privileged(|host| {
        let socket = ConsoleSocket::new(&host.directory());
        let spec =
            Spec::new().set("/process/terminal", true).script("tty; read line; echo got:$line; sleep 1000");
        let bundle = host.bundle(spec).options(["--console-socket", socket.path()]);
        let container = bundle.create();
        let mut terminal = socket.receive();
        container.call("start").succeeds();
        terminal.read_until("/dev/pts/0");
        terminal.type_line("hello");
        terminal.read_until("got:hello");
        container.remove();
    });
}

#[test]
fn a_console_socket_may_begin_to_listen_a_moment_later() {
    privileged(|host| {
        let directory = host.directory();
        let path = directory.join("console.sock");
        let listener = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            ConsoleSocket::new(&directory)
        });
        let spec = Spec::new().set("/process/terminal", true).script("tty; sleep 1000");
        let container = host.bundle(spec).options(["--console-socket", path.to_str().unwrap()]).create();
        let mut terminal = listener.join().unwrap().receive();
        container.call("start").succeeds();
        terminal.read_until("/dev/pts/0");
        container.remove();
    });
}

#[test]
fn a_console_socket_that_nobody_makes_is_named() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new().set("/process/terminal", true));
        let bundle = bundle.options(["--console-socket", "/nothing/there"]);
        bundle.try_create().fails_with(&["connecting to --console-socket", "/nothing/there", "no such file"]);
    });
}

#[test]
fn the_console_is_the_terminal() {
    privileged(|host| {
        let socket = ConsoleSocket::new(&host.directory());
        let spec = Spec::new()
            .set("/process/terminal", true)
            .script("stat -c %t /dev/console; echo to-console > /dev/console; [ -t 0 ] && [ -t 1 ] && echo is-a-tty; sleep 1000");
        let container = host.bundle(spec).options(["--console-socket", socket.path()]).create();
        let mut terminal = socket.receive();
        container.call("start").succeeds();
        // Major number 136 is that of Unix98 terminals.
        let text = terminal.read_until("is-a-tty");
        assert!(text.contains("88") && text.contains("to-console"), "{text}");
        container.remove();
    });
}

#[test]
fn the_console_has_the_size_asked_for() {
    privileged(|host| {
        let socket = ConsoleSocket::new(&host.directory());
        let spec = Spec::new()
            .set("/process/terminal", true)
            .set("/process/consoleSize", json!({"height": 33, "width": 77}))
            .args(["sleep", "1000"]);
        let container = host.bundle(spec).options(["--console-socket", socket.path()]).create();
        let terminal = socket.receive();
        container.call("start").succeeds();
        assert_eq!(terminal.size(), (33, 77));
        container.remove();
    });
}

#[test]
fn a_terminal_without_a_socket_is_refused_by_create() {
    privileged(|host| {
        let spec = Spec::new().set("/process/terminal", true);
        host.bundle(spec).try_create().fails_with(&["console"]);
    });
}

#[test]
fn a_socket_without_a_terminal_is_refused_by_create() {
    privileged(|host| {
        let socket = ConsoleSocket::new(&host.directory());
        let bundle = host.bundle(Spec::new()).options(["--console-socket", socket.path()]);
        bundle.try_create().fails_with(&["console"]);
    });
}

#[test]
fn exec_sends_a_terminal_too() {
    privileged(|host| {
        let container = host.sleeper();
        let socket = ConsoleSocket::new(&host.directory());
        let options = ["--tty", "--detach", "--console-socket", socket.path()];
        container.exec_with(&options, &["sh", "-c", "tty; read line; echo got:$line"]).succeeds();
        let mut terminal = socket.receive();
        terminal.type_line("word");
        terminal.read_until("got:word");
        container.remove();
    });
}

#[test]
fn run_keeps_the_terminal_and_hands_it_on() {
    privileged(|host| {
        if !host.needs_program("script") {
            return;
        }
        let spec =
            Spec::new().set("/process/terminal", true).script("tty; [ -t 1 ] && echo is-a-tty; exit 5");
        let bundle = host.bundle(spec);
        let script = format!(
            "cd {} && script --quiet --return --command \"$RUNTIME run {}\" /dev/null </dev/null",
            bundle.directory().display(),
            bundle.id()
        );
        let run = host.shell(&script).exits(5);
        assert!(run.text().contains("is-a-tty"), "{run:?}");
    });
}

#[test]
fn the_terminal_belongs_to_the_containers_user() {
    privileged(|host| {
        let socket = ConsoleSocket::new(&host.directory());
        let spec = Spec::new()
            .user(1000, 1000)
            .set("/process/terminal", true)
            .script("stat -c owner:%u $(tty); sleep 1000");
        let container = host.bundle(spec).options(["--console-socket", socket.path()]).create();
        let mut terminal = socket.receive();
        container.call("start").succeeds();
        terminal.read_until("owner:1000");
        container.remove();
    });
}

#[test]
fn no_process_keeps_the_terminal_of_a_container_that_ended() {
    privileged(|host| {
        let socket = ConsoleSocket::new(&host.directory());
        let spec = Spec::new().set("/process/terminal", true).script("echo bye");
        let container = host.bundle(spec).options(["--console-socket", socket.path()]).create();
        let mut terminal = socket.receive();
        container.call("start").succeeds();
        terminal.read_until("bye");
        container.becomes("stopped");
        command::eventually("the last open end is ours", || {
            let open =
                command::tool("sh", &["-c", "ls -l /proc/[0-9]*/fd 2>/dev/null | grep -c /dev/pts/ || true"]);
            open.trim() == "0"
        });
        container.call("delete").succeeds();
    });
}

#[test]
fn a_caller_that_types_without_reading_does_not_stop_the_output() {
    privileged(|host| {
        let spec = Spec::new().set("/process/terminal", true).script("stty -echo; seq 1 100000; echo done");
        let bundle = host.bundle(spec);
        let (runtime, directory) = (host.runtime().display(), bundle.directory().display());
        let run = format!(
            "yes | timeout -s KILL 30 {runtime} run --bundle {directory} {} | tail -n 1",
            bundle.id()
        );
        assert_eq!(host.shell(&run).succeeds().text(), "done");
    });
}

#[test]
fn signals_reach_a_container_whose_output_nobody_reads() {
    privileged(|host| {
        let shared = host.directory();
        let spec = Spec::new()
            .set("/process/terminal", true)
            .script("trap 'exit 9' TERM; yes & touch /tmp/ready; wait")
            .bind(shared.to_str().unwrap_or_default(), "/tmp", &["rbind"]);
        let bundle = host.bundle(spec);
        let (runtime, directory) = (host.runtime().display(), bundle.directory().display());
        let ready = shared.join("ready");
        let script = format!(
            "mkfifo {directory}/out; sleep 1007 <{directory}/out & reader=$!
             timeout --foreground -s KILL 30 {runtime} run --bundle {directory} {} </dev/null >{directory}/out & run=$!
             until [ -e {} ]; do sleep 0.05; done; sleep 0.5
             pkill -TERM -P $run -x coracle; wait $run; kill $reader",
            bundle.id(),
            ready.display()
        );
        let begin = std::time::Instant::now();
        host.shell(&script);
        assert!(begin.elapsed().as_secs() < 20);
        host.call(&["state", bundle.id()]).fails_with(&["does not exist"]);
    });
}

#[test]
fn a_terminal_whose_reader_is_gone_hangs_up() {
    privileged(|host| {
        let bundle = host.bundle(Spec::new().set("/process/terminal", true).args(["yes"]));
        let (runtime, directory) = (host.runtime().display(), bundle.directory().display());
        let run = format!(
            "timeout -s KILL 30 {runtime} run --bundle {directory} {} </dev/null | head -n 1",
            bundle.id()
        );
        let begin = std::time::Instant::now();
        assert_eq!(host.shell(&run).text(), "y");
        assert!(begin.elapsed().as_secs() < 20);
    });
}

/// Runs a container of `spec` on a terminal of script(1), on which `typed`, a shell script, types.
fn run_on_terminal(host: &Host, spec: Spec, typed: &str) -> Outcome {
    let bundle = host.bundle(spec.set("/process/terminal", true));
    let (directory, id) = (bundle.directory().display(), bundle.id());
    host.shell(&format!(
        "export RUNTIME; ({typed}) | script --quiet --return --command \"$RUNTIME run --bundle {directory} {id}\" /dev/null"
    ))
}

#[test]
fn a_program_for_the_whole_screen_gets_its_bytes_through_as_they_are() {
    privileged(|host| {
        if !host.needs_coracle("a caller's terminal that is wholly raw") || !host.needs_program("script") {
            return;
        }
        let run = run_on_terminal(
            host,
            Spec::new().script("echo x; stty -opost; printf '1\\n2\\r3\\t4'"),
            "sleep 1",
        );
        let text = run.succeeds().text();
        assert!(text.ends_with("x\r\n1\n2\r3\t4"), "{text:?}");
    });
}

#[test]
fn a_run_in_the_background_leaves_the_terminal_to_the_shell() {
    privileged(|host| {
        if !host.needs_coracle("runs in the background") || !host.needs_program("script") {
            return;
        }
        let bundle = host.bundle(Spec::new().set("/process/terminal", true).script("read l; echo got:$l"));
        let (runtime, directory) = (host.runtime().display(), bundle.directory().display());
        let state = format!("{runtime} state {}", bundle.id());
        let job = format!(
            "set -m; {runtime} run --bundle {directory} {} & until {state} | grep running; do sleep 0.05; done
             sleep 0.5; stty -a | grep -o '[ -]icanon'; {state} | grep running
             touch {directory}/foreground; fg",
            bundle.id()
        );
        std::fs::write(bundle.directory().join("job"), job).unwrap();
        let text = host.shell(&format!(
            "(until [ -e {directory}/foreground ]; do sleep 0.05; done; sleep 0.5; echo hello; sleep 5) |
             timeout -s KILL 30 script --quiet --return --command 'sh {directory}/job' /dev/null 2>&1"
        ));
        let text = text.succeeds().text();
        assert!(text.contains(" icanon") && text.contains("got:hello"), "{text}");
    });
}

#[test]
fn input_that_ends_within_a_line_ends_there() {
    privileged(|host| {
        if !host.needs_coracle("an end of input in a line") {
            return;
        }
        let bundle = host.bundle(Spec::new().set("/process/terminal", true).script("cat; echo end"));
        let run = bundle.input("a line\nno line").run().succeeds();
        assert!(run.text().ends_with("a line\nno lineend"), "{run:?}");
    });
}

#[test]
fn what_a_program_says_when_it_is_asked_to_end_is_shown() {
    privileged(|host| {
        if !host.needs_coracle("the last words of a program that is asked to end") {
            return;
        }
        let script =
            "trap 'seq 1 2000; echo last words; exit 3' TERM; echo ready; while :; do sleep 0.01; done";
        let bundle = host.bundle(Spec::new().set("/process/terminal", true).script(script));
        let shown = bundle.directory().join("shown");
        let mut command = bundle.command("run");
        let mut run = command.stdout(std::fs::File::create(&shown).unwrap()).spawn().unwrap();
        let text = || std::fs::read_to_string(&shown).unwrap();
        command::eventually("it is ready", || text().contains("ready"));
        command::tool("kill", &["-TERM", &run.id().to_string()]);
        assert_eq!(command::code(command::wait(&mut run, "run")), 3);
        assert!(text().ends_with("2000\nlast words\n"), "{}", text().len());
    });
}

#[test]
fn who_keeps_writing_to_the_terminal_does_not_keep_the_command() {
    privileged(|host| {
        if !host.needs_coracle("an end to what others write") {
            return;
        }
        let container = host.sleeper();
        let script = "(trap '' HUP; exec setsid yes) & echo started; exit 4";
        let run = container.exec_with(&["--tty"], &["sh", "-c", script]).exits(4);
        assert!(run.text().contains("started"));
        container.remove();
    });
}

#[test]
fn a_terminal_that_only_shows_gives_its_size_too() {
    privileged(|host| {
        if !host.needs_coracle("the size of a terminal that is no input") || !host.needs_program("script") {
            return;
        }
        let bundle = host.bundle(Spec::new().set("/process/terminal", true).script("stty size"));
        let run =
            format!("$RUNTIME run --bundle {} {} </dev/null", bundle.directory().display(), bundle.id());
        let script = format!("export RUNTIME; sleep 1 | script -qec 'stty rows 31 cols 71; {run}' /dev/null");
        let shown = host.shell(&script).succeeds().text();
        assert!(shown.contains("31 71"), "{shown}");
    });
}

/// A shell that reads letter by letter loses what came before it took the terminal for itself.
#[test]
fn the_end_of_the_input_ends_a_shell_whenever_it_comes() {
    privileged(|host| {
        if !host.needs_coracle("input of a terminal that ends at once") {
            return;
        }
        let container = host.sleeper();
        for _ in 0..3 {
            let exec = format!("timeout 20 $RUNTIME exec --tty {} sh </dev/null", container.id());
            host.shell(&exec).succeeds();
        }
        container.remove();
    });
}
