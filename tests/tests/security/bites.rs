//! A test of a defence proves something only if it fails where there is none: the recipes that Debian's older
//! runtimes are known to fall to are run against those, and must fail.

use std::process::Command;

use coracle_tests::{Host, privileged};

/// Set for a recipe that runs against a runtime which is known to fall to it.
const BITING: &str = "CORACLE_BITING";

/// Which runtime falls to which recipe, and what the recipe then says.
const KNOWN: [(&str, &str, &str); 14] = [
    ("runc", "paths::c04_whatever_stands_in_the_place_of_null_masks_show_nothing", "mknod null c 1 5"),
    ("crun", "paths::c05_a_console_is_not_made_through_a_link", "made in the canary"),
    ("runc", "races::c08_nothing_is_made_through_a_link_that_was_swapped_in", "made in the canary"),
    ("crun", "processes::c09_a_directory_that_the_caller_left_open_is_no_way_out", "exec: Outcome { code: 0"),
    ("crun", "paths::c15_a_link_in_place_of_dev_gets_no_nodes", "made in the canary"),
    ("runc", "paths::c15_a_link_in_place_of_dev_gets_no_nodes", "made in the canary"),
    ("crun", "paths::c16_no_stream_is_reopened_or_given_away_through_a_link", "the file was given away"),
    ("runc", "paths::c16_no_stream_is_reopened_or_given_away_through_a_link", "the file was written"),
    ("crun", "names::c19_a_user_that_is_no_number_is_never_root", "\"-1\" was taken as 0"),
    ("runc", "names::c19_a_user_that_is_no_number_is_never_root", "\"4294967296\" was taken as 0"),
    (
        "crun",
        "races::c20_what_a_tmpfs_copies_is_not_led_out_by_a_swap",
        "a file of the host was copied: untouched",
    ),
    ("crun", "names::c33_odd_ids_leave_nothing", "was taken"),
    ("crun", "rights::no_container_gets_keys_that_another_laid_ready_for_it", "it has the key"),
    ("runc", "rights::no_container_gets_keys_that_another_laid_ready_for_it", "it has the key"),
];

/// Whether this process runs a recipe against a runtime that falls to it.
pub(crate) fn is_biting() -> bool {
    std::env::var_os(BITING).is_some()
}

/// What a recipe says against an installed runtime.
fn told(runtime: &str, recipe: &str) -> String {
    let path = coracle_tests::command::tool("sh", &["-c", &format!("command -v {runtime}")]);
    let output = Command::new(std::env::current_exe().unwrap())
        .args([recipe, "--exact"])
        .env("CORACLE_RUNTIME", path.trim())
        .env(BITING, "1")
        .output();
    String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
}

/// Lets a runtime fall to all recipes that are known of it.
fn bite(host: &Host, runtime: &str) {
    if is_biting() || !host.needs_program(runtime) {
        return;
    }
    let mut toothless = String::new();
    for (_, recipe, words) in KNOWN.iter().filter(|(of, ..)| *of == runtime) {
        let told = told(runtime, recipe);
        if !told.contains("FAILED") || !told.contains(words) {
            toothless += &format!("{recipe}, {words:?}:\n{told:.1000}\n");
        }
    }
    assert!(toothless.is_empty(), "these pass without the defence, and so prove nothing:\n{toothless}");
}

#[test]
fn recipes_bite_an_older_runc() {
    privileged(|host| bite(host, "runc"));
}

#[test]
fn recipes_bite_an_older_crun() {
    privileged(|host| bite(host, "crun"));
}
