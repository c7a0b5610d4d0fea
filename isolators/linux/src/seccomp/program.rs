//! A profile as one classic BPF program.
//!
//! For each architecture, the range of all numbers is cut into segments of one outcome. A balanced tree of
//! comparisons finds a number's segment in about eight steps; its leaf returns an action, or jumps to where
//! arguments are compared, which system calls with the same rules share. The kernel sees from such a program that
//! a call is always allowed and need not run it then (kernel/seccomp.c, `seccomp_cache_prepare`, Linux 5.11).

use std::borrow::Cow;

use coracle_isolator::{Error, Result};
use seccompiler::{BpfProgram, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::architecture::{Architecture, X32_BIT};
use super::profile::{Condition, Decision, Profile, RET_ENOSYS, RET_KILL_THREAD, Rule};

/// linux/bpf_common.h.
const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;
/// No instruction of the kernel's: stands for a jump to a block until its place is known.
const TO_BLOCK: u16 = 0xffff;
/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// `BPF_MAXINSNS`.
const MOST: usize = 4096;

/// What a segment of numbers comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaf {
    Return(u32),
    /// The block with this index decides.
    Block(usize),
}

/// The program for `profile`.
pub(super) fn link(profile: &Profile<'_>) -> Result<Vec<u64>> {
    let mut program = vec![instruction(LOAD, 0, 0, ARCHITECTURE)];
    for architecture in &profile.architectures {
        if *architecture == Architecture::X32 {
            continue; // Part of x86-64's tree.
        }
        let mut segments = Segments::default();
        segments.add(*architecture, profile)?;
        if *architecture == Architecture::X86_64 {
            add_x32(&mut segments, profile)?;
        }
        let body = segments.laid_out();
        program.push(instruction(JUMP_EQUAL, 1, 0, architecture.audit()));
        program.push(instruction(JUMP, 0, 0, body.len() as u32 + 1));
        program.push(instruction(LOAD, 0, 0, NUMBER));
        program.extend(body);
    }
    program.push(returning(RET_KILL_THREAD));
    match program.len() {
        0..=MOST => Ok(program),
        len => Err(Error::new(format!("the filter has {len} instructions, the kernel takes {MOST}"))
            .at("/linux/seccomp/syscalls")),
    }
}

/// The numbers with the x32 bit: calls of the profile where it knows x32, else a foreign architecture. -1 is
/// what a tracer writes to have a call skipped: the default action.
fn add_x32(segments: &mut Segments, profile: &Profile<'_>) -> Result<()> {
    if profile.architectures.contains(&Architecture::X32) {
        segments.push(X32_BIT, Leaf::Return(profile.default));
        segments.add(Architecture::X32, profile)?;
    } else {
        segments.push(X32_BIT, Leaf::Return(RET_KILL_THREAD));
    }
    segments.push(u32::MAX, Leaf::Return(profile.default));
    Ok(())
}

/// The range of numbers, cut: each leaf holds from its number to the next one's.
#[derive(Debug, Default)]
struct Segments {
    cuts: Vec<(u32, Leaf)>,
    /// Comparisons of arguments that end in returns, each once.
    blocks: Vec<Vec<u64>>,
}

impl Segments {
    /// Goes on at `start` with `leaf`; what came before it there gives way.
    fn push(&mut self, start: u32, leaf: Leaf) {
        if self.cuts.last().is_some_and(|last| last.0 == start) {
            self.cuts.pop();
        }
        if self.cuts.last().is_none_or(|last| last.1 != leaf) {
            self.cuts.push((start, leaf));
        }
    }

    /// Adds the system calls of `architecture`, from where its numbers begin to the end of all.
    fn add(&mut self, architecture: Architecture, profile: &Profile<'_>) -> Result<()> {
        let default = Leaf::Return(profile.default);
        if self.cuts.is_empty() {
            self.push(0, default);
        }
        let mut end = None;
        for (number, name) in architecture.syscalls() {
            if let Some(decision) = decide(architecture, profile, name) {
                let leaf = self.leaf(&decision, architecture, profile.default)?;
                self.push(number, leaf);
                self.push(number + 1, default);
                end = Some(number + 1);
            }
        }
        let newer = if profile.newer_is_enosys { Leaf::Return(RET_ENOSYS) } else { default };
        if let Some(end) = end {
            self.push(end, newer);
        }
        for (number, name) in architecture.private_syscalls() {
            if let Some(decision) = profile.decisions.get(name) {
                let leaf = self.leaf(decision, architecture, profile.default)?;
                self.push(*number, leaf);
                self.push(number + 1, newer);
            }
        }
        Ok(())
    }

    fn leaf(&mut self, decision: &Decision, architecture: Architecture, default: u32) -> Result<Leaf> {
        let rules = match decision {
            Decision::Always(action) => return Ok(Leaf::Return(*action)),
            Decision::Match(rules) if rules.is_empty() => return Ok(Leaf::Return(default)),
            Decision::Match(rules) => rules,
        };
        let mut block = Vec::new();
        for rule in rules {
            // A compiled rule falls through to the next instruction where it matches and skips that one where not.
            block.extend(compiled(rule, architecture)?.iter().map(|i| instruction(i.code, i.jt, i.jf, i.k)));
            block.push(returning(rule.action));
        }
        block.push(returning(default));
        let known = self.blocks.iter().position(|known| *known == block);
        Ok(Leaf::Block(known.unwrap_or_else(|| {
            self.blocks.push(block);
            self.blocks.len() - 1
        })))
    }

    /// The tree, and behind it the blocks that its leaves jump to.
    fn laid_out(&self) -> Vec<u64> {
        let mut all = tree(&self.cuts);
        let mut starts = Vec::with_capacity(self.blocks.len());
        let mut end = all.len();
        for block in &self.blocks {
            starts.push(end);
            end += block.len();
        }
        for (at, i) in all.iter_mut().enumerate().filter(|(_, i)| **i as u16 == TO_BLOCK) {
            let start = starts[(*i >> 32) as usize];
            *i = instruction(JUMP, 0, 0, (start - at - 1) as u32);
        }
        all.extend(self.blocks.iter().flatten());
        all
    }
}

/// What the profile says of `name`; a call that others are made through adds what the profile says of them.
fn decide<'a>(architecture: Architecture, profile: &'a Profile<'_>, name: &str) -> Option<Cow<'a, Decision>> {
    let own = profile.decisions.get(name);
    if matches!(own, Some(Decision::Always(_))) {
        return own.map(Cow::Borrowed);
    }
    let through: Vec<Rule> = architecture
        .multiplexed()
        .iter()
        .filter(|(_, through, _)| *through == name)
        .filter_map(|(inner, _, number)| match profile.decisions.get(inner)? {
            Decision::Always(action) => Some(first_argument_is(*number, *action)),
            // What the arguments are is in memory, out of a filter's reach.
            Decision::Match(_) => None,
        })
        .collect();
    match own {
        own if through.is_empty() => own.map(Cow::Borrowed),
        Some(Decision::Match(own)) => Some(Cow::Owned(Decision::Match([&own[..], &through].concat()))),
        _ => Some(Cow::Owned(Decision::Match(through))),
    }
}

fn first_argument_is(value: u64, action: u32) -> Rule {
    Rule { conditions: vec![Condition { index: 0, operator: SeccompCmpOp::Eq, value }], action }
}

fn compiled(rule: &Rule, architecture: Architecture) -> Result<BpfProgram> {
    let conditions = rule.conditions.iter().map(|condition| {
        let length = if architecture.is_narrow() { SeccompCmpArgLen::Dword } else { SeccompCmpArgLen::Qword };
        SeccompCondition::new(condition.index, length, condition.operator.clone(), condition.value)
    });
    let rule = conditions.collect::<std::result::Result<Vec<_>, _>>().and_then(SeccompRule::new);
    rule.map(BpfProgram::from).map_err(|e| Error::new(e.to_string()).at("/linux/seccomp/syscalls"))
}

/// The tree that finds the segment of the number in the accumulator: lower half first, then the upper one.
fn tree(segments: &[(u32, Leaf)]) -> Vec<u64> {
    match segments {
        [(_, Leaf::Return(action))] => return vec![returning(*action)],
        [(_, Leaf::Block(index))] => return vec![instruction(TO_BLOCK, 0, 0, *index as u32)],
        _ => {}
    }
    let (lower, upper) = segments.split_at(segments.len() / 2);
    let start = upper.first().map_or(0, |segment| segment.0);
    let (lower, upper) = (tree(lower), tree(upper));
    // A conditional jump reaches 255 instructions; beyond, it skips or takes one without such a bound.
    let mut all = match u8::try_from(lower.len()) {
        Ok(len) => vec![instruction(JUMP_GREATER_EQUAL, len, 0, start)],
        Err(_) => {
            vec![instruction(JUMP_GREATER_EQUAL, 0, 1, start), instruction(JUMP, 0, 0, lower.len() as u32)]
        }
    };
    all.extend(lower);
    all.extend(upper);
    all
}

fn returning(action: u32) -> u64 {
    instruction(RETURN, 0, 0, action)
}

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> u64 {
    u64::from(code) | u64::from(jt) << 16 | u64::from(jf) << 24 | u64::from(k) << 32
}
