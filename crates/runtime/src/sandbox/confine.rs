//! What an instance may do: user, capabilities, limits, Landlock, system calls.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, Scope,
};
use rustix::process::{Gid, Resource, Rlimit, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

use super::filter::Filter;
use super::{Failure, Step};

/// Open files of a process of an instance, as on AWS.
const OPEN_FILES_MAX: u64 = 1024;
/// The newest set of Landlock rules we know; older kernels take what they have.
const LANDLOCK: ABI = ABI::V6;
/// Files an instance may write to, besides `/tmp`.
const WRITABLE: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// Limits held by resource limits because no control group holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// Private writable memory of each process.
    pub memory_bytes: u64,
    /// Processes of the instance's user.
    pub pids: u64,
}

/// Sets the limits every process of an instance inherits.
pub(super) fn limit(fallback: Option<Fallback>) -> Result<(), Failure> {
    let mut limits = vec![
        (Resource::Nofile, OPEN_FILES_MAX),
        (Resource::Core, 0),
        (Resource::Rtprio, 0),
        (Resource::Nice, 0),
        (Resource::Msgqueue, 0),
    ];
    if let Some(fallback) = fallback {
        limits.push((Resource::Data, fallback.memory_bytes));
        limits.push((Resource::Nproc, fallback.pids));
    }
    for (resource, most) in limits {
        let current = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let value = Some(most.min(current));
        rustix::process::setrlimit(resource, Rlimit { current: value, maximum: value })
            .map_err(Step::Limits.failed(format!("{resource:?}")))?;
    }
    Ok(())
}

/// Becomes the instance's user, with no group beside its own. For a process with the privilege to.
pub(super) fn become_user(user: u32) -> Result<(), Failure> {
    let failed = |what: &str| Step::User.failed(format!("{what} {user}"));
    rustix::thread::set_thread_groups(&[]).map_err(failed("groups of"))?;
    let group = Gid::from_raw(user);
    rustix::thread::set_thread_res_gid(group, group, group).map_err(failed("group"))?;
    let user = Uid::from_raw(user);
    rustix::thread::set_thread_res_uid(user, user, user).map_err(failed("user"))
}

/// Gives up the right to ever hold a capability; what is held now stays until [`drop_capabilities`].
pub(super) fn bound_capabilities() -> Result<(), Failure> {
    for capability in CapabilitySet::all().iter() {
        // The kernel refuses numbers it does not know; those it cannot grant either.
        if rustix::thread::capability_is_in_bounding_set(capability).unwrap_or(false) {
            rustix::thread::remove_capability_from_bounding_set(capability)
                .map_err(Step::Capabilities.failed(format!("{capability:?}")))?;
        }
    }
    Ok(())
}

/// Gives up every capability.
pub(super) fn drop_capabilities() -> Result<(), Failure> {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::clear_ambient_capability_set().map_err(Step::Capabilities.failed("ambient"))?;
    rustix::thread::set_capabilities(None, none).map_err(Step::Capabilities.failed("all"))
}

/// No program can give rights back; the file tree is read-only except `/tmp`; system calls are filtered.
pub(super) fn confine(filter: &Filter) -> Result<(), Failure> {
    rustix::thread::set_no_new_privs(true).map_err(Step::Confinement.failed("no_new_privs"))?;
    landlock().map_err(|error| Failure::new(Step::Confinement, "landlock", &error))?;
    filter.install().map_err(|error| Failure::new(Step::Confinement, "seccomp", &error))
}

fn landlock() -> Result<(), landlock::RulesetError> {
    let all = AccessFs::from_all(LANDLOCK);
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .scope(Scope::Signal)?
        .scope(Scope::AbstractUnixSocket)?
        .create()?;
    let rules = allow(rules, Path::new("/"), AccessFs::from_read(LANDLOCK))?;
    let rules = allow(rules, Path::new("/tmp"), all)?;
    let file = AccessFs::from_file(LANDLOCK);
    let rules = WRITABLE.iter().try_fold(rules, |rules, path| allow(rules, Path::new(path), file))?;
    rules.restrict_self()?;
    Ok(())
}

/// Allows `access` below `path`; a path that is not there needs no rule.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: landlock::BitFlags<AccessFs>,
) -> Result<RulesetCreated, landlock::RulesetError> {
    match PathFd::new(path) {
        Ok(fd) => rules.add_rule(PathBeneath::new(fd, access)),
        Err(_) => Ok(rules),
    }
}
