//! What a plugin may not do unless it was granted.
//!
//! With no grant: no capabilities; no files written but those of cgroups, whose directories it is handed, and
//! `/dev/null`, and no owner, mode, time or attribute of a file changed; no socket; no program started, no process made; no
//! signal to others, no namespace entered. It may read what the runtime's user may.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use coracle_sys::file::{self, Resolve};
use coracle_sys::identity::{self, Capabilities};
use coracle_sys::landlock::{self, Ruleset, access};
use coracle_sys::{Errno, Result, seccomp};

/// What the configuration grants.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    /// The capabilities, bit `n` for the one with the number `n`.
    pub(crate) capabilities: u64,
    /// Where files may be written and made.
    pub(crate) writable: Vec<PathBuf>,
    /// Whether programs may be started.
    pub(crate) programs: bool,
    /// Whether sockets may be made: behind those of the host's services are the host's rights.
    pub(crate) sockets: bool,
}

/// `CAP_SYS_ADMIN`: whoever mounts can't be kept from files, and Landlock forbids to mount at all.
const SYS_ADMIN: u64 = 1 << 21;

/// Gives up all that is not granted, for good.
pub(crate) fn confine(grants: &Grants) -> Result<()> {
    let rules = if grants.capabilities & SYS_ADMIN == 0 { rules(grants)? } else { None };
    identity::limit_bounding(grants.capabilities)?;
    let permitted = identity::capabilities()?.permitted & grants.capabilities;
    identity::set_capabilities(&Capabilities { effective: permitted, permitted, ..Capabilities::default() })?;
    identity::no_new_privileges()?;
    if let Some(rules) = rules {
        rules.restrict_self()?;
    }
    seccomp::load(&filter(grants, std::process::id()), 0).map(drop)
}

/// None where the kernel has no Landlock: what is left is what the plugin's user may do without capabilities.
fn rules(grants: &Grants) -> Result<Option<Ruleset>> {
    let Ok(abi) = landlock::abi() else { return Ok(None) };
    let mut handled = access::FIRST;
    for (since, right) in [(2, access::REFER), (3, access::TRUNCATE)] {
        handled |= if abi >= since { right } else { 0 };
    }
    let rules = Ruleset::new(handled, 0, if abi >= 6 { landlock::SCOPE_SIGNAL } else { 0 })?;
    let read = access::EXECUTE | access::READ_FILE | access::READ_DIR;
    let write = (access::WRITE_FILE | access::TRUNCATE) & handled;
    for (path, rights) in [("/", read), ("/sys/fs/cgroup", write), ("/dev/null", write)] {
        allow(&rules, Path::new(path), rights)?;
    }
    for path in &grants.writable {
        allow(&rules, path, handled)?;
    }
    Ok(Some(rules))
}

fn allow(rules: &Ruleset, path: &Path, rights: u64) -> Result<()> {
    let place = match file::open(file::CWD, path, libc::O_PATH, 0, Resolve::Host) {
        Err(e) if e.errno() == Errno::ENOENT => return Ok(()),
        other => other?,
    };
    let is_dir = file::stat(place.as_fd())?.st_mode & libc::S_IFMT == libc::S_IFDIR;
    rules.allow_below(place.as_fd(), if is_dir { rights } else { rights & access::OF_FILES })
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;
#[cfg(target_arch = "riscv64")]
const ARCHITECTURE: u32 = 0xC000_00F3;

/// Never: to look into other processes, to leave the namespaces that it is in, to load code into the kernel, and to ask it for
/// work that no filter sees.
const NEVER: [i64; 14] = [
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_unshare,
    libc::SYS_setns,
];

/// To change a file's owner, mode, times or attributes, of which Landlock knows nothing.
const ATTRIBUTES: [i64; 14] = [
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    SETXATTRAT,
    REMOVEXATTRAT,
];
/// Newer than the C libraries that this is built with; the same number everywhere (Linux 6.6 and 6.13).
const FCHMODAT2: i64 = 452;
const SETXATTRAT: i64 = 463;
const REMOVEXATTRAT: i64 = 466;
/// What only this architecture has beside those.
#[cfg(target_arch = "x86_64")]
const OLD_ATTRIBUTES: [i64; 6] = [
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_ATTRIBUTES: [i64; 0] = [];

const SOCKETS: [i64; 2] = [libc::SYS_socket, libc::SYS_socketpair];

/// To signal others, and to change their limits: Landlock forbids signals since Linux 6.12 only.
const SIGNALS: [i64; 3] = [libc::SYS_tkill, libc::SYS_rt_sigqueueinfo, libc::SYS_pidfd_send_signal];
/// The same by the number of a process, which may be its own.
const BY_PROCESS: [i64; 4] =
    [libc::SYS_kill, libc::SYS_tgkill, libc::SYS_rt_tgsigqueueinfo, libc::SYS_prlimit64];

const PROGRAMS: [i64; 2] = [libc::SYS_execve, libc::SYS_execveat];
/// Not everywhere beside clone(2).
#[cfg(target_arch = "x86_64")]
const FORKS: [i64; 2] = [libc::SYS_fork, libc::SYS_vfork];
#[cfg(not(target_arch = "x86_64"))]
const FORKS: [i64; 0] = [];

const LOAD: u16 = 0x20;
const EQUAL: u16 = 0x15;
const ANY_BIT: u16 = 0x45;
const AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7FFF_0000;
const REFUSE: u32 = 0x0005_0000;
const KILL: u32 = 0x8000_0000;

/// A filter in classic BPF, each instruction packed as [`seccomp::load`] takes it, for the process `own`. Threads are always
/// allowed.
fn filter(grants: &Grants, own: u32) -> Vec<u64> {
    let refuse = |errno: Errno| REFUSE | (errno as i32).cast_unsigned();
    let forbid = refuse(Errno::EPERM);
    let mut filter = vec![
        pack(LOAD, 0, 0, 4),
        pack(EQUAL, 1, 0, ARCHITECTURE),
        pack(RETURN, 0, 0, KILL),
        pack(LOAD, 0, 0, 0),
    ];
    // The numbers of x32, which mean the same calls; no other architecture has such numbers.
    filter.extend([pack(AT_LEAST, 0, 1, 0x4000_0000), pack(RETURN, 0, 0, KILL)]);
    let mut refused: Vec<(i64, u32)> = NEVER.map(|call| (call, forbid)).to_vec();
    // Who may make files can make one with any mode: there is nothing left to keep.
    if grants.writable.is_empty() {
        let changes = ATTRIBUTES.into_iter().chain(OLD_ATTRIBUTES);
        refused.extend(changes.map(|call| (call, forbid)));
    }
    if !grants.sockets {
        refused.extend(SOCKETS.map(|call| (call, forbid)));
    }
    if !grants.programs {
        let programs = PROGRAMS.into_iter().chain(FORKS).chain(SIGNALS);
        refused.extend(programs.map(|call| (call, forbid)));
        // Its flags are in memory, where a filter can't look: the C library goes on with clone(2).
        refused.push((libc::SYS_clone3, refuse(Errno::ENOSYS)));
    }
    for (call, refusal) in refused {
        filter.extend([pack(EQUAL, 0, 1, call as u32), pack(RETURN, 0, 0, refusal)]);
    }
    if !grants.programs {
        for call in BY_PROCESS {
            // For the one that is no signal, 0 is the caller, too.
            let is_own = if call == libc::SYS_prlimit64 { 0 } else { own };
            filter.extend([
                pack(EQUAL, 0, 5, call as u32),
                pack(LOAD, 0, 0, 16),
                pack(EQUAL, 2, 0, own),
                pack(EQUAL, 1, 0, is_own),
                pack(RETURN, 0, 0, forbid),
                pack(LOAD, 0, 0, 0),
            ]);
        }
        filter.extend([
            pack(EQUAL, 0, 3, libc::SYS_clone as u32),
            pack(LOAD, 0, 0, 16),
            pack(ANY_BIT, 1, 0, libc::CLONE_THREAD.cast_unsigned()),
            pack(RETURN, 0, 0, forbid),
        ]);
    }
    filter.push(pack(RETURN, 0, 0, ALLOW));
    filter
}

fn pack(code: u16, jt: u8, jf: u8, k: u32) -> u64 {
    u64::from(code) | u64::from(jt) << 16 | u64::from(jf) << 24 | u64::from(k) << 32
}
