//! `linux/landlock`: what a process may no longer do to files, ports and other processes (landlock(7)).
//!
//! The runtime specification has no field for it yet (the proposal for one, opencontainers/runtime-spec#1241, knows
//! files only), so that an annotation holds the rules; docs/landlock.md describes it. The document is read here and the
//! kernel asked what it knows; the child opens the paths in the container's root and puts the rules in force. Three
//! system calls do it, in the kernel's own words, so that the landlock crate would bring more code than it saves.

mod rights;

use std::path::PathBuf;

use coracle_isolator::{Adjustment, Config, Error, Isolator, Landlock as Rules, Result, pointer};
use coracle_sys::landlock;
use serde::Deserialize;

use rights::{FILES, Kind, PORTS, Rights, SCOPES};

/// The annotation that holds the rules, as a JSON document.
pub const ANNOTATION: &str = "io.coracle.landlock";

/// Reads the annotation for every process. A right that the kernel does not know is an error, unless the document says
/// `bestEffort`: then it is left out, with a warning.
#[derive(Debug)]
pub struct Landlock;

impl Isolator for Landlock {
    fn name(&self) -> &str {
        "linux/landlock"
    }

    fn process(&self, config: &Config<'_>) -> Result<Adjustment> {
        let mut adjustment = Adjustment::default();
        let annotation = config.spec.annotations().as_ref().and_then(|all| all.get(ANNOTATION));
        let Some(text) = annotation else { return Ok(adjustment) };
        let at = pointer("/annotations", ANNOTATION);
        let document = Document::parse(text).map_err(|e| e.at(at.clone()))?;
        let abi = landlock::abi().or_else(|e| match document.best_effort {
            true => Ok(0),
            false => Err(Error::failed(e.call(), e.errno())
                .with_hint("this kernel has no Landlock; \"bestEffort\" goes without")
                .at(at.clone())),
        })?;
        let (rules, left_out) = document.rules(abi).map_err(|e| e.at(at))?;
        adjustment.warnings.extend(left_out);
        adjustment.linux.landlock = rules;
        Ok(adjustment)
    }
}

/// What the annotation holds.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Document {
    /// The accesses to files that are forbidden but where `paths` allow them; absent, with `paths`: all.
    handled_access_fs: Option<Rights>,
    /// The accesses to ports that are forbidden but where `ports` allow them; absent, with `ports`: all.
    handled_access_net: Option<Rights>,
    /// What may not reach beyond the container's process and its descendants.
    scoped: Option<Rights>,
    paths: Option<Vec<PathRule>>,
    ports: Option<Vec<PortRule>>,
    /// Whether what the kernel does not know is left out.
    best_effort: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PathRule {
    path: PathBuf,
    access: Rights,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortRule {
    port: u16,
    access: Rights,
}

impl Document {
    fn parse(text: &str) -> Result<Self> {
        // serde would take a list for an object whose fields come in order, and an empty one for no rules at all.
        if !text.trim_start().starts_with('{') {
            return Err(Error::new("it is no JSON object"));
        }
        let document: Self = serde_json::from_str(text).map_err(|e| Error::new(e.to_string()))?;
        for (index, rule) in document.paths.iter().flatten().enumerate() {
            if !rule.path.is_absolute() {
                return Err(Error::new(format!(
                    "/paths/{index}/path is {:?}, not an absolute path",
                    rule.path
                )));
            }
        }
        Ok(document)
    }

    /// The rules for a kernel that knows the rights of `abi`, and what it doesn't know and was left out; none where
    /// nothing is left to forbid.
    fn rules(&self, abi: u32) -> Result<(Option<Rules>, Option<String>)> {
        let mut left_out = Vec::new();
        let mut known = |kind: Kind, field: &str, asked: &Rights| -> Result<u64> {
            let bits = asked.bits(kind).map_err(|why| Error::new(format!("{field}: {why}")))?;
            let lacking = bits & !kind.known(abi);
            if lacking != 0 && !self.best_effort {
                let why = format!("{field}: this kernel has no {}", kind.names(lacking));
                return Err(Error::new(why).with_hint(format!(
                    "its Landlock has ABI {abi}; \"bestEffort\" leaves out what it has not"
                )));
            }
            if lacking != 0 && !left_out.contains(&kind.names(lacking)) {
                left_out.push(kind.names(lacking));
            }
            Ok(bits & kind.known(abi))
        };
        let all = |kind: Kind, rules: bool| if rules { kind.known(abi) } else { 0 };
        let mut rules = Rules {
            handled_fs: match &self.handled_access_fs {
                Some(asked) => known(FILES, "/handledAccessFs", asked)?,
                None => all(FILES, self.paths.is_some()),
            },
            handled_net: match &self.handled_access_net {
                Some(asked) => known(PORTS, "/handledAccessNet", asked)?,
                None => all(PORTS, self.ports.is_some()),
            },
            scoped: self.scoped.as_ref().map_or(Ok(0), |asked| known(SCOPES, "/scoped", asked))?,
            ..Rules::default()
        };
        for (index, rule) in self.paths.iter().flatten().enumerate() {
            let field = format!("/paths/{index}/access");
            let access = handled(known(FILES, &field, &rule.access)?, rules.handled_fs, FILES, &field)?;
            rules.paths.push((rule.path.clone(), access));
        }
        for (index, rule) in self.ports.iter().flatten().enumerate() {
            let field = format!("/ports/{index}/access");
            let access = handled(known(PORTS, &field, &rule.access)?, rules.handled_net, PORTS, &field)?;
            rules.ports.push((rule.port, access));
        }
        let left_out = (!left_out.is_empty())
            .then(|| format!("this kernel's Landlock has no {}, left out", left_out.join(", ")));
        let forbids = rules.handled_fs | rules.handled_net | rules.scoped != 0;
        if !forbids && left_out.is_none() {
            return Err(Error::new("it forbids nothing").with_hint("leave it out"));
        }
        Ok((forbids.then_some(rules), left_out))
    }
}

/// `access`, of which nothing may be allowed that is not forbidden elsewhere: it would mean nothing, and the kernel
/// refuses it.
fn handled(access: u64, handled: u64, kind: Kind, field: &str) -> Result<u64> {
    match access & !handled {
        0 => Ok(access),
        rest => Err(Error::new(format!("{field}: {} is allowed everywhere", kind.names(rest)))
            .with_hint("name it among what is handled, or leave it out")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rules(document: &Value, abi: u32) -> Result<(Option<Rules>, Option<String>)> {
        Document::parse(&document.to_string())?.rules(abi)
    }

    fn refusal(document: &Value, abi: u32) -> String {
        rules(document, abi).unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_named_is_all_that_the_kernel_knows() {
        let document = json!({"paths": [{"path": "/usr", "access": ["execute", "read_file"]}]});
        for (abi, all) in [(1, 0x1fff), (2, 0x3fff), (3, 0x7fff), (5, 0xffff), (7, 0xffff)] {
            let rules = rules(&document, abi).unwrap().0.unwrap();
            assert_eq!((rules.handled_fs, rules.handled_net, rules.scoped), (all, 0, 0), "ABI {abi}");
            assert_eq!(rules.paths, [("/usr".into(), 5)]);
        }
    }

    #[test]
    fn rights_have_names_or_numbers() {
        let by_name = json!({"handledAccessNet": ["bind_tcp", "connect_tcp"], "scoped": ["signal"],
                             "ports": [{"port": 443, "access": ["connect_tcp"]}]});
        let by_number = json!({"handledAccessNet": 3, "scoped": 2, "ports": [{"port": 443, "access": 2}]});
        assert_eq!(rules(&by_name, 6).unwrap(), rules(&by_number, 6).unwrap());
        assert_eq!(rules(&by_name, 6).unwrap().0.unwrap().ports, [(443, 2)]);
    }

    #[test]
    fn what_the_kernel_lacks_is_refused_or_left_out_where_that_is_asked_for() {
        let asked = |best_effort: bool| json!({"handledAccessFs": ["read_file", "truncate"], "scoped": ["signal"], "bestEffort": best_effort});
        let wanted = "/handledAccessFs: this kernel has no truncate; its Landlock has ABI 2; \"bestEffort\" leaves out \
                      what it has not";
        assert_eq!(refusal(&asked(false), 2), wanted);
        let (left, warning) = rules(&asked(true), 2).unwrap();
        assert_eq!(left.map(|rules| (rules.handled_fs, rules.scoped)), Some((4, 0)));
        assert_eq!(warning.unwrap(), "this kernel's Landlock has no truncate, signal, left out");
        assert_eq!(rules(&asked(true), 0).unwrap().0, None);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (document, words) in [
            (json!([]), "it is no JSON object"),
            (json!({}), "it forbids nothing; leave it out"),
            (json!({"path": []}), "unknown field `path`, expected one of `handledAccessFs`"),
            (
                json!({"paths": [{"path": "usr", "access": []}]}),
                "/paths/0/path is \"usr\", not an absolute path",
            ),
            (
                json!({"paths": [{"path": "/", "access": ["fly"]}]}),
                "/paths/0/access: there is no right \"fly\"",
            ),
            (json!({"paths": [{"path": "/", "access": ["bind_tcp"]}]}), "there is no right \"bind_tcp\""),
            (json!({"paths": [{"path": "/", "access": "all"}]}), "expected a list of rights or their sum"),
            (
                json!({"handledAccessFs": ["execute"], "paths": [{"path": "/", "access": ["read_dir"]}]}),
                "/paths/0/access: read_dir is allowed everywhere",
            ),
            (json!({"ports": [{"port": 70_000, "access": []}]}), "integer `70000`, expected u16"),
        ] {
            let error = refusal(&document, 7);
            assert!(error.contains(words), "{document}: {error}");
        }
    }
}
