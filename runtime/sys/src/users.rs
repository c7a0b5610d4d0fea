//! The maps of user namespaces: who may write one, who helps where the caller may not, and which IDs the caller was
//! allotted (user_namespaces(7), newuidmap(1), subuid(5)).

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::Command;

use crate::error::{Error, Result};
use crate::file::{self, Resolve};
use crate::identity;

/// The longest `/etc/subuid`, and the longest map, that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// A line of an ID map: the first ID inside, the first of whoever made the namespace, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// The first ID inside.
    pub inside: u32,
    /// The ID outside that it is mapped to.
    pub outside: u32,
    /// How many follow one another.
    pub count: u32,
}

/// The maps of a user namespace, the lines of each with rising IDs inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maps {
    /// Of users.
    pub users: Vec<Line>,
    /// Of groups.
    pub groups: Vec<Line>,
}

impl Maps {
    /// The caller as root, and nobody else.
    pub fn own() -> Self {
        let line = |outside| vec![Line { inside: 0, outside, count: 1 }];
        Self { users: line(identity::caller()), groups: line(identity::effective_group()) }
    }

    /// The caller as root, and behind it all that `/etc/subuid` and `/etc/subgid` allot to the caller; none where they allot
    /// nothing, or where newuidmap(1) and newgidmap(1) are not installed.
    ///
    /// # Errors
    /// Where a file can't be read.
    pub fn allotted() -> Result<Option<Self>> {
        let uid = identity::caller();
        let (name, number) = (name(uid).unwrap_or_default(), uid.to_string());
        let mut maps = Self::own();
        for (path, lines) in [("/etc/subuid", &mut maps.users), ("/etc/subgid", &mut maps.groups)] {
            let ranges = allotted(path, &[&name, &number])?;
            if ranges.is_empty() {
                return Ok(None);
            }
            for (outside, count) in ranges {
                let inside = lines.last().map_or(0, |line| line.inside + line.count);
                lines.push(Line { inside, outside, count: count.min(u32::MAX - 1 - inside) });
            }
        }
        Ok((is_program("newuidmap") && is_program("newgidmap")).then_some(maps))
    }

    /// Those of the calling process (`/proc/self/uid_map`).
    ///
    /// # Errors
    /// Where there is no procfs.
    pub fn current() -> Result<Self> {
        Self::of(file::open_dir("/proc/self")?.as_fd())
    }

    /// Those of the process whose directory in procfs is `process`.
    ///
    /// # Errors
    /// `ESRCH` where it is gone.
    pub fn of(process: BorrowedFd<'_>) -> Result<Self> {
        let read = |name: &str| {
            let text = file::read(process, name, LONGEST, Resolve::BeneathNoLinks)?;
            Ok::<_, Error>(lines(&String::from_utf8_lossy(&text)))
        };
        Ok(Self { users: read("uid_map")?, groups: read("gid_map")? })
    }

    /// Each as [`map`] takes it.
    pub fn texts(&self) -> [String; 2] {
        let text = |lines: &[Line]| {
            lines.iter().map(|line| format!("{} {} {}\n", line.inside, line.outside, line.count)).collect()
        };
        [text(&self.users), text(&self.groups)]
    }
}

/// The lines of a map, as `/proc/PID/uid_map` shows it and [`map`] takes it. Those that are malformed are left out.
pub fn lines(text: &str) -> Vec<Line> {
    text.lines().filter_map(line).collect()
}

/// Who `id` inside is outside, by the lines of a map.
pub fn outside(map: &[Line], id: u32) -> Option<u32> {
    translated(map, id, |line| (line.inside, line.outside))
}

/// Who `id` outside is inside, by the lines of a map.
pub fn inside(map: &[Line], id: u32) -> Option<u32> {
    translated(map, id, |line| (line.outside, line.inside))
}

/// `id` by the first line that has it, of which `ends` tells the first ID on its side, and that on the other.
fn translated(map: &[Line], id: u32, ends: impl Fn(&Line) -> (u32, u32)) -> Option<u32> {
    map.iter().find_map(|line| {
        let (from, to) = ends(line);
        let offset = id.checked_sub(from).filter(|offset| *offset < line.count)?;
        to.checked_add(offset)
    })
}

fn line(text: &str) -> Option<Line> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some(Line { inside: next()?, outside: next()?, count: next()? })
}

/// Whether the search path has a program of this name.
fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |dir: PathBuf| file::open(file::CWD, dir.join(name), libc::O_PATH, 0, Resolve::Host).is_ok();
    std::env::split_paths(&path).any(has)
}

/// Why the users or the groups of a namespace could not be mapped.
#[derive(Debug)]
pub struct Refused {
    /// Whether it is about groups.
    pub groups: bool,
    /// What went wrong.
    pub why: Why,
    /// The way out.
    pub hint: String,
}

/// What went wrong: a system call, or what a helper said.
#[derive(Debug)]
pub enum Why {
    /// The kernel refused.
    Call(Error),
    /// A helper did, in these words.
    Said(String),
}

/// Writes the ID maps of the new user namespace of the child `pid`, which hasn't been awaited, so that its PID is still its
/// own. Each line of a map is the first ID inside, the first of the caller's, and how many. What isn't the caller's own is
/// mapped by newuidmap(1) and newgidmap(1).
///
/// # Errors
/// Where an ID is not the caller's to map.
pub fn map(pid: i32, uid_map: &str, gid_map: &str) -> std::result::Result<(), Refused> {
    let write = |groups: bool, name: &str, text: &str| {
        let dir = file::open_dir(format!("/proc/{pid}"));
        let written =
            dir.and_then(|dir| file::write_to(dir.as_fd(), name, text.as_bytes(), Resolve::Beneath));
        let hint = "the caller must have these IDs itself, each mapped once".to_owned();
        written.map_err(|error| Refused { groups, why: Why::Call(error), hint })
    };
    let (uid, gid) = (identity::caller(), identity::effective_group());
    if uid == 0 || is_own(gid_map, gid) {
        if uid != 0 {
            // Else a group that takes rights away could be left (CVE-2014-8989).
            write(true, "setgroups", "deny")?;
        }
        write(true, "gid_map", gid_map)?;
    } else {
        by_helper("newgidmap", pid, gid_map)?;
    }
    if uid == 0 || is_own(uid_map, uid) {
        write(false, "uid_map", uid_map)
    } else {
        by_helper("newuidmap", pid, uid_map)
    }
}

/// Whether `map` maps the caller's own ID alone: the one map that it may write itself.
fn is_own(map: &str, id: u32) -> bool {
    let fields: Vec<&str> = map.split_whitespace().collect();
    matches!(fields.as_slice(), [_, host, "1"] if *host == id.to_string())
}

/// Maps by newuidmap(1) or newgidmap(1), which know from `/etc/subuid` and `/etc/subgid` what the caller may map.
fn by_helper(helper: &str, pid: i32, map: &str) -> std::result::Result<(), Refused> {
    let groups = helper == "newgidmap";
    let refused = |said: String, hint: String| Refused { groups, why: Why::Said(said), hint };
    #[expect(
        clippy::disallowed_methods,
        reason = "the helper of the host, which has the privilege that the caller lacks"
    )]
    let mut command = Command::new(helper);
    let output = command.arg(pid.to_string()).args(map.split_whitespace()).output();
    let output = output.map_err(|e| {
        let hint = "install the package uidmap, or map only your own ID";
        refused(format!("{helper} can't be run: {e}"), hint.to_owned())
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().lines().last().unwrap_or_default();
    let file = if groups { "/etc/subgid" } else { "/etc/subuid" };
    Err(refused(format!("{helper} refused: {said}"), format!("{file} must allot these IDs to the caller")))
}

/// The ranges of IDs that the file `path` allots to one of `owners`, by name or number: the first ID, and how many
/// (subuid(5)). None where there is no such file. No range has root in it, or goes beyond the last ID.
///
/// # Errors
/// Where it can't be read.
pub fn allotted(path: &str, owners: &[&str]) -> Result<Vec<(u32, u32)>> {
    match file::read(file::CWD, path, LONGEST, Resolve::Host) {
        Err(e) if e.errno() == nix::errno::Errno::ENOENT => Ok(Vec::new()),
        text => text.map(|text| ranges(&String::from_utf8_lossy(&text), owners)),
    }
}

/// The same of the text of such a file.
fn ranges(text: &str, owners: &[&str]) -> Vec<(u32, u32)> {
    let range = |line: &str| {
        let mut words = line.trim().split(':');
        let is_ours = words.next().is_some_and(|owner| owners.contains(&owner));
        let (first, count) = (words.next()?.parse::<u32>().ok()?, words.next()?.parse::<u32>().ok()?);
        (is_ours && first > 0 && count > 0 && first.checked_add(count).is_some()).then_some((first, count))
    };
    text.lines().filter_map(range).collect()
}

/// The name of the user with this ID, if it has one (getpwuid(3)).
pub fn name(uid: u32) -> Option<String> {
    nix::unistd::User::from_uid(uid.into()).ok().flatten().map(|user| user.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_map_of_the_own_id_alone_can_be_written_without_help() {
        assert!(is_own("0 1000 1\n", 1000));
        for more in ["0 1000 2\n", "0 1001 1\n", "0 1000 1\n1 100000 1\n", ""] {
            assert!(!is_own(more, 1000), "{more:?}");
        }
    }

    #[test]
    fn a_map_is_written_as_it_is_read() {
        let text = "0 1000 1\n1 100000 65536\n";
        let users = lines(text);
        assert_eq!(users[1], Line { inside: 1, outside: 100_000, count: 65536 });
        let maps = Maps { users, groups: lines("         0          0 4294967295\n") };
        assert_eq!(maps.texts(), [text, "0 0 4294967295\n"]);
        assert!(lines("0 1000\n0 1000 x\n\n").is_empty());
    }

    #[test]
    fn an_id_is_told_from_either_side() {
        let map = lines("0 100000 10\n10 500 1\n20 4294967290 10\n");
        assert_eq!(
            [0, 9, 10, 11, 29].map(|id| outside(&map, id)),
            [Some(100_000), Some(100_009), Some(500), None, None]
        );
        assert_eq!(
            [100_000, 100_009, 500, 501].map(|id| inside(&map, id)),
            [Some(0), Some(9), Some(10), None]
        );
        assert_eq!((outside(&[], 0), inside(&[], 0)), (None, None));
    }

    #[test]
    fn the_callers_maps_have_the_caller() {
        let maps = Maps::current().unwrap();
        assert!(outside(&maps.users, identity::caller()).is_some());
    }

    #[test]
    fn ranges_are_those_of_the_owner_by_name_or_number() {
        let text = "other:1:2\nme:100:10\n1000:500:5\nme:0:5\nme:7:0\nme:x:1\nme:4294967295:1\n\n";
        assert_eq!(ranges(text, &["me", "1000"]), [(100, 10), (500, 5)]);
    }
}
