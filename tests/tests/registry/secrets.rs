//! Credentials: shown to the registry they are for, and to nobody and nothing else.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use coracle_tests::image::Store;
use coracle_tests::privileged;
use coracle_tests::registry::{Content, Registry, Reply, Request};
use coracle_tests::{Host, Outcome};
use serde_json::json;

use super::{assert_whole, can_run, image, pull};

/// `me:hush` in base64.
const BASIC: &str = "Basic bWU6aHVzaA==";

/// A file of credentials for a registry.
fn auth_file(host: &Host, registry: &str) -> String {
    let path = host.directory().join("auth.json");
    fs::write(&path, json!({"auths": {registry: {"auth": "bWU6aHVzaA=="}}}).to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

fn pull_as(host: &Host, store: &Store<'_>, registry: &Registry) -> Outcome {
    let file = auth_file(host, &registry.host());
    let outcome = pull(store, registry, "a", &["--auth-file", &file]);
    for secret in ["hush", "bWU6aHVzaA"] {
        assert!(!format!("{outcome:?}").contains(secret), "a secret is shown: {outcome:?}");
    }
    outcome
}

/// A registry that wants `authorization` with each request and says `challenge` without.
fn guarded(challenge: String, authorization: &'static str) -> Registry {
    let content = Content::of(&image());
    Registry::start(move |request| match request.header("authorization") {
        Some(found) if found == authorization => content.answer(request),
        _ => Reply::status(401).header("WWW-Authenticate", challenge.clone()),
    })
}

#[test]
fn a_password_opens_a_registry_and_a_wrong_one_is_told_once() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let registry = guarded("Basic realm=\"r\"".to_owned(), BASIC);
        let store = Store::new(host);
        pull_as(host, &store, &registry).succeeds();
        assert_whole(&store, &registry.image("a:latest"), &image());
        let registry = guarded("Basic realm=\"r\"".to_owned(), "Basic other");
        pull_as(host, &store, &registry).fails_with(&["answers 401", "docker login"]);
        let asked = registry.asked().len();
        assert_eq!(asked, 2, "what was refused is not shown again");
        let nothing = pull(&store, &registry, "a", &["--auth-file", "/nowhere", "--quiet"]);
        nothing.fails_with(&["answers 401"]);
    });
}

/// The processes in whose arguments or environment one of the secrets stands.
fn tellers() -> Vec<String> {
    let tells = |path: &std::path::Path| {
        let bytes =
            [fs::read(path.join("cmdline")), fs::read(path.join("environ"))].map(Result::unwrap_or_default);
        let text = String::from_utf8_lossy(&bytes.concat()).into_owned();
        (text.contains("hush") || text.contains("bWU6aHVzaA")).then_some(text)
    };
    fs::read_dir("/proc").unwrap().filter_map(|entry| tells(&entry.unwrap().path())).collect()
}

#[test]
fn secrets_stand_in_no_argument_and_no_environment_of_any_process() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let content = Content::of(&image());
        let (asked, told) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (count, tell) = (asked.clone(), told.clone());
        let registry = Registry::start(move |request| {
            if request.header("authorization") != Some(BASIC) {
                return Reply::status(401).header("WWW-Authenticate", "Basic realm=\"r\"");
            }
            *count.lock().unwrap() += 1;
            tell.lock().unwrap().extend(tellers());
            content.answer(request)
        });
        pull_as(host, &Store::new(host), &registry).succeeds();
        assert!(*asked.lock().unwrap() > 3);
        assert_eq!(*told.lock().unwrap(), Vec::<String>::new());
    });
}

/// Pulls with a credential helper, a shell that runs `script`.
fn pull_by_helper(host: &Host, registry: &Registry, script: &str) -> Outcome {
    let (directory, store) = (host.directory(), Store::new(host));
    let helper = directory.join("docker-credential-test");
    fs::write(&helper, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let config = json!({"credHelpers": {registry.host(): "test"}});
    fs::write(directory.join("config.json"), config.to_string()).unwrap();
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());
    let set =
        [("PATH", path.as_str()), ("DOCKER_CONFIG", directory.to_str().unwrap()), ("REGISTRY_AUTH_FILE", "")];
    let outcome = store.call_with(&set, &["pull", &registry.image("a"), "--plain-http", &registry.host()]);
    assert!(!format!("{outcome:?}").contains("hush"));
    outcome
}

#[test]
fn a_credential_helper_is_asked_for_the_registry() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let registry = guarded("Basic realm=\"r\"".to_owned(), BASIC);
        let script = format!(
            "read server\n[ \"$1 $server\" = \"get {}\" ] && echo '{{\"Username\":\"me\",\"Secret\":\"hush\"}}'",
            registry.host()
        );
        pull_by_helper(host, &registry, &script).succeeds();
    });
}

#[test]
fn a_credential_helper_that_never_stops_writing_is_stopped() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let registry = guarded("Basic realm=\"r\"".to_owned(), BASIC);
        let outcome = pull_by_helper(host, &registry, "exec yes hush");
        outcome.fails_with(&["docker-credential-test failed: read(stdout): file too large"]);
    });
}

/// A registry that wants tokens, each good for `uses` requests; `/token` gives them.
fn token_registry(uses: usize, realm: Option<String>) -> Registry {
    let (content, given) = (Content::of(&image()), Mutex::new(Vec::new()));
    Registry::start(move |request| {
        let mut given = given.lock().unwrap();
        if request.path.starts_with("/token") {
            given.push(uses);
            return Reply::of(json!({"token": format!("token-{}", given.len() - 1)}).to_string());
        }
        let shown = request
            .header("authorization")
            .and_then(|h| h.strip_prefix("Bearer token-")?.parse::<usize>().ok());
        if let Some(left @ 1..) = shown.and_then(|n| given.get_mut(n)) {
            *left -= 1;
            return content.answer(request);
        }
        let own = format!("http://{}/token", request.header("host").unwrap_or_default());
        let realm = realm.clone().unwrap_or(own);
        Reply::status(401).header("WWW-Authenticate", format!("Bearer realm=\"{realm}\",service=\"s\""))
    })
}

#[test]
fn tokens_are_had_for_the_repository_and_again_when_they_expire() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        for uses in [1000, 3, 1] {
            let registry = token_registry(uses, None);
            let store = Store::new(host);
            pull_as(host, &store, &registry).succeeds();
            assert_whole(&store, &registry.image("a:latest"), &image());
            let asked = registry.asked();
            let tokens: Vec<&Request> = asked.iter().filter(|r| r.path.starts_with("/token")).collect();
            assert!(tokens.iter().all(|r| r.path == "/token?service=s&scope=repository%3Aa%3Apull"));
            assert!(tokens.iter().all(|r| r.header("authorization") == Some(BASIC)));
            assert!(
                asked
                    .iter()
                    .all(|r| r.path.starts_with("/token") || r.header("authorization") != Some(BASIC))
            );
        }
    });
}

#[test]
fn a_token_service_of_another_domain_is_not_told_the_password() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let thief = Registry::start(|_| Reply::of(r#"{"token":"t"}"#));
        let port = thief.host().rsplit_once(':').unwrap().1.to_owned();
        let registry = token_registry(1000, Some(format!("http://localhost:{port}/token")));
        let store = Store::new(host);
        pull_as(host, &store, &registry)
            .fails_with(&["wants its password told to http://localhost:", "hosts.toml allows it"]);
        assert!(thief.asked().is_empty());
    });
}

#[test]
fn a_redirect_to_another_origin_takes_no_credentials_along() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let storage = Registry::serving(Content::of(&image()));
        let (content, elsewhere) = (Content::of(&image()), storage.host());
        let registry = Registry::start(move |request| match request.header("authorization") {
            Some(BASIC) if request.path.contains("/blobs/") => {
                let place = format!("http://{elsewhere}{}?signature=hush", request.path);
                Reply::status(307).header("Location", place)
            }
            Some(BASIC) => content.answer(request),
            _ => Reply::status(401).header("WWW-Authenticate", "Basic realm=r"),
        });
        let store = Store::new(host);
        pull_as(host, &store, &registry).succeeds();
        assert_whole(&store, &registry.image("a:latest"), &image());
        assert!(storage.count("/blobs/") >= 3);
        assert!(storage.asked().iter().all(|r| r.header("authorization").is_none()), "{:?}", storage.asked());
    });
}

#[test]
fn one_that_asks_for_a_password_after_a_redirect_gets_none_and_its_address_is_not_shown() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let thief = Registry::start(|_| Reply::status(401).header("WWW-Authenticate", "Basic realm=r"));
        let (content, elsewhere) = (Content::of(&image()), thief.host());
        let registry = Registry::start(move |request| match request.path.contains("/blobs/") {
            true => Reply::status(302).header("Location", format!("http://{elsewhere}/x?signature=hush")),
            false => content.answer(request),
        });
        let store = Store::new(host);
        pull_as(host, &store, &registry).fails_with(&["answers 401"]);
        assert!(thief.asked().iter().all(|r| r.header("authorization").is_none()));
    });
}

#[test]
fn what_stands_in_the_registrys_place_is_not_told_its_password() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let mirror = guarded("Basic realm=\"r\"".to_owned(), BASIC);
        let hosts = host.directory();
        fs::create_dir_all(hosts.join("_default")).unwrap();
        fs::write(hosts.join("_default/hosts.toml"), format!("server = \"http://{}\"", mirror.host()))
            .unwrap();
        let store = Store::new(host);
        let pull = |file: &str| {
            let hosts = hosts.to_str().unwrap();
            store.call(&["pull", "real.example/a", "--hosts-dir", hosts, "--auth-file", file, "--quiet"])
        };
        pull(&auth_file(host, "real.example")).fails_with(&["answers 401"]);
        assert!(mirror.asked().iter().all(|request| request.header("authorization").is_none()));
        pull(&auth_file(host, &mirror.host())).succeeds();
    });
}

/// A proxy of other registries keeps what it has of them behind a path of its own, and alone knows what that is called.
#[test]
fn a_token_is_asked_for_what_the_registry_names() {
    privileged(|host| {
        if !can_run(host) {
            return;
        }
        let content = Content::of(&image());
        let mirror = Registry::start(move |request| {
            if let Some(query) = request.path.strip_prefix("/token?") {
                let allowed = query.contains("scope=repository%3Aproxy-hub%2Fa%3Apull");
                return Reply::of(json!({"token": if allowed { "all" } else { "none" }}).to_string());
            }
            if request.header("authorization") == Some("Bearer all") {
                return content.answer(request);
            }
            let realm = format!("http://{}/token", request.header("host").unwrap_or_default());
            let scope = "repository:proxy-hub/a:pull";
            Reply::status(401).header(
                "WWW-Authenticate",
                format!("Bearer realm=\"{realm}\",service=\"s\",scope=\"{scope}\""),
            )
        });
        let hosts = host.directory();
        fs::create_dir_all(hosts.join("real.example")).unwrap();
        let text = format!("[host.\"http://{}/v2/proxy-hub\"]\noverride_path = true\n", mirror.host());
        fs::write(hosts.join("real.example/hosts.toml"), text).unwrap();
        let store = Store::new(host);
        store.call(&["pull", "real.example/a", "--hosts-dir", hosts.to_str().unwrap(), "--quiet"]).succeeds();
        assert_whole(&store, "real.example/a:latest", &image());
        let asked = mirror.asked();
        let own = "scope=repository%3Aproxy-hub%2Fa%3Apull&scope=repository%3Aa%3Apull";
        let tokens: Vec<&Request> = asked.iter().filter(|r| r.path.starts_with("/token")).collect();
        assert!(!tokens.is_empty() && tokens.iter().all(|r| r.path.ends_with(own)), "{tokens:?}");
    });
}
