//! Tables of mounts, as the kernel tells them (proc_pid_mountinfo(5)).

use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::file::{self, Resolve};

/// The longest table of mounts that is read, in bytes.
const LONGEST_TABLE: u64 = 64 << 20;

/// A line of a table of mounts (proc_pid_mountinfo(5)), with what the kernel writes in octal there, such as blanks (`\040`), as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The mount's number.
    pub id: u64,
    /// That of the mount which it is mounted on.
    pub parent: u64,
    /// The directory or file of the file system that it shows.
    pub root: PathBuf,
    /// Where it is mounted, for who has the root directory of the table's process.
    pub path: PathBuf,
    /// The type of the file system.
    pub fstype: String,
    /// The options of the file system, each a name alone or `NAME=VALUE`.
    pub options: Vec<OsString>,
}

impl Line {
    /// Reads a line; `None` where it is malformed.
    pub fn parse(text: &[u8]) -> Option<Self> {
        const OPTIONAL: usize = 6;
        let fields: Vec<&[u8]> = text.split(|byte| *byte == b' ').collect();
        let number = |at: usize| std::str::from_utf8(fields.get(at)?).ok()?.parse::<u64>().ok();
        // As many optional fields as there are, and then a hyphen.
        let end = OPTIONAL + fields.get(OPTIONAL..)?.iter().position(|field| *field == b"-")?;
        let [fstype, _source, options, ..] = *fields.get(end + 1..)? else { return None };
        Some(Self {
            id: number(0)?,
            parent: number(1)?,
            root: plain(fields.get(3)?).into(),
            path: plain(fields.get(4)?).into(),
            fstype: plain(fstype).into_string().ok()?,
            options: options.split(|byte| *byte == b',').map(plain).collect(),
        })
    }

    /// The value of the option `name`, where the file system has one.
    pub fn option(&self, name: &str) -> Option<&OsStr> {
        let mut options = self.options.iter().map(|option| option.as_bytes());
        let value = options.find_map(|option| option.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        value.map(OsStr::from_bytes)
    }
}

/// What the kernel has escaped, as it is.
fn plain(escaped: &[u8]) -> OsString {
    let (mut bytes, mut rest) = (Vec::new(), escaped);
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..3).filter(|_| *first == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        let (byte, after) = match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => (byte, &tail[3..]),
            None => (*first, tail),
        };
        bytes.push(byte);
        rest = after;
    }
    OsString::from_vec(bytes)
}

/// The caller's table of mounts: what is mounted over another comes after it.
///
/// # Errors
/// `ENOENT` where there is no procfs.
pub fn table() -> Result<Vec<Line>> {
    read_table("self")
}

/// That of the process `pid`.
///
/// # Errors
/// `ENOENT` where it is gone.
pub fn table_of(pid: i32) -> Result<Vec<Line>> {
    read_table(&pid.to_string())
}

fn read_table(process: &str) -> Result<Vec<Line>> {
    let path = format!("/proc/{process}/mountinfo");
    let table = file::read(file::CWD, path, LONGEST_TABLE, Resolve::Host)?;
    Ok(table.split(|byte| *byte == b'\n').filter_map(Line::parse).collect())
}

/// What the caller's table of mounts says of the mount that `fd` is on: its number, that of the one below, device, root and place
/// (proc_pid_mountinfo(5)). The number alone may be another's later.
///
/// # Errors
/// `ENOENT` where it is in another mount namespace.
pub fn entry(fd: BorrowedFd<'_>) -> Result<String> {
    let number = format!("{} ", file::mount_id(fd)?);
    let found = entries()?.into_iter().find(|entry| entry.starts_with(&number));
    found.ok_or_else(|| Error::new("read(/proc/self/mountinfo)", Errno::ENOENT))
}

/// Whether a mount of which [`entry`] told is there still.
///
/// # Errors
/// `ENOMEM`.
pub fn is_there(entry: &str) -> Result<bool> {
    Ok(entries()?.iter().any(|one| one == entry))
}

fn entries() -> Result<Vec<String>> {
    const FIELDS: usize = 5;
    let table = file::read(file::CWD, "/proc/self/mountinfo", LONGEST_TABLE, Resolve::Host)?;
    let entry = |line: &str| line.split(' ').take(FIELDS).collect::<Vec<_>>().join(" ");
    Ok(String::from_utf8_lossy(&table).lines().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_line_is_read_with_any_number_of_optional_fields() {
        let line = |optional: &str| {
            let text = format!("36 35 98:0 /mnt1 /mnt2 rw,noatime {optional}- ext3 /dev/root rw,errors=now");
            Line::parse(text.as_bytes()).unwrap()
        };
        let wanted = Line {
            id: 36,
            parent: 35,
            root: "/mnt1".into(),
            path: "/mnt2".into(),
            fstype: "ext3".to_owned(),
            options: vec!["rw".into(), "errors=now".into()],
        };
        for optional in ["", "master:1 ", "shared:2 master:1 propagate_from:3 "] {
            assert_eq!(line(optional), wanted, "{optional:?}");
        }
        // A source may have no name at all.
        assert!(Line::parse(b"1 0 0:1 / / rw - tmpfs  rw").is_some());
        for malformed in
            [&b""[..], b"1 0 0:1 / / rw", b"1 0 0:1 / / rw - ext4", b"x 0 0:1 / / rw - ext4 a rw"]
        {
            assert_eq!(Line::parse(malformed), None, "{malformed:?}");
        }
    }

    #[test]
    fn what_the_kernel_escapes_is_read_as_it_is() {
        let text = br"3 1 0:3 /r\040s /a\040b\134c\012 rw - overlay o rw,upperdir=/u\054v\040w,workdir=/\075";
        let line = Line::parse(text).unwrap();
        assert_eq!(line.root, Path::new("/r s"));
        assert_eq!(line.path, Path::new("/a b\\c\n"));
        assert_eq!(line.option("upperdir"), Some(OsStr::new("/u,v w")));
        assert_eq!(line.option("workdir"), Some(OsStr::new("/=")));
        assert_eq!((line.option("rw"), line.option("upper")), (None, None));
    }

    #[test]
    fn bytes_that_are_no_octal_and_no_text_stay() {
        let line = Line::parse(b"3 1 0:3 / /a\\9\\04\xff rw - sysfs s rw").unwrap();
        assert_eq!(line.path.as_os_str().as_bytes(), b"/a\\9\\04\xff");
    }

    #[test]
    fn the_callers_own_table_has_a_root() {
        for table in [table(), table_of(std::process::id().cast_signed())] {
            assert!(table.unwrap().iter().any(|line| line.path == Path::new("/")));
        }
    }
}
