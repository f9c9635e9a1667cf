//! The connections that a lane holds, so that one that has been silent gives way where there are too many.
//!
//! Whoever connects, asks once and stays would otherwise hold a place for as long as a connection may be idle. Under that
//! pressure alone the lane looks for one that is silent, at a bounded number of connections for each that comes, going round.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

/// Between two requests a connection is silent for so long before it gives way: a client that works is not cut off.
const SILENT_FOR: Duration = Duration::from_secs(1);
/// Connections looked at for each that comes.
const LOOKED_AT: usize = 64;

/// Since when a connection waits for its client's next request, where it does. Its task sets it.
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

/// `T` is what it takes to have a connection give up its place.
#[derive(Debug)]
pub(super) struct Seats<T> {
    taken: BTreeMap<u64, (Silence, T)>,
    next: u64,
    /// The last one looked at.
    looked_up_to: u64,
}

impl<T> Default for Seats<T> {
    fn default() -> Self {
        Self { taken: BTreeMap::new(), next: 0, looked_up_to: 0 }
    }
}

impl<T> Seats<T> {
    /// The number of the connection that sits down next.
    pub(super) fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn sit(&mut self, number: u64, silence: Silence, who: T) {
        self.taken.insert(number, (silence, who));
    }

    pub(super) fn leave(&mut self, number: u64) {
        self.taken.remove(&number);
    }

    /// Takes the place of the one that has been silent longest, of those that are looked at.
    pub(super) fn make_room(&mut self, now: Instant) -> Option<T> {
        let from_here = self.taken.range(self.looked_up_to + 1..).chain(self.taken.range(..=self.looked_up_to));
        let (mut longest, mut last) = (None, self.looked_up_to);
        for (number, (silence, _)) in from_here.take(LOOKED_AT) {
            last = *number;
            let since = silence.0.get().filter(|since| SILENT_FOR <= now.saturating_duration_since(*since));
            if let Some(since) = since
                && longest.is_none_or(|(other, _)| since < other)
            {
                longest = Some((since, *number));
            }
        }
        self.looked_up_to = last;
        let (_, number) = longest?;
        self.taken.remove(&number).map(|(_, who)| who)
    }
}

#[cfg(test)]
mod tests {
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
}
