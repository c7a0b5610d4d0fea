//! Platforms: which image of an index is for which machine.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::{Arch, Descriptor, ImageIndex};

use crate::error::{Error, Kind, Result};

/// An operating system, an architecture as Go names it, and its variant where there are several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// That of this machine.
    pub fn here() -> Self {
        Self { os: "linux".to_owned(), architecture: Arch::default().to_string(), variant: None }
    }

    /// How well an image fits, the lower the better; none where it is for others. One that doesn't say is for any, and the last
    /// to be taken. What a later amd64 needs (`v2` and up) is only taken where it is asked for: others die of it.
    pub(crate) fn rank(&self, descriptor: &Descriptor) -> Option<u8> {
        let Some(platform) = descriptor.platform() else { return Some(3) };
        let architecture = platform.architecture().to_string();
        if platform.os().to_string() != self.os || architecture != self.architecture {
            return None;
        }
        let wanted = plain_variant(&architecture, self.variant.as_deref());
        match (wanted, plain_variant(&architecture, platform.variant().as_deref())) {
            (wanted, found) if wanted == found => Some(0),
            (Some(_), None) => Some(1),
            (None, Some(_)) if architecture != "amd64" => Some(2),
            _ => None,
        }
    }

    /// The manifest of an index that fits best, the first of several.
    pub(crate) fn choose<'a>(&self, index: &'a ImageIndex) -> Result<&'a Descriptor> {
        let ranked = index.manifests().iter().filter_map(|d| Some((self.rank(d)?, d)));
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, descriptor)| descriptor).ok_or_else(|| {
            let platforms = index.manifests().iter().filter_map(|d| d.platform().as_ref());
            let shown = platforms.map(|p| {
                let variant = p.variant().as_ref().map_or_else(String::new, |variant| format!("/{variant}"));
                // The index could say anything, to a terminal, too.
                format!("{}/{}{variant}", p.os(), p.architecture()).escape_debug().to_string()
            });
            let shown = shown.collect::<Vec<_>>().join(", ");
            Error::new(Kind::NotFound, format!("no manifest is for {self}, only for {shown}"))
        })
    }
}

/// A variant, but for those that say no more than their architecture.
fn plain_variant<'a>(architecture: &str, variant: Option<&'a str>) -> Option<&'a str> {
    variant.filter(|variant| !matches!((architecture, *variant), ("amd64", "v1") | ("arm64", "v8") | (_, "")))
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => return Err("a platform is OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT".to_owned()),
        };
        Ok(Self { os: os.to_owned(), architecture: architecture.to_owned(), variant })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The place of what is chosen from an index with these platforms.
    fn chosen(wanted: &str, listed: &[&str]) -> Option<usize> {
        let manifests = listed.iter().enumerate().map(|(place, platform)| {
            let digest = crate::digest::Digest::of(platform.as_bytes());
            let mut manifest = serde_json::json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": place,
            });
            let parts: Vec<&str> = platform.split('/').collect();
            if let [os, architecture, variant @ ..] = &parts[..] {
                manifest["platform"] = serde_json::json!({ "os": os, "architecture": architecture });
                variant.iter().for_each(|variant| manifest["platform"]["variant"] = (*variant).into());
            }
            manifest
        });
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": manifests.collect::<Vec<_>>() });
        let index = serde_json::from_value(index).unwrap();
        let wanted: Platform = wanted.parse().unwrap();
        wanted.choose(&index).ok().map(|descriptor| descriptor.size() as usize)
    }

    #[test]
    fn what_a_later_processor_needs_is_only_taken_where_it_is_asked_for() {
        assert_eq!(chosen("linux/amd64", &["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"]), Some(2));
        assert_eq!(chosen("linux/amd64", &["linux/amd64/v2"]), None);
        assert_eq!(chosen("linux/amd64/v2", &["linux/amd64", "linux/amd64/v2"]), Some(1));
        assert_eq!(chosen("linux/amd64/v3", &["linux/amd64/v2", "linux/amd64"]), Some(1));
        assert_eq!(chosen("linux/arm", &["linux/arm64", "linux/arm/v6"]), Some(1));
    }

    #[test]
    fn variants_that_say_no_more_than_their_architecture_are_none() {
        assert_eq!(chosen("linux/arm64/v8", &["linux/amd64", "linux/arm64"]), Some(1));
        assert_eq!(chosen("linux/arm64", &["linux/arm64/v8"]), Some(0));
        assert_eq!(chosen("linux/amd64/v1", &["linux/amd64"]), Some(0));
        assert_eq!(chosen("linux/arm/v7", &["linux/arm/v6"]), None);
    }

    #[test]
    fn one_that_does_not_say_is_the_last_to_be_taken() {
        assert_eq!(chosen("linux/amd64", &["?", "linux/amd64"]), Some(1));
        assert_eq!(chosen("linux/amd64", &["linux/s390x", "?"]), Some(1));
    }
}
