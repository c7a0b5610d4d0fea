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

    /// Whether an image is for it; one that doesn't say is for any.
    pub(crate) fn fits(&self, descriptor: &Descriptor) -> bool {
        descriptor.platform().as_ref().is_none_or(|p| {
            let variant = self.variant.is_none() || self.variant == *p.variant();
            p.os().to_string() == self.os && p.architecture().to_string() == self.architecture && variant
        })
    }

    /// The manifest of an index that is for it.
    pub(crate) fn choose<'a>(&self, index: &'a ImageIndex) -> Result<&'a Descriptor> {
        index.manifests().iter().find(|d| self.fits(d)).ok_or_else(|| {
            let platforms = index.manifests().iter().filter_map(|d| d.platform().as_ref());
            let shown: Vec<String> = platforms.map(|p| format!("{}/{}", p.os(), p.architecture())).collect();
            Error::new(Kind::NotFound, format!("no manifest is for {self}, only for {}", shown.join(", ")))
        })
    }
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
