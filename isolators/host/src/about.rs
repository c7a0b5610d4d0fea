//! What a plugin tells of itself.

use coracle_isolator::{Error, Kind, Result};
use coracle_isolator_abi::Verb;
use serde::{Deserialize, Serialize};

use crate::wire::plain;

/// What stands in a plugin's table, read once and checked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Who goes first.
    pub after: Vec<String>,
    /// Who goes later.
    pub before: Vec<String>,
    /// For which kinds of container it does its work.
    pub supports: Vec<Kind>,
    /// The calls that it implements.
    pub calls: Vec<String>,
    /// What is wrong with its table: it is not used then.
    pub problems: Vec<String>,
}

impl About {
    /// What the document `text`, which comes from a plugin's process, says.
    ///
    /// # Errors
    /// Where it is none, or tells of something wrong.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let mut about: Self = serde_json::from_slice(text).map_err(|e| {
            Error::new(format!("what it tells of itself is malformed: {}", plain(&e.to_string())))
        })?;
        let lists = [&mut about.after, &mut about.before, &mut about.calls, &mut about.problems];
        let words = lists.into_iter().flatten().chain([&mut about.name, &mut about.version]);
        words.for_each(|word| *word = plain(word));
        match about.problems.is_empty() {
            true => Ok(about),
            false => Err(Error::new(about.problems.join("; and "))),
        }
    }

    /// Whether it implements a call.
    pub fn implements(&self, verb: Verb) -> bool {
        self.calls.iter().any(|call| call == verb.name())
    }
}

/// Whether `name` is the name of an isolator: `family/subject`.
pub fn is_name(name: &str) -> bool {
    let is_word = |word: &str| {
        word.starts_with(|first: char| first.is_ascii_alphanumeric())
            && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    name.len() <= 128 && name.contains('/') && name.split('/').all(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_plugin_tells_of_itself_is_shown_on_one_line_and_without_commands() {
        let told = About { name: "a/b".to_owned(), version: "1\x1b[31m".to_owned(), ..About::default() };
        assert_eq!(About::parse(&serde_json::to_vec(&told).unwrap()).unwrap().version, "1 [31m");
        let wrong = About { problems: vec!["its name\nis".to_owned()], ..told };
        let error = About::parse(&serde_json::to_vec(&wrong).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "its name is");
    }

    #[test]
    fn names_have_a_family_and_a_subject() {
        for (name, is) in [
            ("cgroups/memory", true),
            ("a/b/c-1_2.3", true),
            ("memory", false),
            ("/memory", false),
            ("a//b", false),
            ("a/../b", false),
            ("a/b c", false),
            ("", false),
        ] {
            assert_eq!(is_name(name), is, "{name}");
        }
    }
}
