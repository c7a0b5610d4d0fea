//! A blob that comes: a file of the store that grows, and that others read meanwhile.
//!
//! It has the name of its digest below `partial`, and stays there when a transfer is cut or killed: the next one goes on
//! where it has ended. What came is not trusted: it is digested from the first byte on before it becomes a blob.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use coracle_sys::archive;
use coracle_sys::file::{self, Resolve};

use super::report::STOPPED;
use crate::digest::{Digest, Verified};
use crate::error::Result;
use crate::unpack::stream::Compression;

/// So many bytes are sent to the device together while others come.
const EARLY_SYNC: u64 = 8 << 20;

/// A blob of which some bytes are here.
pub(crate) struct Part {
    pub digest: Digest,
    pub size: u64,
    /// Whether some of it was here before.
    pub was_begun: bool,
    file: File,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    length: u64,
    /// Whether more will come, and if not, whether all has.
    end: Option<End>,
    /// Whether all of it was digested, and right.
    verified: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    Cut,
}

impl Part {
    /// Opens what has come of a blob until now, nothing at first.
    pub(crate) fn open(partial: BorrowedFd<'_>, digest: &Digest, size: u64) -> Result<Self> {
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_NOFOLLOW;
        let file = File::from(file::open(partial, digest.hex(), flags, 0o600, Resolve::BeneathNoLinks)?);
        let mut length = file::stat(file.as_fd())?.st_size.unsigned_abs();
        if length > size {
            file.set_len(0).map_err(|e| coracle_sys::Error::of_io("ftruncate()", &e))?;
            length = 0;
        }
        let end = (length == size).then_some(End::Whole);
        let state = Mutex::new(State { length, end, verified: false });
        let (digest, was_begun) = (digest.clone(), length > 0);
        Ok(Self { digest, size, was_begun, file, state, changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes have come.
    pub(crate) fn length(&self) -> u64 {
        self.lock().length
    }

    /// Appends bytes. Only one thread does so.
    pub(crate) fn append(&self, bytes: &[u8]) -> Result<()> {
        let at = self.length();
        self.file
            .write_all_at(bytes, at)
            .map_err(|e| coracle_sys::Error::of_io(format!("write({})", self.digest), &e))?;
        let end = at + bytes.len() as u64;
        if at / EARLY_SYNC != end / EARLY_SYNC {
            let from = at / EARLY_SYNC * EARLY_SYNC;
            archive::begin_sync(self.file.as_fd(), from, end - from)?;
        }
        self.lock().length = end;
        self.changed.notify_all();
        Ok(())
    }

    /// Nothing more will come.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.end = Some(if state.length == self.size { End::Whole } else { End::Cut });
        self.changed.notify_all();
    }

    /// Reads all of it, and waits for what has not come yet.
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader { part: self, at: 0 }
    }

    /// Digests all of it, where that has not been done.
    pub(crate) fn verify(&self) -> Result<()> {
        if !self.lock().verified {
            Verified::new(self.reader(), self.digest.clone(), self.size).finish()?;
            self.note_verified();
        }
        Ok(())
    }

    /// Notes that who has read all of it has digested it, and that it was right.
    pub(crate) fn note_verified(&self) {
        self.lock().verified = true;
    }

    /// The file.
    pub(crate) fn into_file(self) -> File {
        self.file
    }

    /// Waits for bytes behind `at`, and returns how many there are; none at the end.
    fn wait(&self, at: u64) -> io::Result<u64> {
        let state = self.lock();
        // The first bytes say how the blob is compressed: they are seen together.
        let enough = if at == 0 { Compression::START as u64 } else { at + 1 };
        let waiting = self.changed.wait_while(state, |s| s.length < enough && s.end.is_none());
        let state = waiting.unwrap_or_else(PoisonError::into_inner);
        if state.length <= at && state.end == Some(End::Cut) {
            return Err(io::Error::other(STOPPED));
        }
        Ok(state.length.saturating_sub(at))
    }
}

/// Reads a part while it grows.
pub(crate) struct Reader<'a> {
    part: &'a Part,
    at: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.part.wait(self.at)?).unwrap_or(usize::MAX).min(into.len());
        let n = self.part.file.read_at(&mut into[..most], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_comes_is_read_while_it_comes_and_kept_when_it_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let fd = file::open(file::CWD, dir.path(), libc::O_DIRECTORY, 0, Resolve::Host).unwrap();
        let (text, digest) = (b"0123456789", Digest::of(b"0123456789"));
        let part = Part::open(fd.as_fd(), &digest, 10).unwrap();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| part.verify());
            part.append(&text[..4]).unwrap();
            part.end();
            reader.join().unwrap().unwrap_err();
        });
        drop(part);
        let part = Part::open(fd.as_fd(), &digest, 10).unwrap();
        assert_eq!(part.length(), 4);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| part.verify());
            part.append(&text[4..]).unwrap();
            part.end();
            reader.join().unwrap().unwrap();
        });
        drop(part);
        let shorter = Part::open(fd.as_fd(), &digest, 9).unwrap();
        assert_eq!(shorter.length(), 0, "more than there can be is no beginning");
    }

    #[test]
    fn the_bytes_that_tell_how_it_is_compressed_are_seen_together() {
        let dir = tempfile::tempdir().unwrap();
        let fd = file::open(file::CWD, dir.path(), libc::O_DIRECTORY, 0, Resolve::Host).unwrap();
        let text = b"BZh91AY&SY and more";
        let part = Part::open(fd.as_fd(), &Digest::of(text), text.len() as u64).unwrap();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut start = [0; 64];
                let length = part.reader().read(&mut start).unwrap();
                Compression::of(&start[..length])
            });
            for piece in text.chunks(4) {
                part.append(piece).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
            part.end();
            assert_eq!(reader.join().unwrap(), Compression::Other("bzip2"));
        });
    }
}
