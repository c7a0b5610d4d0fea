//! The header is made of the table, stands still where it is published, and compiles everywhere.

#![forbid(unsafe_code)]
#![expect(clippy::disallowed_methods, reason = "tests read and compile files of the repository")]

use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_isolator_abi::table::{Call, Cgroup, Handles, Isolator};

fn crate_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[test]
fn the_header_is_what_the_table_says() {
    let config = cbindgen::Config::from_file(crate_file("cbindgen.toml")).unwrap();
    let made = cbindgen::Builder::new().with_config(config).with_src(crate_file("src/table.rs")).generate();
    let mut text = Vec::new();
    made.unwrap().write(&mut text);
    let text = String::from_utf8(text).unwrap();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(crate_file("coracle_isolator.h"), &text).unwrap();
    }
    let kept = std::fs::read_to_string(crate_file("coracle_isolator.h")).unwrap();
    assert!(
        kept == text,
        "coracle_isolator.h is stale: UPDATE=1 cargo test -p coracle-isolator-abi makes it anew"
    );
}

/// Each line is a promise to plugins that are out there: none may ever change. New fields go after the last.
#[test]
#[cfg(target_pointer_width = "64")]
fn no_field_of_version_1_has_moved() {
    let table = [
        (offset_of!(Isolator, abi_version), 0),
        (offset_of!(Isolator, struct_size), 4),
        (offset_of!(Isolator, name), 8),
        (offset_of!(Isolator, version), 16),
        (offset_of!(Isolator, after), 24),
        (offset_of!(Isolator, before), 32),
        (offset_of!(Isolator, flags), 40),
        (offset_of!(Isolator, configure), 48),
        (offset_of!(Isolator, recover), 56),
        (offset_of!(Isolator, prepare), 64),
        (offset_of!(Isolator, process), 72),
        (offset_of!(Isolator, validate), 80),
        (offset_of!(Isolator, isolate), 88),
        (offset_of!(Isolator, join), 96),
        (offset_of!(Isolator, watch), 104),
        (offset_of!(Isolator, limitation), 112),
        (offset_of!(Isolator, update), 120),
        (offset_of!(Isolator, usage), 128),
        (offset_of!(Isolator, status), 136),
        (offset_of!(Isolator, cleanup), 144),
        (offset_of!(Isolator, update_intel_rdt), 152),
        (offset_of!(Isolator, give_back), 160),
        (offset_of!(Isolator, provide), 168),
    ];
    let call = [
        (offset_of!(Call, struct_size), 0),
        (offset_of!(Call, host), 8),
        (offset_of!(Call, write), 16),
        (offset_of!(Call, fail), 24),
        (offset_of!(Call, states), 32),
    ];
    let handles = [
        (offset_of!(Handles, struct_size), 0),
        (offset_of!(Handles, pidfd), 4),
        (offset_of!(Handles, id), 8),
        (offset_of!(Handles, spec), 16),
        (offset_of!(Handles, cgroup_version), 24),
        (offset_of!(Handles, cgroup_count), 28),
        (offset_of!(Handles, cgroups), 32),
    ];
    let cgroup = [(offset_of!(Cgroup, controllers), 0), (offset_of!(Cgroup, fd), 8)];
    for (is, was) in table.into_iter().chain(call).chain(handles).chain(cgroup) {
        assert_eq!(is, was);
    }
    // An array of them is passed, so this one can't grow; the others can.
    assert_eq!(size_of::<Cgroup>(), 16);
    assert!(size_of::<Isolator>() >= 176 && size_of::<Call>() >= 32 && size_of::<Handles>() >= 40);
}

#[test]
fn the_header_compiles_as_c_and_as_cpp_without_a_warning() {
    let dir = tempfile();
    for (compiler, standard, language) in [("gcc", "-std=c99", "c"), ("g++", "-std=c++17", "c++")] {
        let source = dir.join(format!("use.{language}"));
        std::fs::write(&source, "#include \"coracle_isolator.h\"\nint main(void) { return (int)sizeof(coracle_isolator) - 176; }\n")
            .unwrap();
        let output = Command::new(compiler)
            .args([standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-x", language, "-o"])
            .arg(dir.join(format!("use-{language}")))
            .arg("-I")
            .arg(env!("CARGO_MANIFEST_DIR"))
            .arg(&source)
            .output()
            .unwrap();
        assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
        let sizes_agree = Command::new(dir.join(format!("use-{language}"))).status().unwrap();
        assert!(sizes_agree.success(), "{compiler} lays the table out in another way");
    }
    std::fs::remove_dir_all(dir).unwrap();
}

fn tempfile() -> PathBuf {
    let dir = std::env::temp_dir().join(format!("coracle-header-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("make a directory");
    dir
}
