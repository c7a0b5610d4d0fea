//! `pod logs`: the files of a log, as the supervisor opens them.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use coracle_sys::{descriptor, event, file};
use serde_json::json;

use super::{connect, container};
use crate::cli::{Global, Logs};
use crate::error::Result;
use crate::pod::logs::{Stream, entry};
use crate::pod::varlink::client::Client;

/// How long to wait for more before the supervisor is asked for new files.
const AGAIN: Duration = Duration::from_millis(500);

/// Prints what a container wrote, each stream to the caller's own.
pub(super) fn logs(global: &Global, options: &Logs) -> Result<u8> {
    let path = container(global, &options.target)?;
    let mut client = connect(global, &options.target.pod)?;
    let (mut files, mut ended) = files(&mut client, &path)?;
    let mut printer = Printer { options, tail: options.tail, rest: Vec::new() };
    let text = files.iter().map(read_on).collect::<Result<Vec<_>>>()?.concat();
    if !printer.print(&text) || !options.follow {
        return Ok(0);
    }
    printer.tail = None;
    loop {
        let Some(current) = files.last() else { return Ok(0) };
        let text = read_on(current)?;
        let is_quiet = text.is_empty();
        if !printer.print(&text) || is_quiet && ended {
            return Ok(0);
        }
        if is_quiet {
            let changes = event::changes_of(current.as_fd())?;
            if event::readable(&[changes.as_fd()], Some(AGAIN))? == [false] {
                let current = descriptor::duplicate(current.as_fd())?;
                (files, ended) = follow(&mut client, &path, files)?;
                // What was written until the supervisor was asked, who may have begun another file meanwhile.
                if !printer.print(&read_on(&current)?) {
                    return Ok(0);
                }
            }
        }
    }
}

fn files(client: &mut Client, path: &str) -> Result<(Vec<OwnedFd>, bool)> {
    let (reply, files) = client.call("io.coracle.Pod.Logs", json!({ "container": path }))?;
    Ok((files, reply["ended"] == true))
}

/// The files after the one that is being read, which has first been read to its end; that one where there are none.
fn follow(client: &mut Client, path: &str, mut reading: Vec<OwnedFd>) -> Result<(Vec<OwnedFd>, bool)> {
    let (files, ended) = files(client, path)?;
    let identity = |fd: &OwnedFd| file::stat(fd.as_fd()).map(|stat| stat.st_ino).ok();
    let current = reading.last().and_then(identity);
    match files.iter().position(|found| identity(found) == current) {
        Some(index) if index + 1 < files.len() => {
            let next = files.into_iter().nth(index + 1);
            Ok((next.into_iter().collect(), false))
        }
        Some(_) => Ok((reading.drain(..).next_back().into_iter().collect(), ended)),
        // So many have been begun meanwhile that it is not kept any more.
        None => Ok((files.into_iter().take(1).collect(), false)),
    }
}

/// What the file holds beyond what was read of it.
fn read_on(file: &OwnedFd) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut chunk = [0; 64 << 10];
    loop {
        match file::read_some(file.as_fd(), &mut chunk)? {
            0 => return Ok(text),
            length => text.extend_from_slice(&chunk[..length]),
        }
    }
}

struct Printer<'o> {
    options: &'o Logs,
    /// How many of the lines that come at once are printed.
    tail: Option<usize>,
    /// A line that is not whole yet.
    rest: Vec<u8>,
}

impl Printer<'_> {
    /// Prints the lines that are whole now; whether anybody reads them.
    fn print(&mut self, text: &[u8]) -> bool {
        self.rest.extend_from_slice(text);
        let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let whole: Vec<u8> = self.rest.drain(..end).collect();
        let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
        let skipped = self.tail.map_or(0, |tail| lines.len().saturating_sub(tail));
        for entry in lines[skipped..].iter().filter_map(|line| entry(line)) {
            let time = if self.options.timestamps { format!("{} ", entry.time) } else { String::new() };
            let line = [time.as_bytes(), entry.text].concat();
            let written = match entry.stream {
                Stream::Stdout => std::io::stdout().lock().write_all(&line),
                Stream::Stderr => std::io::stderr().lock().write_all(&line),
            };
            if written.is_err() {
                return false;
            }
        }
        true
    }
}
