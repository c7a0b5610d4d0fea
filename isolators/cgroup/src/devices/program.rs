//! A policy as a program of the kind that version 2 asks about each device (linux/bpf.h, `BPF_CGROUP_DEVICE`).

use super::policy::{ALL, Class, Exception, Policy};

/// Operations of an instruction, linux/bpf.h; all but the first on 32 bits.
const LOAD: u8 = 0x61;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_EQUAL: u8 = 0x16;
const JUMP_NOT_EQUAL: u8 = 0x56;
const JUMP_REGISTERS_NOT_EQUAL: u8 = 0x5e;
const EXIT: u8 = 0x95;

/// Registers: the answer, the `struct bpf_cgroup_dev_ctx` and later a scratch value, and the question's parts.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const CLASS: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// One instruction: the operation, its registers, and a number; a jump's distance is filled in later.
#[derive(Clone, Copy)]
struct Instruction {
    operation: u8,
    to: u8,
    from: u8,
    offset: u16,
    number: u32,
}

/// The program that answers as `policy` says: 1 allows, 0 denies.
pub(super) fn compile(policy: &Policy) -> Vec<u64> {
    let mut program = vec![
        load(CLASS, 0),
        Instruction { from: CLASS, ..with_number(MOVE_REGISTER, ACCESS, 0) },
        with_number(SHIFT_RIGHT, ACCESS, 16),
        with_number(AND, CLASS, 0xffff),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for exception in &policy.exceptions {
        program.extend(answer_if(exception, !policy.allow));
    }
    program.extend(answer(policy.allow));
    program.into_iter().map(packed).collect()
}

/// Answers `allow` where the question is about `exception`, else goes on behind.
fn answer_if(exception: &Exception, allow: bool) -> Vec<Instruction> {
    let devices = exception.devices;
    let class = if devices.class == Class::Block { 1 } else { 2 };
    let mut block = vec![with_number(JUMP_NOT_EQUAL, CLASS, class)];
    block.extend(devices.major.map(|major| with_number(JUMP_NOT_EQUAL, MAJOR, major)));
    block.extend(devices.minor.map(|minor| with_number(JUMP_NOT_EQUAL, MINOR, minor)));
    if exception.access != ALL {
        block.push(Instruction { from: ACCESS, ..with_number(MOVE_REGISTER, CONTEXT, 0) });
        block.push(with_number(AND, CONTEXT, exception.access));
        // To be allowed, all that is asked must be in the exception; to be denied, any of it.
        block.push(match allow {
            true => Instruction { from: ACCESS, ..with_number(JUMP_REGISTERS_NOT_EQUAL, CONTEXT, 0) },
            false => with_number(JUMP_EQUAL, CONTEXT, 0),
        });
    }
    block.extend(answer(allow));
    let end = block.len();
    for (at, instruction) in block.iter_mut().enumerate() {
        if matches!(instruction.operation, JUMP_EQUAL | JUMP_NOT_EQUAL | JUMP_REGISTERS_NOT_EQUAL) {
            instruction.offset = (end - at - 1) as u16;
        }
    }
    block
}

fn answer(allow: bool) -> [Instruction; 2] {
    [with_number(MOVE, ANSWER, u32::from(allow)), with_number(EXIT, 0, 0)]
}

fn load(to: u8, offset: u16) -> Instruction {
    Instruction { from: CONTEXT, offset, ..with_number(LOAD, to, 0) }
}

fn with_number(operation: u8, to: u8, number: u32) -> Instruction {
    Instruction { operation, to, from: 0, offset: 0, number }
}

/// A `struct bpf_insn`, as memory holds it, in a number.
fn packed(i: Instruction) -> u64 {
    // Two registers share a byte, in an order that depends on the machine's.
    let registers = if cfg!(target_endian = "little") { i.to | i.from << 4 } else { i.to << 4 | i.from };
    let mut bytes = [0; 8];
    bytes[0] = i.operation;
    bytes[1] = registers;
    bytes[2..4].copy_from_slice(&i.offset.to_ne_bytes());
    bytes[4..].copy_from_slice(&i.number.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::policy::{Devices, MKNOD, READ, WRITE};
    use super::*;

    /// Runs a program of the instructions that this file makes.
    fn run(program: &[u64], class: u32, access: u32, device: (u32, u32)) -> bool {
        let context = [access << 16 | class, device.0, device.1];
        let mut registers = [0_u32; 6];
        let mut at = 0;
        loop {
            let bytes = program[at].to_le_bytes();
            let (to, from) = (usize::from(bytes[1] & 15), usize::from(bytes[1] >> 4));
            let offset = usize::from(u16::from_le_bytes([bytes[2], bytes[3]]));
            let number = u32::from_le_bytes(bytes[4..].try_into().unwrap());
            at += 1;
            match bytes[0] {
                LOAD => registers[to] = context[offset / 4],
                MOVE => registers[to] = number,
                MOVE_REGISTER => registers[to] = registers[from],
                AND => registers[to] &= number,
                SHIFT_RIGHT => registers[to] >>= number,
                JUMP_EQUAL if registers[to] == number => at += offset,
                JUMP_NOT_EQUAL if registers[to] != number => at += offset,
                JUMP_REGISTERS_NOT_EQUAL if registers[to] != registers[from] => at += offset,
                JUMP_EQUAL | JUMP_NOT_EQUAL | JUMP_REGISTERS_NOT_EQUAL => {}
                EXIT => return registers[0] == 1,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    fn exception(class: Class, major: Option<u32>, minor: Option<u32>, access: u32) -> Exception {
        Exception { devices: Devices { class, major, minor }, access }
    }

    /// What a policy says, read from its text.
    fn naive(policy: &Policy, class: Class, access: u32, device: (u32, u32)) -> bool {
        let about = |e: &Exception| {
            e.devices.class == class
                && e.devices.major.is_none_or(|major| major == device.0)
                && e.devices.minor.is_none_or(|minor| minor == device.1)
        };
        let mut about = policy.exceptions.iter().filter(|e| about(e));
        match policy.allow {
            false => about.any(|e| access & !e.access == 0),
            true => !about.any(|e| access & e.access != 0),
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_program_answers_as_the_policy_says() {
        let exceptions = vec![
            exception(Class::Char, None, None, MKNOD),
            exception(Class::Char, Some(1), Some(3), ALL),
            exception(Class::Block, Some(8), None, READ | WRITE),
            exception(Class::Block, None, Some(5), READ),
        ];
        let classes = [(1, Class::Block), (2, Class::Char)];
        for allow in [false, true] {
            let policy = Policy { allow, exceptions: exceptions.clone() };
            let program = compile(&policy);
            for ((code, class), access) in
                classes.iter().flat_map(|class| (1..=ALL).map(move |access| (*class, access)))
            {
                for device in [(1, 3), (1, 5), (8, 0), (8, 5), (9, 5), (0, 0)] {
                    let made = run(&program, code, access, device);
                    assert_eq!(made, naive(&policy, class, access, device), "{class:?} {access} {device:?}");
                }
            }
        }
    }
}
