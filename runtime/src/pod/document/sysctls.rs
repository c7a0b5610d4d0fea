//! The kernel parameters of a pod: those of its own namespaces alone.

use crate::error::{Code, Error, Result};
use crate::pod::plan::Shared;
use crate::stages::plan::launch::sysctl_path;
use crate::stages::plan::namespace_checks::sysctl_kind;
use crate::stages::plan::namespaces::{clone_flag, name_of};

/// Whether the kernel parameters of a pod are its own. One that no namespace of the pod holds would be the host's.
///
/// # Errors
/// `InvalidSpec` with the JSON pointer of the first that is not.
pub fn check_sysctls(shared: &Shared) -> Result<()> {
    for (index, (name, value)) in shared.sysctls.iter().enumerate() {
        let field = format!("/spec/securityContext/sysctls/{index}: {name:?}");
        let flag = clone_flag(sysctl_kind(&field, name, value)?);
        let wrong = |why: String| Error::new(Code::InvalidSpec, format!("{field} {why}"));
        if sysctl_path(name) == "kernel/hostname" {
            return Err(
                wrong("is /spec/hostname by another name".to_owned()).hint("set /spec/hostname instead")
            );
        }
        if !shared.namespaces.iter().any(|kind| kind.flag() == flag) {
            let why = format!("would be the host's: the pod has no {} namespace of its own", name_of(flag));
            return Err(wrong(why).hint("set it on the host"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::pod::document::parse;

    fn parsed(name: &str, more: &str) -> Result<(), String> {
        let sysctls = format!("  securityContext: {{sysctls: [{{name: '{name}', value: '1'}}]}}\n");
        let spec = format!("{sysctls}  containers: [{{name: a, image: i}}]\n{more}");
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n{spec}");
        parse(text.as_bytes()).map(drop).map_err(|e| e.to_string())
    }

    #[test]
    fn kernel_parameters_of_the_pods_own_namespaces_are_taken() {
        for (name, more) in [
            ("net.ipv4.ip_forward", ""),
            ("net/ipv4/ip_forward", "  hostIPC: true\n"),
            ("kernel.shm_rmid_forced", "  hostNetwork: true\n"),
            ("user.max_net_namespaces", "  hostUsers: false\n"),
        ] {
            parsed(name, more).unwrap();
        }
    }

    #[test]
    fn kernel_parameters_of_the_host_and_paths_to_elsewhere_are_refused_by_their_pointer() {
        for (name, more, words) in [
            ("kernel/../../../tmp/x", "", "is malformed"),
            ("kernel/../vm/stat_interval", "", "is malformed"),
            ("/etc/passwd", "", "is malformed"),
            ("vm.stat_interval", "", "belongs to no namespace"),
            ("kernel.core_pattern", "", "belongs to no namespace"),
            ("kernel.hostname", "", "is /spec/hostname by another name"),
            ("net.ipv4.ip_forward", "  hostNetwork: true\n", "would be the host's: the pod has no network"),
            ("kernel.shmmax", "  hostIPC: true\n", "would be the host's: the pod has no ipc"),
            ("user.max_net_namespaces", "", "would be the host's: the pod has no user"),
        ] {
            let error = parsed(name, more).unwrap_err();
            let start = format!("/spec/securityContext/sysctls/0: {name:?} {words}");
            assert!(error.starts_with(&start), "{error}");
        }
    }
}
