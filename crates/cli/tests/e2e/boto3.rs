//! AWS's own Python client, unmodified.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::support::{Node, assert_exit, needs};

/// Runs a client program with what `takt env` gives a shell.
pub(crate) fn run_client(node: &Node, command: &mut Command) {
    let variables = node.takt_json(&["env"]);
    let variables = variables.as_object().unwrap();
    command.envs(variables.iter().map(|(name, value)| (name, value.as_str().unwrap())));
    let output = command.env("AWS_EC2_METADATA_DISABLED", "true").output().unwrap();
    assert_exit(&output, 0);
}

pub(crate) fn client_file(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/clients").join(name)
}

#[test]
fn boto3_does_everything_it_does_at_aws() {
    let Some(python) = needs("TAKT_TEST_PYTHON", "boto3") else { return };
    let home = TempDir::new().unwrap();
    let node = Node::start(&home.path().join("node"), &[]);
    run_client(&node, Command::new(python).arg(client_file("boto3_story.py")));
    node.stop();
}
