//! The functions of a program, as nm(1) lists them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// A function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Symbol {
    /// Its name, as the linker knows it.
    pub(crate) name: String,
    pub(crate) address: u64,
    /// In bytes.
    pub(crate) size: u64,
}

impl Symbol {
    /// Whether one of `addresses` is in it.
    pub(crate) fn has_one_of(&self, addresses: &BTreeSet<u64>) -> bool {
        addresses.range(self.address..self.address + self.size).next().is_some()
    }
}

/// All functions of a program.
pub(crate) struct Symbols(Vec<Symbol>);

impl Symbols {
    /// Those of `program`.
    pub(crate) fn of(program: &Path) -> Result<Self, String> {
        let listed = Command::new("nm").args(["--defined-only", "--print-size"]).arg(program).output();
        let listed = listed.map_err(|error| format!("run nm: {error}"))?;
        let symbols: Vec<_> = String::from_utf8_lossy(&listed.stdout).lines().filter_map(parse).collect();
        if symbols.is_empty() {
            return Err(format!("{} has no symbols: is it stripped?", program.display()));
        }
        Ok(Self(symbols))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Symbol> {
        self.0.iter()
    }
}

/// `ADDRESS SIZE TYPE NAME`, where the type is that of text.
fn parse(line: &str) -> Option<Symbol> {
    let [address, size, kind, name] = line.split_whitespace().collect::<Vec<_>>().try_into().ok()?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let symbol = Symbol { name: name.to_owned(), address: number(address)?, size: number(size)? };
    matches!(kind, "t" | "T" | "w" | "W").then_some(symbol)
}
