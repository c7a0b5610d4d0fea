//! All that the runtime and the process of a plugin ever say to each other.
//!
//! ```text
//! runtime                          coracle-isolator-host
//!    | --- OPEN, texts, the file ----> |   load it, check its table, configure it
//!    | <-- what it is, or why not ---- |
//!    | --- a call, texts, handles ---> |   as often as there are calls
//!    | <-- its document, or why not -- |
//!    |  (the socket closes: end)       |
//! ```
//!
//! A message is a header of five numbers, little-endian, then its texts; open files go with its first byte. Neither side
//! believes the other: what a header announces has a limit, and is taken apart only when it is whole.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use coracle_sys::{Errno, event, socket};

/// The number of the request that opens a plugin; all others are numbers of calls.
pub const OPEN: u32 = u32::MAX;

/// How many bytes of texts a request has at most: a configuration has 16 MiB.
const MOST_REQUEST: u32 = 64 << 20;

/// How many bytes a call may return, for either its document or the reason of its failure.
pub const MOST_RETURNED: usize = 4 << 20;

const HEADER: usize = 20;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// The other side is gone.
    Ended,
    /// The deadline has passed.
    Late,
    /// A system call failed.
    Failed(coracle_sys::Error),
    /// What came is no message, for this reason.
    Garbled(String),
}

/// One end of the conversation.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// What the runtime asks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked<'a> {
    /// Which of the plugins of the process.
    pub plugin: u32,
    /// Which call.
    pub call: u32,
    /// The version of cgroups of the container's handles.
    pub cgroup_version: u32,
    /// With [`OPEN`] the options, and the directory of the containers' states. Else the document, and with handles the container's ID, its configuration, and the controllers of each cgroup.
    pub texts: &'a [&'a str],
    /// With [`OPEN`] the file. With handles the pidfd, where there is one, and the directory of each cgroup.
    pub fds: &'a [BorrowedFd<'a>],
}

/// The same, as it arrives.
#[derive(Debug)]
pub struct Request {
    /// Which of the plugins of the process.
    pub plugin: u32,
    /// Which call.
    pub call: u32,
    /// The version of cgroups of the container's handles.
    pub cgroup_version: u32,
    /// The texts of [`Asked::texts`], each with its NUL.
    texts: Vec<u8>,
    /// The files of [`Asked::fds`].
    pub fds: Vec<OwnedFd>,
}

/// What comes of it.
#[derive(Debug, Default)]
pub struct Reply {
    /// Whether the call failed.
    pub failed: bool,
    /// Its errno, 0 for none.
    pub errno: i32,
    /// The document that it returned, or why it failed.
    pub text: Vec<u8>,
    /// The descriptor that it returned.
    pub fd: Option<OwnedFd>,
}

impl Reply {
    /// A call that failed for this reason, without an errno.
    pub fn failed(why: &str) -> Self {
        Self { failed: true, text: why.as_bytes().to_vec(), ..Self::default() }
    }
}

impl Request {
    /// The texts, in their order.
    pub fn texts(&self) -> Vec<&CStr> {
        let texts = self.texts.split_inclusive(|byte| *byte == 0);
        texts.filter_map(|text| CStr::from_bytes_with_nul(text).ok()).collect()
    }
}

/// What comes from a plugin for people, without what a terminal could take for commands, and on one line.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl Channel {
    /// The end `socket` of a stream.
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Asks for a call.
    ///
    /// # Errors
    /// `Garbled` where a text holds a NUL byte.
    pub fn ask(&self, asked: &Asked<'_>, until: Option<Instant>) -> Result<(), Broken> {
        let mut texts = Vec::with_capacity(asked.texts.iter().map(|text| text.len() + 1).sum());
        for text in asked.texts {
            if text.contains('\0') {
                return Err(Broken::Garbled("a text holds a NUL byte".to_owned()));
            }
            texts.extend_from_slice(text.as_bytes());
            texts.push(0);
        }
        let length = u32::try_from(texts.len()).unwrap_or(u32::MAX);
        let count = u32::try_from(asked.fds.len()).unwrap_or(u32::MAX);
        let header = [asked.plugin, asked.call, asked.cgroup_version, count, length];
        self.send(header, &texts, asked.fds, until)
    }

    /// The next request; `Ended` when there will be none.
    ///
    /// # Errors
    /// `Garbled` where what comes is none.
    pub fn request(&self) -> Result<Request, Broken> {
        let mut fds = Vec::new();
        let [plugin, call, cgroup_version, count, length] = self.header(&mut fds, None)?;
        let texts = self.receive(length, MOST_REQUEST, &mut fds, None)?;
        if fds.len() != count as usize || texts.last().is_some_and(|last| *last != 0) {
            return Err(Broken::Garbled("descriptors or texts are missing".to_owned()));
        }
        Ok(Request { plugin, call, cgroup_version, texts, fds })
    }

    /// Answers a request.
    ///
    /// # Errors
    /// Where the runtime is gone.
    pub fn answer(&self, reply: &Reply) -> Result<(), Broken> {
        let fds: Vec<BorrowedFd<'_>> = reply.fd.iter().map(AsFd::as_fd).collect();
        let length = u32::try_from(reply.text.len()).unwrap_or(u32::MAX);
        let header =
            [u32::from(reply.failed), reply.errno.cast_unsigned(), u32::from(!fds.is_empty()), 0, length];
        self.send(header, &reply.text, &fds, None)
    }

    /// The answer to what was asked.
    ///
    /// # Errors
    /// Where none comes, or it is none.
    pub fn reply(&self, until: Option<Instant>) -> Result<Reply, Broken> {
        let mut fds = Vec::new();
        let [failed, errno, has_fd, _, length] = self.header(&mut fds, until)?;
        let text = self.receive(length, MOST_RETURNED as u32, &mut fds, until)?;
        if failed > 1 || fds.len() != has_fd as usize || has_fd > 1 {
            return Err(Broken::Garbled("its header makes no sense".to_owned()));
        }
        Ok(Reply { failed: failed == 1, errno: errno.cast_signed(), text, fd: fds.pop() })
    }

    fn send(
        &self,
        header: [u32; 5],
        texts: &[u8],
        mut fds: &[BorrowedFd<'_>],
        until: Option<Instant>,
    ) -> Result<(), Broken> {
        let message = [header.map(u32::to_le_bytes).as_flattened(), texts].concat();
        let mut left = &message[..];
        while !left.is_empty() {
            match socket::send_some(self.0.as_fd(), left, fds) {
                Ok(sent) => {
                    left = &left[sent..];
                    fds = &[];
                }
                Err(e) => self.wait(e, until, event::writable)?,
            }
        }
        Ok(())
    }

    fn header(&self, fds: &mut Vec<OwnedFd>, until: Option<Instant>) -> Result<[u32; 5], Broken> {
        let bytes = self.receive(HEADER as u32, HEADER as u32, fds, until)?;
        let mut numbers = [0; 5];
        for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(4)) {
            *number = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Ok(numbers)
    }

    /// Exactly `length` bytes, and the descriptors that come with them.
    fn receive(
        &self,
        length: u32,
        most: u32,
        fds: &mut Vec<OwnedFd>,
        until: Option<Instant>,
    ) -> Result<Vec<u8>, Broken> {
        if length > most {
            return Err(Broken::Garbled(format!("{length} bytes are announced, and {most} taken at most")));
        }
        let mut bytes = vec![0; length as usize];
        let mut filled = 0;
        while filled < bytes.len() {
            match socket::receive_some(self.0.as_fd(), &mut bytes[filled..]) {
                Ok((0, _)) => return Err(Broken::Ended),
                Ok((count, more)) => {
                    filled += count;
                    fds.extend(more);
                    if fds.len() > socket::MOST_FDS {
                        return Err(Broken::Garbled("too many descriptors come".to_owned()));
                    }
                }
                Err(e) => {
                    self.wait(e, until, |fd, limit| event::readable(&[fd], limit).map(|ready| ready[0]))?;
                }
            }
        }
        Ok(bytes)
    }

    /// Waits until what failed with `error` for want of bytes or room can go on.
    fn wait(
        &self,
        error: coracle_sys::Error,
        until: Option<Instant>,
        wait: impl FnOnce(BorrowedFd<'_>, Option<std::time::Duration>) -> coracle_sys::Result<bool>,
    ) -> Result<(), Broken> {
        match error.errno() {
            Errno::EINTR => return Ok(()),
            Errno::EPIPE | Errno::ECONNRESET => return Err(Broken::Ended),
            Errno::EAGAIN => {}
            _ => return Err(Broken::Failed(error)),
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        match wait(self.0.as_fd(), left) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Broken::Late),
            Err(e) => Err(Broken::Failed(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn pair() -> (Channel, Channel) {
        let (one, other) = socket::stream_pair().unwrap();
        (Channel::new(one), Channel::new(other))
    }

    #[test]
    fn a_request_arrives_with_its_texts_and_files() {
        let (runtime, host) = pair();
        let null = coracle_sys::file::open_dir("/").unwrap();
        let asked = Asked { plugin: 1, call: 7, cgroup_version: 2, texts: &["", "{}"], fds: &[null.as_fd()] };
        runtime.ask(&asked, None).unwrap();
        let request = host.request().unwrap();
        assert_eq!((request.plugin, request.call, request.cgroup_version, request.fds.len()), (1, 7, 2, 1));
        assert_eq!(request.texts(), [c"", c"{}"]);
    }

    #[test]
    fn a_reply_arrives_with_its_descriptor() {
        let (runtime, host) = pair();
        let fd = coracle_sys::file::open_dir("/").ok();
        host.answer(&Reply { failed: true, errno: 2, text: b"why".to_vec(), fd }).unwrap();
        let reply = runtime.reply(None).unwrap();
        assert_eq!(
            (reply.failed, reply.errno, reply.text, reply.fd.is_some()),
            (true, 2, b"why".to_vec(), true)
        );
    }

    #[test]
    fn no_answer_is_late_and_a_closed_socket_the_end() {
        let (runtime, host) = pair();
        let soon = Some(Instant::now() + Duration::from_millis(5));
        assert_eq!(runtime.reply(soon).unwrap_err(), Broken::Late);
        drop(host);
        assert_eq!(runtime.reply(None).unwrap_err(), Broken::Ended);
        assert!(runtime.ask(&Asked::default(), None).is_err());
    }

    #[test]
    fn what_is_no_reply_is_refused_before_it_is_believed() {
        for header in [[0, 0, 0, 0, u32::MAX], [2, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 9, 0, 0]] {
            let (runtime, host) = pair();
            host.send(header, b"", &[], None).unwrap();
            assert!(matches!(runtime.reply(None), Err(Broken::Garbled(_))), "{header:?}");
        }
    }

    #[test]
    fn words_hold_nothing_that_a_terminal_obeys() {
        assert_eq!(plain("bad \x1b]0;x\x07\nné\u{9b}1\x7f"), "bad  ]0;x  né 1 ");
    }

    #[test]
    fn a_text_with_a_nul_byte_is_not_sent() {
        let (runtime, _host) = pair();
        let asked = Asked { texts: &["a\0b"], ..Asked::default() };
        assert!(matches!(runtime.ask(&asked, None), Err(Broken::Garbled(_))));
    }
}
