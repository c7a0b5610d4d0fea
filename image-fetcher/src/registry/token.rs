//! Authorization: a password as it is, or a token from the service that the registry names (distribution's
//! token and OAuth 2 specifications).

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE};
use ureq::http::{Method, Request, Response, Uri};
use ureq::{Body, SendBody};

use super::challenge::Challenge;
use super::client::Failure;
use super::credentials::Credentials;
use super::hosts::{Endpoint, Origin};
use super::refusal::{passing_refusal, refusal};
use super::secret::Secret;
use crate::error::{Error, Kind, Result};

/// No answer of a token service is longer.
const TOKEN_LIMIT: u64 = 1 << 20;

/// The value of the header `Authorization`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Authorization(Secret);

impl Authorization {
    pub(crate) fn header(&self) -> &Secret {
        &self.0
    }

    fn basic(user: &str, password: &Secret) -> Self {
        let pair = format!("{user}:{}", password.reveal());
        Self(Secret::new(format!("Basic {}", BASE64_STANDARD.encode(pair))))
    }
}

/// What has to be authorized, and with what.
pub(crate) struct Wanted<'a> {
    pub endpoint: &'a Endpoint,
    /// What the token must allow, as far as we know.
    pub scope: &'a str,
    pub credentials: Option<Credentials>,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<Secret>,
    access_token: Option<Secret>,
}

type Sent = std::result::Result<Response<Body>, Failure>;

impl Wanted<'_> {
    /// Answers a challenge; none where there is nothing to answer with. `send` sends one request.
    pub(crate) fn answer(
        &self,
        challenge: &Challenge,
        send: impl Fn(Request<SendBody<'_>>, Option<Duration>) -> Sent,
    ) -> std::result::Result<Option<Authorization>, Failure> {
        let (realm, service, scope) = match challenge {
            Challenge::Basic => {
                return Ok(match &self.credentials {
                    Some(Credentials::Password(user, password)) => Some(Authorization::basic(user, password)),
                    _ => None,
                });
            }
            Challenge::Bearer { realm, service, scope } => (realm, service.as_deref(), scope.as_deref()),
        };
        let (uri, origin) = self.realm(realm)?;
        let request = self.request(&uri, service, &self.scopes(scope.unwrap_or_default()))?;
        let mut response = send(request, None)?;
        if !response.status().is_success() {
            let passing = response.status().is_server_error() || response.status().as_u16() == 429;
            return Err(match passing {
                true => passing_refusal(response, &origin),
                false => refusal(response, &origin).into(),
            });
        }
        let bad = || Error::new(Kind::Malformed, format!("{origin} answers with no token"));
        let body = response.body_mut().with_config().limit(TOKEN_LIMIT).read_to_vec();
        let body = body.map_err(|e| match e {
            ureq::Error::BodyExceedsLimit(_) => bad().into(),
            broken => Failure::passing(Error::new(Kind::Network, format!("{origin}: {broken}")), None),
        });
        let answer: Answer = serde_json::from_slice(&body?).map_err(|_| bad())?;
        let said = |token: &Secret| !token.reveal().is_empty();
        let token = answer.token.filter(said).or(answer.access_token).ok_or_else(bad)?;
        Ok(Some(Authorization(Secret::new(format!("Bearer {}", token.reveal())))))
    }

    /// The address of the token service. A registry could name any, and be told a password there: it has to be of the
    /// registry's own domain, or of one that `hosts.toml` allows, and encrypted where the registry is.
    fn realm(&self, realm: &str) -> Result<(Uri, Origin)> {
        let registry = &self.endpoint.origin;
        let uri: Uri = realm.parse().map_err(|_| {
            Error::new(Kind::Malformed, format!("{registry} names a token service that is no address"))
        })?;
        let origin = Origin::of(&uri)?;
        if registry.is_secure && !origin.is_secure {
            let why = format!("{registry} wants a token from {origin}, which is not encrypted");
            return Err(Error::new(Kind::Denied, why));
        }
        let is_known = is_related(registry.host(), origin.host())
            || self.endpoint.realms.iter().any(|host| host == origin.host() || *host == origin.authority);
        if self.credentials.is_some() && !is_known {
            let why = format!("{registry} wants its password told to {origin}, which is of another domain");
            let hint = format!("`realms = [{:?}]` in hosts.toml allows it", origin.host());
            return Err(Error::new(Kind::Denied, why).hint(hint));
        }
        Ok((uri, origin))
    }

    /// What a token is asked for: what the registry names, which alone knows what a repository is called behind a path of its
    /// own, and what we know that it does not say, such as that we will push.
    fn scopes<'s>(&'s self, named: &'s str) -> Vec<&'s str> {
        let mut scopes: Vec<&str> = named.split_ascii_whitespace().collect();
        if !self.scope.is_empty() && !scopes.contains(&self.scope) {
            scopes.push(self.scope);
        }
        scopes
    }

    fn request(
        &self,
        uri: &Uri,
        service: Option<&str>,
        scopes: &[&str],
    ) -> Result<Request<SendBody<'static>>> {
        let encoded = |key: &str, value: &str| format!("{key}={}", percent(value));
        let mut fields: Vec<String> = Vec::new();
        fields.extend(service.map(|service| encoded("service", service)));
        let bad = |_| Error::new(Kind::Malformed, "a token service's address is none");
        if let Some(Credentials::Identity(token)) = &self.credentials {
            fields.extend([encoded("grant_type", "refresh_token"), encoded("client_id", "coracle")]);
            fields.push(encoded("refresh_token", token.reveal()));
            // A form has one list, a query one parameter for each.
            fields.push(encoded("scope", &scopes.join(" ")));
            let form = fields.join("&");
            let request = Request::builder()
                .method(Method::POST)
                .uri(uri.clone())
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .header("content-length", form.len());
            return request
                .body(SendBody::from_owned_reader(std::io::Cursor::new(form.into_bytes())))
                .map_err(bad);
        }
        fields.extend(scopes.iter().map(|scope| encoded("scope", scope)));
        let separator = if uri.query().is_some() { '&' } else { '?' };
        let mut request = Request::builder().uri(format!("{uri}{separator}{}", fields.join("&")));
        if let Some(Credentials::Password(user, password)) = &self.credentials {
            request = request.header(AUTHORIZATION, Authorization::basic(user, password).0.reveal());
        }
        request.body(SendBody::none()).map_err(bad)
    }
}

/// Whether two hosts are of one domain: the same, or one of the domain that the other is directly in, as
/// `auth.docker.io` is of that of `registry-1.docker.io`.
fn is_related(registry: &str, realm: &str) -> bool {
    let is_address = |host: &str| host.starts_with('[') || host.parse::<std::net::Ipv4Addr>().is_ok();
    if registry == realm || is_address(registry) || is_address(realm) {
        return registry == realm;
    }
    let within = |host: &str, domain: &str| {
        host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
    };
    let parent = registry.split_once('.').map(|(_, parent)| parent).filter(|parent| parent.contains('.'));
    within(realm, registry) || parent.is_some_and(|parent| within(realm, parent))
}

/// Percent-encodes what is not plain in a query.
pub(crate) fn percent(text: &str) -> String {
    use std::fmt::Write;
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string can't fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_services_of_the_same_domain_are_related_and_others_are_not() {
        for (registry, realm) in [
            ("registry-1.docker.io", "auth.docker.io"),
            ("quay.io", "quay.io"),
            ("registry.gitlab.com", "gitlab.com"),
            ("a.x", "auth.a.x"),
            ("127.0.0.1", "127.0.0.1"),
        ] {
            assert!(is_related(registry, realm), "{registry} {realm}");
        }
        for (registry, realm) in [
            ("quay.io", "docker.io"),
            ("quay.io", "evil.io"),
            ("registry.a.com", "eviла.com"),
            ("registry.a.com", "evila.com"),
            ("127.0.0.1", "127.0.0.2"),
            ("10.0.0.1", "0.0.1"),
            ("localhost", "evil"),
        ] {
            assert!(!is_related(registry, realm), "{registry} {realm}");
        }
    }

    #[test]
    fn a_scope_is_encoded() {
        assert_eq!(percent("repository:a/b:pull,push"), "repository%3Aa%2Fb%3Apull%2Cpush");
    }
}
