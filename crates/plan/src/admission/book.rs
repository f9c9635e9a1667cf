//! The reservations of a node.

use std::num::NonZeroU32;
use std::time::Duration;

use model::{Burst, FunctionName, Level, Pacing, Rate, RateClass, Require};

use super::evaluate::{Evaluation, Placed, UnitKey, evaluate, unit_key};
use super::offer::largest;
use super::{Answer, Binding, Demand, Grant, NodeCapacity, Refusal, Remaining, shard_counts};

/// What a node has and what it promised from it, in order of first admission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Book {
    capacity: NodeCapacity,
    placed: Vec<Placed>,
    evaluation: Evaluation,
}

/// The outcome of admitting everything again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readmission {
    pub book: Book,
    /// Those that no longer fit, in order of first admission.
    pub suspended: Vec<Suspended>,
}

/// A function whose guarantee no longer fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspended {
    pub demand: Demand,
    pub refusal: Refusal,
}

impl Book {
    /// An empty book. Errors when the platform alone is more than the front may use.
    ///
    /// # Panics
    /// When the front's core is not one of the cores.
    pub fn new(capacity: NodeCapacity) -> Result<Self, Binding> {
        assert!(capacity.front_core < capacity.cores, "the front runs on one of the node's cores");
        let evaluation = evaluate(&capacity, &[])?;
        Ok(Self { capacity, placed: Vec::new(), evaluation })
    }

    #[must_use]
    pub const fn capacity(&self) -> &NodeCapacity {
        &self.capacity
    }

    /// What is granted now, in order of first admission.
    #[must_use]
    pub fn grants(&self) -> &[Grant] {
        &self.evaluation.grants
    }

    #[must_use]
    pub fn grant(&self, function: &FunctionName) -> Option<&Grant> {
        self.grants().iter().find(|grant| grant.demand.function == *function)
    }

    #[must_use]
    pub const fn remaining(&self) -> &Remaining {
        &self.evaluation.remaining
    }

    /// The most that what was admitted, and the platform above it, can use of each core within a second, from core 0.
    #[must_use]
    pub fn busiest_seconds(&self) -> &[Duration] {
        &self.evaluation.busiest
    }

    /// Admits a function, or changes one: then its old reservation does not count, and it keeps its place in the order.
    ///
    /// The book returned holds new numbers for the other functions too; whoever runs them has to be told those that
    /// changed. Where priorities fall, tell the least urgent first, so that no two swap on the way.
    ///
    /// # Panics
    /// Only when a book holds no grant for what was just placed in it, which is a bug.
    pub fn admit(&self, demand: &Demand) -> Result<(Self, Answer), Box<Refusal>> {
        match self.place(demand) {
            Ok(book) => {
                let grant = book.grant(&demand.function).expect("invariant: what was placed is in the book").clone();
                let remaining = book.remaining().clone();
                Ok((book, Answer { grant, remaining }))
            }
            Err(binding) => {
                let offer = self.offer(demand, &binding);
                Err(Box::new(Refusal { function: demand.function.clone(), binding, offer }))
            }
        }
    }

    /// Changes the rate and burst that the members of a rate class share, on the cores they are on; the book with nothing
    /// changed where it has no members.
    pub fn change_class(&self, class: &RateClass) -> Result<Self, Box<Refusal>> {
        let Some(first) = self.members(class).next() else { return Ok(self.clone()) };
        self.with_class(class).map_err(|binding| {
            let function = first.demand.function.clone();
            let at = |rate| RateClass { rate, ..class.clone() };
            let offer = largest(class.rate, |rate| self.with_class(&at(rate)).is_ok());
            let beside = self.members(class).fold(self.clone(), |book, member| book.remove(&member.demand.function)).evaluation;
            let attempt = Attempt { book: self, demand: &first.demand, others: beside.remaining, busiest: beside.busiest };
            Box::new(Refusal { function, binding: attempt.beside_others(binding), offer })
        })
    }

    /// What functions are told on the way from this book to one in which some have other terms: the terms of this one, and of
    /// every other number the larger, so that they are ready for both. Those that change cores go another way. Nothing can be
    /// admitted into it.
    #[must_use]
    pub fn on_the_way_to(&self, next: &Self) -> Self {
        let mut between = self.clone();
        for grant in &mut between.evaluation.grants {
            let Some(other) = next.grant(&grant.demand.function) else { continue };
            grant.start_bound = grant.start_bound.max(other.start_bound);
            grant.response_bound = grant.response_bound.max(other.response_bound);
            for (shard, other) in grant.shards.iter_mut().zip(&other.shards) {
                shard.instances = shard.instances.max(other.instances);
                shard.warm = shard.warm.max(other.warm);
                shard.priority = shard.priority.max(other.priority);
            }
        }
        for (busiest, other) in between.evaluation.busiest.iter_mut().zip(&next.evaluation.busiest) {
            *busiest = (*busiest).max(*other);
        }
        between
    }

    fn members<'a>(&'a self, class: &'a RateClass) -> impl Iterator<Item = &'a Placed> {
        self.placed.iter().filter(|it| unit_key(&it.demand) == UnitKey::Class(&class.name))
    }

    fn with_class(&self, class: &RateClass) -> Result<Self, Binding> {
        let mut placed = self.placed.clone();
        for member in placed.iter_mut().filter(|it| unit_key(&it.demand) == UnitKey::Class(&class.name)) {
            member.demand.rate_class = Some(class.clone());
        }
        let evaluation = evaluate(&self.capacity, &placed)?;
        Ok(Self { capacity: self.capacity.clone(), placed, evaluation })
    }

    /// The book without a function; unchanged when it is not there. The others only gain.
    ///
    /// # Panics
    /// Only when promises that hold would not with less beside them, which is a bug: every bound is monotone.
    #[must_use]
    pub fn remove(&self, function: &FunctionName) -> Self {
        let placed: Vec<Placed> = self.placed.iter().filter(|it| it.demand.function != *function).cloned().collect();
        let evaluation = evaluate(&self.capacity, &placed).expect("invariant: promises hold with less beside them");
        Self { capacity: self.capacity.clone(), placed, evaluation }
    }

    /// Whether new code of a function can become warm beside the old. See [`Book::check_handover`].
    pub fn check_redeploy(&self, function: &FunctionName) -> Result<(), Box<Refusal>> {
        self.check_handover(function, self)
    }

    /// Whether memory, and the number of instances, hold both versions of a function while it goes over to its place in `next`.
    ///
    /// Derived: until the new version serves, the old one has up to K instances and W of the new become warm. Then no more
    /// slots go to the old, so that both together have at most the larger K busy, and W of the new idle.
    pub fn check_handover(&self, function: &FunctionName, next: &Self) -> Result<(), Box<Refusal>> {
        let refuse = |binding| Err(Box::new(Refusal { function: function.clone(), binding, offer: None }));
        let (Some(old), Some(new)) = (self.grant(function), next.grant(function)) else {
            return refuse(Binding::Unknown);
        };
        // Of the processor the hand-over takes nothing that is promised: every slot goes to one version, what is warm rests, and
        // starts run below all that serve.
        let instances = old.instances().max(new.instances()).saturating_add(new.warm());
        let left = next.remaining().instances.saturating_add(new.instances());
        if left < instances {
            return refuse(Binding::Instances { needed: instances, available: left });
        }
        let (old_full, new_full) = (old.memory_for(old.instances()), new.memory_for(new.instances()));
        let both = old_full.max(new_full).saturating_add(new.memory_for(new.warm()));
        let others = next.capacity.memory.saturating_sub(next.remaining().memory_bytes).saturating_sub(new_full);
        let available = next.capacity.memory.saturating_sub(others);
        if available < both { refuse(Binding::Handover { needed: both, available }) } else { Ok(()) }
    }

    /// Admits everything again, in order of first admission, on a changed capacity: after a restart, or when T rose.
    /// Errors when the capacity does not even hold the platform.
    pub fn readmit(&self, capacity: NodeCapacity) -> Result<Readmission, Binding> {
        let mut book = Self::new(capacity)?;
        let mut suspended = Vec::new();
        for it in &self.placed {
            let preferred = Preferred { cores: &it.cores, shards: it.shards };
            match book.place_at(&it.demand, Some(preferred)) {
                Ok(next) => book = next,
                Err(binding) => {
                    let offer = book.offer(&it.demand, &binding);
                    let refusal = Refusal { function: it.demand.function.clone(), binding, offer };
                    suspended.push(Suspended { demand: it.demand.clone(), refusal });
                }
            }
        }
        Ok(Readmission { book, suspended })
    }

    fn place(&self, demand: &Demand) -> Result<Self, Binding> {
        let old = self.placed.iter().find(|it| it.demand.function == demand.function);
        self.place_at(demand, old.map(|it| Preferred { cores: &it.cores, shards: it.shards }))
    }

    /// Tries the preferred cores, then one core after the other, then two shards, and so on.
    fn place_at(&self, demand: &Demand, preferred: Option<Preferred<'_>>) -> Result<Self, Binding> {
        if demand.terms.require == Require::Hard && self.capacity.level == Level::Soft {
            return Err(Binding::Level { required: Level::Hard, available: Level::Soft });
        }
        let beside = self.remove(&demand.function).evaluation;
        let attempt = Attempt { book: self, demand, others: beside.remaining, busiest: beside.busiest };
        if let Some(mate) = class_mate(self, demand) {
            check_class(&mate.demand, demand)?;
            return attempt.on(&mate.cores, mate.shards);
        }
        let mut refused: Option<Binding> = None;
        if let Some(it) = preferred.filter(|it| it.cores.iter().all(|core| *core < self.capacity.cores)) {
            match attempt.on(it.cores, it.shards) {
                Ok(book) => return Ok(book),
                Err(binding) => refused = Some(binding),
            }
        }
        for shards in shard_counts(self.capacity.cores) {
            match attempt.split(shards) {
                Ok(book) => return Ok(book),
                Err(binding) => refused = Some(refused.map_or_else(|| binding.clone(), |known| further(known, binding.clone()))),
            }
        }
        Err(refused.expect("invariant: a node has a core, so one attempt was made"))
    }

    /// The largest rate that fits with all else equal, where the rate is this function's to change.
    fn offer(&self, demand: &Demand, binding: &Binding) -> Option<Rate> {
        match binding {
            Binding::Level { .. } | Binding::RateClass { .. } | Binding::Handover { .. } | Binding::Unknown => return None,
            Binding::Cpu { .. }
            | Binding::Front { .. }
            | Binding::Second { .. }
            | Binding::Start { .. }
            | Binding::Deadline { .. }
            | Binding::Unbounded { .. }
            | Binding::Instances { .. }
            | Binding::Memory { .. } => {}
        }
        if class_mate(self, demand).is_some() {
            return None;
        }
        let (asked, _) = rate_of(demand);
        largest(asked, |rate| self.place(&at_rate(demand, rate)).is_ok())
    }
}

/// Cores and shards that are tried first: a function stays where it is when it can.
#[derive(Clone, Copy, Debug)]
struct Preferred<'a> {
    cores: &'a [u16],
    shards: NonZeroU32,
}

/// One demand on its way into a book.
#[derive(Clone, Debug)]
struct Attempt<'a> {
    book: &'a Book,
    demand: &'a Demand,
    /// What is left beside the others.
    others: Remaining,
    /// What the others use of each core in a second at most.
    busiest: Vec<Duration>,
}

impl Attempt<'_> {
    /// The book with the demand on these cores.
    fn on(&self, cores: &[u16], shards: NonZeroU32) -> Result<Book, Binding> {
        let mine = Placed { demand: self.demand.clone(), cores: cores.to_vec(), shards };
        let mut placed = self.book.placed.clone();
        match placed.iter_mut().find(|it| it.demand.function == self.demand.function) {
            Some(old) => *old = mine,
            None => placed.push(mine),
        }
        let capacity = self.book.capacity.clone();
        let evaluation = evaluate(&capacity, &placed).map_err(|binding| self.beside_others(binding))?;
        Ok(Book { capacity, placed, evaluation })
    }

    /// Turns what all need and what there is into what this one needs and what is left.
    fn beside_others(&self, binding: Binding) -> Binding {
        let capacity = &self.book.capacity;
        match binding {
            Binding::Second { core, needed, available } => {
                let used = u64::try_from(self.busiest[usize::from(core)].as_nanos()).unwrap_or(u64::MAX);
                Binding::Second { core, needed: needed.saturating_sub(used), available: available.saturating_sub(used) }
            }
            Binding::Cpu { core, needed, .. } => {
                let share = self.others.cores[usize::from(core)];
                Binding::Cpu { core, needed: needed.saturating_sub(share.used_nanocores), available: share.left_nanocores() }
            }
            Binding::Front { needed, .. } => {
                let share = self.others.front;
                Binding::Front { needed: needed.saturating_sub(share.used_nanocores), available: share.left_nanocores() }
            }
            Binding::Instances { needed, .. } => {
                let used = capacity.instances - self.others.instances;
                Binding::Instances { needed: needed.saturating_sub(used), available: self.others.instances }
            }
            Binding::Memory { needed, .. } => {
                let used = capacity.memory - self.others.memory_bytes;
                Binding::Memory { needed: needed.saturating_sub(used), available: self.others.memory_bytes }
            }
            other @ (Binding::Start { .. }
            | Binding::Deadline { .. }
            | Binding::Unbounded { .. }
            | Binding::Level { .. }
            | Binding::RateClass { .. }
            | Binding::Handover { .. }
            | Binding::Unknown) => other,
        }
    }

    /// The book with the demand in so many shards, on the cores that have most left among those that can take one.
    fn split(&self, shards: NonZeroU32) -> Result<Book, Binding> {
        let needed = usize::try_from(shards.get()).unwrap_or(usize::MAX);
        let mut refused: Option<Binding> = None;
        let mut taking: Vec<u16> = Vec::new();
        for core in self.cores_by_room() {
            match self.on(&[core], shards) {
                Ok(book) if needed == 1 => return Ok(book),
                Ok(_) => taking.push(core),
                Err(binding) => refused = Some(refused.map_or_else(|| binding.clone(), |known| further(known, binding.clone()))),
            }
            if taking.len() == needed {
                return self.on(&taking, shards);
            }
        }
        Err(refused.expect("invariant: fewer cores took a shard than there are, so one refused"))
    }

    fn cores_by_room(&self) -> Vec<u16> {
        let left = |core: &u16| self.others.cores[usize::from(*core)].left_nanocores();
        let mut cores: Vec<u16> = (0..self.book.capacity.cores).collect();
        cores.sort_by_key(|core| std::cmp::Reverse(left(core)));
        cores
    }
}

/// Another function of the same rate class, which fixes the cores.
fn class_mate<'a>(book: &'a Book, demand: &Demand) -> Option<&'a Placed> {
    match unit_key(demand) {
        UnitKey::Own(_) => None,
        key @ UnitKey::Class(_) => {
            book.placed.iter().find(|it| it.demand.function != demand.function && unit_key(&it.demand) == key)
        }
    }
}

/// Of two reasons the one that was met later in the test; the first of equals.
fn further(known: Binding, next: Binding) -> Binding {
    let stage = |binding: &Binding| match binding {
        Binding::Unknown | Binding::Level { .. } | Binding::RateClass { .. } | Binding::Handover { .. } => 0,
        Binding::Front { .. } => 1,
        Binding::Cpu { .. } => 2,
        Binding::Second { .. } => 5,
        Binding::Unbounded { .. } => 3,
        Binding::Start { .. } | Binding::Deadline { .. } => 4,
        Binding::Instances { .. } => 6,
        Binding::Memory { .. } => 7,
    };
    if stage(&known) < stage(&next) { next } else { known }
}

fn check_class(mate: &Demand, demand: &Demand) -> Result<(), Binding> {
    let ((admitted_rate, admitted_burst), (asked_rate, asked_burst)) = (rate_of(mate), rate_of(demand));
    match &demand.rate_class {
        Some(class) if (admitted_rate, admitted_burst) != (asked_rate, asked_burst) => Err(Binding::RateClass {
            class: class.name.clone(),
            admitted_rate,
            admitted_burst: admitted_burst.get(),
            asked_rate,
            asked_burst: asked_burst.get(),
        }),
        Some(_) | None => Ok(()),
    }
}

fn rate_of(demand: &Demand) -> (Rate, Burst) {
    match (&demand.terms.pacing, &demand.rate_class) {
        (Pacing::Own { rate, burst }, _) => (*rate, *burst),
        (Pacing::Shared(_), Some(class)) => (class.rate, class.burst),
        (Pacing::Shared(name), None) => super::unreachable_class(name.as_str()),
    }
}

fn at_rate(demand: &Demand, rate: Rate) -> Demand {
    let mut changed = demand.clone();
    match (&mut changed.terms.pacing, &mut changed.rate_class) {
        (Pacing::Own { rate: own, .. }, _) => *own = rate,
        (Pacing::Shared(_), Some(RateClass { rate: shared, .. })) => *shared = rate,
        (Pacing::Shared(name), None) => super::unreachable_class(name.as_str()),
    }
    changed
}
