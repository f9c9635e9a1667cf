//! Between invocations an instance of a guaranteed function is of ordinary class.
//!
//! Its threads are real-time from the moment an invocation is handed to it until it asks for the next one, and no longer: so
//! what it does between invocations (timers, collecting garbage, threads of its own) delays nobody, and the analysis of response
//! times needs no term for it. It runs then at the lowest nice value, beside best effort, on the instance's core.
//!
//! From its answer until it asks again an instance may use what the invocation left of its CPU budget, and what admission
//! charges for a runtime's work around the handler, and only until its invocation's admitted bound: so what it does then is part
//! of the invocation as the analysis counts it. One that uses more, or has not asked by then, loses its class until it asks.

use std::time::Duration;

use engine::port::{Allowance, Placement};
use model::{FunctionKey, InstanceId, InvocationId, Runtime, Time};
use rustix::process::Pid;

use super::core::Core;
use super::instance::Instance;
use super::machine::Machine;
use super::watch::{Own, SAMPLING};
use crate::budget::Shares;
use crate::lanes::Lane;
use crate::runtime_cost;

/// Looks at instances that answered and did not ask, or whose last connection closed while they wait, per second and at once,
/// that admission accounts for.
pub(crate) const LOOKS_PER_SECOND: u32 = 500;
pub(crate) const LOOKS_AT_ONCE: u32 = 4;
/// Between two looks at one that is pushed aside: twice as long after each.
const FIRST_GAP: Duration = Duration::from_millis(1);
const LAST_GAP: Duration = Duration::from_millis(4);

/// Threads of an instance that are real-time while it works: as many as admission charges for. Those beyond, in the order in
/// which the program began them, stay ordinary.
pub(crate) const fn threads_with_class(runtime: Runtime) -> u32 {
    match runtime {
        Runtime::Python => 8,
        Runtime::NodeJs => 12,
        Runtime::Provided => 16,
    }
}

/// What an instance does, as far as its class depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It starts, or waits for an invocation.
    Resting,
    /// It has an invocation. Until it asks for the next its program may have used so much CPU in all.
    Working { cpu_max: Duration, until: Time },
    /// It answered, and has not asked yet.
    Returning(Return),
    /// The same, but it has lost its class.
    Late,
}

/// What an instance that answered may do before it loses its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Return {
    cpu_max: Duration,
    /// What its program had used at the last look.
    cpu: Duration,
    /// The admitted bound of its invocation.
    until: Time,
    /// Where the analysis counts its waiting as if it executed: its own time ends its class, too.
    own: Option<Own>,
    look: Time,
    gap: Duration,
}

/// What an instance had used when it was looked at.
#[derive(Clone, Copy, Debug)]
struct Used {
    cpu: Duration,
    /// Time since its invocation was delivered that was not its own.
    others: Duration,
}

impl Return {
    /// At the answer.
    fn begin(now: Time, (cpu, cpu_max): (Duration, Duration), until: Time, own: Option<Own>) -> Phase {
        let it = Self { cpu_max, cpu, until, own, look: now, gap: FIRST_GAP };
        if it.is_over(now, cpu) {
            return Phase::Late;
        }
        // How much of its time was others' is not asked before it matters.
        it.look_at(now + it.left(now, Used { cpu, others: Duration::ZERO }).max(SAMPLING))
    }

    fn is_over(self, now: Time, cpu: Duration) -> bool {
        self.until <= now || self.cpu_max <= cpu
    }

    /// What it can use at once before it has used too much.
    fn left(self, now: Time, used: Used) -> Duration {
        let own = self.own.map_or(Duration::MAX, |own| (own.left(now, used.others)).saturating_add(runtime_cost::LEAST));
        self.cpu_max.saturating_sub(used.cpu).min(own)
    }

    fn look_at(self, at: Time) -> Phase {
        Phase::Returning(Self { look: at.min(self.until), ..self })
    }

    /// At a look. `wants_its_core` says whether something of it waits for a core; it is asked where that decides.
    fn judge(self, now: Time, used: Used, wants_its_core: impl FnOnce() -> bool) -> Phase {
        if self.is_over(now, used.cpu) {
            return Phase::Late;
        }
        let left = self.left(now, used);
        let ran = self.cpu < used.cpu;
        if self.gap <= left || ran && !left.is_zero() {
            return Self { cpu: used.cpu, ..self }.look_at(now + left.max(SAMPLING));
        }
        // The kernel counts a wait when it ends, and looks as short as what is left would cost too much.
        if wants_its_core() {
            return Self { cpu: used.cpu, gap: (self.gap * 2).min(LAST_GAP), ..self }.look_at(now + self.gap);
        }
        Phase::Late
    }
}

/// Instances that answered and have not asked yet.
#[derive(Debug)]
pub(super) struct Returning {
    instances: Vec<(Time, InstanceId)>,
    /// Each function whose instances had to be looked at has its part.
    looks: Shares<FunctionKey>,
}

impl Default for Returning {
    fn default() -> Self {
        Self { instances: Vec::new(), looks: Shares::new(LOOKS_PER_SECOND, LOOKS_AT_ONCE) }
    }
}

impl Returning {
    fn set(&mut self, instance: InstanceId, look: Time) {
        self.instances.push((look, instance));
    }

    pub(super) fn remove(&mut self, instance: InstanceId) {
        if let Some(at) = self.instances.iter().position(|(_, known)| *known == instance) {
            self.instances.swap_remove(at);
        }
    }

    pub(super) fn forget(&mut self, function: FunctionKey) {
        self.looks.leave(function);
    }

    pub(super) fn next(&self) -> Option<Time> {
        self.instances.iter().map(|(look, _)| *look).min()
    }

    fn take_due(&mut self, now: Time) -> Option<InstanceId> {
        let at = self.instances.iter().position(|(look, _)| *look <= now)?;
        Some(self.instances.swap_remove(at).1)
    }

    /// Whether a function's part allows one more look.
    pub(super) fn may_look(&mut self, function: FunctionKey, now: Time) -> bool {
        self.looks.join(function);
        self.looks.spend(function, now).is_ok()
    }
}

impl Instance {
    /// It is handed an invocation: its program has used `cpu` so far.
    pub(super) fn work(&mut self, cpu: Duration, allowance: Allowance) {
        let budget = allowance.cpu.budget(allowance.run_time);
        self.phase = Phase::Working { cpu_max: cpu + budget + runtime_cost::LEAST, until: allowance.until };
        self.raise();
    }

    /// Its priority is another one now; while it rests, the next invocation brings it.
    pub(super) fn work_at(&mut self, priority: u8) {
        match (self.phase, &self.running) {
            (Phase::Working { .. } | Phase::Returning(_), Some(_)) => self.raise_to(priority),
            (Phase::Resting | Phase::Late, _) | (_, None) => {}
        }
    }

    /// It goes on as best effort.
    pub(super) fn give_up_class(&mut self) {
        self.lower();
        self.threads.clear();
    }

    fn raise(&mut self) {
        match self.on {
            Placement::RealTime { priority, .. } => self.raise_to(priority),
            Placement::BestEffort => {}
        }
    }

    fn raise_to(&mut self, priority: u8) {
        let raised = self.running.as_ref().map_or(Ok(()), |running| running.raise(&self.threads, priority));
        if let Err(error) = raised {
            // Without its class it keeps no promise.
            self.classless.get_or_insert(error);
            self.kill();
        }
    }

    fn lower(&mut self) {
        let lowered = self.running.as_ref().map_or(Ok(()), |running| running.lower(&self.threads));
        if let Err(error) = lowered {
            // What holds a class that it must not have must not go on.
            self.classless.get_or_insert(error);
            self.kill();
        }
    }
}

impl<M: Machine> Core<M> {
    /// The instance's threads are placed. Its class comes with its next invocation, or now where it has one.
    pub(super) fn keep_threads(&mut self, instance: InstanceId, mut threads: Vec<Pid>) {
        let Some(known) = self.instances.get_mut(&instance) else { return };
        let (found, most) = (threads.len(), threads_with_class(known.runtime) as usize);
        threads.truncate(most);
        known.threads = threads;
        match known.phase {
            Phase::Working { .. } => known.raise(),
            Phase::Resting | Phase::Returning(_) | Phase::Late => {}
        }
        if most < found {
            let text = format!(
                "it has {found} threads when it is ready: the first {most} are real-time while it works, the others never. Start \
                 threads that an invocation does not need after the first one, or fewer of them"
            );
            self.tell(instance, text);
        }
    }

    /// The instance answered. Called in the guaranteed lane's order of events, before anything else of that instance is seen.
    pub(super) fn returns(&mut self, now: Time, (id, instance): (InvocationId, InstanceId), cpu: Duration) {
        let own = self.own_time_of(id, now);
        let moved = self.bound_moved(id, now);
        let Some(known) = self.instances.get_mut(&instance) else { return };
        let Phase::Working { cpu_max, until } = known.phase else { return };
        known.phase = Return::begin(now, (cpu, cpu_max), until + moved, own);
        self.follow_return(instance);
    }

    fn follow_return(&mut self, instance: InstanceId) {
        let Some(known) = self.instances.get_mut(&instance) else { return };
        match known.phase {
            Phase::Returning(it) if self.lane == Lane::Guaranteed && !known.threads.is_empty() => {
                self.returning.set(instance, it.look);
            }
            Phase::Late => known.lower(),
            Phase::Returning(_) | Phase::Resting | Phase::Working { .. } => {}
        }
    }

    /// The instance asked for its next invocation.
    pub(super) fn rests(&mut self, instance: InstanceId) {
        self.returning.remove(instance);
        let Some(known) = self.instances.get_mut(&instance) else { return };
        let before = std::mem::replace(&mut known.phase, Phase::Resting);
        match before {
            Phase::Working { .. } | Phase::Returning(_) => known.lower(),
            Phase::Resting | Phase::Late => {}
        }
    }

    /// Looks at instances that are to have asked by now.
    pub(super) fn look_at_returning(&mut self, now: Time) {
        while let Some(instance) = self.returning.take_due(now) {
            let Some(known) = self.instances.get(&instance) else { continue };
            let Phase::Returning(it) = known.phase else { continue };
            // At its bound nothing needs to be known.
            let looks = now < it.until && self.returning.may_look(known.function, now);
            let phase = if looks { self.look_at(now, instance, it) } else { Phase::Late };
            if let Some(known) = self.instances.get_mut(&instance) {
                known.phase = phase;
            }
            self.follow_return(instance);
        }
    }

    fn look_at(&mut self, now: Time, instance: InstanceId, it: Return) -> Phase {
        let Some(known) = self.instances.get(&instance) else { return Phase::Late };
        let Some(running) = known.running.clone() else { return Phase::Late };
        let others = it.own.map_or(Duration::ZERO, |own| {
            let stolen = own.core().and_then(|core| self.stolen.get(&core).copied()).unwrap_or_default();
            own.others(running.pushed_aside(), stolen)
        });
        let used = Used { cpu: running.cpu_time(), others };
        // Where nobody may ask, its bound ends it.
        it.judge(now, used, || !self.watches.may_see_states(now) || running.wants_its_core())
    }

    /// CPU time of an instance's program so far. Zero in the best-effort lane, which holds nobody to it: a reading is a
    /// system call.
    pub(super) fn cpu_time(&self, instance: InstanceId) -> Duration {
        if self.lane != Lane::Guaranteed {
            return Duration::ZERO;
        }
        let running = self.instances.get(&instance).and_then(|known| known.running.as_ref());
        running.map_or(Duration::ZERO, |running| running.cpu_time())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn at(ms: u64) -> Time {
        Time::from_millis(ms)
    }

    /// It answered at 100 ms with 7 of 10 ms used; its bound is at 150 ms.
    fn begun(own: Option<Own>) -> Return {
        let Phase::Returning(it) = Return::begin(at(100), (ms(7), ms(10)), at(150), own) else { panic!("it has time left") };
        it
    }

    fn used(cpu: u64) -> Used {
        Used { cpu: ms(cpu), others: Duration::ZERO }
    }

    fn looked_at_again(phase: Phase) -> Return {
        let Phase::Returning(it) = phase else { panic!("it is {phase:?}") };
        it
    }

    #[test]
    fn who_answered_may_use_what_is_left_before_it_asks() {
        assert_eq!(begun(None).look, at(103));
        assert_eq!(begun(None).judge(at(103), used(10), || panic!("its CPU decides")), Phase::Late);
        assert_eq!(Return::begin(at(100), (ms(11), ms(10)), at(150), None), Phase::Late);
    }

    #[test]
    fn at_the_bound_of_its_invocation_the_class_ends_whatever_it_used() {
        assert_eq!(looked_at_again(Return::begin(at(149), (ms(0), ms(10)), at(150), None)).look, at(150));
        assert_eq!(begun(None).judge(at(150), used(7), || true), Phase::Late);
        assert_eq!(Return::begin(at(150), (ms(0), ms(10)), at(150), None), Phase::Late);
    }

    #[test]
    fn who_sleeps_where_waiting_counts_as_executing_loses_its_class_with_its_own_time() {
        // Delivered at 95 ms, 10 ms of own time and of CPU: it answered at once, and slept.
        let own = Own::begun(at(95), ms(10));
        let it = looked_at_again(Return::begin(at(96), (ms(0), ms(10)), at(150), Some(own)));
        assert_eq!(it.look, at(105) + runtime_cost::LEAST);
        assert_eq!(it.judge(it.look, used(0), || false), Phase::Late);
        let pushed_aside = Used { others: ms(5), ..used(0) };
        assert_eq!(looked_at_again(it.judge(it.look, pushed_aside, || false)).look, it.look + ms(5));
    }

    #[test]
    fn who_is_pushed_aside_keeps_its_class_and_is_looked_at_ever_less_often() {
        let mut it = looked_at_again(Return::begin(at(100), (Duration::from_micros(9_800), ms(10)), at(120), None));
        let mut looks = Vec::new();
        while it.look < at(120) {
            looks.push(it.look.since(at(100)).as_micros());
            it = looked_at_again(it.judge(it.look, Used { cpu: Duration::from_micros(9_800), others: Duration::ZERO }, || true));
        }
        assert_eq!(looks, [200, 1_200, 3_200, 7_200, 11_200, 15_200, 19_200]);
    }

    #[test]
    fn who_sleeps_with_little_left_loses_its_class_and_who_runs_is_looked_at_in_time() {
        let it = looked_at_again(Return::begin(at(100), (Duration::from_micros(9_400), ms(10)), at(120), None));
        let cpu = |micros| Used { cpu: Duration::from_micros(micros), others: Duration::ZERO };
        assert_eq!(it.judge(it.look, cpu(9_400), || false), Phase::Late);
        assert_eq!(
            looked_at_again(it.judge(it.look, cpu(9_700), || panic!("it ran"))).look,
            it.look + Duration::from_micros(300)
        );
    }

    #[test]
    fn one_functions_looks_leave_another_its_own() {
        let mut returning = Returning::default();
        let (hostile, other) = (FunctionKey(1), FunctionKey(2));
        returning.may_look(other, at(0));
        let mut refused = 0;
        for ms in 1_000..3_000 {
            for _ in 0..20 {
                returning.may_look(hostile, at(ms));
            }
            if ms % 10 == 0 {
                refused += u32::from(!returning.may_look(other, at(ms)));
            }
        }
        assert_eq!(refused, 0);
    }

    #[test]
    fn looks_come_when_they_are_due_and_not_for_who_asked() {
        let mut returning = Returning::default();
        returning.set(InstanceId(1), at(5));
        returning.set(InstanceId(2), at(3));
        assert_eq!(returning.next(), Some(at(3)));
        assert_eq!(returning.take_due(at(4)), Some(InstanceId(2)));
        assert_eq!(returning.take_due(at(4)), None);
        returning.remove(InstanceId(1));
        assert_eq!(returning.next(), None);
    }
}
