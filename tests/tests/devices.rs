//! Devices: the nodes that are there, and what may be opened.

use coracle_tests::{Spec, privileged};
use serde_json::json;

#[test]
fn the_default_devices_are_there() {
    privileged(|host| {
        let script = "for d in null zero full random urandom tty; do stat -c '%n %t:%T %a' /dev/$d; done";
        let run = host.bundle(Spec::new().script(script)).run().succeeds();
        let expected = ["null 1:3", "zero 1:5", "full 1:7", "random 1:8", "urandom 1:9", "tty 5:0"];
        assert_eq!(run.lines(), expected.map(|device| format!("/dev/{device} 666")));
    });
}

#[test]
fn the_default_devices_work() {
    privileged(|host| {
        let script = "echo x > /dev/null; head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; \
                      echo x > /dev/full || echo full";
        let run = host.bundle(Spec::new().script(script)).run().succeeds();
        assert_eq!(run.lines(), ["4", "4", "full"]);
    });
}

#[test]
fn the_usual_links_are_there() {
    privileged(|host| {
        let script = "for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done";
        let run = host.bundle(Spec::new().script(script)).run().succeeds();
        let expected = ["/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2", "pts/ptmx"];
        assert_eq!(run.lines(), expected);
    });
}

#[test]
fn a_device_of_the_specification_is_made_as_told() {
    privileged(|host| {
        let device = json!({"path": "/dev/extra", "type": "c", "major": 10, "minor": 229,
                            "fileMode": 0o640, "uid": 1000, "gid": 2000});
        let spec = Spec::new().push("/linux/devices", device).args([
            "stat",
            "-c",
            "%F %t:%T %a %u:%g",
            "/dev/extra",
        ]);
        let run = host.bundle(spec).run().succeeds();
        assert_eq!(run.text(), "character special file a:e5 640 1000:2000");
    });
}

#[test]
fn a_device_below_a_new_directory_is_made() {
    privileged(|host| {
        let device = json!({"path": "/dev/dir/fifo", "type": "p", "fileMode": 0o600});
        let spec = Spec::new().push("/linux/devices", device).args(["stat", "-c", "%F", "/dev/dir/fifo"]);
        assert_eq!(host.bundle(spec).run().succeeds().text(), "fifo");
    });
}

/// Who is asked for by a user of it is the one on the host whom that user is mapped to.
#[test]
fn a_user_namespace_has_devices_that_the_host_has_not() {
    privileged(|host| {
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        let device = json!({"path": "/dev/dir/extra", "type": "c", "major": 1, "minor": 5,
                            "fileMode": 0o157, "uid": 10, "gid": 11});
        let other = json!({"path": "/dev/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o600});
        let rule = json!({"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"});
        let script = "stat -c '%F %t:%T %a %u:%g' /dev/dir/extra /dev/zero; head -c 5 /dev/zero | wc -c; \
                      mknod /dev/more c 1 5 2>/dev/null || echo refused";
        let spec = Spec::new()
            .namespace("user")
            .set("/linux/uidMappings", map.clone())
            .set("/linux/gidMappings", map)
            .push("/linux/devices", device)
            .push("/linux/devices", other)
            .push("/linux/resources/devices", rule)
            .script(script);
        let run = host.bundle(spec).run();
        if run.stderr.contains("Linux 6.15") {
            return host.skip("before Linux 6.15 a user namespace has the host's devices alone");
        }
        let special = "character special file 1:5";
        let owners = [format!("{special} 157 10:11"), format!("{special} 600 0:0")];
        assert_eq!(run.succeeds().lines(), [&owners[0], &owners[1], "5", "refused"]);
    });
}

#[test]
fn what_no_rule_allows_can_not_be_opened() {
    privileged(|host| {
        let script = "mknod /dev/kmsg-too c 1 11 && head -c 1 /dev/kmsg-too >/dev/null; echo $?";
        let spec = Spec::new().capabilities(&["CAP_MKNOD"]).script(script);
        let denied = host.bundle(spec).run();
        assert_ne!(denied.lines().last().unwrap(), "0", "{denied:?}");
        assert!(denied.stderr.contains("not permitted"), "{denied:?}");
    });
}

#[test]
fn a_rule_allows_what_it_names() {
    privileged(|host| {
        let rule = json!({"allow": true, "type": "c", "major": 1, "minor": 11, "access": "rwm"});
        let script = "mknod /dev/kmsg-too c 1 11 && dd if=/dev/kmsg-too of=/dev/null bs=8192 count=1 iflag=nonblock 2>&1 | grep -c permitted";
        let spec =
            Spec::new().capabilities(&["CAP_MKNOD"]).push("/linux/resources/devices", rule).script(script);
        assert_eq!(host.bundle(spec).run().text(), "0");
    });
}
