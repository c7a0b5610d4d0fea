//! What a container wrote, kept in the log format of Kubernetes' CRI: `TIME STREAM F|P TEXT`, one entry a line, where `P`
//! says that the line goes on in the next entry. Nothing is held back: what comes without a line's end is written as
//! it is, and part of a line.
//!
//! `log` is written to; a log that has grown large enough becomes `log.1` when more comes after the end of a line, or at twice
//! the size, and so on. Where one file alone is kept, the last words are there until others come.
//! A disk that is full costs entries, which are counted, and nothing else: neither the container nor who is attached to it waits.

use std::os::fd::{AsFd, OwnedFd};

use coracle_sys::Errno;
use coracle_sys::file::{self, Resolve};
use nix::unistd::ftruncate;
use serde::{Deserialize, Serialize};

use super::document::MOST_LOGS;
use crate::error::Result;
use crate::time;

/// The file that is written to.
pub const FILE: &str = "log";

/// One of the standard streams that a container writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// The output.
    Stdout,
    /// The errors.
    Stderr,
}

impl Stream {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The log of a container.
#[derive(Debug)]
pub struct Log {
    dir: OwnedFd,
    file: OwnedFd,
    size: u64,
    largest: u64,
    keep: u32,
    /// The streams whose last entry was part of a line.
    open: [bool; 2],
    /// How many bytes of the container could not be written.
    pub lost: u64,
}

impl Log {
    /// Opens the log in `dir`, to go on with it: a file that has reached `largest` bytes makes room for the next, and
    /// `keep` are kept.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub fn open(dir: OwnedFd, (largest, keep): (u64, u32)) -> Result<Self> {
        let file = open(&dir)?;
        let size = file::stat(file.as_fd())?.st_size.unsigned_abs();
        Ok(Self { dir, file, size, largest, keep: keep.max(1), open: [false; 2], lost: 0 })
    }

    /// Writes what came on `stream`.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) {
        self.make_room();
        let now = time::now_to_the_nanosecond();
        let mut text = Vec::with_capacity(bytes.len() + 64);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let whole = line.ends_with(b"\n");
            let tag = if whole { "F" } else { "P" };
            text.extend_from_slice(format!("{now} {} {tag} ", stream.name()).as_bytes());
            text.extend_from_slice(line);
            if !whole {
                text.push(b'\n');
            }
            self.open[stream as usize] = !whole;
        }
        if file::write_all(self.file.as_fd(), &text).is_err() {
            // No torn entries: what there was no room for is gone as a whole.
            let _ = ftruncate(self.file.as_fd(), self.size.cast_signed());
            self.lost += bytes.len() as u64;
            return;
        }
        self.size += text.len() as u64;
    }

    /// Begins a new file where this one is full.
    fn make_room(&mut self) {
        // A line that does not end, as a prompt does not, puts it off no longer than that.
        let is_between_lines = self.open == [false; 2];
        if self.size >= self.largest && (is_between_lines || self.size / 2 >= self.largest) {
            // Where that fails, the file grows on.
            let _ = self.rotate();
        }
    }

    /// Begins a new file.
    ///
    /// # Errors
    /// `ENOSPC`.
    pub fn rotate(&mut self) -> Result<()> {
        for number in (0..self.keep).rev() {
            let name = name(number);
            let moved = if number + 1 == self.keep {
                file::unlink(self.dir.as_fd(), &name)
            } else {
                file::rename(self.dir.as_fd(), &name, self.dir.as_fd(), self::name(number + 1))
            };
            match moved {
                Err(e) if e.errno() != Errno::ENOENT => return Err(e.into()),
                _ => {}
            }
        }
        self.file = open(&self.dir)?;
        self.size = 0;
        Ok(())
    }
}

fn name(number: u32) -> String {
    if number == 0 { FILE.to_owned() } else { format!("{FILE}.{number}") }
}

fn open(dir: &OwnedFd) -> coracle_sys::Result<OwnedFd> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND | libc::O_NOFOLLOW;
    file::open(dir.as_fd(), FILE, flags, 0o640, Resolve::BeneathNoLinks)
}

/// The files of the log in `dir` that are there, the oldest first, open to be read.
///
/// # Errors
/// Whatever opening says but that there is none.
pub fn files(dir: &OwnedFd) -> Result<Vec<OwnedFd>> {
    let mut files = Vec::new();
    for number in 0..MOST_LOGS {
        match file::open(dir.as_fd(), name(number), libc::O_RDONLY, 0, Resolve::BeneathNoLinks) {
            Err(e) if e.errno() == Errno::ENOENT => break,
            opened => files.push(opened?),
        }
    }
    files.reverse();
    Ok(files)
}

/// An entry of a log.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry<'t> {
    /// When it was written.
    pub time: &'t str,
    /// Where it came from.
    pub stream: Stream,
    /// What it says, with the line's end where it has it.
    pub text: &'t [u8],
}

/// The entry that the line `line`, with its end, holds.
pub fn entry(line: &[u8]) -> Option<Entry<'_>> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?;
    let stream = match fields.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let whole = fields.next()? == b"F";
    let text = fields.next()?;
    let text = if whole { text } else { text.strip_suffix(b"\n").unwrap_or(text) };
    Some(Entry { time, stream, text })
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests look at files on the host")]
mod tests {
    use super::*;

    fn log(limits: (u64, u32)) -> (tempfile::TempDir, Log) {
        let scratch = tempfile::tempdir().unwrap();
        let log = Log::open(file::open_dir(scratch.path()).unwrap(), limits).unwrap();
        (scratch, log)
    }

    fn texts(scratch: &tempfile::TempDir) -> Vec<u8> {
        let mut all = Vec::new();
        for file in files(&file::open_dir(scratch.path()).unwrap()).unwrap() {
            let text = file::read_all(file, 1 << 20).unwrap();
            for line in text.split_inclusive(|byte| *byte == b'\n') {
                all.extend_from_slice(entry(line).unwrap().text);
            }
        }
        all
    }

    #[test]
    fn every_byte_comes_back() {
        let (scratch, mut log) = log((1 << 20, 1));
        for part in [&b"one\ntw"[..], b"o\n", b"\n\xff\x00 x", b"end"] {
            log.write(Stream::Stdout, part);
        }
        assert_eq!(texts(&scratch), b"one\ntwo\n\n\xff\x00 xend");
    }

    #[test]
    fn logs_are_kept_by_size_and_number_and_cut_between_lines() {
        let (scratch, mut log) = log((100, 3));
        for number in 0..20 {
            log.write(Stream::Stdout, format!("line {number}").as_bytes());
            log.write(Stream::Stdout, b"!\n");
        }
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 3);
        let kept = texts(&scratch);
        assert!(
            kept.starts_with(b"line ") && kept.ends_with(b"line 19!\n"),
            "{}",
            String::from_utf8_lossy(&kept)
        );
    }

    #[test]
    fn the_last_words_are_there_though_one_file_alone_is_kept_and_they_have_filled_it() {
        let (scratch, mut log) = log((100, 1));
        for number in 0..20 {
            let line = format!("line {number:060}\n");
            log.write(Stream::Stdout, line.as_bytes());
            assert_eq!(texts(&scratch), line.as_bytes());
        }
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_prompt_on_one_stream_does_not_keep_the_log_of_the_other_whole() {
        let (scratch, mut log) = log((100, 3));
        log.write(Stream::Stderr, b"> ");
        for number in 0..20 {
            log.write(Stream::Stdout, format!("line {number}\n").as_bytes());
        }
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_line_without_an_end_goes_on_in_the_next_log() {
        let (scratch, mut log) = log((100, 3));
        for _ in 0..20 {
            log.write(Stream::Stdout, b"twenty bytes of text");
        }
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 3);
        assert!(texts(&scratch).ends_with(b"twenty bytes of text"));
    }

    #[test]
    fn an_entry_tells_its_stream() {
        let found = entry(b"2026-11-21T06:04:10.123456789Z stderr P half\n").unwrap();
        assert_eq!((found.stream, found.text), (Stream::Stderr, &b"half"[..]));
        assert_eq!(entry(b"nonsense\n"), None);
    }
}
