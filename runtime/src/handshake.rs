//! All that the runtime and the container's child ever say to each other.
//!
//! ```text
//!   runtime                       child
//!      | ----------- Go ----------> |   it is isolated: build the inside
//!      | <---- Ready | Failed ----- |
//!      | ---------- Exec ---------> |   become the user's program
//!      | <---- (end) | Failed ----- |   the socket closes on execve
//! ```
//!
//! A filter of system calls that asks an agent (`SCMP_ACT_NOTIFY`) has a descriptor, which exists only once the filter
//! is on, and must be the agent's before the program makes a call. Such a child says, in place of the end:
//!
//! ```text
//!      | <-------- Listener ------- |   the descriptor
//!      | ---------- Exec ---------> |   the agent has it
//!      | <---- (end) | Failed ----- |
//! ```
//!
//! A tree of the container itself whose owners are to be mapped exists only when the earlier mounts are made, and who maps
//! them must have rights over its file system, which a child in a user namespace has not. So while it builds it may say:
//!
//! ```text
//!      | <---------- Map ---------- |   the tree, detached; in the order of the mounts
//!      | ----------- Go ----------> |   its owners are mapped
//! ```
//!
//! A child that changes the mounts of a container that runs shows each in the same way, for its number to go on record.
//!
//! The words go over a socket pair that both are born with. Where `create` ends before `start` begins, the
//! second half goes over a connection that `start` makes to a socket in the container's state directory; the
//! words and their order are the same. Each side is a type for each moment, so a word out of order does not
//! compile; one that arrives out of order is an error.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use coracle_sys::{Errno, signal, socket};

use crate::error::{Code, Context, Error, Result};

const GO: u8 = b'G';
const READY: u8 = b'R';
const EXEC: u8 = b'E';
const LISTENER: u8 = b'L';
const MAP: u8 = b'M';
const FAILED: u8 = b'F';

/// The longest message, in bytes: a failure with all of its context, each text of it of at most
/// [`LONGEST_TEXT`] characters.
pub const LONGEST: usize = 64 << 10;

/// The longest text of a failure that is told, in characters.
pub const LONGEST_TEXT: usize = 1000;

/// After how long a child tries again to take a connection of `start`.
const ACCEPT_AGAIN: Duration = Duration::from_millis(10);

/// For how long the runtime just waits for a word of the child, before it looks for signals, too.
const SILENT: Duration = Duration::from_millis(100);

/// The name of the socket in a container's state directory on which a created child waits for `start`.
pub const DOOR: &str = "start.sock";

/// The two ends of a conversation.
///
/// # Errors
/// `EMFILE`.
pub fn begin() -> Result<(Cloned, Waiting)> {
    let (outside, inside) = socket::pair()?;
    socket::limit_waiting(outside.as_fd(), SILENT)?;
    Ok((Cloned { socket: outside }, Waiting { socket: inside }))
}

/// The runtime's side: the child exists and waits for Go.
#[derive(Debug)]
pub struct Cloned {
    socket: OwnedFd,
}

impl Cloned {
    /// Says Go and waits until the child is ready.
    ///
    /// # Errors
    /// What the child says went wrong, or that it died, or that a signal came which asks to end.
    pub fn go(self) -> Result<Ready> {
        self.go_with(|_| Err(out_of_order(MAP, "Ready")))
    }

    /// The same, where `map` maps the owners of each tree that the child asks it for.
    ///
    /// # Errors
    /// As [`Self::go`], or `map`.
    pub fn go_with(self, mut map: impl FnMut(OwnedFd) -> Result<()>) -> Result<Ready> {
        let said = match say(self.socket.as_fd(), GO) {
            Ok(()) => true,
            // A child that failed before Go has said so and closed its end: what it said is still to be heard.
            Err(error) if error.errno() == Some(Errno::EPIPE) => false,
            Err(error) => return Err(error),
        };
        loop {
            match hear_with(self.socket.as_fd())? {
                Some((READY, _)) if said => return Ok(Ready { socket: self.socket }),
                Some((READY, _)) => return Err(out_of_order(READY, "the end")),
                Some((MAP, Some(tree))) if said => map(tree)?,
                Some((other, _)) => return Err(out_of_order(other, "Ready")),
                None => {
                    return Err(Error::new(Code::System, "the container's process died before it was ready"));
                }
            }
            say(self.socket.as_fd(), GO)?;
        }
    }
}

/// The runtime's side: the child is ready to execute.
#[derive(Debug)]
pub struct Ready {
    socket: OwnedFd,
}

impl Ready {
    /// Takes the conversation up with a child that `create` left waiting.
    ///
    /// # Errors
    /// None that a kernel is known to give.
    pub fn resume(connection: OwnedFd) -> Result<Self> {
        socket::limit_waiting(connection.as_fd(), SILENT)?;
        Ok(Self { socket: connection })
    }

    /// Says Exec and waits until the user's program has taken the child's place. `deliver` gets the descriptor of
    /// the child's filter, where that asks an agent.
    ///
    /// # Errors
    /// What the child says went wrong, or `deliver`, or that a signal came which asks to end; then the child ends.
    pub fn exec(self, deliver: impl FnOnce(OwnedFd) -> Result<()>) -> Result<()> {
        let socket = self.socket.as_fd();
        say(socket, EXEC)?;
        let mut heard = hear_with(socket)?;
        if let Some((LISTENER, Some(listener))) = heard {
            deliver(listener)?;
            say(socket, EXEC)?;
            heard = hear_with(socket)?;
        }
        match heard {
            None => Ok(()),
            Some((other, _)) => Err(out_of_order(other, "the end")),
        }
    }
}

/// The child's side: it waits for Go.
#[derive(Debug)]
pub struct Waiting {
    socket: OwnedFd,
}

impl Waiting {
    /// Waits for Go. `None`: the runtime is gone, and the child should go too.
    ///
    /// # Errors
    /// A word out of order.
    pub fn wait(self) -> Result<Option<Building>> {
        Ok(expect(self.socket.as_fd(), GO)?.then_some(Building { socket: self.socket }))
    }

    /// The descriptor's number: what a child must not close.
    pub fn descriptor(&self) -> i32 {
        self.socket.as_raw_fd()
    }

    /// Says what went wrong before Go.
    pub fn failed(&self, error: &Error) {
        say_failed(self.socket.as_fd(), error);
    }
}

/// The child's side: it builds the inside of the container.
#[derive(Debug)]
pub struct Building {
    socket: OwnedFd,
}

impl Building {
    /// Has the runtime map the owners of `tree`, which is detached.
    ///
    /// # Errors
    /// `System` where it did not: then the launch has failed, and nobody hears of this.
    pub fn map(&self, tree: BorrowedFd<'_>) -> Result<()> {
        self.show(tree).context(|| "asking the runtime to map owners")
    }

    /// Shows the runtime a mount with the same word, for what else it does with it, and waits until it has.
    ///
    /// # Errors
    /// As [`Self::map`].
    pub fn show(&self, mount: BorrowedFd<'_>) -> Result<()> {
        socket::send(self.socket.as_fd(), &[MAP], &[mount])?;
        if expect(self.socket.as_fd(), GO)? {
            return Ok(());
        }
        Err(Error::new(Code::System, "the runtime did not take it"))
    }

    /// Says what went wrong.
    pub fn failed(&self, error: &Error) {
        say_failed(self.socket.as_fd(), error);
    }

    /// Says Ready and waits for Exec: on the same socket, or on the listening socket `door`. `None`: the
    /// runtime is gone, and the child should go too.
    ///
    /// # Errors
    /// A word out of order.
    pub fn ready(self, door: Option<OwnedFd>) -> Result<Option<Executing>> {
        say(self.socket.as_fd(), READY)?;
        let Some(door) = door else {
            return Ok(expect(self.socket.as_fd(), EXEC)?.then_some(Executing { socket: self.socket }));
        };
        drop(self.socket);
        loop {
            let Ok(connection) = socket::accept(door.as_fd()) else {
                std::thread::sleep(ACCEPT_AGAIN); // the machine lacks what it takes (accept(2)), for now
                continue;
            };
            // A `start` that was killed before it said Exec leaves the door open for the next one.
            if let Ok(true) = expect(connection.as_fd(), EXEC) {
                return Ok(Some(Executing { socket: connection }));
            }
        }
    }
}

/// The child's side: it becomes the user's program; its socket closes by itself on execve.
#[derive(Debug)]
pub struct Executing {
    socket: OwnedFd,
}

impl Executing {
    /// Says what went wrong.
    pub fn failed(&self, error: &Error) {
        say_failed(self.socket.as_fd(), error);
    }

    /// A second end of the same socket, for the thread that hands a filter's descriptor over.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn twin(&self) -> Result<Self> {
        let socket = self.socket.try_clone();
        socket.map(|socket| Self { socket }).map_err(Error::system)
    }

    /// Hands the descriptor of the filter over and waits until the agent has it; false where it will not get it.
    pub fn hand_over(&self, listener: OwnedFd) -> bool {
        let socket = self.socket.as_fd();
        let said = socket::send(socket, &[LISTENER], &[listener.as_fd()]);
        drop(listener);
        said.is_ok() && matches!(hear(socket), Ok(Some(EXEC)))
    }
}

fn say(socket: BorrowedFd<'_>, word: u8) -> Result<()> {
    socket::send(socket, &[word], &[]).context(|| "talking to the container's first process")
}

/// Whether the runtime says `word`; false: it is gone. A child that did not hear it says so, as one that just ends
/// looks like one that has become the program.
fn expect(socket: BorrowedFd<'_>, word: u8) -> Result<bool> {
    let error = match hear(socket) {
        Ok(Some(heard)) if heard == word => return Ok(true),
        Ok(None) => return Ok(false),
        Ok(Some(other)) => out_of_order(other, if word == GO { "Go" } else { "Exec" }),
        Err(error) => error,
    };
    say_failed(socket, &error);
    Err(error)
}

/// Nobody may be left to hear it; then there is nobody to tell.
fn say_failed(socket: BorrowedFd<'_>, error: &Error) {
    let mut message = vec![FAILED];
    message.extend(serde_json::to_vec(&error.clone().cut(LONGEST_TEXT)).unwrap_or_default());
    let _ = socket::send(socket, &message, &[]);
}

/// The next word; the failure that the other side tells of; or `None` at the end.
fn hear(socket: BorrowedFd<'_>) -> Result<Option<u8>> {
    Ok(hear_with(socket)?.map(|(word, _)| word))
}

/// The same, with the descriptor that comes with the word. Whatever keeps the child silent, a hook that runs in there, a source
/// that does not answer, or who stops it, is not to keep a command that is asked to end.
fn hear_with(socket: BorrowedFd<'_>) -> Result<Option<(u8, Option<OwnedFd>)>> {
    let received = loop {
        match socket::receive(socket, LONGEST) {
            Err(e) if e.errno() == Errno::EAGAIN => {}
            received => break received?,
        }
        if let Some(signal) = signal::wait_for(socket)? {
            return Err(Error::interrupted(signal)).context(|| "waiting for the container's process");
        }
    };
    let Some((message, fd)) = received else { return Ok(None) };
    match message.as_slice() {
        [FAILED, told @ ..] => Err(serde_json::from_slice(told).unwrap_or_else(|_| {
            Error::new(Code::System, format!("the container said: {}", String::from_utf8_lossy(told)))
        })),
        [word] => Ok(Some((*word, fd))),
        _ => Err(out_of_order(0, "one word")),
    }
}

fn out_of_order(heard: u8, expected: &str) -> Error {
    let heard = char::from(heard);
    Error::new(Code::System, format!("the conversation is out of order: {heard:?} instead of {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_but_go_is_refused_by_a_waiting_child() {
        for word in [READY, EXEC, b'?'] {
            let (outside, inside) = begin().unwrap();
            say(outside.socket.as_fd(), word).unwrap();
            let error = inside.wait().unwrap_err().to_string();
            assert!(error.contains("instead of Go"), "{error}");
        }
    }

    #[test]
    fn every_word_but_ready_is_refused_after_go() {
        for word in [GO, EXEC, b'?'] {
            let (outside, inside) = begin().unwrap();
            say(inside.socket.as_fd(), word).unwrap();
            let error = outside.go().unwrap_err().to_string();
            assert!(error.contains("instead of Ready"), "{error}");
        }
    }

    #[test]
    fn every_word_but_exec_is_refused_by_a_ready_child() {
        for word in [GO, READY, b'?'] {
            let (outside, inside) = begin().unwrap();
            say(outside.socket.as_fd(), GO).unwrap();
            say(outside.socket.as_fd(), word).unwrap();
            let building = inside.wait().unwrap().unwrap();
            assert!(building.ready(None).unwrap_err().to_string().contains("instead of Exec"));
        }
    }

    #[test]
    fn a_child_that_did_not_hear_its_word_says_so() {
        let (outside, inside) = begin().unwrap();
        say(outside.socket.as_fd(), GO).unwrap();
        let building = inside.wait().unwrap().unwrap();
        say(outside.socket.as_fd(), b'?').unwrap();
        assert!(building.ready(None).is_err());
        assert_eq!(hear(outside.socket.as_fd()).unwrap(), Some(READY));
        let heard = hear(outside.socket.as_fd()).unwrap_err().to_string();
        assert!(heard.contains("instead of Exec"), "{heard}");
    }

    #[test]
    fn the_descriptor_of_a_filter_is_delivered_before_the_talk_goes_on() {
        let stdin = std::io::stdin();
        for agent in [Ok(()), Err(Error::new(Code::System, "no agent"))] {
            let (outside, inside) = begin().unwrap();
            socket::send(inside.socket.as_fd(), &[LISTENER], &[stdin.as_fd()]).unwrap();
            say_failed(inside.socket.as_fd(), &Error::new(Code::System, "said later"));
            let wanted = if agent.is_ok() { "said later" } else { "no agent" };
            let error = Ready { socket: outside.socket }.exec(|_| agent).unwrap_err();
            assert_eq!(error.to_string(), wanted);
        }
    }

    #[test]
    fn a_tree_is_mapped_before_its_child_goes_on() {
        let (outside, inside) = begin().unwrap();
        socket::send(inside.socket.as_fd(), &[MAP], &[std::io::stdin().as_fd()]).unwrap();
        say(inside.socket.as_fd(), READY).unwrap();
        let mut mapped = 0;
        let map = |_| {
            mapped += 1;
            Ok(())
        };
        let ready = outside.go_with(map).unwrap();
        drop(ready);
        let words: Vec<_> = (0..3).map(|_| hear(inside.socket.as_fd()).unwrap()).collect();
        assert_eq!((mapped, words), (1, vec![Some(GO), Some(GO), None]));
    }

    #[test]
    fn a_child_whose_tree_could_not_be_mapped_goes_no_further() {
        let (outside, inside) = begin().unwrap();
        say(outside.socket.as_fd(), GO).unwrap();
        let building = inside.wait().unwrap().unwrap();
        drop(outside);
        assert!(building.map(std::io::stdin().as_fd()).is_err());
    }

    #[test]
    fn a_child_whose_filter_has_no_agent_hears_so() {
        let listener = || std::io::stdin().as_fd().try_clone_to_owned().unwrap();
        let (outside, inside) = begin().unwrap();
        let executing = Executing { socket: inside.socket };
        say(outside.socket.as_fd(), EXEC).unwrap();
        assert!(executing.twin().unwrap().hand_over(listener()));
        drop(outside);
        assert!(!executing.hand_over(listener()));
    }

    #[test]
    fn a_runtime_that_is_gone_ends_the_child() {
        let (outside, inside) = begin().unwrap();
        drop(outside);
        assert!(inside.wait().unwrap().is_none());
    }

    #[test]
    fn a_failure_inside_is_told_outside_in_the_same_words() {
        let (outside, inside) = begin().unwrap();
        let error = Error::new(Code::ProgramNotFound, "executable file not found in $PATH");
        inside.failed(&error);
        let heard = outside.go().unwrap_err();
        assert_eq!(heard.to_string(), error.to_string());
        assert_eq!(heard.code(), Code::ProgramNotFound);
    }

    #[test]
    fn a_failure_of_any_length_is_told() {
        let (outside, inside) = begin().unwrap();
        inside.failed(&Error::new(Code::ProgramNotFound, "\u{1}é".repeat(100_000)).hint("x".repeat(100_000)));
        let heard = outside.go().unwrap_err();
        assert_eq!(heard.code(), Code::ProgramNotFound);
        assert!(heard.to_string().chars().count() < 2100, "{}", heard.to_string().len());
    }

    #[test]
    fn a_child_that_dies_is_an_error() {
        let (outside, inside) = begin().unwrap();
        drop(inside);
        // The socket's end is seen either when saying Go or when waiting for Ready.
        assert!(outside.go().is_err());
    }
}
