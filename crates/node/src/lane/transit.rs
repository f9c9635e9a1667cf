//! Long inputs and results on their way between the lane and its instances: whose time that is.
//!
//! The run time of an invocation is its own: time in which the platform made it wait is not in it. While the lane has a piece of a
//! long input or result in its hands, because its turn has not come or because it moves it, the instance can do nothing about it.
//! The watch leaves that time out, and the machine is told, for the bounds and for the record.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use engine::port::Event;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::request::Parts;
use journal::record::Transfer;
use model::{InstanceId, InvocationId, Time};

use super::core::Core;
use super::machine::Machine;
use super::paced::Transit;
use crate::lanes::Lane;

/// Inputs and results up to this move at once, whatever else moves.
pub(super) const SMALL_BYTES: usize = 16 << 10;

/// A long input or result that moves; whatever becomes of it, the lane has it in its hands no longer when this is dropped.
#[derive(Debug)]
pub(super) struct Moving(Rc<Transit>);

impl Moving {
    pub(super) fn transit(&self) -> Rc<Transit> {
        Rc::clone(&self.0)
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        self.0.others();
    }
}

/// The two ways of one invocation.
#[derive(Debug, Default)]
struct Ways {
    input: Option<Rc<Transit>>,
    result: Option<Rc<Transit>>,
}

impl Ways {
    fn each(&self) -> impl Iterator<Item = &Rc<Transit>> {
        self.input.iter().chain(&self.result)
    }

    fn so_far(&self, at: impl Fn(&Transit) -> Time) -> Transfer {
        let input = |until: Time| self.input.as_ref().map_or(Duration::ZERO, |it| it.with_lane(until.min(at(it))));
        let result = |it: &Rc<Transit>| it.with_lane_beside(at(it), input(at(it)));
        Transfer { input: input(Time::MAX), result: self.result.as_ref().map_or(Duration::ZERO, result) }
    }
}

/// The long ways of the invocations that run.
#[derive(Debug, Default)]
pub(super) struct Transits(BTreeMap<InvocationId, Ways>);

impl Transits {
    pub(super) fn remove(&mut self, id: InvocationId) {
        self.0.remove(&id);
    }

    /// How long the lane had what moves for an invocation until `now`.
    pub(super) fn with_lane(&self, id: InvocationId, now: Time) -> Duration {
        self.0.get(&id).map_or(Duration::ZERO, |ways| ways.so_far(|_| now).whole())
    }

    /// For how long from `now` the lane will still have it.
    pub(super) fn ahead(&self, id: InvocationId, now: Time) -> Duration {
        let until = self.0.get(&id).and_then(|ways| ways.each().filter_map(|way| way.until()).max());
        until.map_or(Duration::ZERO, |until| until.since(now))
    }
}

impl<M: Machine> Core<M> {
    /// The long input of an invocation goes to its instance.
    pub(super) fn input_goes(&mut self, id: InvocationId) -> Option<Moving> {
        if self.lane == Lane::BestEffort || !self.waiting.contains_key(&id) {
            return None;
        }
        let way = Rc::clone(self.transits.0.entry(id).or_default().input.get_or_insert_default());
        self.tell_transfer(id);
        Some(Moving(way))
    }

    /// Something long comes of an instance, if it is the result of its invocation.
    pub(super) fn result_comes(&mut self, instance: InstanceId, parts: &Parts) -> Option<Moving> {
        if self.lane == Lane::BestEffort {
            return None;
        }
        let id = self.instances.get(&instance)?.serving?;
        let path = parts.uri.path().strip_prefix("/2018-06-01/runtime/invocation/")?;
        if !path.starts_with(id.text().as_str()) || !self.waiting.contains_key(&id) {
            return None;
        }
        let ways = self.transits.0.entry(id).or_default();
        let input = Rc::clone(ways.input.get_or_insert_default());
        let way = Rc::clone(ways.result.get_or_insert_with(|| Rc::new(Transit::beside(input))));
        self.tell_transfer(id);
        Some(Moving(way))
    }

    /// Tells the machine exactly how long the lane had what moved for an invocation; before its end.
    pub(super) fn tell_transfer(&mut self, id: InvocationId) {
        let now = runtime::sys::clock::now();
        if let Some(ways) = self.transits.0.get(&id) {
            self.event_at(now, Event::Transferred { id, so_far: ways.so_far(|_| now) });
        }
    }

    /// Tells the machine of what is in the lane's hands, before anything that falls due meanwhile is laid to an invocation's
    /// charge. It counts until its turn will have come, so that this need not be told again and again.
    pub(super) fn sense_transits(&mut self, now: Time) {
        let ahead = |way: &Transit| way.until().unwrap_or(now).max(now);
        let held = self.transits.0.iter().filter(|(_, ways)| ways.each().any(|way| way.until().is_some()));
        let told: Vec<(InvocationId, Transfer)> = held.map(|(id, ways)| (*id, ways.so_far(ahead))).collect();
        for (id, so_far) in told {
            self.tell_machine(now, Event::Transferred { id, so_far });
        }
    }
}

/// Whether a body is long, or nobody knows how long.
pub(super) fn is_long(parts: &Parts) -> bool {
    let stated = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    parts.headers.contains_key(TRANSFER_ENCODING) || stated.is_some_and(|length| SMALL_BYTES < length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ahead_too_no_time_counts_twice() {
        let at = Time::from_millis;
        let input = Rc::new(Transit::default());
        let result = Rc::new(Transit::beside(Rc::clone(&input)));
        let ways = Ways { input: Some(Rc::clone(&input)), result: Some(Rc::clone(&result)) };
        let until = |way: &Transit| way.until().unwrap();
        for [first, second] in [[100, 300], [300, 100]] {
            input.lanes(at(50), at(first));
            result.lanes(at(60), at(second));
            let (of_input, last) = (until(&input), until(&input).max(until(&result)));
            let expected = Transfer { input: of_input.since(at(50)), result: last.since(of_input) };
            assert_eq!(ways.so_far(until), expected);
        }
    }
}
