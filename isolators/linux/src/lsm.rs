//! `linux/lsm`: refuses labels of security modules that this kernel doesn't run.

use coracle_isolator::{Adjustment, Config, Error, Isolator, Result};
use coracle_sys::file::{self, CWD, Resolve};

/// Looks after `process.apparmorProfile`, `process.selinuxLabel` and `linux.mountLabel`: a container that asks for a
/// label must get it or not be made. The child writes the labels itself, since nobody else can.
#[derive(Debug)]
pub struct Lsm;

impl Isolator for Lsm {
    fn name(&self) -> &str {
        "linux/lsm"
    }

    fn prepare(&self, config: &Config<'_>) -> Result<Adjustment> {
        let label = config.spec.linux().as_ref().and_then(|linux| linux.mount_label().as_deref());
        needs_selinux(label).map_err(|e| e.at("/linux/mountLabel"))?;
        Ok(Adjustment::default())
    }

    fn process(&self, config: &Config<'_>) -> Result<Adjustment> {
        let Some(process) = config.spec.process() else { return Ok(Adjustment::default()) };
        needs_apparmor(process.apparmor_profile().as_deref())
            .map_err(|e| e.at("/process/apparmorProfile"))?;
        needs_selinux(process.selinux_label().as_deref()).map_err(|e| e.at("/process/selinuxLabel"))?;
        Ok(Adjustment::default())
    }
}

fn needs_apparmor(profile: Option<&str>) -> Result<()> {
    match asked(profile)? {
        Some(_) if !has_apparmor() => {
            Err(Error::new("apparmor failed to apply profile: it is disabled or not supported")
                .with_hint("does /sys/module/apparmor/parameters/enabled say Y?"))
        }
        _ => Ok(()),
    }
}

/// In runc's words.
fn needs_selinux(label: Option<&str>) -> Result<()> {
    match asked(label)? {
        Some(_) if !has_selinux() => {
            Err(Error::new("selinux label is specified in config, but selinux is disabled or not supported")
                .with_hint("is selinuxfs mounted at /sys/fs/selinux?"))
        }
        _ => Ok(()),
    }
}

/// A label that is not empty. One with a NUL byte or a line's end would not reach the kernel as it stands.
fn asked(label: Option<&str>) -> Result<Option<&str>> {
    let label = label.filter(|label| !label.is_empty());
    if label.is_some_and(|label| label.contains(['\0', '\n'])) {
        return Err(Error::new(format!("{:?} is no label", label.unwrap_or_default())));
    }
    Ok(label)
}

/// Whether AppArmor confines processes of this kernel.
pub fn has_apparmor() -> bool {
    file::read(CWD, "/sys/module/apparmor/parameters/enabled", 16, Resolve::Host)
        .is_ok_and(|answer| answer.first() == Some(&b'Y'))
}

/// Whether SELinux confines processes of this kernel.
pub fn has_selinux() -> bool {
    let magic =
        file::open_dir("/sys/fs/selinux").and_then(|dir| file::file_system(std::os::fd::AsFd::as_fd(&dir)));
    magic.is_ok_and(|magic| magic == SELINUX_MAGIC)
}

const SELINUX_MAGIC: file::FsType = file::FsType(0xf97c_ff8c);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_label_asks_for_nothing() {
        needs_apparmor(None).unwrap();
        needs_apparmor(Some("")).unwrap();
        needs_selinux(Some("")).unwrap();
    }

    #[test]
    fn a_label_of_several_lines_is_refused() {
        let error = needs_apparmor(Some("a\nunconfined")).unwrap_err();
        assert_eq!(error.to_string(), "\"a\\nunconfined\" is no label");
    }
}
