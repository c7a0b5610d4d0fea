//! A driver's node service.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_isolator::{Error, Result};
use prost::Message;

use crate::client;
use crate::messages::{
    Capabilities, CapacityRange, Count, Counted, Empty, Expand, Expanded, ProbeResponse, Publish, Stage,
    Unpublish, Unstage, VolumeCapability,
};

/// A driver.
#[derive(Debug)]
pub(crate) struct Node {
    name: String,
    socket: PathBuf,
    deadline: Instant,
}

/// What every call on a volume says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About<'a> {
    pub(crate) volume: &'a str,
    pub(crate) staging: &'a str,
    pub(crate) capability: &'a VolumeCapability,
    pub(crate) context: &'a BTreeMap<String, String>,
    pub(crate) publish_context: &'a BTreeMap<String, String>,
    pub(crate) secrets: &'a BTreeMap<String, String>,
}

impl Node {
    /// The driver `name`, which listens at `socket` and has `seconds` from now on.
    pub(crate) fn new(name: &str, socket: &Path, seconds: f64) -> Result<Self> {
        let deadline = Instant::now() + Duration::from_secs_f64(seconds);
        Ok(Self { name: name.to_owned(), socket: socket.to_owned(), deadline })
    }

    fn call<A: Message + Default>(&self, service: &str, method: &str, request: &impl Message) -> Result<A> {
        let path = format!("/csi.v1.{service}/{method}");
        client::call(&self.socket, &path, request, self.deadline)
            .map_err(|failure| Error::new(format!("driver {:?} could not {method}: {failure}", self.name)))
    }

    /// What it can do, once it is ready.
    pub(crate) fn capabilities(&self) -> Result<Vec<i32>> {
        let probed: ProbeResponse = self.call("Identity", "Probe", &Empty {})?;
        if probed.ready.is_some_and(|ready| !ready.value) {
            return Err(Error::new(format!("driver {:?} is not ready", self.name)));
        }
        let told: Capabilities = self.call("Node", "NodeGetCapabilities", &Empty {})?;
        Ok(told.capabilities.into_iter().filter_map(|one| one.rpc).map(|rpc| rpc.kind).collect())
    }

    pub(crate) fn stage(&self, about: About<'_>) -> Result<()> {
        let request = Stage {
            volume_id: about.volume.to_owned(),
            publish_context: about.publish_context.clone(),
            staging_target_path: about.staging.to_owned(),
            volume_capability: Some(about.capability.clone()),
            secrets: about.secrets.clone(),
            volume_context: about.context.clone(),
        };
        self.call::<Empty>("Node", "NodeStageVolume", &request).map(drop)
    }

    pub(crate) fn unstage(&self, volume: &str, staging: &str) -> Result<()> {
        let request = Unstage { volume_id: volume.to_owned(), staging_target_path: staging.to_owned() };
        self.call::<Empty>("Node", "NodeUnstageVolume", &request).map(drop)
    }

    pub(crate) fn publish(&self, about: About<'_>, target: &str, readonly: bool) -> Result<()> {
        let request = Publish {
            volume_id: about.volume.to_owned(),
            publish_context: about.publish_context.clone(),
            staging_target_path: about.staging.to_owned(),
            target_path: target.to_owned(),
            volume_capability: Some(about.capability.clone()),
            readonly,
            secrets: about.secrets.clone(),
            volume_context: about.context.clone(),
        };
        self.call::<Empty>("Node", "NodePublishVolume", &request).map(drop)
    }

    pub(crate) fn unpublish(&self, volume: &str, target: &str) -> Result<()> {
        let request = Unpublish { volume_id: volume.to_owned(), target_path: target.to_owned() };
        self.call::<Empty>("Node", "NodeUnpublishVolume", &request).map(drop)
    }

    pub(crate) fn expand(&self, about: About<'_>, path: &str, bytes: i64) -> Result<i64> {
        let request = Expand {
            volume_id: about.volume.to_owned(),
            volume_path: path.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: bytes }),
            staging_target_path: about.staging.to_owned(),
            volume_capability: Some(about.capability.clone()),
            secrets: about.secrets.clone(),
        };
        self.call::<Expanded>("Node", "NodeExpandVolume", &request).map(|expanded| expanded.capacity_bytes)
    }

    /// Bytes and inodes: used and in all.
    pub(crate) fn count(&self, volume: &str, path: &str, staging: &str) -> Result<Counted> {
        let request = Count {
            volume_id: volume.to_owned(),
            volume_path: path.to_owned(),
            staging_target_path: staging.to_owned(),
        };
        self.call("Node", "NodeGetVolumeStats", &request)
    }
}
