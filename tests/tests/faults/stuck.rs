//! Containers that are known to get stuck, and how each is left.

use std::fs;
use std::path::Path;

use coracle_tests::privileged;

/// Cuts a file to half its length, as a host that crashes may.
fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn a_record_that_was_cut_short_does_not_keep_a_container() {
    privileged(|host| {
        if !host.needs_coracle("a record that may be broken") {
            return;
        }
        let before = host.snapshot();
        let container = host.sleeper();
        cut(&Path::new("/run/coracle").join(container.id()).join("record.json"));
        host.call(&["delete", "--force", container.id()]).succeeds();
        assert_eq!(host.difference(&before), None);
    });
}

#[test]
fn where_nothing_tells_what_to_remove_force_says_so() {
    privileged(|host| {
        if !host.needs_coracle("a record that may be broken") {
            return;
        }
        let container = host.sleeper();
        let pid = container.pid();
        let record = Path::new("/run/coracle").join(container.id()).join("record.json");
        let whole = fs::read(&record).unwrap();
        cut(&record);
        cut(&record.with_file_name("config.json"));
        host.call(&["delete", "--force", container.id()]).fails_with(&["record", "configuration"]);
        assert!(Path::new(&format!("/proc/{pid}")).is_dir());
        fs::write(&record, whole).unwrap();
        host.call(&["delete", "--force", container.id()]).succeeds();
    });
}
