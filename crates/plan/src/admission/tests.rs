use std::time::Duration;

use model::{Burst, DurationText, FunctionName, Guarantee, Level, Memory, Pacing, Rate, RateClass, Require, Terms};
use proptest::prelude::*;

use super::*;
use crate::simulator::{Chain, Stage, simulate_chains};

const MS: u64 = 1_000_000;

/// Two cores of an ideal machine: the platform costs nothing.
fn ideal() -> NodeCapacity {
    let nothing = Periodic { cost: Duration::ZERO, period: Duration::from_millis(1) };
    NodeCapacity {
        cores: 2,
        core_limit_thousandths: NodeCapacity::CORE_LIMIT_THOUSANDTHS,
        front_core: 0,
        front_cost: Duration::ZERO,
        front_limit_thousandths: NodeCapacity::FRONT_LIMIT_THOUSANDTHS,
        connection_cost: Duration::ZERO,
        thread_cost: Duration::ZERO,
        front_budgets: Vec::new(),
        tick: nothing,
        context_switch: Duration::ZERO,
        overshoot: Duration::ZERO,
        quota_tick: None,
        tolerance: Duration::ZERO,
        real_time_per_second: Duration::from_secs(1_000),
        starts_per_second: Duration::ZERO,
        level: Level::Hard,
        memory: 4 << 30,
        instances: 200,
    }
}

/// Two cores as measured: nothing is free.
fn real() -> NodeCapacity {
    NodeCapacity {
        front_cost: Duration::from_micros(150),
        connection_cost: Duration::from_micros(20),
        thread_cost: Duration::from_micros(2),
        front_budgets: vec![
            Budgeted { rate: "100/s".parse().unwrap(), burst: Burst::ONE, cost: Duration::from_micros(500) },
            Budgeted { rate: "200/s".parse().unwrap(), burst: Burst::new(4).unwrap(), cost: Duration::from_micros(100) },
        ],
        tick: Periodic { cost: Duration::from_micros(5), period: Duration::from_millis(1) },
        context_switch: Duration::from_micros(3),
        overshoot: Duration::from_millis(1),
        tolerance: Duration::from_millis(3),
        real_time_per_second: Duration::from_millis(950),
        starts_per_second: Duration::from_millis(50),
        ..ideal()
    }
}

fn demand(name: &str, pairs: &[(&str, &str)]) -> Demand {
    let terms = Terms::from_pairs(pairs.iter().copied()).unwrap().unwrap().resolve(Duration::from_secs(3)).unwrap();
    Demand {
        function: name.parse().unwrap(),
        terms,
        rate_class: None,
        memory: Memory::from_mib(64).unwrap(),
        cold_start: Duration::from_millis(300),
        recycle: Duration::from_millis(1),
        instance_cost: Duration::ZERO,
        connections: 0,
        threads: 0,
    }
}

/// What a runtime uses around its handler.
const INSTANCE_COST: Duration = Duration::from_micros(100);

fn fn_name(name: &str) -> FunctionName {
    name.parse().unwrap()
}

fn filled(capacity: NodeCapacity, demands: &[Demand]) -> Book {
    let book = Book::new(capacity).unwrap();
    demands.iter().fold(book, |book, demand| book.admit(demand).unwrap_or_else(|refusal| panic!("{refusal}")).0)
}

fn prototype() -> Vec<Demand> {
    vec![
        demand("g1", &[("rate", "100/s"), ("max_run_time", "2ms"), ("deadline", "10ms")]),
        demand("g4", &[("rate", "10/s"), ("burst", "3"), ("max_run_time", "20ms"), ("deadline", "100ms")]),
        demand("g2", &[("rate", "50/s"), ("burst", "2"), ("max_run_time", "4ms"), ("deadline", "20ms")]),
        demand("g3", &[("rate", "20/s"), ("max_run_time", "10ms"), ("deadline", "50ms")]),
    ]
}

#[test]
fn a_refusal_names_what_binds_and_its_offer_is_admitted() {
    let book = filled(ideal(), &[demand("a", &[("rate", "40/s"), ("max_run_time", "20ms"), ("deadline", "100ms")])]);
    let book = book.admit(&demand("b", &[("rate", "30/s"), ("max_run_time", "20ms"), ("deadline", "100ms")])).unwrap().0;
    let asked = demand("c", &[("rate", "30/s"), ("max_run_time", "20ms"), ("deadline", "100ms")]);
    let refusal = book.admit(&asked).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "the guarantee of function `c` cannot be given: it needs 0.600 cores of core 1, which has 0.250 cores left; \
         the largest rate that fits with all else equal is 12.5/s"
    );
    let offered = demand("c", &[("rate", "12.5/s"), ("max_run_time", "20ms"), ("deadline", "100ms")]);
    book.admit(&offered).unwrap();
}

#[test]
fn a_lead_needs_instances() {
    let instances = |lead: u64| {
        let terms = [("rate", "30/s"), ("burst", "2"), ("max_run_time", "7ms"), ("deadline", "100ms")];
        let mut asked = demand("f", &terms);
        asked.terms.lead = Duration::from_millis(lead);
        let grant = Book::new(ideal()).unwrap().admit(&asked).unwrap().1.grant;
        (grant.instances(), grant.response_bound)
    };
    // K = ceil(r (R + T + recycling + lead)) + b - 1, with R = 14 ms for two at once: 0.45 of an invocation without a lead.
    let (without, response) = instances(0);
    assert_eq!((without, response), (2, Duration::from_millis(14)));
    for (lead, more) in [(200, 6), (219, 7), (1_000, 30)] {
        assert_eq!(instances(lead), (without + more, response), "{lead} ms");
    }
}

#[test]
fn a_start_promise_is_refused_though_utilisation_would_allow_it() {
    let capacity = NodeCapacity { cores: 1, ..ideal() };
    let book = filled(capacity, &prototype()[..1]);
    let terms = [("rate", "10/s"), ("burst", "3"), ("max_run_time", "20ms"), ("deadline", "100ms"), ("start_within", "51ms")];
    let refusal = book.admit(&demand("g4", &terms)).unwrap_err();
    assert!(matches!(&refusal.binding, Binding::Start { bound, .. } if *bound == Duration::from_millis(52)), "{refusal}");
    let mut later = terms;
    later[4].1 = "52ms";
    book.admit(&demand("g4", &later)).unwrap();
}

#[test]
fn a_newcomer_that_would_delay_an_old_promise_is_refused() {
    let capacity = NodeCapacity { cores: 1, ..ideal() };
    let old = demand("old", &[("rate", "10/s"), ("max_run_time", "20ms"), ("deadline", "40ms")]);
    let book = filled(capacity, &[old]);
    let newcomer = demand("new", &[("rate", "10/s"), ("burst", "5"), ("max_run_time", "5ms"), ("deadline", "30ms")]);
    let refusal = book.admit(&newcomer).unwrap_err();
    assert!(matches!(&refusal.binding, Binding::Start { function, .. } if function.as_str() == "old"), "{refusal}");
    assert_eq!(book.grants().len(), 1);
}

#[test]
fn an_answer_has_all_numbers() {
    let (book, answer) = Book::new(real())
        .unwrap()
        .admit(&Demand {
            instance_cost: INSTANCE_COST,
            ..demand("detect", &[("rate", "30/s"), ("burst", "3"), ("max_run_time", "10ms"), ("deadline", "100ms")])
        })
        .unwrap();
    let grant = &answer.grant;
    // c' = 10 ms + 1 ms + 0.1 ms + 2 x 3 us; on core 1 there is only the tick. With T = 3 ms a fourth invocation may come
    // before the third ends, and get ahead of one that waited. The front is busy for 0.5 + 4 x 0.1 + 4 x 0.15 ms and some
    // ticks, counted as 1.75 ms: once before the start, and once more at the end.
    let front = 1_750_000;
    assert_eq!(grant.start_bound, Duration::from_nanos(2 * 11_106_000 + 28 * 5_000 + front));
    assert_eq!(grant.response_bound, Duration::from_nanos(4 * 11_106_000 + 50 * 5_000 + 2 * front));
    assert_eq!((grant.instances(), grant.warm(), grant.level), (4, 4, Level::Hard));
    assert_eq!(grant.shards, vec![Shard { core: 1, priority: 60, instances: 4, warm: 4 }]);
    assert_eq!(answer.remaining.memory_bytes, (4 << 30) - 4 * (64 << 20));
    assert_eq!(answer.remaining.instances, 196);
    assert_eq!(book.remaining(), &answer.remaining);
}

#[test]
fn what_is_too_heavy_for_one_core_is_split() {
    let heavy = demand("heavy", &[("rate", "50/s"), ("max_run_time", "30ms"), ("deadline", "100ms")]);
    let book = filled(ideal(), &[heavy]);
    assert_eq!(book.grants()[0].shards.iter().map(|shard| shard.core).collect::<Vec<_>>(), vec![0, 1]);
    let heavier = demand("heavy", &[("rate", "60/s"), ("max_run_time", "30ms"), ("deadline", "100ms")]);
    let refusal = book.admit(&heavier).unwrap_err();
    assert_eq!(refusal.offer, "56.6/s".parse().ok(), "{refusal}");
}

#[test]
fn memory_instances_and_the_front_bind_too() {
    let asked = demand("f", &[("rate", "100/s"), ("max_run_time", "5ms"), ("cpu", "0.1"), ("start_within", "100ms")]);
    let of = |capacity| Book::new(capacity).unwrap().admit(&asked).unwrap_err();
    let small = of(NodeCapacity { memory: 32 << 20, ..ideal() });
    assert!(matches!(small.binding, Binding::Memory { needed: 67_108_864, available: 33_554_432 }), "{small}");
    let few = of(NodeCapacity { instances: 0, ..ideal() });
    assert!(matches!(few.binding, Binding::Instances { needed: 1, available: 0 }), "{few}");
    let busy = of(NodeCapacity { front_cost: Duration::from_millis(5), ..ideal() });
    assert!(matches!(busy.binding, Binding::Front { needed: 500_000_000, available: 350_000_000 }), "{busy}");
    assert_eq!(busy.offer, "70/s".parse().ok());
}

#[test]
fn hard_is_refused_on_a_soft_node_by_that_name() {
    let mut asked = demand("f", &[("rate", "1/s"), ("max_run_time", "5ms")]);
    let soft = NodeCapacity { level: Level::Soft, ..ideal() };
    assert_eq!(Book::new(soft.clone()).unwrap().admit(&asked).unwrap().1.grant.level, Level::Soft);
    asked.terms.require = Require::Hard;
    let refusal = Book::new(soft).unwrap().admit(&asked).unwrap_err();
    assert_eq!(refusal.offer, None);
    assert_eq!(
        refusal.to_string(),
        "the guarantee of function `f` cannot be given: it requires level hard, and this node can give soft, because it runs \
         without real-time scheduling; no rate changes that"
    );
}

#[test]
fn a_burst_that_would_have_the_kernel_stop_what_is_real_time_is_refused() {
    let capacity = NodeCapacity {
        cores: 1,
        real_time_per_second: Duration::from_millis(950),
        starts_per_second: Duration::from_millis(50),
        ..ideal()
    };
    let terms = |burst| [("rate", "10/s"), ("burst", burst), ("max_run_time", "50ms"), ("start_within", "10s")];
    let book = filled(capacity.clone(), &[demand("f", &terms("4"))]);
    // Thirteen in a second and the worst response of 300 ms before it, and three more at once.
    assert_eq!(book.busiest_seconds(), [Duration::from_millis(800)]);
    let refusal = Book::new(capacity).unwrap().admit(&demand("f", &terms("9"))).unwrap_err();
    assert!(matches!(refusal.binding, Binding::Second { core: 0, available: 900_000_000, .. }), "{refusal}");
}

#[test]
fn more_functions_than_priorities_share_the_lowest() {
    let demands: Vec<Demand> = (0..70)
        .map(|index| demand(&format!("f{index}"), &[("rate", "1/s"), ("max_run_time", "1ms"), ("start_within", "200ms")]))
        .collect();
    let book = filled(NodeCapacity { cores: 1, memory: 16 << 30, ..ideal() }, &demands);
    let priorities: Vec<u8> = book.grants().iter().map(|grant| grant.shards[0].priority).collect();
    assert_eq!((priorities[0], priorities[56], priorities[57], priorities[69]), (60, 4, 3, 3));
    let starts: Vec<u128> = book.grants().iter().map(|grant| grant.start_bound.as_millis()).collect();
    assert_eq!((starts[0], starts[56], starts[57], starts[69]), (0, 56, 69, 69));
    let less = book.remove(&fn_name("f0"));
    assert!(less.grants().iter().all(|grant| grant.start_bound <= book.grant(&grant.demand.function).unwrap().start_bound));
}

#[test]
fn a_change_counts_the_old_reservation_out_and_keeps_the_place() {
    let demands = prototype();
    let book = filled(ideal(), &demands);
    let faster = demand("g1", &[("rate", "200/s"), ("max_run_time", "2ms"), ("deadline", "10ms")]);
    let changed = book.admit(&faster).unwrap().0;
    assert_eq!(changed.grants()[0].demand, faster);
    assert_eq!(changed.grants().len(), 4);
    assert_eq!(changed.remove(&fn_name("g1")), book.remove(&fn_name("g1")));
    let cores = |book: &Book| -> Vec<(FunctionName, u16)> {
        book.grants().iter().map(|grant| (grant.demand.function.clone(), grant.shards[0].core)).collect()
    };
    assert_eq!(cores(&changed), cores(&book));
}

#[test]
fn a_smaller_node_suspends_what_no_longer_fits() {
    let book = filled(ideal(), &prototype());
    let kept = book.readmit(NodeCapacity { cores: 1, ..ideal() }).unwrap();
    let names = |demands: Vec<&Demand>| demands.iter().map(|demand| demand.function.to_string()).collect::<Vec<_>>();
    assert_eq!(names(kept.book.grants().iter().map(|grant| &grant.demand).collect()), ["g1", "g4", "g3"]);
    assert_eq!(names(kept.suspended.iter().map(|it| &it.demand).collect()), ["g2"]);
    let same = book.readmit(ideal()).unwrap();
    assert_eq!((same.book, same.suspended), (book, Vec::new()));
}

#[test]
fn new_code_needs_memory_for_its_warm_instances_beside_the_old() {
    let asked = demand("f", &[("rate", "10/s"), ("burst", "2"), ("max_run_time", "10ms"), ("deadline", "100ms")]);
    let with = |instances: u64| filled(NodeCapacity { memory: instances * (64 << 20), ..ideal() }, std::slice::from_ref(&asked));
    assert_eq!((with(2).grants()[0].instances(), with(2).grants()[0].warm()), (2, 2));
    with(4).check_redeploy(&asked.function).unwrap();
    let refusal = with(3).check_redeploy(&asked.function).unwrap_err();
    assert_eq!(refusal.binding, Binding::Handover { needed: 4 * (64 << 20), available: 3 * (64 << 20) });
    assert_eq!(with(3).check_redeploy(&fn_name("g")).unwrap_err().binding, Binding::Unknown);
}

fn shared(name: &str, class: &RateClass, run_ms: u64) -> Demand {
    let mut demand = demand(name, &[("rate_class", class.name.as_str()), ("start_within", "100ms")]);
    demand.terms.max_run_time = Duration::from_millis(run_ms);
    demand.rate_class = Some(class.clone());
    demand
}

#[test]
fn members_of_a_rate_class_share_cores_and_cpu_and_each_can_take_every_slot() {
    let class = RateClass { name: "vr".parse().unwrap(), rate: Rate::per_second(20).unwrap(), burst: Burst::ONE };
    let book = filled(ideal(), &[shared("a", &class, 30), shared("b", &class, 20)]);
    let [a, b] = [&book.grants()[0], &book.grants()[1]];
    assert_eq!((a.shards[0].core, a.shards[0].priority), (b.shards[0].core, b.shards[0].priority));
    assert_eq!((a.response_bound, b.response_bound), (Duration::from_millis(30), Duration::from_millis(30)));
    assert_eq!((a.instances(), b.instances()), (1, 1));
    assert_eq!(book.remaining().cores[usize::from(a.shards[0].core)].used_nanocores, 600_000_000);
    let faster = RateClass { rate: Rate::per_second(30).unwrap(), ..class };
    let refusal = book.admit(&shared("c", &faster, 1)).unwrap_err();
    assert!(matches!(refusal.binding, Binding::RateClass { .. }), "{refusal}");
}

/// Terms of a function: rate in tenths per second, burst, C in tenths of a millisecond, slack in milliseconds, cpu in tenths.
fn any_demand() -> impl Strategy<Value = (u64, u32, u64, u64, u16)> {
    (5_u64..1500, 1_u32..4, 3_u64..400, 1_u64..150, 1_u16..=10)
}

fn stated(index: usize, (rate, burst, run, slack, cpu): (u64, u32, u64, u64, u16)) -> Demand {
    let mut demand = demand(&format!("f{index}"), &[("rate", "1/s")]);
    let max_run_time = Duration::from_nanos(run * MS / 10);
    let slack = Duration::from_millis(slack);
    demand.terms = Guarantee {
        pacing: Pacing::Own { rate: Rate::new(rate, Duration::from_secs(10)).unwrap(), burst: Burst::new(burst).unwrap() },
        max_run_time,
        cpu: model::CpuShare::from_thousandths(cpu * 100).unwrap(),
        start_within: slack,
        deadline: (!rate.is_multiple_of(3)).then_some(DurationText(max_run_time + slack)),
        ..demand.terms
    };
    demand.instance_cost = INSTANCE_COST;
    demand
}

fn at(demand: &Demand, rate: Rate) -> Demand {
    let mut changed = demand.clone();
    let Pacing::Own { rate: own, .. } = &mut changed.terms.pacing else { panic!("own rates only") };
    *own = rate;
    changed
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap()
}

/// What is simulated: 400 ms from an instant at which all bursts come at once.
const HORIZON: u64 = 400 * MS;

/// Slots of a flow, greedily. Rounded up: a slot never comes before its conforming instant.
fn slots(flow: Flow) -> impl Iterator<Item = u64> {
    (1..).map(move |nth| u64::try_from(flow.earliest_ns(nth)).unwrap() + 1).take_while(|at| *at < HORIZON)
}

fn alone(core: u16, level: u32, cost: Duration) -> Stage {
    Stage { core, level, pieces: vec![(ns(cost), 0)] }
}

/// The work of the platform: the probe on every core, and what the front does beside invocations.
fn platform_chains(capacity: &NodeCapacity, task: usize) -> Vec<Chain> {
    let mut chains = Vec::new();
    let mut add = |core: u16, flow: Flow, cost: Duration| {
        if !cost.is_zero() {
            let chain = |arrival| {
                let stages = vec![alone(core, 0, cost)];
                Chain { task, arrival, release: arrival, stages, starts_in: 0 }
            };
            chains.extend(slots(flow).map(chain));
        }
    };
    for core in 0..capacity.cores {
        add(core, Flow::periodic(capacity.tick.period).unwrap(), capacity.tick.cost);
    }
    capacity.front_budgets.iter().for_each(|it| add(capacity.front_core, Flow::new(it.rate, it.burst), it.cost));
    chains
}

/// What a slot goes through: the front when it comes, its core, the front when it ends.
fn stages(capacity: &NodeCapacity, grant: &Grant, shard: Shard) -> (Vec<Stage>, usize) {
    let terms = &grant.demand.terms;
    let overhead = ns(capacity.overshoot + grant.demand.instance_cost + capacity.context_switch * 2);
    let cost = ns(terms.cpu_budget());
    let pieces = vec![(1, ns(terms.max_run_time) - cost), (cost - 1 + overhead, 0)];
    let here = Stage { core: shard.core, level: 61 - u32::from(shard.priority), pieces };
    let front_cost =
        capacity.front_cost + capacity.connection_cost * grant.demand.connections + capacity.thread_cost * grant.demand.threads;
    if front_cost.is_zero() {
        return (vec![here], 0);
    }
    let front = alone(capacity.front_core, 0, front_cost / 2);
    (vec![front.clone(), here, front], 1)
}

/// The whole node, with all bursts at once and every job taking all that it is charged, released as late as T allows where
/// that hurts: the `late` ones of every few.
fn assert_no_miss(book: &Book, late: u64) {
    let capacity = book.capacity();
    let grants = book.grants();
    let mut chains = platform_chains(capacity, grants.len());
    for (task, grant) in grants.iter().enumerate() {
        for (nth, arrival) in slots(grant.demand.flow()).enumerate() {
            let release = if nth as u64 % 3 < late { arrival + ns(capacity.tolerance) } else { arrival };
            let (stages, starts_in) = stages(capacity, grant, grant.shards[nth % grant.shards.len()]);
            chains.push(Chain { task, arrival, release, stages, starts_in });
        }
    }
    for (grant, worst) in grants.iter().zip(simulate_chains(grants.len() + 1, chains)) {
        let tolerance = capacity.tolerance;
        assert!(worst.start <= ns(grant.demand.terms.start_within), "{worst:?} {grant:?}");
        assert!(worst.start <= ns(grant.start_bound + tolerance), "{worst:?} {grant:?}");
        let deadline = grant.demand.terms.deadline.map_or(u64::MAX, |deadline| ns(deadline.0));
        assert!(worst.response <= deadline.min(ns(grant.response_bound + tolerance)), "{worst:?} {grant:?}");
    }
}

#[test]
fn invocations_of_other_functions_that_come_before_delay_the_front_of_every_core() {
    let front_cost = Duration::from_millis(1);
    let capacity = NodeCapacity { front_cost, front_limit_thousandths: 900, ..ideal() };
    let demands: Vec<Demand> = (0..10)
        .map(|nth| demand(&format!("f{nth}"), &[("rate", "2/s"), ("max_run_time", "1ms"), ("start_within", "100ms")]))
        .collect();
    let book = filled(capacity, &demands);
    for grant in book.grants() {
        assert!(front_cost * 10 <= grant.start_bound, "{grant:?}");
        assert!(front_cost * 10 + Duration::from_millis(1) <= grant.response_bound, "{grant:?}");
    }
    assert_no_miss(&book, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn what_is_admitted_never_misses_in_the_worst_phase(
        asked in prop::collection::vec(any_demand(), 1..8), late in 0_u64..4, costs: bool,
    ) {
        let mut book = Book::new(if costs { real() } else { ideal() }).unwrap();
        for (index, terms) in asked.into_iter().enumerate() {
            let connections = u32::try_from(index % 3).unwrap();
            if let Ok((next, _)) = book.admit(&Demand { connections, threads: connections * 4, ..stated(index, terms) }) {
                book = next;
            }
        }
        assert_no_miss(&book, late);
    }

    #[test]
    fn an_offer_is_admitted_and_a_fiftieth_more_is_not(asked in prop::collection::vec(any_demand(), 1..8)) {
        let mut book = Book::new(real()).unwrap();
        for (index, terms) in asked.into_iter().enumerate() {
            let demand = stated(index, terms);
            match book.admit(&demand) {
                Ok((next, _)) => book = next,
                Err(refusal) => {
                    let Some(offer) = refusal.offer else { continue };
                    book.admit(&at(&demand, offer)).unwrap();
                    let more = Rate::new(offer.invocations() * 102, Duration::from_nanos(offer.per_ns() * 100)).unwrap();
                    prop_assert!(book.admit(&at(&demand, more)).is_err(), "{} {:?}", refusal, demand);
                }
            }
        }
    }

    #[test]
    fn others_keep_their_cores_and_their_order(asked in prop::collection::vec(any_demand(), 2..8), leaves in 0_usize..8) {
        let mut book = Book::new(real()).unwrap();
        for (index, terms) in asked.into_iter().enumerate() {
            let Ok((next, _)) = book.admit(&stated(index, terms)) else { continue };
            for (before, after) in book.grants().iter().zip(next.grants()) {
                let cores = |grant: &Grant| grant.shards.iter().map(|shard| shard.core).collect::<Vec<_>>();
                prop_assert_eq!(cores(before), cores(after));
            }
            for (a, b) in book.grants().iter().zip(book.grants().iter().skip(1)) {
                let order = |book: &Book| {
                    let priority = |grant: &Grant| book.grant(&grant.demand.function).unwrap().shards[0].priority;
                    priority(a).cmp(&priority(b))
                };
                prop_assert!(a.shards[0].core != b.shards[0].core || order(&book) == order(&next));
            }
            book = next;
        }
        let less = book.remove(&fn_name(&format!("f{leaves}")));
        for grant in less.grants() {
            prop_assert!(grant.response_bound <= book.grant(&grant.demand.function).unwrap().response_bound);
        }
    }

    #[test]
    fn no_terms_however_large_break_the_arithmetic(
        numbers in prop::collection::vec(prop_oneof![0_u64..1000, 0_u64.., (u64::MAX - 9)..], 6),
        rate in prop::sample::select(vec!["0.01/s", "10000/s", "0.010000001/s", "9999.999999999/s"]),
        burst in prop_oneof![Just(1), 1_u32..=10_000, Just(10_000)], small: bool,
    ) {
        let mut asked = demand("f", &[("rate", rate)]);
        asked.terms.pacing = Pacing::Own { rate: rate.parse().unwrap(), burst: Burst::new(burst).unwrap() };
        let time = |index: usize| Duration::from_nanos(numbers[index].max(1));
        asked.terms.max_run_time = if small { Duration::from_micros(3) } else { time(0) };
        (asked.terms.start_within, asked.terms.lead) = (time(1), time(2));
        (asked.cold_start, asked.recycle) = (time(3), time(4));
        let capacity = NodeCapacity { tolerance: if small { time(5) } else { Duration::ZERO }, ..real() };
        if let Err(refusal) = Book::new(capacity).unwrap().admit(&asked) {
            prop_assert!(!refusal.to_string().is_empty());
        }
    }
}

/// Functions that are busy for a twentieth of the time in the worst case: a bound on the probability that more of them are busy
/// at once than there are cores (Chernoff's, at 0.001) lets one in on two cores; as many as have peaks of a core would be two.
#[test]
fn the_worst_case_on_two_cores_admits_more_than_a_probability_of_overload_would() {
    let mut book = Book::new(ideal()).unwrap();
    let mut admitted = 0;
    let asked = |number: u32| demand(&format!("f{number}"), &[("rate", "10/s"), ("max_run_time", "5ms"), ("deadline", "100ms")]);
    while let Ok((next, _)) = book.admit(&asked(admitted)) {
        book = next;
        admitted += 1;
    }
    assert_eq!(admitted, 34);
}
