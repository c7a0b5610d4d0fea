//! `coracle-isolator-host`: the process that plugins run in.
//!
//! The runtime starts it with one end of a socket and says in its arguments what it may do; it gives up the rest, loads
//! what it is told to, and makes the calls that it is asked for until the socket closes. It is linked dynamically,
//! because it loads shared objects; the runtime is not.

#![expect(unsafe_code, reason = "loading and calling C code is what this program is for")]

mod call;
mod confine;
mod files;
mod filter;
mod table;

use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use coracle_isolator_abi::Verb;
use coracle_isolator_host::wire::{Broken, Channel, OPEN, Reply, Request};
use coracle_sys::{descriptor, identity};

use confine::Grants;
use table::Plugin;

fn main() -> ExitCode {
    let Some((socket, grants)) = parse(std::env::args().skip(1)) else { return ExitCode::from(2) };
    // SAFETY: the runtime says that this descriptor is the socket, and nothing else here knows it.
    let channel = Channel::new(unsafe { OwnedFd::from_raw_fd(socket) });
    // What a caller of the runtime left open is none of a plugin's business.
    let cgroups = grants.iter().flat_map(|grants| &grants.cgroups).copied();
    let confined = descriptor::close_all_but(&cgroups.chain([socket]).collect::<Vec<_>>())
        .and_then(|()| identity::set_limit("RLIMIT_CORE", 0, 0))
        .and_then(|()| grants.map_or(Ok(()), |grants| confine::confine(&grants)))
        .and_then(|()| descriptor::close_all_but(&[socket]));
    let refused = confined.err().map(|e| format!("confining the plugin: {e}"));
    match serve(&channel, refused.as_deref()) {
        Err(Broken::Ended) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// `--socket N`, and unless `--unconfined` what is granted: `--capabilities MASK`, `--writable PATH` …, `--cgroup N` …,
/// `--programs`, `--sockets`.
fn parse(mut args: impl Iterator<Item = String>) -> Option<(i32, Option<Grants>)> {
    let (mut socket, mut grants) = (None, Some(Grants::default()));
    while let Some(arg) = args.next() {
        match (arg.as_str(), &mut grants) {
            ("--socket", _) => socket = args.next()?.parse().ok(),
            ("--unconfined", _) => grants = None,
            ("--programs", Some(grants)) => grants.programs = true,
            ("--sockets", Some(grants)) => grants.sockets = true,
            ("--capabilities", Some(grants)) => grants.capabilities = args.next()?.parse().ok()?,
            ("--cgroup", Some(grants)) => grants.cgroups.push(args.next()?.parse().ok()?),
            ("--writable", Some(grants)) => grants.writable.push(PathBuf::from(args.next()?)),
            _ => return None,
        }
    }
    Some((socket.filter(|socket| *socket > 2)?, grants))
}

/// Answers requests until there are no more. Where it could not be confined, nothing is loaded, for the reason `refused`.
fn serve(channel: &Channel, refused: Option<&str>) -> Result<(), Broken> {
    let mut plugins: Vec<(u32, Plugin)> = Vec::new();
    loop {
        let mut request = channel.request()?;
        let reply = match (refused, request.call) {
            (Some(why), _) => Reply::failed(why),
            (None, OPEN) => match open(&mut request) {
                Ok((plugin, about)) => {
                    plugins.push((request.plugin, plugin));
                    about
                }
                Err(failure) => failure,
            },
            (None, number) => {
                let plugin = plugins.iter().find(|(index, _)| *index == request.plugin);
                match plugin.zip(Verb::of_number(number)) {
                    Some(((_, plugin), verb)) => call::call(plugin, verb, &request),
                    None => Reply::failed("there is no such plugin or call"),
                }
            }
        };
        channel.answer(&reply)?;
    }
}

/// Loads and configures a plugin; what it tells of itself.
fn open(request: &mut Request) -> Result<(Plugin, Reply), Reply> {
    let file = request.fds.pop().ok_or_else(|| Reply::failed("no file came"))?;
    let states = request.texts().get(1).copied().unwrap_or_default().to_owned();
    let (plugin, about) = table::load(file, &states).map_err(|why| Reply::failed(&why))?;
    if about.problems.is_empty() {
        let configured = call::configure(&plugin, request);
        if configured.failed {
            return Err(configured);
        }
    }
    let text = serde_json::to_vec(&about).map_err(|e| Reply::failed(&e.to_string()))?;
    Ok((plugin, Reply { text, ..Reply::default() }))
}
