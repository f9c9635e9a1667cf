//! What in a picture is not the empty road: comparison with a background, cleaning, connected parts.

use super::geometry::View;
use super::num;
use super::picture::{Grey, Rect};

/// Smallest difference in grey values that counts, however quiet the camera is.
const LEAST_DIFFERENCE: i32 = 14;
/// Shifts of the picture against the background up to this are no difference, in pixels.
const SWAY: usize = 2;
/// Differences beyond so many times the typical one count.
const NOISE_FACTOR: i32 = 5;
/// Rows where a metre is smaller than this are too far away to tell things apart.
const LEAST_PIXELS_PER_METRE: f32 = 6.0;
/// Parts beyond this many are dropped: the picture as a whole changed, nothing can be told from it.
const MAX_BLOBS: usize = 128;
/// Parts up to this far apart, in metres, belong together when one of them is too small for a thing of its own.
const FRAGMENT_GAP_M: f32 = 0.35;
/// When more of the watched picture than this differs, the light or the camera changed, not the traffic.
const MOST_FOREGROUND: f32 = 0.6;
/// What comes this close to the left, right or lower edge is taken to go on beyond it, in pixels.
const EDGE: usize = 4;
/// An outline that is this many times sharper in the background than in the picture is one of something gone.
const GHOST_RATIO: f32 = 1.3;

/// A connected part of the picture that differs from the background.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Blob {
    pub(crate) rect: Rect,
    /// Pixels that differ.
    pub(crate) area: f32,
    /// It touches the picture's edge, so its true size and foot are unknown.
    pub(crate) cut: bool,
    /// The background shows something here that is no longer there.
    pub(crate) ghost: bool,
}

/// What differs, as blobs and per pixel.
#[derive(Clone, Debug)]
pub(crate) struct Foreground {
    pub(crate) blobs: Vec<Blob>,
    /// One byte per pixel, 1 where the picture differs.
    pub(crate) mask: Vec<u8>,
}

/// Compares `picture` with `background`, which must have the same size.
#[must_use]
pub(crate) fn extract(picture: &Grey, background: &Grey, view: &View) -> Foreground {
    let (width, height) = (picture.width, picture.height);
    let top = first_row(view);
    let light = Light::between(picture, background, top);
    let mut mask = vec![0_u8; width * height];
    let mut differing = 0_usize;
    for y in top.max(SWAY)..height.saturating_sub(SWAY) {
        for x in SWAY..width.saturating_sub(SWAY) {
            if light.differs(picture, background, x, y) {
                mask[y * width + x] = 1;
                differing += 1;
            }
        }
    }
    let watched = width * (height - top.min(height));
    if MOST_FOREGROUND * num::float(watched) < num::float(differing) {
        return Foreground { blobs: Vec::new(), mask };
    }
    remove_specks(&mut mask, width);
    let parts = connected(&mask, width);
    let blobs = join_fragments(parts, view);
    let finished = blobs.into_iter().map(|blob| finish(blob, picture, background, &mask)).collect();
    Foreground { blobs: finished, mask }
}

/// The first row in which things are large enough.
fn first_row(view: &View) -> usize {
    (0..view.height).find(|&row| LEAST_PIXELS_PER_METRE <= view.pixels_per_metre(num::float(row))).unwrap_or(view.height)
}

/// How the light changed between background and picture, and which difference is more than noise.
struct Light {
    /// Picture over background, in 1/256.
    gain: i32,
    least: i32,
}

impl Light {
    fn between(picture: &Grey, background: &Grey, top: usize) -> Self {
        let from = top * picture.width;
        let pairs = || {
            picture.pixels[from..].iter().zip(&background.pixels[from..]).step_by(7).map(|(&a, &b)| (i32::from(a), i32::from(b)))
        };
        // The typical ratio, from a histogram in steps of 1/256: moving things do not shift a median much.
        let mut ratios = [0_u32; 512];
        for (now, before) in pairs().filter(|&(_, before)| 24 < before) {
            ratios[num::index(now * 256 / before).min(511)] += 1;
        }
        let gain = median(&ratios).clamp(128, 400);
        let mut deviations = [0_u32; 512];
        for (now, before) in pairs() {
            deviations[num::index((now - ((before * gain) >> 8)).abs()).min(511)] += 1;
        }
        let least = (median(&deviations) * NOISE_FACTOR).clamp(LEAST_DIFFERENCE, 60);
        Self { gain, least }
    }

    /// Beyond the noise, and beyond what a shift explains: the camera's mast sways.
    fn differs(&self, picture: &Grey, background: &Grey, x: usize, y: usize) -> bool {
        let width = picture.width;
        let now = i32::from(picture.pixels[y * width + x]);
        let lit = |at: usize| (i32::from(background.pixels[at]) * self.gain) >> 8;
        if (now - lit(y * width + x)).abs() <= self.least {
            return false;
        }
        let (mut low, mut high) = (i32::MAX, i32::MIN);
        for row in y - SWAY..=y + SWAY {
            for at in row * width + x - SWAY..=row * width + x + SWAY {
                let value = lit(at);
                low = low.min(value);
                high = high.max(value);
            }
        }
        now < low - self.least || high + self.least < now
    }
}

fn median(histogram: &[u32; 512]) -> i32 {
    let half = histogram.iter().sum::<u32>() / 2;
    let mut seen = 0;
    let at = histogram.iter().position(|&count| {
        seen += count;
        half < seen
    });
    num::signed(at.unwrap_or(256))
}

/// Clears pixels with fewer than three differing neighbours.
fn remove_specks(mask: &mut [u8], width: usize) {
    let lonely: Vec<usize> = (width + 1..mask.len().saturating_sub(width + 1))
        .filter(|&at| mask[at] == 1)
        .filter(|&at| {
            let neighbours: u8 = [at - width, at, at + width].iter().map(|&row| mask[row - 1] + mask[row] + mask[row + 1]).sum();
            neighbours < 4
        })
        .collect();
    for at in lonely {
        mask[at] = 0;
    }
}

struct Part {
    left: usize,
    right: usize,
    top: usize,
    bottom: usize,
    area: usize,
}

/// Connected parts of the mask; a gap of one pixel does not part them.
fn connected(mask: &[u8], width: usize) -> Vec<Part> {
    let height = mask.len() / width;
    let mut open = mask.to_vec();
    let mut parts = Vec::new();
    let mut stack = Vec::new();
    for start in 0..mask.len() {
        if open[start] == 0 {
            continue;
        }
        open[start] = 0;
        stack.push(start);
        let mut part = Part { left: width, right: 0, top: height, bottom: 0, area: 0 };
        while let Some(at) = stack.pop() {
            let (x, y) = (at % width, at / width);
            part.left = part.left.min(x);
            part.right = part.right.max(x);
            part.top = part.top.min(y);
            part.bottom = part.bottom.max(y);
            part.area += 1;
            for row in y.saturating_sub(2)..=(y + 2).min(height - 1) {
                for column in x.saturating_sub(2)..=(x + 2).min(width - 1) {
                    let next = row * width + column;
                    if open[next] == 1 {
                        open[next] = 0;
                        stack.push(next);
                    }
                }
            }
        }
        if 6 <= part.area {
            parts.push(part);
        }
    }
    parts
}

/// Joins small parts to what they lie next to, and drops what stays too small.
fn join_fragments(mut parts: Vec<Part>, view: &View) -> Vec<Blob> {
    parts.sort_by_key(|part| std::cmp::Reverse(part.area));
    parts.truncate(MAX_BLOBS);
    let mut blobs: Vec<Blob> = Vec::new();
    for part in parts {
        let rect = Rect {
            x: num::float(part.left),
            y: num::float(part.top),
            w: num::float(part.right - part.left + 1),
            h: num::float(part.bottom - part.top + 1),
        };
        let cut = part.left <= EDGE || view.width <= part.right + EDGE || view.height <= part.bottom + EDGE;
        let area = num::float(part.area);
        let host = blobs.iter_mut().find(|host| is_fragment(&rect, &host.rect, view));
        match host {
            Some(host) => {
                host.rect = host.rect.with(&rect);
                host.area += area;
                host.cut |= cut;
            }
            None => blobs.push(Blob { rect, area, cut, ghost: false }),
        }
    }
    blobs.retain(|blob| is_large_enough(blob, view));
    blobs
}

fn is_fragment(small: &Rect, host: &Rect, view: &View) -> bool {
    let scale = view.pixels_per_metre(host.foot());
    let gap = (FRAGMENT_GAP_M * scale).max(2.0);
    let apart_x = (small.x - (host.x + host.w)).max(host.x - (small.x + small.w));
    let apart_y = (small.y - host.foot()).max(host.y - small.foot());
    let narrow = small.w < 1.3 * scale && small.h < 1.0 * scale;
    // Beside: only what is within the host's height. Above and below: only what is within its width.
    let beside = apart_x <= gap && apart_y < 0.0;
    let stacked = apart_y <= gap && apart_x < 0.0;
    narrow && (beside || stacked)
}

/// At least as high as a crouching person and as wide as a standing one, roughly.
fn is_large_enough(blob: &Blob, view: &View) -> bool {
    let scale = view.pixels_per_metre(blob.rect.foot());
    0.3 * scale <= blob.rect.w && 0.75 * scale <= blob.rect.h && 0.2 * scale * scale <= blob.area
}

/// Decides whether the outline belongs to the picture or to the background.
fn finish(mut blob: Blob, picture: &Grey, background: &Grey, mask: &[u8]) -> Blob {
    let width = picture.width;
    let (mut here, mut before) = (0_i32, 0_i32);
    let (left, top) = (num::index(num::round(blob.rect.x)), num::index(num::round(blob.rect.y)));
    let (right, bottom) = (left + num::index(num::round(blob.rect.w)), top + num::index(num::round(blob.rect.h)));
    let margin = SWAY + 1;
    for y in top.max(margin)..bottom.min(picture.height - margin) {
        for x in left.max(margin)..right.min(width - margin) {
            let at = y * width + x;
            let inside = mask[at - 1] + mask[at + 1] + mask[at - width] + mask[at + width];
            if mask[at] == 1 && inside < 4 {
                here += sharpest(&picture.pixels, at, width);
                before += sharpest(&background.pixels, at, width);
            }
        }
    }
    blob.ghost = GHOST_RATIO * (here as f32) < before as f32;
    blob
}

/// The sharpest edge near `at`: an outline is seen displaced by the tolerated sway.
fn sharpest(pixels: &[u8], at: usize, width: usize) -> i32 {
    let first = at - SWAY * width - SWAY;
    let rows = (0..=2 * SWAY).map(|row| first + row * width);
    rows.flat_map(|row| row..=row + 2 * SWAY).map(|near| edge(pixels, near, width)).max().unwrap_or(0)
}

fn edge(pixels: &[u8], at: usize, width: usize) -> i32 {
    let across = i32::from(pixels[at + 1]) - i32::from(pixels[at - 1]);
    let down = i32::from(pixels[at + width]) - i32::from(pixels[at - width]);
    across.abs() + down.abs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::traffic::geometry::Geometry;

    fn flat(value: u8) -> Grey {
        Grey { width: 320, height: 240, pixels: vec![value; 320 * 240] }
    }

    fn with_block(mut picture: Grey, at: (usize, usize), size: (usize, usize), value: u8) -> Grey {
        for y in at.1..at.1 + size.1 {
            picture.pixels[y * 320 + at.0..][..size.0].fill(value);
        }
        picture
    }

    fn blobs(picture: &Grey, background: &Grey) -> Vec<Blob> {
        extract(picture, background, &Geometry::default().view(320, 240)).blobs
    }

    #[test]
    fn the_empty_road_shows_nothing() {
        assert_eq!(blobs(&flat(100), &flat(100)), vec![]);
    }

    #[test]
    fn a_change_of_light_shows_nothing() {
        assert_eq!(blobs(&flat(125), &flat(100)), vec![]);
    }

    #[test]
    fn a_thing_is_found_where_it_is() {
        let found = blobs(&with_block(flat(100), (120, 140), (40, 30), 180), &flat(100));
        assert_eq!(found.len(), 1);
        assert!(0.9 < found[0].rect.overlap(&Rect { x: 120.0, y: 140.0, w: 40.0, h: 30.0 }), "{found:?}");
        assert!(!found[0].ghost);
    }

    #[test]
    fn what_left_the_background_is_a_ghost() {
        let found = blobs(&flat(100), &with_block(flat(100), (120, 140), (40, 30), 180));
        assert!(found.len() == 1 && found[0].ghost, "{found:?}");
    }

    #[test]
    fn a_picture_that_differs_as_a_whole_shows_nothing() {
        let noise = Grey { pixels: (0..320 * 240).map(|i: u32| if i % 5 < 2 { 10 } else { 240 }).collect(), ..flat(0) };
        assert_eq!(blobs(&noise, &flat(100)), vec![]);
    }
}
