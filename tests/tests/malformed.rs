//! Malformed configurations: what is said of one holds the JSON pointer (RFC 6901) of what is wrong, the cause, and the
//! way out where there is one.

#![expect(clippy::unwrap_used, reason = "a helper of the tests fails as a test does")]

use std::fs;
use std::path::Path;

use coracle_tests::{Bundle, Host, Outcome, Spec, privileged};
use serde_json::{Value, json};

/// One malformed configuration, and what must be said of it.
struct Row {
    /// The row as it stands in the table.
    name: String,
    config: Vec<u8>,
    pointer: String,
    cause: String,
    hint: String,
}

/// The rows of `fixtures/specs/malformed.json`: each is the text of a configuration, or what it changes in a sound one.
fn table() -> Vec<Row> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/specs/malformed.json");
    let rows: Vec<Value> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    rows.iter().map(row).collect()
}

fn row(row: &Value) -> Row {
    let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let config = match row["text"].as_str() {
        Some(text) => text.to_owned(),
        None => changed(row).json().to_string(),
    };
    assert!(!text("why").is_empty(), "{row} expects nothing");
    Row {
        name: row.to_string(),
        config: config.into_bytes(),
        pointer: text("at"),
        cause: text("why"),
        hint: text("hint"),
    }
}

fn changed(row: &Value) -> Spec {
    let mut spec = Spec::new();
    for (pointer, value) in row["set"].as_object().into_iter().flatten() {
        spec = spec.set(pointer, value.clone());
    }
    match row["without"].as_str().and_then(|pointer| pointer.rsplit_once('/')) {
        Some((holder, field)) => spec.remove(holder, field),
        None => spec,
    }
}

/// What is wrong with the refusal `told` of the configuration of `row`, if anything is.
fn wrong(row: &Row, told: &Outcome) -> Option<String> {
    let message = told.stderr.trim_end();
    let after = if row.pointer.is_empty() { Some(message) } else { after_pointer(message, &row.pointer) };
    let right = told.code != 0
        && message.starts_with("coracle: error: ")
        && message.lines().count() == 1
        && after.is_some_and(|after| after.contains(&row.cause))
        && (row.hint.is_empty() || message.contains(&format!("; {}", row.hint)));
    (!right).then(|| format!("{}\n  exit code {}: {message}", row.name, told.code))
}

/// What follows the pointer itself, and not one that begins like it.
fn after_pointer<'t>(message: &'t str, pointer: &str) -> Option<&'t str> {
    let pointer = format!(" {pointer}");
    let starts = message.match_indices(&pointer);
    let mut rests = starts.map(|(start, found)| &message[start + found.len()..]);
    rests.find(|rest| rest.starts_with([' ', ':']))
}

fn write(bundle: &Bundle<'_>, config: &[u8]) {
    fs::write(bundle.directory().join("config.json"), config).unwrap();
}

fn refused(host: &Host, rows: &[Row]) {
    let bundle = host.bundle(Spec::new());
    let mut found = Vec::new();
    for row in rows {
        write(&bundle, &row.config);
        let directory = bundle.directory().to_str().unwrap();
        found.extend(wrong(row, &host.call(&["plan", "--bundle", directory])));
        found.extend(wrong(row, &bundle.try_create()));
        if host.call(&["state", bundle.id()]).code == 0 {
            host.call(&["delete", "--force", bundle.id()]).succeeds();
            found.push(format!("{}\n  left a container", row.name));
        }
    }
    assert!(found.is_empty(), "{} of {}:\n{}", found.len(), rows.len(), found.join("\n"));
}

#[test]
fn field_cause_and_way_out_of_each_are_told_by_plan_and_create() {
    privileged(|host| {
        if host.needs_coracle("these words") {
            let rows = table();
            assert!(rows.len() > 40);
            refused(host, &rows);
        }
    });
}

#[test]
fn what_no_text_can_say_is_told_too() {
    privileged(|host| {
        if !host.needs_coracle("these words") {
            return;
        }
        let row = |name: &str, config: Vec<u8>, pointer: &str, cause: &str| Row {
            name: name.to_owned(),
            config,
            pointer: pointer.to_owned(),
            cause: cause.to_owned(),
            hint: String::new(),
        };
        let deep = format!(r#"{{"x": {}{}, "ociVersion": 1}}"#, "[".repeat(100_000), "]".repeat(100_000));
        let large = format!(r#"{{"x": "{}"}}"#, "x".repeat(16 << 20));
        refused(
            host,
            &[
                row("no UTF-8", b"{\"hostname\": \"\xff\"}".to_vec(), "", "byte 14 is no UTF-8"),
                row("deep", deep.into_bytes(), "/ociVersion", "invalid type"),
                row("large", large.into_bytes(), "", "file too large; at most 16 MiB are read"),
            ],
        );
    });
}

/// Documents that stand for a part of a configuration are told of as if they stood there.
#[test]
fn pointers_into_other_documents_begin_where_a_configuration_holds_them() {
    privileged(|host| {
        if !host.needs_coracle("these words") {
            return;
        }
        let container = host.bundle(Spec::new().args(["sleep", "100"])).start();
        let file = host.directory().join("document.json");
        let told = |document: &Value, verb: &[&str]| {
            fs::write(&file, document.to_string()).unwrap();
            let command = [verb, &[file.to_str().unwrap()]].concat();
            host.call(&command)
        };
        let id = container.id();
        let update = ["update", id, "--resources"];
        told(&json!({"memory": {"limit": "1G"}}), &update)
            .fails_with(&["/linux/resources/memory/limit: invalid type"]);
        told(&json!([]), &update)
            .fails_with(&["/linux/resources: invalid type: sequence, expected an object"]);
        let mounts = ["mounts", "add", id];
        told(&json!([{"destination": "/a", "type": "tmpfs"}, {"destination": 7}]), &mounts)
            .fails_with(&["/mounts/1/destination: invalid type"]);
        told(&json!({"mounts": [{"type": "tmpfs"}]}), &mounts)
            .fails_with(&["/mounts/0/destination: it is missing"]);
        let execute = |process: &Value| {
            fs::write(&file, process.to_string()).unwrap();
            container.exec_with(&["--process", file.to_str().unwrap()], &[])
        };
        execute(&json!({"user": {"uid": "root", "gid": 0}, "cwd": "/", "args": ["true"]}))
            .fails_with(&["/process/user/uid: invalid type: string \"root\""]);
        execute(&json!({"user": {"uid": 0, "gid": 0}, "cwd": "tmp", "args": ["true"]}))
            .fails_with(&["/process/cwd is \"tmp\", not an absolute path"]);
        container.remove();
    });
}
