//! What the words of a mount's options mean (runtime-spec 1.3, config.md, "Linux mount options"; mount(8), and crun(1)
//! for `copy-symlink`, `src-nofollow`, `dest-nofollow` and the values of `idmap`).

use coracle_sys::mount::{Attributes, Propagation, attr};

use crate::error::{Code, Error, Result};

/// The options of one mount, taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// The attributes of the mount itself.
    pub attributes: Attributes,
    /// The attributes of the mount and of all below it.
    pub recursive: Attributes,
    /// Whether it is a bind mount, and then whether what is mounted below comes along.
    pub bind: Option<bool>,
    /// Whether what is mounted there already is changed.
    pub remount: bool,
    /// Whether what is covered is copied.
    pub copy_up: bool,
    /// Whether a source that is a symbolic link is made again in the container.
    pub copy_link: bool,
    /// Whether a source that is a symbolic link is mounted itself.
    pub link_itself: bool,
    /// A link is refused, and so is one anywhere on the way to the source.
    pub no_links: bool,
    /// Whether a destination that is a symbolic link is covered itself.
    pub on_link: bool,
    /// Whether owners are mapped, in all that is mounted below too, and by what.
    pub id_map: Option<(bool, Option<String>)>,
    /// What is left for the file system: a name, and a value where it is no flag.
    pub parameters: Vec<(String, Option<String>)>,
}

/// What one option does.
enum Meaning {
    Set(u64),
    Clear(u64),
    /// Takes one of the ways to keep access times back; where none is left, it is the source's, as with mount(8) and runc.
    TakeBack(u64),
    Propagate(Propagation, bool),
    Bind {
        recursive: bool,
    },
    Remount,
    CopyUp,
    CopyLink,
    LinkItself,
    NoLinks,
    OnLink,
    MapIds {
        recursive: bool,
    },
    Nothing,
    /// A parameter of the file system that the mount API knows as a flag of the same name.
    Flag,
}

impl Options {
    /// Takes the options `words` apart. Of two that exclude each other the last wins.
    pub(super) fn parse(words: &[String]) -> Self {
        let mut options = Self::default();
        for word in words {
            match meaning(word) {
                Some(meaning) => options.take(meaning, word),
                None => options.take_rest(word),
            }
        }
        settle_times(&mut options.attributes);
        options
    }

    fn take(&mut self, meaning: Meaning, word: &str) {
        match meaning {
            Meaning::Set(bits) => set(&mut self.attributes, bits),
            Meaning::Clear(bits) => clear(&mut self.attributes, bits),
            Meaning::TakeBack(bits) => take_back(&mut self.attributes, bits),
            Meaning::Propagate(propagation, false) => self.attributes.propagation = Some(propagation),
            Meaning::Propagate(propagation, true) => self.recursive.propagation = Some(propagation),
            Meaning::Bind { recursive } => self.bind = Some(recursive),
            Meaning::Remount => self.remount = true,
            Meaning::CopyUp => self.copy_up = true,
            Meaning::CopyLink => self.copy_link = true,
            Meaning::LinkItself => self.link_itself = true,
            Meaning::NoLinks => self.no_links = true,
            Meaning::OnLink => self.on_link = true,
            Meaning::MapIds { recursive } => self.id_map = Some((recursive, None)),
            Meaning::Nothing => {}
            Meaning::Flag => self.parameters.push((word.to_owned(), None)),
        }
    }

    /// A word of another form: an attribute after `r`, for the whole tree, or a parameter.
    fn take_rest(&mut self, word: &str) {
        match word.strip_prefix('r').and_then(meaning) {
            Some(Meaning::Set(bits)) => return set(&mut self.recursive, bits),
            Some(Meaning::Clear(bits)) => return clear(&mut self.recursive, bits),
            // What is neither `rnoatime` nor `rstrictatime` is `rrelatime`.
            Some(Meaning::TakeBack(_)) => return clear(&mut self.recursive, attr::ATIME),
            _ => {}
        }
        match word.split_once('=') {
            Some((name @ ("idmap" | "ridmap"), maps)) => {
                self.id_map = Some((name == "ridmap", Some(maps.to_owned())));
            }
            Some((name, value)) => self.parameters.push((name.to_owned(), Some(value.to_owned()))),
            None => self.parameters.push((word.to_owned(), None)),
        }
    }
}

/// The ways to keep access times exclude each other, so each clears the others.
fn set(attributes: &mut Attributes, bits: u64) {
    if bits & attr::ATIME == 0 {
        attributes.clear &= !bits;
    } else {
        attributes.set &= !attr::ATIME;
        attributes.clear |= attr::ATIME;
    }
    attributes.set |= bits;
}

/// Who says anything of access times says all of them, as with a remount by mount(2): `nodiratime` alone is
/// `relatime`, too, and any other alone ends a `nodiratime` of the source.
fn settle_times(attributes: &mut Attributes) {
    if attributes.set & attr::NODIRATIME != 0 {
        attributes.clear |= attr::ATIME;
    } else if attributes.clear & attr::ATIME != 0 {
        attributes.clear |= attr::NODIRATIME;
    }
}

fn clear(attributes: &mut Attributes, bits: u64) {
    attributes.set &= !bits;
    attributes.clear |= bits;
}

fn take_back(attributes: &mut Attributes, bits: u64) {
    if attributes.set & attr::ATIME == bits {
        clear(attributes, attr::ATIME);
        attributes.clear &= !attr::ATIME;
    }
}

fn meaning(option: &str) -> Option<Meaning> {
    use Meaning::{Clear, Flag, Nothing, Propagate, Set, TakeBack};
    Some(match option {
        "ro" => Set(attr::RDONLY),
        "rw" => Clear(attr::RDONLY),
        "nosuid" => Set(attr::NOSUID),
        "suid" => Clear(attr::NOSUID),
        "nodev" => Set(attr::NODEV),
        "dev" => Clear(attr::NODEV),
        "noexec" => Set(attr::NOEXEC),
        "exec" => Clear(attr::NOEXEC),
        "noatime" => Set(attr::NOATIME),
        "strictatime" => Set(attr::STRICTATIME),
        "relatime" => Clear(attr::ATIME),
        "atime" => TakeBack(attr::NOATIME),
        "nostrictatime" => TakeBack(attr::STRICTATIME),
        "norelatime" => TakeBack(0),
        "nodiratime" => Set(attr::NODIRATIME),
        "diratime" => Clear(attr::NODIRATIME),
        "nosymfollow" => Set(attr::NOSYMFOLLOW),
        "symfollow" => Clear(attr::NOSYMFOLLOW),
        "shared" => Propagate(Propagation::Shared, false),
        "slave" => Propagate(Propagation::Slave, false),
        "private" => Propagate(Propagation::Private, false),
        "unbindable" => Propagate(Propagation::Unbindable, false),
        "rshared" => Propagate(Propagation::Shared, true),
        "rslave" => Propagate(Propagation::Slave, true),
        "rprivate" => Propagate(Propagation::Private, true),
        "runbindable" => Propagate(Propagation::Unbindable, true),
        "bind" => Meaning::Bind { recursive: false },
        "rbind" => Meaning::Bind { recursive: true },
        "remount" => Meaning::Remount,
        "tmpcopyup" => Meaning::CopyUp,
        "copy-symlink" => Meaning::CopyLink,
        "src-nofollow" => Meaning::LinkItself,
        "src-nolinks" => Meaning::NoLinks,
        "dest-nofollow" => Meaning::OnLink,
        "idmap" => Meaning::MapIds { recursive: false },
        "ridmap" => Meaning::MapIds { recursive: true },
        "defaults" | "async" | "nomand" | "loud" | "silent" | "nolazytime" => Nothing,
        // The mount API has no word for it: file systems that count changes of their files do so unasked.
        "iversion" | "noiversion" => Nothing,
        "sync" | "dirsync" | "lazytime" | "mand" => Flag,
        _ => return None,
    })
}

/// The JSON pointer of the option `name` among the options `words` of the mount at `field`: of the last that is called
/// so, which is the one that counts, or of all of them where none is.
pub(super) fn pointer(field: &str, words: &[String], name: &str) -> String {
    match words.iter().rposition(|word| word.split_once('=').map_or(word.as_str(), |(own, _)| own) == name) {
        Some(index) => format!("{field}/options/{index}"),
        None => format!("{field}/options"),
    }
}

/// The propagation that `linux.rootfsPropagation` names, and whether it is for the whole tree.
///
/// # Errors
/// `InvalidSpec` for any other word.
pub(super) fn propagation(word: &str) -> Result<(Propagation, bool)> {
    match meaning(word) {
        Some(Meaning::Propagate(propagation, recursive)) => Ok((propagation, recursive)),
        _ => Err(Error::new(Code::InvalidSpec, format!("/linux/rootfsPropagation is {word:?}"))
            .hint("use shared, slave, private or unbindable, or one of them after r")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: u64 = attr::ATIME | attr::NODIRATIME;

    fn parsed(words: &[&str]) -> Options {
        Options::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn words_become_attributes_and_the_rest_parameters() {
        let options = parsed(&["nosuid", "ro", "size=64k", "sync", "huge"]);
        assert_eq!(options.attributes.set, attr::NOSUID | attr::RDONLY);
        let expected = [("size".into(), Some("64k".into())), ("sync".into(), None), ("huge".into(), None)];
        assert_eq!(options.parameters, expected);
    }

    #[test]
    fn of_two_that_exclude_each_other_the_last_wins() {
        let attributes = parsed(&["noatime", "strictatime"]).attributes;
        assert_eq!((attributes.set, attributes.clear), (attr::STRICTATIME, TIMES));
        let attributes = parsed(&["noatime", "relatime", "ro", "rw", "dev", "nodev"]).attributes;
        assert_eq!((attributes.set, attributes.clear), (attr::NODEV, TIMES | attr::RDONLY));
    }

    #[test]
    fn how_access_times_are_kept_can_be_taken_back_but_not_turned_round() {
        let attributes = |words| parsed(words).attributes;
        assert_eq!(attributes(&["atime"]), Attributes::default());
        assert_eq!(attributes(&["noatime", "atime"]), Attributes::default());
        assert_eq!(attributes(&["relatime", "norelatime"]), Attributes::default());
        assert_eq!(attributes(&["noatime", "nostrictatime"]), attributes(&["noatime"]));
        assert_eq!(parsed(&["ratime"]).recursive.clear, attr::ATIME);
    }

    #[test]
    fn a_leading_r_means_the_whole_tree() {
        let options = parsed(&["rro", "rnosuid", "rslave", "rrelatime"]);
        assert_eq!(options.recursive.set, attr::RDONLY | attr::NOSUID);
        assert_eq!(options.recursive.clear, attr::ATIME);
        assert_eq!(options.recursive.propagation, Some(Propagation::Slave));
        assert_eq!(options.attributes, Attributes::default());
        assert_eq!(parsed(&["rro"]).parameters, []);
        assert_eq!(parsed(&["rsync"]).parameters, [("rsync".into(), None)]);
    }

    #[test]
    fn owners_are_mapped_by_the_container_or_as_told() {
        assert_eq!(parsed(&["idmap"]).id_map, Some((false, None)));
        assert_eq!(parsed(&["ridmap"]).id_map, Some((true, None)));
        assert_eq!(parsed(&["ridmap=uids=0-1-2"]).id_map, Some((true, Some("uids=0-1-2".into()))));
    }
}
