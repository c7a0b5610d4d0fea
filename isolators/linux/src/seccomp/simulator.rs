//! Compiled profiles, run and compared with what the profile's text says.

use std::time::Instant;

use oci_spec::runtime::LinuxSeccomp;
use serde_json::{Value, json};

use super::architecture::{Architecture, X32_BIT};
use super::compile;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const KILL: u32 = 0;

/// One system call, as `struct seccomp_data` shows it to a filter.
#[derive(Debug, Clone, Copy)]
struct Call {
    architecture: u32,
    number: u32,
    args: [u64; 6],
}

fn call(architecture: u32, number: u32, first: u64) -> Call {
    Call { architecture, number, args: [first, 0, 0, 0, 0, 0] }
}

/// Runs a classic BPF program (Linux: Documentation/networking/filter.rst) to its return.
fn run(program: &[u64], call: Call) -> u32 {
    let (mut accumulator, mut at) = (0_u32, 0_usize);
    loop {
        let i = program[at];
        let (code, jt, jf, k) = (i as u16, (i >> 16) as u8, (i >> 24) as u8, (i >> 32) as u32);
        let branch = |taken: bool| usize::from(if taken { jt } else { jf });
        at += 1;
        match code {
            0x20 => accumulator = load(call, k),
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => at += branch(accumulator == k),
            0x25 => at += branch(accumulator > k),
            0x35 => at += branch(accumulator >= k),
            0x06 => return k,
            other => panic!("instruction {other:#x} at {}", at - 1),
        }
    }
}

fn load(call: Call, offset: u32) -> u32 {
    let word = |arg: usize| call.args[arg];
    match offset {
        0 => call.number,
        4 => call.architecture,
        16.. if offset.is_multiple_of(8) => word((offset as usize - 16) / 8) as u32,
        20.. if offset.is_multiple_of(4) => (word((offset as usize - 20) / 8) >> 32) as u32,
        other => panic!("offset {other}"),
    }
}

fn program(profile: &Value) -> Vec<u64> {
    let seccomp: LinuxSeccomp = serde_json::from_value(profile.clone()).unwrap();
    let compiled = compile(&seccomp).unwrap();
    assert_well_formed(&compiled.program);
    compiled.program
}

/// What the kernel checks when it loads a filter: no jump leaves the program, and the last instruction returns.
fn assert_well_formed(program: &[u64]) {
    assert!(program.len() <= 4096);
    assert_eq!(*program.last().unwrap() as u16, 0x06);
    for (at, i) in program.iter().enumerate() {
        let (code, jt, jf, k) = (*i as u16, (i >> 16) as u8, (i >> 24) as u8, (i >> 32) as usize);
        let furthest = if code == 0x05 { k } else { usize::from(jt.max(jf)) };
        assert!(at + 1 + furthest < program.len() || code == 0x06, "jump out of the program at {at}");
    }
}

/// What `profile` says of the call `name` with `args`, read from its text, rule by rule.
fn naive(profile: &Value, name: &str, args: [u64; 6]) -> u32 {
    let default = action(&profile["defaultAction"], &profile["defaultErrnoRet"]);
    let mut matched = None;
    for rule in profile["syscalls"].as_array().into_iter().flatten() {
        let names = rule["names"].as_array().unwrap();
        let action = action(&rule["action"], &rule["errnoRet"]);
        if action == default || !names.iter().any(|n| n == name) {
            continue;
        }
        match rule["args"].as_array().filter(|args| !args.is_empty()) {
            None => return action,
            Some(conditions) if matched.is_none() && holds(conditions, args) => matched = Some(action),
            Some(_) => {}
        }
    }
    matched.unwrap_or(default)
}

fn holds(conditions: &[Value], args: [u64; 6]) -> bool {
    let index = |c: &Value| c["index"].as_u64().unwrap();
    let twice =
        (1..conditions.len()).any(|i| conditions[..i].iter().any(|c| index(c) == index(&conditions[i])));
    let mut each = conditions.iter().map(|c| compares(c, args[index(c) as usize]));
    if twice { each.any(|yes| yes) } else { each.all(|yes| yes) }
}

fn compares(condition: &Value, arg: u64) -> bool {
    let value = condition["value"].as_u64().unwrap();
    match condition["op"].as_str().unwrap() {
        "SCMP_CMP_NE" => arg != value,
        "SCMP_CMP_LT" => arg < value,
        "SCMP_CMP_LE" => arg <= value,
        "SCMP_CMP_EQ" => arg == value,
        "SCMP_CMP_GE" => arg >= value,
        "SCMP_CMP_GT" => arg > value,
        "SCMP_CMP_MASKED_EQ" => arg & value == condition["valueTwo"].as_u64().unwrap_or(0),
        other => panic!("{other}"),
    }
}

fn action(action: &Value, errno: &Value) -> u32 {
    let errno = errno.as_u64().unwrap_or(1) as u32;
    match action.as_str().unwrap() {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => 0,
        "SCMP_ACT_KILL_PROCESS" => 0x8000_0000,
        "SCMP_ACT_TRAP" => 0x0003_0000,
        "SCMP_ACT_ERRNO" => 0x0005_0000 | errno,
        "SCMP_ACT_TRACE" => 0x7ff0_0000 | errno,
        "SCMP_ACT_LOG" => 0x7ffc_0000,
        "SCMP_ACT_ALLOW" => ALLOW,
        other => panic!("{other}"),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "callers make the values in the call")]
fn rule(names: &[&str], action: &str, args: Value) -> Value {
    json!({"names": names, "action": action, "args": args})
}

#[expect(clippy::needless_pass_by_value, reason = "callers make the values in the call")]
fn profile(default: &str, architectures: &[&str], rules: Vec<Value>) -> Value {
    json!({"defaultAction": default, "architectures": architectures, "syscalls": rules})
}

/// A profile of the size and kind of Docker's: all calls but a few dozen, some by their arguments.
fn like_docker() -> Value {
    const DENIED: [&str; 24] = [
        "acct",
        "bpf",
        "clone",
        "clone3",
        "create_module",
        "delete_module",
        "finit_module",
        "init_module",
        "ioperm",
        "iopl",
        "kexec_load",
        "keyctl",
        "mount",
        "move_pages",
        "open_by_handle_at",
        "personality",
        "pivot_root",
        "quotactl",
        "reboot",
        "setns",
        "swapon",
        "umount2",
        "unshare",
        "userfaultfd",
    ];
    let of_all = [Architecture::X86_64, Architecture::I386].map(Architecture::syscalls).concat();
    let mut names: Vec<&str> =
        of_all.into_iter().map(|call| call.1).filter(|n| !DENIED.contains(n)).collect();
    names.sort_unstable();
    names.dedup();
    let mut rules = vec![rule(&names, "SCMP_ACT_ALLOW", json!([]))];
    for value in [0_u64, 8, 0x20000, 0x20008, 0xffff_ffff] {
        let args = json!([{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]);
        rules.push(rule(&["personality"], "SCMP_ACT_ALLOW", args));
    }
    let mask = json!([{"index": 0, "value": 0x7e02_0000, "op": "SCMP_CMP_MASKED_EQ"}]);
    rules.push(rule(&["clone"], "SCMP_ACT_ALLOW", mask));
    rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}));
    profile("SCMP_ACT_ERRNO", &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], rules)
}

/// Values around everything that the profiles of these tests compare with.
const ARGS: [u64; 12] =
    [0, 1, 7, 8, 9, 0x20008, 0x7e02_0000, 0x0002_0000, 0xffff_ffff, 0x1_0000_0008, u64::MAX - 7, u64::MAX];

/// Every call of x86-64, with every argument of [`ARGS`] in the first two places, against the profile's text.
fn assert_as_written(profile: &Value) {
    let program = program(profile);
    for (number, name) in Architecture::X86_64.syscalls() {
        for (first, second) in ARGS.iter().flat_map(|first| ARGS.map(|second| (*first, second))) {
            let args = [first, second, 0, 0, 0, first];
            let made = run(&program, Call { architecture: X86_64, number, args });
            assert_eq!(made, naive(profile, name, args), "{name} {args:x?}");
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_profile_like_docker_s_does_what_it_says_on_each_architecture() {
    let profile = like_docker();
    assert_as_written(&profile);
    let program = program(&profile);
    for (architecture, bit, narrow) in [(Architecture::I386, 0, true), (Architecture::X32, X32_BIT, false)] {
        for (number, name) in architecture.syscalls() {
            assert_eq!(number & X32_BIT, bit);
            for arg in ARGS {
                let arg = if narrow { arg & 0xffff_ffff } else { arg };
                let made = run(&program, call(architecture.audit(), number, arg));
                assert_eq!(
                    made,
                    naive(&profile, name, [arg, 0, 0, 0, 0, 0]),
                    "{architecture:?} {name} {arg:x}"
                );
            }
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn every_operator_and_action_does_what_it_says() {
    for op in ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"] {
        for value in ARGS {
            let one =
                json!([{"index": 0, "value": value, "valueTwo": value & 8, "op": format!("SCMP_CMP_{op}")}]);
            let mut two = one.clone();
            let five = json!({"index": 5, "value": 7, "op": "SCMP_CMP_GT"});
            two.as_array_mut().unwrap().push(five.clone());
            two.as_array_mut().unwrap().push(json!({"index": 1, "value": 1, "op": "SCMP_CMP_LE"}));
            let rules = vec![
                rule(&["read"], "SCMP_ACT_KILL_PROCESS", one.clone()),
                rule(&["read"], "SCMP_ACT_TRACE", json!([five])),
                rule(&["write", "read"], "SCMP_ACT_LOG", two),
                rule(
                    &["open"],
                    "SCMP_ACT_TRAP",
                    json!([one[0], one[0], {"index": 1, "value": 8, "op": "SCMP_CMP_EQ"}]),
                ),
            ];
            let mut small = profile("SCMP_ACT_ALLOW", &[], rules);
            // Four calls are enough for what differs from profile to profile.
            small["defaultErrnoRet"] = json!(13);
            let program = program(&small);
            for (first, second) in ARGS.iter().flat_map(|first| ARGS.map(|second| (*first, second))) {
                let args = [first, second, 0, 0, 0, second];
                for (number, name) in [(0, "read"), (1, "write"), (2, "open"), (3, "close")] {
                    let made = run(&program, Call { architecture: X86_64, number, args });
                    assert_eq!(made, naive(&small, name, args), "{op} {value:x} {name} {args:x?}");
                }
            }
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn an_architecture_that_the_profile_does_not_name_is_killed() {
    let program = program(&profile("SCMP_ACT_ALLOW", &[], vec![]));
    assert_eq!(run(&program, call(X86_64, 0, 0)), ALLOW);
    assert_eq!(run(&program, call(I386, 0, 0)), KILL);
    assert_eq!(run(&program, call(X86_64, X32_BIT, 0)), KILL);
    assert_eq!(run(&program, call(0xc000_00b7, 0, 0)), KILL);
    // A tracer that has a call skipped.
    assert_eq!(run(&program, call(X86_64, u32::MAX, 0)), ALLOW);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_call_newer_than_the_profile_is_not_there() {
    let allow = || vec![rule(&["read", "openat2"], "SCMP_ACT_ALLOW", json!([]))];
    let strict = program(&profile("SCMP_ACT_ERRNO", &["SCMP_ARCH_X86"], allow()));
    for architecture in [X86_64, I386] {
        assert_eq!(run(&strict, call(architecture, 437, 0)), ALLOW);
        assert_eq!(run(&strict, call(architecture, 436, 0)), EPERM);
        assert_eq!(run(&strict, call(architecture, 438, 0)), ENOSYS);
        assert_eq!(run(&strict, call(architecture, 999, 0)), ENOSYS);
    }
    assert_eq!(run(&strict, call(X86_64, u32::MAX, 0)), EPERM);
    let open = program(&profile("SCMP_ACT_LOG", &[], allow()));
    assert_eq!(run(&open, call(X86_64, 438, 0)), 0x7ffc_0000);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_rule_on_i386_holds_for_the_call_s_older_form() {
    let some = json!([{"index": 0, "value": 16, "op": "SCMP_CMP_EQ"}]);
    let deny = vec![
        rule(&["connect", "semop"], "SCMP_ACT_ERRNO", json!([])),
        rule(&["socket"], "SCMP_ACT_ERRNO", some),
    ];
    let program = program(&profile("SCMP_ACT_ALLOW", &["SCMP_ARCH_X86"], deny));
    for (through, number, wanted) in [(102, 3, EPERM), (102, 2, ALLOW), (102, 1, ALLOW), (117, 1, EPERM)] {
        assert_eq!(run(&program, call(I386, through, number)), wanted, "{through} {number}");
    }
    assert_eq!(run(&program, call(I386, 362, 0)), EPERM);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_rule_without_arguments_wins_and_of_several_the_first() {
    let some = json!([{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]);
    let profile = profile(
        "SCMP_ACT_ERRNO",
        &[],
        vec![
            rule(&["read"], "SCMP_ACT_LOG", some.clone()),
            rule(&["read", "no_such_call"], "SCMP_ACT_ALLOW", json!([])),
            rule(&["read"], "SCMP_ACT_KILL", json!([])),
            rule(&["write"], "SCMP_ACT_LOG", some.clone()),
            rule(&["write"], "SCMP_ACT_ALLOW", some),
            rule(&["close"], "SCMP_ACT_ERRNO", Value::Null),
        ],
    );
    let program = program(&profile);
    assert_eq!(run(&program, call(X86_64, 0, 1)), ALLOW);
    assert_eq!(run(&program, call(X86_64, 1, 1)), 0x7ffc_0000);
    assert_eq!(run(&program, call(X86_64, 3, 1)), EPERM);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn many_rules_are_reached_and_too_many_refused() {
    let name = |i: u32| Architecture::X86_64.syscalls()[i as usize].1;
    let rules = (0..600_u32).map(|i| {
        let args = json!([{"index": 0, "value": i, "op": "SCMP_CMP_EQ"}]);
        rule(&[name(i % 8 * 5)], if i % 2 == 0 { "SCMP_ACT_LOG" } else { "SCMP_ACT_TRAP" }, args)
    });
    // 600 rules would be more than 4096 instructions.
    let long = profile("SCMP_ACT_ALLOW", &[], rules.clone().take(400).collect());
    let program = program(&long);
    for (number, first) in (0..40).flat_map(|number| (0..410).map(move |first| (number, first))) {
        let args = [first, 0, 0, 0, 0, 0];
        assert_eq!(run(&program, call(X86_64, number, first)), naive(&long, name(number), args));
    }
    let too_long = profile("SCMP_ACT_ALLOW", &[], rules.collect());
    let error = compile(&serde_json::from_value(too_long).unwrap()).unwrap_err().to_string();
    assert!(error.starts_with("/linux/seccomp/syscalls: the filter has 4"), "{error}");
    assert!(error.ends_with("instructions, the kernel takes 4096"), "{error}");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_ragged_profile_is_searched_over_long_jumps() {
    let names: Vec<&str> =
        Architecture::X86_64.syscalls().iter().rev().step_by(2).map(|call| call.1).collect();
    let some = json!([{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]);
    let rules = vec![rule(&names, "SCMP_ACT_ALLOW", json!([])), rule(&["open"], "SCMP_ACT_LOG", some)];
    let ragged = profile("SCMP_ACT_ERRNO", &["SCMP_ARCH_X32"], rules);
    // A jump that skips one without a bound: only where a conditional one would not reach.
    assert!(program(&ragged).windows(2).any(|two| two[0] as u32 == 0x0100_0035 && two[1] as u16 == 0x05));
    assert_as_written(&ragged);
}

#[test]
fn a_profile_like_docker_s_is_short_and_quick_to_compile() {
    let seccomp: LinuxSeccomp = serde_json::from_value(like_docker()).unwrap();
    let mut times: Vec<_> = (0..51)
        .map(|_| {
            let start = Instant::now();
            compile(&seccomp).unwrap();
            start.elapsed()
        })
        .collect();
    times.sort();
    let len = compile(&seccomp).unwrap().program.len();
    println!("{len} instructions, compiled in {:?} (median), {:?} (most)", times[25], times[50]);
    assert!(len < 600, "{len} instructions");
    // Ten times what an unoptimised build takes on a slow machine.
    assert!(times[25].as_millis() < 20, "{:?}", times[25]);
}
