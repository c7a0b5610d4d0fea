//! The command line: what is asked for, and the call that does it.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use coracle_image::diff;
use coracle_image::export::export;
use coracle_image::image::Image;
use coracle_image::snapshot::{self, Access, Snapshotter};
use coracle_image::space::{self, Policy};
use coracle_image::store::{self, Store};
use coracle_image::unpack::{Limits, Options, unpack};
use coracle_image::{Context, Error, Kind, Result, import};
use lexopt::Arg::{Long, Short, Value};
use lexopt::ValueExt;

use crate::bundles;
use crate::settings;
use crate::show::{self, Format};
use crate::transfer::{self, Transfer};

/// What `coracle-image help` prints.
pub(crate) const HELP: &str = "\
coracle-image keeps container images: it pulls or imports them, unpacks their layers and mounts them.

Usage: coracle-image [--store DIR] COMMAND …

Commands:
  pull REF [--no-unpack]  fetch an image from its registry, and unpack its layers while they come; also with the
                          options of unpack
  push REF [TARGET]       upload an image of the store, under its own name or another
  tags REPOSITORY         list the tags that a registry has for a repository
  search WORD | HOST/WORD look for repositories, at docker.io or another registry that offers it
  import PATH [--name REF] [--ref REF]
                          take the images of an OCI layout (a directory), of an archive of one, or of what
                          `docker save` wrote; --ref chooses one of several, --name gives it another name
  ls [--format table|json]
                          list the images: reference, digest, size, layers, whether they are unpacked
  inspect REF [--format json|table]
                          show an image's config, manifest and layers
  unpack REF [--snapshotter overlay|erofs] [--max-size BYTES] [--max-entries N]
                          unpack the layers that are not yet, into directories (overlay, the default) or EROFS images,
                          with limits for each of them
  unpack REF DIR [--rootless] [--max-size BYTES] [--max-entries N]
                          unpack all layers, one over the other, into the bundle DIR: rootfs and config.json; --rootless
                          does so without privilege, for a container without privilege
  mount REF [ID] [--read-only]
                          mount the unpacked layers one over the other, and print where; the ID is made
                          from the reference unless you say one
  unmount ID              take the mount away, with all that was written to it
  verify [REF]            digest all blobs again, and look for the unpacked layers
  tag REF NAME            give the image another name
  repair REF              fetch what is damaged or missing of an image again, and unpack it anew
  rm REF                  remove the image, and what no other one uses
  diff ID | REF REF       what was written to a mounted image, or what the second image has otherwise than the first:
                          A (added), C (changed) or D (deleted), and the path
  history REF             how the image was made, the last step first
  export REF PATH         write an archive that is an OCI layout and that `docker load` reads, too; or into an OCI
                          layout, where PATH is a directory or ends with a slash
  df [--format table|json]
                          how much the store holds, and how much of it nothing uses
  gc [--max-age DAYS] [--keep-size BYTES]
                          remove what nothing uses, then images that were not used for so long, then those used least
                          recently until the store fits; never one that a container or mount is made of
  help                    show this

For registries:
  --platform OS/ARCH[/VARIANT]  which image of several, instead of the one for this machine
  --auth-file FILE        credentials, instead of podman's auth.json and Docker's config.json
  --hosts-dir DIR         where HOST/hosts.toml is, instead of /etc/coracle/certs.d and /etc/containerd/certs.d
  --plain-http HOST       a registry that is reached without TLS; may be given several times
  --parallel N            transfers at once
  --timeout SECONDS       how long a registry may be silent before the connection is made again
  --quiet | --json        tell nothing of the progress, or each event as a line of JSON on standard error

An image is named by its reference as `ls` shows it, with or without `docker.io/library/` and `:latest`, or
by its digest. The store is /var/lib/coracle unless --store or CORACLE_STORE says otherwise.

Example:
  coracle-image pull alpine
  ls $(coracle-image mount alpine try)
  coracle-image unmount try
";

/// What all commands may be given.
#[derive(Default)]
pub(crate) struct Args {
    store: Option<PathBuf>,
    words: Vec<String>,
    paths: Vec<PathBuf>,
    name: Option<String>,
    reference: Option<String>,
    format: Option<Format>,
    max_size: Option<u64>,
    max_entries: Option<u64>,
    snapshotter: Option<Snapshotter>,
    policy: Policy,
    read_only: bool,
    rootless: bool,
    transfer: Transfer,
    help: bool,
    given: Vec<&'static str>,
}

impl Args {
    /// The path that is the word `n` after the command.
    pub(crate) fn path(&self, n: usize) -> Option<&PathBuf> {
        self.paths.get(n)
    }

    /// The word `n` after the command.
    pub(crate) fn word(&self, n: usize) -> &str {
        self.words.get(n).map(String::as_str).unwrap_or_default()
    }

    /// Whether it has to go without privilege.
    pub(crate) fn rootless(&self) -> bool {
        self.rootless
    }

    /// How registries are talked to.
    pub(crate) fn transfer(&self) -> &Transfer {
        &self.transfer
    }

    /// How layers are unpacked.
    pub(crate) fn unpacking(&self) -> Result<Options> {
        let snapshotter = self.snapshotter.map_or_else(settings::snapshotter, Ok)?;
        Ok(Options { limits: self.limits(), snapshotter })
    }

    /// What each layer may cost.
    pub(crate) fn limits(&self) -> Limits {
        let usual = Limits::default();
        let entries = self.max_entries.unwrap_or(usual.entries);
        Limits { bytes: self.max_size.unwrap_or(usual.bytes), entries, ..usual }
    }
}

/// Does what `args` ask for; what it has to say goes to `out`.
pub(crate) fn run(args: impl Iterator<Item = OsString>, out: &mut Vec<u8>) -> Result<()> {
    let args = parse(args).map_err(|e| usage(e.to_string()))?;
    let command = args.words.first().cloned().unwrap_or_default();
    if args.help || command == "help" {
        return say(out, HELP);
    }
    check(&command, &args)?;
    let path = args.store.clone().unwrap_or_else(store::default_root);
    if args.paths.len() > 2 && command == "unpack" {
        return bundles::unpack(&path, &args, out);
    }
    dispatch(&command, &Store::open(path)?, &args, out)
}

/// Whether the command exists, and takes these words and options.
fn check(command: &str, args: &Args) -> Result<()> {
    let (most, options): (usize, &[&str]) = match command {
        "pull" => (1, transfer::PULL_OPTIONS),
        "repair" => (1, transfer::PULL_OPTIONS),
        "push" => (2, transfer::OPTIONS),
        "tags" | "search" => (1, transfer::OPTIONS),
        "import" => (1, &["name", "ref"]),
        "ls" => (0, &["format"]),
        "inspect" => (1, &["format"]),
        "unpack" if args.words.len() > 2 => (2, &["max-size", "max-entries", "rootless"]),
        "unpack" => (1, &["max-size", "max-entries", "snapshotter"]),
        "mount" => (2, &["read-only"]),
        "df" => (0, &["format"]),
        "gc" => (0, &["max-age", "keep-size"]),
        "tag" | "export" | "diff" => (2, &[]),
        "rm" | "unmount" | "verify" | "history" => (1, &[]),
        "" => return Err(usage("no command is given")),
        other => return Err(usage(format!("there is no command {other:?}"))),
    };
    if args.rootless && command == "unpack" && args.words.len() < 3 {
        return Err(usage("unpack --rootless needs a directory to unpack into"));
    }
    if let Some(option) = args.given.iter().find(|given| !options.contains(given)) {
        return Err(usage(format!("{command} has no option --{option}")));
    }
    if let Some(extra) = args.words.get(most + 1) {
        return Err(usage(format!("{command} doesn't know what to do with {extra:?}")));
    }
    Ok(())
}

fn dispatch(command: &str, store: &Store, args: &Args, out: &mut Vec<u8>) -> Result<()> {
    let word = |n: usize, what: &str| {
        args.words.get(n).map(String::as_str).ok_or_else(|| usage(format!("{command} needs {what}")))
    };
    match command {
        "pull" => transfer::pull(store, word(1, "the reference of an image")?, args, out),
        "repair" => transfer::repair(store, word(1, "the reference of an image")?, args, out),
        "push" => {
            let from = word(1, "the reference of an image")?;
            transfer::push(store, from, args.words.get(2).map(String::as_str), args, out)
        }
        "tags" => transfer::tags(word(1, "a repository")?, args, out),
        "search" => transfer::search(word(1, "something to look for")?, args, out),
        "import" => {
            let path =
                args.paths.get(1).ok_or_else(|| usage("import needs the path of an archive or layout"))?;
            let options = import::Options { name: args.name.clone(), reference: args.reference.clone() };
            let entries = import::import(store, path, &options)?;
            entries.iter().try_for_each(|e| say(out, &format!("{} {}\n", e.reference, e.descriptor.digest())))
        }
        "ls" => say(out, &show::list(store, args.format.unwrap_or(Format::Table))?),
        "inspect" => {
            let image = store.image(word(1, "the reference of an image")?)?;
            say(out, &show::inspect(store, &image, args.format.unwrap_or(Format::Json))?)
        }
        "unpack" => {
            let image = store.image(word(1, "the reference of an image")?)?;
            let count = unpack(store, &image, &args.unpacking()?)?;
            say(out, &format!("{}: {count} of {} layers unpacked\n", image.reference, image.layers.len()))
        }
        "mount" => {
            let image = store.image(word(1, "the reference of an image")?)?;
            let access = if args.read_only { Access::ReadOnly } else { Access::Writable };
            let id = args.words.get(2).cloned().unwrap_or_else(|| id_of(&image));
            say(out, &format!("{}\n", snapshot::mount(store, &id, &image, access)?.display()))
        }
        "tag" => {
            let entry = store.tag(word(1, "the reference of an image")?, word(2, "another name")?)?;
            say(out, &format!("{} {}\n", entry.reference, entry.descriptor.digest()))
        }
        "export" => {
            let image = store.image(word(1, "the reference of an image")?)?;
            export(store, &image, args.paths.get(2).ok_or_else(|| usage("export needs a path"))?)
        }
        "diff" => tell_changes(store, word(1, "the ID of a snapshot, or two images")?, args, out),
        "history" => say(out, &show::history(&store.image(word(1, "the reference of an image")?)?)),
        "df" => say(out, &show::usage(&space::usage(store)?, args.format.unwrap_or(Format::Table))),
        "gc" => {
            let gone = space::collect(store, &args.policy)?;
            gone.iter().try_for_each(|reference| say(out, &format!("{reference} removed\n")))
        }
        "unmount" => snapshot::remove_unused(store, word(1, "the ID of a snapshot")?),
        "verify" => verify(store, args.words.get(1).map(String::as_str), out),
        _ => {
            let entry = store.remove(word(1, "the reference of an image")?)?;
            say(out, &format!("{} removed\n", entry.reference))
        }
    }
}

fn parse(args: impl Iterator<Item = OsString>) -> std::result::Result<Args, lexopt::Error> {
    let mut parser = lexopt::Parser::from_args(args);
    let mut args = Args::default();
    while let Some(arg) = parser.next()? {
        let given = match arg {
            Long("store") => {
                args.store = Some(parser.value()?.into());
                continue;
            }
            Long("help") | Short('h') => {
                args.help = true;
                continue;
            }
            Long("name") => {
                args.name = Some(parser.value()?.string()?);
                "name"
            }
            Long("ref") => {
                args.reference = Some(parser.value()?.string()?);
                "ref"
            }
            Long("format") => {
                args.format = Some(parser.value()?.parse()?);
                "format"
            }
            Long("max-size") => {
                args.max_size = Some(parser.value()?.parse()?);
                "max-size"
            }
            Long("max-entries") => {
                args.max_entries = Some(parser.value()?.parse()?);
                "max-entries"
            }
            Long("snapshotter") => {
                args.snapshotter = Some(parser.value()?.parse()?);
                "snapshotter"
            }
            Long("read-only") => raise(&mut args.read_only, "read-only"),
            Long("rootless") => raise(&mut args.rootless, "rootless"),
            Value(value) => {
                args.words.push(value.to_string_lossy().into_owned());
                args.paths.push(value.into());
                continue;
            }
            Long(name) => {
                let name = name.to_owned();
                let known = match args.transfer.option(&name, &mut parser)? {
                    None => policy_option(&mut args.policy, &name, &mut parser)?,
                    known => known,
                };
                known.ok_or_else(|| Long(&name).unexpected())?
            }
            other => return Err(other.unexpected()),
        };
        args.given.push(given);
    }
    Ok(args)
}

/// Notes that the option `name` is given.
fn raise(flag: &mut bool, name: &'static str) -> &'static str {
    *flag = true;
    name
}

/// Takes the option `name` of `gc`, if it is one, and returns its name.
fn policy_option(
    policy: &mut Policy,
    name: &str,
    parser: &mut lexopt::Parser,
) -> std::result::Result<Option<&'static str>, lexopt::Error> {
    match name {
        "max-age" => {
            let days: u32 = parser.value()?.parse()?;
            policy.max_age = Some(Duration::from_secs(u64::from(days) * 24 * 3600));
            Ok(Some("max-age"))
        }
        "keep-size" => {
            policy.max_size = Some(parser.value()?.parse()?);
            Ok(Some("keep-size"))
        }
        _ => Ok(None),
    }
}

/// What differs between a snapshot and its image, or between two images.
fn tell_changes(store: &Store, first: &str, args: &Args, out: &mut Vec<u8>) -> Result<()> {
    let changes = match args.words.get(2) {
        None => diff::of_snapshot(store, first)?,
        Some(second) => diff::of_images(store, &store.image(first)?, &store.image(second)?)?,
    };
    changes.iter().try_for_each(|change| say(out, &format!("{change}\n")))
}

/// An ID made from an image's reference.
fn id_of(image: &Image) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') { c } else { '-' };
    let id: String = image.reference.chars().map(plain).take(200).collect();
    format!("image-{id}")
}

/// Digests blobs again. All that is wrong is said, a line each, and the error counts them.
fn verify(store: &Store, reference: Option<&str>, out: &mut Vec<u8>) -> Result<()> {
    let entries = match reference {
        Some(reference) => vec![store.entry(reference)?],
        None => store.entries()?,
    };
    let mut wrong = 0;
    for entry in &entries {
        let problems = match store.image(entry.descriptor.digest().as_ref()) {
            Ok(image) => store.verify(&image),
            Err(error) => vec![error],
        };
        for problem in &problems {
            say(out, &format!("{}: {problem}\n", entry.reference))?;
        }
        if problems.is_empty() {
            say(out, &format!("{}: ok\n", entry.reference))?;
        }
        wrong += problems.len();
    }
    if wrong == 0 {
        return Ok(());
    }
    let why = format!("{wrong} problems were found");
    Err(Error::new(Kind::Corrupt, why).hint("`repair` fetches it again; what was imported is imported again"))
}

pub(crate) fn usage(why: impl Into<String>) -> Error {
    Error::new(Kind::Usage, why).hint("see `coracle-image help`")
}

pub(crate) fn say(out: &mut Vec<u8>, text: &str) -> Result<()> {
    out.write_all(text.as_bytes()).map_err(|e| Error::new(Kind::System, e.to_string())).context(|| "printing")
}
