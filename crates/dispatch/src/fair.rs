//! What runs on idle capacity, shared fairly: between tenants first, between the functions of a tenant then.
//!
//! Each tenant, and each function within it, has an account of the time it was served, as its owner charges it. The one with the least served
//! time goes first; a run is charged with an estimate when it is taken and corrected when its measured time is known. This
//! is deficit round robin with the rounds taken out: a debt of any size, such as a run of minutes estimated at
//! milliseconds, is paid by waiting instead of by passing through thousands of empty rounds, and every operation stays
//! O(log n). Who was idle starts at the present of those who wait (start-time fair queueing), so that nobody saves up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::{FunctionKey, InvocationId, Tenant};

/// How many invocations may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub per_tenant: u32,
    pub total: u32,
}

/// Why an invocation may not wait here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("tenant `{tenant}` has {limit} invocations waiting, its limit")]
    TenantFull { tenant: Tenant, limit: u32 },
    #[error("{limit} invocations are waiting, the limit")]
    Full { limit: u32 },
}

/// Which of the invocations that wait for a function goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Oldest,
    Newest,
}

/// A run that was charged with an estimate; [`FairQueue::settle`] takes it back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "an estimate that is never corrected is unfair"]
pub struct Charge {
    tenant: u64,
    function: FunctionKey,
    estimate: u64,
}

/// A work-conserving fair queue of two levels.
#[derive(Clone, Debug)]
pub struct FairQueue<T> {
    limits: Limits,
    len: u32,
    /// Charges not yet settled.
    open: u32,
    arrivals: u64,
    names: BTreeMap<Tenant, u64>,
    next_tenant: u64,
    tenants: BTreeMap<u64, Account<T>>,
    /// Tenants with something to run, by served time.
    ready: BTreeSet<(u64, u64)>,
    /// The served time of the tenant that was last taken from: the present.
    present: u64,
    places: BTreeMap<InvocationId, (u64, FunctionKey, u64)>,
    /// At this many tenants those without work are looked for.
    sweep_at: usize,
}

/// Below this many tenants nothing is swept.
const SWEEP_FROM: usize = 64;

#[derive(Clone, Debug)]
struct Account<T> {
    name: Tenant,
    served: u64,
    waiting: u32,
    /// Charges not yet settled.
    open: u32,
    functions: BTreeMap<FunctionKey, Flow<T>>,
    /// Functions that wait and are wanted, by served time.
    ready: BTreeSet<(u64, FunctionKey)>,
    present: u64,
}

#[derive(Clone, Debug)]
struct Flow<T> {
    served: u64,
    open: u32,
    /// Whether the owner has use for what waits here: a free instance, or room for one.
    wanted: bool,
    queue: BTreeMap<u64, (InvocationId, T)>,
}

impl<T> FairQueue<T> {
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self {
            limits,
            len: 0,
            open: 0,
            arrivals: 0,
            names: BTreeMap::new(),
            next_tenant: 0,
            tenants: BTreeMap::new(),
            ready: BTreeSet::new(),
            present: 0,
            places: BTreeMap::new(),
            sweep_at: SWEEP_FROM,
        }
    }

    /// Lets an invocation wait. A function is wanted when it is first seen. Errors at a limit.
    ///
    /// # Panics
    /// If the invocation waits here already.
    pub fn push(&mut self, tenant: &Tenant, function: FunctionKey, id: InvocationId, item: T) -> Result<(), Error> {
        if self.limits.total <= self.len {
            return Err(Error::Full { limit: self.limits.total });
        }
        let key = self.tenant_key(tenant);
        let account = self.tenants.get_mut(&key).expect("invariant: a named tenant has an account");
        if self.limits.per_tenant <= account.waiting {
            return Err(Error::TenantFull { tenant: tenant.clone(), limit: self.limits.per_tenant });
        }
        if account.waiting == 0 {
            account.served = account.served.max(just_before(self.present));
        }
        let place = self.arrivals;
        assert!(self.places.insert(id, (key, function, place)).is_none(), "invariant: invocation {id} waits once");
        self.arrivals += 1;
        self.len += 1;
        account.waiting += 1;
        let present = just_before(account.present);
        let flow = account.functions.entry(function).or_insert_with(|| Flow {
            served: present,
            open: 0,
            wanted: true,
            queue: BTreeMap::new(),
        });
        if flow.queue.is_empty() {
            flow.served = flow.served.max(present);
        }
        flow.queue.insert(place, (id, item));
        self.refresh(key, function);
        Ok(())
    }

    /// The function whose turn it is, among those that are wanted and have work.
    #[must_use]
    pub fn first(&self) -> Option<FunctionKey> {
        self.turns().find_map(|mut of| of.next())
    }

    /// The functions of each tenant that has any, in the order of their turns, in the order of the tenants' turns.
    pub fn turns(&self) -> impl Iterator<Item = impl Iterator<Item = FunctionKey> + '_> + '_ {
        let of = |(_, tenant): &(u64, u64)| Some(self.tenants.get(tenant)?.ready.iter().map(|(_, function)| *function));
        self.ready.iter().filter_map(of)
    }

    /// Takes the oldest invocation of the function whose turn it is and charges it with `estimate`.
    pub fn pop(&mut self, estimate: Duration) -> Option<(InvocationId, T, Charge)> {
        let (_, tenant) = self.ready.first().copied()?;
        let (_, function) = self.tenants.get(&tenant)?.ready.first().copied()?;
        self.pop_of(tenant, (function, Order::Oldest), estimate)
    }

    /// The same for a function of a tenant, whoever's turn it is, and with this order within the function.
    pub fn pop_for(
        &mut self,
        tenant: &Tenant,
        function: (FunctionKey, Order),
        estimate: Duration,
    ) -> Option<(InvocationId, T, Charge)> {
        let tenant = self.names.get(tenant).copied()?;
        self.pop_of(tenant, function, estimate)
    }

    fn pop_of(
        &mut self,
        tenant: u64,
        (function, order): (FunctionKey, Order),
        estimate: Duration,
    ) -> Option<(InvocationId, T, Charge)> {
        let account = self.tenants.get_mut(&tenant)?;
        let flow = account.functions.get_mut(&function).filter(|flow| !flow.queue.is_empty())?;
        self.present = self.present.max(account.served);
        account.present = account.present.max(flow.served);
        let (_, (id, item)) = match order {
            Order::Oldest => flow.queue.pop_first()?,
            Order::Newest => flow.queue.pop_last()?,
        };
        let estimate = nanos(estimate);
        flow.open += 1;
        account.open += 1;
        account.waiting -= 1;
        self.len -= 1;
        self.open += 1;
        self.places.remove(&id);
        self.account(tenant, function, |served| served.saturating_add(estimate));
        Some((id, item, Charge { tenant, function, estimate }))
    }

    /// Corrects a charge: the run took `actual`.
    pub fn settle(&mut self, charge: &Charge, actual: Duration) {
        let Some(account) = self.tenants.get_mut(&charge.tenant) else { return };
        self.open = self.open.saturating_sub(1);
        account.open = account.open.saturating_sub(1);
        if let Some(flow) = account.functions.get_mut(&charge.function) {
            flow.open = flow.open.saturating_sub(1);
        }
        let actual = nanos(actual);
        self.account(charge.tenant, charge.function, |served| served.saturating_sub(charge.estimate).saturating_add(actual));
        self.forget(charge.tenant, charge.function);
    }

    /// Takes out one that must not wait any longer.
    pub fn remove(&mut self, id: InvocationId) -> Option<T> {
        let (tenant, function, place) = self.places.remove(&id)?;
        let account = self.tenants.get_mut(&tenant)?;
        let (_, item) = account.functions.get_mut(&function)?.queue.remove(&place)?;
        account.waiting -= 1;
        self.len -= 1;
        self.refresh(tenant, function);
        self.forget(tenant, function);
        Some(item)
    }

    /// Takes out the oldest invocation of a function, whoever's turn it is, without a charge.
    pub fn take_from(&mut self, tenant: &Tenant, function: FunctionKey) -> Option<(InvocationId, T)> {
        let id = self.flow(tenant, function)?.queue.first_key_value().map(|(_, (id, _))| *id)?;
        self.remove(id).map(|item| (id, item))
    }

    /// What waits longest for a function.
    #[must_use]
    pub fn oldest(&self, tenant: &Tenant, function: FunctionKey) -> Option<&T> {
        self.flow(tenant, function)?.queue.first_key_value().map(|(_, (_, item))| item)
    }

    /// The function's invocations take part in the turns again.
    pub fn want(&mut self, tenant: &Tenant, function: FunctionKey) {
        self.mark(tenant, function, |flow| flow.wanted = true);
    }

    /// The function's invocations wait without taking part in the turns, until [`FairQueue::want`].
    pub fn pass_over(&mut self, tenant: &Tenant, function: FunctionKey) {
        self.mark(tenant, function, |flow| flow.wanted = false);
    }

    /// How many invocations of a function wait.
    #[must_use]
    pub fn waiting(&self, tenant: &Tenant, function: FunctionKey) -> usize {
        self.flow(tenant, function).map_or(0, |flow| flow.queue.len())
    }

    fn flow(&self, tenant: &Tenant, function: FunctionKey) -> Option<&Flow<T>> {
        self.tenants.get(self.names.get(tenant)?)?.functions.get(&function)
    }

    #[must_use]
    pub const fn len(&self) -> u32 {
        self.len
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn tenant_key(&mut self, tenant: &Tenant) -> u64 {
        if let Some(key) = self.names.get(tenant) {
            return *key;
        }
        if self.sweep_at <= self.tenants.len() {
            self.sweep();
        }
        let key = self.next_tenant;
        self.next_tenant += 1;
        self.names.insert(tenant.clone(), key);
        let account = Account {
            name: tenant.clone(),
            served: just_before(self.present),
            waiting: 0,
            open: 0,
            functions: BTreeMap::new(),
            ready: BTreeSet::new(),
            present: 0,
        };
        self.tenants.insert(key, account);
        key
    }

    fn mark(&mut self, tenant: &Tenant, function: FunctionKey, set: impl FnOnce(&mut Flow<T>)) {
        let Some(key) = self.names.get(tenant).copied() else { return };
        let Some(flow) = self.tenants.get_mut(&key).and_then(|account| account.functions.get_mut(&function)) else { return };
        set(flow);
        self.refresh(key, function);
    }

    /// Changes the served time of a function and its tenant.
    fn account(&mut self, tenant: u64, function: FunctionKey, change: impl Fn(u64) -> u64) {
        let Some(account) = self.tenants.get_mut(&tenant) else { return };
        self.ready.remove(&(account.served, tenant));
        account.served = change(account.served);
        if let Some(flow) = account.functions.get_mut(&function) {
            account.ready.remove(&(flow.served, function));
            flow.served = change(flow.served);
        }
        self.refresh(tenant, function);
    }

    /// Puts a function and its tenant among the ready ones, or takes them out.
    fn refresh(&mut self, tenant: u64, function: FunctionKey) {
        let Some(account) = self.tenants.get_mut(&tenant) else { return };
        if let Some(flow) = account.functions.get(&function) {
            if flow.wanted && !flow.queue.is_empty() {
                account.ready.insert((flow.served, function));
            } else {
                account.ready.remove(&(flow.served, function));
            }
        }
        if account.ready.is_empty() {
            self.ready.remove(&(account.served, tenant));
        } else {
            self.ready.insert((account.served, tenant));
        }
    }

    /// Drops the accounts that nothing waits on and nothing is charged to: who comes back starts at the present. A debt is
    /// kept as long as a run is open, so that a long run is paid for by the next ones.
    fn forget(&mut self, tenant: u64, function: FunctionKey) {
        if self.len == 0 && self.open == 0 {
            // A busy period ended: nobody waits who could be treated unfairly, so every debt is forgiven.
            self.names.clear();
            self.tenants.clear();
            return;
        }
        let Some(account) = self.tenants.get_mut(&tenant) else { return };
        let idle = |flow: &Flow<T>| flow.queue.is_empty() && flow.open == 0;
        if account.functions.get(&function).is_some_and(|flow| idle(flow) && flow.served <= account.present) {
            account.functions.remove(&function);
        }
        if account.waiting == 0 && account.open == 0 && account.served <= self.present {
            self.names.remove(&account.name);
            self.tenants.remove(&tenant);
        }
    }
}

impl<T> FairQueue<T> {
    /// Drops the accounts of those who were served more than the present when their last run ended, and whose debt time has
    /// paid since. Rare enough to cost O(1) for each new tenant on average.
    fn sweep(&mut self) {
        let present = self.present;
        for account in self.tenants.values_mut() {
            let now = account.present;
            account.functions.retain(|_, flow| !flow.queue.is_empty() || flow.open != 0 || now < flow.served);
        }
        self.tenants.retain(|_, account| account.waiting != 0 || account.open != 0 || present < account.served);
        self.names.retain(|_, key| self.tenants.contains_key(key));
        self.sweep_at = SWEEP_FROM.max(2 * self.tenants.len());
    }
}

/// Who comes goes before those who are at the same point: runs that are charged alike bring many to one.
fn just_before(present: u64) -> u64 {
    present.saturating_sub(1)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { per_tenant: 50, total: 120 };
    const MS: Duration = Duration::from_millis(1);

    fn tenant(number: u64) -> Tenant {
        format!("t{number}").parse().unwrap()
    }

    fn id(number: u64) -> InvocationId {
        InvocationId::from_u128(u128::from(number))
    }

    /// A queue in which every one of these (tenant, function) pairs has `each` invocations waiting.
    fn backlog(pairs: &[(u64, u64)], each: u64) -> FairQueue<(u64, u64)> {
        let mut queue = FairQueue::new(Limits { per_tenant: 10_000, total: 10_000 });
        for number in 0..each {
            for (index, (owner, function)) in pairs.iter().enumerate() {
                let id = id(number * pairs.len() as u64 + index as u64);
                queue.push(&tenant(*owner), FunctionKey(*function), id, (*owner, *function)).unwrap();
            }
        }
        queue
    }

    /// Runs one at a time until `budget` of run time is served; says what each pair was served.
    fn serve(
        queue: &mut FairQueue<(u64, u64)>,
        run: impl Fn((u64, u64)) -> Duration,
        budget: Duration,
    ) -> BTreeMap<(u64, u64), Duration> {
        let mut served: BTreeMap<(u64, u64), Duration> = BTreeMap::new();
        let mut left = budget;
        while let Some((_, pair, charge)) = queue.pop(MS) {
            let took = run(pair);
            queue.settle(&charge, took);
            *served.entry(pair).or_default() += took;
            left = left.saturating_sub(took);
            if left.is_zero() {
                break;
            }
        }
        served
    }

    #[test]
    fn a_tenant_with_many_functions_gets_no_more_than_one_with_one() {
        let mut queue = backlog(&[(1, 1), (2, 2), (2, 3), (2, 4)], 500);
        let served = serve(&mut queue, |_| 2 * MS, 600 * MS);
        assert_eq!(served[&(1, 1)], 300 * MS);
        for function in [2, 3, 4] {
            assert_eq!(served[&(2, function)], 100 * MS);
        }
    }

    #[test]
    fn shares_are_of_run_time_and_not_of_invocations() {
        let mut queue = backlog(&[(1, 1), (2, 2)], 1_000);
        let served = serve(&mut queue, |(owner, _)| if owner == 1 { 50 * MS } else { MS }, 1_000 * MS);
        let (long, short) = (served[&(1, 1)], served[&(2, 2)]);
        assert!(long.abs_diff(short) <= 50 * MS, "{long:?} and {short:?}");
    }

    #[test]
    fn what_is_not_wanted_is_passed_over_and_comes_back() {
        let mut queue = backlog(&[(1, 1), (2, 2)], 2);
        queue.pass_over(&tenant(1), FunctionKey(1));
        for _ in 0..2 {
            let (_, pair, charge) = queue.pop(MS).unwrap();
            assert_eq!(pair, (2, 2));
            queue.settle(&charge, MS);
        }
        assert_eq!(queue.first(), None);
        queue.want(&tenant(1), FunctionKey(1));
        assert_eq!(queue.first(), Some(FunctionKey(1)));
    }

    #[test]
    fn a_tenant_can_be_served_before_its_turn_and_pays_for_it() {
        let mut queue = backlog(&[(1, 1), (2, 2)], 3);
        let mut taken = Vec::new();
        for owner in [2, 2] {
            let (_, pair, charge) = queue.pop_for(&tenant(owner), (FunctionKey(2), Order::Oldest), MS).unwrap();
            queue.settle(&charge, MS);
            taken.push(pair);
        }
        assert_eq!(queue.turns().flatten().collect::<Vec<_>>(), [FunctionKey(1), FunctionKey(2)]);
        while let Some((_, pair, charge)) = queue.pop(MS) {
            queue.settle(&charge, MS);
            taken.push(pair);
        }
        assert_eq!(taken, [(2, 2), (2, 2), (1, 1), (1, 1), (1, 1), (2, 2)]);
        assert_eq!(queue.pop_for(&tenant(1), (FunctionKey(1), Order::Oldest), MS), None);
    }

    #[test]
    fn a_tenant_that_is_first_seen_goes_before_its_equals() {
        let mut queue = backlog(&[(1, 1), (2, 2)], 3);
        for _ in 0..2 {
            let (.., charge) = queue.pop(MS).unwrap();
            queue.settle(&charge, MS);
        }
        let (_, pair, first) = queue.pop(MS).unwrap();
        queue.push(&tenant(3), FunctionKey(3), id(100), (3, 3)).unwrap();
        let (_, next, second) = queue.pop(MS).unwrap();
        assert_eq!((pair, next), ((1, 1), (3, 3)), "tenant 2 was served as much as 1 had been");
        for charge in [first, second] {
            queue.settle(&charge, MS);
        }
    }

    #[test]
    fn a_function_can_be_served_before_its_turn_and_the_one_before_it_keeps_its_own() {
        let mut queue = backlog(&[(1, 1), (1, 2)], 2);
        let (_, pair, charge) = queue.pop_for(&tenant(1), (FunctionKey(2), Order::Oldest), MS).unwrap();
        queue.settle(&charge, MS);
        assert_eq!((pair, queue.first()), ((1, 2), Some(FunctionKey(1))));
    }

    #[test]
    fn a_full_queue_says_which_limit_it_is() {
        let mut queue = FairQueue::new(Limits { per_tenant: 1, total: 2 });
        queue.push(&tenant(1), FunctionKey(1), id(1), ()).unwrap();
        let refused = queue.push(&tenant(1), FunctionKey(1), id(2), ());
        assert_eq!(refused, Err(Error::TenantFull { tenant: tenant(1), limit: 1 }));
        queue.push(&tenant(2), FunctionKey(2), id(2), ()).unwrap();
        assert_eq!(queue.push(&tenant(3), FunctionKey(3), id(3), ()), Err(Error::Full { limit: 2 }));
        assert_eq!(queue.remove(id(1)), Some(()));
        assert_eq!(queue.remove(id(1)), None);
        queue.push(&tenant(3), FunctionKey(3), id(3), ()).unwrap();
    }

    #[test]
    fn tenants_that_left_cost_nothing() {
        let mut queue = FairQueue::new(LIMITS);
        for number in 0..10_000 {
            queue.push(&tenant(number), FunctionKey(number), id(number), ()).unwrap();
            let (_, (), charge) = queue.pop(MS).unwrap();
            queue.settle(&charge, MS * 3);
        }
        assert!(queue.tenants.len() <= 2 * SWEEP_FROM, "{}", queue.tenants.len());
    }

    proptest! {
        /// While two tenants both have work, the time they are served differs by no more than their longest runs.
        #[test]
        fn backlogged_tenants_are_served_alike(runs in proptest::collection::vec(1_u32..40, 2..5), budget in 100_u32..900) {
            let pairs: Vec<(u64, u64)> = (0..runs.len() as u64).map(|number| (number, number)).collect();
            let mut queue = backlog(&pairs, 1_000);
            let served = serve(&mut queue, |(owner, _)| MS * runs[usize::try_from(owner).unwrap()], MS * budget);
            let longest = MS * *runs.iter().max().unwrap();
            let times: Vec<Duration> = pairs.iter().map(|pair| served.get(pair).copied().unwrap_or_default()).collect();
            prop_assert!(*times.iter().max().unwrap() - *times.iter().min().unwrap() <= 2 * longest, "{times:?}");
        }

        /// Whatever is done, each invocation leaves once, the oldest or the newest of its function as asked, and no place is lost.
        #[test]
        fn nothing_is_lost_and_nothing_comes_twice(steps in proptest::collection::vec((0_u8..8, 0_u64..4, 0_u64..3), 0..200)) {
            let mut queue = FairQueue::new(LIMITS);
            let (mut inside, mut open) = (BTreeMap::new(), Vec::new());
            for (number, (step, owner, function)) in (0_u64..).zip(steps) {
                let function = FunctionKey(10 * owner + function);
                match step {
                    0..=2 => {
                        if queue.push(&tenant(owner), function, id(number), (number, function)).is_ok() {
                            inside.insert(number, function);
                        }
                    }
                    3..=5 => {
                        let first = queue.first();
                        let of = first.unwrap_or(FunctionKey(0));
                        let owner = tenant(of.0 / 10);
                        let taken = match step {
                            3 => queue.pop(MS),
                            4 => queue.pop_for(&owner, (of, Order::Oldest), MS),
                            _ => queue.pop_for(&owner, (of, Order::Newest), MS),
                        };
                        prop_assert_eq!(first, taken.as_ref().map(|(_, (_, function), _)| *function));
                        if let Some((taken, (number, function), charge)) = taken {
                            prop_assert_eq!(taken, id(number));
                            let mut of_it = inside.iter().filter(|(_, other)| **other == function).map(|(number, _)| *number);
                            prop_assert_eq!(if step == 5 { of_it.next_back() } else { of_it.next() }, Some(number));
                            inside.remove(&number);
                            open.push(charge);
                        }
                    }
                    6 => {
                        let removed = queue.remove(id(number / 2)).is_some();
                        prop_assert_eq!(removed, inside.remove(&(number / 2)).is_some());
                    }
                    _ => {
                        if let Some(charge) = open.pop() {
                            queue.settle(&charge, MS * 7);
                        }
                    }
                }
                prop_assert_eq!(usize::try_from(queue.len()).unwrap(), inside.len());
                prop_assert_eq!(queue.first().is_some(), !inside.is_empty());
                let oldest = inside.iter().find(|(_, other)| **other == function).map(|(number, of)| (*number, *of));
                prop_assert_eq!(queue.oldest(&tenant(owner), function).copied(), oldest);
            }
        }
    }
}
