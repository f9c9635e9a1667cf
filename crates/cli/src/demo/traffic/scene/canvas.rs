//! A small colour canvas with anti-aliased polygons.

use super::super::num;

/// Red, green and blue, 0 to 255.
pub(super) type Colour = [f32; 3];

/// Sub-rows per pixel row; coverage along a row is exact.
const SUB_ROWS: i32 = 4;

#[derive(Clone, Debug)]
pub(super) struct Canvas {
    pub(super) width: usize,
    pub(super) height: usize,
    /// Three bytes per pixel.
    pub(super) pixels: Vec<u8>,
    coverage: Vec<f32>,
}

impl Canvas {
    pub(super) fn new(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![0; width * height * 3], coverage: vec![0.0; width] }
    }

    pub(super) fn set(&mut self, x: usize, y: usize, colour: Colour) {
        let at = (y * self.width + x) * 3;
        for (pixel, value) in self.pixels[at..at + 3].iter_mut().zip(colour) {
            *pixel = num::byte(value);
        }
    }

    /// Fills a polygon (even-odd), blended by `alpha` (0 to 1).
    pub(super) fn fill(&mut self, points: &[(f32, f32)], colour: Colour, alpha: f32) {
        let top = points.iter().map(|p| p.1).fold(f32::MAX, f32::min).max(0.0);
        let bottom = points.iter().map(|p| p.1).fold(f32::MIN, f32::max).min(num::float(self.height));
        if bottom <= top || alpha <= 0.0 {
            return;
        }
        let last = num::signed(self.height) - 1;
        for row in num::floor(top)..=num::floor(bottom).min(last) {
            self.coverage.fill(0.0);
            for sub in 0..SUB_ROWS {
                let y = row as f32 + (sub as f32 + 0.5) / SUB_ROWS as f32;
                self.cover_row(points, y);
            }
            self.blend_row(num::index(row), colour, alpha / SUB_ROWS as f32);
        }
    }

    fn cover_row(&mut self, points: &[(f32, f32)], y: f32) {
        let mut crossings = [0.0_f32; 16];
        let mut found = 0;
        for (index, from) in points.iter().enumerate() {
            let to = points[(index + 1) % points.len()];
            if (from.1 <= y) != (to.1 <= y) && found < crossings.len() {
                crossings[found] = from.0 + (y - from.1) / (to.1 - from.1) * (to.0 - from.0);
                found += 1;
            }
        }
        crossings[..found].sort_by(f32::total_cmp);
        for pair in crossings[..found].chunks_exact(2) {
            let (from, to) = (pair[0].max(0.0), pair[1].min(num::float(self.width)));
            if from < to {
                self.cover_span(from, to);
            }
        }
    }

    fn cover_span(&mut self, from: f32, to: f32) {
        let first = num::index(num::floor(from));
        let last = num::index(num::floor(to)).min(self.width - 1);
        for x in first..=last {
            let left = num::float(x);
            self.coverage[x] += (to.min(left + 1.0) - from.max(left)).max(0.0);
        }
    }

    fn blend_row(&mut self, row: usize, colour: Colour, weight: f32) {
        let pixels = &mut self.pixels[row * self.width * 3..][..self.width * 3];
        for (pixel, &covered) in pixels.chunks_exact_mut(3).zip(&self.coverage) {
            if 0.0 < covered {
                let part = (covered * weight).min(1.0);
                for (old, new) in pixel.iter_mut().zip(colour) {
                    let before = f32::from(*old);
                    *old = num::byte(before + (new - before) * part);
                }
            }
        }
    }
}

/// The corners of an ellipse.
pub(super) fn ellipse(centre: (f32, f32), radius: (f32, f32)) -> [(f32, f32); 12] {
    std::array::from_fn(|i| {
        let angle = std::f32::consts::TAU * i as f32 / 12.0;
        (centre.0 + radius.0 * angle.cos(), centre.1 + radius.1 * angle.sin())
    })
}

/// The corners of a thick line.
pub(super) fn limb(from: (f32, f32), to: (f32, f32), thickness: f32) -> [(f32, f32); 4] {
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let length = dx.hypot(dy).max(0.01);
    let (nx, ny) = (-dy / length * thickness / 2.0, dx / length * thickness / 2.0);
    [(from.0 + nx, from.1 + ny), (to.0 + nx, to.1 + ny), (to.0 - nx, to.1 - ny), (from.0 - nx, from.1 - ny)]
}

/// A colour made brighter (factor above 1) or darker.
pub(super) fn shade(colour: Colour, factor: f32) -> Colour {
    colour.map(|value| (value * factor).clamp(0.0, 255.0))
}

/// Smooth noise over the plane, 0 to 1, the same for the same seed and place.
pub(super) fn noise(seed: u32, x: f32, y: f32) -> f32 {
    let (column, row) = (num::floor(x), num::floor(y));
    let (u, v) = (x - x.floor(), y - y.floor());
    let (u, v) = (u * u * (3.0 - 2.0 * u), v * v * (3.0 - 2.0 * v));
    let top = lattice(seed, column, row) * (1.0 - u) + lattice(seed, column + 1, row) * u;
    let bottom = lattice(seed, column, row + 1) * (1.0 - u) + lattice(seed, column + 1, row + 1) * u;
    top * (1.0 - v) + bottom * v
}

fn lattice(seed: u32, x: i32, y: i32) -> f32 {
    let mut hash = seed ^ x.cast_unsigned().wrapping_mul(0x9e37_79b1) ^ y.cast_unsigned().wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ (hash >> 15)).wrapping_mul(0x2c1b_3c6d);
    hash = (hash ^ (hash >> 12)).wrapping_mul(0x297a_2d39);
    (hash ^ (hash >> 15)) as f32 / u32::MAX as f32
}
