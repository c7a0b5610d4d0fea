//! The package: installed for real, below a directory, looked at as a user would, and removed.

use std::fs;
use std::path::{Path, PathBuf};

use coracle_tests::{Host, privileged};

/// What `make test` has made, where it was run on a machine with dpkg.
fn package(host: &Host) -> Option<PathBuf> {
    if !host.needs_program("dpkg-deb") {
        return None;
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target");
    let files = fs::read_dir(&target).ok().into_iter().flatten().flatten().map(|entry| entry.path());
    let found = files.filter(|path| path.extension().is_some_and(|end| end == "deb")).max();
    if found.is_none() {
        host.skip("there is no package; make deb makes it");
    }
    found
}

/// Calls dpkg on a machine below `root`, on which nothing else is installed.
fn dpkg(host: &Host, root: &Path, what: &str) {
    let admin = root.join("var/lib/dpkg");
    for directory in ["updates", "info"] {
        fs::create_dir_all(admin.join(directory)).expect("make dpkg's directories");
    }
    fs::OpenOptions::new().append(true).create(true).open(admin.join("status")).expect("make dpkg's list");
    let root = root.display();
    host.shell(&format!("dpkg --root={root} --log=/dev/null --force-depends {what} 2>/dev/null")).succeeds();
}

/// The files of the package below `root`.
fn files(host: &Host, root: &Path) -> Vec<String> {
    host.shell(&format!("cd {} && find usr ! -type d 2>/dev/null | sort", root.display())).lines()
}

#[test]
fn a_package_installs_all_that_users_need_and_leaves_nothing() {
    privileged(|host| {
        let Some(package) = package(host) else { return };
        let root = host.directory();
        dpkg(host, &root, &format!("--install {}", package.display()));
        let installed = files(host, &root);
        for wanted in [
            "usr/bin/coracle",
            "usr/bin/coracle-image",
            "usr/bin/coracle-isolator-host",
            "usr/lib/coracle/volume-csi.so",
            "usr/include/coracle_isolator.h",
            "usr/lib/systemd/system/coracle.service",
            "usr/share/bash-completion/completions/coracle",
            "usr/share/doc/coracle/examples/template-c/nofile.c",
            "usr/share/fish/vendor_completions.d/coracle.fish",
            "usr/share/man/man1/coracle.1.gz",
            "usr/share/varlink/io.coracle.Host.varlink",
            "usr/share/varlink/io.coracle.Pod.varlink",
            "usr/share/zsh/vendor-completions/_coracle",
        ] {
            assert!(installed.iter().any(|file| file == wanted), "{wanted} is not in {installed:?}");
        }
        let version = format!("{}/usr/bin/coracle --version", root.display());
        assert!(host.shell(&version).succeeds().text().starts_with("coracle version "));
        let unit = fs::read_to_string(root.join("usr/lib/systemd/system/coracle.service")).expect("the unit");
        assert!(unit.contains("ExecStart=/usr/bin/coracle ") && unit.contains("Delegate=yes"), "{unit}");
        dpkg(host, &root, "--purge coracle");
        assert_eq!(files(host, &root), Vec::<String>::new());
    });
}

#[test]
fn every_command_has_its_line_in_the_manual_and_a_page_of_its_own() {
    privileged(|host| {
        let Some(package) = package(host) else { return };
        let root = host.directory();
        host.shell(&format!("dpkg-deb --extract {} {}", package.display(), root.display())).succeeds();
        let page = |name: &str| {
            let file = root.join("usr/share/man/man1").join(name).with_extension("1.gz");
            host.shell(&format!("gzip -dc {}", file.display())).succeeds().text()
        };
        let manual = page("coracle");
        let commands = host.call(&["complete", "--", ""]).succeeds().lines();
        assert!(commands.len() > 20, "{commands:?}");
        for command in commands {
            let is_term =
                |line: &str| line == format!(".B {command}") || line.starts_with(&format!(".B {command} "));
            assert!(manual.lines().any(is_term), "{command} is not in\n{manual}");
            let own = page(&format!("coracle-{command}"));
            assert!(own.contains(&format!("\ncoracle\\-{command} \\- ")), "{own}");
        }
        assert!(page("coracle-run").lines().any(|line| line == ".B \\-d, \\-\\-detach"));
        assert!(page("coracle-image").lines().any(|line| line.starts_with(".B pull REF")));
    });
}

#[test]
fn shells_complete_commands_options_and_containers() {
    privileged(|host| {
        if !host.needs_coracle("completions") {
            return;
        }
        let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("packaging/completions");
        let container = host.sleeper();
        let (packaging, id) = (packaging.display(), container.id());
        let path = "PATH=$(dirname $RUNTIME):$PATH; export PATH;";
        let bash = |words: &str, count: usize| {
            let script = format!(
                "{path} bash -c '. {packaging}/coracle.bash; COMP_WORDS=({words}); COMP_CWORD={count}; _coracle; printf \"%s\\n\" \"${{COMPREPLY[@]}}\"'"
            );
            host.shell(&script).succeeds().lines()
        };
        assert_eq!(bash("coracle de", 1), ["debug", "delete"]);
        assert_eq!(bash("coracle --root /x run --pid", 4), ["--pid-file", "--pidfd-socket", "--pids"]);
        assert_eq!(bash(&format!("coracle kill {}", &id[..3]), 2), [id]);
        if host.needs_program("fish") {
            let script =
                format!("{path} fish -c 'source {packaging}/coracle.fish; complete -C \"coracle de\"'");
            assert!(host.shell(&script).succeeds().lines().contains(&"delete".to_owned()));
        }
        container.remove();
    });
}
