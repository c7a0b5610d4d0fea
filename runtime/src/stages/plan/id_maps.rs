//! How the owners of a mount's files are mapped (runtime-spec 1.3, config.md, "uidMappings" and "gidMappings" of mounts;
//! crun(1) for mappings in the option itself).

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Mount};
use serde::Serialize;

use super::mount_options;
use super::namespaces::id_map;
use crate::error::{Code, Error, Result};

/// How the owners of a mount's files are mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IdMap {
    /// Whether in all that is mounted below, too.
    pub recursive: bool,
    /// The maps; `None` stands for those of the container's user namespace.
    pub users: Option<Users>,
}

/// Maps of users and groups, as `/proc/PID/uid_map` wants them: ID in the file system, ID on the host, how many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Users {
    /// Of users.
    pub uid_map: String,
    /// Of groups.
    pub gid_map: String,
}

/// The map of the mount `mount`, `field` in the configuration, whose options ask for `wanted`.
///
/// # Errors
/// `InvalidSpec`, naming what is missing.
pub(super) fn plan(
    field: &str,
    mount: &Mount,
    wanted: Option<(bool, Option<String>)>,
    linux: &Linux,
) -> Result<Option<IdMap>> {
    let invalid = |why: String| Error::new(Code::InvalidSpec, format!("{field}/{why}"));
    let option = |why: String| {
        let words = mount.options().as_deref().unwrap_or_default();
        let name = if wanted.as_ref().is_some_and(|(recursive, _)| *recursive) { "ridmap" } else { "idmap" };
        Error::new(Code::InvalidSpec, format!("{}: {why}", mount_options::pointer(field, words, name)))
    };
    let (uids, gids) = (id_map(mount.uid_mappings()), id_map(mount.gid_mappings()));
    match (uids.is_empty(), gids.is_empty()) {
        (true, false) => return Err(invalid("gidMappings is set but uidMappings is not".into())),
        (false, true) => return Err(invalid("uidMappings is set but gidMappings is not".into())),
        _ => {}
    }
    let recursive = wanted.as_ref().is_some_and(|(recursive, _)| *recursive);
    let mapped = |users| Ok(Some(IdMap { recursive, users }));
    match &wanted {
        Some((_, Some(_))) if !uids.is_empty() => {
            Err(option(format!("{field}/uidMappings maps users, too")).hint("one of them must do"))
        }
        _ if !uids.is_empty() => mapped(Some(Users { uid_map: uids, gid_map: gids })),
        Some((_, Some(text))) => {
            let users = users(text, linux);
            mapped(Some(users.map_err(|why| option(format!("{text:?}: {why}")))?))
        }
        Some((_, None)) if has_user_namespace(linux) => mapped(None),
        Some((_, None)) => Err(option("it needs a user namespace, or mappings of its own".into())
            .hint("add uidMappings and gidMappings")),
        None => Ok(None),
    }
}

fn has_user_namespace(linux: &Linux) -> bool {
    linux.namespaces().iter().flatten().any(|n| n.typ() == LinuxNamespaceType::User)
}

/// Reads `uids=A-B-N#…;gids=…`; see [`map`].
fn users(text: &str, linux: &Linux) -> std::result::Result<Users, String> {
    let mut users = Users { uid_map: String::new(), gid_map: String::new() };
    for part in text.split(';') {
        match part.split_once('=') {
            Some(("uids", maps)) => users.uid_map = map(maps, linux.uid_mappings())?,
            Some(("gids", maps)) => users.gid_map = map(maps, linux.gid_mappings())?,
            _ => return Err(format!("{part:?} is neither uids=… nor gids=…")),
        }
    }
    match (users.uid_map.is_empty(), users.gid_map.is_empty()) {
        (false, false) => Ok(users),
        _ => Err("both uids=… and gids=… are needed".into()),
    }
}

/// Reads mappings `A-B-N`, separated by `#`: N IDs from A on in the file system are those from B on on the host, or
/// with a leading `@` those that are B on in the container.
fn map(text: &str, container: &Option<Vec<LinuxIdMapping>>) -> std::result::Result<String, String> {
    let mut lines = String::new();
    for mapping in text.split('#') {
        let (numbers, relative) = match mapping.strip_prefix('@') {
            Some(rest) => (rest, true),
            None => (mapping, false),
        };
        let numbers: Option<Vec<u32>> = numbers.split('-').map(|n| n.parse().ok()).collect();
        let Some([inside, outside, count]) = numbers.as_deref() else {
            return Err(format!("{mapping:?} is not three numbers with - between them"));
        };
        let outside = if relative {
            on_host(*outside, *count, container)
                .ok_or_else(|| format!("{mapping:?} is not mapped as a whole in the container"))?
        } else {
            *outside
        };
        lines.push_str(&format!("{inside} {outside} {count}\n"));
    }
    Ok(lines)
}

/// What `count` IDs from `id` on in a container are on the host.
fn on_host(id: u32, count: u32, container: &Option<Vec<LinuxIdMapping>>) -> Option<u32> {
    container.iter().flatten().find_map(|mapping| {
        let offset = id.checked_sub(mapping.container_id())?;
        (offset.checked_add(count)? <= mapping.size()).then(|| mapping.host_id() + offset)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn planned(
        mount: Value,
        wanted: Option<(bool, Option<&str>)>,
        namespaces: Value,
    ) -> Result<Option<IdMap>> {
        let mut value = json!({"destination": "/d"});
        value.as_object_mut().unwrap().extend(mount.as_object().unwrap().clone());
        let linux = json!({
            "namespaces": namespaces,
            "uidMappings": [{"containerID": 0, "hostID": 100_000, "size": 1000}],
            "gidMappings": [{"containerID": 0, "hostID": 200_000, "size": 1000}],
        });
        let wanted = wanted.map(|(recursive, text)| (recursive, text.map(str::to_owned)));
        let (mount, linux) = (serde_json::from_value(value).unwrap(), serde_json::from_value(linux).unwrap());
        plan("/mounts/2", &mount, wanted, &linux)
    }

    fn by_option(text: &str) -> Result<Users> {
        let planned = planned(json!({}), Some((false, Some(text))), json!([]))?;
        Ok(planned.unwrap().users.unwrap())
    }

    #[test]
    fn the_mounts_own_mappings_come_first() {
        let maps = json!({"uidMappings": [{"containerID": 0, "hostID": 1, "size": 2}],
                          "gidMappings": [{"containerID": 3, "hostID": 4, "size": 5}]});
        let users = Users { uid_map: "0 1 2\n".into(), gid_map: "3 4 5\n".into() };
        let expected = Some(IdMap { recursive: true, users: Some(users.clone()) });
        assert_eq!(planned(maps.clone(), Some((true, None)), json!([])).unwrap(), expected);
        // Without the option too, for this mount alone.
        let expected = Some(IdMap { recursive: false, users: Some(users) });
        assert_eq!(planned(maps, None, json!([])).unwrap(), expected);
    }

    #[test]
    fn without_mappings_they_are_the_containers() {
        let user = json!([{"type": "user"}]);
        let expected = Some(IdMap { recursive: false, users: None });
        assert_eq!(planned(json!({}), Some((false, None)), user).unwrap(), expected);
        let error = planned(json!({}), Some((false, None)), json!([])).unwrap_err().to_string();
        assert_eq!(
            error,
            "/mounts/2/options: it needs a user namespace, or mappings of its own; add uidMappings and gidMappings"
        );
        assert_eq!(planned(json!({}), None, json!([])).unwrap(), None);
    }

    #[test]
    fn mappings_come_in_pairs() {
        let error =
            planned(json!({"uidMappings": [{"containerID": 0, "hostID": 1, "size": 2}]}), None, json!([]));
        assert_eq!(error.unwrap_err().to_string(), "/mounts/2/uidMappings is set but gidMappings is not");
    }

    #[test]
    fn the_option_may_hold_mappings() {
        let users = by_option("uids=0-1-10#10-11-10;gids=@0-100-10").unwrap();
        assert_eq!((users.uid_map.as_str(), users.gid_map.as_str()), ("0 1 10\n10 11 10\n", "0 200100 10\n"));
        for (text, words) in [
            ("uids=0-1-10", "both uids=… and gids=… are needed"),
            ("uids=0-1;gids=0-1-1", "\"0-1\" is not three numbers"),
            ("uids=@0-999-2;gids=0-1-1", "is not mapped as a whole in the container"),
            ("users=0-1-1", "is neither uids=… nor gids=…"),
            ("uids=0-1-4294967296;gids=0-1-1", "is not three numbers"),
        ] {
            let error = by_option(text).unwrap_err().to_string();
            assert!(error.starts_with("/mounts/2/options: ") && error.contains(words), "{error}");
        }
    }
}
