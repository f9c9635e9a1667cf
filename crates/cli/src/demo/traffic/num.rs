//! The few number conversions that pictures need, each with its rounding and its limits said once.

/// The nearest whole number; NaN gives 0 and what does not fit gives the nearest limit.
#[expect(clippy::cast_possible_truncation, reason = "`as` from a float saturates, which is the documented behaviour")]
pub(crate) fn round(value: f32) -> i32 {
    value.round() as i32
}

/// The largest whole number not above `value`; limits as for [`round`].
#[expect(clippy::cast_possible_truncation, reason = "`as` from a float saturates, which is the documented behaviour")]
pub(crate) fn floor(value: f32) -> i32 {
    value.floor() as i32
}

/// The nearest grey value, held to 0..=255.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` from a float saturates, which is the documented behaviour"
)]
pub(crate) fn byte(value: f32) -> u8 {
    (value + 0.5) as u8
}

/// A whole number as a picture index; below zero gives 0.
pub(crate) fn index(value: i32) -> usize {
    usize::try_from(value).unwrap_or(0)
}

/// A picture size or index as a signed number; what does not fit gives `i32::MAX`.
pub(crate) fn signed(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// A whole number as a float.
pub(crate) fn float(value: usize) -> f32 {
    value as f32
}

/// A non-negative float as a count, rounded to the nearest; below zero and NaN give 0.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` from a float saturates, which is the documented behaviour"
)]
pub(crate) fn count(value: f64) -> usize {
    value.round() as usize
}
