//! Connections that a function opens: a forwarder in user space between an instance's TUN device and the network.
//!
//! It works with and without privilege, and it is where `[network] outbound` is enforced: what an instance may not reach, this
//! process never connects to. Only IPv4 is routed into the device; names are resolved through [`dns`], which answers for
//! what the function may reach. Nothing of the node itself can be reached: neither loopback, nor the node's own port at any of
//! the machine's addresses.

mod device;
pub mod dns;
mod policy;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use ipstack::{IpStack, IpStackConfig, IpStackStream, IpStackTcpStream, IpStackUdpStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

use device::Device;
pub use policy::{Policy, Verdict, is_this_machine, upstream_of};

/// Connections and datagram flows that one instance may have open at once.
pub const FLOWS_MAX: usize = 256;
/// A connection must be made within this time.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// The close of a flow's inner end is asked for this often, this long apart.
const CLOSE_TRIES_MAX: u32 = 250;
const CLOSE_AGAIN: Duration = Duration::from_millis(20);
/// A datagram flow ends when nothing passes for this long.
const FLOW_IDLE: Duration = Duration::from_secs(30);
/// The largest datagram.
const DATAGRAM_BYTES: usize = 64 << 10;
/// The port on which names are asked for.
const DNS_PORT: u16 = 53;
/// The device's packets, bytes.
const MTU: u16 = 1500;

/// Forwards for one instance until its TUN device is gone. Ends with the instance: dropping the future closes every
/// connection it had.
pub async fn run(tun: OwnedFd, policy: Arc<Policy>) -> io::Result<()> {
    let mut config = IpStackConfig::default();
    config.mtu(MTU).map_err(io::Error::other)?;
    config.udp_timeout(FLOW_IDLE);
    let mut stack = IpStack::new(config, Device::new(tun)?);
    let mut flows = JoinSet::new();
    loop {
        tokio::select! {
            stream = stack.accept() => {
                let Ok(stream) = stream else { return Ok(()) };
                if flows.len() < FLOWS_MAX {
                    let policy = Arc::clone(&policy);
                    // A dropped stream is a reset or an unanswered datagram: what a refusing network does.
                    flows.spawn(async move {
                        match stream {
                            IpStackStream::Tcp(stream) => tcp(Inside::new(stream), &policy).await,
                            IpStackStream::Udp(stream) => udp(stream, &policy).await,
                            IpStackStream::UnknownTransport(_) | IpStackStream::UnknownNetwork(_) => Ok(()),
                        }
                    });
                }
            }
            // A flow that broke concerns the function, which sees it break.
            Some(_) = flows.join_next() => {}
        }
    }
}

/// The inner end of a TCP flow. Its drop waits for a task of the stack, which no thread of a single-threaded runtime may do:
/// it is dropped on a thread that may block.
struct Inside {
    stream: Option<IpStackTcpStream>,
}

impl Inside {
    fn new(stream: IpStackTcpStream) -> Self {
        Self { stream: Some(stream) }
    }

    fn stream(&mut self) -> &mut IpStackTcpStream {
        self.stream.as_mut().expect("invariant: only the drop takes it")
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let (Some(stream), Ok(runtime)) = (self.stream.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn_blocking(move || drop(stream));
        }
    }
}

/// Carries one flow and closes its inner end whatever happened: also a refused connection is made by the stack first, and an
/// end without a close would leave the function waiting.
async fn tcp(mut inside: Inside, policy: &Policy) -> io::Result<()> {
    let carried = carry(inside.stream(), policy).await;
    close(inside.stream()).await?;
    carried
}

/// Closes the inner end. The stack sends the close only when asked while the connection is established and everything is
/// acknowledged, and does not ask again by itself: so we do.
async fn close(inside: &mut IpStackTcpStream) -> io::Result<()> {
    for _ in 0..CLOSE_TRIES_MAX {
        if let Ok(closed) = timeout(CLOSE_AGAIN, inside.shutdown()).await {
            return closed;
        }
    }
    Ok(())
}

async fn carry(inside: &mut IpStackTcpStream, policy: &Policy) -> io::Result<()> {
    let target = inside.peer_addr();
    if target.port() == DNS_PORT && target.ip() == policy.resolver() {
        return dns_over_tcp(inside, policy).await;
    }
    match policy.tcp(target).await {
        Verdict::Refused => return Ok(()),
        Verdict::Allowed => {}
    }
    let mut outside = timeout(CONNECT_WITHIN, TcpStream::connect(target)).await??;
    outside.set_nodelay(true)?;
    tokio::io::copy_bidirectional(inside, &mut outside).await?;
    Ok(())
}

async fn dns_over_tcp(inside: &mut IpStackTcpStream, policy: &Policy) -> io::Result<()> {
    loop {
        let length = usize::from(timeout(FLOW_IDLE, inside.read_u16()).await??);
        let mut query = vec![0; length];
        timeout(FLOW_IDLE, inside.read_exact(&mut query)).await??;
        let Some(answer) = policy.resolve(&query).await else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        inside.write_u16(length).await?;
        inside.write_all(&answer).await?;
    }
}

async fn udp(mut inside: IpStackUdpStream, policy: &Policy) -> io::Result<()> {
    let target = inside.peer_addr();
    let mut buffer = vec![0; DATAGRAM_BYTES];
    if target.port() == DNS_PORT && target.ip() == policy.resolver() {
        loop {
            let count = timeout(FLOW_IDLE, inside.read(&mut buffer)).await??;
            if count == 0 {
                return Ok(());
            }
            if let Some(answer) = policy.resolve(&buffer[..count]).await {
                inside.write_all(&answer).await?;
            }
        }
    }
    match policy.udp(target) {
        Verdict::Refused => return Ok(()),
        Verdict::Allowed => {}
    }
    let outside = UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], 0))).await?;
    outside.connect(target).await?;
    let mut back = vec![0; DATAGRAM_BYTES];
    loop {
        tokio::select! {
            count = inside.read(&mut buffer) => match count? {
                0 => return Ok(()),
                count => drop(outside.send(&buffer[..count]).await?),
            },
            count = outside.recv(&mut back) => inside.write_all(&back[..count?]).await?,
            () = tokio::time::sleep(FLOW_IDLE) => return Ok(()),
        }
    }
}
