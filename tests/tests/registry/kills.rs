//! A pull that is killed, and one that finds no space.

use std::path::Path;
use std::process::{Command, Stdio};

use coracle_fixtures::layer::digest;
use coracle_tests::image::Store;
use coracle_tests::registry::{Content, Registry, Reply, Request};
use coracle_tests::{command, privileged};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{assert_whole, can_run, image, partial, pull};

#[test]
fn a_pull_that_is_killed_goes_on_at_the_byte_it_stopped_at() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let (store, content) = (Store::new(host), Content::of(&image()));
        let first = digest(&image().layers[0].blob);
        let asked_first = first.clone();
        let registry = Registry::start(move |request| {
            let reply = content.answer(request);
            let stalls = request.path.contains(&first) && request.offset().is_none();
            Reply { stall: stalls.then_some(123_456), ..reply }
        });
        let mut child = Command::new(host.image_program())
            .args(["--store", store.directory().to_str().unwrap(), "pull", &registry.image("a")])
            .args(["--plain-http", &registry.host(), "--quiet"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let length = || partial(&store).into_iter().find(|(name, _)| asked_first.ends_with(name.as_str()));
        command::eventually("123456 bytes have come", || {
            length().is_some_and(|(_, length)| length == 123_456)
        });
        child.kill().unwrap();
        child.wait().unwrap();
        pull(&store, &registry, "a", &[]).succeeds();
        let offsets: Vec<usize> = registry
            .asked()
            .iter()
            .filter(|r| r.path.contains(&asked_first))
            .filter_map(Request::offset)
            .collect();
        assert_eq!(offsets, [123_456]);
        assert_whole(&store, &registry.image("a:latest"), &image());
    });
}

#[test]
fn a_pull_that_is_killed_at_any_moment_is_completed_by_the_next() {
    privileged(|host| {
        if !can_run(host) || !host.needs_program("strace") {
            return;
        }
        let registry = Registry::serving(Content::of(&image()));
        let pull_command = |store: &Store<'_>| {
            let mut command = Command::new(host.image_program());
            command.args(["--store", store.directory().to_str().unwrap(), "pull", &registry.image("a")]);
            command.args(["--plain-http", &registry.host(), "--quiet"]).stdin(Stdio::null());
            command
        };
        // Each kind of call that changes the store, at several of its turns.
        let calls = [
            ("openat2", 6),
            ("pwrite64", 3),
            ("write", 3),
            ("linkat", 5),
            ("renameat2,renameat,rename", 3),
            ("syncfs,fsync", 3),
        ];
        let mut killed = 0;
        for (call, turns) in calls {
            for turn in 1..=turns {
                let (store, trace) = (Store::new(host), host.directory().join("trace"));
                let plain = pull_command(&store);
                let when = format!("inject={call}:signal=KILL:when={turn}");
                let mut strace = Command::new("strace");
                strace.args(["-f", "-qq", "-o", trace.to_str().unwrap(), "-e", &when, "--"]);
                strace.arg(plain.get_program()).args(plain.get_args());
                let outcome = command::run(&mut strace, &host.directory());
                killed += usize::from(outcome.code != 0);
                pull(&store, &registry, "a", &["--quiet"]).succeeds();
                assert_whole(&store, &registry.image("a:latest"), &image());
                let left = std::fs::read_dir(store.directory().join("layers")).unwrap().count();
                assert_eq!(left, 3, "nothing half is left after a kill at {call} {turn}");
            }
        }
        host.counted(&format!("{killed} kills of a pull"));
        assert!(killed >= 20, "only {killed} of 23 kills have met the pull");
    });
}

#[test]
fn a_disk_that_is_full_is_an_error_and_gets_its_space_back() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let registry = Registry::serving(Content::of(&image()));
        for size in ["size=64k", "size=400k", "size=1000k", "size=1300k"] {
            let store = Store::new(host);
            std::fs::create_dir_all(store.directory()).unwrap();
            let none = None::<&Path>;
            mount(Some("tmpfs"), store.directory(), Some("tmpfs"), MsFlags::empty(), Some(size)).unwrap();
            pull(&store, &registry, "a", &["--quiet"]).fails_with(&["no space left on device"]);
            let used: u64 = partial(&store).iter().map(|(_, length)| length).sum();
            assert_eq!(used, 0, "{size}");
            for directory in ["layers", "blobs/sha256"] {
                assert_eq!(
                    std::fs::read_dir(store.directory().join(directory)).unwrap().count(),
                    0,
                    "{size} {directory}"
                );
            }
            mount(none, store.directory(), none, MsFlags::MS_REMOUNT, Some("size=100m")).unwrap();
            pull(&store, &registry, "a", &["--quiet"]).succeeds();
            assert_whole(&store, &registry.image("a:latest"), &image());
            umount2(store.directory(), MntFlags::empty()).unwrap();
        }
    });
}
