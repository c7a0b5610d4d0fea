//! Whom files can be given to, and how it is noted where that is not whom they belong to.

use coracle_sys::users::{Line, Maps};

use super::entry::Metadata;

/// To whom files can be given by who unpacks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Owners {
    /// To all, by the host's root, who makes devices and sets attributes of all kinds besides.
    #[default]
    All,
    /// To so many users and groups, from 0 on; 0 is the caller.
    Few {
        /// How many users.
        users: u32,
        /// How many groups.
        groups: u32,
    },
}

/// In a note: the file's owner is the one that it has.
const SAME: u32 = u32::MAX;

impl Owners {
    /// Those that these maps have, without a gap from 0 on.
    pub fn of(maps: &Maps) -> Self {
        let count = |lines: &[Line]| {
            lines.iter().fold(0, |end, line| if line.inside == end { end + line.count } else { end })
        };
        Self::Few { users: count(&maps.users), groups: count(&maps.groups) }
    }

    /// Whom the file is given to.
    pub(super) fn given(self, metadata: &Metadata) -> (u32, u32) {
        let [user, group] = self.noted_ids(metadata);
        let or_caller = |id: u32, noted: u32| if noted == SAME { id } else { 0 };
        (or_caller(metadata.uid, user), or_caller(metadata.gid, group))
    }

    /// The permissions that the file gets: a set-ID bit means the owner that the file belongs to, and no other.
    pub(super) fn mode(self, metadata: &Metadata) -> u32 {
        let [user, group] = self.noted_ids(metadata);
        let lost = |noted: u32, bit: u32| if noted == SAME { 0 } else { bit };
        metadata.mode & !(lost(user, libc::S_ISUID) | lost(group, libc::S_ISGID))
    }

    /// The value of `user.rootlesscontainers` where the file is given to another than it belongs to: a protocol buffer of
    /// `uint32 uid = 1; uint32 gid = 2;`, which other tools write, too (rootlesscontaine.rs).
    pub(super) fn note(self, metadata: &Metadata) -> Option<Vec<u8>> {
        let ids = self.noted_ids(metadata);
        if ids == [SAME, SAME] {
            return None;
        }
        let mut note = Vec::new();
        for (tag, mut id) in [0x08, 0x10].into_iter().zip(ids) {
            note.push(tag);
            while id >= 0x80 {
                note.push(id as u8 | 0x80);
                id >>= 7;
            }
            note.push(id as u8);
        }
        Some(note)
    }

    fn noted_ids(self, metadata: &Metadata) -> [u32; 2] {
        let Self::Few { users, groups } = self else { return [SAME, SAME] };
        [(metadata.uid, users), (metadata.gid, groups)].map(|(id, few)| if id < few { SAME } else { id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(uid: u32, gid: u32) -> Metadata {
        Metadata { uid, gid, ..Metadata::default() }
    }

    #[test]
    fn what_can_be_given_is_given_and_the_rest_is_noted() {
        let few = Owners::Few { users: 10, groups: 1 };
        assert_eq!(few.given(&metadata(9, 0)), (9, 0));
        assert_eq!(few.note(&metadata(9, 0)), None);
        assert_eq!(few.given(&metadata(9, 5)), (9, 0));
        assert_eq!(few.note(&metadata(9, 5)).unwrap(), b"\x08\xff\xff\xff\xff\x0f\x10\x05");
        assert_eq!(few.note(&metadata(65_536, 100_000)).unwrap(), b"\x08\x80\x80\x04\x10\xa0\x8d\x06");
        assert_eq!(Owners::All.given(&metadata(9, 5)), (9, 5));
        let mode = |owners: Owners, uid, gid| owners.mode(&Metadata { mode: 0o6755, ..metadata(uid, gid) });
        assert_eq!([mode(few, 9, 0), mode(few, 10, 0), mode(few, 9, 5)], [0o6755, 0o2755, 0o4755]);
        assert_eq!((mode(few, 10, 1), mode(Owners::All, 10, 1)), (0o755, 0o6755));
        assert_eq!(Owners::All.note(&metadata(9, 5)), None);
    }

    #[test]
    fn a_map_counts_as_far_as_it_has_no_gap() {
        let line = |inside, count| Line { inside, outside: 7, count };
        let maps = Maps { users: vec![line(0, 1), line(1, 9), line(20, 5)], groups: vec![line(1, 4)] };
        assert_eq!(Owners::of(&maps), Owners::Few { users: 10, groups: 0 });
    }
}
