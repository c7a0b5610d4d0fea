//! The documents: what they name is there.

use std::fs;
use std::path::{Path, PathBuf};

use coracle_tests::privileged;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a folder of the repository").to_owned()
}

/// Each document with its path.
fn documents() -> Vec<(PathBuf, String)> {
    let root = repository();
    let in_docs = fs::read_dir(root.join("docs")).expect("docs").flatten().map(|entry| entry.path());
    let in_root = fs::read_dir(&root).expect("the repository").flatten().map(|entry| entry.path());
    let pages = in_docs.chain(in_root).filter(|path| path.extension().is_some_and(|end| end == "md"));
    pages.map(|path| (path.clone(), fs::read_to_string(path).expect("a document"))).collect()
}

/// What stands between backticks, and the lines of blocks of code.
fn code(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (index, part) in text.split("```").enumerate() {
        if index % 2 == 1 {
            found.extend(part.lines());
        } else {
            found.extend(part.split('`').skip(1).step_by(2));
        }
    }
    found
}

/// The word after `program` where a line of code begins with it, options with values passed over.
fn word_after<'a>(line: &'a str, program: &str) -> Option<&'a str> {
    let line = line.trim_start().trim_start_matches(['$', '#']).trim_start();
    let mut words = line.strip_prefix(program)?.strip_prefix(' ')?.split_whitespace();
    loop {
        match words.next()? {
            "--root" | "--log" | "--log-format" | "--cgroup-manager" | "--config" | "--rootless" => {
                words.next()?
            }
            option if option.starts_with('-') => continue,
            word => return Some(word.trim_end_matches(|c: char| !c.is_alphanumeric())),
        };
    }
}

fn is_name(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
}

/// Everything that the tests' sources say.
fn sources(directory: &Path) -> String {
    let mut all = String::new();
    for path in fs::read_dir(directory).expect("tests").flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            all += &sources(&path);
        } else {
            all += &fs::read_to_string(&path).unwrap_or_default();
        }
    }
    all
}

#[test]
fn commands_and_targets_that_documents_name_exist() {
    privileged(|host| {
        if !host.needs_coracle("documents") {
            return;
        }
        let commands = host.call(&["complete", "--", ""]).succeeds().lines();
        let makefile = fs::read_to_string(repository().join("Makefile")).expect("the Makefile");
        for (path, text) in documents() {
            for line in code(&text) {
                if let Some(verb) = word_after(line, "coracle").filter(|verb| is_name(verb)) {
                    assert!(commands.iter().any(|known| known == verb), "{path:?}: there is no {line:?}");
                }
                if let Some(target) = word_after(line, "make").filter(|target| is_name(target)) {
                    assert!(makefile.contains(&format!("\n{target}:")), "{path:?}: there is no {line:?}");
                }
            }
        }
    });
}

#[test]
fn links_of_documents_lead_somewhere() {
    for (path, text) in documents() {
        let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        for link in links.filter(|link| !link.is_empty() && !link.contains("://")) {
            assert!(path.with_file_name(link).exists(), "{path:?}: {link:?} leads nowhere");
        }
    }
}

#[test]
fn tests_that_the_threat_model_names_exist() {
    let tests = sources(&repository().join("tests/tests"));
    let page = fs::read_to_string(repository().join("docs/threat-model.md")).expect("the threat model");
    let named: Vec<&str> = code(&page)
        .into_iter()
        .filter(|word| word.len() == 3 && word.starts_with('c') || word.matches('_').count() > 3)
        .collect();
    assert!(named.len() > 30, "{named:?}");
    for name in named {
        assert!(tests.contains(&format!("fn {name}")), "there is no test {name}");
    }
}

#[test]
fn each_of_the_sixty_scenarios_has_a_line_and_the_tests_that_it_names_exist() {
    let tests = repository().join("tests/tests");
    let page = fs::read_to_string(repository().join("docs/parity.md")).expect("the page on parity");
    for number in 1..=60 {
        assert!(page.contains(&format!("\n| {number} | ")), "scenario {number} has no line");
    }
    let all = sources(&tests)
        + &sources(&repository().join("image-fetcher/src"))
        + &sources(&repository().join("runtime/src"));
    for name in code(&page) {
        if name.ends_with(".rs") {
            assert!(tests.join(name).exists(), "there is no {name}");
        } else if let Some((_, name)) = name.rsplit_once("::") {
            assert!(all.contains(&format!("fn {name}")), "there is no test {name}");
        }
    }
}

#[test]
fn tests_that_the_guarantees_name_exist() {
    let tests = repository().join("tests/tests");
    let page = fs::read_to_string(repository().join("docs/guarantees.md")).expect("the guarantees");
    for name in code(&page) {
        if name.ends_with(".rs") || name.ends_with('/') && !name.contains(' ') {
            assert!(tests.join(name).exists(), "there is no {name}");
        } else if name.matches('_').count() > 3 {
            assert!(sources(&tests).contains(&format!("fn {name}")), "there is no test {name}");
        }
    }
}
