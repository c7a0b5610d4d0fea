//! Architectures, and the numbers that system calls have on them.

use oci_spec::runtime::Arch;

/// One calling convention of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    X86_64,
    I386,
    X32,
    Aarch64,
    Arm,
    Riscv64,
}

/// The bit that tells x32 from x86-64 system calls (arch/x86/include/uapi/asm/unistd.h).
pub(super) const X32_BIT: u32 = 0x4000_0000;

impl Architecture {
    /// The one that this program is built for.
    pub(super) fn native() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            "riscv64" => Some(Self::Riscv64),
            _ => None,
        }
    }

    /// What `arch` is on a machine whose native architecture is `native`; none where such a call can't be made.
    pub(super) fn of(arch: Arch, native: Self) -> Option<Self> {
        match (native, arch) {
            (_, Arch::ScmpArchNative) => Some(native),
            (Self::X86_64, Arch::ScmpArchX86_64) => Some(Self::X86_64),
            (Self::X86_64, Arch::ScmpArchX86) => Some(Self::I386),
            (Self::X86_64, Arch::ScmpArchX32) => Some(Self::X32),
            (Self::Aarch64, Arch::ScmpArchAarch64) => Some(Self::Aarch64),
            (Self::Aarch64, Arch::ScmpArchArm) => Some(Self::Arm),
            (Self::Riscv64, Arch::ScmpArchRiscv64) => Some(Self::Riscv64),
            _ => None,
        }
    }

    /// `AUDIT_ARCH_*` of linux/audit.h, by which a filter tells architectures apart. x32 shares x86-64's.
    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::I386 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
            Self::Riscv64 => 0xc000_00f3,
        }
    }

    /// Whether arguments are 32 bits wide, so that no more is compared.
    pub(super) fn is_narrow(self) -> bool {
        matches!(self, Self::I386 | Self::Arm)
    }

    /// The system calls with their numbers, in the numbers' order.
    pub(super) fn syscalls(self) -> Vec<(u32, &'static str)> {
        macro_rules! table {
            ($module:ident) => {
                syscalls::$module::Sysno::iter()
                    .map(|call| (call.id().cast_unsigned(), call.name()))
                    .collect()
            };
        }
        match self {
            Self::X86_64 => table!(x86_64),
            Self::I386 => table!(x86),
            Self::X32 => x32(),
            Self::Aarch64 => table!(aarch64),
            Self::Arm => table!(arm),
            Self::Riscv64 => table!(riscv64),
        }
    }

    /// System calls far beyond the table: ARM's own (arch/arm/include/uapi/asm/unistd.h).
    pub(super) fn private_syscalls(self) -> &'static [(u32, &'static str)] {
        match self {
            Self::Arm => &[(0x0f_0001, "breakpoint"), (0x0f_0002, "cacheflush"), (0x0f_0005, "set_tls")],
            _ => &[],
        }
    }

    /// The system calls that are also made through another one, which takes their number in its first argument:
    /// `(name, through, number)`. i386 alone has both (linux/net.h, linux/ipc.h).
    pub(super) fn multiplexed(self) -> &'static [(&'static str, &'static str, u64)] {
        if self == Self::I386 { MULTIPLEXED } else { &[] }
    }
}

/// x86-64's numbers, but for the calls that have x32 forms of their own (syscall_64.tbl, ABI `x32`).
fn x32() -> Vec<(u32, &'static str)> {
    let shared = Architecture::X86_64.syscalls().into_iter().filter(|(_, name)| !X32_OWN.contains(name));
    let own = (512..).zip(X32_OWN.iter().copied());
    shared.chain(own).map(|(number, name)| (number | X32_BIT, name)).collect()
}

/// The calls with x32 forms, from number 512 on.
const X32_OWN: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];

const MULTIPLEXED: &[(&str, &str, u64)] = &[
    ("socket", "socketcall", 1),
    ("bind", "socketcall", 2),
    ("connect", "socketcall", 3),
    ("listen", "socketcall", 4),
    ("accept", "socketcall", 5),
    ("getsockname", "socketcall", 6),
    ("getpeername", "socketcall", 7),
    ("socketpair", "socketcall", 8),
    ("send", "socketcall", 9),
    ("recv", "socketcall", 10),
    ("sendto", "socketcall", 11),
    ("recvfrom", "socketcall", 12),
    ("shutdown", "socketcall", 13),
    ("setsockopt", "socketcall", 14),
    ("getsockopt", "socketcall", 15),
    ("sendmsg", "socketcall", 16),
    ("recvmsg", "socketcall", 17),
    ("accept4", "socketcall", 18),
    ("recvmmsg", "socketcall", 19),
    ("sendmmsg", "socketcall", 20),
    ("semop", "ipc", 1),
    ("semget", "ipc", 2),
    ("semctl", "ipc", 3),
    ("semtimedop", "ipc", 4),
    ("msgsnd", "ipc", 11),
    ("msgrcv", "ipc", 12),
    ("msgget", "ipc", 13),
    ("msgctl", "ipc", 14),
    ("shmat", "ipc", 21),
    ("shmdt", "ipc", 22),
    ("shmget", "ipc", 23),
    ("shmctl", "ipc", 24),
];

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Architecture; 6] = [
        Architecture::X86_64,
        Architecture::I386,
        Architecture::X32,
        Architecture::Aarch64,
        Architecture::Arm,
        Architecture::Riscv64,
    ];

    #[test]
    fn numbers_ascend_and_names_are_unique() {
        for architecture in ALL {
            let calls = architecture.syscalls();
            assert!(calls.windows(2).all(|pair| pair[0].0 < pair[1].0), "{architecture:?}");
            let names: std::collections::HashSet<_> = calls.iter().map(|call| call.1).collect();
            assert_eq!(names.len(), calls.len(), "{architecture:?}");
        }
    }

    #[test]
    fn numbers_are_those_of_the_kernel_tables() {
        for (architecture, name, number) in [
            (Architecture::X86_64, "execveat", 322),
            (Architecture::I386, "socketcall", 102),
            (Architecture::X32, "read", X32_BIT),
            (Architecture::X32, "ioctl", X32_BIT | 514),
            (Architecture::X32, "pwritev2", X32_BIT | 547),
            (Architecture::Aarch64, "openat", 56),
            (Architecture::Arm, "open", 5),
        ] {
            let calls = architecture.syscalls();
            assert!(calls.contains(&(number, name)), "{architecture:?} {name}");
        }
    }

    #[test]
    fn what_another_machine_can_not_call_is_none() {
        assert_eq!(Architecture::of(Arch::ScmpArchAarch64, Architecture::X86_64), None);
        assert_eq!(Architecture::of(Arch::ScmpArchArm, Architecture::Aarch64), Some(Architecture::Arm));
    }
}
