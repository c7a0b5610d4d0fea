//! What a network answers to ADD: addresses, and how names become addresses.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use crate::wanted::Dns;

/// The parts of a result that are used here; it is passed on to plugins as it came.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Answer {
    ips: Vec<Ip>,
    pub(crate) dns: Dns,
}

#[derive(Debug, Deserialize)]
struct Ip {
    address: String,
}

impl Answer {
    /// What can be understood of `result`.
    pub(crate) fn of(result: &Value) -> Self {
        serde_json::from_value(result.clone()).unwrap_or_default()
    }

    /// The addresses, each with the length of its prefix.
    pub(crate) fn prefixes(&self) -> impl Iterator<Item = &str> {
        self.ips.iter().map(|ip| ip.address.as_str())
    }

    /// The addresses alone.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        self.prefixes().filter_map(|ip| ip.split('/').next()?.parse().ok()).collect()
    }
}
