//! What is deployed on this node: functions, rate classes and the order in which guarantees were first admitted.
//!
//! The registry remembers; control decides. Invariant: a change is in memory only after it is in the store, so whatever
//! control acknowledges from here is found again after a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use journal::store::{self, Batch, Store};
use model::{FunctionName, FunctionSpec, RateClass, RateClassName, Version};
use serde::{Deserialize, Serialize};

use crate::code::Code;

/// The most functions a node keeps.
pub const MAX_FUNCTIONS: usize = 10_000;
/// The most rate classes a node keeps.
pub const MAX_RATE_CLASSES: usize = 1_000;

const FUNCTION: &str = "function/";
const RATE_CLASS: &str = "rate-class/";
const TICKET: &str = "counter/ticket";

/// Why the registry cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the registry entry `{key}` cannot be read; restore a backup")]
    Corrupt { key: String, source: serde_json::Error },
    #[error("the node holds {MAX_FUNCTIONS} functions, its limit; delete one first")]
    Full,
    #[error("the node holds {MAX_RATE_CLASSES} rate classes, its limit; delete one first")]
    RateClassesFull,
    #[error("cannot keep the change")]
    Store { source: store::Error },
    #[error("the write of the change was cancelled")]
    Cancelled,
}

/// A deployed function: what its current version is and what became of the last change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// The version that serves, or is to serve.
    pub current: Deployed,
    pub state: State,
    /// A newer version that is being installed. After a crash it is dropped and `current` serves on.
    pub pending: Option<Deployed>,
    pub last_update: LastUpdate,
    /// What admission granted to `current`; `None` for best effort.
    pub admitted: Option<Admitted>,
    /// What its instances were measured to need, for admission.
    #[serde(default)]
    pub measured: Measured,
    /// Unix time in milliseconds.
    pub created_ms: u64,
    /// Unix time in milliseconds of the last change that took effect.
    pub modified_ms: u64,
    /// Differs after every change of the entry.
    pub revision: u64,
}

impl Function {
    /// Whether a change of it is under way.
    #[must_use]
    pub const fn is_in_progress(&self) -> bool {
        self.pending.is_some() || matches!(self.state, State::Pending)
    }
}

/// What a function's instances were measured to need, with a margin; zero: not measured yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// L_cold: of the start of an instance.
    pub cold_start: Duration,
}

/// One version: configuration and code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployed {
    pub spec: FunctionSpec,
    pub code: Code,
    pub version: Version,
}

/// Whether a function can be invoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Its first version is being installed.
    Pending,
    Active,
    /// Its instances do not start.
    Failed {
        reason: String,
    },
    /// Its guarantee was given once and fits no longer.
    Suspended {
        reason: String,
    },
}

/// What became of the last update.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LastUpdate {
    #[default]
    Successful,
    InProgress,
    /// The version before it serves on.
    Failed {
        reason: String,
    },
}

/// The standing of a guarantee among the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    /// Guarantees are re-admitted in this order; it survives changes of the terms.
    pub order: u64,
    /// Rises with every change of the guarantee and every restart.
    pub generation: u64,
}

/// One change; changes that are committed together happen together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put(Box<Function>),
    Delete(FunctionName),
    PutRateClass(RateClass),
    DeleteRateClass(RateClassName),
}

/// Everything deployed, in memory as in the store.
pub struct Registry {
    store: Arc<dyn Store>,
    functions: BTreeMap<FunctionName, Arc<Function>>,
    rate_classes: BTreeMap<RateClassName, RateClass>,
    /// The last number drawn for an order, a generation or a revision.
    ticket: u64,
    /// Keys whose last write failed at an unknown point; the next commit writes them again as memory has them.
    doubtful: BTreeSet<String>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("functions", &self.functions).field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

impl Registry {
    /// Reads everything. Blocks on the disk; called once at start.
    pub fn load(store: Arc<dyn Store>) -> Result<Self, Error> {
        let read = |source| Error::Store { source };
        let (functions, rate_classes, ticket) = {
            let snapshot = store.snapshot().map_err(read)?;
            let functions: Vec<Function> = parse_all(snapshot.scan(FUNCTION).map_err(read)?)?;
            let classes: Vec<RateClass> = parse_all(snapshot.scan(RATE_CLASS).map_err(read)?)?;
            let ticket = match snapshot.get(TICKET).map_err(read)? {
                Some(value) => parse(TICKET, &value)?,
                None => 0,
            };
            (functions, classes, ticket)
        };
        Ok(Self {
            store,
            functions: functions.into_iter().map(|function| (function.current.spec.name.clone(), Arc::new(function))).collect(),
            rate_classes: rate_classes.into_iter().map(|class| (class.name.clone(), class)).collect(),
            ticket,
            doubtful: BTreeSet::new(),
        })
    }

    #[must_use]
    pub fn get(&self, name: &FunctionName) -> Option<&Arc<Function>> {
        self.functions.get(name)
    }

    /// Every function, by name.
    #[must_use]
    pub const fn functions(&self) -> &BTreeMap<FunctionName, Arc<Function>> {
        &self.functions
    }

    /// Every rate class, by name.
    #[must_use]
    pub const fn rate_classes(&self) -> &BTreeMap<RateClassName, RateClass> {
        &self.rate_classes
    }

    /// A number above every number drawn before; it is kept with the next commit.
    pub fn draw(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket
    }

    /// Makes the changes durable, all or none, then takes them into memory. On an error memory is unchanged.
    pub async fn commit(&mut self, changes: Vec<Change>) -> Result<(), Error> {
        self.check_room(&changes)?;
        let keys: BTreeSet<String> = changes.iter().map(Change::key).collect();
        let mut batch = Batch::new();
        for key in self.doubtful.difference(&keys) {
            batch = self.rewrite(batch, key)?;
        }
        for change in &changes {
            batch = change.write(batch)?;
        }
        batch = batch.put(TICKET, json(TICKET, &self.ticket)?);
        // Until the store answered, nobody knows; this also covers a commit whose future is dropped half way.
        self.doubtful.extend(keys);
        let store = Arc::clone(&self.store);
        let written = tokio::task::spawn_blocking(move || store.apply(batch).and_then(|()| store.sync())).await;
        written.map_err(|_| Error::Cancelled)?.map_err(|source| Error::Store { source })?;
        self.doubtful.clear();
        for change in changes {
            self.remember(change);
        }
        Ok(())
    }

    /// Takes changes into memory that the store could not take; they are written with the next commit. For what has
    /// happened already and cannot be refused any more.
    pub fn force(&mut self, changes: Vec<Change>) {
        self.doubtful.extend(changes.iter().map(Change::key));
        for change in changes {
            self.remember(change);
        }
    }

    fn check_room(&self, changes: &[Change]) -> Result<(), Error> {
        let new_function = |change: &&Change| match change {
            Change::Put(function) => !self.functions.contains_key(&function.current.spec.name),
            Change::Delete(_) | Change::PutRateClass(_) | Change::DeleteRateClass(_) => false,
        };
        let new_class = |change: &&Change| match change {
            Change::PutRateClass(class) => !self.rate_classes.contains_key(&class.name),
            Change::Put(_) | Change::Delete(_) | Change::DeleteRateClass(_) => false,
        };
        if MAX_FUNCTIONS < self.functions.len() + changes.iter().filter(new_function).count() {
            return Err(Error::Full);
        }
        if MAX_RATE_CLASSES < self.rate_classes.len() + changes.iter().filter(new_class).count() {
            return Err(Error::RateClassesFull);
        }
        Ok(())
    }

    /// Adds the write that brings a doubtful key back to what memory says.
    fn rewrite(&self, batch: Batch, key: &str) -> Result<Batch, Error> {
        let function = self.functions.values().find(|function| function_key(&function.current.spec.name) == key);
        let class = self.rate_classes.values().find(|class| rate_class_key(&class.name) == key);
        match (function, class) {
            (Some(function), _) => Ok(batch.put(key, json(key, function.as_ref())?)),
            (None, Some(class)) => Ok(batch.put(key, json(key, class)?)),
            (None, None) => Ok(batch.delete(key)),
        }
    }

    fn remember(&mut self, change: Change) {
        match change {
            Change::Put(function) => {
                self.functions.insert(function.current.spec.name.clone(), Arc::from(function));
            }
            Change::Delete(name) => {
                self.functions.remove(&name);
            }
            Change::PutRateClass(class) => {
                self.rate_classes.insert(class.name.clone(), class);
            }
            Change::DeleteRateClass(name) => {
                self.rate_classes.remove(&name);
            }
        }
    }
}

impl Change {
    fn key(&self) -> String {
        match self {
            Self::Put(function) => function_key(&function.current.spec.name),
            Self::Delete(name) => function_key(name),
            Self::PutRateClass(class) => rate_class_key(&class.name),
            Self::DeleteRateClass(name) => rate_class_key(name),
        }
    }

    fn write(&self, batch: Batch) -> Result<Batch, Error> {
        let key = self.key();
        match self {
            Self::Put(function) => Ok(batch.put(key.clone(), json(&key, function)?)),
            Self::PutRateClass(class) => Ok(batch.put(key.clone(), json(&key, class)?)),
            Self::Delete(_) | Self::DeleteRateClass(_) => Ok(batch.delete(key)),
        }
    }
}

fn function_key(name: &FunctionName) -> String {
    format!("{FUNCTION}{name}")
}

fn rate_class_key(name: &RateClassName) -> String {
    format!("{RATE_CLASS}{name}")
}

fn json<T: Serialize>(key: &str, value: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|source| Error::Corrupt { key: key.to_owned(), source })
}

fn parse<T: for<'de> Deserialize<'de>>(key: &str, value: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(value).map_err(|source| Error::Corrupt { key: key.to_owned(), source })
}

fn parse_all<T: for<'de> Deserialize<'de>>(pairs: Vec<(String, Vec<u8>)>) -> Result<Vec<T>, Error> {
    pairs.into_iter().map(|(key, value)| parse(&key, &value)).collect()
}

#[cfg(test)]
mod tests {
    use journal::store::Memory;
    use proptest::prelude::*;

    use super::*;

    fn function(name: &str, revision: u64) -> Function {
        let text = format!("name = \"{name}\"\nruntime = \"python3.12\"\n[guarantee]\nrate = \"30/s\"\nmax_run_time = \"5ms\"");
        Function {
            current: Deployed {
                spec: model::config::parse(&text).unwrap(),
                code: Code { id: crate::code::CodeId::of(b"package"), bytes: 7 },
                version: Version(1),
            },
            state: State::Active,
            pending: None,
            last_update: LastUpdate::Successful,
            admitted: Some(Admitted { order: 1, generation: 2 }),
            measured: Measured { cold_start: Duration::from_millis(80) },
            created_ms: 1,
            modified_ms: 2,
            revision,
        }
    }

    fn put(name: &str, revision: u64) -> Change {
        Change::Put(Box::new(function(name, revision)))
    }

    fn seen(registry: &Registry) -> Vec<(String, u64)> {
        registry.functions().values().map(|function| (function.current.spec.name.to_string(), function.revision)).collect()
    }

    #[tokio::test]
    async fn what_was_committed_is_loaded_again() {
        let store = Arc::new(Memory::new());
        let mut registry = Registry::load(Arc::<Memory>::clone(&store)).unwrap();
        let class = RateClass { name: "shared".parse().unwrap(), rate: "9/s".parse().unwrap(), burst: model::Burst::ONE };
        let number = registry.draw();
        registry.commit(vec![put("a", 1), put("b", 1), Change::PutRateClass(class.clone())]).await.unwrap();
        registry.commit(vec![Change::Delete("a".parse().unwrap())]).await.unwrap();
        let mut again = Registry::load(Arc::new(store.after_crash())).unwrap();
        assert_eq!(**again.get(&"b".parse().unwrap()).unwrap(), function("b", 1));
        assert_eq!(seen(&again), [("b".to_owned(), 1)]);
        assert_eq!(again.rate_classes().values().collect::<Vec<_>>(), [&class]);
        assert!(number < again.draw());
    }

    #[tokio::test]
    async fn a_disk_gives_back_what_was_committed() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Arc::new(crate::store::Sqlite::open(&folder.path().join("store.sqlite3")).unwrap());
        let mut registry = Registry::load(open()).unwrap();
        registry.commit(vec![put("a", 1), put("b", 2)]).await.unwrap();
        registry.commit(vec![Change::Delete("a".parse().unwrap())]).await.unwrap();
        drop(registry);
        assert_eq!(seen(&Registry::load(open()).unwrap()), [("b".to_owned(), 2)]);
    }

    #[tokio::test]
    async fn an_unreadable_entry_stops_the_start_and_is_named() {
        let store = Arc::new(Memory::new());
        store.apply(Batch::new().put("function/x", b"{}".to_vec())).unwrap();
        let error = Registry::load(store).unwrap_err().to_string();
        assert!(error.contains("function/x"), "{error}");
    }

    #[tokio::test]
    async fn the_number_of_functions_is_bounded() {
        let mut registry = Registry::load(Arc::new(Memory::new())).unwrap();
        let all = (0..MAX_FUNCTIONS).map(|number| put(&format!("f{number}"), 1)).collect();
        registry.commit(all).await.unwrap();
        assert!(matches!(registry.commit(vec![put("more", 1)]).await, Err(Error::Full)));
        registry.commit(vec![put("f0", 2)]).await.unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever fails in between, after the next successful commit store and memory agree.
        #[test]
        fn a_failed_commit_leaves_nothing_behind(fail_after in 0_u64..6, names in prop::collection::vec(0_u8..4, 1..6)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let store = Arc::new(Memory::new());
                let mut registry = Registry::load(Arc::<Memory>::clone(&store)).unwrap();
                registry.commit(vec![put("f0", 0), put("f1", 0)]).await.unwrap();
                store.fail_after(fail_after);
                for (number, name) in names.iter().enumerate() {
                    let before = seen(&registry);
                    let name = format!("f{name}");
                    let change = if number % 2 == 0 { put(&name, 10) } else { Change::Delete(name.parse().unwrap()) };
                    if registry.commit(vec![change]).await.is_err() {
                        prop_assert_eq!(seen(&registry), before);
                    }
                }
                while store.failure_is_pending() {
                    let _failed = registry.commit(vec![]).await;
                }
                registry.commit(vec![put("last", 1)]).await.unwrap();
                let again = Registry::load(Arc::new(store.after_crash())).unwrap();
                prop_assert_eq!(seen(&again), seen(&registry));
                Ok(())
            })?;
        }
    }
}
