//! When the full rate begins and ends, and what counts as one detected event.
//!
//! The watcher opens, the detector closes: once it has found nothing for a while. Pure: told answers, in any order.

use serde::{Deserialize, Serialize};

use super::picture::Rect;
use super::track::Finding;
use super::watch::Found;

/// The gate's times, in pictures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Pictures without a finding after which the event is over.
    pub(crate) quiet: u64,
    /// Pictures that the detector is given to find something at all.
    pub(crate) trial: u64,
    /// Fewest pictures with a finding that make an event.
    pub(crate) least: usize,
    /// Pictures for which the watcher is not believed after a false alarm.
    pub(crate) distrust: u64,
}

impl Options {
    /// Half a second without a finding ends an event, a third of a second with one makes one; 1.6 s of
    /// trial (a braking vehicle takes that long to be slow), one second of distrust.
    #[must_use]
    pub(crate) fn at(fps: u32) -> Self {
        let least = usize::try_from(fps / 3).unwrap_or(1).max(1);
        let fps = u64::from(fps);
        Self { quiet: fps / 2, trial: fps * 8 / 5, least, distrust: fps }
    }
}

/// One event as the detector saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Detected {
    pub(crate) finding: Finding,
    /// First and last picture with a finding.
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// The finding per picture, in the order of the pictures.
    pub(crate) sightings: Vec<(u64, Found)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed { deaf_until: u64 },
    Open { since: u64, last_found: Option<u64> },
}

#[derive(Clone, Debug)]
pub(crate) struct Gate {
    options: Options,
    state: State,
    /// From and up to (exclusive) which pictures the gate was open.
    open: Vec<(u64, u64)>,
    sightings: Vec<(u64, Found)>,
    false_alarms: u32,
}

impl Gate {
    #[must_use]
    pub(crate) fn new(options: Options) -> Self {
        let state = State::Closed { deaf_until: 0 };
        Self { options, state, open: Vec::new(), sightings: Vec::new(), false_alarms: 0 }
    }

    /// Pictures go to the detector now.
    #[must_use]
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// The watcher answered; `now` is the picture that is due next.
    pub(crate) fn watched(&mut self, now: u64, found: &[Found]) {
        if let State::Closed { deaf_until } = self.state
            && deaf_until <= now
            && !found.is_empty()
        {
            // Closed -> Open: the watcher believes that something happens.
            self.state = State::Open { since: now, last_found: None };
        }
    }

    /// The detector answered for picture `index`.
    pub(crate) fn detected(&mut self, index: u64, found: &[Found]) {
        self.sightings.extend(found.iter().map(|found| (index, *found)));
        if let State::Open { last_found, .. } = &mut self.state
            && !found.is_empty()
        {
            *last_found = Some(last_found.unwrap_or(index).max(index));
        }
    }

    /// Picture `now` is due: decides whether the event is over.
    pub(crate) fn tick(&mut self, now: u64) {
        let State::Open { since, last_found } = self.state else { return };
        let (over, deaf_until) = match last_found {
            Some(last) => (last.max(since) + self.options.quiet < now, now),
            None => (since + self.options.trial < now, now + self.options.distrust),
        };
        if over {
            // Open -> Closed: nothing to be seen any more.
            self.false_alarms += u32::from(last_found.is_none());
            self.open.push((since, now));
            self.state = State::Closed { deaf_until };
        }
    }

    /// Ends the observation at picture `now`.
    pub(crate) fn finish(mut self, now: u64) -> Summary {
        if let State::Open { since, .. } = self.state {
            self.open.push((since, now));
        }
        self.sightings.sort_by_key(|(index, found)| (*index, found.track));
        Summary { detected: events(self.sightings, self.options), open: self.open, false_alarms: self.false_alarms }
    }
}

/// What a gate saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) detected: Vec<Detected>,
    /// From and up to (exclusive) which pictures the full rate lasted.
    pub(crate) open: Vec<(u64, u64)>,
    /// Times the watcher opened and the detector found nothing.
    pub(crate) false_alarms: u32,
}

/// Groups sightings that continue each other in time and place; those of too few pictures are none.
fn events(sightings: Vec<(u64, Found)>, options: Options) -> Vec<Detected> {
    let mut groups: Vec<Vec<(u64, Found)>> = Vec::new();
    for (index, found) in sightings {
        let continued = groups.iter_mut().rev().find(|group| {
            group
                .last()
                .is_some_and(|(last, before)| index <= *last + options.quiet && *last != index && continues(before, &found))
        });
        match continued {
            Some(group) => group.push((index, found)),
            None => groups.push(vec![(index, found)]),
        }
    }
    groups
        .into_iter()
        .filter(|group| options.least <= group.len())
        .map(|group| Detected {
            finding: most_frequent(&group),
            first: group[0].0,
            last: group[group.len() - 1].0,
            sightings: group,
        })
        .collect()
}

fn continues(before: &Found, found: &Found) -> bool {
    let near = |a: &Rect, b: &Rect| {
        let reach = a.h.max(b.h);
        (a.middle() - b.middle()).abs() < reach && (a.foot() - b.foot()).abs() < reach
    };
    before.track == found.track || near(&before.rect, &found.rect)
}

/// A vehicle that stood still at any time long enough counts as stopped, since slowing down is part of stopping.
fn most_frequent(group: &[(u64, Found)]) -> Finding {
    let count = |finding| group.iter().filter(|(_, found)| found.finding == finding).count();
    let (stopped, slow, person) = (count(Finding::StoppedVehicle), count(Finding::SlowVehicle), count(Finding::Person));
    if stopped + slow < person {
        Finding::Person
    } else if slow <= 3 * stopped {
        Finding::StoppedVehicle
    } else {
        Finding::SlowVehicle
    }
}
