//! What waits for a slot, the most urgent first.
//!
//! Urgency is the latest start: the instant after which an invocation cannot end by its deadline any more even if nothing
//! disturbs it (deadline minus run-time bound). For one function this is the order of deadlines; for functions that share
//! a rate it is the order for which the required rate of a periodic task set is exact. The same order says what has
//! expired, so that the next to go and the next to drop are both at the front.

use std::collections::BTreeMap;

use model::{InvocationId, Time};

/// The queue holds as many as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the queue holds {limit} invocations, its limit")]
pub struct Full {
    pub limit: u32,
}

/// A bounded queue in the order of latest starts; equals keep the order of their arrival. Every operation is O(log n).
#[derive(Clone, Debug)]
pub struct DeadlineQueue<T> {
    limit: u32,
    arrivals: u64,
    /// Keyed by latest start, then by arrival.
    order: BTreeMap<(Time, u64), (InvocationId, T)>,
    keys: BTreeMap<InvocationId, (Time, u64)>,
}

impl<T> DeadlineQueue<T> {
    /// An empty queue for at most `limit` invocations.
    #[must_use]
    pub const fn new(limit: u32) -> Self {
        Self { limit, arrivals: 0, order: BTreeMap::new(), keys: BTreeMap::new() }
    }

    /// Lets an invocation wait until `latest_start` ([`Time::MAX`] where it has no deadline). Errors at the limit.
    ///
    /// # Panics
    /// If the invocation waits here already.
    pub fn push(&mut self, id: InvocationId, latest_start: Time, item: T) -> Result<(), Full> {
        if usize::try_from(self.limit).is_ok_and(|limit| limit <= self.order.len()) {
            return Err(Full { limit: self.limit });
        }
        let key = (latest_start, self.arrivals);
        self.arrivals += 1;
        assert!(self.keys.insert(id, key).is_none(), "invariant: invocation {id} waits once");
        self.order.insert(key, (id, item));
        Ok(())
    }

    /// Takes the most urgent invocation.
    pub fn pop(&mut self) -> Option<(InvocationId, T)> {
        let (_, (id, item)) = self.order.pop_first()?;
        self.keys.remove(&id);
        Some((id, item))
    }

    /// Takes an invocation that can no longer start in time at `now`; asked until it answers `None`.
    pub fn expired(&mut self, now: Time) -> Option<(InvocationId, T)> {
        if self.latest_start()? < now { self.pop() } else { None }
    }

    /// Takes out one that must not wait any longer.
    pub fn remove(&mut self, id: InvocationId) -> Option<T> {
        let key = self.keys.remove(&id)?;
        self.order.remove(&key).map(|(_, item)| item)
    }

    /// The latest start of the most urgent invocation.
    #[must_use]
    pub fn latest_start(&self) -> Option<Time> {
        self.order.first_key_value().map(|((latest, _), _)| *latest)
    }

    /// All that wait, the most urgent first.
    pub fn iter(&self) -> impl Iterator<Item = (InvocationId, &T)> {
        self.order.values().map(|(id, item)| (*id, item))
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: usize) -> InvocationId {
        InvocationId::from_u128(number as u128)
    }

    #[test]
    fn a_full_queue_refuses_with_its_limit() {
        let mut queue = DeadlineQueue::new(1);
        queue.push(id(1), Time::MAX, ()).unwrap();
        assert_eq!(queue.push(id(2), Time::ZERO, ()), Err(Full { limit: 1 }));
        queue.pop().unwrap();
        queue.push(id(2), Time::ZERO, ()).unwrap();
    }

    #[test]
    fn work_expires_only_after_its_latest_start() {
        let mut queue = DeadlineQueue::new(9);
        queue.push(id(1), Time::from_millis(5), ()).unwrap();
        assert_eq!(queue.expired(Time::from_millis(5)), None);
        assert_eq!(queue.expired(Time::from_nanos(5_000_001)), Some((id(1), ())));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(u64),
        Pop,
        Expire(u64),
        Remove(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0_u64..20).prop_map(Step::Push),
            1 => Just(Step::Pop),
            1 => (0_u64..20).prop_map(Step::Expire),
            1 => (0_usize..60).prop_map(Step::Remove),
        ];
        proptest::collection::vec(step, 0..60)
    }

    proptest! {
        #[test]
        fn the_queue_is_a_stable_sorted_list(steps in steps()) {
            let mut queue = DeadlineQueue::new(12);
            let mut model: Vec<(u64, usize)> = Vec::new(); // sorted by latest start, stable
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Push(latest) => {
                        let pushed = queue.push(id(number), Time::from_nanos(latest), number);
                        prop_assert_eq!(pushed.is_ok(), model.len() < 12);
                        if pushed.is_ok() {
                            let place = model.partition_point(|(other, _)| *other <= latest);
                            model.insert(place, (latest, number));
                        }
                    }
                    Step::Pop => {
                        let expected = if model.is_empty() { None } else { Some(model.remove(0).1) };
                        prop_assert_eq!(queue.pop().map(|(_, item)| item), expected);
                    }
                    Step::Expire(now) => {
                        while let Some((_, item)) = queue.expired(Time::from_nanos(now)) {
                            let (latest, number) = model.remove(0);
                            prop_assert!(latest < now && number == item);
                        }
                        prop_assert!(model.first().is_none_or(|(latest, _)| now <= *latest));
                    }
                    Step::Remove(which) => {
                        let place = model.iter().position(|(_, number)| *number == which);
                        prop_assert_eq!(queue.remove(id(which)), place.map(|place| model.remove(place).1));
                    }
                }
                prop_assert_eq!(queue.len(), model.len());
            }
        }
    }
}
