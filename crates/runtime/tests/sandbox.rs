//! One test per protection, each with a program that tries to break it. Without root the tests say that they skip.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests fail like tests")]

use std::collections::BTreeMap;
use std::io::{BufRead, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use model::Memory;
use takt_runtime::launcher::{self, Client, Error, Exit, Launch, Network, Options, Placement, Serves, Started};
use takt_runtime::sandbox::{self, Language, Step};
use takt_runtime::sys::process::{Death, Pidfd};
use takt_runtime::sys::sched::{self, Class};
use tokio::task::JoinSet;

/// A launcher, its tasks, and a place for packages.
struct Bench {
    client: Client,
    _tasks: JoinSet<std::io::Error>,
    package: tempfile::TempDir,
    python: sandbox::Interpreter,
}

/// What a program wrote and how it ended.
#[derive(Debug)]
struct Outcome {
    out: String,
    err: String,
    exit: Exit,
}

fn options(name: &str) -> Options {
    Options {
        program: std::env::var_os("TAKT_TEST_LAUNCHER").unwrap_or_else(|| env!("CARGO_BIN_EXE_takt-launcher").into()).into(),
        arguments: Vec::new(),
        groups: format!("takt-test-{name}-{}", std::process::id()),
        first_user: Options::FIRST_USER_DEFAULT,
        serves: Serves::BestEffort,
        priority: None,
    }
}

impl Bench {
    /// `None`, with the reason printed, where this user cannot make sandboxes of full strength.
    fn new(name: &str) -> Option<Self> {
        Self::with(&options(name))
    }

    fn with(options: &Options) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: not root");
            return None;
        }
        let (client, service, standing) = launcher::spawn(options).unwrap();
        if let Some(reason) = standing.no_groups {
            println!("skipped: {reason}");
            return None;
        }
        let daemon = sched::probe_fifo(1) == sched::RealTime::Works;
        assert!(!daemon || standing.no_real_time.is_none(), "{:?}", standing.no_real_time);
        let mut tasks = JoinSet::new();
        tasks.spawn(service.run());
        let package = tempfile::tempdir().unwrap();
        readable(package.path());
        let python = sandbox::interpreter(Language::Python, Path::new("python3")).unwrap();
        Some(Self { client, _tasks: tasks, package, python })
    }

    fn launch(&self, argv: &[&str]) -> Launch {
        Launch {
            argv: argv.iter().map(|part| (*part).to_owned()).collect(),
            env: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]),
            code: self.package.path().to_owned(),
            bootstrap: None,
            extra: self.python.paths.clone(),
            memory: Memory::from_mib(64).unwrap(),
            pids: 64,
            tmp_bytes: 4 << 20,
            placement: Placement::BestEffort,
            quota: None,
            network: Network::Loopback,
        }
    }

    fn sh(&self, script: &str) -> Launch {
        self.launch(&["/bin/sh", "-c", script])
    }

    fn python(&self, script: &str) -> Launch {
        self.launch(&[self.python.program.to_str().unwrap(), "-I", "-S", "-c", script])
    }

    async fn run(&self, launch: &Launch) -> Outcome {
        finish(self.client.start(launch).await.unwrap()).await
    }
}

fn readable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn reader(fd: OwnedFd) -> tokio::task::JoinHandle<String> {
    tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        std::fs::File::from(fd).read_to_string(&mut text).unwrap();
        text
    })
}

/// Lets an instance run to its end and collects what it wrote.
async fn finish(started: Started) -> Outcome {
    let Started { handle, stdout, stderr, exit, .. } = started;
    let (out, err) = (reader(stdout), reader(stderr));
    let exit = exit.await.unwrap();
    drop(handle);
    Outcome { out: out.await.unwrap(), err: err.await.unwrap(), exit }
}

#[track_caller]
fn succeeded(outcome: &Outcome, out: &str) {
    assert_eq!(outcome.exit.death, Death::Exited { code: 0 }, "{outcome:?}");
    assert_eq!(outcome.out.trim(), out, "{outcome:?}");
}

#[tokio::test]
async fn the_environment_is_exactly_the_one_given() {
    let Some(bench) = Bench::new("env") else { return };
    let mut launch = bench.launch(&["/usr/bin/env"]);
    launch.env = BTreeMap::from([("A".to_owned(), "1 =2".to_owned()), ("B".to_owned(), String::new())]);
    succeeded(&bench.run(&launch).await, "A=1 =2\nB=");
}

#[tokio::test]
async fn it_starts_in_its_code_as_a_user_of_its_own_without_rights() {
    let Some(bench) = Bench::new("user") else { return };
    std::fs::write(bench.package.path().join("hello"), "from the package").unwrap();
    let script =
        "pwd; cat hello; echo; id -G; cat /proc/self/status | grep -E '^(Cap(Prm|Eff|Bnd)|NoNewPrivs|Seccomp):' | tr -d '\t\n'";
    let outcome = bench.run(&bench.sh(script)).await;
    let rights = "CapPrm:0000000000000000CapEff:0000000000000000CapBnd:0000000000000000NoNewPrivs:1Seccomp:2";
    succeeded(&outcome, &format!("/var/task\nfrom the package\n{}\n{rights}", Options::FIRST_USER_DEFAULT));
}

#[tokio::test]
async fn it_sees_no_process_but_its_own() {
    let Some(bench) = Bench::new("procs") else { return };
    let other = bench.client.start(&bench.sh("exec sleep 60")).await.unwrap();
    let outcome = bench.run(&bench.sh("echo /proc/[0-9]*; cat /proc/1/environ; kill -9 1; kill -9 2; echo unreached")).await;
    // Init and the shell. The shell may end itself; init is out of its reach.
    assert_eq!(outcome.out.trim(), "/proc/1 /proc/2", "{outcome:?}");
    assert!(outcome.err.contains("/proc/1/environ: Permission denied"), "{outcome:?}");
    assert_eq!(outcome.exit.death, Death::Signalled { signal: 9 }, "{outcome:?}");
    drop(other);
}

#[tokio::test]
async fn it_cannot_look_into_its_init() {
    let Some(bench) = Bench::new("init") else { return };
    let script = "
import os
for path in ['/proc/1/mem', '/proc/1/maps', '/proc/1/environ', '/proc/1/root', '/proc/1/cwd', '/proc/1/fd']:
    try:
        os.listdir(path) if path.endswith(('fd', 'root', 'cwd')) else open(path).read(1)
        print('read', path)
    except PermissionError: pass
";
    succeeded(&bench.run(&bench.python(script)).await, "");
}

#[tokio::test]
async fn it_sees_no_file_of_the_host_or_of_another_instance() {
    let Some(bench) = Bench::new("files") else { return };
    let secret = tempfile::tempdir().unwrap();
    std::fs::write(secret.path().join("secret"), "s").unwrap();
    let other = bench.client.start(&bench.sh("echo mine > /tmp/mine; exec sleep 60")).await.unwrap();
    let script = format!("ls -A /tmp /sys /home {} /var | tr '\\n' ' '; ls -A /root", secret.path().display());
    let outcome = bench.run(&bench.sh(&script)).await;
    assert_eq!(
        outcome.out.split_whitespace().collect::<Vec<_>>().join(" ").replace(".pyenv", "").trim(),
        "/tmp: /var: runtime task",
        "{outcome:?}"
    );
    assert!(outcome.err.contains("cannot access '/sys'"), "{outcome:?}");
    drop(other);
}

#[tokio::test]
async fn a_link_in_the_package_leads_nowhere() {
    let Some(bench) = Bench::new("link") else { return };
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "secret").unwrap();
    readable(secret.path());
    std::os::unix::fs::symlink(secret.path(), bench.package.path().join("absolute")).unwrap();
    std::os::unix::fs::symlink("../../../../../../../../etc/shadow", bench.package.path().join("relative")).unwrap();
    let outcome = bench.run(&bench.sh("cat absolute; cat relative; cat ../../proc/1/root/etc/shadow; true")).await;
    succeeded(&outcome, "");
}

#[tokio::test]
async fn it_writes_to_tmp_alone() {
    let Some(bench) = Bench::new("write") else { return };
    let script = "for d in / /var/task /usr /etc /proc /dev /root; do (echo x > $d/x) 2>/dev/null && echo wrote $d; done; \
                  (echo x > /proc/sys/kernel/hostname) 2>/dev/null && echo renamed; \
                  echo x > /tmp/x && cat /tmp/x && echo x > /dev/null && echo y > /dev/shm/y && cat /tmp/y";
    succeeded(&bench.run(&bench.sh(script)).await, "x\ny");
}

#[tokio::test]
async fn tmp_is_bounded() {
    let Some(bench) = Bench::new("tmp") else { return };
    let outcome = bench.run(&bench.sh("dd if=/dev/zero of=/tmp/big bs=64k count=100 2>/dev/null; stat -c %s /tmp/big")).await;
    succeeded(&outcome, "4194304");
}

#[tokio::test]
async fn memory_is_bounded() {
    let Some(bench) = Bench::new("memory") else { return };
    let outcome = bench.run(&bench.python("x = b'x' * (200 << 20); print(len(x))")).await;
    assert_eq!(outcome.exit.death, Death::Signalled { signal: 9 }, "{outcome:?}");
    assert!(0 < outcome.exit.memory_kills, "{outcome:?}");
}

#[tokio::test]
async fn a_fork_bomb_stops_at_the_limit_and_dies_with_its_instance() {
    let Some(bench) = Bench::new("forks") else { return };
    let script = "
import os, time
n = 0
try:
    while True:
        if os.fork() == 0: time.sleep(60)
        n += 1
except BlockingIOError:
    print(n)
";
    let outcome = bench.run(&bench.python(script)).await;
    let children: u32 = outcome.out.trim().parse().unwrap();
    assert!((32..64).contains(&children), "{outcome:?}");
    assert_eq!(outcome.exit.death, Death::Exited { code: 0 });
}

#[tokio::test]
async fn it_gains_no_class_priority_or_core() {
    let Some(bench) = Bench::new("class") else { return };
    let script = "
import os
def refused(call, *args):
    try: call(*args)
    except OSError: return
    print('allowed', call.__name__, args)
for policy in (os.SCHED_FIFO, os.SCHED_RR):
    refused(os.sched_setscheduler, 0, policy, os.sched_param(1))
refused(os.setpriority, os.PRIO_PROCESS, 0, -5)
refused(os.setpriority, os.PRIO_PROCESS, 0, 5)
refused(os.sched_setaffinity, 0, {0})
refused(os.sched_setparam, 0, os.sched_param(0))
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
";
    succeeded(&bench.run(&bench.python(script)).await, "");
}

#[tokio::test]
async fn the_filter_refuses_what_it_names() {
    let Some(bench) = Bench::new("filter") else { return };
    let script = "
import ctypes, errno, socket, subprocess
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    result = getattr(libc, name)(*args)
    return errno.errorcode.get(ctypes.get_errno(), '?') if result == -1 else 'allowed'
print(call('mount', b'none', b'/tmp', b'tmpfs', 0, None), call('umount2', b'/tmp', 2), call('unshare', 0x10000000),
      call('setns', 0, 0), call('ptrace', 0, 0, 0, 0), call('chroot', b'/tmp'), call('setuid', 0))
numbers = {'keyctl': 250, 'bpf': 321, 'userfaultfd': 323, 'perf_event_open': 298, 'io_uring_setup': 425, 'kexec_load': 246, 'clone3': 435}
print(*[errno.errorcode.get((libc.syscall(n, 0, 0, 0, 0, 0), ctypes.get_errno())[1], '?') for n in numbers.values()])
for family, kind, protocol in [(socket.AF_PACKET, socket.SOCK_RAW, 0), (socket.AF_INET, socket.SOCK_RAW, 1), (socket.AF_NETLINK, socket.SOCK_RAW, 9),
                               (socket.AF_VSOCK, socket.SOCK_STREAM, 0)]:
    try: socket.socket(family, kind, protocol); print('allowed', family)
    except PermissionError: pass
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); socket.socket(socket.AF_INET, socket.SOCK_STREAM); socket.socketpair()
print(subprocess.run(['/bin/echo', 'children work'], capture_output=True, text=True).stdout.strip())
";
    let outcome = bench.run(&bench.python(script)).await;
    let expected = "EPERM EPERM EPERM EPERM EPERM EPERM EPERM\n\
                    EPERM EPERM EPERM EPERM ENOSYS EPERM ENOSYS\nchildren work";
    succeeded(&outcome, expected);
}

#[tokio::test]
async fn it_reaches_its_own_runtime_api_and_nobody_elses() {
    let Some(bench) = Bench::new("net") else { return };
    let host = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = host.local_addr().unwrap().port();
    let script = format!(
        "
import socket, os
s = socket.create_connection(('127.0.0.1', 9001), 5); s.sendall(b'x')
try: socket.create_connection(('127.0.0.1', {port}), 1); print('reached the host')
except ConnectionRefusedError: pass
try: socket.create_connection(('10.0.0.1', 80), 1); print('reached a network')
except OSError as e: pass
try: socket.create_server(('127.0.0.1', 9001)); print('took the port')
except OSError: pass
print(sorted(name for _, name in socket.if_nameindex()))
"
    );
    let started = bench.client.start(&bench.python(&script)).await.unwrap();
    let listener = tokio::net::TcpListener::from_std(started.listener.try_clone().unwrap()).unwrap();
    let (_connection, from) = listener.accept().await.unwrap();
    assert!(from.ip().is_loopback());
    succeeded(&finish(started).await, "['lo']");
}

#[tokio::test]
async fn a_tun_device_carries_what_it_sends() {
    let Some(bench) = Bench::new("tun") else { return };
    if !Path::new("/dev/net/tun").exists() {
        return println!("skipped: no /dev/net/tun");
    }
    let script = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(b'out of the box', ('192.0.2.1', 7))
print(open('/etc/resolv.conf').readline().strip())
";
    let mut launch = bench.python(script);
    launch.network = Network::Tun;
    let mut started = bench.client.start(&launch).await.unwrap();
    let tun = takt_runtime::sys::watch(started.tun.take().unwrap()).unwrap();
    loop {
        let mut packet = [0_u8; 2048];
        let mut ready = tun.readable().await.unwrap();
        let Ok(count) = ready.try_io(|tun| Ok(rustix::io::read(tun.get_ref(), &mut packet)?)) else { continue };
        let packet = &packet[..count.unwrap()];
        if packet.ends_with(b"out of the box") {
            assert_eq!(packet[12..20], [10, 0, 2, 100, 192, 0, 2, 1]);
            break;
        }
    }
    succeeded(&finish(started).await, "nameserver 10.0.2.3");
}

#[tokio::test]
async fn ignoring_a_signal_does_not_help() {
    let Some(bench) = Bench::new("sigterm") else { return };
    let started = bench.client.start(&bench.sh("trap '' TERM INT HUP; sh -c 'sleep 60' & echo ready; sleep 60")).await.unwrap();
    started.handle.kill().unwrap();
    let outcome = finish(started).await; // the pipes end only when all its processes are dead
    assert_eq!(outcome.exit.death, Death::Signalled { signal: 9 });
}

#[tokio::test]
async fn dropping_what_was_started_kills_it() {
    let Some(bench) = Bench::new("drop") else { return };
    let Started { handle, exit, .. } = bench.client.start(&bench.sh("sleep 60")).await.unwrap();
    drop(handle);
    assert_eq!(exit.await.unwrap().death, Death::Signalled { signal: 9 });
}

#[tokio::test]
async fn a_real_time_instance_is_pinned_and_its_children_are_ordinary() {
    let Some(bench) = Bench::new("rt") else { return };
    if sched::probe_fifo(5) != sched::RealTime::Works {
        return println!("skipped: no real-time class");
    }
    let core = sched::cores().unwrap()[0];
    let mut launch = bench.sh("read line < /tmp/never || true; sleep 60");
    launch.placement = Placement::Pinned { core };
    let started = bench.client.start(&launch).await.unwrap();
    assert_eq!(sched::class_of(started.program).unwrap(), Some(Class::Other { nice: 0 }));
    started.place(Placement::RealTime { core, priority: 5 }).unwrap();
    assert_eq!(sched::class_of(started.program).unwrap(), Some(Class::Fifo { priority: 5 }));
    started.place(Placement::BestEffort).unwrap();
    assert_eq!(sched::class_of(started.program).unwrap(), Some(Class::Other { nice: 19 }));

    let mut launch =
        bench.python("import os; print(os.sched_getaffinity(0), flush=True); os.system('chrt -p $$ | head -1 | cut -d: -f2')");
    launch.placement = Placement::RealTime { core, priority: 5 };
    let outcome = bench.run(&launch).await;
    succeeded(&outcome, &format!("{{{core}}}\n SCHED_OTHER"));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let Some(bench) = Bench::new("missing") else { return };
    let error = bench.client.start(&bench.launch(&["/var/task/bootstrap"])).await.unwrap_err();
    let Error::Failed { source } = error else { panic!("{error}") };
    assert_eq!(source.step, Step::Start);
    assert_eq!(source.to_string(), "sandbox step Start, /var/task/bootstrap: No such file or directory (os error 2)");
    let mut launch = bench.sh("true");
    launch.code = PathBuf::from("/nonexistent/code");
    let error = bench.client.start(&launch).await.unwrap_err();
    let Error::Failed { source } = error else { panic!("{error}") };
    assert_eq!(source.to_string(), "sandbox step Mounts, /nonexistent/code: No such file or directory (os error 2)");
}

#[tokio::test]
async fn orphans_are_reaped_and_an_exit_code_is_kept() {
    let Some(bench) = Bench::new("reap") else { return };
    let script = "
import os, time
if os.fork() == 0:
    if os.fork() == 0: os._exit(0)
    os._exit(0)
os.wait()
def zombies():
    for p in os.listdir('/proc'):
        try:
            if p.isdigit() and open(f'/proc/{p}/stat').read().split()[2] == 'Z': return True
        except FileNotFoundError: pass
while zombies(): time.sleep(0.001)
os._exit(7)
";
    let outcome = bench.run(&bench.python(script)).await;
    assert_eq!(outcome.exit.death, Death::Exited { code: 7 }, "{outcome:?}");
}

#[tokio::test]
async fn many_start_at_once() {
    let Some(bench) = Bench::new("many") else { return };
    let launch = bench.sh("exec sleep 60");
    let mut starts = JoinSet::new();
    for _ in 0..20 {
        let (client, launch) = (bench.client.clone(), launch.clone());
        starts.spawn(async move { client.start(&launch).await.unwrap() });
    }
    let started = starts.join_all().await;
    println!("first {:?}\nlast {:?}", started[0].timing, started[19].timing);
    let mut programs: Vec<_> = started.iter().map(|started| started.program.as_raw_nonzero()).collect();
    programs.sort();
    programs.dedup();
    assert_eq!(programs.len(), 20);
}

/// Set to the part this test program plays when it is started again.
const ROLE: &str = "TAKT_TEST_ROLE";

/// Starts this program again as one of its tests, in a role.
fn again(role: &str) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", role, "--nocapture", "--test-threads=1"]).env(ROLE, role);
    command
}

fn in_role(role: &str) -> bool {
    std::env::var_os(ROLE).is_some_and(|value| value == role)
}

/// Waits until a process is dead.
async fn died(process: i32) {
    let pidfd = Pidfd::open(rustix::process::Pid::from_raw(process).unwrap());
    let Ok(pidfd) = pidfd else { return };
    let watched = takt_runtime::sys::watch(pidfd).unwrap();
    tokio::time::timeout(std::time::Duration::from_secs(20), watched.readable()).await.unwrap().unwrap().retain_ready();
}

/// Not a claim: the daemon that the next test kills.
#[tokio::test]
async fn role_daemon() {
    if !in_role("role_daemon") {
        return;
    }
    let bench = Bench::new("daemon").unwrap();
    let script = "trap '' TERM HUP; (trap '' TERM HUP; sleep 1000) & sleep 1000";
    let started = [bench.client.start(&bench.sh(script)).await.unwrap(), bench.client.start(&bench.sh(script)).await.unwrap()];
    println!("\nprograms {} {}", started[0].program.as_raw_nonzero(), started[1].program.as_raw_nonzero());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn when_the_daemon_dies_every_instance_dies() {
    if Bench::new("death").is_none() {
        return;
    }
    let mut daemon = again("role_daemon").stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufReader::new(daemon.stdout.take().unwrap()).lines().map_while(Result::ok);
    let line = lines.find_map(|line| line.strip_prefix("programs ").map(str::to_owned)).unwrap();
    let programs: Vec<i32> = line.split(' ').map(|pid| pid.parse().unwrap()).collect();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    for program in programs {
        died(program).await;
    }
}

#[tokio::test]
async fn when_the_launcher_dies_every_instance_dies() {
    if Bench::new("orphaned").is_none() {
        return;
    }
    let (client, service, _) = launcher::spawn(&options("killed")).unwrap();
    let launcher = Pidfd::open(service.process()).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(service.run());
    let bench = Bench::new("lender").unwrap();
    let launch = bench.sh("trap '' TERM; sleep 60");
    let started = client.start(&launch).await.unwrap();
    launcher.kill().unwrap();
    started.exit.await.unwrap_err();
    died(started.program.as_raw_nonzero().get()).await;
    assert!(matches!(client.start(&launch).await, Err(Error::Gone)));
    // What it left behind is removed by the next launcher of that name.
    let (_, service, _) = launcher::spawn(&options("killed")).unwrap();
    drop(service);
}

/// Not a claim: what the next test runs as a user without rights.
#[tokio::test]
async fn role_unprivileged() {
    if !in_role("role_unprivileged") {
        return;
    }
    let (client, service, standing) = launcher::spawn(&options("unprivileged")).unwrap();
    assert_eq!(standing.users, launcher::Users::Shared);
    assert!(standing.no_real_time.unwrap().contains("Operation not permitted"));
    let no_groups = standing.no_groups.unwrap();
    assert!(no_groups.contains("no control-group hierarchy with memory"), "{no_groups}");
    let mut tasks = JoinSet::new();
    tasks.spawn(service.run());
    let package = tempfile::tempdir().unwrap();
    let sh = |script: &str| Launch {
        argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]),
        code: package.path().to_owned(),
        bootstrap: None,
        extra: Vec::new(),
        memory: Memory::from_mib(64).unwrap(),
        pids: 16,
        tmp_bytes: 1 << 20,
        placement: Placement::BestEffort,
        quota: None,
        network: Network::Loopback,
    };
    let run = async |script: &str| finish(client.start(&sh(script)).await.unwrap()).await;
    let rights = "id -u; grep -E '^(Cap(Prm|Bnd)|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t\\n'";
    let expected = "993\nCapPrm:0000000000000000CapBnd:0000000000000000NoNewPrivs:1Seccomp:2";
    succeeded(&run(rights).await, expected);
    let fenced = "for d in / /var/task /usr /etc /proc; do (echo x > $d/x) 2>/dev/null && echo wrote $d; done; echo /proc/[0-9]*";
    succeeded(&run(fenced).await, "/proc/1 /proc/2");
    let memory = run("dd if=/dev/zero of=/dev/null bs=200M count=1 2>&1 | grep -o 'memory exhausted'").await;
    succeeded(&memory, "memory exhausted by input buffer of size 209715200 bytes (200 MiB)".split(" by").next().unwrap());
    let forks = run("i=0; while [ $i -lt 40 ]; do sleep 60 & i=$((i+1)); done; echo unreached").await;
    assert!(forks.err.contains("fork") && !forks.out.contains("unreached"), "{forks:?}");
    let started = client.start(&sh("trap '' TERM; sleep 60")).await.unwrap();
    started.handle.kill().unwrap();
    assert_eq!(finish(started).await.exit.death, Death::Signalled { signal: 9 });
    println!("\nunprivileged works");
}

#[tokio::test]
async fn without_root_user_namespaces_protect() {
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: not root, so the test runs by itself only");
    }
    let place = tempfile::tempdir().unwrap();
    readable(place.path());
    let copy = |from: &Path| {
        let to = place.path().join(from.file_name().unwrap());
        std::fs::copy(from, &to).unwrap();
        to
    };
    let program = copy(&std::env::current_exe().unwrap());
    let output = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(program)
        .args(["--exact", "role_unprivileged", "--nocapture"])
        .env(ROLE, "role_unprivileged")
        .env("TAKT_TEST_LAUNCHER", copy(Path::new(env!("CARGO_BIN_EXE_takt-launcher"))))
        .current_dir("/")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if text.contains("UserNamespace") || text.contains("step Clone") {
        return println!("skipped: {text}");
    }
    assert!(text.contains("unprivileged works"), "{text}");
}

#[tokio::test]
async fn a_quota_bounds_cpu() {
    use std::time::Duration;
    let Some(bench) = Bench::new("quota") else { return };
    let script = "
import time
cpu, wall = time.process_time(), time.monotonic()
while time.monotonic() < wall + 0.5: pass
print('bounded' if time.process_time() - cpu < 0.2 else 'free')
";
    let mut launch = bench.python(script);
    launch.quota = Some(launcher::Quota { runtime: Duration::from_millis(2), period: Duration::from_millis(10) });
    succeeded(&bench.run(&launch).await, "bounded");
    launch.placement = Placement::Weighted { core: sched::cores().unwrap()[0] };
    succeeded(&bench.run(&launch).await, "bounded");
}

#[tokio::test]
async fn best_effort_is_as_nice_as_can_be_and_a_guaranteed_instance_is_not() {
    let Some(bench) = Bench::new("nice") else { return };
    let mut launch = bench.python("import os; print('nice', os.nice(0))");
    succeeded(&bench.run(&launch).await, "nice 19");
    launch.placement = Placement::Weighted { core: sched::cores().unwrap()[0] };
    succeeded(&bench.run(&launch).await, "nice 0");
}

#[tokio::test]
async fn signals_to_the_daemons_whole_group_do_not_end_the_launcher() {
    if Bench::new("signals").is_none() {
        return;
    }
    let (client, service, _) = launcher::spawn(&options("group")).unwrap();
    let launcher = Pidfd::open(service.process()).unwrap();
    assert_eq!(rustix::process::getsid(Some(service.process())).unwrap(), service.process());
    let mut tasks = JoinSet::new();
    tasks.spawn(service.run());
    let bench = Bench::new("group-lender").unwrap();
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT, rustix::process::Signal::HUP] {
        launcher.signal(signal).unwrap();
    }
    // The program's own signals have their usual meaning.
    let outcome = finish(client.start(&bench.sh("kill -TERM $$; echo unreached")).await.unwrap()).await;
    assert_eq!(outcome.exit.death, Death::Signalled { signal: 15 }, "{outcome:?}");
}

#[tokio::test]
async fn node_runs_and_all_its_threads_change_class() {
    let Some(bench) = Bench::new("node") else { return };
    let node = match sandbox::interpreter(Language::Nodejs, Path::new("node")) {
        Ok(node) => node,
        Err(error) => return println!("skipped: {error}"),
    };
    let script =
        "const s = require('net').connect(9001, '127.0.0.1', () => s.write('ready')); s.on('close', () => console.log(6 * 7))";
    let mut launch = bench.launch(&[node.program.to_str().unwrap(), "-e", script]);
    launch.extra = node.paths;
    launch.memory = Memory::from_mib(256).unwrap();
    launch.placement = Placement::Pinned { core: sched::cores().unwrap()[0] };
    let started = bench.client.start(&launch).await.unwrap();
    let listener = tokio::net::TcpListener::from_std(started.listener.try_clone().unwrap()).unwrap();
    let (mut connection, _) = listener.accept().await.unwrap();
    if sched::probe_fifo(5) == sched::RealTime::Works {
        let threads = started.place(Placement::RealTime { core: sched::cores().unwrap()[0], priority: 5 }).unwrap();
        assert!(1 < threads.len(), "node has threads of its own");
        for entry in std::fs::read_dir(format!("/proc/{}/task", started.program.as_raw_nonzero())).unwrap() {
            let thread = entry.unwrap().file_name().to_str().unwrap().parse().unwrap();
            let class = sched::class_of(rustix::process::Pid::from_raw(thread).unwrap()).unwrap();
            assert_eq!(class, Some(Class::Fifo { priority: 5 }));
        }
    }
    let mut greeting = [0; 5];
    tokio::io::AsyncReadExt::read_exact(&mut connection, &mut greeting).await.unwrap();
    drop(connection);
    succeeded(&finish(started).await, "42");
}

/// Reads one HTTP request, head and body, as text.
async fn request(connection: &mut tokio::net::TcpStream) -> String {
    use tokio::io::AsyncReadExt;
    let mut text = String::new();
    loop {
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
            if length.unwrap_or(0) <= body.len() {
                return format!("{head}\n{}", &body[..length.unwrap_or(0)]);
            }
        }
        let mut bytes = [0; 4096];
        let count = connection.read(&mut bytes).await.unwrap();
        assert!(0 < count, "the connection ended after `{text}`");
        text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
}

/// Serves one invocation by hand and returns the request with its result.
async fn serve_one(listener: std::net::TcpListener) -> String {
    use tokio::io::AsyncWriteExt;
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let (mut connection, _) = listener.accept().await.unwrap();
    loop {
        let asked = request(&mut connection).await;
        if asked.starts_with("POST") {
            return asked;
        }
        assert!(asked.starts_with("GET /2018-06-01/runtime/invocation/next"), "{asked}");
        let invocation = "HTTP/1.1 200 OK\r\nLambda-Runtime-Aws-Request-Id: 00000000-0000-4000-8000-000000000001\r\n\
                          Lambda-Runtime-Deadline-Ms: 4102444800000\r\nLambda-Runtime-Invoked-Function-Arn: arn\r\n\
                          Content-Type: application/json\r\nContent-Length: 7\r\n\r\n{\"x\":6}";
        connection.write_all(invocation.as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn our_runtime_clients_serve_from_inside() {
    let Some(bench) = Bench::new("clients") else { return };
    let clients = tempfile::tempdir().unwrap();
    takt_runtime::bootstrap::install(clients.path()).unwrap();
    std::fs::write(bench.package.path().join("py.py"), "def handler(event, context): return event['x'] * 7").unwrap();
    std::fs::write(bench.package.path().join("js.js"), "exports.handler = async (event) => event.x * 7").unwrap();
    for (language, name, file, handler) in [
        (Language::Python, "python3", takt_runtime::bootstrap::PYTHON_FILE, "py.handler"),
        (Language::Nodejs, "node", takt_runtime::bootstrap::NODEJS_FILE, "js.handler"),
    ] {
        let interpreter = match sandbox::interpreter(language, Path::new(name)) {
            Ok(interpreter) => interpreter,
            Err(error) => {
                println!("skipped: {error}");
                continue;
            }
        };
        let script = format!("{}/{file}", sandbox::BOOTSTRAP);
        let mut launch = bench.launch(&[interpreter.program.to_str().unwrap(), &script]);
        launch.bootstrap = Some(clients.path().to_owned());
        launch.extra = interpreter.paths;
        launch.memory = Memory::from_mib(256).unwrap();
        for (key, value) in [
            ("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9001"),
            ("_HANDLER", handler),
            ("LAMBDA_TASK_ROOT", sandbox::CODE),
            ("AWS_LAMBDA_FUNCTION_NAME", "f"),
            ("AWS_LAMBDA_FUNCTION_VERSION", "1"),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256"),
            ("AWS_LAMBDA_LOG_GROUP_NAME", "g"),
            ("AWS_LAMBDA_LOG_STREAM_NAME", "s"),
        ] {
            launch.env.insert(key.to_owned(), value.to_owned());
        }
        let started = bench.client.start(&launch).await.unwrap();
        let answer = serve_one(started.listener.try_clone().unwrap()).await;
        assert!(answer.ends_with("\n42"), "{answer}");
    }
}

/// An address of this machine other than loopback, and a listener there.
fn reachable() -> Option<std::net::TcpListener> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("198.51.100.1:9").ok()?; // chooses a route, sends nothing
    std::net::TcpListener::bind((socket.local_addr().ok()?.ip(), 0)).ok()
}

#[tokio::test]
async fn what_goes_out_passes_the_forwarder() {
    use takt_runtime::forward::{self, Policy};
    let Some(bench) = Bench::new("outbound") else { return };
    let (Some(peer), Some(node)) = (reachable(), reachable()) else {
        return println!("skipped: this machine has no address besides loopback");
    };
    let (peer, node_at) = (tokio_listener(peer), node.local_addr().unwrap());
    let peer_at = peer.local_addr().unwrap();
    let script = format!(
        "
import socket
s = socket.create_connection(('{}', {}), 10); s.sendall(b'hello out there'); print(s.recv(100).decode())
try: heard = socket.create_connection(('{}', {}), 10).recv(100)
except ConnectionError: heard = b''
print('from the node', heard)
",
        peer_at.ip(),
        peer_at.port(),
        node_at.ip(),
        node_at.port()
    );
    let mut launch = bench.python(&script);
    launch.network = Network::Tun;
    let mut started = bench.client.start(&launch).await.unwrap();
    let policy = Policy::new(model::Outbound::All, sandbox::TUN_RESOLVER, None, node_at, forward::is_this_machine);
    let mut tasks = JoinSet::new();
    let sockets = forward::Sockets::new(8).share("outbound".parse().unwrap());
    tasks.spawn(forward::run(started.tun.take().unwrap(), std::sync::Arc::new(policy), sockets));
    let (mut connection, _) = peer.accept().await.unwrap();
    let mut heard = [0; 15];
    tokio::io::AsyncReadExt::read_exact(&mut connection, &mut heard).await.unwrap();
    assert_eq!(&heard, b"hello out there");
    tokio::io::AsyncWriteExt::write_all(&mut connection, b"heard you").await.unwrap();
    drop(connection);
    succeeded(&finish(started).await, "heard you\nfrom the node b''");
    node.set_nonblocking(true).unwrap();
    assert_eq!(node.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_function_that_connects_without_end_is_refused_at_the_limit_and_goes_on_below_it() {
    use takt_runtime::forward::{self, Policy};
    let Some(bench) = Bench::new("sockets") else { return };
    let Some(peer) = reachable() else { return println!("skipped: this machine has no address besides loopback") };
    let peer_at = peer.local_addr().unwrap();
    let script = format!(
        "
import socket
def connect():
    try: return socket.create_connection(('{}', {}), 10)
    except ConnectionError: return None
kept = [connect() for _ in range(9)]
print(sum(one is not None for one in kept))
for one in kept:
    if one is not None: one.close()
while True:
    one = connect()
    if one is not None: break
print('again')
",
        peer_at.ip(),
        peer_at.port()
    );
    let mut launch = bench.python(&script);
    launch.network = Network::Tun;
    let mut started = bench.client.start(&launch).await.unwrap();
    let elsewhere = "192.0.2.1:9".parse().unwrap();
    let policy = Policy::new(model::Outbound::All, sandbox::TUN_RESOLVER, None, elsewhere, |_| false);
    let mut tasks = JoinSet::new();
    let sockets = forward::Sockets::new(8).share("sockets".parse().unwrap());
    tasks.spawn(forward::run(started.tun.take().unwrap(), std::sync::Arc::new(policy), sockets));
    let peer = tokio_listener(peer);
    // What was closed on both sides is no longer held.
    tasks.spawn(async move {
        let mut ends = JoinSet::new();
        loop {
            let (mut connection, _) = peer.accept().await?;
            ends.spawn(async move { tokio::io::AsyncReadExt::read(&mut connection, &mut [0; 1]).await });
        }
    });
    succeeded(&finish(started).await, "4\nagain");
}

fn tokio_listener(listener: std::net::TcpListener) -> tokio::net::TcpListener {
    listener.set_nonblocking(true).unwrap();
    tokio::net::TcpListener::from_std(listener).unwrap()
}

#[tokio::test]
async fn a_daemon_with_a_strict_umask_makes_usable_instances() {
    let launcher = env!("CARGO_BIN_EXE_takt-launcher").to_owned();
    let arguments = vec!["-c".to_owned(), "umask 077; exec \"$0\"".to_owned(), launcher];
    let strict = Options { program: PathBuf::from("/bin/sh"), arguments, ..options("umask") };
    let Some(bench) = Bench::with(&strict) else { return };
    succeeded(
        &bench.run(&bench.sh("head -1 /etc/passwd; echo x > /dev/null; umask")).await,
        "root:x:0:0:root:/root:/sbin/nologin\n0022",
    );
}

#[tokio::test]
async fn real_time_programs_that_loop_on_every_core_die_when_killed() {
    let Some(bench) = Bench::new("loop") else { return };
    if sched::probe_fifo(6) != sched::RealTime::Works {
        return println!("skipped: no real-time class");
    }
    let mut started = Vec::new();
    for core in sched::cores().unwrap() {
        let mut launch = bench.sh("while :; do :; done");
        launch.placement = Placement::Pinned { core };
        started.push((core, bench.client.start(&launch).await.unwrap()));
    }
    let meter = started[0].1.cpu_meter();
    sched::set_current(Class::Fifo { priority: 6 }).unwrap();
    for (core, instance) in &started {
        instance.place(Placement::RealTime { core: *core, priority: 5 }).unwrap();
    }
    let before = meter.used().unwrap();
    for (_, instance) in &started {
        instance.handle.kill().unwrap();
    }
    sched::set_current(Class::Other { nice: 0 }).unwrap();
    // Were only init killed, which is not real-time, the programs would loop on until the kernel's throttle let it run.
    let (_, first) = started.swap_remove(0);
    let used = finish(first).await.exit.cpu.unwrap().saturating_sub(before);
    assert!(used < std::time::Duration::from_millis(100), "{used:?} of CPU after the kill");
}
