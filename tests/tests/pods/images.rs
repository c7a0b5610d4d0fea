//! Which images are pulled, and what becomes of snapshots that nobody knows any more.

use std::fs;

use coracle_fixtures::small;
use coracle_tests::pod::Pods;
use coracle_tests::registry::{Content, Registry};
use coracle_tests::{Host, Outcome, command, privileged};

/// A registry with the small image, which this host allows to speak plain HTTP, as long as this lives.
struct Reachable<'h> {
    host: &'h Host,
    registry: Registry,
}

impl<'h> Reachable<'h> {
    fn new(host: &'h Host) -> Self {
        let mut content = Content::of(&small::image());
        content.add(&small::image(), "1");
        let registry = Registry::serving(content);
        let script = "mkdir -p /run/test/etc/upper /run/test/etc/work; \
             mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/test/etc/upper,workdir=/run/test/etc/work /etc";
        host.shell(script).succeeds();
        let name = registry.host();
        let directory = format!("/etc/coracle/certs.d/{name}");
        fs::create_dir_all(&directory).unwrap();
        fs::write(format!("{directory}/hosts.toml"), format!("server = \"http://{name}\"\n")).unwrap();
        Self { host, registry }
    }

    fn run(&self, pods: &Pods<'_>, policy: &str) -> Outcome {
        let image = self.registry.image("boats/small:1");
        let spec = format!(
            "  restartPolicy: Never\n  containers:\n  - {{name: main, image: '{image}', command: ['true'], imagePullPolicy: {policy}}}\n"
        );
        let outcome = pods.make("run", "web", &spec);
        let _ = pods.call(&["wait", "web"]);
        pods.remove("web");
        outcome
    }

    /// How often the registry was asked for the image.
    fn asked(&self) -> usize {
        self.registry.asked().iter().filter(|request| request.path.contains("manifests")).count()
    }
}

impl Drop for Reachable<'_> {
    fn drop(&mut self) {
        let _ = self.host.shell("umount /etc");
    }
}

#[test]
fn an_image_is_pulled_as_its_policy_says() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let there = Reachable::new(host);
        there.run(&pods, "Never").fails_with(&["no image is named", "boats/small:1"]);
        assert_eq!(there.asked(), 0, "Never asks nobody");
        there.run(&pods, "IfNotPresent").succeeds();
        let first = there.asked();
        assert!(first > 0);
        there.run(&pods, "IfNotPresent").succeeds();
        there.run(&pods, "Never").succeeds();
        assert_eq!(there.asked(), first, "what is in the store is not asked for");
        there.run(&pods, "Always").succeeds();
        assert!(there.asked() > first, "Always asks each time");
    });
}

#[test]
fn a_pull_that_fails_says_why() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let there = Reachable::new(host);
        let gone = there.registry.image("boats/small:9");
        let spec = format!("  restartPolicy: Never\n  containers: [{{name: main, image: '{gone}'}}]\n");
        pods.make("run", "web", &spec).fails_with(&[
            "it is not in the store",
            "coracle-image pull",
            "boats/small:9",
        ]);
        assert_eq!(pods.container("web", "main")["exit"]["reason"], "LaunchFailed");
        pods.remove("web");
        let volume = "  volumes: [{name: v, image: {reference: x, pullPolicy: Always}}]\n  containers: [{name: a, image: i}]\n";
        pods.make("run", "web", volume)
            .fails_with(&["/spec/volumes/0/image/pullPolicy: images of volumes are not pulled"]);
    });
}

#[test]
fn snapshots_from_before_the_machines_start_go_with_recover() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        pods.run("web", "  volumes: [{name: v, image: {reference: IMAGE}}]\n  containers: [{name: main, image: IMAGE, command: [sleep, '1000']}]\n");
        let store = pods.store.directory().display().to_string();
        pods.store.call(&["mount", coracle_tests::pod::IMAGE, "by-hand"]).succeeds();
        let told = pods.inspect("web");
        let pids =
            [&told["supervisor"], &told["keeper"], &told["containers"][0]["pid"]].map(ToString::to_string);
        // A start of the machine, as far as it goes: no process, no mount, no cgroup, no file in /run.
        for pid in &pids {
            command::tool("kill", &["-KILL", pid]);
            command::eventually("it is gone", || {
                fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z"))
            });
        }
        host.shell(&format!(
            "for at in $(awk '$5 ~ \"^({store}|/run/coracle)/\" {{print $5}}' /proc/self/mountinfo | sort -r); do umount -l $at; done; \
             rm -rf /run/coracle/.pods; find /sys/fs/cgroup -depth -path '*/coracle*' -type d -exec rmdir {{}} +"
        ));
        let snapshots = || {
            let names = fs::read_dir(format!("{store}/snapshots")).unwrap();
            let mut names: Vec<_> =
                names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(snapshots(), ["by-hand", "web~main", "web~v.volume"]);
        let recovered = host.shell(&format!("CORACLE_STORE={store} $RUNTIME recover")).succeeds();
        assert_eq!(recovered.lines(), ["web/main", "web/v.volume"]);
        assert_eq!(snapshots(), ["by-hand"], "what a person has mounted stays");
        pods.store.call(&["unmount", "by-hand"]).succeeds();
    });
}
