//! The house rules that no lint of the compiler can see.
//!
//! Words of the glossary are held in documents; text rules look at one line, file rules at one file, manifest rules at what a crate depends on. A finding names the
//! file and the line; all are listed before the task fails.

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

mod manifest;
mod text;
mod words;

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    path: String,
    /// Counts from 1; 0 means the whole file.
    line: usize,
    message: String,
}

impl Finding {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.message),
            line => write!(f, "{}:{line}: {}", self.path, self.message),
        }
    }
}

const GLOSSARY: &str = "docs/glossary.md";
const MAX_FILE_BYTES: u64 = 400_000;
const LONG_FILE_LINES: usize = 1_000;

/// Checks every file that git tracks or would track.
pub(crate) fn run() -> Result<()> {
    let mut findings = Vec::new();
    let unwanted = words::unwanted(&std::fs::read_to_string(GLOSSARY).with_context(|| format!("cannot read {GLOSSARY}"))?);
    for path in files()? {
        check_file(&path, &unwanted, &mut findings)?;
    }
    eprintln!("    Cargo.lock holds {} packages", locked_packages()?);
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        bail!("{} house rules are broken", findings.len());
    }
    Ok(())
}

fn check_file(path: &str, unwanted: &[String], findings: &mut Vec<Finding>) -> Result<()> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return Ok(()); // deleted in the working tree, not yet in the index
    };
    if !metadata.is_file() {
        return Ok(());
    }
    if MAX_FILE_BYTES < metadata.len() {
        findings.push(Finding::new(path, 0, format!("{} bytes, more than {MAX_FILE_BYTES}", metadata.len())));
    }
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {path}"))?;
    let Ok(content) = String::from_utf8(bytes) else {
        return Ok(()); // a picture or a recording
    };
    findings.extend(text::check(path, &content));
    findings.extend(words::check(path, &content, unwanted));
    if path.ends_with(".rs") && LONG_FILE_LINES < content.lines().count() {
        eprintln!("    note: {path} has {} lines; split it by what its parts are for", content.lines().count());
    }
    if Path::new(path).file_name().is_some_and(|name| name == "Cargo.toml") {
        findings.extend(manifest::check(path, &content)?);
    }
    Ok(())
}

fn files() -> Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("cannot start git")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let list = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    let mut files: Vec<String> = list.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect();
    files.sort();
    files.dedup();
    Ok(files)
}

fn locked_packages() -> Result<usize> {
    let lock = std::fs::read_to_string("Cargo.lock").context("cannot read Cargo.lock")?;
    Ok(lock.lines().filter(|line| *line == "[[package]]").count())
}
