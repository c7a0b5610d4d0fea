//! `disk/quota` and `disk/du`: how much files may take.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_fixtures::small;
use coracle_tests::command::{eventually, tool};
use coracle_tests::image::Store;
use coracle_tests::{Host, Outcome, Spec, privileged};
use serde_json::json;

fn limited(limits: &str) -> Spec {
    Spec::new().set("/annotations", json!({"io.coracle.disk": limits}))
}

/// A host on which it is looked often.
fn watchful(host: &Host) -> Option<Host> {
    if !host.needs_coracle("limits for files") {
        return None;
    }
    let state = host.directory();
    let often =
        |name: &str| format!("[isolator.\"{name}\"]\noptions = {{ state = {state:?}, interval = 0.05 }}\n");
    Some(host.configured(&(often("disk/du") + &often("disk/quota"))))
}

const FILL: &str = "head -c 2000000 /dev/zero >/data/file && echo written; sleep 1000";

#[test]
fn a_container_whose_files_take_more_than_they_may_is_ended() {
    privileged(|host| {
        let Some(host) = watchful(host) else { return };
        let data = host.directory();
        let spec =
            limited(r#"{"/data": "1m"}"#).bind(data.to_str().unwrap(), "/data", &["rbind"]).script(FILL);
        let run = host.bundle(spec).run().exits(137);
        run.fails_with(&[
            "isolator disk/du: its files in /data take",
            "may take 1048576 bytes; the container is killed",
        ]);
        let root = limited("1m").script("mkdir /new; head -c 2000000 /dev/zero >/new/file; sleep 1000");
        let bundle = host.bundle(root);
        bundle.run().exits(137).fails_with(&["isolator disk/du: its files in / take"]);
    });
}

/// Holds a file by a lease, so that who opens it to read waits, and does not mind being asked for it.
const HOLDS: &str = "import fcntl, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = open(sys.argv[1], 'r+')
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('held', flush=True)
time.sleep(100)";

#[test]
fn who_holds_a_file_keeps_nobody_from_counting_it() {
    privileged(|host| {
        let Some(host) = watchful(host) else { return };
        if !host.needs_program("python3") {
            return;
        }
        let file = host.directory().join("file");
        fs::write(&file, vec![1; 2_000_000]).unwrap();
        let mut holder = Command::new("python3");
        holder.args(["-c", HOLDS, file.to_str().unwrap()]).stdout(std::process::Stdio::piped());
        let mut holder = holder.spawn().unwrap();
        std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut [0; 5]).unwrap();
        let data = file.parent().unwrap().to_str().unwrap();
        let spec = limited(r#"{"/data": "1m"}"#).bind(data, "/data", &["rbind"]).args(["sleep", "1000"]);
        host.bundle(spec).run().exits(137).fails_with(&["its files in /data take"]);
        holder.kill().unwrap();
        holder.wait().unwrap();
    });
}

#[test]
fn who_moves_what_is_counted_has_no_other_limit() {
    privileged(|host| {
        let Some(host) = watchful(host) else { return };
        let data = host.directory().join("data");
        for instead in [false, true] {
            fs::create_dir(&data).unwrap();
            let limits = limited(r#"{"/data": "1m"}"#);
            let spec = limits.bind(data.to_str().unwrap(), "/data", &["rbind"]).args(["sleep", "1000"]);
            let container = host.bundle(spec).start();
            fs::rename(&data, data.with_extension("old")).unwrap();
            if instead {
                fs::create_dir(&data).unwrap();
            }
            container.becomes("stopped");
            host.call(&["delete", container.id()]).succeeds();
            let _ = fs::remove_dir(&data);
            fs::remove_dir(data.with_extension("old")).unwrap();
        }
    });
}

#[test]
fn who_has_too_many_files_to_be_counted_in_time_is_ended() {
    privileged(|host| {
        if !host.needs_coracle("limits for files") {
            return;
        }
        let options =
            format!("options = {{ state = {:?}, interval = 0.05, deadline = 0.01 }}", host.directory());
        let host = host.configured(&format!("[isolator.\"disk/du\"]\n{options}\n"));
        let data = host.directory();
        (0..20_000).for_each(|n| fs::write(data.join(n.to_string()), "").unwrap());
        let data = data.to_str().unwrap();
        let spec = limited(r#"{"/data": "1m"}"#).bind(data, "/data", &["rbind"]).args(["sleep", "1000"]);
        host.bundle(spec).run().exits(137).fails_with(&["counted in 0.01 seconds, 4 times"]);
    });
}

#[test]
fn events_tell_of_it_and_stats_how_much_it_is() {
    privileged(|host| {
        let Some(host) = watchful(host) else { return };
        let data = host.directory();
        let spec = limited(r#"{"/data": "100k"}"#).bind(data.to_str().unwrap(), "/data", &["rbind"]);
        let container = host.bundle(spec.args(["sleep", "1000"])).start();
        let measured = || container.call("stats").succeeds().json()["other"].clone();
        assert_eq!(measured()["disk/du/limit/data"], 102_400.0);
        let before = measured()["disk/du/used/data"].as_f64().unwrap();
        container.exec(&["sh", "-c", "head -c 50000 /dev/zero >/data/file; sync"]).succeeds();
        let grown = measured()["disk/du/used/data"].as_f64().unwrap() - before;
        assert!((50_000.0..60_000.0).contains(&grown), "{grown}");
        let events = host.directory().join("events");
        let mut follower = Command::new(host.runtime())
            .args(["events", "--interval", "20ms", container.id()])
            .stdout(fs::File::create(&events).unwrap())
            .spawn()
            .unwrap();
        eventually("it is followed", || fs::read_to_string(&events).unwrap().contains("\"stats\""));
        // It may be ended with the container.
        container.exec(&["sh", "-c", "head -c 100000 /dev/zero >/data/more; sync"]);
        eventually("it is told", || fs::read_to_string(&events).unwrap().contains("\"type\":\"disk\""));
        container.becomes("stopped");
        container.call("delete").succeeds();
        follower.wait().unwrap();
    });
}

#[test]
fn what_is_no_limit_is_refused_when_the_container_is_made() {
    privileged(|host| {
        if !host.needs_coracle("limits for files") {
            return;
        }
        for (limits, words) in [
            ("much", "\"much\" is no size; write bytes, or 64k, 64m, 1g"),
            (r#"{"/nowhere": "1m"}"#, "nothing is mounted at \"/nowhere\""),
            (r#"{"/proc": "1m"}"#, "what is mounted at \"/proc\" is no directory of the host"),
        ] {
            host.bundle(limited(limits)).run().fails_with(&["/annotations/io.coracle.disk", words]);
        }
    });
}

/// A file system of the test's own that keeps project quotas, in a file.
struct Quotas<'h> {
    host: &'h Host,
    at: PathBuf,
}

impl<'h> Quotas<'h> {
    /// Made by the script `mkfs`, which finds the file in `$1`; nothing where this kernel or machine can't.
    fn new(host: &'h Host, mkfs: &str) -> Option<Self> {
        let program = mkfs.split(' ').next().unwrap();
        if !host.needs_coracle("limits for files") || !host.needs_program(program) {
            return None;
        }
        let dir = host.directory();
        let (image, at) = (dir.join("image"), dir.join("mounted"));
        fs::create_dir(&at).unwrap();
        fs::File::create(&image).unwrap().set_len(400 << 20).unwrap();
        tool("sh", &["-c", &format!("{mkfs} \"$0\" >/dev/null"), image.to_str().unwrap()]);
        let mount = Command::new("mount").args(["-o", "loop,prjquota"]).args([&image, &at]).output().unwrap();
        if !mount.status.success() {
            let why = String::from_utf8_lossy(&mount.stderr);
            host.skip(&format!("{program}: this kernel mounts none with project quotas: {}", why.trim()));
            return None;
        }
        Some(Self { host, at })
    }

    fn directory(&self, name: &str) -> PathBuf {
        let path = self.at.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Runs `script` with `data` at `/data`, limited to a MiB.
    fn run(&self, host: &Host, data: &Path, script: &str) -> Outcome {
        let spec = limited(r#"{"/data": "1m"}"#).bind(data.to_str().unwrap(), "/data", &["rbind"]);
        host.bundle(spec.script(script)).run()
    }

    fn end(self) {
        tool("umount", &[&self.at]);
    }
}

/// A container of an image on it, which may write a MiB over the image.
fn what_is_written_over_an_image_is_limited(quotas: &Quotas<'_>) {
    let Some(host) = &watchful(quotas.host) else { return };
    let store = Store::at(host, &quotas.directory("store"));
    store.import(&small::image());
    let run = |script: &str| {
        let store = store.directory().to_str().unwrap();
        let options = ["--storage-opt", "size=1m", &host.name("limited"), "--", "sh", "-c", script];
        host.call(&[&["run", "--store", store, "--image", "coracle/small:latest"][..], &options].concat())
    };
    // In directories of the image, too, and as often as a container is made.
    for _ in 0..2 {
        let wrote =
            run("head -c 500000 /dev/zero >/etc/some && head -c 900000 /dev/zero >/more || echo refused");
        assert_eq!(wrote.succeeds().lines(), ["refused"]);
    }
    run("head -c 500000 /dev/zero >/etc/some").succeeds();
}

/// What holds on any file system with project quotas.
fn a_writer_is_stopped_at_its_limit(quotas: &Quotas<'_>) {
    let Some(host) = watchful(quotas.host) else { return };
    let data = quotas.directory("data");
    fs::write(data.join("old"), vec![1; 600_000]).unwrap();
    // What was there counts, and a writer is told.
    let script = "dd if=/dev/zero of=/data/new bs=1000 count=600 || echo refused; sync; stat -c %s /data/old";
    let run = quotas.run(&host, &data, script).succeeds();
    assert_eq!(run.lines(), ["refused", "600000"]);
    // EDQUOT of ext4; of XFS, ENOSPC.
    let told = ["Disk quota exceeded", "No space left on device"];
    assert!(told.iter().any(|words| run.stderr.contains(words)), "{}", run.stderr);
    assert!(fs::metadata(data.join("new")).unwrap().len() < 600_000);
    // The limit was that container's.
    fs::remove_file(data.join("new")).unwrap();
    fs::write(data.join("other"), vec![1; 2_000_000]).unwrap();
    fs::remove_file(data.join("other")).unwrap();
    // Another directory has a limit of its own; and what stats tell is what the kernel counts.
    let (one, two) = (quotas.directory("one"), quotas.directory("two"));
    let spec = limited(r#"{"/one": "1m", "/two": "3m"}"#)
        .bind(one.to_str().unwrap(), "/one", &["rbind"])
        .bind(two.to_str().unwrap(), "/two", &["rbind"]);
    let container = host.bundle(spec.args(["sleep", "1000"])).start();
    container.exec(&["sh", "-c", "head -c 2000000 /dev/zero >/two/file"]).succeeds();
    container.exec(&["sh", "-c", "head -c 2000000 /dev/zero >/one/file"]).exits(1);
    container.exec(&["sync"]).succeeds();
    let told = container.call("stats").succeeds().json()["other"].clone();
    assert_eq!(told["disk/quota/limit/two"], f64::from(3 << 20));
    let used = |name: &str| told[name].as_f64().unwrap();
    assert!((2e6..2.1e6).contains(&used("disk/quota/used/two")), "{told}");
    assert!((1e6..=1_048_576.0).contains(&used("disk/quota/used/one")), "{told}");
    container.remove();
}

#[test]
fn ext4_stops_a_writer_at_its_limit() {
    privileged(|host| {
        let Some(quotas) = Quotas::new(host, "mkfs.ext4 -q -O quota,project -E quotatype=prjquota") else {
            return;
        };
        a_writer_is_stopped_at_its_limit(&quotas);
        what_is_written_over_an_image_is_limited(&quotas);
        quotas.end();
    });
}

#[test]
fn a_limit_for_what_is_written_over_an_image_is_refused_where_nobody_keeps_it() {
    privileged(|host| {
        if !host.needs_coracle("limits for files") {
            return;
        }
        let store = Store::new(host);
        store.import(&small::image());
        let path = store.directory().to_str().unwrap();
        let options = ["--image", "coracle/small:latest", "--storage-opt", "size=1m", &host.name("refused")];
        let run = host.call(&[&["run", "--store", path][..], &options].concat());
        run.fails_with(&["keeps no project to a limit", "ext4 and XFS do, mounted with prjquota"]);
    });
}

#[test]
fn xfs_stops_a_writer_at_its_limit() {
    privileged(|host| {
        let Some(quotas) = Quotas::new(host, "mkfs.xfs -q") else { return };
        a_writer_is_stopped_at_its_limit(&quotas);
        what_is_written_over_an_image_is_limited(&quotas);
        quotas.end();
    });
}
