//! A device node that an isolator adds to a container.

use std::os::fd::AsFd;
use std::path::PathBuf;

use coracle_isolator::{Error, LinuxAdjustment, Result};
use coracle_sys::file::{self, CWD, Resolve};
use nix::libc;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{failed, made};

/// A device node, as documents of CDI have it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Node {
    path: PathBuf,
    host_path: Option<PathBuf>,
    r#type: Option<String>,
    major: Option<i64>,
    minor: Option<i64>,
    file_mode: Option<u32>,
    permissions: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Node {
    /// The host's device at `path`, for `access` (`rwm`).
    pub(crate) fn of_host(path: &str, access: &str) -> Self {
        Self { path: path.into(), permissions: Some(access.to_owned()), ..Self::default() }
    }

    /// Adds the device, and the rule that lets the container use it.
    ///
    /// # Errors
    /// Where it is to be as on the host, and the host has no such device.
    pub(crate) fn add(&self, adjustment: &mut LinuxAdjustment) -> Result<()> {
        let (device, rule) = self.device()?;
        adjustment.devices.push(made("device", device)?);
        if let Some(rule) = rule {
            adjustment.device_rules.push(made("rule of a device", rule)?);
        }
        Ok(())
    }

    /// The device as the specification has it, and what the container may do with it. What is left out is
    /// as on the host.
    fn device(&self) -> Result<(Value, Option<Value>)> {
        let mut device = json!({"path": self.path, "type": self.r#type, "major": self.major, "minor": self.minor,
            "fileMode": self.file_mode, "uid": self.uid, "gid": self.gid});
        if self.r#type.is_none() || (self.major.is_none() && self.r#type.as_deref() != Some("p")) {
            let source = self.host_path.as_ref().unwrap_or(&self.path);
            let opened = file::open(CWD, source, libc::O_PATH, 0, Resolve::Host).map_err(failed)?;
            let stat = file::stat(opened.as_fd()).map_err(failed)?;
            let kind = match stat.st_mode & libc::S_IFMT {
                libc::S_IFCHR => "c",
                libc::S_IFBLK => "b",
                libc::S_IFIFO => "p",
                _ => return Err(Error::new(format!("{} is no device", source.display()))),
            };
            device["type"] = json!(self.r#type.as_deref().unwrap_or(kind));
            device["major"] = json!(libc::major(stat.st_rdev));
            device["minor"] = json!(libc::minor(stat.st_rdev));
        }
        let device: Map<String, Value> = device
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, v)| !v.is_null())
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        let rule = (device["type"] != "p").then(|| {
            json!({"allow": true, "type": device["type"], "major": device.get("major"), "minor": device.get("minor"),
                "access": self.permissions.as_deref().unwrap_or("rwm")})
        });
        Ok((Value::Object(device), rule))
    }
}
