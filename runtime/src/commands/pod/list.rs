//! `pod ls`.

use serde_json::{Value, json};

use crate::cli::{Global, ListForm};
use crate::error::Result;

/// Prints all pods as a table, as JSON, or their names alone.
pub(super) fn list(global: &Global, form: ListForm, below: Option<&str>) -> Result<u8> {
    let names = super::names(global, below)?;
    if form == ListForm::Names {
        crate::print(&names.iter().map(|name| format!("{name}\n")).collect::<String>());
        return Ok(0);
    }
    let told = names.iter().zip(super::inspect(global, &names));
    let told: Vec<Value> = told.map(|(name, told)| pod(name, told)).collect();
    if form == ListForm::Json {
        return super::print(&Value::Array(told));
    }
    let mut rows = vec![["NAME", "PHASE", "READY", "RESTARTS", "CREATED"].map(str::to_owned)];
    rows.extend(told.iter().map(row));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count() + 3).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    for row in &rows {
        let cells: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        crate::print(&format!("{}\n", cells.trim_end()));
    }
    Ok(0)
}

/// What is told of a pod; one whose supervisor is gone or does not answer is listed, too.
fn pod(name: &str, told: Result<Value>) -> Value {
    told.unwrap_or_else(|error| json!({ "name": name, "phase": "Unknown", "message": error.to_string() }))
}

fn row(pod: &Value) -> [String; 5] {
    let text = |key: &str| pod[key].as_str().unwrap_or_default().to_owned();
    let containers = pod["containers"].as_array().cloned().unwrap_or_default();
    let lasting: Vec<&Value> = containers.iter().filter(|container| container["role"] != "init").collect();
    let ready = lasting.iter().filter(|container| container["ready"] == true).count();
    let restarts: u64 = containers.iter().filter_map(|container| container["restarts"].as_u64()).sum();
    [text("name"), text("phase"), format!("{ready}/{}", lasting.len()), restarts.to_string(), text("created")]
}
