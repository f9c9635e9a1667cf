//! The camera: releases pictures at their due times, whatever happens to earlier ones, and logs what became of each.
//!
//! Open loop: a picture that is late does not hold up the next one, and its latency counts from when it was due.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::function::Role;
use super::gate::{self, Gate, Summary};
use super::geometry::Geometry;
use super::picture::Base64Jpeg;
use super::scene::Truth;
use super::track::Track;
use super::{detect, watch};

/// What the camera sees: the same for every variant.
#[derive(Clone, Debug)]
pub(crate) struct Clip {
    /// For people: a path, an address, or what was generated.
    pub(crate) source: String,
    /// Pictures per second, 1 to 100.
    pub(crate) fps: u32,
    /// JPEG pictures.
    pub(crate) pictures: Vec<Bytes>,
    pub(crate) geometry: Geometry,
    /// What really happens, where that is known.
    pub(crate) truth: Option<Truth>,
}

#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Names of the two functions.
    pub(crate) watch: String,
    pub(crate) detect: String,
    /// The watcher looks at every so many pictures, above 0.
    pub(crate) watch_every: u64,
    /// Pictures between the two of a pair, above 0 and below `watch_every`.
    pub(crate) apart: u64,
    /// From due to answered.
    pub(crate) watch_deadline: Duration,
    pub(crate) detect_deadline: Duration,
    /// Invocations under way at once; beyond it a picture is dropped, and counts as late.
    pub(crate) most_under_way: usize,
}

impl Options {
    /// Two looks a second at pairs 120 ms apart, deadlines of 500 ms and 100 ms.
    #[must_use]
    pub(crate) fn at(fps: u32) -> Self {
        Self {
            watch: "traffic-watch".to_owned(),
            detect: "traffic-detect".to_owned(),
            watch_every: u64::from(fps / 2).max(2),
            apart: u64::from(fps / 8).max(1),
            watch_deadline: Duration::from_millis(500),
            detect_deadline: Duration::from_millis(100),
            most_under_way: 64,
        }
    }
}

/// What an invocation came back with.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) status: u16,
    /// Names in any case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

/// How the camera reaches its functions.
pub(crate) trait Client: Clone + Send + Sync + 'static {
    /// Invokes a function once; called for each picture when it is due, several at once. An answer after the deadline is of
    /// use for the measurement only; how long one is waited for is the client's to say. The error is one line for people.
    fn invoke(&self, function: &str, payload: Bytes) -> impl Future<Output = Result<Outcome, String>> + Send;
}

/// What became of one picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sent {
    pub(crate) index: u64,
    pub(crate) role: Role,
    /// Since the camera began, in microseconds.
    pub(crate) due_us: u64,
    pub(crate) sent_us: u64,
    pub(crate) ended_us: u64,
    pub(crate) deadline_us: u64,
    pub(crate) end: End,
    /// What the node says: class, start delay from arrival and time in a queue, in microseconds.
    pub(crate) class: Option<String>,
    pub(crate) start_delay_us: Option<u64>,
    pub(crate) queue_wait_us: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum End {
    Answered,
    /// The answer was an error or could not be read.
    Failed(String),
    /// Too much was under way already.
    Dropped,
}

impl Sent {
    /// Answered, and by its deadline.
    #[must_use]
    pub(crate) fn is_on_time(&self) -> bool {
        self.end == End::Answered && self.latency_us() <= self.deadline_us
    }

    /// From due to the end.
    #[must_use]
    pub(crate) fn latency_us(&self) -> u64 {
        self.ended_us.saturating_sub(self.due_us)
    }

    /// From due to handler entry.
    #[must_use]
    pub(crate) fn start_us(&self) -> Option<u64> {
        self.start_delay_us.map(|delay| self.sent_us.saturating_sub(self.due_us) + delay)
    }
}

/// One observation from the first picture to the last answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// In the order of the pictures, the watcher's first.
    pub(crate) sent: Vec<Sent>,
    pub(crate) summary: Summary,
    pub(crate) pictures: u64,
    pub(crate) fps: u32,
}

enum Payload {
    Watched(watch::Answer),
    Detected(detect::Answer),
    Nothing,
}

struct Camera<'a, C> {
    client: &'a C,
    clip: &'a Clip,
    options: &'a Options,
    began: Instant,
    gate: Gate,
    state: Option<(u64, watch::State)>,
    road: Option<Base64Jpeg>,
    tracks: (u64, Vec<Track>),
    under_way: JoinSet<(Sent, Payload)>,
    sent: Vec<Sent>,
}

/// Shows a clip to the functions at its own pace. `progress` is called with each picture's number when it is due.
///
/// # Errors
/// Payloads that cannot be written, which none is known of, and a panic in the client.
pub(crate) async fn drive<C: Client>(
    client: &C,
    clip: &Clip,
    options: &Options,
    mut progress: impl FnMut(u64),
) -> anyhow::Result<Run> {
    let pictures = clip.pictures.len() as u64;
    let mut camera = Camera {
        client,
        clip,
        options,
        began: Instant::now(),
        gate: Gate::new(gate::Options::at(clip.fps)),
        state: None,
        road: None,
        tracks: (0, Vec::new()),
        under_way: JoinSet::new(),
        sent: Vec::new(),
    };
    for index in options.apart..pictures {
        camera.answers_until(index).await?;
        progress(index);
        camera.release(index)?;
    }
    while let Some(done) = camera.under_way.join_next().await {
        camera.take(pictures, done?);
    }
    camera.sent.sort_by_key(|sent| (sent.index, sent.role));
    Ok(Run { sent: camera.sent, summary: camera.gate.finish(pictures), pictures, fps: clip.fps })
}

impl<C: Client> Camera<'_, C> {
    fn due(&self, index: u64) -> Duration {
        Duration::from_nanos((index - self.options.apart) * 1_000_000_000 / u64::from(self.clip.fps.max(1)))
    }

    fn seconds(&self, pictures: u64) -> f32 {
        pictures as f32 / self.clip.fps.max(1) as f32
    }

    /// Takes answers as they come until picture `index` is due.
    async fn answers_until(&mut self, index: u64) -> anyhow::Result<()> {
        let due = self.began + self.due(index);
        loop {
            tokio::select! {
                biased;
                Some(done) = self.under_way.join_next() => self.take(index, done?),
                () = sleep_until(due) => return Ok(()),
            }
        }
    }

    fn release(&mut self, index: u64) -> anyhow::Result<()> {
        self.gate.tick(index);
        if index.is_multiple_of(self.options.watch_every.max(1)) {
            let payload = serde_json::to_vec(&self.watch_request(index))?;
            self.send(index, Role::Watch, payload.into());
        }
        if self.gate.is_open()
            && let Some(road) = self.road.clone()
        {
            let payload = serde_json::to_vec(&self.detect_request(index, road))?;
            self.send(index, Role::Detect, payload.into());
        }
        Ok(())
    }

    fn picture(&self, index: u64) -> Base64Jpeg {
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        Base64Jpeg::new(self.clip.pictures.get(at).map_or(&[], |jpeg| jpeg))
    }

    fn watch_request(&self, index: u64) -> watch::Request {
        let state = self.state.as_ref();
        watch::Request {
            index,
            geometry: self.clip.geometry,
            before: self.picture(index - self.options.apart),
            now: self.picture(index),
            apart_s: self.seconds(self.options.apart),
            since_s: state.map_or(0.0, |(last, _)| self.seconds(index - last)).min(60.0),
            state: state.map(|(_, state)| state.clone()),
        }
    }

    fn detect_request(&self, index: u64, road: Base64Jpeg) -> detect::Request {
        detect::Request {
            index,
            geometry: self.clip.geometry,
            picture: self.picture(index),
            road,
            since_s: self.seconds(index.saturating_sub(self.tracks.0)).min(10.0),
            tracks: self.tracks.1.clone(),
        }
    }

    fn send(&mut self, index: u64, role: Role, payload: Bytes) {
        let (function, deadline) = match role {
            Role::Watch => (self.options.watch.clone(), self.options.watch_deadline),
            Role::Detect => (self.options.detect.clone(), self.options.detect_deadline),
        };
        let began = self.began;
        let now_us = move || micros(began.elapsed());
        let mut sent = Sent {
            index,
            role,
            due_us: micros(self.due(index)),
            sent_us: now_us(),
            ended_us: now_us(),
            deadline_us: micros(deadline),
            end: End::Dropped,
            class: None,
            start_delay_us: None,
            queue_wait_us: None,
        };
        if self.options.most_under_way <= self.under_way.len() {
            self.sent.push(sent);
            return;
        }
        let client = self.client.clone();
        self.under_way.spawn(async move {
            let outcome = client.invoke(&function, payload).await;
            sent.ended_us = now_us();
            let payload = sent.read(outcome);
            (sent, payload)
        });
    }

    /// Takes one answer while picture `next` is the next to be due.
    fn take(&mut self, next: u64, (sent, payload): (Sent, Payload)) {
        let index = sent.index;
        self.sent.push(sent);
        match payload {
            Payload::Watched(answer) => {
                let was_open = self.gate.is_open();
                self.gate.watched(next, &answer.found);
                if self.gate.is_open() && !was_open {
                    // The detector goes on from the watcher's tracks, but judges for itself.
                    self.tracks = (index, answer.state.tracks.iter().map(|track| track.unjudged()).collect());
                }
                if self.state.as_ref().is_none_or(|(last, _)| *last < index) {
                    self.road = Some(answer.road);
                    self.state = Some((index, answer.state));
                }
            }
            Payload::Detected(answer) => {
                self.gate.detected(index, &answer.found);
                if self.tracks.0 < index {
                    self.tracks = (index, answer.tracks);
                }
            }
            Payload::Nothing => {}
        }
    }
}

impl Sent {
    /// Notes what the node said, and reads the function's answer.
    fn read(&mut self, outcome: Result<Outcome, String>) -> Payload {
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(reason) => {
                self.end = End::Failed(reason);
                return Payload::Nothing;
            }
        };
        let header = |name: &str| {
            outcome.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
        };
        let number = |name: &str| header(name).and_then(|value| value.trim().parse().ok());
        self.class = header("x-takt-class");
        self.start_delay_us = number("x-takt-start-delay-us");
        self.queue_wait_us = number("x-takt-queue-wait-us");
        if outcome.status != 200 || header("x-amz-function-error").is_some() {
            let text: String = String::from_utf8_lossy(&outcome.body).chars().take(200).collect();
            self.end = End::Failed(format!("status {}: {text}", outcome.status));
            return Payload::Nothing;
        }
        let payload = match self.role {
            Role::Watch => serde_json::from_slice(&outcome.body).map(Payload::Watched),
            Role::Detect => serde_json::from_slice(&outcome.body).map(Payload::Detected),
        };
        match payload {
            Ok(payload) => {
                self.end = End::Answered;
                payload
            }
            Err(error) => {
                self.end = End::Failed(format!("an answer that cannot be read: {error}"));
                Payload::Nothing
            }
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::demo::traffic::function::Handler;
    use crate::demo::traffic::scene::{self, FPS, Plan, Scene};

    /// Runs the functions in place; an invocation takes `takes` of virtual time.
    #[derive(Clone)]
    struct InPlace {
        takes: Duration,
    }

    impl Client for InPlace {
        async fn invoke(&self, function: &str, payload: Bytes) -> Result<Outcome, String> {
            let handler = if function == "traffic-watch" { Handler::Watch } else { Handler::Detect };
            let result = handler.handle(&payload).map_err(|error| format!("{error:#}"));
            tokio::time::sleep(self.takes).await;
            let headers = [("X-Takt-Class", "guaranteed"), ("x-takt-start-delay-us", "700"), ("X-Takt-Queue-Wait-Us", "20")];
            let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
            Ok(Outcome { status: 200, headers, body: result?.into() })
        }
    }

    pub(in crate::demo::traffic) fn clip(seed: u64) -> Clip {
        let scene = Scene::new(Plan { seed, seconds: 16, duty: 0.2 }).unwrap();
        Clip {
            source: "generated".to_owned(),
            fps: FPS,
            pictures: (0..scene.pictures()).map(|index| scene.jpeg(index).unwrap().into()).collect(),
            geometry: scene::geometry(),
            truth: Some(scene.truth().clone()),
        }
    }

    pub(in crate::demo::traffic) async fn run(takes: Duration, clip: &Clip) -> Run {
        drive(&InPlace { takes }, clip, &Options::at(FPS), |_| {}).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_full_rate_lasts_as_long_as_the_event() {
        let clip = clip(15);
        let run = run(Duration::from_millis(12), &clip).await;
        let event = &clip.truth.as_ref().unwrap().events[0];
        assert_eq!((run.summary.detected.len(), run.summary.open.len()), (1, 1), "{:?}", run.summary.open);
        let (from, to) = run.summary.open[0];
        assert!(event.begin <= from && from <= event.begin + 60 && event.end - 5 <= to && to <= event.end + 40, "{from}..{to}");
        let full = run.sent.iter().filter(|sent| sent.role == Role::Detect);
        assert_eq!(full.clone().count() as u64, to - from);
        assert!(full.into_iter().all(Sent::is_on_time));
        assert_eq!(run.sent[0].class.as_deref(), Some("guaranteed"));
        assert_eq!((run.sent[0].start_delay_us, run.sent[0].queue_wait_us), (Some(700), Some(20)));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_functions_do_not_slow_the_camera() {
        let clip = clip(15);
        let run = run(Duration::from_millis(130), &clip).await;
        let late: Vec<_> = run.sent.iter().filter(|sent| sent.role == Role::Detect).collect();
        assert!(!late.is_empty() && late.iter().all(|sent| !sent.is_on_time()));
        assert!(run.sent.iter().all(|sent| sent.sent_us <= sent.due_us + 2_000));
    }
}
