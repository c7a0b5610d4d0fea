//! An isolator in another process: the trait, over the wire.

use std::cell::{OnceCell, RefCell};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use coracle_isolator::{
    Adjustment, CgroupVersion, Config, Errno, Error, Handles, Isolator, Kind, Limitation, Result, States,
    Status, Usage,
};
use coracle_isolator_abi::Verb;
use coracle_sys::{descriptor, file};
use oci_spec::runtime::{LinuxIntelRdt, LinuxResources, Spec};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::about::About;
use crate::config::{self, Settings};
use crate::process::{Process, failed};
use crate::wire::{Asked, OPEN, Reply, plain};

/// An isolator that is loaded from a file, in a process that it has to itself, or shares with those that are inline.
#[derive(Debug)]
pub struct Plugin {
    name: String,
    settings: Settings,
    /// Its number in its process.
    index: usize,
    host: Rc<RefCell<Host>>,
    about: OnceCell<About>,
}

/// What plugins run in, and for which containers.
#[derive(Debug, Clone)]
pub struct Place {
    /// `coracle-isolator-host`.
    pub program: PathBuf,
    /// The directory of the containers' states.
    pub states: PathBuf,
}

/// Plugins of one process, and the process while there is one.
#[derive(Debug)]
pub(crate) struct Host {
    place: Place,
    /// What it is granted; nothing stands for everything.
    granted: Option<Settings>,
    files: Vec<PluginFile>,
    process: Option<Process>,
    /// The directories of the cgroups whose limits the process may set: those of the container that it last acted on.
    cgroups: Vec<OwnedFd>,
}

#[derive(Debug)]
struct PluginFile {
    file: OwnedFd,
    path: PathBuf,
    options: String,
    stage: Stage,
}

/// How far a plugin has come in its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Unasked,
    Asked,
    Open,
}

/// The configured plugins, of which those that can be found are being loaded; what is wrong with the others stands in
/// their place.
///
/// Each process is started before the first is waited for.
pub fn plugins(config: &config::Config, place: &Place) -> Vec<(String, Settings, Result<Plugin>)> {
    let mut shared: Option<Rc<RefCell<Host>>> = None;
    let begun = config.isolators.iter().map(|(name, settings)| {
        let opened = config.open_plugin(name, settings).and_then(|(file, path)| {
            let own = || Rc::new(RefCell::new(Host::new(place, settings)));
            let host = if settings.inline { Rc::clone(shared.get_or_insert_with(own)) } else { own() };
            let index = host.borrow_mut().add(file, path, settings)?;
            let plugin = Plugin {
                name: name.clone(),
                settings: settings.clone(),
                index,
                host,
                about: OnceCell::new(),
            };
            plugin.host.borrow_mut().begin(index, settings).map_err(|e| e.in_call(name, "load"))?;
            Ok(plugin)
        });
        (name.clone(), settings.clone(), opened.map_err(|e| e.in_call(name, "load")))
    });
    let begun: Vec<_> = begun.collect();
    let open = |plugin: Plugin| {
        plugin.open()?;
        Ok(plugin)
    };
    begun.into_iter().map(|(name, settings, plugin)| (name, settings, plugin.and_then(open))).collect()
}

/// The plugin in the file `file` alone, whatever its name, as `check` looks at it. Its process is confined to `settings`.
///
/// # Errors
/// Where it can't be loaded.
pub fn lone(file: OwnedFd, path: &Path, settings: Settings, place: &Place) -> Result<Plugin> {
    let host = Rc::new(RefCell::new(Host::new(place, &settings)));
    let index = host.borrow_mut().add(file, path.to_owned(), &settings)?;
    let mut plugin = Plugin { name: String::new(), settings, index, host, about: OnceCell::new() };
    plugin.name = plugin.load()?.name.clone();
    Ok(plugin)
}

impl Host {
    fn new(place: &Place, settings: &Settings) -> Self {
        let granted = (!settings.inline).then(|| settings.clone());
        Self { place: place.clone(), granted, files: Vec::new(), process: None, cgroups: Vec::new() }
    }

    fn add(&mut self, file: OwnedFd, path: PathBuf, settings: &Settings) -> Result<usize> {
        let options = serde_json::to_string(&settings.options).map_err(|e| Error::new(e.to_string()))?;
        self.files.push(PluginFile { file, path, options, stage: Stage::Unasked });
        Ok(self.files.len() - 1)
    }

    /// The process; a new one, in which nothing is loaded, where the last is gone.
    fn process(&mut self) -> Result<&mut Process> {
        if self.process.as_ref().is_some_and(Process::has_ended) {
            self.process = None;
        }
        if self.process.is_none() {
            self.files.iter_mut().for_each(|file| file.stage = Stage::Unasked);
            let cgroups: Vec<BorrowedFd<'_>> = self.cgroups.iter().map(AsFd::as_fd).collect();
            self.process = Some(Process::start(&self.place.program, self.granted.as_ref(), &cgroups)?);
        }
        self.process.as_mut().ok_or_else(|| Error::new("there is no process"))
    }

    /// Has a process of its own act on the container whose cgroups have the directories `dirs`, where that is granted: what a
    /// process may write is settled before it loads anything.
    fn turn_to(&mut self, dirs: &[BorrowedFd<'_>]) -> Result<()> {
        let before: Vec<BorrowedFd<'_>> = self.cgroups.iter().map(AsFd::as_fd).collect();
        let is_granted = self.granted.as_ref().is_some_and(|granted| granted.cgroups);
        if !is_granted || identities(&before)? == identities(dirs)? {
            return Ok(());
        }
        let copies = dirs.iter().map(|dir| descriptor::duplicate(*dir));
        self.cgroups = copies.collect::<coracle_sys::Result<_>>().map_err(failed)?;
        self.process = None;
        Ok(())
    }

    /// The files that plugins are loaded from.
    pub(crate) fn files(&self) -> impl Iterator<Item = RawFd> {
        self.files.iter().map(|file| file.file.as_raw_fd())
    }

    /// Whether there is no process, and so nothing of what it had open.
    pub(crate) fn is_gone(&self) -> bool {
        self.process.as_ref().is_none_or(Process::is_gone)
    }

    /// Takes leave of its process: there is a new one for the next call.
    pub(crate) fn bury(&mut self) {
        self.process = None;
    }

    /// Forgets the process, which is another's, with what was open for it: there is a new one for the next call.
    pub(crate) fn forget_process(&mut self) {
        std::mem::forget((self.process.take(), std::mem::take(&mut self.cgroups)));
    }

    /// Asks the process to load a plugin.
    fn begin(&mut self, index: usize, settings: &Settings) -> Result<()> {
        self.process()?;
        let (Some(process), Some(plugin)) = (self.process.as_mut(), self.files.get_mut(index)) else {
            return Err(Error::new("there is no such plugin"));
        };
        if plugin.stage != Stage::Unasked {
            return Ok(());
        }
        let asked = Asked {
            plugin: index as u32,
            call: OPEN,
            texts: &[&plugin.options, &self.place.states.to_string_lossy()],
            fds: &[plugin.file.as_fd()],
            ..Asked::default()
        };
        process.ask(&asked, settings.deadline())?;
        plugin.stage = Stage::Asked;
        Ok(())
    }

    /// Awaits that it is loaded; what it tells of itself, unless that was told before.
    fn finish(&mut self, index: usize, settings: &Settings) -> Result<Option<About>> {
        let mut told = None;
        // Answers come in the order of the requests: those of other plugins in this process may come first.
        for at in 0..=index {
            if self.files.get(at).is_none_or(|file| file.stage != Stage::Asked) {
                continue;
            }
            let reply = self.process()?.answer(settings.deadline())?;
            let Some(file) = self.files.get_mut(at) else { continue };
            file.stage = Stage::Open;
            let path = file.path.display().to_string();
            let about = succeeded(reply).and_then(|reply| About::parse(&reply.text));
            if at == index {
                told = Some(about.map_err(|e| Error::relayed(format!("{path}: {e}"), e.errno()))?);
            }
        }
        Ok(told)
    }
}

impl Plugin {
    /// What it tells of itself.
    ///
    /// # Errors
    /// Where it can't be loaded, or is another isolator than the configuration says.
    fn load(&self) -> Result<&About> {
        let mut host = self.host.borrow_mut();
        host.begin(self.index, &self.settings)?;
        if let Some(about) = host.finish(self.index, &self.settings)? {
            let _ = self.about.set(about);
        }
        self.about.get().ok_or_else(|| Error::new("it told nothing of itself"))
    }

    fn open(&self) -> Result<&About> {
        let about = self.load().map_err(|e| e.in_call(&self.name, "load"))?;
        if about.name == self.name {
            return Ok(about);
        }
        let file = &self.host.borrow().files[self.index].path;
        Err(Error::new(format!("{} is isolator {}", file.display(), about.name)).in_call(&self.name, "load"))
    }

    /// What it tells of itself, once it is loaded.
    pub fn about(&self) -> About {
        self.about.get().cloned().unwrap_or_default()
    }

    /// What holds its process.
    pub(crate) fn host(&self) -> Rc<RefCell<Host>> {
        Rc::clone(&self.host)
    }

    /// The file that it is loaded from.
    pub fn path(&self) -> PathBuf {
        self.host.borrow().files[self.index].path.clone()
    }

    /// Makes a call, and nothing where the plugin does not have it.
    fn call(&self, verb: Verb, asked: Asked<'_>) -> Result<Reply> {
        if !self.open()?.implements(verb) {
            return Ok(Reply::default());
        }
        let mut host = self.host.borrow_mut();
        let process = host.process()?;
        let deadline = self.settings.deadline();
        process.ask(&Asked { plugin: self.index as u32, call: verb.number(), ..asked }, deadline)?;
        succeeded(process.answer(deadline)?)
    }

    fn call_with_text(&self, verb: Verb, text: &str) -> Result<Reply> {
        self.call(verb, Asked { texts: &[text], ..Asked::default() })
    }

    fn call_with_document(&self, verb: Verb, document: &impl Serialize) -> Result<Reply> {
        if !self.open()?.implements(verb) {
            return Ok(Reply::default());
        }
        self.call_with_text(verb, &text(document)?)
    }

    fn call_with_container(&self, verb: Verb, container: &Handles<'_>, document: &str) -> Result<Reply> {
        if !self.open()?.implements(verb) {
            return Ok(Reply::default());
        }
        let spec = text(container.spec)?;
        let controllers: Vec<String> = container.cgroup.dirs().map(|(names, _)| names.join(",")).collect();
        let texts = [document, container.id, &spec].into_iter().chain(controllers.iter().map(String::as_str));
        let fds = container.pidfd.into_iter().chain(container.cgroup.dirs().map(|(_, dir)| dir));
        let cgroup_version = match container.cgroup.version() {
            CgroupVersion::V1 => 1,
            CgroupVersion::V2 => 2,
        };
        let (texts, fds): (Vec<&str>, Vec<BorrowedFd<'_>>) = (texts.collect(), fds.collect());
        if ACTING.contains(&verb) {
            let dirs: Vec<BorrowedFd<'_>> = container.cgroup.dirs().map(|(_, dir)| dir).collect();
            self.host.borrow_mut().turn_to(&dirs)?;
        }
        self.call(verb, Asked { cgroup_version, texts: &texts, fds: &fds, ..Asked::default() })
    }
}

/// The calls in which limits are set; the others tell something.
const ACTING: [Verb; 5] = [Verb::Isolate, Verb::Join, Verb::Watch, Verb::Update, Verb::UpdateIntelRdt];

/// What directories are, whatever descriptors they are open at.
fn identities(dirs: &[BorrowedFd<'_>]) -> Result<Vec<(u64, u64)>> {
    let identity = |dir: &BorrowedFd<'_>| file::stat(*dir).map(|stat| (stat.st_dev, stat.st_ino));
    dirs.iter().map(identity).collect::<coracle_sys::Result<_>>().map_err(failed)
}

/// The reply, of a call that succeeded.
fn succeeded(reply: Reply) -> Result<Reply> {
    if !reply.failed {
        return Ok(reply);
    }
    let errno = (reply.errno != 0).then(|| Errno::from_raw(reply.errno));
    let words = plain(String::from_utf8_lossy(&reply.text).trim());
    Err(match errno {
        Some(errno) if words.is_empty() => Error::failed("it failed", errno),
        _ if words.is_empty() => Error::new("it failed without a word"),
        errno => Error::relayed(words, errno),
    })
}

fn text(document: &impl Serialize) -> Result<String> {
    serde_json::to_string(document).map_err(|e| Error::new(e.to_string()))
}

/// The document that a call returned; the empty one where it returned nothing.
fn document<T: DeserializeOwned + Default>(reply: &Reply, what: &str) -> Result<T> {
    if reply.text.is_empty() {
        return Ok(T::default());
    }
    let text = str::from_utf8(&reply.text).map_err(|_| Error::new(format!("its {what} is no UTF-8")))?;
    let malformed = |e: serde_json::Error| format!("its {what} is malformed: {}", plain(&e.to_string()));
    serde_json::from_str(text).map_err(|e| Error::new(malformed(e)))
}

/// The adjustment that a call returned, with words that people may be shown.
fn adjustment(reply: &Reply) -> Result<Adjustment> {
    let mut adjustment: Adjustment = document(reply, "adjustment")?;
    adjustment.warnings.iter_mut().for_each(|warning| *warning = plain(warning));
    Ok(adjustment)
}

impl Isolator for Plugin {
    fn name(&self) -> &str {
        &self.name
    }

    fn supports(&self, kind: Kind) -> bool {
        self.about.get().is_none_or(|about| about.supports.contains(&kind))
    }

    fn after(&self) -> Vec<&str> {
        self.about.get().map_or_else(Vec::new, |about| about.after.iter().map(String::as_str).collect())
    }

    fn before(&self) -> Vec<&str> {
        self.about.get().map_or_else(Vec::new, |about| about.before.iter().map(String::as_str).collect())
    }

    fn recover(&self, found: &States) -> Result<()> {
        self.call_with_document(Verb::Recover, found).map(drop)
    }

    fn prepare(&self, config: &Config<'_>) -> Result<Adjustment> {
        let adjustment = adjustment(&self.call_with_document(Verb::Prepare, config)?)?;
        if !adjustment.hooks.is_empty() && !self.settings.inline && !self.settings.hooks {
            return Err(Error::new("it may not add hooks, which run with the runtime's rights")
                .at("/hooks")
                .with_hint("`hooks = true` in its configuration grants that"));
        }
        Ok(adjustment)
    }

    fn process(&self, config: &Config<'_>) -> Result<Adjustment> {
        adjustment(&self.call_with_document(Verb::Process, config)?)
    }

    fn validate(&self, spec: &Spec) -> Result<()> {
        self.call_with_document(Verb::Validate, spec).map(drop)
    }

    fn provide(&self, config: &Config<'_>) -> Result<()> {
        self.call_with_document(Verb::Provide, config).map(drop)
    }

    fn isolate(&self, container: &Handles<'_>) -> Result<()> {
        self.call_with_container(Verb::Isolate, container, "").map(drop)
    }

    fn join(&self, container: &Handles<'_>) -> Result<()> {
        self.call_with_container(Verb::Join, container, "").map(drop)
    }

    fn watch(&self, container: &Handles<'_>) -> Result<Option<OwnedFd>> {
        self.call_with_container(Verb::Watch, container, "").map(|reply| reply.fd)
    }

    fn limitation(&self, container: &Handles<'_>) -> Result<Option<Limitation>> {
        let found: Option<Limitation> =
            document(&self.call_with_container(Verb::Limitation, container, "")?, "limitation")?;
        Ok(found.map(|found| Limitation {
            message: plain(&found.message),
            reason: plain(&found.reason),
            ..found
        }))
    }

    fn update(&self, container: &Handles<'_>, resources: &LinuxResources) -> Result<()> {
        self.call_with_container(Verb::Update, container, &text(resources)?).map(drop)
    }

    fn update_intel_rdt(&self, container: &Handles<'_>, rdt: &LinuxIntelRdt) -> Result<()> {
        self.call_with_container(Verb::UpdateIntelRdt, container, &text(rdt)?).map(drop)
    }

    fn usage(&self, container: &Handles<'_>) -> Result<Usage> {
        document(&self.call_with_container(Verb::Usage, container, "")?, "usage")
    }

    fn status(&self, container: &Handles<'_>) -> Result<Status> {
        document(&self.call_with_container(Verb::Status, container, "")?, "status")
    }

    fn give_back(&self, id: &str) -> Result<()> {
        self.call_with_text(Verb::GiveBack, id).map(drop)
    }

    fn cleanup(&self, id: &str) -> Result<()> {
        self.call_with_text(Verb::Cleanup, id).map(drop)
    }
}
