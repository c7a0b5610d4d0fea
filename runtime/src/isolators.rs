//! The isolators of this runtime: those that are built in, and the plugins that are configured.

use std::path::Path;

use coracle_isolator::Isolator;
use coracle_isolator_host::{Config, Registry, plugin};
use serde_json::{Map, Value};

use crate::cli::Global;
use crate::error::{Context, Result};
use crate::self_image;

/// The program that plugins run in, beside the runtime.
pub const HOST: &str = "coracle-isolator-host";

/// All isolators, in the order of their calls. A plugin that can't be loaded fails the calls that it is asked for.
///
/// # Errors
/// Where the configuration is malformed, or two wait for each other.
pub fn all(global: &Global) -> Result<Registry> {
    let mut config = read(global)?;
    let mut built_in = built_in(&global.root);
    for isolator in &mut built_in {
        // What has a file of its own is a plugin that takes the place of the one that is built in.
        if let Some(options) = config.built_in_options(isolator.name()).context(|| reading(global))? {
            let name = isolator.name().to_owned();
            isolator.configure(options).map_err(|e| e.in_call(&name, "configure"))?;
        }
    }
    config.isolators.retain(|name, settings| {
        settings.file.is_some() || !built_in.iter().any(|isolator| isolator.name() == name)
    });
    if config.isolators.is_empty() {
        return Ok(Registry::new(built_in)?);
    }
    Ok(Registry::with_plugins(built_in, plugin::plugins(&config, &place(global)?))?)
}

/// Those that are built in, as they are without a configuration.
///
/// # Errors
/// None of a runtime that is whole.
pub fn built_in_alone(global: &Global) -> Result<Registry> {
    Ok(Registry::new(built_in(&global.root))?)
}

/// What plugins run in.
///
/// # Errors
/// Where the runtime does not know its own file.
pub fn place(global: &Global) -> Result<plugin::Place> {
    Ok(plugin::Place { program: self_image::origin()?.with_file_name(HOST), states: global.root.clone() })
}

/// The same, to launch a container with.
///
/// # Errors
/// As [`all`], and what keeps a plugin from being loaded that is not optional.
pub fn for_launch(global: &Global) -> Result<Registry> {
    Ok(all(global)?.ready()?)
}

/// What the configuration says to the built-in isolator `name`.
///
/// # Errors
/// As [`all`].
pub fn options_of(global: &Global, name: &str) -> Result<Option<Map<String, Value>>> {
    let config = read(global)?;
    Ok(config.built_in_options(name).context(|| reading(global))?.cloned())
}

fn reading(global: &Global) -> String {
    format!("reading the configuration in {:?}", global.config)
}

fn read(global: &Global) -> Result<Config> {
    Config::read(&global.config).context(|| reading(global))
}

/// Those that are built in, for containers whose states lie in `root`.
fn built_in(root: &Path) -> Vec<Box<dyn Isolator>> {
    let mut all = coracle_isolator_linux::isolators(root);
    all.extend(coracle_isolator_metrics::isolators(root));
    all.extend(coracle_isolator_network::isolators(root));
    all.extend(coracle_isolator_volume::isolators(root));
    all.extend(coracle_isolator_cgroup::isolators());
    all.into_iter().map(|isolator| -> Box<dyn Isolator> { isolator }).collect()
}
