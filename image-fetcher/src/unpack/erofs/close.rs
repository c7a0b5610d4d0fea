//! The end of an image: its directories, whose inodes name each other; the first block; the numbers of links.

use std::collections::BTreeMap;

use super::format::{self, BLOCK, Inode, LINKS_AT, Layout, MOST_INLINE, Name, Of, ROOT, SLOT};
use super::output::Output;
use super::{Described, Erofs, Leaf, block_number, place};
use crate::error::Result;

/// A directory, with all that has to be known before the first one is written.
struct Plan<'a> {
    described: &'a Described,
    names: Vec<Name<'a>>,
    /// How many of the names each block holds.
    counts: Vec<usize>,
    size: u64,
    /// Whether the last block stands behind the inode.
    is_inline: bool,
    blocks_at: u64,
    /// Where the inode stands.
    at: u64,
    links: u32,
}

/// Writes what is left of an image all of whose files are written.
pub(super) fn close(image: Erofs) -> Result<()> {
    let Erofs { mut output, described, files, inodes, segments, uuid, .. } = image;
    let mut plans = list(&described, &files);
    arrange(&mut plans, output.position());
    let position = |file: usize| segments[inodes[file].segment] + inodes[file].offset;
    let number = |of: Of| match of {
        Of::Directory(index) => plans[index].at / SLOT,
        Of::File(index) => position(index) / SLOT,
    };
    for plan in &plans {
        plan.write_blocks(&mut output, number)?;
    }
    for (index, plan) in plans.iter().enumerate().skip(1) {
        output.skip_to(plan.at)?;
        output.write(&plan.record((inodes.len() + index) as u32, number)?)?;
    }
    output.fill_block()?;
    output.end()?;
    let blocks = block_number(output.position())?;
    let root = plans[0].record(inodes.len() as u32, number)?;
    let first = format::first_block((inodes.len() + plans.len()) as u64, blocks, &uuid, &root)?;
    output.write_at(&first, 0)?;

    let mut links = vec![0_u32; inodes.len()];
    files.values().for_each(|leaf| links[leaf.inode] += 1);
    for (file, links) in links.iter().enumerate().filter(|(_, links)| **links > 1) {
        output.write_at(&links.to_le_bytes(), position(file) + LINKS_AT)?;
    }
    Ok(())
}

/// The directories in the order of their paths, the root first, each with the names in it.
fn list<'a>(
    described: &'a BTreeMap<Vec<u8>, Described>,
    files: &'a BTreeMap<Vec<u8>, Leaf>,
) -> Vec<Plan<'a>> {
    let index: BTreeMap<&[u8], usize> =
        described.keys().enumerate().map(|(i, path)| (&path[..], i)).collect();
    let directory = |name, i| Name { name, kind: libc::S_IFDIR, of: Of::Directory(i) };
    let mut names: Vec<Vec<Name<'a>>> = Vec::new();
    let mut links = vec![2; described.len()];
    names.resize_with(described.len(), Vec::new);
    for (i, path) in described.keys().enumerate() {
        let (parent, name) = split_path(path);
        let parent = index.get(parent).copied().unwrap_or(0);
        names[i].extend([directory(b".", i), directory(b"..", parent)]);
        if !path.is_empty() {
            names[parent].push(directory(name, i));
            links[parent] += 1;
        }
    }
    for (path, leaf) in files {
        let (parent, name) = split_path(path);
        if let Some(parent) = index.get(parent) {
            names[*parent].push(Name { name, kind: leaf.kind, of: Of::File(leaf.inode) });
        }
    }
    let plan = |((described, mut names), links): ((&'a Described, Vec<Name<'a>>), u32)| {
        names.sort_unstable_by_key(|name| name.name);
        let (counts, last) = format::split(&names);
        let size = (counts.len() as u64 - 1) * BLOCK + last;
        Plan { described, names, counts, size, is_inline: last <= MOST_INLINE, blocks_at: 0, at: 0, links }
    };
    described.values().zip(names).zip(links).map(plan).collect()
}

/// Gives blocks and inodes their places, from `start` on.
fn arrange(plans: &mut [Plan<'_>], start: u64) {
    let mut at = start;
    for (index, plan) in plans.iter_mut().enumerate() {
        // Behind the root directory's inode there is no place.
        plan.is_inline &= index > 0;
        plan.blocks_at = at;
        at += (plan.counts.len() - usize::from(plan.is_inline)) as u64 * BLOCK;
    }
    for plan in plans.iter_mut().skip(1) {
        let record = 64 + plan.described.attributes.len() as u64;
        let behind = if plan.is_inline { (plan.size - 1) % BLOCK + 1 } else { 0 };
        plan.at = place(at, record, behind);
        at = plan.at + record + behind;
    }
    plans[0].at = ROOT as u64;
}

impl Plan<'_> {
    /// The names of each block.
    fn blocks(&self) -> impl Iterator<Item = &[Name<'_>]> {
        let ends = self.counts.iter().scan(0, |end, count| {
            *end += count;
            Some((*end - count, *end))
        });
        ends.map(|(start, end)| &self.names[start..end])
    }

    /// Writes the blocks that do not stand behind the inode.
    fn write_blocks(&self, output: &mut Output, number: impl Fn(Of) -> u64) -> Result<()> {
        for names in self.blocks().take(self.counts.len() - usize::from(self.is_inline)) {
            output.write(&format::directory(names, &number))?;
            output.fill_block()?;
        }
        Ok(())
    }

    /// The inode with what stands behind it. `before` is how many other inodes there are before.
    fn record(&self, before: u32, number: impl Fn(Of) -> u64) -> Result<Vec<u8>> {
        let inode = Inode {
            layout: if self.is_inline { Layout::Inline } else { Layout::Plain },
            kind: libc::S_IFDIR,
            size: self.size,
            data: block_number(self.blocks_at)?,
            links: self.links,
            number: before + 1,
        };
        let mut record = format::inode(&inode, &self.described.metadata, &self.described.attributes);
        if let Some(names) = self.blocks().last().filter(|_| self.is_inline) {
            record.extend(format::directory(names, number));
        }
        Ok(record)
    }
}

/// A path's directory and its name there.
fn split_path(path: &[u8]) -> (&[u8], &[u8]) {
    let slash = path.iter().rposition(|b| *b == b'/');
    slash.map_or((b"", path), |i| (&path[..i], &path[i + 1..]))
}
