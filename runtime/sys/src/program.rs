//! Running a program of the host to its end: a hook, a network plugin, a tool.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Error, Result};
use crate::signal;
use crate::{memfd, process};

/// What came of a program.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to its standard output, where that is a pipe.
    pub stdout: Vec<u8>,
    /// The last that it wrote to its standard error, where that is a pipe: at most [`SAID`] bytes.
    pub stderr: Vec<u8>,
}

/// How a program's run came out.
#[derive(Debug)]
pub enum Outcome {
    /// It has ended.
    Ended(Ended),
    /// It took too long, and was killed with its process group.
    TooLate,
    /// A signal that asks the caller to end came first, and it was killed, too.
    Interrupted(i32),
}

/// How much of what a program says on its standard error is kept, in bytes: the end of it.
pub const SAID: usize = 4096;

/// The most that is taken of a program's standard output, in bytes.
const MOST: usize = 4 << 20;

/// How much a pipe holds, in bytes: one read takes all that a program that has ended has written (pipe(7)).
const PIPE: usize = 65536;

/// Runs the program of `command`, which reads `input`, in a process group of its own, and waits for its end, at most
/// for `limit`; then it is killed with all of its group, and also when a signal asks the caller to end
/// ([`signal::endings`]). It ends when the caller ends. What it leaves running may hold its streams open, and is not waited for.
///
/// # Errors
/// What keeps it from being started; `EFBIG` where it writes more than 4 MiB.
pub fn run(command: &mut Command, input: &[u8], limit: Option<Duration>) -> Result<Outcome> {
    // What it has started is killed, too: it is in its process group.
    run_until(command.process_group(0), (input, limit), |pid| process::kill(-pid, libc::SIGKILL))
}

/// The same in the caller's process group, so that the program may ask on the caller's terminal: in another one it would be
/// stopped there (tcsetpgrp(3)). What it has started is not killed with it.
///
/// # Errors
/// As [`run`].
pub fn run_with_terminal(command: &mut Command, input: &[u8], limit: Option<Duration>) -> Result<Outcome> {
    run_until(command, (input, limit), |pid| process::kill(pid, libc::SIGKILL))
}

fn run_until(
    command: &mut Command,
    (input, limit): (&[u8], Option<Duration>),
    kill: impl FnOnce(i32) -> Result<()>,
) -> Result<Outcome> {
    // A file, not a pipe: it holds an input of any size, and who does not read it keeps nobody waiting.
    command.stdin(Stdio::from(memfd::with_content("input", input)?));
    signal::bind_to_runtime(command);
    let name = format!("execve({:?})", command.get_program());
    let mut child = command.spawn().map_err(|e| Error::of_io(&name, &e))?;
    // A limit beyond what the clock can tell is none.
    let outcome = streams(&mut child, limit.and_then(|limit| Instant::now().checked_add(limit)));
    if !matches!(outcome, Ok(Stopped::Ended(_))) {
        kill(child.id().cast_signed())?;
    }
    let status = child.wait().map_err(|e| Error::of_io("wait4", &e))?;
    Ok(match outcome? {
        Stopped::Ended([stdout, stderr]) => Outcome::Ended(Ended { status, stdout, stderr }),
        Stopped::TooLate => Outcome::TooLate,
        Stopped::Interrupted(signal) => Outcome::Interrupted(signal),
    })
}

/// Why a program is waited for no more; what it wrote to its streams, where it has ended.
enum Stopped {
    Ended([Vec<u8>; 2]),
    TooLate,
    Interrupted(i32),
}

/// Reads both streams until `child` ends, or `deadline` or a signal comes.
fn streams(child: &mut Child, deadline: Option<Instant>) -> Result<Stopped> {
    let pidfd = process::pidfd(child.id().cast_signed())?;
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let mut wrote = [Vec::new(), Vec::new()];
    let signals = signal::endings()?;
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let (out, err) = (stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd));
        let told = signals.as_ref().map(AsFd::as_fd);
        let Some([ended, out, err, told]) = ready([Some(pidfd.as_fd()), out, err, told], left)? else {
            return Ok(Stopped::TooLate);
        };
        if out && take(stdout.as_mut(), &mut wrote[0]) == 0 {
            stdout = None;
        }
        if wrote[0].len() > MOST {
            return Err(Error::new("read(stdout)", Errno::EFBIG));
        }
        if err && take(stderr.as_mut(), &mut wrote[1]) == 0 {
            stderr = None;
        }
        let surplus = wrote[1].len().saturating_sub(SAID);
        wrote[1].drain(..surplus);
        if ended {
            return Ok(Stopped::Ended(wrote));
        }
        let signal =
            signals.as_ref().filter(|_| told).and_then(|signals| signals.read_signal().ok().flatten());
        if let Some(signal) = signal {
            return Ok(Stopped::Interrupted(signal.ssi_signo.cast_signed()));
        }
    }
}

/// Which of the descriptors have something to tell; `None` where none has within `left`.
fn ready(fds: [Option<BorrowedFd<'_>>; 4], left: Option<Duration>) -> Result<Option<[bool; 4]>> {
    let left = left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
    let mut polled: Vec<PollFd<'_>> =
        fds.iter().flatten().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    loop {
        match poll(&mut polled, left) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::new("poll()", errno)),
        }
    }
    let mut told = polled.iter().map(|fd| fd.any().unwrap_or(false));
    Ok(Some(fds.map(|fd| fd.is_some() && told.next().unwrap_or(false))))
}

/// Takes what a pipe holds; how much that was.
fn take(pipe: Option<&mut impl Read>, into: &mut Vec<u8>) -> usize {
    let mut chunk = [0; PIPE];
    let length = pipe.map_or(Ok(0), |pipe| pipe.read(&mut chunk)).unwrap_or(0);
    into.extend_from_slice(&chunk[..length]);
    length
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests start a shell")]
mod tests {
    use super::*;

    fn shell(script: &str, input: &str, limit: Option<Duration>) -> Result<Option<Ended>> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdout(Stdio::piped()).stderr(Stdio::piped());
        run(&mut command, input.as_bytes(), limit).map(|outcome| match outcome {
            Outcome::Ended(ended) => Some(ended),
            Outcome::TooLate | Outcome::Interrupted(_) => None,
        })
    }

    #[test]
    fn a_program_reads_its_input_and_is_heard_on_both_streams() {
        let ended = shell("cat; echo why >&2; exit 3", "document", None).unwrap().unwrap();
        assert_eq!((ended.stdout, ended.stderr), (b"document".to_vec(), b"why\n".to_vec()));
        assert_eq!(ended.status.code(), Some(3));
        let ended = shell("kill -9 $$", "", None).unwrap().unwrap();
        assert_eq!(ended.status.to_string(), "signal: 9 (SIGKILL)");
    }

    #[test]
    fn one_that_takes_too_long_is_killed_with_what_it_started() {
        let begun = Instant::now();
        let limit = Some(Duration::from_millis(100));
        assert!(shell("sleep 100 & sleep 100", "", limit).unwrap().is_none());
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn one_that_may_ask_on_the_terminal_is_in_the_callers_group_and_killed_alone() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "cut -d' ' -f5 /proc/$$/stat; exec sleep 100"]).stdout(Stdio::piped());
        let begun = Instant::now();
        let outcome = run_with_terminal(&mut command, b"", Some(Duration::from_millis(300))).unwrap();
        assert!(matches!(outcome, Outcome::TooLate) && begun.elapsed() < Duration::from_secs(5));
        command = Command::new("/bin/sh");
        command.args(["-c", "cut -d' ' -f5 /proc/$$/stat"]).stdout(Stdio::piped());
        let Outcome::Ended(ended) = run_with_terminal(&mut command, b"", None).unwrap() else { panic!() };
        let group = nix::unistd::getpgrp();
        assert_eq!(String::from_utf8_lossy(&ended.stdout), format!("{group}\n"));
    }

    #[test]
    fn a_limit_that_no_clock_can_tell_is_none() {
        let ended = shell("exit 3", "", Some(Duration::from_secs(i64::MAX as u64))).unwrap().unwrap();
        assert_eq!(ended.status.code(), Some(3));
    }

    #[test]
    fn one_that_never_stops_writing_is_stopped() {
        let error = shell("yes", "", None).unwrap_err();
        assert_eq!(error.errno(), Errno::EFBIG);
    }

    #[test]
    fn what_is_left_running_is_not_waited_for() {
        let begun = Instant::now();
        let ended = shell("sleep 5 & echo done", "", None).unwrap().unwrap();
        assert_eq!(ended.stdout, b"done\n");
        assert!(begun.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = run(&mut Command::new("/does/not/exist"), b"", None).unwrap_err();
        assert_eq!(error.to_string(), "execve(\"/does/not/exist\"): no such file or directory");
    }
}
