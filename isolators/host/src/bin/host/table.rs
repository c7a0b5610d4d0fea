//! Loading a plugin and reading its table.

use std::ffi::{CStr, CString, c_char, c_void};
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{IntoRawFd, OwnedFd};

use coracle_isolator::Kind;
use coracle_isolator::export::flag;
use coracle_isolator_abi::table::{CORACLE_ISOLATOR_ABI, CORACLE_ISOLATOR_ALL, Isolator};
use coracle_isolator_abi::{SYMBOL, Verb};
use coracle_isolator_host::about::{About, is_name};

/// The parts of a table that every table has.
const SHORTEST: usize = offset_of!(Isolator, configure);
/// How many names `after` and `before` may hold.
const MOST_NAMES: usize = 64;

/// A plugin that is loaded; never unloaded.
pub(crate) struct Plugin {
    /// A copy of its table, as long as both sides know it; what it is too short for is NULL.
    pub(crate) table: Isolator,
    /// The directory of the containers' states.
    pub(crate) states: CString,
}

/// Loads the shared object `file`, and reads its table. What is wrong with the table is told in it; the plugin must not be
/// called then.
///
/// # Errors
/// Where there is no table to be read, or one of another version.
pub(crate) fn load(file: OwnedFd, states: &CStr) -> Result<(Plugin, About), String> {
    // By its descriptor: what was checked is what is loaded. It stays open, as the loader knows objects by their names.
    let path = format!("/proc/self/fd/{}", file.into_raw_fd());
    let table = find(&path)?;
    if table.is_null() {
        return Err(format!("{SYMBOL}() returned NULL"));
    }
    // SAFETY: a table begins with its version and its size, in every version.
    let [version, size] = unsafe { table.cast::<[u32; 2]>().read_unaligned() };
    if version != CORACLE_ISOLATOR_ABI {
        return Err(format!(
            "it speaks version {version} of the isolator contract, and this runtime version {CORACLE_ISOLATOR_ABI}; \
             build it with the header of this runtime"
        ));
    }
    let size = size as usize;
    if size < SHORTEST {
        return Err(format!("its struct_size is {size}, and every table has at least {SHORTEST} bytes"));
    }
    let known = size.min(size_of::<Isolator>()) / size_of::<usize>() * size_of::<usize>();
    let mut copy = MaybeUninit::<Isolator>::zeroed();
    // SAFETY: the table has `size` bytes, the copy has room for `known`, which is no more than either.
    unsafe { std::ptr::copy_nonoverlapping(table.cast::<u8>(), copy.as_mut_ptr().cast::<u8>(), known) };
    // SAFETY: zero is a valid value of every field: numbers, pointers, functions that may be missing.
    let plugin = Plugin { table: unsafe { copy.assume_init() }, states: states.to_owned() };
    let about = about(&plugin.table);
    Ok((plugin, about))
}

fn find(path: &str) -> Result<*const Isolator, String> {
    let name = [path.as_bytes(), b"\0"].concat();
    // SAFETY: the name ends with a NUL. The object's constructors run, which is why this process is confined.
    let object = unsafe { libc::dlopen(name.as_ptr().cast(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if object.is_null() {
        let why = loader_error();
        return Err(why
            .strip_prefix(path)
            .and_then(|rest| rest.strip_prefix(": "))
            .unwrap_or(&why)
            .to_owned());
    }
    let symbol = [SYMBOL.as_bytes(), b"\0"].concat();
    // SAFETY: the object is loaded, the name ends with a NUL.
    let function = unsafe { libc::dlsym(object, symbol.as_ptr().cast()) };
    if function.is_null() {
        return Err(format!("it does not export {SYMBOL}(); is it an isolator?"));
    }
    // SAFETY: what has this name is this function, the contract says.
    let function: extern "C" fn() -> *const Isolator =
        unsafe { std::mem::transmute::<*mut c_void, extern "C" fn() -> *const Isolator>(function) };
    Ok(function())
}

fn loader_error() -> String {
    // SAFETY: no other thread loads anything, so that the text stays until the next call.
    let error = unsafe { libc::dlerror() };
    if error.is_null() {
        return "it can't be loaded".to_owned();
    }
    // SAFETY: the loader's texts end with a NUL.
    unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned()
}

/// What the table says, with all that is wrong with it.
fn about(table: &Isolator) -> About {
    let mut problems = Vec::new();
    let mut take = |what: &str, read: Result<String, String>| {
        read.unwrap_or_else(|why| {
            problems.push(format!("its {what} {why}"));
            String::new()
        })
    };
    let name = take("name", text(table.name));
    let version = take("version", text(table.version));
    let [after, before] = [("after", table.after), ("before", table.before)].map(|(what, list)| {
        names(list).unwrap_or_else(|why| {
            problems.push(format!("its list {what:?} {why}"));
            Vec::new()
        })
    });
    if !name.is_empty() && !is_name(&name) {
        problems.push(format!("its name {name:?} is not of the form family/subject"));
    }
    if table.flags & !CORACLE_ISOLATOR_ALL != 0 {
        problems.push(format!("its flags {:#x} hold some that this runtime does not know", table.flags));
    }
    if table.flags & CORACLE_ISOLATOR_ALL == 0 {
        problems.push("its flags name no kind of container that it supports".to_owned());
    }
    if after.contains(&name) || before.contains(&name) {
        problems.push("it is to go before or after itself".to_owned());
    }
    let supports = Kind::ALL.into_iter().filter(|kind| table.flags & flag(*kind) != 0).collect();
    let calls = Verb::ALL.into_iter().filter(|verb| has(table, *verb)).map(|verb| verb.name().to_owned());
    About { name, version, after, before, supports, calls: calls.collect(), problems }
}

/// Whether a function stands in the table.
pub(crate) fn has(table: &Isolator, verb: Verb) -> bool {
    match verb {
        Verb::Configure => table.configure.is_some(),
        Verb::Recover => table.recover.is_some(),
        Verb::Prepare => table.prepare.is_some(),
        Verb::Process => table.process.is_some(),
        Verb::Validate => table.validate.is_some(),
        Verb::Isolate => table.isolate.is_some(),
        Verb::Join => table.join.is_some(),
        Verb::Watch => table.watch.is_some(),
        Verb::Limitation => table.limitation.is_some(),
        Verb::Update => table.update.is_some(),
        Verb::Usage => table.usage.is_some(),
        Verb::Status => table.status.is_some(),
        Verb::Cleanup => table.cleanup.is_some(),
        Verb::UpdateIntelRdt => table.update_intel_rdt.is_some(),
        Verb::GiveBack => table.give_back.is_some(),
        Verb::Provide => table.provide.is_some(),
    }
}

fn text(pointer: *const c_char) -> Result<String, String> {
    if pointer.is_null() {
        return Err("is NULL".to_owned());
    }
    // SAFETY: a text of a table ends with a NUL, the contract says.
    let text = unsafe { CStr::from_ptr(pointer) }.to_str().map_err(|_| "is no UTF-8".to_owned())?;
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }
}

fn names(mut list: *const *const c_char) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    if list.is_null() {
        return Ok(names);
    }
    loop {
        // SAFETY: the list goes on until its NULL, the contract says.
        let name = unsafe { list.read() };
        if name.is_null() {
            return Ok(names);
        }
        if names.len() == MOST_NAMES {
            return Err(format!("has no NULL among its first {MOST_NAMES} names"));
        }
        names.push(text(name).map_err(|why| format!("holds a name that {why}"))?);
        // SAFETY: this was not its NULL, so that there is one more.
        list = unsafe { list.add(1) };
    }
}
