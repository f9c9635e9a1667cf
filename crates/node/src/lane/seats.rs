//! The connections that a lane holds, so that one that has been silent gives way where there are too many.
//!
//! Whoever connects, asks once and stays would otherwise hold a place for as long as a connection may be idle. Under that
//! pressure alone the lane looks for one that is silent, at a bounded number of connections for each that comes, going round.
//! It looks among those of the function that has the most: a function with less than its equal part of the places loses none,
//! whatever the clients of others do.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use model::FunctionKey;
use tokio::time::Instant;

/// A connection is silent for so long before it gives way: a client that works is not cut off.
const SILENT_FOR: Duration = Duration::from_secs(1);
/// Connections looked at in one group for each that comes, and groups looked into.
const LOOKED_AT: usize = 64;
const GROUPS_LOOKED_INTO: usize = 4;

/// Since when a connection waits for its client's next request or for the rest of its head, where it does. Its task sets it.
#[derive(Clone, Debug, Default)]
pub(super) struct Silence(Rc<Cell<Option<Instant>>>);

impl Silence {
    pub(super) fn begin(&self, now: Instant) {
        self.0.set(Some(now));
    }

    pub(super) fn end(&self) {
        self.0.set(None);
    }
}

/// The function a connection's last request was for; none where it had none that was let in.
type Owner = Option<FunctionKey>;

#[derive(Debug)]
struct Sitting<T> {
    silence: Silence,
    who: T,
    owner: Owner,
}

/// The connections of one function.
#[derive(Debug, Default)]
struct Group {
    numbers: BTreeSet<u64>,
    /// The last one looked at.
    looked_up_to: u64,
}

/// `T` is what it takes to have a connection give up its place.
#[derive(Debug)]
pub(super) struct Seats<T> {
    taken: BTreeMap<u64, Sitting<T>>,
    groups: BTreeMap<Owner, Group>,
    /// The groups in the order of their sizes.
    sizes: BTreeSet<(usize, Owner)>,
    next: u64,
}

impl<T> Default for Seats<T> {
    fn default() -> Self {
        Self { taken: BTreeMap::new(), groups: BTreeMap::new(), sizes: BTreeSet::new(), next: 0 }
    }
}

impl<T> Seats<T> {
    /// The number of the connection that sits down next.
    pub(super) fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn taken(&self) -> usize {
        self.taken.len()
    }

    pub(super) fn sit(&mut self, number: u64, silence: Silence, who: T) {
        self.taken.insert(number, Sitting { silence, who, owner: None });
        self.join(None, number);
    }

    /// A request on a connection is for this function.
    pub(super) fn asks_for(&mut self, number: u64, function: FunctionKey) {
        let Some(sitting) = self.taken.get_mut(&number).filter(|sitting| sitting.owner != Some(function)) else { return };
        let before = sitting.owner.replace(function);
        self.part(before, number);
        self.join(Some(function), number);
    }

    pub(super) fn leave(&mut self, number: u64) {
        self.remove(number);
    }

    /// Takes the place of the one that has been silent longest, of those that are looked at.
    pub(super) fn make_room(&mut self, now: Instant) -> Option<T> {
        let mut looked_into: Option<(usize, Owner)> = None;
        for _ in 0..GROUPS_LOOKED_INTO {
            let (size, owner) = match looked_into {
                None => *self.sizes.last()?,
                Some(group) => *self.sizes.range(..group).next_back()?,
            };
            if size * self.groups.len() < self.taken.len() {
                return None; // less than its equal part
            }
            if let Some(number) = self.longest_silent(owner, now) {
                return self.remove(number);
            }
            looked_into = Some((size, owner));
        }
        None
    }

    fn longest_silent(&mut self, owner: Owner, now: Instant) -> Option<u64> {
        let group = self.groups.get_mut(&owner)?;
        let from_here = group.numbers.range(group.looked_up_to + 1..).chain(group.numbers.range(..=group.looked_up_to));
        let (mut longest, mut last) = (None, group.looked_up_to);
        for number in from_here.take(LOOKED_AT) {
            last = *number;
            let since = self.taken.get(number).and_then(|sitting| sitting.silence.0.get());
            let since = since.filter(|since| SILENT_FOR <= now.saturating_duration_since(*since));
            if let Some(since) = since
                && longest.is_none_or(|(other, _)| since < other)
            {
                longest = Some((since, *number));
            }
        }
        group.looked_up_to = last;
        longest.map(|(_, number)| number)
    }

    fn remove(&mut self, number: u64) -> Option<T> {
        let sitting = self.taken.remove(&number)?;
        self.part(sitting.owner, number);
        Some(sitting.who)
    }

    fn join(&mut self, owner: Owner, number: u64) {
        let group = self.groups.entry(owner).or_default();
        self.sizes.remove(&(group.numbers.len(), owner));
        group.numbers.insert(number);
        self.sizes.insert((group.numbers.len(), owner));
    }

    fn part(&mut self, owner: Owner, number: u64) {
        let Some(group) = self.groups.get_mut(&owner) else { return };
        self.sizes.remove(&(group.numbers.len(), owner));
        group.numbers.remove(&number);
        match group.numbers.len() {
            0 => drop(self.groups.remove(&owner)),
            size => drop(self.sizes.insert((size, owner))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// So many seats, all of them silent since `now`, with what says so.
    fn taken(count: u64, now: Instant) -> (Seats<u64>, Vec<Silence>) {
        let mut seats = Seats::default();
        let silences = (0..count).map(|_| Silence::default()).collect::<Vec<_>>();
        for silence in &silences {
            let number = seats.next();
            silence.begin(now);
            seats.sit(number, silence.clone(), number);
        }
        (seats, silences)
    }

    #[test]
    fn the_longest_silent_gives_way_and_nobody_who_works() {
        let now = Instant::now();
        let (mut seats, silences) = taken(4, now + SILENT_FOR);
        silences[1].begin(now);
        silences[2].end();
        assert_eq!(seats.make_room(now + SILENT_FOR), Some(2));
        assert_eq!(seats.make_room(now + SILENT_FOR), None, "the others have not been silent long");
        seats.leave(1);
        assert_eq!(seats.make_room(now + 2 * SILENT_FOR), Some(4));
        assert_eq!(seats.make_room(now + 9 * SILENT_FOR), None, "the third has a request");
    }

    #[test]
    fn every_silent_one_is_found_in_the_end_with_bounded_looks() {
        let now = Instant::now();
        let (mut seats, silences) = taken(1_000, now);
        silences[..999].iter().for_each(Silence::end);
        let asks = (1..100).find(|_| seats.make_room(now + SILENT_FOR) == Some(1_000));
        assert!(asks.is_some_and(|asks| asks <= 1_000_usize.div_ceil(LOOKED_AT)), "{asks:?}");
    }

    #[test]
    fn a_function_with_many_connections_pushes_out_none_of_another() {
        let now = Instant::now();
        let (mut seats, silences) = taken(1_000, now);
        for number in 1..=1_000 {
            seats.asks_for(number, FunctionKey(if number <= 10 { 1 } else { 2 }));
        }
        // Those of the small function have been silent longest.
        silences[10..].iter().for_each(|silence| silence.begin(now + SILENT_FOR));
        for _ in 0..900 {
            let leaves = seats.make_room(now + 2 * SILENT_FOR);
            assert!(leaves.is_some_and(|number| 10 < number), "{leaves:?}");
        }
        silences.iter().skip(10).for_each(Silence::end);
        assert_eq!(seats.make_room(now + 2 * SILENT_FOR), None, "the large one works: whoever comes is told so");
        (11..=1_000).for_each(|number| seats.leave(number));
        assert!(seats.make_room(now + 2 * SILENT_FOR).is_some(), "it is the only one");
    }

    proptest! {
        #[test]
        fn groups_hold_who_sits_and_no_small_one_loses(steps in prop::collection::vec((0..5_u8, 0..30_u64, 1..4_u64), 0..200)) {
            let now = Instant::now();
            let mut seats = Seats::default();
            for (step, number, function) in steps {
                match step {
                    0 | 1 => {
                        let (number, silence) = (seats.next(), Silence::default());
                        silence.begin(now);
                        seats.sit(number, silence, number);
                    }
                    2 => seats.asks_for(number, FunctionKey(function)),
                    3 => seats.leave(number),
                    _ => {
                        let owners = seats.taken.iter().map(|(number, sitting)| (*number, sitting.owner)).collect::<BTreeMap<_, _>>();
                        let sizes = seats.groups.iter().map(|(owner, group)| (*owner, group.numbers.len())).collect::<BTreeMap<_, _>>();
                        if let Some(left) = seats.make_room(now + SILENT_FOR) {
                            prop_assert!(owners.len() <= sizes[&owners[&left]] * sizes.len());
                        } else {
                            prop_assert!(owners.is_empty());
                        }
                    }
                }
                let of_groups = seats.groups.values().map(|group| group.numbers.len()).sum::<usize>();
                prop_assert_eq!((of_groups, seats.sizes.len()), (seats.taken(), seats.groups.len()));
            }
        }
    }
}
