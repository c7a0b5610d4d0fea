//! Who the process is: `user[:group]` looked up in the image's own `/etc/passwd` and `/etc/group`.
//!
//! The image wrote those files, so they are opened in its root, must be regular files, and are read no further
//! than a limit (CVE-2024-9676, CVE-2026-47262). A number is a decimal number in the kernel's range and
//! nothing else: what looks like one and is none is an error, never root (CVE-2024-40635, CVE-2026-30892).

use std::os::fd::{AsFd, BorrowedFd};

use coracle_sys::Errno;
use coracle_sys::file::{self, Resolve};

use crate::error::{Context, Error, Kind, Result};
use crate::store::is_missing;

/// The most bytes of `/etc/passwd` or `/etc/group`.
const LIMIT: u64 = 1 << 20;

/// The most additional groups: what setgroups(2) takes.
const GROUP_LIMIT: usize = 65536;

/// Who a process is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    pub home: String,
}

/// Looks up `text`, which is `user`, `user:group` or nothing, in the root directory `root`.
///
/// # Errors
/// [`Kind::NotFound`] where a name is unknown, [`Kind::Usage`] where a number is none.
pub(crate) fn look_up(root: BorrowedFd<'_>, text: &str) -> Result<Identity> {
    let looking = || format!("looking up user {text:?} in the image");
    let passwd = read(root, "etc/passwd").context(looking)?;
    let group = read(root, "etc/group").context(looking)?;
    identity(text, &passwd, &group).context(looking)
}

/// The home directory of the user with ID `uid`; `/` where nobody has it, or the list is a link that leads nowhere or to itself,
/// or no regular file (`/dev/null` over it), as with runc.
///
/// # Errors
/// As [`look_up`].
pub(crate) fn home(root: BorrowedFd<'_>, uid: u32) -> Result<String> {
    let looking = || format!("looking up user {uid} in the image");
    let passwd = match read(root, "etc/passwd") {
        Err(e) if e.errno() == Some(Errno::ELOOP) || e.kind() == Kind::Malformed => String::new(),
        read => read.context(looking)?,
    };
    Ok(identity(&uid.to_string(), &passwd, "").context(looking)?.home)
}

fn identity(text: &str, passwd: &str, group: &str) -> Result<Identity> {
    let (user, wanted_group) = match text.split_once(':') {
        // Nothing behind the colon is no group, as Docker and runc read it.
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    if user.is_empty() && text.contains(':') {
        return Err(Error::new(Kind::Usage, "user and group are both needed around a colon"));
    }
    let user = if user.is_empty() { "0" } else { user };
    let by_number = number(user);
    // A name wins over a number, as with chown(1): `useradd 1000` makes a user of that name.
    let entry = find(passwd, |f| f[0] == user)
        .or_else(|| find(passwd, |f| by_number.is_some() && f.get(2).and_then(|id| number(id)) == by_number));
    let uid = match (&entry, by_number) {
        (Some(entry), _) => {
            entry.get(2).and_then(|id| number(id)).ok_or_else(|| malformed("passwd", user))?
        }
        (None, Some(uid)) => uid,
        (None, None) => return Err(unknown("user", user, "passwd")),
    };
    let primary = entry.as_ref().and_then(|e| number(e.get(3)?));
    let gid = match wanted_group {
        Some(name) => group_id(group, name)?,
        None => primary.unwrap_or(0),
    };
    let name = entry.as_ref().map(|e| e[0]);
    let additional_gids = if wanted_group.is_none() { memberships(group, name) } else { Vec::new() };
    let home = entry.as_ref().and_then(|e| e.get(5)).filter(|h| !h.is_empty()).unwrap_or(&"/");
    Ok(Identity { uid, gid, additional_gids, home: (*home).to_owned() })
}

fn group_id(group: &str, name: &str) -> Result<u32> {
    match find(group, |f| f[0] == name) {
        Some(entry) => entry.get(2).and_then(|id| number(id)).ok_or_else(|| malformed("group", name)),
        None => number(name).ok_or_else(|| unknown("group", name, "group")),
    }
}

/// The groups that list `user` as a member.
fn memberships(group: &str, user: Option<&str>) -> Vec<u32> {
    let Some(user) = user else { return Vec::new() };
    group
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .filter(|fields| fields.get(3).is_some_and(|members| members.split(',').any(|m| m == user)))
        .filter_map(|fields| number(fields[2]))
        .take(GROUP_LIMIT)
        .collect()
}

fn find(file: &str, wanted: impl Fn(&[&str]) -> bool) -> Option<Vec<&str>> {
    file.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| wanted(fields))
}

/// A decimal number that can be a user's or group's: (uid_t)-1 is none.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id != u32::MAX)
}

fn unknown(what: &str, name: &str, file: &str) -> Error {
    if name.bytes().next().is_some_and(|b| b.is_ascii_digit() || b == b'-') {
        let why = format!("{name:?} is no {what} name in /etc/{file} and no number from 0 to 4294967294");
        return Error::new(Kind::Usage, why);
    }
    Error::new(Kind::NotFound, format!("the image's /etc/{file} has no {what} {name:?}"))
}

fn malformed(file: &str, name: &str) -> Error {
    Error::new(
        Kind::Malformed,
        format!("the line of {name:?} in the image's /etc/{file} has no valid number"),
    )
}

/// Reads a file of the image; one that is missing is empty.
fn read(root: BorrowedFd<'_>, path: &str) -> Result<String> {
    // By `O_PATH` first: opening a FIFO would wait, opening a device could do anything.
    let looked = file::open(root, path, libc::O_PATH, 0, Resolve::InRoot);
    if is_missing(&looked) {
        return Ok(String::new());
    }
    let is_regular = |fd: BorrowedFd<'_>| -> Result<()> {
        if file::stat(fd)?.st_mode & libc::S_IFMT == libc::S_IFREG {
            return Ok(());
        }
        Err(Error::new(Kind::Malformed, format!("the image's /{path} is no regular file")))
    };
    is_regular(looked?.as_fd())?;
    let fd = file::open(root, path, libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY, 0, Resolve::InRoot)?;
    is_regular(fd.as_fd())?;
    match file::read_all(fd, LIMIT) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) if e.errno() == Errno::EFBIG => {
            Err(Error::new(Kind::Limit, format!("the image's /{path} is over the limit of {LIMIT} bytes")))
        }
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/false\n\
                          1000:x:7:8::/odd:/bin/sh\nbad:x:-1:0::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlog:x:50:root,web\nssl:x:51:web\n";

    fn ids(text: &str) -> (u32, u32, Vec<u32>) {
        let found = identity(text, PASSWD, GROUP).unwrap();
        (found.uid, found.gid, found.additional_gids)
    }

    #[test]
    fn names_and_numbers_are_looked_up() {
        assert_eq!(ids(""), (0, 0, vec![50]));
        assert_eq!(ids("web"), (33, 34, vec![50, 51]));
        assert_eq!(ids("33"), (33, 34, vec![50, 51]));
        assert_eq!(ids("web:log"), (33, 50, vec![]));
        assert_eq!(ids("web:"), ids("web"));
        assert_eq!(ids("1001:"), ids("1001"));
        assert_eq!(ids("4711"), (4711, 0, vec![]));
        assert_eq!(ids("4711:4712"), (4711, 4712, vec![]));
        assert_eq!(ids("4294967294").0, 4_294_967_294);
    }

    #[test]
    fn a_user_whose_name_is_a_number_is_that_user() {
        assert_eq!(ids("1000").0, 7);
    }

    #[test]
    fn what_is_no_number_is_an_error_and_never_root() {
        for text in
            ["1000abc", "-1", "4294967295", "4294967296", "0x3e8", " 1000", ":0", ":", "٠", "web:nope", "bad"]
        {
            assert!(identity(text, PASSWD, GROUP).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn the_home_directory_comes_from_passwd() {
        assert_eq!(identity("web", PASSWD, GROUP).unwrap().home, "/srv");
        assert_eq!(identity("4711", PASSWD, GROUP).unwrap().home, "/");
    }

    #[test]
    fn a_passwd_that_is_no_regular_file_is_refused_at_once() {
        let scratch = tempfile::tempdir().unwrap();
        let root = file::open_dir(scratch.path()).unwrap();
        file::mkdir(root.as_fd(), "etc", 0o755).unwrap();
        let etc = file::open_dir(scratch.path().join("etc")).unwrap();
        file::mknod(etc.as_fd(), "passwd", libc::S_IFIFO | 0o644, 0).unwrap();
        let error = look_up(root.as_fd(), "web").unwrap_err();
        let expected = "looking up user \"web\" in the image: the image's /etc/passwd is no regular file";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_passwd_that_is_a_link_out_of_the_root_stays_inside() {
        let scratch = tempfile::tempdir().unwrap();
        let root = file::open_dir(scratch.path()).unwrap();
        file::mkdir(root.as_fd(), "etc", 0o755).unwrap();
        let etc = file::open_dir(scratch.path().join("etc")).unwrap();
        file::symlink("/../../../../etc/group", etc.as_fd(), "passwd").unwrap();
        assert!(look_up(root.as_fd(), "daemon").is_err());
    }
}
