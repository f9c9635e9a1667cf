//! The pages that are made from the code, so that they cannot say anything else.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::ci::cargo_path;

/// One page and the hidden command of `takt` that prints it.
const PAGES: [(&str, &[&str]); 2] =
    [("docs/reference/cli.md", &["internal", "docs"]), ("docs/reference/openapi.json", &["internal", "openapi"])];

/// Writes every page.
pub(crate) fn write() -> Result<()> {
    for (path, arguments) in PAGES {
        let text = generate(arguments)?;
        if let Some(folder) = Path::new(path).parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        std::fs::write(path, text).with_context(|| format!("cannot write {path}"))?;
        eprintln!("    wrote {path}");
    }
    Ok(())
}

/// Errors when a page differs from what the code says now.
pub(crate) fn check() -> Result<()> {
    for (path, arguments) in PAGES {
        let kept = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}; run `cargo xtask docs`"))?;
        if kept != generate(arguments)? {
            bail!("{path} is out of date; run `cargo xtask docs` and commit it");
        }
    }
    Ok(())
}

fn generate(arguments: &[&str]) -> Result<String> {
    let output = Command::new(cargo_path())
        .args(["run", "--quiet", "--locked", "--package", "takt-cli", "--"])
        .args(arguments)
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("`takt {}` ended with {}:\n{}", arguments.join(" "), output.status, String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).context("a generated page is not UTF-8")
}
