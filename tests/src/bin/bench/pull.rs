//! Pulling and unpacking the large image from a `docker-registry` on the loopback, beside podman: gzip and zstd layers, and
//! a second image that shares all layers but one. Before each run the caches are dropped, for everyone alike.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use coracle_fixtures::large;
use coracle_tests::command::is_installed;

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
        let (mut podman, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            podman.push(puller.time(&puller.podman(tag))?);
            ours.push(puller.time(&puller.ours(tag))?);
        }
        let base = median(podman);
        let row = |subject: &str, time: Duration| Row {
            what: format!("pull, {tag}"),
            subject: subject.to_owned(),
            value: time.as_secs_f64(),
            unit: "s",
            ratio: Some(time.as_secs_f64() / base.as_secs_f64()),
        };
        report.add(vec![row(PEER, base), row("coracle-image", median(ours))]);
        puller.memory(tag, report)?;
    }
    remove(&scratch)
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

    fn ours(&self, tag: &str) -> Command {
        let mut command = Command::new(&self.options.image_program);
        command.arg("--store").arg(self.scratch.join("store")).args(["pull", "--quiet", "--plain-http"]);
        command.arg(&self.registry.host).arg(format!("{}/large:{tag}", self.registry.host));
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

    /// The peak of each.
    fn memory(&self, tag: &str, report: &mut Report) -> Result<(), String> {
        let peak = compile("peak", &self.options.cache)?;
        for (subject, command) in [(PEER, self.podman(tag)), ("coracle-image", self.ours(tag))] {
            self.clear()?;
            let value = peak_memory(&peak, &command)?;
            let (what, subject) = (format!("pull, {tag}: resident"), subject.to_owned());
            report.add(vec![Row { what, subject, value, unit: "MiB", ratio: None }]);
        }
        Ok(())
    }
}

fn remove(path: &Path) -> Result<(), String> {
    // podman leaves its root mounted over itself, if it was run.
    let _ = Command::new("umount").args(["-q", "-l"]).arg(path.join("root/overlay")).output();
    if path.is_dir() {
        fs::remove_dir_all(path).map_err(|error| format!("remove {}: {error}", path.display()))?;
    }
    Ok(())
}
