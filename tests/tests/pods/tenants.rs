//! Tenants: nodes of the tree, with limits of all that is below them.

use coracle_tests::pod::Pods;
use coracle_tests::{cgroup, privileged};
use serde_json::json;

const SLEEPER: &str = "
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: IMAGE, command: [sleep, '1000']}]
";

/// `pod create --parent` of a pod that sleeps.
fn make(pods: &Pods<'_>, name: &str, parent: &str) {
    let image = coracle_tests::pod::IMAGE;
    let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:{SLEEPER}")
        .replace("IMAGE", image);
    let (file, store) = (pods.file(&text), pods.store.directory().to_str().unwrap().to_owned());
    pods.call(&["run", "--parent", parent, "--store", &store, "-f", file.to_str().unwrap()]).succeeds();
}

#[test]
fn a_tenant_can_not_exceed_its_node() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let limits = pods.file("limits: {pids: 20, memory: 64Mi}");
        pods.call(&["node", "create", "-f", limits.to_str().unwrap(), "org/team"]).succeeds();
        pods.call(&["node", "create", "-f", limits.to_str().unwrap(), "org/team"]).succeeds();
        pods.call(&["node", "create", "org/team"]).fails_with(&["node \"org/team\" already exists"]);
        make(&pods, "one", "org/team");
        make(&pods, "two", "org/team");
        let fails = pods.exec("one/main", &["sh", "-c", "for i in $(seq 24); do sleep 100 & done; wait"]);
        assert!(fails.stderr.contains("fork"), "{fails:?}");
        let used = pods.call(&["node", "usage", "org/team"]).succeeds().json();
        assert!(used["pids"]["current"].as_u64() <= Some(20), "{used}");
        let more = pods.file("limits: {pids: 200}");
        pods.call(&["node", "update", "-f", more.to_str().unwrap(), "org/team"]).succeeds();
        assert_eq!(cgroup::read("coracle/org/team", "pids.max").as_deref(), Some("200"));
        pods.call(&["node", "rm", "org/team"]).fails_with(&["is below node \"org/team\""]);
        pods.call(&["node", "rm", "org"]).fails_with(&["is below node \"org\""]);
        for name in ["one", "two"] {
            pods.remove(name);
        }
        for node in ["org/team", "org", "org"] {
            pods.call(&["node", "rm", node]).succeeds();
        }
    });
}

#[test]
fn limits_of_which_one_is_refused_stay_as_they_were() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.call(&["node", "create", "org"]).succeeds();
        make(&pods, "web", "org");
        for (verb, target, path) in [
            (&["node", "update"][..], "org", "coracle/org"),
            (&["update"][..], "web", "coracle/org/web.pod"),
            (&["update"][..], "web/main", "coracle/org/web.pod/main"),
        ] {
            let update = |limits: &str| {
                let file = pods.file(limits);
                pods.call(&[verb, &["-f", file.to_str().unwrap(), target]].concat())
            };
            update("limits: {memory: 64Mi, pids: 20}").succeeds();
            // More than there can be at all; it is written after the limit of memory.
            update("limits: {memory: 48Mi, pids: 9000000}").fails_with(&["pids"]);
            let memory = cgroup::read(path, "memory.max");
            let memory = memory.or_else(|| cgroup::read(path, "memory.limit_in_bytes"));
            assert_eq!(memory, Some((64 << 20).to_string()), "{target}");
            assert_eq!(cgroup::read(path, "pids.max").as_deref(), Some("20"), "{target}");
        }
        let nodes = pods.call(&["node", "ls"]).succeeds().json();
        assert_eq!(nodes[0]["resources"]["limits"]["memory"], "64Mi");
        pods.remove("web");
        pods.call(&["node", "rm", "org"]).succeeds();
    });
}

#[test]
fn a_tenant_is_told_of_its_own_pods_only() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        make(&pods, "a", "org/one");
        make(&pods, "b", "org/two");
        make(&pods, "c", "organ");
        let below = |node: &str| pods.call(&["ls", "--quiet", "--parent", node]).succeeds().text();
        assert_eq!(
            (below("org/one").as_str(), below("org").as_str(), below("organ").as_str()),
            ("a", "a\nb", "c")
        );
        assert_eq!(pods.call(&["ls", "--quiet"]).succeeds().lines().len(), 3);
        for name in ["a", "b", "c"] {
            pods.remove(name);
        }
    });
}

#[test]
fn pods_below_a_node_that_says_so_have_users_of_their_own() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        if !super::users::maps_layers(host) {
            return;
        }
        pods.call(&["node", "create", "--own-users", "org"]).succeeds();
        make(&pods, "web", "org/team");
        assert_eq!(pods.inspect("web")["users"]["count"], 65536);
        let nodes = pods.call(&["node", "ls"]).succeeds().json();
        assert_eq!(
            nodes,
            json!([{"name": "org", "ownUsers": true, "resources": {"limits": {}, "requests": {}}}])
        );
        pods.remove("web");
        pods.call(&["node", "rm", "org"]).succeeds();
    });
}

#[test]
fn a_node_that_can_not_be_is_refused() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let wrong = pods.file("limits: {memory: 1Xi}");
        pods.call(&["node", "create", "-f", wrong.to_str().unwrap(), "org"])
            .fails_with(&["/resources/limits/memory: \"1Xi\" is no quantity"]);
        for name in ["../x", "Org", "a//b", ""] {
            pods.call(&["node", "create", name]).fails_with(&["is no name of a node"]);
        }
        pods.call(&["node", "usage", "org"]).fails_with(&["there is no node \"org\""]);
    });
}
