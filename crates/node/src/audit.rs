//! The audit of evidence as it lies on a disk: one segment, or a folder of them.
//!
//! Two questions are answered in one pass over the files: whether the records are the ones that were written
//! (`journal::chain`), and what they show (`engine::audit`). Nothing of a running node is needed, nor disturbed.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use journal::chain::{Entry, Reader, Segment};

pub use engine::audit::{Contradiction, Finding, Problem, Report, Verdict};
pub use journal::chain::{Break, Hash};

use crate::backup;
use crate::recorder::files;

/// Why there is nothing to audit.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the evidence at {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} holds no evidence: give a segment, a folder of segments, a data directory or a backup", path.display())]
    Nothing { path: PathBuf },
}

/// What the files hold and what that shows.
#[derive(Debug)]
pub struct Audited {
    pub report: Report,
    pub segments: usize,
    /// Records whose place in the chain is verified.
    pub records: u64,
    /// The number of the first record; above 1, earlier ones were dropped when their time was over.
    pub first: Option<u64>,
    /// The hash of the last one: who keeps it can tell later whether anything before was changed.
    pub last_hash: Hash,
    /// Bytes of a line that a crash cut off.
    pub torn_bytes: u64,
    /// Where the chain is broken; records behind that are not looked at.
    pub broken: Option<Break>,
}

impl Audited {
    /// The whole in a word: what the records show, unless they are not the ones that were written.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if self.broken.is_some() { Verdict::Contradicted } else { self.report.verdict() }
    }
}

/// Audits a segment, a folder of segments, or the evidence of a data directory or backup. `progress` is shown
/// every record whose place in the chain is verified.
pub fn audit(path: &Path, mut progress: impl FnMut(&Entry)) -> Result<Audited, Error> {
    let paths = segments(path)?;
    let mut audit = engine::audit::Audit::new();
    let mut open = Vec::with_capacity(paths.len());
    for path in &paths {
        let file = File::open(path).map_err(|source| Error::Read { path: path.clone(), source })?;
        open.push(Segment { name: path.display().to_string(), content: Box::new(BufReader::new(file)) });
    }
    let mut reader = Reader::new(open);
    let (mut records, mut broken) = (0, None);
    for entry in reader.by_ref() {
        match entry {
            Ok(entry) => {
                records += 1;
                progress(&entry);
                audit.record(&entry.record);
            }
            Err(found) => broken = Some(found),
        }
    }
    let tail = reader.tail();
    Ok(Audited {
        report: audit.finish(),
        segments: paths.len(),
        records,
        first: tail.first,
        last_hash: tail.head.hash,
        torn_bytes: tail.torn_bytes,
        broken,
    })
}

fn segments(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    if !path.metadata().map_err(read)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let inner = path.join(backup::EVIDENCE);
    let folder = if inner.is_dir() { inner.as_path() } else { path };
    let mut numbers: Vec<u64> = files::list(folder).map_err(read)?.into_iter().map(|(segment, _)| segment).collect();
    numbers.sort_unstable();
    if numbers.is_empty() {
        return Err(Error::Nothing { path: path.to_owned() });
    }
    Ok(numbers.into_iter().map(|segment| files::path_of(folder, segment)).collect())
}

#[cfg(test)]
mod tests {
    use journal::chain::Head;
    use journal::record::{NodeStarted, Record};
    use model::{InvocationId, Level, Time};

    use super::*;

    fn segment() -> Vec<u8> {
        let started = NodeStarted {
            boot: InvocationId::from_random(1),
            at: Time::ZERO,
            unix_ns: 0,
            level: Level::Soft,
            tolerance: std::time::Duration::from_millis(1),
            software: "test".to_owned(),
        };
        let mut head = Head::GENESIS;
        let mut bytes = head.segment_header().into_bytes();
        for record in [Record::NodeStarted(started), Record::NodeStopped { at: Time::from_secs(1) }] {
            head.append(&record, &mut bytes).unwrap();
        }
        bytes
    }

    fn folder(bytes: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(backup::EVIDENCE)).unwrap();
        std::fs::write(files::path_of(&folder.path().join(backup::EVIDENCE), 1), bytes).unwrap();
        folder
    }

    #[test]
    fn a_file_its_folder_and_its_data_directory_show_the_same() {
        let data = folder(&segment());
        let evidence = data.path().join(backup::EVIDENCE);
        for path in [data.path().to_owned(), evidence.clone(), files::path_of(&evidence, 1)] {
            let audited = audit(&path, |_| {}).unwrap();
            assert_eq!((audited.records, audited.first, audited.verdict()), (2, Some(1), Verdict::Kept), "{}", path.display());
        }
    }

    #[test]
    fn a_changed_byte_is_a_contradiction_whatever_the_records_show() {
        let mut bytes = segment();
        let at = bytes.windows(4).position(|window| window == b"test").unwrap();
        bytes[at] = b'T';
        let audited = audit(folder(&bytes).path(), |_| {}).unwrap();
        assert_eq!((audited.records, audited.verdict()), (0, Verdict::Contradicted));
        assert!(audited.broken.unwrap().to_string().contains("checksum"));
    }

    #[test]
    fn a_line_that_a_crash_cut_off_is_told_apart() {
        let mut bytes = segment();
        bytes.truncate(bytes.len() - 3);
        let audited = audit(folder(&bytes).path(), |_| {}).unwrap();
        assert!(audited.broken.is_none() && 0 < audited.torn_bytes);
        assert_eq!(audited.records, 1);
    }

    #[test]
    fn a_folder_without_evidence_is_an_error() {
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(audit(empty.path(), |_| {}), Err(Error::Nothing { .. })));
        assert!(matches!(audit(&empty.path().join("absent"), |_| {}), Err(Error::Read { .. })));
    }
}
