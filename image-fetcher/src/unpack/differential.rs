//! I-05: archives with mistakes in them, read by us, by Python's tarfile and by GNU tar: what we take, they read as we do.
//! What we refuse, they may take.

#![expect(clippy::disallowed_methods, reason = "tests make files and start other programs on the host")]

use std::fs;
use std::path::Path;
use std::process::Command;

use tar::{Builder, EntryType, Header};

use super::entry::{Entries, Type};
use super::limits::Limits;
use super::stream::Stream;
use crate::fixture::Tar;

const MUTANTS: usize = 1500;

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

/// Archives without a mistake: PAX, GNU's long names, and old numbers.
fn originals() -> Vec<Vec<u8>> {
    let long = "long/".repeat(30) + "name";
    let records: [(&str, &[u8]); 3] = [("path", long.as_bytes()), ("size", b"600"), ("mtime", b"1.5")];
    let pax = Tar::default().dir("d/").file("d/f", &[b'x'; 700]).link("d/s", "f").hard("d/h", "d/f");
    let pax =
        pax.pax(&records).file("short", &[b'y'; 600]).entry(EntryType::Fifo, "p", "", b"").file("last", b"z");
    let mut gnu = Builder::new(Vec::new());
    for (name, bytes) in [(&long[..], &b"hello"[..]), ("g", &[b'g'; 1024]), ("e", b"")] {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        gnu.append_data(&mut header, name, bytes).unwrap();
    }
    vec![pax.end(), gnu.into_inner().unwrap()]
}

/// Makes one to three mistakes.
fn mutate(archive: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = archive.to_vec();
    for _ in 0..=dice.below(3) {
        let blocks = bytes.len() / 512;
        let (at, other) = (dice.below(blocks) * 512, dice.below(blocks) * 512);
        match dice.below(8) {
            0 => bytes[at + dice.below(512)] ^= 1 << dice.below(8),
            1 => bytes[at + dice.below(345)] = dice.below(256) as u8,
            2 => bytes[at + 156] = b"0123456789xgLKSVMND\0"[dice.below(20)],
            3 => {
                let size = [0, 1, 511, 512, 513, 1024, 0o77777][dice.below(7)];
                bytes[at + 124..at + 136].copy_from_slice(format!("{size:011o}\0").as_bytes());
            }
            4 => bytes.truncate(at + dice.below(512) + 1),
            5 => drop(bytes.drain(at..at + 512)),
            6 => {
                let block = bytes[other..other + 512].to_vec();
                bytes.splice(at..at, block);
            }
            _ => bytes[at + dice.below(40)] = b"0123456789 =\n"[dice.below(13)],
        }
        if dice.below(4) > 0 && at + 512 <= bytes.len() {
            set_checksum(&mut bytes[at..at + 512]);
        }
        bytes.resize(bytes.len().max(1024), 0);
    }
    bytes
}

fn set_checksum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// An entry as all readers tell of it: name, type, size, target.
type Line = (Vec<u8>, char, u64, Vec<u8>);

fn without_slash(name: &[u8]) -> Vec<u8> {
    let end = name.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    name[..end].to_vec()
}

fn ours(archive: &[u8]) -> Option<Vec<Line>> {
    let (mut stream, limits) = (Stream::of(archive), Limits::default());
    let (mut entries, mut lines) = (Entries::new(&mut stream, &limits), Vec::new());
    while let Some(entry) = entries.next().ok()? {
        let (kind, link) = match entry.kind {
            Type::File => ('f', Vec::new()),
            Type::HardLink => ('h', entry.link),
            Type::Symlink => ('l', entry.link),
            Type::Directory => ('d', Vec::new()),
            Type::Node(..) => ('n', Vec::new()),
        };
        lines.push((without_slash(&entry.path), kind, entry.size, link));
    }
    Some(lines)
}

const PYTHON: &str = r"
import os, sys, tarfile
def kind(m):
    return 'f' if m.isreg() else 'h' if m.islnk() else 'l' if m.issym() else 'd' if m.isdir() else 'n'
for path in sys.stdin.read().split():
    try:
        with tarfile.open(path, 'r:', errors='surrogateescape') as archive:
            for m in archive:
                link = os.fsencode(m.linkname).hex() if kind(m) in 'hl' else ''
                print(os.fsencode(m.name.rstrip('/')).hex() or '-', kind(m), m.size, link or '-')
        print('end')
    except Exception:
        print('error')
";

fn unhex(text: &str) -> Vec<u8> {
    let digits = if text == "-" { "" } else { text };
    (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap()).collect()
}

/// What Python reads of each archive; none where it fails.
fn python(paths: &[std::path::PathBuf]) -> Option<Vec<Option<Vec<Line>>>> {
    use std::io::Write;
    use std::process::Stdio;
    let mut command = Command::new("python3");
    let mut child = command.args(["-c", PYTHON]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
    let list: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    child.stdin.take()?.write_all(list.join("\n").as_bytes()).unwrap();
    let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let (mut all, mut lines) = (Vec::new(), Vec::new());
    for line in output.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["end"] => all.push(Some(std::mem::take(&mut lines))),
            ["error"] => {
                lines.clear();
                all.push(None);
            }
            [name, kind, size, link] => {
                lines.push((unhex(name), kind.chars().next().unwrap(), size.parse().unwrap(), unhex(link)));
            }
            _ => panic!("{line:?}"),
        }
    }
    Some(all)
}

/// The names that GNU tar lists; none where it fails, or is not installed.
fn gnu(path: &Path) -> Option<Vec<Vec<u8>>> {
    let mut command = Command::new("tar");
    let output = command.args(["--quoting-style=literal", "-tf"]).arg(path).output().ok()?;
    let names = output.stdout.strip_suffix(b"\n").unwrap_or_default().split(|byte| *byte == b'\n');
    output.status.success().then(|| names.filter(|name| !name.is_empty()).map(without_slash).collect())
}

/// Whether GNU tar's list can be told apart into names.
fn is_printable(lines: &[Line]) -> bool {
    lines.iter().all(|(name, ..)| !name.is_empty() && name.iter().all(u8::is_ascii_graphic))
}

#[test]
fn i_05_what_we_take_of_archives_with_mistakes_others_read_as_we_do() {
    let scratch = tempfile::tempdir().unwrap();
    let (originals, mut dice) = (originals(), Dice(1));
    let mut taken = Vec::new();
    for n in 0..MUTANTS {
        let archive = mutate(&originals[n % originals.len()], &mut dice);
        let Some(lines) = ours(&archive) else { continue };
        let path = scratch.path().join(n.to_string());
        fs::write(&path, archive).unwrap();
        taken.push((path, lines));
    }
    assert!(taken.len() > MUTANTS / 20 && taken.len() < MUTANTS * 9 / 10, "{} were taken", taken.len());
    let paths: Vec<_> = taken.iter().map(|(path, _)| path.clone()).collect();
    let Some(others) = python(&paths) else {
        return eprintln!("skipped: python3 is not installed");
    };
    let compared = others.iter().flatten().count();
    assert!(compared > taken.len() / 2, "Python reads {compared} of {}", taken.len());
    for ((path, lines), other) in taken.iter().zip(others) {
        // It refuses archives without the padding of their last file, and at a mistake in a field that we have no use for
        // it ends without a word.
        if let Some(other) = other.filter(|other| !lines.starts_with(other)) {
            assert_eq!(*lines, other, "{} is read otherwise by Python", path.display());
        }
        let names: Vec<_> = lines.iter().map(|(name, ..)| name.clone()).collect();
        if let Some(listed) = gnu(path).filter(|_| is_printable(lines)) {
            assert_eq!(names, listed, "{} is read otherwise by GNU tar", path.display());
        }
    }
}
