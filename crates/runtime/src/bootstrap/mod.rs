//! Our own runtime clients for Python and Node.js: one file each, without dependencies, carried in the binary.
//!
//! They are written to a directory when the node starts and run by the interpreter that the node was given. `provided`
//! functions bring their own.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use model::Runtime;

/// The client of Python functions (3.9 or later), as a file name.
pub const PYTHON_FILE: &str = "bootstrap.py";
/// The client of Node.js functions (18 or later), as a file name.
pub const NODEJS_FILE: &str = "bootstrap.cjs";
/// What a `provided` function's package must have at its top.
pub const PROVIDED_FILE: &str = "bootstrap";

const FILES: [(&str, &str); 2] = [(PYTHON_FILE, include_str!("bootstrap.py")), (NODEJS_FILE, include_str!("bootstrap.cjs"))];

/// Why the clients could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the runtime client `{}`", path.display())]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// Writes the clients into `dir`, which is made where it is missing, readable by everybody. A file that instances run from
/// is replaced as a whole, never changed.
pub fn install(dir: &Path) -> Result<(), Error> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| Error { path, source }
    };
    fs::create_dir_all(dir).map_err(at(dir))?;
    fs::set_permissions(dir, Permissions::from_mode(0o755)).map_err(at(dir))?;
    for (name, text) in FILES {
        let path = dir.join(name);
        if fs::read(&path).is_ok_and(|there| there == text.as_bytes()) {
            continue;
        }
        let new = dir.join(format!(".{name}.new"));
        let written = File::create(&new).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.set_permissions(Permissions::from_mode(0o644))?;
            file.sync_all()
        });
        written.and_then(|()| fs::rename(&new, &path)).map_err(at(&path))?;
    }
    Ok(())
}

/// What the interpreter is told before the name of its client. Python loads without `site`, whose work is most of its start
/// (where packages hook into it, 32 of 41 ms of CPU); the client finds installed packages itself.
#[must_use]
pub const fn interpreter_arguments(runtime: Runtime) -> &'static [&'static str] {
    match runtime {
        Runtime::Python => &["-S"],
        Runtime::NodeJs | Runtime::Provided => &[],
    }
}

/// What the interpreter runs: `clients` is where [`install`] wrote to and `code` where the package lies, both as the instance
/// sees them. For `provided` it is the program itself, which is in the package.
#[must_use]
pub fn program(runtime: Runtime, clients: &Path, code: &Path) -> PathBuf {
    match runtime {
        Runtime::Python => clients.join(PYTHON_FILE),
        Runtime::NodeJs => clients.join(NODEJS_FILE),
        Runtime::Provided => code.join(PROVIDED_FILE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_are_written_whole_and_readable_by_everybody() {
        let dir = tempfile::tempdir().unwrap();
        let clients = dir.path().join("clients");
        install(&clients).unwrap();
        fs::write(clients.join(PYTHON_FILE), "changed").unwrap();
        install(&clients).unwrap();
        for (name, text) in FILES {
            let path = clients.join(name);
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        }
        assert_eq!(fs::read_dir(&clients).unwrap().count(), FILES.len());
        install(&clients.join(PYTHON_FILE)).unwrap_err();
    }
}
