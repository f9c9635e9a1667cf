//! The store on disk: one SQLite file in WAL mode, every commit synced.
//!
//! One thread owns the writing connection and commits all batches that wait together in one transaction; readers have
//! connections of their own and see whole commits. Invariant: `apply` returns only after the commit reached the disk, so
//! whatever was acknowledged outlives `kill -9` and, where the disk keeps its word, a loss of power.

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use journal::store::{self, Batch, Snapshot, Store, Write};
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior};

/// Marks the file as one of ours ("takt" in ASCII).
const APPLICATION_ID: i32 = 0x7461_6b74;
/// Batches that may wait for the writer; the next one is refused.
const MAX_WAITING: usize = 1_024;
/// Batches committed in one transaction.
const MAX_GROUP: usize = 128;
/// Reading connections kept for the next reader.
const MAX_IDLE_READERS: usize = 4;
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Step `n` turns data-format version `n` into `n + 1`; a new file starts at 0.
const MIGRATIONS: [&str; 1] = ["CREATE TABLE entry (key TEXT PRIMARY KEY NOT NULL, value BLOB NOT NULL) WITHOUT ROWID, STRICT"];

/// Why a store cannot be opened or copied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {operation} the store {}", path.display())]
    Sqlite { operation: &'static str, path: PathBuf, source: rusqlite::Error },
    #[error("cannot make the store {}", path.display())]
    Create { path: PathBuf, source: std::io::Error },
    #[error("{} is a database of another program (application id {found:#x})", path.display())]
    Foreign { path: PathBuf, found: i32 },
    #[error(
        "the store {} has data-format version {found}, this takt knows versions up to {known}; use a newer takt or restore an older backup",
        path.display()
    )]
    Newer { path: PathBuf, found: usize, known: usize },
    #[error("cannot start the writer of the store {}", path.display())]
    Thread { path: PathBuf, source: std::io::Error },
}

struct Job {
    batch: Batch,
    done: SyncSender<Result<(), store::Error>>,
}

/// An open store. Dropping it ends the writer after the batches that wait.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    /// `None` only while dropping.
    jobs: Option<SyncSender<Job>>,
    writer: Option<JoinHandle<()>>,
    idle_readers: Mutex<Vec<Connection>>,
}

impl Sqlite {
    /// The data-format version this program writes.
    pub const FORMAT: usize = MIGRATIONS.len();

    /// Opens or creates the store at `path` and brings its format up to date. Errors leave an existing file unchanged.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let sqlite = |operation| move |source| Error::Sqlite { operation, path: path.to_owned(), source };
        // Functions' environments lie in it; SQLite gives its other files the mode of this one.
        let made = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
        let closed = made.and_then(|file| file.set_permissions(Permissions::from_mode(0o600)));
        closed.map_err(|source| Error::Create { path: path.to_owned(), source })?;
        let mut connection = Connection::open(path).map_err(sqlite("open"))?;
        identify(&connection, path)?;
        configure(&connection).map_err(sqlite("configure"))?;
        migrate(&mut connection, &MIGRATIONS, path)?;
        let (jobs, waiting) = sync_channel(MAX_WAITING);
        let writer = std::thread::Builder::new()
            .name("takt-store".to_owned())
            .spawn(move || write_all(&mut connection, &waiting))
            .map_err(|source| Error::Thread { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), jobs: Some(jobs), writer: Some(writer), idle_readers: Mutex::default() })
    }

    /// Writes a consistent copy to `target`, which must not exist, while others write. Blocks for as long as the copy takes.
    ///
    /// `VACUUM INTO` rather than the online backup interface: it copies one snapshot, where the latter starts again
    /// whenever another connection commits.
    pub fn copy_to(&self, target: &Path) -> Result<(), Error> {
        let sqlite = |source| Error::Sqlite { operation: "copy", path: target.to_owned(), source };
        let connection = open_reader(&self.path).map_err(sqlite)?;
        connection.execute("VACUUM INTO ?1", [target.to_string_lossy()]).map_err(sqlite)?;
        Ok(())
    }

    fn reader(&self) -> Result<Connection, rusqlite::Error> {
        let idle = self.idle_readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.map_or_else(|| open_reader(&self.path), Ok)
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        self.jobs = None; // the writer ends when it has taken the last batch
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            assert!(std::thread::panicking(), "invariant: the writer of the store does not panic");
        }
    }
}

impl Store for Sqlite {
    fn snapshot(&self) -> Result<Box<dyn Snapshot + '_>, store::Error> {
        let begin = || -> Result<Connection, rusqlite::Error> {
            let connection = self.reader()?;
            connection.execute_batch("BEGIN")?;
            // A deferred transaction takes its snapshot at the first read.
            connection.query_row("SELECT count(*) FROM (SELECT 1 FROM entry LIMIT 1)", [], |_| Ok(()))?;
            Ok(connection)
        };
        let connection = begin().map_err(|source| io("read", source))?;
        Ok(Box::new(Reader { connection: Some(connection), home: &self.idle_readers }))
    }

    fn apply(&self, batch: Batch) -> Result<(), store::Error> {
        batch.check()?;
        let jobs = self.jobs.as_ref().ok_or(store::Error::Closed)?;
        let (done, answer) = sync_channel(1);
        jobs.try_send(Job { batch, done }).map_err(|error| match error {
            TrySendError::Full(_) => io("write", Waiting),
            TrySendError::Disconnected(_) => store::Error::Closed,
        })?;
        answer.recv().unwrap_or(Err(store::Error::Closed))
    }

    /// Nothing is left to do: `apply` returned after its commit was synced.
    fn sync(&self) -> Result<(), store::Error> {
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{MAX_WAITING} batches wait for the writer already")]
struct Waiting;

fn io(operation: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> store::Error {
    store::Error::Io { operation, source: Box::new(source) }
}

fn open_reader(path: &Path) -> Result<Connection, rusqlite::Error> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// Errors unless the file is new or ours, before anything is written to it.
fn identify(connection: &Connection, path: &Path) -> Result<(), Error> {
    let sqlite = |source| Error::Sqlite { operation: "read", path: path.to_owned(), source };
    let found: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(sqlite)?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(sqlite)?;
    if found == APPLICATION_ID || (found == 0 && tables == 0) {
        Ok(())
    } else {
        Err(Error::Foreign { path: path.to_owned(), found })
    }
}

fn configure(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "trusted_schema", false)
}

/// Runs the steps from the file's version to the newest in one transaction; a newer file is refused as it is.
fn migrate(connection: &mut Connection, steps: &[&str], path: &Path) -> Result<(), Error> {
    let sqlite = |source| Error::Sqlite { operation: "migrate", path: path.to_owned(), source };
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(sqlite)?;
    let found = usize::try_from(found).unwrap_or(usize::MAX);
    let Some(missing) = steps.get(found..) else {
        return Err(Error::Newer { path: path.to_owned(), found, known: steps.len() });
    };
    if missing.is_empty() {
        return Ok(());
    }
    let mut run = || -> Result<(), rusqlite::Error> {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for step in missing {
            transaction.execute_batch(step)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", i64::try_from(steps.len()).unwrap_or(i64::MAX))?;
        transaction.commit()
    };
    run().map_err(sqlite)
}

/// The writer's loop: takes what waits, commits it together, answers everybody. Ends when the store is dropped.
fn write_all(connection: &mut Connection, waiting: &Receiver<Job>) {
    while let Ok(first) = waiting.recv() {
        let mut group = vec![first];
        group.extend(waiting.try_iter().take(MAX_GROUP - 1));
        let outcome = commit(connection, &group).map_err(Arc::new);
        for job in group {
            let answer = outcome.clone().map_err(|source| io("write", source));
            // Who asked and went away does not need the answer.
            let _gone = job.done.send(answer);
        }
    }
}

fn commit(connection: &mut Connection, group: &[Job]) -> Result<(), rusqlite::Error> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        let mut put =
            transaction.prepare("INSERT INTO entry (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2")?;
        let mut delete = transaction.prepare("DELETE FROM entry WHERE key = ?1")?;
        for write in group.iter().flat_map(|job| job.batch.writes()) {
            match write {
                Write::Put { key, value } => put.execute((key, value))?,
                Write::Delete { key } => delete.execute([key])?,
            };
        }
    }
    transaction.commit()
}

struct Reader<'a> {
    /// `None` only while dropping.
    connection: Option<Connection>,
    home: &'a Mutex<Vec<Connection>>,
}

impl Reader<'_> {
    fn connection(&self) -> Result<&Connection, store::Error> {
        self.connection.as_ref().ok_or(store::Error::Closed)
    }
}

impl Snapshot for Reader<'_> {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, store::Error> {
        self.connection()?
            .prepare("SELECT value FROM entry WHERE key = ?1")
            .and_then(|mut statement| statement.query_row([key], |row| row.get(0)).optional())
            .map_err(|source| io("read", source))
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, store::Error> {
        let connection = self.connection()?;
        let read = || -> Result<Vec<(String, Vec<u8>)>, rusqlite::Error> {
            let mut statement = connection.prepare("SELECT key, value FROM entry WHERE ?1 <= key AND key < ?2 ORDER BY key")?;
            // Keys are printable ASCII, so DEL is above whatever follows the prefix.
            let rows = statement.query_map((prefix, format!("{prefix}\x7f")), |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        };
        read().map_err(|source| io("read", source))
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        let mut home = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.execute_batch("ROLLBACK").is_ok() && home.len() < MAX_IDLE_READERS {
            home.push(connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &tempfile::TempDir) -> Sqlite {
        Sqlite::open(&folder.path().join("store.sqlite3")).unwrap()
    }

    #[test]
    fn what_was_applied_is_there_after_reopening() {
        let folder = tempfile::tempdir().unwrap();
        open(&folder).apply(Batch::new().put("a/1", vec![1]).put("a/2", vec![2]).put("b", vec![3]).delete("a/1")).unwrap();
        let store = open(&folder);
        let snapshot = store.snapshot().unwrap();
        assert_eq!(snapshot.scan("a/").unwrap(), [("a/2".to_owned(), vec![2])]);
        assert_eq!(snapshot.get("b").unwrap(), Some(vec![3]));
        assert_eq!(snapshot.get("a/1").unwrap(), None);
    }

    #[test]
    fn a_snapshot_does_not_see_later_batches() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        let before = store.snapshot().unwrap();
        store.apply(Batch::new().put("a", vec![1])).unwrap();
        assert_eq!(before.get("a").unwrap(), None);
        assert_eq!(store.snapshot().unwrap().get("a").unwrap(), Some(vec![1]));
    }

    #[test]
    fn many_writers_all_get_their_answer() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let store = &store;
                scope.spawn(move || {
                    for number in 0..10 {
                        store.apply(Batch::new().put(format!("{writer}/{number}"), vec![])).unwrap();
                    }
                });
            }
        });
        assert_eq!(store.snapshot().unwrap().scan("").unwrap().len(), 80);
    }

    #[test]
    fn a_newer_format_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        drop(open(&folder));
        let path = folder.path().join("store.sqlite3");
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 7).unwrap();
        let error = Sqlite::open(&path).unwrap_err().to_string();
        assert!(error.contains("data-format version 7") && error.contains("up to 1"), "{error}");
        let version: i32 = Connection::open(&path).unwrap().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(version, 7);
    }

    #[test]
    fn an_older_format_is_brought_up_to_date_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        drop(open(&folder));
        let path = folder.path().join("store.sqlite3");
        let mut connection = Connection::open(&path).unwrap();
        let version =
            |connection: &Connection| -> i32 { connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap() };
        let broken = [MIGRATIONS[0], "CREATE TABLE added (x)", "CREATE TABLE entry (x)"];
        migrate(&mut connection, &broken, &path).unwrap_err();
        assert_eq!(version(&connection), 1);
        migrate(&mut connection, &broken[..2], &path).unwrap();
        assert_eq!(version(&connection), 2);
        connection.execute("INSERT INTO added VALUES (1)", []).unwrap();
    }

    #[test]
    fn the_database_of_another_program_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.sqlite3");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
        assert!(matches!(Sqlite::open(&path), Err(Error::Foreign { .. })));
    }

    #[test]
    fn a_copy_made_while_others_write_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for number in 0_u8..50 {
                    store.apply(Batch::new().put("left", vec![number]).put("right", vec![number])).unwrap();
                }
            });
            store.copy_to(&folder.path().join("copy.sqlite3")).unwrap();
            writer.join().unwrap();
        });
        let copy = Sqlite::open(&folder.path().join("copy.sqlite3")).unwrap();
        let snapshot = copy.snapshot().unwrap();
        assert_eq!(snapshot.get("left").unwrap(), snapshot.get("right").unwrap());
    }
}
