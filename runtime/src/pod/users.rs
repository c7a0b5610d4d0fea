//! The users of a pod whose users are not the host's: a range of IDs that no other pod has, on record for as long as the
//! pod is there.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use coracle_image::snapshot::Owners;
use coracle_sys::{file, users};
use serde::{Deserialize, Serialize};

use super::record::{self, Directory, PODS};
use crate::error::{Code, Context, Error, Result};
use crate::stages::plan::namespaces::Namespaces;
use crate::stages::spawn::owners;

/// How many IDs a pod gets: all that 16 bits can name, as images expect.
const COUNT: u32 = 1 << 16;

/// Where ranges are taken from unless `/etc/subuid` and `/etc/subgid` say so: what no convention gives to anybody else
/// (systemd.io/UIDS-GIDS, "Unused").
const UNUSED: Range = Range { first: 0x7000_0000, count: 0x0FFF_0000 };

/// Whose lines of `/etc/subuid` and `/etc/subgid` count.
const OWNER: &str = "coracle";

/// IDs of the host, of users and groups alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The first: the pod's root.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl Range {
    /// The map of a user namespace, as `/proc/PID/uid_map` wants it.
    pub fn map(self) -> String {
        format!("0 {} {}\n", self.first, self.count)
    }

    /// What the namespaces of a process are mapped by.
    pub fn namespaces(self) -> Namespaces {
        Namespaces {
            new: libc::CLONE_NEWUSER,
            uid_map: self.map(),
            gid_map: self.map(),
            ..Namespaces::default()
        }
    }

    /// A user namespace that is there for its map alone.
    ///
    /// # Errors
    /// `EINVAL` where the caller has not all of the range.
    pub fn open(self) -> Result<OwnedFd> {
        owners::user_namespace(&self.map(), &self.map()).context(|| "mapping the pod's users")
    }

    /// Whose files are with the map of `namespace`.
    pub fn owners(self, namespace: &impl AsFd) -> Owners<'_> {
        Owners { namespace: namespace.as_fd(), first: self.first, count: self.count }
    }

    fn overlaps(self, other: Self) -> bool {
        self.first < other.first.saturating_add(other.count)
            && other.first < self.first.saturating_add(self.count)
    }
}

/// Has `write` put a range on record that no pod below `root` has. Nobody else chooses meanwhile.
///
/// # Errors
/// `System` where all are taken, or a pod's record can't be read.
pub fn choose(root: &Path, write: impl FnOnce(Range) -> Result<()>) -> Result<()> {
    let pods = file::open_dir(root.join(PODS))?;
    file::lock(pods.as_fd(), true)?;
    let mut taken = Vec::new();
    for name in record::names(root)? {
        let record = match Directory::open(root, &name) {
            Err(e) if e.code() == Code::NotFound => continue,
            dir => dir?.record()?,
        };
        taken.extend(record.and_then(|record| record.users));
    }
    let ranges = allotted()?;
    let free = free(&ranges, &taken).ok_or_else(|| {
        Error::new(Code::System, format!("all ranges of IDs for users of pods are taken, by {}", taken.len()))
            .hint(format!("allot more to {OWNER:?} in /etc/subuid and /etc/subgid"))
    });
    write(free?)
}

/// The first range for a pod in `ranges` that none of `taken` has a part of.
fn free(ranges: &[Range], taken: &[Range]) -> Option<Range> {
    let parts = |whole: &Range| {
        let first = whole.first;
        (0..whole.count / COUNT).map(move |index| Range { first: first + index * COUNT, count: COUNT })
    };
    ranges.iter().flat_map(parts).find(|part| !taken.iter().any(|other| part.overlaps(*other)))
}

/// What the operator has allotted to pods: ranges that stand in both files; without such a line, what nobody uses.
fn allotted() -> Result<Vec<Range>> {
    let read = |path: &str| {
        let ranges = users::allotted(path, &[OWNER]).context(|| format!("reading {path}"))?;
        Ok::<_, Error>(ranges.into_iter().map(|(first, count)| Range { first, count }).collect::<Vec<_>>())
    };
    let (users, groups) = (read("/etc/subuid")?, read("/etc/subgid")?);
    let both: Vec<Range> = users.iter().filter(|range| groups.contains(range)).copied().collect();
    match (both.is_empty(), users.is_empty() && groups.is_empty()) {
        (true, true) => Ok(vec![UNUSED]),
        (true, false) => {
            let why = format!("/etc/subuid and /etc/subgid allot no range to {OWNER:?} in common");
            Err(Error::new(Code::System, why)
                .hint("users and groups of a pod have the same range: write the same line to both"))
        }
        _ => Ok(both),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_range_that_nobody_has_a_part_of_is_free() {
        let all = [Range { first: 1000, count: 3 * COUNT }];
        assert_eq!(free(&all, &[]), Some(Range { first: 1000, count: COUNT }));
        let other = Range { first: 1000 + COUNT - 1, count: 1 };
        assert_eq!(free(&all, &[other]).map(|range| range.first), Some(1000 + COUNT));
        let most = Range { first: 0, count: 1000 + 2 * COUNT + 1 };
        assert_eq!(free(&all, &[most]), None);
        assert_eq!(free(&[Range { first: 5, count: COUNT - 1 }], &[]), None);
    }
}
