//! How images are shown: as a table for people, as JSON for programs.

use std::fmt::Write;
use std::str::FromStr;

use coracle_image::Result;
use coracle_image::image::Image;
use coracle_image::space::{Amount, Usage};
use coracle_image::store::Store;
use serde_json::{Value, json};

/// How something is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            _ => Err("a format is table or json".to_owned()),
        }
    }
}

/// All images of the store. One whose documents are damaged is shown with what is known of it.
pub(crate) fn list(store: &Store, format: Format) -> Result<String> {
    let mut rows = Vec::new();
    for entry in store.entries()? {
        let digest = entry.descriptor.digest().to_string();
        rows.push(match store.image(&digest) {
            Ok(image) => json!({
                "reference": entry.reference,
                "digest": digest,
                "size": image.size(),
                "layers": image.layers.len(),
                "unpacked": image.layers.iter().all(|l| store.unpacked(l).is_some()),
            }),
            Err(error) => {
                json!({ "reference": entry.reference, "digest": digest, "error": error.to_string() })
            }
        });
    }
    if format == Format::Json {
        return Ok(format!("{:#}\n", Value::from(rows)));
    }
    let mut table = vec![["REFERENCE", "DIGEST", "SIZE", "LAYERS", "UNPACKED"].map(str::to_owned)];
    table.extend(rows.iter().map(row));
    Ok(columns(&table))
}

fn row(image: &Value) -> [String; 5] {
    let text = |key: &str| image[key].as_str().unwrap_or_default().to_owned();
    let short: String = text("digest").chars().take("sha256:".len() + 12).collect();
    if image["error"].is_string() {
        return [text("reference"), short, "damaged".to_owned(), "-".to_owned(), "-".to_owned()];
    }
    let unpacked = if image["unpacked"] == json!(true) { "yes" } else { "no" };
    let size = bytes(image["size"].as_u64().unwrap_or_default());
    [text("reference"), short, size, image["layers"].to_string(), unpacked.to_owned()]
}

/// One image.
pub(crate) fn inspect(store: &Store, image: &Image, format: Format) -> Result<String> {
    let layers: Vec<Value> = image
        .layers
        .iter()
        .map(|layer| {
            let name = store.unpacked(layer);
            let verity = name.as_ref().and_then(|name| store.verity(name).ok().flatten());
            let path = name.map(|name| store.path().join("layers").join(name));
            json!({
                "digest": layer.digest,
                "size": layer.size,
                "diffId": layer.diff_id,
                "chainId": layer.chain_id,
                "path": path,
                "verity": verity,
            })
        })
        .collect();
    if format == Format::Json {
        let shown = json!({
            "reference": image.reference,
            "digest": image.digest,
            "size": image.size(),
            "layers": layers,
            "manifest": image.manifest,
            "config": image.config,
        });
        return Ok(format!("{shown:#}\n"));
    }
    let mut table: Vec<[String; 3]> = vec![
        ["REFERENCE".to_owned(), image.reference.clone(), String::new()],
        ["DIGEST".to_owned(), image.digest.to_string(), String::new()],
        [
            "PLATFORM".to_owned(),
            plain(&format!("{}/{}", image.config.os(), image.config.architecture())),
            String::new(),
        ],
    ];
    table.extend(layers.iter().map(|layer| {
        let state = if layer["path"].is_string() { "unpacked" } else { "packed" };
        let size = bytes(layer["size"].as_u64().unwrap_or_default());
        [
            "LAYER".to_owned(),
            layer["diffId"].as_str().unwrap_or_default().to_owned(),
            format!("{size} {state}"),
        ]
    }));
    Ok(columns(&table))
}

/// How an image was made, the last step first.
pub(crate) fn history(image: &Image) -> String {
    let mut sizes = image.layers.iter().map(|layer| bytes(layer.size));
    let mut rows = Vec::new();
    for step in image.config.history().iter().flatten() {
        let is_empty = step.empty_layer().unwrap_or(false);
        let size = if is_empty { "-".to_owned() } else { sizes.next().unwrap_or_else(|| "?".to_owned()) };
        let text = step.created_by().as_deref().or(step.comment().as_deref()).unwrap_or_default();
        rows.push([plain(step.created().as_deref().unwrap_or("-")), size, plain(text)]);
    }
    rows.push(["CREATED", "SIZE", "BY"].map(str::to_owned));
    rows.reverse();
    columns(&rows)
}

/// What an image says, without what a terminal could take for commands.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// How much the store holds.
pub(crate) fn usage(usage: &Usage, format: Format) -> String {
    let kinds = [("blobs", usage.blobs), ("layers", usage.layers), ("partial", usage.partial)];
    if format == Format::Json {
        let of = |amount: &Amount| json!({ "count": amount.count, "bytes": amount.bytes, "unused": amount.unused });
        let all: serde_json::Map<String, Value> =
            kinds.iter().map(|(k, a)| ((*k).to_owned(), of(a))).collect();
        return format!("{:#}\n", Value::from(all));
    }
    let mut rows = vec![["KIND", "COUNT", "SIZE", "UNUSED"].map(str::to_owned)];
    rows.extend(kinds.map(|(k, a)| [k.to_owned(), a.count.to_string(), bytes(a.bytes), bytes(a.unused)]));
    columns(&rows)
}

/// A table with each column as wide as its widest cell.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        // Writing to a string can't fail.
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

/// A size for people.
fn bytes(size: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (size as f64, 0);
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{size} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_by_people() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(3_600_000), "3.6 MB");
    }

    #[test]
    fn nothing_of_an_image_commands_a_terminal() {
        let config = serde_json::json!({
            "architecture": "\u{1b}[2J", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] },
            "history": [{ "created": "\u{1b}]0;x\u{7}", "created_by": "a\nb", "empty_layer": true }],
        });
        let digest = format!("sha256:{}", "0".repeat(64));
        let manifest = serde_json::json!({
            "schemaVersion": 2, "layers": [],
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": 1 },
        });
        let image = Image {
            reference: "image".to_owned(),
            digest: digest.parse().unwrap(),
            manifest: serde_json::from_value(manifest).unwrap(),
            config: serde_json::from_value(config).unwrap(),
            layers: Vec::new(),
        };
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(scratch.path()).unwrap();
        let shown = [history(&image), inspect(&store, &image, Format::Table).unwrap()].concat();
        assert!(shown.chars().all(|c| !c.is_control() || c == '\n'), "{shown:?}");
        assert!(shown.contains("a b"), "{shown:?}");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["A", "B"], ["long", "x"]].map(|row| row.map(str::to_owned));
        assert_eq!(columns(&rows), "A     B\nlong  x\n");
    }
}
