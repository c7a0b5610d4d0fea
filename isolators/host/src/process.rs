//! The process of one or more plugins, seen from the runtime.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use coracle_isolator::{Error, Result};
use coracle_sys::file::{self, Resolve};
use coracle_sys::process::{self, Child, Exit};
use coracle_sys::{descriptor, event, identity, signal, socket};

use crate::config::Settings;
use crate::wire::{Asked, Broken, Channel, Reply};

/// The longest that a process whose socket has closed is waited for, to learn how it ended.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// The longest that a process that was killed is waited for.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// A process that plugins run in. It ends with this.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    channel: Channel,
    /// What it writes to its standard output and error.
    words: OwnedFd,
    /// The last of what came from there.
    said: Vec<u8>,
    has_ended: bool,
}

impl Process {
    /// Starts `program`, confined to what `granted` grants, and the limits of the cgroups whose directories are `cgroups`;
    /// unconfined without.
    pub(crate) fn start(
        program: &Path,
        granted: Option<&Settings>,
        cgroups: &[BorrowedFd<'_>],
    ) -> Result<Self> {
        let (ours, theirs) = socket::stream_pair().map_err(failed)?;
        let (words, their_words) = descriptor::pipe().map_err(failed)?;
        let nothing = file::open(file::CWD, "/dev/null", libc::O_RDONLY, 0, Resolve::Host).map_err(failed)?;
        let path = c_string(program.as_os_str().as_bytes())?;
        let args = arguments(&path, theirs.as_raw_fd(), granted, cgroups)?;
        // What it leaves running ends with the first process of a PID namespace.
        let own_pids = granted.is_some_and(|granted| granted.programs) && identity::caller() == 0;
        let child = process::spawn(if own_pids { libc::CLONE_NEWPID } else { 0 }, None, || {
            let prepared = descriptor::set_stream(nothing.as_fd(), 0)
                .and_then(|()| descriptor::set_stream(their_words.as_fd(), 1))
                .and_then(|()| descriptor::set_stream(their_words.as_fd(), 2))
                .and_then(|()| descriptor::keep_on_exec(theirs.as_raw_fd()))
                .and_then(|()| cgroups.iter().try_for_each(|dir| descriptor::keep_on_exec(dir.as_raw_fd())))
                // Signals of the caller's terminal are not for it.
                .and_then(|()| process::new_session())
                .and_then(|()| signal::reset_signals())
                .and_then(|()| process::die_with_parent(true));
            let failure = prepared.err().unwrap_or_else(|| process::execute(&path, &args, &[]));
            let _ = file::write_all(their_words.as_fd(), failure.to_string().as_bytes());
            127
        });
        Ok(Self {
            child: child.map_err(failed)?,
            channel: Channel::new(ours),
            words,
            said: Vec::new(),
            has_ended: false,
        })
    }

    /// Asks for a call; its answer is awaited with [`answer`](Self::answer).
    pub(crate) fn ask(&mut self, asked: &Asked<'_>, deadline: Duration) -> Result<()> {
        // A full pipe would refuse what the plugin writes.
        self.listen();
        self.channel.ask(asked, Some(Instant::now() + deadline)).map_err(|broken| self.end(broken, deadline))
    }

    /// The answer to what was asked for.
    ///
    /// # Errors
    /// Where there is none within `deadline`; the process is gone then.
    pub(crate) fn answer(&mut self, deadline: Duration) -> Result<Reply> {
        self.channel.reply(Some(Instant::now() + deadline)).map_err(|broken| self.end(broken, deadline))
    }

    /// Whether it is gone, or has given an answer that is none.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// The same, or it ended while nobody called it. One that is about to end is waited for: its descriptors go first.
    pub(crate) fn is_gone(&self) -> bool {
        let ended = event::readable(&[self.child.pidfd.as_fd()], Some(LAST_WORDS));
        self.has_ended || ended.is_ok_and(|ended| ended == [true])
    }

    /// Ends the process, and says why there was no answer.
    fn end(&mut self, broken: Broken, deadline: Duration) -> Error {
        let pidfd = self.child.pidfd.as_fd();
        let ended_itself = broken == Broken::Ended
            && event::readable(&[pidfd], Some(LAST_WORDS)).is_ok_and(|ready| ready == [true]);
        let exit = self.kill();
        let why = match (broken, exit) {
            (Broken::Ended, Some(exit)) if ended_itself => format!("its process {}", told(exit)),
            (Broken::Ended, _) => {
                "it closed its connection to the runtime; its process was killed".to_owned()
            }
            (Broken::Late, _) => {
                format!("no answer within {} s; its process was killed", deadline.as_secs_f64())
            }
            (Broken::Failed(error), _) => return failed(error),
            (Broken::Garbled(what), _) => {
                format!("what came from its process is no answer ({what}); it was killed")
            }
        };
        let words = self.last_words();
        Error::new(words.map_or_else(|| why.clone(), |words| format!("{why}, saying {words:?}")))
    }

    /// Kills the process and what it has made in a PID namespace of its own, and waits for its end. One that waits for the
    /// kernel, as for a file server that does not answer, dies when it goes on: for that nobody waits.
    fn kill(&mut self) -> Option<Exit> {
        if self.has_ended {
            return None;
        }
        self.has_ended = true;
        let pidfd = self.child.pidfd.as_fd();
        self.child.kill();
        let ended = event::readable(&[pidfd], Some(ENDS_WITHIN)).is_ok_and(|ready| ready == [true]);
        ended.then(|| process::wait(pidfd).ok()).flatten()
    }

    /// Takes what it has written, of which the end is kept; a pipe's length at most, so that who writes on keeps nobody
    /// here.
    fn listen(&mut self) {
        let mut chunk = [0; 4096];
        for _ in 0..16 {
            let Ok(count @ 1..) = file::read_some(self.words.as_fd(), &mut chunk) else { return };
            self.said.extend_from_slice(&chunk[..count]);
            self.said.drain(..self.said.len().saturating_sub(chunk.len()));
        }
    }

    /// The last line that it wrote.
    fn last_words(&mut self) -> Option<String> {
        self.listen();
        let text = String::from_utf8_lossy(&self.said);
        let line = text.trim().lines().next_back()?.trim();
        (!line.is_empty()).then(|| line.chars().take(MOST_WORDS).collect())
    }
}

/// How much of its last words is told, in characters.
const MOST_WORDS: usize = 300;

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn arguments(
    program: &CString,
    socket: i32,
    granted: Option<&Settings>,
    cgroups: &[BorrowedFd<'_>],
) -> Result<Vec<CString>> {
    let mut args = vec![program.clone(), c_string(b"--socket")?, c_string(socket.to_string().as_bytes())?];
    let Some(granted) = granted else {
        args.push(c_string(b"--unconfined")?);
        return Ok(args);
    };
    let capabilities = granted.capabilities()?;
    if capabilities != 0 {
        args.extend([c_string(b"--capabilities")?, c_string(capabilities.to_string().as_bytes())?]);
    }
    for path in &granted.writable {
        args.extend([c_string(b"--writable")?, c_string(path.as_os_str().as_bytes())?]);
    }
    for dir in cgroups {
        args.extend([c_string(b"--cgroup")?, c_string(dir.as_raw_fd().to_string().as_bytes())?]);
    }
    for (is_granted, option) in
        [(granted.programs, b"--programs".as_slice()), (granted.sockets, b"--sockets")]
    {
        args.extend(is_granted.then(|| c_string(option)).transpose()?);
    }
    Ok(args)
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::new("a path holds a NUL byte"))
}

fn told(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("ended with status {code} in the middle of the call"),
        Exit::Signal(signal) => {
            let name = process::signal_name(signal);
            format!("was killed by {name} in the middle of the call")
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "a mapping of errors")]
pub(crate) fn failed(error: coracle_sys::Error) -> Error {
    Error::failed(error.call(), error.errno())
}
