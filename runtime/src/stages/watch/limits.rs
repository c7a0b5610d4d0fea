//! What plugins watch of a running container, and what is done about it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use coracle_isolator::Handles;
use coracle_isolator_host::Watched;
use coracle_sys::file::Resolve;
use coracle_sys::{Errno, event, file, process};

use crate::state::{State, WATCHED};

/// For how long nobody is asked again who had nothing to tell.
const REST: Duration = Duration::from_millis(100);

/// The longest note, in bytes.
const LONGEST_NOTE: usize = 4096;

/// What whoever ends a container at a limit leaves in its state: a line with the reason, and the message after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// A word for programs: `disk`.
    pub reason: String,
    /// What happened, for people; empty where an earlier version of the runtime wrote the note.
    pub message: String,
}

impl Note {
    /// The note in `state`, if there is one.
    pub fn read(state: &State) -> Option<Self> {
        let noted = file::read(state.dir(), WATCHED, LONGEST_NOTE as u64, Resolve::BeneathNoLinks).ok()?;
        let text = String::from_utf8_lossy(&noted);
        let (reason, message) = text.split_once('\n').unwrap_or((&*text, ""));
        let (reason, message) = (reason.to_owned(), message.to_owned());
        (!reason.is_empty()).then_some(Self { reason, message })
    }

    fn write(&self, to: BorrowedFd<'_>) {
        let text = format!("{}\n{}", self.reason, self.message);
        let _ = file::write_all(to, &text.as_bytes()[..text.len().min(LONGEST_NOTE)]);
    }
}

/// What plugins watch of a container. Each limitation is told once; one that ends the container kills its first process.
pub struct Limits<'a> {
    /// None in the place of one that watches no more.
    watched: Vec<Option<Watched<'a>>>,
    /// A timer in the place of one that rests: a descriptor that is always readable must not keep a processor busy.
    resting: Vec<Option<OwnedFd>>,
    container: Option<&'a Handles<'a>>,
    /// Where is written why the container is ended, for those who follow it.
    note: Option<BorrowedFd<'a>>,
    tell: &'a dyn Fn(String),
    /// What somebody could not tell, last.
    failure: String,
}

impl<'a> Limits<'a> {
    /// For a container that no plugin watches.
    pub fn none() -> Self {
        Self {
            watched: Vec::new(),
            resting: Vec::new(),
            container: None,
            note: None,
            tell: &|_| {},
            failure: String::new(),
        }
    }

    /// What `watched` watch of `container`; `tell` tells people.
    pub fn new(container: &'a Handles<'a>, watched: Vec<Watched<'a>>, tell: &'a dyn Fn(String)) -> Self {
        Self {
            resting: watched.iter().map(|_| None).collect(),
            watched: watched.into_iter().map(Some).collect(),
            container: Some(container),
            note: None,
            tell,
            failure: String::new(),
        }
    }

    /// The same, with a file for the reason of an end that a limit brings.
    pub fn noting(self, note: Option<BorrowedFd<'a>>) -> Self {
        Self { note, ..self }
    }

    /// The descriptors to wait for, each with its index; the timer of one that rests.
    pub(super) fn fds(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        let all = self.watched.iter().zip(&self.resting).enumerate();
        all.filter_map(|(index, (watched, resting))| {
            let fd = &watched.as_ref()?.fd;
            Some((index, resting.as_ref().unwrap_or(fd).as_fd()))
        })
    }

    /// Looks at what the descriptor at `index` became readable for.
    pub(super) fn look(&mut self, index: usize) {
        let (Some(Some(watched)), Some(container)) = (self.watched.get(index), self.container) else {
            return;
        };
        if self.resting.get_mut(index).and_then(Option::take).is_some() {
            return;
        }
        let is_over = is_at_its_end(watched.fd.as_fd());
        if is_over && watched.is_lost() {
            return self.watch_again(index, container);
        }
        let done = match watched.limitation(container) {
            Ok(None) => is_over,
            Ok(Some((isolator, limitation))) => {
                let ends = watched.ends_container();
                let outcome = if ends { "the container is killed" } else { "the container goes on" };
                let (id, reason, message) = (container.id, limitation.reason, limitation.message);
                (self.tell)(format!("container {id:?}: isolator {isolator}: {message}; {outcome}"));
                if ends {
                    self.end(container, Note { reason, message });
                }
                true
            }
            // It may be able to the next time. Who limits must not be kept from it for good by a failure that the container can
            // bring about.
            Err(error) => {
                if is_over && watched.is_lost() {
                    return self.lose(index, container, &error.to_string());
                }
                let failure = format!("container {:?}: {error}", container.id);
                if failure != self.failure {
                    (self.tell)(failure.clone());
                    self.failure = failure;
                }
                is_over
            }
        };
        if done {
            self.watched[index] = None;
        } else {
            self.resting[index] = event::timer(REST).ok();
        }
    }
}

impl<'a> Limits<'a> {
    /// A plugin whose process was killed watches in a new one.
    fn watch_again(&mut self, index: usize, container: &Handles<'_>) {
        let Some(Some(lost)) = self.watched.get(index) else { return };
        match lost.again(container) {
            Ok(again) => self.watched[index] = again,
            Err(error) => self.lose(index, container, &error.to_string()),
        }
    }

    /// Nobody may run without the watch that was configured.
    fn lose(&mut self, index: usize, container: &Handles<'_>, why: &str) {
        let Some(lost) = self.watched.get_mut(index).and_then(Option::take) else { return };
        let outcome = if lost.must_watch() { "the container is killed" } else { "it watches no more" };
        (self.tell)(format!("container {:?}: {why}; {outcome}", container.id));
        if lost.must_watch() {
            self.end(container, Note { reason: "unwatched".to_owned(), message: why.to_owned() });
        }
    }

    fn end(&self, container: &Handles<'_>, why: Note) {
        let Some(pidfd) = container.pidfd else { return };
        if let Some(note) = self.note {
            why.write(note);
        }
        let _ = process::signal(pidfd, libc::SIGKILL);
    }
}

/// Takes what made `fd` readable; whether nothing can ever come any more. A cgroup's file is read from its beginning, which is
/// what has the kernel tell of its next change; it has an end each time.
fn is_at_its_end(fd: BorrowedFd<'_>) -> bool {
    let mut buffer = [0; 4096];
    let is_file = file::rewind(fd).is_ok();
    match file::read_some(fd, &mut buffer) {
        Ok(0) => !is_file,
        Ok(_) => false,
        Err(e) => !matches!(e.errno(), Errno::EAGAIN | Errno::EINTR),
    }
}

#[cfg(test)]
mod tests {
    use coracle_isolator::{Cgroup, CgroupVersion, Isolator};
    use coracle_isolator_host::Registry;
    use coracle_sys::descriptor;
    use oci_spec::runtime::Spec;

    use super::*;

    /// Its descriptor is always readable, and there is never a limit.
    struct Restless;

    impl Isolator for Restless {
        fn name(&self) -> &str {
            "test/restless"
        }
        fn enforces(&self, _: &Spec) -> bool {
            true
        }
        fn watch(&self, _: &Handles<'_>) -> coracle_isolator::Result<Option<OwnedFd>> {
            Ok(file::open(file::CWD, "/dev/zero", libc::O_RDONLY, 0, Resolve::Host).ok())
        }
    }

    #[test]
    fn who_had_nothing_to_tell_is_asked_again_after_a_rest() {
        let registry = Registry::new(vec![Box::new(Restless)]).unwrap();
        let cgroup = Cgroup::new(CgroupVersion::V2, Vec::new());
        let spec = Spec::default();
        let handles = Handles { id: "c", pidfd: None, cgroup: &cgroup, spec: &spec };
        let mut limits = Limits::new(&handles, registry.watch_to_end(&handles).unwrap(), &|_| {});
        let is_readable = |limits: &Limits<'_>, limit| {
            let fds: Vec<BorrowedFd<'_>> = limits.fds().map(|(_, fd)| fd).collect();
            event::readable(&fds, Some(limit)).unwrap() == [true]
        };
        for _ in 0..2 {
            assert!(is_readable(&limits, Duration::ZERO));
            limits.look(0);
            assert!(!is_readable(&limits, Duration::ZERO));
            assert!(is_readable(&limits, Duration::from_secs(5)));
            limits.look(0);
        }
    }

    #[test]
    fn a_note_tells_the_reason_and_the_message_however_long_that_is() {
        use std::io::Write;
        let root = tempfile::tempdir().unwrap();
        let state = State::create(root.path(), "web").unwrap();
        assert_eq!(Note::read(&state), None);
        let note = |message: &str| Note { reason: "disk".to_owned(), message: message.to_owned() };
        let mut place = super::super::warden::take_place(&state).unwrap().map(std::fs::File::from).unwrap();
        // As an earlier version wrote it.
        place.write_all(b"disk").unwrap();
        assert_eq!(Note::read(&state), Some(note("")));
        for message in ["its files take 5 bytes", "é".repeat(LONGEST_NOTE).as_str()] {
            place.set_len(0).unwrap();
            file::rewind(place.as_fd()).unwrap();
            note(message).write(place.as_fd());
            let told = Note::read(&state).unwrap();
            assert_eq!(told.reason, "disk");
            assert!(
                message.starts_with(told.message.trim_end_matches('\u{fffd}')) && told.message.len() > 20
            );
        }
    }

    #[test]
    fn a_file_that_was_read_may_change_again_and_a_pipe_without_a_writer_may_not() {
        use std::io::Write;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"low 0\n").unwrap();
        for _ in 0..3 {
            assert!(!is_at_its_end(file.as_fd()));
        }
        let (reader, writer) = descriptor::pipe().unwrap();
        assert!(!is_at_its_end(reader.as_fd()));
        drop(writer);
        assert!(is_at_its_end(reader.as_fd()));
    }
}
