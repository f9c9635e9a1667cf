//! Finds an interpreter behind shims and links, and what an instance must see to run it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An interpreter of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interpreter {
    /// The program itself: no shim, no link.
    pub program: PathBuf,
    /// Its version, as "3.11.7" or "20.11.0".
    pub version: String,
    /// What of the host an instance must see besides the system directories.
    pub paths: Vec<PathBuf>,
}

/// Languages with interpreters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    Python,
    Nodejs,
}

/// Why there is no interpreter.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot run {program}")]
    Run { program: PathBuf, source: io::Error },
    #[error("{program} ended with {status} when asked for its place: {message}")]
    Failed { program: PathBuf, status: std::process::ExitStatus, message: String },
    #[error("{program} names its place as `{answer}`")]
    Answer { program: PathBuf, answer: String },
}

impl Language {
    const fn arguments(self) -> [&'static str; 2] {
        match self {
            Self::Python => [
                "-c",
                "import sys,os,platform;print(os.path.realpath(sys.executable));print(platform.python_version());\
                 print(os.path.realpath(sys.base_prefix));print(os.path.realpath(sys.prefix))",
            ],
            Self::Nodejs => ["-p", "process.execPath+'\\n'+process.versions.node"],
        }
    }
}

/// Asks `program` (a path, or a name looked up in `PATH`) where it really lies, and finds the libraries it links to.
/// Runs it once, and `ldd` once; for deployments and starts, not for invocations.
pub fn interpreter(language: Language, program: &Path) -> Result<Interpreter, Error> {
    let run = |source| Error::Run { program: program.to_owned(), source };
    let output = Command::new(program).args(language.arguments()).output().map_err(run)?;
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Failed { program: program.to_owned(), status: output.status, message });
    }
    let mut lines = answer.lines().map(str::trim);
    let (Some(path), Some(version)) = (lines.next(), lines.next()) else {
        return Err(Error::Answer { program: program.to_owned(), answer });
    };
    let real = Path::new(path).canonicalize().map_err(run)?;
    let mut paths: Vec<PathBuf> = lines.map(PathBuf::from).collect();
    paths.extend(libraries(&real));
    paths.push(prefix(&real));
    paths.sort();
    paths.dedup();
    paths.retain(|path| !super::root::SYSTEM.iter().any(|system| path.starts_with(system)) && path != Path::new("/"));
    let nested = |path: &PathBuf| paths.iter().any(|other| other != path && path.starts_with(other));
    let paths = paths.iter().filter(|path| !nested(path)).cloned().collect();
    Ok(Interpreter { program: real, version: version.to_owned(), paths })
}

/// The installation around `PREFIX/bin/program`; the program alone where it lies elsewhere.
fn prefix(program: &Path) -> PathBuf {
    match program.parent() {
        Some(bin) if bin.ends_with("bin") => bin.parent().unwrap_or(bin).to_owned(),
        Some(_) | None => program.to_owned(),
    }
}

/// The libraries `ldd` names. None for a program that links to none, or where `ldd` is missing: then its own answer, given
/// from inside the sandbox, tells what is missing.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let Ok(output) = Command::new("ldd").arg(program).output() else { return Vec::new() };
    parse_ldd(&String::from_utf8_lossy(&output.stdout))
}

fn parse_ldd(text: &str) -> Vec<PathBuf> {
    let paths = text.lines().filter_map(|line| {
        let place = line.split_once("=>").map_or(line, |(_, place)| place).trim();
        let path = place.split(" (").next().unwrap_or_default();
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    paths.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn libraries_are_read_from_every_form_of_line() {
        let text = "\tlinux-vdso.so.1 (0x7ffe)\n\tlibz.so.1 => /opt/lib/libz.so.1 (0x7f)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n\tlibq.so => not found\n";
        assert_eq!(parse_ldd(text), [PathBuf::from("/opt/lib/libz.so.1"), PathBuf::from("/lib64/ld-linux-x86-64.so.2")]);
    }

    #[test]
    fn a_python_behind_a_shim_is_found_where_it_lies() {
        let found = match interpreter(Language::Python, Path::new("python3")) {
            Ok(found) => found,
            Err(error) => return println!("skipped: {error}"),
        };
        assert!(found.program.is_absolute() && !found.program.is_symlink(), "{found:?}");
        assert!(found.version.starts_with("3."), "{found:?}");
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error_with_its_name() {
        let error = interpreter(Language::Nodejs, Path::new("/nonexistent/node")).unwrap_err();
        assert_eq!(error.to_string(), "cannot run /nonexistent/node");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[a-z/=> (\n]{0,80}") {
            let _ = parse_ldd(&text);
        }
    }
}
