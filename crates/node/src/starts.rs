//! Starts of guaranteed functions' instances, at real-time class within a budget.
//!
//! An instance that starts at ordinary class beside a flood waits for every bit of CPU, so that no bound on its start holds.
//! Here it starts above everything ordinary and below every instance that serves: no promise is disturbed by it, and best
//! effort loses at most a known part of each core. That part has a second reason: were real-time threads to use a core for
//! longer than the kernel allows, it would stop all of them. So starts use of each core within any second what admission
//! leaves of that, and go on at ordinary class where they need more.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use model::Time;
use plan::admission::{Book, LOWEST_PRIORITY};
use runtime::launcher::{CpuMeter, Placement};
use runtime::sys::{clock, sched};
use rustix::process::Pid;

use crate::door;
use crate::instance::Running;

/// Of an instance that starts.
pub(crate) const PRIORITY: u8 = 1;
/// Of what makes them: the starter's thread and the launcher, so that a start that loops does not delay the next.
pub(crate) const MAKER_PRIORITY: u8 = 2;
const _: () = assert!(PRIORITY < MAKER_PRIORITY && MAKER_PRIORITY < LOWEST_PRIORITY);

/// What starts use of each core and second at most, however little is promised: the rest is for best effort.
const MOST: Duration = Duration::from_millis(500);
/// What they may use in any case.
const STARTS_LEAST: Duration = Duration::from_millis(50);
/// What makers may use within a second in any case, beside what starts use. They may use half of what is left to starts of every
/// core, too, as long as it is there; where that is used up, the next start waits and they are of ordinary class.
const MAKERS_LEAST: Duration = Duration::from_millis(40);
/// The nice value of makers that are of ordinary class: best effort does not stop them.
const MAKERS_NICE: i8 = -10;
/// For looking late.
const SPARE: Duration = Duration::from_millis(20);
/// Of each core and second, what is not for the starts themselves.
const BESIDE: Duration = door::WITHIN_A_SECOND.checked_add(MAKERS_LEAST).unwrap().checked_add(SPARE).unwrap();
/// What admission keeps for starts, what makes them, and the door, of each core and second.
pub(crate) const LEAST: Duration = BESIDE.checked_add(STARTS_LEAST).unwrap();
/// A start at ordinary class goes on at real-time class once this much is left.
const RESUMES_WITH: Duration = Duration::from_millis(10);
const SECOND: Duration = Duration::from_secs(1);
/// How often a start is looked at: threads it began meanwhile get its class, and its CPU time is charged.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How often makers are looked at: what they use meanwhile on two cores is within [`SPARE`].
const LOOK_AT_MAKERS_EVERY: Duration = Duration::from_millis(10);

/// What starts may use of each core at real-time class within a second. Set by the control plane, read by the starter.
#[derive(Debug)]
pub struct Limits(Vec<AtomicU64>);

impl Limits {
    /// Nothing, until a book says what is left.
    #[must_use]
    pub fn new(cores: u16) -> Self {
        Self((0..cores).map(|_| AtomicU64::new(0)).collect())
    }

    /// What a book leaves of every core. Called before anything new in it runs.
    pub(crate) fn set(&self, book: &Book) {
        for (limit, used) in self.0.iter().zip(book.busiest_seconds()) {
            let left = book.capacity().real_time_per_second.saturating_sub(*used + BESIDE).min(MOST);
            limit.store(u64::try_from(left.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    fn of(&self, core: u16) -> Duration {
        let limit = self.0.get(usize::from(core)).map_or(0, |limit| limit.load(Ordering::Relaxed));
        Duration::from_nanos(limit)
    }
}

/// What starts used of the cores within the last second.
#[derive(Debug)]
struct Spent(Vec<VecDeque<(Time, Duration)>>);

impl Spent {
    fn new(cores: usize) -> Self {
        Self(vec![VecDeque::new(); cores])
    }

    fn charge(&mut self, core: u16, now: Time, used: Duration) {
        if let (Some(of_core), false) = (self.0.get_mut(usize::from(core)), used.is_zero()) {
            of_core.push_back((now, used));
        }
    }

    fn oldest(&self, core: u16) -> Option<Time> {
        self.0.get(usize::from(core))?.front().map(|(at, _)| *at)
    }

    fn left(&mut self, core: u16, now: Time, limit: Duration) -> Duration {
        let Some(of_core) = self.0.get_mut(usize::from(core)) else { return Duration::ZERO };
        while of_core.front().is_some_and(|(at, _)| SECOND <= now.since(*at)) {
            of_core.pop_front();
        }
        limit.saturating_sub(of_core.iter().map(|(_, used)| *used).sum())
    }
}

/// What makes starts: the launcher, and the starter's thread, on which alone this is asked.
#[derive(Debug)]
struct Makers {
    launcher: Pid,
    meter: CpuMeter,
    seen: Duration,
    standing: Standing,
    /// What they used at real-time class.
    lately: Spent,
}

impl Makers {
    fn new(launcher: Pid) -> Self {
        let meter = CpuMeter::of(launcher);
        let mut makers = Self { launcher, meter, seen: Duration::ZERO, standing: Standing::RealTime, lately: Spent::new(1) };
        makers.used();
        makers
    }

    /// CPU time they used since this was asked last.
    fn used(&mut self) -> Duration {
        // A launcher that is gone takes the node along.
        let seen = self.meter.program_used().unwrap_or_default() + clock::thread_cpu();
        let used = seen.saturating_sub(self.seen);
        self.seen = seen;
        used
    }

    /// Gives them a class.
    fn stand(&mut self, standing: Standing) -> Result<(), sched::Error> {
        let class = match standing {
            Standing::RealTime => sched::Class::Fifo { priority: MAKER_PRIORITY },
            Standing::Ordinary => sched::Class::Other { nice: MAKERS_NICE },
        };
        sched::set_thread(self.launcher, class)?;
        sched::set_current(class)?;
        self.standing = standing;
        Ok(())
    }
}

/// The class of a start, or of what makes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    RealTime,
    Ordinary,
}

/// Says which class starts have, and sees to it while they last.
#[derive(Debug)]
pub(crate) struct Nursery {
    limits: Arc<Limits>,
    /// The kernel's numbers of the cores, in admission's order.
    cores: Vec<u16>,
    /// Taken by tasks of the starter's thread alone, as is `makers`.
    spent: Mutex<Spent>,
    makers: Mutex<Makers>,
}

impl Nursery {
    /// Called on the starter's thread.
    pub(crate) fn new(limits: Arc<Limits>, cores: Vec<u16>, launcher: Pid) -> Self {
        let spent = Mutex::new(Spent::new(cores.len()));
        let makers = Mutex::new(Makers::new(launcher));
        Self { limits, cores, spent, makers }
    }

    /// Charges what the makers used since the last time. Says when the next start may begin, where they used too much of the
    /// last second.
    pub(crate) fn charge_makers(&self) -> Result<(), Time> {
        let mut makers = self.makers();
        let used = makers.used();
        self.charge_for(&mut makers, clock::now(), used)
    }

    /// What they use beyond what is set aside for them comes off the starts of every core: nobody knows where they ran.
    fn charge_for(&self, makers: &mut Makers, now: Time, used: Duration) -> Result<(), Time> {
        if makers.standing == Standing::RealTime {
            let beyond = used.saturating_sub(makers.lately.left(0, now, MAKERS_LEAST));
            makers.lately.charge(0, now, used);
            (0..).take(self.cores.len()).for_each(|core| self.spent().charge(core, now, beyond));
        }
        let scarcest = |left: &dyn Fn(u16) -> Duration| (0..).take(self.cores.len()).map(left).min().unwrap_or_default();
        let may_use = MAKERS_LEAST + scarcest(&|core| self.limits.of(core)) / 2;
        let of_starts = scarcest(&|core| self.spent().left(core, now, self.limits.of(core)));
        let set_aside = makers.lately.left(0, now, MAKERS_LEAST);
        if set_aside.is_zero() && makers.lately.left(0, now, may_use).min(of_starts).is_zero() {
            return Err(makers.lately.oldest(0).map_or(now, |at| at + SECOND));
        }
        Ok(())
    }

    /// Sees to it that the makers have the class their budget allows: starts wait, but what follows from deaths does not.
    pub(crate) async fn look_after_makers(&self) {
        loop {
            self.look_at_makers();
            tokio::time::sleep(LOOK_AT_MAKERS_EVERY).await;
        }
    }

    fn look_at_makers(&self) {
        let allowed = self.charge_makers();
        let mut makers = self.makers();
        let set_aside = makers.lately.left(0, clock::now(), MAKERS_LEAST);
        let standing = match (makers.standing, allowed) {
            (Standing::RealTime, Ok(())) => Standing::RealTime,
            (Standing::Ordinary, Ok(())) if RESUMES_WITH <= set_aside => Standing::RealTime,
            (Standing::RealTime | Standing::Ordinary, Ok(()) | Err(_)) => Standing::Ordinary,
        };
        if standing != makers.standing {
            // What fails is tried again at the next look.
            let _ = makers.stand(standing);
        }
    }

    fn makers(&self) -> MutexGuard<'_, Makers> {
        self.makers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spent(&self) -> MutexGuard<'_, Spent> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The class a start begins or goes on with.
    pub(crate) fn standing(&self, core: u16, before: Standing) -> Standing {
        let left = self.spent().left(core, clock::now(), self.limits.of(core));
        let needed = match before {
            Standing::RealTime => Duration::from_nanos(1),
            Standing::Ordinary => RESUMES_WITH,
        };
        if needed <= left { Standing::RealTime } else { Standing::Ordinary }
    }

    /// Charges CPU time that a start used at real-time class.
    pub(crate) fn charge(&self, core: u16, used: Duration) {
        self.spent().charge(core, clock::now(), used);
    }

    pub(crate) fn placement(&self, core: u16, standing: Standing) -> Placement {
        let core = self.cores.get(usize::from(core)).copied().unwrap_or(core);
        match standing {
            Standing::RealTime => Placement::RealTime { core, priority: PRIORITY },
            Standing::Ordinary => Placement::Pinned { core },
        }
    }

    /// Looks after a start until it is over: it is placed to serve, or dead.
    pub(crate) async fn look_after(&self, running: Weak<Running>, core: u16, mut standing: Standing) {
        let mut charged = Duration::ZERO;
        loop {
            let Some(running) = running.upgrade().filter(|running| running.is_starting()) else { return };
            // When the next start may begin is asked by whoever begins it.
            let _ = self.charge_makers();
            let used = running.cpu_time();
            if standing == Standing::RealTime {
                self.charge(core, used.saturating_sub(charged));
            }
            charged = used;
            let next = self.standing(core, standing);
            // Real time: threads that it began meanwhile are of ordinary class, and it may wait for them. What cannot be placed
            // is tried again, until its lane drops the dead.
            let unplaced = next != standing || next == Standing::RealTime;
            if unplaced && running.place(self.placement(core, next)).is_ok() {
                standing = next;
            }
            drop(running);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn what_was_used_is_free_again_after_a_second() {
        let mut spent = Spent::new(1);
        spent.charge(0, Time::from_millis(100), ms(60));
        spent.charge(0, Time::from_millis(400), ms(30));
        assert_eq!(spent.left(0, Time::from_millis(1_099), ms(100)), ms(10));
        assert_eq!(spent.left(0, Time::from_millis(1_100), ms(100)), ms(70));
        assert_eq!(spent.left(0, Time::from_millis(1_400), ms(100)), ms(100));
        assert_eq!(spent.left(1, Time::from_millis(1_400), ms(100)), Duration::ZERO, "there is no such core");
    }

    #[test]
    fn a_start_leaves_the_real_time_class_with_its_budget_and_comes_back_with_a_new_one() {
        let limits = Limits::new(1);
        limits.0[0].store(50_000_000, Ordering::Relaxed);
        let nursery = Nursery::new(Arc::new(limits), vec![3], rustix::process::getpid());
        assert_eq!(nursery.standing(0, Standing::Ordinary), Standing::RealTime);
        nursery.charge(0, ms(49));
        assert_eq!(nursery.standing(0, Standing::RealTime), Standing::RealTime);
        assert_eq!(nursery.standing(0, Standing::Ordinary), Standing::Ordinary);
        nursery.charge(0, ms(1));
        assert_eq!(nursery.standing(0, Standing::RealTime), Standing::Ordinary);
        assert_eq!(nursery.placement(0, Standing::RealTime), Placement::RealTime { core: 3, priority: 1 });
    }

    #[test]
    fn makers_and_starts_together_use_no_more_than_admission_leaves() {
        let limits = Limits::new(2);
        limits.0.iter().for_each(|limit| limit.store(50_000_000, Ordering::Relaxed));
        let nursery = Nursery::new(Arc::new(limits), vec![0, 1], rustix::process::getpid());
        let left = |at| nursery.spent().left(1, Time::from_millis(at), ms(50));
        let charge = |at, used| nursery.charge_for(&mut nursery.makers(), Time::from_millis(at), ms(used));
        // What is set aside for them costs starts nothing, and starts that used all of theirs leave it to them.
        assert_eq!((charge(100, 30), left(100)), (Ok(()), ms(50)));
        assert_eq!((charge(200, 25), left(200)), (Ok(()), ms(35)));
        nursery.spent().charge(1, Time::from_millis(300), ms(35));
        assert_eq!(charge(300, 0), Err(Time::from_millis(1_100)));
        assert_eq!(charge(1_100, 0), Ok(()), "30 ms of what is set aside for them are back");
    }

    #[test]
    fn makers_use_half_of_what_is_left_to_starts_at_most_and_nothing_is_charged_at_ordinary_class() {
        let limits = Limits::new(1);
        limits.0[0].store(200_000_000, Ordering::Relaxed);
        let nursery = Nursery::new(Arc::new(limits), vec![0], rustix::process::getpid());
        let charge = |at, used| nursery.charge_for(&mut nursery.makers(), Time::from_millis(at), ms(used));
        assert_eq!(charge(100, 139), Ok(()));
        assert_eq!(charge(200, 1), Err(Time::from_millis(1_100)));
        nursery.makers().standing = Standing::Ordinary;
        assert_eq!(charge(1_200, 500), Ok(()));
    }
}
