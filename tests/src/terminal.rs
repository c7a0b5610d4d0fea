//! The other end of `--console-socket`: receives the master of a container's terminal.

use std::fs::File;
use std::io::{ErrorKind, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// A listening socket for terminals and other descriptors.
pub struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens in `directory`.
    ///
    /// # Panics
    /// When the socket can't be made.
    pub fn new(directory: &Path) -> Self {
        let path = directory.join("console.sock");
        let listener = UnixListener::bind(&path).expect("listen for a terminal");
        Self { listener, path }
    }

    /// The path to give to the runtime.
    pub fn path(&self) -> &str {
        self.path.to_str().expect("the tests' paths are UTF-8")
    }

    /// The terminal that the runtime sends.
    ///
    /// # Panics
    /// When none comes.
    pub fn receive(&self) -> Terminal {
        Terminal { master: File::from(self.receive_descriptor().1) }
    }

    /// What the runtime sends: a name, and a descriptor.
    ///
    /// # Panics
    /// When none comes.
    pub fn receive_descriptor(&self) -> (String, OwnedFd) {
        assert!(
            is_readable(&self.listener, Duration::from_secs(10)),
            "nobody connected to the console socket"
        );
        let (stream, _) = self.listener.accept().expect("accept on the console socket");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 4096];
        let mut parts = [IoSliceMut::new(&mut name)];
        let length = recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
            .expect("receive on the console socket")
            .bytes;
        let fd: Option<OwnedFd> = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let name = String::from_utf8_lossy(&name[..length]).into_owned();
        (name, fd.expect("a file descriptor with the message"))
    }
}

/// The master side of a container's terminal.
pub struct Terminal {
    master: File,
}

impl Terminal {
    /// Types a line.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn type_line(&mut self, line: &str) {
        self.master.write_all(format!("{line}\n").as_bytes()).expect("write to the terminal");
    }

    /// Reads until `words` have come, or the other side has closed.
    ///
    /// # Panics
    /// When they do not come within ten seconds.
    pub fn read_until(&mut self, words: &str) -> String {
        let end = Instant::now() + Duration::from_secs(10);
        let mut text = String::new();
        let mut buffer = [0; 4096];
        while !text.contains(words) && Instant::now() < end {
            if !is_readable(&self.master, Duration::from_millis(100)) {
                continue;
            }
            match self.master.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => text.push_str(&String::from_utf8_lossy(&buffer[..length])),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The last process closed the terminal: EIO (pty(7)).
                Err(_) => break,
            }
        }
        assert!(text.contains(words), "expected {words:?} on the terminal, got {text:?}");
        text
    }

    /// The number of rows and columns.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn size(&self) -> (u16, u16) {
        let size = rustix::termios::tcgetwinsize(&self.master).expect("ask for the terminal's size");
        (size.ws_row, size.ws_col)
    }
}

fn is_readable(fd: &impl std::os::fd::AsFd, wait: Duration) -> bool {
    let wait = Timespec::try_from(wait).expect("a short time");
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&wait)).is_ok_and(|ready| ready > 0)
}
