//! Which system calls a plugin may make: a filter of seccomp(2).

use coracle_sys::Errno;

use crate::confine::Grants;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;
#[cfg(target_arch = "riscv64")]
const ARCHITECTURE: u32 = 0xC000_00F3;

/// Never: to look into other processes, to leave the namespaces that it is in, to load code into the kernel, and to ask it for
/// work that no filter sees, or that it has a program do.
const NEVER: [i64; 15] = [
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
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_unshare,
    libc::SYS_setns,
];

/// To change a file's owner, mode, times or attributes, of which Landlock knows nothing.
const ATTRIBUTES: [i64; 15] = [
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
    FILE_SETATTR,
];
/// Newer than the C libraries that this is built with; the same number everywhere (Linux 6.6, 6.13 and 6.17).
const FCHMODAT2: i64 = 452;
const SETXATTRAT: i64 = 463;
const REMOVEXATTRAT: i64 = 466;
const FILE_SETATTR: i64 = 469;
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

/// What processes share by a number or a name that is no file's.
const SHARED: [i64; 14] = [
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_shmdt,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_semctl,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
];

/// `CAP_SYS_NICE`, whose grant means others' turns at the processors.
const SYS_NICE: u64 = 1 << 23;
/// To have others run when it is their turn.
const TURNS: [i64; 2] = [libc::SYS_setpriority, libc::SYS_ioprio_set];
/// The same by the number of a process, 0 for the caller.
const TURNS_BY_PROCESS: [i64; 4] = [
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setattr,
];

/// To signal others, and to change their limits: Landlock forbids signals since Linux 6.12 only.
const SIGNALS: [i64; 3] = [libc::SYS_tkill, libc::SYS_rt_sigqueueinfo, libc::SYS_pidfd_send_signal];
/// The same by the number of a process, which may be its own.
const BY_PROCESS: [i64; 4] =
    [libc::SYS_kill, libc::SYS_tgkill, libc::SYS_rt_tgsigqueueinfo, libc::SYS_prlimit64];

/// To have the kernel signal others when a descriptor becomes ready: `F_SETOWN`, `F_SETSIG` and `F_SETOWN_EX` of fcntl(2),
/// `FIOSETOWN` and `SIOCSPGRP` of ioctl(2).
const OWNERS: [(i64, &[u32]); 2] = [(libc::SYS_fcntl, &[8, 10, 15]), (libc::SYS_ioctl, &[0x8901, 0x8902])];

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
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7FFF_0000;
const REFUSE: u32 = 0x0005_0000;
const KILL: u32 = 0x8000_0000;

/// A filter in classic BPF, each instruction packed as [`seccomp::load`](coracle_sys::seccomp::load) takes it, for the process
/// `own`. Threads are always allowed.
pub(crate) fn filter(grants: &Grants, own: u32) -> Vec<u64> {
    let forbid = refuse(Errno::EPERM);
    let mut filter = vec![
        pack(LOAD, 0, 0, 4),
        pack(EQUAL, 1, 0, ARCHITECTURE),
        pack(RETURN, 0, 0, KILL),
        pack(LOAD, 0, 0, 0),
    ];
    // The numbers of x32, which mean the same calls; no other architecture has such numbers.
    filter.extend([pack(AT_LEAST, 0, 1, 0x4000_0000), pack(RETURN, 0, 0, KILL)]);
    for (call, refusal) in refused(grants) {
        filter.extend([pack(EQUAL, 0, 1, call as u32), pack(RETURN, 0, 0, refusal)]);
    }
    filter.extend(STAYS_BOUND);
    if grants.writable.is_empty() {
        filter.extend(attributes_by_ioctl());
    }
    if !grants.programs {
        for call in BY_PROCESS {
            // For the one that is no signal, 0 is the caller, too.
            let is_own = if call == libc::SYS_prlimit64 { 0 } else { own };
            filter.extend(by_process(call, own, is_own));
        }
        filter.extend(OWNERS.into_iter().flat_map(|(call, commands)| by_command(call, commands)));
        filter.extend([
            pack(EQUAL, 0, 3, libc::SYS_clone as u32),
            pack(LOAD, 0, 0, 16),
            pack(ANY_BIT, 1, 0, libc::CLONE_THREAD.cast_unsigned()),
            pack(RETURN, 0, 0, forbid),
        ]);
    }
    if !may_schedule(grants) {
        filter.extend(TURNS_BY_PROCESS.into_iter().flat_map(|call| by_process(call, own, 0)));
    }
    filter.push(pack(RETURN, 0, 0, ALLOW));
    filter
}

/// The calls that are refused whatever they are given, and how.
fn refused(grants: &Grants) -> Vec<(i64, u32)> {
    let forbid = |call| (call, refuse(Errno::EPERM));
    let mut refused = NEVER.map(forbid).to_vec();
    // Who may make files can make one with any mode: there is nothing left to keep.
    if grants.writable.is_empty() {
        refused.extend(ATTRIBUTES.into_iter().chain(OLD_ATTRIBUTES).map(forbid));
    }
    if !grants.sockets {
        refused.extend(SOCKETS.map(forbid));
    }
    if !may_schedule(grants) {
        refused.extend(TURNS.map(forbid));
    }
    if !grants.programs {
        refused.extend(PROGRAMS.into_iter().chain(FORKS).chain(SIGNALS).chain(SHARED).map(forbid));
        // Its flags are in memory, where a filter can't look: the C library goes on with clone(2).
        refused.push((libc::SYS_clone3, refuse(Errno::ENOSYS)));
    }
    refused
}

fn may_schedule(grants: &Grants) -> bool {
    grants.programs || grants.capabilities & SYS_NICE != 0
}

/// Refuses `call` unless its first argument is the caller's number, or `is_own`. What goes on has the call's number loaded.
fn by_process(call: i64, own: u32, is_own: u32) -> [u64; 6] {
    [
        pack(EQUAL, 0, 5, call as u32),
        pack(LOAD, 0, 0, 16),
        pack(EQUAL, 2, 0, own),
        pack(EQUAL, 1, 0, is_own),
        pack(RETURN, 0, 0, refuse(Errno::EPERM)),
        pack(LOAD, 0, 0, 0),
    ]
}

/// Refuses `call` where its second argument is one of `commands`.
fn by_command(call: i64, commands: &[u32]) -> Vec<u64> {
    let count = commands.len() as u8;
    let mut check = vec![pack(EQUAL, 0, count + 3, call as u32), pack(LOAD, 0, 0, 24)];
    let command =
        |(at, command): (u8, &u32)| pack(EQUAL, count - at - 1, u8::from(at == count - 1), *command);
    check.extend((0..).zip(commands).map(command));
    check.extend([pack(RETURN, 0, 0, refuse(Errno::EPERM)), pack(LOAD, 0, 0, 0)]);
    check
}

/// Refuses any signal for the runtime's end but SIGKILL (`PR_SET_PDEATHSIG`): a plugin must not outlive it.
const STAYS_BOUND: [u64; 7] = [
    pack(EQUAL, 0, 6, libc::SYS_prctl as u32),
    pack(LOAD, 0, 0, 16),
    pack(EQUAL, 0, 3, libc::PR_SET_PDEATHSIG.cast_unsigned()),
    pack(LOAD, 0, 0, 24),
    pack(EQUAL, 1, 0, libc::SIGKILL.cast_unsigned()),
    pack(RETURN, 0, 0, REFUSE | Errno::EPERM as u32),
    pack(LOAD, 0, 0, 0),
];

/// `FS_IOC_GETFLAGS`, for 64 and for 32 bits, and `FS_IOC_FSGETXATTR`.
const ASKING: [u32; 3] = [0x8008_6601, 0x8004_6601, 0x801C_581F];
/// The kinds of ioctl(2) that file systems have (`_IOC_TYPE`), with the byte where it stands: `f`, `X` and `v` of all of them,
/// `r` of FAT, and that of btrfs. They change attributes, or make files, by a descriptor that is open for reading.
const OF_FILE_SYSTEMS: [u32; 5] = [0x6600, 0x5800, 0x7600, 0x7200, 0x9400];

/// Refuses what file systems do by ioctl(2), but the questions for a file's attributes.
fn attributes_by_ioctl() -> Vec<u64> {
    let mut check = vec![pack(LOAD, 0, 0, 24)];
    // From each comparison to what comes after all of them: how many are left, and the refusal in between.
    let kinds = OF_FILE_SYSTEMS.len() as u8;
    let asking = ASKING.len() as u8;
    check.extend((0..).zip(ASKING).map(|(at, command)| pack(EQUAL, asking - at + kinds + 1, 0, command)));
    check.push(pack(AND, 0, 0, 0xFF00));
    let kind = |(at, kind)| pack(EQUAL, kinds - at - 1, u8::from(at == kinds - 1), kind);
    check.extend((0..).zip(OF_FILE_SYSTEMS).map(kind));
    check.push(pack(RETURN, 0, 0, refuse(Errno::EPERM)));
    check.push(pack(LOAD, 0, 0, 0));
    let length = check.len() as u8;
    check.insert(0, pack(EQUAL, 0, length, libc::SYS_ioctl as u32));
    check
}

fn refuse(errno: Errno) -> u32 {
    REFUSE | (errno as i32).cast_unsigned()
}

const fn pack(code: u16, jt: u8, jf: u8, k: u32) -> u64 {
    code as u64 | (jt as u64) << 16 | (jf as u64) << 24 | (k as u64) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter answers to a call: the few instructions that it is made of, carried out.
    fn answer(filter: &[u64], call: i64, arguments: [u32; 2]) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let [code, jumps, k] = [filter[at] & 0xFFFF, filter[at] >> 16 & 0xFFFF, filter[at] >> 32];
            let (code, k) = (code as u16, k as u32);
            let is_so = match code {
                RETURN => return k,
                EQUAL => loaded == k,
                ANY_BIT => loaded & k != 0,
                AT_LEAST => loaded >= k,
                AND => {
                    loaded &= k;
                    true
                }
                LOAD => {
                    loaded = match k {
                        0 => call as u32,
                        4 => ARCHITECTURE,
                        16 => arguments[0],
                        _ => arguments[1],
                    };
                    true
                }
                _ => unreachable!("{code:#x}"),
            };
            at += 1 + if is_so { jumps & 0xFF } else { jumps >> 8 } as usize;
        }
    }

    const FORBIDDEN: u32 = REFUSE | 1;

    #[test]
    fn attributes_are_asked_for_and_not_changed_by_ioctl() {
        let ungranted = filter(&Grants::default(), 7);
        let asked = |command: u32| answer(&ungranted, libc::SYS_ioctl, [3, command]);
        // FS_IOC_SETFLAGS and FS_IOC_SETVERSION of both widths, FS_IOC_FSSETXATTR, FS_IOC_ENABLE_VERITY,
        // FS_IOC_SET_ENCRYPTION_POLICY, FAT_IOCTL_SET_ATTRIBUTES, BTRFS_IOC_SUBVOL_CREATE.
        for command in [
            0x4008_6602,
            0x4004_6602,
            0x4008_7602,
            0x4004_7602,
            0x401C_5820,
            0x4080_6685,
            0x800C_6613,
            0x4004_7211,
            0x5000_940E,
        ] {
            assert_eq!(asked(command), FORBIDDEN, "{command:#x}");
        }
        // Those, TCGETS, FIONREAD and FIOCLEX.
        for command in ASKING.into_iter().chain([0x5401, 0x541B, 0x5451]) {
            assert_eq!(asked(command), ALLOW, "{command:#x}");
        }
        let granted = filter(&Grants { writable: vec!["/tmp".into()], ..Grants::default() }, 7);
        assert_eq!(answer(&granted, libc::SYS_ioctl, [3, 0x4008_6602]), ALLOW);
    }

    #[test]
    fn what_comes_after_a_check_of_arguments_is_still_checked() {
        let ungranted = filter(&Grants::default(), 7);
        let asked = |call, first| answer(&ungranted, call, [first, 0]);
        for (call, first, wanted) in [
            (libc::SYS_kill, 7, ALLOW),
            (libc::SYS_kill, 1, FORBIDDEN),
            (libc::SYS_prlimit64, 0, ALLOW),
            (libc::SYS_clone, libc::CLONE_THREAD.cast_unsigned(), ALLOW),
            (libc::SYS_clone, 17, FORBIDDEN),
            (libc::SYS_sched_setaffinity, 0, ALLOW),
            (libc::SYS_sched_setaffinity, 1, FORBIDDEN),
            (libc::SYS_setpriority, 0, FORBIDDEN),
            (libc::SYS_read, 0, ALLOW),
        ] {
            assert_eq!(asked(call, first), wanted, "{call} {first}");
        }
    }

    #[test]
    fn nobody_is_made_to_be_signalled() {
        for (programs, wanted) in [(false, FORBIDDEN), (true, ALLOW)] {
            let filter = filter(&Grants { programs, ..Grants::default() }, 7);
            for (call, commands) in OWNERS {
                assert!(commands.iter().all(|command| answer(&filter, call, [3, *command]) == wanted));
            }
            // F_GETFL, F_SETFL and TCGETS.
            for (call, command) in [(libc::SYS_fcntl, 3), (libc::SYS_fcntl, 4), (libc::SYS_ioctl, 0x5401)] {
                assert_eq!(answer(&filter, call, [3, command]), ALLOW, "{call} {command}");
            }
        }
    }

    #[test]
    fn a_plugin_stays_bound_to_the_runtimes_life() {
        let filter = filter(&Grants { programs: true, ..Grants::default() }, 7);
        let death = libc::PR_SET_PDEATHSIG.cast_unsigned();
        for (option, signal, wanted) in
            [(death, 9, ALLOW), (death, 0, FORBIDDEN), (death, 15, FORBIDDEN), (15, 0, ALLOW)]
        {
            assert_eq!(answer(&filter, libc::SYS_prctl, [option, signal]), wanted, "{option} {signal}");
        }
    }

    #[test]
    fn what_is_shared_without_a_file_needs_the_grant_of_programs() {
        for (programs, wanted) in [(false, FORBIDDEN), (true, ALLOW)] {
            let filter = filter(&Grants { programs, ..Grants::default() }, 7);
            assert!(SHARED.iter().all(|call| answer(&filter, *call, [0, 0]) == wanted));
        }
        let scheduling = filter(&Grants { capabilities: SYS_NICE, ..Grants::default() }, 7);
        assert_eq!(answer(&scheduling, libc::SYS_setpriority, [0, 1]), ALLOW);
    }

    #[test]
    fn newer_calls_that_change_attributes_are_refused_by_their_numbers() {
        let ungranted = filter(&Grants::default(), 7);
        for call in [FCHMODAT2, SETXATTRAT, REMOVEXATTRAT, FILE_SETATTR, libc::SYS_fchmod] {
            assert_eq!(answer(&ungranted, call, [0, 0]), FORBIDDEN, "{call}");
        }
    }
}
