//! The places of connections whose first request is not there yet.
//!
//! There are three stages, each with places of its own: connections that have sent nothing, those whose first request has
//! begun, and those whose head showed a key and whose body is to come. Of the last, half of the places are for heads with the
//! token, and half for those with a signature: who knows a key's name alone can claim one, and only the body proves it. Whoever
//! enters a full stage takes the place of the one that has been in it longest. So nobody is kept out by those who are slow, who
//! sends is not pushed out by who does not, and who sends its body is not pushed out by strangers' half heads, nor one with the
//! token by claims.

use std::collections::BTreeMap;

/// A connection's place, in the order of coming.
pub(super) type Place = u64;

/// `T` is what it takes to have a connection give up its place.
#[derive(Debug)]
pub(super) struct Places<T> {
    silent: BTreeMap<Place, T>,
    begun: Stage<T>,
    claimed: Stage<T>,
    let_in: Stage<T>,
    next: u64,
    of_each: usize,
}

/// Connections in the order in which they entered a stage that is not the first.
#[derive(Debug)]
struct Stage<T> {
    taken: BTreeMap<u64, (Place, T)>,
    turns: BTreeMap<Place, u64>,
}

impl<T> Stage<T> {
    fn new() -> Self {
        Self { taken: BTreeMap::new(), turns: BTreeMap::new() }
    }

    /// Takes a connection in at its turn. Returns who has to leave for it.
    fn enter(&mut self, turn: u64, (place, who): (Place, T), most: usize) -> Option<T> {
        let leaves = if most <= self.taken.len() { self.taken.pop_first() } else { None };
        self.taken.insert(turn, (place, who));
        self.turns.insert(place, turn);
        leaves.map(|(_, (place, who))| {
            self.turns.remove(&place);
            who
        })
    }

    fn leave(&mut self, place: Place) -> Option<T> {
        let turn = self.turns.remove(&place)?;
        self.taken.remove(&turn).map(|(_, who)| who)
    }
}

impl<T> Places<T> {
    /// So many places `of_each` stage, at least 2: the last one has two halves.
    pub(super) fn new(of_each: usize) -> Self {
        assert!(2 <= of_each, "invariant: a stage has a place for each half");
        Self { silent: BTreeMap::new(), begun: Stage::new(), claimed: Stage::new(), let_in: Stage::new(), next: 0, of_each }
    }

    fn count(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A place for a connection that [`Places::enter`]s next.
    pub(super) fn next(&mut self) -> Place {
        self.count()
    }

    /// A connection that has sent nothing. Returns who has to leave for it.
    pub(super) fn enter(&mut self, place: Place, who: T) -> Option<T> {
        let leaves = if self.of_each <= self.silent.len() { self.oldest_silent() } else { None };
        self.silent.insert(place, who);
        leaves
    }

    /// The first bytes of a connection came. Returns who has to leave for it.
    pub(super) fn begin(&mut self, place: Place) -> Option<T> {
        let who = self.silent.remove(&place)?;
        self.enter_begun(place, who)
    }

    /// A connection whose request has begun. Returns who has to leave for it.
    pub(super) fn enter_begun(&mut self, place: Place, who: T) -> Option<T> {
        let turn = self.count();
        self.begun.enter(turn, (place, who), self.of_each)
    }

    /// The head of a connection's request showed the token. Returns who has to leave for it.
    pub(super) fn let_in(&mut self, place: Place) -> Option<T> {
        let who = self.begun.leave(place)?;
        self.enter_let_in(place, who)
    }

    /// A connection whose head is there and showed the token. Returns who has to leave for it.
    pub(super) fn enter_let_in(&mut self, place: Place, who: T) -> Option<T> {
        let (turn, most) = (self.count(), self.of_each / 2);
        self.let_in.enter(turn, (place, who), most)
    }

    /// The head of a connection's request claims a key by a signature. Returns who has to leave for it.
    pub(super) fn claim(&mut self, place: Place) -> Option<T> {
        let who = self.begun.leave(place)?;
        self.enter_claimed(place, who)
    }

    /// A connection whose head is there and claims a key. Returns who has to leave for it.
    pub(super) fn enter_claimed(&mut self, place: Place, who: T) -> Option<T> {
        let (turn, most) = (self.count(), self.of_each / 2);
        self.claimed.enter(turn, (place, who), most)
    }

    /// A connection went, or moved on.
    pub(super) fn leave(&mut self, place: Place) {
        // Whoever was told to leave has no place any more.
        self.silent.remove(&place);
        self.begun.leave(place);
        self.claimed.leave(place);
        self.let_in.leave(place);
    }

    /// The one that has been silent longest loses its place.
    pub(super) fn oldest_silent(&mut self) -> Option<T> {
        self.silent.pop_first().map(|(_, who)| who)
    }

    pub(super) fn taken(&self) -> usize {
        self.silent.len() + self.begun.taken.len() + self.claimed.taken.len() + self.let_in.taken.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn enter(places: &mut Places<Place>) -> (Place, Option<Place>) {
        let place = places.next();
        (place, places.enter(place, place))
    }

    #[test]
    fn whoever_comes_takes_the_place_of_the_longest_silent() {
        let mut places = Places::<Place>::new(2);
        let (first, second) = (enter(&mut places).0, enter(&mut places).0);
        assert_eq!(places.begin(first), None);
        assert_eq!(enter(&mut places).1, None, "the first has left the silent");
        assert_eq!(enter(&mut places).1, Some(second));
    }

    #[test]
    fn those_that_begin_and_never_end_make_room_for_one_another_only() {
        let mut places = Places::<Place>::new(2);
        let quiet = enter(&mut places).0;
        let mut gone = Vec::new();
        for _ in 0..3 {
            let (place, _) = enter(&mut places);
            gone.extend(places.begin(place));
        }
        assert_eq!(gone.len(), 1, "the one that began first");
        assert_eq!((places.taken(), places.oldest_silent()), (3, Some(quiet)));
    }

    #[test]
    fn who_is_let_in_is_not_pushed_out_by_half_heads() {
        let mut places = Places::<Place>::new(2);
        let sender = enter(&mut places).0;
        assert_eq!((places.begin(sender), places.let_in(sender)), (None, None));
        let mut gone = Vec::new();
        for _ in 0..10 {
            let (place, leaves) = enter(&mut places);
            gone.extend(leaves.into_iter().chain(places.begin(place)));
        }
        assert!(gone.len() == 8 && !gone.contains(&sender), "{gone:?}");
    }

    #[test]
    fn claims_push_out_one_another_and_nobody_who_showed_the_token() {
        let mut places = Places::<Place>::new(4);
        let begun = |places: &mut Places<Place>| {
            let place = enter(places).0;
            assert_eq!(places.begin(place), None);
            place
        };
        let proven = begun(&mut places);
        assert_eq!(places.let_in(proven), None);
        let mut gone = Vec::new();
        for _ in 0..10 {
            let place = begun(&mut places);
            gone.extend(places.claim(place));
        }
        assert!(gone.len() == 8 && !gone.contains(&proven), "{gone:?}");
        let second = begun(&mut places);
        assert_eq!(places.let_in(second), None, "its place is still there");
    }

    proptest! {
        #[test]
        fn no_stage_holds_more_than_its_places_and_nobody_is_lost(of_each in 2..5_usize, steps in prop::collection::vec((0..6_u8, 0..40_usize), 0..200)) {
            let mut places = Places::new(of_each);
            let (mut came, mut out) = (Vec::new(), std::collections::BTreeSet::new());
            for (step, which) in steps {
                let known = came.get(which % came.len().max(1)).copied();
                let leaves = match (step, known) {
                    (0 | 1, _) | (_, None) => {
                        let (place, leaves) = enter(&mut places);
                        came.push(place);
                        leaves
                    }
                    (2, Some(place)) => places.begin(place),
                    (3, Some(place)) => places.let_in(place),
                    (4, Some(place)) => places.claim(place),
                    (_, Some(place)) => {
                        places.leave(place);
                        out.insert(place);
                        None
                    }
                };
                prop_assert!(leaves.is_none_or(|place| out.insert(place)), "nobody leaves twice");
                prop_assert!(places.silent.len() <= of_each && places.begun.taken.len() <= of_each);
                prop_assert!(places.claimed.taken.len() + places.let_in.taken.len() <= of_each);
                for stage in [&places.begun, &places.claimed, &places.let_in] {
                    prop_assert_eq!(stage.taken.len(), stage.turns.len());
                }
                prop_assert_eq!(places.taken() + out.len(), came.len());
            }
        }
    }
}
