//! Grey pictures, boxes in them, and JPEG in and out.
//!
//! Sizes are limited where a picture enters, so that everything behind may trust them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::num;

/// Largest picture side that is read, in pixels.
pub(crate) const MAX_SIDE: usize = 2_048;
/// Smallest picture side that is read, in pixels: below it there is nothing to see.
pub(crate) const MIN_SIDE: usize = 32;

/// A picture of one grey value per pixel, row by row from the top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grey {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) pixels: Vec<u8>,
}

/// Why bytes are no usable picture.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("not a readable JPEG picture of {bytes} bytes: {reason}")]
    Jpeg { bytes: usize, reason: String },
    #[error("a picture of {width}x{height} pixels is outside the limits of {MIN_SIDE} to {MAX_SIDE} per side")]
    Size { width: usize, height: usize },
    #[error("the picture is no base64")]
    Base64(#[from] base64::DecodeError),
    #[error("cannot write a JPEG picture")]
    Encode(#[from] jpeg_encoder::EncodingError),
}

impl Grey {
    /// Decodes the brightness of a JPEG picture.
    ///
    /// # Errors
    /// Bytes that are no JPEG, and sizes outside [`MIN_SIDE`]..=[`MAX_SIDE`].
    pub(crate) fn decode(jpeg: &[u8]) -> Result<Self, Error> {
        let unreadable = |error: zune_jpeg::errors::DecodeErrors| Error::Jpeg { bytes: jpeg.len(), reason: error.to_string() };
        let options = DecoderOptions::default()
            .set_max_width(MAX_SIDE)
            .set_max_height(MAX_SIDE)
            .set_strict_mode(false)
            .jpeg_set_out_colorspace(ColorSpace::Luma);
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(jpeg), options);
        decoder.decode_headers().map_err(unreadable)?;
        let (width, height) =
            decoder.dimensions().ok_or_else(|| Error::Jpeg { bytes: jpeg.len(), reason: "it states no size".to_owned() })?;
        if width < MIN_SIDE || height < MIN_SIDE || MAX_SIDE < width || MAX_SIDE < height {
            return Err(Error::Size { width, height });
        }
        let pixels = decoder.decode().map_err(unreadable)?;
        if pixels.len() != width * height {
            return Err(Error::Jpeg {
                bytes: jpeg.len(),
                reason: format!("{} pixels where {width}x{height} were stated", pixels.len()),
            });
        }
        Ok(Self { width, height, pixels })
    }
}

/// Writes a picture of red, green and blue bytes as JPEG.
///
/// # Errors
/// A size that the format cannot state, or pixels that do not fit the size.
pub(crate) fn encode_rgb(pixels: &[u8], width: u16, height: u16, quality: u8) -> Result<Vec<u8>, Error> {
    let mut out = Vec::with_capacity(16 * 1_024);
    jpeg_encoder::Encoder::new(&mut out, quality).encode(pixels, width, height, jpeg_encoder::ColorType::Rgb)?;
    Ok(out)
}

/// A JPEG picture as JSON carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Base64Jpeg(String);

impl Base64Jpeg {
    #[must_use]
    pub(crate) fn new(jpeg: &[u8]) -> Self {
        Self(STANDARD.encode(jpeg))
    }

    /// The brightness of the picture.
    ///
    /// # Errors
    /// What is no base64 or no JPEG, and sizes outside their limits.
    pub(crate) fn decode(&self) -> Result<Grey, Error> {
        Grey::decode(&STANDARD.decode(&self.0)?)
    }

    /// Writes a grey picture.
    ///
    /// # Errors
    /// A size that the format cannot state.
    pub(crate) fn encode_grey(picture: &Grey, quality: u8) -> Result<Self, Error> {
        let (width, height) = (picture.width, picture.height);
        let size = |side: usize| u16::try_from(side).map_err(|_| Error::Size { width, height });
        let mut out = Vec::with_capacity(16 * 1_024);
        let encoder = jpeg_encoder::Encoder::new(&mut out, quality);
        encoder.encode(&picture.pixels, size(width)?, size(height)?, jpeg_encoder::ColorType::Luma)?;
        Ok(Self::new(&out))
    }
}

/// A box in a picture: left, top, width and height in pixels of the full-size picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rect {
    pub(crate) x: f32,
    pub(crate) y: f32,
    pub(crate) w: f32,
    pub(crate) h: f32,
}

impl Rect {
    /// Horizontal middle.
    #[must_use]
    pub(crate) fn middle(&self) -> f32 {
        self.x + self.w / 2.0
    }

    /// The row on which the thing in the box stands.
    #[must_use]
    pub(crate) fn foot(&self) -> f32 {
        self.y + self.h
    }

    /// Shared area over united area, 0 to 1.
    #[must_use]
    pub(crate) fn overlap(&self, other: &Self) -> f32 {
        let w = (self.x + self.w).min(other.x + other.w) - self.x.max(other.x);
        let h = (self.y + self.h).min(other.y + other.h) - self.y.max(other.y);
        if w <= 0.0 || h <= 0.0 {
            return 0.0;
        }
        let shared = w * h;
        shared / (self.w * self.h + other.w * other.h - shared)
    }

    /// The smallest box around both.
    #[must_use]
    pub(crate) fn with(&self, other: &Self) -> Self {
        let (x, y) = (self.x.min(other.x), self.y.min(other.y));
        let right = (self.x + self.w).max(other.x + other.w);
        Self { x, y, w: right - x, h: self.foot().max(other.foot()) - y }
    }

    /// The part inside a picture; `None` when nothing is.
    #[must_use]
    pub(crate) fn clipped(&self, width: usize, height: usize) -> Option<Self> {
        let (x, y) = (self.x.max(0.0), self.y.max(0.0));
        let w = (self.x + self.w).min(num::float(width)) - x;
        let h = self.foot().min(num::float(height)) - y;
        (0.0 < w && 0.0 < h).then_some(Self { x, y, w, h })
    }

    /// The box moved by so many pixels.
    #[must_use]
    pub(crate) fn moved(&self, dx: f32, dy: f32) -> Self {
        Self { x: self.x + dx, y: self.y + dy, ..*self }
    }

    /// All four numbers are finite and the sides are not negative.
    #[must_use]
    pub(crate) fn is_valid(&self) -> bool {
        [self.x, self.y, self.w, self.h].iter().all(|v| v.is_finite()) && 0.0 <= self.w && 0.0 <= self.h
    }
}
