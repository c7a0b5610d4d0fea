//! The house: who may use whom, where unsafe code may live, one version of everything.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Who may use which of ours. A crate that is not named here may use none.
const MAY_USE: [(&str, &[&str]); 14] = [
    (
        "coracle",
        &[
            "coracle-image",
            "coracle-isolator",
            "coracle-isolator-cgroup",
            "coracle-isolator-host",
            "coracle-isolator-linux",
            "coracle-isolator-metrics",
            "coracle-isolator-network",
            "coracle-isolator-volume",
            "coracle-sys",
            "coracle-yaml",
        ],
    ),
    ("coracle-image", &["coracle-sys"]),
    ("coracle-isolator", &["coracle-isolator-abi"]),
    ("coracle-isolator-host", &["coracle-isolator", "coracle-isolator-abi", "coracle-sys"]),
    ("coracle-isolator-cgroup", &["coracle-isolator", "coracle-sys"]),
    ("coracle-isolator-csi", &["coracle-isolator", "coracle-sys"]),
    ("coracle-isolator-linux", &["coracle-isolator", "coracle-sys", "coracle-yaml"]),
    ("coracle-isolator-metrics", &["coracle-isolator", "coracle-sys"]),
    ("coracle-isolator-network", &["coracle-isolator", "coracle-sys"]),
    ("coracle-isolator-volume", &["coracle-isolator", "coracle-sys"]),
    ("coracle-isolator-template", &["coracle-isolator"]),
    ("coracle-fixtures", &[]),
    (
        "coracle-fixture-built-in",
        &[
            "coracle-isolator",
            "coracle-isolator-cgroup",
            "coracle-isolator-linux",
            "coracle-isolator-metrics",
            "coracle-isolator-network",
            "coracle-isolator-volume",
        ],
    ),
    ("coracle-tests", &["coracle-fixtures"]),
];

/// The crates that may hold unsafe code.
const UNSAFE_HOMES: [&str; 3] = ["coracle-sys", "coracle-isolator-abi", "coracle-isolator-host"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn metadata(more: &[&str]) -> Value {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(more)
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Our crates: name, directory, and the package as cargo tells it.
fn ours() -> Vec<(String, PathBuf, Value)> {
    let packages = metadata(&["--no-deps"])["packages"].as_array().unwrap().clone();
    let crate_of = |package: Value| {
        let manifest = PathBuf::from(package["manifest_path"].as_str().unwrap());
        (package["name"].as_str().unwrap().to_owned(), manifest.parent().unwrap().to_owned(), package)
    };
    packages.into_iter().map(crate_of).collect()
}

fn dependencies(package: &Value) -> Vec<Value> {
    package["dependencies"].as_array().unwrap().clone()
}

/// All Rust files of a crate, without those of crates inside its directory.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() && !entry.join("Cargo.toml").is_file() && !entry.ends_with("target") {
            files.extend(sources(&entry));
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            files.push(entry);
        }
    }
    files
}

/// A line's code, without what follows `//` and without string literals.
fn code_of(line: &str) -> String {
    let code = line.split("//").next().unwrap_or_default();
    code.split('"').step_by(2).collect()
}

#[test]
fn each_crate_uses_only_what_it_may() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_USE.into_iter().collect();
    for (name, _, package) in ours() {
        for dependency in dependencies(&package) {
            let used = dependency["name"].as_str().unwrap();
            let is_ours = used == "coracle" || used.starts_with("coracle-");
            let may = allowed.get(name.as_str()).is_some_and(|list| list.contains(&used));
            assert!(!is_ours || may, "{name} uses {used}, which the house does not allow");
        }
    }
}

#[test]
fn the_runtime_links_no_network_client() {
    let packages = ours();
    let (.., runtime) = packages.iter().find(|(name, ..)| name == "coracle").unwrap();
    let image =
        dependencies(runtime).into_iter().find(|dependency| dependency["name"] == "coracle-image").unwrap();
    assert_eq!(image["uses_default_features"], false);
    let features: Vec<&str> =
        image["features"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(!features.contains(&"registry"), "{features:?}");
}

#[test]
fn every_version_stands_in_the_workspace_table() {
    for (name, directory, _) in ours() {
        let manifest = fs::read_to_string(directory.join("Cargo.toml")).unwrap();
        let mut section = "";
        for line in manifest.lines().map(str::trim) {
            if line.starts_with('[') {
                section = line;
                continue;
            }
            let is_entry = section.contains("dependencies]") && line.contains('=') && !line.starts_with('#');
            assert!(
                !is_entry || line.contains("workspace = true"),
                "{name} has a version of its own: {line}"
            );
        }
    }
}

#[test]
fn each_direct_dependency_has_one_version() {
    let all = metadata(&[]);
    let direct: BTreeSet<String> = ours()
        .iter()
        .flat_map(|(.., package)| dependencies(package))
        .map(|dependency| dependency["name"].as_str().unwrap().to_owned())
        .collect();
    let members = all["workspace_members"].as_array().unwrap();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for node in
        all["resolve"]["nodes"].as_array().unwrap().iter().filter(|node| members.contains(&node["id"]))
    {
        for dependency in node["dependencies"].as_array().unwrap() {
            let package = all["packages"]
                .as_array()
                .unwrap()
                .iter()
                .find(|package| package["id"] == *dependency)
                .unwrap();
            let name = package["name"].as_str().unwrap();
            versions.entry(name).or_default().insert(package["version"].as_str().unwrap());
        }
    }
    for (name, versions) in versions.iter().filter(|(name, _)| direct.contains(**name)) {
        assert_eq!(versions.len(), 1, "{name} is used in the versions {versions:?}");
    }
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    for (name, directory, _) in ours() {
        let manifest = fs::read_to_string(directory.join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{name}");
    }
}

#[test]
fn unsafe_code_is_forbidden_at_the_root_of_every_other_crate() {
    for (name, _, package) in ours().into_iter().filter(|(name, ..)| !UNSAFE_HOMES.contains(&name.as_str())) {
        for target in package["targets"].as_array().unwrap() {
            let kind = target["kind"][0].as_str().unwrap();
            if !["lib", "rlib", "bin", "cdylib"].contains(&kind) {
                continue;
            }
            let path = target["src_path"].as_str().unwrap();
            let source = fs::read_to_string(path).unwrap();
            assert!(source.contains("#![forbid(unsafe_code)]"), "{name}: {path}");
        }
    }
}

#[test]
fn unsafe_code_stands_in_its_homes_alone() {
    for (name, directory, _) in ours().into_iter().filter(|(name, ..)| !UNSAFE_HOMES.contains(&name.as_str()))
    {
        for path in sources(&directory) {
            let source = fs::read_to_string(&path).unwrap();
            let found =
                source.lines().map(code_of).find(|line| line.split_whitespace().any(|word| word == "unsafe"));
            assert!(found.is_none(), "{name}: {}: {found:?}", path.display());
        }
    }
}

#[test]
fn lints_are_expected_with_a_reason_and_never_allowed() {
    for (name, directory, _) in ours() {
        for path in sources(&directory) {
            let source = fs::read_to_string(&path).unwrap();
            let allowed = source
                .lines()
                .map(code_of)
                .find(|line| line.contains("#[allow(") || line.contains("#![allow("));
            assert!(allowed.is_none(), "{name}: {}: {allowed:?}", path.display());
        }
    }
}

#[test]
fn no_file_is_called_utils_and_no_function_is_anothers_implementation() {
    for (name, directory, _) in ours() {
        for path in sources(&directory) {
            let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
            assert!(
                !["utils", "util", "helpers", "misc", "common"].contains(&stem.as_str()),
                "{name}: {}",
                path.display()
            );
            let source = fs::read_to_string(&path).unwrap();
            let is_impl = |line: &String| line.trim_start().contains("fn ") && line.contains("_impl(");
            let found = source.lines().map(code_of).find(is_impl);
            assert!(found.is_none(), "{name}: {}: {found:?}", path.display());
        }
    }
}

/// Where a test of the fields' table may stand: `run::x` in `tests/tests/run.rs` or below `tests/tests/run/`,
/// `isolators/cgroup/src/cpu.rs::x` in that file.
fn files_of(place: &str) -> Vec<PathBuf> {
    let tests = repository().join("tests/tests");
    match place.ends_with(".rs") {
        true => vec![repository().join(place)],
        false => [vec![tests.join(format!("{place}.rs"))], sources_below(&tests.join(place))].concat(),
    }
}

fn sources_below(directory: &Path) -> Vec<PathBuf> {
    let list = fs::read_dir(directory).map(|list| list.flatten().collect()).unwrap_or_else(|_| Vec::new());
    list.into_iter().map(|entry| entry.path()).filter(|path| path.extension().is_some()).collect()
}

#[test]
fn each_test_that_the_fields_table_names_exists() {
    let table = fs::read_to_string(repository().join("docs/fields.md")).unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---"));
    for row in rows.skip(1) {
        let cells: Vec<&str> = row.split(" | ").map(|cell| cell.trim_matches(['|', ' '])).collect();
        assert_eq!(cells.len(), 4, "{row}");
        let named: Vec<&str> = cells[3].split('`').filter(|word| word.contains("::")).collect();
        assert!(!named.is_empty() || cells[3] == "not yet", "names no test: {row}");
        for test in named {
            let (place, function) = test.rsplit_once("::").unwrap();
            let line = format!("fn {function}()");
            let stands = |file: &PathBuf| fs::read_to_string(file).is_ok_and(|text| text.contains(&line));
            assert!(files_of(place).iter().any(stands), "{test} does not exist");
        }
    }
}

#[test]
fn a_stage_names_only_those_before_it() {
    let stages = repository().join("runtime/src/stages");
    let list = fs::read_to_string(stages.join("mod.rs")).unwrap();
    let order: Vec<&str> =
        list.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert!(order.len() > 7, "{order:?}");
    for (place, stage) in order.iter().enumerate() {
        let file = stages.join(format!("{stage}.rs"));
        // In a directory, `super` is the stage itself.
        let (files, above) = match file.is_file() {
            true => (vec![file], vec!["super::", "crate::stages::"]),
            false => (sources(&stages.join(stage)), vec!["crate::stages::"]),
        };
        for path in files {
            let source = fs::read_to_string(&path).unwrap();
            for (later, from) in order[place + 1..].iter().flat_map(|l| above.iter().map(move |a| (l, a))) {
                let named = format!("{from}{later}");
                assert!(!source.contains(&named), "{}: {named}", path.display());
            }
        }
    }
}

#[test]
fn each_recipe_of_an_escape_has_a_test() {
    let files = sources(&repository().join("tests/tests/security"));
    let all: String = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    for number in 1..=35 {
        assert!(all.contains(&format!("fn c{number:02}_")), "C-{number:02} has no test");
    }
}

/// The long options that a file of the command line reads.
fn long_options(source: &str) -> BTreeSet<String> {
    let code = source.split("#[cfg(test)]").next().unwrap();
    let quoted = |text: &str| text.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let read = code.split("Long(").skip(1).flat_map(|rest| quoted(rest.split(')').next().unwrap()));
    let arms = code.lines().filter_map(|line| line.split_once("=>"));
    // An arm that is nothing but words tells what to use instead.
    let named = arms.filter(|(_, does)| !does.trim().starts_with('"')).flat_map(|(names, _)| quoted(names));
    read.chain(named.filter_map(|name| name.strip_prefix("--").map(str::to_owned))).collect()
}

#[test]
fn each_option_stands_in_the_help() {
    let cli = repository().join("runtime/src/cli");
    let help = fs::read_to_string(cli.join("help.txt")).unwrap();
    let is_end = |c: char| !(c.is_ascii_lowercase() || c == '-');
    let told: BTreeSet<&str> =
        help.split("--").skip(1).filter_map(|rest| rest.split(is_end).next()).collect();
    let files = sources(&cli);
    let read: BTreeSet<String> =
        files.iter().flat_map(|path| long_options(&fs::read_to_string(path).unwrap())).collect();
    assert!(read.len() > 60, "{read:?}");
    for option in read {
        assert!(told.contains(option.as_str()), "--{option} is not in help.txt");
    }
}

#[test]
fn each_page_is_linked_from_the_readme() {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    for entry in fs::read_dir(repository().join("docs")).unwrap().map(|entry| entry.unwrap().path()) {
        let name = format!("docs/{}", entry.file_name().unwrap().to_string_lossy());
        let is_page = entry.extension().is_some_and(|extension| extension == "md");
        assert!(!is_page || readme.contains(&format!("({name})")), "{name}");
    }
}
