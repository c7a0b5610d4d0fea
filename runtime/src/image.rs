//! Containers from images: what the runtime asks of the image store.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use coracle_image::bundle::{self, Bundle};
use coracle_image::reference::Reference;
use coracle_image::snapshot::{self, Access, Owners, Purpose};
use coracle_image::store::Store;
use coracle_sys::{file, process, signal};

use crate::cli::{ImageRun, Pull};
use crate::error::{Code, Context, Error, Result};
use crate::{self_image, state};

/// The image tool, beside the runtime.
pub const PROGRAM: &str = "coracle-image";

/// The variables that the image tool goes by, which so have to get past [`self_image::protect`]: proxies, credentials, trust and
/// its own settings.
const VARIABLES: [&str; 15] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "REGISTRY_AUTH_FILE",
    "DOCKER_CONFIG",
    "XDG_CONFIG_HOME",
    "HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "CORACLE_SNAPSHOTTER",
];

/// The names of the variables to keep where an image may have to be pulled, beside those that are `wanted`.
pub fn variables(wanted: &[String]) -> Vec<String> {
    VARIABLES.iter().map(|name| (*name).to_owned()).chain(wanted.iter().cloned()).collect()
}

/// For whom a snapshot is.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Its ID.
    pub id: &'a str,
    /// An absolute path that is there as long as somebody knows of it.
    pub by: &'a Path,
}

/// Removes, in the store at `store`, the snapshots of containers and pods that nobody knows any more: those from before
/// the machine's last start. Nothing where there is no store.
///
/// # Errors
/// The first that can't be removed; the others are.
pub fn remove_forgotten(store: &Path) -> Result<Vec<String>> {
    if file::open_dir(store.join("snapshots")).is_err() {
        return Ok(Vec::new());
    }
    let (gone, failures) = Store::open(store).and_then(|store| snapshot::remove_forgotten(&store))?;
    let ids = gone.into_iter().map(|name| name.replace('~', "/"));
    failures.into_iter().next().map_or(Ok(ids.collect()), |failure| Err(failure.into()))
}

/// The image store that was `given`, or else the host's.
pub fn store(given: Option<&Path>) -> PathBuf {
    given.map_or_else(coracle_image::store::default_root, Path::to_owned)
}

/// Makes the bundle of container `id` from an image; pulls the image first where it is missing and may be pulled, and
/// unpacks it where it isn't unpacked.
///
/// # Errors
/// `NotFound` where the store has no such image.
pub fn make_bundle(store: &Path, id: Known<'_>, wanted: &ImageRun) -> Result<Bundle> {
    let name = state::name(id.id);
    bundle_of(store, wanted, unpack, |store, image| {
        bundle::make_for(store, image, (&name, Some(id.by)), &wanted.options)
    })
}

/// The same without a file of its configuration, which nobody else reads; with other owners of its files on the host, if any
/// are given, than the image has.
///
/// # Errors
/// As [`make_bundle`].
pub fn compose_bundle(
    store: &Path,
    id: Known<'_>,
    wanted: &ImageRun,
    owners: Option<Owners<'_>>,
) -> Result<Bundle> {
    let name = state::name(id.id);
    bundle_of(store, wanted, unpack_silently, |store, image| {
        bundle::compose(store, image, (&name, Some(id.by)), (&wanted.options, owners))
    })
}

fn bundle_of(
    store: &Path,
    wanted: &ImageRun,
    unpack: fn(&Path, &str) -> Result<()>,
    make: impl Fn(&Store, &str) -> coracle_image::Result<Bundle>,
) -> Result<Bundle> {
    let attempt = |name: &str| make(&Store::open(store)?, name);
    let mut name = wanted.reference.clone();
    if wanted.pull == Pull::Always {
        pull(store, &name)?;
        name = pulled_name(&name);
    }
    let made = match attempt(&name) {
        Err(e) if e.kind() == coracle_image::Kind::NotUnpacked => {
            unpack(store, &name)?;
            attempt(&name)
        }
        Err(e) if e.kind() == coracle_image::Kind::NoImage && wanted.pull == Pull::Missing => {
            pull(store, &name)?;
            attempt(&pulled_name(&name))
        }
        other => other,
    };
    made.context(|| format!("making a bundle of image {:?}", wanted.reference))
}

/// What the store calls what was pulled as `reference`: in full, so that no image of a similar name is taken for it.
pub fn pulled_name(reference: &str) -> String {
    reference.parse::<Reference>().map_or_else(|_| reference.to_owned(), |full| full.to_string())
}

/// Removes what [`make_bundle`] made. What is gone already is no error.
///
/// # Errors
/// `EBUSY` where the snapshot's files are in use.
pub fn remove_bundle(store: &Path, id: &str) -> Result<()> {
    let removed = Store::open(store).and_then(|store| bundle::remove(&store, &state::name(id)));
    removed.context(|| format!("removing the snapshot of container {id:?}"))
}

/// Mounts the files of an image, read-only, as the snapshot of `id`, with other owners if any are given.
///
/// # Errors
/// `NotFound` where the store has no such image.
pub fn mount_volume(store: &Path, id: Known<'_>, reference: &str, owners: Option<Owners<'_>>) -> Result<()> {
    let known_by = Some(id.by);
    let attempt = || -> coracle_image::Result<PathBuf> {
        let store = Store::open(store)?;
        let image = store.image(reference)?;
        let purpose = Purpose { access: Access::ReadOnly, owners, known_by };
        snapshot::mount_for(&store, &state::name(id.id), &image, purpose)
    };
    let mounted = match attempt() {
        Err(e) if e.kind() == coracle_image::Kind::NotUnpacked => {
            unpack_silently(store, reference)?;
            attempt()
        }
        other => other,
    };
    mounted.map(drop).context(|| format!("mounting image {reference:?}"))
}

/// Whether [`mount_volume`] has mounted them.
pub fn is_mounted(store: &Path, id: &str) -> bool {
    let root = volume_path(store, id);
    let mount = |path: &Path| file::open_dir(path).and_then(|dir| file::mount_id(dir.as_fd())).ok();
    root.parent().is_some_and(|above| mount(&root).is_some_and(|own| Some(own) != mount(above)))
}

/// Where [`mount_volume`] mounts them.
pub fn volume_path(store: &Path, id: &str) -> PathBuf {
    store.join("snapshots").join(state::name(id)).join("rootfs")
}

/// Fetches an image into the store.
///
/// # Errors
/// `System` with what the image tool ended with; it has told why.
pub fn pull(store: &Path, reference: &str) -> Result<()> {
    tool(store, "pull", reference)
}

/// The same for a caller to whom nobody listens: the error says what the image tool would tell.
///
/// # Errors
/// `System` with the tool's last words.
pub fn pull_silently(store: &Path, reference: &str) -> Result<()> {
    quiet(store, &["pull", "--quiet", reference]).map(drop)
}

/// Removes what nothing uses, then images that were not used for `days`, then those used least recently until the store
/// holds no more than `most` bytes. Returns their references.
///
/// # Errors
/// `System` with the tool's last words.
pub fn collect(store: &Path, days: Option<u64>, most: Option<u64>) -> Result<Vec<String>> {
    let (days, most) = (days.map(|days| days.to_string()), most.map(|most| most.to_string()));
    let mut args = vec!["gc"];
    days.iter().for_each(|days| args.extend(["--max-age", days]));
    most.iter().for_each(|most| args.extend(["--keep-size", most]));
    let said = quiet(store, &args)?;
    Ok(said.lines().filter_map(|line| Some(line.strip_suffix(" removed")?.to_owned())).collect())
}

/// Runs the image tool, and returns what it prints.
fn quiet(store: &Path, args: &[&str]) -> Result<String> {
    let mut command = command()?;
    let output = command.arg("--store").arg(store).args(args).output().map_err(|e| unable(&e))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().lines().last().unwrap_or_default().trim_start_matches("coracle-image: ");
    let status = output.status;
    Err(Error::new(Code::System, if said.is_empty() { status.to_string() } else { said.to_owned() })
        .doing(format!("coracle-image {}", args.join(" "))))
}

fn unpack(store: &Path, reference: &str) -> Result<()> {
    tool(store, "unpack", reference)
}

/// The same where the standard streams are a container's.
fn unpack_silently(store: &Path, reference: &str) -> Result<()> {
    quiet(store, &["unpack", reference]).map(drop)
}

/// Unpacking takes threads and decompressors, and fetching a network client, which the runtime doesn't link: the image
/// tool does both.
fn tool(store: &Path, verb: &str, reference: &str) -> Result<()> {
    let mut command = command()?;
    // Its report is not the container's output.
    command.stdout(std::io::stderr());
    let child = command.arg("--store").arg(store).arg(verb).arg(reference).spawn();
    let doing = || format!("coracle-image {verb} {reference:?}");
    let status = wait(child.map_err(|e| unable(&e))?).context(doing)?;
    if status.success() {
        return Ok(());
    }
    Err(Error::new(Code::System, format!("{} failed with {status}", doing())))
}

/// Waits for the end of `child`, which ends when a signal asks the caller to: what it has fetched by then stays.
fn wait(mut child: Child) -> Result<ExitStatus> {
    let pidfd = process::pidfd(child.id().cast_signed())?;
    let asked = signal::wait_for(pidfd.as_fd())?;
    if asked.is_some() {
        process::signal(pidfd.as_fd(), libc::SIGKILL)?;
    }
    let status = child.wait().map_err(|e| unable(&e))?;
    asked.map_or(Ok(status), |signal| Err(Error::interrupted(signal)))
}

fn command() -> Result<Command> {
    #[expect(clippy::disallowed_methods, reason = "the runtime's own helper, before any container exists")]
    let mut command = Command::new(self_image::origin()?.with_file_name(PROGRAM));
    signal::bind_to_runtime(&mut command);
    Ok(command)
}

fn unable(error: &std::io::Error) -> Error {
    Error::new(Code::System, format!("{PROGRAM:?} beside the runtime can't be run: {error}"))
}
