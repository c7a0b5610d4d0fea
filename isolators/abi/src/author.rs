//! The author's side of the border: an isolator in Rust as a table.
//!
//! [`Author`] is the isolator as this side sees it: calls with texts and open files, in safe types. A shared object holds
//! one, named by [`export`].

use std::ffi::{CStr, CString, c_char};
use std::mem::offset_of;
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use crate::Verb;
use crate::table::{CORACLE_ISOLATOR_ABI, Call, Handles, Isolator};

/// What stands in the table before its functions.
#[derive(Debug, Clone, Default)]
pub struct About {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Who goes first.
    pub after: Vec<String>,
    /// Who goes later.
    pub before: Vec<String>,
    /// For which kinds of container it does its work: `CORACLE_ISOLATOR_OCI` and so on.
    pub flags: u64,
}

/// A container, as a call is given it.
#[derive(Debug)]
pub struct Container<'a> {
    /// Its ID.
    pub id: &'a str,
    /// A process of it.
    pub pidfd: Option<BorrowedFd<'a>>,
    /// Its configuration.
    pub spec: &'a str,
    /// The version of cgroups, 1 or 2.
    pub cgroup_version: u32,
    /// Its cgroups: the controllers of a hierarchy, and the directory in it.
    pub cgroups: Vec<(&'a str, BorrowedFd<'a>)>,
}

/// What a call is given: the document, empty where there is none, and the container.
#[derive(Debug)]
pub struct Given<'a> {
    /// The directory of the containers' states; empty where the host does not tell.
    pub states: &'a str,
    /// The document.
    pub text: &'a str,
    /// The container.
    pub container: Option<Container<'a>>,
}

/// What a call returns.
#[derive(Debug, Default)]
pub struct Returned {
    /// The document; empty for none.
    pub text: String,
    /// The descriptor of `watch`.
    pub fd: Option<OwnedFd>,
}

/// Why a call fails: for programs an errno, for people the words.
#[derive(Debug)]
pub struct Failure {
    /// An errno.
    pub errno: i32,
    /// Why.
    pub why: String,
}

/// An isolator as this side of the border sees it.
pub trait Author: Send + Sync {
    /// What stands in its table.
    fn about(&self) -> About;

    /// Makes the call `verb`.
    ///
    /// # Errors
    /// What the isolator fails with.
    fn call(&self, verb: Verb, given: &Given<'_>) -> Result<Returned, Failure>;
}

static AUTHOR: OnceLock<Box<dyn Author>> = OnceLock::new();
static TABLE: OnceLock<Isolator> = OnceLock::new();

/// The table of the isolator that `make` makes, the same at each call. What `make` makes at a later call is not used: a
/// shared object holds one isolator.
pub fn export(make: impl FnOnce() -> Box<dyn Author>) -> *const Isolator {
    let author = AUTHOR.get_or_init(make);
    TABLE.get_or_init(|| table(author.about()))
}

/// A table lives as long as its shared object, which is never unloaded: its texts are never freed.
fn table(about: About) -> Isolator {
    let text = |text: String| -> *const c_char { CString::new(text).unwrap_or_default().into_raw() };
    let list = |names: Vec<String>| -> *const *const c_char {
        let ended = names.into_iter().map(text).chain([std::ptr::null()]);
        Box::leak(ended.collect::<Vec<_>>().into_boxed_slice()).as_ptr()
    };
    Isolator {
        abi_version: CORACLE_ISOLATOR_ABI,
        struct_size: size_of::<Isolator>() as u32,
        name: text(about.name),
        version: text(about.version),
        after: list(about.after),
        before: list(about.before),
        flags: about.flags,
        configure: Some(configure),
        recover: Some(recover),
        prepare: Some(prepare),
        process: Some(process),
        validate: Some(validate),
        isolate: Some(isolate),
        join: Some(join),
        watch: Some(watch),
        limitation: Some(limitation),
        update: Some(update),
        usage: Some(usage),
        status: Some(status),
        cleanup: Some(cleanup),
        update_intel_rdt: Some(update_intel_rdt),
        give_back: Some(give_back),
        provide: Some(provide),
    }
}

/// Functions of the table that are given a document or a container.
macro_rules! functions {
    ($($name:ident $verb:ident $text:ident $container:ident,)*) => {$(
        unsafe extern "C" fn $name(call: *const Call, given: *const functions!(@ $text $container)) -> i32 {
            // SAFETY: the host calls with what the contract says, which is what `run` asks for.
            unsafe { functions!(@ $text $container Verb::$verb, call, given) }
        }
    )*};
    (@ text none) => { c_char };
    (@ none container) => { Handles };
    (@ text none $verb:expr, $call:ident, $given:ident) => {
        run($verb, $call, ($given, std::ptr::null()), std::ptr::null_mut())
    };
    (@ none container $verb:expr, $call:ident, $given:ident) => {
        run($verb, $call, (std::ptr::null(), $given), std::ptr::null_mut())
    };
}

functions! {
    configure Configure text none,
    recover Recover text none,
    prepare Prepare text none,
    process Process text none,
    validate Validate text none,
    isolate Isolate none container,
    join Join none container,
    limitation Limitation none container,
    usage Usage none container,
    status Status none container,
    cleanup Cleanup text none,
    give_back GiveBack text none,
    provide Provide text none,
}

unsafe extern "C" fn watch(call: *const Call, container: *const Handles, fd: *mut i32) -> i32 {
    // SAFETY: the host calls with what the contract says, which is what `run` asks for.
    unsafe { run(Verb::Watch, call, (std::ptr::null(), container), fd) }
}

unsafe extern "C" fn update(call: *const Call, container: *const Handles, resources: *const c_char) -> i32 {
    // SAFETY: the host calls with what the contract says, which is what `run` asks for.
    unsafe { run(Verb::Update, call, (resources, container), std::ptr::null_mut()) }
}

unsafe extern "C" fn update_intel_rdt(
    call: *const Call,
    container: *const Handles,
    rdt: *const c_char,
) -> i32 {
    // SAFETY: the host calls with what the contract says, which is what `run` asks for.
    unsafe { run(Verb::UpdateIntelRdt, call, (rdt, container), std::ptr::null_mut()) }
}

/// Makes one call. No panic leaves it.
///
/// # Safety
/// `call` is the host's for this call. The text is null or ends with a NUL, the handles are null or whole, `fd` is null or
/// to be written to; all of them live until this returns.
unsafe fn run(verb: Verb, call: *const Call, given: (*const c_char, *const Handles), fd: *mut i32) -> i32 {
    let made = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: as the caller of this function says.
        let states = unsafe { states(call)? };
        // SAFETY: likewise.
        let text = unsafe { text(given.0)? };
        // SAFETY: likewise.
        let given = Given { states, text, container: unsafe { container(given.1)? } };
        let author = AUTHOR.get().ok_or_else(|| failure(EINVAL, "there is no isolator"))?;
        author.call(verb, &given)
    }));
    let returned = match made {
        Ok(Ok(returned)) => returned,
        // SAFETY: `call` is the host's.
        Ok(Err(failure)) => return unsafe { fail(call, &failure) },
        // SAFETY: `call` is the host's. What a panic says has been said on the standard error.
        Err(_) => return unsafe { fail(call, &failure(EINVAL, "it panicked")) },
    };
    if let (Some(owned), false) = (returned.fd, fd.is_null()) {
        // SAFETY: it is not null, and the caller of this function says that it may be written to.
        unsafe { fd.write(owned.into_raw_fd()) };
    }
    if returned.text.is_empty() {
        return 0;
    }
    // SAFETY: the host's structure is whole.
    let write = unsafe { (*call).write };
    // SAFETY: it takes a text and its length.
    unsafe { write(call, returned.text.as_ptr().cast(), returned.text.len()) }
}

/// linux/errno.h.
const EINVAL: i32 = 22;

fn failure(errno: i32, why: &str) -> Failure {
    Failure { errno, why: why.to_owned() }
}

/// # Safety
/// `call` is the host's for this call.
unsafe fn fail(call: *const Call, failure: &Failure) -> i32 {
    let why = CString::new(failure.why.replace('\0', " ")).unwrap_or_default();
    // SAFETY: the host's structure is whole.
    let fail = unsafe { (*call).fail };
    // SAFETY: it takes a number and a text that ends with a NUL.
    unsafe { fail(call, failure.errno, why.as_ptr()) }
}

/// # Safety
/// `call` is the host's for this call.
unsafe fn states<'a>(call: *const Call) -> Result<&'a str, Failure> {
    // SAFETY: every structure of a call begins with its size.
    let size = unsafe { call.cast::<u32>().read() };
    if (size as usize) < offset_of!(Call, states) + size_of::<*const c_char>() {
        return Ok("");
    }
    // SAFETY: it is long enough to hold the text.
    let states = unsafe { (*call).states };
    // SAFETY: the text is the host's, and ends with a NUL.
    unsafe { text(states) }
}

/// # Safety
/// `pointer` is null or a text that ends with a NUL, which lives as long as the result.
unsafe fn text<'a>(pointer: *const c_char) -> Result<&'a str, Failure> {
    if pointer.is_null() {
        return Ok("");
    }
    // SAFETY: it is not null, and the rest the caller of this function says.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map_err(|_| failure(EINVAL, "the host's document is no UTF-8"))
}

/// # Safety
/// `pointer` is null or whole handles, which live as long as the result.
unsafe fn container<'a>(pointer: *const Handles) -> Result<Option<Container<'a>>, Failure> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: they are not null, and the rest the caller of this function says.
    let handles = unsafe { &*pointer };
    let groups = match handles.cgroup_count {
        0 => &[][..],
        // SAFETY: there are as many as the host says.
        count => unsafe { std::slice::from_raw_parts(handles.cgroups, count as usize) },
    };
    let mut cgroups = Vec::with_capacity(groups.len());
    for group in groups {
        // SAFETY: the text is the host's, and ends with a NUL.
        let controllers = unsafe { text(group.controllers)? };
        // SAFETY: the descriptor is open for the call, and lent for no longer.
        cgroups.push((controllers, unsafe { BorrowedFd::borrow_raw(group.fd) }));
    }
    Ok(Some(Container {
        // SAFETY: the text is the host's, and ends with a NUL.
        id: unsafe { text(handles.id)? },
        // SAFETY: the descriptor is open for the call, and lent for no longer.
        pidfd: (handles.pidfd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(handles.pidfd) }),
        // SAFETY: the text is the host's, and ends with a NUL.
        spec: unsafe { text(handles.spec)? },
        cgroup_version: handles.cgroup_version,
        cgroups,
    }))
}
