//! Unpacking the large image: ours beside `gzip -dc | tar -x`, layer by layer, and umoci. Before each run all
//! dirty pages are written and the caches dropped, for everyone alike.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use coracle_fixtures::large;
use coracle_tests::command::is_installed;
use serde_json::Value;

use crate::Options;
use crate::measure::{median, timed};
use crate::report::{Report, Row};

const PEER: &str = "gzip | tar";
const NAME: &str = "coracle/large:latest";

/// Measures all of it.
pub(crate) fn measure(options: &Options, report: &mut Report) -> Result<(), String> {
    let layout = options.cache.join("large");
    if !layout.join("index.json").is_file() {
        large::image().write_layout(&layout);
    }
    let scratch = options.cache.join("scratch");
    report.section(
        "Unpacking about 600 MB, 15,000 entries, six gzip layers; caches dropped before each run",
        PEER,
    );
    let layers = layers(&layout)?;
    let mut contestants: Vec<(&str, Contestant)> = vec![(PEER, Contestant::Tar(layers))];
    if is_installed("umoci") {
        contestants.push(("umoci raw unpack", Contestant::Umoci(layout.clone())));
    } else {
        report.note("umoci is not measured: it is not installed");
    }
    if options.image_program.is_file() {
        for (name, snapshotter) in [("coracle-image", "overlay"), ("coracle, EROFS", "erofs")] {
            let program = options.image_program.clone();
            contestants.push((name, Contestant::Ours { program, layout: layout.clone(), snapshotter }));
        }
    } else {
        report.note(&format!(
            "coracle-image is not measured: {} is not there",
            options.image_program.display()
        ));
    }
    let runs = if options.runs < 10 { 1 } else { 5 };
    let mut times = vec![Vec::new(); contestants.len()];
    for _ in 0..runs {
        for ((_, contestant), times) in contestants.iter().zip(&mut times) {
            times.push(contestant.unpack(&scratch)?);
        }
    }
    let medians: Vec<Duration> = times.into_iter().map(median).collect();
    let base = medians[0].as_secs_f64();
    let row = |((name, _), time): (&(&str, Contestant), &Duration)| Row {
        what: "unpack".to_owned(),
        subject: (*name).to_owned(),
        value: time.as_secs_f64(),
        unit: "s",
        ratio: Some(time.as_secs_f64() / base),
    };
    report.add(contestants.iter().zip(&medians).map(row).collect());
    Ok(())
}

/// The blobs of the image's layers, lowest first.
fn layers(layout: &Path) -> Result<Vec<PathBuf>, String> {
    let blob =
        |digest: &Value| layout.join("blobs").join(digest.as_str().unwrap_or_default().replace(':', "/"));
    let document = |path: &Path| -> Result<Value, String> {
        let bytes = fs::read(path).map_err(|error| format!("read {}: {error}", path.display()))?;
        serde_json::from_slice(&bytes).map_err(|error| format!("parse {}: {error}", path.display()))
    };
    let index = document(&layout.join("index.json"))?;
    let manifest = document(&blob(&index["manifests"][0]["digest"]))?;
    let layers = manifest["layers"].as_array().ok_or("the manifest has no layers")?;
    Ok(layers.iter().map(|layer| blob(&layer["digest"])).collect())
}

enum Contestant {
    Tar(Vec<PathBuf>),
    Umoci(PathBuf),
    Ours { program: PathBuf, layout: PathBuf, snapshotter: &'static str },
}

impl Contestant {
    /// The time to unpack into a new directory.
    fn unpack(&self, scratch: &Path) -> Result<Duration, String> {
        remove(scratch)?;
        fs::create_dir_all(scratch).map_err(|error| format!("make {}: {error}", scratch.display()))?;
        let mut command = self.prepare(scratch)?;
        timed(&mut Command::new("sync"))?;
        fs::write("/proc/sys/vm/drop_caches", "3").map_err(|error| format!("drop caches: {error}"))?;
        let time = timed(&mut command)?;
        remove(scratch)?;
        Ok(time)
    }

    /// Does what is not unpacking (importing into a store), and gives the command that is.
    fn prepare(&self, scratch: &Path) -> Result<Command, String> {
        match self {
            Self::Tar(layers) => {
                let mut command = Command::new("sh");
                command.args(["-c", "for l; do gzip -dc $l | tar -x -C . || exit; done", "sh"]).args(layers);
                command.current_dir(scratch);
                Ok(command)
            }
            Self::Umoci(layout) => {
                let mut command = Command::new("umoci");
                let image = format!("{}:latest", layout.display());
                command.args(["raw", "unpack", "--image", &image]).arg(scratch.join("rootfs"));
                Ok(command)
            }
            Self::Ours { program, layout, snapshotter } => {
                let ours = |verb: &str| {
                    let mut command = Command::new(program);
                    command.arg("--store").arg(scratch.join("store")).arg(verb);
                    command
                };
                timed(ours("import").arg(layout).args(["--name", NAME]))?;
                let mut command = ours("unpack");
                command.args(["--snapshotter", snapshotter, NAME]);
                Ok(command)
            }
        }
    }
}

fn remove(path: &Path) -> Result<(), String> {
    if path.is_dir() {
        fs::remove_dir_all(path).map_err(|error| format!("remove {}: {error}", path.display()))?;
    }
    Ok(())
}
