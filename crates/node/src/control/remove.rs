//! What takes promises back: deletion, a rise of T.

use std::sync::Arc;
use std::time::Duration;

use journal::record::{EndedBecause, Record};
use model::{FunctionName, RateClassName};
use plan::admission::{Book, Demand, Grant, NodeCapacity};

use super::deploy::START_MARGIN;
use super::{Error, Service};
use crate::lanes::{Lane, Route, Standing};
use crate::registry::{Change as Entry, Function, Measured, State};

impl Service {
    pub(super) async fn delete(&mut self, name: &FunctionName, revision: Option<u64>) -> Result<(), Error> {
        let function = self.registry.get(name).cloned().ok_or_else(|| Error::NoFunction { function: name.clone() })?;
        if let Some(wanted) = revision
            && wanted != function.revision
        {
            return Err(Error::Revision { function: name.clone(), found: function.revision, wanted });
        }
        self.commit(vec![Entry::Delete(name.clone())]).await?;
        // It is gone for good: what follows tells the lanes, and only a closing node can refuse that.
        self.route(name, None).await;
        if let Some(running) = self.running.remove(name) {
            let _closing = self.parts.lanes.remove(running.lane, running.key).await;
            if let Some(reservation) = running.deployment.reservation {
                self.record_ended(name, reservation.generation, EndedBecause::Withdrawn);
            }
        }
        let next = Arc::new(self.book.remove(name));
        let told = std::mem::replace(&mut self.book, next);
        let _closing = self.revise(&told, &self.book, Some(name)).await;
        self.options.starts.set(&self.book);
        self.retire(&function.current);
        self.publish();
        Ok(())
    }

    pub(super) async fn delete_rate_class(&mut self, name: RateClassName) -> Result<(), Error> {
        if !self.registry.rate_classes().contains_key(&name) {
            return Err(Error::NoRateClass { class: name });
        }
        self.refuse_while_used(&name)?;
        self.commit(vec![Entry::DeleteRateClass(name)]).await
    }

    pub(super) fn users<'a>(&'a self, class: &'a RateClassName) -> impl Iterator<Item = &'a Arc<Function>> {
        let of_class = |function: &&Arc<Function>| {
            let pacing = function.current.spec.guarantee.as_ref().map(|terms| &terms.pacing);
            pacing.is_some_and(|pacing| *pacing == model::Pacing::Shared(class.clone()))
        };
        self.registry.functions().values().filter(of_class)
    }

    fn refuse_while_used(&self, class: &RateClassName) -> Result<(), Error> {
        let mut users = self.users(class);
        match users.next() {
            None => Ok(()),
            Some(first) => {
                let function = first.current.spec.name.clone();
                Err(Error::RateClassInUse { class: class.clone(), count: 1 + users.count(), function })
            }
        }
    }

    /// T rose: admits everything again and suspends what fits no longer. This has happened and cannot be refused: a store
    /// that cannot take it now takes it with the next change.
    pub(super) async fn raise_tolerance(&mut self, tolerance: Duration) -> Result<Vec<FunctionName>, Error> {
        let from = self.book.capacity().tolerance;
        if tolerance <= from {
            return Ok(Vec::new());
        }
        self.parts.evidence.record(Record::ToleranceRaised { at: self.parts.clock.now(), from, to: tolerance });
        let capacity = NodeCapacity { tolerance, ..self.book.capacity().clone() };
        let (book, suspended) = self.readmit(capacity);
        let mut entries = Vec::new();
        for (name, reason) in &suspended {
            if let Some(function) = self.registry.get(name).cloned() {
                let revision = self.registry.draw();
                let state = State::Suspended { reason: reason.clone() };
                entries.push(Entry::Put(Box::new(Function { state, revision, ..Function::clone(&function) })));
            }
        }
        let told = std::mem::replace(&mut self.book, Arc::new(book));
        self.options.starts.set(&self.book);
        self.note(entries).await;
        for (name, _) in &suspended {
            self.suspend(name).await;
        }
        self.revise(&told, &self.book, None).await?;
        self.publish();
        Ok(suspended.into_iter().map(|(name, _)| name).collect())
    }

    /// A function's instances start slower than admission counts: its reserve grows, within its K. That takes nothing from
    /// others; where the book has no place for it on the same cores all the same, the reserve stays and the metrics show it.
    pub(super) async fn starts_slower(&mut self, name: &FunctionName, start: Duration) -> Result<(), Error> {
        let (Some(function), Some(grant)) = (self.registry.get(name).cloned(), self.book.grant(name)) else {
            return Ok(()); // it is gone, or its guarantee
        };
        let measured = Measured { cold_start: start.saturating_mul(START_MARGIN) };
        if measured.cold_start <= grant.demand.cold_start {
            return Ok(());
        }
        let demand = Demand { cold_start: measured.cold_start, ..grant.demand.clone() };
        let stays = |grant: &Grant, next: &Grant| {
            grant.shards.iter().map(|shard| shard.core).eq(next.shards.iter().map(|shard| shard.core))
        };
        let Some((book, _)) = self.book.admit(&demand).ok().filter(|(_, answer)| stays(grant, &answer.grant)) else {
            return Ok(());
        };
        let told = std::mem::replace(&mut self.book, Arc::new(book));
        self.options.starts.set(&self.book);
        // What was measured is nobody's change: a client that saw the function's revision still knows it.
        self.note(vec![Entry::Put(Box::new(Function { measured, ..Function::clone(&function) }))]).await;
        self.revise(&told, &self.book, None).await?;
        self.publish();
        Ok(())
    }

    /// The book on a changed capacity, and who is not in it any more with the reason.
    fn readmit(&self, capacity: NodeCapacity) -> (Book, Vec<(FunctionName, String)>) {
        match self.book.readmit(capacity) {
            Ok(readmission) => {
                let reasons = readmission.suspended.iter().map(|it| (it.demand.function.clone(), it.refusal.to_string()));
                (readmission.book, reasons.collect())
            }
            Err(binding) => {
                // Not even the platform fits with this T: nothing can be promised until a restart measures anew.
                let reason = format!("the node has no room for its own work: {binding}");
                let names = self.book.grants().iter().map(|grant| grant.demand.function.clone());
                let empty = names.clone().fold(Book::clone(&self.book), |book, name| book.remove(&name));
                (empty, names.map(|name| (name, reason.clone())).collect())
            }
        }
    }

    async fn suspend(&mut self, name: &FunctionName) {
        let Some(running) = self.running.remove(name) else {
            return;
        };
        let route = Route { key: running.key, standing: Standing::Suspended, image: running.image };
        self.route(name, Some(route)).await;
        let _closing = self.parts.lanes.remove(Lane::Guaranteed, running.key).await;
        if let Some(reservation) = running.deployment.reservation {
            self.record_ended(name, reservation.generation, EndedBecause::Suspended);
        }
    }

    /// What the front knows of a function that does not run: nothing, or that its guarantee is suspended.
    pub(super) async fn route_unserved(&mut self, name: &FunctionName, function: Option<&Function>) {
        let route = match function {
            Some(function) if matches!(function.state, State::Suspended { .. }) => {
                let key = self.new_key();
                Some(Route { key, standing: Standing::Suspended, image: self.image(&function.current) })
            }
            Some(_) | None => None,
        };
        self.route(name, route).await;
    }
}
