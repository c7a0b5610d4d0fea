//! What the probes of a container say: which is due, and what follows from what it found. Pure: the supervisor asks.

use std::time::{Duration, Instant};

use crate::pod::document::{Container, Probe, seconds};

/// Which probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// `startupProbe`.
    Startup,
    /// `livenessProbe`.
    Liveness,
    /// `readinessProbe`.
    Readiness,
}

impl Which {
    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
        }
    }
}

/// A probe and how it stands.
#[derive(Debug)]
struct Standing {
    which: Which,
    probe: Probe,
    /// When it is due; `None` while it is asked.
    due: Option<Instant>,
    /// How many of its last answers agree: with success, or below zero with failure.
    row: i64,
    holds: bool,
}

impl Standing {
    fn period(&self) -> Duration {
        seconds(self.probe.period_seconds.unwrap_or(10))
    }
}

/// What the probes of a container say.
#[derive(Debug, Default)]
pub(super) struct Health {
    all: Vec<Standing>,
}

impl Health {
    /// Of a container that does not run yet.
    pub(super) fn new(container: &Container) -> Self {
        let probes = [
            (Which::Startup, &container.startup_probe),
            (Which::Liveness, &container.liveness_probe),
            (Which::Readiness, &container.readiness_probe),
        ];
        let standing = |(which, probe): (Which, &Option<Probe>)| {
            let probe = probe.clone()?;
            // Alive until it is found to be dead; started and ready when it is found to be so.
            Some(Standing { which, probe, due: None, row: 0, holds: which == Which::Liveness })
        };
        Self { all: probes.into_iter().filter_map(standing).collect() }
    }

    /// The container has begun to run.
    pub(super) fn begin(&mut self, now: Instant) {
        for one in &mut self.all {
            one.row = 0;
            one.holds = one.which == Which::Liveness;
            one.due = Some(now + seconds(one.probe.initial_delay_seconds));
        }
    }

    /// Whether it has started, as far as is known.
    pub(super) fn has_started(&self) -> bool {
        self.all.iter().all(|one| one.which != Which::Startup || one.holds)
    }

    /// Whether it is ready.
    pub(super) fn is_ready(&self) -> bool {
        self.has_started() && self.all.iter().all(|one| one.which != Which::Readiness || one.holds)
    }

    fn is_asked(&self, one: &Standing) -> bool {
        if one.which == Which::Startup { !one.holds } else { self.has_started() }
    }

    /// When the next probe is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.all.iter().filter(|one| self.is_asked(one)).filter_map(|one| one.due).min()
    }

    /// The probes that are due, which are now being asked.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(Which, Probe)> {
        let due: Vec<usize> = (0..self.all.len())
            .filter(|index| {
                self.is_asked(&self.all[*index]) && self.all[*index].due.is_some_and(|due| due <= now)
            })
            .collect();
        due.into_iter()
            .map(|index| {
                let one = &mut self.all[index];
                one.due = None;
                (one.which, one.probe.clone())
            })
            .collect()
    }

    /// Notes that `which` could not be asked: it is due again, and nothing is known.
    pub(super) fn postpone(&mut self, which: Which, now: Instant) {
        if let Some(one) = self.all.iter_mut().find(|one| one.which == which) {
            one.due = Some(now + one.period());
        }
    }

    /// Notes an answer of `which`; true where the container is to be ended for it.
    pub(super) fn note(&mut self, which: Which, success: bool, now: Instant) -> bool {
        let Some(one) = self.all.iter_mut().find(|one| one.which == which) else { return false };
        one.due = Some(now + one.period());
        one.row = match success {
            true => one.row.max(0) + 1,
            false => one.row.min(0) - 1,
        };
        if one.row >= i64::from(one.probe.success_threshold.unwrap_or(1)) {
            one.holds = true;
        }
        let has_failed = -one.row >= i64::from(one.probe.failure_threshold.unwrap_or(3));
        if has_failed {
            one.holds = false;
        }
        has_failed && which != Which::Readiness
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(probes: &str) -> Health {
        let text = format!("{{\"name\": \"a\", \"image\": \"i\", {probes}}}");
        Health::new(&serde_json::from_str(&text).unwrap())
    }

    const EXEC: &str = r#""exec": {"command": ["true"]}"#;

    #[test]
    fn a_container_is_alive_until_it_fails_several_times_in_a_row() {
        let mut health = health(&format!(r#""livenessProbe": {{{EXEC}, "failureThreshold": 2}}"#));
        let now = Instant::now();
        health.begin(now);
        assert!(health.is_ready());
        assert_eq!(health.due(now).len(), 1);
        assert_eq!(health.due(now).len(), 0, "it is being asked");
        assert!(!health.note(Which::Liveness, false, now));
        assert!(!health.note(Which::Liveness, true, now));
        assert!(!health.note(Which::Liveness, false, now));
        assert!(health.note(Which::Liveness, false, now));
    }

    #[test]
    fn others_wait_for_the_startup_probe() {
        let mut health = health(&format!(r#""startupProbe": {{{EXEC}}}, "readinessProbe": {{{EXEC}}}"#));
        let now = Instant::now();
        health.begin(now);
        assert!(!health.has_started() && !health.is_ready());
        assert_eq!(health.due(now)[0].0, Which::Startup);
        health.note(Which::Startup, true, now);
        assert!(health.has_started() && !health.is_ready());
        assert_eq!(health.due(now)[0].0, Which::Readiness);
        assert!(!health.note(Which::Readiness, true, now));
        assert!(health.is_ready());
        for _ in 0..3 {
            assert!(!health.note(Which::Readiness, false, now));
        }
        assert!(!health.is_ready(), "what is not ready goes on");
    }

    #[test]
    fn a_time_that_cannot_be_reckoned_with_is_cut() {
        let mut health =
            health(&format!(r#""livenessProbe": {{{EXEC}, "initialDelaySeconds": 9223372036854775807}}"#));
        health.begin(Instant::now());
        assert!(health.next().is_some());
    }

    #[test]
    fn the_first_probe_waits_for_its_delay() {
        let mut health = health(&format!(r#""livenessProbe": {{{EXEC}, "initialDelaySeconds": 5}}"#));
        let now = Instant::now();
        health.begin(now);
        assert!(health.due(now).is_empty());
        assert_eq!(health.next(), Some(now + Duration::from_secs(5)));
        assert_eq!(health.due(now + Duration::from_secs(5)).len(), 1);
    }
}
