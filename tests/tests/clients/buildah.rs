//! buildah with this runtime for its steps.

use std::fs;
use std::path::PathBuf;

use coracle_fixtures::small;
use coracle_tests::{Host, Outcome, command, privileged};

use crate::{client, has, remove, storage, write_containers_conf};

/// buildah on directories of the test.
struct Buildah<'h> {
    host: &'h Host,
    directory: PathBuf,
}

impl Buildah<'_> {
    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_str().unwrap().to_owned()
    }

    fn call(&self, verb: &str, args: &[&str]) -> Outcome {
        let mut command = client("buildah");
        command
            .args(storage(&self.directory))
            .arg(verb)
            .args(args)
            .env("BUILDAH_ISOLATION", "oci")
            .env("BUILDAH_RUNTIME", self.host.runtime())
            .env("CONTAINERS_CONF", self.path("containers.conf"));
        command::run(&mut command, &self.host.directory())
    }
}

fn with_buildah(host: &Host, test: fn(&Buildah<'_>)) {
    if !has(host, "buildah") {
        return;
    }
    let buildah = Buildah { host, directory: host.directory() };
    small::image().write_layout(&buildah.directory.join("layout"));
    write_containers_conf(&buildah.directory, "");
    test(&buildah);
    remove(&["/run/lock", "/run/containers", "/var/lib/containers", "/run/libpod"], &[]);
}

#[test]
#[ignore = "make test-clients"]
fn buildah_runs_the_steps_of_a_build() {
    privileged(|host| {
        with_buildah(host, |buildah| {
            let (policy, context) = (buildah.path("policy.json"), buildah.path("context"));
            fs::create_dir(&context).unwrap();
            let steps = format!(
                "FROM oci:{}\nENV WORD=word\nRUN echo $WORD >/made && id -u >>/made\nUSER 1000\nRUN id -u >/tmp/user\n",
                buildah.path("layout")
            );
            fs::write(buildah.directory.join("context/Dockerfile"), steps).unwrap();
            let runtime = buildah.host.runtime().to_str().unwrap();
            let options = ["--isolation", "oci", "--runtime", runtime, "--network", "none"];
            let build =
                [&["--signature-policy", &policy, "--tag", "built"], &options[..], &[&context]].concat();
            buildah.call("bud", &build).succeeds();
            let from = buildah.call(
                "from",
                &["--signature-policy", &policy, "--network", "none", "--name", "work", "built"],
            );
            assert_eq!(from.succeeds().text(), "work");
            let run = buildah.call("run", &["--runtime", runtime, "work", "--", "cat", "/made", "/tmp/user"]);
            assert_eq!(run.succeeds().lines(), ["word", "0", "1000"]);
            let failed =
                ["bud", "run"].map(|_| buildah.call("run", &["work", "--", "sh", "-c", "exit 7"]).code);
            assert_eq!(failed, [7, 7]);
            buildah.call("rm", &["work"]).succeeds();
        });
    });
}
