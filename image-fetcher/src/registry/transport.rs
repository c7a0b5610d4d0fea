//! Connections: TLS, proxies, time limits.
//!
//! The client is ureq with rustls: blocking, so that a transfer is a thread like each of the unpacker's; no
//! asynchronous executor (tokio and what comes with it would be most of the program), pure Rust but for
//! ring's arithmetic, small enough to build in seconds. Redirects, retries and authentication are done here: its own
//! know nothing of registries.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use coracle_sys::file::{self, Resolve};
use ureq::http::{Request, Response, Uri};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy, SendBody};

use super::hosts::{Endpoint, Origin};
use crate::error::{Context, Error, Kind, Result};

/// No file of certificates is longer.
const PEM_LIMIT: u64 = 4 << 20;
/// Bytes of headers that an answer may have.
const HEADER_LIMIT: usize = 64 << 10;

/// The connections to one endpoint, and to where it redirects.
pub(crate) struct Transport {
    endpoint: Endpoint,
    patience: Duration,
    /// One agent for the endpoint itself and one for all others, for each proxy: only the endpoint is shown the client's
    /// certificate, and only its own may go unverified.
    agents: Mutex<BTreeMap<(bool, Option<String>), Agent>>,
    roots: OnceLock<Result<RootCerts>>,
}

impl Transport {
    /// Connections that fail where `patience` passes without a byte.
    pub(crate) fn new(endpoint: Endpoint, patience: Duration) -> Self {
        Self { endpoint, patience, agents: Mutex::default(), roots: OnceLock::new() }
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends one request and returns the head of the answer. `limit` is for all of it, with the body; without one, the head
    /// alone has a limit, since a byte now and then is no silence.
    pub(crate) fn send(
        &self,
        request: Request<SendBody<'_>>,
        limit: Option<Duration>,
    ) -> Result<std::result::Result<Response<Body>, ureq::Error>> {
        let agent = self.agent(request.uri())?;
        let head = limit.is_none().then_some(self.patience * 2);
        let request = agent.configure_request(request).timeout_global(limit);
        Ok(agent.run(request.timeout_recv_response(head).build()))
    }

    fn agent(&self, uri: &Uri) -> Result<Agent> {
        let origin = Origin::of(uri)?;
        let key = (origin == self.endpoint.origin, proxy_for(&origin, |name| std::env::var(name).ok()));
        let mut agents = self.agents.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(agent) = agents.get(&key) {
            return Ok(agent.clone());
        }
        let proxy = key.1.as_deref().map(|address| {
            // The address may hold a password.
            Proxy::new(address)
                .map_err(|_| Error::new(Kind::Usage, "the environment names a proxy that is no address"))
        });
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_response_header_size(HEADER_LIMIT)
            .proxy(proxy.transpose()?)
            .user_agent(concat!("coracle/", env!("CARGO_PKG_VERSION")))
            // Blobs are what their digest says, not what a server makes of them on the way.
            .accept_encoding("identity")
            .timeout_connect(Some(self.patience))
            .timeout_per_read(Some(self.patience))
            .timeout_per_write(Some(self.patience));
        if origin.is_secure || key.1.is_some() {
            config = config.tls_config(self.tls(key.0)?);
        }
        let agent: Agent = config.build().into();
        agents.insert(key, agent.clone());
        Ok(agent)
    }

    fn tls(&self, is_endpoint: bool) -> Result<TlsConfig> {
        let roots = self.roots.get_or_init(|| roots(&self.endpoint)).clone()?;
        let mut config = TlsConfig::builder().root_certs(roots);
        if is_endpoint {
            config = config.disable_verification(self.endpoint.skip_verify);
            if let Some((certificate, key)) = &self.endpoint.client {
                config = config.client_cert(Some(client(certificate, key)?));
            }
        }
        Ok(config.build())
    }
}

/// The authorities of the system and those that `hosts.toml` names.
fn roots(endpoint: &Endpoint) -> Result<RootCerts> {
    let system = rustls_native_certs::load_native_certs().certs;
    let mut all: Vec<Certificate<'static>> =
        system.iter().map(|der| Certificate::from_der(der.as_ref()).to_owned()).collect();
    for path in &endpoint.authorities {
        all.extend(certificates(path)?);
    }
    Ok(RootCerts::Specific(Arc::new(all)))
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>> {
    let found: Vec<_> = pem(path)?
        .into_iter()
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        return Err(Error::new(Kind::Malformed, format!("{path:?} holds no certificate in PEM form")));
    }
    Ok(found)
}

fn client(certificate: &Path, key: &Path) -> Result<ClientCert> {
    let chain = certificates(certificate)?;
    let key: Option<PrivateKey<'static>> = pem(key)?.into_iter().find_map(|item| match item {
        PemItem::PrivateKey(key) => Some(key),
        _ => None,
    });
    let key =
        key.ok_or_else(|| Error::new(Kind::Malformed, "the client's key file holds no key in PEM form"))?;
    Ok(ClientCert::new_with_certs(&chain, key))
}

fn pem(path: &Path) -> Result<Vec<PemItem<'static>>> {
    let bytes =
        file::read(file::CWD, path, PEM_LIMIT, Resolve::Host).context(|| format!("reading {path:?}"))?;
    let items: std::result::Result<Vec<_>, _> = parse_pem(&bytes).collect();
    items.map_err(|_| Error::new(Kind::Malformed, format!("{path:?} is malformed: it is no PEM")))
}

/// The proxy that the environment has for an address, as curl(1) reads it: `https_proxy`, `http_proxy`, `all_proxy`, in
/// capitals or not, but for what `no_proxy` lists. `HTTP_PROXY` in capitals counts, too: this is no CGI program.
fn proxy_for(origin: &Origin, get: impl Fn(&str) -> Option<String>) -> Option<String> {
    let either = |name: &str| {
        let found = get(name).or_else(|| get(&name.to_ascii_uppercase()));
        found.filter(|value| !value.is_empty())
    };
    let specific = if origin.is_secure { "https_proxy" } else { "http_proxy" };
    let proxy = either(specific).or_else(|| either("all_proxy"))?;
    let is_exempt =
        either("no_proxy").is_some_and(|list| list.split(',').any(|entry| exempts(entry.trim(), origin)));
    (!is_exempt).then_some(proxy)
}

/// Whether an entry of `no_proxy` means this host: itself, what ends in it behind a dot, one port of it, an address, a network
/// (`10.0.0.0/8`), or all.
fn exempts(entry: &str, origin: &Origin) -> bool {
    let (entry, host) = (entry.to_ascii_lowercase(), origin.host());
    let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    if entry == "*" {
        return true;
    }
    if let Some((network, length)) = entry.split_once('/') {
        return address.is_some_and(|address| is_within(address, network, length));
    }
    if let Ok(entry) = entry.parse::<IpAddr>() {
        return address == Some(entry);
    }
    let (name, port) = match entry.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (entry.as_str(), None),
    };
    let domain = name.strip_prefix("*.").or(name.strip_prefix('.')).unwrap_or(name);
    port.is_none_or(|port| port == origin.port())
        && !domain.is_empty()
        && (host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')))
}

/// Whether an address is of the network that these are the address and the prefix's length of.
fn is_within(address: IpAddr, network: &str, length: &str) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let (Ok(network), Ok(length)) = (network.parse::<IpAddr>(), length.parse::<u32>()) else { return false };
    let ((address, most), (network, of)) = (bits(address), bits(network));
    let mask = u128::MAX.checked_shl(128 - length.min(128)).unwrap_or(0);
    most == of && length <= most && address & mask == network & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        Origin::of(&text.parse().unwrap()).unwrap()
    }

    #[test]
    fn the_proxy_is_the_one_for_the_scheme_unless_the_host_is_exempt() {
        let set =
            [("HTTPS_PROXY", "http://p:1"), ("http_proxy", "http://q:2"), ("NO_PROXY", "a.x, .b.x,c.x:5000")];
        let get = |name: &str| set.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned());
        let proxy = |text: &str| proxy_for(&origin(text), get);
        assert_eq!(proxy("https://d.x").as_deref(), Some("http://p:1"));
        assert_eq!(proxy("http://d.x").as_deref(), Some("http://q:2"));
        for exempt in ["https://a.x", "https://www.a.x", "https://b.x:1", "https://w.b.x", "http://c.x:5000"]
        {
            assert_eq!(proxy(exempt), None, "{exempt}");
        }
        for (entry, exempt, other) in [
            ("10.0.0.0/8", "http://10.9.8.7:5000", "http://11.0.0.1"),
            ("fd00::/8", "https://[fd12::1]:5000", "https://[fe80::1]"),
            ("0.0.0.0/0", "http://9.9.9.9", "http://[::1]"),
            ("::1", "http://[::1]:5000", "http://[::2]"),
            ("[::1]:5000", "http://[::1]:5000", "http://[::1]"),
            ("a.x:443", "https://a.x", "http://a.x"),
            ("a.x:80", "http://a.x", "https://a.x"),
        ] {
            assert!(exempts(entry, &origin(exempt)), "{entry}");
            assert!(!exempts(entry, &origin(other)), "{entry}");
        }
        assert!(proxy("https://nota.x").is_some());
        assert!(proxy("https://c.x").is_some());
        assert_eq!(
            proxy_for(&origin("http://a.x"), |n| (n == "all_proxy" || n == "no_proxy")
                .then(|| "*".to_owned())),
            None
        );
    }
}
