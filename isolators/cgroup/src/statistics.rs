//! What control groups tell.
//!
//! A controller that is not there, and a file that a kernel does not have, tell nothing: that is no error.

use coracle_isolator::{Cgroup, Errno, Result};

/// The text of `file`, where there is one.
pub(crate) fn text(group: &Cgroup, controller: &str, file: &str) -> Result<Option<String>> {
    if group.dir(controller).is_none() {
        return Ok(None);
    }
    match group.read(controller, file) {
        // Some files of version 1 answer EOPNOTSUPP where a boot option turned them off.
        Err(e) if matches!(e.errno(), Some(Errno::ENOENT | Errno::EOPNOTSUPP)) => Ok(None),
        other => other.map(Some),
    }
}

/// The number in `file`; none where it says `max`.
pub(crate) fn number(group: &Cgroup, controller: &str, file: &str) -> Result<Option<u64>> {
    Ok(text(group, controller, file)?.and_then(|text| text.trim().parse().ok()))
}

/// The number behind `key` in lines of `key number`.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(name, _)| *name == key).and_then(|(_, value)| value.trim().parse().ok())
}

/// The pairs of a line of `key=number key=number`, what is no number left out.
pub(crate) fn pairs(line: &str) -> impl Iterator<Item = (&str, u64)> {
    let pairs = line.split_ascii_whitespace().filter_map(|pair| pair.split_once('='));
    pairs.filter_map(|(key, value)| value.parse().ok().map(|value| (key, value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_whole_words() {
        let text = "rss_huge 1\nrss 2\ntotal_rss 3\n";
        assert_eq!(keyed(text, "rss"), Some(2));
        assert_eq!(keyed(text, "cache"), None);
    }

    #[test]
    fn pairs_leave_out_what_is_no_number() {
        let found: Vec<_> = pairs("8:0 rbytes=5 wbytes=max rios=0").collect();
        assert_eq!(found, [("rbytes", 5), ("rios", 0)]);
    }
}
