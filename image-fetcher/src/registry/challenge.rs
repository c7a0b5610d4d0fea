//! What a registry asks for when it answers 401: the header `WWW-Authenticate` (RFC 9110, 11.6.1).

/// How a registry wants to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// With a token that is to be had at `realm`.
    Bearer {
        /// The address of the token service.
        realm: String,
        /// What the token service calls the registry.
        service: Option<String>,
        /// What the token must allow.
        scope: Option<String>,
    },
    /// With a user's name and password.
    Basic,
}

/// No header that is longer is read.
const LENGTH_LIMIT: usize = 8192;

/// The best challenge of one or several headers: bearer before basic; none where nothing is known.
pub(crate) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let all: Vec<Challenge> = headers.filter(|h| h.len() <= LENGTH_LIMIT).flat_map(parse_one).collect();
    let bearer = all.iter().find(|c| matches!(c, Challenge::Bearer { .. }));
    bearer.or(all.first()).cloned()
}

/// All challenges of one header that are known.
fn parse_one(header: &str) -> Vec<Challenge> {
    let (mut found, mut rest) = (Vec::new(), header);
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (scheme, after) = token(rest);
        if scheme.is_empty() {
            return found;
        }
        let (parameters, after) = parameters(after);
        rest = after;
        let get =
            |key: &str| parameters.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v.clone());
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = get("realm")
        {
            found.push(Challenge::Bearer { realm, service: get("service"), scope: get("scope") });
        }
    }
}

/// The parameters `key=value, key="value"` at the start of `rest`, and what follows them: the next challenge.
fn parameters(mut rest: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    loop {
        let start = rest.trim_start_matches([' ', '\t', ',']);
        let (key, after) = token(start);
        let Some(after) = after.trim_start().strip_prefix('=').filter(|_| !key.is_empty()) else {
            return (found, start);
        };
        let (value, after) = value(after.trim_start());
        found.push((key.to_owned(), value));
        rest = after;
    }
}

fn token(text: &str) -> (&str, &str) {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    text.split_at(text.find(|c| !is_part(c)).unwrap_or(text.len()))
}

/// A value in quotation marks, where a backslash takes the next character as it is, or without.
fn value(text: &str) -> (String, &str) {
    let Some(inside) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find([',', ' ', '\t']).unwrap_or(text.len()));
        return (value.to_owned(), rest);
    };
    let (mut value, mut chars) = (String::new(), inside.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &inside[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(header: &str) -> (String, Option<String>, Option<String>) {
        match parse([header].into_iter()) {
            Some(Challenge::Bearer { realm, service, scope }) => (realm, service, scope),
            other => panic!("{header}: {other:?}"),
        }
    }

    #[test]
    fn a_bearer_challenge_names_realm_service_and_scope() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let (realm, service, scope) = bearer(header);
        assert_eq!(realm, "https://auth.docker.io/token");
        assert_eq!(service.as_deref(), Some("registry.docker.io"));
        assert_eq!(scope.as_deref(), Some("repository:a/b:pull,push"));
    }

    #[test]
    fn quotes_spaces_case_and_several_challenges_are_read() {
        let (realm, service, _) =
            bearer(r#"Basic realm="a, Bearer b=\"c\"", bEARER Realm = "x\"y" , service=z"#);
        assert_eq!((realm.as_str(), service.as_deref()), ("x\"y", Some("z")));
        assert_eq!(parse(["Basic realm=x"].into_iter()), Some(Challenge::Basic));
        assert_eq!(parse(["Basic"].into_iter()), Some(Challenge::Basic));
        assert_eq!(
            parse(["Basic realm=x", "Bearer realm=y"].into_iter()).map(|c| c == Challenge::Basic),
            Some(false)
        );
    }

    #[test]
    fn nonsense_ends_without_a_challenge() {
        let long = format!("Bearer realm=\"{}\"", "x".repeat(10_000));
        for header in
            ["", ",,,", "Negotiate abc==", "Bearer", "Bearer realm", "=\"", "Bearer service=x", "ä", &long]
        {
            assert_eq!(parse([header].into_iter()), None, "{header:?}");
        }
        for end in 0..40 {
            let header = r#"Bearer realm="https://a\b",service="x\"#;
            let _ = parse([&header[..end.min(header.len())]].into_iter());
        }
    }
}
