//! A container as its supervisor sees it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use coracle_sys::{Errno, descriptor, file};
use serde_json::{Value, json};

use super::attach::Attached;
use super::health::Health;
use crate::error::{Error, Result};
use crate::pod::document::RestartPolicy;
use crate::pod::job::Job;
use crate::pod::launch::Streams;
use crate::pod::logs::{Log, Stream};
use crate::pod::plan;
use crate::pod::record::{Ended, Life};

/// A container that has run this long without an end is started again at once when it ends.
const CALM: Duration = Duration::from_secs(600);

/// How much can be in a pipe or a terminal that nobody has read: as much as a pipe may be made to take, in bytes.
const MOST_LEFT: usize = 1 << 20;

/// How long a terminal is left alone that nobody has open.
const HUNG_UP: Duration = Duration::from_millis(100);

/// How far a container is.
#[derive(Debug)]
pub(super) enum Phase {
    /// Its turn has not come.
    Waiting,
    /// It is started again at this moment.
    BackOff(Instant),
    /// Its image is being pulled.
    Pulling(Job),
    /// It is being launched.
    Launching(Job),
    /// It runs.
    Running(Running),
    /// It has ended so, or a former supervisor's launch of it was cut off before it ran; it waits for those below it.
    Ended(Option<Ended>),
    /// What is left of it after that is being removed.
    Removing(Job, Option<Ended>),
    /// It is over.
    Over,
}

/// A first process.
#[derive(Debug)]
pub(super) struct Running {
    /// Its PID.
    pub(super) pid: i32,
    /// Its descriptor.
    pub(super) pidfd: OwnedFd,
    /// When it was started, for people.
    pub(super) started: String,
    /// The same, to be reckoned with.
    pub(super) since: Instant,
    /// How it is being ended.
    pub(super) end: End,
    /// The signal by which it is asked to.
    pub(super) stop_signal: i32,
}

/// How a first process is being ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It is not.
    No,
    /// A hook runs before it is asked to, which it is at this moment.
    Hook(Instant),
    /// It was asked to, and is killed at this moment.
    Asked(Instant),
    /// It was killed.
    Killed,
}

impl End {
    /// When it is asked or killed.
    pub(super) fn deadline(self) -> Option<Instant> {
        match self {
            Self::Hook(at) | Self::Asked(at) => Some(at),
            Self::No | Self::Killed => None,
        }
    }
}

/// What the supervisor holds of a container's streams.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    /// What it writes.
    pub(super) outputs: Vec<(Stream, OwnedFd)>,
    /// What it reads, where the document keeps it open.
    pub(super) input: Option<OwnedFd>,
    /// Its terminal, which is its one output and its input.
    pub(super) terminal: bool,
    /// Until when that is not read: nobody had it open.
    pub(super) hung_up: Option<Instant>,
    /// Where what it writes is kept.
    pub(super) log: Option<Log>,
}

/// A container.
#[derive(Debug)]
pub(super) struct Member {
    /// What it is.
    pub(super) plan: plan::Member,
    /// How far it is.
    pub(super) phase: Phase,
    /// What outlives it.
    pub(super) life: Life,
    /// Its streams.
    pub(super) pipes: Pipes,
    /// Who is attached to them.
    pub(super) attached: Attached,
    /// What its probes say.
    pub(super) health: Health,
    /// Within which time it is to end, where the pod goes on without it.
    pub(super) doomed: Option<Duration>,
    /// Whether it is to be forgotten when it is over.
    pub(super) leaves: bool,
    /// For how long it last ran.
    pub(super) ran: Duration,
    /// Why it is ended, where that is not its own doing: `DeadlineExceeded`, `Unhealthy`, a word.
    pub(super) cause: Option<String>,
    /// How often its removal has failed since it ended.
    pub(super) left: u32,
    /// What its launch could not do.
    pub(super) warnings: Vec<String>,
    /// How often it ended without having run for long.
    pub(super) streak: u32,
    /// Whether its image was just pulled, and it is to be launched with that.
    pub(super) is_pulled: bool,
    /// How often its image could not be pulled since it last ran.
    pub(super) unpulled: u32,
    /// Why that was.
    pub(super) message: Option<String>,
    /// Why it could not be launched, for who asked for that.
    pub(super) failure: Option<Error>,
}

impl Member {
    /// A container whose turn has not come.
    pub(super) fn new(mut plan: plan::Member, life: Life) -> Self {
        if let Some(resources) = &life.resources {
            plan.resources = plan::resources(resources);
        }
        let health = Health::new(&plan.container);
        let phase = if life.done { Phase::Over } else { Phase::Waiting };
        let (pipes, attached) = (Pipes::default(), Attached::default());
        Self {
            plan,
            phase,
            life,
            pipes,
            attached,
            health,
            doomed: None,
            leaves: false,
            ran: Duration::ZERO,
            cause: None,
            left: 0,
            warnings: Vec::new(),
            streak: 0,
            is_pulled: false,
            unpulled: 0,
            message: None,
            failure: None,
        }
    }

    /// Whether something of it is there, or about to be.
    pub(super) fn is_busy(&self) -> bool {
        !matches!(self.phase, Phase::Waiting | Phase::BackOff(_) | Phase::Over)
    }

    /// Whether it is over and to be forgotten.
    pub(super) fn is_forgotten(&self) -> bool {
        self.leaves && matches!(self.phase, Phase::Over)
    }

    /// Whether it runs and its probes let others go on.
    pub(super) fn has_started(&self) -> bool {
        matches!(self.phase, Phase::Running(_)) && self.health.has_started()
    }

    /// Whether it is started again after `ended`.
    pub(super) fn is_restarted(&self, ended: &Ended) -> bool {
        match self.plan.restart {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => !ended.is_success(),
            RestartPolicy::Never => false,
        }
    }

    /// How long to wait until it is started again: at once, then `first` and twice as long each time, at most `most`.
    pub(super) fn back_off(&mut self, (first, most): (Duration, Duration)) -> Duration {
        // Taken, since a launch that fails after this has not run at all.
        if std::mem::take(&mut self.ran) > CALM {
            self.streak = 0;
        }
        let wait = match self.streak {
            0 => Duration::ZERO,
            times => first.saturating_mul(1 << (times - 1).min(16)).min(most),
        };
        self.streak += 1;
        self.life.restarts += 1;
        wait
    }

    /// How long to wait until its image is pulled again, which says nothing of the container: `first` and twice as long each time,
    /// at most `most`.
    pub(super) fn back_off_pull(&mut self, (first, most): (Duration, Duration)) -> Duration {
        let wait = first.saturating_mul(1 << self.unpulled.min(16)).min(most);
        self.unpulled += 1;
        wait
    }

    /// Whether it has failed and waits to be tried again.
    pub(super) fn is_stuck(&self) -> bool {
        matches!(self.phase, Phase::BackOff(_)) && (self.streak > 0 || self.unpulled > 0)
    }

    /// Whether it runs, or has run since the pod was last started.
    pub(super) fn has_run(&self) -> bool {
        let has_ended = self.life.ended.as_ref().is_some_and(|ended| ended.reason != "LaunchFailed");
        has_ended || matches!(self.phase, Phase::Running(_))
    }

    /// Makes its streams: what the supervisor holds stays here, and what the container gets is returned.
    ///
    /// # Errors
    /// `EMFILE`.
    pub(super) fn streams(&mut self, log: Log) -> Result<Streams> {
        self.pipes = Pipes { log: Some(log), terminal: self.plan.container.tty, ..Pipes::default() };
        if self.pipes.terminal {
            return Ok(Streams { fds: [descriptor::null()?, descriptor::null()?, descriptor::null()?] });
        }
        let input = if self.plan.container.stdin {
            let (ours, theirs) = descriptor::stream_pipe(true)?;
            self.pipes.input = Some(ours);
            theirs
        } else {
            descriptor::null()?
        };
        let mut output = |stream| -> Result<OwnedFd> {
            let (ours, theirs) = descriptor::stream_pipe(false)?;
            self.pipes.outputs.push((stream, ours));
            Ok(theirs)
        };
        Ok(Streams { fds: [input, output(Stream::Stdout)?, output(Stream::Stderr)?] })
    }

    /// Takes its terminal.
    ///
    /// # Errors
    /// None that a kernel is known to give.
    pub(super) fn take_terminal(&mut self, master: OwnedFd) -> Result<()> {
        descriptor::set_nonblocking(master.as_fd())?;
        self.pipes.input = Some(descriptor::duplicate(master.as_fd())?);
        self.pipes.outputs = vec![(Stream::Stdout, master)];
        Ok(())
    }

    /// Reads what has come on `stream`, once: into the log, and to who is attached. Returns how many bytes it was: 0 where
    /// nothing more can come now.
    pub(super) fn read(&mut self, stream: Stream) -> usize {
        let mut buffer = [0; 32 << 10];
        let Some(index) = self.pipes.outputs.iter().position(|(found, _)| *found == stream) else {
            return 0;
        };
        match file::read_some(self.pipes.outputs[index].1.as_fd(), &mut buffer) {
            Err(e) if matches!(e.errno(), Errno::EAGAIN | Errno::EINTR) => 0,
            // A terminal that no process has open says so, until one opens it again.
            Err(e) if e.errno() == Errno::EIO && matches!(self.phase, Phase::Running(_)) => {
                self.pipes.hung_up = Some(Instant::now() + HUNG_UP);
                0
            }
            Ok(0) | Err(_) => {
                self.pipes.outputs.remove(index);
                0
            }
            Ok(length) => {
                let bytes = &buffer[..length];
                if let Some(log) = &mut self.pipes.log {
                    log.write(stream, bytes);
                }
                self.attached.take(stream, bytes);
                length
            }
        }
    }

    /// Reads all that was there when it ended, and lets its streams go. Whoever else has them may go on writing.
    pub(super) fn finish_streams(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut left = MOST_LEFT;
            while left > 0 {
                match self.read(stream) {
                    0 => break,
                    length => left = left.saturating_sub(length),
                }
            }
        }
        self.attached.end();
        self.pipes = Pipes::default();
    }

    /// What is told of it.
    pub(super) fn told(&self) -> Value {
        let (state, pid, started) = match &self.phase {
            Phase::Waiting => ("waiting", None, None),
            Phase::BackOff(_) => ("back-off", None, None),
            Phase::Pulling(_) => ("pulling", None, None),
            Phase::Launching(_) => ("launching", None, None),
            Phase::Running(running) if running.end != End::No => {
                ("stopping", Some(running.pid), Some(&running.started))
            }
            Phase::Running(running) => ("running", Some(running.pid), Some(&running.started)),
            Phase::Ended(_) | Phase::Removing(..) => ("removing", None, None),
            Phase::Over => ("exited", None, None),
        };
        json!({
            "name": self.plan.path,
            "role": self.plan.role,
            "image": self.plan.container.image,
            "state": state,
            "pid": pid,
            "started": started,
            "ready": matches!(self.phase, Phase::Running(_)) && self.health.is_ready(),
            "restarts": self.life.restarts,
            "exit": self.life.ended,
            "message": self.message,
            "warnings": self.warnings,
            "logBytesLost": self.pipes.log.as_ref().map_or(0, |log| log.lost),
        })
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may have a second thread")]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::pod::document::Container;
    use crate::pod::plan::Role;

    const BOUNDS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));

    fn member() -> Member {
        let plan = plan::member(Container::default(), Role::Main, RestartPolicy::Always);
        Member::new(plan, Life::default())
    }

    #[test]
    fn launches_that_fail_after_a_long_run_are_waited_for() {
        let mut member = member();
        member.ran = CALM * 2;
        let waits: Vec<u64> = (0..3).map(|_| member.back_off(BOUNDS).as_secs()).collect();
        assert_eq!(waits, [0, 10, 20]);
    }

    #[test]
    fn pulls_that_fail_are_waited_for_and_count_as_no_run() {
        let mut member = member();
        let waits: Vec<u64> = (0..7).map(|_| member.back_off_pull(BOUNDS).as_secs()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!((member.life.restarts, member.back_off(BOUNDS)), (0, Duration::ZERO));
    }

    #[test]
    fn who_goes_on_writing_does_not_keep_the_end_waiting() {
        let mut member = member();
        let (ours, theirs) = descriptor::stream_pipe(false).unwrap();
        member.pipes.outputs.push((Stream::Stdout, ours));
        let writer = std::thread::spawn(move || {
            let mut pipe = std::fs::File::from(theirs);
            while pipe.write_all(&[b'x'; 64 << 10]).is_ok() {}
        });
        // Until the writer is there.
        while member.read(Stream::Stdout) == 0 {}
        member.finish_streams();
        writer.join().unwrap();
    }
}
