//! Pulling and unpacking the large image from a `docker-registry` on the loopback, beside podman: gzip and zstd layers, and
//! a second image that shares all layers but one. Before each run the caches are dropped, for everyone alike.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use coracle_fixtures::large;
use coracle_fixtures::layer::{Compression, Entry, Layer, digest};
use coracle_tests::command::is_installed;
use serde_json::{Value, json};

use crate::Options;
use crate::measure::{compile, median, peak_memory, timed};
use crate::report::{Report, Row};

const PEER: &str = "podman";

/// Measures all of it.
pub(crate) fn measure(options: &Options, report: &mut Report) -> Result<(), String> {
    report.section("Pulling and unpacking that image from a registry on this machine; caches dropped", PEER);
    for program in ["docker-registry", "podman", "skopeo"] {
        if !is_installed(program) {
            report.note(&format!("pulling is not measured: {program} is not installed"));
            return Ok(());
        }
    }
    let layout = options.cache.join("large");
    if !layout.join("index.json").is_file() {
        large::image().write_layout(&layout);
    }
    let registry = Registry::start(&options.cache)?;
    for (tag, more) in [("gzip", &[][..]), ("zstd", &["--dest-compress-format", "zstd"][..])] {
        let mut copy = Command::new("skopeo");
        copy.args(["--insecure-policy", "copy", "--dest-tls-verify=false"]).args(more);
        copy.arg(format!("oci:{}", layout.display())).arg(format!("docker://{}/large:{tag}", registry.host));
        timed(&mut copy)?;
    }
    let scratch = options.cache.join("scratch");
    let runs = if options.runs < 10 { 1 } else { 3 };
    let puller = Puller { options, registry: &registry, scratch: &scratch };
    for tag in ["gzip", "zstd"] {
        let (mut podman, mut ours, mut images) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..runs {
            podman.push(puller.time(&puller.podman(tag))?);
            ours.push(puller.time(&puller.ours(tag, "overlay"))?);
            images.push(puller.time(&puller.ours(tag, "erofs"))?);
        }
        let base = median(podman);
        let row = |subject: &str, time: Duration| Row {
            what: format!("pull, {tag}"),
            subject: subject.to_owned(),
            value: time.as_secs_f64(),
            unit: "s",
            ratio: Some(time.as_secs_f64() / base.as_secs_f64()),
        };
        let rows = [("coracle-image", ours), ("coracle, EROFS", images)];
        let rows = rows.map(|(subject, times)| row(subject, median(times)));
        report.add(std::iter::once(row(PEER, base)).chain(rows).collect());
        puller.memory(tag, report)?;
    }
    puller.second(&layout, report)?;
    remove(&scratch)
}

/// Writes a layout beside `layout` whose image has all of its layers but the last, and a small one in its place.
fn write_second(layout: &Path) -> Result<PathBuf, String> {
    let failed = |error: std::io::Error| format!("write a second image: {error}");
    let blob = |digest: &str| layout.join("blobs").join(digest.replace(':', "/"));
    let read = |path: &Path| -> Result<Value, String> {
        serde_json::from_slice(&fs::read(path).map_err(failed)?).map_err(|error| error.to_string())
    };
    let write = |bytes: &[u8]| -> Result<Value, String> {
        fs::write(blob(&digest(bytes)), bytes).map_err(failed)?;
        Ok(json!({ "digest": digest(bytes), "size": bytes.len() }))
    };
    let name = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut manifest = read(&blob(&name(&read(&layout.join("index.json"))?["manifests"][0]["digest"])))?;
    let mut config = read(&blob(&name(&manifest["config"]["digest"])))?;
    let new = Layer::new(&[Entry::file("second", "image")], Compression::Gzip);
    let last = manifest["layers"].as_array().map_or(1, Vec::len) - 1;
    config["rootfs"]["diff_ids"][last] = json!(new.diff_id);
    for (pointer, bytes) in
        [("/config".to_owned(), config.to_string().into_bytes()), (format!("/layers/{last}"), new.blob)]
    {
        let written = write(&bytes)?;
        let descriptor = manifest.pointer_mut(&pointer).ok_or("the manifest has no such blob")?;
        descriptor["digest"] = written["digest"].clone();
        descriptor["size"] = written["size"].clone();
    }
    let mut entry = write(manifest.to_string().as_bytes())?;
    entry["mediaType"] = json!("application/vnd.oci.image.manifest.v1+json");
    let second = layout.with_file_name("large-second");
    remove(&second)?;
    fs::create_dir_all(&second).map_err(failed)?;
    std::os::unix::fs::symlink(layout.join("blobs"), second.join("blobs")).map_err(failed)?;
    fs::copy(layout.join("oci-layout"), second.join("oci-layout")).map_err(failed)?;
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    fs::write(second.join("index.json"), index.to_string()).map_err(failed)?;
    Ok(second)
}

/// A registry that ends when this does.
struct Registry {
    child: Child,
    host: String,
    directory: PathBuf,
}

impl Registry {
    fn start(cache: &Path) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("start docker-registry: {error}");
        let directory = cache.join("registry");
        fs::create_dir_all(&directory).map_err(failed)?;
        let host = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map_err(failed)?.to_string();
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{host}\"}}\n",
            directory.display()
        );
        fs::write(directory.join("config.yml"), config).map_err(failed)?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(directory.join("config.yml")).stdin(Stdio::null());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(failed)?;
        let registry = Self { child, host, directory };
        for _ in 0..200 {
            if TcpStream::connect(&registry.host).is_ok() {
                return Ok(registry);
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        Err("docker-registry does not listen".to_owned())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

struct Puller<'a> {
    options: &'a Options,
    registry: &'a Registry,
    scratch: &'a Path,
}

impl Puller<'_> {
    fn podman(&self, tag: &str) -> Command {
        let mut command = Command::new("podman");
        command
            .arg("--root")
            .arg(self.scratch.join("root"))
            .arg("--runroot")
            .arg(self.scratch.join("runroot"));
        command.args(["--storage-driver", "overlay", "pull", "--quiet", "--tls-verify=false"]);
        command.arg(format!("{}/large:{tag}", self.registry.host));
        command
    }

    fn ours(&self, tag: &str, snapshotter: &str) -> Command {
        let mut command = Command::new(&self.options.image_program);
        command.arg("--store").arg(self.scratch.join("store")).args(["pull", "--quiet", "--plain-http"]);
        command
            .arg(&self.registry.host)
            .args(["--snapshotter", snapshotter])
            .arg(format!("{}/large:{tag}", self.registry.host));
        command
    }

    /// An empty scratch directory and cold caches.
    fn clear(&self) -> Result<(), String> {
        remove(self.scratch)?;
        fs::create_dir_all(self.scratch)
            .map_err(|error| format!("make {}: {error}", self.scratch.display()))?;
        timed(&mut Command::new("sync"))?;
        fs::write("/proc/sys/vm/drop_caches", "3").map_err(|error| format!("drop caches: {error}"))
    }

    fn time(&self, command: &Command) -> Result<Duration, String> {
        self.clear()?;
        let mut again = Command::new(command.get_program());
        timed(again.args(command.get_args()))
    }

    /// What is fetched of an image, and then of one that shares all layers with it but one.
    fn second(&self, layout: &Path, report: &mut Report) -> Result<(), String> {
        let second = write_second(layout)?;
        let mut copy = Command::new("skopeo");
        copy.args(["--insecure-policy", "copy", "--dest-tls-verify=false"]);
        copy.arg(format!("oci:{}", second.display()))
            .arg(format!("docker://{}/large:second", self.registry.host));
        timed(&mut copy)?;
        self.clear()?;
        for (what, tag) in [("a first pull fetches", "gzip"), ("one that shares layers", "second")] {
            let value = fetched(self.ours(tag, "overlay").arg("--json"))? as f64 / 1e6;
            let (what, subject) = (what.to_owned(), "coracle-image".to_owned());
            report.add(vec![Row { what, subject, value, unit: "MB", ratio: None }]);
        }
        Ok(())
    }

    /// The peak of each.
    fn memory(&self, tag: &str, report: &mut Report) -> Result<(), String> {
        let peak = compile("peak", &self.options.cache)?;
        for (subject, command) in [(PEER, self.podman(tag)), ("coracle-image", self.ours(tag, "overlay"))] {
            self.clear()?;
            let value = peak_memory(&peak, &command)?;
            let (what, subject) = (format!("pull, {tag}: resident"), subject.to_owned());
            report.add(vec![Row { what, subject, value, unit: "MiB", ratio: None }]);
        }
        Ok(())
    }
}

/// The bytes of layers that a pull fetches, by the events that it tells.
fn fetched(pull: &mut Command) -> Result<u64, String> {
    let output = pull.output().map_err(|error| format!("pull: {error}"))?;
    let events = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(format!("the pull failed: {events}"));
    }
    let number = |event: &Value, key: &str| event[key].as_u64().unwrap_or(0);
    let events = events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(events.filter(|e| e["event"] == "started").map(|e| number(&e, "size") - number(&e, "have")).sum())
}

fn remove(path: &Path) -> Result<(), String> {
    // podman leaves its root mounted over itself, if it was run.
    let _ = Command::new("umount").args(["-q", "-l"]).arg(path.join("root/overlay")).output();
    if path.is_dir() {
        fs::remove_dir_all(path).map_err(|error| format!("remove {}: {error}", path.display()))?;
    }
    Ok(())
}
