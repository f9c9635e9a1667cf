//! From a function folder to the zip that is uploaded: a staging copy, the dependencies its runtime needs, the archive.
//!
//! The folder itself is never written to. Hidden files, what a build leaves behind and whatever `.taktignore` names stay
//! out; links stay out too, for what they point at is not in the package. The archive of the same files is the same bytes,
//! so that an unchanged function keeps its code hash.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Cursor, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use model::Runtime;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use crate::scratch::Scratch;

/// Names that stay out of the package, one a line; a line is a path inside the folder.
pub const IGNORE_FILE: &str = ".taktignore";

/// AWS's limit on an uploaded zip.
const MAX_ZIP_BYTES: usize = 52_428_800;
/// AWS's limit on what it unpacks to.
const MAX_UNPACKED_BYTES: u64 = 262_144_000;
const MAX_FILES: usize = 50_000;
const MAX_DEPTH: usize = 32;

/// Left out because it is made again: by Python as it runs, by npm from package.json.
const MADE_AGAIN: [(&str, Option<&str>); 2] = [("__pycache__", None), (NODE_MODULES, Some("package.json"))];

/// Dependencies that were installed, so that the next package of the same folder with the same manifest takes them as they
/// are: what makes a redeployment quick.
#[derive(Debug, Default)]
pub struct Dependencies {
    installed: BTreeMap<PathBuf, Installed>,
}

#[derive(Debug)]
struct Installed {
    /// The texts of the files that name the dependencies.
    manifest: Vec<u8>,
    folder: Scratch,
}

/// How the dependencies of a runtime are stated and installed.
struct Installer {
    /// The first of them must exist.
    manifests: &'static [&'static str],
    program: &'static str,
    arguments: &'static [&'static str],
}

const PIP: Installer = Installer {
    manifests: &["requirements.txt"],
    program: "python3",
    arguments: &[
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-compile",
        "--requirement",
        "requirements.txt",
        "--target",
    ],
};
const NPM: Installer = Installer {
    manifests: &["package.json", "package-lock.json"],
    program: "npm",
    arguments: &["install", "--omit=dev", "--no-audit", "--no-fund", "--loglevel=error"],
};
const NODE_MODULES: &str = "node_modules";

/// A folder ready to be zipped.
#[derive(Debug)]
pub struct Staging {
    folder: Scratch,
}

impl Staging {
    /// Copies a function folder and adds what it names as dependencies.
    pub fn prepare(source: &Path, runtime: Runtime, dependencies: &mut Dependencies) -> Result<Self> {
        let staging = Self { folder: Scratch::new("package")? };
        let folder = staging.folder.path();
        copy(source, &list(source, &ignored(source)?)?, folder)?;
        let installer = match runtime {
            Runtime::Python if names_packages(&folder.join(PIP.manifests[0]))? => PIP,
            Runtime::NodeJs if folder.join(NPM.manifests[0]).exists() => NPM,
            Runtime::Python | Runtime::NodeJs | Runtime::Provided => return Ok(staging),
        };
        let installed = dependencies.installed(source, folder, &installer)?;
        copy(installed, &list_packed(installed)?, folder)?;
        Ok(staging)
    }

    /// The archive of everything in the folder. Errors above AWS's limits of 50 MiB zipped and 250 MiB unpacked.
    pub fn zip(&self) -> Result<Vec<u8>> {
        let mut files = list_packed(self.folder.path())?;
        files.sort();
        let mut unpacked = 0;
        let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
        for file in files {
            let path = self.folder.path().join(&file);
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

impl Dependencies {
    /// The folder with what `staging`, a copy of `source`, names; installed there unless it is already.
    fn installed(&mut self, source: &Path, staging: &Path, installer: &Installer) -> Result<&Path> {
        let mut manifest = Vec::new();
        for name in installer.manifests {
            match fs::read(staging.join(name)) {
                Ok(text) => manifest.extend(text),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("cannot read {name}")),
            }
        }
        let known = self.installed.get(source).is_some_and(|installed| installed.manifest == manifest);
        if !known {
            let folder = Scratch::new("package")?;
            install(staging, installer, folder.path())?;
            self.installed.insert(source.to_owned(), Installed { manifest, folder });
        }
        Ok(self.installed[source].folder.path())
    }
}

fn install(staging: &Path, installer: &Installer, target: &Path) -> Result<()> {
    let program = installer.program;
    let mut command = Command::new(program);
    command.args(installer.arguments).current_dir(staging);
    if program == PIP.program {
        command.arg(target);
    }
    let output = command.output().with_context(|| format!("cannot start `{program}`, which installs the dependencies"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = error.lines().collect();
        let last = &lines[lines.len().saturating_sub(8)..];
        bail!("`{program} {}` ended with {}:\n{}", installer.arguments.join(" "), output.status, last.join("\n"));
    }
    if program == NPM.program && staging.join(NODE_MODULES).exists() {
        let moved = fs::rename(staging.join(NODE_MODULES), target.join(NODE_MODULES));
        moved.with_context(|| format!("cannot move {NODE_MODULES}"))?;
    }
    Ok(())
}

fn copy(source: &Path, files: &[PathBuf], target: &Path) -> Result<()> {
    for file in files {
        let to = target.join(file);
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        fs::copy(source.join(file), &to).with_context(|| format!("cannot copy {}", file.display()))?;
    }
    Ok(())
}

/// A requirements file of comments asks for nothing.
fn names_packages(path: &Path) -> Result<bool> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
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
        let bytes = Staging::prepare(folder, Runtime::Provided, &mut Dependencies::default()).unwrap().zip().unwrap();
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
    fn dependencies_are_installed_once_per_manifest() {
        // A copy of itself is what this installer installs; it fails where a file `fail` is.
        let installer = Installer {
            manifests: &["list"],
            program: "/bin/sh",
            arguments: &["-c", "test ! -e fail || { echo no network >&2; exit 7; }"],
        };
        let source = folder(&[("list", "a")]);
        let mut dependencies = Dependencies::default();
        let first = dependencies.installed(source.path(), source.path(), &installer).unwrap().to_owned();
        fs::write(source.path().join("fail"), "").unwrap();
        assert_eq!(dependencies.installed(source.path(), source.path(), &installer).unwrap(), first);
        fs::write(source.path().join("list"), "b").unwrap();
        let error = dependencies.installed(source.path(), source.path(), &installer).unwrap_err().to_string();
        assert!(error.contains("no network") && error.contains('7'), "{error}");
    }

    #[test]
    fn a_staging_folder_does_not_stay() {
        let folder = folder(&[("a", "a")]);
        let staging = Staging::prepare(folder.path(), Runtime::Provided, &mut Dependencies::default()).unwrap();
        let path = staging.folder.path().to_owned();
        assert!(path.exists());
        drop(staging);
        assert!(!path.exists());
    }
}
