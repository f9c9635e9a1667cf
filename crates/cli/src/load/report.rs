//! What a load showed, for people and for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;
use model::Class;
use serde::Serialize;

use super::drive::{Outcome, Sample};

/// Latencies from 1 microsecond to 17 minutes, to three digits.
const MAX_LATENCY_US: u64 = 1_000_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;
const BAR_WIDTH: u64 = 40;

/// The fields of `takt invoke --rate … --json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Invocations of the schedule.
    pub invocations: u64,
    /// The function ran and returned a result.
    pub succeeded: u64,
    pub on_time: OnTime,
    /// By HTTP status; `function-error`, `broken` and `unanswered` where there is none that says it.
    pub by_outcome: BTreeMap<String, u64>,
    /// By the class the node gave; `none` where the answer names none.
    pub by_class: BTreeMap<String, u64>,
    pub conforming: u64,
    pub nonconforming: u64,
    /// From the intended send time to the last byte, of everything that was answered, in microseconds.
    pub latency_us: Distribution,
    /// Start delays as the node states them, in microseconds.
    pub start_delay_us: Distribution,
    /// How late the generator itself sent, in microseconds: trust the rest no further than this.
    pub send_lag_us: Distribution,
    /// What broke, by reason, the five most frequent.
    pub errors: BTreeMap<String, u64>,
    #[serde(skip)]
    histogram: Vec<(u64, u64)>,
}

/// Results that came within the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OnTime {
    /// Absent: no deadline was stated, and everything that succeeded is on time.
    pub deadline_us: Option<u64>,
    pub count: u64,
    /// Of all invocations of the schedule, 0 to 1.
    pub share: f64,
}

/// Some percentiles; all zero where `count` is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Distribution {
    pub count: u64,
    pub min: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

impl Distribution {
    fn of(histogram: &Histogram<u64>) -> Self {
        let quantile = |q| histogram.value_at_quantile(q);
        Self {
            count: histogram.len(),
            min: histogram.min(),
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: histogram.max(),
        }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_LATENCY_US, SIGNIFICANT_DIGITS).expect("invariant: the bounds are constant and valid")
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Report {
    /// Counts the samples of one load.
    #[must_use]
    pub fn new(samples: &[Sample], deadline: Option<Duration>) -> Self {
        let (mut latency, mut start_delay, mut lag) = (histogram(), histogram(), histogram());
        let mut report = Self {
            invocations: u64::try_from(samples.len()).unwrap_or(u64::MAX),
            succeeded: 0,
            on_time: OnTime { deadline_us: deadline.map(micros), count: 0, share: 0.0 },
            by_outcome: BTreeMap::new(),
            by_class: BTreeMap::new(),
            conforming: 0,
            nonconforming: 0,
            latency_us: Distribution::default(),
            start_delay_us: Distribution::default(),
            send_lag_us: Distribution::default(),
            errors: BTreeMap::new(),
            histogram: Vec::new(),
        };
        for sample in samples {
            lag.saturating_record(micros(sample.sent.saturating_sub(sample.intended)));
            report.count(sample, deadline);
            if let Outcome::Answered(answered) = &sample.outcome {
                latency.saturating_record(micros(sample.latency));
                if let Some(delay) = answered.start_delay_us {
                    start_delay.saturating_record(delay);
                }
            }
        }
        report.on_time.share = share(report.on_time.count, report.invocations);
        report.latency_us = Distribution::of(&latency);
        report.start_delay_us = Distribution::of(&start_delay);
        report.send_lag_us = Distribution::of(&lag);
        report.histogram = buckets(&latency);
        report.keep_most_frequent_errors();
        report
    }

    fn count(&mut self, sample: &Sample, deadline: Option<Duration>) {
        let (outcome, class) = match &sample.outcome {
            Outcome::Answered(answered) => {
                if answered.succeeded() {
                    self.succeeded += 1;
                    self.on_time.count += u64::from(deadline.is_none_or(|deadline| sample.latency <= deadline));
                }
                match answered.conforming {
                    Some(true) => self.conforming += 1,
                    Some(false) => self.nonconforming += 1,
                    None => {}
                }
                let outcome =
                    if answered.function_error { "function-error".to_owned() } else { answered.status.as_str().to_owned() };
                let class = match answered.class {
                    Some(Class::Guaranteed) => "guaranteed",
                    Some(Class::BestEffort) => "best-effort",
                    None => "none",
                };
                (outcome, class)
            }
            Outcome::Broken(why) => {
                *self.errors.entry(why.clone()).or_default() += 1;
                ("broken".to_owned(), "none")
            }
            Outcome::Unanswered => ("unanswered".to_owned(), "none"),
        };
        *self.by_outcome.entry(outcome).or_default() += 1;
        *self.by_class.entry(class.to_owned()).or_default() += 1;
    }

    fn keep_most_frequent_errors(&mut self) {
        let mut errors: Vec<(String, u64)> = std::mem::take(&mut self.errors).into_iter().collect();
        errors.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        self.errors = errors.into_iter().take(5).collect();
    }

    /// The report as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = writeln!(text, "{} invocations, {} succeeded", self.invocations, self.succeeded);
        let bound = match self.on_time.deadline_us {
            Some(deadline) => format!("within {} of the intended send time", duration(deadline)),
            None => "(no deadline stated)".to_owned(),
        };
        let _ = writeln!(text, "{:.3} % on time {bound}", self.on_time.share * 100.0);
        let _ = writeln!(text, "  answers     {}", counts(&self.by_outcome));
        let _ = writeln!(text, "  class       {}", counts(&self.by_class));
        if 0 < self.conforming + self.nonconforming {
            let _ = writeln!(text, "  conforming  {} yes, {} no", self.conforming, self.nonconforming);
        }
        for (name, distribution) in
            [("latency", self.latency_us), ("start delay", self.start_delay_us), ("send lag", self.send_lag_us)]
        {
            if 0 < distribution.count {
                let _ = writeln!(text, "  {name:<11} {}", percentiles(distribution));
            }
        }
        for (why, count) in &self.errors {
            let _ = writeln!(text, "  {count} x {why}");
        }
        text.push_str(&self.bars());
        text
    }

    /// Latencies in buckets of the 1-2-5 series, one bar each.
    fn bars(&self) -> String {
        let most = self.histogram.iter().map(|(_, count)| *count).max().unwrap_or(0);
        let mut text = String::new();
        for (up_to, count) in &self.histogram {
            let width = if *count == 0 { 0 } else { (count * BAR_WIDTH / most).max(1) };
            let bar = "█".repeat(usize::try_from(width).unwrap_or(0));
            // Writing into a string does not fail.
            let _ = writeln!(text, "{}", format!("  ≤ {:>8}  {count:>8}  {bar}", duration(*up_to)).trim_end());
        }
        text
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share for display; counts stay far below 2^53")]
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn counts(counts: &BTreeMap<String, u64>) -> String {
    let parts: Vec<String> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
    parts.join(", ")
}

fn percentiles(of: Distribution) -> String {
    let named = [("p50", of.p50), ("p90", of.p90), ("p99", of.p99), ("p99.9", of.p999), ("max", of.max)];
    let parts: Vec<String> = named.into_iter().map(|(name, value)| format!("{name} {}", duration(value))).collect();
    parts.join("  ")
}

/// Microseconds as people read them.
#[expect(clippy::cast_precision_loss, reason = "a value for display")]
fn duration(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}us"),
        1_000..1_000_000 => format!("{:.2}ms", us as f64 / 1e3),
        _ => format!("{:.2}s", us as f64 / 1e6),
    }
}

/// Counts up to each bound of the 1-2-5 series, from the first that holds something to the last.
fn buckets(histogram: &Histogram<u64>) -> Vec<(u64, u64)> {
    let bounds = (0..=9).flat_map(|power| [1, 2, 5].map(|digit| digit * 10_u64.pow(power)));
    let mut buckets = Vec::new();
    let mut below = 0;
    for bound in bounds {
        let up_to = if histogram.is_empty() { 0 } else { histogram.count_between(0, bound) };
        if 0 < up_to && below < histogram.len() {
            buckets.push((bound, up_to - below));
        }
        below = up_to;
    }
    buckets
}

/// One row per invocation, with a heading. Times in microseconds from the load's start.
#[must_use]
pub fn csv(samples: &[Sample]) -> String {
    let mut text = String::from("index,intended_us,sent_us,latency_us,outcome,class,conforming,start_delay_us,queue_wait_us\n");
    for sample in samples {
        let rest = match &sample.outcome {
            Outcome::Answered(answered) => {
                let outcome = if answered.function_error { "function-error" } else { answered.status.as_str() };
                let class = match answered.class {
                    Some(Class::Guaranteed) => "guaranteed",
                    Some(Class::BestEffort) => "best-effort",
                    None => "",
                };
                let optional = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
                let conforming = answered.conforming.map(|value| value.to_string()).unwrap_or_default();
                let (start, wait) = (optional(answered.start_delay_us), optional(answered.queue_wait_us));
                format!("{outcome},{class},{conforming},{start},{wait}")
            }
            Outcome::Broken(_) => "broken,,,,".to_owned(),
            Outcome::Unanswered => "unanswered,,,,".to_owned(),
        };
        let times = [sample.intended, sample.sent, sample.latency].map(micros);
        // Writing into a string does not fail.
        let _ = writeln!(text, "{},{},{},{},{rest}", sample.index, times[0], times[1], times[2]);
    }
    text
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::super::drive::Answered;
    use super::*;

    fn answered(index: u64, latency_ms: u64, status: u16) -> Sample {
        let at = Duration::from_millis(10 * index);
        Sample {
            index,
            intended: at,
            sent: at,
            latency: Duration::from_millis(latency_ms),
            outcome: Outcome::Answered(Answered {
                status: StatusCode::from_u16(status).unwrap(),
                function_error: false,
                class: (status == 200).then_some(Class::Guaranteed),
                conforming: Some(status == 200),
                start_delay_us: Some(300),
                queue_wait_us: None,
                result: None,
            }),
        }
    }

    fn unanswered(index: u64) -> Sample {
        Sample { outcome: Outcome::Unanswered, ..answered(index, 1000, 200) }
    }

    #[test]
    fn on_time_is_a_share_of_everything_that_was_meant_to_be_sent() {
        let samples = [answered(0, 5, 200), answered(1, 50, 200), answered(2, 1, 429), unanswered(3)];
        let report = Report::new(&samples, Some(Duration::from_millis(20)));
        assert_eq!((report.succeeded, report.on_time.count), (2, 1));
        assert!((report.on_time.share - 0.25).abs() < 1e-12);
        assert_eq!(counts(&report.by_outcome), "2 200, 1 429, 1 unanswered");
        assert_eq!((report.conforming, report.nonconforming), (2, 1));
        assert_eq!(report.latency_us.count, 3);
        assert!(report.text().contains("25.000 % on time within 20.00ms"), "{}", report.text());
    }

    #[test]
    fn a_load_without_answers_still_makes_a_report() {
        let report = Report::new(&[unanswered(0)], None);
        assert_eq!((report.latency_us.count, report.on_time.count), (0, 0));
        assert!(report.bars().is_empty());
        assert!(Report::new(&[], None).text().starts_with("0 invocations"));
    }

    #[test]
    fn bars_hold_every_answer_once() {
        let samples: Vec<Sample> = (0..100).map(|index| answered(index, index + 1, 200)).collect();
        let total: u64 = Report::new(&samples, None).histogram.iter().map(|(_, count)| count).sum();
        assert_eq!(total, 100);
    }

    #[test]
    fn rows_have_as_many_cells_as_the_heading() {
        let text = csv(&[answered(0, 5, 200), unanswered(1)]);
        let cells: Vec<usize> = text.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(cells, [9, 9, 9]);
        assert!(text.contains("0,0,0,5000,200,guaranteed,true,300,\n"), "{text}");
    }
}
