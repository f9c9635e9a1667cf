//! Where everything that must survive is kept: an ordered map of keys to values with atomic batches.
//!
//! The trait is what the rest of the node codes against; stores on disk live in the node, the in-memory one here serves
//! tests and simulation. Invariant: a batch is seen whole or not at all, and what was synced outlives a crash.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The longest key, in bytes of printable ASCII.
pub const MAX_KEY_BYTES: usize = 256;
/// The largest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 16 << 20;
/// The most writes in one batch.
pub const MAX_BATCH: usize = 100_000;

/// Why a store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a key of {bytes} bytes; keys are 1 to {MAX_KEY_BYTES} bytes of printable ASCII without spaces")]
    Key { bytes: usize },
    #[error("the value of `{key}` has {bytes} bytes, the limit is {MAX_VALUE_BYTES} bytes")]
    Value { key: String, bytes: usize },
    #[error("a batch of {writes} writes exceeds the limit of {MAX_BATCH}")]
    Batch { writes: usize },
    #[error("cannot {operation} the store")]
    Io { operation: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the store is closed")]
    Closed,
}

/// One change of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    Put { key: String, value: Vec<u8> },
    Delete { key: String },
}

/// Changes that are applied together, in order, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    writes: Vec<Write>,
}

impl Batch {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds: `key` has this value from here on.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: Vec<u8>) -> Self {
        self.writes.push(Write::Put { key: key.into(), value });
        self
    }

    /// Adds: `key` is gone from here on; it need not exist.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.push(Write::Delete { key: key.into() });
        self
    }

    #[must_use]
    pub fn writes(&self) -> &[Write] {
        &self.writes
    }

    /// Errors when a key, a value or the batch exceeds its limit; stores call it before they change anything.
    pub fn check(&self) -> Result<(), Error> {
        if MAX_BATCH < self.writes.len() {
            return Err(Error::Batch { writes: self.writes.len() });
        }
        for write in &self.writes {
            let (Write::Put { key, .. } | Write::Delete { key }) = write;
            let printable = key.bytes().all(|byte| byte.is_ascii_graphic());
            if key.is_empty() || MAX_KEY_BYTES < key.len() || !printable {
                return Err(Error::Key { bytes: key.len() });
            }
            if let Write::Put { key, value } = write
                && MAX_VALUE_BYTES < value.len()
            {
                return Err(Error::Value { key: key.clone(), bytes: value.len() });
            }
        }
        Ok(())
    }
}

/// One state of a store: later batches do not change what it reads.
pub trait Snapshot {
    /// The value of `key`. Called any number of times.
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error>;

    /// Every pair whose key starts with `prefix`, in the order of the keys. Called any number of times.
    fn scan(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, Error>;
}

/// An ordered map that survives. Calls may block on a disk: never from a lane.
pub trait Store: Send + Sync + 'static {
    /// The state after every batch applied so far. Called at start and by readers; short-lived.
    fn snapshot(&self) -> Result<Box<dyn Snapshot + '_>, Error>;

    /// Applies a batch whole or not at all; later snapshots see it. After an error the batch may have reached the disk
    /// only where the error says so ([`Error::Io`] on sync), never in part. Called once per change, by any thread.
    fn apply(&self, batch: Batch) -> Result<(), Error>;

    /// Returns when every batch applied before the call outlives a crash of the process and of the machine. Called before
    /// anything is acknowledged.
    fn sync(&self) -> Result<(), Error>;
}

impl Contents {
    fn count(&mut self, operation: &'static str) -> Result<(), Error> {
        match self.until_failure {
            Some(0) => {
                self.until_failure = None;
                Err(Error::Io { operation, source: Box::new(ToldToFail) })
            }
            Some(calls) => {
                self.until_failure = Some(calls - 1);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

type Map = BTreeMap<String, Vec<u8>>;

#[derive(Debug, Default)]
struct Contents {
    /// Calls of `apply` and `sync` until one fails.
    until_failure: Option<u64>,
    /// Shared with the snapshots taken of it.
    applied: Arc<Map>,
    synced: Arc<Map>,
}

/// A store in memory that tells what was applied from what was synced, so that crashes and failing disks can be played.
#[derive(Debug, Default)]
pub struct Memory {
    contents: Mutex<Contents>,
}

#[derive(Debug, thiserror::Error)]
#[error("the disk was told to fail")]
struct ToldToFail;

impl Memory {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The store as a machine finds it after a crash now: whatever was not synced is gone.
    #[must_use]
    pub fn after_crash(&self) -> Self {
        let synced = Arc::clone(&self.lock().synced);
        Self { contents: Mutex::new(Contents { until_failure: None, applied: Arc::clone(&synced), synced }) }
    }

    /// Lets `calls` calls of `apply` and `sync` succeed and the one after them fail.
    pub fn fail_after(&self, calls: u64) {
        self.lock().until_failure = Some(calls);
    }

    /// Whether the failure that was asked for is still to come.
    #[must_use]
    pub fn failure_is_pending(&self) -> bool {
        self.lock().until_failure.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        // A panic elsewhere leaves whole maps behind: they are swapped, never edited in place.
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for Memory {
    fn snapshot(&self) -> Result<Box<dyn Snapshot + '_>, Error> {
        Ok(Box::new(MemorySnapshot(Arc::clone(&self.lock().applied))))
    }

    fn apply(&self, batch: Batch) -> Result<(), Error> {
        batch.check()?;
        let mut contents = self.lock();
        contents.count("write")?;
        let mut map = Map::clone(&contents.applied);
        for write in batch.writes {
            match write {
                Write::Put { key, value } => map.insert(key, value),
                Write::Delete { key } => map.remove(&key),
            };
        }
        contents.applied = Arc::new(map);
        Ok(())
    }

    fn sync(&self) -> Result<(), Error> {
        let mut contents = self.lock();
        contents.count("sync")?;
        contents.synced = Arc::clone(&contents.applied);
        Ok(())
    }
}

struct MemorySnapshot(Arc<Map>);

impl Snapshot for MemorySnapshot {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let pairs = self.0.range::<str, _>(from).take_while(|(key, _)| key.starts_with(prefix));
        Ok(pairs.map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(store: &dyn Store, prefix: &str) -> Vec<String> {
        store.snapshot().unwrap().scan(prefix).unwrap().into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn a_snapshot_does_not_see_later_batches() {
        let store = Memory::new();
        store.apply(Batch::new().put("a", vec![1])).unwrap();
        let before = store.snapshot().unwrap();
        store.apply(Batch::new().put("a", vec![2]).put("b", vec![3])).unwrap();
        assert_eq!(before.get("a").unwrap(), Some(vec![1]));
        assert_eq!(before.get("b").unwrap(), None);
        assert_eq!(store.snapshot().unwrap().get("a").unwrap(), Some(vec![2]));
    }

    #[test]
    fn a_scan_gives_one_prefix_in_order() {
        let store = Memory::new();
        store.apply(Batch::new().put("b/2", vec![]).put("b/1", vec![]).put("a/9", vec![]).put("c", vec![])).unwrap();
        assert_eq!(keys(&store, "b/"), ["b/1", "b/2"]);
        assert_eq!(keys(&store, ""), ["a/9", "b/1", "b/2", "c"]);
    }

    #[test]
    fn a_crash_keeps_what_was_synced() {
        let store = Memory::new();
        store.apply(Batch::new().put("kept", vec![])).unwrap();
        store.sync().unwrap();
        store.apply(Batch::new().put("lost", vec![]).delete("kept")).unwrap();
        assert_eq!(keys(&store.after_crash(), ""), ["kept"]);
    }

    #[test]
    fn a_batch_over_a_limit_changes_nothing() {
        let store = Memory::new();
        let long = "k".repeat(MAX_KEY_BYTES + 1);
        let error = store.apply(Batch::new().put("a", vec![]).put(long, vec![])).unwrap_err();
        assert!(matches!(error, Error::Key { bytes } if bytes == MAX_KEY_BYTES + 1));
        assert!(keys(&store, "").is_empty());
    }
}
