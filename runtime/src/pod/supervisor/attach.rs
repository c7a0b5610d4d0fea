//! Who is attached to a container: any number of readers, each of which gets every byte and first the tail of what was
//! written before, and one writer. What is not taken at once is kept up to a limit, beyond which the container waits: a
//! slow reader is waited for, one that takes nothing for long is let go, one that is gone keeps nobody waiting.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use coracle_sys::{Errno, file, socket};
use nix::poll::PollFlags;

use crate::error::{Code, Error, Result};
use crate::pod::logs::Stream;

/// How much of what was written a late reader gets, in bytes of each stream.
const TAIL: usize = 8 << 10;

/// How much is kept for a reader before the container waits for it, in bytes.
const KEPT: usize = 64 << 10;

/// How long a reader may take nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who is attached to a container.
#[derive(Debug, Default)]
pub(super) struct Attached {
    tails: [VecDeque<u8>; 2],
    readers: Vec<Reader>,
    writer: Option<Writer>,
}

#[derive(Debug)]
struct Reader {
    stream: Stream,
    socket: OwnedFd,
    kept: VecDeque<u8>,
    /// When it last took something, or had nothing to take.
    content: Instant,
    /// Whether nothing more will come.
    ending: bool,
}

#[derive(Debug)]
struct Writer {
    socket: OwnedFd,
    kept: Vec<u8>,
    ended: bool,
}

impl Reader {
    /// Whether it gets what comes on `stream`: one whose container has ended has nothing to do with the next.
    fn hears(&self, stream: Stream) -> bool {
        self.stream == stream && !self.ending
    }

    /// Gives it what it takes; false where it is gone.
    fn give(&mut self) -> bool {
        loop {
            // Sending nothing asks whether it is there (`unix_stream_sendmsg`).
            match socket::send_some(self.socket.as_fd(), self.kept.as_slices().0, &[]) {
                Ok(_) if self.kept.is_empty() => break,
                Ok(taken) => {
                    self.kept.drain(..taken);
                    self.content = Instant::now();
                }
                Err(e) if e.errno() == Errno::EINTR => {}
                Err(e) => return e.errno() == Errno::EAGAIN,
            }
        }
        self.content = Instant::now();
        !self.ending
    }
}

impl Attached {
    /// Whether what comes on `stream` is to wait for a reader.
    pub(super) fn is_full(&self, stream: Stream) -> bool {
        self.readers.iter().any(|reader| reader.hears(stream) && reader.kept.len() >= KEPT)
    }

    /// Gives `bytes` to the readers of `stream`.
    pub(super) fn take(&mut self, stream: Stream, bytes: &[u8]) {
        let tail = &mut self.tails[stream as usize];
        tail.extend(bytes);
        tail.drain(..tail.len().saturating_sub(TAIL));
        self.readers.retain_mut(|reader| {
            if !reader.hears(stream) {
                return true;
            }
            reader.kept.extend(bytes);
            reader.give()
        });
    }

    /// A reader of `stream`: its end of a socket. With `tail`, it first gets the tail of what was written before.
    ///
    /// # Errors
    /// `EMFILE`.
    pub(super) fn read(&mut self, stream: Stream, tail: bool) -> Result<OwnedFd> {
        let (ours, theirs) = socket::stream_pair()?;
        let kept = if tail { self.tails[stream as usize].clone() } else { VecDeque::new() };
        let mut reader = Reader { stream, socket: ours, kept, content: Instant::now(), ending: false };
        if reader.give() {
            self.readers.push(reader);
        }
        Ok(theirs)
    }

    /// The writer's end of a socket.
    ///
    /// # Errors
    /// `IllegalState` where there is one.
    pub(super) fn write(&mut self) -> Result<OwnedFd> {
        if self.writer.is_some() {
            let why = "somebody is attached to the container's standard input";
            return Err(Error::new(Code::IllegalState, why).hint("attach without --stdin"));
        }
        let (ours, theirs) = socket::stream_pair()?;
        self.writer = Some(Writer { socket: ours, kept: Vec::new(), ended: false });
        Ok(theirs)
    }

    /// Nothing more will come: readers go when they have taken what is kept for them.
    pub(super) fn end(&mut self) {
        self.writer = None;
        self.readers.retain_mut(|reader| {
            reader.ending = true;
            reader.give()
        });
    }

    /// The readers, and what to wait for: that one takes what is kept for it, or is gone, which poll(2) tells unasked.
    pub(super) fn readers(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.readers.iter().map(|reader| {
            let takes = if reader.kept.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            (reader.socket.as_fd(), takes)
        })
    }

    /// Gives all readers what they take, and lets those go that are gone or took nothing for long.
    pub(super) fn give(&mut self) {
        self.readers.retain_mut(|reader| reader.give() && reader.content.elapsed() < PATIENCE);
    }

    /// When a reader will have taken nothing for too long.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let stalled = self.readers.iter().filter(|reader| !reader.kept.is_empty());
        stalled.map(|reader| reader.content + PATIENCE).min()
    }

    /// The writer's socket, where what it says can be taken.
    pub(super) fn speaker(&self) -> Option<BorrowedFd<'_>> {
        let writer = self.writer.as_ref()?;
        (writer.kept.is_empty() && !writer.ended).then(|| writer.socket.as_fd())
    }

    /// Whether something of the writer waits for the container.
    pub(super) fn owes_input(&self) -> bool {
        self.writer.as_ref().is_some_and(|writer| !writer.kept.is_empty())
    }

    /// Passes on what the writer says to `input`. True where the writer has ended and nothing is left of what it said.
    pub(super) fn speak(&mut self, input: Option<&OwnedFd>) -> bool {
        let Some(writer) = &mut self.writer else { return false };
        let mut buffer = [0; 16 << 10];
        if writer.kept.is_empty() && !writer.ended {
            match file::read_some(writer.socket.as_fd(), &mut buffer) {
                Ok(0) => writer.ended = true,
                Ok(length) => writer.kept.extend_from_slice(&buffer[..length]),
                Err(e) if matches!(e.errno(), Errno::EAGAIN | Errno::EINTR) => {}
                Err(_) => writer.ended = true,
            }
        }
        match input.map(|input| nix::unistd::write(input, &writer.kept)) {
            Some(Ok(taken)) => drop(writer.kept.drain(..taken)),
            Some(Err(Errno::EAGAIN | Errno::EINTR)) => {}
            // A container that does not read any more takes nothing, and nobody waits for it.
            Some(Err(_)) | None => writer.kept.clear(),
        }
        let done = writer.ended && writer.kept.is_empty();
        if done {
            self.writer = None;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::poll::PollFd;

    use super::*;

    fn received(socket: &OwnedFd) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok((length @ 1.., _)) = socket::receive_some(socket.as_fd(), &mut buffer) {
            all.extend_from_slice(&buffer[..length]);
        }
        all
    }

    #[test]
    fn a_late_reader_gets_the_tail_and_then_the_rest() {
        let mut attached = Attached::default();
        attached.take(Stream::Stdout, &vec![b'x'; TAIL]);
        attached.take(Stream::Stdout, b"tail");
        let reader = attached.read(Stream::Stdout, true).unwrap();
        attached.take(Stream::Stdout, b"-end");
        let all = received(&reader);
        assert_eq!(all.len(), TAIL + 4);
        assert!(all.ends_with(b"xtail-end"));
    }

    #[test]
    fn a_slow_reader_is_waited_for_and_one_that_is_gone_is_not() {
        let mut attached = Attached::default();
        let slow = attached.read(Stream::Stdout, false).unwrap();
        drop(attached.read(Stream::Stdout, false).unwrap());
        let mut sent = 0;
        while !attached.is_full(Stream::Stdout) {
            attached.take(Stream::Stdout, &[7; 4096]);
            sent += 4096;
        }
        assert_eq!(attached.readers.len(), 1);
        let mut all = 0;
        while attached.is_full(Stream::Stdout) || attached.deadline().is_some() {
            all += received(&slow).len();
            attached.give();
        }
        assert_eq!(all + received(&slow).len(), sent);
    }

    #[test]
    fn a_reader_that_takes_its_time_gets_nothing_of_the_next_run() {
        let mut attached = Attached::default();
        let slow = attached.read(Stream::Stdout, false).unwrap();
        let mut sent = 0;
        while !attached.is_full(Stream::Stdout) {
            attached.take(Stream::Stdout, &[7; 4096]);
            sent += 4096;
        }
        attached.end();
        assert!(!attached.is_full(Stream::Stdout));
        attached.take(Stream::Stdout, b"of the next");
        let mut all = 0;
        while !attached.readers.is_empty() {
            all += received(&slow).len();
            attached.give();
        }
        assert_eq!(all + received(&slow).len(), sent);
    }

    #[test]
    fn one_that_is_gone_is_let_go_though_nothing_is_written() {
        let mut attached = Attached::default();
        let there = attached.read(Stream::Stdout, false).unwrap();
        drop(attached.read(Stream::Stdout, false).unwrap());
        let mut polled: Vec<_> = attached.readers().map(|(fd, flags)| PollFd::new(fd, flags)).collect();
        assert_eq!(nix::poll::poll(&mut polled, 0u8).unwrap(), 1);
        attached.give();
        assert_eq!(attached.readers.len(), 1);
        // One that says nothing more itself goes on reading.
        nix::sys::socket::shutdown(there.as_raw_fd(), nix::sys::socket::Shutdown::Write).unwrap();
        let mut polled: Vec<_> = attached.readers().map(|(fd, flags)| PollFd::new(fd, flags)).collect();
        assert_eq!(nix::poll::poll(&mut polled, 0u8).unwrap(), 0);
    }

    #[test]
    fn one_writes_at_a_time() {
        let mut attached = Attached::default();
        let writer = attached.write().unwrap();
        assert_eq!(attached.write().unwrap_err().code(), Code::IllegalState);
        drop(writer);
        assert!(attached.speak(None));
        attached.write().unwrap();
    }
}
