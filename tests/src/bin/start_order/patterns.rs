//! Linker's patterns that name a set of functions and few others; with hashes only where nothing else tells them apart.

use std::collections::{BTreeMap, BTreeSet};

use crate::symbols::{Symbol, Symbols};

/// A module is named whole where this share of its bytes is executed.
const DENSE: f64 = 0.85;

/// Instances of one generic function differ in hashes alone: they are taken together where they are no more than this, in bytes.
const INSTANCES: u64 = 8 << 10;

const HEAD: &str = "\
/* What a start executes, side by side: the kernel maps text by 64 KiB around each address that is used.
   Written by `make start-order`; patterns that no longer match cost memory, nothing else. */
SECTIONS
{
  .text.start :
  {
";
const TAIL: &str = "  }
}
INSERT BEFORE .text;
";

/// The script that puts the functions of `program` side by side that executed one of the addresses of each set: those of the
/// first set first.
pub(crate) fn script(program: &Symbols, executed: &[BTreeSet<u64>]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for addresses in executed {
        let wanted = |symbol: &Symbol| symbol.has_one_of(addresses);
        let found =
            patterns(program.iter(), wanted).into_iter().map(|found| format!("    *(.text.{found})\n"));
        let new: Vec<_> = found.filter(|line| !lines.contains(line)).collect();
        lines.extend(new);
    }
    format!("{HEAD}{}{TAIL}", lines.concat())
}

fn patterns<'a>(symbols: impl Iterator<Item = &'a Symbol>, wanted: impl Fn(&Symbol) -> bool) -> Vec<String> {
    let mut root = Module::default();
    let mut others = BTreeSet::new();
    for symbol in symbols {
        let wanted = wanted(symbol);
        match path(&symbol.name) {
            Some(path) => root.add(&path, symbol, wanted),
            None if wanted => drop(others.insert(without_crate_hashes(&symbol.name))),
            None => {}
        }
    }
    let mut found = Vec::new();
    root.collect("_ZN", &mut found);
    found.extend(others);
    found
}

/// A component of names, with all below it.
#[derive(Default)]
struct Module {
    below: BTreeMap<String, Module>,
    /// In bytes: of the functions that end here, and of all below, too.
    own: Share,
    all: Share,
    /// The names, hashes and all, of the wanted functions that end here.
    names: Vec<String>,
}

#[derive(Default, Clone, Copy)]
struct Share {
    total: u64,
    wanted: u64,
}

impl Share {
    fn add(&mut self, size: u64, wanted: bool) {
        self.total += size;
        self.wanted += if wanted { size } else { 0 };
    }

    fn is_dense(self) -> bool {
        self.wanted as f64 >= self.total as f64 * DENSE
    }
}

impl Module {
    fn add(&mut self, path: &[&str], symbol: &Symbol, wanted: bool) {
        self.all.add(symbol.size, wanted);
        match path {
            [] => {
                self.own.add(symbol.size, wanted);
                self.names.extend(wanted.then(|| symbol.name.clone()));
            }
            [first, rest @ ..] => {
                self.below.entry((*first).to_owned()).or_default().add(rest, symbol, wanted);
            }
        }
    }

    /// Appends the patterns for what is wanted of this module, whose mangled name is `name`.
    fn collect(&self, name: &str, found: &mut Vec<String>) {
        if self.all.wanted == 0 {
            return;
        }
        let is_root = name == "_ZN";
        if !is_root && self.all.is_dense() && !self.below.is_empty() {
            found.push(format!("{name}*"));
            return;
        }
        match self.own.is_dense() || self.own.total <= INSTANCES {
            true if self.own.wanted > 0 => found.push(format!("{name}17h*")),
            _ => found.extend(self.names.iter().cloned()),
        }
        for (component, module) in &self.below {
            module.collect(&format!("{name}{}{component}", component.len()), found);
        }
    }
}

/// The components of a legacy mangled name, `_ZN`, then each after its length, `17h` and a hash last; without the hash.
fn path(name: &str) -> Option<Vec<&str>> {
    let mut rest = name.strip_prefix("_ZN")?;
    let mut path = Vec::new();
    while rest.starts_with(|c: char| c.is_ascii_digit()) {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let length: usize = rest[..digits].parse().ok()?;
        path.push(rest.get(digits..digits + length)?);
        rest = &rest[digits + length..];
    }
    path.pop().filter(|last| last.len() == 17 && last.starts_with('h'))?;
    Some(path)
}

/// A name of another kind: of C, or in Rust's newer way, where each crate has a hash (`Cs…_`). A number that the compiler
/// appended is left out, too.
fn without_crate_hashes(name: &str) -> String {
    let (name, end) = match name.split_once('.') {
        Some((name, _)) => (name, "*"),
        None => (name, ""),
    };
    if !name.starts_with("_R") {
        return format!("{name}{end}");
    }
    let mut parts = name.split("Cs");
    let mut found = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once('_') {
            Some((hash, rest)) if hash.chars().all(|c| c.is_ascii_alphanumeric()) => {
                found.push_str("Cs*_");
                found.push_str(rest);
            }
            _ => {
                found.push_str("Cs");
                found.push_str(part);
            }
        }
    }
    found + end
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Patterns for functions of a hundred bytes, or of the size that stands before the name; those with a `!` are wanted.
    fn found(names: &[&str]) -> Vec<String> {
        let parse = |name: &&str| {
            let name = name.trim_start_matches('!');
            let (size, name) = name.split_once(' ').unwrap_or(("100", name));
            Symbol { name: name.to_owned(), address: 0, size: size.parse().unwrap() }
        };
        let symbols: Vec<Symbol> = names.iter().map(parse).collect();
        let wanted: Vec<Symbol> = names.iter().filter(|name| name.starts_with('!')).map(parse).collect();
        patterns(symbols.iter(), |symbol| wanted.contains(symbol))
    }

    #[test]
    fn a_module_most_of_which_is_wanted_is_named_whole() {
        let names = [
            "!900 _ZN1a1b1c17h0123456789abcdefE",
            "_ZN1a1b1d17h0123456789abcdefE",
            "900 _ZN1a1x17h0123456789abcdefE",
        ];
        assert_eq!(found(&names), ["_ZN1a1b*"]);
    }

    #[test]
    fn a_single_function_is_named_without_its_hash() {
        let names = ["!_ZN1a1b17h0123456789abcdefE", "900 _ZN1a1c17h0123456789abcdefE", "!memcpy", "strlen"];
        assert_eq!(found(&names), ["_ZN1a1b17h*", "memcpy"]);
    }

    #[test]
    fn instances_are_taken_together_where_they_are_small() {
        let small = ["!_ZN1a1b17h0123456789abcdefE", "900 _ZN1a1b17h1123456789abcdefE"];
        assert_eq!(found(&small), ["_ZN1a1b17h*"]);
        let large = ["!_ZN1a1b17h0123456789abcdefE", "90000 _ZN1a1b17h1123456789abcdefE"];
        assert_eq!(found(&large), ["_ZN1a1b17h0123456789abcdefE"]);
    }

    #[test]
    fn hashes_of_crates_and_appended_numbers_are_left_open() {
        assert_eq!(
            found(&["!_RNvMs_NtCs7B_4core3fmtNtB5_3padCsaz6_3std.12"]),
            ["_RNvMs_NtCs*_4core3fmtNtB5_3padCs*_3std*"]
        );
    }
}
