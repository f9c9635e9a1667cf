//! A deployment, from the request to the version that serves, or back.
//!
//! Validate, keep the code, resolve the terms, admit on a copy of the book, write down what is pending, install; only then
//! does the new version become the function. Every step before that one can be undone, and is.

use std::sync::Arc;
use std::time::Duration;

use engine::port::{Deployment, Reservation};
use journal::record::EndedBecause;
use model::{FunctionKey, FunctionName, FunctionSpec, Outbound, Runtime, Version};
use plan::admission::{Book, Demand, Grant};
use tokio::sync::oneshot;

use super::view::demand;
use super::{
    Answer, Change, Deploy, Error, Gate, Running, Service, deployment, has_bounds_of, reservation, until_closing,
    with_larger_reserve,
};
use crate::code::Code;
use crate::lanes::{Closed, Image, Installed, Lane};
use crate::registry::{Admitted, Change as Entry, Deployed, Function, LastUpdate, Measured, State};

const MAX_DESCRIPTION: usize = 256;
const MAX_HANDLER: usize = 128;
const MAX_TAGS: usize = 50;
const MAX_TAG_KEY: usize = 128;
const MAX_TAG_VALUE: usize = 256;
/// Of an init log kept in the registry and in answers, from its end.
const MAX_REASON_BYTES: usize = 4096;
/// How much longer than the slowest start that was seen a start is taken to be.
pub(super) const START_MARGIN: u32 = 2;

/// Neighbours of a change have so long to start the instances that they need beside it, and as much longer as these starts may take.
const NEIGHBOURS_WITHIN: Duration = Duration::from_secs(10);

/// What is to become of a function.
struct Draft {
    old: Option<Arc<Function>>,
    new: Deployed,
    answer: Answer,
}

/// What admission said to a draft.
struct Place {
    next: Arc<Book>,
    lane: Lane,
    admitted: Option<Admitted>,
    grant: Option<Grant>,
    measured: Measured,
}

impl Service {
    pub(super) async fn deploy(&mut self, deploy: Deploy, accepted: Option<oneshot::Sender<Arc<Function>>>) -> Result<(), Error> {
        let name = deploy.name.clone();
        let draft = self.draft(deploy).await?;
        if draft.keeps_instances() && self.running.contains_key(&name) {
            return self.relabel(draft).await;
        }
        let mut place = self.place(&draft).await?;
        let pending = self.pending_entry(&draft, &place);
        self.commit(vec![Entry::Put(Box::new(pending))]).await?;
        if let (Some(accepted), Some(kept)) = (accepted, self.registry.get(&name)) {
            // A caller that went away changes nothing: the deployment goes on.
            let _gone = accepted.send(Arc::clone(kept));
        }
        let key = self.running.get(&name).map(|running| running.key);
        let key = key.unwrap_or_else(|| self.new_key());
        let mut next = Running {
            key,
            lane: place.lane,
            image: self.image(&draft.new),
            deployment: deployment(
                key,
                &draft.new,
                place.grant.as_ref().zip(place.admitted).map(|(grant, admitted)| reservation(grant, admitted.generation)),
            ),
        };
        match self.bring_up(&name, &draft, &mut place, &mut next).await {
            Ok(()) => {
                self.finish(&name, &draft, place, next).await;
                Ok(())
            }
            Err(error) => {
                self.roll_back(&draft, &place, &next, &error).await;
                Err(error)
            }
        }
    }

    async fn draft(&mut self, deploy: Deploy) -> Result<Draft, Error> {
        let old = self.registry.get(&deploy.name).cloned();
        let no_function = || Error::NoFunction { function: deploy.name.clone() };
        if let (Some(old), Some(wanted)) = (&old, deploy.revision)
            && old.revision != wanted
        {
            return Err(Error::Revision { function: deploy.name.clone(), found: old.revision, wanted });
        }
        // AWS's clients change code and configuration one after the other: in between, the handler need not be in the package.
        let whole = matches!(deploy.change, Change::Put { .. });
        let (spec, package) = match deploy.change {
            Change::Create { .. } if old.is_some() => return Err(Error::Exists { function: deploy.name }),
            Change::Create { spec, package } => (*spec, Some(package)),
            Change::Put { spec, package } => (*spec, package),
            Change::Code { package } => (old.as_ref().ok_or_else(no_function)?.current.spec.clone(), Some(package)),
            Change::Edit(edit) => {
                let mut spec = old.as_ref().ok_or_else(no_function)?.current.spec.clone();
                edit(&mut spec)?;
                (spec, None)
            }
        };
        check(&deploy.name, &spec)?;
        self.check_outbound(&spec)?;
        // Terms that make no guarantee, or name no class, are refused before the disk is touched.
        demand(&spec, |class| self.registry.rate_classes().get(class), (&self.options.costs, Measured::default()))?;
        let code = match (package, &old) {
            (Some(package), _) => self.keep_code(&deploy.name, package).await?,
            (None, Some(old)) => old.current.code,
            (None, None) => return Err(Error::NoCode { function: deploy.name }),
        };
        if whole || spec.runtime == Runtime::Provided {
            let tree = self.parts.codes.tree(&code.id);
            runtime::package::check_handler(&spec, &tree).map_err(|error| Error::Code {
                function: deploy.name.clone(),
                source: crate::code::Error::Package { source: Box::new(error) },
            })?;
        }
        let version = Version(old.as_ref().map_or(1, |old| old.current.version.0 + 1));
        Ok(Draft { old, new: Deployed { spec, code, version }, answer: deploy.answer })
    }

    /// What this node cannot give is refused before anything changes.
    fn check_outbound(&self, spec: &FunctionSpec) -> Result<(), Error> {
        match (&self.options.outbound, &spec.outbound) {
            (runtime::host::Grant::Yes, _) | (_, Outbound::Unstated | Outbound::None) => Ok(()),
            (runtime::host::Grant::No { reason }, Outbound::All | Outbound::Only(_)) => Err(Error::Invalid {
                function: spec.name.clone(),
                key: "outbound",
                reason: format!(
                    "this node cannot give outbound connections ({reason}); make /dev/net/tun accessible to it, or set outbound = \"none\""
                ),
            }),
        }
    }

    async fn keep_code(&mut self, name: &FunctionName, package: bytes::Bytes) -> Result<Code, Error> {
        let codes = self.parts.codes.clone();
        let added = tokio::task::spawn_blocking(move || codes.add(&package)).await.map_err(|_| Error::Cancelled)?;
        let code = added.map_err(|source| Error::Code { function: name.clone(), source })?;
        // Should the deployment fail, nothing refers to the code, and it goes with the next collection.
        self.retired.push((code.id, self.parts.clock.now()));
        Ok(code)
    }

    /// Only what no instance can see changed: nothing is installed.
    async fn relabel(&mut self, draft: Draft) -> Result<(), Error> {
        let Some(old) = draft.old else {
            return Err(Error::NoFunction { function: draft.new.spec.name });
        };
        let name = draft.new.spec.name.clone();
        let current = Deployed { version: old.current.version, ..draft.new };
        let entry = Function {
            current,
            modified_ms: self.now_ms(),
            revision: self.registry.draw(),
            last_update: LastUpdate::Successful,
            ..Function::clone(&old)
        };
        let image = self.image(&entry.current);
        self.commit(vec![Entry::Put(Box::new(entry))]).await?;
        if let Some(running) = self.running.get_mut(&name) {
            running.image = image;
        }
        if let Some(running) = self.running.get(&name) {
            self.route_to(&name, running).await;
        }
        Ok(())
    }

    async fn place(&mut self, draft: &Draft) -> Result<Place, Error> {
        let name = &draft.new.spec.name;
        let measured = draft.old.as_ref().map(|old| old.measured).unwrap_or_default();
        let wanted = demand(&draft.new.spec, |class| self.registry.rate_classes().get(class), (&self.options.costs, measured))?;
        let Some(wanted) = wanted else {
            let next = Arc::new(self.book.remove(name));
            return Ok(Place { next, lane: Lane::BestEffort, admitted: None, grant: None, measured });
        };
        let before = self.book.grant(name);
        let same_terms =
            before.is_some_and(|grant| grant.demand.terms == wanted.terms && grant.demand.rate_class == wanted.rate_class);
        if let (Gate::Shut { reason }, false) = (&self.gate, same_terms) {
            return Err(Error::NoEvidence { reason: reason.clone() });
        }
        let refused = |source| Error::Refused { source };
        // The search for an offer may take a good part of a second.
        let book = Arc::clone(&self.book);
        let decided = tokio::task::spawn_blocking(move || book.admit(&wanted)).await.map_err(|_| Error::Cancelled)?;
        let (next, answer) = decided.map_err(refused)?;
        let running = self.running.get(name).is_some_and(|running| running.lane == Lane::Guaranteed);
        if running {
            self.book.check_handover(name, &next).map_err(refused)?;
        }
        let old = draft.old.as_ref().and_then(|old| old.admitted);
        let admitted = match old {
            Some(admitted) if same_terms && running => admitted,
            Some(admitted) => Admitted { order: admitted.order, generation: self.registry.draw() },
            None => Admitted { order: self.registry.draw(), generation: self.registry.draw() },
        };
        let (next, grant) = (Arc::new(next), Some(answer.grant));
        Ok(Place { next, lane: Lane::Guaranteed, admitted: Some(admitted), grant, measured })
    }

    fn pending_entry(&mut self, draft: &Draft, place: &Place) -> Function {
        let now = self.now_ms();
        let revision = self.registry.draw();
        match &draft.old {
            Some(old) => Function {
                pending: Some(draft.new.clone()),
                last_update: LastUpdate::InProgress,
                revision,
                ..Function::clone(old)
            },
            None => Function {
                current: draft.new.clone(),
                state: State::Pending,
                pending: None,
                last_update: LastUpdate::Successful,
                admitted: place.admitted,
                measured: place.measured,
                created_ms: now,
                modified_ms: now,
                revision,
            },
        }
    }

    /// Makes room, hands over the evidence, installs, and writes the new version down as the function.
    async fn bring_up(&mut self, name: &FunctionName, draft: &Draft, place: &mut Place, next: &mut Running) -> Result<(), Error> {
        // Beside a version that serves on its old terms nobody falls below it, nor has less than with it: its neighbours are
        // told what holds beside either version.
        let beside_old = self.book.grant(name).is_some();
        let between = if beside_old { self.book.on_the_way_to(&place.next) } else { Book::clone(&place.next) };
        self.options.starts.set(&between);
        if place.grant.is_some() {
            self.revise(&self.book, &between, Some(name)).await?;
            self.until_warm(&self.book, &between, Some(name)).await?;
        }
        if let Some((grant, generation)) = self.new_guarantee(name, place).or_else(|| self.new_bounds(name, place)) {
            self.record_given(grant, generation);
        }
        // The new version's terms hold from its first invocation on, so its neighbours make way for it at the same instant.
        let beside = if place.grant.is_some() { self.revised(&between, &place.next, Some(name)) } else { Vec::new() };
        self.install(name, next, beside).await?;
        self.measure(name, place, next).await?;
        let entry = self.served_entry(draft, place);
        self.commit(vec![Entry::Put(Box::new(entry))]).await
    }

    /// Takes for L_cold what the starts of the new version took, with a margin, and has the reserve that follows from it
    /// warm, before anything is promised.
    async fn measure(&mut self, name: &FunctionName, place: &mut Place, next: &mut Running) -> Result<(), Error> {
        loop {
            let Some((grant, admitted)) = place.grant.as_ref().zip(place.admitted) else { return Ok(()) };
            let limit = self.options.install_limit;
            let slowest = self.warm(next.key, limit).await?.ok_or_else(|| Error::NotReady { function: name.clone(), limit })?;
            place.measured.cold_start = slowest.saturating_mul(START_MARGIN);
            // More instances may start more slowly; the reserve ends this by having reached K.
            if place.measured.cold_start <= grant.demand.cold_start || grant.instances() <= grant.warm() {
                return Ok(());
            }
            let demand = Demand { cold_start: place.measured.cold_start, ..grant.demand.clone() };
            let (book, answer) = place.next.admit(&demand).map_err(|source| Error::Refused { source })?;
            let revised = reservation(&answer.grant, admitted.generation);
            if !has_bounds_of(grant, &answer.grant) {
                self.record_given(&answer.grant, admitted.generation);
            }
            let told = std::mem::replace(&mut place.next, Arc::new(book));
            place.grant = Some(answer.grant);
            self.revise(&told, &place.next, Some(name)).await?;
            next.deployment.reservation = Some(revised.clone());
            self.parts.lanes.revise(vec![(next.key, revised)]).await.map_err(|Closed| Error::Closing)?;
        }
    }

    /// Ends when those that run and have a larger warm reserve in `next` have it; one limit holds for all together. Whatever else is
    /// to be changed waits meanwhile, so it is no longer than their starts may take.
    pub(super) async fn until_warm(&self, told: &Book, next: &Book, except: Option<&FunctionName>) -> Result<(), Error> {
        let names = with_larger_reserve(told, next, except);
        let starts = names.iter().filter_map(|name| {
            let (before, after) = (told.grant(name)?, next.grant(name)?);
            Some(after.demand.cold_start.saturating_mul(after.warm().saturating_sub(before.warm())))
        });
        let limit = starts.fold(NEIGHBOURS_WITHIN, Duration::saturating_add).min(self.options.install_limit);
        let until = tokio::time::Instant::now() + limit;
        for neighbour in names {
            let Some(running) = self.running.get(&neighbour) else { continue };
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            if self.warm(running.key, left).await?.is_none() {
                let warm = next.grant(&neighbour).map_or(0, Grant::warm);
                return Err(Error::NeighbourNotReady { neighbour, warm, limit });
            }
        }
        Ok(())
    }

    /// How long the slowest start of a function took, once it has its warm reserve; `None` where that lasts longer than `limit`.
    async fn warm(&self, key: FunctionKey, limit: Duration) -> Result<Option<Duration>, Error> {
        let mut closing = self.closing.clone();
        tokio::select! {
            biased;
            warm = tokio::time::timeout(limit, self.parts.lanes.warm(key)) => match warm {
                Ok(warm) => warm.map(Some).map_err(|Closed| Error::Closing),
                Err(_) => Ok(None),
            },
            () = until_closing(&mut closing) => Err(Error::Closing),
        }
    }

    /// The guarantee that a place brings, unless the function has exactly that one already.
    fn new_guarantee<'a>(&self, name: &FunctionName, place: &'a Place) -> Option<(&'a Grant, u64)> {
        let (grant, admitted) = place.grant.as_ref().zip(place.admitted)?;
        let known = self.running.get(name).and_then(|running| running.deployment.reservation.as_ref());
        let same = known.is_some_and(|reservation| reservation.generation == admitted.generation);
        (!same).then_some((grant, admitted.generation))
    }

    /// The guarantee of a place that the function has already, where other bounds follow from the place.
    fn new_bounds<'a>(&self, name: &FunctionName, place: &'a Place) -> Option<(&'a Grant, u64)> {
        let (grant, admitted) = place.grant.as_ref().zip(place.admitted)?;
        let told = self.book.grant(name)?;
        (self.new_guarantee(name, place).is_none() && !has_bounds_of(told, grant)).then_some((grant, admitted.generation))
    }

    /// Installs a version; those beside it are told what holds from the instant on at which it serves.
    async fn install(&self, name: &FunctionName, next: &Running, beside: Vec<(FunctionKey, Reservation)>) -> Result<(), Error> {
        let mut closing = self.closing.clone();
        let limit = self.options.install_limit;
        let (deployment, image) = (next.deployment.clone(), Arc::clone(&next.image));
        let installed = tokio::time::timeout(limit, self.parts.lanes.install(next.lane, deployment, image, beside));
        tokio::select! {
            biased;
            outcome = installed => match outcome {
                Ok(Ok(Installed::Serving)) => Ok(()),
                Ok(Ok(Installed::CannotServe { log })) => Err(Error::CannotServe { function: name.clone(), log: tail(&log) }),
                Ok(Err(Closed)) => Err(Error::Closing),
                Err(_) => Err(Error::NotReady { function: name.clone(), limit }),
            },
            () = until_closing(&mut closing) => Err(Error::Closing),
        }
    }

    fn served_entry(&mut self, draft: &Draft, place: &Place) -> Function {
        let now = self.now_ms();
        Function {
            current: draft.new.clone(),
            state: State::Active,
            pending: None,
            last_update: LastUpdate::Successful,
            // A guarantee that was withdrawn loses its place in the order.
            admitted: place.admitted,
            measured: place.measured,
            created_ms: draft.old.as_ref().map_or(now, |old| old.created_ms),
            modified_ms: now,
            revision: self.registry.draw(),
        }
    }

    /// The new version is the function: tells the front and the neighbours, and removes what it replaced.
    async fn finish(&mut self, name: &FunctionName, draft: &Draft, place: Place, next: Running) {
        let lane = next.lane;
        let all_told = place.grant.is_some();
        let told = std::mem::replace(&mut self.book, place.next);
        self.options.starts.set(&self.book);
        let old = self.running.insert(name.clone(), next);
        if let Some(running) = self.running.get(name) {
            self.route_to(name, running).await;
        }
        // From here on only a closing node can refuse; it is going down, and the registry is right already.
        if let Some(old) = &old
            && old.lane != lane
        {
            let _closing = self.parts.lanes.remove(old.lane, old.key).await;
        }
        let ended = old.as_ref().and_then(|old| old.deployment.reservation.as_ref()).map(|reservation| reservation.generation);
        if let Some(generation) = ended
            && place.admitted.is_none_or(|admitted| admitted.generation != generation)
        {
            let reason = if place.admitted.is_some() { EndedBecause::Replaced } else { EndedBecause::Withdrawn };
            self.record_ended(name, generation, reason);
        }
        if !all_told {
            let _closing = self.revise(&told, &self.book, Some(name)).await;
        }
        if let Some(old) = &draft.old {
            self.retire(&old.current);
        }
        self.publish();
    }

    /// Puts everything back to what it was before the deployment.
    async fn roll_back(&mut self, draft: &Draft, place: &Place, next: &Running, error: &Error) {
        let name = &draft.new.spec.name;
        if matches!(error, Error::Closing) {
            return; // the store says what the next start brings up
        }
        let reason = tail(&error.explain());
        let mut version = draft.old.as_ref().map(|old| old.current.version);
        // Whose neighbours were not ready was given nothing yet.
        let given = !matches!(error, Error::NeighbourNotReady { .. });
        if let (true, Some((_, generation)), Some(grant)) = (given, self.new_bounds(name, place), self.book.grant(name)) {
            self.record_given(grant, generation);
        }
        match self.running.get(name).cloned() {
            None => {
                let _closing = self.parts.lanes.remove(next.lane, next.key).await;
                self.route_unserved(name, draft.old.as_deref()).await;
            }
            // The contract of the lanes: the version before it still serves, and nothing of the new one is left.
            // Or the new one was not even begun.
            Some(_) if matches!(error, Error::CannotServe { .. } | Error::NeighbourNotReady { .. }) => {}
            Some(old) if old.lane != place.lane => {
                let _closing = self.parts.lanes.remove(place.lane, old.key).await;
            }
            Some(old) => {
                let beside = self.revised(&place.next, &self.book, Some(name));
                version = self.reinstall(name, (old, beside), draft.new.version).await.or(version);
            }
        }
        let _closing = self.revise(&place.next, &self.book, Some(name)).await;
        self.options.starts.set(&self.book);
        if let (true, Some((_, generation))) = (given, self.new_guarantee(name, place)) {
            self.record_ended(name, generation, EndedBecause::Withdrawn);
        }
        let revision = self.registry.draw();
        let entry = match (&draft.old, draft.answer) {
            (Some(old), _) => Entry::Put(Box::new(Function {
                current: Deployed { version: version.unwrap_or(old.current.version), ..old.current.clone() },
                pending: None,
                last_update: LastUpdate::Failed { reason },
                revision,
                ..Function::clone(old)
            })),
            (None, Answer::WhenServing) => Entry::Delete(name.clone()),
            (None, Answer::WhenAdmitted) => {
                let kept = self.pending_entry(draft, place);
                Entry::Put(Box::new(Function { state: State::Failed { reason }, admitted: None, ..kept }))
            }
        };
        self.note(vec![entry]).await;
    }

    /// Brings back the version before one that may serve already, under a number above both.
    async fn reinstall(
        &mut self,
        name: &FunctionName,
        (old, beside): (Running, Vec<(FunctionKey, Reservation)>),
        above: Version,
    ) -> Option<Version> {
        let version = Version(above.0 + 1);
        // Its neighbours may have changed its numbers since it was installed.
        let told = self.book.grant(name).zip(old.deployment.reservation.as_ref());
        let reservation = told.map(|(grant, known)| reservation(grant, known.generation));
        let deployment = Deployment { version, reservation, ..old.deployment.clone() };
        let image = Arc::new(Image { version, ..Image::clone(&old.image) });
        let next = Running { deployment, image, ..old };
        if self.install(name, &next, beside).await.is_err() {
            return None; // it served a moment ago and is still the one that is routed to
        }
        self.running.insert(name.clone(), next);
        if let Some(running) = self.running.get(name) {
            self.route_to(name, running).await;
        }
        Some(version)
    }
}

impl Draft {
    /// Whether nothing changed that an instance, its lane or its guarantee can see.
    fn keeps_instances(&self) -> bool {
        let Some(old) = &self.old else {
            return false;
        };
        let relabelled = FunctionSpec {
            description: self.new.spec.description.clone(),
            tags: self.new.spec.tags.clone(),
            url: self.new.spec.url,
            role: self.new.spec.role.clone(),
            ..old.current.spec.clone()
        };
        old.current.code == self.new.code && relabelled == self.new.spec
    }
}

/// Errors when a specification exceeds a limit. What its types rule out is not looked at again.
fn check(name: &FunctionName, spec: &FunctionSpec) -> Result<(), Error> {
    let invalid = |key, reason: String| Err(Error::Invalid { function: name.clone(), key, reason });
    if spec.name != *name {
        return invalid("name", format!("it says `{}`", spec.name));
    }
    if let Err(error) = runtime::environment::check(&spec.environment) {
        return invalid("environment", error.to_string());
    }
    if MAX_DESCRIPTION < spec.description.chars().count() {
        return invalid(
            "description",
            format!("{} characters, the limit is {MAX_DESCRIPTION}", spec.description.chars().count()),
        );
    }
    if MAX_HANDLER < spec.handler.len() || spec.handler.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return invalid("handler", format!("a handler is at most {MAX_HANDLER} bytes without spaces"));
    }
    if MAX_TAGS < spec.tags.len() {
        return invalid("tags", format!("{} tags, the limit is {MAX_TAGS}", spec.tags.len()));
    }
    let too_long = |(key, value): &(&String, &String)| {
        key.is_empty() || MAX_TAG_KEY < key.chars().count() || MAX_TAG_VALUE < value.chars().count()
    };
    if let Some((key, _)) = spec.tags.iter().find(too_long) {
        return invalid("tags", format!("`{key}`: keys have 1 to {MAX_TAG_KEY} characters, values up to {MAX_TAG_VALUE}"));
    }
    Ok(())
}

/// The end of a text, at most [`MAX_REASON_BYTES`] long.
pub(super) fn tail(text: &str) -> String {
    let mut from = text.len().saturating_sub(MAX_REASON_BYTES);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text.get(from..).unwrap_or_default().to_owned()
}
