//! What the files of a control group held before they were written, so that a failed update leaves the earlier limits.

/// One write that can be taken back.
#[derive(Debug)]
pub(crate) struct Before {
    pub(crate) controller: String,
    pub(crate) file: String,
    /// What was written.
    pub(crate) written: String,
    /// What the whole file held.
    pub(crate) held: String,
}

impl Before {
    /// What to write so that the file holds again what it did.
    pub(crate) fn restoring(&self) -> Vec<String> {
        let held = self.held.trim();
        if let Some(key) = self.key() {
            let is_its_own = |line: &&str| line.split_ascii_whitespace().next() == Some(key);
            let own: Vec<String> = held.lines().filter(is_its_own).map(str::to_owned).collect();
            return if own.is_empty() { vec![format!("{key} {}", self.none())] } else { own };
        }
        let first = held.lines().next().unwrap_or_default();
        let value = match self.file.as_str() {
            // It tells more than it takes: `oom_kill_disable 0`, then lines of what happened.
            "memory.oom_control" => first.rsplit(' ').next().unwrap_or_default(),
            _ => first,
        };
        // Nothing can be written only as an empty line.
        vec![if value.is_empty() { "\n".to_owned() } else { value.to_owned() }]
    }

    /// The device or interface that the write was about, in files that hold a line for each.
    fn key(&self) -> Option<&str> {
        let (key, _) = self.written.split_once(' ')?;
        let is_keyed = key.contains(':') || matches!(self.file.as_str(), "rdma.max" | "net_prio.ifpriomap");
        is_keyed.then_some(key)
    }

    /// How a file is told that a device has no limit of its own.
    fn none(&self) -> &'static str {
        match self.file.as_str() {
            "io.max" => "rbps=max wbps=max riops=max wiops=max",
            "rdma.max" => "hca_handle=max hca_object=max",
            file if file.contains("weight") => "default",
            _ => "0",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_file_is_told_in_its_own_words() {
        for (file, written, held, wanted) in [
            ("memory.max", "5", "max\n", &["max"][..]),
            ("cpu.max", "5 100", "max 100000\n", &["max 100000"]),
            ("cpuset.cpus", "0", "\n", &["\n"]),
            ("memory.oom_control", "1", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", &["0"]),
            ("io.max", "8:0 rbps=5", "8:0 rbps=9 wbps=max\n8:16 rbps=1\n", &["8:0 rbps=9 wbps=max"]),
            ("io.max", "8:0 rbps=5", "", &["8:0 rbps=max wbps=max riops=max wiops=max"]),
            ("io.bfq.weight", "500", "default 100\n8:0 5\n", &["default 100"]),
            ("io.bfq.weight", "8:1 500", "default 100\n", &["8:1 default"]),
            ("blkio.throttle.read_bps_device", "8:0 5", "\n", &["8:0 0"]),
            ("net_prio.ifpriomap", "lo 5", "lo 0\neth0 1\n", &["lo 0"]),
            ("rdma.max", "mlx hca_handle=1", "", &["mlx hca_handle=max hca_object=max"]),
        ] {
            let [file, written, held] = [file, written, held].map(str::to_owned);
            let before = Before { controller: String::new(), file, written, held };
            assert_eq!(before.restoring(), wanted, "{before:?}");
        }
    }
}
