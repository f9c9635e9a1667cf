//! Following things from picture to picture, and what they are.
//!
//! The tracks are plain data that travel with an invocation, so any instance can go on where another one stopped.

use serde::{Deserialize, Serialize};

use super::foreground::Blob;
use super::geometry::View;
use super::num;
use super::picture::Rect;

/// Most tracks that are followed and carried.
pub(crate) const MAX_TRACKS: usize = 64;
/// Fastest thing that is followed, in metres per second.
const FASTEST: f32 = 55.0;
/// How well a prediction holds, in metres plus metres per second of time since.
const PREDICTION_M: f32 = 1.2;
const PREDICTION_M_PER_S: f32 = 14.0;
/// Velocities are averaged over about this many seconds.
const SMOOTHING_S: f32 = 0.22;
/// A track unseen for longer is dropped; one with evidence is held longer, because others drive in front of it.
const FORGET_S: f32 = 0.3;
const HOLD_S: f32 = 1.0;
/// Things unseen for longer are followed, but no longer reported.
const REPORT_S: f32 = 0.15;
/// Slower vehicles are slow: 20 km/h.
const SLOW_M_PER_S: f32 = 5.5;
/// Slower vehicles stand still, as far as can be seen.
const STILL_M_PER_S: f32 = 1.5;
/// Nobody walks or cycles faster: 40 km/h.
const PERSON_M_PER_S: f32 = 11.0;
/// Seconds of evidence that make a finding, and the most that is kept.
const EVIDENCE_S: f32 = 0.36;
const MOST_EVIDENCE_S: f32 = 1.0;

/// What can be found on a road that should not be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Finding {
    StoppedVehicle,
    SlowVehicle,
    /// On foot or on a bicycle.
    Person,
}

/// A thing that is followed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Track {
    /// The picture it was first seen in, times [`MAX_TRACKS`], plus its position among those seen first there.
    pub(crate) id: u64,
    pub(crate) rect: Rect,
    /// Pixels per second.
    pub(crate) right: f32,
    pub(crate) down: f32,
    /// Pictures it was seen in.
    pub(crate) seen: u32,
    /// Seconds since it was last seen.
    pub(crate) unseen_s: f32,
    /// Seconds of evidence for each finding.
    pub(crate) still_s: f32,
    pub(crate) slow_s: f32,
    pub(crate) person_s: f32,
    /// Seconds since it was first seen.
    pub(crate) age_s: f32,
}

impl Track {
    /// What the evidence so far says, if it says anything.
    #[must_use]
    pub(crate) fn finding(&self) -> Option<Finding> {
        if self.seen < 3 {
            return None;
        }
        if EVIDENCE_S <= self.person_s && self.slow_s <= self.person_s {
            Some(Finding::Person)
        } else if EVIDENCE_S <= self.still_s {
            Some(Finding::StoppedVehicle)
        } else if EVIDENCE_S <= self.slow_s {
            Some(Finding::SlowVehicle)
        } else {
            None
        }
    }

    /// The track without what it has been found to be: the detector judges for itself.
    #[must_use]
    pub(crate) fn unjudged(self) -> Self {
        Self { still_s: 0.0, slow_s: 0.0, person_s: 0.0, ..self }
    }

    /// Speed over the road in metres per second.
    #[must_use]
    pub(crate) fn speed(&self, view: &View) -> f32 {
        view.speed(&self.rect, self.right, self.down)
    }

    /// All numbers can be worked with.
    #[must_use]
    pub(crate) fn is_valid(&self) -> bool {
        let numbers = [self.right, self.down, self.unseen_s, self.still_s, self.slow_s, self.person_s, self.age_s];
        self.rect.is_valid() && numbers.iter().all(|value| value.is_finite())
    }

    fn begin(id: u64, blob: &Blob) -> Self {
        Self {
            id,
            rect: blob.rect,
            right: 0.0,
            down: 0.0,
            seen: 1,
            unseen_s: 0.0,
            still_s: 0.0,
            slow_s: 0.0,
            person_s: 0.0,
            age_s: 0.0,
        }
    }

    fn predicted(&self, dt: f32) -> Rect {
        let moved = self.rect.moved(self.right * dt, self.down * dt);
        Rect { x: moved.x.clamp(-4_096.0, 4_096.0), y: moved.y.clamp(-4_096.0, 4_096.0), ..moved }
    }

    fn miss(&mut self, dt: f32) {
        self.rect = self.predicted(dt);
        self.unseen_s += dt;
        self.age_s += dt;
    }

    fn hit(&mut self, blob: &Blob, dt: f32, view: &View) {
        let since = dt + self.unseen_s;
        let right = (blob.rect.middle() - self.predicted(-self.unseen_s).middle()) / since;
        let down = (blob.rect.foot() - self.predicted(-self.unseen_s).foot()) / since;
        // The first measurement is taken as it is, later ones are averaged.
        let weight = (1.0 / self.seen as f32).max(since / (since + SMOOTHING_S));
        self.right += (right - self.right) * weight;
        self.down += (down - self.down) * weight;
        self.rect = blob.rect;
        self.seen = self.seen.saturating_add(1);
        self.unseen_s = 0.0;
        self.age_s += dt;
        if !blob.cut && !blob.ghost {
            self.weigh(dt, view);
        }
    }

    fn weigh(&mut self, dt: f32, view: &View) {
        let scale = view.pixels_per_metre(self.rect.foot());
        let (wide, high) = (self.rect.w / scale, self.rect.h / scale);
        let speed = self.speed(view);
        let person = wide <= 1.45 && (1.0..2.7).contains(&high) && 1.15 * wide <= high && speed < PERSON_M_PER_S;
        let vehicle = 1.25 <= wide && 1.0 <= high && !person;
        let settle = |evidence: &mut f32, holds: bool| {
            *evidence = (*evidence + if holds { dt } else { -1.5 * dt }).clamp(0.0, MOST_EVIDENCE_S);
        };
        settle(&mut self.person_s, person);
        settle(&mut self.slow_s, vehicle && speed < SLOW_M_PER_S);
        settle(&mut self.still_s, vehicle && speed < STILL_M_PER_S);
    }
}

/// Carries `tracks` on to the picture `index`, taken `dt` seconds (above 0) after the one they stand for.
#[must_use]
pub(crate) fn advance(tracks: &[Track], blobs: &[Blob], when: (u64, f32), view: &View) -> Vec<Track> {
    let (index, dt) = (when.0, when.1.clamp(0.001, 10.0));
    let seen: Vec<&Blob> = blobs.iter().collect();
    let mut next = tracks.to_vec();
    let mut blob_of = vec![None; next.len()];
    let mut taken = vec![false; seen.len()];
    for (track, blob) in pairs(tracks, &seen, dt, view) {
        if blob_of[track].is_none() && !taken[blob] {
            blob_of[track] = Some(blob);
            taken[blob] = true;
        }
    }
    for (track, blob) in next.iter_mut().zip(blob_of) {
        match blob {
            Some(blob) => track.hit(seen[blob], dt, view),
            None => track.miss(dt),
        }
    }
    next.retain(|track| is_kept(track, view));
    let fresh = seen.iter().zip(taken).filter(|(_, taken)| !taken).enumerate();
    for (position, (blob, _)) in fresh {
        if next.len() < MAX_TRACKS {
            let id = index.saturating_mul(num::signed(MAX_TRACKS).unsigned_abs().into()).saturating_add(position as u64);
            next.push(Track::begin(id, blob));
        }
    }
    next
}

/// Which blob may be which track, the best fits first.
fn pairs(tracks: &[Track], blobs: &[&Blob], dt: f32, view: &View) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    for (t, track) in tracks.iter().enumerate() {
        let expected = track.predicted(dt);
        let since = dt + track.unseen_s;
        let reach = if track.seen < 2 { PREDICTION_M + FASTEST * since } else { PREDICTION_M + PREDICTION_M_PER_S * since };
        for (b, blob) in blobs.iter().enumerate() {
            let overlap = expected.overlap(&blob.rect);
            let far = view.distance_m(&expected, &blob.rect) / reach;
            let ratio = (blob.rect.w * blob.rect.h).max(1.0) / (track.rect.w * track.rect.h).max(1.0);
            let unlike = ratio.ln().abs();
            if (0.3 < overlap || far < 1.0) && unlike < 1.6 {
                pairs.push((far.min(1.5) * 0.6 + unlike * 0.5 - overlap, t, b));
            }
        }
    }
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    pairs.into_iter().map(|(_, t, b)| (t, b)).collect()
}

fn is_kept(track: &Track, view: &View) -> bool {
    let limit = if track.finding().is_some() {
        HOLD_S
    } else if track.seen < 3 {
        0.0
    } else {
        FORGET_S
    };
    track.unseen_s <= limit && track.rect.clipped(view.width, view.height).is_some()
}

/// The findings among tracks, each with its track.
pub(crate) fn findings(tracks: &[Track]) -> impl Iterator<Item = (Finding, &Track)> {
    let seen = tracks.iter().filter(|track| track.unseen_s <= REPORT_S);
    seen.filter_map(|track| track.finding().map(|finding| (finding, track)))
}
