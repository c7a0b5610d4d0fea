//! `pod run`, `pod create`, `pod plan`.

use serde_json::{Value, json};

use super::{ask, read};
use crate::cli::{Global, Make};
use crate::error::{Code, Context, Error, Result};
use crate::pod::document::{self, Container, Metadata, Pod, PodSpec, RestartPolicy};
use crate::pod::host;
use crate::pod::plan;
use crate::{image, self_image};

/// Makes the pod and starts it. What can't be launched at all is told; the pod stays, to be looked at.
pub(super) fn run(global: &Global, options: &Make) -> Result<u8> {
    let name = make(global, options)?;
    let started = super::call(global, &name, "Start", json!({}));
    let started = match started {
        Ok(started) => started,
        Err(error) => {
            // A pod that could not even begin has nothing to look at.
            let _ = ask(global, &name, "Remove", json!({ "force": true }));
            return Err(error);
        }
    };
    let containers = started["containers"].as_array().cloned().unwrap_or_default();
    let failed = containers.iter().find_map(why_not_launched);
    failed.map_or(Ok(0), |error| {
        Err(error.doing(format!("running pod {name:?}")).hint(format!("see coracle pod inspect {name}")))
    })
}

/// Why the container of which this is told could not be launched, where that is so.
fn why_not_launched(container: &Value) -> Option<Error> {
    let exit = &container["exit"];
    let ended = exit["message"].as_str().filter(|_| exit["reason"] == "LaunchFailed");
    let waits = container["message"].as_str();
    let error = Error::new(Code::System, ended.or(waits)?).doing(format!("launching {}", container["name"]));
    Some(if ended.is_none() { error.hint("it is tried again and again") } else { error })
}

pub(super) fn create(global: &Global, options: &Make) -> Result<u8> {
    make(global, options).map(|_| 0)
}

pub(super) fn plan(global: &Global, options: &Make) -> Result<u8> {
    let wish = plan::Wish { cgroups: global.cgroups, parent: options.parent.as_deref() };
    let plan = plan::plan(&document(options)?, &wish)?;
    let plan = serde_json::to_value(plan).map_err(Error::system)?;
    super::print(&plan)
}

fn make(global: &Global, options: &Make) -> Result<String> {
    self_image::protect(&[], None, &image::variables(&[]))?;
    let document = document(options)?;
    let name = document.metadata.name.clone();
    let store = image::store(options.store.as_deref());
    let store = std::path::absolute(&store).unwrap_or(store);
    let Make { parent, own_users, network, .. } = options;
    let given = json!({
        "document": document, "store": store, "parent": parent, "ownUsers": own_users, "network": network,
    });
    host::call(global, "Create", given)?;
    Ok(name)
}

fn document(options: &Make) -> Result<Pod> {
    if let Some(path) = &options.file {
        return document::parse(&read(path)?).context(|| format!("reading {path:?}"));
    }
    let name = options.name.clone().unwrap_or_default();
    let container = Container {
        name: "main".to_owned(),
        image: options.image.clone().unwrap_or_default(),
        // What the caller's shell has left of it is meant as it stands.
        args: options.args.iter().map(|word| word.replace('$', "$$")).collect(),
        ..Container::default()
    };
    let restart_policy = RestartPolicy::Never;
    let pod = Pod {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        metadata: Metadata { name, ..Metadata::default() },
        spec: PodSpec {
            containers: vec![container],
            restart_policy,
            host_network: options.host_network,
            ..PodSpec::default()
        },
    };
    document::check(&pod).map(|()| pod)
}
