//! References: the names of images in registries, read as Docker reads them (distribution/reference).
//!
//! ```text
//! [HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]
//! ```
//!
//! The part before the first slash is a host where it has a dot, a colon or an upper-case letter, or is `localhost`;
//! without one it is `docker.io`, where a repository without a slash is in `library/`. Without a tag or digest the tag
//! is `latest`.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::{Error, Kind, Result};

/// The host of images whose name has none.
const DEFAULT_HOST: &str = "docker.io";
/// Repositories of the default host that belong to nobody in particular.
const DEFAULT_NAMESPACE: &str = "library/";
/// No repository's name, with its host, may be longer.
const NAME_LIMIT: usize = 255;

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry's name, with its port where one is given: `docker.io`, `localhost:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository, such as `library/alpine`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The same image by its digest.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// What the registry is asked for: the digest where one is given, else the tag.
    pub fn wanted(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// The digest of what is wanted, where one is given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.digest.is_some() { '@' } else { ':' };
        write!(f, "{}/{}{separator}{}", self.host, self.repository, self.wanted())
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            let hint = "one looks like [HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]";
            Error::new(Kind::Usage, format!("{text:?} is no reference of a registry's image: {why}"))
                .hint(hint)
        };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (host, path) = match rest.split_once('/') {
            Some((first, path)) if is_host(first) => (first, path),
            _ => (DEFAULT_HOST, rest),
        };
        let (path, tag) = match path.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (path, None),
        };
        let host = if host == "index.docker.io" { DEFAULT_HOST } else { host };
        let namespace = if host == DEFAULT_HOST && !path.contains('/') { DEFAULT_NAMESPACE } else { "" };
        let repository = format!("{namespace}{path}");
        check_host(host).map_err(bad)?;
        if repository.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad("a repository is lower case"));
        }
        if !repository.split('/').all(is_component) {
            return Err(bad("a repository is made of letters, digits, and single . _ - between them"));
        }
        if host.len() + repository.len() >= NAME_LIMIT {
            return Err(bad("it is longer than 255 characters"));
        }
        if !tag.is_none_or(is_tag) {
            return Err(bad("a tag is made of letters, digits, and . _ -, at most 128 of them"));
        }
        Ok(Self { host: host.to_owned(), repository, tag: tag.map(str::to_owned), digest })
    }
}

fn is_host(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase())
}

/// Refuses what is no host with or without a port: it becomes part of an address and of a file's path.
fn check_host(host: &str) -> std::result::Result<(), &'static str> {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err("its host is no IPv6 address");
            }
            ("ipv6", rest.strip_prefix(':').or((!rest.is_empty()).then_some("")))
        }
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let is_label = |label: &str| {
        let plain = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        plain && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    if !name.split('.').all(is_label) {
        return Err("its host is none");
    }
    let is_port = |port: &str| port.parse::<u16>().is_ok() && port.bytes().all(|b| b.is_ascii_digit());
    if port.is_none_or(is_port) { Ok(()) } else { Err("its port is none") }
}

/// Letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn is_component(component: &str) -> bool {
    let bytes = component.as_bytes();
    let is_plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !bytes.first().is_some_and(is_plain) || !bytes.last().is_some_and(is_plain) {
        return false;
    }
    let is_separator =
        |run: &str| run.is_empty() || matches!(run, "." | "_" | "__") || run.bytes().all(|b| b == b'-');
    component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).all(is_separator)
}

fn is_tag(tag: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let rest = |b: u8| is_word(b) || matches!(b, b'.' | b'-');
    tag.len() <= 128 && tag.bytes().next().is_some_and(is_word) && tag.bytes().all(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn full(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn names_are_completed_as_docker_completes_them() {
        for (short, long) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.22", "docker.io/library/alpine:3.22"),
            ("grafana/grafana", "docker.io/grafana/grafana:latest"),
            ("index.docker.io/alpine", "docker.io/library/alpine:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a/b:1", "localhost:5000/a/b:1"),
            ("Host/a", "Host/a:latest"),
            ("ghcr.io/a__b/c-d--e.f:X_1.2-3", "ghcr.io/a__b/c-d--e.f:X_1.2-3"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ] {
            assert_eq!(full(short), long);
        }
    }

    #[test]
    fn a_digest_goes_before_a_tag() {
        assert_eq!(full(&format!("alpine:3@{DIGEST}")), format!("docker.io/library/alpine@{DIGEST}"));
        assert_eq!(format!("alpine@{DIGEST}").parse::<Reference>().unwrap().wanted(), DIGEST);
    }

    #[test]
    fn what_could_become_another_path_or_address_is_refused() {
        let long = format!("a/{}", "b".repeat(300));
        for bad in [
            "",
            "/",
            "a//b",
            "../a",
            "a/..",
            "a/.b",
            "a/b.",
            "a..b",
            "a___b",
            "-a",
            "a b",
            "a/B",
            "a:",
            "a:.x",
            "h.x:99999/a",
            "h.x:+1/a",
            "h.x:/a",
            "u@h.x/a",
            "h.x/a?b",
            "h.x/a#b",
            "a%2fb",
            "h..x/a",
            "[::g]/a",
            "[::1]x/a",
            "-h.x/a",
            "a@sha256:../../x",
            "a@sha512:00",
            &long,
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?} was accepted");
        }
        assert!("a:".parse::<Reference>().unwrap_err().to_string().contains("a tag is made of"));
    }
}
