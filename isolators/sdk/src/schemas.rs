//! The JSON Schemas of the documents, in `docs/schemas`.

#![expect(clippy::disallowed_methods, reason = "tests read files of the repository")]

use std::path::Path;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema, schema_for};

use crate::{Adjustment, ConfigDocument, Limitation, States, Status, Usage};

/// What the OCI runtime specification has a schema for.
const OCI: &str = "https://raw.githubusercontent.com/opencontainers/runtime-spec/v1.3.0/schema";

pub(crate) fn spec(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"$ref": format!("{OCI}/config-schema.json")})
}

pub(crate) fn mounts(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "items": {"$ref": format!("{OCI}/defs.json#/definitions/Mount")}})
}

pub(crate) fn rlimits(_: &mut SchemaGenerator) -> Schema {
    let rlimits = format!("{OCI}/config-schema.json#/properties/process/properties/rlimits");
    json_schema!({"$ref": rlimits})
}

pub(crate) fn resources(_: &mut SchemaGenerator) -> Schema {
    let resources = format!("{OCI}/config-linux.json#/linux/properties/resources");
    json_schema!({"anyOf": [{"$ref": resources}, {"type": "null"}]})
}

pub(crate) fn hooks(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "items": {"$ref": format!("{OCI}/defs.json#/definitions/Hook")}})
}

pub(crate) fn devices(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "items": {"$ref": format!("{OCI}/defs-linux.json#/definitions/Device")}})
}

pub(crate) fn device_rules(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "items": {"$ref": format!("{OCI}/defs-linux.json#/definitions/DeviceCgroup")}})
}

pub(crate) fn scheduler(_: &mut SchemaGenerator) -> Schema {
    let scheduler = format!("{OCI}/config-schema.json#/properties/process/properties/scheduler");
    json_schema!({"anyOf": [{"$ref": scheduler}, {"type": "null"}]})
}

pub(crate) fn intel_rdt(_: &mut SchemaGenerator) -> Schema {
    let rdt = format!("{OCI}/config-linux.json#/linux/properties/intelRdt");
    json_schema!({"anyOf": [{"$ref": rdt}, {"type": "null"}]})
}

fn is_published<T: JsonSchema>(name: &str) {
    let schema = serde_json::to_string_pretty(&schema_for!(T)).unwrap() + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../docs/schemas/{name}.schema.json"));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &schema).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(kept == schema, "docs/schemas is stale: UPDATE=1 cargo test -p coracle-isolator makes it anew");
}

#[test]
fn each_document_has_its_schema() {
    is_published::<ConfigDocument>("config");
    is_published::<Adjustment>("adjustment");
    is_published::<Limitation>("limitation");
    is_published::<Usage>("usage");
    is_published::<Status>("status");
    is_published::<States>("states");
}
