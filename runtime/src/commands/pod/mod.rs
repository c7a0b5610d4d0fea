//! `pod`: what the command line asks of pods. It speaks to their supervisors by their API and knows nothing else of them;
//! only to make a pod it starts a supervisor.

mod attach;
mod exec;
mod list;
mod logs;
mod make;
mod node;
mod relay;
pub(super) mod stats;

use std::time::{Duration, Instant};

use coracle_sys::Errno;
use coracle_sys::file;
use serde_json::{Value, json};

use crate::cli::{Global, PodVerb, Target};
use crate::error::{Code, Context, Error, Result};
use crate::pod::document;
use crate::pod::host;
use crate::pod::record::{Directory, SOCKET};
use crate::pod::serve;
use crate::pod::supervisor;
use crate::pod::varlink::client::{self, Client};
use crate::{image, self_image};

/// Does what the command line asks and returns the exit code.
///
/// # Errors
/// What the supervisor says, or that there is none.
pub fn execute(global: &Global, verb: &PodVerb) -> Result<u8> {
    match verb {
        PodVerb::Run(make) => make::run(global, make),
        PodVerb::Create(make) => make::create(global, make),
        PodVerb::Plan(make) => make::plan(global, make),
        PodVerb::Start(pod) => ask(global, pod, "Start", json!({})),
        PodVerb::Stop { pod, grace } => ask(global, pod, "Stop", json!({ "graceSeconds": grace })),
        PodVerb::Remove { pod, force: false } => ask(global, pod, "Remove", json!({ "force": false })),
        PodVerb::Remove { pod, force: true } => match remove_by_force(global, pod) {
            Err(e) if e.code() == Code::NotFound => Ok(0),
            removed => removed,
        },
        PodVerb::List { form, below } => list::list(global, *form, below.as_deref()),
        PodVerb::Node(verb) => node::node(global, verb),
        PodVerb::Inspect(pod) => print(&call(global, pod, "Inspect", json!({}))?["pod"]),
        PodVerb::Logs(options) => logs::logs(global, options),
        PodVerb::Attach(options) => attach::attach(global, options),
        PodVerb::Exec(options) => exec::exec(global, options),
        PodVerb::Wait(target) => wait(global, target),
        PodVerb::Kill(target, signal) => {
            let container = container(global, target)?;
            ask(global, &target.pod, "Kill", json!({ "container": container, "signal": signal }))
        }
        PodVerb::Stats { pods, top } => stats::stats(global, pods, *top),
        PodVerb::Update(target, path) => {
            let resources: document::Resources = document::read(&read(path)?)?;
            let given = json!({ "container": target.container, "resources": resources });
            ask(global, &target.pod, "Update", given)
        }
        PodVerb::Launch(target, path) => {
            let launched = document::parse_container(&read(path)?, None)?;
            let given = json!({ "parent": container(global, target)?, "container": launched });
            ask(global, &target.pod, "Launch", given)
        }
        PodVerb::Forget(target) => {
            ask(global, &target.pod, "Forget", json!({ "container": target.container }))
        }
        PodVerb::Serve => {
            self_image::protect(&[], None, &image::variables(&[]))?;
            serve::serve(global).map(|()| 0)
        }
        PodVerb::Watch(pod) => watch(global, pod),
    }
}

/// How long a supervisor may take to answer where others are asked, too.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

/// How many supervisors are asked at once: each takes a descriptor.
const ASKED_AT_ONCE: usize = 128;

/// The largest document that is read, in bytes.
fn read(path: &std::path::Path) -> Result<Vec<u8>> {
    let from = if path.as_os_str() == "-" { "/proc/self/fd/0".as_ref() } else { path };
    file::read_given(from, document::LARGEST).context(|| format!("reading {path:?}"))
}

/// The names of all pods; with `below`, of those below that node.
fn names(global: &Global, below: Option<&str>) -> Result<Vec<String>> {
    let told = host::call(global, "List", json!({ "parent": below }))?;
    let pods = told["pods"].as_array().into_iter().flatten();
    Ok(pods.filter_map(|pod| pod["name"].as_str().map(str::to_owned)).collect())
}

/// A connection to the supervisor of `pod`.
fn connect(global: &Global, pod: &str) -> Result<Client> {
    let dir = Directory::open(&global.root, pod)?;
    found(pod, client::connect(dir.fd(), SOCKET))
}

/// The same; one that does not answer is waited for only so long.
fn connect_for_now(global: &Global, pod: &str) -> Result<Client> {
    let dir = Directory::open(&global.root, pod)?;
    found(pod, client::connect_within(dir.fd(), SOCKET, ANSWERED_WITHIN))
}

fn found(pod: &str, connected: Result<Client>) -> Result<Client> {
    if is_gone(&connected) {
        let why = format!("pod {pod:?} has no supervisor");
        return Err(Error::new(Code::System, why).hint("coracle recover starts another"));
    }
    connected
}

/// Whether nobody is there to be spoken to.
fn is_gone(connected: &Result<Client>) -> bool {
    let errno = connected.as_ref().err().and_then(Error::errno);
    matches!(errno, Some(Errno::ECONNREFUSED | Errno::ENOENT))
}

/// What the method `method` of `pod` replies.
fn call(global: &Global, pod: &str, method: &str, parameters: Value) -> Result<Value> {
    let reply = connect(global, pod)?.call(&format!("io.coracle.Pod.{method}"), parameters);
    reply.map(|(reply, _)| reply).context(|| format!("pod {pod:?}"))
}

/// The same for a reply that nobody reads.
fn ask(global: &Global, pod: &str, method: &str, parameters: Value) -> Result<u8> {
    call(global, pod, method, parameters).map(|_| 0)
}

/// Removes a pod with its containers. One without a supervisor gets another, which knows how.
fn remove_by_force(global: &Global, pod: &str) -> Result<u8> {
    let end = Instant::now() + ANSWERED_WITHIN;
    // One that was killed a moment ago still holds the pod.
    while is_gone(&client::connect(Directory::open(&global.root, pod)?.fd(), SOCKET)) && Instant::now() < end
    {
        // A new supervisor is a fork of this process.
        self_image::protect(&[], None, &image::variables(&[]))?;
        let adopted = Directory::open(&global.root, pod).and_then(|dir| supervisor::adopt(global, dir));
        if !adopted.context(|| format!("removing pod {pod:?}"))? {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    ask(global, pod, "Remove", json!({ "force": true }))
}

/// What `Inspect` tells of each of `pods`. All are asked before one is waited for: a supervisor that stands still keeps nobody
/// from the others.
fn inspect(global: &Global, pods: &[String]) -> Vec<Result<Value>> {
    let begin = |pod: &String| -> Result<Client> {
        let mut client = connect_for_now(global, pod)?;
        let begun = client.begin("io.coracle.Pod.Inspect", json!({}), &[], false);
        begun.map(|()| client).context(|| format!("pod {pod:?}"))
    };
    let finish = |(pod, begun): (&String, Result<Client>)| -> Result<Value> {
        let (reply, _) = begun?.reply().context(|| format!("pod {pod:?}"))?;
        Ok(reply.parameters["pod"].clone())
    };
    let of_some = |some: &[String]| -> Vec<Result<Value>> {
        let begun: Vec<Result<Client>> = some.iter().map(begin).collect();
        some.iter().zip(begun).map(finish).collect()
    };
    pods.chunks(ASKED_AT_ONCE).flat_map(of_some).collect()
}

/// The path of the container that `target` names: the first of the pod's own where it names none.
fn container(global: &Global, target: &Target) -> Result<String> {
    if let Some(container) = &target.container {
        return Ok(container.clone());
    }
    let told = call(global, &target.pod, "Inspect", json!({}))?;
    let containers = told["pod"]["containers"].as_array().cloned().unwrap_or_default();
    let main = containers.iter().find(|container| container["role"] == "main");
    let name = main.and_then(|container| container["name"].as_str());
    name.map(str::to_owned).ok_or_else(|| Error::new(Code::NotFound, "the pod has no container"))
}

fn print(value: &Value) -> Result<u8> {
    crate::print(&format!("{value:#}\n"));
    Ok(0)
}

/// Exits as the container did, or as the first of the pod's that failed.
fn wait(global: &Global, target: &Target) -> Result<u8> {
    let told = call(global, &target.pod, "Wait", json!({ "container": target.container }))?;
    let one = std::slice::from_ref(&told["container"]);
    let containers = told["containers"].as_array().map_or(one, Vec::as_slice);
    let code = |container: &Value| container["exit"]["exitCode"].as_i64();
    let counts = |container: &&Value| matches!(container["role"].as_str(), Some("main" | "nested" | "init"));
    let failed = containers.iter().filter(|c| counts(c) || target.container.is_some()).map(code);
    let failed = failed.map(|code| code.unwrap_or(255)).find(|code| *code != 0);
    // Who was ended at a deadline, or for its health, may have gone with 0.
    let otherwise = i64::from(told["phase"] == "Failed");
    Ok(u8::try_from(failed.unwrap_or(otherwise)).unwrap_or(255))
}

fn watch(global: &Global, pod: &str) -> Result<u8> {
    let mut client = connect(global, pod)?;
    client.begin("io.coracle.Pod.Watch", json!({}), &[], true)?;
    loop {
        match client.reply() {
            Ok((reply, _)) if crate::print(&format!("{}\n", reply.parameters["event"])) => {}
            Ok(_) => return Ok(0),
            // With the pod, it ends, too.
            Err(error) => match connect(global, pod) {
                Err(e) if e.code() == Code::NotFound => return Ok(0),
                _ => return Err(error).context(|| format!("pod {pod:?}")),
            },
        }
    }
}
