//! Connections that a function opens: a forwarder in user space between an instance's TUN device and the network.
//!
//! It works with and without privilege, and it is where `[network] outbound` is enforced: what an instance may not reach, this
//! process never connects to. Only IPv4 is routed into the device; names are resolved through [`dns`], which answers for
//! what the function may reach. Nothing of the node itself can be reached: neither loopback, nor the node's own port at any of
//! the machine's addresses.

mod device;
pub mod dns;
mod packet;
mod policy;
mod sockets;
mod stack;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use device::Device;
use packet::{DATAGRAM_MAX, Packet, Pair};
pub use policy::{Policy, Verdict, is_this_machine, upstream_of};
use sockets::Socket;
pub use sockets::{Share, Sockets};
use stack::{Ends, Piece, Stack};

/// Connections that one instance may have open at once, and as many datagram flows.
pub const FLOWS_MAX: usize = 256;
/// A connection must be made within this time.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// A datagram flow ends when nothing passes for this long.
const FLOW_IDLE: Duration = Duration::from_secs(30);
/// The port on which names are asked for.
const DNS_PORT: u16 = 53;
/// What is carried at once.
const PIECE_BYTES: usize = 16 << 10;
/// Pieces of a connection that may wait in each direction.
const PIECES_MAX: usize = 2;
/// Datagrams of a flow that may wait in each direction; more are lost.
const DATAGRAMS_MAX: usize = 16;
/// Packets that are read before anything else gets its turn.
const PACKETS_AT_ONCE: usize = 64;

/// What became of opening the other side of a connection.
enum Opened {
    Reached(Pair, Ends),
    Refused(Pair),
}

/// What the tasks of one instance's flows share.
#[derive(Clone)]
struct Shared {
    policy: Arc<Policy>,
    sockets: Arc<Share>,
    opened: mpsc::Sender<Opened>,
    answers: mpsc::Sender<(Pair, Vec<u8>)>,
    /// Something moved that the stack waits for.
    moved: Arc<Notify>,
}

impl Shared {
    /// Answers a question for a name: with a refusal, where no socket is left to ask it through.
    async fn resolve(&self, query: &[u8]) -> Option<Vec<u8>> {
        match self.sockets.open() {
            Some(_socket) => self.policy.resolve(query).await,
            None => dns::refusal(query),
        }
    }
}

/// Forwards for one instance until its TUN device is gone. Ends with the instance: dropping the future closes every
/// connection it had. Holds at most [`FLOWS_MAX`] connections of about 100 KB each, and no more sockets than its function's share.
pub async fn run(tun: OwnedFd, policy: Arc<Policy>, sockets: Share) -> io::Result<()> {
    let mut stack = Stack::new(Device::new(tun)?);
    let (opened, mut openings) = mpsc::channel(FLOWS_MAX);
    let (answers, mut datagrams) = mpsc::channel(FLOWS_MAX);
    let shared = Shared { policy, sockets: Arc::new(sockets), opened, answers, moved: Arc::new(Notify::new()) };
    let mut senders: BTreeMap<Pair, mpsc::Sender<Vec<u8>>> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let mut delay = None;
    loop {
        tokio::select! {
            ready = stack.device.readable() => {
                ready?;
                for _ in 0..PACKETS_AT_ONCE {
                    let Some(packet) = stack.device.read()? else { break };
                    match packet::parse(&packet) {
                        Some(Packet::Opening(pair)) => {
                            let is_new = stack.opening(pair, packet);
                            if is_new {
                                tasks.spawn(tcp(pair, shared.clone()));
                            }
                        }
                        Some(Packet::Segment) => stack.take(packet),
                        Some(Packet::Datagram(pair, payload)) => {
                            if let Some(flow) = datagram(&mut senders, pair, payload) {
                                tasks.spawn(udp(pair, flow, shared.clone()));
                            }
                        }
                        None => {}
                    }
                }
            }
            Some(opened) = openings.recv() => match opened {
                Opened::Reached(pair, ends) => stack.reached(pair, ends),
                Opened::Refused(pair) => stack.refused(pair),
            },
            Some((pair, payload)) = datagrams.recv() => {
                if let Some(packet) = packet::reply(pair, &payload) {
                    stack.device.send(&packet);
                }
            }
            () = shared.moved.notified() => {}
            () = tokio::time::sleep(delay.unwrap_or(FLOW_IDLE)) => {}
            // A flow that broke concerns the function, which sees it break.
            Some(_) = tasks.join_next() => {}
        }
        delay = stack.turn();
    }
}

/// Hands a datagram to its flow; returns the receiving end of a new one.
fn datagram(
    senders: &mut BTreeMap<Pair, mpsc::Sender<Vec<u8>>>,
    pair: Pair,
    payload: Vec<u8>,
) -> Option<mpsc::Receiver<Vec<u8>>> {
    if let Some(sender) = senders.get(&pair).filter(|sender| !sender.is_closed()) {
        // A full flow loses the datagram, as any network may.
        let _ = sender.try_send(payload);
        return None;
    }
    senders.retain(|_, sender| !sender.is_closed());
    if FLOWS_MAX <= senders.len() {
        return None;
    }
    let (sender, receiver) = mpsc::channel(DATAGRAMS_MAX);
    let _ = sender.try_send(payload);
    senders.insert(pair, sender);
    Some(receiver)
}

/// Opens the other side of a connection and carries between both.
async fn tcp(pair: Pair, shared: Shared) -> io::Result<()> {
    let to_resolver = pair.to.port() == DNS_PORT && SocketAddr::from(pair.to).ip() == shared.policy.resolver();
    if to_resolver {
        let (ours, theirs) = tokio::io::duplex(PIECE_BYTES);
        let (carried, _) = tokio::join!(carry(pair, theirs, &shared), dns_over_tcp(ours, &shared));
        return carried;
    }
    match open(pair.to.into(), &shared).await {
        Ok((outside, _socket)) => carry(pair, outside, &shared).await,
        Err(error) => {
            // An instance that is gone needs no answer.
            let _ = shared.opened.send(Opened::Refused(pair)).await;
            Err(error)
        }
    }
}

async fn open(target: SocketAddr, shared: &Shared) -> io::Result<(TcpStream, Socket<'_>)> {
    // Whether a name stands for the target is asked through a socket, too.
    let socket = shared.sockets.open().ok_or(io::ErrorKind::QuotaExceeded)?;
    match shared.policy.tcp(target).await {
        Verdict::Refused => return Err(io::ErrorKind::PermissionDenied.into()),
        Verdict::Allowed => {}
    }
    let outside = timeout(CONNECT_WITHIN, TcpStream::connect(target)).await??;
    outside.set_nodelay(true)?;
    Ok((outside, socket))
}

async fn carry(pair: Pair, outside: impl AsyncRead + AsyncWrite, shared: &Shared) -> io::Result<()> {
    let (to_outside, mut from_inside) = mpsc::channel::<Bytes>(PIECES_MAX);
    let (to_inside, from_outside) = mpsc::channel(PIECES_MAX);
    let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
    let ends = Ends { to_outside, from_outside };
    shared.opened.send(Opened::Reached(pair, ends)).await.map_err(|_| broken())?;
    let moved = &shared.moved;
    let (mut reader, mut writer) = tokio::io::split(outside);
    let out = async {
        while let Some(piece) = from_inside.recv().await {
            moved.notify_one();
            writer.write_all(&piece).await?;
        }
        writer.shutdown().await
    };
    let back = async {
        loop {
            let mut piece = BytesMut::with_capacity(PIECE_BYTES);
            let count = tokio::select! {
                count = reader.read_buf(&mut piece) => count?,
                () = to_inside.closed() => return Err(broken()),
            };
            let sent = if count == 0 { Piece::End } else { Piece::Data(piece.freeze()) };
            to_inside.send(sent).await.map_err(|_| broken())?;
            moved.notify_one();
            if count == 0 {
                return Ok(());
            }
        }
    };
    let carried = tokio::try_join!(out, back).map(|_| ());
    drop(to_inside);
    moved.notify_one();
    carried
}

async fn dns_over_tcp(mut inside: impl AsyncRead + AsyncWrite + Unpin, shared: &Shared) -> io::Result<()> {
    loop {
        let length = usize::from(timeout(FLOW_IDLE, inside.read_u16()).await??);
        let mut query = vec![0; length];
        timeout(FLOW_IDLE, inside.read_exact(&mut query)).await??;
        let Some(answer) = shared.resolve(&query).await else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        inside.write_u16(length).await?;
        inside.write_all(&answer).await?;
    }
}

/// Carries the datagrams of one flow until it is idle.
async fn udp(pair: Pair, mut flow: mpsc::Receiver<Vec<u8>>, shared: Shared) -> io::Result<()> {
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    let target = SocketAddr::from(pair.to);
    if pair.to.port() == DNS_PORT && target.ip() == shared.policy.resolver() {
        while let Ok(Some(query)) = timeout(FLOW_IDLE, flow.recv()).await {
            if let Some(answer) = shared.resolve(&query).await {
                shared.answers.send((pair, answer)).await.map_err(gone)?;
            }
        }
        return Ok(());
    }
    match shared.policy.udp(target) {
        Verdict::Refused => return Ok(()),
        Verdict::Allowed => {}
    }
    // Where there is none the flow is lost, as any network may lose it.
    let Some(_socket) = shared.sockets.open() else { return Ok(()) };
    let outside = UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], 0))).await?;
    outside.connect(target).await?;
    let mut back = vec![0; DATAGRAM_MAX + 1];
    loop {
        tokio::select! {
            payload = flow.recv() => match payload {
                Some(payload) => drop(outside.send(&payload).await?),
                None => return Ok(()),
            },
            count = outside.recv(&mut back) => shared.answers.send((pair, back[..count?].to_vec())).await.map_err(gone)?,
            () = tokio::time::sleep(FLOW_IDLE) => return Ok(()),
        }
    }
}
