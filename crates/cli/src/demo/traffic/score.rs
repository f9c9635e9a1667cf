//! What a run was worth: detections against the truth, pictures on time, and what the capacity for it costs.

use serde::{Deserialize, Serialize};

use super::camera::{Run, Sent};
use super::function::Role;
use super::gate::Detected;
use super::scene::{Event, Kind, Truth};
use super::track::Finding;

/// A box counts as right from this overlap with the true one.
const RIGHT_BOX: f32 = 0.4;
/// A detection belongs to an event if it begins or goes on within so many seconds of it.
const AROUND_S: u64 = 1;

/// What was reserved for the detector.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Reserved {
    /// Instances that the guarantee rests on (K).
    pub(crate) instances: u32,
    /// Promised start delay in microseconds (B).
    pub(crate) start_within_us: u64,
}

/// Least, middle and worst of a number of durations, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) count: u64,
    pub(crate) p50_us: u64,
    pub(crate) p90_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) max_us: u64,
}

/// How the detections compare with what really happened.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Detections {
    pub(crate) events: u64,
    pub(crate) found: u64,
    /// Found, and called what it was.
    pub(crate) named: u64,
    /// Detections that belong to no event.
    pub(crate) false_events: u64,
    /// Mean seconds from an event's beginning to its first sighting, and from its end to the last.
    pub(crate) begin_delay_s: f64,
    pub(crate) end_delay_s: f64,
    /// Share of the events' pictures with a right box, from the first sighting on, 0 to 1.
    pub(crate) box_recall: f64,
    /// The same over whole events.
    pub(crate) box_recall_whole: f64,
}

/// The figures of one variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Score {
    /// Absent where the truth is unknown.
    pub(crate) detections: Option<Detections>,
    pub(crate) watched: u64,
    pub(crate) full_rate: u64,
    /// Of the full-rate pictures.
    pub(crate) on_time: u64,
    pub(crate) latency: Spread,
    /// From due to handler entry, where the node says it.
    pub(crate) start: Spread,
    /// Full-rate pictures that ran under the guarantee.
    pub(crate) guaranteed: u64,
    /// Those of them whose start, counted from arrival, came later than promised, or whose end missed the deadline.
    pub(crate) violations: u64,
    /// Share of the time in which the full rate was needed (d).
    pub(crate) duty: f64,
    /// Share of the pictures needed that were on time (Q).
    pub(crate) quality: f64,
    /// Instance-seconds: kept ready at the peak all the time, reserved for the time of the bursts, and used by invocations.
    pub(crate) peak_instance_s: f64,
    pub(crate) burst_instance_s: f64,
    pub(crate) used_instance_s: f64,
    /// Q/d: value per instance-second against machines reserved for the peak, by the model that capacity is reserved during
    /// bursts only; `None` when nothing happened.
    pub(crate) value_by_the_model: Option<f64>,
}

/// Scores a run. How long the full rate was needed is taken from `reference`, the undisturbed run: a run that missed the event
/// must not seem cheap. Without a reservation the promise is taken from `reserved` all the same, to compare with.
#[must_use]
pub(crate) fn score(run: &Run, reference: &Run, truth: Option<&Truth>, reserved: Reserved) -> Score {
    let full: Vec<&Sent> = run.sent.iter().filter(|sent| sent.role == Role::Detect).collect();
    let on_time = full.iter().filter(|sent| sent.is_on_time()).count() as u64;
    let open: u64 = reference.summary.open.iter().map(|(from, to)| to - from).sum();
    let fps = f64::from(run.fps.max(1));
    let (whole_s, open_s) = (run.pictures as f64 / fps, open as f64 / fps);
    let duty = open_s / whole_s.max(f64::MIN_POSITIVE);
    let quality = (on_time as f64 / open.max(1) as f64).min(1.0);
    let used_us: u64 =
        full.iter().map(|sent| sent.ended_us.saturating_sub(sent.sent_us + sent.start_delay_us.unwrap_or(0))).sum();
    Score {
        detections: truth.map(|truth| compare(run, truth)),
        watched: (run.sent.len() - full.len()) as u64,
        full_rate: full.len() as u64,
        on_time,
        latency: spread(full.iter().map(|sent| sent.latency_us())),
        start: spread(full.iter().filter_map(|sent| sent.start_us())),
        guaranteed: full.iter().filter(|sent| is_guaranteed(sent)).count() as u64,
        violations: full.iter().filter(|sent| is_violation(sent, reserved)).count() as u64,
        duty,
        quality,
        peak_instance_s: f64::from(reserved.instances) * whole_s,
        burst_instance_s: f64::from(reserved.instances) * open_s,
        used_instance_s: used_us as f64 / 1e6,
        // guarantee theory, burst model: machines for the peak cost H·P for a value of 1, reserved bursts H·W for Q.
        value_by_the_model: (0 < open).then(|| quality / duty),
    }
}

fn is_violation(sent: &Sent, reserved: Reserved) -> bool {
    let started_late = sent.start_delay_us.is_some_and(|delay| reserved.start_within_us < delay);
    is_guaranteed(sent) && (started_late || !sent.is_on_time())
}

fn is_guaranteed(sent: &Sent) -> bool {
    sent.class.as_deref() == Some("guaranteed")
}

/// Percentiles by the nearest-rank method.
#[must_use]
pub(crate) fn spread(values: impl Iterator<Item = u64>) -> Spread {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    let rank = |percent: usize| values.get((values.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0);
    Spread { count: values.len() as u64, p50_us: rank(50), p90_us: rank(90), p99_us: rank(99), max_us: rank(100) }
}

fn compare(run: &Run, truth: &Truth) -> Detections {
    let around = AROUND_S * u64::from(run.fps);
    let detected = &run.summary.detected;
    let belongs = |seen: &Detected, event: &Event| seen.first < event.end + around && event.begin <= seen.last + around;
    let mut result = Detections { events: truth.events.len() as u64, ..Detections::default() };
    let fps = f64::from(run.fps.max(1));
    for event in &truth.events {
        let mine: Vec<&Detected> = detected.iter().filter(|seen| belongs(seen, event)).collect();
        let Some(first) = mine.iter().map(|seen| seen.first).min() else { continue };
        let last = mine.iter().map(|seen| seen.last).max().unwrap_or(first);
        result.found += 1;
        result.named += u64::from(mine.iter().any(|seen| is_called(event.kind, seen.finding)));
        result.begin_delay_s += (first as f64 - event.begin as f64) / fps;
        result.end_delay_s += (last as f64 - event.end as f64) / fps;
        let right = right_boxes(&mine, event);
        let visible = event.end.saturating_sub(first.max(event.begin)).max(1);
        result.box_recall += right as f64 / visible as f64;
        result.box_recall_whole += right as f64 / (event.end - event.begin).max(1) as f64;
    }
    let (found, all) = (result.found.max(1) as f64, result.events.max(1) as f64);
    result.begin_delay_s /= found;
    result.end_delay_s /= found;
    result.box_recall /= found;
    result.box_recall_whole /= all;
    let strays = detected.iter().filter(|seen| !truth.events.iter().any(|event| belongs(seen, event)));
    result.false_events = strays.count() as u64;
    result
}

fn right_boxes(mine: &[&Detected], event: &Event) -> u64 {
    let right = |index: &u64| {
        let truth = usize::try_from(index - event.begin).ok().and_then(|at| event.boxes.get(at));
        let mut sightings = mine.iter().flat_map(|seen| &seen.sightings);
        truth.is_some_and(|truth| sightings.any(|(at, found)| at == index && RIGHT_BOX <= found.rect.overlap(truth)))
    };
    (event.begin..event.end).filter(right).count() as u64
}

/// Whether a finding is the right name for what happened.
#[must_use]
pub(crate) fn is_called(kind: Kind, finding: Finding) -> bool {
    match kind {
        Kind::StoppedVehicle => finding == Finding::StoppedVehicle,
        Kind::SlowVehicle => finding == Finding::SlowVehicle,
        Kind::Pedestrian | Kind::Cyclist => finding == Finding::Person,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::demo::traffic::camera::End;
    use crate::demo::traffic::gate::Summary;
    use crate::demo::traffic::picture::Rect;
    use crate::demo::traffic::watch::Found;

    const RESERVED: Reserved = Reserved { instances: 3, start_within_us: 20_000 };
    const BOX: Rect = Rect { x: 10.0, y: 20.0, w: 30.0, h: 40.0 };

    fn sent(index: u64, latency_us: u64) -> Sent {
        Sent {
            index,
            role: Role::Detect,
            due_us: index * 40_000,
            sent_us: index * 40_000,
            ended_us: index * 40_000 + latency_us,
            deadline_us: 100_000,
            end: End::Answered,
            class: Some("guaranteed".to_owned()),
            start_delay_us: Some(latency_us / 2),
            queue_wait_us: Some(0),
        }
    }

    fn event(begin: u64, end: u64) -> Event {
        let boxes = (begin..end).map(|_| BOX).collect();
        Event { kind: Kind::Cyclist, begin, end, boxes }
    }

    /// 400 pictures of which 25 at the full rate, one event of which the second half is seen.
    pub(in crate::demo::traffic) fn run(latency_us: u64) -> (Run, Truth) {
        let found = Found { finding: Finding::Person, track: 1, rect: BOX, km_per_h: 9.0 };
        let sightings = (105..120).map(|index| (index, found)).collect();
        let summary = Summary {
            detected: vec![Detected { finding: Finding::Person, first: 105, last: 119, sightings }],
            open: vec![(100, 125)],
            false_alarms: 0,
        };
        let run = Run { sent: (100..125).map(|index| sent(index, latency_us)).collect(), summary, pictures: 400, fps: 25 };
        (run, Truth { events: vec![event(90, 120)] })
    }

    #[test]
    fn an_event_found_late_counts_with_its_delay() {
        let (run, truth) = run(10_000);
        let detections = score(&run, &run, Some(&truth), RESERVED).detections.unwrap();
        assert_eq!((detections.events, detections.found, detections.named, detections.false_events), (1, 1, 1, 0));
        assert!((detections.begin_delay_s - 0.6).abs() < 1e-9);
        assert!((detections.box_recall - 1.0).abs() < 1e-9);
        assert!((detections.box_recall_whole - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_detection_away_from_every_event_is_false() {
        let (run, _) = run(10_000);
        let detections = score(&run, &run, Some(&Truth { events: vec![event(300, 330)] }), RESERVED).detections.unwrap();
        assert_eq!((detections.events, detections.found, detections.false_events), (1, 0, 1));
    }

    #[test]
    fn the_value_by_the_model_is_quality_over_duty() {
        let reference = run(10_000).0;
        let on_time = score(&reference, &reference, None, RESERVED);
        assert_eq!((on_time.on_time, on_time.full_rate, on_time.violations), (25, 25, 0));
        assert!((on_time.value_by_the_model.unwrap() - 16.0).abs() < 1e-9);
        assert!((on_time.peak_instance_s - 48.0).abs() < 1e-9 && (on_time.burst_instance_s - 3.0).abs() < 1e-9);
        let late = score(&run(150_000).0, &reference, None, RESERVED);
        assert_eq!((late.on_time, late.violations), (0, 25));
        assert!(late.value_by_the_model.unwrap().abs() < 1e-9);
        let mut blind = reference.clone();
        blind.sent.truncate(5);
        blind.summary.open = vec![(100, 105)];
        assert!((score(&blind, &reference, None, RESERVED).value_by_the_model.unwrap() - 3.2).abs() < 1e-9);
    }

    #[test]
    fn a_start_later_than_promised_is_a_violation() {
        let run = run(50_000).0;
        assert_eq!(score(&run, &run, None, RESERVED).violations, 25);
    }

    #[test]
    fn percentiles_are_the_nearest_ranks() {
        let spread = spread(1..=200);
        assert_eq!((spread.p50_us, spread.p90_us, spread.p99_us, spread.max_us), (100, 180, 198, 200));
        assert_eq!(super::spread(std::iter::empty()), Spread::default());
    }
}
