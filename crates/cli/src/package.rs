//! From a function folder to the zip that is uploaded: a staging copy, the dependencies its runtime needs, the archive.
//!
//! The folder itself is never written to. Hidden files, what a build leaves behind and whatever `.taktignore` names stay
//! out; links stay out too, for what they point at is not in the package. The archive of the same files is the same bytes,
//! so that an unchanged function keeps its code hash.

use std::fs::{self, File};
use std::io::{self, Cursor, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use model::Runtime;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

/// Names that stay out of the package, one a line; a line is a path inside the folder.
pub const IGNORE_FILE: &str = ".taktignore";

/// AWS's limit on an uploaded zip.
const MAX_ZIP_BYTES: usize = 52_428_800;
/// AWS's limit on what it unpacks to.
const MAX_UNPACKED_BYTES: u64 = 262_144_000;
const MAX_FILES: usize = 50_000;
const MAX_DEPTH: usize = 32;

/// Left out because it is made again: by Python as it runs, by npm from package.json.
const MADE_AGAIN: [(&str, Option<&str>); 2] = [("__pycache__", None), ("node_modules", Some("package.json"))];

/// A folder ready to be zipped; removed when dropped.
#[derive(Debug)]
pub struct Staging {
    folder: PathBuf,
}

impl Drop for Staging {
    fn drop(&mut self) {
        // A leftover in the folder for temporary files harms nobody; the system clears it.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Staging {
    /// Copies a function folder and installs what it names as dependencies.
    pub fn prepare(source: &Path, runtime: Runtime) -> Result<Self> {
        let staging = Self { folder: fresh_folder()? };
        let ignored = ignored(source)?;
        for file in list(source, &ignored)? {
            let target = staging.folder.join(&file);
            if let Some(folder) = target.parent() {
                fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            }
            fs::copy(source.join(&file), &target).with_context(|| format!("cannot copy {}", file.display()))?;
        }
        staging.install(runtime)?;
        Ok(staging)
    }

    fn install(&self, runtime: Runtime) -> Result<()> {
        match runtime {
            Runtime::Python if names_packages(&self.folder.join("requirements.txt"))? => self.install_with(
                "python3",
                &[
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                    "--no-compile",
                    "--target",
                    ".",
                    "-r",
                    "requirements.txt",
                ],
            ),
            Runtime::NodeJs if self.folder.join("package.json").exists() => {
                self.install_with("npm", &["install", "--omit=dev", "--no-audit", "--no-fund", "--loglevel=error"])
            }
            Runtime::Python | Runtime::NodeJs | Runtime::Provided => Ok(()),
        }
    }

    fn install_with(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let shown = format!("{program} {}", arguments.join(" "));
        let output = Command::new(program)
            .args(arguments)
            .current_dir(&self.folder)
            .output()
            .with_context(|| format!("cannot start `{program}`, which installs the dependencies"))?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            let last: Vec<&str> = error.lines().rev().take(8).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            bail!("`{shown}` ended with {}:\n{}", output.status, last.join("\n"));
        }
        Ok(())
    }

    /// The archive of everything in the folder. Errors above AWS's limits of 50 MiB zipped and 250 MiB unpacked.
    pub fn zip(&self) -> Result<Vec<u8>> {
        let mut files = list_packed(&self.folder)?;
        files.sort();
        let mut unpacked = 0;
        let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
        for file in files {
            let path = self.folder.join(&file);
            let metadata = fs::metadata(&path).with_context(|| format!("cannot inspect {}", file.display()))?;
            unpacked += metadata.len();
            if MAX_UNPACKED_BYTES < unpacked {
                bail!("the package is larger than {MAX_UNPACKED_BYTES} bytes before compression");
            }
            let mode = if metadata.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
            let options = SimpleFileOptions::default()
                .compression_method(CompressionMethod::Deflated)
                .last_modified_time(DateTime::default())
                .unix_permissions(mode);
            let name = file.to_str().with_context(|| format!("the file name {} is not UTF-8", file.display()))?;
            archive.start_file(name, options).with_context(|| format!("cannot pack {name}"))?;
            let mut content = File::open(&path).with_context(|| format!("cannot read {name}"))?;
            io::copy(&mut content, &mut archive).with_context(|| format!("cannot pack {name}"))?;
        }
        archive.flush().context("cannot finish the package")?;
        let bytes = archive.finish().context("cannot finish the package")?.into_inner();
        if MAX_ZIP_BYTES < bytes.len() {
            bail!("the package has {} bytes, more than {MAX_ZIP_BYTES}", bytes.len());
        }
        Ok(bytes)
    }
}

/// A requirements file of comments asks for nothing.
fn names_packages(path: &Path) -> Result<bool> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn fresh_folder() -> Result<PathBuf> {
    let parent = std::env::temp_dir();
    for attempt in 0..1000_u32 {
        let folder = parent.join(format!("takt-package-{}-{attempt}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("cannot make {}", folder.display())),
        }
    }
    bail!("no free name for a folder in {}", parent.display())
}

fn ignored(source: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_to_string(source.join(IGNORE_FILE)) {
        Ok(text) => {
            Ok(text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(PathBuf::from).collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {IGNORE_FILE}")),
    }
}

/// The files of a function folder that belong to the function, relative to it.
pub(crate) fn list(source: &Path, ignored: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let made_again: Vec<&str> = MADE_AGAIN
        .into_iter()
        .filter(|(_, from)| from.is_none_or(|from| source.join(from).exists()))
        .map(|(name, _)| name)
        .collect();
    walk(source, &|relative: &Path, name: &str| {
        name.starts_with('.') || made_again.contains(&name) || ignored.iter().any(|path| path == relative)
    })
}

/// What is packed: installed dependencies bring folders of any name, so only caches of Python stay out.
fn list_packed(folder: &Path) -> Result<Vec<PathBuf>> {
    walk(folder, &|_, name| name == "__pycache__")
}

fn walk(root: &Path, left_out: &dyn Fn(&Path, &str) -> bool) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(root.join(&folder)).with_context(|| format!("cannot read {}", root.join(&folder).display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {}", root.join(&folder).display()))?;
            let relative = folder.join(entry.file_name());
            if left_out(&relative, &entry.file_name().to_string_lossy()) {
                continue;
            }
            let kind = entry.file_type().with_context(|| format!("cannot inspect {}", relative.display()))?;
            if kind.is_dir() && MAX_DEPTH <= relative.components().count() {
                bail!("{} lies more than {MAX_DEPTH} folders deep", relative.display());
            } else if kind.is_dir() {
                folders.push(relative);
            } else if kind.is_file() {
                files.push(relative);
            }
            if MAX_FILES < files.len() {
                bail!("{} holds more than {MAX_FILES} files", root.display());
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        folder
    }

    fn packed(folder: &Path) -> (Vec<String>, Vec<u8>) {
        let bytes = Staging::prepare(folder, Runtime::Provided).unwrap().zip().unwrap();
        let archive = zip::ZipArchive::new(Cursor::new(bytes.clone())).unwrap();
        (archive.file_names().map(str::to_owned).collect(), bytes)
    }

    #[test]
    fn a_package_holds_what_belongs_to_the_function() {
        let folder = folder(&[
            ("takt.toml", ""),
            ("src/a.py", "1"),
            ("__pycache__/a.pyc", ""),
            (".git/HEAD", ""),
            ("big.bin", ""),
            (IGNORE_FILE, "# large\nbig.bin\n"),
        ]);
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("link")).unwrap();
        assert_eq!(packed(folder.path()).0, ["src/a.py", "takt.toml"]);
    }

    #[test]
    fn the_same_files_make_the_same_package_and_keep_what_can_be_started() {
        let folder = folder(&[("bootstrap", "#!/bin/sh\n"), ("a", "a")]);
        fs::set_permissions(folder.path().join("bootstrap"), fs::Permissions::from_mode(0o700)).unwrap();
        let (_, bytes) = packed(folder.path());
        assert_eq!(packed(folder.path()).1, bytes);
        let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).unwrap();
        let mut file = archive.by_name("bootstrap").unwrap();
        assert_eq!(file.unix_mode().unwrap() & 0o777, 0o755);
        let mut content = String::new();
        file.read_to_string(&mut content).unwrap();
        assert_eq!(content, "#!/bin/sh\n");
    }

    #[test]
    fn a_requirements_file_of_comments_installs_nothing() {
        let folder = folder(&[("requirements.txt", "# none\n\n"), ("other.txt", "six\n")]);
        assert!(!names_packages(&folder.path().join("requirements.txt")).unwrap());
        assert!(names_packages(&folder.path().join("other.txt")).unwrap());
        assert!(!names_packages(&folder.path().join("absent.txt")).unwrap());
    }

    #[test]
    fn a_staging_folder_does_not_stay() {
        let folder = folder(&[("a", "a")]);
        let staging = Staging::prepare(folder.path(), Runtime::Provided).unwrap();
        let path = staging.folder.clone();
        assert!(path.exists());
        drop(staging);
        assert!(!path.exists());
    }
}
