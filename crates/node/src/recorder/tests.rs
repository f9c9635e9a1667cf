use std::collections::BTreeMap;
use std::io::{self, BufRead, Cursor};

use journal::chain::{Entry, Reader, Reason, Segment};
use model::{InvocationId, Level};

use super::*;

fn opening(boot: u128) -> NodeStarted {
    NodeStarted {
        boot: InvocationId::from_random(boot),
        at: Time::ZERO,
        unix_ns: 0,
        level: Level::Soft,
        tolerance: Duration::from_millis(3),
        software: "test".to_owned(),
    }
}

/// A small record that carries a number.
fn gap(number: u64) -> Record {
    Record::ProbeGap { core: 0, from: Time::from_nanos(number), until: Time::MAX }
}

fn number_of(record: &Record) -> Option<u64> {
    match record {
        Record::ProbeGap { from, .. } => Some(from.as_nanos()),
        Record::NodeStarted(_)
        | Record::GuaranteeGiven(_)
        | Record::GuaranteeEnded(_)
        | Record::Invocation(_)
        | Record::ToleranceRaised { .. }
        | Record::Lost { .. }
        | Record::Counters { .. }
        | Record::NodeStopped { .. } => None,
    }
}

fn options(directory: PathBuf) -> Options {
    Options { now: || Time::from_secs(7), ring_records: 64, ..Options::new(directory, 2) }
}

/// Sends so many records, in batches that a ring holds.
fn send(started: &mut Started, numbers: std::ops::Range<u64>) {
    for number in numbers {
        started.senders[0].send(gap(number));
        if number % 50 == 49 {
            let _ = started.handle.flush();
        }
    }
}

fn read(path: &std::path::Path) -> Vec<Record> {
    open(path).unwrap().map(|entry| entry.unwrap().record).collect()
}

#[test]
fn what_was_handed_over_is_on_disk_and_the_chain_goes_on_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path().join("evidence"));
    let mut started = start(&options, opening(1)).unwrap();
    assert_eq!(started.found.head, Head::GENESIS);
    send(&mut started, 0..120);
    assert_eq!(started.recorder.stop(Time::from_secs(9)), Health::Writing);
    let before = started.handle.head();
    assert_eq!(before.number, 122);
    let again = start(&options, opening(2)).unwrap();
    assert_eq!((again.found.head, again.found.torn_bytes), (before, 0));
    assert_eq!(again.recorder.stop(Time::from_secs(9)), Health::Writing);
    let records = read(&options.directory);
    assert_eq!(records.iter().filter_map(number_of).collect::<Vec<_>>(), (0..120).collect::<Vec<_>>());
    assert_eq!(records.len(), 124);
}

#[test]
fn a_line_that_a_crash_cut_off_is_removed_and_the_restart_shows_the_gap() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path().to_owned());
    let mut started = start(&options, opening(1)).unwrap();
    send(&mut started, 0..3);
    assert_eq!(started.handle.flush(), Health::Writing);
    drop(started);
    let file = folder.path().join("00000001.takt");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() - 9]).unwrap();
    let again = start(&options, opening(2)).unwrap();
    assert_eq!(again.found.head.number, 3);
    assert!(again.found.torn_bytes != 0);
    assert_eq!(again.recorder.stop(Time::from_secs(9)), Health::Writing);
    let records = read(folder.path());
    assert!(matches!(
        &records[..],
        [
            Record::NodeStarted(_),
            Record::ProbeGap { .. },
            Record::ProbeGap { .. },
            Record::NodeStarted(_),
            Record::NodeStopped { .. }
        ]
    ));
}

#[test]
fn a_tampered_segment_is_left_as_it_is_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path().to_owned());
    let mut started = start(&options, opening(1)).unwrap();
    send(&mut started, 0..3);
    assert_eq!(started.recorder.stop(Time::ZERO), Health::Writing);
    let file = folder.path().join("00000001.takt");
    let mut bytes = std::fs::read(&file).unwrap();
    let place = bytes.windows(6).rposition(|part| part == b"\"from\"").unwrap() + 1;
    bytes[place] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let again = start(&options, opening(2)).unwrap();
    assert!(matches!(again.found.damage.unwrap().reason, Reason::Checksum));
    assert_eq!(again.recorder.stop(Time::ZERO), Health::Writing);
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
    let broken = open(folder.path()).unwrap().find_map(Result::err).unwrap();
    assert_eq!((broken.number, broken.line), (4, 5));
    assert_eq!(read(&folder.path().join("00000002.takt")).len(), 2);
}

#[test]
fn old_segments_are_dropped_beyond_the_limit_and_the_rest_is_proven() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 4_000, retention_bytes: 20_000, ..options(folder.path().to_owned()) };
    let mut started = start(&options, opening(1)).unwrap();
    send(&mut started, 0..1000);
    assert_eq!(started.recorder.stop(Time::ZERO), Health::Writing);
    let kept: u64 = files::list(folder.path()).unwrap().iter().map(|(_, bytes)| bytes).sum();
    assert!(kept <= 20_000 + 4_000 + 50 * 200, "{kept}");
    let mut reader = open(folder.path()).unwrap();
    let numbers: Vec<u64> = reader.by_ref().filter_map(|entry| number_of(&entry.unwrap().record)).collect();
    assert_eq!(numbers.last(), Some(&999));
    assert!(numbers.is_sorted_by(|a, b| a + 1 == *b));
    assert!(1 < reader.tail().first.unwrap());
}

#[test]
fn segments_dropped_while_they_are_read_are_not_missed() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 1, ..options(folder.path().to_owned()) };
    let mut started = start(&options, opening(1)).unwrap();
    send(&mut started, 0..200);
    assert_eq!(started.recorder.stop(Time::ZERO), Health::Writing);
    let reader = open(folder.path()).unwrap();
    std::fs::remove_file(folder.path().join("00000001.takt")).unwrap();
    assert_eq!(reader.map(Result::unwrap).filter_map(|entry| number_of(&entry.record)).last(), Some(199));
    std::fs::remove_file(folder.path().join("00000003.takt")).unwrap();
    assert!(open(folder.path()).unwrap().any(|entry| entry.is_err()));
}

#[test]
fn a_full_ring_loses_records_and_counts_them() {
    let (mut senders, mut intake) = ring::rings(1, 4);
    for number in 0..10 {
        senders[0].send(gap(number));
    }
    let mut seen = Vec::new();
    intake.drain(|record| seen.extend(number_of(record)));
    assert_eq!((seen, intake.take_lost(), intake.take_lost()), (vec![0, 1, 2, 3], 6, 0));
}

#[test]
fn records_of_two_lanes_keep_the_order_in_which_they_were_handed_over() {
    let (mut senders, mut intake) = ring::rings(2, 100);
    for number in 0..100 {
        senders[usize::from(number % 3 == 0)].send(gap(number));
    }
    let mut seen = Vec::new();
    intake.drain(|record| seen.extend(number_of(record)));
    assert!(seen.is_sorted_by(|a, b| a + 1 == *b) && seen.len() == 100, "{seen:?}");
}

#[test]
fn two_threads_lose_nothing_that_the_rings_take() {
    let (senders, mut intake) = ring::rings(2, 1_000);
    let threads: Vec<_> = senders
        .into_iter()
        .enumerate()
        .map(|(lane, mut sender)| {
            std::thread::spawn(move || (0..900).for_each(|number| sender.send(gap(number * 2 + lane as u64))))
        })
        .collect();
    let mut seen = Vec::new();
    for _ in 0..1_000_000_000 {
        intake.drain(|record| seen.extend(number_of(record)));
        if seen.len() == 1_800 {
            break;
        }
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    for lane in 0..2 {
        assert!(seen.iter().filter(|number| *number % 2 == lane).is_sorted());
    }
    assert_eq!(intake.take_lost(), 0);
}

/// Segments in memory, and a disk that refuses on request.
#[derive(Clone, Debug, Default)]
struct Faulty(Arc<Mutex<Disk>>);

#[derive(Debug, Default)]
struct Disk {
    segments: BTreeMap<u64, Vec<u8>>,
    /// Bytes of a batch that still reach the disk before it refuses; `None`: it works.
    refuses_after: Option<usize>,
}

impl Faulty {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }

    fn entries(&self) -> Vec<Entry> {
        let segments = self.disk().segments.clone();
        let sources = segments
            .into_iter()
            .map(|(number, bytes)| Segment { name: number.to_string(), content: Box::new(Cursor::new(bytes)) });
        Reader::new(sources).map(Result::unwrap).collect()
    }
}

impl Files for Faulty {
    fn list(&mut self) -> io::Result<Vec<(u64, u64)>> {
        Ok(self.disk().segments.iter().map(|(number, bytes)| (*number, bytes.len() as u64)).collect())
    }

    fn read(&mut self, segment: u64) -> io::Result<Box<dyn BufRead>> {
        Ok(Box::new(Cursor::new(self.disk().segments[&segment].clone())))
    }

    fn store(&mut self, segment: u64, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.disk();
        let reaches = disk.refuses_after.unwrap_or(bytes.len()).min(bytes.len());
        let refused = disk.refuses_after.is_some();
        let content = disk.segments.entry(segment).or_default();
        content.resize(usize::try_from(at).unwrap(), 0);
        content.extend_from_slice(&bytes[..reaches]);
        if refused { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn truncate(&mut self, segment: u64, bytes: u64) -> io::Result<()> {
        self.disk().segments.entry(segment).or_default().truncate(usize::try_from(bytes).unwrap());
        Ok(())
    }

    fn remove(&mut self, segment: u64) -> io::Result<()> {
        self.disk().segments.remove(&segment);
        Ok(())
    }
}

#[test]
fn a_full_disk_is_told_and_what_it_cost_is_recorded_when_there_is_room_again() {
    let faulty = Faulty::default();
    let options = options(PathBuf::from("nowhere"));
    let mut started = start_on(Box::new(faulty.clone()), &options, opening(1)).unwrap();
    send(&mut started, 0..3);
    assert_eq!(started.handle.flush(), Health::Writing);
    faulty.disk().refuses_after = Some(100);
    send(&mut started, 3..5);
    let Health::Failing { error, waiting_bytes, lost: 0 } = started.handle.flush() else { panic!("it works") };
    assert!(error.contains("no storage space") && 0 < waiting_bytes, "{error}");
    // Far more than the recorder keeps in memory.
    let functions = vec![journal::record::Counters { function: "f".repeat(1_000), ..Default::default() }; 500];
    for _ in 0..30 {
        started.senders[1].send(Record::Counters { at: Time::ZERO, functions: functions.clone() });
    }
    let Health::Failing { lost, .. } = started.handle.flush() else { panic!("it works") };
    assert!(0 < lost);
    assert_eq!(started.handle.head().number, 4);
    faulty.disk().refuses_after = None;
    assert_eq!(started.handle.flush(), Health::Writing);
    started.senders[0].send(gap(5));
    assert_eq!(started.recorder.stop(Time::from_secs(9)), Health::Writing);
    let records: Vec<Record> = faulty.entries().into_iter().map(|entry| entry.record).collect();
    assert_eq!(records.iter().filter_map(number_of).collect::<Vec<_>>(), (0..6).collect::<Vec<_>>());
    assert!(records.contains(&Record::Lost { at: Time::from_secs(7), records: lost }));
    assert_eq!(records.last(), Some(&Record::NodeStopped { at: Time::from_secs(9) }));
}

#[test]
fn a_refusing_disk_is_tried_again_once_in_a_while_by_itself() {
    let faulty = Faulty::default();
    let options = options(PathBuf::from("nowhere"));
    let mut writer = Writer::new(Box::new(faulty.clone()), &options, Head::GENESIS, vec![(1, 0)]);
    faulty.disk().refuses_after = Some(0);
    writer.keep(&gap(0));
    writer.tick();
    assert!(matches!(writer.health(), Health::Failing { .. }));
    faulty.disk().refuses_after = None;
    let ticks = (0..100).take_while(|_| {
        writer.tick();
        writer.health() != Health::Writing
    });
    assert_eq!(ticks.count(), 20);
    assert_eq!(faulty.entries().len(), 1);
}

#[test]
fn a_crash_while_the_disk_refuses_leaves_a_readable_chain() {
    for reaches in [0, 1, 90, 200] {
        let faulty = Faulty::default();
        let options = options(PathBuf::from("nowhere"));
        let mut started = start_on(Box::new(faulty.clone()), &options, opening(1)).unwrap();
        faulty.disk().refuses_after = Some(reaches);
        send(&mut started, 0..2);
        assert!(matches!(started.handle.flush(), Health::Failing { .. }));
        drop(started);
        faulty.disk().refuses_after = None;
        let again = start_on(Box::new(faulty.clone()), &options, opening(2)).unwrap();
        assert!(again.found.damage.is_none());
        assert_eq!(again.recorder.stop(Time::ZERO), Health::Writing);
        let starts = faulty.entries().iter().filter(|entry| matches!(entry.record, Record::NodeStarted(_))).count();
        assert_eq!(starts, 2, "{reaches}");
    }
}

#[test]
fn a_crash_in_the_first_line_of_a_new_segment_is_mended() {
    let faulty = Faulty::default();
    let options = Options { segment_bytes: 1, ..options(PathBuf::from("nowhere")) };
    let mut started = start_on(Box::new(faulty.clone()), &options, opening(1)).unwrap();
    send(&mut started, 0..2);
    assert_eq!(started.recorder.stop(Time::ZERO), Health::Writing);
    let newest = *faulty.disk().segments.keys().next_back().unwrap();
    faulty.disk().segments.insert(newest + 1, b"takt-evid".to_vec());
    let again = start_on(Box::new(faulty.clone()), &options, opening(2)).unwrap();
    assert_eq!((again.found.head, again.found.torn_bytes), (started.handle.head(), 9));
    assert_eq!(again.recorder.stop(Time::ZERO), Health::Writing);
    assert_eq!(faulty.entries().len(), 6);
}

#[test]
fn a_disk_that_refuses_at_the_start_refuses_the_start() {
    let faulty = Faulty::default();
    faulty.disk().refuses_after = Some(0);
    let error = start_on(Box::new(faulty), &options(PathBuf::from("here")), opening(1)).unwrap_err();
    assert_eq!(error.to_string(), "cannot use `here` for evidence");
}

#[test]
fn a_dropped_recorder_writes_what_it_has_and_says_that_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let mut started = start(&options(folder.path().to_owned()), opening(1)).unwrap();
    started.senders[0].send(gap(0));
    drop(started.recorder);
    assert_eq!(started.handle.health(), Health::Stopped);
    assert_eq!(started.handle.flush(), Health::Stopped);
    assert_eq!(read(folder.path()).len(), 2);
}

/// Runs the checker that the reference prints, as a reader would.
fn check_without_takt(directory: &std::path::Path) -> std::process::Output {
    let page = include_str!("../../../../docs/reference/evidence.md");
    let script = page.split("```python\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    std::process::Command::new("python3").arg("-c").arg(script).arg(directory).output().unwrap()
}

#[test]
fn the_checker_in_the_reference_agrees_with_ours() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 4_000, ..options(folder.path().to_owned()) };
    let mut started = start(&options, opening(1)).unwrap();
    send(&mut started, 0..100);
    assert_eq!(started.recorder.stop(Time::ZERO), Health::Writing);
    let head = started.handle.head();
    let output = check_without_takt(folder.path());
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("records up to {}, hash {}\n", head.number, head.hash));
    let file = folder.path().join("00000002.takt");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert!(!check_without_takt(folder.path()).status.success());
}
