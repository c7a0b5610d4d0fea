//! Images unpacked into bundles, apart from the store: by root, by a user without privilege, by the root of a user namespace.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use coracle_fixtures::image::Image;
use coracle_fixtures::layer::{Compression, Entry, Layer};
use coracle_fixtures::many::{self, Reader};
use coracle_fixtures::small;
use coracle_tests::command::tool;
use coracle_tests::image::Store;
use coracle_tests::tree::{difference, tree};
use coracle_tests::user::{RANGE, USER, as_user};
use coracle_tests::{Host, Outcome, namespaced, privileged, unprivileged};

const STANDS_FOR: &str = " user.coracle.device=";

/// The image's layout in a directory of the caller's, which is a store, too.
fn layout(host: &Host, image: &Image) -> PathBuf {
    let directory = host.directory();
    image.write_layout(&directory);
    host.give(&directory);
    directory
}

/// Puts the image tool beside the caller's runtime, where `coracle image` looks for it.
fn give_tool(host: &Host) {
    let tool = Path::new("/run/test/user/bin/coracle-image");
    fs::copy(host.image_program(), tool).unwrap();
    fs::set_permissions(tool, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Does `test` while nothing is allotted to the user, on this test host alone.
fn allotted_nothing(host: &Host, test: impl FnOnce()) {
    let empty = host.directory().join("empty");
    fs::write(&empty, "").unwrap();
    let files: Vec<&str> =
        ["/etc/subuid", "/etc/subgid"].into_iter().filter(|file| Path::new(file).exists()).collect();
    for file in &files {
        tool("busybox", &["mount", "--bind", empty.to_str().unwrap(), file]);
    }
    test();
    for file in &files {
        tool("busybox", &["umount", file]);
    }
}

fn unpack(host: &Host, store: &Path, bundle: &Path) -> Outcome {
    let (store, bundle) = (store.to_str().unwrap(), bundle.to_str().unwrap());
    host.call(&["image", "--store", store, "unpack", "--rootless", "latest", bundle])
}

/// Every name in a directory.
fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What umoci knows nothing of: what devices would be for root. Says how many there were.
fn without_devices(tree: &mut BTreeMap<PathBuf, String>) -> usize {
    let mut count = 0;
    for line in tree.values_mut() {
        if let Some(at) = line.find(STANDS_FOR) {
            let end = line[at..].find(']').map_or(line.len(), |end| at + end + 1);
            line.replace_range(at..end, "");
            count += 1;
        }
    }
    count
}

/// Takes the set-ID bits from what has another owner than it should: umoci leaves them, to mean whoever has got the file.
fn without_set_ids(tree: &mut BTreeMap<PathBuf, String>) -> usize {
    let mut count = 0;
    for line in tree.values_mut().filter(|line| line.contains(" user.rootlesscontainers=")) {
        let Some((mode, rest)) = line.split_once(' ') else { continue };
        let mode = u32::from_str_radix(mode, 8).unwrap();
        count += usize::from(mode & 0o6000 != 0);
        *line = format!("{:o} {rest}", mode & !0o6000);
    }
    count
}

fn umoci(host: &Host, options: &str, store: &Path) -> PathBuf {
    let bundle = host.directory().join("bundle");
    let caller = if host.is_rootless() { as_user(USER) } else { String::new() };
    let image = format!("{}:latest", store.display());
    host.shell(&format!("{caller} umoci unpack {options} --image {image} {}", bundle.display())).succeeds();
    bundle.join("rootfs")
}

#[test]
fn roots_has_the_tree_that_umoci_unpacks_and_runs() {
    privileged(|host| {
        if !host.needs_coracle("an image store") || !host.needs_program("umoci") {
            return;
        }
        let directory = layout(host, &many::image(Reader::Umoci));
        let theirs = umoci(host, "", &directory);
        let bundle = host.directory().join("bundle");
        Store::at(host, &directory).call(&["unpack", "latest", bundle.to_str().unwrap()]).succeeds();
        assert_eq!(difference(&tree(&bundle.join("rootfs")), &tree(&theirs)), "");
        assert_eq!(names(&bundle), ["config.json", "rootfs"]);
        assert_eq!(names(&directory.join("layers")), Vec::<String>::new());
    });
}

#[test]
fn a_users_has_the_tree_that_umoci_unpacks_without_privilege() {
    unprivileged(|host| {
        if !host.needs_coracle("an image store") || !host.needs_program("umoci") {
            return;
        }
        give_tool(host);
        let directory = layout(host, &many::image(Reader::Umoci));
        let theirs = umoci(host, "--rootless", &directory);
        let bundle = host.directory().join("bundle");
        allotted_nothing(host, || {
            unpack(host, &directory, &bundle).succeeds();
        });
        let mut ours = tree(&bundle.join("rootfs"));
        assert_eq!(without_devices(&mut ours), 3);
        let mut theirs = tree(&theirs);
        assert_eq!((without_set_ids(&mut ours), without_set_ids(&mut theirs)), (0, 3));
        assert_eq!(difference(&ours, &theirs), "");
        let owner = |path: &Path| fs::metadata(path).unwrap().uid();
        assert_eq!((owner(&bundle), owner(&bundle.join("rootfs"))), (USER, USER));
        // Without a user namespace or a helper: it can be removed as it was made.
        host.shell(&format!("{} chmod -R u+rwX {}", as_user(USER), bundle.display())).succeeds();
        host.shell(&format!("{} rm -r {}", as_user(USER), bundle.display())).succeeds();
    });
}

#[test]
fn a_users_runs() {
    unprivileged(|host| {
        if !host.needs_coracle("an image store") {
            return;
        }
        give_tool(host);
        let (directory, bundle) = (layout(host, &small::image()), host.directory().join("bundle"));
        allotted_nothing(host, || {
            let said = unpack(host, &directory, &bundle).succeeds().text();
            assert_eq!(said, "latest: 3 layers unpacked");
        });
        let run = host.call(&["run", "--bundle", bundle.to_str().unwrap(), "x"]).succeeds();
        assert_eq!(run.text(), "hello from three layers");
        assert_eq!(fs::metadata(bundle.join("rootfs/srv/greeting")).unwrap().uid(), USER);
    });
}

#[test]
fn with_a_range_files_are_given_to_their_owners_and_the_others_noted() {
    unprivileged(|host| {
        if !host.needs_coracle("an image store") || !host.needs_program("newuidmap") {
            return;
        }
        give_tool(host);
        let (directory, bundle) = (layout(host, &small::image()), host.directory().join("bundle"));
        unpack(host, &directory, &bundle).succeeds();
        let greeting = fs::metadata(bundle.join("rootfs/srv/greeting")).unwrap();
        assert_eq!((greeting.uid(), greeting.gid()), (RANGE.0 + 999, RANGE.0 + 999));
        let script = "cd $0; sed -i 's|\"cat\",|\"stat\", \"-c\", \"%u:%g\",|' config.json; exec $RUNTIME run --bundle . x";
        let script = script.replace("$0", bundle.to_str().unwrap());
        assert_eq!(host.shell(&script).succeeds().text(), "1000:1000");

        let (directory, bundle) = (layout(host, &many::image(Reader::Full)), host.directory().join("bundle"));
        unpack(host, &directory, &bundle).succeeds();
        let seen = tree(&bundle.join("rootfs"));
        let line = |path: &str| seen[Path::new(path)].clone();
        assert!(line("modes/setgid-directory").starts_with(&format!("42775 {USER}:{} ", RANGE.0 + 49)));
        assert!(!line("modes/setgid-directory").contains("rootlesscontainers"));
        assert!(line("owners/large").contains(&format!(" {USER}:{USER} ")));
        assert!(line("owners/large").contains(" user.rootlesscontainers=[08, fe, ff, ff, ff, 0f, 10, fe,"));
        assert!(line("devices/loop").contains(&format!("{STANDS_FOR}[62, 20, 37, 3a, 30]")), "b 7:0");
        assert!(line("attributes/capability").contains(" security.capability="));
    });
}

#[test]
fn the_root_of_a_user_namespace_gives_what_it_has() {
    namespaced(|host| {
        if !host.needs_coracle("an image store") {
            return;
        }
        give_tool(host);
        let (directory, bundle) = (layout(host, &small::image()), host.directory().join("bundle"));
        unpack(host, &directory, &bundle).succeeds();
        assert_eq!(fs::metadata(bundle.join("rootfs/srv/greeting")).unwrap().uid(), USER);
        let run = host.call(&["run", "--bundle", bundle.to_str().unwrap(), "x"]).succeeds();
        assert_eq!(run.text(), "hello from three layers");
    });
}

#[test]
fn without_privilege_it_has_to_be_asked_for() {
    unprivileged(|host| {
        if !host.needs_coracle("an image store") {
            return;
        }
        give_tool(host);
        let directory = layout(host, &small::image());
        let store = directory.to_str().unwrap();
        let call = |args: &[&str]| host.call(&[&["image", "--store", store, "unpack"], args].concat());
        call(&["latest", "/run/test/x"]).fails_with(&["only be given to their owners by root", "--rootless"]);
        call(&["latest", "--rootless"]).fails_with(&["unpack --rootless needs a directory"]);
        call(&["latest", "/run/test/x", "--snapshotter", "erofs"])
            .fails_with(&["unpack has no option --snapshotter"]);
    });
}

#[test]
fn an_image_without_a_command_is_unpacked_for_who_will_say_one() {
    privileged(|host| {
        if !host.needs_coracle("an image store") {
            return;
        }
        let image = Image { config: serde_json::json!({}), ..small::image() };
        let (directory, bundle) = (layout(host, &image), host.directory().join("bundle"));
        Store::at(host, &directory).call(&["unpack", "latest", bundle.to_str().unwrap()]).succeeds();
        let config = fs::read_to_string(bundle.join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["process"]["args"], serde_json::json!(["sh"]));
    });
}

#[test]
fn nobody_else_gets_to_what_a_bundle_holds() {
    unprivileged(|host| {
        if !host.needs_coracle("an image store") {
            return;
        }
        give_tool(host);
        let entry = Entry::file("program", b"x".to_vec()).mode(0o4755).owner(1_000_000, 0);
        let image = Image::new("set:latest", vec![Layer::new(&[entry], Compression::Gzip)]);
        let (store, bundle) = (layout(host, &image), host.directory());
        fs::set_permissions(&bundle, fs::Permissions::from_mode(0o755)).unwrap();
        host.give(&bundle);
        unpack(host, &store, &bundle).succeeds();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&bundle), 0o700);
        assert_eq!(
            mode(&bundle.join("rootfs/program")),
            0o755,
            "it is not its owner's, and would be the user's"
        );
    });
}

#[test]
fn what_can_not_be_unpacked_is_told_and_leaves_nothing() {
    unprivileged(|host| {
        if !host.needs_coracle("an image store") {
            return;
        }
        give_tool(host);
        let (store, parent) = (layout(host, &small::image()), host.directory());
        unpack(host, Path::new("/run/test/forbidden/store"), &parent.join("x"))
            .fails_with(&["opening the store \"/run/test/forbidden/store\"", "permission denied"]);
        unpack(host, &store, Path::new("/run/test/x")).fails_with(&[
            "unpacking into \"/run/test/x\"",
            "mkdirat",
            "permission denied",
        ]);
        let full = parent.join("full");
        fs::create_dir_all(full.join("rootfs")).unwrap();
        host.give(&full);
        unpack(host, &store, &full).fails_with(&["there is a \"rootfs\" already; name a new directory"]);
        assert_eq!(names(&full), ["rootfs"]);
        let args = ["image", "--store", store.to_str().unwrap(), "unpack", "--rootless", "latest"];
        let bundle = parent.join("bundle");
        let limited = [&args[..], &[bundle.to_str().unwrap(), "--max-entries", "2"]].concat();
        host.call(&limited).fails_with(&["its number of entries is over the limit of 2"]);
        let blob = &small::image().layers[1].blob;
        fs::write(store.join(coracle_fixtures::image::blob_path(blob)), &blob[..blob.len() / 2]).unwrap();
        unpack(host, &store, &bundle).fails_with(&["unpacking into", "layer sha256:", "should hold"]);
        assert_eq!(names(&parent), ["full"]);
    });
}

#[test]
fn a_range_that_the_helper_refuses_is_told_with_its_file() {
    unprivileged(|host| {
        if !host.needs_coracle("an image store") || !host.needs_program("newuidmap") {
            return;
        }
        give_tool(host);
        let (store, bundle) = (layout(host, &small::image()), host.directory().join("bundle"));
        // The first that the search path has knows nothing of any range.
        let bin = host.directory();
        for helper in ["newuidmap", "newgidmap"] {
            fs::write(bin.join(helper), "#!/bin/sh\necho \"uid range not allowed\" >&2; exit 1\n").unwrap();
            fs::set_permissions(bin.join(helper), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let (store, path) = (store.display(), bundle.display());
        host.shell(&format!(
            "PATH={}:$PATH exec $RUNTIME image --store {store} unpack --rootless latest {path}",
            bin.display()
        ))
        .fails_with(&[
            "entering a user namespace",
            "newgidmap refused: uid range not allowed",
            "/etc/subgid must allot",
        ]);
        assert!(!bundle.exists());
    });
}
