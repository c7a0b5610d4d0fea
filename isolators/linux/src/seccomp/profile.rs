//! `linux.seccomp`, checked and in the words of the kernel.

use std::collections::HashMap;

use coracle_isolator::{Errno, Error, Result};
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompFilterFlag as Flag,
    LinuxSeccompOperator as Operator, LinuxSyscall,
};
use seccompiler::SeccompCmpOp;

use super::architecture::Architecture;

/// `SECCOMP_RET_*` of linux/seccomp.h.
pub(super) const RET_KILL_THREAD: u32 = 0;
const RET_ERRNO: u32 = 0x0005_0000;
pub(super) const RET_ENOSYS: u32 = RET_ERRNO | Errno::ENOSYS as u32;
/// `SECCOMP_FILTER_FLAG_*`.
const NEW_LISTENER: u32 = 1 << 3;
const WAIT_KILLABLE_RECV: u32 = 1 << 5;
/// The greatest error number that the kernel hands to a program (`MAX_ERRNO`).
const MAX_ERRNO: u32 = 4095;

/// A checked profile.
#[derive(Debug)]
pub(super) struct Profile<'a> {
    /// `SECCOMP_RET_*` for what no rule matches.
    pub(super) default: u32,
    /// Whether a system call newer than all that the profile names is answered with `ENOSYS`.
    pub(super) newer_is_enosys: bool,
    /// The architectures that the filter knows, the native one first.
    pub(super) architectures: Vec<Architecture>,
    /// What the profile says of each system call it names.
    pub(super) decisions: HashMap<&'a str, Decision>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub(super) flags: u32,
}

/// What a profile says of a system call.
#[derive(Debug, Clone)]
pub(super) enum Decision {
    /// This action, whatever the arguments.
    Always(u32),
    /// The action of the first rule that matches, else the default one.
    Match(Vec<Rule>),
}

/// Comparisons that must all hold, and the action then.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: u32,
}

/// One comparison of an argument.
#[derive(Debug, Clone)]
pub(super) struct Condition {
    pub(super) index: u8,
    pub(super) operator: SeccompCmpOp,
    pub(super) value: u64,
}

impl<'a> Profile<'a> {
    /// Checks `seccomp` for this machine.
    pub(super) fn new(seccomp: &'a LinuxSeccomp) -> Result<Self> {
        let native = Architecture::native().ok_or_else(|| {
            Error::new("filters can't be made on this architecture yet").at("/linux/seccomp")
        })?;
        Self::for_native(seccomp, native)
    }

    fn for_native(seccomp: &'a LinuxSeccomp, native: Architecture) -> Result<Self> {
        let default = seccomp.default_action();
        if default == Action::ScmpActNotify {
            let why = format!("{default} cannot be used as default action");
            return Err(Error::new(why).at("/linux/seccomp/defaultAction"));
        }
        let code = action(default, seccomp.default_errno_ret())
            .map_err(|e| e.at("/linux/seccomp/defaultErrnoRet"))?;
        let forbids = !matches!(default, Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace);
        let mut profile = Self {
            default: code,
            newer_is_enosys: forbids && code != RET_ENOSYS,
            architectures: vec![native],
            decisions: HashMap::with_capacity(512),
            flags: flags(seccomp.flags().as_deref().unwrap_or_default()),
        };
        for arch in seccomp.architectures().iter().flatten() {
            // One that this machine can't call needs no rules.
            let known = Architecture::of(*arch, native);
            profile.architectures.extend(known.filter(|known| !profile.architectures.contains(known)));
        }
        for (i, entry) in seccomp.syscalls().iter().flatten().enumerate() {
            profile.add(entry, i)?;
        }
        profile.flags |= listener(seccomp)?;
        Ok(profile)
    }

    /// Takes in the entry `i` of `syscalls`.
    fn add(&mut self, entry: &'a LinuxSyscall, i: usize) -> Result<()> {
        let inside = |e: Error| e.below(&format!("/linux/seccomp/syscalls/{i}"));
        let action = action(entry.action(), entry.errno_ret()).map_err(|e| inside(e.at("errnoRet")))?;
        let args = entry.args().as_deref().unwrap_or_default();
        let rules = rules(args, action).map_err(inside)?;
        if entry.names().is_empty() {
            return Err(inside(Error::new("at least one name is needed").at("names")));
        }
        for name in entry.names() {
            let decision = self.decisions.entry(name).or_insert(Decision::Match(Vec::new()));
            if action == self.default {
                continue;
            }
            match decision {
                Decision::Always(_) => {}
                known if rules.is_empty() => *known = Decision::Always(action),
                Decision::Match(known) => known.extend(rules.iter().cloned()),
            }
        }
        Ok(())
    }
}

/// The flags of a filter that asks an agent, none of one that does not: a listener of such a one is passed over, as
/// runc does.
fn listener(seccomp: &LinuxSeccomp) -> Result<u32> {
    let asks = |(_, entry): &(usize, &LinuxSyscall)| entry.action() == Action::ScmpActNotify;
    let mut asking = seccomp.syscalls().iter().flatten().enumerate().filter(asks).peekable();
    if asking.peek().is_none() {
        return Ok(0);
    }
    if seccomp.listener_path().as_ref().is_none_or(|path| path.as_os_str().is_empty()) {
        let why = format!("{} needs an agent to ask, and none is named", Action::ScmpActNotify);
        return Err(Error::new(why).at("/linux/seccomp/listenerPath"));
    }
    if let Some((i, _)) = asking.find(|(_, entry)| entry.names().iter().any(|name| name == "write")) {
        // Profiles for runc know it so, and an agent that is asked for each write of its own logs would hang.
        let why = format!("{} cannot be used for the write syscall", Action::ScmpActNotify);
        return Err(Error::new(why).at(format!("/linux/seccomp/syscalls/{i}/names")));
    }
    let flags = seccomp.flags().iter().flatten();
    let wait = flags.filter(|flag| **flag == Flag::SeccompFilterFlagWaitKillableRecv).count() > 0;
    Ok(NEW_LISTENER | if wait { WAIT_KILLABLE_RECV } else { 0 })
}

/// `SECCOMP_RET_*` for `action`; `errno_ret` counts for `SCMP_ACT_ERRNO` (absent: `EPERM`) and `SCMP_ACT_TRACE`.
fn action(action: Action, errno_ret: Option<u32>) -> Result<u32> {
    let most = match action {
        Action::ScmpActErrno => MAX_ERRNO,
        _ => u32::from(u16::MAX),
    };
    match errno_ret {
        Some(data) if data > most => Err(Error::new(format!("errno {data} of {action} is above {most}"))),
        _ => Ok(action.as_u32(errno_ret)),
    }
}

/// The rules for the arguments `args`: one with all of them, or where an index stands twice, which is how
/// profiles without a way to say "or" were written, one for each (as runc has it).
fn rules(args: &[LinuxSeccompArg], action: u32) -> Result<Vec<Rule>> {
    let conditions: Vec<Condition> = args.iter().enumerate().map(condition).collect::<Result<_>>()?;
    if conditions.is_empty() {
        return Ok(Vec::new());
    }
    let twice = (1..args.len()).any(|i| args[..i].iter().any(|arg| arg.index() == args[i].index()));
    if twice {
        Ok(conditions.into_iter().map(|one| Rule { conditions: vec![one], action }).collect())
    } else {
        Ok(vec![Rule { conditions, action }])
    }
}

/// The comparison that the argument `arg`, number `i` of its rule, stands for.
fn condition((i, arg): (usize, &LinuxSeccompArg)) -> Result<Condition> {
    let index = u8::try_from(arg.index()).ok().filter(|index| *index < 6);
    let index = index.ok_or_else(|| {
        Error::new(format!("{} is no argument of a system call", arg.index()))
            .at(format!("args/{i}/index"))
            .with_hint("they are 0 to 5")
    })?;
    let (operator, value) = match arg.op() {
        Operator::ScmpCmpNe => (SeccompCmpOp::Ne, arg.value()),
        Operator::ScmpCmpLt => (SeccompCmpOp::Lt, arg.value()),
        Operator::ScmpCmpLe => (SeccompCmpOp::Le, arg.value()),
        Operator::ScmpCmpEq => (SeccompCmpOp::Eq, arg.value()),
        Operator::ScmpCmpGe => (SeccompCmpOp::Ge, arg.value()),
        Operator::ScmpCmpGt => (SeccompCmpOp::Gt, arg.value()),
        // The first value is the mask, the second what must be left.
        Operator::ScmpCmpMaskedEq => (SeccompCmpOp::MaskedEq(arg.value()), arg.value_two().unwrap_or(0)),
    };
    Ok(Condition { index, operator, value })
}

/// `SECCOMP_FILTER_FLAG_*` of linux/seccomp.h.
fn flags(flags: &[Flag]) -> u32 {
    flags.iter().fold(0, |bits, flag| match flag {
        // For all threads of the process: it has one when the filter is loaded.
        Flag::SeccompFilterFlagTsync => bits,
        Flag::SeccompFilterFlagLog => bits | 2,
        Flag::SeccompFilterFlagSpecAllow => bits | 4,
        // Without a listener it means nothing, and the kernel refuses it.
        Flag::SeccompFilterFlagWaitKillableRecv => bits,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn refusal(profile: Value) -> String {
        let seccomp: LinuxSeccomp = serde_json::from_value(profile).unwrap();
        Profile::new(&seccomp).unwrap_err().to_string()
    }

    const NOTIFY: &str = "SCMP_ACT_NOTIFY";

    fn notify(name: &str, listener: &str) -> Value {
        json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": listener,
               "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", "SECCOMP_FILTER_FLAG_TSYNC"],
               "syscalls": [{"names": [name], "action": NOTIFY}]})
    }

    #[test]
    fn an_agent_that_can_not_be_asked_is_refused_by_name() {
        for (profile, wanted) in [
            (
                notify("mkdir", ""),
                "/linux/seccomp/listenerPath: SCMP_ACT_NOTIFY needs an agent to ask, and none is named",
            ),
            (
                notify("write", "/x"),
                "/linux/seccomp/syscalls/0/names: SCMP_ACT_NOTIFY cannot be used for the write syscall",
            ),
            (
                json!({"defaultAction": NOTIFY, "listenerPath": "/x"}),
                "/linux/seccomp/defaultAction: SCMP_ACT_NOTIFY cannot be used as default action",
            ),
        ] {
            assert_eq!(refusal(profile), wanted);
        }
    }

    #[test]
    fn a_filter_has_a_listener_only_where_it_asks() {
        let flags = |profile: Value| {
            let seccomp: LinuxSeccomp = serde_json::from_value(profile).unwrap();
            Profile::new(&seccomp).unwrap().flags
        };
        assert_eq!(flags(notify("mkdir", "/x")), NEW_LISTENER | WAIT_KILLABLE_RECV);
        let mut silent = notify("mkdir", "/x");
        silent["syscalls"] = json!([]);
        assert_eq!(flags(silent), 0);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let rule = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
        let arg = json!([{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]);
        for (profile, wanted) in [
            (
                rule(json!({"names": ["open"], "action": "SCMP_ACT_ERRNO", "args": arg})),
                "/linux/seccomp/syscalls/0/args/0/index: 6 is no argument of a system call; they are 0 to 5",
            ),
            (
                rule(json!({"names": ["open"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096})),
                "/linux/seccomp/syscalls/0/errnoRet: errno 4096 of SCMP_ACT_ERRNO is above 4095",
            ),
            (
                rule(json!({"names": [], "action": "SCMP_ACT_ERRNO"})),
                "/linux/seccomp/syscalls/0/names: at least one name is needed",
            ),
        ] {
            assert_eq!(refusal(profile), wanted);
        }
    }

    #[test]
    fn flags_are_the_kernel_s() {
        let text =
            r#"["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]"#;
        assert_eq!(flags(&serde_json::from_str::<Vec<Flag>>(text).unwrap()), 6);
    }
}
