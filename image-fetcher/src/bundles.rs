//! `unpack` into a bundle, also by a user without privilege: in a user namespace of the IDs that the user was allotted, or,
//! where there are none, as the user alone.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use coracle_image::store::Store;
use coracle_image::{Context, Error, Kind, Result, bundle};
use coracle_sys::users::{self, Line, Maps, Why};
use coracle_sys::{descriptor, identity, process, socket};

use crate::cli::{Args, say, usage};

/// What is said once the IDs are mapped.
const GO: &[u8] = b"go";

/// The most that is said of what came of it, in bytes.
const MOST: usize = 1 << 16;

/// Codes to exit with, as `main` has them.
const FAILED: u8 = 1;
const MISUSED: u8 = 2;

/// Unpacks an image into a bundle, as `args` say.
pub(crate) fn unpack(store: &Path, args: &Args, out: &mut Vec<u8>) -> Result<()> {
    let unpack = |maps: Option<&Maps>| {
        let store = Store::open(store)?;
        let image = store.image(args.word(1))?;
        let path = args.path(2).ok_or_else(|| usage("unpack needs a directory"))?;
        bundle::unpack(&store, &image, path, (args.limits(), maps))?;
        Ok(format!("{}: {} layers unpacked\n", image.reference, image.layers.len()))
    };
    if !args.rootless() {
        if identity::caller() != 0 {
            return Err(usage("files can only be given to their owners by root").hint("add --rootless"));
        }
        return say(out, &unpack(None)?);
    }
    let allotted = if identity::caller() == 0 { None } else { Maps::allotted()? };
    let said = match &allotted {
        Some(maps) => inside(maps, || unpack(Some(maps)))?,
        None => unpack(Some(&own()?))?,
    };
    say(out, &said)
}

/// The IDs that the caller has without asking anybody: those of the user namespace that it is root of, or its own.
fn own() -> Result<Maps> {
    if identity::caller() != 0 || !identity::is_rootless() {
        return Ok(Maps::own());
    }
    // As seen from the caller's namespace, in which the container's will be.
    let seen = |lines: Vec<Line>| lines.into_iter().map(|l| Line { outside: l.inside, ..l }).collect();
    let current = Maps::current()?;
    Ok(Maps { users: seen(current.users), groups: seen(current.groups) })
}

/// Does `work` in a process in a new user namespace with these maps, and returns what it says.
fn inside(maps: &Maps, work: impl FnOnce() -> Result<String>) -> Result<String> {
    let entering = || "entering a user namespace";
    let (ours, theirs) = socket::pair().context(entering)?;
    let child = process::spawn(libc::CLONE_NEWUSER, None, || {
        // Where the caller is gone, there is nothing to do.
        let told = process::die_with_parent(true)
            .and_then(|()| descriptor::close_all_but(&[theirs.as_raw_fd()]))
            .and_then(|()| socket::receive(theirs.as_fd(), GO.len()));
        i32::from(match told {
            Ok(Some(_)) => tell(theirs.as_fd(), work()),
            _ => FAILED,
        })
    });
    let refused =
        |e| Error::from(e).hint("user namespaces have to be allowed, see /proc/sys/user/max_user_namespaces");
    let child = child.map_err(refused).context(entering)?;
    drop(theirs);
    let [uid_map, gid_map] = maps.texts();
    let mapped = users::map(child.pid, &uid_map, &gid_map).map_err(unmapped);
    let went = mapped.and_then(|()| Ok(socket::send(ours.as_fd(), GO, &[])?));
    let said = went.and_then(|()| Ok(socket::receive(ours.as_fd(), MOST)?)).context(entering);
    // It ends where nobody tells it to go on.
    drop(ours);
    let exit = process::wait(child.pidfd.as_fd())?;
    let Some((bytes, _)) = said? else {
        return Err(Error::new(Kind::System, format!("the process that unpacks ended by {exit:?}")));
    };
    let text = String::from_utf8_lossy(&bytes).into_owned();
    match exit.code() {
        0 => Ok(text),
        MISUSED => Err(Error::new(Kind::Usage, text)),
        _ => Err(Error::new(Kind::System, text)),
    }
}

/// Says what came of it, and returns the code to exit with.
fn tell(to: BorrowedFd<'_>, result: Result<String>) -> u8 {
    let (text, code) = match result {
        Ok(text) => (text, 0),
        Err(e) => (e.to_string(), if e.kind() == Kind::Usage { MISUSED } else { FAILED }),
    };
    let bytes = text.as_bytes();
    socket::send(to, &bytes[..bytes.len().min(MOST)], &[]).map_or(FAILED, |()| code)
}

fn unmapped(refused: users::Refused) -> Error {
    let error = match refused.why {
        Why::Call(error) => Error::from(error),
        Why::Said(said) => Error::new(Kind::System, said),
    };
    error.hint(refused.hint)
}
