//! What a network answers to ADD: addresses, and how names become addresses.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::wanted::{Dns, is_word};

/// The parts of a result that are used here; it is passed on to plugins as it came.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Answer {
    #[serde(deserialize_with = "or_none")]
    ips: Vec<Ip>,
    #[serde(deserialize_with = "or_none")]
    pub(crate) dns: Told,
}

#[derive(Debug, Deserialize)]
struct Ip {
    address: String,
}

/// What a network says of names: more than is known here, and nothing of it checked by who said it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Told {
    #[serde(deserialize_with = "or_none")]
    nameservers: Vec<String>,
    #[serde(deserialize_with = "or_none")]
    domain: String,
    #[serde(deserialize_with = "or_none")]
    search: Vec<String>,
    #[serde(deserialize_with = "or_none")]
    options: Vec<String>,
}

/// Nothing where it is null: plugins write what they have not like that, too.
fn or_none<'d, T: Default + Deserialize<'d>, D: Deserializer<'d>>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

impl Told {
    /// What of it can stand in resolv.conf(5).
    pub(crate) fn understood(&self) -> Dns {
        let words = |words: &[String]| words.iter().filter(|word| is_word(word)).cloned().collect();
        let is_address = |server: &&String| server.parse::<IpAddr>().is_ok();
        Dns {
            nameservers: self.nameservers.iter().filter(is_address).cloned().collect(),
            domain: Some(&self.domain).filter(|domain| is_word(domain)).cloned().unwrap_or_default(),
            search: words(&self.search),
            options: words(&self.options),
        }
    }
}

impl Answer {
    /// What `result` says.
    ///
    /// # Errors
    /// Where it is no result of CNI's.
    pub(crate) fn parse(result: &Value) -> Result<Self, serde_json::Error> {
        Self::deserialize(result)
    }

    /// What can be understood of `result`, which was looked at when it came.
    pub(crate) fn of(result: &Value) -> Self {
        Self::parse(result).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_null_takes_nothing_else_away() {
        let ips = json!([{"address": "10.0.0.1/8"}]);
        for dns in [json!(null), json!({"nameservers": null, "search": null, "more": 1})] {
            let answer = Answer::parse(&json!({"ips": ips, "dns": dns})).unwrap();
            assert_eq!(answer.addresses(), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        }
        assert!(Answer::parse(&json!({"ips": null})).unwrap().addresses().is_empty());
        Answer::parse(&json!({"ips": [{"address": 7}]})).unwrap_err();
    }

    #[test]
    fn what_is_no_server_and_no_word_is_left_out() {
        let dns = json!({"nameservers": ["", "not-an-ip", "10.0.0.1"], "search": ["", "#", "lan", "a b"]});
        let dns = Answer::of(&json!({"dns": dns})).dns.understood();
        assert_eq!((dns.nameservers, dns.search), (vec!["10.0.0.1".to_owned()], vec!["lan".to_owned()]));
    }
}
