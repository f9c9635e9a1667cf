//! The TUN device: one packet in at a time, packets out at once.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// The device's packets, bytes.
pub(super) const MTU: usize = 1500;

pub(super) struct Device {
    tun: AsyncFd<OwnedFd>,
    /// The packet that the stack is to look at.
    next: Option<Vec<u8>>,
}

impl Device {
    pub(super) fn new(tun: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&tun, true)?;
        Ok(Self { tun: sys::watch(tun)?, next: None })
    }

    /// Waits until a packet can be read. Safe to drop at any point.
    pub(super) async fn readable(&self) -> io::Result<()> {
        // The readiness is cleared by the read that finds nothing.
        self.tun.readable().await.map(|mut guard| guard.retain_ready())
    }

    /// A packet, if there is one. Errors when the device is gone.
    pub(super) fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let mut packet = vec![0; MTU];
        let read = self.tun.try_io(tokio::io::Interest::READABLE, |tun| Ok(rustix::io::read(tun, &mut packet)?));
        match read {
            Ok(count) => {
                packet.truncate(count);
                Ok(Some(packet))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock || error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn offer(&mut self, packet: Vec<u8>) {
        self.next = Some(packet);
    }

    /// Sends a packet. One that the device does not take is lost, as on any network.
    pub(super) fn send(&self, packet: &[u8]) {
        while rustix::io::write(self.tun.get_ref(), packet) == Err(Errno::INTR) {}
    }
}

pub(super) struct Received(Vec<u8>);

pub(super) struct Sending<'a>(&'a Device);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut packet = vec![0; length];
        let written = write(&mut packet);
        self.0.send(&packet);
        written
    }
}

impl phy::Device for Device {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let packet = self.next.take()?;
        Some((Received(packet), Sending(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}
