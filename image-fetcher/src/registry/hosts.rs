//! Where a registry is asked: its own address or its mirrors, as `hosts.toml` says in containerd's form
//! (docs/hosts.md there).
//!
//! ```text
//! /etc/coracle/certs.d/HOST[:PORT]/hosts.toml      then /etc/containerd/certs.d; HOST_PORT_/ before, _default/ for all others
//! ```

use std::fmt;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use coracle_sys::file::{self, Resolve};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use ureq::http::Uri;

use crate::error::{Context, Error, Kind, Result};
use crate::store::is_missing;

/// No file is longer.
const FILE_LIMIT: u64 = 1 << 20;

/// Where `hosts.toml` is looked for unless somebody says otherwise.
pub(crate) fn default_directories() -> Vec<PathBuf> {
    ["/etc/coracle/certs.d", "/etc/containerd/certs.d"].map(PathBuf::from).into()
}

/// What an address can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Capability {
    /// Blobs and manifests by digest.
    Pull,
    /// Manifests by tag.
    Resolve,
    /// Uploads.
    Push,
}

/// An address that a registry is reached at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Scheme, host and port.
    pub origin: Origin,
    /// What comes before the repository: `/v2`.
    pub path: String,
    /// What it is good for.
    pub capabilities: Vec<Capability>,
    /// Certificates of authorities (PEM) that are trusted beside those of the system.
    pub authorities: Vec<PathBuf>,
    /// The client's own certificate and key (PEM).
    pub client: Option<(PathBuf, PathBuf)>,
    /// Whether its certificate may be anyone's.
    pub skip_verify: bool,
    /// Headers that it gets with each request.
    pub headers: Vec<(String, String)>,
    /// Hosts that its tokens may come from, beside its own domain.
    pub realms: Vec<String>,
    /// The registry that it is a mirror of.
    pub mirror_of: Option<String>,
}

/// Scheme, host and port: what two addresses must have in common to share credentials.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Origin {
    /// Whether it is https.
    pub is_secure: bool,
    /// Host and port, without the port that the scheme has anyway.
    pub authority: String,
}

impl Origin {
    /// The origin of an address.
    ///
    /// # Errors
    /// Where it isn't http or https, or has a user or no host.
    pub(crate) fn of(uri: &Uri) -> Result<Self> {
        let (scheme, authority) = (uri.scheme_str().unwrap_or_default(), uri.authority());
        let host = authority.filter(|a| !a.as_str().contains('@')).map(|a| a.as_str().to_ascii_lowercase());
        let (is_secure, port) = match scheme {
            "https" => (true, ":443"),
            "http" => (false, ":80"),
            _ => return Err(Error::new(Kind::Malformed, "an address is neither http nor https")),
        };
        let host = host.ok_or_else(|| Error::new(Kind::Malformed, "an address has a user, or no host"))?;
        Ok(Self { is_secure, authority: host.strip_suffix(port).unwrap_or(&host).to_owned() })
    }

    /// The port, also where it is the one that the scheme has anyway.
    pub(crate) fn port(&self) -> &str {
        let usual = if self.is_secure { "443" } else { "80" };
        self.authority[self.host().len()..].strip_prefix(':').unwrap_or(usual)
    }

    /// The host without its port.
    pub(crate) fn host(&self) -> &str {
        let end = self.authority.rfind(':').filter(|at| !self.authority[*at..].contains(']'));
        &self.authority[..end.unwrap_or(self.authority.len())]
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.is_secure { "https" } else { "http" }, self.authority)
    }
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct HostsFile {
    server: Option<String>,
    host: Hosts,
    #[serde(flatten)]
    own: Host,
}

/// What can be said of one address.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Host {
    capabilities: Option<Vec<Capability>>,
    ca: OneOrMany<PathBuf>,
    client: Client,
    skip_verify: bool,
    override_path: bool,
    header: std::collections::BTreeMap<String, OneOrMany<String>>,
    realms: Vec<String>,
}

/// The table of hosts, in the order of the file, which is that of trying them.
#[derive(Default)]
struct Hosts(Vec<(String, Host)>);

impl<'de> Deserialize<'de> for Hosts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Ordered;
        impl<'de> Visitor<'de> for Ordered {
            type Value = Hosts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of hosts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Hosts, A::Error> {
                let mut hosts = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    hosts.push(entry);
                }
                Ok(Hosts(hosts))
            }
        }
        from.deserialize_map(Ordered)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl<T: Clone> OneOrMany<T> {
    fn list(&self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one.clone()],
            Self::Many(many) => many.clone(),
        }
    }
}

/// A certificate with its key in one file, or pairs of them.
#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Client {
    #[default]
    None,
    File(PathBuf),
    Pairs(Vec<Pair>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Pair {
    File(PathBuf),
    Both([PathBuf; 2]),
}

impl Client {
    fn first(&self) -> Option<(PathBuf, PathBuf)> {
        match self {
            Self::None => None,
            Self::File(file) => Some((file.clone(), file.clone())),
            Self::Pairs(pairs) => pairs.first().map(|pair| match pair {
                Pair::File(file) => (file.clone(), file.clone()),
                Pair::Both([certificate, key]) => (certificate.clone(), key.clone()),
            }),
        }
    }
}

/// The addresses of the registry `host`, in the order of trying them. `plain` lists those that are reached over plain
/// HTTP: it is used nowhere that nobody has named.
///
/// # Errors
/// Where a `hosts.toml` is malformed.
pub(crate) fn endpoints(directories: &[PathBuf], host: &str, plain: &[String]) -> Result<Vec<Endpoint>> {
    for directory in directories {
        for name in names(host) {
            let directory = directory.join(name);
            let path = directory.join("hosts.toml");
            let bytes = file::read(file::CWD, &path, FILE_LIMIT, Resolve::Host);
            let reading = || format!("reading {path:?}");
            if !is_missing(&bytes) {
                return read(&bytes.context(reading)?, &directory, host, plain).context(reading);
            }
            if let Some(file) = certificates(&directory) {
                return Ok(vec![own(&file, &directory, host, plain)?]);
            }
        }
    }
    Ok(vec![own(&HostsFile::default(), Path::new("/"), host, plain)?])
}

/// The names of a registry's directory: that of a host with a port may be `HOST_PORT_`, for where a colon can't be part of one.
fn names(host: &str) -> Vec<String> {
    let plain = host.rsplit_once(':').filter(|(_, port)| !port.contains(']'));
    let plain = plain.map(|(host, port)| format!("{host}_{port}_"));
    plain.into_iter().chain([host.to_owned(), "_default".to_owned()]).collect()
}

/// What a directory without `hosts.toml` says by its files, as Docker has it: authorities are `*.crt`, our own certificate is
/// `NAME.cert`, its key `NAME.key`.
fn certificates(directory: &Path) -> Option<HostsFile> {
    let mut names: Vec<PathBuf> =
        file::list(file::open_dir(directory).ok()?.as_fd()).ok()?.into_iter().map(PathBuf::from).collect();
    names.sort();
    let of = |extension: &str| {
        let is_one = |name: &&PathBuf| name.extension().is_some_and(|found| found == extension);
        names.iter().filter(is_one).cloned().collect::<Vec<_>>()
    };
    let (ca, pairs) =
        (of("crt"), of("cert").into_iter().map(|c| Pair::Both([c.clone(), c.with_extension("key")])));
    let pairs: Vec<Pair> = pairs.collect();
    let is_empty = ca.is_empty() && pairs.is_empty();
    let own = Host { ca: OneOrMany::Many(ca), client: Client::Pairs(pairs), ..Host::default() };
    (!is_empty).then(|| HostsFile { own, ..HostsFile::default() })
}

fn read(bytes: &[u8], directory: &Path, host: &str, plain: &[String]) -> Result<Vec<Endpoint>> {
    let parsed: HostsFile =
        basic_toml::from_slice(bytes).map_err(|e| Error::new(Kind::Malformed, e.to_string()))?;
    let mut found = Vec::new();
    for (address, settings) in &parsed.host.0 {
        // A password that somebody has put into an address is not for errors.
        let shown = address.rsplit('@').next().unwrap_or_default();
        let mirror = endpoint(address, settings, directory).context(|| format!("host {shown:?}"))?;
        found.push(Endpoint { mirror_of: Some(host.to_owned()), ..mirror });
    }
    let own = own(&parsed, directory, host, plain)?;
    // Settings of the last address may stand in the table, too; then they are the ones that count.
    match found.iter_mut().find(|e| e.origin == own.origin) {
        Some(same) => same.mirror_of = own.mirror_of,
        None => found.push(own),
    }
    Ok(found)
}

/// The last address: the registry's own, or what `server` has in its place, which is a mirror like others where it is of
/// another host or port.
fn own(file: &HostsFile, directory: &Path, host: &str, plain: &[String]) -> Result<Endpoint> {
    let scheme = if plain.iter().any(|p| p == host) { "http" } else { "https" };
    let name = if host == "docker.io" { "registry-1.docker.io" } else { host };
    let Some(server) = &file.server else {
        return endpoint(&format!("{scheme}://{name}"), &file.own, directory);
    };
    let found = endpoint(server, &file.own, directory)?;
    let is_own = |name: &str| {
        let origin = |scheme| Origin::of(&format!("{scheme}://{name}").parse().ok()?).ok();
        ["http", "https"].into_iter().filter_map(origin).any(|known| known == found.origin)
    };
    let mirror_of = (!is_own(name) && !is_own(host)).then(|| host.to_owned());
    Ok(Endpoint { mirror_of, ..found })
}

fn endpoint(address: &str, settings: &Host, directory: &Path) -> Result<Endpoint> {
    let address = if address.contains("://") { address.to_owned() } else { format!("https://{address}") };
    let uri: Uri = address.parse().map_err(|_| Error::new(Kind::Malformed, "it is no address"))?;
    let path = uri.path().trim_end_matches('/');
    let path =
        if settings.override_path || path.ends_with("/v2") { path.to_owned() } else { format!("{path}/v2") };
    let all = vec![Capability::Pull, Capability::Resolve, Capability::Push];
    let absolute = |path: PathBuf| directory.join(path);
    let headers = settings.header.iter().flat_map(|(k, v)| v.list().into_iter().map(|v| (k.clone(), v)));
    Ok(Endpoint {
        origin: Origin::of(&uri)?,
        path,
        capabilities: settings.capabilities.clone().unwrap_or(all),
        authorities: settings.ca.list().into_iter().map(absolute).collect(),
        client: settings.client.first().map(|(certificate, key)| (absolute(certificate), absolute(key))),
        skip_verify: settings.skip_verify,
        headers: headers.collect(),
        realms: settings.realms.clone(),
        mirror_of: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<Endpoint>> {
        read(text.as_bytes(), Path::new("/c"), "h.x", &[])
    }

    fn origins(endpoints: &[Endpoint]) -> Vec<String> {
        endpoints.iter().map(|e| format!("{}{}", e.origin, e.path)).collect()
    }

    #[test]
    fn mirrors_are_tried_in_the_order_of_the_file_and_the_registry_last() {
        let text = r#"
            server = "https://real.x:8443"
            ca = "own.pem"
            [host."https://z.x"]
              capabilities = ["pull", "resolve"]
            [host."http://a.x:5000/proxy"]
              skip_verify = true
              [host."http://a.x:5000/proxy".header]
                x-a = ["1", "2"]
            [host."https://m.x/some/path"]
              override_path = true
              ca = ["one.pem", "/abs/two.pem"]
              client = [["c.pem", "c.key"]]
        "#;
        let found = parse(text).unwrap();
        let expected =
            ["https://z.x/v2", "http://a.x:5000/proxy/v2", "https://m.x/some/path", "https://real.x:8443/v2"];
        assert_eq!(origins(&found), expected);
        assert_eq!(found[0].capabilities, [Capability::Pull, Capability::Resolve]);
        assert_eq!(
            found[1].headers,
            [("x-a".to_owned(), "1".to_owned()), ("x-a".to_owned(), "2".to_owned())]
        );
        assert!(found[1].skip_verify);
        assert_eq!(found[2].authorities, [Path::new("/c/one.pem"), Path::new("/abs/two.pem")]);
        assert_eq!(found[2].client, Some(("/c/c.pem".into(), "/c/c.key".into())));
        assert_eq!(found[3].authorities, [Path::new("/c/own.pem")]);
        assert!(found.iter().all(|e| e.mirror_of.as_deref() == Some("h.x")));
    }

    #[test]
    fn a_server_of_another_host_or_port_is_a_mirror() {
        let last = |text: &str, host: &str| {
            let found = read(text.as_bytes(), Path::new("/c"), host, &[]).unwrap();
            found.last().unwrap().mirror_of.clone()
        };
        for own in ["https://h.x", "http://h.x", "https://H.x:443/v2"] {
            assert_eq!(last(&format!("server = {own:?}"), "h.x"), None, "{own}");
        }
        for own in ["https://docker.io", "https://registry-1.docker.io"] {
            assert_eq!(last(&format!("server = {own:?}"), "docker.io"), None, "{own}");
        }
        for mirror in ["https://m.x", "https://h.x:5000", "m.x"] {
            assert_eq!(last(&format!("server = {mirror:?}"), "h.x").as_deref(), Some("h.x"), "{mirror}");
        }
        assert_eq!(last("server = \"https://m.x\"\n[host.\"https://m.x\"]", "h.x").as_deref(), Some("h.x"));
        assert_eq!(last("[host.\"https://h.x\"]", "h.x"), None);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "tests make files on the host")]
    fn directories_of_containerd_and_dockers_certificates_are_found() {
        let scratch = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            std::fs::create_dir_all(scratch.path().join(name).parent().unwrap()).unwrap();
            std::fs::write(scratch.path().join(name), text).unwrap();
        };
        write("h.x_5000_/hosts.toml", "server = \"https://m.x\"");
        write("h.x:5000/hosts.toml", "server = \"https://n.x\"");
        for name in ["ca.crt", "b.cert", "b.key", "README"] {
            write(&format!("i.x/{name}"), "");
        }
        write("j.x/README", "");
        write("_default/hosts.toml", "server = \"https://d.x\"");
        let asked = |host: &str| endpoints(&[scratch.path().to_owned()], host, &[]).unwrap();
        assert_eq!(origins(&asked("h.x:5000")), ["https://m.x/v2"]);
        assert_eq!(origins(&asked("j.x")), ["https://d.x/v2"]);
        let found = asked("i.x");
        let path = |name: &str| scratch.path().join("i.x").join(name);
        assert_eq!(origins(&found), ["https://i.x/v2"]);
        assert_eq!(found[0].authorities, [path("ca.crt")]);
        assert_eq!(found[0].client, Some((path("b.cert"), path("b.key"))));
    }

    #[test]
    fn a_registry_nobody_says_anything_about_is_asked_over_https() {
        let asked = |host: &str, plain: &[String]| origins(&endpoints(&[], host, plain).unwrap());
        assert_eq!(asked("localhost:5000", &[]), ["https://localhost:5000/v2"]);
        assert_eq!(asked("docker.io", &[]), ["https://registry-1.docker.io/v2"]);
        assert_eq!(asked("localhost:5000", &["localhost:5000".to_owned()]), ["http://localhost:5000/v2"]);
        assert_eq!(asked("localhost:5000", &["localhost".to_owned()]), ["https://localhost:5000/v2"]);
    }

    #[test]
    fn what_is_no_address_is_refused_by_name() {
        for bad in ["ftp://a.x", "https://user:hush@a.x", "https://"] {
            let error = parse(&format!("[host.{bad:?}]\n")).unwrap_err().to_string();
            assert!(error.starts_with("host ") && !error.contains("hush"), "{error}");
        }
        assert!(parse("server = 1").unwrap_err().to_string().contains("string"));
    }

    #[test]
    fn origins_are_the_same_whatever_the_case_and_the_usual_port() {
        let origin = |text: &str| Origin::of(&text.parse().unwrap()).unwrap();
        assert_eq!(origin("https://A.x:443/b"), origin("https://a.X/c"));
        assert_ne!(origin("https://a.x"), origin("http://a.x"));
        assert_ne!(origin("https://a.x"), origin("https://a.x:444"));
        assert_eq!(origin("https://[::1]:5000/").host(), "[::1]");
    }
}
