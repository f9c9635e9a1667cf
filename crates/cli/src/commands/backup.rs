//! `takt backup`: a copy of what a node must not lose, and the way back.

use std::path::Path;

use anyhow::{Context, Result};
use http::Method;
use serde_json::json;

use crate::args::{BackupArgs, BackupVerb};
use crate::client::Client;
use crate::exit::Exit;
use crate::output::{self, Format, Progress};

/// Does what the verb says.
pub fn run(args: &BackupArgs, format: Format) -> Result<Exit> {
    match &args.verb {
        BackupVerb::Make(make) => {
            let folder = std::path::absolute(&make.folder).context("cannot tell where this folder is")?;
            let folder = folder.to_str().with_context(|| format!("{} is not UTF-8", folder.display()))?;
            let progress = Progress::start(format, "copying");
            let value = Client::new(&make.node)?.call(Method::POST, "/v1/backup", Some(&json!({ "to": folder })))?.success()?;
            progress.end();
            match format {
                Format::Json => output::json(&value),
                Format::Human => println!("Copied {} files, {} bytes, to {folder}.", value["files"], value["bytes"]),
            }
        }
        BackupVerb::Restore(restore) => say(&restored(&restore.folder, &restore.data_dir)?, format),
        BackupVerb::Inspect(inspect) => {
            let manifest = node::backup::inspect(&inspect.folder)
                .with_context(|| format!("{} cannot be restored", inspect.folder.display()))?;
            say(&manifest, format);
        }
    }
    Ok(Exit::Ok)
}

fn restored(folder: &Path, data_dir: &Path) -> Result<node::backup::Manifest> {
    node::backup::restore(folder, data_dir).with_context(|| format!("cannot restore {}", folder.display()))
}

fn say(manifest: &node::backup::Manifest, format: Format) {
    match format {
        Format::Json => output::json(&json!(manifest)),
        Format::Human => println!(
            "Data format {}, made by takt {}: {} files, {} bytes.",
            manifest.format, manifest.software, manifest.files, manifest.bytes
        ),
    }
}
