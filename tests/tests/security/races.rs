//! A directory and a link that change places while the runtime works on them.

use std::fs;
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use coracle_fixtures::hostile::CANARY;
use coracle_tests::{Spec, command, privileged};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::{canary_is_untouched, plant, withstands};

/// How often the runtime is let into the race, on a fast machine; older ones lose within a few dozen starts.
fn starts() -> usize {
    let slowness = std::env::var("CORACLE_STRIDE").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    60 / slowness
}

/// Swaps two entries of the file system as fast as it can while `during` runs.
fn swapping<T>(one: &Path, other: &Path, during: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    thread::scope(|threads| {
        threads.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
            }
        });
        // However it ends: a thread that never stops would keep the test from failing.
        let result = catch_unwind(AssertUnwindSafe(during));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Makes `volume/x`, a directory, and `volume/y`, a link to the canary, which change places while `during` runs.
fn swapping_in<T>(volume: &Path, during: impl FnOnce() -> T) -> T {
    let (directory, link) = (volume.join("x"), volume.join("y"));
    fs::create_dir(&directory).unwrap();
    symlink(CANARY, &link).unwrap();
    swapping(&directory, &link, during)
}

#[test]
fn c03_a_race_for_proc_gets_no_procfs_without_its_masks() {
    privileged(|host| {
        if !withstands(host) {
            return;
        }
        // Which of the names is the directory in the end is chance. Where procfs is, its masks must be, too.
        let script = "for p in /proc /proc-link /tmp; do \
                          [ ! -L $p ] && [ -d $p/1 ] || continue; \
                          [ $p != /tmp ] || echo mounted through the link; \
                          [ -c $p/keys ] || echo $p/keys is not masked; \
                          grep -q \" $p/sys ro,\" $p/self/mountinfo || echo $p/sys can be written; \
                          echo looked; \
                      done";
        let mut looked = 0;
        for _ in 0..starts() {
            let bundle = plant(host.bundle(Spec::new().script(script)), "proc-link", "/tmp");
            let (proc, link) = (bundle.rootfs().join("proc"), bundle.rootfs().join("proc-link"));
            let created = swapping(&proc, &link, || bundle.try_create());
            if created.code == 0 {
                host.call(&["start", bundle.id()]).succeeds();
                let stopped = || host.call(&["state", bundle.id()]).text().contains("stopped");
                command::eventually("the container ends", stopped);
                let told = fs::read_to_string(bundle.directory().join("stdout")).unwrap();
                assert_eq!(told, "looked\n");
                looked += 1;
                host.call(&["delete", bundle.id()]).succeeds();
            } else {
                assert!(!host.is_coracle() || created.stderr.contains("a symbolic link"), "{created:?}");
            }
        }
        assert!(looked > 0, "no container started");
    });
}

#[test]
fn c07_a_mount_goes_nowhere_else_when_its_place_is_swapped() {
    privileged(|host| {
        let (volume, source) = (host.directory(), host.directory());
        fs::write(source.join("mark"), "").unwrap();
        let mut spec = Spec::new().bind(volume.to_str().unwrap(), "/volume", &[]);
        for number in 0..10 {
            spec = spec.bind(source.to_str().unwrap(), &format!("/volume/x/{number}"), &[]);
        }
        // Nothing of the host's root may be seen, wherever the mounts went.
        let bundle = host.bundle(spec.script("cat /volume/x/file /volume/y/file 2>/dev/null; echo end"));
        let seen: Vec<String> = swapping_in(&volume, || (0..starts()).map(|_| bundle.run().text()).collect());
        assert!(seen.iter().all(|text| ["", "end"].contains(&text.as_str())), "{seen:?}");
        canary_is_untouched();
    });
}

#[test]
fn c08_nothing_is_made_through_a_link_that_was_swapped_in() {
    privileged(|host| {
        if !withstands(host) {
            return;
        }
        let volume = host.directory();
        swapping_in(&volume, || {
            for start in 0..starts() {
                let spec = Spec::new().bind(volume.to_str().unwrap(), "/volume", &[]);
                let spec = spec.mount(&format!("/volume/x/{start}"), "tmpfs", "tmpfs", &[]);
                let spec = spec.bind("/etc/hostname", &format!("/volume/x/file-{start}"), &[]);
                host.bundle(spec).run();
                if fs::read_dir(CANARY).unwrap().count() != 2 {
                    break;
                }
            }
        });
        canary_is_untouched();
    });
}

#[test]
fn c20_what_a_tmpfs_copies_is_not_led_out_by_a_swap() {
    privileged(|host| {
        if !withstands(host) {
            return;
        }
        let volume = host.directory();
        let spec = Spec::new()
            .bind(volume.to_str().unwrap(), "/volume", &[])
            .mount("/volume", "tmpfs", "tmpfs", &["tmpcopyup"])
            .script("cat /volume/*/file 2>/dev/null; echo end");
        let bundle = host.bundle(spec);
        // Older ones fall in one of about fifty starts.
        let most = starts() * if host.is_coracle() { 2 } else { 10 };
        let mut started = 0;
        swapping_in(&volume, || {
            for _ in 0..most {
                let told = bundle.run().text();
                assert!(["", "end"].contains(&told.as_str()), "a file of the host was copied: {told}");
                started += usize::from(told == "end");
            }
        });
        assert!(started > 0, "no container started");
        canary_is_untouched();
    });
}
