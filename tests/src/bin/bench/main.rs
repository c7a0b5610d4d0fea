//! `coracle-bench [--json] [--quick] [--runtime PATH] [--image-program PATH] [starts|crowd|unpack|pull]` measures Coracle
//! beside its peers, in one sitting on one machine: starts beside crun, runc and a bare C program, unpacking
//! beside `gzip -dc | tar -x` and umoci, pulling beside podman. Runs alternate, figures are medians, ratios are to the first peer.
//!
//! crun refuses hybrid cgroups, so all of it runs in a mount namespace without the unified tree.

#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that tells people what it measured"
)]

mod crowd;
mod measure;
mod report;
mod starts;
mod networks;
mod plugins;
mod pods;
mod subject;
mod sustained;
mod unpack;
mod pull;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use report::Report;

/// What the command line asks for.
pub(crate) struct Options {
    json: bool,
    /// How often each thing is measured.
    pub(crate) runs: usize,
    /// The runtime that is ours, the program of images, and where files may be kept between two sittings.
    pub(crate) runtime: PathBuf,
    pub(crate) image_program: PathBuf,
    pub(crate) cache: PathBuf,
    /// What alone is measured: starts, of these a start in a crowd, unpacking, or pulling.
    pub(crate) only: Option<String>,
}

fn main() -> ExitCode {
    match options().and_then(|options| measure_all(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("coracle-bench: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Result<Options, String> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let mut options = Options {
        json: false,
        runs: 30,
        runtime: target.join("bin/coracle"),
        image_program: target.join("bin/coracle-image"),
        cache: target.join("bench"),
        only: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().map(PathBuf::from).ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--json" => options.json = true,
            "--quick" => options.runs = 5,
            "--runtime" => options.runtime = value()?,
            "--image-program" => options.image_program = value()?,
            "starts" | "crowd" | "unpack" | "pull" => options.only = Some(argument),
            _ => return Err(format!("unknown argument {argument}")),
        }
    }
    std::fs::create_dir_all(&options.cache)
        .map_err(|error| format!("make {}: {error}", options.cache.display()))?;
    options.cache = options.cache.canonicalize().map_err(|error| error.to_string())?;
    Ok(options)
}

fn measure_all(options: &Options) -> Result<(), String> {
    leave_unified_tree()?;
    let mut report = Report::new(!options.json);
    let wanted = |what: &str| options.only.as_deref().is_none_or(|only| only == what);
    if wanted("starts") || wanted("crowd") {
        starts::measure(options, &mut report)?;
    }
    if wanted("unpack") {
        unpack::measure(options, &mut report)?;
    }
    if wanted("pull") {
        pull::measure(options, &mut report)?;
    }
    if options.json {
        println!("{}", report.json());
    }
    Ok(())
}

/// A mount namespace of our own, in which the v1 hierarchies are alone.
fn leave_unified_tree() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| format!("unshare (run as root): {errno}"))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(|errno| format!("mount /: {errno}"))?;
    let unified = Path::new("/sys/fs/cgroup/unified");
    if unified.join("cgroup.procs").is_file() {
        umount2(unified, MntFlags::MNT_DETACH)
            .map_err(|errno| format!("umount {}: {errno}", unified.display()))?;
    }
    Ok(())
}
