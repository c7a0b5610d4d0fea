//! Pods whose users are not the host's.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use coracle_tests::pod::Pods;
use coracle_tests::{Host, command, privileged};

const OWN: &str = "
  hostUsers: false
  terminationGracePeriodSeconds: 0
  volumes:
  - {name: disk, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory}}
  - {name: host, hostPath: {path: /run/test/shared, type: Directory}}
  - {name: image, image: {reference: IMAGE}}
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, 'exec sleep 1000']
    volumeMounts: [{name: disk, mountPath: /d}, {name: memory, mountPath: /m}, {name: host, mountPath: /h}, {name: image, mountPath: /i}]
  - {name: other, image: IMAGE, command: [sleep, '1000'], securityContext: {runAsUser: 1000}}
";

/// Whether layers have other owners inside: of file systems that map them, given by descriptor.
pub(super) fn maps_layers(host: &Host) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let is_new = (numbers.next(), numbers.next()) >= (Some(6), Some(15));
    if !is_new {
        host.skip(&format!("Linux {} maps no owners of layers", release.trim()));
    }
    is_new
}

fn pods(host: &Host) -> Option<Pods<'_>> {
    if !maps_layers(host) {
        return None;
    }
    fs::create_dir("/run/test/shared").unwrap();
    fs::write("/run/test/shared/of-7", "x").unwrap();
    chown("/run/test/shared/of-7", Some(7), Some(8)).unwrap();
    Pods::new(host)
}

fn said(pods: &Pods<'_>, container: &str, script: &str) -> String {
    pods.exec(container, &["sh", "-c", script]).succeeds().text()
}

fn first(pods: &Pods<'_>, pod: &str) -> u64 {
    pods.inspect(pod)["users"]["first"].as_u64().unwrap()
}

#[test]
fn the_root_of_a_pod_is_nobody_on_the_host() {
    privileged(|host| {
        let Some(pods) = pods(host) else { return };
        pods.run("web", OWN);
        let first = first(&pods, "web");
        assert_eq!(
            said(&pods, "web/main", "id -u; cat /proc/self/uid_map | tr -s ' '"),
            format!("0\n 0 {first} 65536")
        );
        let pid = pods.container("web", "main")["pid"].as_u64().unwrap();
        assert_eq!(u64::from(fs::metadata(format!("/proc/{pid}")).unwrap().uid()), first);
        let other = pods.container("web", "other")["pid"].as_u64().unwrap();
        assert_eq!(u64::from(fs::metadata(format!("/proc/{other}")).unwrap().uid()), first + 1000);
        let user = |path: &str| said(&pods, path, "readlink /proc/self/ns/user");
        assert_eq!(user("web/main"), user("web/other"));
        pods.remove("web");
    });
}

#[test]
fn files_of_images_and_volumes_have_the_owners_that_they_should() {
    privileged(|host| {
        let Some(pods) = pods(host) else { return };
        pods.run("web", OWN);
        let owners = "stat -c %u:%g / /bin/busybox /d /m /i /i/srv/greeting /h/of-7";
        assert_eq!(said(&pods, "web/main", owners), "0:0\n0:0\n0:0\n0:0\n0:0\n1000:1000\n7:8");
        let writes = "for d in / /d /m /h; do touch $d/new && chown 5:6 $d/new && stat -c %u:%g $d/new; done";
        assert_eq!(said(&pods, "web/main", writes), "5:6\n5:6\n5:6\n5:6");
        assert_eq!(said(&pods, "web/main", "chown 9 /srv/greeting && stat -c %u:%g /srv/greeting"), "9:1000");
        let new = fs::metadata("/run/test/shared/new").unwrap();
        assert_eq!(
            (new.uid(), new.gid()),
            (5, 6),
            "what is in a volume outlives the pod, and has users of the host"
        );
        pods.remove("web");
    });
}

#[test]
fn volumes_that_isolators_provide_have_the_owners_that_they_should() {
    privileged(|host| {
        let states = host.directory();
        let state = |name: &str| {
            let options = format!("options = {{ state = {:?} }}", states.join(name));
            format!("[isolator.\"volume/{name}\"]\n{options}\n")
        };
        let host = host.configured(&format!("{}{}", state("persistent"), state("sandbox-path")));
        let Some(pods) = pods(&host) else { return };
        let spec = "
  hostUsers: false
  restartPolicy: Never
  volumes: [{name: named, persistentVolumeClaim: {claimName: data}}, {name: own, sandbox: {path: own}}]
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, 'for d in /n /o; do touch $d/file && chown 5:6 $d/file && stat -c %u:%g $d $d/file; done']
    volumeMounts: [{name: named, mountPath: /n}, {name: own, mountPath: /o}]
";
        pods.run("web", spec);
        pods.call(&["wait", "web/main"]).exits(0);
        assert_eq!(pods.logs("web/main"), "0:0\n5:6\n0:0\n5:6");
        let kept = fs::metadata(states.join("persistent/data/data/file")).unwrap();
        assert_eq!((kept.uid(), kept.gid()), (5, 6), "what outlives the pod has users of the host");
        pods.remove("web");
        host.call(&["volume", "rm", "data"]).succeeds();
    });
}

#[test]
fn two_pods_never_share_users_and_a_range_is_free_again_with_its_pod() {
    privileged(|host| {
        let Some(pods) = pods(host) else { return };
        for name in ["one", "two", "three"] {
            pods.make("create", name, OWN).succeeds();
        }
        let [one, two, three] = ["one", "two", "three"].map(|name| first(&pods, name));
        assert_eq!((two, three), (one + 65536, one + 2 * 65536));
        pods.remove("two");
        pods.make("create", "four", OWN).succeeds();
        assert_eq!(first(&pods, "four"), two);
        for name in ["one", "three", "four"] {
            pods.remove(name);
        }
    });
}

#[test]
fn ranges_are_those_that_the_operator_allots() {
    privileged(|host| {
        let Some(pods) = pods(host) else { return };
        if !fs::exists("/etc/subuid").unwrap() || !fs::exists("/etc/subgid").unwrap() {
            return host.skip("there is no /etc/subuid or no /etc/subgid to mount over");
        }
        for file in ["subuid", "subgid"] {
            fs::write(format!("/run/test/{file}"), "coracle:500000:65536\n").unwrap();
            host.shell(&format!("mount --bind /run/test/{file} /etc/{file}")).succeeds();
        }
        pods.run("one", OWN);
        assert_eq!(first(&pods, "one"), 500_000);
        pods.make("create", "two", OWN)
            .fails_with(&["all ranges of IDs for users of pods are taken", "/etc/subuid"]);
        pods.remove("one");
        host.shell("umount /etc/subuid /etc/subgid").succeeds();
    });
}

#[test]
fn a_caller_may_want_it_for_a_pod_whose_document_does_not() {
    privileged(|host| {
        let Some(pods) = pods(host) else { return };
        let store = pods.store.directory().to_str().unwrap().to_owned();
        let run = [
            "run",
            "--own-users",
            "--store",
            &store,
            "--name",
            "web",
            coracle_tests::pod::IMAGE,
            "--",
            "sleep",
            "1000",
        ];
        pods.call(&run).succeeds();
        assert_eq!(pods.inspect("web")["users"]["count"], 65536);
        pods.remove("web");
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {hostUsers: true, containers: [{name: a, image: i}]}\n";
        let file = pods.file(text);
        let of_host = ["run", "--own-users", "-f", file.to_str().unwrap()];
        pods.call(&of_host)
            .fails_with(&["/spec/hostUsers: it is true, and who makes the pod wants users of its own"]);
        for key in ["hostNetwork", "hostPID", "hostIPC"] {
            let spec = format!("  hostUsers: false\n  {key}: true\n  containers: [{{name: a, image: i}}]\n");
            pods.make("run", "web", &spec)
                .fails_with(&[&format!("/spec/hostUsers: users of the pod's own exclude {key}")]);
        }
    });
}

#[test]
fn nested_and_debug_containers_have_the_pods_users() {
    privileged(|host| {
        let Some(pods) = pods(host) else { return };
        pods.run("web", OWN);
        let image = coracle_tests::pod::IMAGE;
        let file = pods.file(&format!("{{name: child, image: '{image}', command: [sleep, '1000']}}"));
        pods.call(&["launch", "-f", file.to_str().unwrap(), "web/main"]).succeeds();
        let user = |path: &str| said(&pods, path, "readlink /proc/self/ns/user");
        assert_eq!(user("web/main/child"), user("web/main"));
        let looks =
            host.call(&["debug", "web/main", "--", "sh", "-c", "readlink /proc/self/ns/user; touch /made"]);
        assert_eq!(looks.succeeds().text(), user("web/main"));
        assert_eq!(said(&pods, "web/main", "stat -c %u:%g /made"), "0:0");
        pods.remove("web");
    });
}

#[test]
fn a_pod_with_users_of_its_own_is_found_again() {
    privileged(|host| {
        let Some(pods) = pods(host) else { return };
        pods.run("web", OWN);
        let before = (first(&pods, "web"), pods.container("web", "main")["pid"].clone());
        let supervisor = pods.inspect("web")["supervisor"].to_string();
        command::tool("kill", &["-KILL", &supervisor]);
        command::eventually("it is gone", || !fs::exists(format!("/proc/{supervisor}")).unwrap());
        host.call(&["recover"]).succeeds();
        assert_eq!((first(&pods, "web"), pods.container("web", "main")["pid"].clone()), before);
        pods.exec("web/main", &["touch", "/d/again"]).succeeds();
        pods.call(&["stop", "web"]).succeeds();
        pods.call(&["start", "web"]).succeeds();
        assert_eq!(said(&pods, "web/main", "stat -c %u /d/again"), "0");
        pods.remove("web");
    });
}

#[test]
fn a_user_with_another_group_is_in_the_groups_that_the_image_gives_it() {
    privileged(|host| {
        let Some(pods) = Pods::new(host) else { return };
        let spec = "
  restartPolicy: Never
  securityContext: {runAsUser: 1000, runAsGroup: 3000, supplementalGroups: [4000]}
  containers: [{name: main, image: IMAGE, command: [id, -G]}]
";
        pods.run("web", spec);
        pods.call(&["wait", "web"]).exits(0);
        assert_eq!(pods.logs("web"), "3000 2000 4000");
        pods.remove("web");
    });
}
