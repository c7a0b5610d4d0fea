//! Which plugins there are, and what the operator says of them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use coracle_tests::{Outcome, Spec, plugin, privileged};

use super::{HOSTILE, NAME, spoiled};

fn echo() -> Spec {
    Spec::new().args(["echo", "ran"])
}

#[test]
fn an_optional_plugin_that_fails_is_a_warning_in_the_state() {
    privileged(|host| {
        for call in ["prepare", "isolate"] {
            let host = spoiled(host, &[&format!("-DIN=\"{call}\""), "-DDO=crash"], "optional = true");
            let container = host.sleeper();
            let warning =
                container.state()["annotations"]["io.coracle.warnings"].as_str().unwrap().to_owned();
            let wanted = format!("isolator {NAME} could not {call}: its process was killed by SIGSEGV");
            assert!(warning.starts_with(&wanted), "{warning}");
            assert!(warning.ends_with("it is optional, and left out"), "{warning}");
            container.remove();
        }
        let gone = host.with_plugin(NAME, "/gone.so".as_ref(), "optional = true");
        let outcome = gone.bundle(echo()).run().succeeds();
        assert_eq!(outcome.text(), "ran");
        assert!(outcome.stderr.contains("there is no /gone.so"), "{}", outcome.stderr);
    });
}

#[test]
fn an_optional_plugin_that_fails_for_a_container_that_runs_is_a_warning_of_the_command() {
    privileged(|host| {
        for call in ["update", "join"] {
            let host = spoiled(host, &[&format!("-DIN=\"{call}\""), "-DDO=fails"], "optional = true");
            let container = host.sleeper();
            let outcome = match call {
                "update" => container.verb_with("update", &["--pids-limit", "30"]),
                _ => container.exec(&["true"]),
            };
            warns_of(&outcome.succeeds(), call);
            container.remove();
        }
    });
}

#[test]
fn an_optional_plugin_that_can_not_isolate_what_is_restored_is_a_warning() {
    privileged(|host| {
        let host = spoiled(host, &["-DIN=\"isolate\"", "-DDO=fails"], "optional = true");
        let (bundle, images) = (host.bundle(Spec::new()), host.directory());
        fs::write(images.join("descriptors.json"), "[]").unwrap();
        let [directory, images] = [bundle.directory(), &images].map(|path| path.to_str().unwrap());
        let restore = ["--criu", "/bin/false", "restore", "--bundle", directory, "--image-path", images];
        let outcome = host.call(&[&restore[..], &["again"]].concat());
        assert!(outcome.code != 0 && outcome.stderr.contains("criu restore"), "{}", outcome.stderr);
        warns_of(&outcome, "isolate");
    });
}

fn warns_of(outcome: &Outcome, call: &str) {
    let wanted = format!("warning: isolator {NAME} could not {call}: it does not want to");
    let line = outcome.stderr.lines().find(|line| line.contains(&wanted));
    assert!(line.is_some_and(|line| line.ends_with("it is optional, and left out")), "{}", outcome.stderr);
}

#[test]
fn a_plugin_that_others_can_write_is_refused() {
    privileged(|host| {
        let object = plugin::compiled(host, HOSTILE, &[]);
        let configured = host.with_plugin(NAME, &object, "");
        configured.bundle(echo()).run().succeeds();
        fs::set_permissions(&object, fs::Permissions::from_mode(0o775)).unwrap();
        configured.bundle(echo()).run().fails_with(&[
            NAME,
            "could not load",
            "can be written by others (mode 775)",
        ]);
        fs::set_permissions(&object, fs::Permissions::from_mode(0o755)).unwrap();
        chown(&object, Some(1000), None).unwrap();
        configured.bundle(echo()).run().fails_with(&[NAME, "could not load", "belongs to user 1000"]);
    });
}

#[test]
fn a_configuration_that_is_malformed_is_refused_with_its_place() {
    privileged(|host| {
        let wrong = host.configured("[isolator.\"a/b\"]\nfle = \"x\"\n");
        wrong.bundle(echo()).run().fails_with(&[
            "reading the configuration in",
            "config.toml",
            "unknown field `fle`",
        ]);
    });
}

#[test]
fn a_section_of_a_built_in_isolator_that_says_more_than_options_is_refused() {
    privileged(|host| {
        let wrong =
            host.configured("[isolator.\"linux/nnp\"]\noptional = true\noptions = { always = true }\n");
        wrong.bundle(echo()).run().fails_with(&[
            "isolator.\"linux/nnp\".optional: linux/nnp is built in, and `optional` is for plugins",
            "leave it out, or name the `file` of a plugin",
        ]);
    });
}

#[test]
fn a_plugin_is_found_by_its_isolators_name() {
    privileged(|host| {
        let object = plugin::compiled(host, HOSTILE, &[]);
        let directory = object.parent().unwrap();
        fs::rename(&object, directory.join("test-hostile.so")).unwrap();
        let found =
            host.configured(&format!("directories = [\"/none\", {directory:?}]\n[isolator.{NAME:?}]\n"));
        assert_eq!(found.bundle(echo()).run().succeeds().text(), "ran");
    });
}

#[test]
fn inline_plugins_share_one_process() {
    privileged(|host| {
        let objects = ["one", "two"].map(|name| {
            plugin::compiled(
                host,
                HOSTILE,
                &[&format!("-DNAME=\"test/{name}\""), "-DIN=\"isolate\"", "-DDO=nap"],
            )
        });
        let [one, two] = &objects;
        let config = format!(
            "[isolator.\"test/one\"]\nfile = {one:?}\ninline = true\n[isolator.\"test/two\"]\nfile = {two:?}\ninline = true\n"
        );
        let host = host.configured(&config);
        let bundle = host.bundle(echo());
        let mut running = bundle.command("run").spawn().unwrap();
        let count = || host.shell("pgrep -c -f '[-]-unconfined'").text();
        coracle_tests::command::eventually("it is there", || count() != "0");
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!(count(), "1");
        assert!(coracle_tests::command::wait(&mut running, "run").success());
    });
}

#[test]
fn two_isolators_that_set_one_field_are_both_named_with_it() {
    privileged(|host| {
        let source = "isolators/template-c/nofile.c";
        let first = plugin::compiled(host, source, &[]);
        let text = plugin::source(source);
        let copy = host.directory().join("other.c");
        fs::write(&copy, text.replace("example/nofile", "example/other")).unwrap();
        let second = plugin::compiled(host, copy.to_str().unwrap(), &[]);
        let both = host.configured(&format!(
            "[isolator.\"example/nofile\"]\nfile = {first:?}\n[isolator.\"example/other\"]\nfile = {second:?}\n"
        ));
        both.bundle(echo())
            .run()
            .fails_with(&["isolators example/nofile and example/other both set /process/"]);
    });
}

#[test]
fn a_container_whose_plugin_is_configured_no_more_needs_force() {
    privileged(|host| {
        let configured = spoiled(host, &[], "");
        let container = configured.sleeper();
        container.call_with("kill", &["KILL"]).succeeds();
        container.becomes("stopped");
        host.call(&["delete", container.id()])
            .fails_with(&["isolator test/hostile is not configured any more", "use delete --force"]);
        host.call(&["delete", "--force", container.id()]).succeeds();
    });
}
