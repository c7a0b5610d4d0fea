//! A verb on a network: its plugins called one after the other (CNI 1.1, sections 3 and 4).

use coracle_isolator::{Error, Result};
use serde_json::{Map, Value, json};

use crate::answer::Answer;
use crate::conflist::{Conflist, kind};
use crate::plugin::{Call, Plugins};

/// Joins a container to the network. What each plugin answers is for `keep`, before the next one is called: to undo what
/// that does, it may have to be told (a firewall's rules name the addresses that another plugin gave).
///
/// # Errors
/// The first plugin's that fails, or `keep`.
pub(crate) fn add(
    plugins: &Plugins,
    list: &Conflist,
    call: &Call<'_>,
    (runtime, mut keep): (&Map<String, Value>, impl FnMut(&Value) -> Result<()>),
) -> Result<()> {
    let mut result = None;
    for plugin in &list.plugins {
        let answer = plugins.call(kind(plugin), call, &config(list, plugin, runtime, result.as_ref()))?;
        if !answer.is_object() {
            return Err(Error::new(format!("plugin {:?} answered ADD with no result", kind(plugin))));
        }
        // Kept before it is looked at: to undo what it did, the plugin is told it as it came.
        let understood = Answer::parse(&answer);
        keep(result.insert(answer))?;
        understood.map_err(|e| {
            Error::new(format!("plugin {:?} answered ADD with what is no result: {e}", kind(plugin)))
        })?;
    }
    Ok(())
}

/// Asks whether all is as `result` of ADD said.
///
/// # Errors
/// The first plugin's that finds that it is not.
pub(crate) fn check(
    plugins: &Plugins,
    list: &Conflist,
    call: &Call<'_>,
    (runtime, result): (&Map<String, Value>, &Value),
) -> Result<()> {
    if list.disable_check || !list.is_since("0.4.0") {
        return Ok(());
    }
    list.plugins.iter().try_for_each(|plugin| {
        plugins.call(kind(plugin), call, &config(list, plugin, runtime, Some(result))).map(drop)
    })
}

/// Takes a container off the network, last plugin first, each whatever the others did. `result` is that of ADD, as far as
/// it came.
///
/// # Errors
/// The first that fails.
pub(crate) fn del(
    plugins: &Plugins,
    list: &Conflist,
    call: &Call<'_>,
    (runtime, result): (&Map<String, Value>, Option<&Value>),
) -> Result<()> {
    let result = result.filter(|_| list.is_since("0.4.0"));
    let delete = |plugin| plugins.call(kind(plugin), call, &config(list, plugin, runtime, result)).map(drop);
    list.plugins.iter().rev().map(delete).fold(Ok(()), Result::and)
}

/// Tells the plugins which attachments there are, as pairs of container and interface: what else they have is left over.
///
/// # Errors
/// The first that fails; all are told.
pub(crate) fn collect(plugins: &Plugins, list: &Conflist, valid: &[(String, String)]) -> Result<()> {
    if list.disable_gc || !list.is_since("1.1.0") {
        return Ok(());
    }
    let valid: Vec<Value> = valid
        .iter()
        .map(|(container, interface)| json!({"containerID": container, "ifname": interface}))
        .collect();
    let tell = |plugin| {
        let mut config = config(list, plugin, &Map::new(), None);
        config["cni.dev/valid-attachments"] = json!(valid);
        plugins.call(kind(plugin), &about("GC"), &config).map(drop)
    };
    list.plugins.iter().map(tell).fold(Ok(()), Result::and)
}

/// Asks whether the network can take containers: by STATUS, and where plugins do not know that, whether they are there
/// and speak the version.
///
/// # Errors
/// The first plugin's that can't.
pub(crate) fn status(plugins: &Plugins, list: &Conflist) -> Result<()> {
    for plugin in &list.plugins {
        let name = kind(plugin);
        if list.is_since("1.1.0") {
            plugins.call(name, &about("STATUS"), &config(list, plugin, &Map::new(), None))?;
            continue;
        }
        let answer = plugins.call(name, &about("VERSION"), &json!({"cniVersion": list.cni_version}))?;
        let spoken = answer["supportedVersions"].as_array().cloned().unwrap_or_default();
        if !spoken.contains(&json!(list.cni_version)) {
            return Err(Error::new(format!(
                "plugin {name:?} does not speak version {} of CNI",
                list.cni_version
            )));
        }
    }
    Ok(())
}

/// A call that concerns no container.
fn about(verb: &'static str) -> Call<'static> {
    Call { verb, container: "", namespace: None, interface: "" }
}

/// What one plugin is told (section 4): its part of the list, and what of `runtime` it says that it can take.
fn config(
    list: &Conflist,
    plugin: &Map<String, Value>,
    runtime: &Map<String, Value>,
    result: Option<&Value>,
) -> Value {
    let mut config = plugin.clone();
    let can = config.remove("capabilities").unwrap_or_default();
    let told: Map<String, Value> = runtime
        .iter()
        .filter(|(name, _)| can[name.as_str()] == true)
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    if !told.is_empty() {
        config.insert("runtimeConfig".to_owned(), Value::Object(told));
    }
    config.insert("name".to_owned(), json!(list.name));
    config.insert("cniVersion".to_owned(), json!(list.cni_version));
    if let Some(result) = result {
        config.insert("prevResult".to_owned(), result.clone());
    }
    Value::Object(config)
}

/// Whether one of the network's plugins takes the runtime configuration `name`.
pub(crate) fn takes(list: &Conflist, name: &str) -> bool {
    list.plugins.iter().any(|plugin| plugin.get("capabilities").is_some_and(|can| can[name] == true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> Conflist {
        serde_json::from_value(json!({
            "cniVersion": "1.0.0", "name": "front",
            "plugins": [{"type": "bridge", "bridge": "br0", "capabilities": {"mac": true}}, {"type": "tuning"}],
        }))
        .unwrap()
    }

    #[test]
    fn a_plugin_is_told_its_own_part_and_what_it_can_take() {
        let list = list();
        let runtime = serde_json::from_value(json!({"mac": "02::1", "bandwidth": {}})).unwrap();
        assert_eq!(
            config(&list, &list.plugins[0], &runtime, None),
            json!({"type": "bridge", "bridge": "br0", "name": "front", "cniVersion": "1.0.0",
                "runtimeConfig": {"mac": "02::1"}})
        );
        assert_eq!(
            config(&list, &list.plugins[1], &runtime, Some(&json!({"ips": []}))),
            json!({"type": "tuning", "name": "front", "cniVersion": "1.0.0", "prevResult": {"ips": []}})
        );
        assert!(takes(&list, "mac") && !takes(&list, "bandwidth"));
    }
}
