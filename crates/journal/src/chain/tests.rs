use std::time::Duration;

use model::{Class, End, InvocationId, Level, Time};
use proptest::prelude::*;

use super::*;
use crate::record::{EndedBecause, GuaranteeEnded, Invocation, NodeStarted, StartSeenBy};

fn started() -> Record {
    Record::NodeStarted(NodeStarted {
        boot: InvocationId::from_random(7),
        at: Time::from_secs(1),
        unix_ns: 1_700_000_000_000_000_000,
        level: Level::Hard,
        tolerance: Duration::from_millis(3),
        software: "0.1.0".to_owned(),
    })
}

fn invocation(sequence: u64) -> Record {
    let at = Time::from_millis(sequence);
    Record::Invocation(Invocation {
        id: InvocationId::from_random(u128::from(sequence)),
        function: "detect".parse().unwrap(),
        generation: 1,
        sequence,
        slot: Some(sequence),
        resumed: None,
        class: Class::Guaranteed,
        arrived: at,
        conforming: Some(at),
        delivered: Some(at),
        started: Some(at),
        start_seen_by: StartSeenBy::Handler,
        ended: at + Duration::from_millis(5),
        end: End::Succeeded,
        deadline: None,
        instance: None,
        core: 1,
        cpu: Duration::from_millis(4),
        held: None,
        transfer: None,
        violation: None,
    })
}

fn ended(generation: u64) -> Record {
    let reason = EndedBecause::Withdrawn;
    Record::GuaranteeEnded(GuaranteeEnded { at: Time::from_secs(generation), function: "f".parse().unwrap(), generation, reason })
}

/// Segments of `per_segment` records each.
fn written(records: &[Record], per_segment: usize) -> Vec<Vec<u8>> {
    let mut head = Head::GENESIS;
    let mut segments = Vec::new();
    for part in records.chunks(per_segment) {
        let mut bytes = head.segment_header().into_bytes();
        for record in part {
            head.append(record, &mut bytes).unwrap();
        }
        segments.push(bytes);
    }
    segments
}

fn read(segments: &[Vec<u8>]) -> (Vec<Record>, Option<Break>, Tail) {
    let sources = segments
        .iter()
        .enumerate()
        .map(|(index, bytes)| Segment { name: format!("s{index}"), content: Box::new(io::Cursor::new(bytes.clone())) });
    let mut reader = Reader::new(sources);
    let (mut records, mut broken) = (Vec::new(), None);
    for entry in reader.by_ref() {
        match entry {
            Ok(entry) => records.push(entry.record),
            Err(found) => broken = Some(found),
        }
    }
    assert!(reader.next().is_none());
    (records, broken, reader.tail())
}

fn sample() -> Vec<Record> {
    let mut records = vec![started()];
    records.extend((0..8).map(invocation));
    records.push(Record::NodeStopped { at: Time::from_secs(9) });
    records
}

#[test]
fn records_read_back_across_segments() {
    let records = sample();
    let (found, broken, tail) = read(&written(&records, 3));
    assert_eq!(found, records);
    assert!(broken.is_none());
    assert_eq!((tail.head.number, tail.first, tail.torn_bytes), (10, Some(1), 0));
}

/// The format is a promise: these bytes stay readable.
#[test]
fn a_line_looks_like_this() {
    let bytes = written(&[Record::NodeStopped { at: Time::from_nanos(5) }], 1).concat();
    assert_eq!(
        String::from_utf8(bytes).unwrap(),
        "takt-evidence 1 1 0000000000000000000000000000000000000000000000000000000000000000\n\
         1 baef91fd 2bff790469845c7ce8c7ec7c900cc88423860dba69ae262b8abcccbdb836eb42 {\"node-stopped\":{\"at\":5}}\n"
    );
}

#[test]
fn what_retention_dropped_is_told_and_the_rest_is_proven() {
    let records = sample();
    let (found, broken, tail) = read(&written(&records, 3)[1..]);
    assert_eq!(found, records[3..]);
    assert!(broken.is_none());
    assert_eq!((tail.first, tail.head.number), (Some(4), 10));
}

#[test]
fn a_cut_end_is_a_tail_and_a_cut_middle_is_a_break() {
    let records = sample();
    let mut segments = written(&records, 5);
    let whole = segments[1].len();
    let last = segments[1].iter().rev().skip(1).position(|byte| *byte == b'\n').unwrap() + 1;
    segments[1].truncate(whole - 7);
    let (found, broken, tail) = read(&segments);
    assert_eq!((found.len(), broken.is_none(), tail.torn_bytes), (9, true, last as u64 - 7));
    assert_eq!(tail.whole_bytes, (whole - last) as u64);
    let cut = segments[0].len() - 7;
    segments[0].truncate(cut);
    let broken = read(&segments).1.unwrap();
    assert!(matches!(broken.reason, Reason::Cut));
    assert_eq!((broken.segment.as_str(), broken.line, broken.number), ("s0", 6, 5));
}

#[test]
fn zeros_behind_the_last_line_are_what_a_crash_left() {
    let mut segments = written(&sample(), 20);
    segments[0].extend(b"11 baef");
    segments[0].extend(vec![0; 3 * MAX_LINE_BYTES]);
    let (found, broken, tail) = read(&segments);
    assert_eq!((found.len(), broken.is_none(), tail.torn_bytes), (10, true, 3 * MAX_LINE_BYTES as u64 + 7));
    segments[0].push(b'1');
    assert!(matches!(read(&segments).1.unwrap().reason, Reason::Form));
}

#[test]
fn an_endless_line_is_a_break_not_a_memory_fault() {
    let mut segments = written(&sample(), 20);
    segments[0].extend(vec![b'x'; MAX_LINE_BYTES + 1]);
    assert!(matches!(read(&segments).1.unwrap().reason, Reason::TooLong));
}

#[test]
fn a_record_over_the_limit_is_not_written() {
    let functions = vec![crate::record::Counters { function: "f".repeat(64), ..Default::default() }; 6000];
    let (mut head, mut bytes) = (Head::GENESIS, Vec::new());
    let error = head.append(&Record::Counters { at: Time::ZERO, functions }, &mut bytes).unwrap_err();
    assert!(matches!(error, AppendError::TooLong { .. }), "{error}");
    assert_eq!((head, bytes.len()), (Head::GENESIS, 0));
}

fn any_records() -> impl Strategy<Value = Vec<Record>> {
    prop::collection::vec((0_u8..3, any::<u64>()), 1..12).prop_map(|kinds| {
        let record = |(kind, number): (u8, u64)| match kind {
            0 => ended(number % 1000),
            1 => invocation(number % 100_000),
            _ => Record::ProbeGap { core: 1, from: Time::from_nanos(number), until: Time::MAX },
        };
        kinds.into_iter().map(record).collect()
    })
}

/// Lines of a segment without its header.
fn lines(segment: &[u8]) -> Vec<Vec<u8>> {
    segment.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Either a break is told, or the end of the file is damaged so that its last records are missing and a torn tail says so.
    #[test]
    fn any_flipped_bit_is_seen(records in any_records(), per_segment in 1_usize..5, at: prop::sample::Index, bit in 0_u8..8) {
        let mut segments = written(&records, per_segment);
        let total: usize = segments.iter().map(Vec::len).sum();
        let mut place = at.index(total);
        for segment in &mut segments {
            if let Some(byte) = segment.get_mut(place) {
                *byte ^= 1 << bit;
                break;
            }
            place -= segment.len();
        }
        let (found, broken, tail) = read(&segments);
        prop_assert!(broken.is_some() || (0 < tail.torn_bytes && found.len() < records.len()));
        prop_assert_eq!(&found[..], &records[..found.len()]);
    }

    #[test]
    fn a_removed_line_is_seen_unless_it_was_the_last(records in any_records(), at: prop::sample::Index) {
        let mut lines = lines(&written(&records, 100)[0]);
        let gone = at.index(lines.len());
        let was_last = gone == lines.len() - 1;
        lines.remove(gone);
        let (found, broken, _) = read(&[lines.concat()]);
        prop_assert_eq!(broken.is_none(), was_last);
        prop_assert_eq!(&found[..], &records[..found.len()]);
    }

    #[test]
    fn lines_in_another_order_are_seen(records in any_records(), a: prop::sample::Index, b: prop::sample::Index) {
        let mut lines = lines(&written(&records, 100)[0]);
        let (a, b) = (a.index(lines.len()), b.index(lines.len()));
        prop_assume!(a != b);
        lines.swap(a, b);
        prop_assert!(read(&[lines.concat()]).1.is_some());
    }

    #[test]
    fn a_removed_or_repeated_segment_is_seen(records in any_records(), at: prop::sample::Index) {
        let segments = written(&records, 1);
        let at = at.index(segments.len());
        let mut repeated = segments.clone();
        repeated.insert(at, segments[at].clone());
        prop_assert!(read(&repeated).1.is_some());
        if 0 < at && at + 1 < segments.len() {
            let mut removed = segments;
            removed.remove(at);
            prop_assert!(read(&removed).1.is_some());
        }
    }

    #[test]
    fn a_shortened_file_proves_only_what_is_left(records in any_records(), at: prop::sample::Index) {
        let mut segment = written(&records, 100).concat();
        let cut = at.index(segment.len());
        segment.truncate(cut);
        let (found, broken, tail) = read(std::slice::from_ref(&segment));
        prop_assert!(broken.is_none());
        prop_assert_eq!(&found[..], &records[..found.len()]);
        prop_assert_eq!(tail.whole_bytes + tail.torn_bytes, cut as u64);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), headed: bool) {
        let mut segment = if headed { Head::GENESIS.segment_header().into_bytes() } else { Vec::new() };
        segment.extend(bytes);
        let _ = read(&[segment]);
    }
}
