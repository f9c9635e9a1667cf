//! How the generated road and what moves on it look.

use super::canvas::{Canvas, Colour, ellipse, limb, noise, shade};
use super::{CAMERA_HEIGHT_M, FOCAL, HEIGHT, HORIZON, WIDTH};
use crate::demo::traffic::num;
use crate::demo::traffic::picture::Rect;

/// Left edge of the left lane and the lanes' width, in metres from the camera's axis.
pub(super) const ROAD_LEFT_M: f32 = -7.3;
pub(super) const LANE_M: f32 = 3.5;
/// Where the shoulder begins, and where the guard rail stands.
pub(super) const SHOULDER_M: f32 = ROAD_LEFT_M + 3.0 * LANE_M;
pub(super) const RAIL_M: f32 = 6.2;
/// Where the bushes beside the road begin.
pub(super) const BUSHES_M: f32 = 7.2;

const NEAREST_M: f32 = 3.0;

/// Shifts of the picture in pixels: the camera's mast moves in the wind.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sway {
    pub(super) x: f32,
    pub(super) y: f32,
}

/// What a vehicle is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    Car,
    Van,
    Truck,
}

impl Body {
    /// Length, width and height in metres.
    pub(super) fn size_m(self) -> (f32, f32, f32) {
        match self {
            Self::Car => (4.4, 1.8, 1.45),
            Self::Van => (5.2, 2.0, 2.1),
            Self::Truck => (9.5, 2.5, 3.5),
        }
    }
}

/// A place in the world: metres right of the axis, up from the road, away from the camera.
type Point = (f32, f32, f32);

pub(super) fn project(point: Point, sway: Sway) -> (f32, f32) {
    let z = point.2.max(NEAREST_M);
    (num::float(WIDTH) / 2.0 + FOCAL * point.0 / z + sway.x, HORIZON + FOCAL * (CAMERA_HEIGHT_M - point.1) / z + sway.y)
}

/// The box around an upright cuboid that stands with its near face at `z`.
pub(super) fn bounds(x: f32, z: f32, (length, width, height): (f32, f32, f32), sway: Sway) -> Rect {
    let mut corners = [x - width / 2.0, x + width / 2.0]
        .into_iter()
        .flat_map(|x| [0.0, height].into_iter().flat_map(move |y| [z, z + length].into_iter().map(move |z| (x, y, z))));
    let first = corners.next().map_or((0.0, 0.0), |corner| project(corner, sway));
    let (mut low, mut high) = (first, first);
    for corner in corners {
        let (px, py) = project(corner, sway);
        low = (low.0.min(px), low.1.min(py));
        high = (high.0.max(px), high.1.max(py));
    }
    Rect { x: low.0, y: low.1, w: high.0 - low.0, h: high.1 - low.1 }
}

/// The empty road.
pub(super) fn road(seed: u32) -> Canvas {
    let mut canvas = Canvas::new(WIDTH, HEIGHT);
    for y in 0..HEIGHT {
        for x in 0..WIDTH {
            let mut sum = [0.0; 3];
            for (dx, dy) in [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)] {
                let colour = backdrop(seed, num::float(x) + dx, num::float(y) + dy);
                for (total, value) in sum.iter_mut().zip(colour) {
                    *total += value / 4.0;
                }
            }
            canvas.set(x, y, sum);
        }
    }
    upright_things(&mut canvas, seed);
    canvas
}

fn backdrop(seed: u32, x: f32, y: f32) -> Colour {
    let trees = 11.0 + 7.0 * noise(seed ^ 1, x / 18.0, 0.0) - 3.0 * noise(seed ^ 2, x / 5.0, 0.0);
    let below = y - HORIZON;
    if below < 0.6 {
        let haze = noise(seed ^ 3, x / 3.0, y / 2.0);
        if y < trees - 4.0 {
            return shade([196.0, 205.0, 214.0], 1.04 - 0.004 * y);
        }
        return shade([92.0, 106.0, 92.0], 0.85 + 0.3 * haze);
    }
    let z = FOCAL * CAMERA_HEIGHT_M / below;
    let ground = ground(seed, (x - num::float(WIDTH) / 2.0) * z / FOCAL, z);
    let haze = (z / 260.0).min(0.55);
    let mut colour = ground;
    for (value, far) in colour.iter_mut().zip([168.0, 174.0, 178.0]) {
        *value += (far - *value) * haze;
    }
    colour
}

fn ground(seed: u32, x: f32, z: f32) -> Colour {
    let fine = noise(seed ^ 5, x * 5.0, z * 1.6) - 0.5;
    let coarse = noise(seed ^ 6, x * 0.6, z * 0.12) - 0.5;
    if !(ROAD_LEFT_M - 1.5..=RAIL_M + 0.3).contains(&x) {
        let dry = noise(seed ^ 7, x * 1.3, z * 0.5);
        let grass = [88.0 + 46.0 * dry, 104.0 + 26.0 * dry, 62.0 + 12.0 * dry];
        return shade(grass, 0.95 + 0.5 * fine + 0.25 * coarse);
    }
    let dash = z.rem_euclid(12.0) < 4.0;
    let near = |line: f32| (x - line).abs() < 0.085;
    let edge = near(ROAD_LEFT_M) || (x - SHOULDER_M).abs() < 0.12;
    let lane = dash && (near(ROAD_LEFT_M + LANE_M) || near(ROAD_LEFT_M + 2.0 * LANE_M));
    if edge || lane {
        return shade([222.0, 222.0, 214.0], 0.97 + 0.2 * fine);
    }
    let in_lane = ((x - ROAD_LEFT_M) / LANE_M).rem_euclid(1.0) - 0.5;
    let worn = 1.0 + 0.05 * ((in_lane.abs() - 0.26) / 0.1).clamp(-1.0, 1.0).abs() - 0.05 * (1.0 - in_lane.abs() * 2.0);
    let base = if SHOULDER_M < x { [126.0, 124.0, 121.0] } else { [112.0, 112.0, 116.0] };
    let joint = if (z.rem_euclid(31.0)) < 0.25 { 0.9 } else { 1.0 };
    shade(base, worn * joint * (1.0 + 0.22 * fine + 0.16 * coarse))
}

/// Rails, posts and bushes: what stands beside the road.
fn upright_things(canvas: &mut Canvas, seed: u32) {
    let mut z = 118.0;
    while 5.0 < z {
        let x = BUSHES_M + 1.6 * noise(seed ^ 8, z, 0.0);
        let tall = 1.2 + 1.6 * noise(seed ^ 9, z, 3.0);
        for lump in 0..6_u8 {
            let jitter = noise(seed ^ 10, z * 3.1, f32::from(lump) * 7.7);
            let centre = project((x + f32::from(lump) * 0.8, tall * (0.25 + 0.5 * jitter), z), Sway::default());
            let radius = FOCAL / z * (0.5 + 0.35 * jitter);
            let leaf = shade([62.0, 84.0, 48.0], 0.7 + 0.65 * jitter);
            canvas.fill(&ellipse(centre, (radius * 1.2, radius)), leaf, 0.85);
        }
        z *= 0.965;
    }
    rail(canvas, RAIL_M, [168.0, 170.0, 172.0]);
    rail(canvas, ROAD_LEFT_M - 1.2, [176.0, 176.0, 170.0]);
    for z in [95.0, 55.0, 32.0] {
        let foot = project((RAIL_M + 0.7, 0.0, z), Sway::default());
        let top = project((RAIL_M + 0.7, 9.0, z), Sway::default());
        canvas.fill(&limb(foot, top, 0.22 * FOCAL / z), [150.0, 152.0, 154.0], 1.0);
    }
}

fn rail(canvas: &mut Canvas, x: f32, colour: Colour) {
    let mut z = 140.0;
    while 4.0 < z {
        let foot = project((x, 0.0, z), Sway::default());
        let top = project((x, 0.7, z), Sway::default());
        canvas.fill(&limb(foot, top, 0.14 * FOCAL / z), shade(colour, 0.6), 0.9);
        z -= 4.0;
    }
    let at = |height: f32, z: f32| project((x, height, z), Sway::default());
    for (low, high, light) in [(0.42, 0.58, 0.72), (0.58, 0.78, 1.08)] {
        let band = [at(low, 160.0), at(high, 160.0), at(high, 4.0), at(low, 4.0)];
        canvas.fill(&band, shade(colour, light), 0.95);
    }
}

/// A vehicle driving away from the camera, its rear at `z`.
pub(super) fn vehicle(canvas: &mut Canvas, body: Body, colour: Colour, at: (f32, f32), look: (Sway, f32)) {
    let ((x, z), (sway, brake)) = (at, look);
    let (length, width, height) = body.size_m();
    let pen = Pen { x, z, sway };
    let (left, right) = (-width / 2.0, width / 2.0);
    let shadow = [(left - 0.1, 0.0, -0.25), (left, 0.0, length), (right + 0.35, 0.0, length), (right + 0.45, 0.0, -0.25)];
    canvas.fill(&pen.points(shadow), [38.0, 38.0, 42.0], 0.6);
    let side = if x + right < 0.0 { right } else { left };
    match body {
        Body::Car | Body::Van => passenger(canvas, &pen, (length, width, height), (colour, side)),
        Body::Truck => truck(canvas, &pen, (length, width, height), (colour, side)),
    }
    let lamp = if 0.0 < brake { [255.0, 40.0, 30.0] } else { [150.0, 24.0, 24.0] };
    let lamp_top = if body == Body::Truck { 0.95 } else { 0.8 };
    for (from, to) in [(left + 0.05, left + 0.38), (right - 0.38, right - 0.05)] {
        canvas.fill(&pen.rear(from, to, lamp_top - 0.22, lamp_top), lamp, 0.95);
    }
    canvas.fill(&pen.rear(-0.27, 0.27, 0.42, 0.56), [225.0, 222.0, 190.0], 0.9);
}

struct Pen {
    x: f32,
    z: f32,
    sway: Sway,
}

impl Pen {
    fn points<const N: usize>(&self, points: [Point; N]) -> [(f32, f32); N] {
        points.map(|(x, y, z)| project((self.x + x, y, self.z + z), self.sway))
    }

    fn rear(&self, left: f32, right: f32, low: f32, high: f32) -> [(f32, f32); 4] {
        self.points([(left, low, 0.0), (left, high, 0.0), (right, high, 0.0), (right, low, 0.0)])
    }
}

fn passenger(canvas: &mut Canvas, pen: &Pen, size: (f32, f32, f32), paint: (Colour, f32)) {
    let ((length, width, height), (colour, side)) = (size, paint);
    let (left, right) = (-width / 2.0, width / 2.0);
    let belt = height * 0.6;
    let van = 2.0 < height;
    let (back, roof_from, roof_to, front) = if van { (0.0, 0.05, 0.78, 0.92) } else { (0.06, 0.2, 0.56, 0.74) };
    let along = |share: f32| share * length;
    let (roof_left, roof_right) = (left * 0.82, right * 0.82);
    // Flanks, then the deck, then the cabin from far to near.
    canvas.fill(
        &pen.points([(side, 0.28, 0.0), (side, belt, 0.0), (side, belt, length), (side, 0.28, length)]),
        shade(colour, 0.72),
        1.0,
    );
    canvas.fill(
        &pen.points([(left, belt, 0.0), (right, belt, 0.0), (right, belt, length), (left, belt, length)]),
        shade(colour, 1.02),
        1.0,
    );
    let glass = [44.0, 52.0, 60.0];
    let flank = side * 0.9;
    canvas.fill(
        &pen.points([
            (side, belt, along(back)),
            (flank, height, along(roof_from)),
            (flank, height, along(roof_to)),
            (side, belt, along(front)),
        ]),
        glass,
        0.95,
    );
    canvas.fill(
        &pen.points([
            (roof_left, height, along(roof_from)),
            (roof_right, height, along(roof_from)),
            (roof_right, height, along(roof_to)),
            (roof_left, height, along(roof_to)),
        ]),
        shade(colour, 1.16),
        1.0,
    );
    let window = [
        (left * 0.94, belt, along(back)),
        (roof_left, height, along(roof_from)),
        (roof_right, height, along(roof_from)),
        (right * 0.94, belt, along(back)),
    ];
    canvas.fill(&pen.points(window), shade(colour, 0.8), 1.0);
    let pane = [
        (left * 0.82, belt + 0.06, along(back)),
        (roof_left * 0.9, height - 0.08, along(roof_from)),
        (roof_right * 0.9, height - 0.08, along(roof_from)),
        (right * 0.82, belt + 0.06, along(back)),
    ];
    canvas.fill(&pen.points(pane), shade(glass, 1.35), 0.95);
    canvas.fill(&pen.rear(left, right, 0.3, belt), shade(colour, 0.9), 1.0);
    canvas.fill(&pen.rear(left, right, 0.28, 0.44), shade(colour, 0.6), 0.9);
    canvas.fill(&pen.rear(left + 0.05, right - 0.05, 0.1, 0.3), [40.0, 40.0, 42.0], 0.95);
    for (from, to) in [(left + 0.04, left + 0.3), (right - 0.3, right - 0.04)] {
        canvas.fill(&pen.rear(from, to, 0.0, 0.3), [24.0, 24.0, 26.0], 1.0);
    }
}

fn truck(canvas: &mut Canvas, pen: &Pen, size: (f32, f32, f32), paint: (Colour, f32)) {
    let ((length, width, height), (colour, side)) = (size, paint);
    let (left, right) = (-width / 2.0, width / 2.0);
    let floor = 1.05;
    canvas.fill(
        &pen.points([(side, 0.2, 0.0), (side, floor, 0.0), (side, floor, length), (side, 0.2, length)]),
        [46.0, 46.0, 48.0],
        1.0,
    );
    canvas.fill(
        &pen.points([(side, floor, 0.0), (side, height, 0.0), (side, height, length), (side, floor, length)]),
        shade(colour, 0.74),
        1.0,
    );
    canvas.fill(
        &pen.points([(left, height, 0.0), (right, height, 0.0), (right, height, length), (left, height, length)]),
        shade(colour, 1.12),
        1.0,
    );
    canvas.fill(&pen.rear(left, right, floor, height), shade(colour, 0.93), 1.0);
    canvas.fill(&pen.rear(-0.03, 0.03, floor, height), shade(colour, 0.62), 1.0);
    for (from, to) in [(left, left + 0.07), (right - 0.07, right)] {
        canvas.fill(&pen.rear(from, to, floor, height), shade(colour, 0.7), 1.0);
    }
    canvas.fill(&pen.rear(left + 0.1, right - 0.1, 0.35, floor), [52.0, 50.0, 50.0], 1.0);
    for (from, to) in [(left + 0.08, left + 0.62), (right - 0.62, right - 0.08)] {
        canvas.fill(&pen.rear(from, to, 0.0, 0.9), [22.0, 22.0, 24.0], 1.0);
    }
}

/// Somebody on foot; `step` is how far they have walked, in metres; `alpha` below 1 while bushes hide them.
pub(super) fn walker(canvas: &mut Canvas, coat: Colour, at: (f32, f32), step: f32, look: (Sway, f32)) {
    let ((x, z), (sway, alpha)) = (at, look);
    let scale = FOCAL / z.max(NEAREST_M);
    let (px, py) = project((x, 0.0, z), sway);
    let up = |right: f32, metres: f32| (px + right * scale, py - metres * scale);
    canvas.fill(&ellipse((px + 0.25 * scale, py), (0.45 * scale, 0.1 * scale)), [48.0, 48.0, 50.0], 0.5 * alpha);
    let swing = 0.24 * (step * 4.2).sin();
    let trousers = [46.0, 48.0, 64.0];
    canvas.fill(&limb(up(-0.07, 0.9), up(-0.09 + swing, 0.02), 0.19 * scale), trousers, alpha);
    canvas.fill(&limb(up(0.07, 0.9), up(0.09 - swing, 0.02), 0.19 * scale), shade(trousers, 0.8), alpha);
    canvas.fill(&limb(up(0.0, 0.82), up(0.0, 1.48), 0.46 * scale), coat, alpha);
    canvas.fill(&limb(up(-0.25, 1.4), up(-0.27 - swing, 0.85), 0.13 * scale), shade(coat, 0.85), alpha);
    canvas.fill(&limb(up(0.25, 1.4), up(0.27 + swing, 0.85), 0.13 * scale), shade(coat, 0.75), alpha);
    canvas.fill(&ellipse(up(0.0, 1.62), (0.13 * scale, 0.15 * scale)), [150.0, 112.0, 92.0], alpha);
}

/// Somebody on a bicycle, seen from behind; parameters as for [`walker`].
pub(super) fn cyclist(canvas: &mut Canvas, coat: Colour, at: (f32, f32), step: f32, look: (Sway, f32)) {
    let ((x, z), (sway, alpha)) = (at, look);
    let scale = FOCAL / z.max(NEAREST_M);
    let (px, py) = project((x, 0.0, z), sway);
    let up = |right: f32, metres: f32| (px + right * scale, py - metres * scale);
    canvas.fill(&ellipse((px + 0.25 * scale, py - 0.05 * scale), (0.5 * scale, 0.12 * scale)), [48.0, 48.0, 50.0], 0.5 * alpha);
    canvas.fill(&limb(up(0.0, 0.0), up(0.0, 0.72), 0.09 * scale), [28.0, 28.0, 30.0], alpha);
    let pedal = 0.16 * (step * 1.1).sin();
    let shorts = [40.0, 40.0, 44.0];
    canvas.fill(&limb(up(-0.12, 0.95), up(-0.15, 0.35 + pedal), 0.17 * scale), shorts, alpha);
    canvas.fill(&limb(up(0.12, 0.95), up(0.15, 0.35 - pedal), 0.17 * scale), shade(shorts, 0.8), alpha);
    canvas.fill(&limb(up(0.0, 0.85), up(0.0, 1.45), 0.46 * scale), coat, alpha);
    canvas.fill(&limb(up(-0.2, 1.4), up(-0.32, 1.02), 0.13 * scale), shade(coat, 0.85), alpha);
    canvas.fill(&limb(up(0.2, 1.4), up(0.32, 1.02), 0.13 * scale), shade(coat, 0.75), alpha);
    canvas.fill(&ellipse(up(0.0, 1.6), (0.14 * scale, 0.16 * scale)), [214.0, 214.0, 208.0], alpha);
}

/// The box around somebody who stands at `x`, `z`.
pub(super) fn person_bounds(x: f32, z: f32, tall_m: f32, sway: Sway) -> Rect {
    bounds(x, z, (0.0, 0.72, tall_m), sway)
}
