//! The threads that read what a layer says can do little else.
//!
//! Each gives up, for itself and the threads it starts, all capabilities but those that owners, devices and attributes take;
//! by Landlock (Linux 5.19) it writes below the directory of its layers alone, and reads the store; and by a filter of
//! system calls it reaches no network, mounts nothing and executes nothing. The threads that fetch and those that give names
//! are others.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use coracle_sys::identity::{self, Capabilities};
use coracle_sys::landlock::{self, Ruleset, access};
use coracle_sys::seccomp;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::error::{Context, Error, Kind, Result};

/// `CHOWN`, `DAC_OVERRIDE`, `DAC_READ_SEARCH`, `FOWNER`, `FSETID`, `SYS_ADMIN` (for `trusted.` attributes), `MKNOD`,
/// `SETFCAP`: capabilities(7).
const NEEDED: u64 = 0b1_1111 | 1 << 21 | 1 << 27 | 1 << 31;

/// Confines the calling thread: it writes below `writable` alone, and reads below `readable`.
///
/// # Errors
/// Where the kernel refuses; a kernel without Landlock is asked for the rest, and so is one whose first Landlock refuses every
/// link and rename from one directory to another.
pub(super) fn confine(writable: BorrowedFd<'_>, readable: &[BorrowedFd<'_>]) -> Result<()> {
    let confining = || "confining the thread that unpacks";
    let held = identity::capabilities().context(confining)?;
    let (effective, permitted) = (held.effective & NEEDED, held.permitted & NEEDED);
    identity::no_new_privileges().context(confining)?;
    if let Some(abi) = landlock::abi().ok().filter(|abi| *abi > 1) {
        forbid_files(abi, writable, readable).context(confining)?;
    }
    let sets = Capabilities { effective, permitted, ..Capabilities::default() };
    identity::set_capabilities(&sets).context(confining)?;
    seccomp::load(&filter()?, 0).context(confining)?;
    Ok(())
}

fn forbid_files(abi: u32, writable: BorrowedFd<'_>, readable: &[BorrowedFd<'_>]) -> coracle_sys::Result<()> {
    let known = match abi {
        ..=2 => (1 << 14) - 1,
        3 | 4 => (1 << 15) - 1,
        _ => (1 << 16) - 1,
    };
    // Ports to bind and to connect to; sockets without a path, and signals.
    let (network, scoped) = (if abi >= 4 { 0b11 } else { 0 }, if abi >= 6 { 0b11 } else { 0 });
    let rules = Ruleset::new(known, network, scoped)?;
    rules.allow_below(writable, known & !access::EXECUTE)?;
    for directory in readable {
        rules.allow_below(*directory, access::READ_FILE | access::READ_DIR)?;
    }
    rules.restrict_self()
}

/// Lets through what unpacking and its threads call; the rest fails with `EPERM`.
fn filter() -> Result<Vec<u64>> {
    let failed =
        |e: seccompiler::BackendError| Error::new(Kind::Unsupported, format!("making a filter: {e}"));
    let allowed: BTreeMap<i64, Vec<seccompiler::SeccompRule>> =
        ALLOWED.iter().map(|n| (*n, Vec::new())).collect();
    let architecture = std::env::consts::ARCH.try_into().map_err(failed)?;
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(allowed, refused, SeccompAction::Allow, architecture).map_err(failed)?;
    let program: BpfProgram = filter.try_into().map_err(failed)?;
    let packed = |i: &seccompiler::sock_filter| {
        u64::from(i.code) | u64::from(i.jt) << 16 | u64::from(i.jf) << 24 | u64::from(i.k) << 32
    };
    Ok(program.iter().map(packed).collect())
}

const SYS_SETXATTRAT: i64 = 463;

const ALLOWED: &[i64] = &[
    // Open files.
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_sync_file_range,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_flock,
    libc::SYS_fchmod,
    libc::SYS_fchown,
    libc::SYS_fsetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    // Names in directories.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_newfstatat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_readlinkat,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    SYS_SETXATTRAT,
    // Before Linux 6.13.
    libc::SYS_lsetxattr,
    // Memory and threads.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_prctl,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_capget,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests try what is forbidden")]

    use std::fs;
    use std::os::fd::AsFd;

    use coracle_sys::file::{self, Resolve};

    use super::*;

    #[test]
    fn a_confined_thread_writes_below_its_directory_alone_and_reaches_no_network() {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name);
        fs::create_dir(path("own")).unwrap();
        fs::create_dir(path("read")).unwrap();
        fs::write(path("read/file"), "").unwrap();
        fs::write(path("other"), "").unwrap();
        let (own, read) = (file::open_dir(path("own")).unwrap(), file::open_dir(path("read")).unwrap());
        let confined = || {
            // Opened now: what is not of the store can't be opened any more.
            let status = file::open(file::CWD, "/proc/thread-self/status", 0, 0, Resolve::Host).unwrap();
            confine(own.as_fd(), &[read.as_fd()]).unwrap();
            let denied = |result: std::io::Result<()>| result.unwrap_err().raw_os_error().unwrap();
            fs::write(path("own/file"), "x").unwrap();
            fs::read(path("read/file")).unwrap();
            assert!(std::net::TcpListener::bind("127.0.0.1:0").is_err());
            assert_eq!(denied(std::process::Command::new("/bin/true").status().map(drop)), libc::EPERM);
            let held = identity::capabilities().unwrap();
            assert_eq!((held.effective & !NEEDED, held.permitted & !NEEDED), (0, 0));
            let status = String::from_utf8(file::read_all(status, 1 << 16).unwrap()).unwrap();
            assert!(status.contains("\nNoNewPrivs:\t1\n") && status.contains("\nSeccomp:\t2\n"), "{status}");
            if landlock::abi().is_ok() {
                assert_eq!(denied(fs::write(path("read/file"), "x")), libc::EACCES);
                assert_eq!(denied(fs::read(path("other")).map(drop)), libc::EACCES);
                assert_eq!(denied(fs::remove_file(path("other"))), libc::EACCES);
            }
        };
        std::thread::scope(|scope| scope.spawn(confined).join().unwrap());
        // Nobody else is.
        fs::write(path("other"), "y").unwrap();
    }
}
