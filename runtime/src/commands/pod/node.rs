//! `pod node`: the tree of tenants.

use serde_json::json;

use crate::cli::{Global, NodeVerb};
use crate::error::Result;
use crate::pod::document::{self, Resources};
use crate::pod::host;

pub(super) fn node(global: &Global, verb: &NodeVerb) -> Result<u8> {
    let resources = |path: &std::path::Path| document::read::<Resources>(&super::read(path)?);
    match verb {
        NodeVerb::Create { name, own_users, file } => {
            let limits = file.as_deref().map(resources).transpose()?.unwrap_or_default();
            let given = json!({ "name": name, "ownUsers": own_users, "resources": limits });
            host::call(global, "CreateNode", given).map(|_| 0)
        }
        NodeVerb::Update(name, file) => {
            let given = json!({ "name": name, "resources": resources(file)? });
            host::call(global, "UpdateNode", given).map(|_| 0)
        }
        NodeVerb::Usage(name) => {
            super::print(&host::call(global, "NodeUsage", json!({ "name": name }))?["usage"])
        }
        NodeVerb::Remove(name) => host::call(global, "RemoveNode", json!({ "name": name })).map(|_| 0),
        NodeVerb::List(below) => {
            let told = host::call(global, "Nodes", json!({ "parent": below }))?;
            super::print(&told["nodes"])
        }
    }
}
