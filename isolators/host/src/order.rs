//! In which order isolators are called.

use coracle_isolator::{Error, Result};

use crate::entry::Entry;

/// Puts `isolators` in an order that honours what each says in `after` and `before`; where that leaves a choice,
/// the given order holds.
pub(crate) fn sort(isolators: Vec<Entry>) -> Result<Vec<Entry>> {
    refuse_duplicates(&isolators)?;
    let earlier = edges(&isolators);
    let mut left: Vec<Option<Entry>> = isolators.into_iter().map(Some).collect();
    let mut sorted = Vec::with_capacity(left.len());
    while sorted.len() < left.len() {
        let ready = (0..left.len())
            .find(|i| left[*i].is_some() && earlier[*i].iter().all(|first| left[*first].is_none()));
        match ready.and_then(|i| left[i].take()) {
            Some(next) => sorted.push(next),
            None => return Err(cycle(&left, &earlier)),
        }
    }
    Ok(sorted)
}

fn refuse_duplicates(isolators: &[Entry]) -> Result<()> {
    for (i, entry) in isolators.iter().enumerate() {
        if isolators[..i].iter().any(|other| other.name() == entry.name()) {
            return Err(Error::new(format!("two isolators are named {}", entry.name())));
        }
    }
    Ok(())
}

/// For each isolator, the positions of those that must come before it. Names that nobody has are ignored.
fn edges(isolators: &[Entry]) -> Vec<Vec<usize>> {
    let mut earlier = vec![Vec::new(); isolators.len()];
    let position = |name: &str| isolators.iter().position(|entry| entry.name() == name);
    for (i, entry) in isolators.iter().enumerate() {
        earlier[i].extend(entry.isolator.after().into_iter().filter_map(&position));
        for later in entry.isolator.before().into_iter().filter_map(&position) {
            earlier[later].push(i);
        }
    }
    earlier
}

/// The error for what is left when nothing can go next: follows the first cycle once around.
fn cycle(left: &[Option<Entry>], earlier: &[Vec<usize>]) -> Error {
    let mut way: Vec<usize> = Vec::new();
    let mut at = left.iter().position(Option::is_some).unwrap_or_default();
    while !way.contains(&at) {
        way.push(at);
        at = earlier[at].iter().copied().find(|first| left[*first].is_some()).unwrap_or(at);
    }
    let start = way.iter().position(|i| *i == at).unwrap_or_default();
    let names: Vec<&str> = way[start..]
        .iter()
        .chain([&at])
        .filter_map(|i| left[*i].as_ref().map(|entry| entry.name()))
        .collect();
    Error::new(format!("isolators wait for each other: {}", names.join(" after ")))
}

#[cfg(test)]
mod tests {
    use coracle_isolator::Isolator;

    use super::*;

    struct Named(&'static str, Vec<&'static str>, Vec<&'static str>);

    impl Isolator for Named {
        fn name(&self) -> &str {
            self.0
        }
        fn after(&self) -> Vec<&str> {
            self.1.clone()
        }
        fn before(&self) -> Vec<&str> {
            self.2.clone()
        }
    }

    fn sorted(isolators: Vec<Named>) -> Result<Vec<String>> {
        let boxed = isolators.into_iter().map(|i| Entry::built_in(Box::new(i))).collect();
        Ok(sort(boxed)?.iter().map(|i| i.name().to_owned()).collect())
    }

    #[test]
    fn the_given_order_holds_where_nobody_objects() {
        let isolators = vec![Named("c", vec![], vec![]), Named("a", vec!["absent"], vec![])];
        assert_eq!(sorted(isolators).unwrap(), ["c", "a"]);
    }

    #[test]
    fn after_and_before_are_honoured() {
        let isolators = vec![
            Named("late", vec!["early"], vec![]),
            Named("early", vec![], vec![]),
            Named("first", vec![], vec!["early", "late"]),
        ];
        assert_eq!(sorted(isolators).unwrap(), ["first", "early", "late"]);
    }

    #[test]
    fn a_cycle_is_an_error_that_names_it() {
        let isolators = vec![
            Named("free", vec![], vec![]),
            Named("waits", vec!["a"], vec![]),
            Named("a", vec!["b"], vec![]),
            Named("b", vec![], vec![]),
            Named("c", vec!["a"], vec!["b"]),
        ];
        let error = sorted(isolators).unwrap_err();
        assert_eq!(error.to_string(), "isolators wait for each other: a after b after c after a");
    }

    #[test]
    fn an_isolator_after_itself_is_a_cycle() {
        let error = sorted(vec![Named("a", vec!["a"], vec![])]).unwrap_err();
        assert_eq!(error.to_string(), "isolators wait for each other: a after a");
    }

    #[test]
    fn two_of_one_name_are_refused() {
        let error = sorted(vec![Named("a", vec![], vec![]), Named("a", vec![], vec![])]).unwrap_err();
        assert_eq!(error.to_string(), "two isolators are named a");
    }
}
