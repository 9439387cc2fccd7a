//! What a captured frame holds: addresses, protocol, and whether its checksums are right.
//!
//! Written apart from the datapath's own parser and checksums, which it is here to check.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Protocol numbers (IANA).
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// Fragment header of IPv6.
    pub const FRAGMENT: u8 = 44;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// Length of an Ethernet header, bytes.
const ETHERNET: usize = 14;
/// Length of a UDP header, bytes.
const UDP_HEADER: usize = 8;

/// A frame by its Ethernet type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content<'a> {
    /// An IP packet.
    Ip(Packet<'a>),
    /// An ARP message: sender's and target's protocol address.
    Arp {
        /// Who asks or answers; 0.0.0.0 in a probe.
        sender: Ipv4Addr,
        /// Who is asked for.
        target: Ipv4Addr,
    },
    /// Anything else, by its Ethernet type.
    Other(u16),
    /// Too short for what it says it is.
    Malformed,
}

/// An IP packet's outer header, and what it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The protocol after all extension headers.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Whether this is a part of a larger packet; then the payload's checksum cannot be verified.
    pub fragment: bool,
    /// The IPv4 header, with options; the fixed IPv6 header.
    pub header: &'a [u8],
    /// From the transport header on, without Ethernet padding.
    pub payload: &'a [u8],
}

impl Packet<'_> {
    /// Source and destination port of TCP and UDP.
    pub fn ports(&self) -> Option<(u16, u16)> {
        let known = matches!(self.protocol, protocol::TCP | protocol::UDP) && !self.fragment;
        if known { Some((u16_at(self.payload, 0)?, u16_at(self.payload, 2)?)) } else { None }
    }

    /// The checksum field of a UDP header.
    pub fn udp_checksum(&self) -> Option<u16> {
        let known = self.protocol == protocol::UDP && !self.fragment;
        if known { u16_at(self.payload, 6) } else { None }
    }

    /// Type and code of ICMP and ICMPv6.
    pub fn icmp(&self) -> Option<(u8, u8)> {
        let known = matches!(self.protocol, protocol::ICMP | protocol::ICMPV6);
        if known { Some((*self.payload.first()?, *self.payload.get(1)?)) } else { None }
    }

    /// The first wrong checksum, if there is one.
    pub fn wrong_checksum(&self) -> Option<&'static str> {
        if self.source.is_ipv4() && sum(self.header, 0) != 0xffff {
            return Some("IPv4 header");
        }
        if self.fragment {
            return None;
        }
        match self.protocol {
            protocol::TCP => (self.transport_sum() != 0xffff).then_some("TCP"),
            // Zero is "none" on IPv4, and forbidden on IPv6 (RFC 8200, section 8.1).
            protocol::UDP if u16_at(self.payload, 6) == Some(0) => self.source.is_ipv6().then_some("UDP, zero"),
            protocol::UDP => (self.transport_sum() != 0xffff).then_some("UDP"),
            protocol::ICMP => (sum(self.payload, 0) != 0xffff).then_some("ICMP"),
            protocol::ICMPV6 => (self.transport_sum() != 0xffff).then_some("ICMPv6"),
            protocol::SCTP => (!self.has_right_crc()).then_some("SCTP"),
            _ => None,
        }
    }

    /// Whether SCTP's checksum is right, or is still to be computed by a device.
    fn has_right_crc(&self) -> bool {
        let Some((head, rest)) = self.payload.split_first_chunk::<8>() else { return false };
        let Some((crc, rest)) = rest.split_first_chunk::<4>() else { return false };
        let over = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(head), &[0; 4]), rest);
        *crc == [0; 4] || u32::from_le_bytes(*crc) == over
    }

    /// The sum over pseudo header and payload, 0xffff when the checksum within is right (RFC 1071).
    fn transport_sum(&self) -> u16 {
        let addresses = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => [source.octets(), destination.octets()].concat(),
            (source, destination) => [source, destination].into_iter().flat_map(octets).collect(),
        };
        let length = u64::try_from(self.payload.len()).unwrap_or(u64::MAX);
        sum(self.payload, partial(&addresses) + length + u64::from(self.protocol))
    }
}

/// The checksum that a datagram has to have. A computed zero is sent as all ones, for zero means "none" (RFC 768).
pub fn udp_checksum(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> u16 {
    match !udp_sum(source, destination, payload) {
        0 => u16::MAX,
        checksum => checksum,
    }
}

/// A payload of two bytes or more, with its first two such that the datagram's checksum computes to zero.
pub fn payload_with_zero_checksum(source: SocketAddr, destination: SocketAddr, rest: &[u8]) -> Vec<u8> {
    let mut payload = [&[0, 0], rest].concat();
    let missing = !udp_sum(source, destination, &payload);
    if let Some(field) = payload.first_chunk_mut::<2>() {
        *field = missing.to_be_bytes();
    }
    payload
}

/// The sum over a datagram with its pseudo header, without a checksum.
fn udp_sum(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> u16 {
    let addresses = [octets(source.ip()), octets(destination.ip())].concat();
    let length = u64::try_from(UDP_HEADER + payload.len()).unwrap_or(u64::MAX);
    // The length is in the pseudo header and in the header.
    let rest = u64::from(protocol::UDP) + 2 * length + u64::from(source.port()) + u64::from(destination.port());
    sum(payload, partial(&addresses) + rest)
}

pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Reads a frame that begins with its Ethernet header.
pub fn read(frame: &[u8]) -> Content<'_> {
    let (Some(kind), Some(rest)) = (u16_at(frame, 12), frame.get(ETHERNET..)) else { return Content::Malformed };
    match kind {
        0x0800 => ipv4(rest).map_or(Content::Malformed, Content::Ip),
        0x86dd => ipv6(rest).map_or(Content::Malformed, Content::Ip),
        0x0806 => arp(rest).unwrap_or(Content::Malformed),
        other => Content::Other(other),
    }
}

/// The IP packet within a frame, without Ethernet padding.
pub fn ip_bytes(frame: &[u8]) -> Option<&[u8]> {
    let rest = frame.get(ETHERNET..)?;
    let length = match u16_at(frame, 12)? {
        0x0800 => usize::from(u16_at(rest, 2)?),
        0x86dd => 40 + usize::from(u16_at(rest, 4)?),
        _ => return None,
    };
    rest.get(..length)
}

fn ipv4(bytes: &[u8]) -> Option<Packet<'_>> {
    let length = usize::from(bytes.first()? & 0x0f) * 4;
    let header = bytes.get(..length.max(20))?;
    let total = usize::from(u16_at(bytes, 2)?);
    // More-fragments flag and offset.
    let fragment = u16_at(bytes, 6)? & 0x3fff != 0;
    Some(Packet {
        source: array::<4>(bytes, 12)?.into(),
        destination: array::<4>(bytes, 16)?.into(),
        protocol: *bytes.get(9)?,
        ttl: *bytes.get(8)?,
        fragment,
        header,
        payload: bytes.get(header.len()..total.min(bytes.len()))?,
    })
}

fn ipv6(bytes: &[u8]) -> Option<Packet<'_>> {
    let header = bytes.get(..40)?;
    let end = (40 + usize::from(u16_at(bytes, 4)?)).min(bytes.len());
    let mut payload = bytes.get(40..end)?;
    let mut protocol = *bytes.get(6)?;
    let mut fragment = false;
    loop {
        // Hop-by-hop, routing, destination options; fragment (RFC 8200, section 4).
        let length = match protocol {
            0 | 43 | 60 => (usize::from(*payload.get(1)?) + 1) * 8,
            44 => {
                fragment |= u16_at(payload, 2)? & 0xfff9 != 0;
                8
            }
            _ => break,
        };
        // A later fragment begins in the middle of something: there is no header to go on to.
        let later = protocol == 44 && u16_at(payload, 2)? & 0xfff8 != 0;
        protocol = *payload.first()?;
        payload = payload.get(length..)?;
        if later {
            break;
        }
    }
    Some(Packet {
        source: array::<16>(bytes, 8)?.into(),
        destination: array::<16>(bytes, 24)?.into(),
        protocol,
        ttl: *bytes.get(7)?,
        fragment,
        header,
        payload,
    })
}

fn arp(bytes: &[u8]) -> Option<Content<'static>> {
    Some(Content::Arp { sender: array::<4>(bytes, 14)?.into(), target: array::<4>(bytes, 24)?.into() })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// The unfolded sum of big-endian 16-bit words. An odd byte at the end counts as the high half of a word.
fn partial(bytes: &[u8]) -> u64 {
    let (words, odd) = bytes.as_chunks::<2>();
    let words = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum::<u64>();
    words + odd.first().map_or(0, |byte| u64::from(*byte) << 8)
}

/// The one's complement sum of `bytes` and `start`.
pub(crate) fn sum(bytes: &[u8], start: u64) -> u16 {
    let mut total = start + partial(bytes);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    u16::try_from(total).unwrap_or(u16::MAX)
}

/// Ids of an IPv6 address's own link traffic.
pub(crate) fn is_link_local(address: Ipv6Addr) -> bool {
    address.is_unicast_link_local() || address.is_unspecified()
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn frames() -> Vec<Vec<u8>> {
        let payload = b"an odd number of bytes!";
        let v4 = || PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4([10, 0, 0, 1], [203, 0, 113, 26], 64);
        let v6 = || PacketBuilder::ethernet2([1; 6], [2; 6]).ipv6([0xfd; 16], [0x20; 16], 64);
        let mut frames = vec![Vec::new(); 6];
        let [a, b, c, d, e, f] = &mut frames[..] else { unreachable!() };
        v4().tcp(1000, 80, 7, 1024).write(a, payload).unwrap();
        v6().tcp(1000, 80, 7, 1024).write(b, payload).unwrap();
        v4().udp(1000, 80).write(c, payload).unwrap();
        v6().udp(1000, 80).write(d, payload).unwrap();
        v4().icmpv4_echo_request(7, 1).write(e, payload).unwrap();
        v6().icmpv6_echo_request(7, 1).write(f, payload).unwrap();
        frames
    }

    #[test]
    fn every_byte_of_a_checked_packet_counts() {
        for frame in frames() {
            let Content::Ip(packet) = read(&frame) else { panic!("not IP") };
            assert_eq!(packet.wrong_checksum(), None, "{packet:?}");
            // Lengths and the first protocol byte lead the reader elsewhere, which is another kind of wrong.
            let start = frame.len() - packet.payload.len();
            for at in start..frame.len() {
                let mut broken = frame.clone();
                broken[at] ^= 0x10;
                let Content::Ip(packet) = read(&broken) else { panic!("not IP") };
                assert!(packet.wrong_checksum().is_some(), "byte {at} of {packet:?}");
            }
        }
    }

    #[test]
    fn a_zero_udp_checksum_is_right_only_on_ipv4() {
        let [.., v4, v6, _, _] = &mut frames()[..] else { unreachable!() };
        for frame in [&mut *v4, &mut *v6] {
            let at = frame.len() - 23 - 2;
            frame[at..at + 2].fill(0);
        }
        let Content::Ip(packet) = read(v4) else { panic!("not IP") };
        assert_eq!(packet.wrong_checksum(), None);
        let Content::Ip(packet) = read(v6) else { panic!("not IP") };
        assert_eq!(packet.wrong_checksum(), Some("UDP, zero"));
    }

    #[test]
    fn a_payload_can_make_the_checksum_compute_to_zero() {
        for (source, destination) in [("10.0.0.1:1000", "203.0.113.26:80"), ("[fd00::1]:1000", "[2001:db8::1]:80")] {
            let (source, destination): (SocketAddr, SocketAddr) =
                (source.parse().unwrap(), destination.parse().unwrap());
            for rest in [&b""[..], b"odd", b"even"] {
                let payload = payload_with_zero_checksum(source, destination, rest);
                assert_eq!(udp_checksum(source, destination, &payload), 0xffff, "{source}, {rest:?}");
            }
            // As the checksum of a crate that knows nothing of ours.
            let payload = b"an odd number of bytes!";
            let mut frame = Vec::new();
            let builder =
                match (source, destination) {
                    (SocketAddr::V4(source), SocketAddr::V4(destination)) => PacketBuilder::ethernet2([1; 6], [2; 6])
                        .ipv4(source.ip().octets(), destination.ip().octets(), 64),
                    (SocketAddr::V6(source), SocketAddr::V6(destination)) => PacketBuilder::ethernet2([1; 6], [2; 6])
                        .ipv6(source.ip().octets(), destination.ip().octets(), 64),
                    _ => unreachable!(),
                };
            builder.udp(source.port(), destination.port()).write(&mut frame, payload).unwrap();
            let Content::Ip(packet) = read(&frame) else { panic!("not IP") };
            assert_eq!(packet.udp_checksum(), Some(udp_checksum(source, destination, payload)));
        }
    }

    #[test]
    fn a_short_frame_is_malformed() {
        for frame in frames() {
            for length in 0..ETHERNET + 20 {
                assert_eq!(read(&frame[..length]), Content::Malformed, "{length} bytes");
            }
        }
    }
}
