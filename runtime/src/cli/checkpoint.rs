//! `checkpoint` and `restore`.

use std::path::PathBuf;

use lexopt::prelude::*;

use super::Launch;
use super::launch::{is_shared, shared};
use super::words::{self, need_id, text, usage};
use crate::error::{Error, Result};

/// The options of `checkpoint`, and those of `restore` that it has in common with it.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The container.
    pub id: String,
    /// The directory of CRIU's image files.
    pub images: PathBuf,
    /// The directory of its logs; that of the images where none is named.
    pub work: Option<PathBuf>,
    /// The image files of an earlier `--pre-dump`, relative to the images.
    pub parent: Option<PathBuf>,
    /// Let the container run on.
    pub leave_running: bool,
    /// Take its memory only, and let it run on.
    pub pre_dump: bool,
    /// Options for CRIU, as it has them.
    pub passed: Vec<String>,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self {
            id: String::new(),
            images: "checkpoint".into(),
            work: None,
            parent: None,
            leave_running: false,
            pre_dump: false,
            passed: Vec::new(),
        }
    }
}

/// Options that CRIU has under the same name.
const FLAGS: [&str; 9] = [
    "tcp-established",
    "tcp-close",
    "tcp-skip-in-flight",
    "ext-unix-sk",
    "shell-job",
    "file-locks",
    "auto-dedup",
    "lazy-pages",
    "link-remap",
];

/// Options with a value, and CRIU's names for them.
const VALUES: [(&str, &str); 5] = [
    ("manage-cgroups-mode", "manage-cgroups"),
    ("empty-ns", "empty-ns"),
    ("status-fd", "status-fd"),
    ("lsm-profile", "lsm-profile"),
    ("lsm-mount-context", "lsm-mount-context"),
];

/// The options of `checkpoint`.
pub(super) fn checkpoint(parser: &mut lexopt::Parser) -> Result<Checkpoint> {
    let mut checkpoint = Checkpoint::default();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("parent-path") => checkpoint.parent = Some(parser.value()?.into()),
            Long("leave-running") => checkpoint.leave_running = words::switch(parser, "leave-running")?,
            Long("pre-dump") => checkpoint.pre_dump = words::switch(parser, "pre-dump")?,
            Long("page-server") => checkpoint.passed.extend(page_server(&text(parser)?)?),
            Long(name) if is_common(name) => common(name.to_owned().as_str(), parser, &mut checkpoint)?,
            Value(id) if checkpoint.id.is_empty() => checkpoint.id = words::id(id)?,
            other => return Err(other.unexpected().into()),
        }
    }
    need_id(&checkpoint.id, "checkpoint")?;
    Ok(checkpoint)
}

/// The options of `restore`.
pub(super) fn restore(parser: &mut lexopt::Parser) -> Result<(Launch, Checkpoint)> {
    let mut launch = Launch { bundle: ".".into(), ..Launch::default() };
    let mut from = Checkpoint::default();
    while let Some(arg) = parser.next()? {
        match arg {
            Short('b') | Long("bundle") => launch.bundle = parser.value()?.into(),
            Short('d') => launch.detach = true,
            Long("detach") => launch.detach = words::switch(parser, "detach")?,
            Short('n') => words::no_subreaper(parser)?,
            // The last two say how a process begins, which engines tell of each launch; this one goes on.
            Long(name @ ("no-subreaper" | "no-pivot" | "no-new-keyring")) => {
                let name = name.to_owned();
                words::switch(parser, &name)?;
            }
            Long(name @ ("console-socket" | "preserve-fds")) => return Err(not_restored(name)),
            Long(name) if is_shared(name) => shared(name.to_owned().as_str(), parser, &mut launch)?,
            Long(name) if is_common(name) => common(name.to_owned().as_str(), parser, &mut from)?,
            Value(id) if launch.id.is_empty() => launch.id = words::id(id)?,
            other => return Err(other.unexpected().into()),
        }
    }
    need_id(&launch.id, "restore")?;
    Ok((launch, from))
}

fn not_restored(option: &str) -> Error {
    let why = match option {
        "console-socket" => "a container with a terminal can't be restored",
        _ => "who is restored has the descriptors that it had",
    };
    usage(format!("restore has no option --{option}")).hint(why)
}

fn is_common(name: &str) -> bool {
    ["image-path", "work-path"].contains(&name)
        || FLAGS.contains(&name)
        || VALUES.iter().any(|(ours, _)| *ours == name)
}

fn common(name: &str, parser: &mut lexopt::Parser, options: &mut Checkpoint) -> Result<()> {
    match name {
        "image-path" => options.images = parser.value()?.into(),
        "work-path" => options.work = Some(parser.value()?.into()),
        _ => match VALUES.iter().find(|(ours, _)| *ours == name) {
            None if words::switch(parser, name)? => options.passed.push(format!("--{name}")),
            None => {}
            Some((_, theirs)) => {
                let value = text(parser)?;
                let value = if value == "network" { "net" } else { &value };
                options.passed.push(format!("--{theirs}={value}"));
            }
        },
    }
    Ok(())
}

fn page_server(text: &str) -> Result<[String; 3]> {
    let (address, port) = text.rsplit_once(':').ok_or_else(|| {
        usage(format!("--page-server {text:?} has no port")).hint("write it like 192.0.2.1:9876")
    })?;
    Ok(["--page-server".to_owned(), format!("--address={address}"), format!("--port={port}")])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_criu_s_is_passed_on_in_its_words() {
        let line = "--image-path /i --file-locks --manage-cgroups-mode full --empty-ns network --page-server h:1 web";
        let options = checkpoint(&mut lexopt::Parser::from_args(line.split(' '))).unwrap();
        let words =
            ["--file-locks", "--manage-cgroups=full", "--empty-ns=net", "--page-server", "--address=h"];
        assert_eq!(options.passed[..5], words);
        assert_eq!((options.images.as_path(), options.id.as_str()), ("/i".as_ref(), "web"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, words) in [
            ("--image-path /i", "checkpoint needs a container's ID"),
            ("--page-server h web", "--page-server \"h\" has no port"),
            ("--no-such web", "--no-such"),
        ] {
            let error = checkpoint(&mut lexopt::Parser::from_args(line.split(' '))).unwrap_err().to_string();
            assert!(error.contains(words), "{line}: {error}");
        }
    }
}
