//! The rights of Landlock by name (linux/landlock.h), and since which ABI the kernel knows each.

use std::fmt;

use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};

/// Rights of one kind: name and first ABI, in the order of their bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind(&'static [(&'static str, u32)]);

/// `LANDLOCK_ACCESS_FS_*`.
pub(super) const FILES: Kind = Kind(&[
    ("execute", 1),
    ("write_file", 1),
    ("read_file", 1),
    ("read_dir", 1),
    ("remove_dir", 1),
    ("remove_file", 1),
    ("make_char", 1),
    ("make_dir", 1),
    ("make_reg", 1),
    ("make_sock", 1),
    ("make_fifo", 1),
    ("make_block", 1),
    ("make_sym", 1),
    ("refer", 2),
    ("truncate", 3),
    ("ioctl_dev", 5),
]);

/// `LANDLOCK_ACCESS_NET_*`.
pub(super) const PORTS: Kind = Kind(&[("bind_tcp", 4), ("connect_tcp", 4)]);

/// `LANDLOCK_SCOPE_*`.
pub(super) const SCOPES: Kind = Kind(&[("abstract_unix_socket", 6), ("signal", 6)]);

impl Kind {
    fn bits(self, holds: impl Fn(&(&'static str, u32)) -> bool) -> u64 {
        self.0.iter().enumerate().filter(|(_, right)| holds(right)).fold(0, |bits, (bit, _)| bits | 1 << bit)
    }

    /// What a kernel of ABI `abi` knows.
    pub(super) fn known(self, abi: u32) -> u64 {
        self.bits(|(_, since)| *since <= abi)
    }

    /// The names of `bits`; a number for those that have none here.
    pub(super) fn names(self, bits: u64) -> String {
        let named = self.0.iter().enumerate().filter(|(bit, _)| bits & 1 << bit != 0);
        let mut names: Vec<String> = named.map(|(_, (name, _))| (*name).to_owned()).collect();
        let rest = bits & !self.bits(|_| true);
        if rest != 0 {
            names.push(format!("{rest:#x}"));
        }
        names.join(", ")
    }
}

/// Rights as a document has them.
#[derive(Debug)]
pub(super) enum Rights {
    Names(Vec<String>),
    Sum(u64),
}

impl Rights {
    /// The bits of the rights, or which of them the kind `kind` has not.
    pub(super) fn bits(&self, kind: Kind) -> Result<u64, String> {
        match self {
            Self::Sum(bits) => Ok(*bits),
            Self::Names(names) => {
                names.iter().try_fold(0, |bits, name| match kind.bits(|(own, _)| own == name) {
                    0 => Err(format!(
                        "there is no right {name:?}; there are {}",
                        kind.names(kind.bits(|_| true))
                    )),
                    bit => Ok(bits | bit),
                })
            }
        }
    }
}

impl<'de> Deserialize<'de> for Rights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RightsVisitor)
    }
}

struct RightsVisitor;

impl<'de> Visitor<'de> for RightsVisitor {
    type Value = Rights;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of rights or their sum")
    }

    fn visit_u64<E>(self, bits: u64) -> Result<Rights, E> {
        Ok(Rights::Sum(bits))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Rights, A::Error> {
        let mut names = Vec::new();
        while let Some(name) = list.next_element()? {
            names.push(name);
        }
        Ok(Rights::Names(names))
    }
}
