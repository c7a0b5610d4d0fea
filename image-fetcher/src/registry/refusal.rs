//! Answers that are refusals: what they say, and whether to come again.

use std::io::Read;
use std::time::{Duration, Instant, SystemTime};

use ureq::Body;
use ureq::http::header::RETRY_AFTER;
use ureq::http::{Response, StatusCode};

use super::client::Failure;
use super::hosts::Origin;
use crate::error::{Error, Kind};

/// No answer that tells of an error is read further.
const ERROR_LIMIT: u64 = 64 << 10;
/// So long is listened to what an answer says of an error.
const ERROR_PATIENCE: Duration = Duration::from_secs(5);

/// Passes an answer on, but for those that say to come again or that something is not allowed.
pub(super) fn check(response: Response<Body>, origin: &Origin) -> Result<Response<Body>, Failure> {
    match response.status().as_u16() {
        408 | 429 | 500 | 502 | 503 | 504 => Err(passing_refusal(response, origin)),
        401 | 403 => Err(Failure::from(refusal(response, origin))),
        _ => Ok(response),
    }
}

/// A refusal that may be gone when the answer says.
pub(crate) fn passing_refusal(response: Response<Body>, origin: &Origin) -> Failure {
    let value = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok());
    let after = value.and_then(|value| parse_retry(value, SystemTime::now()));
    Failure::passing(refusal(response, origin), after)
}

/// How long a `Retry-After` asks to wait: seconds, or the moment to come again (RFC 9110, 10.2.3).
pub(crate) fn parse_retry(value: &str, now: SystemTime) -> Option<Duration> {
    let seconds = value.trim().parse().map(Duration::from_secs);
    let moment = || httpdate::parse_http_date(value.trim()).ok();
    seconds.ok().or_else(|| Some(moment()?.duration_since(now).unwrap_or_default()))
}

/// What a registry's answer says that is no success.
pub(crate) fn refusal(response: Response<Body>, origin: &Origin) -> Error {
    let status = response.status();
    let kind = match status.as_u16() {
        401 | 403 => Kind::Denied,
        404 => Kind::NotFound,
        _ => Kind::Network,
    };
    let why = format!("{origin} answers {}{}", status.as_u16(), message(&words(response), status));
    let error = Error::new(kind, why);
    if kind == Kind::Denied {
        error.hint("`docker login` or `podman login` keep credentials where they are found")
    } else {
        error
    }
}

/// As much of an answer's body as comes in time: nobody is waited for to explain himself.
fn words(response: Response<Body>) -> Vec<u8> {
    let (begun, mut text, mut chunk) = (Instant::now(), Vec::new(), vec![0; 4096]);
    let mut body = response.into_body().into_with_config().limit(ERROR_LIMIT).reader();
    while begun.elapsed() < ERROR_PATIENCE
        && let Ok(n @ 1..) = body.read(&mut chunk)
    {
        text.extend_from_slice(&chunk[..n]);
    }
    text
}

/// The first error of an answer's body (distribution-spec, "Error Codes"), else the standard's words.
fn message(body: &[u8], status: StatusCode) -> String {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let first = &value["errors"][0];
    let text = [&first["message"], &first["code"], &value["details"], &value["message"]];
    let found = text.iter().find_map(|v| v.as_str()).filter(|text| !text.is_empty());
    match found {
        Some(text) => format!(": {:?}", text.chars().take(300).collect::<String>()),
        None => status.canonical_reason().map_or_else(String::new, |reason| format!(" ({reason})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_to_wait_is_said_in_seconds_or_as_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_700);
        let wait = |value| parse_retry(value, now).map(|wait| wait.as_secs());
        assert_eq!(wait("120"), Some(120));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:37 GMT"), Some(77));
        assert_eq!(wait("Sunday, 06-Nov-94 08:49:37 GMT"), Some(77));
        assert_eq!(wait("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0));
        assert_eq!(wait("soon"), None);
    }
}
