//! The AWS CLI and the JavaScript SDK, unmodified.

use std::process::Command;

use tempfile::TempDir;

use super::boto3::{client_file, run_client};
use super::support::{Node, find, needs};

#[test]
fn the_aws_cli_works_unmodified() {
    let Some(versions) = needs("TAKT_TEST_AWS", "the AWS CLI") else { return };
    let home = TempDir::new().unwrap();
    let node = Node::start(&home.path().join("node"), &[]);
    for aws in std::env::split_paths(&versions) {
        let mut story = Command::new("bash");
        run_client(&node, story.arg(client_file("aws_cli_story.sh")).env("AWS", aws).current_dir(home.path()));
    }
    node.stop();
}

#[test]
fn the_javascript_sdk_works_unmodified() {
    let Some(modules) = needs("TAKT_TEST_NODE_MODULES", "the JavaScript SDK") else { return };
    let Some(program) = find("node") else {
        println!("skipped: the JavaScript SDK (there is no `node`)");
        return;
    };
    let home = TempDir::new().unwrap();
    let node = Node::start(&home.path().join("node"), &[]);
    run_client(&node, Command::new(program).arg(client_file("javascript_story.cjs")).env("NODE_PATH", modules));
    node.stop();
}
