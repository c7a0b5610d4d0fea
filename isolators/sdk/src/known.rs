//! Containers, as isolators know them on disk: an ID is one container's in its directory of states only, and what an
//! isolator keeps of it may outlive it.

use std::path::{Path, PathBuf};

/// A number for the container `id` whose state lies in the directory `states`, which names of files and addresses are made
/// of. FNV-1a, 64 bits: the same for ever, as names on disk have to be.
#[must_use]
pub fn number(states: &Path, id: &str) -> u64 {
    let bytes = states.as_os_str().as_encoded_bytes().iter().chain(b"/").chain(id.as_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The directory of states whose containers' IDs are names on disk as they are: root's, where nothing else is said.
const DEFAULT_STATES: &str = "/run/coracle";

/// The longest name of a file that is an ID as it is, in bytes: of the 255 that a name may have some are its users' own.
const LONGEST: usize = 200;

/// What the container `id` whose state lies in the directory `states` is called in names of files.
#[must_use]
pub fn file_name(states: &Path, id: &str) -> String {
    let name = id.replace('/', "~");
    if let Some(beginning) = name.get(..LONGEST) {
        return format!("{:016x}-{beginning}", number(states, id));
    }
    if states == Path::new(DEFAULT_STATES) || states.as_os_str().is_empty() {
        return name;
    }
    format!("{:016x}-{name}", number(states, id))
}

/// A path that is there as long as the container `id` is known, whose state lies in the directory `states` or, in a pod,
/// below it.
#[must_use]
pub fn owner(states: &Path, id: &str) -> PathBuf {
    let mut names = id.split('/');
    let pod = states.join(".pods").join(names.next().unwrap_or_default());
    if id.contains('/') && nix::sys::stat::stat(&pod).is_ok() {
        return names.fold(pod, |path, name| path.join("containers").join(name));
    }
    states.join(id.replace('/', "~"))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests lay out files on the host")]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_another_number_in_another_directory() {
        assert_eq!(format!("{:016x}", number(Path::new("/run/other"), "web-1")), "366af9f3aa6a53a5");
        assert_ne!(number(Path::new("/run/coracle"), "web"), number(Path::new("/run/other"), "web"));
    }

    #[test]
    fn a_name_of_a_file_is_the_id_itself_in_roots_directory_alone() {
        let names = ["/run/coracle", ""].map(|states| file_name(Path::new(states), "web/debug-1"));
        assert_eq!(names, ["web~debug-1", "web~debug-1"]);
        assert_eq!(file_name(Path::new("/run/other"), "web-1"), "366af9f3aa6a53a5-web-1");
        let [one, other] = ["a", "b"].map(|end| file_name(Path::new(""), &("x".repeat(254) + end)));
        assert!(one != other && one.len() < 220, "{one}");
    }

    #[test]
    fn a_container_is_owned_by_its_state_and_one_of_a_pod_by_its_place_there() {
        let states = tempfile::tempdir().unwrap();
        assert_eq!(owner(states.path(), "web"), states.path().join("web"));
        assert_eq!(owner(states.path(), "web/debug-1"), states.path().join("web~debug-1"));
        std::fs::create_dir_all(states.path().join(".pods/web")).unwrap();
        assert_eq!(owner(states.path(), "web"), states.path().join("web"));
        assert_eq!(
            owner(states.path(), "web/main/child"),
            states.path().join(".pods/web/containers/main/containers/child")
        );
    }
}
