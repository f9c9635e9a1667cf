//! The empty road, learned from a few pictures a second.
//!
//! Every pixel has a value and a candidate for it (a mixture of two, with whole numbers). What is seen long enough becomes the
//! value: quickly while the road is still being learned, slowly afterwards, so that a standing vehicle stays visible.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::foreground::{Blob, Foreground};
use super::num;
use super::picture::{Grey, MAX_SIDE, Rect};

/// Differences in grey values up to this are the same thing in other light.
const SAME: i32 = 14;
/// Boxes that overlap by this much are at the same place.
const SAME_PLACE: f32 = 0.9;
/// Samples in which the road is first learned.
const LEARNING_SAMPLES: u32 = 12;
/// Samples for which a new value must be seen to become the background, at first and later.
const ABSORB_AT_FIRST: u8 = 3;
const ABSORB_LATER: u8 = 60;

/// The learned road. Travels with the watcher's invocations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Background {
    value: Grey,
    candidate: Vec<u8>,
    count: Vec<u8>,
    samples: u32,
}

/// A background as JSON carries it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Packed {
    width: usize,
    height: usize,
    samples: u32,
    /// Base64 of one byte per pixel each.
    value: String,
    candidate: String,
    count: String,
}

/// Why a packed background is unusable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("a background of {width}x{height} pixels where the picture has {picture_width}x{picture_height}")]
    OtherSize { width: usize, height: usize, picture_width: usize, picture_height: usize },
    #[error("a background plane of {bytes} bytes where {width}x{height} pixels were stated")]
    Plane { bytes: usize, width: usize, height: usize },
    #[error("a background plane is no base64")]
    Base64(#[from] base64::DecodeError),
}

impl Background {
    /// A background that believes the first picture.
    #[must_use]
    pub(crate) fn new(first: &Grey) -> Self {
        let pixels = first.pixels.len();
        Self { value: first.clone(), candidate: first.pixels.clone(), count: vec![0; pixels], samples: 0 }
    }

    /// The road as known now.
    #[must_use]
    pub(crate) fn picture(&self) -> &Grey {
        &self.value
    }

    /// Whether enough was seen to judge by.
    #[must_use]
    pub(crate) fn is_learned(&self) -> bool {
        LEARNING_SAMPLES * 3 / 4 <= self.samples
    }

    /// Learns from a picture of the same size.
    pub(crate) fn learn(&mut self, picture: &Grey) {
        let absorb = if self.samples < LEARNING_SAMPLES { ABSORB_AT_FIRST } else { ABSORB_LATER };
        let pixels = picture.pixels.iter().zip(&mut self.value.pixels).zip(&mut self.candidate).zip(&mut self.count);
        for (((&now, value), candidate), count) in pixels {
            let off = i32::from(now) - i32::from(*value);
            if off.abs() <= SAME {
                *value = toward(*value, off, 4);
                *count = count.saturating_sub(1);
                continue;
            }
            let off = i32::from(now) - i32::from(*candidate);
            if off.abs() <= SAME {
                *candidate = toward(*candidate, off, 2);
                *count = count.saturating_add(1);
                if absorb <= *count {
                    std::mem::swap(value, candidate);
                    *count = 0;
                }
            } else {
                *candidate = now;
                *count = 1;
            }
        }
        self.samples = self.samples.saturating_add(1);
    }

    /// Takes the picture's word where the background shows things that are gone: outlines of something gone at the same
    /// place in two pictures a moment apart (what drives past over a marking can look like that in one).
    pub(crate) fn forget_ghosts(&mut self, picture: &Grey, earlier: &[Blob], later: &Foreground) {
        let ghosts = |blobs: &[Blob]| blobs.iter().filter(|blob| blob.ghost).map(|blob| blob.rect).collect::<Vec<_>>();
        let before = ghosts(earlier);
        for ghost in ghosts(&later.blobs).iter().filter(|ghost| before.iter().any(|same| SAME_PLACE <= same.overlap(ghost))) {
            self.take_over(picture, &later.mask, ghost);
        }
    }

    /// Believes the picture at and around the differing pixels of an area.
    fn take_over(&mut self, picture: &Grey, mask: &[u8], area: &Rect) {
        let (width, height) = (picture.width, picture.height);
        let (left, top) = (num::index(num::round(area.x)).max(2), num::index(num::round(area.y)).max(2));
        let right = num::index(num::round(area.x + area.w)).min(width - 2);
        let bottom = num::index(num::round(area.foot())).min(height - 2);
        for (y, x) in (top..bottom).flat_map(|y| (left..right).map(move |x| (y, x))) {
            if mask[y * width + x] == 1 {
                for row in y - 2..=y + 2 {
                    let near = row * width + x - 2..row * width + x + 3;
                    self.value.pixels[near.clone()].copy_from_slice(&picture.pixels[near.clone()]);
                    self.count[near].fill(0);
                }
            }
        }
    }

    #[must_use]
    pub(crate) fn pack(&self) -> Packed {
        Packed {
            width: self.value.width,
            height: self.value.height,
            samples: self.samples,
            value: STANDARD.encode(&self.value.pixels),
            candidate: STANDARD.encode(&self.candidate),
            count: STANDARD.encode(&self.count),
        }
    }

    /// Reads a packed background for pictures of the size of `picture`.
    ///
    /// # Errors
    /// Another size, planes that do not have it, and what is no base64.
    pub(crate) fn unpack(packed: &Packed, picture: &Grey) -> Result<Self, Error> {
        let (width, height) = (packed.width, packed.height);
        if (width, height) != (picture.width, picture.height) || MAX_SIDE < width.max(height) {
            let (picture_width, picture_height) = (picture.width, picture.height);
            return Err(Error::OtherSize { width, height, picture_width, picture_height });
        }
        let plane = |text: &str| -> Result<Vec<u8>, Error> {
            let bytes = STANDARD.decode(text)?;
            if bytes.len() == width * height { Ok(bytes) } else { Err(Error::Plane { bytes: bytes.len(), width, height }) }
        };
        Ok(Self {
            value: Grey { width, height, pixels: plane(&packed.value)? },
            candidate: plane(&packed.candidate)?,
            count: plane(&packed.count)?,
            samples: packed.samples,
        })
    }
}

/// `from` moved by a part of `off`, by at least one.
fn toward(from: u8, off: i32, part: i32) -> u8 {
    let step = if off.abs() < part { off.signum() } else { off / part };
    u8::try_from((i32::from(from) + step).clamp(0, 255)).unwrap_or(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(value: u8) -> Grey {
        Grey { width: 40, height: 40, pixels: vec![value; 1_600] }
    }

    fn learned(value: u8) -> Background {
        let mut background = Background::new(&flat(value));
        (0..LEARNING_SAMPLES).for_each(|_| background.learn(&flat(value)));
        background
    }

    #[test]
    fn a_standing_thing_stays_visible_for_half_a_minute_at_two_pictures_a_second() {
        let mut background = learned(100);
        (1..ABSORB_LATER).for_each(|_| background.learn(&flat(200)));
        assert_eq!(background.picture(), &flat(100));
        background.learn(&flat(200));
        assert_eq!(background.picture(), &flat(200));
    }

    #[test]
    fn a_slow_change_of_light_is_followed() {
        let mut background = learned(100);
        (100..=160).for_each(|value| (0..4).for_each(|_| background.learn(&flat(value))));
        assert_eq!(background.picture(), &flat(160));
    }

    #[test]
    fn a_background_survives_its_journey() {
        let background = learned(77);
        assert_eq!(Background::unpack(&background.pack(), &flat(0)).unwrap(), background);
    }

    #[test]
    fn a_background_of_another_size_is_refused() {
        let wide = Grey { width: 80, height: 20, pixels: vec![0; 1_600] };
        assert!(matches!(Background::unpack(&learned(1).pack(), &wide), Err(Error::OtherSize { .. })));
    }
}
