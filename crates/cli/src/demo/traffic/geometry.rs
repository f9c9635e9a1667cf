//! From pixels to metres on a flat road seen by a camera above it.
//!
//! A pinhole camera at height `h` sees a point of the road at distance `z` in row `horizon + f·h/z`; a metre standing there
//! is `f/z` pixels high. Two numbers of the camera (its horizon row and its height) therefore give the size of what stands
//! on a row, and a third (its focal length) gives distances along the road.

use serde::{Deserialize, Serialize};

use super::num;
use super::picture::Rect;

/// How a camera looks at a road. Rows and lengths are fractions of the picture, so that they do not depend on its size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Geometry {
    /// Row of the horizon as a fraction of the picture's height, from the top; above the picture is negative.
    pub(crate) horizon: f32,
    /// Height of the camera above the road, in metres.
    pub(crate) height_m: f32,
    /// Focal length as a fraction of the picture's width.
    pub(crate) focal: f32,
}

impl Default for Geometry {
    /// A usual road camera: eight metres up on a gantry, about sixty degrees wide, the horizon just inside the picture.
    fn default() -> Self {
        Self { horizon: 0.04, height_m: 8.0, focal: 0.85 }
    }
}

/// A geometry for one picture size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    horizon: f32,
    height_m: f32,
    focal: f32,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

/// A place on the road: metres to the right of the camera's axis and metres away.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Place {
    pub(crate) x_m: f32,
    pub(crate) z_m: f32,
}

impl Geometry {
    /// All numbers are usable: finite, a camera above the road, a horizon not below the picture's middle.
    #[must_use]
    pub(crate) fn is_valid(&self) -> bool {
        let horizon_ok = (-10.0..=0.5).contains(&self.horizon);
        horizon_ok && (0.5..=500.0).contains(&self.height_m) && (0.1..=50.0).contains(&self.focal)
    }

    #[must_use]
    pub(crate) fn view(&self, width: usize, height: usize) -> View {
        View {
            horizon: self.horizon * num::float(height),
            height_m: self.height_m,
            focal: self.focal * num::float(width),
            width,
            height,
        }
    }
}

impl View {
    /// Pixels per metre for what stands on a row; at least a small positive number, at and above the horizon too.
    #[must_use]
    pub(crate) fn pixels_per_metre(&self, foot: f32) -> f32 {
        ((foot - self.horizon) / self.height_m).max(0.05)
    }

    /// Where on the road a box stands.
    #[must_use]
    pub(crate) fn place(&self, rect: &Rect) -> Place {
        let scale = self.pixels_per_metre(rect.foot());
        Place { x_m: (rect.middle() - num::float(self.width) / 2.0) / scale, z_m: self.focal / scale }
    }

    /// Metres between two places on the road.
    #[must_use]
    pub(crate) fn distance_m(&self, from: &Rect, to: &Rect) -> f32 {
        let (from, to) = (self.place(from), self.place(to));
        (from.x_m - to.x_m).hypot(from.z_m - to.z_m)
    }

    /// Speed over the road in metres per second of something that stands in `rect` and moves by so many pixels a second.
    #[must_use]
    pub(crate) fn speed(&self, rect: &Rect, right: f32, down: f32) -> f32 {
        let scale = self.pixels_per_metre(rect.foot());
        // z = f·h/(foot − horizon), so dz/dt = −(f/scale²)/h · d(foot)/dt.
        let along = self.focal / (scale * scale) / self.height_m * down;
        (right / scale).hypot(along)
    }
}
