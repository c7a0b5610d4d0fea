//! The isolators of this runtime: those that are built in, and the plugins that are configured.

use coracle_isolator::Isolator;
use coracle_isolator_host::{Config, Registry, plugin};

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
    let config = Config::read(&global.config)
        .context(|| format!("reading the configuration in {:?}", global.config))?;
    if config.isolators.is_empty() {
        return Ok(Registry::new(built_in())?);
    }
    let program = self_image::origin()?.with_file_name(HOST);
    Ok(Registry::with_plugins(built_in(), plugin::plugins(&config, &program))?)
}

/// The same, to launch a container with.
///
/// # Errors
/// As [`all`], and what keeps a plugin from being loaded that is not optional.
pub fn for_launch(global: &Global) -> Result<Registry> {
    Ok(all(global)?.ready()?)
}

/// Those that are built in.
pub fn built_in() -> Vec<Box<dyn Isolator>> {
    let mut all = coracle_isolator_linux::isolators();
    all.extend(coracle_isolator_volume::isolators());
    all.extend(coracle_isolator_cgroup::isolators());
    all.into_iter().map(|isolator| -> Box<dyn Isolator> { isolator }).collect()
}
