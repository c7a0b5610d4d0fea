//! `pod attach`.

use std::os::fd::AsFd;

use coracle_sys::tty;
use serde_json::json;

use super::relay::{Way, relay};
use super::{ANSWERED_WITHIN, connect, container};
use crate::cli::{Attach, Global};
use crate::error::{Code, Context, Error, Result};

/// Joins the caller's streams to a container's until it ends.
pub(super) fn attach(global: &Global, options: &Attach) -> Result<u8> {
    let path = container(global, &options.target)?;
    let mut client = connect(global, &options.target.pod)?;
    let given = json!({ "container": path, "stdin": options.stdin, "tail": options.tail });
    let attached = client.call("io.coracle.Pod.Attach", given);
    let (reply, fds) = attached.context(|| format!("attaching to container {path:?}"))?;
    let fd = |name: &str| {
        reply[name].as_u64().and_then(|number| fds.get(usize::try_from(number).ok()?)).map(AsFd::as_fd)
    };
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let none = || Error::new(Code::System, "the supervisor passed no descriptor");
    let mut ways = vec![Way::out(fd("stdout").ok_or_else(none)?, stdout.as_fd())];
    ways.extend(fd("stderr").map(|from| Way::out(from, stderr.as_fd())));
    ways.extend(fd("stdin").map(|to| Way::into(stdin.as_fd(), to)));
    let is_raw = reply["terminal"] == true && options.stdin && tty::is_terminal(stdin.as_fd());
    let resize = |rows: u16, columns: u16| {
        let size = json!({ "container": path, "rows": rows, "columns": columns });
        // Signals wait meanwhile.
        client.limit(ANSWERED_WITHIN);
        let _ = client.call("io.coracle.Pod.Resize", size);
    };
    relay(ways, None, is_raw.then_some(stdin.as_fd()), resize).map(|()| 0)
}
