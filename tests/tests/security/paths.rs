//! Links and other traps in the place of what the runtime mounts on, makes, opens or reads.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use coracle_fixtures::hostile::CANARY;
use coracle_tests::terminal::ConsoleSocket;
use coracle_tests::{Bundle, Spec, command, privileged};
use serde_json::json;

use crate::{canary_is_untouched, plant, without_dev, withstands};

#[test]
fn c03_a_link_in_place_of_proc_or_sys_is_not_mounted_on() {
    privileged(|host| {
        for point in ["proc", "sys"] {
            let bundle = plant(host.bundle(Spec::new()), point, CANARY);
            let run = bundle.run();
            assert!(run.code != 0, "/{point} was mounted through a link: {run:?}");
        }
    });
}

#[test]
fn c04_a_mask_is_never_bound_from_the_containers_own_null() {
    privileged(|host| {
        let spec = without_dev(Spec::new())
            .set("/linux/maskedPaths", json!(["/proc/kcore"]))
            .script("cat /proc/kcore | head -c 9; stat -c %t:%T /proc/kcore");
        let bundle = plant(host.bundle(spec), "dev/null", "/etc/passwd");
        let run = bundle.run();
        assert!(run.code != 0 || run.text() == "1:3", "{run:?}");
    });
}

#[test]
fn c15_a_link_in_place_of_dev_gets_no_nodes() {
    privileged(|host| {
        if !withstands(host) {
            return;
        }
        for target in [CANARY, "../../../../../../../run/host-canary"] {
            let spec = without_dev(Spec::new());
            // Refused or made inside the root: the oracle sees to the canary.
            plant(host.bundle(spec), "dev", target).run();
            canary_is_untouched();
        }
    });
}

#[test]
fn c16_no_stream_is_reopened_or_given_away_through_a_link() {
    privileged(|host| {
        if !withstands(host) {
            return;
        }
        let victim = host.directory().join("victim");
        fs::write(&victim, "untouched").unwrap();
        let spec = without_dev(Spec::new())
            .user(1000, 1000)
            .mount("/victim", "bind", victim.to_str().unwrap(), &["bind"])
            .args(["echo", "out"]);
        plant(host.bundle(spec), "dev/null", "/victim").run();
        assert_eq!(fs::metadata(&victim).unwrap().uid(), 0, "the file was given away");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched", "the file was written");
    });
}

#[test]
fn c20_a_working_directory_is_not_made_through_a_link() {
    privileged(|host| {
        let spec = Spec::new().set("/process/cwd", "/work/new").args(["pwd"]);
        plant(host.bundle(spec), "work", CANARY).run();
        assert!(!Path::new(CANARY).join("new").exists());
    });
}

#[test]
fn c21_a_password_file_that_never_ends_holds_nobody_up() {
    privileged(|host| {
        if !withstands(host) {
            return;
        }
        for target in ["/dev/zero", "/proc/kmsg"] {
            let bundle = plant(host.bundle(Spec::new().user(1000, 1000)), "etc/passwd", target);
            let begin = Instant::now();
            bundle.run();
            assert!(begin.elapsed().as_secs() < 30, "{target}");
        }
        let bundle = host.bundle(Spec::new().user(1000, 1000));
        let passwd = bundle.rootfs().join("etc/passwd");
        fs::remove_file(&passwd).unwrap();
        command::tool("mkfifo", &[passwd.to_str().unwrap()]);
        let begin = Instant::now();
        bundle.run();
        assert!(begin.elapsed().as_secs() < 30, "a FIFO");
    });
}

#[test]
fn c02_a_cover_over_proc_takes_no_label() {
    privileged(|host| {
        // Wherever the label can't be applied to the process itself, the launch fails.
        for destination in ["/proc", "/proc/self/attr"] {
            let fake = host.directory();
            fs::create_dir_all(fake.join("self/attr")).unwrap();
            for file in ["self/attr/exec", "self/attr/current", "exec", "current"] {
                fs::write(fake.join(file), "").unwrap();
            }
            let spec = Spec::new().set("/process/apparmorProfile", "no-such-profile");
            let spec = spec.bind(fake.to_str().unwrap(), destination, &[]).args(["echo", "unconfined"]);
            let run = host.bundle(spec).run();
            assert!(run.code != 0 && run.text().is_empty(), "{destination}: {run:?}");
            assert_eq!(fs::read_to_string(fake.join("exec")).unwrap(), "");
        }
    });
}

#[test]
fn c04_whatever_stands_in_the_place_of_null_masks_show_nothing() {
    privileged(|host| {
        if !withstands(host) {
            return;
        }
        for trap in ["rm -f null", "mkfifo null", "echo secret > null", "mknod null c 1 5"] {
            let spec = without_dev(Spec::new()).set("/linux/maskedPaths", json!(["/secret"]));
            let script = "timeout 1 head -c 9 /secret; touch /secret/new 2>/dev/null && echo written";
            let bundle = host.bundle(spec.script(script)).with_file("secret", "secret");
            host.shell(&format!("cd {}/dev && {trap}", bundle.rootfs().display())).succeeds();
            let run = bundle.run();
            assert!(run.text().is_empty(), "{trap}: {run:?}");
        }
    });
}

#[test]
fn c05_a_console_is_not_made_through_a_link() {
    privileged(|host| {
        if !withstands(host) {
            return;
        }
        for target in
            [format!("{CANARY}/new"), format!("{CANARY}/file"), "../../../run/host-canary/new".into()]
        {
            let socket = ConsoleSocket::new(&host.directory());
            let spec = without_dev(Spec::new()).set("/process/terminal", true);
            let bundle = host.bundle(spec.args(["sleep", "1000"]));
            let bundle = plant(bundle.options(["--console-socket", socket.path()]), "dev/console", &target);
            bundle.try_create();
            host.call(&["delete", "--force", bundle.id()]).succeeds();
            canary_is_untouched();
        }
    });
}

#[test]
fn c06_a_cover_over_proc_sys_gets_no_sysctl() {
    privileged(|host| {
        let fake = host.directory();
        for destination in ["/proc/sys", "/proc/sys/net", "/proc/sys/net/ipv4"] {
            let (_, below) = "/proc/sys/net/ipv4/ip_forward".split_at(destination.len() + 1);
            let file = fake.join(below);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "forged").unwrap();
            let spec = Spec::new().bind(fake.to_str().unwrap(), destination, &[]);
            let run = host.bundle(spec.set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}))).run();
            assert_eq!(fs::read_to_string(&file).unwrap(), "forged", "{destination}: {run:?}");
        }
    });
}

#[test]
fn c18_read_only_mounts_stay_so_under_a_forged_proc() {
    privileged(|host| {
        let (fake, kept) = (host.directory(), host.directory());
        fs::create_dir_all(fake.join("self/fd")).unwrap();
        for number in 3..40 {
            std::os::unix::fs::symlink(CANARY, fake.join(format!("self/fd/{number}"))).unwrap();
        }
        let spec = Spec::new()
            .without_mount("/proc")
            .remove("/linux", "maskedPaths")
            .remove("/linux", "readonlyPaths")
            .set("/root/readonly", true)
            .bind(fake.to_str().unwrap(), "/proc", &["ro"])
            .bind(kept.to_str().unwrap(), "/kept", &["ro"])
            .script("touch /kept/new; touch /proc/new; touch /new; ls /kept /proc");
        let run = host.bundle(spec).run();
        assert!(!run.text().contains("new"), "{run:?}");
        assert!(run.stderr.matches("Read-only").count() == 3 || !run.stderr.contains("touch"), "{run:?}");
        assert_eq!(fs::read_dir(&kept).unwrap().count(), 0);
    });
}

#[test]
fn c20_what_the_runtime_looks_up_is_not_read_or_made_through_a_link() {
    privileged(|host| {
        if !withstands(host) {
            return;
        }
        let traps: [(&str, &str); 6] = [
            ("etc", CANARY),
            ("etc/passwd", "/run/host-canary/file"),
            ("etc/group", "/run/host-canary/file"),
            ("proc/self", CANARY),
            ("dev/pts", CANARY),
            ("sys/fs", CANARY),
        ];
        for (path, target) in traps {
            let bundle = host.bundle(Spec::new().user(1000, 1000));
            fs::create_dir_all(bundle.rootfs().join(path).parent().unwrap()).unwrap();
            let _ = fs::remove_dir_all(bundle.rootfs().join(path));
            plant(bundle, path, target).run();
            canary_is_untouched();
        }
    });
}

#[test]
fn c21_a_huge_group_file_holds_nobody_up() {
    privileged(|host| {
        if !withstands(host) {
            return;
        }
        for file in ["etc/passwd", "etc/group"] {
            let bundle: Bundle<'_> = host.bundle(Spec::new().user(1000, 1000));
            let path = bundle.rootfs().join(file);
            fs::File::create(&path).unwrap().set_len(8 << 30).unwrap();
            let begin = Instant::now();
            // No more than this may be taken into memory.
            let run = host.shell(&format!(
                "cd {} && ulimit -v 200000 && $RUNTIME run {}",
                bundle.directory().display(),
                bundle.id()
            ));
            assert!(begin.elapsed().as_secs() < 30, "{file}: {run:?}");
            assert!(!run.stderr.contains("allocation"), "{run:?}");
        }
    });
}

#[test]
fn c17_an_odd_destination_is_mounted_just_there_and_comes_from_where_it_says() {
    privileged(|host| {
        let source = host.directory();
        fs::write(source.join("mark"), "marked").unwrap();
        let long = format!("/{}", ["l".repeat(200), "l".repeat(200)].join("/"));
        for destination in ["/a]:/etc", "/a,b:c", "/new\nline", "/a/../b", "/via/c", &long] {
            let spec = Spec::new().bind(source.to_str().unwrap(), destination, &["ro"]).args([
                "cat",
                &format!("{destination}/mark"),
                "/proc/self/mountinfo",
            ]);
            let bundle = plant(host.bundle(spec), "via", "]:,/..");
            let run = bundle.run();
            // The test's directories lie on a tmpfs at /run, and mountinfo tells a place by its path there.
            let root = source.to_str().unwrap().trim_start_matches("/run");
            let binds = run.lines().iter().filter(|line| line.split(' ').nth(3) == Some(root)).count();
            assert!(
                run.code != 0 || (run.text().starts_with("marked") && binds == 1),
                "{destination}: {run:?}"
            );
            canary_is_untouched();
        }
    });
}

#[test]
fn c29_what_one_run_plants_in_a_volume_the_next_does_not_follow() {
    privileged(|host| {
        let volume = host.directory();
        let spec = || Spec::new().bind(volume.to_str().unwrap(), "/volume", &["rw"]);
        let plant = format!("ln -s {CANARY}/file /volume/file; ln -s {CANARY} /volume/directory");
        host.bundle(spec().script(&plant)).run().succeeds();
        let again = spec()
            .bind("/etc/hostname", "/volume/file", &["ro"])
            .mount("/volume/directory/made", "tmpfs", "tmpfs", &["tmpcopyup"])
            .set("/process/cwd", "/volume/directory/new");
        host.bundle(again).run();
        canary_is_untouched();
        // And nothing of one container is in the next one's.
        host.bundle(spec().env("SECRET=1")).run().succeeds();
        assert_eq!(host.bundle(spec().script("echo $SECRET")).run().succeeds().text(), "");
    });
}

#[test]
fn what_covers_proc_is_not_taken_away_in_the_place_of_a_mount_that_was_added() {
    privileged(|host| {
        if !host.needs_coracle("mounts in a running container") {
            return;
        }
        let container = host.sleeper();
        let list = host.directory().join("mounts.json");
        fs::write(&list, json!([{"destination": "/a/b", "type": "tmpfs", "source": "tmpfs"}]).to_string())
            .unwrap();
        let mounts = |verb| host.call(&["mounts", verb, container.id(), list.to_str().unwrap()]);
        let covers = || container.exec(&["grep", " /proc/sys ", "/proc/self/mounts"]).succeeds().text();
        let before = covers();
        for stands_in in ["/proc/sys", "/proc"] {
            mounts("add").succeeds();
            let swap = format!("mv /a /a2; mkdir /a; ln -s {stands_in} /a/b");
            container.exec(&["sh", "-c", &swap]).succeeds();
            mounts("remove").fails_with(&["/mounts/0 at \"/a/b\"", "is not there any more"]);
            assert_eq!(covers(), before);
            container.exec(&["sh", "-c", "rm -r /a; mv /a2 /a"]).succeeds();
            mounts("remove").succeeds();
            container.exec(&["sh", "-c", "! grep ' /a/b ' /proc/self/mounts"]).succeeds();
        }
        container.remove();
    });
}
