//! What a plugin tells of itself.

use coracle_isolator::{Error, Kind, Result};
use coracle_isolator_abi::Verb;
use serde::{Deserialize, Serialize};

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
        let about: Self = serde_json::from_slice(text)
            .map_err(|e| Error::new(format!("what it tells of itself is malformed: {e}")))?;
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
