//! After a restart: what was there is admitted again in order of first admission, installed and warmed.

use std::sync::Arc;

use engine::port::Deployment;
use journal::record::EndedBecause;
use model::{FunctionName, Version};
use plan::admission::Book;
use tokio::task::JoinSet;

use super::deploy::tail;
use super::view::demand;
use super::{Error, Phase, Running, Service, deployment, reservation, until_closing};
use crate::lanes::{Closed, Image, Installed, Lane};
use crate::registry::{Admitted, Change as Entry, Function, LastUpdate, State};

/// How one installation of the start ended.
struct Brought {
    name: FunctionName,
    version: Version,
    outcome: Result<Installed, Closed>,
}

impl Service {
    /// Errors when the lanes closed meanwhile; the registry is as it was then.
    pub(super) async fn start(&mut self) -> Result<(), Error> {
        let entries = self.readmit_all();
        self.note(entries).await;
        self.collect_now().await;
        let unserved: Vec<Arc<Function>> = self.registry.functions().values().filter(|it| is_suspended(it)).cloned().collect();
        for function in unserved {
            self.route_unserved(&function.current.spec.name, Some(&function)).await;
        }
        self.install_all().await?;
        self.phase = Phase::Running;
        self.publish();
        Ok(())
    }

    /// Fills the book in order of first admission; answers the entries as they are now.
    fn readmit_all(&mut self) -> Vec<Entry> {
        let mut all: Vec<Arc<Function>> = self.registry.functions().values().cloned().collect();
        all.sort_by_key(|function| function.admitted.map_or(u64::MAX, |admitted| admitted.order));
        let mut book = Book::clone(&self.book);
        let mut entries = Vec::new();
        for function in all {
            let readmitted = readmit(&mut book, &function, self);
            let mut entry = Function { admitted: None, ..Function::clone(&function) };
            if let Some(pending) = entry.pending.take() {
                let reason = format!("the node stopped while it installed version {}; the one before it serves", pending.version);
                entry.last_update = LastUpdate::Failed { reason };
            }
            match readmitted {
                Ok(Guaranteed::Yes) => {
                    let order = function.admitted.map_or_else(|| self.registry.draw(), |admitted| admitted.order);
                    entry.admitted = Some(Admitted { order, generation: self.registry.draw() });
                    entry.state = back(&function.state);
                }
                Ok(Guaranteed::No) => entry.state = back(&function.state),
                Err(error) => {
                    entry.admitted = function.admitted;
                    entry.state = State::Suspended { reason: tail(&error.explain()) };
                }
            }
            if entry != *function {
                entry.revision = self.registry.draw();
                entries.push(Entry::Put(Box::new(entry)));
            }
        }
        self.book = Arc::new(book);
        self.options.starts.set(&self.book);
        entries
    }

    /// Installs everything that is to run, several at a time, first admitted first.
    async fn install_all(&mut self) -> Result<(), Error> {
        let mut waiting: Vec<Arc<Function>> =
            self.registry.functions().values().filter(|it| !is_suspended(it)).cloned().collect();
        waiting.sort_by_key(|function| std::cmp::Reverse(function.admitted.map_or(u64::MAX, |admitted| admitted.order)));
        let mut going: JoinSet<Brought> = JoinSet::new();
        let mut closing = self.closing.clone();
        loop {
            while going.len() < self.options.start_width.max(1)
                && let Some(function) = waiting.pop()
            {
                let (lane, deployment, image) = self.prepare(&function);
                going.spawn(bring_up(
                    self.parts.lanes.install(lane, deployment, image, Vec::new()),
                    &function,
                    self.options.install_limit,
                ));
            }
            let brought = tokio::select! {
                biased;
                () = until_closing(&mut closing) => return Err(Error::Closing),
                brought = going.join_next() => brought,
            };
            match brought {
                Some(Ok(brought)) => self.brought_up(brought).await?,
                Some(Err(_)) => return Err(Error::Cancelled),
                None => return Ok(()),
            }
        }
    }

    /// Hands over the evidence of a guarantee and names what is to be installed.
    fn prepare(&mut self, function: &Function) -> (Lane, Deployment, Arc<Image>) {
        let name = &function.current.spec.name;
        let key = self.new_key();
        let image = self.image(&function.current);
        let book = Arc::clone(&self.book);
        let reservation = book.grant(name).zip(function.admitted).map(|(grant, admitted)| {
            self.record_given(grant, admitted.generation);
            reservation(grant, admitted.generation)
        });
        let lane = if reservation.is_some() { Lane::Guaranteed } else { Lane::BestEffort };
        let deployment = deployment(key, &function.current, reservation);
        let running = Running { key, lane, image: Arc::clone(&image), deployment: deployment.clone() };
        self.running.insert(name.clone(), running);
        (lane, deployment, image)
    }

    async fn brought_up(&mut self, brought: Brought) -> Result<(), Error> {
        let name = brought.name;
        let state = match brought.outcome {
            Ok(Installed::Serving) => State::Active,
            Ok(Installed::CannotServe { log }) => State::Failed { reason: tail(&log) },
            Err(Closed) => return Err(Error::Closing),
        };
        let Some(running) = self.running.get(&name).cloned() else {
            return Ok(());
        };
        if matches!(state, State::Active) {
            self.route_to(&name, &running).await;
        } else {
            // Its reservation stays, so that a corrected version finds the room it was promised.
            self.running.remove(&name);
            let _closing = self.parts.lanes.remove(running.lane, running.key).await;
            if let Some(reservation) = running.deployment.reservation {
                self.record_ended(&name, reservation.generation, EndedBecause::Suspended);
            }
        }
        let known = self.registry.get(&name).cloned();
        if let Some(function) = known.filter(|it| it.state != state && it.current.version == brought.version) {
            let revision = self.registry.draw();
            self.note(vec![Entry::Put(Box::new(Function { state, revision, ..Function::clone(&function) }))]).await;
        } else {
            self.publish();
        }
        Ok(())
    }
}

enum Guaranteed {
    Yes,
    No,
}

fn readmit(book: &mut Book, function: &Function, service: &Service) -> Result<Guaranteed, Error> {
    let classes = service.registry.rate_classes();
    match demand(&function.current.spec, |class| classes.get(class), (&service.options.costs, function.measured))? {
        None => Ok(Guaranteed::No),
        Some(demand) => {
            let (next, _) = book.admit(&demand).map_err(|source| Error::Refused { source })?;
            *book = next;
            Ok(Guaranteed::Yes)
        }
    }
}

/// The state a function is brought up from: a reason that may no longer hold is forgotten, a first installation goes on.
fn back(state: &State) -> State {
    match state {
        State::Pending | State::Failed { .. } => State::Pending,
        State::Active | State::Suspended { .. } => State::Active,
    }
}

const fn is_suspended(function: &Function) -> bool {
    matches!(function.state, State::Suspended { .. })
}

fn bring_up(
    install: crate::lanes::Pending<Result<Installed, Closed>>,
    function: &Function,
    limit: std::time::Duration,
) -> impl Future<Output = Brought> + use<> {
    let (name, version) = (function.current.spec.name.clone(), function.current.version);
    async move {
        let late = || Ok(Installed::CannotServe { log: format!("not ready within {limit:?}") });
        let outcome = tokio::time::timeout(limit, install).await.unwrap_or_else(|_| late());
        Brought { name, version, outcome }
    }
}
