//! What a shell offers on Tab: the words of the help, and containers by ID.

use std::collections::BTreeSet;

use super::help::{self, HELP};

/// What may stand in the place of the last of `words`, which follow `coracle` on a line that is being typed; `ids` names
/// the containers.
pub fn candidates(words: &[String], ids: impl FnOnce() -> Vec<String>) -> Vec<String> {
    let Some((typed, before)) = words.split_last() else { return Vec::new() };
    let command = before.iter().find_map(|word| help::of(word));
    let offered: BTreeSet<String> = match (command, typed.starts_with('-')) {
        (None, true) => options(HELP.split("\n\n").find(|p| p.starts_with("global options")).unwrap_or(HELP)),
        (None, false) => help::commands().map(str::to_owned).collect(),
        (Some(help), true) => options(&help),
        (Some(_), false) => ids().into_iter().collect(),
    };
    offered.into_iter().filter(|word| word.starts_with(typed.as_str())).collect()
}

/// The long options that `help` names.
fn options(help: &str) -> BTreeSet<String> {
    let is_end = |c: char| !(c.is_ascii_lowercase() || c == '-');
    let words = help.split([' ', '\n', '[', ',']).filter(|word| word.starts_with("--"));
    words
        .filter_map(|word| word.split(is_end).next())
        .filter(|word| word.len() > 2)
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(line: &str) -> Vec<String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        candidates(&words, || vec!["web".to_owned(), "db".to_owned()])
    }

    #[test]
    fn commands_come_first_then_their_options_and_containers() {
        assert_eq!(offered("de"), ["debug", "delete"]);
        assert_eq!(offered("--roo"), ["--root", "--rootless"]);
        assert_eq!(offered("--root /x isol"), ["isolator"]);
        assert_eq!(offered("run --pid"), ["--pid-file", "--pidfd-socket", "--pids"]);
        assert_eq!(offered("kill --"), ["--all", "--regex"]);
        assert_eq!(offered("kill "), ["db", "web"]);
        assert_eq!(offered("kill w"), ["web"]);
        assert!(offered("").contains(&"features".to_owned()));
    }
}
