//! Network links of the calling process's network namespace: loopback, addresses, routes, TUN devices.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

/// The index of `lo` in every network namespace.
pub const LOOPBACK: u32 = 1;

/// Sets a link up.
pub fn set_up(index: u32) -> io::Result<()> {
    let mut body = vec![0; 16]; // struct ifinfomsg: family, pad, type, index, flags, change
    put(&mut body, 4, &index.to_ne_bytes());
    put(&mut body, 8, &1_u32.to_ne_bytes()); // IFF_UP
    put(&mut body, 12, &1_u32.to_ne_bytes());
    request(libc::RTM_NEWLINK, 0, body)
}

/// Gives a link an address with a prefix length, 0 to 32.
pub fn add_address(index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    let mut body = vec![0; 8]; // struct ifaddrmsg: family, prefix, flags, scope, index
    put(&mut body, 0, &[AF_INET, prefix]);
    put(&mut body, 4, &index.to_ne_bytes());
    attribute(&mut body, libc::IFA_LOCAL, &address.octets());
    attribute(&mut body, libc::IFA_ADDRESS, &address.octets());
    request(libc::RTM_NEWADDR, CREATE, body)
}

/// Sends everything without a closer route to `gateway` through the link.
pub fn add_default_route(index: u32, gateway: Ipv4Addr) -> io::Result<()> {
    let mut body = vec![0; 12]; // struct rtmsg: family, lengths, tos, table, protocol, scope, type, flags
    put(&mut body, 0, &[AF_INET]);
    put(&mut body, 4, &[libc::RT_TABLE_MAIN, libc::RTPROT_STATIC, libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST]);
    attribute(&mut body, libc::RTA_GATEWAY, &gateway.octets());
    attribute(&mut body, libc::RTA_OIF, &index.to_ne_bytes());
    request(libc::RTM_NEWROUTE, CREATE, body)
}

/// Creates a TUN device (IP packets, no link header) and returns its descriptor, non-blocking, and its index. It lives as
/// long as the descriptor. `name` is at most 15 bytes.
pub fn create_tun(name: &str) -> io::Result<(OwnedFd, u32)> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let device = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    attach_tun(device, name)
}

/// As [`create_tun`], with the control device opened before it went out of sight.
pub fn attach_tun(device: OwnedFd, name: &str) -> io::Result<(OwnedFd, u32)> {
    if name.is_empty() || 15 < name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a device name of {} bytes", name.len())));
    }
    let mut request = [0_u8; 40]; // struct ifreq: 16 bytes of name, then the flags
    put(&mut request, 0, name.as_bytes());
    put(&mut request, 16, &TUN_WITHOUT_HEADER.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, 40 bytes; `request` has them and outlives the call.
    if unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let index = rustix::net::netdevice::name_to_index(&socket, name)?;
    Ok((device, index))
}

#[expect(clippy::cast_possible_truncation, reason = "the constant is 2")]
const AF_INET: u8 = libc::AF_INET as u8;
#[expect(clippy::cast_possible_truncation, reason = "the constants are 0x600 together")]
const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
#[expect(clippy::cast_possible_truncation, reason = "the constants are 5 together")]
const REQUEST_ACK: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
#[expect(clippy::cast_possible_truncation, reason = "the constants are 0x1001 together")]
const TUN_WITHOUT_HEADER: i16 = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    into[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Appends a routing attribute; all of ours are 4 bytes, so nothing needs padding.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8; 4]) {
    body.extend(8_u16.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

/// Sends one routing request and waits for the kernel's verdict.
fn request(kind: u16, flags: u16, body: Vec<u8>) -> io::Result<()> {
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?; // NETLINK_ROUTE is 0
    let length = u32::try_from(HEADER + body.len()).expect("invariant: our requests are below 100 bytes");
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((REQUEST_ACK | flags).to_ne_bytes());
    message.extend([0; 8]); // sequence and port
    message.extend(body);
    rustix::net::sendto(&socket, &message, SendFlags::empty(), &netlink::SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0_u8; 1024];
    let (count, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty())?;
    verdict(&answer[..count])
}

/// Reads the answer to a request: a header of kind NLMSG_ERROR and an error number, zero for success.
fn verdict(answer: &[u8]) -> io::Result<()> {
    let field = |at: usize| answer.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    let kind = answer.get(4..6).and_then(|bytes| <[u8; 2]>::try_from(bytes).ok()).map(u16::from_ne_bytes);
    match (kind.map(i32::from), field(HEADER).map(i32::from_ne_bytes)) {
        (Some(libc::NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(libc::NLMSG_ERROR), Some(error)) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "an answer that is no verdict")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_link_that_does_not_exist_is_refused_by_the_kernel() {
        let error = set_up(4_000_000).unwrap_err();
        assert!(matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EPERM)), "{error}");
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(answer in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = verdict(&answer);
        }
    }
}
