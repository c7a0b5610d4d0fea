//! What a pull brings, and what it leaves out.

use std::fs;

use coracle_fixtures::image::{Image, descriptor};
use coracle_fixtures::layer::digest;
use coracle_fixtures::small;
use coracle_tests::image::Store;
use coracle_tests::privileged;
use coracle_tests::registry::{Content, Registry, Reply};
use serde_json::json;

use super::{assert_whole, can_run, image, layer, pull};

#[test]
fn an_image_is_pulled_unpacked_and_named_in_full() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let (store, image) = (Store::new(host), small::image());
        let registry = Registry::serving(Content::of(&image));
        let pulled = pull(&store, &registry, "coracle/small", &[]).succeeds();
        let reference = registry.image("coracle/small:latest");
        let manifest = digest(image.manifest().to_string().as_bytes());
        assert_eq!(pulled.text(), format!("{reference} {manifest}"));
        assert!(
            pulled.stderr.contains(&format!("{}: done", digest(&image.layers[0].blob))),
            "{}",
            pulled.stderr
        );
        assert_whole(&store, &reference, &image);
        let root = store.call(&["mount", &reference, "here"]).succeeds().text();
        assert_eq!(fs::read_to_string(format!("{root}/srv/greeting")).unwrap(), "hello from three layers\n");
        store.call(&["unmount", "here"]).succeeds();
    });
}

#[test]
fn a_second_pull_fetches_only_what_is_new() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let (store, first) = (Store::new(host), image());
        let mut content = Content::of(&first);
        let second = Image { layers: vec![layer(1), layer(2), layer(9)], ..image() };
        content.add(&second, "second");
        let registry = Registry::serving(content);
        pull(&store, &registry, "a", &[]).succeeds();
        let before = registry.asked().len();
        pull(&store, &registry, "a", &[]).succeeds();
        let again = &registry.asked()[before..];
        assert!(again.iter().all(|r| !r.path.contains("/blobs/")), "{again:?}");
        pull(&store, &registry, "a:second", &[]).succeeds();
        for (number, times) in [(1, 1), (2, 1), (3, 1), (9, 1)] {
            assert_eq!(registry.count(&digest(&layer(number).blob)), times, "layer {number}");
        }
        assert_whole(&store, &registry.image("a:second"), &second);
        assert_whole(&store, &registry.image("a:latest"), &first);
    });
}

#[test]
fn a_digest_names_an_image_and_no_other_is_taken_for_it() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let (store, image) = (Store::new(host), image());
        let registry = Registry::serving(Content::of(&image));
        let name = format!("a@{}", digest(image.manifest().to_string().as_bytes()));
        pull(&store, &registry, &name, &["--no-unpack", "--quiet"]).succeeds();
        assert_eq!(store.call(&["ls", "--format", "json"]).json()[0]["reference"], registry.image(&name));
        let other = Registry::start(move |_| {
            Reply::of("{}").header("Content-Type", "application/vnd.oci.image.manifest.v1+json")
        });
        pull(&store, &other, &name, &["--quiet"])
            .fails_with(&["should be sha256:", "but what came is sha256:"]);
    });
}

#[test]
fn an_index_gives_the_image_for_this_machine_or_another() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let store = Store::new(host);
        let other = Image { layers: vec![layer(7)], ..image() };
        let mut content = Content::of(&other);
        content.add(&image(), "plain");
        let entry = |image: &Image, architecture: &str, variant: Option<&str>| {
            let manifest = image.manifest().to_string();
            let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
            entry["platform"] = json!({"os": "linux", "architecture": architecture});
            if let Some(variant) = variant {
                entry["platform"]["variant"] = variant.into();
            }
            entry
        };
        let here = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        let manifests = [entry(&other, "arm", Some("v7")), entry(&image(), here, None)];
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        content.add_manifest("latest", "application/vnd.oci.image.index.v1+json", &index);
        let registry = Registry::serving(content);
        pull(&store, &registry, "a", &[]).succeeds();
        assert_whole(&store, &registry.image("a:latest"), &image());
        pull(&store, &registry, "a", &["--platform", "linux/arm/v7", "--no-unpack"]).succeeds();
        let shown = store.call(&["inspect", &registry.image("a:latest")]).json();
        assert_eq!(shown["layers"][0]["digest"], digest(&layer(7).blob));
        pull(&store, &registry, "a", &["--platform", "linux/s390x", "--quiet"])
            .fails_with(&["no manifest is for linux/s390x", "linux/arm"]);
    });
}

#[test]
fn mirrors_are_asked_first_and_the_registry_where_they_fail() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let (store, image) = (Store::new(host), image());
        let registry = Registry::serving(Content::of(&image));
        let content = Content::of(&image);
        let missing = digest(&image.layers[1].blob);
        let mirror = Registry::start(move |request| {
            if request.path.contains(&missing) { Reply::status(404) } else { content.answer(request) }
        });
        let hosts = host.directory();
        fs::create_dir_all(hosts.join("real.example")).unwrap();
        let text = format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
             [host.\"http://{}\".header]\nx-mirror = \"yes\"\n",
            registry.host(),
            mirror.host(),
            mirror.host()
        );
        fs::write(hosts.join("real.example/hosts.toml"), text).unwrap();
        let hosts = hosts.to_str().unwrap();
        store.call(&["pull", "real.example/a/b", "--hosts-dir", hosts]).succeeds();
        assert_whole(&store, "real.example/a/b:latest", &image);
        assert_eq!(registry.count("/blobs/"), 1, "only what the mirror lacks");
        let asked = mirror.asked();
        assert!(
            asked.iter().all(|r| r.path.ends_with("?ns=real.example") && r.header("x-mirror") == Some("yes"))
        );
        let last = registry.asked();
        // It is not the registry itself, and has to be told which one is meant.
        assert!(
            last.iter().all(|r| r.header("x-mirror").is_none() && r.path.ends_with("?ns=real.example")),
            "{last:?}"
        );
    });
}

#[test]
fn a_name_is_pulled_and_found_however_it_is_written() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let (store, image) = (Store::new(host), image());
        let registry = Registry::serving(Content::of(&image));
        let hosts = host.directory();
        fs::create_dir_all(hosts.join("_default")).unwrap();
        fs::write(hosts.join("_default/hosts.toml"), format!("server = \"http://{}\"", registry.host()))
            .unwrap();
        let digest = digest(image.manifest().to_string().as_bytes());
        for name in ["docker.io/boat", "index.docker.io/boat", &format!("quay.example/boat:7@{digest}")] {
            let pulled = store.call(&["pull", name, "--hosts-dir", hosts.to_str().unwrap(), "--no-unpack"]);
            let full = pulled.succeeds().text();
            let shown = store.call(&["inspect", name]).succeeds().json();
            assert_eq!(format!("{} {digest}", shown["reference"].as_str().unwrap()), full, "{name}");
            store.call(&["rm", name]).succeeds();
        }
        assert!(registry.asked().iter().all(|r| r.path.contains("?ns=")), "{:?}", registry.asked());
    });
}

#[test]
fn another_image_that_is_damaged_keeps_none_from_being_pulled_anew() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let (store, first) = (Store::new(host), image());
        let mut content = Content::of(&first);
        let other = Image { layers: vec![layer(9)], ..image() };
        content.add(&other, "other");
        let registry = Registry::serving(content);
        pull(&store, &registry, "a", &[]).succeeds();
        let manifest = digest(first.manifest().to_string().as_bytes());
        store.call(&["tag", &registry.image("a:latest"), "damaged"]).succeeds();
        pull(&store, &registry, "a:other", &[]).succeeds();
        fs::remove_file(store.directory().join("blobs/sha256").join(&manifest[7..])).unwrap();
        pull(&store, &registry, "a:other", &[]).succeeds();
        pull(&store, &registry, "a:other", &["--no-unpack"]).succeeds();
        store.call(&["gc"]).fails_with(&["is missing from the store"]);
    });
}

#[test]
fn a_proxy_of_the_environment_is_used_but_for_exempt_hosts() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let registry = Registry::serving(Content::of(&image()));
        let proxy = Registry::start(|_| Reply::status(403));
        let store = Store::new(host);
        let with = |name: &str, value: &str| {
            let proxy = format!("http://{}", proxy.host());
            let set = [("http_proxy", proxy.as_str()), (name, value)];
            store
                .call_with(&set, &["pull", &registry.image("a"), "--plain-http", &registry.host(), "--quiet"])
        };
        with("no_proxy", "elsewhere.example").fails_with(&["pulling"]);
        assert!(!proxy.asked().is_empty());
        assert!(registry.asked().is_empty());
        with("no_proxy", "elsewhere.example,127.0.0.1").succeeds();
    });
}

#[test]
fn tags_and_repositories_are_listed_page_by_page() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let registry = Registry::start(|request| match request.path.as_str() {
            "/v2/a/tags/list?n=1000" => Reply::of(r#"{"tags":["1","2"]}"#)
                .header("Link", "</v2/a/tags/list?n=1000&last=2>; rel=\"next\""),
            "/v2/a/tags/list?n=1000&last=2" => Reply::of(r#"{"tags":["3","bad\u001b"]}"#),
            "/v2/_catalog?n=1000" => Reply::of(r#"{"repositories":["x/boat","y"]}"#),
            _ => Reply::status(404),
        });
        let (store, plain) = (Store::new(host), registry.host());
        let tags = store.call(&["tags", &registry.image("a"), "--plain-http", &plain]).succeeds();
        assert_eq!(tags.lines(), ["1", "2", "3"]);
        let found = store.call(&["search", &registry.image("boat"), "--plain-http", &plain]).succeeds();
        assert_eq!(found.text(), registry.image("x/boat"));
    });
}

#[test]
fn events_are_json_on_demand() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let registry = Registry::serving(Content::of(&image()));
        let told = pull(&Store::new(host), &registry, "a", &["--json"]).succeeds().stderr;
        let events: Vec<serde_json::Value> =
            told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let moved: u64 =
            events.iter().filter(|e| e["event"] == "moved").map(|e| e["bytes"].as_u64().unwrap()).sum();
        let size: usize = image().layers.iter().map(|layer| layer.blob.len()).sum();
        assert_eq!(moved, size as u64);
        assert_eq!(events.iter().filter(|e| e["event"] == "finished").count(), 3);
    });
}

#[test]
fn repair_fetches_what_is_damaged_and_nothing_else_and_unpacks_anew() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let (store, image) = (Store::new(host), image());
        let registry = Registry::serving(Content::of(&image));
        pull(&store, &registry, "a", &["--quiet"]).succeeds();
        let reference = registry.image("a:latest");
        let blob = |bytes: &[u8]| store.directory().join(coracle_fixtures::image::blob_path(bytes));
        fs::write(blob(&image.layers[1].blob), vec![0; image.layers[1].blob.len()]).unwrap();
        fs::remove_file(blob(&image.layers[2].blob)).unwrap();
        let shown = store.call(&["inspect", &reference]).json();
        let file = format!("{}/d/1", shown["layers"][0]["path"].as_str().unwrap());
        fs::write(&file, "changed").unwrap();
        store.call(&["verify", &reference]).fails_with(&["2 problems", "`repair` fetches it again"]);
        let before = registry.asked().len();
        store.call(&["repair", &reference, "--plain-http", &registry.host(), "--quiet"]).succeeds();
        let asked = &registry.asked()[before..];
        assert_eq!(asked.iter().filter(|r| r.path.contains("/blobs/")).count(), 2, "{asked:?}");
        assert_whole(&store, &reference, &image);
        assert_eq!(fs::metadata(&file).unwrap().len(), 300_000);
        assert_eq!(store.call(&["ls", "--format", "json"]).json().as_array().unwrap().len(), 1);
    });
}
