//! The traffic demonstration, whole, on a short clip: what it counts must add up, however fast this machine is.

use std::io;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

#[cfg(test)]
#[path = "common/alone.rs"]
mod alone;

fn demo(words: &[&str], folder: &Path) -> io::Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_takt"));
    command.args(["demo", "traffic", "--json"]).args(words).current_dir(folder).env("TMPDIR", folder);
    command.output()
}

/// Ten seconds of a source are shown three ways, and what is told of them adds up.
#[cfg(test)]
fn check_clip(source: &[&str]) {
    let _alone = alone::alone().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = demo(&[source, &["--seconds", "10", "--neighbours", "3"]].concat(), folder.path()).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let shown: Value = serde_json::from_str(&text).unwrap();
    let count = |value: &Value| value.as_u64().unwrap();
    assert_eq!(count(&shown["clip"]["pictures"]), 250);
    let variants = shown["variants"].as_array().unwrap();
    assert_eq!(variants.len(), 3);
    for guaranteed in &variants[..2] {
        let sent = count(&guaranteed["score"]["watched"]) + count(&guaranteed["score"]["full_rate"]);
        assert!(0 < sent, "{guaranteed}");
        assert_eq!(count(&guaranteed["proven"]["arrivals"]), sent, "every picture has its record: {guaranteed}");
    }
    assert!(variants[2]["proven"].is_null(), "what nothing was promised for has no evidence");
    assert_eq!(count(&variants[2]["score"]["guaranteed"]), 0);
    let happened = !variants[0]["score"]["value_by_the_model"].is_null();
    assert_eq!(happened, variants[0]["value_as_reserved"].is_number(), "both values, or none: {}", variants[0]);
    assert!(variants[0]["neighbours"].is_null());
    // How many of them run is for the machine to say: beside other programs best effort may get next to nothing, and says so.
    for flooded in &variants[1..] {
        let neighbours = &flooded["neighbours"];
        assert!(neighbours["seconds"].as_f64().is_some_and(|seconds| 10.0 < seconds), "{text}");
        assert!(0 < count(&neighbours["answered"]) + count(&neighbours["refused"]), "the node met no flood: {neighbours}");
    }
    assert_eq!(count(&shown["neighbours"]["neighbours"]), 3);
    assert!(["kept", "missed"].contains(&shown["evidence"]["verdict"].as_str().unwrap()), "{}", shown["evidence"]);
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["takt-traffic.html"]);
}

#[test]
fn a_short_clip_is_shown_three_ways_and_leaves_only_its_report() {
    check_clip(&["--seed", "3"]);
}

/// A recording of a highway at 25 pictures per second.
#[test]
fn so_is_a_real_recording() {
    match std::env::var("TAKT_TEST_TRAFFIC_VIDEO") {
        Ok(video) => check_clip(&["--video", &video]),
        Err(_) => println!("skipped: TAKT_TEST_TRAFFIC_VIDEO names no recording"),
    }
}

#[test]
fn a_video_that_is_none_is_refused_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("text"), vec![b'x'; 100_000]).unwrap();
    let output = demo(&["--video", "text"], folder.path()).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("this is not motion JPEG"));
}
