//! Tracing a program and its children, one instruction after another (ptrace(2)).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Whoever is traced, and what was executed.
pub(crate) struct Tracer {
    /// How long the program is, by which processes that execute it are told from others.
    length: u64,
    executed: BTreeSet<u64>,
}

impl Tracer {
    /// One that looks at processes which execute `program`.
    pub(crate) fn new(program: &Path) -> Result<Self, String> {
        let metadata = fs::metadata(program).map_err(|error| format!("{}: {error}", program.display()))?;
        Ok(Self { length: metadata.len(), executed: BTreeSet::new() })
    }

    /// The addresses of the instructions that were executed.
    pub(crate) fn executed(&self) -> &BTreeSet<u64> {
        &self.executed
    }

    /// Traces `command` to its end, and meanwhile the processes that earlier ones left.
    pub(crate) fn follow(&mut self, command: &Command) -> Result<(), String> {
        let first = seized(command)?;
        loop {
            let status =
                waitpid(None, Some(WaitPidFlag::__WALL)).map_err(|errno| format!("waitpid: {errno}"))?;
            match status {
                WaitStatus::Exited(pid, 0) if pid == first => return Ok(()),
                WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..) if pid == first => {
                    return Err(format!("{command:?}: {status:?}"));
                }
                stopped => self.go_on(stopped),
            }
        }
    }

    /// Lets a stopped process execute one more instruction; one that is another program's goes free. Who is gone meanwhile
    /// needs nothing.
    fn go_on(&mut self, stopped: WaitStatus) {
        let (pid, signal) = match stopped {
            WaitStatus::Stopped(pid, Signal::SIGTRAP) => (pid, None),
            WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
            WaitStatus::PtraceEvent(pid, _, event) if event == ptrace::Event::PTRACE_EVENT_EXEC as i32 => {
                let length = fs::metadata(format!("/proc/{pid}/exe")).map(|exe| exe.len());
                if length.is_ok_and(|length| length != self.length) {
                    let _ = ptrace::detach(pid, None);
                    return;
                }
                (pid, None)
            }
            WaitStatus::PtraceEvent(pid, ..) => (pid, None),
            _ => return,
        };
        if let Ok(registers) = ptrace::getregs(pid) {
            #[cfg(target_arch = "x86_64")]
            self.executed.insert(registers.rip);
            #[cfg(not(target_arch = "x86_64"))]
            self.executed.insert(registers.pc);
        }
        let _ = ptrace::step(pid, signal);
    }
}

/// Starts `command`, traced from where it is executed.
fn seized(command: &Command) -> Result<Pid, String> {
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-c", "kill -STOP $$; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.stdout(Stdio::null()).current_dir(command.get_current_dir().unwrap_or(Path::new(".")));
    let child = shell.spawn().map_err(|error| format!("start a shell: {error}"))?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let named = |what: &str| {
        let what = what.to_owned();
        move |errno: nix::Error| format!("{what}: {errno}")
    };
    waitpid(pid, Some(WaitPidFlag::WUNTRACED)).map_err(named("waitpid"))?;
    let options = Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options).map_err(named("ptrace"))?;
    kill(pid, Signal::SIGCONT).map_err(named("kill"))?;
    // The stop that the shell made, and its end, are told of before it executes the program.
    loop {
        match waitpid(pid, Some(WaitPidFlag::__WALL)).map_err(named("waitpid"))? {
            WaitStatus::PtraceEvent(_, _, event) if event == ptrace::Event::PTRACE_EVENT_EXEC as i32 => break,
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                return Err(format!("{command:?} did not start"));
            }
            _ => ptrace::cont(pid, None).map_err(named("ptrace"))?,
        }
    }
    ptrace::step(pid, None).map_err(named("ptrace"))?;
    Ok(pid)
}
