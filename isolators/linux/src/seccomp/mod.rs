//! `linux/seccomp`: which system calls a process may make.
//!
//! The profile of `linux.seccomp` becomes one classic BPF program. The seccompiler crate compiles each rule's
//! comparisons of arguments. Its whole filters are not used: they know one action for all that matches, one
//! architecture, and search the system calls one after the other, five instructions each, so that Docker's
//! profile would be 1,900 instructions long for one architecture, loaded at every start and walked at every call.
//! `program` links the rules into one search tree an architecture instead: 676 instructions for three of them,
//! compiled in 0.09 ms (libseccomp 2.5.4: 1,144 instructions).
//!
//! No program is kept for the next start. On one machine, in one sitting, compiling took 0.39 ms, reading a kept program
//! back 0.04 ms, and the digest that would find it 0.02 ms, all four times slower than on a quiet one: a hundredth of a
//! start could be gained, for files beside the containers' that nobody removes, and that whoever can write one would
//! choose every container's filter with.

mod architecture;
mod profile;
mod program;
#[cfg(test)]
mod simulator;

use coracle_isolator::{Adjustment, Config, Error, Isolator, Result, SeccompProgram};
use oci_spec::runtime::LinuxSeccomp;

use profile::Profile;

/// Compiles `linux.seccomp` for every process.
///
/// What is decided, as runc and libseccomp do where the specification is silent:
/// - A rule without arguments wins over those with arguments, wherever they stand; of several, the first one.
///   Of rules with arguments the first that matches wins (libseccomp's order follows from how it sorts them, and
///   it refuses some). A rule with the default action says nothing.
/// - The arguments of a rule must all match; where one index stands twice, each is a rule of its own.
/// - Names that an architecture does not have are skipped.
/// - The native architecture is always in; a foreign one that the profile does not name is killed
///   (`SCMP_ACT_KILL_THREAD`). i386 and x32 beside x86-64, and 32-bit ARM beside 64-bit, have their own numbers.
///   Arguments are compared in the width of their registers: 32 bits on i386 and ARM, 64 elsewhere, x32 included.
/// - On i386, a rule without arguments also holds for the call's older form through `socketcall` and `ipc`.
/// - A system call newer than all that the profile names is answered with `ENOSYS`, not with the default
///   action, where that forbids: C libraries fall back on `ENOSYS` alone. A profile whose `defaultErrnoRet` is
///   `ENOSYS` says so itself.
#[derive(Debug)]
pub struct Seccomp;

impl Isolator for Seccomp {
    fn name(&self) -> &str {
        "linux/seccomp"
    }

    fn process(&self, config: &Config<'_>) -> Result<Adjustment> {
        let mut adjustment = Adjustment::default();
        let seccomp = config.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        adjustment.linux.seccomp = seccomp.map(compile).transpose()?;
        adjustment.linux.seccomp.as_ref().map_or(Ok(()), |program| check_flags(program.flags))?;
        Ok(adjustment)
    }
}

/// The flags of a filter by name, each with what it is asked of the kernel with.
pub const FLAGS: [(&str, u32); 4] = [
    ("SECCOMP_FILTER_FLAG_LOG", 1 << 1),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", 1 << 2),
    ("SECCOMP_FILTER_FLAG_TSYNC", 1),
    // Only a filter with a listener (`NEW_LISTENER`) can have it.
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", 1 << 5 | 1 << 3),
];

/// A filter would be refused for them when it is loaded, which is too late.
fn check_flags(flags: u32) -> Result<()> {
    let lacks = |(_, bits): &&(&str, u32)| flags & bits == *bits && !coracle_sys::seccomp::knows_flags(*bits);
    match FLAGS.iter().filter(|(_, bits)| flags & bits != 0).find(lacks) {
        Some((name, _)) => Err(Error::new(format!("this kernel has no {name}")).at("/linux/seccomp/flags")),
        None => Ok(()),
    }
}

/// The program for `seccomp`.
///
/// # Errors
/// Where the profile asks for what is not honoured, or the program would be longer than the kernel takes.
pub fn compile(seccomp: &LinuxSeccomp) -> Result<SeccompProgram> {
    let profile = Profile::new(seccomp)?;
    Ok(SeccompProgram { program: program::link(&profile)?, flags: profile.flags })
}
