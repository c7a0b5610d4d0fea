//! Paths of the host that climb to its root, by a link or by themselves: they lead to the host's files, whatever the image
//! has at the same place.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use coracle_tests::{Bundle, Host, Spec, privileged};
use serde_json::json;

/// A directory of the host with a file `real` and a link to it through the host's root.
fn on_host(host: &Host, content: &str) -> PathBuf {
    let directory = host.directory();
    write(&directory.join("real"), content);
    let up = "../".repeat(directory.components().count() - 1);
    symlink(climbing(&directory, &up).join("real"), directory.join("link")).unwrap();
    directory
}

/// The absolute `path` after `up`, which leads to the root.
fn climbing(path: &Path, up: &str) -> PathBuf {
    Path::new(up).join(path.strip_prefix("/").unwrap())
}

/// The bundle with such a file in its image, at the path of the host's.
fn in_image<'h>(bundle: Bundle<'h>, path: &Path, content: &str) -> Bundle<'h> {
    write(&bundle.rootfs().join(path.strip_prefix("/").unwrap()), content);
    bundle
}

fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn what_a_bind_mount_shows_is_the_hosts() {
    privileged(|host| {
        let directory = on_host(host, "of the host");
        let real = directory.join("real");
        for source in [directory.join("link"), climbing(&real, "/run/../")] {
            let source = source.to_str().unwrap();
            let spec = Spec::new().bind(source, "/seen", &["bind", "ro"]).args(["cat", "/seen"]);
            let run = in_image(host.bundle(spec), &real, "of the image").run().succeeds();
            assert_eq!(run.text(), "of the host", "{source}");
        }
    });
}

#[test]
fn what_is_bound_recursively_of_the_hosts_root_is_the_hosts() {
    privileged(|host| {
        let directory = on_host(host, "of the host");
        let real = directory.join("real");
        let seen = format!("/host{}", real.display());
        let spec = Spec::new().bind("/", "/host", &["rbind", "ro"]).args(["cat", &seen]);
        let run = in_image(host.bundle(spec), &real, "of the image").run().succeeds();
        assert_eq!(run.text(), "of the host");
    });
}

#[test]
fn a_source_in_a_bundle_that_is_named_from_elsewhere_is_the_bundles() {
    privileged(|host| {
        let spec = Spec::new().bind("data", "/seen", &["bind", "ro"]).args(["cat", "/seen"]);
        let bundle = host.bundle(spec);
        let data = bundle.directory().join("data");
        write(&data, "of the host");
        let bundle = in_image(bundle, &data, "of the image");
        let run = format!("cd /usr && $RUNTIME run --bundle ..{} climbing", bundle.directory().display());
        assert_eq!(host.shell(&run).succeeds().text(), "of the host");
    });
}

#[test]
fn what_a_new_file_system_is_made_of_is_the_hosts() {
    privileged(|host| {
        let directory = on_host(host, "of the host");
        let (lower, empty) = (climbing(&directory, "/run/../"), host.directory());
        let lower = format!("lowerdir={}:{}", lower.display(), empty.display());
        let spec = Spec::new().mount("/seen", "overlay", "overlay", &[&lower]).args(["cat", "/seen/real"]);
        let run = in_image(host.bundle(spec), &directory.join("real"), "of the image").run().succeeds();
        assert_eq!(run.text(), "of the host");
    });
}

/// Asserts that a hook whose path climbs to the root is the host's, in a container by `spec`.
fn hook_is_the_hosts(host: &Host, spec: Spec) {
    let told = host.directory().join("told");
    // Who runs it may be a mapped root.
    fs::set_permissions(told.parent().unwrap(), fs::Permissions::from_mode(0o777)).unwrap();
    let script = |who: &str| format!("#!/bin/sh\necho {who} >>{}\n", told.display());
    let directory = on_host(host, &script("host"));
    let hook = json!({"path": directory.join("link")});
    let bundle = host.bundle(spec.push("/hooks/createContainer", hook));
    in_image(bundle, &directory.join("real"), &script("image")).run().succeeds();
    assert_eq!(fs::read_to_string(&told).unwrap(), "host\n");
}

#[test]
fn a_hook_is_the_hosts() {
    privileged(|host| hook_is_the_hosts(host, Spec::new()));
}

#[test]
fn a_hook_of_a_container_whose_mounts_the_host_shares_is_the_hosts() {
    privileged(|host| {
        for propagation in ["shared", "rshared", "slave", "unbindable"] {
            hook_is_the_hosts(host, Spec::new().set("/linux/rootfsPropagation", propagation));
        }
    });
}

#[test]
fn a_hook_of_a_container_with_users_of_its_own_is_the_hosts() {
    privileged(|host| {
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        let spec = Spec::new().namespace("user");
        let spec = ["uid", "gid"]
            .iter()
            .fold(spec, |spec, kind| spec.set(&format!("/linux/{kind}Mappings"), map.clone()));
        hook_is_the_hosts(host, spec);
    });
}
