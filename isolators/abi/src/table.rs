//! What crosses the border: the table, and what its functions are given. `coracle_isolator.h` is made of this file;
//! what is told here is told to authors in C.

use core::ffi::{c_char, c_void};

/// The version of the contract that this header tells of. A table of another version is refused.
pub const CORACLE_ISOLATOR_ABI: u32 = 1;

/// In coracle_isolator.flags: it does its work for containers made from an OCI bundle.
pub const CORACLE_ISOLATOR_OCI: u64 = 1;
/// In coracle_isolator.flags: for the outermost container of a pod.
pub const CORACLE_ISOLATOR_POD: u64 = 2;
/// In coracle_isolator.flags: for containers inside another one.
pub const CORACLE_ISOLATOR_NESTED: u64 = 4;
/// In coracle_isolator.flags: for containers that look into another one and end with their session.
pub const CORACLE_ISOLATOR_DEBUG: u64 = 8;
/// In coracle_isolator.flags: for every kind of container.
pub const CORACLE_ISOLATOR_ALL: u64 = 15;

/// Where the result of a call goes. Of no use after the call.
#[repr(C)]
pub struct Call {
    /// The size of this structure, in bytes.
    pub struct_size: u32,
    /// The host's own; not to be touched.
    pub host: *mut c_void,
    /// Appends `length` bytes to the document that the call returns. Returns 0, or -EMSGSIZE where the document
    /// grows beyond 4 MiB. A call that writes nothing returns the empty document.
    pub write: unsafe extern "C" fn(call: *const Call, text: *const c_char, length: usize) -> i32,
    /// Says why the call fails: `why` for people, lower case, no full stop; `error` for programs, an errno, or 0
    /// where no system call failed. Returns what the call is to return, which then ends with
    /// `return call->fail(call, ENOENT, "there is no volume data")`.
    pub fail: unsafe extern "C" fn(call: *const Call, error: i32, why: *const c_char) -> i32,
    /// The directory of the containers' states: there may be another container of the same ID in another one. Of a
    /// struct_size that ends before, a host that does not tell.
    pub states: *const c_char,
}

/// The directory of a container's cgroup in one hierarchy.
#[repr(C)]
pub struct Cgroup {
    /// The controllers of the hierarchy, with commas between them: `cpu,cpuacct`. `unified` for the version 2 tree.
    pub controllers: *const c_char,
    /// The directory, open.
    pub fd: i32,
}

/// A waiting or running container. The descriptors are closed after the call; dup(2) one to keep it.
#[repr(C)]
pub struct Handles {
    /// The size of this structure, in bytes.
    pub struct_size: u32,
    /// The first process of the container, in join the process that joins it (pidfd_open(2)); -1 where there is none.
    pub pidfd: i32,
    /// The container's ID.
    pub id: *const c_char,
    /// The configuration of the container as it was made of all adjustments: config.json of the OCI runtime
    /// specification.
    pub spec: *const c_char,
    /// The version of cgroups that carries the limits, 1 or 2.
    pub cgroup_version: u32,
    /// How many `cgroups` there are: one on version 2, one for each hierarchy on version 1, none for a container
    /// without cgroups.
    pub cgroup_count: u32,
    /// The container's cgroups.
    pub cgroups: *const Cgroup,
}

/// A call that is given a document.
pub type WithText = unsafe extern "C" fn(call: *const Call, text: *const c_char) -> i32;
/// A call that is given a container.
pub type WithHandles = unsafe extern "C" fn(call: *const Call, container: *const Handles) -> i32;

/// A plugin's table. What comes before the functions is in every table.
#[repr(C)]
pub struct Isolator {
    /// CORACLE_ISOLATOR_ABI, as the plugin was built with it.
    pub abi_version: u32,
    /// sizeof(coracle_isolator), as the plugin was built with it.
    pub struct_size: u32,
    /// A name that never changes, `family/subject`, of letters, digits, `-`, `_`, `.` and one or more `/`.
    pub name: *const c_char,
    /// The plugin's own version, for people.
    pub version: *const c_char,
    /// Names of isolators that go first, then NULL; or NULL. Those that are not configured are ignored.
    pub after: *const *const c_char,
    /// Names of isolators that go later, then NULL; or NULL.
    pub before: *const *const c_char,
    /// For which kinds of container it does its work: CORACLE_ISOLATOR_OCI and so on. The launch of another kind is
    /// refused: nothing is skipped silently.
    pub flags: u64,

    /// Once in each process, before all other calls: the options of the configuration, an object, `{}` where there are
    /// none. NULL: any options are refused.
    pub configure: Option<unsafe extern "C" fn(call: *const Call, options: *const c_char) -> i32>,
    /// When the runtime looks after what an earlier one left (`coracle recover`): {"states": [...], "orphans": [...]},
    /// the containers that are known, and the IDs of others that left something behind. cleanup follows for each of
    /// the orphans. A failure is reported and stops nothing.
    pub recover: Option<unsafe extern "C" fn(call: *const Call, states: *const c_char) -> i32>,
    /// Once a launch, before the process exists: the container that is about to be made. Returns an adjustment: what
    /// the isolator wants changed in the plan. No side effects: the plan may still be refused, or only be printed. Two
    /// isolators that set one field are an error that names both.
    pub prepare: Option<unsafe extern "C" fn(call: *const Call, config: *const c_char) -> i32>,
    /// For each process before it is started in the container: the first one, after prepare, and each `exec` later.
    /// Returns an adjustment that sets fields of `process`, linux.seccomp and linux.landlock alone. No side effects.
    pub process: Option<unsafe extern "C" fn(call: *const Call, config: *const c_char) -> i32>,
    /// Once a launch: the final configuration, all adjustments applied. Failing refuses it. No side effects.
    pub validate: Option<unsafe extern "C" fn(call: *const Call, spec: *const c_char) -> i32>,
    /// Once a launch: the process exists and waits, in its cgroup. Act on the host now. What is changed outside of the
    /// container's own cgroup and namespaces must be undone by cleanup.
    pub isolate: Option<unsafe extern "C" fn(call: *const Call, container: *const Handles) -> i32>,
    /// For each process that is executed in the running container, and waits in its cgroup.
    pub join: Option<unsafe extern "C" fn(call: *const Call, container: *const Handles) -> i32>,
    /// When somebody begins to watch the container: `run` while it waits, a warden, `events`. Sets *fd to a descriptor that
    /// becomes readable, or has something urgent (POLLPRI), when there may be a limitation, and leaves it at -1 where
    /// there is nothing to watch. The descriptor is the host's from then on, which reads it empty each time.
    pub watch:
        Option<unsafe extern "C" fn(call: *const Call, container: *const Handles, fd: *mut i32) -> i32>,
    /// When the descriptor of watch is readable: returns the limit that the container has run into, or nothing. A
    /// container that has is killed, unless the configuration wants it told only.
    pub limitation: Option<unsafe extern "C" fn(call: *const Call, container: *const Handles) -> i32>,
    /// Any number of times while the container lives: new limits, as linux.resources has them. What is absent stays as
    /// it is. After a failure the runtime writes back what the files of the cgroup held.
    pub update: Option<
        unsafe extern "C" fn(call: *const Call, container: *const Handles, resources: *const c_char) -> i32,
    >,
    /// Any number of times: returns what the container uses, only what the isolator looks after.
    pub usage: Option<unsafe extern "C" fn(call: *const Call, container: *const Handles) -> i32>,
    /// Any number of times: returns what others may know of the container, an object.
    pub status: Option<unsafe extern "C" fn(call: *const Call, container: *const Handles) -> i32>,
    /// When the last process is gone, if prepare was called, whatever came of it. Perhaps more than once, perhaps for a
    /// container that the isolator does not know: neither is a failure, nor is what is gone already. After a failure the
    /// other isolators are cleaned up all the same, and the next `delete` calls again.
    pub cleanup: Option<unsafe extern "C" fn(call: *const Call, id: *const c_char) -> i32>,
    /// Any number of times while the container lives: new values of linux.intelRdt. What is absent stays as it is. After
    /// a failure nothing may have changed: the runtime can't put it back.
    pub update_intel_rdt:
        Option<unsafe extern "C" fn(call: *const Call, container: *const Handles, rdt: *const c_char) -> i32>,
    /// When a launch fails after isolate, in the process that made that call, whether or not the container's process is
    /// still there: gives back what would go with its namespaces. cleanup follows in any case.
    pub give_back: Option<unsafe extern "C" fn(call: *const Call, id: *const c_char) -> i32>,
    /// Once a launch, after validate, and before the container's cgroups and process are made: the final configuration,
    /// as in prepare. Make here what the mounts and devices of the adjustment come from; undone by cleanup, which is
    /// called whatever comes of it.
    pub provide: Option<unsafe extern "C" fn(call: *const Call, config: *const c_char) -> i32>,
}

// SAFETY: a table is constant, and what it points to is too, for as long as the plugin is loaded: the contract says so.
unsafe impl Sync for Isolator {}
// SAFETY: as above; it belongs to no thread.
unsafe impl Send for Isolator {}
