//! `pod exec`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use coracle_sys::tty;
use serde_json::{Value, json};

use super::relay::{Way, relay};
use super::{connect, container};
use crate::cli::{Global, PodExec};
use crate::error::{Code, Context, Error, Result};
use crate::pod::varlink::client::Client;

/// Runs a program in a container and exits as it did. Without a terminal, the program has the caller's own streams.
pub(super) fn exec(global: &Global, options: &PodExec) -> Result<u8> {
    let path = container(global, &options.target)?;
    let mut client = connect(global, &options.target.pod)?;
    let mut given = json!({
        "container": path, "args": options.args, "env": options.env, "cwd": options.cwd,
        "user": options.user, "terminal": options.tty,
    });
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
    if !options.tty {
        fds.extend([stdout.as_fd(), stderr.as_fd()]);
        (given["stdout"], given["stderr"]) = (json!(0), json!(1));
        if options.stdin {
            fds.push(stdin.as_fd());
            given["stdin"] = json!(2);
        }
    }
    let attempt = || -> Result<u8> {
        client.begin("io.coracle.Pod.Exec", given, &fds, true)?;
        let (begun, fds) = client.reply()?;
        if !begun.continues {
            return Ok(code(&begun.parameters));
        }
        if let Some(master) = fds.into_iter().next() {
            return on_terminal(&mut client, &master, options.stdin);
        }
        client.reply().map(|(ended, _)| code(&ended.parameters))
    };
    attempt().context(|| format!("executing in container {path:?}"))
}

fn code(ended: &Value) -> u8 {
    ended["exitCode"].as_i64().and_then(|code| u8::try_from(code).ok()).unwrap_or(255)
}

/// Joins the caller's terminal to the program's until that ends.
fn on_terminal(client: &mut Client, master: &OwnedFd, with_input: bool) -> Result<u8> {
    let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
    coracle_sys::descriptor::set_nonblocking(master.as_fd())?;
    let mut ways = vec![Way::out(master.as_fd(), stdout.as_fd())];
    if with_input {
        ways.push(Way::typed(stdin.as_fd(), master.as_fd()));
    }
    let is_raw = with_input && tty::is_terminal(stdin.as_fd());
    let resize = |rows, columns| drop(tty::set_size(master.as_fd(), rows, columns));
    relay(ways, Some(client.fd()), is_raw.then_some(stdin.as_fd()), resize)?;
    let (ended, _) = client.reply()?;
    if ended.continues {
        return Err(Error::new(Code::System, "the supervisor did not say how the program ended"));
    }
    Ok(code(&ended.parameters))
}
