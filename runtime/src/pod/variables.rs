//! References to variables in what a document says: `$(NAME)`, as Kubernetes has them. One to what nobody defines stays as it
//! is, and `$$` is a `$` that begins none.

use std::collections::BTreeMap;

use super::document::EnvVar;

/// Variables by their names.
pub(super) type Variables = BTreeMap<String, String>;

/// The variables that `env` defines: each may refer to those before it. The later of two of one name counts.
pub(super) fn defined(env: &[EnvVar]) -> Variables {
    env.iter().fold(Variables::new(), |mut known, one| {
        let value = expanded(&one.value, &known);
        known.insert(one.name.clone(), value);
        known
    })
}

/// `text` with the values of those that it refers to.
pub(super) fn expanded(text: &str, known: &Variables) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        result.push_str(before);
        let reference = after.strip_prefix('(').and_then(|reference| reference.split_once(')'));
        rest = match (after.strip_prefix('$'), reference) {
            (Some(after), _) => {
                result.push('$');
                after
            }
            (None, Some((name, after))) => {
                let unknown = || format!("$({name})");
                result.push_str(&known.get(name).cloned().unwrap_or_else(unknown));
                after
            }
            (None, None) => {
                result.push('$');
                after
            }
        };
    }
    result + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(list: &[(&str, &str)]) -> Variables {
        let one = |(name, value): &(&str, &str)| EnvVar { name: (*name).into(), value: (*value).into() };
        defined(&list.iter().map(one).collect::<Vec<_>>())
    }

    #[test]
    fn references_are_expanded_unless_unknown_or_escaped() {
        let known = variables(&[("A", "1"), ("B", "b$(A)$$(A)")]);
        for (text, wanted) in [
            ("$(A)-$(B)", "1-b1$(A)"),
            ("$(NONE)", "$(NONE)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A $ $(A", "$A $ $(A"),
            ("a$", "a$"),
        ] {
            assert_eq!(expanded(text, &known), wanted);
        }
    }

    #[test]
    fn a_variable_refers_to_those_before_it() {
        let known = variables(&[("A", "$(B)"), ("B", "$(A)"), ("A", "2")]);
        assert_eq!((&*known["A"], &*known["B"]), ("2", "$(B)"));
    }
}
