//! Pulling the image of a container, which is no part of its launch: it may take any time, and is tried again whatever the
//! restart policy says of ends.

use std::time::Instant;

use super::member::{Member, Phase};
use super::{Path, Supervisor};
use crate::error::Error;
use crate::pod::document::PullPolicy;
use crate::pod::plan::Role;
use crate::pod::pull;
use crate::pod::record::Wish;

/// Whether the image is pulled before a launch is so much as tried.
pub(super) fn pulls_first(member: &Member) -> bool {
    member.plan.container.image_pull_policy == Some(PullPolicy::Always) && !member.is_pulled
}

impl Supervisor {
    /// Starts to pull the image of the container at `path`.
    pub(super) fn pull(&mut self, path: &Path) {
        let Some(member) = self.members.get_mut(path) else { return };
        member.finish_streams();
        let container = &member.plan.container;
        let policy = container.image_pull_policy.unwrap_or(PullPolicy::IfNotPresent);
        match pull::start(&self.record.store, &container.image, policy) {
            Ok(job) => {
                member.phase = Phase::Pulling(job);
                self.tell(path, "pulling");
            }
            Err(error) => self.is_not_pulled(path, &error),
        }
    }

    /// The image of the container at `path` has been pulled, or could not be.
    pub(super) fn is_pulled(&mut self, path: &Path, failure: Option<Error>) {
        if let Some(error) = failure {
            return self.is_not_pulled(path, &error);
        }
        let Some(member) = self.members.get_mut(path) else { return };
        (member.is_pulled, member.unpulled, member.message) = (true, 0, None);
        if self.record.wish == Wish::Run {
            self.launch(path);
        } else {
            member.phase = Phase::BackOff(Instant::now());
        }
    }

    /// It is tried again later; but for a container below another, whose caller is told.
    fn is_not_pulled(&mut self, path: &Path, error: &Error) {
        let bounds = self.plan.back_off;
        let Some(member) = self.members.get_mut(path) else { return };
        if member.plan.role == Role::Nested {
            return self.is_not_launched(path, error.clone());
        }
        let wait = member.back_off_pull(bounds);
        member.message = Some(error.to_string());
        member.phase = Phase::BackOff(Instant::now() + wait);
        self.tell(path, "back-off");
    }
}
