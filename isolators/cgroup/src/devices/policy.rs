//! Rules about devices, put into one normal form.

use coracle_isolator::{Error, Result};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// Operations, as in `BPF_DEVCG_ACC_*`.
pub(super) const MKNOD: u32 = 1;
pub(super) const READ: u32 = 2;
pub(super) const WRITE: u32 = 4;
pub(super) const ALL: u32 = MKNOD | READ | WRITE;

/// What holds for all devices, and the exceptions, of which no two are about the same device. This is what a
/// version 1 group holds, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) allow: bool,
    pub(super) exceptions: Vec<Exception>,
}

/// Devices and what may, or may not, be done with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exception {
    pub(super) devices: Devices,
    /// A mask of operations, never empty.
    pub(super) access: u32,
}

/// One device, or all of a major or minor number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Devices {
    pub(super) class: Class,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Block,
    Char,
}

/// What every container has, as runc has it: mknod(2) of anything, then null, zero, full, random, urandom, tty,
/// console, ptmx and the pseudoterminals.
const DEFAULTS: [(Class, Option<u32>, Option<u32>, u32); 11] = [
    (Class::Char, None, None, MKNOD),
    (Class::Block, None, None, MKNOD),
    (Class::Char, Some(1), Some(3), ALL),
    (Class::Char, Some(1), Some(5), ALL),
    (Class::Char, Some(1), Some(7), ALL),
    (Class::Char, Some(1), Some(8), ALL),
    (Class::Char, Some(1), Some(9), ALL),
    (Class::Char, Some(5), Some(0), ALL),
    (Class::Char, Some(5), Some(1), ALL),
    (Class::Char, Some(5), Some(2), ALL),
    (Class::Char, Some(136), None, ALL),
];

impl Policy {
    /// The policy that `rules` come to.
    pub(super) fn new(rules: &[LinuxDeviceCgroup]) -> Result<Self> {
        let mut policy = Self::defaults();
        for (i, rule) in rules.iter().enumerate() {
            policy.add(rule).map_err(|e| e.below(&format!("/linux/resources/devices/{i}")))?;
        }
        Ok(policy)
    }

    /// Nothing but what every container has.
    fn defaults() -> Self {
        let exception =
            |(class, major, minor, access)| Exception { devices: Devices { class, major, minor }, access };
        Self { allow: false, exceptions: DEFAULTS.map(exception).to_vec() }
    }

    fn add(&mut self, rule: &LinuxDeviceCgroup) -> Result<()> {
        let access = access(rule.access().as_deref().unwrap_or_default()).map_err(|e| e.at("access"))?;
        let (major, minor) = (number(rule.major(), "major")?, number(rule.minor(), "minor")?);
        let classes: &[Class] = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => &[Class::Char, Class::Block],
            LinuxDeviceType::C | LinuxDeviceType::U => &[Class::Char],
            LinuxDeviceType::B => &[Class::Block],
            LinuxDeviceType::P => {
                return Err(Error::new("a named pipe is no device that can be limited").at("type"));
            }
        };
        if classes.len() == 2 && (major, minor, access) == (None, None, ALL) {
            *self =
                if rule.allow() { Self { allow: true, exceptions: Vec::new() } } else { Self::defaults() };
            return Ok(());
        }
        classes.iter().try_for_each(|class| {
            let exception = Exception { devices: Devices { class: *class, major, minor }, access };
            if rule.allow() == self.allow { self.take_back(exception) } else { self.except(exception) }
        })
    }

    /// Adds an exception to what there is about the same devices.
    fn except(&mut self, new: Exception) -> Result<()> {
        match self.exceptions.iter_mut().find(|old| old.devices == new.devices) {
            Some(old) => old.access |= new.access,
            None => self.exceptions.push(new),
        }
        Ok(())
    }

    /// Takes exceptions back. One that is about more devices than these would need an exception of its own, for
    /// which the kernel has no form: cgroup version 1 would ignore it silently. mknod(2) of any device stays: a
    /// node lets nobody open it.
    fn take_back(&mut self, rule: Exception) -> Result<()> {
        for old in &mut self.exceptions {
            let any_node = old.access == MKNOD && old.devices.major.is_none() && old.devices.minor.is_none();
            let apart = old.access & rule.access == 0 || !old.devices.overlap(rule.devices);
            let covered = rule.devices.cover(old.devices);
            if apart || (any_node && !covered) {
                continue;
            }
            if !covered {
                let (rule, old) = (entry(rule), entry(*old));
                return Err(Error::new(format!(
                    "{rule} can't be taken out of {old}, which an earlier rule set"
                ))
                .with_hint("deny what the earlier rule allows, then allow less"));
            }
            old.access &= !rule.access;
        }
        self.exceptions.retain(|exception| exception.access != 0);
        Ok(())
    }

    /// The exceptions as version 1's files show and take them: `c 1:3 rwm`.
    pub(super) fn entries(&self) -> Vec<String> {
        self.exceptions.iter().copied().map(entry).collect()
    }
}

impl Devices {
    /// Whether all of `other` are among these.
    fn cover(self, other: Self) -> bool {
        let covers = |mine: Option<u32>, other: Option<u32>| mine.is_none() || mine == other;
        self.class == other.class && covers(self.major, other.major) && covers(self.minor, other.minor)
    }

    /// Whether any of `other` are among these.
    fn overlap(self, other: Self) -> bool {
        let overlaps =
            |one: Option<u32>, other: Option<u32>| one.is_none() || other.is_none() || one == other;
        self.class == other.class && overlaps(self.major, other.major) && overlaps(self.minor, other.minor)
    }
}

fn entry(exception: Exception) -> String {
    let Devices { class, major, minor } = exception.devices;
    let class = if class == Class::Block { 'b' } else { 'c' };
    let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
    let letters = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
    let access: String = letters
        .into_iter()
        .filter(|(bit, _)| exception.access & bit != 0)
        .map(|(_, letter)| letter)
        .collect();
    format!("{class} {}:{} {access}", number(major), number(minor))
}

/// A mask of operations for letters. An `a` among them, which is a type of devices, means nothing, as with runc.
fn access(letters: &str) -> Result<u32> {
    let mask = letters.chars().try_fold(0, |mask, letter| match letter {
        'r' => Some(mask | READ),
        'w' => Some(mask | WRITE),
        'm' => Some(mask | MKNOD),
        'a' => Some(mask),
        _ => None,
    });
    mask.filter(|mask| *mask != 0).ok_or_else(|| Error::new(format!("{letters:?} is not made of r, w and m")))
}

/// A number, or any where it is absent or -1.
fn number(number: Option<i64>, name: &str) -> Result<Option<u32>> {
    match number {
        None | Some(-1) => Ok(None),
        Some(number) => match u32::try_from(number) {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(Error::new(format!("{number} is no number of a device")).at(name)),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn policy(rules: Value) -> Result<Policy> {
        Policy::new(&serde_json::from_value::<Vec<LinuxDeviceCgroup>>(rules).unwrap())
    }

    /// The entries beyond the defaults.
    fn beyond(rules: Value) -> Vec<String> {
        let policy = policy(rules).unwrap();
        assert!(!policy.allow);
        let defaults = Policy::defaults().entries();
        policy.entries().into_iter().filter(|entry| !defaults.contains(entry)).collect()
    }

    #[test]
    fn the_list_allows_and_denies_nothing_by_itself() {
        let none: [&str; 0] = [];
        assert_eq!(beyond(json!([])), none);
        assert_eq!(beyond(json!([{"allow": false, "access": "rwm"}])), none);
        let one = json!([{"allow": true, "type": "b", "major": 8, "minor": 0, "access": "rw"}]);
        assert_eq!(beyond(one), ["b 8:0 rw"]);
    }

    #[test]
    fn denying_everything_starts_again() {
        let rules = json!([
            {"allow": true, "type": "b", "major": 8, "access": "r"},
            {"allow": true, "access": "rwm"},
            {"allow": false, "type": "a", "major": -1, "minor": -1, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rwm"},
        ]);
        assert_eq!(beyond(rules), ["c 10:200 rwm"]);
    }

    #[test]
    fn a_type_for_both_classes_is_two_rules() {
        let rules = json!([{"allow": true, "type": "a", "major": 8, "access": "r"}]);
        assert_eq!(beyond(rules), ["c 8:* r", "b 8:* r"]);
    }

    #[test]
    fn later_rules_add_to_and_take_from_earlier_ones() {
        let rules = json!([
            {"allow": true, "type": "b", "major": 8, "minor": 0, "access": "r"},
            {"allow": true, "type": "b", "major": 8, "minor": 0, "access": "wm"},
            {"allow": true, "type": "b", "major": 8, "minor": 1, "access": "rwm"},
            {"allow": false, "type": "b", "major": 8, "access": "w"},
        ]);
        assert_eq!(beyond(rules), ["b 8:0 rm", "b 8:1 rm"]);
    }

    #[test]
    fn a_default_is_taken_back_but_not_the_right_to_make_nodes() {
        let full = json!([{"allow": false, "type": "c", "major": 1, "minor": 7, "access": "rwm"}]);
        let entries = policy(full).unwrap().entries();
        assert_eq!(entries.len(), DEFAULTS.len() - 1);
        assert!(entries.contains(&"c *:* m".to_owned()) && !entries.contains(&"c 1:7 rwm".to_owned()));
    }

    #[test]
    fn a_hole_in_an_earlier_rule_is_refused_by_name() {
        let hole = policy(json!([
            {"allow": true, "type": "b", "major": 8, "access": "rw"},
            {"allow": false, "type": "b", "major": 8, "minor": 1, "access": "w"},
        ]));
        let wanted = "/linux/resources/devices/1: b 8:1 w can't be taken out of b 8:* rw, which an earlier rule \
                      set; deny what the earlier rule allows, then allow less";
        assert_eq!(hole.unwrap_err().to_string(), wanted);
    }

    #[test]
    fn all_but_a_few_can_be_allowed() {
        let rules = json!([
            {"allow": true, "access": "rwm"},
            {"allow": false, "type": "b", "major": 8, "access": "rwm"},
        ]);
        let policy = policy(rules).unwrap();
        assert!(policy.allow);
        assert_eq!(policy.entries(), ["b 8:* rwm"]);
    }

    #[test]
    fn what_is_no_device_is_refused_by_name() {
        for (rule, wanted) in [
            (json!({"allow": true, "access": ""}), "access: \"\" is not made of r, w and m"),
            (json!({"allow": true, "access": "a"}), "access: \"a\" is not made of r, w and m"),
            (json!({"allow": true, "major": -2, "access": "r"}), "major: -2 is no number of a device"),
            (
                json!({"allow": true, "type": "p", "access": "r"}),
                "type: a named pipe is no device that can be limited",
            ),
        ] {
            let error = policy(json!([rule])).unwrap_err().to_string();
            assert_eq!(error, format!("/linux/resources/devices/0/{wanted}"));
        }
    }
}
