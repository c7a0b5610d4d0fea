//! What is asked of a container or done in it while it runs: probes and lifecycle hooks.

use serde::{Deserialize, Serialize};

use super::EnvVar;

/// A probe.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Probe {
    /// Succeeds with exit code 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecAction>,
    /// Succeeds with a status from 200 to 399.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_get: Option<HttpGet>,
    /// Succeeds where somebody listens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_socket: Option<TcpSocket>,
    /// Seconds before the first.
    pub initial_delay_seconds: u64,
    /// Seconds from one to the next; 10.
    pub period_seconds: Option<u64>,
    /// Seconds that one may take; 1.
    pub timeout_seconds: Option<u64>,
    /// After how many that succeed it has succeeded; 1.
    pub success_threshold: Option<u32>,
    /// After how many that fail it has failed; 3.
    pub failure_threshold: Option<u32>,
}

/// What is done after the start and before the end of a container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Lifecycle {
    /// After the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub post_start: Option<Handler>,
    /// Before SIGTERM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre_stop: Option<Handler>,
}

/// One deed of a hook.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Handler {
    /// Runs a program in the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecAction>,
    /// Asks by HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_get: Option<HttpGet>,
    /// Waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sleep: Option<Sleep>,
}

/// A program in the container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecAction {
    /// The program and its arguments.
    pub command: Vec<String>,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpGet {
    /// The path; `/`.
    #[serde(default)]
    pub path: Option<String>,
    /// The port, by number or name.
    pub port: PortRef,
    /// The address; the pod's own loopback.
    #[serde(default)]
    pub host: Option<String>,
    /// Header fields.
    #[serde(default)]
    pub http_headers: Vec<EnvVar>,
}

impl HttpGet {
    /// The target of the request line (RFC 9112, 3.2.1): the path and query, with what may not stand there escaped (RFC
    /// 3986). As for Kubernetes it begins with a slash whether the document says so or not, and ends where a fragment begins.
    pub fn target(&self) -> String {
        let path = self.path.as_deref().unwrap_or_default();
        let path = path.split('#').next().unwrap_or_default();
        let mut target = String::from(if path.starts_with('/') { "" } else { "/" });
        for (index, byte) in path.bytes().enumerate() {
            match byte {
                b'%' if is_escape(&path.as_bytes()[index..]) => target.push('%'),
                _ if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?".contains(&byte) => {
                    target.push(char::from(byte));
                }
                _ => target.push_str(&format!("%{byte:02X}")),
            }
        }
        target
    }
}

fn is_escape(bytes: &[u8]) -> bool {
    bytes.get(1..3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpSocket {
    /// The port, by number or name.
    pub port: PortRef,
    /// The address; the pod's own loopback.
    #[serde(default)]
    pub host: Option<String>,
}

/// A wait.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sleep {
    /// For how long.
    pub seconds: u64,
}

/// A port by its number, or by the name that `ports` gives it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PortRef {
    /// The number.
    Number(u16),
    /// The name.
    Name(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_of_a_request_is_what_a_url_would_have() {
        let target = |path: Option<&str>| {
            let path = path.map(str::to_owned);
            HttpGet { path, port: PortRef::Number(80), host: None, http_headers: Vec::new() }.target()
        };
        assert_eq!(target(None), "/");
        for (path, wanted) in [
            ("", "/"),
            ("/up", "/up"),
            ("healthz", "/healthz"),
            ("?a=b", "/?a=b"),
            ("/a b?c=d e", "/a%20b?c=d%20e"),
            ("/ü", "/%C3%BC"),
            ("/a%20b%2G%", "/a%20b%252G%25"),
            ("/up#here", "/up"),
        ] {
            assert_eq!(target(Some(path)), wanted, "{path}");
        }
    }
}
