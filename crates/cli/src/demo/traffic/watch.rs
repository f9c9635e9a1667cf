//! The low-rate function: is something happening that deserves every picture?
//!
//! It is given two pictures a moment apart, a few times a second, and the state its last answer carried: instances share
//! nothing, so whichever instance is next can go on.

use serde::{Deserialize, Serialize};

use super::background::{self, Background};
use super::foreground;
use super::geometry::{Geometry, View};
use super::num;
use super::picture::{self, Base64Jpeg, Grey, Rect};
use super::track::{self, Finding, MAX_TRACKS, Track};

const ROAD_QUALITY: u8 = 88;

/// What the watcher is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// Number of the picture `now`.
    pub(crate) index: u64,
    pub(crate) geometry: Geometry,
    /// A picture taken shortly before `now`.
    pub(crate) before: Base64Jpeg,
    pub(crate) now: Base64Jpeg,
    /// Seconds between `before` and `now`, above 0 and up to 1.
    pub(crate) apart_s: f32,
    /// Seconds since the picture `now` of the state, up to 60.
    pub(crate) since_s: f32,
    /// What the last answer carried; absent at first.
    pub(crate) state: Option<State>,
}

/// What the watcher wants to be given back next time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    background: background::Packed,
    pub(crate) tracks: Vec<Track>,
}

/// One thing found, for people and reports.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) finding: Finding,
    pub(crate) track: u64,
    pub(crate) rect: Rect,
    pub(crate) km_per_h: f32,
}

/// What the watcher answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) index: u64,
    /// Empty when nothing is happening.
    pub(crate) found: Vec<Found>,
    pub(crate) state: State,
    /// The empty road as the detector needs it.
    pub(crate) road: Base64Jpeg,
}

/// Why an input cannot be analysed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("picture `{which}`")]
    Picture { which: &'static str, source: picture::Error },
    #[error("pictures of {0}x{1} and {2}x{3} pixels cannot be compared")]
    Sizes(usize, usize, usize, usize),
    #[error("the background of the state")]
    Background(#[from] background::Error),
    #[error("a camera geometry of {0:?} is outside its limits")]
    Geometry(Geometry),
    #[error("{0} tracks exceed the limit of {MAX_TRACKS}, or a number in them cannot be worked with")]
    Tracks(usize),
    #[error("times of {0} s and {1} s are outside their limits")]
    Times(f32, f32),
}

/// Looks at one pair of pictures.
///
/// # Errors
/// Pictures that cannot be read or compared, and numbers outside their limits.
pub(crate) fn watch(request: &Request) -> Result<Answer, Error> {
    if !(0.0..=60.0).contains(&request.since_s) || !(0.001..=1.0).contains(&request.apart_s) {
        return Err(Error::Times(request.since_s, request.apart_s));
    }
    let before = decode("before", &request.before)?;
    let now = decode("now", &request.now)?;
    same_size(&before, &now)?;
    let view = checked_view(request.geometry, &now)?;
    let (mut background, tracks) = match &request.state {
        Some(state) => (Background::unpack(&state.background, &now)?, checked_tracks(&state.tracks)?),
        None => (Background::new(&before), &[][..]),
    };
    let between_s = (request.since_s - request.apart_s).max(0.001);
    let earlier = foreground::extract(&before, background.picture(), &view);
    let later = foreground::extract(&now, background.picture(), &view);
    let tracks = track::advance(tracks, &earlier.blobs, (request.index.saturating_sub(1), between_s), &view);
    let tracks = track::advance(&tracks, &later.blobs, (request.index, request.apart_s), &view);
    background.learn(&now);
    background.forget_ghosts(&now, &earlier.blobs, &later);
    let found = if background.is_learned() { found(&tracks, &view) } else { Vec::new() };
    let road =
        Base64Jpeg::encode_grey(background.picture(), ROAD_QUALITY).map_err(|source| Error::Picture { which: "road", source })?;
    Ok(Answer { index: request.index, found, state: State { background: background.pack(), tracks }, road })
}

pub(super) fn decode(which: &'static str, picture: &Base64Jpeg) -> Result<Grey, Error> {
    picture.decode().map_err(|source| Error::Picture { which, source })
}

pub(super) fn same_size(a: &Grey, b: &Grey) -> Result<(), Error> {
    if (a.width, a.height) == (b.width, b.height) { Ok(()) } else { Err(Error::Sizes(a.width, a.height, b.width, b.height)) }
}

pub(super) fn checked_view(geometry: Geometry, picture: &Grey) -> Result<View, Error> {
    if geometry.is_valid() { Ok(geometry.view(picture.width, picture.height)) } else { Err(Error::Geometry(geometry)) }
}

pub(super) fn checked_tracks(tracks: &[Track]) -> Result<&[Track], Error> {
    if tracks.len() <= MAX_TRACKS && tracks.iter().all(Track::is_valid) { Ok(tracks) } else { Err(Error::Tracks(tracks.len())) }
}

pub(super) fn found(tracks: &[Track], view: &View) -> Vec<Found> {
    track::findings(tracks)
        .map(|(finding, track)| Found {
            finding,
            track: track.id,
            rect: track.rect.clipped(view.width, view.height).unwrap_or(track.rect),
            km_per_h: num::round(track.speed(view) * 36.0) as f32 / 10.0,
        })
        .collect()
}
