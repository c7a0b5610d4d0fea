//! Calling the functions of a table.

use std::ffi::{CStr, c_char};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use coracle_isolator_abi::table::{Call, Cgroup, Handles, WithHandles, WithText};
use coracle_isolator_abi::{Given, Verb};
use coracle_isolator_host::wire::{MOST_RETURNED, Reply, Request};
use coracle_sys::descriptor;

use crate::table::{Plugin, has};

/// Where the callbacks of one call put what they are given.
#[derive(Default)]
struct Sink {
    text: Vec<u8>,
    is_full: bool,
    errno: i32,
    why: Option<Vec<u8>>,
}

/// Configures a plugin that is opened by `request`.
pub(crate) fn configure(plugin: &Plugin, request: &Request) -> Reply {
    let options = request.texts().first().copied().unwrap_or(c"{}");
    if has(&plugin.table, Verb::Configure) {
        return call(plugin, Verb::Configure, request);
    }
    match options.to_bytes() {
        b"{}" => Reply::default(),
        _ => Reply::failed("it takes no options, and is given some"),
    }
}

/// Makes the call `verb`. What the table does not have does nothing.
pub(crate) fn call(plugin: &Plugin, verb: Verb, request: &Request) -> Reply {
    if !has(&plugin.table, verb) {
        return Reply::default();
    }
    let mut sink = Sink::default();
    let call = Call {
        struct_size: size_of::<Call>() as u32,
        host: (&raw mut sink).cast(),
        write,
        fail,
        states: plugin.states.as_ptr(),
    };
    let texts = request.texts();
    let Some((text, rest)) = texts.split_first() else { return Reply::failed("a document is missing") };
    let mut fd = -1;
    let result = match verb.given() {
        Given::Text => with_text(plugin, verb).map(|function| {
            // SAFETY: the text ends with a NUL, and lives as long as the call.
            unsafe { function(&raw const call, text.as_ptr()) }
        }),
        Given::Container | Given::Both => {
            let Some(groups) = groups(rest, request) else { return Reply::failed("handles are missing") };
            let handles = handles(rest, request, &groups);
            with_handles(plugin, verb, Arguments { call: &call, handles: &handles, text, fd: &mut fd })
        }
    };
    let Some(result) = result else { return Reply::failed("there is no such call") };
    returned(verb, result, sink, fd)
}

/// The two that a container's handles begin with: its ID and its configuration.
const FIXED: usize = 2;

fn groups(texts: &[&CStr], request: &Request) -> Option<Vec<Cgroup>> {
    let controllers = texts.get(FIXED..)?;
    // The pidfd, where there is one, comes first.
    let dirs = request.fds.get(request.fds.len().checked_sub(controllers.len())?..)?;
    let pairs = controllers.iter().zip(dirs);
    Some(pairs.map(|(text, dir)| Cgroup { controllers: text.as_ptr(), fd: dir.as_raw_fd() }).collect())
}

fn handles(texts: &[&CStr], request: &Request, groups: &[Cgroup]) -> Handles {
    let has_pidfd = request.fds.len() > groups.len();
    let text = |index: usize| texts.get(index).map_or(c"".as_ptr(), |text| text.as_ptr());
    Handles {
        struct_size: size_of::<Handles>() as u32,
        pidfd: request.fds.first().filter(|_| has_pidfd).map_or(-1, AsRawFd::as_raw_fd),
        id: text(0),
        spec: text(1),
        cgroup_version: request.cgroup_version,
        cgroup_count: groups.len() as u32,
        cgroups: groups.as_ptr(),
    }
}

fn with_text(plugin: &Plugin, verb: Verb) -> Option<WithText> {
    let table = &plugin.table;
    match verb {
        Verb::Configure => table.configure,
        Verb::Recover => table.recover,
        Verb::Prepare => table.prepare,
        Verb::Process => table.process,
        Verb::Validate => table.validate,
        Verb::Cleanup => table.cleanup,
        Verb::GiveBack => table.give_back,
        Verb::Provide => table.provide,
        _ => None,
    }
}

struct Arguments<'a> {
    call: &'a Call,
    handles: &'a Handles,
    text: &'a CStr,
    fd: &'a mut i32,
}

fn with_handles(plugin: &Plugin, verb: Verb, arguments: Arguments<'_>) -> Option<i32> {
    let Arguments { call, handles, text, fd } = arguments;
    let table = &plugin.table;
    let function: Option<WithHandles> = match verb {
        Verb::Isolate => table.isolate,
        Verb::Join => table.join,
        Verb::Limitation => table.limitation,
        Verb::Usage => table.usage,
        Verb::Status => table.status,
        // SAFETY: the handles and the text are whole, and they and `fd` live as long as the call.
        Verb::Watch => return table.watch.map(|watch| unsafe { watch(call, handles, fd) }),
        Verb::Update | Verb::UpdateIntelRdt => {
            let update = if verb == Verb::Update { table.update } else { table.update_intel_rdt };
            // SAFETY: as above.
            return update.map(|update| unsafe { update(call, handles, text.as_ptr()) });
        }
        _ => None,
    };
    // SAFETY: the handles are whole, and live as long as the call.
    function.map(|function| unsafe { function(call, handles) })
}

fn returned(verb: Verb, result: i32, sink: Sink, fd: i32) -> Reply {
    if result > 0 {
        return Reply::failed(&format!("it returned {result}, which is neither 0 nor a negative errno"));
    }
    if result < 0 {
        let errno = if sink.why.is_some() { sink.errno } else { result.saturating_neg() };
        return Reply { failed: true, errno, text: sink.why.unwrap_or_default(), fd: None };
    }
    if sink.is_full {
        return Reply::failed(&format!("it returned more than {MOST_RETURNED} bytes"));
    }
    if fd >= 0 && !descriptor::is_open(fd) {
        return Reply::failed(&format!("{} set descriptor {fd}, which is not open", verb.name()));
    }
    // SAFETY: it is open, and the plugin gives it away, the contract says.
    let fd = (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) });
    Reply { text: sink.text, fd, ..Reply::default() }
}

unsafe extern "C" fn write(call: *const Call, text: *const c_char, length: usize) -> i32 {
    // SAFETY: the plugin passes the structure on that it was given, which is ours and lives as long as the call.
    let Some(sink) = (unsafe { sink(call) }) else { return -libc::EINVAL };
    if length == 0 {
        return 0;
    }
    if text.is_null() || length > MOST_RETURNED - sink.text.len() {
        sink.is_full = true;
        return -libc::EMSGSIZE;
    }
    // SAFETY: the plugin says that there are as many bytes.
    sink.text.extend_from_slice(unsafe { std::slice::from_raw_parts(text.cast::<u8>(), length) });
    0
}

unsafe extern "C" fn fail(call: *const Call, error: i32, why: *const c_char) -> i32 {
    // SAFETY: as in `write`.
    if let Some(sink) = unsafe { sink(call) } {
        sink.errno = error.saturating_abs();
        // SAFETY: it is not null, and ends with a NUL, the contract says.
        sink.why = (!why.is_null()).then(|| unsafe { CStr::from_ptr(why) }.to_bytes().to_vec());
        if let Some(why) = &mut sink.why {
            why.truncate(MOST_WORDS);
        }
    }
    if error == 0 { -libc::EINVAL } else { -error.saturating_abs() }
}

/// How much of the reason for a failure is passed on, in bytes.
const MOST_WORDS: usize = 4096;

/// # Safety
/// `call` is null or the structure of the call that is being made.
unsafe fn sink<'a>(call: *const Call) -> Option<&'a mut Sink> {
    if call.is_null() {
        return None;
    }
    // SAFETY: it is the structure of this call.
    let host = unsafe { (*call).host };
    // SAFETY: `host` points to the call's sink, which nobody else uses while the plugin runs.
    unsafe { host.cast::<Sink>().as_mut() }
}
