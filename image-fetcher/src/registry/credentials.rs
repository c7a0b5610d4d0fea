//! Credentials: what Docker's `config.json`, podman's `auth.json` and credential helpers know of a registry.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use coracle_sys::file::{self, Resolve};
use coracle_sys::program::{self, Outcome};
use serde::Deserialize;

use super::secret::Secret;
use crate::error::{Context, Error, Kind, Result};
use crate::reference::Reference;
use crate::store::is_missing;

/// No file of credentials is longer.
const FILE_LIMIT: u64 = 1 << 20;

/// So long a helper may take, and whoever it asks.
const HELPER_LIMIT: Duration = Duration::from_secs(120);

/// What a user proves to be somebody with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// A name and a password.
    Password(String, Secret),
    /// A token that others are to be had for (`identitytoken`).
    Identity(Secret),
}

/// A file of credentials.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct File {
    auths: BTreeMap<String, Auth>,
    /// The helper of each registry.
    cred_helpers: BTreeMap<String, String>,
    /// The helper of all others.
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: Secret,
}

/// Where credentials are looked for, in this order: what `REGISTRY_AUTH_FILE` names, podman's
/// `XDG_RUNTIME_DIR/containers/auth.json`, or `/run/containers/UID/auth.json` without that directory, and
/// `~/.config/containers/auth.json`, Docker's `~/.docker/config.json`.
pub(crate) fn default_files() -> Vec<PathBuf> {
    files(coracle_sys::identity::caller(), |name| std::env::var_os(name))
}

fn files(uid: u32, get: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let var = |name: &str| get(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(only) = var("REGISTRY_AUTH_FILE") {
        return vec![only];
    }
    let home = var("HOME");
    let in_home = |rest: &str| home.as_ref().map(|home| home.join(rest));
    let files = [
        Some(match var("XDG_RUNTIME_DIR") {
            Some(dir) => dir.join("containers/auth.json"),
            None => format!("/run/containers/{uid}/auth.json").into(),
        }),
        var("XDG_CONFIG_HOME").or(in_home(".config")).map(|dir| dir.join("containers/auth.json")),
        var("DOCKER_CONFIG").or(in_home(".docker")).map(|dir| dir.join("config.json")),
    ];
    files.into_iter().flatten().collect()
}

/// The credentials for an image, from the first of `files` that knows any.
///
/// # Errors
/// Where a file or what a helper answers is malformed. Neither is shown.
pub(crate) fn find(files: &[PathBuf], host: &str, reference: &Reference) -> Result<Option<Credentials>> {
    for path in files {
        let reading = || format!("reading the credentials in {path:?}");
        let bytes = file::read(file::CWD, path, FILE_LIMIT, Resolve::Host);
        if is_missing(&bytes) {
            continue;
        }
        let parsed: File = serde_json::from_slice(&bytes.context(reading)?).map_err(|e| {
            // The error of the parser could show what it stumbled over.
            let why = format!("{path:?} is no file of credentials: line {}, column {}", e.line(), e.column());
            Error::new(Kind::Malformed, why)
        })?;
        let found = parsed.find(host, reference).context(reading)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

impl File {
    fn find(&self, host: &str, reference: &Reference) -> Result<Option<Credentials>> {
        let names = names(host, reference);
        let known = |key: &str| names.iter().position(|name| name == plain(key));
        let helpers = self.cred_helpers.iter().filter_map(|(key, helper)| Some((known(key)?, helper)));
        let helper =
            helpers.min_by_key(|(at, _)| *at).map(|(_, helper)| helper).or(self.creds_store.as_ref());
        if let Some(helper) = helper
            && let Some(found) = ask(helper, server(host))?
        {
            return Ok(Some(found));
        }
        let best =
            self.auths.iter().filter_map(|(key, auth)| Some((known(key)?, auth))).min_by_key(|(at, _)| *at);
        best.map_or(Ok(None), |(_, auth)| auth.credentials())
    }
}

/// The names that credentials for an image may be kept under, the most specific first: podman has them for a
/// repository or a part of it, too.
fn names(host: &str, reference: &Reference) -> Vec<String> {
    let mut names = Vec::new();
    if host == reference.host() {
        let mut path = format!("{host}/{}", reference.repository());
        while path.len() > host.len() {
            names.push(path.clone());
            path.truncate(path.rfind('/').unwrap_or(0));
        }
    }
    names.push(host.to_owned());
    if host == "docker.io" {
        names.extend(["index.docker.io", "registry-1.docker.io"].map(str::to_owned));
    }
    names
}

/// A key without what Docker puts around the host: `https://index.docker.io/v1/`.
fn plain(key: &str) -> &str {
    let key = key.strip_prefix("https://").or(key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    key.strip_suffix("/v1").or(key.strip_suffix("/v2")).unwrap_or(key)
}

/// What helpers know a registry by.
fn server(host: &str) -> &str {
    if host == "docker.io" { "https://index.docker.io/v1/" } else { host }
}

impl Auth {
    fn credentials(&self) -> Result<Option<Credentials>> {
        if let Some(token) = self.identitytoken.as_ref().filter(|t| !t.reveal().is_empty()) {
            return Ok(Some(Credentials::Identity(token.clone())));
        }
        if let (Some(user), Some(password)) = (&self.username, &self.password) {
            return Ok(Some(Credentials::Password(user.clone(), password.clone())));
        }
        let Some(auth) = self.auth.as_ref().filter(|a| !a.reveal().is_empty()) else { return Ok(None) };
        let bad = || Error::new(Kind::Malformed, "an `auth` is not the base64 of USER:PASSWORD");
        let bytes = BASE64_STANDARD.decode(auth.reveal()).map_err(|_| bad())?;
        let text = String::from_utf8(bytes).map_err(|_| bad())?;
        let (user, password) = text.split_once(':').ok_or_else(bad)?;
        // Docker pads with NUL.
        Ok(Some(Credentials::Password(user.to_owned(), Secret::new(password.trim_end_matches('\0')))))
    }
}

/// Asks `docker-credential-HELPER get`; none where it knows nothing.
fn ask(helper: &str, server: &str) -> Result<Option<Credentials>> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if helper.is_empty() || !helper.chars().all(is_plain) {
        return Err(Error::new(Kind::Malformed, format!("{helper:?} is no name of a credential helper")));
    }
    let program = format!("docker-credential-{helper}");
    let failed = |why: String| Error::new(Kind::System, format!("{program} {why}"));
    #[expect(
        clippy::disallowed_methods,
        reason = "a credential helper is a program of the user's, as Docker has it"
    )]
    let mut command = Command::new(Path::new(&program));
    command.arg("get").stdout(Stdio::piped()).stderr(Stdio::null());
    // It may ask for a passphrase on the terminal.
    let asked =
        program::run_with_terminal(&mut command, format!("{server}\n").as_bytes(), Some(HELPER_LIMIT));
    let output = match asked.map_err(|e| failed(format!("failed: {e}")))? {
        Outcome::Ended(output) => output,
        Outcome::TooLate => return Err(failed(format!("has not answered within {HELPER_LIMIT:?}"))),
        Outcome::Interrupted(_) => return Err(failed("was interrupted".to_owned())),
    };
    if !output.status.success() {
        let is_unknown = String::from_utf8_lossy(&output.stdout).contains("credentials not found");
        return if is_unknown { Ok(None) } else { Err(failed(format!("ended with {}", output.status))) };
    }
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .map_err(|_| failed("has answered something malformed".to_owned()))?;
    if answer.username == "<token>" {
        return Ok(Some(Credentials::Identity(answer.secret)));
    }
    let is_known = !answer.username.is_empty() || !answer.secret.reveal().is_empty();
    Ok(is_known.then_some(Credentials::Password(answer.username, answer.secret)))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests make files on the host")]

    use super::*;

    fn look(json: &str, image: &str) -> Result<Option<Credentials>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json).unwrap();
        let reference: Reference = image.parse().unwrap();
        find(&[PathBuf::from("/nowhere"), file.path().to_owned()], reference.host(), &reference)
    }

    fn password(json: &str, image: &str) -> String {
        match look(json, image).unwrap() {
            Some(Credentials::Password(user, password)) => format!("{user}:{}", password.reveal()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn dockers_file_is_read_with_its_address_of_the_default_registry() {
        let json = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"bWU6aHVzaDo="}},"HttpHeaders":{}}"#;
        assert_eq!(password(json, "alpine"), "me:hush:");
        assert_eq!(look(json, "quay.io/a").unwrap(), None);
    }

    #[test]
    fn a_helper_may_be_named_by_dockers_address_of_the_default_registry() {
        let json = r#"{"credHelpers":{"https://index.docker.io/v1/":"a/b"}}"#;
        assert!(look(json, "alpine").unwrap_err().to_string().contains("\"a/b\" is no name"));
        assert_eq!(look(json, "quay.io/a").unwrap(), None);
    }

    #[test]
    fn podmans_file_is_looked_for_where_it_is_without_a_session() {
        let set = |names: &'static [&str]| move |name: &str| names.contains(&name).then(|| "/x".into());
        let found = |names| files(7, set(names)).iter().map(|p| p.display().to_string()).collect::<Vec<_>>();
        assert_eq!(found(&[]), ["/run/containers/7/auth.json"]);
        assert_eq!(found(&["XDG_RUNTIME_DIR"]), ["/x/containers/auth.json"]);
        assert_eq!(found(&["REGISTRY_AUTH_FILE"]), ["/x"]);
        assert_eq!(found(&["HOME"])[1..], ["/x/.config/containers/auth.json", "/x/.docker/config.json"]);
    }

    #[test]
    fn podmans_file_prefers_the_most_specific_name() {
        let json = r#"{"auths":{"h.x":{"auth":"YTph"},"h.x/n/r":{"auth":"Yzpj"},"h.x/n":{"auth":"Yjpi"}}}"#;
        assert_eq!(password(json, "h.x/n/r:1"), "c:c");
        assert_eq!(password(json, "h.x/n/other"), "b:b");
        assert_eq!(password(json, "h.x/nn/r"), "a:a");
    }

    #[test]
    fn an_identity_token_goes_before_a_password() {
        let json = r#"{"auths":{"h.x":{"auth":"YTph","identitytoken":"T"}}}"#;
        assert_eq!(look(json, "h.x/a").unwrap(), Some(Credentials::Identity(Secret::new("T"))));
    }

    #[test]
    fn no_error_and_no_debugging_shows_a_secret() {
        for json in [
            r#"{"auths":{"h.x":{"auth":"hush"}}}"#,
            r#"{"auths":{"h.x":"hush"}}"#,
            r#"{"auths":{"h.x":{"auth":["hush"#,
        ] {
            let error = look(json, "h.x/a").unwrap_err().to_string();
            assert!(!error.contains("hush"), "{error}");
        }
        let shown = format!("{:?}", Credentials::Password("me".to_owned(), Secret::new("hush")));
        assert_eq!(shown, "Password(\"me\", ***)");
    }

    #[test]
    fn a_helper_is_a_name_and_no_path() {
        let error = look(r#"{"credsStore":"../../bin/sh"}"#, "h.x/a").unwrap_err();
        assert!(error.to_string().ends_with("is no name of a credential helper"), "{error}");
    }
}
