//! The files of `/etc` that say how names become addresses, and what a container is called.
//!
//! They are written on the host and mounted into the container, so that nothing is ever written through what an image
//! has there. Those on one network know each other by name: when one comes or goes, `hosts` of the others is written
//! anew, in its place, since a mount shows the very file.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use coracle_isolator::Result;
use coracle_sys::Errno;
use coracle_sys::file::{self, CWD, Resolve};

use crate::answer::Answer;
use crate::failed;
use crate::records::{Record, Records};
use crate::wanted::{Dns, is_name};

/// The longest file that is read, in bytes.
const LONGEST: u64 = 16 << 20;

/// What every container knows.
const LOOPBACK: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// One line of a network's list: who is on it, at an address, under which names.
#[derive(Debug, Clone, PartialEq)]
struct Member {
    id: String,
    address: IpAddr,
    names: Vec<String>,
}

/// Makes the files of a container that is on no network yet.
pub(crate) fn begin(records: &Records, record: &Record) -> Result<()> {
    let dir = records.directory(&record.id)?;
    let hostname = record.names.first().map(String::as_str).unwrap_or_default();
    overwrite(dir.as_fd(), "hostname", &format!("{hostname}\n"))?;
    overwrite(dir.as_fd(), "hosts", LOOPBACK)?;
    overwrite(dir.as_fd(), "resolv.conf", "")
}

/// Lets the container be known on its networks, and know the others.
pub(crate) fn join(records: &Records, record: &Record) -> Result<()> {
    let answers: Vec<Answer> =
        record.attachments.iter().filter_map(|a| a.result.as_ref()).map(Answer::of).collect();
    let dns = resolver(&record.wanted.dns, &answers);
    overwrite(records.directory(&record.id)?.as_fd(), "resolv.conf", &dns)?;
    let networks = records.networks()?;
    let mut others = BTreeSet::new();
    for attachment in &record.attachments {
        let addresses = attachment.result.as_ref().map(|result| Answer::of(result).addresses());
        let member = |address| Member { id: record.id.clone(), address, names: record.names.clone() };
        let members = addresses.unwrap_or_default().into_iter().map(member).collect();
        others.extend(change(networks.as_fd(), &attachment.network.name, &record.id, members)?);
    }
    tell_all(records, networks.as_fd(), &others);
    tell(records, networks.as_fd(), record)
}

/// Lets it be forgotten there.
///
/// # Errors
/// The first network's whose list can't be written; the others are left all the same.
pub(crate) fn leave(records: &Records, record: &Record) -> Result<()> {
    let names = record.attachments.iter().map(|attachment| attachment.network.name.clone());
    forget(records, records.networks()?.as_fd(), &record.id, names)
}

/// The same for one of whom nobody can say any more where it was.
pub(crate) fn leave_all(records: &Records, id: &str) -> Result<()> {
    let networks = records.networks()?;
    let names = file::list(networks.as_fd()).map_err(failed)?.into_iter();
    // A list that is being written begins with a dot.
    let names = names.filter_map(|name| name.into_string().ok()).filter(|name| !name.starts_with('.'));
    forget(records, networks.as_fd(), id, names)
}

fn forget(
    records: &Records,
    networks: BorrowedFd<'_>,
    id: &str,
    names: impl Iterator<Item = String>,
) -> Result<()> {
    let (mut others, mut first) = (BTreeSet::new(), Ok(()));
    for name in names {
        let changed = change(networks, &name, id, Vec::new());
        first = first.and(changed.map(|there| others.extend(there)));
    }
    tell_all(records, networks, &others);
    first
}

/// Puts `members` in the place of what the network `name` has of the container `id`, and returns who else is there.
fn change(networks: BorrowedFd<'_>, name: &str, id: &str, members: Vec<Member>) -> Result<Vec<String>> {
    let mut all = read(networks, name)?;
    all.retain(|member| member.id != id);
    let others = all.iter().map(|member| member.id.clone()).collect();
    all.extend(members);
    write(networks, name, &all)?;
    Ok(others)
}

/// Writes the `hosts` of the containers `others`. One that is on its way out has no record any more, and one whose record
/// or file is spoilt keeps nobody else from coming and going.
fn tell_all(records: &Records, networks: BorrowedFd<'_>, others: &BTreeSet<String>) {
    for record in others.iter().filter_map(|id| records.read(id).ok().flatten()) {
        let _ = tell(records, networks, &record);
    }
}

/// Writes the `hosts` of one container.
fn tell(records: &Records, networks: BorrowedFd<'_>, record: &Record) -> Result<()> {
    let mut text = LOOPBACK.to_owned();
    for alias in &record.wanted.hosts {
        text += &format!("{}\t{}\n", alias.ip, alias.hostnames.join(" "));
    }
    let mut seen: Vec<Member> = Vec::new();
    for attachment in &record.attachments {
        for member in read(networks, &attachment.network.name)? {
            if !seen.contains(&member) {
                text += &format!("{}\t{}\n", member.address, member.names.join(" "));
                seen.push(member);
            }
        }
    }
    overwrite(records.directory(&record.id)?.as_fd(), "hosts", &text)
}

/// Who is on the network `name`. A line that can't be understood is nobody.
fn read(networks: BorrowedFd<'_>, name: &str) -> Result<Vec<Member>> {
    let text = match file::read(networks, name, LONGEST, Resolve::BeneathNoLinks) {
        Err(e) if e.errno() == Errno::ENOENT => return Ok(Vec::new()),
        text => text.map_err(failed)?,
    };
    let parse = |line: &str| {
        let mut words = line.split(' ');
        let (id, address) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        Some(Member { id, address, names: words.map(str::to_owned).collect() })
    };
    Ok(String::from_utf8_lossy(&text).lines().filter_map(parse).collect())
}

fn write(networks: BorrowedFd<'_>, name: &str, members: &[Member]) -> Result<()> {
    let text: String =
        members.iter().map(|m| format!("{} {} {}\n", m.id, m.address, m.names.join(" "))).collect();
    let written = match text.is_empty() {
        false => file::replace(networks, name, text.as_bytes(), 0o600),
        true => file::remove_replaced(networks, name),
    };
    written.map_err(failed)
}

/// Writes `text` over what a file holds, and never leaves it empty in between: it is looked at meanwhile.
fn overwrite(dir: BorrowedFd<'_>, name: &str, text: &str) -> Result<()> {
    let flags = libc::O_WRONLY | libc::O_CREAT;
    let written = file::open(dir, name, flags, 0o644, Resolve::BeneathNoLinks).and_then(|fd| {
        // Whatever the caller's umask: any user of the container reads it.
        file::chmod(fd.as_fd(), 0o644)?;
        file::write_all(fd.as_fd(), text.as_bytes())?;
        let length = libc::off_t::try_from(text.len()).unwrap_or(libc::off_t::MAX);
        nix::unistd::ftruncate(&fd, length)
            .map_err(|e| coracle_sys::Error::new(format!("ftruncate({name:?})"), e))
    });
    written.map_err(failed)
}

/// The text of resolv.conf(5): what was asked for, else what the networks say, else the host's.
fn resolver(wanted: &Dns, answers: &[Answer]) -> String {
    let answered: Vec<Dns> = answers.iter().map(|answer| answer.dns.understood()).collect();
    let told = |pick: fn(&Dns) -> &Vec<String>| -> Vec<String> {
        if !pick(wanted).is_empty() {
            return pick(wanted).clone();
        }
        answered.iter().flat_map(pick).cloned().collect()
    };
    let servers = told(|dns| &dns.nameservers);
    let mut text = if servers.is_empty() { hosts_own() } else { String::new() };
    let (search, options) = (told(|dns| &dns.search), told(|dns| &dns.options));
    // Of the two, the one that stands last would count.
    let domain = std::iter::once(wanted).chain(&answered).map(|dns| &dns.domain);
    let domain = domain.filter(|domain| !domain.is_empty() && search.is_empty()).take(1).cloned().collect();
    for (keyword, words) in [("domain", domain), ("search", search), ("options", options)] {
        if !words.is_empty() {
            text += &format!("{keyword} {}\n", words.join(" "));
        }
    }
    servers.iter().for_each(|server| text += &format!("nameserver {server}\n"));
    text
}

/// The host's own. A server that listens on the host's loopback can't be reached from another network namespace:
/// systemd-resolved keeps the list of those behind it.
fn hosts_own() -> String {
    let files = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
    let texts = files.map(|path| {
        let text = file::read(CWD, path, LONGEST, Resolve::Host).unwrap_or_default();
        reachable(&String::from_utf8_lossy(&text))
    });
    let [own, behind] = texts;
    if own.contains("nameserver ") || behind.is_empty() { own } else { behind }
}

/// The lines of `text` without servers on the loopback interface.
fn reachable(text: &str) -> String {
    let is_reachable = |line: &&str| {
        let server = line.strip_prefix("nameserver").map(|rest| rest.trim().parse::<IpAddr>());
        !matches!(server, Some(Ok(address)) if address.is_loopback())
    };
    text.lines().filter(is_reachable).map(|line| format!("{line}\n")).collect()
}

/// Those of `names` that can stand in a file of names, each once.
pub(crate) fn known_as(names: &[&str]) -> Vec<String> {
    let mut known: Vec<String> = Vec::new();
    for name in names.iter().filter(|name| is_name(name)) {
        if !known.iter().any(|other| other == name) {
            known.push((*name).to_owned());
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_goes_before_what_networks_say() {
        let answer =
            Answer::of(&serde_json::json!({"dns": {"nameservers": ["10.0.0.1"], "search": ["lan"]}}));
        let wanted = Dns { nameservers: vec!["1.1.1.1".to_owned()], ..Dns::default() };
        assert_eq!(resolver(&wanted, &[]), "nameserver 1.1.1.1\n");
        assert_eq!(resolver(&Dns::default(), &[answer]), "search lan\nnameserver 10.0.0.1\n");
        let answer = Answer::of(&serde_json::json!({"dns": {"nameservers": ["10.0.0.1"], "domain": "lan"}}));
        assert_eq!(resolver(&Dns::default(), &[answer]), "domain lan\nnameserver 10.0.0.1\n");
    }

    #[test]
    fn a_server_on_the_hosts_loopback_is_left_out() {
        let text = "search lan\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 10.0.0.1\n";
        assert_eq!(reachable(text), "search lan\nnameserver 10.0.0.1\n");
    }

    #[test]
    fn a_name_that_would_break_the_file_is_none() {
        assert_eq!(known_as(&["web", "a b", "web", "x\n1.2.3.4 bank", "db-1"]), ["web", "db-1"]);
    }
}
