//! A function folder is deployed again when it changes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[cfg(test)]
mod common;

use common::FakeNode;
use takt_cli::args::NodeArgs;
use takt_cli::dev::Dev;
use takt_cli::output::Format;

/// A deployment that does not come within this time does not come.
const LIMIT: Duration = Duration::from_secs(20);

fn rule(_line: &str) -> (u16, &'static str) {
    (200, r#"{"version": 1}"#)
}

#[test]
fn a_change_of_a_file_deploys_its_folder_again_and_reading_it_does_not() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("takt.toml"), "name = \"hello\"\nruntime = \"python\"\n").unwrap();
    std::fs::write(folder.path().join("handler.py"), "first").unwrap();
    let node = FakeNode::start(rule);
    let args = NodeArgs { url: node.url.clone(), token: Some("t".to_owned()), data_dir: None };
    let dev = Dev::new(folder.path(), args, Format::Json).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| dev.run(&stop));
        let first = node.next(LIMIT);
        std::fs::write(folder.path().join("handler.py"), "second").unwrap();
        let second = node.next(LIMIT);
        stop.store(true, Ordering::Relaxed);
        running.join().unwrap().unwrap();
        assert_eq!((first.line.as_str(), second.line.as_str()), ("PUT /v1/functions/hello", "PUT /v1/functions/hello"));
        assert_ne!(first.body, second.body);
        assert_eq!(first.authorization, "Bearer t");
        assert!(node.asked().is_empty(), "nothing changed after the second deployment");
    });
}
