//! The system-call filter of instances.
//!
//! Two programs. The first is a list of what ordinary programs need; a call not on it answers `ENOSYS`, as on an older
//! kernel, so that libraries fall back (`clone3`, whose flags no filter can read, becomes `clone`; io_uring becomes epoll).
//! The second answers `EPERM` to calls that exist everywhere and are refused by name, and to dangerous arguments of allowed
//! calls: new namespaces, packet, vsock and raw sockets, netlink except routing, real-time classes, terminal injection.

use std::collections::BTreeMap;

use libc as c;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// Why a filter could not be built or installed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no system-call filter for processor architecture `{arch}`")]
    Architecture { arch: &'static str },
    #[error("cannot build the system-call filter")]
    Build { source: seccompiler::BackendError },
    #[error("cannot install the system-call filter")]
    Install { source: seccompiler::Error },
}

/// Both programs, compiled once and installed in every instance.
#[derive(Clone, Debug)]
pub struct Filter {
    allowed: BpfProgram,
    refused: BpfProgram,
}

impl Filter {
    /// Compiles the filter for this processor.
    pub fn compile() -> Result<Self, Error> {
        let arch =
            TargetArch::try_from(std::env::consts::ARCH).map_err(|_| Error::Architecture { arch: std::env::consts::ARCH })?;
        let build = |rules, mismatch, matched| {
            let filter = SeccompFilter::new(rules, mismatch, matched, arch).map_err(|source| Error::Build { source })?;
            BpfProgram::try_from(filter).map_err(|source| Error::Build { source })
        };
        // A call on the second list must pass the first, or a tie between ENOSYS and EPERM would depend on their order.
        let known = ALLOWED.iter().chain(&ON_THIS_PROCESSOR).chain(REFUSED).map(|call| (*call, Vec::new())).collect();
        Ok(Self {
            allowed: build(known, SeccompAction::Errno(c::ENOSYS.unsigned_abs()), SeccompAction::Allow)?,
            refused: build(refusals()?, SeccompAction::Allow, SeccompAction::Errno(c::EPERM.unsigned_abs()))?,
        })
    }

    /// Puts the calling thread and all it starts under the filter, for good. Sets no-new-privileges.
    pub fn install(&self) -> Result<(), Error> {
        for program in [&self.allowed, &self.refused] {
            seccompiler::apply_filter(program).map_err(|source| Error::Install { source })?;
        }
        Ok(())
    }
}

/// One condition on one argument.
fn when(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, Error> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value).map_err(|source| Error::Build { source })
}

/// A rule that matches when all conditions hold.
fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, Error> {
    SeccompRule::new(conditions).map_err(|source| Error::Build { source })
}

fn value(number: i32) -> u64 {
    u64::from(number.unsigned_abs())
}

/// The second program: whatever matches is refused.
fn refusals() -> Result<BTreeMap<i64, Vec<SeccompRule>>, Error> {
    use SeccompCmpOp::{Eq, MaskedEq, Ne};
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    let mut namespaces = Vec::new();
    for flag in NAMESPACE_FLAGS {
        namespaces.push(rule(vec![when(0, MaskedEq(value(flag)), value(flag))?])?);
    }
    rules.insert(c::SYS_clone, namespaces);

    let internet_raw = |family| rule(vec![when(0, Eq, value(family))?, when(1, MaskedEq(0xf), value(c::SOCK_RAW))?]);
    let other_netlink = rule(vec![when(0, Eq, value(c::AF_NETLINK))?, when(2, Ne, value(c::NETLINK_ROUTE))?])?;
    let mut other_families = Vec::new();
    for family in [c::AF_UNIX, c::AF_INET, c::AF_INET6, c::AF_NETLINK] {
        other_families.push(when(0, Ne, value(family))?);
    }
    rules
        .insert(c::SYS_socket, vec![internet_raw(c::AF_INET)?, internet_raw(c::AF_INET6)?, other_netlink, rule(other_families)?]);
    rules.insert(c::SYS_socketpair, vec![rule(vec![when(0, Ne, value(c::AF_UNIX))?])?]);

    let mut classes = Vec::new();
    for class in [c::SCHED_OTHER, c::SCHED_BATCH, c::SCHED_IDLE] {
        for flagged in [class, class | c::SCHED_RESET_ON_FORK] {
            classes.push(when(1, Ne, value(flagged))?);
        }
    }
    rules.insert(c::SYS_sched_setscheduler, vec![rule(classes)?]);

    let terminal = |request| rule(vec![when(1, Eq, request)?]);
    rules.insert(c::SYS_ioctl, vec![terminal(TIOCSTI)?, terminal(TIOCLINUX)?]);
    rules.insert(c::SYS_personality, vec![rule(vec![when(0, Ne, 0)?, when(0, Ne, u64::from(u32::MAX))?])?]);
    Ok(rules)
}

const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541C;

const NAMESPACE_FLAGS: [i32; 7] =
    [c::CLONE_NEWNS, c::CLONE_NEWCGROUP, c::CLONE_NEWUTS, c::CLONE_NEWIPC, c::CLONE_NEWUSER, c::CLONE_NEWPID, c::CLONE_NEWNET];

/// Refused by name with `EPERM`.
#[rustfmt::skip]
const REFUSED: &[i64] = &[
    // Other processes' memory and descriptors.
    c::SYS_ptrace, c::SYS_process_vm_readv, c::SYS_process_vm_writev, c::SYS_process_madvise, c::SYS_pidfd_getfd, c::SYS_kcmp,
    // Mounts, roots, namespaces.
    c::SYS_mount, c::SYS_umount2, c::SYS_pivot_root, c::SYS_chroot, c::SYS_unshare, c::SYS_setns, c::SYS_open_tree,
    c::SYS_move_mount, c::SYS_fsopen, c::SYS_fsconfig, c::SYS_fsmount, c::SYS_fspick, c::SYS_mount_setattr,
    c::SYS_open_by_handle_at, c::SYS_name_to_handle_at, c::SYS_fanotify_init, c::SYS_fanotify_mark, c::SYS_quotactl,
    // The kernel itself.
    c::SYS_bpf, c::SYS_perf_event_open, c::SYS_userfaultfd, c::SYS_init_module, c::SYS_finit_module, c::SYS_delete_module,
    c::SYS_kexec_load, c::SYS_reboot, c::SYS_swapon, c::SYS_swapoff, c::SYS_syslog, c::SYS_acct, c::SYS_sethostname,
    c::SYS_setdomainname, c::SYS_vhangup,
    // Keys, clocks.
    c::SYS_keyctl, c::SYS_add_key, c::SYS_request_key, c::SYS_settimeofday, c::SYS_clock_settime, c::SYS_clock_adjtime,
    c::SYS_adjtimex,
    // Class and cores: admission placed the instance where it is.
    c::SYS_sched_setattr, c::SYS_sched_setparam, c::SYS_sched_setaffinity, c::SYS_ioprio_set, c::SYS_mbind,
    c::SYS_set_mempolicy, c::SYS_migrate_pages, c::SYS_move_pages,
];

/// What ordinary programs use. Kept by subject.
#[rustfmt::skip]
const ALLOWED: &[i64] = &[
    // Files.
    c::SYS_read, c::SYS_write, c::SYS_readv, c::SYS_writev, c::SYS_pread64, c::SYS_pwrite64, c::SYS_preadv, c::SYS_pwritev,
    c::SYS_preadv2, c::SYS_pwritev2, c::SYS_openat, c::SYS_openat2, c::SYS_close, c::SYS_close_range, c::SYS_fstat,
    c::SYS_newfstatat, c::SYS_statx, c::SYS_lseek, c::SYS_faccessat, c::SYS_faccessat2, c::SYS_fchmod, c::SYS_fchmodat,
    c::SYS_fchown, c::SYS_fchownat, c::SYS_fcntl, c::SYS_flock, c::SYS_fsync, c::SYS_fdatasync, c::SYS_sync_file_range,
    c::SYS_ftruncate, c::SYS_truncate, c::SYS_fallocate, c::SYS_fadvise64, c::SYS_getdents64, c::SYS_getcwd, c::SYS_chdir,
    c::SYS_fchdir, c::SYS_mkdirat, c::SYS_mknodat, c::SYS_unlinkat, c::SYS_renameat2, c::SYS_linkat, c::SYS_symlinkat,
    c::SYS_readlinkat, c::SYS_utimensat, c::SYS_statfs, c::SYS_fstatfs, c::SYS_dup, c::SYS_dup3, c::SYS_pipe2, c::SYS_ioctl,
    c::SYS_copy_file_range, c::SYS_sendfile, c::SYS_splice, c::SYS_tee, c::SYS_vmsplice, c::SYS_readahead, c::SYS_umask,
    c::SYS_getxattr, c::SYS_lgetxattr, c::SYS_fgetxattr, c::SYS_listxattr, c::SYS_llistxattr, c::SYS_flistxattr,
    c::SYS_setxattr, c::SYS_lsetxattr, c::SYS_fsetxattr, c::SYS_removexattr, c::SYS_lremovexattr, c::SYS_fremovexattr,
    c::SYS_sync, c::SYS_syncfs, c::SYS_inotify_init1, c::SYS_inotify_add_watch, c::SYS_inotify_rm_watch, c::SYS_memfd_create,
    // Memory.
    c::SYS_mmap, c::SYS_munmap, c::SYS_mprotect, c::SYS_mremap, c::SYS_madvise, c::SYS_brk, c::SYS_msync, c::SYS_mincore,
    c::SYS_mlock, c::SYS_mlock2, c::SYS_munlock, c::SYS_mlockall, c::SYS_munlockall, c::SYS_membarrier, c::SYS_rseq,
    c::SYS_pkey_alloc, c::SYS_pkey_free, c::SYS_pkey_mprotect, c::SYS_get_mempolicy, c::SYS_remap_file_pages,
    // Processes and threads.
    c::SYS_clone, c::SYS_execve, c::SYS_execveat, c::SYS_exit, c::SYS_exit_group, c::SYS_wait4, c::SYS_waitid, c::SYS_getpid,
    c::SYS_getppid, c::SYS_gettid, c::SYS_set_tid_address, c::SYS_set_robust_list, c::SYS_get_robust_list, c::SYS_futex,
    c::SYS_futex_waitv, c::SYS_prctl, c::SYS_setsid, c::SYS_getsid, c::SYS_setpgid, c::SYS_getpgid, c::SYS_kill,
    c::SYS_tkill, c::SYS_tgkill, c::SYS_pidfd_open, c::SYS_pidfd_send_signal, c::SYS_getrusage, c::SYS_times,
    c::SYS_prlimit64, c::SYS_getrlimit, c::SYS_setrlimit, c::SYS_getpriority, c::SYS_setpriority, c::SYS_ioprio_get,
    c::SYS_personality, c::SYS_capget, c::SYS_capset, c::SYS_restart_syscall, c::SYS_seccomp, c::SYS_landlock_create_ruleset,
    c::SYS_landlock_add_rule, c::SYS_landlock_restrict_self,
    // Scheduling, where arguments allow.
    c::SYS_sched_yield, c::SYS_sched_getaffinity, c::SYS_sched_getattr, c::SYS_sched_getparam, c::SYS_sched_getscheduler,
    c::SYS_sched_setscheduler, c::SYS_sched_get_priority_max, c::SYS_sched_get_priority_min, c::SYS_sched_rr_get_interval,
    c::SYS_getcpu,
    // Users.
    c::SYS_getuid, c::SYS_geteuid, c::SYS_getgid, c::SYS_getegid, c::SYS_getresuid, c::SYS_getresgid, c::SYS_getgroups,
    c::SYS_setuid, c::SYS_setgid, c::SYS_setreuid, c::SYS_setregid, c::SYS_setresuid, c::SYS_setresgid, c::SYS_setgroups,
    c::SYS_setfsuid, c::SYS_setfsgid,
    // Signals.
    c::SYS_rt_sigaction, c::SYS_rt_sigprocmask, c::SYS_rt_sigreturn, c::SYS_rt_sigpending, c::SYS_rt_sigsuspend,
    c::SYS_rt_sigtimedwait, c::SYS_rt_sigqueueinfo, c::SYS_rt_tgsigqueueinfo, c::SYS_sigaltstack, c::SYS_signalfd4,
    // Time.
    c::SYS_clock_gettime, c::SYS_clock_getres, c::SYS_clock_nanosleep, c::SYS_nanosleep, c::SYS_gettimeofday,
    c::SYS_getitimer, c::SYS_setitimer, c::SYS_timer_create, c::SYS_timer_settime, c::SYS_timer_gettime,
    c::SYS_timer_getoverrun, c::SYS_timer_delete, c::SYS_timerfd_create, c::SYS_timerfd_settime, c::SYS_timerfd_gettime,
    // Waiting.
    c::SYS_ppoll, c::SYS_pselect6, c::SYS_epoll_create1, c::SYS_epoll_ctl, c::SYS_epoll_pwait, c::SYS_epoll_pwait2,
    c::SYS_eventfd2,
    // Sockets, where arguments allow.
    c::SYS_socket, c::SYS_socketpair, c::SYS_bind, c::SYS_listen, c::SYS_accept, c::SYS_accept4, c::SYS_connect,
    c::SYS_getsockname, c::SYS_getpeername, c::SYS_sendto, c::SYS_recvfrom, c::SYS_sendmsg, c::SYS_recvmsg, c::SYS_sendmmsg,
    c::SYS_recvmmsg, c::SYS_setsockopt, c::SYS_getsockopt, c::SYS_shutdown,
    // Queues and memory between the processes of one instance.
    c::SYS_shmget, c::SYS_shmat, c::SYS_shmdt, c::SYS_shmctl, c::SYS_semget, c::SYS_semop, c::SYS_semctl, c::SYS_semtimedop,
    c::SYS_msgget, c::SYS_msgsnd, c::SYS_msgrcv, c::SYS_msgctl, c::SYS_mq_open, c::SYS_mq_unlink, c::SYS_mq_timedsend,
    c::SYS_mq_timedreceive, c::SYS_mq_notify, c::SYS_mq_getsetattr,
    // The machine.
    c::SYS_uname, c::SYS_sysinfo, c::SYS_getrandom,
];

#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ON_THIS_PROCESSOR: [i64; 37] = [
    c::SYS_open, c::SYS_creat, c::SYS_stat, c::SYS_lstat, c::SYS_access, c::SYS_mkdir, c::SYS_rmdir, c::SYS_unlink,
    c::SYS_rename, c::SYS_link, c::SYS_symlink, c::SYS_readlink, c::SYS_chmod, c::SYS_chown, c::SYS_lchown, c::SYS_mknod,
    c::SYS_utime, c::SYS_utimes, c::SYS_futimesat, c::SYS_getdents, c::SYS_dup2, c::SYS_pipe, c::SYS_poll, c::SYS_select,
    c::SYS_epoll_create, c::SYS_epoll_wait, c::SYS_eventfd, c::SYS_signalfd, c::SYS_inotify_init, c::SYS_fork, c::SYS_vfork,
    c::SYS_getpgrp, c::SYS_pause, c::SYS_alarm, c::SYS_time, c::SYS_arch_prctl, c::SYS_renameat,
];

#[cfg(not(target_arch = "x86_64"))]
const ON_THIS_PROCESSOR: [i64; 1] = [c::SYS_renameat2];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_both_allowed_and_refused() {
        for call in REFUSED {
            assert!(!ALLOWED.contains(call) && !ON_THIS_PROCESSOR.contains(call), "system call {call}");
        }
    }

    #[test]
    fn what_hides_its_arguments_from_a_filter_is_on_no_list() {
        for call in [c::SYS_clone3, c::SYS_io_uring_setup, c::SYS_io_uring_enter, c::SYS_io_uring_register] {
            assert!(!ALLOWED.contains(&call) && !REFUSED.contains(&call), "system call {call}");
        }
    }

    #[test]
    fn the_filter_fits_the_kernels_limit() {
        let filter = Filter::compile().unwrap();
        assert!(filter.allowed.len() < 4096 && filter.refused.len() < 4096);
    }
}
