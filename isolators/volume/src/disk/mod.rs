//! How much the files of a container may take: its root, and each directory of the host that it has mounted.
//!
//! `disk/quota` has the file system keep it, where that knows project quotas: a writer gets `EDQUOT`, or `ENOSPC`. Where it does not,
//! `disk/du` adds up what there is, again and again, and a container beyond its limit is ended.

mod du;
mod quota;
mod record;
mod walk;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coracle_isolator::{Error, Result, pointer};
use coracle_sys::file::{self, CWD};
use coracle_sys::mount;
use oci_spec::runtime::Spec;

pub(crate) use du::DiskUsage;
pub(crate) use quota::DiskQuota;

use crate::failed;

/// The annotation with the limits: a size for the root, or a document of sizes by destination: `{"/": "1g", "/data": "64m"}`.
pub const ANNOTATION: &str = "io.coracle.disk";

/// Where is kept who has which limit.
const STATE: &str = "/var/lib/coracle/disk";

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl Size {
    /// Bytes, or with k, m, g or t at the end that many times 1024.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match &text[digits.len()..].to_ascii_lowercase()[..] {
            "" => 0,
            "k" => 10,
            "m" => 20,
            "g" => 30,
            "t" => 40,
            _ => return None,
        };
        digits.parse::<u64>().ok()?.checked_mul(1 << shift).map(Self)
    }
}

/// The limits that the annotation of a container names, by destination.
fn wanted(spec: &Spec) -> Result<BTreeMap<String, u64>> {
    let annotations = spec.annotations().as_ref();
    let Some(text) = annotations.and_then(|all| all.get(ANNOTATION)) else { return Ok(BTreeMap::new()) };
    let at = |e: Error| e.at(pointer("/annotations", ANNOTATION));
    let size = |text: &str| match Size::parse(text) {
        Some(Size(bytes)) if bytes > 0 => Ok(bytes),
        _ => Err(at(Error::new(format!("{text:?} is no size")).with_hint("write bytes, or 64k, 64m, 1g"))),
    };
    if !text.trim_start().starts_with('{') {
        return Ok([("/".to_owned(), size(text)?)].into());
    }
    let sizes: BTreeMap<String, String> =
        serde_json::from_str(text).map_err(|e| at(Error::new(format!("it is no document of sizes: {e}"))))?;
    let known = |destination: &str| {
        let mounts = spec.mounts().as_deref().unwrap_or_default();
        destination == "/" || mounts.iter().any(|mount| mount.destination() == Path::new(destination))
    };
    if let Some(unknown) = sizes.keys().find(|destination| !known(destination)) {
        return Err(at(Error::new(format!("nothing is mounted at {unknown:?}"))));
    }
    sizes.into_iter().map(|(destination, text)| Ok((destination, size(&text)?))).collect()
}

/// The directories of the host that hold the files at `destination`, in a container of the final specification `spec` whose
/// bundle is `bundle`.
fn directories(spec: &Spec, bundle: &Path, destination: &str) -> Result<Vec<PathBuf>> {
    let at = |why: String| Error::new(why).at(pointer("/annotations", ANNOTATION));
    if destination == "/" {
        let root = spec.root().as_ref().map(|root| bundle.join(root.path()));
        let root = root.ok_or_else(|| at("the container has no root".to_owned()))?;
        return Ok(written_by_overlay(&root)?.unwrap_or_else(|| vec![root]));
    }
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let found = mounts.iter().rev().find(|mount| mount.destination() == Path::new(destination));
    let is_bind = |options: &Vec<String>| options.iter().any(|option| option == "bind" || option == "rbind");
    let source = found.filter(|mount| {
        mount.typ().as_deref() == Some("bind") || mount.options().as_ref().is_some_and(is_bind)
    });
    let source = source.and_then(|mount| mount.source().clone());
    source
        .map(|path| vec![lasting(path)])
        .ok_or_else(|| at(format!("what is mounted at {destination:?} is no directory of the host")))
}

/// What the path `path` leads to, where it names an open file of who launches the container and will soon be another's.
fn lasting(path: PathBuf) -> PathBuf {
    if !path.starts_with("/proc") {
        return path;
    }
    file::read_link(CWD, &path).map_or(path, PathBuf::from)
}

/// Where the overlay that is mounted at `root` writes, if one is.
fn written_by_overlay(root: &Path) -> Result<Option<Vec<PathBuf>>> {
    let table = mount::table().map_err(failed)?;
    let last = table.iter().rfind(|line| line.path == root).filter(|line| line.fstype == "overlay");
    let of = |name: &str| last.and_then(|line| line.option(name)).map(PathBuf::from);
    // Files are made in the one and renamed into the other: both are of one project.
    Ok(of("upperdir").map(|upper| std::iter::once(upper).chain(of("workdir")).collect()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn limits(annotation: &str) -> Result<BTreeMap<String, u64>> {
        let spec = json!({"ociVersion": "1.2.0", "annotations": {ANNOTATION: annotation},
            "mounts": [{"destination": "/data", "type": "bind", "source": "/srv"}]});
        wanted(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn a_size_is_of_the_root_and_a_document_of_what_is_mounted() {
        assert_eq!(limits("64m").unwrap(), [("/".to_owned(), 64 << 20)].into());
        assert_eq!(limits(r#"{"/data": "1g"}"#).unwrap(), [("/data".to_owned(), 1 << 30)].into());
        for (text, words) in [
            ("lots", "\"lots\" is no size; write bytes"),
            ("0", "\"0\" is no size"),
            (r#"{"/other": "1g"}"#, "nothing is mounted at \"/other\""),
            ("{", "it is no document of sizes"),
        ] {
            let error = limits(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("/annotations/io.coracle.disk: {words}")), "{error}");
        }
    }
}
