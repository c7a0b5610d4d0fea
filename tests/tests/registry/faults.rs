//! Connections that break, and registries that are busy: the pull goes on where it stopped.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use coracle_fixtures::layer::digest;
use coracle_tests::image::Store;
use coracle_tests::privileged;
use coracle_tests::registry::{Content, Registry, Reply, Request};

use super::{assert_whole, can_run, image, pull};

/// A registry that does `wrong` to the n-th request (from 0) for each path.
fn faulty(wrong: impl Fn(&Request, usize, Reply) -> Reply + Send + Sync + 'static) -> Registry {
    let (content, counts) = (Content::of(&image()), Mutex::new(BTreeMap::<String, usize>::new()));
    Registry::start(move |request| {
        let mut counts = counts.lock().unwrap();
        let count = counts.entry(format!("{} {}", request.method, request.path)).or_default();
        *count += 1;
        wrong(request, *count - 1, content.answer(request))
    })
}

fn is_blob(request: &Request) -> bool {
    request.path.contains("/blobs/") && !request.path.contains(&digest(&image().document()))
}

#[test]
fn a_cut_connection_goes_on_at_the_byte_it_stopped_at() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        for cut in [0, 1, 4095, 100_000, 299_999] {
            let registry = faulty(move |request, n, reply| match is_blob(request) && n == 0 {
                true => Reply { cut: Some(cut), ..reply },
                false => reply,
            });
            let store = Store::new(host);
            pull(&store, &registry, "a", &[]).succeeds();
            assert_whole(&store, &registry.image("a:latest"), &image());
            let ranges: Vec<usize> = registry.asked().iter().filter_map(Request::offset).collect();
            let expected = if cut == 0 { vec![] } else { vec![cut; 3] };
            assert_eq!(ranges, expected, "what was asked again after a cut at {cut}");
        }
    });
}

#[test]
fn a_registry_that_knows_no_ranges_is_asked_for_all_and_what_is_there_is_passed_over() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let content = Content::of(&image());
        let registry = faulty(move |request, n, _| {
            let whole = Request { headers: Vec::new(), ..request.clone() };
            Reply { cut: (is_blob(request) && n == 0).then_some(100_000), ..content.answer(&whole) }
        });
        let store = Store::new(host);
        pull(&store, &registry, "a", &[]).succeeds();
        assert_whole(&store, &registry.image("a:latest"), &image());
    });
}

#[test]
fn a_registry_that_sends_less_than_is_asked_for_is_asked_for_the_rest() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let registry = faulty(|request, n, reply| match request.offset().filter(|_| is_blob(request)) {
            Some(from) if reply.body.len() > 70_000 => {
                let range = format!("bytes {from}-{}/{}", from + 69_999, from + reply.body.len());
                let head = Reply { status: 206, ..Reply::of(&reply.body[..70_000]) };
                head.header("Content-Range", range)
            }
            None if n == 0 && is_blob(request) => Reply { cut: Some(1000), ..reply },
            _ => reply,
        });
        let store = Store::new(host);
        pull(&store, &registry, "a", &[]).succeeds();
        assert_whole(&store, &registry.image("a:latest"), &image());
        let ranges: Vec<usize> = registry.asked().iter().filter_map(Request::offset).collect();
        for from in [1000, 71_000, 141_000, 211_000, 281_000] {
            assert_eq!(ranges.iter().filter(|known| **known == from).count(), 3, "{from}: {ranges:?}");
        }
    });
}

#[test]
fn where_the_rest_is_refused_all_is_asked_for() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        for range in
            [None, Some("bytes 5000-6000/300000"), Some("bytes 1000-999/5"), Some("nonsense"), Some("")]
        {
            let registry = faulty(move |request, n, reply| match (request.offset(), range) {
                (Some(_), Some(range)) => {
                    Reply { headers: vec![("Content-Range".to_owned(), range.to_owned())], ..reply }
                }
                (Some(_), None) => Reply::status(416),
                (None, _) => Reply { cut: (is_blob(request) && n == 0).then_some(1000), ..reply },
            });
            let store = Store::new(host);
            pull(&store, &registry, "a", &[]).succeeds();
            assert_whole(&store, &registry.image("a:latest"), &image());
        }
    });
}

#[test]
fn a_mirror_that_nobody_can_reach_is_asked_once() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let (store, registry, hosts) =
            (Store::new(host), Registry::serving(Content::of(&image())), host.directory());
        std::fs::create_dir_all(hosts.join("real.example")).unwrap();
        let pull = |server: &str, more: &[&str]| {
            let text = format!("server = \"http://{server}\"\n[host.\"http://127.0.0.1:1\"]\n");
            std::fs::write(hosts.join("real.example/hosts.toml"), text).unwrap();
            store.call(
                &[&["pull", "real.example/a", "--hosts-dir", hosts.to_str().unwrap()][..], more].concat(),
            )
        };
        let pulled = pull(&registry.host(), &[]).succeeds();
        assert!(!pulled.stderr.contains("once more in"), "{}", pulled.stderr);
        assert_whole(&store, "real.example/a:latest", &image());
        // Where no other follows, it may be there a moment later.
        pull("127.0.0.1:2", &["--quiet"]).fails_with(&["http://127.0.0.1:2: ", "it was tried 6 times"]);
    });
}

#[test]
fn a_connection_that_falls_silent_is_made_again() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let registry = faulty(|request, n, reply| Reply {
            stall: (is_blob(request) && n == 0).then_some(50_000),
            ..reply
        });
        let store = Store::new(host);
        let pulled = pull(&store, &registry, "a", &["--timeout", "1"]).succeeds();
        assert!(pulled.stderr.contains("once more in"), "{}", pulled.stderr);
        assert_whole(&store, &registry.image("a:latest"), &image());
    });
}

#[test]
fn a_busy_registry_is_asked_again_when_it_says() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        for after in [Some("1"), Some("0"), Some("soon"), None] {
            let registry = faulty(move |_, n, reply| {
                let busy = Reply::status(429);
                match (n, after) {
                    (0, Some(after)) => busy.header("Retry-After", after),
                    (0, None) => Reply::status(503),
                    _ => reply,
                }
            });
            let (store, begun) = (Store::new(host), Instant::now());
            pull(&store, &registry, "a", &[]).succeeds();
            assert_whole(&store, &registry.image("a:latest"), &image());
            // The tag, the manifest, the config, and the layers at once.
            assert!(after != Some("1") || begun.elapsed() >= Duration::from_secs(4), "{:?}", begun.elapsed());
        }
    });
}

#[test]
fn a_registry_that_stays_busy_is_left_with_its_own_words() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"pull rate\u001b exceeded"}]}"#;
        let away = move |_: &Request| Reply { status: 429, ..Reply::of(body) }.header("Retry-After", "86400");
        let registry = Registry::start(away);
        let refused = pull(&Store::new(host), &registry, "a", &["--quiet"]);
        // HEAD has no body: the status says it.
        refused.fails_with(&["answers 429", "try again in 86400 seconds"]);
        let registry = Registry::start(|_| Reply { status: 500, ..Reply::of("") });
        pull(&Store::new(host), &registry, "a", &["--quiet"])
            .fails_with(&["answers 500", "it was tried 6 times"]);
    });
}

#[test]
fn a_connection_that_always_breaks_without_progress_ends_in_an_error() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let registry = faulty(|request, _, reply| match is_blob(request) {
            true => Reply { cut: Some(10), ..reply },
            false => reply,
        });
        let store = Store::new(host);
        pull(&store, &registry, "a", &["--quiet"]).fails_with(&["blob sha256:", "it was tried 6 times"]);
        store.call(&["ls"]).succeeds();
        assert_eq!(store.call(&["ls", "--format", "json"]).json(), serde_json::json!([]));
    });
}

#[test]
fn the_head_of_an_answer_that_trickles_is_given_up() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let registry = faulty(|request, n, reply| Reply {
            trickle: (is_blob(request) && n == 0).then_some(Duration::from_millis(200)),
            ..reply
        });
        let (store, begun) = (Store::new(host), Instant::now());
        let pulling = "timeout 30 \"$0\" --store \"$1\" pull \"$2\" --plain-http \"$3\" --timeout 1 2>&1";
        let mut command = std::process::Command::new("busybox");
        command.args(["sh", "-c", pulling]).arg(host.image_program()).arg(store.directory());
        command.args([registry.image("a"), registry.host()]);
        let pulled = coracle_tests::command::run(&mut command, &host.directory()).succeeds();
        assert!(pulled.text().contains("once more in"), "{pulled:?}");
        assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
        assert_whole(&store, &registry.image("a:latest"), &image());
    });
}

#[test]
fn documents_that_break_off_are_asked_for_again() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let registry = faulty(|request, n, reply| Reply {
            cut: (!is_blob(request) && request.method == "GET" && n == 0).then_some(10),
            ..reply
        });
        let store = Store::new(host);
        pull(&store, &registry, "a", &[]).succeeds();
        assert_whole(&store, &registry.image("a:latest"), &image());
    });
}
