//! Registries (distribution-spec 1.1): images by tag or digest, in and out.
//!
//! A [`reference`](crate::reference) names a registry; `hosts` says where that is asked, `transport` connects, `client`
//! asks and authenticates (`challenge`, `token`, `credentials`), `fetch` brings documents and the missing bytes of blobs
//! into files that grow (`part`), and `pull` makes an image of the store of them. Whatever comes is digested before it has
//! a name. Secrets are of a type that nothing can show, addresses are shown without their query, and neither ever goes to
//! another origin than the one that it is for.

mod challenge;
mod client;
mod credentials;
mod fetch;
mod hosts;
mod list;
mod part;
mod pull;
mod push;
mod refusal;
mod repair;
mod report;
mod secret;
mod token;
mod transport;

/// What reads headers.
#[cfg(feature = "fuzz")]
pub(crate) mod parsers {
    pub(crate) use super::challenge::parse as parse_challenge;
    pub(crate) use super::fetch::parse_range;
    pub(crate) use super::refusal::parse_retry;
}

use std::path::PathBuf;
use std::time::Duration;

pub use list::{search, tags};
pub use pull::{Pulled, pull};
pub use push::push;
pub use repair::repair;
pub use report::{Event, Report, Silent};

use crate::error::Result;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::unpack::Options;
use client::Client;
use report::Watch;

/// How registries are talked to.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Files of credentials, the first that knows any counts.
    pub auth_files: Vec<PathBuf>,
    /// Directories with a `hosts.toml` for each registry.
    pub hosts: Vec<PathBuf>,
    /// Registries that are reached over plain HTTP.
    pub plain_http: Vec<String>,
    /// Which image of an index.
    pub platform: Platform,
    /// Transfers at once, in all.
    pub parallel: usize,
    /// Transfers at once with one host.
    pub per_host: usize,
    /// How long a connection may be silent.
    pub patience: Duration,
    /// Whether layers are unpacked while they come.
    pub unpack: bool,
    /// What each of them may cost.
    pub options: Options,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            auth_files: credentials::default_files(),
            hosts: hosts::default_directories(),
            plain_http: Vec::new(),
            platform: Platform::here(),
            parallel: 6,
            per_host: 4,
            patience: Duration::from_secs(30),
            unpack: true,
            options: Options::default(),
        }
    }
}

/// A client for each address of an image's registry, in the order of trying them.
fn clients<'a>(
    reference: &'a Reference,
    settings: &'a Settings,
    watch: Watch<'a>,
) -> Result<Vec<Client<'a>>> {
    let endpoints = hosts::endpoints(&settings.hosts, reference.host(), &settings.plain_http)?;
    Ok(endpoints.into_iter().map(|endpoint| Client::new(endpoint, settings, reference, watch)).collect())
}
