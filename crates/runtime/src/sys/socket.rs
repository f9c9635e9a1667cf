//! Packet sockets between processes that carry bytes and descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};
use rustix::process::Pid;

/// Descriptors in one message at most.
pub const FDS_MAX: usize = 16;
/// Bytes in one message at most; below the kernel's default socket buffer, so that one message always fits.
pub const BYTES_MAX: usize = 128 << 10;

/// Whether bytes or the end of the stream lie unread in a socket. Looks at them and leaves them there; never waits.
pub fn has_unread(socket: impl AsFd) -> bool {
    // The only other failure is that of a broken connection, where reading has something to tell too.
    !matches!(rustix::net::recv(socket, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT), Err(Errno::AGAIN))
}

/// One end of a connection that keeps message boundaries.
#[derive(Debug)]
pub struct Packets {
    fd: OwnedFd,
}

/// What arrived.
#[derive(Debug)]
pub struct Message {
    pub bytes: Vec<u8>,
    pub fds: Vec<OwnedFd>,
    /// The sender's process in this process's numbering, where the receiver asked for it.
    pub sender: Option<Pid>,
}

impl Packets {
    /// Two connected ends, closed on exec.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (left, right) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self { fd: left }, Self { fd: right }))
    }

    /// Calls on this end return `WouldBlock` instead of waiting.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        Ok(rustix::io::ioctl_fionbio(&self.fd, true)?)
    }

    /// Messages arriving from now on say who sent them.
    pub fn ask_for_senders(&self) -> io::Result<()> {
        Ok(rustix::net::sockopt::set_socket_passcred(&self.fd, true)?)
    }

    /// Sends one message whole. Errors with `BrokenPipe` when the peer is gone (no signal), and with `InvalidInput` above
    /// [`BYTES_MAX`] or [`FDS_MAX`].
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if bytes.is_empty() || BYTES_MAX < bytes.len() || FDS_MAX < fds.len() {
            let what = format!("a message of {} bytes and {} descriptors", bytes.len(), fds.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds)); // fits: the space is for FDS_MAX
        }
        let sent = rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.fd, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
        })?;
        if sent == bytes.len() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WriteZero)) }
    }

    /// Receives one message whole, or `None` when the peer is gone.
    pub fn receive(&self) -> io::Result<Option<Message>> {
        let mut bytes = vec![0; BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX), ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            match rustix::net::recvmsg(&self.fd, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                // A peer that closed with messages from us unread resets the connection.
                Err(Errno::CONNRESET) => return Ok(None),
                result => break result?,
            }
        };
        if got.bytes == 0 {
            return Ok(None);
        }
        if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message was cut short"));
        }
        bytes.truncate(got.bytes);
        let mut message = Message { bytes, fds: Vec::new(), sender: None };
        for part in control.drain() {
            match part {
                RecvAncillaryMessage::ScmRights(fds) => message.fds.extend(fds),
                RecvAncillaryMessage::ScmCredentials(sender) => message.sender = Some(sender.pid),
                _ => {} // foreign enum: kinds that were not asked for do not arrive
            }
        }
        Ok(Some(message))
    }
}

impl From<OwnedFd> for Packets {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl From<Packets> for OwnedFd {
    fn from(packets: Packets) -> Self {
        packets.fd
    }
}

impl AsFd for Packets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Packets {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_descriptors_arrive_together() {
        let (left, right) = Packets::pair().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        left.send(b"take this", &[writer.as_fd()]).unwrap();
        let message = right.receive().unwrap().unwrap();
        assert_eq!(message.bytes, b"take this");
        rustix::io::write(&message.fds[0], b"x").unwrap();
        let mut byte = [0_u8];
        assert_eq!(rustix::io::read(&reader, &mut byte).unwrap(), 1);
    }

    #[test]
    fn a_receiver_that_asked_knows_the_sender() {
        let (left, right) = Packets::pair().unwrap();
        right.ask_for_senders().unwrap();
        left.send(b"x", &[]).unwrap();
        assert_eq!(right.receive().unwrap().unwrap().sender, Some(rustix::process::getpid()));
    }

    #[test]
    fn a_lost_peer_is_an_end_for_the_receiver_and_an_error_for_the_sender() {
        let (left, right) = Packets::pair().unwrap();
        drop(left);
        assert!(right.receive().unwrap().is_none());
        assert_eq!(right.send(b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_message_above_the_limit_is_refused() {
        let (left, right) = Packets::pair().unwrap();
        left.send(&vec![7; BYTES_MAX], &[]).unwrap();
        assert_eq!(right.receive().unwrap().unwrap().bytes.len(), BYTES_MAX);
        assert_eq!(left.send(&vec![7; BYTES_MAX + 1], &[]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
