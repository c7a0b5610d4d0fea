//! `pod stats` and `pod top`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::Global;
use crate::error::Result;

/// How often `top` looks.
const EVERY: Duration = Duration::from_secs(1);

const USAGE: &str = "io.coracle.Pod.Usage";

/// Prints what pods use: as JSON, or with `top` as a table, again and again.
pub(super) fn stats(global: &Global, pods: &[String], top: bool) -> Result<u8> {
    let names = if pods.is_empty() { super::names(global, None)? } else { pods.to_vec() };
    // A pod that was named must be there; others may go meanwhile.
    super::inspect(global, pods).into_iter().try_for_each(|told| told.map(drop))?;
    let mut before = usage(global, &names).concat();
    if !top {
        return super::print(&Value::Array(before));
    }
    loop {
        std::thread::sleep(EVERY);
        let now = usage(global, &names).concat();
        if now.is_empty() {
            return Ok(0);
        }
        if !crate::print(&table(&before, &now)) {
            return Ok(0);
        }
        before = now;
    }
}

/// What each of `pods` uses, and each of its containers that runs; nothing of one that does not answer.
pub(in crate::commands) fn usage(global: &Global, pods: &[String]) -> Vec<Vec<Value>> {
    let told = pods.iter().zip(super::inspect(global, pods));
    told.map(|(pod, told)| told.map_or_else(|_| Vec::new(), |told| usage_of(global, pod, &told))).collect()
}

fn usage_of(global: &Global, pod: &str, told: &Value) -> Vec<Value> {
    let containers = told["containers"].as_array().cloned().unwrap_or_default();
    let running = containers.iter().filter(|container| container["state"] == "running");
    let paths = running.filter_map(|container| container["name"].as_str());
    let one = |container: Option<&str>| {
        let asked = json!({ "container": container });
        let usage =
            super::connect_for_now(global, pod).and_then(|mut client| client.call(USAGE, asked)).ok()?;
        Some(json!({ "pod": pod, "container": container, "usage": usage.0["usage"] }))
    };
    std::iter::once(None).chain(paths.map(Some)).filter_map(one).collect()
}

fn table(before: &[Value], now: &[Value]) -> String {
    let mut text = format!("{:40} {:>7} {:>12} {:>7}\n", "POD/CONTAINER", "CPU %", "MEMORY", "PIDS");
    for one in now {
        let is_same = |other: &&Value| other["pod"] == one["pod"] && other["container"] == one["container"];
        let total = |of: &Value| of["usage"]["cpu"]["total"].as_f64().unwrap_or(0.0);
        let used = before.iter().find(is_same).map_or(0.0, |earlier| total(one) - total(earlier));
        let name = [one["pod"].as_str(), one["container"].as_str()].into_iter().flatten().collect::<Vec<_>>();
        text.push_str(&format!(
            "{:40} {:>7.1} {:>12} {:>7}\n",
            name.join("/"),
            used / 1e9 / EVERY.as_secs_f64() * 100.0,
            one["usage"]["memory"]["usage"].as_u64().unwrap_or(0),
            one["usage"]["pids"]["current"].as_u64().unwrap_or(0),
        ));
    }
    text + "\n"
}
