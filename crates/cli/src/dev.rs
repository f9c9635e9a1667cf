//! Redeploys function folders as they change: `takt serve --dev DIR`.
//!
//! What a folder's files are is what its package holds, so hidden files and caches change nothing. Changes that come close
//! together make one deployment; it is begun once nothing changed for a moment, or after half a second of changes at the
//! latest.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use notify::{RecursiveMode, Watcher};
use serde_json::json;
use tokio::time::Instant;

use crate::admission;
use crate::args::NodeArgs;
use crate::client::Client;
use crate::commands::deploy;
use crate::output::Format;
use crate::package::Dependencies;

/// Paths that may wait to be looked at; beyond that every folder counts as changed.
const MAX_CHANGES: usize = 1024;
const QUIET: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_millis(500);
/// How often it looks whether it should stop.
const LOOK: Duration = Duration::from_millis(250);

/// One change, as the watch tells it.
enum Changed {
    At(PathBuf),
    /// More changed than was kept.
    Much,
}

/// Watches a folder of a function, or of several.
#[derive(Debug)]
pub struct Dev {
    root: PathBuf,
    node: NodeArgs,
    format: Format,
    dependencies: Dependencies,
}

impl Dev {
    /// Errors when `root` is no folder.
    pub fn new(root: &Path, node: NodeArgs, format: Format) -> Result<Self> {
        let root = fs::canonicalize(root).with_context(|| format!("cannot watch {}", root.display()))?;
        if !root.is_dir() {
            bail!("cannot watch {}: it is no folder", root.display());
        }
        Ok(Self { root, node, format, dependencies: Dependencies::default() })
    }

    /// Deploys every function folder once, then whichever changes, until `stop` is set.
    pub fn run(mut self, stop: &AtomicBool) -> Result<()> {
        let (told, changes) = sync_channel(MAX_CHANGES);
        let mut watcher = notify::recommended_watcher(reporter(told)).context("cannot watch folders")?;
        watcher.watch(&self.root, RecursiveMode::Recursive).with_context(|| format!("cannot watch {}", self.root.display()))?;
        for folder in folders(&self.root)? {
            self.deploy(&folder);
        }
        while !stop.load(Ordering::Relaxed) {
            let first = match changes.recv_timeout(LOOK) {
                Ok(first) => first,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => bail!("the watch on {} ended", self.root.display()),
            };
            for folder in touched(&folders(&self.root)?, &gather(first, &changes)) {
                self.deploy(&folder);
            }
        }
        Ok(())
    }

    fn deploy(&mut self, folder: &Path) {
        let begun = Instant::now();
        let outcome = self.try_deploy(folder);
        let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy();
        let seconds = begun.elapsed().as_secs_f64();
        match (self.format, outcome) {
            (Format::Human, Ok(said)) => eprintln!("{name}: {said} ({seconds:.2} s)"),
            (Format::Human, Err(error)) => eprintln!("{name}: {error:#}"),
            (Format::Json, Ok(said)) => println!("{}", json!({ "folder": folder, "deployed": said, "seconds": seconds })),
            (Format::Json, Err(error)) => println!("{}", json!({ "folder": folder, "error": format!("{error:#}") })),
        }
    }

    fn try_deploy(&mut self, folder: &Path) -> Result<String> {
        let (text, spec) = deploy::stated(folder)?;
        // The keys may have been changed since the last time.
        let client = Client::new(&self.node)?;
        let answer = deploy::upload(&client, folder, &text, &spec, &mut self.dependencies)?;
        if admission::is_refusal(&answer) {
            bail!("refused: {}", answer.message());
        }
        let value = answer.success()?;
        Ok(value["version"].as_u64().map_or_else(|| "deployed".to_owned(), |version| format!("version {version} serves")))
    }
}

fn reporter(told: SyncSender<Changed>) -> impl Fn(notify::Result<notify::Event>) {
    let overflowed = Arc::new(AtomicBool::new(false));
    move |event| {
        let Ok(event) = event else { return };
        // Reading a file is an event too; packing a folder must not make it deploy again.
        if !(event.kind.is_create() || event.kind.is_modify() || event.kind.is_remove()) {
            return;
        }
        if overflowed.load(Ordering::Relaxed) && told.try_send(Changed::Much).is_ok() {
            overflowed.store(false, Ordering::Relaxed);
        }
        for path in event.paths {
            if let Err(TrySendError::Full(_)) = told.try_send(Changed::At(path)) {
                overflowed.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// The first change and those that follow it closely.
fn gather(first: Changed, changes: &Receiver<Changed>) -> Vec<Changed> {
    let until = Instant::now() + PATIENCE;
    let mut all = vec![first];
    while Instant::now() < until && all.len() < MAX_CHANGES {
        match changes.recv_timeout(QUIET) {
            Ok(change) => all.push(change),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    all
}

/// The function folders at a root: itself, or the folders in it.
fn folders(root: &Path) -> Result<Vec<PathBuf>> {
    let is_function = |folder: &Path| folder.join(model::config::FILE_NAME).is_file();
    if is_function(root) {
        return Ok(vec![root.to_owned()]);
    }
    let entries = fs::read_dir(root).with_context(|| format!("cannot read {}", root.display()))?;
    let mut folders: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is_function(path)).collect();
    folders.sort();
    Ok(folders)
}

/// The folders whose package a change can change.
fn touched(folders: &[PathBuf], changes: &[Changed]) -> BTreeSet<PathBuf> {
    let mut touched = BTreeSet::new();
    for change in changes {
        match change {
            Changed::Much => touched.extend(folders.iter().cloned()),
            Changed::At(path) => touched.extend(folders.iter().filter(|folder| concerns(folder, path)).cloned()),
        }
    }
    touched
}

fn concerns(folder: &Path, path: &Path) -> bool {
    let Ok(inside) = path.strip_prefix(folder) else {
        return false;
    };
    !inside.components().any(|part| {
        let part = part.as_os_str().to_string_lossy();
        (part.starts_with('.') && part != crate::package::IGNORE_FILE) || part == "__pycache__" || part == "node_modules"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_touches_the_folder_it_lies_in() {
        let folders = [PathBuf::from("/f/a"), PathBuf::from("/f/b")];
        let check = |changes: &[&str], expected: &[&str]| {
            let changes: Vec<Changed> = changes.iter().map(|path| Changed::At(PathBuf::from(path))).collect();
            let expected: BTreeSet<PathBuf> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(touched(&folders, &changes), expected);
        };
        check(&["/f/a/handler.py", "/f/a/lib/x.py"], &["/f/a"]);
        check(&["/f/a/__pycache__/x.pyc", "/f/b/.git/HEAD", "/f/b/node_modules/x", "/f/c/x"], &[]);
        check(&["/f/b/.taktignore"], &["/f/b"]);
        assert_eq!(touched(&folders, &[Changed::Much]).len(), 2);
    }

    #[test]
    fn a_root_is_a_function_folder_or_holds_some() {
        let root = tempfile::tempdir().unwrap();
        for name in ["b", "a", "empty"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        for name in ["a", "b"] {
            fs::write(root.path().join(name).join("takt.toml"), "").unwrap();
        }
        assert_eq!(folders(root.path()).unwrap(), [root.path().join("a"), root.path().join("b")]);
        assert_eq!(folders(&root.path().join("a")).unwrap(), [root.path().join("a")]);
    }

    #[test]
    fn only_what_changes_files_is_told() {
        let (told, changes) = sync_channel(4);
        let report = reporter(told);
        let event = |kind| Ok(notify::Event::new(kind).add_path(PathBuf::from("/f/a/x")));
        report(event(notify::EventKind::Access(notify::event::AccessKind::Read)));
        changes.try_recv().map(|_| ()).unwrap_err();
        report(event(notify::EventKind::Create(notify::event::CreateKind::File)));
        assert!(matches!(changes.try_recv(), Ok(Changed::At(_))));
    }

    #[test]
    fn too_many_changes_are_told_as_such() {
        let (told, changes) = sync_channel(1);
        let report = reporter(told);
        let event = || Ok(notify::Event::new(notify::EventKind::Any).add_path(PathBuf::from("/x")));
        let create = || {
            let mut event: notify::Event = event().map_err(|error: notify::Error| error.to_string()).unwrap();
            event.kind = notify::EventKind::Create(notify::event::CreateKind::Any);
            Ok(event)
        };
        report(create());
        report(create());
        assert!(matches!(changes.try_recv(), Ok(Changed::At(_))));
        report(create());
        assert!(matches!(changes.try_recv(), Ok(Changed::Much)));
    }
}
