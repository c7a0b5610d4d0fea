//! The commands that talk to registries, and their options.

use std::path::PathBuf;
use std::time::Duration;

use coracle_image::platform::Platform;
use coracle_image::reference::Reference;
use coracle_image::registry::{self, Settings};
use coracle_image::store::Store;
use coracle_image::{Context, Result};
use lexopt::ValueExt;

use crate::cli::{Args, say};
use crate::progress::{self, Progress};

/// The options of all of them.
pub(crate) const OPTIONS: &[&str] =
    &["platform", "auth-file", "hosts-dir", "plain-http", "parallel", "timeout", "quiet", "json"];
/// Those of `pull`.
pub(crate) const PULL_OPTIONS: &[&str] = &[
    "platform",
    "auth-file",
    "hosts-dir",
    "plain-http",
    "parallel",
    "timeout",
    "quiet",
    "json",
    "no-unpack",
    "max-size",
    "max-entries",
    "snapshotter",
];

/// What is said of how to talk to registries.
#[derive(Default)]
pub(crate) struct Transfer {
    platform: Option<Platform>,
    auth_file: Option<PathBuf>,
    hosts: Option<PathBuf>,
    plain_http: Vec<String>,
    parallel: Option<usize>,
    timeout: Option<u64>,
    no_unpack: bool,
    progress: Progress,
}

impl Transfer {
    /// Takes the option `name`, if it is one of these, and returns its name.
    pub(crate) fn option(
        &mut self,
        name: &str,
        parser: &mut lexopt::Parser,
    ) -> std::result::Result<Option<&'static str>, lexopt::Error> {
        match name {
            "platform" => self.platform = Some(parser.value()?.parse()?),
            "auth-file" => self.auth_file = Some(parser.value()?.into()),
            "hosts-dir" => self.hosts = Some(parser.value()?.into()),
            "plain-http" => self.plain_http.push(parser.value()?.string()?),
            "parallel" => self.parallel = Some(parser.value()?.parse()?),
            "timeout" => self.timeout = Some(parser.value()?.parse()?),
            "quiet" => self.progress = Progress::Quiet,
            "json" => self.progress = Progress::Json,
            "no-unpack" => self.no_unpack = true,
            _ => return Ok(None),
        }
        Ok(PULL_OPTIONS.iter().find(|known| **known == name).copied())
    }

    fn settings(&self, args: &Args) -> Result<Settings> {
        let usual = Settings::default();
        let parallel = self.parallel.map(|n| n.clamp(1, 64));
        Ok(Settings {
            auth_files: self.auth_file.clone().map_or(usual.auth_files, |file| vec![file]),
            hosts: self.hosts.clone().map_or(usual.hosts, |dir| vec![dir]),
            plain_http: self.plain_http.clone(),
            platform: self.platform.clone().unwrap_or(usual.platform),
            parallel: parallel.unwrap_or(usual.parallel),
            per_host: parallel.unwrap_or(usual.per_host),
            patience: self.timeout.map_or(usual.patience, |s| Duration::from_secs(s.clamp(1, 3600))),
            unpack: !self.no_unpack,
            options: args.unpacking()?,
        })
    }
}

fn reference(text: &str) -> Result<Reference> {
    text.parse().context(|| "reading the reference")
}

pub(crate) fn pull(store: &Store, text: &str, args: &Args, out: &mut Vec<u8>) -> Result<()> {
    let transfer = args.transfer();
    let report = progress::report(transfer.progress);
    let pulled = registry::pull(store, &reference(text)?, &transfer.settings(args)?, &*report)?;
    drop(report);
    say(out, &format!("{} {}\n", pulled.entry.reference, pulled.entry.descriptor.digest()))
}

pub(crate) fn repair(store: &Store, name: &str, args: &Args, out: &mut Vec<u8>) -> Result<()> {
    let transfer = args.transfer();
    let report = progress::report(transfer.progress);
    let repaired = registry::repair(store, name, &transfer.settings(args)?, &*report)?;
    drop(report);
    say(out, &format!("{name}: {} bytes fetched, {} layers unpacked\n", repaired.fetched, repaired.unpacked))
}

pub(crate) fn push(
    store: &Store,
    from: &str,
    to: Option<&str>,
    args: &Args,
    out: &mut Vec<u8>,
) -> Result<()> {
    let image = store.image(from)?;
    let target = reference(to.unwrap_or(&image.reference))?;
    let transfer = args.transfer();
    let report = progress::report(transfer.progress);
    registry::push(store, &image, &target, &transfer.settings(args)?, &*report)?;
    drop(report);
    say(out, &format!("{target} {}\n", image.digest))
}

pub(crate) fn tags(repository: &str, args: &Args, out: &mut Vec<u8>) -> Result<()> {
    let tags = registry::tags(&reference(repository)?, &args.transfer().settings(args)?)?;
    tags.iter().try_for_each(|tag| say(out, &format!("{tag}\n")))
}

pub(crate) fn search(words: &str, args: &Args, out: &mut Vec<u8>) -> Result<()> {
    let found = registry::search(words, &args.transfer().settings(args)?)?;
    found.iter().try_for_each(|name| say(out, &format!("{name}\n")))
}
