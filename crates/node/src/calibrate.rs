//! What this machine costs and how punctual it is, measured at start and then frozen.
//!
//! The measurement runs the path an invocation takes, with the same codec, thread classes and cores: a client's request over
//! loopback, the front's parse and hand-over, an instance's thread that wakes and reads it. Meanwhile every core is kept busy
//! by threads of ordinary class, so that what is measured is the tolerance under load.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use model::Time;
use runtime::http1::{After, Connection, Limits};
use runtime::sys::{clock, sched};

use crate::probe::{self, Gap, Probes, Pulses};
use crate::{front_cost, lane};

/// Invocations measured over all cores, one a millisecond, and on each at least.
const ROUNDS: u32 = 800;
const ROUNDS_PER_CORE: u32 = 60;
/// Threads of ordinary class that load each core meanwhile.
const HOGS_PER_CORE: usize = 2;
/// Priority of the measuring instance: the highest an instance can have.
const INSTANCE_PRIORITY: u8 = 60;
/// What is added to twice the measured maximum: a runtime's way from waking to its handler, which differs by runtime.
pub(crate) const ENTRY: Duration = Duration::from_millis(1);
/// No tolerance below this is promised, however well the start went.
const LEAST: Duration = Duration::from_millis(2);
const LIMITS: Limits = Limits { head_bytes: 8 << 10, headers: 32 };
const REQUEST: &[u8] = b"POST /calibrate HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{}";

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// What it was measured with.
    pub classes: Classes,
    /// T: twice the worst dispatch seen under load, and a millisecond for the way from waking to the handler.
    pub tolerance: Duration,
    /// The worst dispatch seen, from the complete request to the instance's thread holding it.
    pub worst: Duration,
    /// CPU time of the guaranteed lane's thread.
    pub front: front_cost::Costs,
    /// Samples left out because a probe saw their core taken away meanwhile.
    pub excluded: u32,
}

/// Measures with real-time classes where `real_time`, else with ordinary ones.
pub fn measure(cores: &[u16], classes: Classes) -> io::Result<Measured> {
    let gaps: Arc<Mutex<Vec<Gap>>> = Arc::default();
    let noted = Arc::clone(&gaps);
    // This list is taken by probes and read after they ended; the measurement's other threads never touch it.
    let probes = Probes::start(cores, &Arc::new(Pulses::new(cores.len())), move |gap| {
        if let Ok(mut gaps) = noted.lock() {
            gaps.push(gap);
        }
    })?;
    let stop = Arc::new(AtomicBool::new(false));
    let hogs: Vec<_> = (0..cores.len() * HOGS_PER_CORE).map(|_| hog(&stop)).collect();
    let mut samples = Vec::new();
    let mut failed = None;
    for &core in cores {
        match round((cores[0], core), classes, rounds(cores.len())) {
            Ok(measured) => samples.extend(measured.into_iter().map(|sample| (core, sample))),
            Err(error) => failed = Some(error),
        }
    }
    let front = front_cost::measure(cores, classes);
    stop.store(true, Ordering::Relaxed);
    for hog in hogs {
        hog.join().map_err(|_| io::Error::other("a thread of the measurement panicked"))?;
    }
    drop(probes);
    if let Some(error) = failed {
        return Err(error);
    }
    let gaps = gaps.lock().map_err(|_| io::Error::other("a probe panicked"))?;
    Ok(conclude(classes, &samples, &gaps, front?))
}

/// The classes the measurement runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Classes {
    RealTime,
    Ordinary,
}

/// One dispatch: when the request was complete and when the instance held it.
#[derive(Clone, Copy, Debug)]
struct Sample {
    from: Time,
    until: Time,
}

fn conclude(classes: Classes, samples: &[(u16, Sample)], gaps: &[Gap], front: front_cost::Costs) -> Measured {
    let mut worst = Duration::ZERO;
    let mut excluded = 0;
    for (core, sample) in samples {
        let stolen = gaps
            .iter()
            .any(|gap| (gap.core == *core || gap.core == samples[0].0) && gap.from < sample.until && sample.from < gap.until);
        if stolen {
            excluded += 1;
        } else {
            worst = worst.max(sample.until.since(sample.from));
        }
    }
    Measured { classes, tolerance: (worst * 2 + ENTRY).max(LEAST), worst, front, excluded }
}

fn hog(stop: &Arc<AtomicBool>) -> thread::JoinHandle<()> {
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        let mut memory = vec![0_u64; 1 << 15];
        let mut at = 0_usize;
        while !stop.load(Ordering::Relaxed) {
            at = (at.wrapping_mul(25_214_903_917).wrapping_add(11)) % memory.len();
            memory[at] = memory[at].wrapping_add(1);
        }
    })
}

fn rounds(cores: usize) -> u32 {
    (ROUNDS / u32::try_from(cores).unwrap_or(u32::MAX)).max(ROUNDS_PER_CORE)
}

/// Runs the measured path with the front on one core and the instance on another (or the same).
fn round((front_core, instance_core): (u16, u16), classes: Classes, rounds: u32) -> io::Result<Vec<Sample>> {
    let stamp = Arc::new(AtomicU64::new(0));
    let for_clients = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let for_instances = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let (client_address, instance_address) = (for_clients.local_addr()?, for_instances.local_addr()?);
    thread::scope(|scope| {
        let instance_stamp = Arc::clone(&stamp);
        let instance = scope.spawn(move || play_instance(instance_address, (instance_core, classes), rounds, &instance_stamp));
        let front = scope.spawn(move || play_front((for_clients, for_instances), (front_core, classes), rounds, &stamp));
        let client = scope.spawn(move || play_client(client_address, classes, rounds));
        let ended = |_| io::Error::other("a thread of the measurement panicked");
        client.join().map_err(ended)??;
        front.join().map_err(ended)??;
        instance.join().map_err(ended)?
    })
}

fn take_class(classes: Classes, core: u16, priority: u8) -> io::Result<()> {
    match classes {
        Classes::Ordinary => Ok(()),
        Classes::RealTime => {
            sched::set_cores(sched::current_thread(), &[core]).map_err(io::Error::other)?;
            sched::set_current(sched::Class::Fifo { priority }).map_err(io::Error::other)
        }
    }
}

fn play_client(front: SocketAddr, classes: Classes, rounds: u32) -> io::Result<()> {
    if classes == Classes::RealTime {
        sched::set_current(sched::Class::Fifo { priority: probe::PRIORITY - 1 }).map_err(io::Error::other)?;
    }
    let mut stream = TcpStream::connect(front)?;
    stream.set_nodelay(true)?;
    let mut answer = [0; 1024];
    let mut due = clock::now() + Duration::from_millis(5);
    for _ in 0..rounds {
        clock::sleep_until(due);
        stream.write_all(REQUEST)?;
        if stream.read(&mut answer)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        due = clock::now().max(due) + Duration::from_micros(700);
    }
    Ok(())
}

fn play_front(
    (clients, instances): (TcpListener, TcpListener),
    (core, classes): (u16, Classes),
    rounds: u32,
    stamp: &AtomicU64,
) -> io::Result<()> {
    take_class(classes, core, lane::PRIORITY)?;
    let (instance, client) = (instances.accept()?.0, clients.accept()?.0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let adopt = |stream: TcpStream| {
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            tokio::net::TcpStream::from_std(stream)
        };
        let (mut client, mut instance) = (Connection::new(adopt(client)?), Connection::new(adopt(instance)?));
        for _ in 0..rounds {
            let Some(next) = instance.read_head(&LIMITS).await.map_err(io::Error::other)? else { break };
            instance.read_body(&next, 1024).await.map_err(io::Error::other)?;
            let Some(parts) = client.read_head(&LIMITS).await.map_err(io::Error::other)? else { break };
            let body = client.read_body(&parts, 1024).await.map_err(io::Error::other)?;
            stamp.store(clock::now().as_nanos(), Ordering::SeqCst);
            instance.write_response(http::Response::new(body), After::KeepAlive).await.map_err(io::Error::other)?;
            let Some(result) = instance.read_head(&LIMITS).await.map_err(io::Error::other)? else { break };
            let body = instance.read_body(&result, 1024).await.map_err(io::Error::other)?;
            client.write_response(http::Response::new(body), After::KeepAlive).await.map_err(io::Error::other)?;
            instance.write_response(http::Response::new(Bytes::new()), After::KeepAlive).await.map_err(io::Error::other)?;
        }
        Ok(())
    })
}

fn play_instance(front: SocketAddr, (core, classes): (u16, Classes), rounds: u32, stamp: &AtomicU64) -> io::Result<Vec<Sample>> {
    take_class(classes, core, INSTANCE_PRIORITY)?;
    let mut stream = TcpStream::connect(front)?;
    stream.set_nodelay(true)?;
    let mut samples = Vec::new();
    let mut answer = [0; 1024];
    for _ in 0..rounds {
        stream.write_all(REQUEST)?;
        if stream.read(&mut answer)? == 0 {
            break;
        }
        let until = clock::now();
        samples.push(Sample { from: Time::from_nanos(stamp.load(Ordering::SeqCst)), until });
        stream.write_all(REQUEST)?;
        if stream.read(&mut answer)? == 0 {
            break;
        }
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_during_a_gap_of_its_core_says_nothing_about_the_platform() {
        let at = Time::from_millis;
        let samples = [(0, Sample { from: at(10), until: at(11) }), (1, Sample { from: at(20), until: at(29) })];
        let gap = Gap { core: 1, from: at(21), until: at(28) };
        let measured = conclude(Classes::RealTime, &samples, &[gap], front_cost::Costs::default());
        assert_eq!((measured.worst, measured.excluded), (Duration::from_millis(1), 1));
        assert_eq!(measured.tolerance, Duration::from_millis(3));
    }

    #[test]
    fn the_measured_path_works_without_any_privilege() {
        let measured = measure(&[0], Classes::Ordinary).unwrap();
        assert!(LEAST <= measured.tolerance);
        assert_eq!(measured.classes, Classes::Ordinary);
        assert!(Duration::ZERO < measured.front.invocation);
    }
}
