//! What an instance may reach.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use model::{Outbound, Peer};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::dns;

/// A query must be answered within this time.
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_BYTES: usize = 4096;
/// Names of peers that the C library looks up at once, in all of this process. Each keeps a thread and a descriptor or two for as
/// long as it takes, which is longer than anybody waits for it.
const LOOKUPS_AT_ONCE: usize = 64;
/// The same for one instance.
const LOOKUPS_OF_ONE: usize = 1;

static LOOKUPS: Semaphore = Semaphore::const_new(LOOKUPS_AT_ONCE);
/// The address at which clouds hand a machine's own credentials to whoever asks.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Whether something may be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    Refused,
}

/// The rules for the instances of one function.
#[derive(Clone, Debug)]
pub struct Policy {
    outbound: Outbound,
    /// The address in the instance's network at which names are asked for.
    resolver: IpAddr,
    /// Where questions are passed on to; `None`: the machine has no resolver, so names cannot be asked for.
    upstream: Option<SocketAddr>,
    /// Where the node listens.
    own: SocketAddr,
    /// Whether an address is one of this machine's, at which the node's port is the node's too.
    is_own: fn(IpAddr) -> bool,
    lookups: Arc<Semaphore>,
}

impl Policy {
    /// `own` is where the node listens; [`is_this_machine`] is for `is_own`.
    #[must_use]
    pub fn new(
        outbound: Outbound,
        resolver: Ipv4Addr,
        upstream: Option<SocketAddr>,
        own: SocketAddr,
        is_own: fn(IpAddr) -> bool,
    ) -> Self {
        let lookups = Arc::new(Semaphore::new(LOOKUPS_OF_ONE));
        Self { outbound, resolver: resolver.into(), upstream, own, is_own, lookups }
    }

    pub(super) fn resolver(&self) -> IpAddr {
        self.resolver
    }

    /// Whether a connection to `target` may be made.
    pub async fn tcp(&self, target: SocketAddr) -> Verdict {
        if self.never(target) {
            return Verdict::Refused;
        }
        match &self.outbound {
            Outbound::All | Outbound::Unstated if target.ip() == IpAddr::V4(METADATA) => Verdict::Refused,
            Outbound::All | Outbound::Unstated => Verdict::Allowed,
            Outbound::None => Verdict::Refused,
            Outbound::Only(peers) => {
                for peer in peers.iter().filter(|peer| peer.port == target.port()) {
                    if self.names(peer, target.ip()).await {
                        return Verdict::Allowed;
                    }
                }
                Verdict::Refused
            }
        }
    }

    /// Whether datagrams may be sent to `target`. A list of peers names connections, so it allows no datagrams.
    #[must_use]
    pub fn udp(&self, target: SocketAddr) -> Verdict {
        match &self.outbound {
            Outbound::All | Outbound::Unstated if self.never(target) || target.ip() == IpAddr::V4(METADATA) => Verdict::Refused,
            Outbound::All | Outbound::Unstated => Verdict::Allowed,
            Outbound::Only(_) | Outbound::None => Verdict::Refused,
        }
    }

    /// What no function may reach.
    fn never(&self, target: SocketAddr) -> bool {
        let ip = target.ip();
        let shapeless = ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST);
        let own = target == self.own || (target.port() == self.own.port() && (self.is_own)(ip));
        shapeless || own
    }

    /// Answers a question: passes it on when the function may reach the name, refuses it otherwise. `None`: no answer.
    pub(super) async fn resolve(&self, query: &[u8]) -> Option<Vec<u8>> {
        let question = dns::question(query)?;
        let may_ask = match &self.outbound {
            Outbound::All | Outbound::Unstated => true,
            Outbound::Only(peers) => peers.iter().any(|peer| peer.host == question.name),
            Outbound::None => false,
        };
        let Some(upstream) = self.upstream.filter(|_| may_ask) else { return dns::refusal(query) };
        let socket = UdpSocket::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).await.ok()?;
        socket.connect(upstream).await.ok()?;
        socket.send(query).await.ok()?;
        let mut answer = vec![0; ANSWER_BYTES];
        let count = timeout(RESOLVE_WITHIN, socket.recv(&mut answer)).await.ok()?.ok()?;
        answer.truncate(count);
        Some(answer)
    }

    /// Whether a peer's host is this address, or a name that stands for it now.
    async fn names(&self, peer: &Peer, address: IpAddr) -> bool {
        match peer.host.parse::<IpAddr>() {
            Ok(literal) => literal == address,
            Err(_) => matches!(timeout(RESOLVE_WITHIN, self.look_up(peer)).await, Ok(Some(found)) if found.contains(&address)),
        }
    }

    /// The addresses of a peer's name. Its places are taken until the look-up has ended, though nobody may wait for it any more.
    async fn look_up(&self, peer: &Peer) -> Option<Vec<IpAddr>> {
        let of_one = Arc::clone(&self.lookups).acquire_owned().await.ok()?;
        let of_all = LOOKUPS.acquire().await.ok()?;
        let (host, port) = (peer.host.clone(), peer.port);
        let looked_up = spawn_blocking(move || {
            let _places = (of_one, of_all);
            (host.as_str(), port).to_socket_addrs().ok().map(|found| found.map(|address| address.ip()).collect())
        });
        looked_up.await.ok()?
    }
}

/// Whether this machine has an address: only then can a socket be bound to it. Where the kernel lets sockets be bound to
/// foreign addresses (`ip_nonlocal_bind`), every address counts as this machine's.
#[must_use]
pub fn is_this_machine(address: IpAddr) -> bool {
    std::net::UdpSocket::bind((address, 0)).is_ok()
}

/// The first name server that a `resolv.conf` names.
#[must_use]
pub fn upstream_of(resolv_conf: &str) -> Option<SocketAddr> {
    let mut words = resolv_conf.lines().map(str::split_whitespace);
    words.find_map(|mut words| match (words.next(), words.next()) {
        (Some("nameserver"), Some(address)) => address.parse().ok().map(|ip: IpAddr| SocketAddr::from((ip, 53))),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(outbound: Outbound) -> Policy {
        let is_own = |ip: IpAddr| ip == IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
        Policy::new(outbound, Ipv4Addr::new(10, 0, 0, 1), None, "127.0.0.1:9000".parse().unwrap(), is_own)
    }

    #[tokio::test]
    async fn a_look_up_that_nobody_waits_for_keeps_its_place_and_one_at_a_time_is_made_of_an_instance() {
        let policy = policy(Outbound::None);
        let peer = "localhost:1".parse().unwrap();
        let held = Arc::clone(&policy.lookups).acquire_owned().await.unwrap();
        tokio::select! {
            biased;
            _ = policy.look_up(&peer) => panic!("another is being made"),
            () = tokio::task::yield_now() => {}
        }
        drop(held);
        assert!(policy.look_up(&peer).await.unwrap().contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert_eq!(policy.lookups.available_permits(), LOOKUPS_OF_ONE);
    }

    async fn check(outbound: Outbound, target: &str, expected: Verdict) {
        assert_eq!(policy(outbound.clone()).tcp(target.parse().unwrap()).await, expected, "{outbound:?} {target}");
    }

    #[tokio::test]
    async fn the_node_itself_is_never_reached() {
        for target in ["127.0.0.1:9000", "127.0.0.1:80", "0.0.0.0:9000", "192.0.2.2:9000", "224.0.0.1:9", "255.255.255.255:9"] {
            check(Outbound::All, target, Verdict::Refused).await;
            let only = Outbound::Only(vec![target.parse().unwrap()]);
            check(only, target, Verdict::Refused).await;
        }
    }

    #[tokio::test]
    async fn a_list_allows_what_it_names_and_nothing_else() {
        let only = Outbound::Only(vec!["198.51.100.7:443".parse().unwrap()]);
        check(only.clone(), "198.51.100.7:443", Verdict::Allowed).await;
        check(only.clone(), "198.51.100.7:80", Verdict::Refused).await;
        check(only.clone(), "198.51.100.8:443", Verdict::Refused).await;
        assert_eq!(policy(only).udp("198.51.100.7:443".parse().unwrap()), Verdict::Refused);
        check(Outbound::None, "198.51.100.7:443", Verdict::Refused).await;
    }

    #[tokio::test]
    async fn all_is_all_but_the_machine_s_credentials() {
        check(Outbound::All, "192.0.2.2:5432", Verdict::Allowed).await;
        check(Outbound::All, "169.254.169.254:80", Verdict::Refused).await;
        check(Outbound::Only(vec!["169.254.169.254:80".parse().unwrap()]), "169.254.169.254:80", Verdict::Allowed).await;
    }

    #[test]
    fn an_address_is_this_machine_s_when_it_can_be_bound() {
        assert!(is_this_machine(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert!(!is_this_machine(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9))));
    }

    #[test]
    fn the_first_name_server_counts() {
        assert_eq!(
            upstream_of("# x\nsearch a\nnameserver 10.1.2.3\nnameserver 10.1.2.4\n"),
            Some("10.1.2.3:53".parse().unwrap())
        );
        assert_eq!(upstream_of("nameserver nonsense\n"), None);
    }
}
