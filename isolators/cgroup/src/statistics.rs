//! What control groups tell.
//!
//! A controller that is not there, and a file that a kernel does not have, tell nothing: that is no error.

use coracle_isolator::{Cgroup, Errno, Pressure, Result, Stall};

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

/// How much of the time tasks waited for `resource`; none where the kernel does not measure it. The unified tree
/// tells, also beside version 1.
pub(crate) fn pressure(group: &Cgroup, resource: &str) -> Result<Option<Pressure>> {
    let told = match text(group, "unified", &format!("{resource}.pressure")) {
        // Not of a kernel that was booted with psi=0.
        Err(e) if e.errno() == Some(Errno::ENODATA) => None,
        other => other?,
    };
    Ok(told.map(|text| Pressure { some: stall(&text, "some "), full: stall(&text, "full ") }))
}

/// A line of `some avg10=0.12 avg60=0.10 avg300=0.05 total=2345`.
fn stall(text: &str, which: &str) -> Stall {
    let mut stall = Stall::default();
    let line = text.lines().find_map(|line| line.strip_prefix(which)).unwrap_or_default();
    for (key, value) in line.split_ascii_whitespace().filter_map(|pair| pair.split_once('=')) {
        match key {
            "avg10" => stall.avg10 = value.parse().unwrap_or_default(),
            "avg60" => stall.avg60 = value.parse().unwrap_or_default(),
            "avg300" => stall.avg300 = value.parse().unwrap_or_default(),
            "total" => stall.total = value.parse().unwrap_or_default(),
            _ => {}
        }
    }
    stall
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

    #[test]
    fn a_stall_is_told_in_percent_and_microseconds() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        assert_eq!(stall(text, "some "), Stall { avg10: 1.5, avg60: 0.25, avg300: 0.0, total: 77 });
        assert_eq!(stall(text, "full ").total, 5);
        assert_eq!(stall("", "some "), Stall::default());
    }
}
