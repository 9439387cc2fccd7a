//! Telling both ends of a flow that it is over, once its entries are gone.
//!
//! A reset has to carry the sequence number that its receiver waits for (RFC 5961, 3.2), which nobody here has kept. So each
//! end is sent a segment from nowhere in its window. It answers with an acknowledgement, as RFC 9293, 3.10.7.4 asks; that
//! belongs to no flow any more, so whoever gets it (the router's own stack, or the rule's new destination) resets, with the
//! number out of it.
//!
//! A UDP client is told by an ICMP port unreachable, which its socket reports.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, sendto, socket,
};

use super::error::LinkError;
use super::frame::checksum;
use super::netns::Netns;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A flow that is over, as its client knows it (`near` is the router's own end) or its destination does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// IP protocol.
    pub protocol: u8,
    /// The router's address and port.
    pub near: SocketAddr,
    /// Who is told.
    pub far: SocketAddr,
}

/// Tells clients and destinations that flows are over. `clients` of UDP are told too; other protocols have no way to.
///
/// # Errors
/// [`LinkError::EnterNetns`]; [`LinkError::Sever`] with the first refusal of the kernel, after all were tried.
pub fn sever(netns: &Netns, clients: &[End], destinations: &[End]) -> Result<(), LinkError> {
    let tell = || {
        let mut failed = Ok(());
        let packets = clients.iter().map(|end| (end, true)).chain(destinations.iter().map(|end| (end, false)));
        for (end, is_client) in packets {
            let sent = match end.protocol {
                TCP => send(end, SockProtocol::Tcp, &segment(end)),
                UDP if is_client && end.near.is_ipv4() => send(end, SockProtocol::Icmp, &unreachable_v4(end)),
                UDP if is_client => send(end, SockProtocol::IcmpV6, &unreachable_v6(end)),
                _ => Ok(()),
            };
            failed = failed.and(sent);
        }
        failed
    };
    netns.run(tell)?.map_err(|source| LinkError::Sever { netns: netns.label().to_owned(), source })
}

/// From the near end's address, as the kernel's own packet.
fn send(end: &End, protocol: SockProtocol, payload: &[u8]) -> io::Result<()> {
    let family = if end.near.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket: OwnedFd = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    let address = |ip: IpAddr| SockaddrStorage::from(SocketAddr::new(ip, 0));
    bind(socket.as_raw_fd(), &address(end.near.ip()))?;
    sendto(socket.as_raw_fd(), payload, &address(end.far.ip()), MsgFlags::MSG_DONTWAIT)?;
    Ok(())
}

/// An acknowledgement of nothing, at a place where no window is likely to be.
fn segment(end: &End) -> Vec<u8> {
    const ACK: u8 = 0x10;
    let mut header = Vec::with_capacity(20);
    header.extend(end.near.port().to_be_bytes());
    header.extend(end.far.port().to_be_bytes());
    let place = std::process::id().wrapping_mul(0x9e37_79b9) ^ u32::from(end.far.port()) << 16;
    header.extend(place.to_be_bytes());
    header.extend(place.to_be_bytes());
    header.extend([5 << 4, ACK, 0, 0, 0, 0, 0, 0]);
    let sum = checksum(&[pseudo_header(end, TCP, &header), header.clone()].concat());
    put(&mut header, 16, sum);
    header
}

/// The ICMP error that the client would have got if nobody had listened: it quotes what the client sent.
fn unreachable_v4(end: &End) -> Vec<u8> {
    let quoted = udp_header(end);
    let mut packet = vec![3, 3, 0, 0, 0, 0, 0, 0];
    let length = u16::try_from(20 + quoted.len()).unwrap_or(u16::MAX);
    let mut ip = vec![0x45, 0];
    ip.extend(length.to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, UDP, 0, 0]);
    ip.extend(octets(end.far.ip()));
    ip.extend(octets(end.near.ip()));
    let sum = checksum(&ip);
    put(&mut ip, 10, sum);
    packet.extend(ip);
    packet.extend(quoted);
    let sum = checksum(&packet);
    put(&mut packet, 2, sum);
    packet
}

/// As [`unreachable_v4`]; the kernel fills in the checksum of ICMPv6.
fn unreachable_v6(end: &End) -> Vec<u8> {
    let quoted = udp_header(end);
    let mut packet = vec![1, 4, 0, 0, 0, 0, 0, 0];
    packet.extend([0x60, 0, 0, 0]);
    packet.extend(u16::try_from(quoted.len()).unwrap_or(u16::MAX).to_be_bytes());
    packet.extend([UDP, 64]);
    packet.extend(octets(end.far.ip()));
    packet.extend(octets(end.near.ip()));
    packet.extend(quoted);
    packet
}

/// Of a datagram without content from the far end to the near one. Nobody checks the checksum of what is quoted.
fn udp_header(end: &End) -> Vec<u8> {
    let mut header = Vec::with_capacity(8);
    header.extend(end.far.port().to_be_bytes());
    header.extend(end.near.port().to_be_bytes());
    header.extend([0, 8, 0, 0]);
    header
}

fn pseudo_header(end: &End, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = octets(end.near.ip());
    header.extend(octets(end.far.ip()));
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    // The long form of IPv6 adds up to the same as IPv4's.
    header.extend(u32::from(length).to_be_bytes());
    header.extend([0, 0, 0, protocol]);
    header
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}
