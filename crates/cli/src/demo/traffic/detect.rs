//! The full-rate function: what is it, where, and how fast?
//!
//! One picture per invocation, with the empty road as the watcher knows it and the tracks of the newest answered picture. An
//! invocation depends on its input alone: several may be under way at once, on different instances, and one that is late or lost
//! costs nothing but its own answer.

use serde::{Deserialize, Serialize};

use super::foreground;
use super::geometry::Geometry;
use super::picture::{Base64Jpeg, Rect};
use super::track::{self, Track};
use super::watch::{Error, Found, checked_tracks, checked_view, decode, found, same_size};

/// What the detector is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) index: u64,
    pub(crate) geometry: Geometry,
    pub(crate) picture: Base64Jpeg,
    pub(crate) road: Base64Jpeg,
    /// Seconds since the picture of `tracks`, above 0 and up to 10.
    pub(crate) since_s: f32,
    pub(crate) tracks: Vec<Track>,
}

/// What the detector answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) index: u64,
    pub(crate) found: Vec<Found>,
    /// Everything that differs from the empty road.
    pub(crate) boxes: Vec<Rect>,
    pub(crate) tracks: Vec<Track>,
}

/// Analyses one picture.
///
/// # Errors
/// Pictures that cannot be read or compared, and numbers outside their limits.
pub(crate) fn detect(request: &Request) -> Result<Answer, Error> {
    if !(0.0..=10.0).contains(&request.since_s) {
        return Err(Error::Times(request.since_s, 0.0));
    }
    let picture = decode("picture", &request.picture)?;
    let road = decode("road", &request.road)?;
    same_size(&picture, &road)?;
    let view = checked_view(request.geometry, &picture)?;
    let seen = foreground::extract(&picture, &road, &view);
    let tracks = checked_tracks(&request.tracks)?;
    let tracks = track::advance(tracks, &seen.blobs, (request.index, request.since_s), &view);
    let boxes = seen.blobs.iter().filter(|blob| !blob.ghost).map(|blob| blob.rect).collect();
    Ok(Answer { index: request.index, found: found(&tracks, &view), boxes, tracks })
}
