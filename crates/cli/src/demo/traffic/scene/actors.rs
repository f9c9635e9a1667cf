//! Who moves on the generated road, and how.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::Kind;
use super::canvas::{Canvas, Colour};
use super::paint::{self, BUSHES_M, Body, LANE_M, RAIL_M, ROAD_LEFT_M, SHOULDER_M, Sway};
use crate::demo::traffic::num;
use crate::demo::traffic::picture::Rect;

/// Below this a vehicle counts as slow: 20 km/h.
const SLOW_M_PER_S: f32 = 5.5;
/// Farther away nothing is drawn.
const FARTHEST_M: f32 = 150.0;
/// Vehicles that enter per second, over all lanes.
const VEHICLES_PER_S: f32 = 0.75;
/// Mean speed per lane in m/s, from the left lane to the right one.
const LANE_SPEEDS: [f32; 3] = [33.0, 28.5, 23.5];
/// Closest that two vehicles of one lane come, in metres between their rears.
const HEADWAY_M: f32 = 15.0;

const PAINTS: [Colour; 9] = [
    [214.0, 216.0, 218.0],
    [176.0, 180.0, 186.0],
    [60.0, 64.0, 70.0],
    [34.0, 36.0, 42.0],
    [130.0, 30.0, 34.0],
    [40.0, 62.0, 112.0],
    [36.0, 84.0, 92.0],
    [196.0, 178.0, 140.0],
    [84.0, 92.0, 80.0],
];
const COATS: [Colour; 4] = [[150.0, 36.0, 38.0], [36.0, 52.0, 96.0], [208.0, 190.0, 60.0], [40.0, 42.0, 46.0]];

/// From `from` on: place, speed and acceleration along the road.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leg {
    from: f32,
    z: f32,
    v: f32,
    a: f32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Waypoint {
    t: f32,
    x: f32,
    z: f32,
}

#[derive(Clone, Debug)]
pub(super) enum Actor {
    Vehicle { body: Body, colour: Colour, x: f32, legs: Vec<Leg>, visible: (f32, f32) },
    Walker { coat: Colour, way: Vec<Waypoint> },
    Cyclist { coat: Colour, way: Vec<Waypoint> },
}

impl Actor {
    /// The main actor of an event that begins at `begin` and takes `length` seconds.
    pub(super) fn starring(rng: &mut ChaCha8Rng, kind: Kind, begin: f32, length: f32) -> Self {
        let coat = COATS[rng.random_range(0..COATS.len())];
        match kind {
            Kind::StoppedVehicle => slow_vehicle(rng, 0.0, begin, length),
            Kind::SlowVehicle => {
                let crawl = rng.random_range(1.6..2.6);
                slow_vehicle(rng, crawl, begin, length)
            }
            Kind::Pedestrian => Self::Walker { coat, way: walk(rng, begin, length) },
            Kind::Cyclist => Self::Cyclist { coat, way: ride(rng, begin, length) },
        }
    }

    /// Metres to the right of the axis and metres away, at time `t`.
    pub(super) fn place(&self, t: f32) -> (f32, f32) {
        match self {
            Self::Vehicle { x, legs, .. } => (*x, motion(legs, t).0),
            Self::Walker { way, .. } | Self::Cyclist { way, .. } => along(way, t),
        }
    }

    pub(super) fn is_visible(&self, t: f32) -> bool {
        let (from, to) = match self {
            Self::Vehicle { visible, .. } => *visible,
            Self::Walker { way, .. } | Self::Cyclist { way, .. } => {
                (way.first().map_or(0.0, |point| point.t), way.last().map_or(0.0, |point| point.t))
            }
        };
        (from..to).contains(&t)
    }

    /// What this actor does at `t` is what the event is about.
    pub(super) fn is_event(&self, t: f32) -> bool {
        let (x, z) = self.place(t);
        match self {
            Self::Vehicle { legs, .. } => self.is_visible(t) && motion(legs, t).1 < SLOW_M_PER_S,
            Self::Walker { .. } | Self::Cyclist { .. } => self.is_visible(t) && x < BUSHES_M && ROAD_LEFT_M - 1.2 < x && 10.6 < z,
        }
    }

    pub(super) fn bounds(&self, t: f32, sway: Sway) -> Rect {
        let (x, z) = self.place(t);
        match self {
            Self::Vehicle { body, .. } => paint::bounds(x, z, body.size_m(), sway),
            Self::Walker { .. } | Self::Cyclist { .. } => paint::person_bounds(x, z, 1.77, sway),
        }
    }

    pub(super) fn draw(&self, canvas: &mut Canvas, t: f32, sway: Sway) {
        let at = self.place(t);
        let hidden = ((BUSHES_M + 1.2 - at.0) / 1.2).clamp(0.0, 1.0);
        match self {
            Self::Vehicle { body, colour, legs, .. } => {
                let (_, v, a) = motion(legs, t);
                let brake = if a < 0.0 || v < 0.3 { 1.0 } else { 0.0 };
                paint::vehicle(canvas, *body, *colour, at, (sway, brake));
            }
            Self::Walker { coat, .. } => paint::walker(canvas, *coat, at, at.0 + at.1, (sway, hidden)),
            Self::Cyclist { coat, .. } => paint::cyclist(canvas, *coat, at, at.0 + at.1, (sway, hidden)),
        }
    }

    /// Whether the two would touch, or follow each other implausibly closely, at any time.
    fn conflicts(&self, other: &Self, seconds: f32) -> bool {
        let steps = num::count(f64::from(seconds / 0.2)) + 50;
        (0..steps).any(|step| {
            let t = num::float(step) * 0.2 - 5.0;
            let ((ax, az), (bx, bz)) = (self.place(t), other.place(t));
            let in_sight = (-30.0..90.0).contains(&az) && (-30.0..90.0).contains(&bz);
            in_sight && (ax - bx).abs() < 2.4 && (az - bz).abs() < HEADWAY_M
        })
    }
}

/// Ordinary traffic around the main actors, who come last in the list.
pub(super) fn traffic(rng: &mut ChaCha8Rng, seconds: u32, starring: Vec<Actor>) -> Vec<Actor> {
    let seconds = seconds as f32;
    let mut actors = starring;
    let mut t = -4.0;
    while t < seconds {
        t += -rng.random_range(0.001_f32..1.0).ln() / VEHICLES_PER_S;
        let vehicle = passing_vehicle(rng, t);
        if !actors.iter().any(|other| other.conflicts(&vehicle, seconds)) {
            actors.push(vehicle);
        }
    }
    actors
}

fn passing_vehicle(rng: &mut ChaCha8Rng, enters: f32) -> Actor {
    let lane = rng.random_range(0..LANE_SPEEDS.len());
    let body = match (lane, rng.random_range(0..10)) {
        (2, 0..4) => Body::Truck,
        (_, 4..6) => Body::Van,
        _ => Body::Car,
    };
    let v = if body == Body::Truck { 22.5 } else { LANE_SPEEDS[lane] } * rng.random_range(0.94..1.06);
    let z = 2.0 - body.size_m().0;
    vehicle(rng, body, lane, vec![Leg { from: enters, z, v, a: 0.0 }])
}

fn vehicle(rng: &mut ChaCha8Rng, body: Body, lane: usize, legs: Vec<Leg>) -> Actor {
    let mut colour = PAINTS[rng.random_range(0..PAINTS.len())];
    if body == Body::Truck {
        colour = [[212.0, 208.0, 198.0], [180.0, 184.0, 190.0], [92.0, 104.0, 128.0]][rng.random_range(0..3)];
    }
    let x = ROAD_LEFT_M + (num::float(lane) + 0.5) * LANE_M + rng.random_range(-0.3..0.3);
    let from = legs.first().map_or(0.0, |leg| leg.from);
    let last = legs.last().copied().unwrap_or(Leg { from, z: 0.0, v: 1.0, a: 0.0 });
    let away = FARTHEST_M - last.z;
    let leaves = if last.a == 0.0 {
        last.from + away / last.v.max(0.1)
    } else {
        last.from + ((last.v * last.v + 2.0 * last.a * away).max(0.0).sqrt() - last.v) / last.a
    };
    Actor::Vehicle { body, colour, x, legs, visible: (from, leaves) }
}

/// A vehicle that brakes to `crawl` (0: stands still) and drives on; below [`SLOW_M_PER_S`] from `begin` for `length`.
fn slow_vehicle(rng: &mut ChaCha8Rng, crawl: f32, begin: f32, length: f32) -> Actor {
    const BRAKE: f32 = 7.0;
    const START: f32 = 3.5;
    let body = if rng.random_range(0..4) == 0 { Body::Van } else { Body::Car };
    let lane = rng.random_range(0..LANE_SPEEDS.len());
    let v0 = rng.random_range(12.5..14.5);
    let reaches = |from: f32| (from * from - SLOW_M_PER_S * SLOW_M_PER_S) / (2.0 * BRAKE);
    let slow_z = if crawl < 0.1 { rng.random_range(19.0..24.0) } else { rng.random_range(16.0..19.0) };
    let brake_z = slow_z - reaches(v0);
    let brake_t = begin - (v0 - SLOW_M_PER_S) / BRAKE;
    let enters_z = 2.0 - body.size_m().0;
    let braked_t = begin + (SLOW_M_PER_S - crawl) / BRAKE;
    let braked_z = brake_z + (v0 * v0 - crawl * crawl) / (2.0 * BRAKE);
    let hold = (length - (SLOW_M_PER_S - crawl) * (1.0 / BRAKE + 1.0 / START)).max(0.3);
    let cruise_t = braked_t + hold + (26.0 - crawl) / START;
    let cruise_z = braked_z + crawl * hold + (26.0 * 26.0 - crawl * crawl) / (2.0 * START);
    let legs = vec![
        Leg { from: brake_t - (brake_z - enters_z) / v0, z: enters_z, v: v0, a: 0.0 },
        Leg { from: brake_t, z: brake_z, v: v0, a: -BRAKE },
        Leg { from: braked_t, z: braked_z, v: crawl, a: 0.0 },
        Leg { from: braked_t + hold, z: braked_z + crawl * hold, v: crawl, a: START },
        Leg { from: cruise_t, z: cruise_z, v: 26.0, a: 0.0 },
    ];
    vehicle(rng, body, lane, legs)
}

/// Out of the bushes, over the rail, along the shoulder and back; with much time, across the whole road.
fn walk(rng: &mut ChaCha8Rng, begin: f32, length: f32) -> Vec<Waypoint> {
    const WALK: f32 = 1.5;
    let z = rng.random_range(16.0..24.0);
    let end = begin + length;
    let hidden = BUSHES_M + 1.2;
    let reach = 1.2 / WALK;
    let mut way = vec![Waypoint { t: begin - reach, x: hidden, z }, Waypoint { t: begin, x: BUSHES_M, z }];
    if 7.0 <= length {
        let speed = (BUSHES_M - ROAD_LEFT_M + 1.2) / length;
        way.push(Waypoint { t: end, x: ROAD_LEFT_M - 1.2, z });
        way.push(Waypoint { t: end + 6.0, x: ROAD_LEFT_M - 1.2 - 6.0 * speed, z });
        return way;
    }
    let aside = BUSHES_M - RAIL_M + rng.random_range(0.7..1.0);
    let aside_s = aside / WALK;
    let far = z + WALK * (length - 2.0 * aside_s).max(0.0);
    way.push(Waypoint { t: begin + aside_s, x: BUSHES_M - aside, z });
    way.push(Waypoint { t: end - aside_s, x: BUSHES_M - aside, z: far });
    way.push(Waypoint { t: end, x: BUSHES_M, z: far });
    way.push(Waypoint { t: end + reach, x: hidden, z: far });
    way
}

/// Along the shoulder from below the picture, then off to the right.
fn ride(rng: &mut ChaCha8Rng, begin: f32, length: f32) -> Vec<Waypoint> {
    const OFF_S: f32 = 0.9;
    let x = rng.random_range(SHOULDER_M + 1.1..RAIL_M - 0.9);
    let v = (26.0 / length).clamp(3.8, 7.0);
    let end = begin + length;
    let far = 10.6 + v * (length - OFF_S);
    let lateral = (BUSHES_M - x) / OFF_S;
    let off = 1.2 / lateral;
    vec![
        Waypoint { t: begin - 7.0 / v, x, z: 3.6 },
        Waypoint { t: begin, x, z: 10.6 },
        Waypoint { t: end - OFF_S, x, z: far },
        Waypoint { t: end, x: BUSHES_M, z: far + v * OFF_S },
        Waypoint { t: end + off, x: BUSHES_M + 1.2, z: far + v * (OFF_S + off) },
    ]
}

/// Place, speed and acceleration at `t`.
fn motion(legs: &[Leg], t: f32) -> (f32, f32, f32) {
    let Some(leg) = legs.iter().rev().find(|leg| leg.from <= t).or_else(|| legs.first()) else { return (0.0, 0.0, 0.0) };
    let dt = t - leg.from;
    (leg.z + leg.v * dt + leg.a * dt * dt / 2.0, leg.v + leg.a * dt, leg.a)
}

fn along(way: &[Waypoint], t: f32) -> (f32, f32) {
    let next = way.iter().position(|point| t < point.t).unwrap_or(way.len());
    match (next.checked_sub(1).and_then(|last| way.get(last)), way.get(next)) {
        (Some(a), Some(b)) => {
            let share = (t - a.t) / (b.t - a.t).max(0.001);
            (a.x + (b.x - a.x) * share, a.z + (b.z - a.z) * share)
        }
        (Some(only), None) | (None, Some(only)) => (only.x, only.z),
        (None, None) => (0.0, 0.0),
    }
}
