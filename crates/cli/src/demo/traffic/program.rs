//! This very program as the code of a `provided` function: what of it is loaded, and a `bootstrap` that starts it.
//!
//! A program as the compiler leaves it carries symbols and line tables of several times its size behind what is ever loaded
//! (ELF: everything after the last `PT_LOAD` segment). They stay behind, so that the package is small and quickly deployed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use model::Runtime;

use crate::package::{Dependencies, Staging};

const BOOTSTRAP: &str = "#!/bin/sh\nexec \"$LAMBDA_TASK_ROOT/takt\" internal function \"$_HANDLER\"\n";
const HEADER_BYTES: usize = 64;
/// Where the ELF header keeps the place of the section headers, and how many there are and which one has their names.
const SECTIONS_AT: std::ops::Range<usize> = 0x28..0x30;
const SECTION_COUNTS: std::ops::Range<usize> = 0x3c..0x40;
const LOADED: u32 = 1;

/// Why a file is no program that can be packed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Error {
    #[error("the program is no 64-bit little-endian ELF file")]
    NotElf,
    #[error("the program's headers point behind its end ({0} bytes)")]
    Short(usize),
}

/// Makes the package of a function whose handler is one of this program's, using `folder`, which is made.
pub(crate) fn package(folder: &Path) -> Result<Vec<u8>> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let bytes = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    let bytes = loaded(bytes).with_context(|| format!("cannot pack {}", program.display()))?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, content) in [("takt", bytes.as_slice()), ("bootstrap", BOOTSTRAP.as_bytes())] {
        let path = folder.join(name);
        let written = fs::write(&path, content).and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)));
        written.with_context(|| format!("cannot write {}", path.display()))?;
    }
    Staging::prepare(folder, Runtime::Provided, &mut Dependencies::default())?.zip()
}

/// A program without what is never loaded.
fn loaded(mut program: Vec<u8>) -> Result<Vec<u8>, Error> {
    let short = Error::Short(program.len());
    let Some(header) = program.get(..HEADER_BYTES) else { return Err(Error::NotElf) };
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Err(Error::NotElf);
    }
    let (table, size) = (word(header, 0x20).ok_or(Error::NotElf)?, half(header, 0x36).ok_or(Error::NotElf)?);
    let count = half(header, 0x38).ok_or(Error::NotElf)?;
    let mut end = table.checked_add(size * count).ok_or(short)?;
    for number in 0..count {
        let segment = usize::try_from(table + size * number).ok().and_then(|at| program.get(at..));
        let found = segment.and_then(|segment| {
            let kind = u32::from_le_bytes(segment.get(..4)?.try_into().ok()?);
            Some((kind, word(segment, 0x08)?.checked_add(word(segment, 0x20)?)?))
        });
        let (kind, segment_end) = found.ok_or(Error::Short(program.len()))?;
        if kind == LOADED {
            end = end.max(segment_end);
        }
    }
    let end = usize::try_from(end).ok().filter(|end| *end <= program.len()).ok_or(Error::Short(program.len()))?;
    program.truncate(end);
    program[SECTIONS_AT].fill(0);
    program[SECTION_COUNTS].fill(0);
    Ok(program)
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?).into())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_loaded_of_a_program_runs_as_the_program_does() {
        let whole = fs::read(std::env::current_exe().unwrap()).unwrap();
        let size = whole.len();
        let part = loaded(whole).unwrap();
        assert!(part.len() < size, "{} of {size}", part.len());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        fs::write(&path, part).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let output = Command::new(&path).arg("--list").output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("runs_as_the_program_does: test"));
    }

    #[test]
    fn other_files_are_refused() {
        assert_eq!(loaded(b"#!/bin/sh\n".to_vec()), Err(Error::NotElf));
        assert_eq!(loaded(vec![0x7f; 100]), Err(Error::NotElf));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 64..300)) {
            bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
            let _ = loaded(bytes);
        }
    }
}
