//! Records of networks that can't be read, or written: nobody else comes to harm, and plugins are called all the same.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;

use coracle_tests::command::tool;
use coracle_tests::lan::Lan;
use coracle_tests::{Bundle, Container, Host, Spec, privileged};
use serde_json::json;

/// What is kept of networks.
const STATE: &str = "/var/lib/coracle/network";

/// A network of a plugin that notes whom it is called for, and gives everybody an address.
fn lan(host: &Host) -> Option<Lan> {
    let lan = Lan::new(host, 30.0)?;
    lan.network(&json!({"cniVersion": "1.1.0", "name": "front", "plugins": [{"type": "noting"}]}));
    let script = "echo $CNI_COMMAND $CNI_CONTAINERID >>$DIR/calls\n[ $CNI_COMMAND = ADD ] || exit 0\n\
        echo '{\"cniVersion\": \"1.1.0\", \"ips\": [{\"address\": \"192.0.2.7/24\"}]}'";
    lan.plugin("noting", script);
    Some(lan)
}

fn on_it<'l>(lan: &'l Lan, name: &str, script: &str) -> Bundle<'l> {
    let spec = Spec::new().set("/annotations", json!({"io.coracle.network": "front"}));
    lan.host().bundle(spec.set("/hostname", name).script(script)).named(name)
}

fn started<'l>(lan: &'l Lan, name: &str) -> Container<'l> {
    on_it(lan, name, "sleep 1000").start()
}

fn has_let_go(lan: &Lan, name: &str) -> bool {
    lan.read("calls").lines().any(|call| call == format!("DEL {name}"))
}

fn spoil(name: &str) {
    fs::write(format!("{STATE}/{name}/record.json"), "{").unwrap();
}

fn forget(name: &str) {
    fs::remove_file(format!("{STATE}/.unreadable-{name}")).unwrap();
}

#[test]
fn a_spoilt_record_of_another_keeps_nobody_from_coming_and_going() {
    privileged(|host| {
        let Some(lan) = lan(host) else { return };
        let before = lan.stock();
        let (spoilt, watcher, neighbour) =
            (started(&lan, "spoilt"), started(&lan, "watcher"), started(&lan, "neighbour"));
        spoil("spoilt");
        let gone = lan.host().call(&["delete", "--force", neighbour.id()]).succeeds();
        assert_eq!(gone.stderr, "");
        assert!(has_let_go(&lan, "neighbour"), "{}", lan.read("calls"));
        let knows = |name: &str| watcher.exec(&["cat", "/etc/hosts"]).succeeds().text().contains(name);
        assert!(knows("\tspoilt") && !knows("\tneighbour"));
        on_it(&lan, "next", "true").run().succeeds();
        // Its own end is told of once, and it is forgotten.
        let gone = lan.host().call(&["delete", "--force", spoilt.id()]).succeeds();
        assert!(gone.stderr.contains("the record of \"spoilt\" on networks is malformed"), "{}", gone.stderr);
        assert!(!knows("\tspoilt"));
        lan.host().call(&["network", "gc"]).succeeds();
        watcher.remove();
        forget("spoilt");
        lan.ends_as(&before);
    });
}

#[test]
fn a_spoilt_record_of_who_is_gone_is_told_of_once() {
    privileged(|host| {
        let Some(lan) = lan(host) else { return };
        let before = lan.stock();
        let lost = started(&lan, "lost");
        spoil("lost");
        let gc = || lan.host().call(&["network", "gc"]);
        let words = "the record of \"lost\" on networks is malformed";
        // As long as it lives its plugins must not be told that it does not.
        for _ in 0..2 {
            gc().fails_with(&[words]);
        }
        fs::rename("/run/coracle/lost", "/run/lost").unwrap();
        gc().fails_with(&[words, "it is now /var/lib/coracle/network/.unreadable-lost"]);
        assert_eq!(lan.read("calls").lines().last(), Some("GC"));
        gc().succeeds();
        assert_eq!(fs::read_to_string(format!("{STATE}/.unreadable-lost")).unwrap(), "{");
        fs::rename("/run/lost", "/run/coracle/lost").unwrap();
        lost.remove();
        forget("lost");
        lan.ends_as(&before);
    });
}

#[test]
fn a_spoilt_record_keeps_nobody_from_its_name() {
    privileged(|host| {
        let Some(lan) = lan(host) else { return };
        let before = lan.stock();
        fs::create_dir_all(format!("{STATE}/again")).unwrap();
        spoil("again");
        on_it(&lan, "again", "true").run().succeeds();
        assert!(has_let_go(&lan, "again"));
        forget("again");
        lan.ends_as(&before);
    });
}

#[test]
fn plugins_are_called_also_where_the_disk_is_full() {
    privileged(|host| {
        let Some(lan) = lan(host) else { return };
        fs::create_dir_all(STATE).unwrap();
        tool("mount", &["-t", "tmpfs", "-o", "size=256k", "disk", STATE]);
        let before = lan.stock();
        let (one, other) = (started(&lan, "one"), started(&lan, "other"));
        host.shell(&format!("cat /dev/zero >{STATE}/.filling")).exits(1);
        let gone = lan.host().call(&["delete", "--force", one.id()]).succeeds();
        assert!(gone.stderr.to_lowercase().contains("no space left on device"), "{}", gone.stderr);
        assert!(has_let_go(&lan, "one"), "{}", lan.read("calls"));
        fs::remove_file(format!("{STATE}/.filling")).unwrap();
        lan.host().call(&["recover"]).succeeds();
        assert!(!other.exec(&["cat", "/etc/hosts"]).succeeds().text().contains("\tone"));
        other.remove();
        assert_eq!(lan.stock(), before);
        tool("umount", &[STATE]);
        lan.ends_as(&before);
    });
}
