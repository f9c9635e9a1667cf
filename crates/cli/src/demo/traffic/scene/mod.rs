//! A generated highway with known ground truth.
//!
//! Three lanes and a shoulder seen from a mast that sways in the wind, in changing light, by a noisy camera. Now and then
//! something happens: a vehicle stops, another crawls, somebody walks or cycles on the shoulder. Every picture is a function of
//! the plan and its number alone, so pictures may be made in any order and again.

mod actors;
mod canvas;
mod paint;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use self::actors::Actor;
use self::canvas::Canvas;
use self::paint::Sway;
use super::geometry::Geometry;
use super::num;
use super::picture::{self, Rect};

/// Picture size in pixels.
pub(crate) const WIDTH: usize = 320;
pub(crate) const HEIGHT: usize = 240;
/// Pictures per second.
pub(crate) const FPS: u32 = 25;
/// Longest scene, in seconds.
pub(crate) const MAX_SECONDS: u32 = 600;

const HORIZON: f32 = 19.0;
const CAMERA_HEIGHT_M: f32 = 8.5;
const FOCAL: f32 = 272.0;
const QUALITY: u8 = 84;
/// Before this many seconds nothing special happens, so that a watcher can learn the empty road.
const QUIET_S: f32 = 6.5;
/// Shortest and longest event, in seconds.
const EVENT_S: (f32, f32) = (2.7, 9.0);
const NOISE_VALUES: usize = 1 << 16;

/// What a scene is made from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Length in seconds, 10 to [`MAX_SECONDS`].
    pub(crate) seconds: u32,
    /// Share of the time in which something happens, 0 (never) to 0.5.
    pub(crate) duty: f32,
}

/// What may happen on the road.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    StoppedVehicle,
    SlowVehicle,
    Pedestrian,
    Cyclist,
}

/// One thing that happened, as it really was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Event {
    pub(crate) kind: Kind,
    /// First picture of it.
    pub(crate) begin: u64,
    /// First picture after it.
    pub(crate) end: u64,
    /// Where it was, for each of its pictures.
    pub(crate) boxes: Vec<Rect>,
}

/// What really happened in a clip, in the order of the beginnings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Truth {
    pub(crate) events: Vec<Event>,
}

impl Truth {
    /// Share of `pictures` in which something happens, 0 to 1.
    #[must_use]
    pub(crate) fn duty(&self, pictures: u64) -> f64 {
        let busy: u64 = self.events.iter().map(|event| event.end.min(pictures).saturating_sub(event.begin)).sum();
        busy as f64 / pictures.max(1) as f64
    }
}

/// Why a plan cannot be carried out.
#[derive(Debug, thiserror::Error, PartialEq)]
pub(crate) enum Error {
    #[error("a scene of {0} s is outside the limits of 10 to {MAX_SECONDS} s")]
    Seconds(u32),
    #[error("an event share of {0} is outside the limits of 0 to 0.5")]
    Duty(f32),
}

/// A scene, ready to be looked at.
#[derive(Debug)]
pub(crate) struct Scene {
    plan: Plan,
    road: Canvas,
    actors: Vec<Actor>,
    grain: Vec<i8>,
    truth: Truth,
    light_phase: f32,
}

/// How the camera of generated scenes looks at its road.
#[must_use]
pub(crate) fn geometry() -> Geometry {
    Geometry { horizon: HORIZON / num::float(HEIGHT), height_m: CAMERA_HEIGHT_M, focal: FOCAL / num::float(WIDTH) }
}

impl Scene {
    /// Lays out a scene.
    ///
    /// # Errors
    /// Numbers outside their limits.
    pub(crate) fn new(plan: Plan) -> Result<Self, Error> {
        if !(10..=MAX_SECONDS).contains(&plan.seconds) {
            return Err(Error::Seconds(plan.seconds));
        }
        if !(0.0..=0.5).contains(&plan.duty) {
            return Err(Error::Duty(plan.duty));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
        let light_phase = rng.random_range(0.0..std::f32::consts::TAU);
        // The sum of four uniform values is close enough to a bell; standard deviation about 2.3 grey values.
        let grain = (0..NOISE_VALUES).map(|_| (0..4).map(|_| rng.random_range(-2_i8..=2)).sum::<i8>() * 4 / 5).collect();
        let road = paint::road(rng.random());
        let starring = stage(&mut rng, plan);
        let actors = actors::traffic(&mut rng, plan.seconds, starring.iter().map(|(actor, _)| actor.clone()).collect());
        let mut scene = Self { plan, road, actors, grain, truth: Truth::default(), light_phase };
        scene.truth = scene.observe(&starring);
        Ok(scene)
    }

    /// How many pictures there are.
    #[must_use]
    pub(crate) fn pictures(&self) -> u64 {
        u64::from(self.plan.seconds) * u64::from(FPS)
    }

    #[must_use]
    pub(crate) fn truth(&self) -> &Truth {
        &self.truth
    }

    /// Picture `index` as red, green and blue bytes.
    #[must_use]
    pub(crate) fn rgb(&self, index: u64) -> Vec<u8> {
        let (t, sway) = (seconds(index), self.sway(index));
        let mut canvas = self.swayed_road(sway);
        let mut visible: Vec<_> = self.actors.iter().filter(|actor| actor.is_visible(t)).collect();
        visible.sort_by(|a, b| b.place(t).1.total_cmp(&a.place(t).1));
        for actor in visible {
            actor.draw(&mut canvas, t, sway);
        }
        self.expose(&mut canvas, index);
        canvas.pixels
    }

    /// Picture `index` as JPEG.
    ///
    /// # Errors
    /// None that the encoder is known to give for this size.
    pub(crate) fn jpeg(&self, index: u64) -> Result<Vec<u8>, picture::Error> {
        picture::encode_rgb(&self.rgb(index), 320, 240, QUALITY)
    }

    /// Slow light changes, then the sensor's noise.
    fn expose(&self, canvas: &mut Canvas, index: u64) {
        let t = seconds(index);
        let gain = 1.0 + 0.045 * (t * 0.27 + self.light_phase).sin() + 0.02 * (t * 0.83 + 2.0 * self.light_phase).sin();
        let gain = num::round(gain * 256.0);
        let offset = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.plan.seed.rotate_left(17);
        let start = usize::try_from(offset >> 40).unwrap_or(0) % NOISE_VALUES;
        let grain = self.grain.iter().cycle().skip(start);
        for (pixel, &noise) in canvas.pixels.chunks_exact_mut(3).zip(grain) {
            for value in pixel {
                let lit = ((i32::from(*value) * gain) >> 8) + i32::from(noise);
                *value = u8::try_from(lit.clamp(0, 255)).unwrap_or(u8::MAX);
            }
        }
    }

    fn sway(&self, index: u64) -> Sway {
        let t = seconds(index) + self.light_phase;
        Sway { x: 0.55 * (t * 2.9).sin() + 0.3 * (t * 7.3).sin(), y: 0.4 * (t * 3.7 + 1.0).sin() + 0.25 * (t * 9.1).sin() }
    }

    /// The empty road moved by part of a pixel.
    fn swayed_road(&self, sway: Sway) -> Canvas {
        let mut canvas = self.road.clone();
        let (dx, dy) = (num::floor(-sway.x), num::floor(-sway.y));
        let part = |value: f32| num::round((-value - (-value).floor()) * 16.0);
        let (u, v) = (part(sway.x), part(sway.y));
        let weights = [(16 - u) * (16 - v), u * (16 - v), (16 - u) * v, u * v];
        let clamp = |value: i32, limit: usize| num::index(value).min(limit - 1);
        let columns: Vec<_> = (0..num::signed(WIDTH)).map(|x| (clamp(x + dx, WIDTH) * 3, clamp(x + dx + 1, WIDTH) * 3)).collect();
        for (y, row) in canvas.pixels.chunks_exact_mut(WIDTH * 3).enumerate() {
            let upper = &self.road.pixels[clamp(num::signed(y) + dy, HEIGHT) * WIDTH * 3..][..WIDTH * 3];
            let lower = &self.road.pixels[clamp(num::signed(y) + dy + 1, HEIGHT) * WIDTH * 3..][..WIDTH * 3];
            for (pixel, &(a, b)) in row.chunks_exact_mut(3).zip(&columns) {
                for (channel, value) in pixel.iter_mut().enumerate() {
                    let sum = i32::from(upper[a + channel]) * weights[0]
                        + i32::from(upper[b + channel]) * weights[1]
                        + i32::from(lower[a + channel]) * weights[2]
                        + i32::from(lower[b + channel]) * weights[3];
                    *value = u8::try_from((sum + 128) >> 8).unwrap_or(u8::MAX);
                }
            }
        }
        canvas
    }

    fn observe(&self, starring: &[(Actor, Kind)]) -> Truth {
        let events = starring.iter().filter_map(|(actor, kind)| {
            let happening: Vec<u64> = (0..self.pictures()).filter(|&index| actor.is_event(seconds(index))).collect();
            let (begin, end) = (*happening.first()?, *happening.last()? + 1);
            let boxes = (begin..end)
                .map(|index| actor.bounds(seconds(index), self.sway(index)).clipped(WIDTH, HEIGHT).unwrap_or_default())
                .collect();
            Some(Event { kind: *kind, begin, end, boxes })
        });
        let mut events: Vec<_> = events.collect();
        events.sort_by_key(|event| event.begin);
        Truth { events }
    }
}

/// Spreads the events of a plan over its time, one slot each, the kinds taking turns.
fn stage(rng: &mut ChaCha8Rng, plan: Plan) -> Vec<(Actor, Kind)> {
    const KINDS: [Kind; 4] = [Kind::StoppedVehicle, Kind::Pedestrian, Kind::SlowVehicle, Kind::Cyclist];
    let seconds = plan.seconds as f32;
    let busy = plan.duty * seconds;
    if busy <= 0.0 {
        return Vec::new();
    }
    let room = seconds - QUIET_S - 2.0;
    let most = num::count(f64::from(room / (EVENT_S.0 + 4.0))).max(1);
    let events = num::count(f64::from(busy / 3.5)).clamp(1, most);
    let length = (busy / num::float(events)).clamp(EVENT_S.0, EVENT_S.1);
    let slot = room / num::float(events);
    let first: usize = rng.random_range(0..KINDS.len());
    (0..events)
        .map(|index| {
            let kind = KINDS[(first + index) % KINDS.len()];
            let slack = (slot - length - 2.0).max(0.1);
            let begin = QUIET_S + slot * num::float(index) + rng.random_range(0.0..slack);
            (Actor::starring(rng, kind, begin, length), kind)
        })
        .collect()
}

fn seconds(index: u64) -> f32 {
    index as f32 / FPS as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene(seed: u64, duty: f32) -> Scene {
        Scene::new(Plan { seed, seconds: 28, duty }).unwrap()
    }

    #[test]
    fn the_same_plan_gives_the_same_pictures_in_any_order() {
        let (a, b) = (scene(7, 0.1), scene(7, 0.1));
        let late = a.jpeg(300).unwrap();
        assert_eq!(a.jpeg(20).unwrap(), b.jpeg(20).unwrap());
        assert_eq!(late, b.jpeg(300).unwrap());
    }

    #[test]
    fn events_take_about_the_asked_share_of_the_time() {
        for seed in 0..20 {
            let scene = scene(seed, 0.125);
            let duty = scene.truth().duty(scene.pictures());
            assert!((0.08..=0.17).contains(&duty), "seed {seed}: {duty}");
        }
    }

    #[test]
    fn every_kind_of_event_is_staged() {
        let kinds: std::collections::BTreeSet<_> =
            (0..8).flat_map(|seed| scene(seed, 0.1).truth().events.iter().map(|event| event.kind).collect::<Vec<_>>()).collect();
        assert_eq!(kinds.len(), 4);
    }

    #[test]
    fn every_event_is_inside_the_picture() {
        for seed in 0..12 {
            for event in &scene(seed, 0.25).truth().events {
                assert!(event.boxes.iter().all(|rect| 2.0 < rect.w && 6.0 < rect.h), "seed {seed}: {event:?}");
            }
        }
    }

    #[test]
    fn no_share_means_no_event() {
        assert_eq!(scene(3, 0.0).truth().events, vec![]);
    }

    #[test]
    fn numbers_outside_the_limits_are_refused() {
        let refused = |seconds, duty| Scene::new(Plan { seed: 1, seconds, duty }).err();
        assert_eq!(refused(9, 0.1), Some(Error::Seconds(9)));
        assert_eq!(refused(601, 0.1), Some(Error::Seconds(601)));
        assert_eq!(refused(30, 0.6), Some(Error::Duty(0.6)));
    }
}
