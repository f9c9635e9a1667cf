//! The connections of one instance, ended here by a TCP of our own and carried on by tasks.
//!
//! A connection is answered only once the other side of it is there: what the function sees of its `connect` is what happened.
//! Everything is bounded: connections, buffers, pieces on their way. A peer that does not read fills them and closes the
//! function's window, nothing else.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Buf, Bytes};
use model::Time;
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr, IpListenEndpoint};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use super::device::Device;
use super::packet::Pair;
use super::{FLOWS_MAX, PIECE_BYTES};
use crate::sandbox::{TUN_ADDRESS, TUN_GATEWAY};
use crate::sys::clock;

/// Bytes of a connection in each direction that wait for the function or for us.
const BUFFER_BYTES: usize = 16 << 10;

/// From outside to the function.
pub(super) enum Piece {
    Data(Bytes),
    /// The peer ended its side. A channel that closes without this is a connection that broke.
    End,
}

/// The stack's ends of a carried connection.
pub(super) struct Ends {
    pub(super) to_outside: mpsc::Sender<Bytes>,
    pub(super) from_outside: mpsc::Receiver<Piece>,
}

enum Flow {
    /// The function asked, the other side is not there yet; its packet waits.
    Opening(Vec<u8>),
    Open(Open),
}

struct Open {
    socket: SocketHandle,
    /// `None` once the function ended its side.
    to_outside: Option<mpsc::Sender<Bytes>>,
    from_outside: mpsc::Receiver<Piece>,
    /// What the socket did not take yet.
    pending: Bytes,
}

pub(super) struct Stack {
    pub(super) device: Device,
    interface: Interface,
    sockets: SocketSet<'static>,
    flows: BTreeMap<Pair, Flow>,
    started: Time,
}

impl Stack {
    pub(super) fn new(mut device: Device) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = u64::try_from(clock::since_epoch().as_nanos() & u128::from(u64::MAX)).unwrap_or(0);
        let mut interface = Interface::new(config, &mut device, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(TUN_GATEWAY.into(), TUN_ADDRESS.1)).expect("invariant: there is room for one address");
        });
        let routes = interface.routes_mut();
        routes.add_default_ipv4_route(TUN_GATEWAY).expect("invariant: there is room for one route");
        interface.set_any_ip(true);
        Self { device, interface, sockets: SocketSet::new(Vec::new()), flows: BTreeMap::new(), started: clock::now() }
    }

    fn now(&self) -> Instant {
        Instant::from_micros(i64::try_from(clock::now().since(self.started).as_micros()).unwrap_or(i64::MAX))
    }

    /// Takes the first packet of a connection. Returns whether somebody has to open its other side.
    pub(super) fn opening(&mut self, pair: Pair, packet: Vec<u8>) -> bool {
        match self.flows.get(&pair) {
            Some(Flow::Opening(_)) => false, // the function repeats itself
            Some(Flow::Open(_)) => {
                self.take(packet);
                false
            }
            None if FLOWS_MAX <= self.flows.len() => {
                self.take(packet); // answered with a reset, because nobody listens
                false
            }
            None => {
                self.flows.insert(pair, Flow::Opening(packet));
                true
            }
        }
    }

    /// The other side of a connection is there.
    pub(super) fn reached(&mut self, pair: Pair, ends: Ends) {
        let Some(Flow::Opening(packet)) = self.flows.remove(&pair) else { return };
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER_BYTES]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let endpoint = IpListenEndpoint { addr: Some((*pair.to.ip()).into()), port: pair.to.port() };
        // Port 0 is nothing to listen on; the packet is then answered with a reset.
        let listening = socket.listen(endpoint).is_ok();
        let socket = self.sockets.add(socket);
        self.take(packet);
        if listening && self.sockets.get::<tcp::Socket<'_>>(socket).is_active() {
            let Ends { to_outside, from_outside } = ends;
            let open = Open { socket, to_outside: Some(to_outside), from_outside, pending: Bytes::new() };
            self.flows.insert(pair, Flow::Open(open));
        } else {
            self.sockets.remove(socket);
        }
    }

    /// There is no other side: the function's packet is answered with a reset.
    pub(super) fn refused(&mut self, pair: Pair) {
        if let Some(Flow::Opening(packet)) = self.flows.remove(&pair) {
            self.take(packet);
        }
    }

    /// Has the stack look at a packet of the function.
    pub(super) fn take(&mut self, packet: Vec<u8>) {
        self.device.offer(packet);
        let now = self.now();
        while self.interface.poll_ingress_single(now, &mut self.device, &mut self.sockets) != PollIngressSingleResult::None {}
    }

    /// Moves what can be moved. Returns when to come again at the latest.
    pub(super) fn turn(&mut self) -> Option<Duration> {
        for flow in self.flows.values_mut() {
            if let Flow::Open(open) = flow {
                open.turn(self.sockets.get_mut(open.socket));
            }
        }
        let now = self.now();
        while self.interface.poll_egress(now, &mut self.device, &mut self.sockets) != PollResult::None {}
        let sockets = &mut self.sockets;
        self.flows.retain(|_, flow| match flow {
            Flow::Opening(_) => true,
            Flow::Open(open) => {
                // What waits out late packets elsewhere need not: the other end is in this machine.
                let over =
                    matches!(sockets.get::<tcp::Socket<'_>>(open.socket).state(), tcp::State::Closed | tcp::State::TimeWait);
                if over {
                    sockets.remove(open.socket);
                }
                !over
            }
        });
        self.interface.poll_delay(now, &self.sockets).map(Duration::from)
    }
}

impl Open {
    fn turn(&mut self, socket: &mut tcp::Socket<'_>) {
        while let (true, Some(sender)) = (socket.can_recv(), &self.to_outside) {
            let Ok(place) = sender.try_reserve() else { break };
            let taken = socket.recv(|bytes| {
                let count = bytes.len().min(PIECE_BYTES);
                (count, Bytes::copy_from_slice(&bytes[..count]))
            });
            match taken {
                Ok(piece) => place.send(piece),
                Err(_) => break,
            }
        }
        if self.to_outside.as_ref().is_some_and(mpsc::Sender::is_closed) && socket.can_recv() {
            socket.abort(); // nobody takes what the function still sends
            return;
        }
        let ended = !socket.may_recv() && !socket.can_recv() && socket.state() != tcp::State::SynReceived;
        if ended {
            self.to_outside = None;
        }
        while socket.may_send() {
            if self.pending.is_empty() {
                match self.from_outside.try_recv() {
                    Ok(Piece::Data(piece)) => self.pending = piece,
                    Ok(Piece::End) => return socket.close(),
                    Err(TryRecvError::Empty) => return,
                    Err(TryRecvError::Disconnected) => return socket.abort(),
                }
            }
            match socket.send_slice(&self.pending) {
                Ok(0) | Err(_) => return,
                Ok(count) => self.pending.advance(count),
            }
        }
    }
}
