//! How many best-effort runs use the cores at once, and whose they are.
//!
//! The kernel shares cores by process, so whoever has more processes gets more. And more of them at once than there are
//! cores only take turns: every further one costs its start, its memory and a share of the caches, and nothing is done
//! sooner. So those that compute are let in by place: there are as many places as cores, a run that wants a core for a part p
//! of its time takes p of one, and one that waits takes none. Who gets a place is for the fair queue to say.
//!
//! A place is exclusive while its run is young. What runs for longer than [`YOUNG`] takes no place from other tenants any
//! more, only from its own tenant's further runs: a long run keeps nobody else waiting, and with long runs every tenant has
//! at most as many at once as there are cores, whatever number of functions it has.
//!
//! A start mostly waits for what the kernel makes of it. It is let in like the run that it is for, so that starts are no more at
//! once than those runs could be; but runs of others are held by no more than it wants of a core.

use std::collections::BTreeMap;
use std::time::Duration;

use model::{Tenant, Time};

use crate::port::Taken;

/// How long a run's place is exclusive.
pub(super) const YOUNG: Duration = Duration::from_millis(100);
/// A tenant whose own long runs take all its places gets one more within this time; longer than most starts take.
const HELD_MAX: Duration = Duration::from_millis(200);
/// Mean runs of the function whose turn it is that the same may take, where that is longer.
const HELD_MEAN_RUNS: u32 = 4;

/// Thousandths.
const WHOLE: u64 = 1_000;

/// What part of a core, or of the node, a run takes; thousandths, rounded up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Part(u64);

impl Part {
    pub(super) const ONE_CORE: Self = Self(WHOLE);

    /// `part` of `of`, times `times`.
    pub(super) fn of(part: u64, of: u64, times: u64) -> Self {
        let thousandths = (u128::from(part) * u128::from(times) * u128::from(WHOLE)).div_ceil(u128::from(of.max(1)));
        Self(u64::try_from(thousandths).unwrap_or(u64::MAX))
    }

    fn of_times(part: Duration, of: Duration) -> Self {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self::of(nanos(part), nanos(of), 1)
    }

    /// This part of a duration.
    pub(super) fn of_time(self, time: Duration) -> Duration {
        let nanos = time.as_nanos() * u128::from(self.0) / u128::from(WHOLE);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// What is known of a function's runs; moving means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Learned(Option<Taken>);

impl Learned {
    /// Takes in what was measured of runs, an eighth of each mean. The means are of times, not of their ratios, so that long runs
    /// weigh more than short ones: where some wait and others compute, the ones that wait need the room.
    pub(super) fn learn(&mut self, new: Taken) {
        let mean = |old: Duration, new: Duration| (old * 7 + new) / 8;
        let known = self.0.unwrap_or(new);
        self.0 = Some(Taken {
            run: mean(known.run, new.run),
            wanted: mean(known.wanted, new.wanted),
            whole: mean(known.whole, new.whole),
            used: mean(known.used, new.used),
        });
    }

    /// The cores that a run keeps busy from its delivery to its answer; one until it is known. More than there are, where an
    /// instance computes after its answer. What it waits for a core is not its own doing: beside others that would be charged
    /// for again and again.
    pub(super) fn cores(self) -> Part {
        self.0.map_or(Part::ONE_CORE, |known| Part::of_times(known.used, known.whole))
    }

    /// What a run takes of the places.
    pub(super) fn places(self) -> Part {
        self.places_or(Part::ONE_CORE)
    }

    /// The same, or `unknown`.
    pub(super) fn places_or(self, unknown: Part) -> Part {
        self.0.map_or(unknown, |known| Part::of_times(known.wanted, known.run).min(Part::ONE_CORE))
    }
}

/// What a place is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Run,
    /// Of an instance; what such a start takes of a core meanwhile.
    Start(Part),
}

/// What an instance that starts or runs takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Of a run, also of the one that a start is for.
    pub(super) part: Part,
    what: Use,
    pub(super) since: Time,
    /// When it is looked whether it is still there.
    pub(super) look: Time,
    /// When its tenant had been let in before, if that had to wait for its own.
    before: Option<Time>,
    age: Age,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Age {
    Young,
    /// It counts for this tenant alone.
    Old(Tenant),
}

/// The places and who has them.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    all: u64,
    /// Of young runs.
    young: u64,
    starts: Starts,
    old: BTreeMap<Tenant, Old>,
}

/// Young starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Starts {
    /// As further starts count them: what the runs they are for take, or they themselves if that is more.
    part: u64,
    /// As runs count them.
    now: u64,
}

/// A tenant's runs that are young no more.
#[derive(Clone, Copy, Debug)]
struct Old {
    part: u64,
    runs: u32,
    /// When it was let in last, or, if not since it has such runs, when the first of them was.
    moved: Time,
}

/// Whether a tenant may have something run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Open,
    /// Young runs and starts take all places.
    Full,
    /// Its own runs take all places. It is let in for once then, with a function of this mean run.
    HeldUntil(Time),
}

impl Gate {
    pub(super) const fn new(cores: u32) -> Self {
        Self { all: cores as u64 * WHOLE, young: 0, starts: Starts { part: 0, now: 0 }, old: BTreeMap::new() }
    }

    /// Whether a tenant may have something run or started; `mean_run` is that of its function whose turn it is. Where nothing
    /// may run, nothing may start.
    pub(super) fn entry(&self, tenant: &Tenant, what: Use, mean_run: Duration, now: Time) -> Entry {
        let young = self.young
            + match what {
                Use::Run => self.starts.now,
                Use::Start(_) => self.starts.part,
            };
        if self.all <= young {
            return Entry::Full;
        }
        let Some(old) = self.old.get(tenant).filter(|old| self.all <= young + old.part) else { return Entry::Open };
        let until = old.moved + HELD_MAX.max(mean_run * HELD_MEAN_RUNS);
        if until <= now { Entry::Open } else { Entry::HeldUntil(until) }
    }

    /// Somebody is let in whose turn it is.
    pub(super) fn enter(&mut self, tenant: &Tenant, (part, what): (Part, Use), now: Time) -> Place {
        let mut place = self.take(part, what, now);
        if let Some(old) = self.old.get_mut(tenant) {
            place.before = Some(std::mem::replace(&mut old.moved, now));
        }
        place
    }

    /// What was let in has started and not run yet: unless another was let in since, its run is, as if it had not been.
    pub(super) fn started(&mut self, tenant: &Tenant, place: &Place) {
        if let (Some(before), Some(old)) = (place.before, self.old.get_mut(tenant).filter(|old| old.moved == place.since)) {
            old.moved = before;
        }
    }

    /// Somebody takes a place without a turn; whoever is held by his own waits no longer for that.
    pub(super) fn take(&mut self, part: Part, what: Use, now: Time) -> Place {
        let place = Place { part, what, since: now, look: now + YOUNG, before: None, age: Age::Young };
        self.count(&place, |sum, part| sum + part);
        place
    }

    /// Adds a young place to what is taken, or takes it off.
    fn count(&mut self, place: &Place, change: impl Fn(u64, u64) -> u64) {
        match place.what {
            Use::Run => self.young = change(self.young, place.part.0),
            Use::Start(now) => {
                self.starts.part = change(self.starts.part, place.part.max(now).0);
                self.starts.now = change(self.starts.now, now.0);
            }
        }
    }

    pub(super) fn leave(&mut self, place: Place) {
        match place.age {
            Age::Young => self.count(&place, |sum, part| sum - part),
            Age::Old(tenant) => {
                let Some(old) = self.old.get_mut(&tenant) else { return };
                old.part -= place.part.0;
                old.runs -= 1;
                if old.runs == 0 {
                    self.old.remove(&tenant);
                }
            }
        }
    }

    /// A place is exclusive no more.
    pub(super) fn grow_old(&mut self, place: &mut Place, tenant: &Tenant) {
        match &place.age {
            Age::Young => {
                self.count(place, |sum, part| sum - part);
                let old = self.old.entry(tenant.clone()).or_insert(Old { part: 0, runs: 0, moved: place.since });
                old.part += place.part.0;
                old.runs += 1;
                place.age = Age::Old(tenant.clone());
            }
            Age::Old(_) => {}
        }
    }

    /// It was seen what a run takes.
    pub(super) fn resize(&mut self, place: &mut Place, part: Part) {
        match &place.age {
            Age::Young => self.count(place, |sum, part| sum - part),
            Age::Old(tenant) => {
                if let Some(old) = self.old.get_mut(tenant) {
                    old.part = old.part - place.part.0 + part.0;
                }
            }
        }
        place.part = part;
        if place.age == Age::Young {
            self.count(place, |sum, part| sum + part);
        }
    }

    /// Nobody has a place.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.young == 0 && self.starts == Starts::default() && self.old.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn tenant(name: &str) -> Tenant {
        name.parse().unwrap()
    }

    fn check(samples: &[(u64, u64)], expected: (Part, Part)) {
        let mut learned = Learned::default();
        for (run, wanted) in samples {
            learned.learn(Taken { run: ms(*run), wanted: ms(*wanted), whole: ms(*run), used: ms(*wanted) });
        }
        assert_eq!((learned.places(), learned.cores()), expected, "{samples:?}");
    }

    #[test]
    fn a_run_takes_the_part_of_a_core_that_it_wants() {
        let both = |part| (Part(part), Part(part));
        check(&[], both(1_000));
        check(&[(10, 10)], both(1_000));
        check(&[(10, 5)], both(500));
        check(&[(100, 3)], both(30));
        check(&[(10, 0)], both(0));
        // Several threads: they are charged for, and take one place.
        check(&[(10, 15)], (Part(1_000), Part(1_500)));
        // Mostly after the answer.
        check(&[(10, 90)], (Part(1_000), Part(9_000)));
    }

    #[test]
    fn who_waits_for_a_core_takes_a_place_and_is_charged_for_what_he_uses() {
        let mut learned = Learned::default();
        learned.learn(Taken { run: ms(1), wanted: ms(3), whole: ms(4), used: ms(1) });
        assert_eq!((learned.places(), learned.cores()), (Part(1_000), Part(250)));
    }

    #[test]
    fn whoever_waits_makes_room_for_all() {
        check(&[(1, 1), (800, 1), (1, 1)], (Part(12), Part(12)));
    }

    #[test]
    fn a_long_run_holds_its_own_tenant_alone_and_not_for_ever() {
        let mut gate = Gate::new(1);
        let (a, b) = (tenant("a"), tenant("b"));
        let mut place = gate.enter(&a, (Part::ONE_CORE, Use::Run), Time::ZERO);
        assert_eq!(
            (gate.entry(&a, Use::Run, ms(10), Time::ZERO), gate.entry(&b, Use::Run, ms(10), Time::ZERO)),
            (Entry::Full, Entry::Full)
        );
        let old = Time::ZERO + YOUNG;
        gate.grow_old(&mut place, &a);
        assert_eq!(
            (gate.entry(&a, Use::Run, ms(10), old), gate.entry(&b, Use::Run, ms(10), old)),
            (Entry::HeldUntil(Time::ZERO + ms(200)), Entry::Open)
        );
        assert_eq!(gate.entry(&a, Use::Run, ms(80), old), Entry::HeldUntil(Time::ZERO + ms(320)), "four mean runs");
        assert_eq!(gate.entry(&a, Use::Run, ms(10), Time::ZERO + ms(200)), Entry::Open);
        gate.leave(place);
        assert!(gate.is_empty());
    }

    #[test]
    fn a_start_without_a_turn_makes_who_is_held_by_his_own_wait_no_longer() {
        let mut gate = Gate::new(1);
        let a = tenant("a");
        let mut run = gate.enter(&a, (Part::ONE_CORE, Use::Run), Time::ZERO);
        gate.grow_old(&mut run, &a);
        let mut start = gate.take(Part::ONE_CORE, Use::Start(Part::ONE_CORE), Time::ZERO + ms(90));
        assert_eq!(gate.entry(&a, Use::Run, ms(10), Time::ZERO + ms(90)), Entry::Full);
        gate.grow_old(&mut start, &a);
        assert_eq!(gate.entry(&a, Use::Run, ms(10), Time::ZERO + ms(190)), Entry::HeldUntil(Time::ZERO + ms(200)));
        gate.leave(run);
        assert_eq!(gate.entry(&a, Use::Run, ms(10), Time::ZERO + ms(190)), Entry::HeldUntil(Time::ZERO + ms(200)));
    }

    #[test]
    fn a_start_holds_other_starts_as_a_run_does_and_runs_as_it_wants_a_core() {
        let mut gate = Gate::new(1);
        let (a, b) = (tenant("a"), tenant("b"));
        let start = Use::Start(Part(100));
        let place = gate.enter(&a, (Part::ONE_CORE, start), Time::ZERO);
        assert_eq!(gate.entry(&b, start, ms(10), Time::ZERO), Entry::Full);
        assert_eq!(gate.entry(&b, Use::Run, ms(10), Time::ZERO), Entry::Open);
        let run = gate.enter(&b, (Part(900), Use::Run), Time::ZERO);
        assert_eq!(gate.entry(&b, Use::Run, ms(10), Time::ZERO), Entry::Full);
        gate.leave(place);
        assert_eq!(gate.entry(&a, start, ms(10), Time::ZERO), Entry::Open);
        gate.leave(run);
        assert!(gate.is_empty());
    }

    proptest! {
        /// Whatever enters, is seen and leaves, nobody's place is lost or kept.
        #[test]
        fn what_all_leave_is_empty(steps in prop::collection::vec((0_u8..4, 0_u64..2_000, 0_usize..8), 0..100)) {
            let mut gate = Gate::new(2);
            let owners = [tenant("a"), tenant("b")];
            let mut places: Vec<(usize, Place)> = Vec::new();
            for (step, part, nth) in steps {
                match (step, places.get_mut(nth)) {
                    (0, _) => {
                        let what = if nth < 4 { Use::Run } else { Use::Start(Part(2_000 - part)) };
                        places.push((nth % 2, gate.enter(&owners[nth % 2], (Part(part), what), Time::ZERO)));
                    }
                    (1, Some((owner, place))) => gate.grow_old(place, &owners[*owner]),
                    (2, Some((_, place))) => gate.resize(place, Part(part)),
                    (3, Some(_)) => gate.leave(places.remove(nth).1),
                    (_, _) => {}
                }
                let young = || places.iter().map(|(_, place)| place).filter(|place| place.age == Age::Young);
                let runs: u64 = young().filter(|place| place.what == Use::Run).map(|place| place.part.0).sum();
                let now = |place: &Place| if let Use::Start(now) = place.what { Some(now) } else { None };
                let starting: u64 = young().filter_map(now).map(|now| now.0).sum();
                prop_assert_eq!((runs, starting), (gate.young, gate.starts.now));
                prop_assert!(gate.starts.now <= gate.starts.part, "where nothing may run, nothing may start");
            }
            places.into_iter().for_each(|(_, place)| gate.leave(place));
            prop_assert!(gate.is_empty());
        }
    }
}
