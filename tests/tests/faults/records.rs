//! What isolators have on record on a disk, when the power is cut.

use coracle_tests::command::tool;
use coracle_tests::privileged;
use coracle_tests::storage::Storage;

use crate::images::{Disk, can_cut};

#[test]
fn what_is_on_record_of_a_volume_can_be_read_after_the_power_was_cut() {
    privileged(|host| {
        if !can_cut(host) {
            return;
        }
        let Some(storage) = Storage::new(host) else { return };
        let disk = Disk::at(host, storage.state().to_owned());
        let volume = storage.state().join("data");
        let lost = storage.bundle("sleep 1000", &[]).named("lost").start();
        tool("kill", &["-9", &lost.pid().to_string()]);
        lost.becomes("stopped");
        for mounted in ["targets/lost", "staging"] {
            tool("umount", &[volume.join(mounted).to_str().unwrap()]);
        }
        // Whoever syncs one file has the journal written, with the names of all, and what others hold not.
        let other = volume.join("lock");
        tool("touch", &[other.to_str().unwrap()]);
        tool("sync", &[other.to_str().unwrap()]);
        disk.cut();
        lost.call("delete").succeeds();
        assert!(!volume.join("record").exists(), "it counts as used");
        storage.end();
        disk.unmount();
    });
}
