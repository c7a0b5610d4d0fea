//! The rest of the recipes. I-03 is in `race.rs`, I-05 to I-07, I-09 and I-17 in `streams.rs`. I-16 is about the caches of
//! builders, and nothing here builds.

use std::fs;
use std::os::unix::fs::MetadataExt;

use coracle_fixtures::image::Image;
use coracle_fixtures::layer::{Compression, Entry, Layer};
use coracle_tests::image::{Store, snapshotters};
use coracle_tests::privileged;
use coracle_tests::registry::{Content, Registry, Reply};
use coracle_tests::tree::tree;
use serde_json::json;

use super::{NAME, mounted, try_all, unpack};

#[test]
fn i_01_the_root_of_a_layer_can_not_be_anything_else() {
    privileged(|host| try_all(host, "I-01"));
}

#[test]
fn i_02_a_directory_in_the_place_of_a_link_changes_nothing_where_that_led() {
    privileged(|host| try_all(host, "I-02"));
}

#[test]
fn i_04_links_to_places_outside_are_written_through_by_nobody() {
    privileged(|host| try_all(host, "I-04"));
}

#[test]
fn i_08_a_manifest_that_could_be_two_things_is_refused() {
    privileged(|host| try_all(host, "I-08"));
}

/// What asks for the password, and where it is sent on to.
#[test]
fn i_10_credentials_follow_no_redirect_no_realm_and_no_address_of_a_manifest() {
    privileged(|host| {
        if !host.needs_coracle("an image store") {
            return;
        }
        let elsewhere = Registry::start(|_| Reply::status(404));
        let image = Image::new(NAME, vec![Layer::new(&[Entry::file("f", "")], Compression::Gzip)]);
        let mut manifest = image.manifest();
        manifest["layers"][0]["urls"] = json!([format!("http://{}/stolen", elsewhere.host())]);
        let mut content = Content::of(&image);
        content.add_manifest("latest", "application/vnd.oci.image.manifest.v1+json", &manifest);
        let target = format!("http://{}", elsewhere.host());
        let registry = Registry::start(move |request| {
            let is_blob = request.path.contains("/blobs/");
            let sent_on = || Reply::status(307).header("location", format!("{target}{}", request.path));
            if is_blob { sent_on() } else { content.answer(request) }
        });
        let (store, auth) = (Store::new(host), host.directory().join("auth.json"));
        let logins = json!({ "auths": { registry.host(): { "auth": "dXNlcjpzZWNyZXQ=" } } });
        fs::write(&auth, logins.to_string()).unwrap();
        let (named, at, elsewhere_host) = (registry.image("a"), registry.host(), elsewhere.host());
        let args = ["pull", &named, "--auth-file", auth.to_str().unwrap(), "--quiet", "--plain-http", &at];
        let run = store.call(&[&args[..], &["--plain-http", &elsewhere_host]].concat());
        assert_eq!(run.code, 1);
        assert!(!run.stderr.contains("secret") && !run.stderr.contains("dXNlcjpzZWNyZXQ"), "{run:?}");
        let asked = elsewhere.asked();
        assert!(
            asked.iter().all(|r| r.header("authorization").is_none() && !r.path.contains("stolen")),
            "{asked:?}"
        );
    });
}

#[test]
fn i_11_digests_that_are_paths_short_or_of_another_kind_are_refused() {
    privileged(|host| try_all(host, "I-11"));
}

#[test]
fn i_12_sizes_that_lie_are_refused() {
    privileged(|host| try_all(host, "I-12"));
}

#[test]
fn i_13_whiteouts_hide_what_is_below_and_nothing_else_and_can_not_be_forged() {
    privileged(|host| try_all(host, "I-13"));
}

#[test]
fn i_14_of_attributes_only_those_of_files_are_kept_and_owners_that_nobody_can_have_are_refused() {
    privileged(|host| {
        if !host.needs_coracle("an image store") {
            return;
        }
        let names =
            ["security.selinux", "security.evm", "security.apparmor", "system.nfs4_acl", "com.apple.x"];
        let file = Entry::file("f", "").mode(0o6755).attribute("user.kept", "1");
        let file = names.iter().fold(file, |file, name| file.attribute(name, "x"));
        for snapshotter in snapshotters(host) {
            let store = Store::of(host, snapshotter);
            unpack(&store, vec![Layer::new(std::slice::from_ref(&file), Compression::Plain)]).succeeds();
            mounted(&store, |root| {
                let line = tree(root).into_values().next().unwrap();
                assert!(
                    names.iter().all(|name| !line.contains(name)) && line.contains("user.kept"),
                    "{line}"
                );
                assert_eq!(fs::metadata(root.join("f")).unwrap().mode() & 0o7777, 0o6755);
            });
            let nobody = Entry::file("f", "").owner(u64::from(u32::MAX), 0);
            let run = unpack(&Store::of(host, snapshotter), vec![Layer::new(&[nobody], Compression::Plain)]);
            run.fails_with(&["its uid 4294967295 is none that a file can have"]);
        }
    });
}

#[test]
fn i_15_a_checkpoint_is_no_image() {
    privileged(|host| try_all(host, "I-15"));
}

#[test]
fn i_18_an_erofs_image_from_elsewhere_is_never_mounted() {
    privileged(|host| try_all(host, "I-18"));
}
