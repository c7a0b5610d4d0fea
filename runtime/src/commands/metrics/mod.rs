//! `metrics`: what all containers and pods use, and what their programs tell, for Prometheus.

mod serve;

use coracle_isolator::{Isolator, Usage};
use coracle_isolator_metrics::Statsd;
use serde_json::Value;

use super::{pod, stats};
use crate::cli::{Global, Listen};
use crate::error::Result;
use crate::isolators;
use crate::pod::record;
use crate::prometheus::{Metrics, NONE};
use crate::state::{self, State, Status};

/// Prints them; or serves them, where `listen` says where, until a signal comes.
///
/// # Errors
/// Where the directory of states can't be read, or nobody can listen there.
pub fn metrics(global: &Global, listen: &Listen) -> Result<u8> {
    if listen.socket.is_some() || listen.address.is_some() {
        return serve::serve(global, listen);
    }
    crate::print(&text(global)?);
    Ok(0)
}

/// All of them, as they are now.
fn text(global: &Global) -> Result<String> {
    let mut metrics = Metrics::default();
    let mut failed = containers(global, &mut metrics)?;
    let pods = record::names(&global.root)?;
    for (pod, used) in pods.iter().zip(pod::stats::usage(global, &pods)) {
        failed += add_pod(&mut metrics, pod, &used);
    }
    for told in statsd(global)?.told()? {
        let pod =
            told.id.split_once('/').map(|(pod, _)| pod).filter(|pod| pods.iter().any(|name| name == pod));
        metrics.of(&told.id, pod).families(&told.families);
    }
    let host = metrics.of_host();
    host.gauge("coracle_pods", "pods that there are", NONE, pods.len() as f64);
    let help = "containers and pods that could not be measured";
    host.gauge("coracle_unmeasured", help, NONE, f64::from(failed));
    Ok(metrics.text())
}

/// Adds the containers that are in no pod. Returns how many could not be measured.
fn containers(global: &Global, metrics: &mut Metrics) -> Result<u32> {
    let isolators = isolators::all(global)?;
    let mut failed = 0;
    for id in state::ids(&global.root)? {
        // One that is removed meanwhile is none.
        let Ok(Some(record)) = State::open_unlocked(&global.root, &id).and_then(|state| state.record())
        else {
            continue;
        };
        let status = record.status();
        metrics.of(&id, None).gauge(
            "container_status",
            "1, labelled with what it does",
            ("status", &status.to_string()),
            1.0,
        );
        if record.cgroup.is_none() || status == Status::Stopped {
            continue;
        }
        match stats::ask_of(&global.root, &id, |handles| isolators.usage(handles)) {
            Ok(usage) => metrics.usage(&usage),
            Err(_) => failed += 1,
        }
    }
    global.warn(isolators.take_warnings());
    Ok(failed)
}

/// Adds a pod, and each of its containers that runs: what is `used`. Returns how many could not be measured.
fn add_pod(metrics: &mut Metrics, pod: &str, used: &[Value]) -> u32 {
    for one in used {
        let Ok(usage) = serde_json::from_value::<Usage>(one["usage"].clone()) else { continue };
        let id = match &one["container"] {
            Value::String(container) => format!("{pod}/{container}"),
            _ => pod.to_owned(),
        };
        metrics.of(&id, Some(pod)).usage(&usage);
    }
    u32::from(used.is_empty())
}

fn statsd(global: &Global) -> Result<Statsd> {
    let mut isolator = Statsd::new(&global.root);
    if let Some(options) = isolators::options_of(global, isolator.name())? {
        isolator.configure(&options)?;
    }
    Ok(isolator)
}
