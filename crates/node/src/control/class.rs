//! Rate classes: the rate that several functions share, and how it changes under them.

use std::sync::Arc;

use journal::record::EndedBecause;
use model::{FunctionName, RateClass};
use plan::admission::{Book, Grant};

use super::{Error, Gate, Service, reservation};
use crate::registry::{Admitted, Change as Entry, Function};

/// A change of a class that admission said yes to.
struct Draft {
    class: RateClass,
    /// What the lanes are told while the class goes on at its old rate: of every number the one that holds at both rates.
    between: Book,
    next: Arc<Book>,
    /// Its members, with the numbers of their new guarantees.
    members: Vec<(FunctionName, Admitted)>,
}

impl Service {
    /// Makes a rate class or changes one. Where functions use it, admission decides, all or nothing; they and their neighbours
    /// are ready for the new rate before the first slot of it is taken.
    pub(super) async fn put_rate_class(&mut self, class: RateClass) -> Result<(), Error> {
        match self.registry.rate_classes().get(&class.name) {
            Some(known) if *known == class => return Ok(()),
            Some(_) | None => {}
        }
        if self.users(&class.name).next().is_none() {
            return self.commit(vec![Entry::PutRateClass(class)]).await;
        }
        if let Gate::Shut { reason } = &self.gate {
            return Err(Error::NoEvidence { reason: reason.clone() });
        }
        let draft = self.draft_class(class).await?;
        self.options.starts.set(&draft.between);
        if let Err(error) = self.prepare_class(&draft).await {
            self.withdraw_class(&draft).await;
            return Err(error);
        }
        if let Err(error) = self.give_class(&draft).await {
            for (grant, admitted) in self.given(&draft) {
                self.record_ended(&grant.demand.function, admitted.generation, EndedBecause::Withdrawn);
            }
            self.withdraw_class(&draft).await;
            return Err(error);
        }
        self.finish_class(draft).await;
        Ok(())
    }

    async fn draft_class(&mut self, class: RateClass) -> Result<Draft, Error> {
        // The search for an offer may take a good part of a second.
        let (book, asked) = (Arc::clone(&self.book), class.clone());
        let decided = tokio::task::spawn_blocking(move || book.change_class(&asked)).await.map_err(|_| Error::Cancelled)?;
        let next = Arc::new(decided.map_err(|source| Error::Refused { source })?);
        let names: Vec<FunctionName> = self.users(&class.name).map(|function| function.current.spec.name.clone()).collect();
        let admitted = |name: FunctionName| {
            let order = self.registry.get(&name).and_then(|function| function.admitted).map(|admitted| admitted.order)?;
            next.grant(&name)?;
            Some((name, Admitted { order, generation: self.registry.draw() }))
        };
        let members = names.into_iter().filter_map(admitted).collect();
        Ok(Draft { between: self.book.on_the_way_to(&next), class, next, members })
    }

    /// Has everybody ready for both rates.
    async fn prepare_class(&mut self, draft: &Draft) -> Result<(), Error> {
        self.revise(&self.book, &draft.between, None).await?;
        self.until_warm(&self.book, &draft.between, None).await
    }

    /// Hands over the evidence and writes the change down.
    async fn give_class(&mut self, draft: &Draft) -> Result<(), Error> {
        for (grant, admitted) in self.given(draft) {
            self.record_given(grant, admitted.generation);
        }
        let mut entries = vec![Entry::PutRateClass(draft.class.clone())];
        for (name, admitted) in &draft.members {
            if let Some(known) = self.registry.get(name).cloned() {
                let revision = self.registry.draw();
                entries.push(Entry::Put(Box::new(Function { admitted: Some(*admitted), revision, ..Function::clone(&known) })));
            }
        }
        self.commit(entries).await
    }

    fn given<'a>(&self, draft: &'a Draft) -> Vec<(&'a Grant, Admitted)> {
        let running = |(name, _): &&(FunctionName, Admitted)| self.running.contains_key(name);
        let given = draft.members.iter().filter(running);
        given.filter_map(|(name, admitted)| draft.next.grant(name).map(|grant| (grant, *admitted))).collect()
    }

    /// Puts the numbers back that were told.
    async fn withdraw_class(&mut self, draft: &Draft) {
        self.options.starts.set(&self.book);
        let _closing = self.revise(&draft.between, &self.book, None).await;
    }

    /// The change is written down: all members go over to it at one instant. From here on only a closing node can refuse.
    async fn finish_class(&mut self, draft: Draft) {
        let (mut told, mut ended) = (Vec::new(), Vec::new());
        for (grant, admitted) in self.given(&draft) {
            let name = &grant.demand.function;
            let revised = reservation(grant, admitted.generation);
            let Some(running) = self.running.get_mut(name) else { continue };
            let before = running.deployment.reservation.replace(revised.clone());
            told.push((running.key, revised));
            ended.extend(before.map(|before| (name.clone(), before.generation)));
        }
        let _closing = self.parts.lanes.revise(told).await;
        for (name, generation) in ended {
            self.record_ended(&name, generation, EndedBecause::Replaced);
        }
        self.book = draft.next;
        self.options.starts.set(&self.book);
        let _closing = self.revise(&draft.between, &self.book, None).await;
        self.publish();
    }
}
