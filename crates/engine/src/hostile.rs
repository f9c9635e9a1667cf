//! Events in any order, about things that exist and things that do not: neither lane may panic, ask for the past, answer an
//! invocation twice, or speak of an instance it never started.

use std::collections::BTreeSet;
use std::time::Duration;

use model::{End, FunctionKey, InstanceId, InvocationId, LeaseId, OnOverrun, Overflow, Rate, Time, Version};
use proptest::prelude::*;

use crate::port::{Action, Event, Taken};
use crate::world::{MS, Subject, subject};
use crate::{reserved, shared};

trait Lane {
    fn tell(&mut self, now: Time, event: Event, actions: &mut Vec<Action>);
    fn wakes(&self) -> Option<Time>;
    fn wake_at(&mut self, now: Time, actions: &mut Vec<Action>);
}

impl Lane for reserved::Engine {
    fn tell(&mut self, now: Time, event: Event, actions: &mut Vec<Action>) {
        self.handle(now, event, actions);
    }
    fn wakes(&self) -> Option<Time> {
        self.next_wake()
    }
    fn wake_at(&mut self, now: Time, actions: &mut Vec<Action>) {
        self.wake(now, actions);
    }
}

impl Lane for shared::Engine {
    fn tell(&mut self, now: Time, event: Event, actions: &mut Vec<Action>) {
        self.handle(now, event, actions);
    }
    fn wakes(&self) -> Option<Time> {
        self.next_wake()
    }
    fn wake_at(&mut self, now: Time, actions: &mut Vec<Action>) {
        self.wake(now, actions);
    }
}

/// What is told next: a kind, two numbers that name things, and the time that passes before.
type Step = (u8, u64, u64, u64);

#[derive(Default)]
struct Seen {
    started: Vec<InstanceId>,
    arrived: u64,
    open: BTreeSet<InvocationId>,
}

impl Seen {
    fn event(&mut self, step: Step, subjects: &[Subject]) -> Event {
        let (kind, a, b, _) = step;
        let subject = &subjects[usize::try_from(a % 2).unwrap()];
        let function = FunctionKey(a % 3);
        let picked = |from: &[InstanceId]| from.get(usize::try_from(b).unwrap() % from.len().max(1)).copied();
        let instance = picked(&self.started).unwrap_or(InstanceId(b));
        let id = InvocationId::from_u128(u128::from(b % (self.arrived + 1)));
        match kind % 16 {
            0 | 1 => {
                let mut deployment = subject.deployment.clone();
                deployment.version = Version(b);
                deployment.reservation.as_mut().unwrap().generation = 1 + b % 3;
                Event::Install(Box::new(deployment))
            }
            2 => Event::Revise(vec![(function, subject.deployment.reservation.clone().unwrap())]),
            3 if b % 4 == 0 => Event::Remove { function },
            4 => Event::Supplied { id: self.next(), lease: LeaseId(b % 5), deadline: None },
            5 => Event::PreInvoke { lease: LeaseId(b % 5), function, lead: MS * 9 },
            6 => Event::Abandoned { id },
            7..=9 => Event::Ready { instance },
            10 if b % 3 == 0 => Event::Dying { instance },
            10 => Event::Gone { instance },
            11 if b % 3 == 0 => Event::Delivered { id, at: Time::from_nanos(b) },
            11 if b % 3 == 1 => {
                let (some, other) = (Duration::from_millis(a % 50), Duration::from_millis(b % 50));
                Event::Measured { id, taken: Taken { run: some, wanted: other, whole: some, used: other } }
            }
            11 if b % 3 == 2 && a % 2 == 0 => Event::Warmed { instance, wanted: Duration::from_millis(b) },
            11 => Event::Started { id, at: Time::from_nanos(b) },
            12 => Event::Ended { id, end: End::Succeeded, cpu: MS },
            13 => Event::Overran { id, cpu: MS },
            14 if b == 0 => Event::Drain,
            _ => Event::Arrived { id: self.next(), function, deadline: (b % 2 == 0).then(|| Time::from_millis(b)) },
        }
    }

    fn next(&mut self) -> InvocationId {
        self.arrived += 1;
        let id = InvocationId::from_u128(u128::from(self.arrived));
        self.open.insert(id);
        id
    }

    fn check(&mut self, actions: &mut Vec<Action>) {
        for action in actions.drain(..) {
            match action {
                Action::Start { instance, .. } => {
                    assert!(!self.started.contains(&instance));
                    self.started.push(instance);
                }
                Action::Kill { instance } | Action::Place { instance, .. } | Action::Tell { instance, .. } => {
                    assert!(self.started.contains(&instance));
                }
                Action::Deliver { id, instance, .. } => assert!(self.started.contains(&instance) && self.open.contains(&id)),
                Action::Demote { id } | Action::Refuse { id, .. } | Action::Fail { id, .. } => assert!(self.open.remove(&id)),
                Action::LeaseReady { .. } | Action::LeaseEnded { .. } | Action::LeaseRefused { .. } => {}
                Action::Serving { .. } | Action::CannotServe { .. } | Action::Record(_) => {}
            }
        }
    }
}

fn subjects() -> Vec<Subject> {
    let mut queueing = subject(0, Rate::per_second(200).unwrap(), 2, 5 * MS);
    queueing.terms().overflow = Overflow::Queue { limit: 3 };
    queueing.terms().lead = 8 * MS;
    queueing.size(&[0, 1]);
    let mut demoting = subject(1, Rate::per_second(50).unwrap(), 1, 5 * MS);
    demoting.terms().overflow = Overflow::BestEffort;
    demoting.terms().on_overrun = OnOverrun::Demote;
    demoting.size(&[0]);
    vec![queueing, demoting]
}

fn endure(mut lane: impl Lane, steps: Vec<Step>) {
    let (subjects, mut seen, mut actions, mut now) = (subjects(), Seen::default(), Vec::new(), Time::ZERO);
    for step in steps {
        now += Duration::from_micros(step.3);
        let event = seen.event(step, &subjects);
        lane.tell(now, event, &mut actions);
        seen.check(&mut actions);
        assert!(lane.wakes().is_none_or(|at| now < at), "it asks for what is past");
    }
    while let Some(at) = lane.wakes().filter(|at| *at < now + Duration::from_secs(3)) {
        lane.wake_at(at, &mut actions);
        seen.check(&mut actions);
        assert!(lane.wakes().is_none_or(|next| at < next), "it asks for what is past");
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec((any::<u8>(), 0_u64..6, 0_u64..40, 0_u64..9_000), 0..250)
}

proptest! {
    #[test]
    fn no_order_of_events_breaks_the_guaranteed_lane(steps in steps()) {
        endure(reserved::Engine::new(reserved::Options::default()), steps);
    }

    #[test]
    fn no_order_of_events_breaks_the_best_effort_lane(steps in steps()) {
        endure(shared::Engine::new(shared::Options { memory_mib: 500, ..shared::Options::default() }), steps);
    }
}
