//! ICMP and ICMPv6 echo, with a chosen identifier, and a witness that tells what a server saw of it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, SockProtocol, SockType, SockaddrStorage, recvfrom, sendto};

use crate::Netns;
use crate::capture::Capture;
use crate::endpoint::{any_port, bound, ready};
use crate::packet::{self, Content};
use crate::wait::Attempt;

/// An echo request to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo<'a> {
    /// The source; it must be one of the namespace's own addresses.
    pub from: IpAddr,
    /// The destination, of the same family.
    pub to: IpAddr,
    /// The identifier, which a NAT treats as a port.
    pub id: u16,
    /// The sequence number.
    pub sequence: u16,
    /// What follows the header and must come back.
    pub payload: &'a [u8],
}

impl Echo<'_> {
    /// Sends it and waits for the reply with the same identifier, sequence and payload; returns who replied.
    ///
    /// Fails with `TimedOut` when nothing comes, and with `HostUnreachable` when an ICMP error about it does.
    pub fn exchange(&self, netns: &Netns, timeout: Duration) -> Attempt<IpAddr> {
        Attempt::of(|| {
            let socket = netns.run(|| {
                let protocol = if self.from.is_ipv4() { SockProtocol::Icmp } else { SockProtocol::IcmpV6 };
                bound(SockType::Raw, Some(protocol), any_port(self.from))
            })?;
            let deadline = Instant::now() + timeout;
            let to = SockaddrStorage::from(SocketAddr::new(self.to, 0));
            sendto(socket.as_raw_fd(), &self.request(), &to, MsgFlags::empty())?;
            while ready(&socket, PollFlags::POLLIN, deadline)? {
                if let Some(answer) = self.receive(&socket)? {
                    return answer;
                }
            }
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no echo reply from {}", self.to)))
        })
    }

    /// The message with its checksum; the kernel fills the one of ICMPv6 in.
    fn request(&self) -> Vec<u8> {
        let (kind, _) = kinds(self.from);
        let mut message = vec![kind, 0, 0, 0];
        message.extend(self.id.to_be_bytes());
        message.extend(self.sequence.to_be_bytes());
        message.extend(self.payload);
        if self.from.is_ipv4() {
            let checksum = !packet::sum(&message, 0);
            if let Some(field) = message.get_mut(2..4) {
                field.copy_from_slice(&checksum.to_be_bytes());
            }
        }
        message
    }

    /// Reads one message: the reply, an error about the request, or nothing of ours.
    fn receive(&self, socket: &OwnedFd) -> io::Result<Option<io::Result<IpAddr>>> {
        let mut buffer = vec![0; 65_535];
        let (length, source) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer)?;
        let Some(source) = source.as_ref().and_then(ip_of) else { return Ok(None) };
        let message = buffer.get(..length).unwrap_or_default();
        // A raw IPv4 socket gives the IP header too; an IPv6 one does not.
        let skipped = if source.is_ipv4() { header_length(message) } else { 0 };
        let message = message.get(skipped..).unwrap_or_default();
        let Some(&kind) = message.first() else { return Ok(None) };
        if kind == kinds(self.from).1 {
            let ours = message.get(4..).is_some_and(|rest| Some(rest) == self.request().get(4..));
            return Ok(ours.then_some(Ok(source)));
        }
        let is_error = if self.from.is_ipv4() { matches!(kind, 3 | 5 | 11 | 12) } else { kind < 128 };
        if is_error && self.is_about_us(message.get(8..).unwrap_or_default()) {
            let code = message.get(1).copied().unwrap_or_default();
            let text = format!("{source} says ICMP type {kind} code {code}");
            return Ok(Some(Err(io::Error::new(io::ErrorKind::HostUnreachable, text))));
        }
        Ok(None)
    }

    /// Whether the packet within an ICMP error is our request, as we sent it.
    fn is_about_us(&self, inner: &[u8]) -> bool {
        let skipped = if self.from.is_ipv4() { header_length(inner) } else { 40 };
        let (request, inner) = (self.request(), inner.get(skipped..).unwrap_or_default());
        inner.first() == request.first() && inner.get(4..8) == request.get(4..8)
    }
}

/// Types of request and reply.
fn kinds(address: IpAddr) -> (u8, u8) {
    if address.is_ipv4() { (8, 0) } else { (128, 129) }
}

fn header_length(packet: &[u8]) -> usize {
    packet.first().map_or(0, |byte| usize::from(byte & 0x0f) * 4)
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(v4.ip().into());
    }
    address.as_sockaddr_in6().map(|v6| v6.ip().into())
}

/// What a server saw of an echo request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenEcho {
    /// The request's source.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// Its identifier, which the router may have changed.
    pub id: u16,
}

/// Sees the echo requests that an interface receives; the kernel answers them.
#[derive(Debug)]
pub struct Witness(Capture);

impl Witness {
    /// Starts looking at what `device` receives in `netns`.
    ///
    /// # Errors
    /// When the interface is not there, or we are not root.
    pub fn start(netns: &Netns, device: &str) -> Result<Self> {
        Capture::start(netns, device).map(Self)
    }

    /// Waits for the request that carries `payload`.
    ///
    /// # Errors
    /// When none comes within `timeout`.
    pub fn wait_for(&self, payload: &[u8], timeout: Duration) -> Result<SeenEcho> {
        self.0.wait_for("an echo request at the server", timeout, |frame| {
            let Content::Ip(packet) = packet::read(&frame.bytes) else { return None };
            let (kind, _) = packet.icmp()?;
            let id = u16::from_be_bytes(packet.payload.get(4..6)?.try_into().ok()?);
            let ours = kind == kinds(packet.source).0 && packet.payload.get(8..) == Some(payload);
            ours.then_some(SeenEcho { source: packet.source, destination: packet.destination, id })
        })
    }
}
