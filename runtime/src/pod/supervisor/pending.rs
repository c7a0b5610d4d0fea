//! Callers, and the replies that they wait for.

use std::os::fd::OwnedFd;

use coracle_sys::process::Exit;
use serde_json::{Value, json};

use super::member::Phase;
use super::{Path, Supervisor};
use crate::error::{Code, Error, Result};
use crate::pod::job::Job;
use crate::pod::plan::Role;
use crate::pod::record::Wish;
use crate::pod::varlink::{Connection, Reply};

/// The interface of a pod.
pub(super) const INTERFACE: &str = "io.coracle.Pod";

/// A caller.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) connection: Connection,
    /// What it waits for; its next call comes after that.
    pub(super) pending: Option<Pending>,
    /// Whether it takes more than one reply to the call that it waits for.
    pub(super) more: bool,
    /// Whether it takes no reply to it.
    pub(super) oneway: bool,
}

/// What a caller waits for.
#[derive(Debug)]
pub(super) enum Pending {
    /// That every container has had its turn, or the pod has failed and is over.
    Start,
    /// That the pod is over.
    Stop,
    /// That it is gone.
    Remove,
    /// That a container is over, or the pod.
    Wait(Option<Path>),
    /// That a container runs.
    Launch(Path),
    /// That a container is gone.
    Forget(Path),
    /// That a program has ended.
    Exec,
    /// What isolators tell.
    Usage,
    /// Whatever happens.
    Watch,
}

impl Client {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection, pending: None, more: false, oneway: false }
    }
}

impl Supervisor {
    /// Answers those whose answer has come.
    pub(super) fn answer(&mut self) {
        let waiting: Vec<u64> =
            self.clients.iter().filter(|(_, client)| client.pending.is_some()).map(|(id, _)| *id).collect();
        for id in waiting {
            let pending = self.clients.get(&id).and_then(|client| client.pending.as_ref());
            if let Some(reply) = pending.and_then(|pending| self.reply_to(pending)) {
                self.finish_call(id, reply, Vec::new());
            }
        }
        let forgotten: Vec<Path> =
            self.members.iter().filter(|(_, m)| m.is_forgotten()).map(|(p, _)| p.clone()).collect();
        for path in forgotten {
            let _ = self.dir.forget_life(&path);
            self.members.remove(&path);
        }
    }

    /// What is to be said to who waits for `pending`, once it can be said.
    fn reply_to(&self, pending: &Pending) -> Option<Result<Value>> {
        match pending {
            // What was made is gone by then, so that it can be tried again at once.
            Pending::Start if self.failure.is_some() => {
                let is_left = !self.is_over() && self.trouble.is_none();
                self.failure.clone().filter(|_| !is_left).map(Err)
            }
            Pending::Start => self.has_settled().then(|| Ok(self.outcome())),
            Pending::Stop => self.is_over().then(|| Ok(self.outcome())),
            Pending::Wait(None) => {
                (self.is_over() && self.record.wish == Wish::Stop).then(|| Ok(self.outcome()))
            }
            Pending::Wait(Some(path)) => match self.members.get(path) {
                None => Some(Err(super::errand::no_container(path))),
                Some(member) if matches!(member.phase, Phase::Over) => {
                    Some(Ok(json!({ "container": member.told() })))
                }
                Some(_) => None,
            },
            Pending::Launch(path) => match self.members.get(path) {
                Some(member) if matches!(member.phase, Phase::Running(_)) => {
                    Some(Ok(json!({ "container": member.told() })))
                }
                Some(member) if matches!(member.phase, Phase::Over) => Some(match &member.life.ended {
                    Some(ended) if ended.reason == "LaunchFailed" => {
                        let of_another_life = || Error::new(Code::System, ended.message.clone());
                        Err(member.failure.clone().unwrap_or_else(of_another_life))
                    }
                    _ => Ok(json!({ "container": member.told() })),
                }),
                Some(_) => None,
                None => Some(Err(super::errand::no_container(path))),
            },
            Pending::Forget(path) => {
                let is_over = |member: &super::Member| matches!(member.phase, Phase::Over);
                self.members.get(path).is_none_or(is_over).then(|| Ok(json!({})))
            }
            Pending::Remove | Pending::Exec | Pending::Usage | Pending::Watch => None,
        }
    }

    /// Whether every container has been launched, or nothing more will be for now.
    fn has_settled(&self) -> bool {
        // Those that were started again in this run, not in an earlier one.
        let has_had_its_turn = |member: &super::Member| {
            let has_failed = member.streak > 0 || member.unpulled > 0;
            has_failed || matches!(member.phase, Phase::Running(_) | Phase::BackOff(_) | Phase::Over)
        };
        let main = self.members.values().filter(|member| member.plan.role != Role::Nested);
        self.record.wish == Wish::Stop || main.clone().all(has_had_its_turn) || self.init_fails()
    }

    /// Whether a container that others wait for fails again and again.
    fn init_fails(&self) -> bool {
        self.members.values().any(|member| member.plan.role != Role::Main && member.is_stuck())
    }

    /// Says `reply`, the last one, to the caller `id`.
    pub(super) fn finish_call(&mut self, id: u64, reply: Result<Value>, fds: Vec<OwnedFd>) {
        let reply = match reply {
            Ok(parameters) => Reply::last(parameters),
            Err(error) => Reply::failed(INTERFACE, &error),
        };
        self.say(id, &reply, fds);
        if let Some(client) = self.clients.get_mut(&id) {
            client.pending = None;
        }
        self.take_calls(id);
    }

    /// Says `reply` to the caller `id`; one that is gone is forgotten.
    pub(super) fn say(&mut self, id: u64, reply: &Reply, fds: Vec<OwnedFd>) {
        let Some(client) = self.clients.get_mut(&id).filter(|client| !client.oneway) else { return };
        if client.connection.send(reply, fds).is_err() {
            self.forget_client(id);
        }
    }

    pub(super) fn forget_client(&mut self, id: u64) {
        self.clients.remove(&id);
        self.end_errands_of(id);
        // Whoever is reaped and not known is reaped all the same.
        self.measures.remove(&id).inspect(Job::kill);
    }

    /// The program of the caller has begun.
    pub(super) fn tell_begun(
        &mut self,
        purpose: &super::errand::Purpose,
        pid: i32,
        terminal: Option<OwnedFd>,
    ) {
        let super::errand::Purpose::Call(id) = purpose else { return };
        if self.clients.get(id).is_some_and(|client| client.more) {
            let fd = terminal.as_ref().map(|_| 0);
            let reply = Reply::more(json!({ "pid": pid, "terminal": fd }));
            self.say(*id, &reply, terminal.into_iter().collect());
        }
    }

    /// The program of the caller has ended.
    pub(super) fn answer_exec(&mut self, id: u64, ended: Result<Exit>) {
        let told = ended.map(|exit| {
            let signal = if let Exit::Signal(signal) = exit { Some(signal) } else { None };
            json!({ "exitCode": exit.code(), "signal": signal })
        });
        self.finish_call(id, told, Vec::new());
    }

    /// Tells everybody who watches.
    pub(super) fn tell_watchers(&mut self, event: &Value) {
        let is_watching = |client: &Client| matches!(client.pending, Some(Pending::Watch));
        let watching: Vec<u64> =
            self.clients.iter().filter(|(_, client)| is_watching(client)).map(|(id, _)| *id).collect();
        for id in watching {
            self.say(id, &Reply::more(json!({ "event": event })), Vec::new());
        }
    }

    /// The pod could not be ended or removed: says why. It can be tried again.
    pub(super) fn refuse_to_end(&mut self, error: &Error) {
        self.leaving = false;
        let is_asking = |client: &Client| matches!(client.pending, Some(Pending::Stop | Pending::Remove));
        let asking: Vec<u64> =
            self.clients.iter().filter(|(_, client)| is_asking(client)).map(|(id, _)| *id).collect();
        for id in asking {
            self.finish_call(id, Err(error.clone()), Vec::new());
        }
    }

    /// The pod is gone: says so to who has asked for it, and to who waits for its end.
    pub(super) fn farewell(&mut self) {
        for client in self.clients.values_mut() {
            if matches!(client.pending, Some(Pending::Remove)) {
                let _ = client.connection.send(&Reply::last(json!({})), Vec::new());
            }
        }
    }
}
