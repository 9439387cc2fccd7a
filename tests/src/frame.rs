//! Packets built from scratch: a description that can be changed field by field, and the bytes that it means.
//!
//! What a translation must do to a packet is said by changing its description: the bytes of the changed one, with every
//! checksum computed anew, are what has to arrive.

use std::net::{IpAddr, SocketAddr};

use crate::packet::{octets, protocol, sum};

/// What a packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A segment with these flags.
    Tcp(u8),
    /// A datagram.
    Udp,
    /// A datagram without a checksum.
    UdpUnchecked,
    /// A packet whose payload is its chunks.
    Sctp,
    /// A packet whose checksum is left to the device, which is to say zero.
    SctpUnchecked,
    /// An echo request; the source port is its identifier.
    EchoRequest,
    /// An echo reply; the destination port is its identifier.
    EchoReply,
    /// Any other ICMP or ICMPv6 message.
    Icmp {
        /// Its type.
        kind: u8,
        /// Its code.
        code: u8,
        /// The four bytes behind the checksum.
        rest: [u8; 4],
    },
    /// Payload alone, of this protocol.
    Other(u8),
}

/// A part of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// First byte, counted in the datagram; a multiple of eight.
    pub start: usize,
    /// Bytes of the datagram in this part, or the rest of it.
    pub length: usize,
    /// Whether more parts follow.
    pub more: bool,
}

/// An IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where from; the port is 0 where there is none.
    pub source: SocketAddr,
    /// Where to; the port is 0 where there is none.
    pub destination: SocketAddr,
    /// What it carries.
    pub body: Body,
    /// What that carries.
    pub payload: Vec<u8>,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Type of service or traffic class, with ECN.
    pub traffic_class: u8,
    /// IPv6 only.
    pub flow_label: u32,
    /// Identification; of IPv6 in fragments only.
    pub id: u32,
    /// IPv4 only.
    pub dont_fragment: bool,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers: number, and all bytes but the first, which says what follows.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// Which part of the datagram it is.
    pub part: Option<Part>,
    /// TCP's sequence number, or SCTP's verification tag.
    pub sequence: u32,
    /// TCP's acknowledgment number.
    pub acknowledgment: u32,
}

impl Frame {
    /// A packet with unremarkable fields and a short payload of odd length.
    pub fn new(source: SocketAddr, destination: SocketAddr, body: Body) -> Self {
        Self {
            source,
            destination,
            body,
            payload: b"an odd number of bytes.".to_vec(),
            ttl: 61,
            traffic_class: 0,
            flow_label: 0,
            id: 0x1234,
            dont_fragment: true,
            options: Vec::new(),
            extensions: Vec::new(),
            part: None,
            sequence: 0x0102_0304,
            acknowledgment: 0x0506_0708,
        }
    }

    /// An ICMP or ICMPv6 error that quotes these bytes.
    pub fn error(source: IpAddr, destination: IpAddr, [kind, code]: [u8; 2], rest: [u8; 4], quote: &[u8]) -> Self {
        let port_less = |ip| SocketAddr::new(ip, 0);
        let body = Body::Icmp { kind, code, rest };
        Self { payload: quote.to_vec(), ..Self::new(port_less(source), port_less(destination), body) }
    }

    /// The same with a change.
    #[must_use]
    pub fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut changed = self.clone();
        change(&mut changed);
        changed
    }

    /// The same with other ends.
    #[must_use]
    pub fn between(&self, source: SocketAddr, destination: SocketAddr) -> Self {
        Self { source, destination, ..self.clone() }
    }

    /// The same, a hop further.
    #[must_use]
    pub fn forwarded(&self) -> Self {
        Self { ttl: self.ttl - 1, ..self.clone() }
    }

    /// An answer to this packet, with fields of its own.
    #[must_use]
    pub fn answer(&self) -> Self {
        let body = match &self.body {
            Body::EchoRequest => Body::EchoReply,
            other => other.clone(),
        };
        let answer = Self::new(self.destination, self.source, body);
        Self { payload: b"and this is what comes back".to_vec(), id: 0x4321, ..answer }
    }

    /// The packet in parts, each of which holds `length` bytes of the datagram, but for the last.
    pub fn parts(&self, length: usize) -> Vec<Self> {
        let total = self.datagram().len();
        let part = |start| Part { start, length, more: start + length < total };
        let parts = (0..total).step_by(length).map(part);
        parts.map(|part| Self { part: Some(part), dont_fragment: false, ..self.clone() }).collect()
    }

    /// The packet's bytes, from the IP header on.
    pub fn packet(&self) -> Vec<u8> {
        let mut datagram = self.datagram();
        if let Some(Part { start, length, .. }) = self.part {
            datagram = datagram.into_iter().skip(start).take(length).collect();
        }
        match self.source {
            SocketAddr::V4(_) => self.ipv4(&datagram),
            SocketAddr::V6(_) => self.ipv6(&datagram),
        }
    }

    /// The packet behind an Ethernet header.
    pub fn bytes(&self, to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
        let kind: u16 = if self.source.is_ipv4() { 0x0800 } else { 0x86dd };
        [&to[..], &from, &kind.to_be_bytes(), &self.packet()].concat()
    }

    /// Bytes before the transport header.
    pub fn header_length(&self) -> usize {
        let extensions = self.extensions.iter().map(|(_, body)| body.len() + 1).sum::<usize>();
        let fragment = if self.part.is_some() { 8 } else { 0 };
        if self.source.is_ipv4() { 20 + self.options.len() } else { 40 + extensions + fragment }
    }

    /// The packet's beginning, as an ICMP error may quote it: the IP header and this much of what follows.
    pub fn quote(&self, length: usize) -> Vec<u8> {
        self.packet().into_iter().take(self.header_length() + length).collect()
    }

    fn protocol(&self) -> u8 {
        match self.body {
            Body::Tcp(_) => protocol::TCP,
            Body::Udp | Body::UdpUnchecked => protocol::UDP,
            Body::Sctp | Body::SctpUnchecked => protocol::SCTP,
            Body::Other(number) => number,
            _ if self.source.is_ipv4() => protocol::ICMP,
            _ => protocol::ICMPV6,
        }
    }

    fn datagram(&self) -> Vec<u8> {
        let (source, destination) = (self.source.port().to_be_bytes(), self.destination.port().to_be_bytes());
        let [request, reply] = if self.source.is_ipv4() { [8, 0] } else { [128, 129] };
        let (header, checksum_at) = match self.body {
            Body::Tcp(flags) => {
                let numbers = [self.sequence.to_be_bytes(), self.acknowledgment.to_be_bytes()].concat();
                // Offset (one option word), flags, window, checksum, urgent, MSS.
                let rest = [0x60, flags, 0xfa, 0xf0, 0, 0, 0, 0, 2, 4, 5, 0xb4];
                ([&source[..], &destination, &numbers, &rest].concat(), Some(16))
            }
            Body::Udp | Body::UdpUnchecked => {
                let length = u16::try_from(8 + self.payload.len()).unwrap_or(u16::MAX).to_be_bytes();
                let checked = self.body == Body::Udp;
                ([&source[..], &destination, &length, &[0, 0]].concat(), checked.then_some(6))
            }
            // The tag, and the checksum, which is of a kind of its own.
            Body::Sctp | Body::SctpUnchecked => {
                ([&source[..], &destination, &self.sequence.to_be_bytes(), &[0; 4]].concat(), None)
            }
            Body::EchoRequest => ([&[request, 0, 0, 0], &source[..], &[0, 7]].concat(), Some(2)),
            Body::EchoReply => ([&[reply, 0, 0, 0], &destination[..], &[0, 7]].concat(), Some(2)),
            Body::Icmp { kind, code, rest } => ([&[kind, code, 0, 0], &rest[..]].concat(), Some(2)),
            Body::Other(_) => (Vec::new(), None),
        };
        let mut datagram = [header, self.payload.clone()].concat();
        if let Some(at) = checksum_at {
            let checksum = match !self.sum(&datagram) {
                0 if self.body == Body::Udp => u16::MAX,
                checksum => checksum,
            };
            put(&mut datagram, at, &checksum.to_be_bytes());
        }
        if self.body == Body::Sctp {
            // The CRC's bytes are sent lowest first (RFC 9260, appendix A).
            let crc = crc32c::crc32c(&datagram);
            put(&mut datagram, 8, &crc.to_le_bytes());
        }
        datagram
    }

    /// The sum that a transport checksum is of: the datagram, and what else it covers (RFC 9293 section 3.1, RFC 8200 section
    /// 8.1).
    fn sum(&self, datagram: &[u8]) -> u16 {
        if self.protocol() == protocol::ICMP {
            return sum(datagram, 0);
        }
        let addresses = [octets(self.source.ip()), octets(self.destination.ip())].concat();
        let length = u64::try_from(datagram.len()).unwrap_or(u64::MAX);
        sum(datagram, u64::from(sum(&addresses, 0)) + length + u64::from(self.protocol()))
    }

    fn ipv4(&self, datagram: &[u8]) -> Vec<u8> {
        let length = self.header_length();
        let words = u8::try_from(length / 4).unwrap_or(u8::MAX);
        let total = u16::try_from(length + datagram.len()).unwrap_or(u16::MAX).to_be_bytes();
        let [_, _, id @ ..] = self.id.to_be_bytes();
        let flags = if self.dont_fragment { 0x4000 } else { 0 };
        let fragment = self
            .part
            .map_or(0, |part| u16::try_from(part.start / 8).unwrap_or(u16::MAX) | if part.more { 0x2000 } else { 0 });
        let fragment = (flags | fragment).to_be_bytes();
        let mut header = vec![0x40 | words, self.traffic_class];
        header.extend([total, id, fragment].concat());
        header.extend([self.ttl, self.protocol(), 0, 0]);
        header.extend([octets(self.source.ip()), octets(self.destination.ip()), self.options.clone()].concat());
        let checksum = !sum(&header, 0);
        put(&mut header, 10, &checksum.to_be_bytes());
        [&header, datagram].concat()
    }

    fn ipv6(&self, datagram: &[u8]) -> Vec<u8> {
        let mut extensions = self.extensions.clone();
        if let Some(part) = self.part {
            let field = u16::try_from(part.start & !7).unwrap_or(u16::MAX) | u16::from(part.more);
            let body = [&[0][..], &field.to_be_bytes(), &self.id.to_be_bytes()].concat();
            extensions.push((protocol::FRAGMENT, body));
        }
        let next = extensions.iter().map(|(number, _)| *number).chain([self.protocol()]).collect::<Vec<_>>();
        let mut rest = Vec::new();
        for ((_, body), next) in extensions.iter().zip(next.iter().skip(1)) {
            rest.push(*next);
            rest.extend(body);
        }
        rest.extend(datagram);
        let length = u16::try_from(rest.len()).unwrap_or(u16::MAX).to_be_bytes();
        let first = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label;
        let mut header = first.to_be_bytes().to_vec();
        header.extend(length);
        header.extend(next.first());
        header.push(self.ttl);
        header.extend([octets(self.source.ip()), octets(self.destination.ip()), rest].concat());
        header
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Content, read};

    #[test]
    fn every_packet_has_right_checksums() {
        let bodies = [Body::Tcp(2), Body::Udp, Body::EchoRequest, Body::EchoReply, Body::Sctp, Body::Other(47)];
        for (source, destination) in [("10.0.0.1:1000", "203.0.113.26:80"), ("[fd00::1]:1000", "[2001:db8::1]:80")] {
            for body in &bodies {
                let frame = Frame::new(source.parse().unwrap(), destination.parse().unwrap(), body.clone());
                let bytes = frame.bytes([1; 6], [2; 6]);
                let Content::Ip(packet) = read(&bytes) else { panic!("not IP: {frame:?}") };
                assert_eq!(packet.wrong_checksum(), None, "{frame:?}");
                assert_eq!(packet.payload.len(), frame.packet().len() - frame.header_length());
                let parts = frame.parts(16);
                let joined = parts.iter().flat_map(|part| part.packet().split_off(part.header_length()));
                assert_eq!(joined.collect::<Vec<_>>(), packet.payload, "{frame:?}");
            }
        }
    }
}
