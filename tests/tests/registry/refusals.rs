//! Registries that lie: what they say is found out, and nothing of it gets a name.

use coracle_fixtures::image::descriptor;
use coracle_fixtures::layer::{Entry, digest, tar};
use coracle_tests::image::Store;
use coracle_tests::registry::{Content, Registry, Reply, Request};
use coracle_tests::{Host, privileged};
use serde_json::json;

use super::{assert_whole, can_run, image, partial, pull};

/// Pulls from a registry that answers requests for layers as `lie` says, and expects these words; then from one that
/// is honest, into the same store.
fn refused(host: &Host, words: &[&str], lie: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) {
    let (store, content) = (Store::new(host), Content::of(&image()));
    let first = digest(&image().layers[0].blob);
    let registry = Registry::start(move |request| {
        let reply = content.answer(request);
        if request.path.contains(&first) { lie(request, reply) } else { reply }
    });
    pull(&store, &registry, "a", &["--quiet"]).fails_with(words);
    assert_eq!(store.call(&["ls", "--format", "json"]).json(), json!([]));
    assert!(
        !std::fs::exists(store.directory().join(coracle_fixtures::image::blob_path(&image().layers[0].blob)))
            .unwrap()
    );
    let honest = Registry::serving(Content::of(&image()));
    pull(&store, &honest, "a", &["--quiet"]).succeeds();
    assert_whole(&store, &honest.image("a:latest"), &image());
}

#[test]
fn blobs_of_another_length_or_content_are_refused() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        refused(host, &["the registry has others than"], |_, reply| Reply {
            body: [&reply.body[..], b"more"].concat(),
            ..reply
        });
        refused(host, &["the registry has others than"], |_, reply| Reply {
            body: reply.body[1..].to_vec(),
            ..reply
        });
        refused(host, &["blob sha256:", "but holds those of"], |_, mut reply| {
            let middle = reply.body.len() / 2;
            reply.body[middle] ^= 1;
            reply
        });
    });
}

#[test]
fn the_right_range_with_wrong_bytes_is_not_kept_for_the_next_pull() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        refused(host, &["but holds those of"], |request, reply| match request.offset() {
            None => Reply { cut: Some(1000), ..reply },
            Some(_) => Reply { body: vec![b'x'; reply.body.len()], ..reply },
        });
    });
}

#[test]
fn a_beginning_from_elsewhere_that_is_wrong_is_fetched_again() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        for beginning in [vec![7; 1000], unknown_entry()] {
            let (store, image) = (Store::new(host), image());
            store.call(&["ls"]).succeeds();
            let partial_directory = store.directory().join("partial");
            std::fs::create_dir(&partial_directory).unwrap();
            let name = digest(&image.layers[0].blob)[7..].to_owned();
            std::fs::write(partial_directory.join(name), beginning).unwrap();
            let registry = Registry::serving(Content::of(&image));
            pull(&store, &registry, "a", &[]).succeeds();
            assert_whole(&store, &registry.image("a:latest"), &image);
        }
    });
}

/// Of layers with one diff ID only one is unpacked; the bytes of the other are digested all the same.
#[test]
fn a_blob_that_nothing_is_unpacked_from_is_not_taken_for_another_images() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let store = Store::new(host);
        let mut hostile = image();
        hostile.layers[1].diff_id = hostile.layers[0].diff_id.clone();
        let (content, victim) = (Content::of(&hostile), digest(&hostile.layers[1].blob));
        let registry = Registry::start(move |request| {
            let mut reply = content.answer(request);
            if request.path.contains(&victim) {
                reply.body.fill(7);
            }
            reply
        });
        pull(&store, &registry, "a", &["--quiet"]).fails_with(&["but holds those of"]);
        let honest = Registry::serving(Content::of(&image()));
        pull(&store, &honest, "a", &["--quiet"]).succeeds();
        assert_whole(&store, &honest.image("a:latest"), &image());
    });
}

/// The header of an entry of a type that no layer has.
fn unknown_entry() -> Vec<u8> {
    let mut header = tar(&[Entry::file("volume", "")])[..512].to_vec();
    header[156] = b'V';
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// Bytes that are wrong can fail as what is not understood, before all of them have come.
#[test]
fn bytes_that_could_not_be_unpacked_are_not_kept_for_the_next_pull() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let unknown = |mut reply: Reply| {
            let header = unknown_entry();
            reply.body.fill(0);
            reply.body[..header.len()].copy_from_slice(&header);
            reply
        };
        refused(host, &["an entry of type 'V' is none of a layer's"], move |request, reply| {
            if request.offset().is_none() { unknown(reply) } else { reply }
        });
        refused(host, &["an entry of type 'V' is none of a layer's"], move |request, reply| {
            let reply = if request.offset().is_none() { unknown(reply) } else { reply };
            Reply { cut: Some(100_000), ..reply }
        });
    });
}

#[test]
fn a_damaged_blob_of_the_store_is_fetched_again() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let (store, image) = (Store::new(host), image());
        let registry = Registry::serving(Content::of(&image));
        pull(&store, &registry, "a", &["--quiet", "--no-unpack"]).succeeds();
        let blob = &image.layers[1].blob;
        let path = store.directory().join(coracle_fixtures::image::blob_path(blob));
        std::fs::write(path, vec![7; blob.len()]).unwrap();
        pull(&store, &registry, "a", &["--quiet"]).succeeds();
        assert_whole(&store, &registry.image("a:latest"), &image);
    });
}

#[test]
fn a_manifest_that_is_wrong_about_a_blob_of_the_store_is_refused_and_the_blob_stays() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let (store, image) = (Store::new(host), image());
        let mut content = Content::of(&image);
        let mut manifest = image.manifest();
        manifest["layers"][1]["size"] = 7.into();
        content.add_manifest("wrong", "application/vnd.oci.image.manifest.v1+json", &manifest);
        let registry = Registry::serving(content);
        pull(&store, &registry, "a", &["--quiet"]).succeeds();
        pull(&store, &registry, "a:wrong", &["--quiet"])
            .fails_with(&["the manifest says that sha256:", " is 7 bytes, but it is "]);
        assert_whole(&store, &registry.image("a:latest"), &image);
    });
}

#[test]
fn redirects_that_go_in_circles_or_to_no_address_are_refused() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let store = Store::new(host);
        for (location, words) in [
            ("/v2/a/manifests/latest", "redirects more than 10 times"),
            ("ftp://elsewhere/", "neither http nor https"),
            ("http://user:hush@127.0.0.1:1/", "has a user"),
            ("http://a b/", "an address that is none"),
        ] {
            let registry = Registry::start(move |_| Reply::status(307).header("Location", location));
            let refused = pull(&store, &registry, "a", &["--quiet"]).fails_with(&[words]);
            assert!(!refused.stderr.contains("hush"));
        }
    });
}

#[test]
fn headers_and_manifests_without_end_are_refused() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let store = Store::new(host);
        let registry = Registry::start(|_| Reply::of("{}").header("X", "x".repeat(200_000)));
        pull(&store, &registry, "a", &["--quiet"]).fails_with(&["pulling", "header"]);
        let registry = Registry::start(|request| match request.method.as_str() {
            "HEAD" => Reply::status(405),
            _ => Reply::of(vec![b' '; 5 << 20]),
        });
        pull(&store, &registry, "a", &["--quiet"]).fails_with(&["over the limit of 4194304 bytes"]);
    });
}

#[test]
fn documents_that_contradict_themselves_or_are_no_image_are_refused() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let store = Store::new(host);
        let manifest = "application/vnd.oci.image.manifest.v1+json";
        let both = json!({"schemaVersion": 2, "manifests": [], "layers": [], "config": {}});
        let schema1 = json!({"schemaVersion": 1, "fsLayers": []});
        let traversal = json!({"schemaVersion": 2, "layers": [],
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": "sha256:../../etc/passwd", "size": 2}});
        let nested = |depth: u32| {
            let mut content = Content::default();
            let mut inner = json!({"schemaVersion": 2, "manifests": []});
            let index = "application/vnd.oci.image.index.v1+json";
            for _ in 0..depth {
                let text = inner.to_string();
                content.add_manifest("inner", index, &inner);
                inner = json!({"schemaVersion": 2, "manifests": [descriptor(index, text.as_bytes())]});
            }
            content.add_manifest("latest", index, &inner);
            content
        };
        for (media_type, document, words) in [
            (manifest, &both, "ambiguous"),
            ("application/vnd.docker.distribution.manifest.v1+json", &schema1, "Docker's schema 1"),
            ("text/html", &json!({"schemaVersion": 2}), "\"text/html\" is no image"),
            (manifest, &traversal, "invalid encoded value"),
        ] {
            let mut content = Content::default();
            content.add_manifest("latest", media_type, document);
            let registry = Registry::serving(content);
            pull(&store, &registry, "a", &["--quiet"]).fails_with(&[words]);
        }
        let registry = Registry::serving(nested(6));
        pull(&store, &registry, "a", &["--quiet"]).fails_with(&["indexes are nested deeper than 4"]);
        assert!(partial(&store).is_empty());
    });
}

#[test]
fn a_tag_that_moves_meanwhile_gives_one_image_or_the_other() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let (old, store) = (Content::of(&image()), Store::new(host));
        let mut other = image();
        other.layers.truncate(1);
        let new = Content::of(&other);
        // The tag says one digest to HEAD, and another image to whoever asks for the tag afterwards.
        let registry = Registry::start(move |request| {
            match (request.method.as_str(), request.path.ends_with("latest")) {
                ("GET", true) => new.answer(request),
                _ => old.answer(request),
            }
        });
        pull(&store, &registry, "a", &["--quiet"]).succeeds();
        assert_whole(&store, &registry.image("a:latest"), &image());
    });
}

#[test]
fn a_registry_without_tls_is_only_asked_where_it_is_named() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let registry = Registry::serving(Content::of(&image()));
        let store = Store::new(host);
        let refused = store.call(&["pull", &registry.image("a"), "--quiet"]);
        refused.fails_with(&["it doesn't speak TLS", "--plain-http"]);
        assert!(registry.asked().is_empty());
    });
}
