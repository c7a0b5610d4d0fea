//! Volumes: what is shared, what can't be written, what is left.

use std::fs;

use coracle_tests::pod::{IMAGE, Pods};
use coracle_tests::privileged;

#[test]
fn containers_share_the_volumes_of_their_pod() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        fs::write("/run/test/from-host", "host").unwrap();
        let spec = "
  terminationGracePeriodSeconds: 0
  securityContext: {fsGroup: 1234, runAsUser: 1000, runAsGroup: 1000}
  volumes:
  - {name: disk, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: host, hostPath: {path: /run/test, type: Directory}}
  - {name: image, image: {reference: IMAGE}}
  containers:
  - name: one
    image: IMAGE
    command: [sleep, '1000']
    volumeMounts: &none
  - {name: two, image: IMAGE, command: [sleep, '1000'], volumeMounts: [{name: disk, mountPath: /d}]}
";
        let mounts = "[{name: disk, mountPath: /d}, {name: memory, mountPath: /m}, {name: host, mountPath: /h, readOnly: true}, {name: image, mountPath: /i}]";
        pods.run("web", &spec.replace("&none", mounts));
        pods.exec("web/one", &["sh", "-c", "echo shared > /d/file; id -G"]).succeeds();
        assert_eq!(pods.exec("web/two", &["cat", "/d/file"]).succeeds().text(), "shared");
        assert_eq!(pods.exec("web/two", &["stat", "-c", "%g", "/d/file"]).succeeds().text(), "1234");
        pods.exec("web/one", &["sh", "-c", "dd if=/dev/zero of=/m/big bs=1M count=2 2>/dev/null"]).exits(1);
        assert_eq!(pods.exec("web/one", &["cat", "/h/from-host"]).succeeds().text(), "host");
        pods.exec("web/one", &["touch", "/h/new"]).exits(1);
        assert!(pods.exec("web/one", &["cat", "/i/srv/greeting"]).succeeds().text().contains("three layers"));
        pods.exec("web/one", &["touch", "/i/new"]).exits(1);
        pods.remove("web");
    });
}

#[test]
fn a_volume_in_memory_whose_limit_is_zero_may_hold_what_one_without_may() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        // A tmpfs without any limit has no blocks at all, by what it says.
        let spec = "
  restartPolicy: Never
  volumes: [{name: v, emptyDir: {medium: Memory, sizeLimit: '0'}}]
  containers:
  - {name: main, image: IMAGE, command: [sh, -c, 'test $(stat -f -c %b /v) -gt 0'], volumeMounts: [{name: v, mountPath: /v}]}
";
        pods.run("web", spec);
        pods.call(&["wait", "web/main"]).exits(0);
        pods.remove("web");
    });
}

#[test]
fn a_volume_below_another_is_seen_whatever_the_order_of_their_mounts() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  terminationGracePeriodSeconds: 0
  volumes: [{name: cache, emptyDir: {}}, {name: data, emptyDir: {}}]
  containers:
  - name: main
    image: IMAGE
    command: [sleep, '1000']
    volumeMounts: [{name: cache, mountPath: /data/cache}, {name: data, mountPath: /data}]
";
        pods.run("web", spec);
        pods.exec("web", &["touch", "/data/cache/in-cache", "/data/in-data"]).succeeds();
        assert!(found("/var/lib/coracle/pods", "in-cache").contains("/volumes/cache/in-cache"));
        assert!(found("/var/lib/coracle/pods", "in-data").contains("/volumes/data/in-data"));
        pods.remove("web");
    });
}

#[test]
fn volumes_that_isolators_provide_can_be_written_by_the_group_of_their_pod() {
    privileged(|host| {
        let state = |name: &str| {
            let options = format!("options = {{ state = {:?} }}", host.directory().join(name));
            format!("[isolator.\"volume/{name}\"]\n{options}\n")
        };
        let host = host.configured(&format!("{}{}", state("persistent"), state("sandbox-path")));
        let Some(pods) = Pods::new(&host) else { return };
        let spec = "
  restartPolicy: Never
  securityContext: {fsGroup: 1234, runAsUser: 1000}
  volumes: [{name: named, persistentVolumeClaim: {claimName: data}}, {name: own, sandbox: {path: own}}]
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, 'touch /n/file /o/file && stat -c %g:%a /n /o && stat -c %g /n/file']
    volumeMounts: [{name: named, mountPath: /n}, {name: own, mountPath: /o}]
";
        pods.run("web", spec);
        pods.call(&["wait", "web/main"]).exits(0);
        assert_eq!(pods.logs("web/main"), "1234:2775\n1234:2775\n1234");
        pods.remove("web");
        host.call(&["volume", "rm", "data"]).succeeds();
    });
}

/// Where `find` finds this name below `directory`.
fn found(directory: &str, name: &str) -> String {
    coracle_tests::command::tool("find", &[directory, "-name", name])
}

#[test]
fn what_a_pod_writes_is_on_the_disk_until_it_is_removed() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  terminationGracePeriodSeconds: 0
  volumes: [{name: disk, emptyDir: {}}]
  containers:
  - {name: main, image: IMAGE, command: [sleep, '1000'], volumeMounts: [{name: disk, mountPath: /d}]}
";
        pods.run("web", spec);
        pods.exec("web", &["sh", "-c", "echo kept >/d/written; echo 10.0.0.9 me >>/etc/hosts"]).succeeds();
        assert!(found("/var/lib/coracle/pods", "written").contains("/volumes/disk/written"));
        assert_eq!(found("/run/coracle", "hosts"), "");
        pods.call(&["stop", "web"]).succeeds();
        host.call(&["recover"]).succeeds();
        pods.call(&["start", "web"]).succeeds();
        assert_eq!(pods.exec("web", &["cat", "/d/written"]).succeeds().text(), "kept");
        pods.remove("web");
        assert_eq!(found("/var/lib/coracle/pods", "?*").lines().count(), 1, "itself");
        // As if the machine had begun anew, in whose /run the pod was.
        fs::create_dir_all("/var/lib/coracle/pods/left/data/volumes/disk").unwrap();
        fs::write("/var/lib/coracle/pods/left/owner", "/run/coracle/.pods/web").unwrap();
        host.call(&["recover"]).succeeds();
        assert_eq!(found("/var/lib/coracle/pods", "left"), "");
    });
}

#[test]
fn a_container_below_another_sees_what_belongs_to_that_and_no_other_does() {
    privileged(|host| {
        let options = format!("options = {{ state = {:?} }}", host.directory());
        let host = host.configured(&format!("[isolator.\"volume/sandbox-path\"]\n{options}\n"));
        let Some(pods) = Pods::new(&host) else { return };
        let spec = "
  terminationGracePeriodSeconds: 0
  volumes:
  - {name: own, sandbox: {path: work/here}}
  - {name: above, sandbox: {path: work/here, of: parent}}
  containers:
  - {name: main, image: IMAGE, command: [sh, -c, 'echo of main >/own/file; exec sleep 1000'], volumeMounts: [{name: own, mountPath: /own}]}
  - {name: other, image: IMAGE, command: [sleep, '1000'], volumeMounts: [{name: own, mountPath: /own}]}
";
        pods.run("web", spec);
        assert_eq!(pods.exec("web/other", &["ls", "-A", "/own"]).succeeds().text(), "");
        let below = "volumeMounts: [{name: above, mountPath: /above}, {name: own, mountPath: /own}]";
        let text = format!("name: child\nimage: {IMAGE}\ncommand: [sleep, '1000']\n{below}\n");
        let file = pods.file(&text);
        pods.call(&["launch", "-f", file.to_str().unwrap(), "web/main"]).succeeds();
        assert_eq!(pods.exec("web/main/child", &["cat", "/above/file"]).succeeds().text(), "of main");
        pods.exec("web/main/child", &["sh", "-c", "echo back >/above/back; touch /own/mine"]).succeeds();
        assert_eq!(pods.exec("web/main", &["ls", "-A", "/own"]).succeeds().lines(), ["back", "file"]);
        pods.call(&["forget", "web/main/child"]).succeeds();
        assert_eq!(pods.exec("web/main", &["ls", "-A", "/own"]).succeeds().lines(), ["back", "file"]);
        pods.remove("web");
        let wrong = spec.replace("volumeMounts: [{name: own", "volumeMounts: [{name: above");
        pods.make("run", "web", &wrong).fails_with(&[
            "/spec/containers/0/volumeMounts/0/name: volume \"above\" is of the container above, and there is none",
        ]);
        let wrong = spec.replace("path: work/here}", "path: ../here}");
        pods.make("run", "web", &wrong)
            .fails_with(&["/spec/volumes/0/sandbox/path: it is not a relative path without .."]);
    });
}

#[test]
fn a_volume_with_a_name_outlives_the_pods_that_claim_it() {
    privileged(|host| {
        let options = format!("options = {{ state = {:?} }}", host.directory().join("volumes"));
        let host = host.configured(&format!("[isolator.\"volume/persistent\"]\n{options}\n"));
        let Some(pods) = Pods::new(&host) else { return };
        let spec = |script: &str, how: &str| {
            format!(
                "
  restartPolicy: Never
  volumes: [{{name: v, persistentVolumeClaim: {{claimName: data{how}}}}}]
  containers:
  - {{name: main, image: IMAGE, command: [sh, -c, '{script}'], volumeMounts: [{{name: v, mountPath: /v}}]}}
"
            )
        };
        pods.run("one", &spec("echo kept >/v/file", ""));
        pods.call(&["wait", "one/main"]).exits(0);
        pods.remove("one");
        pods.run("two", &spec("cat /v/file; touch /v/other || echo read-only", ", readOnly: true"));
        pods.call(&["wait", "two/main"]).exits(0);
        assert!(pods.logs("two/main").starts_with("kept\n"), "{}", pods.logs("two/main"));
        assert!(pods.logs("two/main").ends_with("read-only"), "{}", pods.logs("two/main"));
        pods.remove("two");
        host.call(&["volume", "rm", "data"]).succeeds();
    });
}

#[test]
fn a_secret_is_in_memory_and_can_not_be_written() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let config = host.directory();
        fs::create_dir_all(config.join("secrets/key")).unwrap();
        fs::write(config.join("secrets/key/word"), "open").unwrap();
        let spec = "
  restartPolicy: Never
  volumes: [{name: key, secret: {secretName: key, defaultMode: 256}}]
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, 'cat /key/word; stat -c %a /key/word; stat -f -c %T /key; touch /key/x']
    volumeMounts: [{name: key, mountPath: /key}]
";
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n{}",
            spec.replace("IMAGE", IMAGE)
        );
        let file = pods.file(&text);
        let store = pods.store.directory().to_str().unwrap();
        let config = config.to_str().unwrap();
        host.call(&["--config", config, "pod", "run", "--store", store, "-f", file.to_str().unwrap()])
            .succeeds();
        pods.call(&["wait", "web"]).exits(1);
        let said = pods.call(&["logs", "web"]).exits(0).text();
        assert!(said.contains("open400\ntmpfs"), "{said}");
        pods.remove("web");
    });
}

#[test]
fn a_secret_that_can_not_be_copied_whole_is_not_there_in_part() {
    privileged(|host| {
        let host = &host.configured("");
        let Some(pods) = Pods::new(host) else { return };
        let secret = host.runtime().parent().unwrap().join("secrets/key");
        fs::create_dir_all(secret.join("..data")).unwrap();
        fs::write(secret.join("..data/first"), "open").unwrap();
        std::os::unix::fs::symlink("..data/first", secret.join("first")).unwrap();
        fs::write(secret.join("large"), vec![0; 2 << 20]).unwrap();
        let spec = "
  restartPolicy: Never
  volumes: [{name: key, secret: {secretName: key, defaultMode: 0400}}]
  containers:
  - {name: main, image: IMAGE, command: [sh, -c, 'ls /key; stat -c %a /key/first'], volumeMounts: [{name: key, mountPath: /key}]}
";
        pods.make("create", "web", spec).succeeds();
        for _ in 0..2 {
            pods.call(&["start", "web"]).fails_with(&["copying \"large\" of secret \"key\""]);
        }
        fs::write(secret.join("large"), "small").unwrap();
        pods.call(&["start", "web"]).succeeds();
        pods.call(&["wait", "web"]).exits(0);
        assert_eq!(pods.logs("web"), "first\nlarge\n400");
        pods.remove("web");
    });
}

#[test]
fn a_secret_can_be_read_by_the_group_of_its_pod() {
    privileged(|host| {
        let host = &host.configured("");
        let Some(pods) = Pods::new(host) else { return };
        let secret = host.runtime().parent().unwrap().join("secrets/key");
        fs::create_dir_all(&secret).unwrap();
        fs::write(secret.join("word"), "open").unwrap();
        let spec = "
  restartPolicy: Never
  securityContext: {fsGroup: 1234, runAsUser: 1000}
  volumes: [{name: key, secret: {secretName: key, defaultMode: 0400}}]
  containers:
  - {name: main, image: IMAGE, command: [cat, /key/word], volumeMounts: [{name: key, mountPath: /key}]}
";
        pods.run("web", spec);
        pods.call(&["wait", "web"]).exits(0);
        assert_eq!(pods.logs("web"), "open");
        pods.remove("web");
    });
}

#[test]
fn a_volume_that_is_missing_on_the_host_is_named() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  volumes: [{name: v, hostPath: {path: /nowhere, type: Directory}}]
  containers:
  - {name: main, image: IMAGE, command: ['true'], volumeMounts: [{name: v, mountPath: /v}]}
";
        pods.make("run", "web", spec).fails_with(&["/spec/volumes/0 (\"v\")", "no such file"]);
        assert_eq!(pods.call(&["ls", "-q"]).succeeds().text(), "");
    });
}

#[test]
fn names_of_the_pod_are_in_its_hosts_file() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  restartPolicy: Never
  hostAliases: [{ip: 10.0.0.7, hostnames: [db, db.local]}]
  containers:
  - {name: main, image: IMAGE, command: [cat, /etc/hosts]}
";
        pods.run("web", spec);
        pods.call(&["wait", "web"]).exits(0);
        let hosts = pods.logs("web");
        assert!(hosts.contains("localhost web") && hosts.contains("10.0.0.7\tdb db.local"), "{hosts}");
        pods.remove("web");
    });
}

#[test]
fn containers_of_a_pod_share_dev_shm_and_no_other_pod_does() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  terminationGracePeriodSeconds: 0
  containers:
  - {name: one, image: IMAGE, command: [sleep, '1000']}
  - {name: two, image: IMAGE, command: [sleep, '1000']}
";
        pods.run("web", spec);
        pods.run("other", spec);
        pods.exec("web/one", &["sh", "-c", "echo shared > /dev/shm/word"]).succeeds();
        assert_eq!(pods.exec("web/two", &["cat", "/dev/shm/word"]).succeeds().text(), "shared");
        pods.exec("other/one", &["test", "!", "-e", "/dev/shm/word"]).succeeds();
        let mounts = pods.exec("web/two", &["grep", "-c", " /dev/shm ", "/proc/mounts"]).succeeds();
        assert_eq!(mounts.text(), "1", "the image's own is not below it");
        for name in ["web", "other"] {
            pods.remove(name);
        }
    });
}

#[test]
fn a_part_of_a_volume_is_mounted_and_no_link_leads_out_of_it() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let volume = std::path::Path::new("/run/test/volume");
        fs::create_dir_all(volume.join("deep/er")).unwrap();
        fs::write(volume.join("deep/er/file"), "inside").unwrap();
        fs::write("/run/test/secret", "outside").unwrap();
        std::os::unix::fs::symlink("/deep", volume.join("link")).unwrap();
        std::os::unix::fs::symlink("../secret", volume.join("escape")).unwrap();
        let spec = |part: &str| {
            format!(
                "
  terminationGracePeriodSeconds: 0
  volumes: [{{name: v, hostPath: {{path: /run/test/volume}}}}]
  containers:
  - {{name: main, image: IMAGE, command: [sleep, '1000'], volumeMounts: [{{name: v, mountPath: /v, subPath: {part}}}]}}
"
            )
        };
        for (part, script, said) in [
            ("deep/er/file", "cat /v", "inside"),
            ("link/er", "ls /v", "file"),
            ("made/new", "touch /v/x; ls /v", "x"),
        ] {
            pods.run("web", &spec(part));
            assert_eq!(pods.exec("web", &["sh", "-c", script]).succeeds().text(), said, "{part}");
            pods.remove("web");
        }
        assert!(volume.join("made/new/x").exists());
        pods.make("run", "web", &spec("escape")).fails_with(&["volumeMounts/0/subPath \"escape\""]);
        pods.remove("web");
        for wrong in ["../secret", "/etc", "a/../../b"] {
            pods.make("run", "web", &spec(wrong)).fails_with(&[
                "/spec/containers/0/volumeMounts/0/subPath: it is not a relative path without ..",
            ]);
        }
    });
}

#[test]
fn a_part_of_a_volume_has_its_limit_when_its_launch_is_long_over() {
    privileged(|host| {
        let state = host.directory();
        let often = format!("[isolator.\"disk/du\"]\noptions = {{ state = {state:?}, interval = 0.1 }}\n");
        let host = host.configured(&often);
        let Some(pods) = Pods::new(&host) else { return };
        let spec = "
  restartPolicy: Never
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - {name: main, image: IMAGE, command: [sh, -c, 'sleep 0.5; head -c 2000000 /dev/zero >/v/file; sleep 3; exit 3'], volumeMounts: [{name: v, mountPath: /v, subPath: part}]}
";
        let metadata = "  annotations: {io.coracle.disk: '{\"/v\": \"1m\"}'}\n";
        pods.make_with("run", "web", metadata, spec).succeeds();
        pods.call(&["wait", "web/main"]).exits(137);
        pods.remove("web");
    });
}

#[test]
fn a_privileged_container_has_the_devices_of_a_host_path() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        coracle_tests::command::tool("mknod", &["-m", "666", "/run/test/null", "c", "1", "3"]);
        let spec = |rights: &str| {
            format!(
                "
  restartPolicy: Never
  volumes: [{{name: dev, hostPath: {{path: /run/test}}}}]
  containers:
  - {{name: main, image: IMAGE, command: [sh, -c, 'echo x >/host/null'], volumeMounts: [{{name: dev, mountPath: /host}}]{rights}}}
"
            )
        };
        for (rights, code) in [("", 1), (", securityContext: {privileged: true}", 0)] {
            pods.run("web", &spec(rights));
            pods.call(&["wait", "web/main"]).exits(code);
            pods.remove("web");
        }
    });
}
