//! What the analysis finds in generated scenes and, where one is given, in a real recording.
//!
//! The functions are called one after the other here, each with what the other answered, as the camera does it with invocations.

use super::gate::{Gate, Options, Summary};
use super::geometry::Geometry;
use super::picture::Base64Jpeg;
use super::scene::{self, Event, FPS, Kind, Plan, Scene};
use super::track::{Finding, Track};
use super::{detect, video, watch};

const WATCH_EVERY: u64 = 12;
const APART: u64 = 3;

struct Eyes<'a> {
    picture: &'a dyn Fn(u64) -> Vec<u8>,
    geometry: Geometry,
    gate: Gate,
    state: Option<(u64, watch::State)>,
    road: Option<Base64Jpeg>,
    tracks: (u64, Vec<Track>),
}

impl Eyes<'_> {
    fn watch(&mut self, index: u64) {
        let since_s = self.state.as_ref().map_or(0.0, |(last, _)| seconds(index - last));
        let request = watch::Request {
            index,
            geometry: self.geometry,
            before: Base64Jpeg::new(&(self.picture)(index - APART)),
            now: Base64Jpeg::new(&(self.picture)(index)),
            apart_s: seconds(APART),
            since_s,
            state: self.state.take().map(|(_, state)| state),
        };
        let answer = watch::watch(&request).unwrap();
        let was_open = self.gate.is_open();
        self.gate.watched(index, &answer.found);
        if !was_open {
            self.tracks = (index, answer.state.tracks.iter().map(|track| track.unjudged()).collect());
        }
        self.road = Some(answer.road);
        self.state = Some((index, answer.state));
    }

    fn detect(&mut self, index: u64) {
        let Some(road) = self.road.clone() else { return };
        let request = detect::Request {
            index,
            geometry: self.geometry,
            picture: Base64Jpeg::new(&(self.picture)(index)),
            road,
            since_s: seconds(index - self.tracks.0),
            tracks: self.tracks.1.clone(),
        };
        let answer = detect::detect(&request).unwrap();
        self.gate.detected(index, &answer.found);
        self.tracks = (index, answer.tracks);
    }
}

fn seconds(pictures: u64) -> f32 {
    pictures as f32 / FPS as f32
}

fn look(picture: &dyn Fn(u64) -> Vec<u8>, pictures: u64, geometry: Geometry) -> Summary {
    let gate = Gate::new(Options::at(FPS));
    let mut eyes = Eyes { picture, geometry, gate, state: None, road: None, tracks: (0, Vec::new()) };
    for index in APART..pictures {
        eyes.gate.tick(index);
        if eyes.gate.is_open() {
            eyes.detect(index);
        }
        if index % WATCH_EVERY == 0 {
            eyes.watch(index);
        }
    }
    eyes.gate.finish(pictures)
}

fn fits(kind: Kind, finding: Finding) -> bool {
    match kind {
        Kind::StoppedVehicle => finding == Finding::StoppedVehicle,
        Kind::SlowVehicle => finding == Finding::SlowVehicle,
        Kind::Pedestrian | Kind::Cyclist => finding == Finding::Person,
    }
}

/// Share of the pictures from the first sighting to the event's end in which the box was right.
fn box_recall(event: &Event, summary: &Summary) -> f64 {
    let Some(detected) = summary.detected.iter().find(|detected| fits(event.kind, detected.finding)) else { return 0.0 };
    let pictures = detected.first.max(event.begin)..event.end;
    let truth = |index: u64| event.boxes[usize::try_from(index - event.begin).unwrap()];
    let right =
        |index: &u64| detected.sightings.iter().any(|(at, found)| at == index && 0.4 <= found.rect.overlap(&truth(*index)));
    pictures.clone().filter(right).count() as f64 / pictures.count().max(1) as f64
}

/// Every event of the seeds is found in time, named rightly and boxed well, and nothing else is reported.
fn check_events(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let scene = Scene::new(Plan { seed, seconds: 16, duty: 0.2 }).unwrap();
        let summary = look(&|index| scene.jpeg(index).unwrap(), scene.pictures(), scene::geometry());
        let truth = &scene.truth().events;
        assert_eq!((truth.len(), summary.detected.len()), (1, 1), "seed {seed}: {truth:?} {:?}", summary.detected);
        let (event, detected) = (&truth[0], &summary.detected[0]);
        println!(
            "seed {seed}: {:?} {}..{}, found {:?} {}..={}, boxes {:.2}, false alarms {}",
            event.kind,
            event.begin,
            event.end,
            detected.finding,
            detected.first,
            detected.last,
            box_recall(event, &summary),
            summary.false_alarms
        );
        assert!(fits(event.kind, detected.finding), "seed {seed}: {:?} taken for {:?}", event.kind, detected.finding);
        assert!(event.begin <= detected.first + 5, "seed {seed}: found {} before {}", detected.first, event.begin);
        assert!(
            detected.first <= event.begin + 2 * u64::from(FPS),
            "seed {seed}: found at {} after {}",
            detected.first,
            event.begin
        );
        assert!(event.end <= detected.last + u64::from(FPS) / 2, "seed {seed}: lost at {} before {}", detected.last, event.end);
        assert!(detected.last <= event.end + u64::from(FPS), "seed {seed}: held till {} after {}", detected.last, event.end);
        assert!(0.6 <= box_recall(event, &summary), "seed {seed}: boxes {}", box_recall(event, &summary));
    }
}

#[test]
fn events_are_found_in_the_first_scenes() {
    check_events(0..5);
}

#[test]
fn events_are_found_in_the_second_scenes() {
    check_events(5..10);
}

#[test]
fn events_are_found_in_the_third_scenes() {
    check_events(10..15);
}

#[test]
fn events_are_found_in_the_fourth_scenes() {
    check_events(15..20);
}

#[test]
fn without_an_event_there_is_no_alarm() {
    for seed in 100..104 {
        let scene = Scene::new(Plan { seed, seconds: 16, duty: 0.0 }).unwrap();
        let summary = look(&|index| scene.jpeg(index).unwrap(), scene.pictures(), scene::geometry());
        assert_eq!(summary.detected, vec![], "seed {seed}");
    }
}

/// A recording of a highway whose camera is roughly as [`Geometry::default`] says, with somebody on the road for a while.
#[test]
fn somebody_is_found_in_a_real_recording() {
    let Some(path) = std::env::var_os("TAKT_TEST_TRAFFIC_VIDEO") else {
        println!("skipped: TAKT_TEST_TRAFFIC_VIDEO names no recording");
        return;
    };
    let pictures = video::clip(&path.to_string_lossy(), 350).unwrap();
    let picture = |index: u64| pictures[usize::try_from(index).unwrap()].clone();
    let summary = look(&picture, pictures.len() as u64, Geometry::default());
    for detected in &summary.detected {
        println!("{:?} in pictures {} to {}", detected.finding, detected.first, detected.last);
    }
    assert!(summary.detected.iter().any(|detected| detected.finding == Finding::Person));
}

#[test]
fn input_that_cannot_be_analysed_is_refused() {
    let scene = Scene::new(Plan { seed: 1, seconds: 10, duty: 0.0 }).unwrap();
    let picture = Base64Jpeg::new(&scene.jpeg(0).unwrap());
    let good = detect::Request {
        index: 1,
        geometry: scene::geometry(),
        picture: picture.clone(),
        road: picture.clone(),
        since_s: 0.04,
        tracks: Vec::new(),
    };
    assert!(detect::detect(&good).unwrap().found.is_empty());
    let refused = |request: detect::Request| detect::detect(&request).unwrap_err().to_string();
    assert_eq!(refused(detect::Request { picture: Base64Jpeg::new(b"no picture"), ..good.clone() }), "picture `picture`");
    assert!(refused(detect::Request { since_s: f32::NAN, ..good.clone() }).starts_with("times of NaN s"));
    let flat = Geometry { height_m: 0.0, ..scene::geometry() };
    assert!(refused(detect::Request { geometry: flat, ..good.clone() }).starts_with("a camera geometry"));
    let small = crate::demo::traffic::picture::encode_rgb(&[0; 64 * 64 * 3], 64, 64, 80).unwrap();
    assert!(refused(detect::Request { road: Base64Jpeg::new(&small), ..good }).contains("320x240 and 64x64"));
}
