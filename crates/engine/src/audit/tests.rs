use std::time::Duration;

use journal::record::{Counters, Record};
use model::{Cause, Time};
use proptest::prelude::*;

use super::{Problem, Verdict, audit};
use crate::tests::for_each_seed;
use crate::world::{Faults, MS, World, interrupted, story, subject};

fn live(journal: &[Record]) -> Vec<Counters> {
    let counters = |record: &Record| if let Record::Counters { functions, .. } = record { Some(functions.clone()) } else { None };
    let last = journal.iter().rev().find_map(counters);
    last.unwrap()
}

#[test]
fn an_audit_of_every_story_agrees_with_the_live_counters() {
    let (mut violations, mut claims) = (0, 0);
    let stories = for_each_seed(|seed| {
        let world = story(seed);
        let report = audit(&world.journal);
        assert_eq!(report.contradictions, [], "seed {seed}");
        assert!(report.unwritten == 0 && report.guarantees.iter().all(|finding| finding.missing_records == 0), "seed {seed}");
        for counters in live(&world.journal) {
            let finding = report.by_function().get(&(counters.function.as_str(), counters.generation)).copied().cloned();
            assert_eq!(finding.map(|finding| finding.counters), Some(counters), "seed {seed}");
        }
        violations += report.violations();
        claims += report.guarantees.iter().map(|finding| finding.counters.excess).sum::<u64>();
    });
    assert!(stories / 20 < violations && 3 * stories < claims, "the stories show something: {violations} and {claims}");
}

#[test]
fn a_node_that_died_leaves_gaps_and_no_contradictions() {
    for_each_seed(|seed| {
        let report = audit(&interrupted(seed).journal);
        assert_eq!(report.contradictions, [], "seed {seed}");
        assert_eq!((report.boots, report.unclean_stops, report.verdict()), (2, 1, Verdict::Unproven), "seed {seed}");
    });
}

/// The journal of a quiet story: its records can all be checked.
fn quiet(overload: u64) -> World {
    let mut world = World::new(7);
    world.install(&subject(1, model::Rate::per_second(50).unwrap(), 2, 5 * MS));
    world.run_for(100 * MS);
    for arrival in 0..40 {
        world.arrive_in(Duration::from_millis(arrival * 20 / overload), 1, None);
    }
    world.run_for(Duration::from_secs(2));
    world.drain();
    world
}

fn verdict(journal: &[Record]) -> Verdict {
    audit(journal).verdict()
}

/// The places of the records of invocations.
fn places(journal: &[Record]) -> Vec<usize> {
    journal.iter().enumerate().filter(|(_, record)| matches!(record, Record::Invocation(_))).map(|(place, _)| place).collect()
}

fn altered(place: usize, change: impl FnOnce(&mut journal::record::Invocation)) -> Vec<Record> {
    let mut journal = quiet(3).journal;
    let places = places(&journal);
    let Record::Invocation(record) = &mut journal[places[place % places.len()]] else { unreachable!("a place of an invocation") };
    change(record);
    journal
}

#[test]
fn a_kept_promise_is_proven() {
    let journal = quiet(3).journal;
    let report = audit(&journal);
    assert_eq!((report.verdict(), report.unchecked_claims), (Verdict::Kept, 0));
    assert!(10 < report.guarantees[0].counters.excess);
}

#[test]
fn a_node_that_did_not_stop_in_order_leaves_an_unproven_gap() {
    let mut journal = quiet(1).journal;
    journal.pop();
    assert_eq!(verdict(&journal), Verdict::Kept); // it may still run
    journal.extend(quiet(1).journal);
    let report = audit(&journal);
    assert_eq!((report.verdict(), report.unclean_stops, report.boots), (Verdict::Unproven, 1, 2));
    assert_eq!(report.guarantees[0].counters.arrivals, 80);
}

#[test]
fn a_function_that_was_removed_and_deployed_again_counts_from_the_beginning() {
    let mut world = World::new(1);
    for _ in 0..2 {
        let again = subject(1, model::Rate::per_second(50).unwrap(), 2, 5 * MS);
        world.install(&again);
        world.run_for(100 * MS);
        for arrival in 0..9 {
            world.arrive_in(arrival * MS, 1, None);
        }
        world.run_for(100 * MS);
        world.remove(again.deployment.function);
        world.run_for(100 * MS);
    }
    world.drain();
    let report = audit(&world.journal);
    assert_eq!((report.verdict(), report.guarantees[0].counters.arrivals), (Verdict::Kept, 18));
}

#[test]
fn a_known_loss_is_unproven_and_not_a_contradiction() {
    let mut journal = quiet(3).journal;
    let place = places(&journal)[10];
    journal[place] = Record::Lost { at: Time::ZERO, records: 1 };
    let report = audit(&journal);
    assert_eq!((report.verdict(), report.lost_records, report.guarantees[0].missing_records), (Verdict::Unproven, 1, 1));
}

#[test]
fn steal_needs_a_gap_on_the_core_in_the_time() {
    let mut world = World::new(1);
    let mut late = subject(1, model::Rate::per_second(10).unwrap(), 1, 5 * MS);
    late.reservation().shards[0].warm = 0;
    world.install(&late);
    world.arrive_in(Duration::ZERO, 1, None);
    world.gap_in(50 * MS, 0, 20 * MS);
    world.run_for(Duration::from_secs(1));
    world.drain();
    let report = audit(&world.journal);
    assert_eq!((report.verdict(), report.guarantees[0].counters.by_cause[0]), (Verdict::Missed, 1));
    world.journal.retain(|record| !matches!(record, Record::ProbeGap { .. }));
    assert!(matches!(audit(&world.journal).contradictions[0].problem, Problem::StealWithoutGap { core: 0 }));
}

/// An invocation that is kept from its core for as long as it may and misses its deadline: the journal, where its response bound is
/// revised from `old` to `new` while it runs, and the engine is told so before its end, or after it.
fn revised_in_a_run(old: u64, new: u64, later: Duration) -> Vec<Record> {
    let mut world = World::new(1);
    let mut late = subject(1, model::Rate::per_second(10).unwrap(), 1, 20 * MS);
    late.reservation().shards[0].warm = 0;
    late.reservation().response_bound = Duration::from_millis(old);
    late.terms().start_within = 45 * MS;
    late.terms().deadline = Some(model::DurationText(55 * MS));
    world.install(&late);
    world.arrive_in(Duration::ZERO, 1, None);
    world.run_for(50 * MS);
    late.reservation().response_bound = Duration::from_millis(new);
    world.revise(&late, later);
    world.run_for(Duration::from_secs(1));
    world.drain();
    world.journal
}

#[test]
fn bounds_that_change_in_a_run_are_the_same_to_the_lane_and_to_the_audit() {
    let check = |(old, new), later: Duration, missed: u64| {
        let report = audit(&revised_in_a_run(old, new, later));
        assert_eq!((report.violations(), report.contradictions), (missed, vec![]), "{old} {new} {later:?}");
    };
    for (bounds, before, after) in [((50, 60), 0, 1), ((60, 50), 1, 0), ((50, 50), 1, 1)] {
        check(bounds, MS, before);
        check(bounds, 30 * MS, after);
    }
}

#[test]
fn a_miss_is_judged_by_bounds_that_were_given() {
    let mut journal = revised_in_a_run(50, 60, MS);
    let mut seen = 0;
    // The bound that excuses it is not in the records.
    journal.retain(|record| {
        seen += u64::from(matches!(record, Record::GuaranteeGiven(_)));
        seen != 2 || !matches!(record, Record::GuaranteeGiven(_))
    });
    assert!(matches!(audit(&journal).contradictions[0].problem, Problem::LateUnmarked));
}

/// The journal of a class of 21 slots a second, burst 2, that goes over to other rates and bursts without a slot in between, and
/// of arrivals so many milliseconds later.
fn class_that_changes(changes: &[(u64, u32)], overflow: model::Overflow, after: &[u64]) -> Vec<Record> {
    let mut world = World::new(1);
    let class = |(rate, burst): (u64, u32)| model::RateClass {
        name: "shared".parse().unwrap(),
        rate: model::Rate::new(rate, Duration::from_secs(1)).unwrap(),
        burst: model::Burst::new(burst).unwrap(),
    };
    let mut member = subject(1, model::Rate::per_second(20).unwrap(), 2, 5 * MS);
    member.in_class(class((21, 2)));
    member.terms().overflow = overflow;
    world.install(&member);
    world.run_for(100 * MS);
    for _ in 0..2 {
        world.arrive_in(Duration::ZERO, 1, None);
    }
    world.run_for(20 * MS);
    for change in changes {
        member.in_class(class(*change));
        member.reservation().generation += 1;
        world.revise_all(&[&member]);
    }
    for delay in after {
        world.arrive_in(Duration::from_millis(*delay), 1, None);
    }
    world.run_for(Duration::from_secs(1));
    world.drain();
    world.journal
}

#[test]
fn whom_a_slower_or_smaller_class_turned_away_before_its_first_slot_is_not_said_to_have_conformed() {
    for slower in [(2, 2), (21, 1)] {
        let report = audit(&class_that_changes(&[slower], model::Overflow::Reject, &[40]));
        assert_eq!((report.contradictions, report.unchecked_claims), (vec![], 1), "{slower:?}");
    }
}

#[test]
fn a_class_that_goes_over_to_another_rate_and_back_contradicts_nothing() {
    let report = audit(&class_that_changes(&[(13, 2), (21, 2)], model::Overflow::Queue { limit: 5 }, &[0, 1]));
    assert_eq!((report.violations(), report.contradictions), (0, vec![]));
}

/// A gap of core 0 from 100 to 120 ms; `g`, due at 105, that runs until 131; and `f`, due at 130, which starts at 150 and says
/// that the gap reached it through `g`.
fn behind_a_gap() -> [Record; 6] {
    let at = Time::from_millis;
    let mut world = World::new(1);
    for key in [1, 2] {
        world.install(&subject(key, model::Rate::per_second(10).unwrap(), 1, 5 * MS));
    }
    let [started, given_f, given_g] = world.journal.try_into().unwrap();
    let record = |key: u64, due, start, ended| {
        let mut record = quiet(1).records().next().unwrap().clone();
        record.function = format!("f{key}").parse().unwrap();
        (record.arrived, record.conforming, record.ended) = (at(due), Some(at(due)), at(ended));
        (record.delivered, record.started) = (Some(at(start)), Some(at(start)));
        record
    };
    let f = journal::record::Invocation { violation: Some(Cause::Steal), ..record(1, 130, 150, 155) };
    let g = record(2, 105, 105, 131);
    let gap = Record::ProbeGap { core: 0, from: at(100), until: at(120) };
    [started, given_f, given_g, gap, Record::Invocation(g), Record::Invocation(f)]
}

#[test]
fn a_gap_may_reach_a_steal_through_a_run_whose_terms_are_written_later() {
    let [started, given_f, given_g, gap, g, f] = behind_a_gap();
    let report = audit(&[started, given_f, gap, g, f, given_g]);
    assert_eq!((report.violations(), report.contradictions), (1, vec![]));
}

#[test]
fn a_steal_whose_evidence_may_have_been_lost_is_unproven_and_not_a_contradiction() {
    let [started, given_f, _, gap, _, f] = behind_a_gap();
    let without = [started, given_f, gap, f];
    assert!(matches!(audit(&without).contradictions[0].problem, Problem::StealWithoutGap { core: 0 }));
    let [started, given_f, gap, f] = without;
    let report = audit(&[started, given_f, gap, Record::Lost { at: Time::ZERO, records: 1 }, f]);
    assert_eq!((report.verdict(), report.unchecked_claims, report.contradictions), (Verdict::Unproven, 1, vec![]));
}

#[test]
fn an_invocation_was_no_longer_on_its_ways_than_it_took() {
    let check = |result, expected| {
        let journal = altered(0, |record| {
            assert_eq!(record.ended.since(record.arrived), 5 * MS, "it took its whole run");
            record.transfer = Some(Box::new(journal::record::Transfer { input: 3 * MS, result }));
        });
        assert_eq!(verdict(&journal), expected, "{result:?}");
    };
    check(2 * MS, Verdict::Kept);
    check(2 * MS + Duration::from_nanos(1), Verdict::Contradicted);
}

#[test]
fn a_crowded_story_is_audited_in_bounded_memory() {
    let mut world = World::new(3);
    world.faults = Faults { abandon: 500, ..Faults::default() };
    world.install(&subject(1, model::Rate::per_second(5).unwrap(), 1, 5 * MS));
    world.run_for(100 * MS);
    for arrival in 0..20_000 {
        world.arrive_in(Duration::from_micros(arrival * 50), 1, None);
    }
    world.run_for(Duration::from_secs(2));
    world.drain();
    let report = audit(&world.journal);
    assert_eq!((report.contradictions_total, report.guarantees[0].counters.arrivals), (0, 20_000));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_removed_record_is_noticed(which in any::<prop::sample::Index>()) {
        let mut journal = quiet(3).journal;
        let places = places(&journal);
        journal.remove(places[which.index(places.len())]);
        prop_assert!(matches!(verdict(&journal), Verdict::Unproven | Verdict::Contradicted));
    }

    #[test]
    fn two_exchanged_records_are_noticed(first in any::<prop::sample::Index>(), second in any::<prop::sample::Index>()) {
        let mut journal = quiet(3).journal;
        let places = places(&journal);
        let (first, second) = (places[first.index(places.len())], places[second.index(places.len())]);
        let ended = |place: usize| if let Record::Invocation(record) = &journal[place] { record.ended } else { Time::ZERO };
        prop_assume!(ended(first) != ended(second));
        journal.swap(first, second);
        prop_assert_eq!(verdict(&journal), Verdict::Contradicted);
    }

    #[test]
    fn an_altered_record_is_noticed(place in 0_usize..200, what in 0_usize..9, by in 1_u64..1_000_000_000) {
        let by = Duration::from_nanos(by);
        let journal = altered(place, |record| match what {
            0 => record.sequence += 1,
            1 => record.slot = Some(record.slot.map_or(0, |slot| slot + 1)),
            2 => record.slot = None,
            3 => record.conforming = Some(record.conforming.unwrap_or(record.arrived) + by),
            4 => record.violation = Some(Cause::Unknown),
            5 => record.arrived = record.ended + by,
            6 => record.started = Some(record.ended + by),
            7 => record.generation += 1,
            _ => record.end = if record.end == model::End::Refused { model::End::Demoted } else { model::End::Refused },
        });
        prop_assume!(journal != quiet(3).journal);
        prop_assert!(matches!(verdict(&journal), Verdict::Unproven | Verdict::Contradicted));
    }

    /// What was turned away is checked as well as what was let in.
    #[test]
    fn a_false_claim_of_excess_is_noticed(place in 0_usize..200) {
        let mut was_conforming = false;
        let mut journal = altered(place, |record| {
            was_conforming = record.slot.is_some();
            (record.slot, record.conforming, record.delivered, record.started) = (None, None, None, None);
            record.class = model::Class::BestEffort;
            record.end = model::End::Refused;
        });
        prop_assume!(was_conforming);
        // Even where the liar renumbers the later slots and writes no counters, the time of the pacer tells.
        let mut next = 0;
        for record in &mut journal {
            if let Record::Invocation(record) = record && let Some(slot) = &mut record.slot {
                *slot = next;
                next += 1;
            }
        }
        journal.retain(|record| !matches!(record, Record::Counters { .. }));
        prop_assert_eq!(verdict(&journal), Verdict::Contradicted);
    }
}
