//! The file tree of an instance, built in its own mount namespace.
//!
//! A small tmpfs holds nothing but mount points and generated files of `/etc`; it is sealed read-only before anything is
//! mounted on it. Everything else is a read-only copy of a mount of the host, taken before the tmpfs hides the place it is
//! built on. What is writable: `/tmp`, bounded, and a few device files.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use serde::{Deserialize, Serialize};

use super::{Failure, Step};
use crate::sys::process::{Devices, seal_mount};

/// Where the code of the function lies in an instance.
pub const CODE: &str = "/var/task";
/// Where the bootstrap of its runtime lies in an instance.
pub const BOOTSTRAP: &str = "/var/runtime";

/// What an instance sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// The host's directory that becomes [`CODE`].
    pub code: PathBuf,
    /// The host's directory that becomes [`BOOTSTRAP`].
    pub bootstrap: Option<PathBuf>,
    /// Files and directories of the host, seen at the same path.
    pub extra: Vec<PathBuf>,
    /// Bytes `/tmp` holds at most.
    pub tmp_bytes: u64,
    /// Files `/tmp` holds at most.
    pub tmp_files: u64,
}

/// Directories of the host that every instance sees. Symbolic links (`/bin` on a merged `/usr`) are made again.
pub(super) const SYSTEM: [&str; 6] = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32"];
/// Files of the host that every instance sees, where they exist.
const CONFIGURATION: [&str; 9] = [
    "/etc/ssl",
    "/etc/pki",
    "/etc/ca-certificates",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/mime.types",
    "/etc/services",
];
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/shm", "/tmp"),
];
const DIRECTORIES: [&str; 7] = ["/proc", "/tmp", CODE, BOOTSTRAP, "/etc", "/dev", "/root"];
/// Size of the tmpfs that holds mount points and `/etc`.
const SKELETON_BYTES: &str = "1m";

/// One mount taken from the host.
struct Bind {
    mount: OwnedFd,
    target: PathBuf,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
}

/// Generated files of `/etc`, by name.
pub(super) fn etc(user: u32, resolver: Option<std::net::Ipv4Addr>, host: &str) -> BTreeMap<&'static str, String> {
    let resolv = resolver.map_or_else(String::new, |address| format!("nameserver {address}\noptions timeout:2 attempts:2\n"));
    BTreeMap::from([
        ("passwd", format!("root:x:0:0:root:/root:/sbin/nologin\nfunction:x:{user}:{user}:function:/tmp:/sbin/nologin\n")),
        ("group", format!("root:x:0:\nfunction:x:{user}:\n")),
        ("hosts", format!("127.0.0.1 localhost {host}\n")),
        ("resolv.conf", resolv),
        ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\nservices: files\n".to_owned()),
    ])
}

/// Replaces the root of the calling process, which must be alone in its mount namespace and the first of its pid namespace.
pub(super) fn enter(tree: &Tree, etc: &BTreeMap<&'static str, String>) -> Result<(), Failure> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(Step::Mounts.failed("/"))?;
    let binds = take(tree)?;
    let staging = Path::new("/tmp");
    let skeleton = tmpfs(&[("size", SKELETON_BYTES), ("mode", "0755")], MountAttrFlags::MOUNT_ATTR_NOSUID)?;
    attach(skeleton.as_fd(), staging)?;
    furnish(staging, &binds, etc)?;
    seal_mount(skeleton.as_fd(), Devices::Refused).map_err(Step::Mounts.failed_io(staging))?;
    for bind in &binds {
        attach(bind.mount.as_fd(), &inside(staging, &bind.target))?;
    }
    let no_devices = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let (size, files) = (tree.tmp_bytes.to_string(), tree.tmp_files.to_string());
    let tmp = tmpfs(&[("size", &size), ("nr_inodes", &files), ("mode", "1777")], no_devices)?;
    attach(tmp.as_fd(), &inside(staging, Path::new("/tmp")))?;
    let proc = filesystem("proc", &[], no_devices | MountAttrFlags::MOUNT_ATTR_NOEXEC)?;
    attach(proc.as_fd(), &inside(staging, Path::new("/proc")))?;
    pivot(staging)
}

/// Takes sealed copies of everything an instance sees of the host.
fn take(tree: &Tree) -> Result<Vec<Bind>, Failure> {
    let mut binds = Vec::new();
    for path in SYSTEM.iter().chain(&CONFIGURATION).map(Path::new) {
        if path.exists() && !path.is_symlink() {
            binds.push(bind(path, path, Devices::Refused)?);
        } else if path.is_symlink() && path.exists() && path.starts_with("/etc") {
            let source = path.canonicalize().map_err(Step::Mounts.failed_io(path))?;
            binds.push(bind(&source, path, Devices::Refused)?);
        }
    }
    for path in DEVICES.map(Path::new) {
        binds.push(bind(path, path, Devices::Usable)?);
    }
    binds.push(bind(&tree.code, Path::new(CODE), Devices::Refused)?);
    if let Some(bootstrap) = &tree.bootstrap {
        binds.push(bind(bootstrap, Path::new(BOOTSTRAP), Devices::Refused)?);
    }
    let mut extra: Vec<&PathBuf> = tree.extra.iter().filter(|path| !seen_anyway(path)).collect();
    extra.sort(); // a directory before what lies in it
    for path in extra {
        binds.push(bind(path, path, Devices::Refused)?);
    }
    Ok(binds)
}

/// Whether a path lies in a directory that every instance sees.
fn seen_anyway(path: &Path) -> bool {
    SYSTEM.iter().any(|system| path.starts_with(system))
}

fn bind(source: &Path, target: &Path, devices: Devices) -> Result<Bind, Failure> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let mount = rustix::mount::open_tree(CWD, source, flags).map_err(Step::Mounts.failed(source))?;
    seal_mount(mount.as_fd(), devices).map_err(Step::Mounts.failed_io(source))?;
    let kind = if source.is_dir() { Kind::Directory } else { Kind::File };
    Ok(Bind { mount, target: target.to_owned(), kind })
}

/// Makes the mount points, links and generated files.
fn furnish(staging: &Path, binds: &[Bind], etc: &BTreeMap<&'static str, String>) -> Result<(), Failure> {
    let directory = |path: &Path| fs::create_dir_all(path).map_err(Step::Mounts.failed_io(path));
    for path in DIRECTORIES {
        directory(&inside(staging, Path::new(path)))?;
    }
    for bind in binds {
        let target = inside(staging, &bind.target);
        match bind.kind {
            Kind::Directory => directory(&target)?,
            Kind::File => {
                directory(target.parent().unwrap_or(staging))?;
                fs::File::create(&target).map_err(Step::Mounts.failed_io(&target))?;
            }
        }
    }
    for path in SYSTEM.map(Path::new).into_iter().filter(|path| path.is_symlink()) {
        let to = fs::read_link(path).map_err(Step::Mounts.failed_io(path))?;
        link(&to, &inside(staging, path))?;
    }
    for (path, to) in LINKS {
        link(Path::new(to), &inside(staging, Path::new(path)))?;
    }
    for (name, text) in etc {
        let path = staging.join("etc").join(name);
        fs::write(&path, text).map_err(Step::Mounts.failed_io(&path))?;
    }
    Ok(())
}

fn link(to: &Path, path: &Path) -> Result<(), Failure> {
    std::os::unix::fs::symlink(to, path).map_err(Step::Mounts.failed_io(path))
}

/// `staging/path` for an absolute path; parent components cannot lead out.
fn inside(staging: &Path, path: &Path) -> PathBuf {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => None,
    });
    staging.join(parts.collect::<PathBuf>())
}

fn tmpfs(options: &[(&str, &str)], attributes: MountAttrFlags) -> Result<OwnedFd, Failure> {
    filesystem("tmpfs", options, attributes)
}

fn filesystem(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> Result<OwnedFd, Failure> {
    let failed = || Step::Mounts.failed(kind);
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed())?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(&context, *key, *value).map_err(failed())?;
    }
    rustix::mount::fsconfig_create(&context).map_err(failed())?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed())
}

fn attach(mount: std::os::fd::BorrowedFd<'_>, target: &Path) -> Result<(), Failure> {
    rustix::mount::move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(Step::Mounts.failed(target))
}

/// Makes `staging` the root and lets the old one go.
fn pivot(staging: &Path) -> Result<(), Failure> {
    let move_to = |path: &Path| -> io::Result<()> { Ok(rustix::process::chdir(path)?) };
    move_to(staging).map_err(Step::Mounts.failed_io(staging))?;
    // The old root ends up mounted over the new one, at the same place, and is then taken off.
    rustix::process::pivot_root(".", ".").map_err(Step::Mounts.failed("pivot_root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(Step::Mounts.failed("the old root"))?;
    move_to(Path::new("/")).map_err(Step::Mounts.failed_io("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_never_lies_outside_the_new_root() {
        for (path, expected) in [("/a/b", "/tmp/a/b"), ("/../etc", "/tmp/etc"), ("a/../../b", "/tmp/a/b"), ("/", "/tmp/")] {
            assert_eq!(inside(Path::new("/tmp"), Path::new(path)), PathBuf::from(expected));
        }
    }

    #[test]
    fn the_resolver_is_named_only_where_there_is_one() {
        assert_eq!(etc(7, None, "takt")["resolv.conf"], "");
        assert!(etc(7, Some([10, 0, 2, 3].into()), "takt")["resolv.conf"].starts_with("nameserver 10.0.2.3\n"));
    }
}
