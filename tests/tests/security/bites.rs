//! A test of a defence proves something only if it fails where there is none: the recipes that Debian's older
//! runtimes are known to fall to are run against those, and must fail.

use std::process::{Command, Stdio};

use coracle_tests::command::is_installed;

/// Set for a recipe that runs against a runtime which is known to fall to it.
const BITING: &str = "CORACLE_BITING";

/// Which runtime falls to which recipe.
const KNOWN: [(&str, &str); 0] = [];

/// Whether this process runs a recipe against a runtime that falls to it.
pub(crate) fn is_biting() -> bool {
    std::env::var_os(BITING).is_some()
}

/// Whether a recipe fails against an installed runtime.
fn bites(runtime: &str, recipe: &str) -> bool {
    let path = coracle_tests::command::tool("sh", &["-c", &format!("command -v {runtime}")]);
    let status = Command::new(std::env::current_exe().unwrap())
        .args([recipe, "--exact"])
        .env("CORACLE_RUNTIME", path.trim())
        .env(BITING, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    !status.unwrap().success()
}

#[test]
fn each_recipe_bites_where_there_is_no_defence() {
    if is_biting() {
        return;
    }
    let installed = KNOWN.iter().filter(|(runtime, _)| is_installed(runtime));
    let toothless: Vec<_> = installed.filter(|(runtime, recipe)| !bites(runtime, recipe)).collect();
    assert!(toothless.is_empty(), "these pass without the defence, and so prove nothing: {toothless:?}");
}
