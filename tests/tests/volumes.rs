//! `volume/persistent`: directories with names, which outlive their containers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use coracle_tests::command::{eventually, tool};
use coracle_tests::{Host, Spec, privileged};
use serde_json::json;

/// A host whose volumes lie in a directory of the test.
struct Volumes {
    host: Host,
    state: PathBuf,
}

impl Volumes {
    fn new(host: &Host) -> Option<Self> {
        if !host.needs_coracle("volumes with names") {
            return None;
        }
        let state = host.directory().join("volumes");
        let options = format!("options = {{ state = {state:?} }}");
        let host = host.configured(&format!("[isolator.\"volume/persistent\"]\n{options}\n"));
        Some(Self { host, state })
    }

    fn ls(&self) -> Vec<String> {
        self.host.call(&["volume", "ls"]).succeeds().lines()
    }
}

/// A container with the volume `data`.
fn with_data(options: &[&str]) -> Spec {
    Spec::new().mount("/data", "volume", "data", options)
}

#[test]
fn what_one_container_writes_before_it_is_killed_another_reads() {
    privileged(|host| {
        let Some(volumes) = Volumes::new(host) else { return };
        let script = "for i in 1 2 3; do echo line $i >>/data/log; done; sync; kill -9 $$";
        volumes.host.bundle(with_data(&[]).script(script)).run();
        let read = volumes
            .host
            .bundle(with_data(&["ro"]).script("cat /data/log; echo x >/data/new || echo refused"));
        assert_eq!(read.run().succeeds().lines(), ["line 1", "line 2", "line 3", "refused"]);
        assert_eq!(volumes.ls(), ["data"]);
        volumes.host.call(&["volume", "rm", "data"]).succeeds();
        assert!(volumes.ls().is_empty() && !volumes.state.join("data").exists());
        volumes.host.call(&["volume", "rm", "data"]).fails_with(&["there is no volume \"data\""]);
    });
}

#[test]
fn it_may_hide_what_another_mount_has_at_its_place() {
    privileged(|host| {
        let Some(volumes) = Volumes::new(host) else { return };
        let spec = Spec::new().mount("/data", "tmpfs", "tmpfs", &[]).mount("/data", "volume", "data", &[]);
        volumes.host.bundle(spec.script("echo here >/data/file")).run().succeeds();
        let read = volumes.host.bundle(with_data(&[]).script("cat /data/file")).run().succeeds();
        assert_eq!(read.text().trim(), "here");
    });
}

#[test]
fn it_stays_as_long_as_a_part_of_it_is_mounted() {
    privileged(|host| {
        let Some(volumes) = Volumes::new(host) else { return };
        volumes.host.bundle(with_data(&[]).script("mkdir /data/part")).run().succeeds();
        let part = volumes.state.join("data/data/part");
        let spec = Spec::new().bind(part.to_str().unwrap(), "/part", &["rbind"]).args(["sleep", "1000"]);
        let container = volumes.host.bundle(spec).start();
        volumes.host.call(&["volume", "rm", "data"]).fails_with(&["is in use"]);
        container.remove();
        volumes.host.call(&["volume", "rm", "data"]).succeeds();
    });
}

#[test]
fn two_share_one_and_it_stays_as_long_as_either_is_there() {
    privileged(|host| {
        let Some(volumes) = Volumes::new(host) else { return };
        let one = volumes.host.bundle(with_data(&[]).args(["sleep", "1000"])).named("one").start();
        let other = volumes.host.bundle(with_data(&[]).args(["sleep", "1000"])).named("other").start();
        one.exec(&["sh", "-c", "echo shared >/data/file"]).succeeds();
        assert_eq!(other.exec(&["cat", "/data/file"]).succeeds().text(), "shared");
        let line = volumes.ls().join("");
        assert!(line.contains("/run/coracle/one") && line.contains("/run/coracle/other"), "{line}");
        one.remove();
        let refused = volumes.host.call(&["volume", "rm", "data"]);
        refused.fails_with(&["volume \"data\" is in use: /run/coracle/other", "delete the container first"]);
        other.remove();
        volumes.host.call(&["volume", "rm", "data"]).succeeds();
    });
}

#[test]
fn nothing_is_deleted_through_a_mount() {
    privileged(|host| {
        let Some(volumes) = Volumes::new(host) else { return };
        volumes.host.bundle(with_data(&[]).script("mkdir /data/inner")).run().succeeds();
        let precious = host.directory();
        fs::write(precious.join("file"), "precious").unwrap();
        let inner = volumes.state.join("data/data/inner");
        tool("mount", &[Path::new("--bind"), &precious, &inner]);
        volumes.host.call(&["volume", "rm", "data"]).fails_with(&["something is mounted in volume \"data\""]);
        assert_eq!(fs::read_to_string(precious.join("file")).unwrap(), "precious");
        tool("umount", &[&inner]);
        volumes.host.call(&["volume", "rm", "data"]).succeeds();
        assert!(precious.join("file").exists());
    });
}

#[test]
fn who_is_gone_without_a_word_is_forgotten_by_recover() {
    privileged(|host| {
        let Some(volumes) = Volumes::new(host) else { return };
        let lost = volumes.host.bundle(with_data(&[]).args(["sleep", "1000"])).named("lost").start();
        let users = || fs::read_dir(volumes.state.join(".users")).unwrap().count();
        assert_eq!(users(), 1);
        fs::rename("/run/coracle/lost", "/run/coracle/.moved").unwrap();
        volumes.host.call(&["recover"]).succeeds();
        fs::rename("/run/coracle/.moved", "/run/coracle/lost").unwrap();
        assert_eq!(users(), 0);
        lost.remove();
    });
}

#[test]
fn a_name_that_is_a_path_is_refused() {
    privileged(|host| {
        let Some(volumes) = Volumes::new(host) else { return };
        for name in ["../etc", "a/b", ".users", ""] {
            let spec = Spec::new()
                .push("/mounts", json!({"destination": "/data", "type": "volume", "source": name}));
            let run = volumes.host.bundle(spec).run();
            run.fails_with(&["volume/persistent", "/source", "is no name of a volume"]);
        }
    });
}

#[test]
fn a_sandbox_path_is_the_containers_and_goes_with_it() {
    privileged(|host| {
        if !host.needs_coracle("sandbox paths") {
            return;
        }
        let state = host.directory();
        let options = format!("options = {{ state = {state:?} }}");
        let host = host.configured(&format!("[isolator.\"volume/sandbox-path\"]\n{options}\n"));
        let spec = Spec::new().mount("/work", "sandbox", "cache/work", &["self"]).mount(
            "/also",
            "sandbox",
            "cache",
            &["ro"],
        );
        let container = host.bundle(spec.args(["sleep", "1000"])).start();
        container.exec(&["sh", "-c", "echo kept >/work/file"]).succeeds();
        assert_eq!(container.exec(&["cat", "/also/work/file"]).succeeds().text(), "kept");
        container.exec(&["touch", "/also/new"]).exits(1);
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1);
        container.remove();
        assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
        for (source, options, words) in [
            ("../up", &[][..], "is no path in a directory of the container's"),
            ("/etc", &[][..], "is no path in a directory of the container's"),
            ("x", &["parent"][..], "there is no container above this one"),
        ] {
            let run = host.bundle(Spec::new().mount("/work", "sandbox", source, options)).run();
            run.fails_with(&["isolator volume/sandbox-path could not prepare: /mounts/", words]);
        }
    });
}

const WORD: &str = "open-sesame-8c1f";

/// The files of `/proc` that tell of arguments or variables with `word` in them.
fn processes_that_name(word: &str) -> Vec<PathBuf> {
    let told = |path: &PathBuf| fs::read(path).unwrap_or_default(); // one that has ended tells nothing
    let processes = fs::read_dir("/proc").expect("read /proc").flatten();
    let files = processes
        .map(|entry| entry.path())
        .flat_map(|process| ["cmdline", "environ"].map(|file| process.join(file)));
    files.filter(|path| String::from_utf8_lossy(&told(path)).contains(word)).collect()
}

#[test]
fn a_secret_is_in_memory_alone() {
    privileged(|host| {
        if !host.needs_coracle("secrets") {
            return;
        }
        let secrets = host.directory();
        fs::create_dir(secrets.join("key")).unwrap();
        fs::write(secrets.join("key/word"), WORD).unwrap();
        fs::write(secrets.join("token"), WORD).unwrap();
        let logs = host.directory().join("log");
        let options = format!("options = {{ directory = {secrets:?} }}");
        let host = host.configured(&format!("[isolator.\"volume/secret\"]\n{options}\n"));
        let spec = Spec::new()
            .user(1000, 1000)
            .mount("/key", "secret", "key", &["mode=0400", "uid=1000", "gid=1000"])
            .mount("/token", "secret", "token", &[]);
        let bundle = host.bundle(spec.args(["sleep", "1000"]));
        let log = logs.to_str().unwrap();
        let (id, dir) = (bundle.id().to_owned(), bundle.directory().to_str().unwrap().to_owned());
        host.call(&["--debug", "--log", log, "run", "--detach", "--bundle", &dir, &id]).succeeds();
        let run = |args: &[&str]| host.call(&[&["exec", &id][..], args].concat());
        assert_eq!(run(&["cat", "/key/word", "/token"]).succeeds().text(), [WORD, WORD].concat());
        assert_eq!(
            run(&["stat", "-c", "%a %u", "/key", "/key/word"]).succeeds().lines(),
            ["500 1000", "400 1000"]
        );
        run(&["sh", "-c", "touch /key/new 2>/dev/null || chmod 777 /key"]).exits(1);
        // Nobody else has it: no file of the runtime's on a disk or in its state, no log, no argument, no variable.
        let on_host = "grep -rl --exclude-dir=.secrets --exclude=stdout -F \"$0\" /run/coracle /var/lib /run/test --exclude-dir=$1 || true";
        let name = secrets.file_name().unwrap().to_str().unwrap();
        assert_eq!(tool("sh", &["-c", on_host, WORD, name]), "");
        assert_eq!(processes_that_name(WORD), Vec::<PathBuf>::new());
        assert!(!processes_that_name("a_secret_is_in_memory_alone").is_empty());
        assert!(fs::metadata(logs).unwrap().len() > 0);
        let kinds = tool("sh", &["-c", "stat -f -c %T /run/coracle/.secrets/*[0-9a-f]"]);
        assert!(kinds.contains("ramfs"), "{kinds}");
        host.call(&["delete", "--force", &id]).succeeds();
        assert!(!Path::new("/run/coracle/.secrets").exists());
        let missing = Spec::new().mount("/key", "secret", "other", &[]);
        host.bundle(missing).run().fails_with(&[
            "/source: openat2",
            "no such file",
            "a secret is a file or a directory",
        ]);
    });
}

#[test]
fn what_secrets_may_hold_is_for_all_of_a_container_together() {
    privileged(|host| {
        if !host.needs_coracle("secrets") {
            return;
        }
        let secrets = host.directory();
        for name in ["one", "two"] {
            fs::write(secrets.join(name), [b'x'; 600 << 10]).unwrap();
        }
        let options = format!("options = {{ directory = {secrets:?} }}");
        let host = host.configured(&format!("[isolator.\"volume/secret\"]\n{options}\n"));
        let one = || Spec::new().mount("/one", "secret", "one", &[]);
        host.bundle(one()).run().succeeds();
        host.bundle(one().mount("/two", "secret", "two", &[])).run().fails_with(&["file too large"]);
    });
}

#[test]
fn a_missing_source_is_made_where_the_operator_allows_it() {
    privileged(|host| {
        if !host.needs_coracle("the creation of sources") {
            return;
        }
        let allowed = host.directory();
        let options = format!("options = {{ create = [{allowed:?}] }}");
        let host = host.configured(&format!("[isolator.\"volume/host-path\"]\n{options}\n"));
        let source = allowed.join("new/volume");
        let spec =
            Spec::new().bind(source.to_str().unwrap(), "/data", &["rbind"]).script("echo made >/data/file");
        host.bundle(spec).run().succeeds();
        assert_eq!(fs::read_to_string(source.join("file")).unwrap(), "made\n");
        assert_eq!(fs::metadata(&source).unwrap().permissions().mode() & 0o777, 0o755);
        let other = host.directory().join("new");
        let spec = Spec::new().bind(other.to_str().unwrap(), "/data", &["rbind"]);
        host.bundle(spec).run().fails_with(&["/source: openat2", "no such file or directory"]);
        // A link that leads out is not followed.
        std::os::unix::fs::symlink("/etc", allowed.join("link")).unwrap();
        let through = allowed.join("link/new");
        let spec = Spec::new().bind(through.to_str().unwrap(), "/data", &["rbind"]);
        host.bundle(spec).run().exits(1);
        assert!(!Path::new("/etc/new").exists());
    });
}

#[test]
fn a_source_whose_server_hangs_is_given_up_and_named() {
    privileged(|host| {
        if !host.needs_coracle("deadlines for sources") {
            return;
        }
        if !Path::new("/dev/fuse").exists() {
            return host.skip("there is no /dev/fuse");
        }
        let at = host.directory();
        // A file system whose server never says a word: whoever looks into it waits.
        let serve = "exec 9<>/dev/fuse; mount -i -t fuse -o fd=9,rootmode=40000,user_id=0,group_id=0 silent \"$0\" && exec sleep 1000";
        let mut server =
            Command::new("sh").args(["-c", serve]).arg(&at).stdin(Stdio::null()).spawn().unwrap();
        let is_mounted =
            || fs::read_to_string("/proc/self/mountinfo").unwrap().contains(at.to_str().unwrap());
        eventually("it is mounted", is_mounted);
        let host = host.configured("[isolator.\"volume/host-path\"]\noptions = { deadline = 0.3 }\n");
        let source = at.join("data");
        let begun = Instant::now();
        let run = host.bundle(Spec::new().bind(source.to_str().unwrap(), "/data", &["rbind"])).run();
        run.fails_with(&["/source: ", "did not answer within 0.3 s; does its server hang?"]);
        assert!(begun.elapsed() < Duration::from_secs(30));
        server.kill().unwrap();
        server.wait().unwrap();
        tool("umount", &[Path::new("-l"), &at]);
    });
}

#[test]
fn a_tmpfs_gets_the_size_that_the_operator_says() {
    privileged(|host| {
        if !host.needs_coracle("sizes for tmpfs") {
            return;
        }
        let host = host.configured("[isolator.\"volume/tmpfs\"]\noptions = { size = \"64k\" }\n");
        let script = "head -c 100000 /dev/zero >/t/file || echo full; stat -c %s /t/file";
        let run = host.bundle(Spec::new().mount("/t", "tmpfs", "tmpfs", &[]).script(script)).run().succeeds();
        assert_eq!(run.lines(), ["full", "65536"]);
    });
}

/// A bundle with the volume `data`, in which the host's programs run.
fn with_database<'h>(volumes: &'h Volumes, script: &str) -> coracle_tests::Bundle<'h> {
    let spec = ["/usr", "/lib", "/lib64"]
        .iter()
        .fold(with_data(&[]), |spec, dir| spec.bind(dir, dir, &["rbind", "ro"]));
    volumes.host.bundle(spec.set("/process/args", json!(["/usr/bin/bash", "-c", script])))
}

#[test]
fn a_database_that_is_killed_is_read_back_whole_by_another_container() {
    privileged(|host| {
        let Some(volumes) = Volumes::new(host) else { return };
        if !host.needs_program("sqlite3") {
            return;
        }
        // Each transaction that is told of is on the disk; the one that is cut off is not.
        let write = "sqlite3 /data/db 'pragma journal_mode=wal; create table t (n integer, text text)';
            for n in $(seq 1000); do echo \"begin; insert into t values ($n, hex(randomblob(500))); commit; select $n;\"; done |
            sqlite3 /data/db";
        let writer = with_database(&volumes, write).start();
        let told = || writer.output().lines().filter_map(|line| line.parse::<u32>().ok()).max().unwrap_or(0);
        eventually("it has written", || told() >= 50);
        writer.call_with("kill", &["KILL"]).succeeds();
        writer.becomes("stopped");
        let last = told();
        let read = "sqlite3 /data/db 'pragma integrity_check; select count(*), max(n) from t'";
        let lines = with_database(&volumes, read).run().succeeds().lines();
        let (count, most) = lines[1].split_once('|').unwrap();
        assert_eq!((lines[0].as_str(), count), ("ok", most));
        assert!(count.parse::<u32>().unwrap() >= last, "{count} of {last}");
        volumes.host.call(&["delete", "--force", writer.id()]).succeeds();
        volumes.host.call(&["volume", "rm", "data"]).succeeds();
    });
}

#[test]
fn two_containers_share_a_database() {
    privileged(|host| {
        let Some(volumes) = Volumes::new(host) else { return };
        if !host.needs_program("sqlite3") {
            return;
        }
        let make = "sqlite3 /data/db 'pragma journal_mode=wal; create table t (who text)'";
        with_database(&volumes, make).run().succeeds();
        let insert = |who: &str| {
            let each = "for n in $(seq 50); do sqlite3 -cmd '.timeout 20000' /data/db \"insert into t values ('WHO')\" || exit 1; done";
            with_database(&volumes, &each.replace("WHO", who)).named(who).start()
        };
        let (one, two) = (insert("one"), insert("two"));
        let both = [&one, &two];
        both.iter().for_each(|container| container.becomes("stopped"));
        let read = "sqlite3 /data/db 'select who, count(*) from t group by who order by who'";
        assert_eq!(with_database(&volumes, read).run().succeeds().lines(), ["one|50", "two|50"]);
        for container in both {
            volumes.host.call(&["delete", container.id()]).succeeds();
        }
    });
}
