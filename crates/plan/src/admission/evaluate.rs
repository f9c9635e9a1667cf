//! Whether a set of functions on given cores keeps all its promises, and with which numbers.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use model::{FunctionName, Level, RateClassName};

use super::{Binding, Demand, Grant, LOWEST_PRIORITY, NodeCapacity, Remaining, Shard, Share, front};
use crate::flow::Flow;
use crate::instances::{Occupancy, instances};
use crate::quota::Quota;
use crate::response::{self, Bound, Core, Delayed, Interference, Task, Waiting};

const HIGHEST_PRIORITY: u8 = 60;
const SECOND: Duration = Duration::from_secs(1);
const NANOCORES_PER_THOUSANDTH: u64 = 1_000_000;

/// A demand with the cores it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) demand: Demand,
    /// Distinct. Shorter than `shards` only while single cores are tried for one shard each.
    pub(super) cores: Vec<u16>,
    pub(super) shards: NonZeroU32,
}

/// What has one flow, one priority and one set of cores: a function, or the members of a rate class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum UnitKey<'a> {
    Own(&'a FunctionName),
    Class(&'a RateClassName),
}

pub(super) fn unit_key(demand: &Demand) -> UnitKey<'_> {
    match &demand.terms.pacing {
        model::Pacing::Own { .. } => UnitKey::Own(&demand.function),
        model::Pacing::Shared(class) => UnitKey::Class(class),
    }
}

#[derive(Clone, Debug)]
pub(super) struct Unit<'a> {
    members: Vec<usize>,
    pub(super) cores: &'a [u16],
    /// Of one shard.
    pub(super) flow: Flow,
    /// The largest cost of any member.
    cost: Duration,
    /// What the front does for one of its slots, at most.
    pub(super) front_cost: Duration,
    /// The largest own time of any member, with what the platform adds.
    own_time: Duration,
    /// By how much a quota on its instances may delay a start, and what it adds to the time an invocation takes.
    throttled: Duration,
    /// Deadline-monotonic order: the earliest end that is promised, B + C.
    urgency: Duration,
}

/// A set that keeps its promises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Evaluation {
    /// In the order of the placed demands.
    pub(super) grants: Vec<Grant>,
    pub(super) remaining: Remaining,
    /// Per core: the most that what was admitted can use of it within a second.
    pub(super) busiest: Vec<Duration>,
}

/// Steps towards the delay of the front; a few are usual.
const FRONT_STEPS: usize = 200;

/// Tests everything; the first promise that would break is the answer, with what all need together and what there is.
///
/// The front's delay makes responses longer, and responses the delay. So both are the least fixed point, reached from below;
/// a promise that breaks on the way breaks there too.
pub(super) fn evaluate(capacity: &NodeCapacity, placed: &[Placed]) -> Result<Evaluation, Binding> {
    let units = units(capacity, placed);
    let front = front_share(capacity, &units)?;
    let Some(last) = placed.last() else {
        let node = WholeNode { capacity, placed, units: &units, delay: Duration::ZERO };
        let Seen { cores, busiest, .. } = node.analyse()?;
        let (memory_bytes, instances) = (capacity.memory, capacity.instances);
        return Ok(Evaluation { grants: Vec::new(), remaining: Remaining { cores, front, memory_bytes, instances }, busiest });
    };
    let unbounded = || Binding::Unbounded { function: last.demand.function.clone(), core: capacity.front_core };
    let mut delay = front::delay(capacity, &units, |unit, _| units[unit].own_time).ok_or_else(unbounded)?;
    for _ in 0..FRONT_STEPS {
        let node = WholeNode { capacity, placed, units: &units, delay };
        let seen = node.analyse()?;
        let response = |unit: usize, core: u16| seen.bounds[&(unit, core)].0.response;
        let found = front::delay(capacity, &units, response).ok_or_else(unbounded)?;
        if found <= delay {
            let grants = grants(capacity, placed, &units, &seen.bounds);
            let (memory_bytes, instances) = room(capacity, &grants)?;
            let remaining = Remaining { cores: seen.cores, front, memory_bytes, instances };
            return Ok(Evaluation { grants, remaining, busiest: seen.busiest });
        }
        delay = found;
    }
    Err(unbounded())
}

/// All cores, with the front's delay as far as it is known.
#[derive(Clone, Copy, Debug)]
struct WholeNode<'a> {
    capacity: &'a NodeCapacity,
    placed: &'a [Placed],
    units: &'a [Unit<'a>],
    delay: Duration,
}

/// What is promised to each unit on each of its cores, with its priority there.
type Promised = BTreeMap<(usize, u16), (Bound, u8)>;

struct Seen {
    bounds: Promised,
    cores: Vec<Share>,
    busiest: Vec<Duration>,
}

impl WholeNode<'_> {
    fn analyse(&self) -> Result<Seen, Binding> {
        let capacity = self.capacity;
        let mut bounds = Promised::new();
        let mut cores: Vec<(Share, Duration)> = Vec::new();
        // The front's core comes last: answers of functions on other cores load it.
        let others = (0..capacity.cores).filter(|core| *core != capacity.front_core);
        for core in others.chain([capacity.front_core]) {
            let seen = OneCore { node: *self, core };
            let platform = seen.platform(&bounds);
            let share = seen.utilisation(&platform)?;
            seen.analyse(&platform, &mut bounds)?;
            cores.push((share, seen.busiest_second(&platform, &bounds)?));
        }
        let on_front = cores.pop().expect("invariant: the front's core was looked at last");
        cores.insert(usize::from(capacity.front_core), on_front);
        let (cores, busiest) = cores.into_iter().unzip();
        Ok(Seen { bounds, cores, busiest })
    }
}

fn units<'a>(capacity: &NodeCapacity, placed: &'a [Placed]) -> Vec<Unit<'a>> {
    let mut units: Vec<Unit<'a>> = Vec::new();
    let mut index: BTreeMap<UnitKey<'_>, usize> = BTreeMap::new();
    for (member, it) in placed.iter().enumerate() {
        let terms = &it.demand.terms;
        let cost = charged(capacity, &it.demand);
        // The kernel may let a job use its whole budget and no more; what it does not execute it may wait.
        let (throttled, period) = throttling(capacity, &it.demand);
        let own_time = cost + terms.max_run_time.saturating_sub(terms.cpu_budget()) + throttled + period;
        let front_cost = front::cost(capacity, &it.demand);
        let urgency = terms.start_within.saturating_add(terms.max_run_time);
        match index.get(&unit_key(&it.demand)) {
            Some(known) => {
                let unit = &mut units[*known];
                unit.members.push(member);
                unit.cost = unit.cost.max(cost);
                unit.own_time = unit.own_time.max(own_time);
                unit.front_cost = unit.front_cost.max(front_cost);
                unit.throttled = unit.throttled.max(throttled);
                unit.urgency = unit.urgency.min(urgency);
            }
            None => {
                index.insert(unit_key(&it.demand), units.len());
                let flow = it.demand.flow().shard(it.shards);
                units.push(Unit {
                    members: vec![member],
                    cores: &it.cores,
                    flow,
                    cost,
                    front_cost,
                    own_time,
                    throttled,
                    urgency,
                });
            }
        }
    }
    units
}

/// c': the budget with what the platform adds to it.
fn charged(capacity: &NodeCapacity, demand: &Demand) -> Duration {
    let runtime = demand.instance_cost.saturating_add(capacity.overshoot + capacity.context_switch * 2);
    demand.terms.cpu_budget().saturating_add(runtime)
}

/// The quota on a function's instances, where shares are quotas: what an invocation is charged, within its run time.
pub(super) fn quota(capacity: &NodeCapacity, demand: &Demand) -> Option<Quota> {
    capacity.quota_tick?;
    Quota::new(charged(capacity, demand), demand.terms.max_run_time)
}

/// By how much the quota delays a start, and the period that passes in vain while an invocation runs.
fn throttling(capacity: &NodeCapacity, demand: &Demand) -> (Duration, Duration) {
    match (quota(capacity, demand), capacity.quota_tick) {
        (Some(quota), Some(tick)) => (quota.delay(charged(capacity, demand), tick), quota.period),
        (None, _) | (_, None) => (Duration::ZERO, Duration::ZERO),
    }
}

/// The front's share: every slot costs it once, whichever core serves it, and its budget for the rest is always counted.
fn front_share(capacity: &NodeCapacity, units: &[Unit<'_>]) -> Result<Share, Binding> {
    let shards = units.iter().flat_map(|unit| unit.cores.iter().map(|_| unit.flow.nanocores(unit.front_cost)));
    let slots: u64 = shards.fold(0, u64::saturating_add);
    let budgets = capacity.front_budgets.iter().map(|it| Flow::new(it.rate, it.burst).nanocores(it.cost));
    let used = budgets.fold(slots, u64::saturating_add);
    let limit = u64::from(capacity.front_limit_thousandths) * NANOCORES_PER_THOUSANDTH;
    if limit < used {
        return Err(Binding::Front { needed: used, available: limit });
    }
    Ok(Share { used_nanocores: used, limit_nanocores: limit })
}

fn room(capacity: &NodeCapacity, grants: &[Grant]) -> Result<(u64, u32), Binding> {
    let needed = grants.iter().fold(0_u32, |sum, grant| sum.saturating_add(grant.instances()));
    if capacity.instances < needed {
        return Err(Binding::Instances { needed, available: capacity.instances });
    }
    let bytes = grants.iter().fold(0_u64, |sum, grant| sum.saturating_add(grant.memory_for(grant.instances())));
    if capacity.memory < bytes {
        return Err(Binding::Memory { needed: bytes, available: capacity.memory });
    }
    Ok((capacity.memory - bytes, capacity.instances - needed))
}

fn grants(capacity: &NodeCapacity, placed: &[Placed], units: &[Unit<'_>], bounds: &Promised) -> Vec<Grant> {
    let mut grants: Vec<(usize, Grant)> = Vec::new();
    for (index, unit) in units.iter().enumerate() {
        let parts: Vec<(u16, Bound, u8)> = unit
            .cores
            .iter()
            .map(|core| {
                let (bound, priority) = bounds[&(index, *core)];
                (*core, bound, priority)
            })
            .collect();
        for member in &unit.members {
            let demand = &placed[*member].demand;
            let shards = parts.iter().map(|(core, bound, priority)| {
                let busy = bound.response + capacity.tolerance + demand.recycle + demand.terms.lead;
                let found = instances(unit.flow, Occupancy { busy, cold_start: demand.cold_start });
                Shard { core: *core, priority: *priority, instances: found.most, warm: found.warm }
            });
            let grant = Grant {
                demand: demand.clone(),
                level: capacity.level,
                shards: shards.collect(),
                start_bound: parts.iter().map(|(_, bound, _)| bound.start).max().unwrap_or_default(),
                response_bound: parts.iter().map(|(_, bound, _)| bound.response).max().unwrap_or_default(),
                tolerance: capacity.tolerance,
            };
            grants.push((*member, grant));
        }
    }
    grants.sort_by_key(|(member, _)| *member);
    grants.into_iter().map(|(_, grant)| grant).collect()
}

#[derive(Clone, Copy, Debug)]
struct OneCore<'a> {
    node: WholeNode<'a>,
    core: u16,
}

impl OneCore<'_> {
    /// The units on this core, most urgent first; the sort is stable, so equals keep the order of admission.
    fn here(&self) -> Vec<usize> {
        let mut here: Vec<usize> =
            (0..self.node.units.len()).filter(|unit| self.node.units[*unit].cores.contains(&self.core)).collect();
        here.sort_by_key(|unit| self.node.units[*unit].urgency);
        here
    }

    /// What runs above all instances here: the probe and, on its core, the front.
    fn platform(&self, known: &Promised) -> Vec<Interference> {
        let capacity = self.node.capacity;
        if self.core != capacity.front_core {
            let tick = Flow::periodic(capacity.tick.period).filter(|_| !capacity.tick.cost.is_zero());
            let delayed = Delayed::By(Duration::ZERO);
            return tick.map(|flow| Interference { flow, cost: capacity.tick.cost, delayed }).into_iter().collect();
        }
        let mut platform: Vec<Interference> = front::beside(capacity).collect();
        let here = self.here();
        for (index, unit) in self.node.units.iter().enumerate() {
            for core in unit.cores {
                // The front works for an invocation when it comes and when it ends.
                let delayed = match here.iter().position(|task| *task == index).filter(|_| *core == self.core) {
                    Some(task) => Delayed::UntilEndOf(task),
                    None => Delayed::By(known.get(&(index, *core)).map_or(Duration::ZERO, |(bound, _)| bound.response)),
                };
                platform.push(Interference { flow: unit.flow, cost: unit.front_cost, delayed });
            }
        }
        platform
    }

    /// The quick refusal. Published (Liu and Layland): above its limit no schedule exists; below it one may still not.
    fn utilisation(&self, platform: &[Interference]) -> Result<Share, Binding> {
        let sum = |shares: &mut dyn Iterator<Item = u64>| shares.fold(0, u64::saturating_add);
        let below = sum(&mut platform.iter().map(|it| it.flow.nanocores(it.cost)));
        let here = self.here();
        let needed = sum(&mut here.iter().map(|unit| self.node.units[*unit].flow.nanocores(self.node.units[*unit].cost)));
        let limit_nanocores = u64::from(self.node.capacity.core_limit_thousandths) * NANOCORES_PER_THOUSANDTH;
        let used_nanocores = below.saturating_add(needed);
        if limit_nanocores < used_nanocores && !here.is_empty() {
            return Err(Binding::Cpu { core: self.core, needed: used_nanocores, available: limit_nanocores });
        }
        Ok(Share { used_nanocores, limit_nanocores })
    }

    fn analyse(&self, platform: &[Interference], bounds: &mut Promised) -> Result<(), Binding> {
        let here = self.here();
        let priorities: Vec<u8> = (0..here.len()).map(priority).collect();
        let tasks: Vec<Task> =
            here.iter().zip(&priorities).map(|(unit, priority)| task(&self.node.units[*unit], *priority)).collect();
        // On other cores than the front's, releases are late by the front's delay too.
        let late = if self.core == self.node.capacity.front_core { Duration::ZERO } else { self.node.delay };
        let core = Core { tasks: &tasks, platform, tolerance: self.node.capacity.tolerance + late };
        let found = response::analyse(core).map_err(|unbounded| {
            let member = self.node.units[here[unbounded.task]].members[0];
            Binding::Unbounded { function: self.node.placed[member].demand.function.clone(), core: self.core }
        })?;
        for ((unit, bound), priority) in here.iter().zip(found).zip(priorities) {
            let bound = front::promised(self.node.capacity, self.core, bound, self.node.delay);
            let bound = Bound { start: bound.start + self.node.units[*unit].throttled, ..bound };
            for member in &self.node.units[*unit].members {
                self.check(&self.node.placed[*member].demand, bound)?;
            }
            bounds.insert((*unit, self.core), (bound, priority));
        }
        Ok(())
    }

    /// The most that is used of this core within a second, with what starts may use at least: above what the kernel allows
    /// to real-time threads, it would stop all of them for the rest of a second.
    ///
    /// Derived: what executes in a window came no earlier than its response and T before it.
    fn busiest_second(&self, platform: &[Interference], bounds: &Promised) -> Result<Duration, Binding> {
        let here = self.here();
        let response = |unit: usize| bounds.get(&(unit, self.core)).map_or(Duration::ZERO, |(bound, _)| bound.response);
        let most = |flow: Flow, cost: Duration, lag: Duration| {
            let window = (SECOND + self.node.capacity.tolerance).saturating_add(lag);
            let jobs = u32::try_from(flow.in_half_open(window.as_nanos())).unwrap_or(u32::MAX);
            cost.saturating_mul(jobs)
        };
        let lag = |work: &Interference| match work.delayed {
            Delayed::By(lag) => lag,
            Delayed::UntilEndOf(task) => response(here[task]),
        };
        let below = platform.iter().map(|work| most(work.flow, work.cost, lag(work)));
        let above = here.iter().map(|unit| most(self.node.units[*unit].flow, self.node.units[*unit].cost, response(*unit)));
        let used = below.chain(above).fold(Duration::ZERO, Duration::saturating_add);
        let available = self.node.capacity.real_time_per_second.saturating_sub(self.node.capacity.starts_per_second);
        if self.node.capacity.level == Level::Hard && available < used && !here.is_empty() {
            let nanocores = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            return Err(Binding::Second { core: self.core, needed: nanocores(used), available: nanocores(available) });
        }
        Ok(used)
    }

    /// S + T <= B and R + T <= D.
    fn check(&self, demand: &Demand, bound: Bound) -> Result<(), Binding> {
        let (core, tolerance, terms) = (self.core, self.node.capacity.tolerance, &demand.terms);
        let function = || demand.function.clone();
        if terms.start_within < bound.start + tolerance {
            let promised = terms.start_within;
            return Err(Binding::Start { function: function(), core, bound: bound.start, tolerance, promised });
        }
        match terms.deadline {
            Some(deadline) if deadline.0 < bound.response + tolerance => {
                let promised = deadline.0;
                Err(Binding::Deadline { function: function(), core, bound: bound.response, tolerance, promised })
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Any handler may wait, so none is analysed as one that never does.
fn task(unit: &Unit<'_>, priority: u8) -> Task {
    let waiting = Waiting::Within(unit.own_time.saturating_sub(unit.cost));
    Task { flow: unit.flow, cost: unit.cost, waiting, level: u32::from(HIGHEST_PRIORITY - priority) }
}

/// 60 for the most urgent, downwards; beyond the lowest all share it. So whoever leaves takes no one's place in front of
/// others, and bounds only fall.
fn priority(rank: usize) -> u8 {
    let below = u8::try_from(rank).unwrap_or(u8::MAX).min(HIGHEST_PRIORITY - LOWEST_PRIORITY);
    HIGHEST_PRIORITY - below
}
