//! Device programs of control groups (bpf(2), `BPF_PROG_TYPE_CGROUP_DEVICE`, Linux 4.15).

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use crate::error::{Result, check, check_fd, show};

const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const PROG_DETACH: i32 = 9;
const PROG_GET_FD_BY_ID: i32 = 13;
const PROG_QUERY: i32 = 16;

const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
/// Beside the programs of the groups above and below: all must allow.
const F_ALLOW_MULTI: u32 = 2;
/// The kernel runs at most 64 programs of one kind on a group.
const MOST: usize = 64;

/// The first fields of the attributes of `BPF_PROG_LOAD`; what is left out is zero.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
    padding: u32,
}

/// bpf(2) with the attributes `attributes`.
fn bpf<T>(command: i32, attributes: &mut T) -> libc::c_long {
    // SAFETY: the kernel reads and writes no more than the size that is passed with the structure, and each
    // pointer inside was made from a live buffer of its caller, of the length that stands beside it.
    unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) }
}

/// Has the kernel check and compile the device program `program`, each instruction a `struct bpf_insn` as a
/// number.
///
/// # Errors
/// `EPERM` without `CAP_BPF` or `CAP_SYS_ADMIN`, or on kernels before 5.11 with a low `RLIMIT_MEMLOCK`; `EINVAL`
/// or `EACCES` where the verifier refuses the program.
pub fn load_device_program(program: &[u64]) -> Result<OwnedFd> {
    let mut attributes = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    attributes.prog_name[..7].copy_from_slice(b"coracle");
    let ret = bpf(PROG_LOAD, &mut attributes);
    check_fd(ret, || format!("bpf(PROG_LOAD, CGROUP_DEVICE, {} instructions)", program.len()))
}

/// Attaches a device program to the version 2 control group `group`, beside those that are there.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` or `CAP_SYS_ADMIN`, or where a group above allows none below it.
pub fn attach_device_program(group: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    let mut attributes = target(group, program);
    attributes.attach_flags = F_ALLOW_MULTI;
    check(bpf(PROG_ATTACH, &mut attributes), || format!("bpf(PROG_ATTACH, {})", show(&group))).map(drop)
}

/// Detaches a device program from the version 2 control group `group`.
///
/// # Errors
/// `ENOENT` where it is not attached.
pub fn detach_device_program(group: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    let mut attributes = target(group, program);
    check(bpf(PROG_DETACH, &mut attributes), || format!("bpf(PROG_DETACH, {})", show(&group))).map(drop)
}

fn target(group: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Attach {
    Attach {
        target_fd: group.as_raw_fd().cast_unsigned(),
        attach_bpf_fd: program.as_raw_fd().cast_unsigned(),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        attach_flags: 0,
    }
}

/// The device programs that are attached to the version 2 control group `group` itself.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` or `CAP_SYS_ADMIN`.
pub fn device_programs(group: BorrowedFd<'_>) -> Result<Vec<OwnedFd>> {
    let mut ids = [0_u32; MOST];
    let mut attributes = Query {
        target_fd: group.as_raw_fd().cast_unsigned(),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: MOST as u32,
        ..Query::default()
    };
    check(bpf(PROG_QUERY, &mut attributes), || format!("bpf(PROG_QUERY, {})", show(&group)))?;
    let found = &ids[..MOST.min(attributes.prog_cnt as usize)];
    found.iter().map(|id| by_id(*id)).collect()
}

fn by_id(id: u32) -> Result<OwnedFd> {
    let mut attributes = ById { id, ..ById::default() };
    check_fd(bpf(PROG_GET_FD_BY_ID, &mut attributes), || format!("bpf(PROG_GET_FD_BY_ID, {id})"))
}
