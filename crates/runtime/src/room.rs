//! A number of places that several share: however many of one want to wait, each of the others finds its part.

use std::collections::{BTreeMap, BTreeSet};

/// There is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Counts who has a place.
///
/// Half of the places are for whoever comes. The other half is for those that have no more than their part of it: so whoever
/// comes in numbers finds the first half at most, and the parts together are no more than the second.
#[derive(Clone, Debug)]
pub struct Room<K> {
    places: usize,
    sharing: BTreeSet<K>,
    taken: BTreeMap<K, usize>,
    sum: usize,
}

impl<K: Ord + Clone> Room<K> {
    /// Of so many places; none is fine.
    #[must_use]
    pub fn new(places: usize) -> Self {
        Self { places, sharing: BTreeSet::new(), taken: BTreeMap::new(), sum: 0 }
    }

    /// Whoever shares already stays as it is.
    pub fn join(&mut self, key: K) {
        self.sharing.insert(key);
    }

    /// Places that it has stay taken until they are given back.
    pub fn leave(&mut self, key: &K) {
        self.sharing.remove(key);
    }

    /// Takes one more place, if that makes no more than `most` of its own. Whoever never joined has no part.
    pub fn enter(&mut self, key: K, most: usize) -> Result<(), Full> {
        self.enter_with(key, 1, most)
    }

    /// The same with `count` places at once, all of them or none.
    pub fn enter_with(&mut self, key: K, count: usize, most: usize) -> Result<(), Full> {
        if count == 0 {
            return Ok(());
        }
        let own = self.taken_by(&key);
        let half = self.places / 2;
        let part = if self.sharing.contains(&key) { (half / self.sharing.len()).max(1) } else { 0 };
        let (own, sum) = (own.saturating_add(count), self.sum.saturating_add(count));
        if own <= most && sum <= self.places && (sum <= half || own <= part) {
            self.taken.insert(key, own);
            self.sum = sum;
            return Ok(());
        }
        Err(Full)
    }

    /// Gives a place back that was taken.
    ///
    /// # Panics
    /// When it has none.
    pub fn exit(&mut self, key: &K) {
        self.exit_with(key, 1);
    }

    /// Gives `count` places back that were taken.
    ///
    /// # Panics
    /// When it has fewer.
    pub fn exit_with(&mut self, key: &K, count: usize) {
        if count == 0 {
            return;
        }
        let own = self.taken.get_mut(key).expect("invariant: who gives a place back has one");
        *own = own.checked_sub(count).expect("invariant: who gives places back has as many");
        self.sum -= count;
        if *own == 0 {
            self.taken.remove(key);
        }
    }

    /// Places of one that shares.
    #[must_use]
    pub fn taken_by(&self, key: &K) -> usize {
        self.taken.get(key).copied().unwrap_or(0)
    }

    /// Places of all.
    #[must_use]
    pub const fn taken(&self) -> usize {
        self.sum
    }

    /// How many share.
    #[must_use]
    pub fn sharing(&self) -> usize {
        self.sharing.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shared_by(count: u32, places: usize) -> Room<u32> {
        let mut room = Room::new(places);
        (0..count).for_each(|key| room.join(key));
        room
    }

    fn entered(room: &mut Room<u32>, key: u32, tries: usize, most: usize) -> usize {
        (0..tries).filter(|_| room.enter(key, most).is_ok()).count()
    }

    #[test]
    fn one_that_comes_in_numbers_finds_half_and_leaves_the_others_their_parts() {
        let mut room = shared_by(4, 80);
        assert_eq!(entered(&mut room, 0, 100, usize::MAX), 40);
        assert_eq!(entered(&mut room, 1, 100, usize::MAX), 10);
        assert_eq!(entered(&mut room, 2, 100, 7), 7);
        assert_eq!(entered(&mut room, 99, 100, usize::MAX), 0, "a stranger has no part");
        room.exit(&0);
        assert_eq!(entered(&mut room, 0, 100, usize::MAX), 0, "the rest is for those within their parts");
        assert_eq!(entered(&mut room, 3, 100, usize::MAX), 10);
    }

    #[test]
    fn many_places_are_taken_at_once_or_none() {
        let mut room = shared_by(2, 80);
        assert_eq!((room.enter_with(0, 30, 80), room.enter_with(0, 11, 80)), (Ok(()), Err(Full)));
        assert_eq!((room.enter_with(1, 20, 80), room.taken_by(&0)), (Ok(()), 30), "its part");
        room.exit_with(&0, 30);
        assert_eq!((room.taken_by(&0), room.enter_with(0, usize::MAX, usize::MAX)), (0, Err(Full)));
    }

    #[test]
    fn several_that_come_at_once_share_what_there_is() {
        let mut room = shared_by(4, 400);
        let mut entered = [0; 4];
        for _ in 0..50 {
            for key in 0..4 {
                entered[usize::try_from(key).unwrap()] += usize::from(room.enter(key, 1_000).is_ok());
            }
        }
        assert_eq!(entered, [50; 4]);
    }

    proptest! {
        #[test]
        fn nobody_within_its_part_is_kept_out_while_the_parts_fit(steps in prop::collection::vec((0..6_u32, any::<bool>()), 0..400)) {
            let mut room = shared_by(5, 40);
            for (key, comes) in steps {
                let own = room.taken_by(&key);
                if comes {
                    let entered = room.enter(key, usize::MAX).is_ok();
                    prop_assert!(entered || key == 5 || 4 <= own, "{key} has {own}");
                } else if 0 < own {
                    room.exit(&key);
                }
                prop_assert!(room.sum <= 40);
                prop_assert_eq!(room.sum, (0..6).map(|key| room.taken_by(&key)).sum::<usize>());
            }
        }
    }
}
