use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::{Burst, Cause, DurationText, End, FunctionKey, Level, OnOverrun, Overflow, Rate, RateClass, Time, Version};

use super::{Engine, Options};
use crate::port::{Action, Event, Refusal, Remark, Shard};
use crate::tests::for_each_seed;
use crate::world::{COLD, Faults, MS, Subject, World, story, subject};

fn per_second(rate: u64) -> Rate {
    Rate::per_second(rate).unwrap()
}

/// A world in which these functions serve.
fn serving(subjects: &[&Subject]) -> World {
    let mut world = World::new(1);
    for subject in subjects {
        world.install(subject);
    }
    world.run_for(COLD);
    assert_eq!(world.served.len(), subjects.len());
    world
}

/// Starts that did not happen at their conforming instant.
fn waits(world: &World) -> usize {
    world.starts.iter().filter(|start| start.conforming < start.delivered).count()
}

fn causes(world: &World) -> Vec<Cause> {
    world.records().filter_map(|record| record.violation).collect()
}

/// Arrivals exactly along the envelope: the burst at once, then one per interval.
fn saturate(world: &mut World, key: u64, rate: Rate, burst: u64) {
    for slot in 0..burst + 60 {
        let ns = slot.saturating_sub(burst - 1) * rate.per_ns().div_ceil(rate.invocations());
        world.arrive_in(Duration::from_nanos(ns), key, None);
    }
}

/// Lets everything that was planned happen, and stops.
fn finish(world: &mut World) {
    world.run_for(Duration::from_secs(30));
    world.drain();
    assert!(60 < world.starts.len());
}

#[test]
fn w_warm_instances_are_enough_at_the_guaranteed_rate_and_one_less_is_not() {
    for (rate, burst) in [(100, 1), (60, 3), (35, 2)] {
        let mut enough = subject(1, per_second(rate), burst, 25 * MS);
        let warm = enough.reservation().shards[0].warm;
        let mut world = serving(&[&enough]);
        saturate(&mut world, 1, per_second(rate), u64::from(burst));
        finish(&mut world);
        assert_eq!((waits(&world), world.refused.len()), (0, 0), "W = {warm} at {rate}/s, burst {burst}");
        assert_eq!(causes(&world), []);

        enough.reservation().shards[0].warm = warm - 1;
        let mut world = serving(&[&enough]);
        saturate(&mut world, 1, per_second(rate), u64::from(burst));
        finish(&mut world);
        assert!(0 < waits(&world), "W - 1 = {} at {rate}/s, burst {burst}", warm - 1);
    }
}

#[test]
fn k_instances_make_every_conforming_start_immediate() {
    for (rate, burst, run) in [(100, 1, 25), (30, 5, 90), (7, 2, 300)] {
        let subject = subject(1, per_second(rate), burst, run * MS);
        let mut world = serving(&[&subject]);
        saturate(&mut world, 1, per_second(rate), u64::from(burst));
        finish(&mut world);
        assert_eq!(waits(&world), 0, "{rate}/s, burst {burst}, {run} ms");
    }
}

#[test]
fn excess_is_demoted_refused_or_queued_as_the_terms_say() {
    let check = |overflow: Overflow, starts: usize, refusals: usize| {
        let mut subject = subject(1, per_second(10), 1, 5 * MS);
        subject.terms().overflow = overflow;
        let mut world = serving(&[&subject]);
        for _ in 0..4 {
            world.arrive_in(Duration::ZERO, 1, None);
        }
        world.run_for(Duration::from_secs(1));
        assert_eq!((world.starts.len(), world.refused.len()), (starts, refusals), "{overflow:?}");
        world
    };
    check(Overflow::BestEffort, 1, 0);
    let refused = check(Overflow::Reject, 1, 3).refused;
    assert_eq!(refused[0], Refusal::OverRate { next: Time::from_millis(140) });
    let queued = check(Overflow::Queue { limit: 2 }, 3, 1);
    assert_eq!(queued.refused, [Refusal::QueueFull { limit: 2, next: Time::from_millis(140) }]);
    let at: Vec<Time> = queued.starts.iter().map(|start| start.delivered).collect();
    assert_eq!(at, [40, 140, 240].map(Time::from_millis));
}

#[test]
fn a_queued_slot_goes_to_the_earliest_deadline_and_expired_work_takes_none() {
    let mut subject = subject(1, per_second(10), 1, 5 * MS);
    subject.terms().overflow = Overflow::Queue { limit: 9 };
    let mut world = serving(&[&subject]);
    for deadline in [1000, 900, 110, 108, 250] {
        world.arrive_in(Duration::ZERO, 1, Some(deadline * MS));
    }
    world.run_for(Duration::from_secs(1));
    let order: Vec<_> = world.records().filter_map(|record| Some((record.slot?, record.deadline?))).collect();
    let expected = [(0, 1040), (1, 148), (2, 290), (3, 940)];
    assert_eq!(order, expected.map(|(slot, deadline)| (slot, Time::from_millis(deadline))));
    assert_eq!(world.refused, [Refusal::Expired { deadline: Time::from_millis(150) }]);
}

#[test]
fn an_overrun_is_stopped_or_demoted_and_ends_by_its_bound() {
    for (on_overrun, fails) in [(OnOverrun::Kill, 5), (OnOverrun::Demote, 21)] {
        let mut subject = subject(1, per_second(10), 1, 5 * MS);
        subject.terms().on_overrun = on_overrun;
        subject.reservation().response_bound = 20 * MS;
        let mut world = serving(&[&subject]);
        world.faults = Faults { overrun: 1000, ..Faults::default() };
        world.arrive_in(Duration::ZERO, 1, None);
        world.run_for(Duration::from_millis(90));
        let record = world.records().next().unwrap();
        assert_eq!((record.end, record.ended), (End::Overran, record.arrived + fails * MS));
    }
}

#[test]
fn at_level_soft_what_other_programs_take_of_its_core_ends_no_invocation() {
    for (level, ends) in [(Level::Hard, 6), (Level::Soft, 3_000)] {
        let mut subject = subject(1, per_second(10), 1, 5 * MS);
        subject.reservation().level = level;
        // It runs for its 5 ms, and lasts as long as its core lets it.
        subject.run = Duration::from_secs(3);
        let mut world = serving(&[&subject]);
        world.arrive_in(Duration::ZERO, 1, None);
        world.run_for(Duration::from_secs(4));
        let record = world.records().next().unwrap();
        assert_eq!((record.end == End::Overran, record.ended), (level == Level::Hard, record.arrived + ends * MS));
    }
}

#[test]
fn what_lasts_beyond_all_patience_at_level_soft_is_ended_and_nobody_is_blamed() {
    let mut subject = subject(1, per_second(10), 1, 5 * MS);
    subject.reservation().level = Level::Soft;
    subject.terms().deadline = Some(DurationText(100 * MS));
    subject.run = Duration::from_secs(30);
    let mut world = serving(&[&subject]);
    world.arrive_in(Duration::ZERO, 1, None);
    world.run_for(Duration::from_secs(20));
    let record = world.records().next().unwrap();
    assert_eq!((record.end, record.ended), (End::Overran, record.arrived + 10_006 * MS));
    assert_eq!(causes(&world), [Cause::Unknown]);
}

#[test]
fn what_was_taken_from_a_core_or_the_fronts_is_not_taken_from_an_invocations_bound() {
    // Gaps as (core, length), each ending 13 ms after the arrival, and what the invocation on core 1 is stopped after.
    let cases: [(&[(u16, u64)], u32); 5] =
        [(&[(2, 10)], 21), (&[(1, 10)], 31), (&[(0, 10)], 31), (&[(0, 10), (1, 6)], 31), (&[(1, 4), (0, 10)], 31)];
    for (gaps, ends) in cases {
        let mut subject = subject(1, per_second(10), 1, 5 * MS);
        subject.terms().on_overrun = OnOverrun::Demote;
        subject.reservation().response_bound = 20 * MS;
        subject.reservation().shards = vec![Shard { core: 1, priority: 9, instances: 1, warm: 1 }];
        let mut world = serving(&[&subject]);
        world.faults = Faults { overrun: 1000, ..Faults::default() };
        world.arrive_in(Duration::ZERO, 1, None);
        for (core, length) in gaps {
            world.gap_in(13 * MS, *core, Duration::from_millis(*length));
        }
        world.run_for(Duration::from_millis(90));
        let record = world.records().next().unwrap();
        assert_eq!((record.core, record.end, record.ended), (1, End::Overran, record.arrived + ends * MS), "{gaps:?}");
    }
}

#[test]
fn the_ways_of_long_inputs_and_results_come_on_top_of_what_is_promised() {
    let mut subject = subject(1, per_second(10), 2, 5 * MS);
    subject.terms().deadline = Some(DurationText(90 * MS));
    let mut world = serving(&[&subject]);
    world.ways = Some(700 * MS);
    world.arrive_in(Duration::ZERO, 1, None);
    world.run_for(Duration::from_secs(9));
    world.drain();
    let record = world.records().next().unwrap();
    let ways = journal::record::Transfer { input: 700 * MS, result: 700 * MS };
    assert_eq!((record.transfer.as_deref(), record.violation), (Some(&ways), None));
    assert!(1400 * MS < record.ended.since(record.arrived) && matches!(record.end, End::Succeeded | End::Failed));
    assert_eq!(crate::audit::audit(&world.journal).verdict(), crate::audit::Verdict::Kept);
    for record in &mut world.journal {
        if let journal::record::Record::Invocation(record) = record {
            record.transfer = None;
        }
    }
    assert_eq!(crate::audit::audit(&world.journal).verdict(), crate::audit::Verdict::Contradicted);
}

#[test]
fn whoever_waits_for_an_instance_with_a_long_result_is_late_by_its_functions_doing() {
    let mut subject = subject(1, per_second(10), 1, 5 * MS);
    subject.reservation().shards[0].instances = 1;
    let mut world = serving(&[&subject]);
    world.ways = Some(700 * MS);
    for after in [0, 100] {
        world.arrive_in(after * MS, 1, None);
    }
    world.run_for(Duration::from_secs(9));
    assert_eq!(causes(&world), [Cause::Function]);
}

#[test]
fn a_long_result_within_the_bound_that_instances_are_reserved_for_excuses_no_shortage() {
    let mut subject = subject(1, per_second(10), 1, 200 * MS);
    subject.reservation().shards[0].instances = 1;
    let mut world = serving(&[&subject]);
    world.ways = Some(10 * MS);
    for after in [0, 100] {
        world.arrive_in(after * MS, 1, None);
    }
    world.run_for(Duration::from_secs(9));
    assert_eq!(causes(&world), [Cause::Bug]);
}

#[test]
fn a_lease_holds_an_instance_and_its_input_starts_at_once() {
    let mut subject = subject(1, per_second(10), 1, 5 * MS);
    subject.terms().lead = 50 * MS;
    subject.size(&[0]);
    let mut world = serving(&[&subject]);
    world.pre_invoke(1, 50 * MS, Some(30 * MS));
    world.run_for(Duration::from_millis(200));
    world.pre_invoke(1, 50 * MS, None);
    world.run_for(Duration::from_millis(200));
    let records: Vec<_> = world.records().collect();
    assert_eq!(records[0].held, Some(30 * MS));
    assert_eq!((records[0].delivered, records[0].slot), (Some(records[0].arrived), Some(0)));
    assert_eq!((records[1].held, records[1].slot, records[1].delivered), (Some(50 * MS), Some(1), None));
    assert_eq!(world.engine.counters()[0].held, 80 * MS);
    assert_eq!(world.engine.counters()[0].expired, 1, "no input came for one of them");
}

#[test]
fn an_instance_that_answered_and_never_asks_for_more_is_killed_its_log_says_so_and_another_takes_its_place() {
    let mut subject = subject(1, per_second(10), 1, 5 * MS);
    subject.size(&[0]);
    let mut world = serving(&[&subject]);
    world.silent = true;
    world.arrive_in(Duration::ZERO, 1, None);
    world.run_for(Duration::from_secs(29));
    assert_eq!(world.told, []);
    world.silent = false;
    world.run_for(Duration::from_secs(3));
    let told: Vec<Remark> = world.told.iter().map(|(_, what)| *what).collect();
    assert_eq!(told, [Remark::NeverAsked { within: Duration::from_secs(30) }]);
    // Who asks in time is told nothing.
    world.arrive_in(Duration::ZERO, 1, None);
    world.run_for(Duration::from_secs(60));
    assert_eq!((world.told.len(), world.starts.len(), causes(&world)), (1, 2, Vec::new()));
}

#[test]
fn a_start_may_take_its_time_from_its_turn_on_not_from_its_order() {
    let subject = subject(1, per_second(10), 1, 5 * MS);
    let (mut engine, mut actions) = (Engine::new(Options::default()), Vec::new());
    engine.handle(Time::ZERO, Event::Install(Box::new(subject.deployment)), &mut actions);
    let Some(Action::Start { instance, .. }) = actions.first() else { panic!("{actions:?}") };
    let instance = *instance;
    let killed = |engine: &mut Engine, at: u64| {
        let mut actions = Vec::new();
        engine.wake(Time::from_secs(at), &mut actions);
        actions.contains(&Action::Kill { instance })
    };
    assert!(!killed(&mut engine, 100), "its turn has not come");
    engine.handle(Time::from_secs(100), Event::Begun { instance }, &mut actions);
    assert!(!killed(&mut engine, 129));
    assert!(killed(&mut engine, 131));
}

#[test]
fn a_version_that_does_not_start_leaves_the_old_one_serving() {
    let mut subject = subject(1, per_second(10), 1, 5 * MS);
    let mut world = serving(&[&subject]);
    world.faults = Faults { failed_start: 1000, ..Faults::default() };
    subject.deployment.version = Version(2);
    world.install(&subject);
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.unserved, [(FunctionKey(1), Version(2))]);
    world.faults = Faults::default();
    world.arrive_in(Duration::ZERO, 1, None);
    world.run_for(Duration::from_millis(50));
    assert_eq!((world.starts.len(), waits(&world)), (1, 0));
}

#[test]
fn a_redeploy_under_full_load_delays_nothing() {
    let mut subject = subject(1, per_second(100), 3, 20 * MS);
    let mut world = serving(&[&subject]);
    saturate(&mut world, 1, per_second(100), 3);
    for version in 2..5 {
        world.run_for(Duration::from_millis(130));
        subject.deployment.version = Version(version);
        world.install(&subject);
    }
    finish(&mut world);
    assert_eq!((waits(&world), world.served.len(), world.refused.len()), (0, 4, 0));
}

#[test]
fn a_late_start_is_steal_only_with_a_gap_on_its_core_or_the_fronts() {
    let (hard, soft) = (Level::Hard, Level::Soft);
    for (level, core, cause) in
        [(hard, 0, Cause::Steal), (hard, 1, Cause::Steal), (hard, 2, Cause::Bug), (soft, 2, Cause::Unknown)]
    {
        let mut subject = subject(1, per_second(10), 1, 5 * MS);
        subject.reservation().level = level;
        subject.reservation().shards = vec![Shard { core: 1, priority: 9, instances: 1, warm: 0 }];
        let mut world = serving(&[&subject]);
        world.arrive_in(Duration::ZERO, 1, None); // no warm instance: starts COLD late
        world.gap_in(COLD + 10 * MS, core, 20 * MS);
        world.run_for(Duration::from_millis(200));
        assert_eq!(causes(&world), [cause]);
    }
}

#[test]
fn what_a_gap_pushed_back_is_steal_as_long_as_the_core_has_not_caught_up() {
    // The gap ends at 40 ms, and the second one is due at 70: late, as no instance is warm, and itself untouched by the gap.
    for (first_runs, cause) in [(100, Cause::Steal), (60, Cause::Bug)] {
        let (mut first, mut second) = (subject(1, per_second(5), 1, first_runs * MS), subject(2, per_second(5), 1, 110 * MS));
        first.reservation().shards = vec![Shard { core: 1, priority: 9, instances: 1, warm: 1 }];
        second.reservation().shards = vec![Shard { core: 1, priority: 8, instances: 1, warm: 0 }];
        let mut world = serving(&[&first, &second]);
        world.arrive_in(Duration::ZERO, 1, None);
        world.gap_in(40 * MS, 1, 20 * MS);
        world.arrive_in(70 * MS, 2, None);
        world.run_for(Duration::from_secs(1));
        assert_eq!(causes(&world), [cause], "{first_runs}");
        world.drain();
        let report = crate::audit::audit(&world.journal);
        assert_eq!(report.contradictions_total, 0, "{report:?}");
        world.journal.retain(|record| !matches!(record, journal::record::Record::ProbeGap { .. }));
        let unproven = u64::from(cause == Cause::Steal);
        assert_eq!(crate::audit::audit(&world.journal).contradictions_total, unproven);
    }
}

#[test]
fn a_class_changes_its_rate_under_load_without_a_miss_and_the_audit_sees_no_slot_too_early() {
    let class = |rate: u64| RateClass { name: "c".parse().unwrap(), rate: per_second(rate), burst: Burst::new(2).unwrap() };
    for overflow in [Overflow::Reject, Overflow::Queue { limit: 1000 }] {
        let mut members = [1, 2].map(|key| subject(key, per_second(100), 2, 10 * MS));
        for member in &mut members {
            member.terms().overflow = overflow;
            member.size(&[0]); // for the fastest of its rates
            member.in_class(class(20));
        }
        let mut world = serving(&[&members[0], &members[1]]);
        for (generation, rate) in (2..).zip([100, 20, 50]) {
            for ms in 0..600 {
                world.arrive_in(ms * MS, 1 + u64::from(ms % 7 == 0), None);
            }
            world.run_for(293 * MS);
            for member in &mut members {
                member.in_class(class(rate));
                member.reservation().generation = generation;
            }
            world.revise_all(&[&members[0], &members[1]]);
            world.run_for(307 * MS);
        }
        finish(&mut world);
        world.drain();
        let report = crate::audit::audit(&world.journal);
        assert_eq!((report.contradictions_total, causes(&world)), (0, vec![]), "{report:?}");
        assert!(report.guarantees.iter().all(|it| it.counters.conforming != 0), "{report:?}");
    }
}

#[test]
fn a_wait_for_the_successor_of_an_instance_lost_beside_a_gap_is_not_laid_to_the_function() {
    for (core, cause) in [(0, Cause::Unknown), (1, Cause::Function)] {
        let mut subject = subject(1, per_second(20), 1, 40 * MS);
        subject.reservation().shards = vec![Shard { core: 0, priority: 9, instances: 1, warm: 1 }];
        let mut world = serving(&[&subject]);
        world.arrive_in(Duration::ZERO, 1, None);
        world.arrive_in(51 * MS, 1, None);
        world.gap_in(20 * MS, core, 3 * MS);
        world.run_for(30 * MS);
        world.crash_any();
        world.run_for(Duration::from_secs(1));
        assert_eq!(causes(&world), [cause], "a gap of core {core}; the successor is there after {COLD:?}");
    }
}

#[test]
fn idle_instances_beyond_the_reserve_go_after_a_while() {
    let subject = subject(1, per_second(10), 8, 30 * MS);
    let mut world = serving(&[&subject]);
    saturate(&mut world, 1, per_second(10), 8);
    world.run_for(Duration::from_secs(10));
    let warm = usize::try_from(subject.deployment.reservation.as_ref().unwrap().shards[0].warm).unwrap();
    world.run_for(Duration::from_secs(120));
    assert!((warm..=warm + 1).contains(&world.instances_of(1)), "{} for W = {warm}", world.instances_of(1));
}

/// Theorem 2 of the rate theory: three periodic tasks over one rate, earliest latest start first, released together just
/// after another invocation took a slot. lambda* is the least rate with `N(t) <= lambda t` at every latest start.
fn misses(thousandths: u64) -> usize {
    let tasks = [(100_u64, 40_u64, 2_u64), (250, 100, 4), (1000, 300, 8)]; // period, run time, parallel; ms
    let demand = |t: u64| -> u64 {
        let of = |(period, run, k): &(u64, u64, u64)| t.checked_sub(period - run).map_or(0, |rest| k * (rest / period + 1));
        tasks.iter().map(of).sum()
    };
    let deadlines = (1..1000_u64).filter(|t| tasks.iter().any(|(period, run, _)| t % period == (period - run) % period));
    // The largest N(t)/t as an exact ratio, in invocations per t milliseconds.
    let (n, t) = deadlines.map(|t| (demand(t), t)).max_by(|a, b| (a.0 * b.1).cmp(&(b.0 * a.1))).unwrap();
    let rate = Rate::new(n * thousandths, Duration::from_millis(t * 1000)).unwrap();
    let class = RateClass { name: "vr".parse().unwrap(), rate, burst: Burst::ONE };
    let mut subjects = Vec::new();
    for (key, (period, run, _)) in (1..).zip(tasks) {
        let mut task = subject(key, rate, 1, Duration::from_millis(run));
        task.terms().overflow = Overflow::Queue { limit: 1000 };
        task.terms().deadline = Some(DurationText(Duration::from_millis(period)));
        task.in_class(class.clone());
        task.size(&[0]);
        subjects.push(task);
    }
    let mut world = serving(&subjects.iter().collect::<Vec<_>>());
    world.arrive_in(Duration::ZERO, 3, Some(Duration::from_secs(5))); // takes the slot just before
    for (key, (period, _, parallel)) in (1..).zip(tasks) {
        for release in (0..2000).step_by(usize::try_from(period).unwrap()) {
            for _ in 0..parallel {
                world.arrive_in(Duration::from_millis(release), key, None);
            }
        }
    }
    world.run_for(Duration::from_secs(8));
    world
        .records()
        .filter(|record| record.end == End::Expired || record.deadline.is_some_and(|deadline| deadline < record.ended))
        .count()
}

#[test]
fn a_rate_class_meets_every_deadline_at_the_required_rate_and_misses_below() {
    assert_eq!(misses(1000), 0);
    assert!(0 < misses(995));
}

#[test]
fn an_engine_rebuilt_from_its_deployments_serves_again() {
    let subject = subject(1, per_second(50), 2, 10 * MS);
    let mut world = serving(&[&subject]);
    saturate(&mut world, 1, per_second(50), 2);
    world.run_for(Duration::from_millis(500));
    world.die_and_start();
    world.run_for(COLD);
    saturate(&mut world, 1, per_second(50), 2);
    finish(&mut world);
    assert_eq!((waits(&world), world.starts.len(), world.served.len()), (0, 62, 1), "since it started again");
}

/// What must hold after any story, whatever went wrong in it.
fn check_records(world: &World, seed: u64) {
    let mut sequences: BTreeMap<(String, u64), BTreeSet<u64>> = BTreeMap::new();
    let mut slots: BTreeMap<(String, u64), BTreeSet<u64>> = BTreeMap::new();
    for record in world.records() {
        let key = (record.function.to_string(), record.generation);
        assert!(sequences.entry(key.clone()).or_default().insert(record.sequence), "seed {seed}: a sequence number twice");
        if let Some(slot) = record.slot {
            let class = world.classed.contains(&key.0);
            let pacer = if class { ("shared".to_owned(), 0) } else { key };
            assert!(slots.entry(pacer).or_default().insert(slot), "seed {seed}: slot {slot} twice");
        }
        match record.violation {
            None | Some(Cause::Steal | Cause::Function | Cause::Overrun) => {}
            // A start that failed is nobody's proven fault.
            Some(Cause::Unknown) if world.faults.failed_start != 0 => {}
            Some(Cause::Bug | Cause::Unknown | Cause::HostCall) => panic!("seed {seed}: {record:?}"),
        }
    }
    for numbers in sequences.values().chain(slots.values()) {
        let count = u64::try_from(numbers.len()).unwrap();
        assert_eq!(numbers.last().map(|last| last + 1), Some(count), "seed {seed}: numbers are missing");
    }
}

#[test]
fn seeded_stories_keep_every_invariant() {
    for_each_seed(|seed| check_records(&story(seed), seed));
}

/// Starts within ten seconds of a function at 40/s whose instances are ready at once, and end each invocation so.
fn starts_of(end: impl Fn(model::InvocationId, model::InstanceId) -> Event) -> usize {
    let mut engine = Engine::new(Options::default());
    let deployment = subject(1, per_second(40), 1, 10 * MS).deployment;
    let mut events = vec![Event::Install(Box::new(deployment))];
    let mut starts = 0;
    for ms in 0..10_000 {
        let now = Time::from_millis(1_000 + ms);
        if ms % 25 == 0 {
            let id = model::InvocationId::from_u128(u128::from(ms));
            events.push(Event::Arrived { id, function: FunctionKey(1), deadline: None });
        }
        let mut actions = Vec::new();
        engine.wake(now, &mut actions);
        for event in std::mem::take(&mut events) {
            engine.handle(now, event, &mut actions);
        }
        for action in actions {
            if let Action::Start { instance, .. } = action {
                starts += 1;
                events.push(Event::Ready { instance });
            } else if let Action::Deliver { id, instance, .. } = action {
                events.push(end(id, instance));
            } else if let Action::Kill { instance } = action {
                events.push(Event::Gone { instance });
            }
        }
    }
    starts
}

#[test]
fn instances_that_die_at_work_again_and_again_are_replaced_ever_later() {
    let crashed = starts_of(|_, instance| Event::Gone { instance });
    let abandoned = starts_of(|id, _| Event::Abandoned { id });
    // 400 invocations came; the pauses double from 10 ms up to 5 s.
    assert!(crashed < 40 && abandoned < 40, "{crashed} starts after crashes, {abandoned} after clients left");
}

#[test]
fn an_idle_instance_that_ends_is_replaced_and_keeps_its_place_until_it_is_gone() {
    for instances in [1, 2] {
        let mut subject = subject(1, per_second(20), 1, 5 * MS);
        subject.reservation().shards = vec![Shard { core: 0, priority: 9, instances, warm: 1 }];
        let mut world = serving(&[&subject]);
        world.end_idle();
        assert_eq!(world.instances_of(1), instances as usize - 1, "a successor starts where K = {instances} has room");
        world.run_for(Duration::from_secs(1));
        assert_eq!(world.instances_of(1), 1);
        world.arrive_in(Duration::ZERO, 1, None);
        world.run_for(Duration::from_secs(1));
        assert_eq!((world.starts.len(), waits(&world), causes(&world)), (1, 0, vec![]));
    }
}

/// An engine of a function with two instances at most and one warm, which starts, and that instance.
fn starting() -> (Engine, model::InstanceId) {
    let mut subject = subject(1, per_second(20), 1, 5 * MS);
    subject.terms().lead = 50 * MS;
    subject.reservation().shards = vec![Shard { core: 0, priority: 9, instances: 2, warm: 1 }];
    let mut engine = Engine::new(Options::default());
    let instance = started(&told(&mut engine, Event::Install(Box::new(subject.deployment))));
    (engine, instance)
}

fn told(engine: &mut Engine, event: Event) -> Vec<Action> {
    let mut actions = Vec::new();
    engine.handle(Time::from_millis(1_000), event, &mut actions);
    actions
}

fn started(actions: &[Action]) -> model::InstanceId {
    let start = |action: &Action| if let Action::Start { instance, .. } = action { Some(*instance) } else { None };
    actions.iter().find_map(start).expect("one is started")
}

#[test]
fn a_lease_whose_instance_ends_gets_another() {
    let (mut engine, instance) = starting();
    told(&mut engine, Event::Ready { instance });
    let lease = model::LeaseId(1);
    let held = told(&mut engine, Event::PreInvoke { lease, function: FunctionKey(1), lead: 50 * MS });
    let dying = told(&mut engine, Event::Dying { instance });
    assert_eq!(dying, [Action::Kill { instance }]);
    let ready = told(&mut engine, Event::Ready { instance: started(&held) });
    assert!(matches!(ready[..], [Action::LeaseReady { .. }]), "{ready:?}");
}

#[test]
fn who_starts_or_works_is_not_taken_for_one_that_ends() {
    let (mut engine, instance) = starting();
    assert_eq!(told(&mut engine, Event::Dying { instance }), []);
    told(&mut engine, Event::Ready { instance });
    let id = model::InvocationId::from_u128(1);
    told(&mut engine, Event::Arrived { id, function: FunctionKey(1), deadline: None });
    assert_eq!(told(&mut engine, Event::Dying { instance }), []);
    told(&mut engine, Event::Ended { id, end: End::Succeeded, cpu: MS });
    assert_eq!(told(&mut engine, Event::Dying { instance }), []);
}

#[test]
fn why_an_instance_of_a_version_ended_that_does_not_serve_yet_is_known_when_it_is_gone() {
    let mut subject = subject(1, per_second(20), 1, 5 * MS);
    subject.reservation().shards = vec![Shard { core: 0, priority: 9, instances: 2, warm: 2 }];
    let mut engine = Engine::new(Options::default());
    let instance = started(&told(&mut engine, Event::Install(Box::new(subject.deployment))));
    told(&mut engine, Event::Ready { instance });
    assert_eq!(told(&mut engine, Event::Dying { instance }), []);
    started(&told(&mut engine, Event::Gone { instance }));
}
