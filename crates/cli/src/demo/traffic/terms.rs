//! What is asked of admission: rates that follow from the camera, bounds that follow from a measurement.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;

use super::camera::{Clip, Options};
use super::function::{Handler, thread_cpu};
use super::picture::Base64Jpeg;
use super::{detect, watch};
use crate::demo::traffic::function::Role;

/// Looks and full-rate pictures that are tried, spread over the clip.
const TRIES: usize = 24;
/// Each is run so often and its shortest run counts: what else the machine does meanwhile is not the function's.
const REPEATS: usize = 3;
/// A bound is so many times the longest run that was seen, and a little more: a new instance's first runs take longer, and
/// instances run on whatever core admission chooses.
const MARGIN: u32 = 3;
const AT_LEAST: Duration = Duration::from_millis(4);
/// Where that would take more than half a core at the camera's rate, this margin has to do: in halves of the longest run.
const NARROW_MARGIN_HALVES: u32 = 3;
/// A slow machine gets deadlines it can keep: this many bounds, for a burst with whatever else is promised on its core.
const BOUNDS_TO_DEADLINE: u32 = 6;
const DEADLINE_STEP_MS: u128 = 10;
const BURST: u32 = 3;

/// The longest processor times seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunTimes {
    pub(crate) watch: Duration,
    pub(crate) detect: Duration,
}

impl RunTimes {
    pub(crate) fn of(self, role: Role) -> Duration {
        match role {
            Role::Watch => self.watch,
            Role::Detect => self.detect,
        }
    }
}

/// Runs both functions here on pictures of the clip, one after the other, as the camera would ask them.
pub(crate) fn measure(clip: &Clip, options: &Options) -> Result<RunTimes> {
    let picture = |at: usize| Base64Jpeg::new(clip.pictures.get(at).map_or(&[], |jpeg: &Bytes| jpeg));
    let apart = usize::try_from(options.apart).unwrap_or(1);
    let every = (clip.pictures.len() / TRIES).max(1);
    let seconds = |pictures: usize| pictures as f32 / clip.fps.max(1) as f32;
    let mut times = RunTimes { watch: Duration::ZERO, detect: Duration::ZERO };
    let mut state = None;
    for at in (apart..clip.pictures.len()).step_by(every) {
        let request = watch::Request {
            index: at as u64,
            geometry: clip.geometry,
            before: picture(at - apart),
            now: picture(at),
            apart_s: seconds(apart),
            since_s: if state.is_some() { seconds(every).min(60.0) } else { 0.0 },
            state: state.take(),
        };
        let answer = timed(Handler::Watch, &request, &mut times.watch)?;
        let answer: watch::Answer = serde_json::from_slice(&answer).context("the watcher's answer")?;
        let request = detect::Request {
            index: at as u64,
            geometry: clip.geometry,
            picture: picture(at),
            road: answer.road,
            since_s: 1.0 / clip.fps.max(1) as f32,
            tracks: answer.state.tracks.clone(),
        };
        timed(Handler::Detect, &request, &mut times.detect)?;
        state = Some(answer.state);
    }
    Ok(times)
}

/// The answer; `longest` is raised to the processor time of the shortest of several runs.
fn timed(handler: Handler, request: &impl serde::Serialize, longest: &mut Duration) -> Result<Vec<u8>> {
    let event = serde_json::to_vec(request).context("cannot write a request")?;
    let mut shortest = Duration::MAX;
    let mut answer = Vec::new();
    for _ in 0..REPEATS {
        let before = thread_cpu();
        answer = handler.handle(&event).context("the pictures cannot be analysed")?;
        shortest = shortest.min(thread_cpu().saturating_sub(before));
    }
    *longest = (*longest).max(shortest);
    Ok(answer)
}

/// The bound that is promised to hold for pictures at a rate of `fps`, in whole milliseconds.
#[must_use]
pub(crate) fn bound(longest: Duration, fps: u32) -> Duration {
    let half_a_core = Duration::from_millis(500) / fps.max(1);
    let bound = (longest * MARGIN + AT_LEAST).min(half_a_core).max(longest * NARROW_MARGIN_HALVES / 2);
    Duration::from_millis(u64::try_from(bound.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX))
}

/// The options with deadlines that this machine can keep.
#[must_use]
pub(crate) fn reachable(options: Options, times: RunTimes, fps: u32) -> Options {
    let stretched = |wished: Duration, longest| {
        let least = (bound(longest, fps) * BOUNDS_TO_DEADLINE).as_millis().next_multiple_of(DEADLINE_STEP_MS);
        wished.max(Duration::from_millis(u64::try_from(least).unwrap_or(u64::MAX)))
    };
    Options {
        watch_deadline: stretched(options.watch_deadline, times.watch),
        detect_deadline: stretched(options.detect_deadline, times.detect),
        ..options
    }
}

/// Whether a function is deployed with its guarantee.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Guaranteed,
    BestEffort,
}

/// The `takt.toml` of one of the camera's functions.
#[must_use]
pub(crate) fn configuration(role: Role, (clip, options): (&Clip, &Options), longest: Duration, standing: Standing) -> String {
    let (name, deadline) = match role {
        Role::Watch => (&options.watch, options.watch_deadline),
        Role::Detect => (&options.detect, options.detect_deadline),
    };
    let mut text = format!(
        "name = \"{name}\"\nruntime = \"provided\"\nhandler = \"{}\"\nmemory = \"128MB\"\ntenant = \"road\"\ntimeout = \"5s\"\n\
         [network]\noutbound = \"none\"\n",
        role.name(),
    );
    match standing {
        Standing::BestEffort => {}
        Standing::Guaranteed => {
            text += &format!(
                "[guarantee]\nrate = \"{}\"\nburst = {BURST}\nmax_run_time = \"{}ms\"\ndeadline = \"{}ms\"\n",
                rate(role, clip, options),
                bound(longest, clip.fps).as_millis(),
                deadline.as_millis(),
            );
        }
    }
    text
}

/// The camera's rate, exactly.
fn rate(role: Role, clip: &Clip, options: &Options) -> String {
    match role {
        Role::Watch => format!("{}/min", (u64::from(clip.fps) * 60).div_ceil(options.watch_every.max(1))),
        Role::Detect => format!("{}/s", clip.fps),
    }
}

/// Neighbours for each core, and their limits: each is a function with instances of its own.
const NEIGHBOURS_PER_CORE: u32 = 16;
const FEWEST_NEIGHBOURS: u32 = 32;
const MOST_NEIGHBOURS: u32 = 96;

/// Cores that the two functions keep busy while something happens, by the longest runs that were measured.
#[must_use]
pub(crate) fn needed_cores(times: RunTimes, options: &Options, fps: u32) -> f64 {
    let fps = f64::from(fps);
    let looks = fps / options.watch_every.max(1) as f64;
    times.detect.as_secs_f64() * fps + times.watch.as_secs_f64() * looks
}

/// What the camera's tenant gets of the cores when so many others, and it, always want them.
#[must_use]
pub(crate) fn fair_share(cores: u32, neighbours: u16) -> f64 {
    f64::from(cores) / (f64::from(neighbours) + 1.0)
}

/// As many neighbours as make a crowd on this machine.
#[must_use]
pub(crate) fn neighbours(cores: u32) -> u16 {
    let crowd = cores.saturating_mul(NEIGHBOURS_PER_CORE).clamp(FEWEST_NEIGHBOURS, MOST_NEIGHBOURS);
    u16::try_from(crowd).unwrap_or(u16::MAX)
}

/// The `takt.toml` of a neighbour's function.
#[must_use]
pub(crate) fn neighbour(name: &str) -> String {
    format!(
        "name = \"{name}\"\nruntime = \"provided\"\nhandler = \"burn\"\nmemory = \"64MB\"\ntenant = \"{name}\"\n\
         timeout = \"30s\"\n[network]\noutbound = \"none\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::traffic::camera;

    #[test]
    fn a_slow_machine_is_asked_for_what_it_can_keep() {
        let ms = Duration::from_millis;
        let asked = |watch, detect| {
            let options = reachable(Options::at(25), RunTimes { watch: ms(watch), detect: ms(detect) }, 25);
            (options.watch_deadline.as_millis(), bound(ms(detect), 25).as_millis(), options.detect_deadline.as_millis())
        };
        assert_eq!(asked(3, 2), (500, 10, 100));
        assert_eq!(asked(3, 5), (500, 19, 120));
        assert_eq!(asked(9, 9), (500, 20, 120), "no more than half a core");
        assert_eq!(asked(60, 17), (540, 26, 160));
    }

    #[test]
    fn what_is_asked_follows_from_the_camera_and_the_measurement() {
        let clip = camera::tests::clip(15);
        let options = Options::at(clip.fps);
        let times = measure(&clip, &options).unwrap();
        assert!(Duration::ZERO < times.watch && Duration::ZERO < times.detect);
        let spec = |role, standing| {
            model::config::parse(&configuration(role, (&clip, &options), Duration::from_micros(2_100), standing)).unwrap()
        };
        let terms = spec(Role::Detect, Standing::Guaranteed).guarantee.unwrap().to_pairs();
        let text = |key: &str| terms.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone()).unwrap();
        assert_eq!((text("rate"), text("max_run_time"), text("deadline")), ("25/s".into(), "11ms".into(), "100ms".into()));
        let terms = spec(Role::Watch, Standing::Guaranteed).guarantee.unwrap().to_pairs();
        assert!(terms.iter().any(|(key, value)| *key == "rate" && value == "125/min"), "{terms:?}");
        assert!(spec(Role::Detect, Standing::BestEffort).guarantee.is_none());
        assert!(model::config::parse(&neighbour("neighbour-1")).unwrap().guarantee.is_none());
    }

    #[test]
    fn the_fair_share_is_that_of_one_tenant_of_all() {
        let options = Options::at(25);
        let times = RunTimes { watch: Duration::from_millis(4), detect: Duration::from_millis(2) };
        let needed = needed_cores(times, &options, 25);
        assert!((needed - (0.05 + 0.004 * 25.0 / options.watch_every as f64)).abs() < 1e-9, "{needed}");
        assert_eq!((fair_share(2, 39), [1, 2, 4, 64].map(neighbours)), (0.05, [32, 32, 64, 96]));
    }
}
