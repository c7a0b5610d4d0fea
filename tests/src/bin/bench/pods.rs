//! Launching a container below another in a running pod, over the API, beside a peer's `run`.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use coracle_fixtures::small;
use serde_json::{Value, json};

use crate::Options;
use crate::measure::{alternate, milliseconds, timed, timed_detached};
use crate::report::{Report, Row};
use crate::starts::PEER;
use crate::subject::{Bundle, STATES, Subject};

/// The pod that is measured in.
const POD: &str = "coracle-bench";

/// Measures launches in a pod that is made for it, with states and images of its own below `directory`.
pub(crate) fn measure(
    all: &[&Subject],
    directory: &Path,
    options: &Options,
    report: &mut Report,
) -> Result<(), String> {
    report.section("A container below another, in a running pod", PEER);
    let pod = Pod { root: directory.join(STATES).join("pods"), store: directory.join("store"), options };
    pod.make(directory)?;
    let measured = measure_in(&pod, all, report);
    pod.call(&["rm", "--force", POD]).and_then(|mut command| timed_detached(&mut command))?;
    measured
}

fn measure_in(pod: &Pod<'_>, all: &[&Subject], report: &mut Report) -> Result<(), String> {
    let mut api = Api::connect(&pod.root)?;
    let peers: Vec<&&Subject> = all.iter().filter(|subject| subject.name == PEER).collect();
    let mut turns: Vec<Option<&Subject>> = vec![None];
    turns.extend(peers.iter().map(|subject| Some(**subject)));
    let mut whole = Vec::new();
    let times = alternate(&turns, pod.options.runs, |turn| match turn {
        None => {
            let (launch, all) = api.life()?;
            whole.push(all);
            Ok(launch)
        }
        Some(subject) => timed(&mut subject.run(Bundle::Plain)),
    })?;
    let times = milliseconds(&times);
    let peer = times.get(1).copied();
    let row = |what: &str, subject: &str, value: f64| Row {
        what: what.to_owned(),
        subject: subject.to_owned(),
        value,
        unit: "ms",
        ratio: peer.map(|peer| value / peer),
    };
    let life = milliseconds(&[crate::measure::median(whole)])[0];
    report.add(vec![row("launch, until it runs", "coracle", times[0])]);
    report.add(vec![row("launch, wait, forget", "coracle", life)]);
    report.add(peer.map(|time| row("run", PEER, time)).into_iter().collect());
    Ok(())
}

struct Pod<'o> {
    root: std::path::PathBuf,
    store: std::path::PathBuf,
    options: &'o Options,
}

impl Pod<'_> {
    fn call(&self, args: &[&str]) -> Result<Command, String> {
        let mut command = Command::new(&self.options.runtime);
        command.arg("--root").arg(&self.root).arg("pod").args(args);
        Ok(command)
    }

    fn make(&self, directory: &Path) -> Result<(), String> {
        let layout = directory.join("small");
        small::image().write_layout(&layout);
        for verb in [vec!["import", &layout.to_string_lossy(), "--name", "small"], vec!["unpack", "small"]] {
            let mut command = Command::new(&self.options.image_program);
            timed(command.arg("--store").arg(&self.store).args(verb))?;
        }
        let store = self.store.to_string_lossy().into_owned();
        let args = ["run", "--name", POD, "--store", &store, "small", "--", "sleep", "10000"];
        timed_detached(&mut self.call(&args)?).map(drop)
    }
}

struct Api {
    stream: UnixStream,
    number: usize,
}

impl Api {
    fn connect(root: &Path) -> Result<Self, String> {
        let path = root.join(".pods").join(POD).join("api.sock");
        let stream =
            UnixStream::connect(&path).map_err(|error| format!("connect {}: {error}", path.display()))?;
        Ok(Self { stream, number: 0 })
    }

    fn call(&mut self, method: &str, parameters: Value) -> Result<Value, String> {
        let call = json!({ "method": format!("io.coracle.Pod.{method}"), "parameters": parameters });
        let io = |error: std::io::Error| format!("{method}: {error}");
        self.stream.write_all(format!("{call}\0").as_bytes()).map_err(io)?;
        let mut reply = Vec::new();
        let mut chunk = [0; 4096];
        while reply.last() != Some(&0) {
            match self.stream.read(&mut chunk).map_err(io)? {
                0 => return Err(format!("{method}: the supervisor went away")),
                length => reply.extend_from_slice(&chunk[..length]),
            }
        }
        reply.pop();
        let reply: Value = serde_json::from_slice(&reply).map_err(|error| error.to_string())?;
        if reply["error"].is_null() { Ok(reply["parameters"].clone()) } else { Err(reply.to_string()) }
    }

    /// The launch of a container, and all of its life.
    fn life(&mut self) -> Result<(Duration, Duration), String> {
        self.number += 1;
        let name = format!("n{}", self.number);
        let limits = json!({ "limits": { "memory": "256Mi", "cpu": 1, "pids": 100 } });
        let unconfined = json!({ "seccompProfile": { "type": "Unconfined" } });
        let container = json!({
            "name": name, "image": "small", "command": ["true"], "resources": limits, "securityContext": unconfined,
        });
        let begin = Instant::now();
        self.call("Launch", json!({ "parent": "main", "container": container }))?;
        let launched = begin.elapsed();
        self.call("Wait", json!({ "container": format!("main/{name}") }))?;
        self.call("Forget", json!({ "container": format!("main/{name}") }))?;
        Ok((launched, begin.elapsed()))
    }
}
