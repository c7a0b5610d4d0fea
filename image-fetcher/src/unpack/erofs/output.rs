//! The file that an image is written to, from its beginning to its end.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use coracle_sys::archive;

use super::format::BLOCK;
use crate::error::Result;

const BUFFER: usize = 1 << 20;
/// Pieces from this size on are written as they are.
const LARGE: usize = 64 << 10;
/// So many bytes are sent to the device while the next ones are written.
const EARLY_SYNC: u64 = 8 << 20;

pub(super) struct Output {
    file: File,
    buffer: Vec<u8>,
    /// Where the buffer's bytes belong.
    start: u64,
    synced: u64,
}

impl Output {
    /// Begins behind the first block.
    pub(super) fn new(file: File) -> Self {
        Self { file, buffer: Vec::with_capacity(BUFFER), start: BLOCK, synced: 0 }
    }

    /// Where the next byte goes.
    pub(super) fn position(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.buffer.len() + bytes.len() > BUFFER || bytes.len() >= LARGE {
            self.flush()?;
        }
        if bytes.len() < LARGE {
            self.buffer.extend(bytes);
            return Ok(());
        }
        self.write_at(bytes, self.start)?;
        self.start += bytes.len() as u64;
        Ok(())
    }

    /// Goes on at `position`, which is not before; what is between reads as zeros, and takes no space if it is much.
    pub(super) fn skip_to(&mut self, position: u64) -> Result<()> {
        let gap = position - self.position();
        if gap >= LARGE as u64 {
            self.flush()?;
            self.start = position;
            return Ok(());
        }
        self.write(&vec![0; gap as usize])
    }

    /// Goes on at the next block.
    pub(super) fn fill_block(&mut self) -> Result<()> {
        self.skip_to(self.position().next_multiple_of(BLOCK))
    }

    /// Ends the image here.
    pub(super) fn end(&mut self) -> Result<()> {
        self.flush()?;
        let failed = |e| coracle_sys::Error::of_io(format!("ftruncate({})", self.start), &e);
        Ok(self.file.set_len(self.start).map_err(failed)?)
    }

    /// Writes bytes at a place that is behind us.
    pub(super) fn write_at(&self, bytes: &[u8], position: u64) -> Result<()> {
        Ok(self.file.write_all_at(bytes, position).map_err(|e| coracle_sys::Error::of_io("pwrite()", &e))?)
    }

    fn flush(&mut self) -> Result<()> {
        self.write_at(&self.buffer, self.start)?;
        self.start += self.buffer.len() as u64;
        self.buffer.clear();
        if self.start - self.synced >= EARLY_SYNC {
            archive::begin_sync(self.file.as_fd(), self.synced, self.start - self.synced)?;
            self.synced = self.start;
        }
        Ok(())
    }
}
