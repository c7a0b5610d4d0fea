//! What `linux.intelRdt` asks for, and lines of a `schemata` file.

use coracle_isolator::{Error, Result};
use oci_spec::runtime::LinuxIntelRdt;

/// What a container asks of resctrl.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// The class of service by name; `None` for one of its own.
    pub(super) class: Option<String>,
    /// The lines for its `schemata` file.
    pub(super) lines: Vec<String>,
    /// Whether it gets a monitoring group of its own.
    pub(super) monitored: bool,
}

/// The class that every process is in from the start.
pub(super) const ROOT_CLASS: &str = "/";

impl Asked {
    /// # Errors
    /// Naming the field.
    pub(super) fn new(rdt: &LinuxIntelRdt) -> Result<Self> {
        let class = rdt.clos_id().clone().filter(|class| !class.is_empty());
        if let Some(class) = &class {
            check_class(class)?;
        }
        let cache = rdt.l3_cache_schema().as_deref().unwrap_or_default();
        // As runc does: bandwidth has a field of its own.
        let mut lines = lines(cache, "l3CacheSchema")?;
        lines.retain(|line| !line.starts_with("MB:"));
        lines.extend(self::lines(rdt.mem_bw_schema().as_deref().unwrap_or_default(), "memBwSchema")?);
        for (i, line) in rdt.schemata().iter().flatten().enumerate() {
            lines.extend(self::lines(line, &format!("schemata/{i}"))?);
        }
        Ok(Self { class, lines, monitored: rdt.enable_monitoring().unwrap_or(false) })
    }

    /// Whether a line is for the resource `name`, `L3` or `MB`, or a part of it, `L3CODE`.
    pub(super) fn limits(&self, name: &str) -> bool {
        self.lines.iter().any(|line| line.starts_with(name))
    }
}

/// A class is a directory right below resctrl's own, whose files and directories are no classes.
fn check_class(class: &str) -> Result<()> {
    let reserved = [".", "..", "info", "mon_groups", "mon_data"].contains(&class);
    if class != ROOT_CLASS && (reserved || class.contains(['/', '\n', '\0'])) {
        return Err(Error::new(format!("{class:?} is no class of service")).at("/linux/intelRdt/closID"));
    }
    Ok(())
}

fn lines(text: &str, field: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if domains(line).is_none() {
            return Err(Error::new(format!("{line:?} is no line of a schemata file"))
                .at(format!("/linux/intelRdt/{field}"))
                .with_hint("it reads like L3:0=ff;1=f0 or MB:0=50"));
        }
        found.push(line.to_owned());
    }
    Ok(found)
}

/// The resource of a line and its values by domain, without the zeros that the kernel may put before them.
fn domains(line: &str) -> Option<(&str, Vec<(&str, String)>)> {
    let (resource, values) = line.trim().split_once(':')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut found = Vec::new();
    for pair in values.split(';') {
        let (domain, value) = pair.split_once('=')?;
        let (domain, value) = (domain.trim(), value.trim());
        if !is_number(domain) || !is_number(value) {
            return None;
        }
        found.push((domain, value.trim_start_matches('0').to_ascii_lowercase()));
    }
    Some((resource.trim(), found))
}

/// The first of `wanted` that a `schemata` file which reads `text` does not say.
pub(super) fn missing<'a>(wanted: &'a [String], text: &str) -> Option<&'a str> {
    let stands: Vec<_> = text.lines().filter_map(domains).collect();
    let says = |line: &String| {
        let Some((resource, values)) = domains(line) else { return false };
        let there = stands.iter().find(|(name, _)| *name == resource);
        there.is_some_and(|(_, there)| values.iter().all(|value| there.contains(value)))
    };
    wanted.iter().find(|line| !says(line)).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn asked(rdt: Value) -> Result<Asked> {
        Asked::new(&serde_json::from_value(rdt).unwrap())
    }

    #[test]
    fn lines_come_from_the_cache_the_bandwidth_and_the_schemata_in_this_order() {
        let rdt = json!({
            "l3CacheSchema": "L3:0=ff;1=f\nMB:0=10", "memBwSchema": "MB:0=50", "schemata": ["L2:0=3"],
        });
        assert_eq!(asked(rdt).unwrap().lines, ["L3:0=ff;1=f", "MB:0=50", "L2:0=3"]);
    }

    #[test]
    fn what_is_no_class_or_line_is_refused_by_name() {
        for (rdt, words) in [
            (json!({"closID": "a/b"}), "/linux/intelRdt/closID: \"a/b\" is no class of service"),
            (json!({"closID": ".."}), "/linux/intelRdt/closID: \"..\" is no class"),
            (json!({"closID": "info"}), "/linux/intelRdt/closID: \"info\" is no class"),
            (json!({"l3CacheSchema": "ff"}), "/linux/intelRdt/l3CacheSchema: \"ff\" is no line"),
            (json!({"memBwSchema": "MB:0="}), "/linux/intelRdt/memBwSchema: \"MB:0=\" is no line"),
            (json!({"schemata": ["L3:0=f", "x"]}), "/linux/intelRdt/schemata/1: \"x\" is no line"),
        ] {
            let error = asked(rdt).unwrap_err().to_string();
            assert!(error.starts_with(words), "{error}");
        }
    }

    #[test]
    fn a_line_stands_whatever_its_zeros_blanks_and_other_domains() {
        let text = "    MB:0=100;1= 50\n    L3:0=00ff;1=fffff\n";
        let wanted = |line: &str| [line.to_owned()];
        assert_eq!(missing(&wanted("L3:0=FF"), text), None);
        assert_eq!(missing(&wanted("MB:1=50;0=100"), text), None);
        assert_eq!(missing(&wanted("L3:0=f"), text), Some("L3:0=f"));
        assert_eq!(missing(&wanted("L2:0=f"), text), Some("L2:0=f"));
    }
}
