//! Just enough of IPv4, TCP and UDP to know which flow a packet belongs to, and to answer datagrams.

use std::net::SocketAddrV4;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv4Repr, TcpPacket, UdpPacket, UdpRepr};

use super::device::MTU;

const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const HOPS: u8 = 64;
/// The largest datagram that needs no fragments.
pub(super) const DATAGRAM_MAX: usize = MTU - IP_HEADER - UDP_HEADER;

/// The two ends of a flow: the function's, and the one it speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pair {
    pub(super) from: SocketAddrV4,
    pub(super) to: SocketAddrV4,
}

/// What a packet of a function is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Packet {
    /// The beginning of a connection.
    Opening(Pair),
    /// Anything else of a connection.
    Segment,
    Datagram(Pair, Vec<u8>),
}

/// Reads a packet; `None` for what is not forwarded: other protocols, fragments, nonsense.
#[expect(clippy::wildcard_enum_match_arm, reason = "the protocols of the internet are not ours to name")]
pub(super) fn parse(bytes: &[u8]) -> Option<Packet> {
    let ip = Ipv4Packet::new_checked(bytes).ok()?;
    if ip.version() != 4 || ip.more_frags() || ip.frag_offset() != 0 {
        return None;
    }
    let pair = |from, to| Pair { from: SocketAddrV4::new(ip.src_addr(), from), to: SocketAddrV4::new(ip.dst_addr(), to) };
    match ip.next_header() {
        IpProtocol::Tcp => {
            let tcp = TcpPacket::new_checked(ip.payload()).ok()?;
            let pair = pair(tcp.src_port(), tcp.dst_port());
            Some(if tcp.syn() && !tcp.ack() && !tcp.rst() { Packet::Opening(pair) } else { Packet::Segment })
        }
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(ip.payload()).ok()?;
            Some(Packet::Datagram(pair(udp.src_port(), udp.dst_port()), udp.payload().to_vec()))
        }
        _ => None,
    }
}

/// The packet that answers a function's datagram; `None` when it would not fit into one.
pub(super) fn reply(pair: Pair, payload: &[u8]) -> Option<Vec<u8>> {
    if DATAGRAM_MAX < payload.len() {
        return None;
    }
    let (from, to) = (pair.to, pair.from);
    let udp = UdpRepr { src_port: from.port(), dst_port: to.port() };
    let ip = Ipv4Repr {
        src_addr: *from.ip(),
        dst_addr: *to.ip(),
        next_header: IpProtocol::Udp,
        payload_len: UDP_HEADER + payload.len(),
        hop_limit: HOPS,
    };
    let mut bytes = vec![0; IP_HEADER + UDP_HEADER + payload.len()];
    let checksums = ChecksumCapabilities::default();
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
    ip.emit(&mut packet, &checksums);
    let mut datagram = UdpPacket::new_unchecked(packet.payload_mut());
    let fill = |buffer: &mut [u8]| buffer.copy_from_slice(payload);
    udp.emit(&mut datagram, &ip.src_addr.into(), &ip.dst_addr.into(), payload.len(), fill, &checksums);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair() -> Pair {
        Pair { from: "10.0.2.100:4000".parse().unwrap(), to: "192.0.2.7:53".parse().unwrap() }
    }

    #[test]
    fn a_reply_is_a_datagram_back() {
        let back = Pair { from: pair().to, to: pair().from };
        assert_eq!(parse(&reply(pair(), b"hello").unwrap()), Some(Packet::Datagram(back, b"hello".to_vec())));
        assert!(reply(pair(), &[0; DATAGRAM_MAX]).is_some());
        assert_eq!(reply(pair(), &[0; DATAGRAM_MAX + 1]), None);
    }

    proptest! {
        #[test]
        fn no_packet_breaks_the_parser(mut bytes in proptest::collection::vec(any::<u8>(), 0..100), like in 0..3_u8) {
            if let (1.., Some(first)) = (like, bytes.first_mut()) {
                *first = 0x45;
            }
            if let (2, Some(protocol)) = (like, bytes.get_mut(9)) {
                *protocol = 6;
            }
            parse(&bytes);
        }
    }
}
