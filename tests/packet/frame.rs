//! Frames, built from scratch: a description that can be changed field by field, and the bytes that it means.
//!
//! What a translation must do to a frame is said by changing the description: the bytes of the changed one, with every
//! checksum computed anew, are what the datapath has to produce by its updates.

use std::net::{IpAddr, SocketAddr};

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;

/// Link address of the router's cluster interface.
pub(crate) const CLUSTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x10];
/// Link address of the router's external interface.
pub(crate) const EXTERNAL_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x20];
/// Link address of whoever is at the other end.
pub(crate) const PEER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];

/// TCP flag bits.
pub(crate) mod flag {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;
}

/// IP protocol numbers.
pub(crate) mod protocol {
    pub(crate) const HOP_BY_HOP: u8 = 0;
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const ROUTING: u8 = 43;
    pub(crate) const FRAGMENT: u8 = 44;
    pub(crate) const GRE: u8 = 47;
    pub(crate) const ICMPV6: u8 = 58;
    pub(crate) const DESTINATION: u8 = 60;
}

/// What the packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// A segment with these flags.
    Tcp(u8),
    /// A datagram.
    Udp,
    /// An echo request; the source port is its identifier.
    EchoRequest,
    /// An echo reply; the destination port is its identifier.
    EchoReply,
    /// Any other ICMP message, by type; its payload begins after the first four bytes.
    Icmp(u8),
    /// Payload alone, of this protocol.
    Other(u8),
}

/// A part of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Identification.
    pub(crate) id: u32,
    /// First byte, counted in the datagram; a multiple of eight.
    pub(crate) start: usize,
    /// Bytes of the datagram in this part; the rest of it if there is no more.
    pub(crate) len: usize,
    /// Whether more parts follow.
    pub(crate) more: bool,
}

/// A frame with an IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Link address that it is sent to.
    pub(crate) link_dst: [u8; 6],
    /// Link address that it is sent from.
    pub(crate) link_src: [u8; 6],
    /// Where from; the port is 0 where there is none.
    pub(crate) src: SocketAddr,
    /// Where to; the port is 0 where there is none.
    pub(crate) dst: SocketAddr,
    /// What it is.
    pub(crate) body: Body,
    /// What it carries.
    pub(crate) payload: Vec<u8>,
    /// TTL or hop limit.
    pub(crate) ttl: u8,
    /// IPv4 options, a multiple of four bytes.
    pub(crate) options: Vec<u8>,
    /// IPv6 extension headers: number, and all bytes but the first, which says what follows.
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    /// Which part of the datagram.
    pub(crate) part: Option<Part>,
    /// Leave the checksum of UDP out.
    pub(crate) no_checksum: bool,
}

impl Frame {
    /// A packet to the cluster interface.
    pub(crate) fn request(src: SocketAddr, dst: SocketAddr, body: Body) -> Self {
        Self {
            link_dst: CLUSTER_MAC,
            link_src: PEER_MAC,
            src,
            dst,
            body,
            payload: b"an odd number of bytes.".to_vec(),
            ttl: 61,
            options: Vec::new(),
            extensions: Vec::new(),
            part: None,
            no_checksum: false,
        }
    }

    /// A packet to the external interface.
    pub(crate) fn outside(src: SocketAddr, dst: SocketAddr, body: Body) -> Self {
        Self { link_dst: EXTERNAL_MAC, ..Self::request(src, dst, body) }
    }

    /// The same with a change.
    pub(crate) fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut changed = self.clone();
        change(&mut changed);
        changed
    }

    /// The same from elsewhere.
    pub(crate) fn from(&self, src: SocketAddr) -> Self {
        self.with(|frame| frame.src = src)
    }

    /// The same to elsewhere.
    pub(crate) fn to(&self, dst: SocketAddr) -> Self {
        self.with(|frame| frame.dst = dst)
    }

    /// An answer to this packet, as it comes to the other interface or leaves by this one.
    pub(crate) fn answer(&self) -> Self {
        self.with(|frame| {
            (frame.src, frame.dst) = (self.dst, self.src);
            frame.link_dst = if self.link_dst == CLUSTER_MAC { EXTERNAL_MAC } else { CLUSTER_MAC };
            frame.payload = b"and this is what comes back".to_vec();
            frame.body = match &self.body {
                Body::Tcp(flag::SYN) => Body::Tcp(flag::SYN | flag::ACK),
                Body::Tcp(_) => Body::Tcp(flag::ACK | flag::PSH),
                Body::EchoRequest => Body::EchoReply,
                other => other.clone(),
            };
        })
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut datagram = self.datagram();
        if let Some(part) = self.part {
            let start = part.start.min(datagram.len());
            datagram = datagram[start..datagram.len().min(start.saturating_add(part.len))].to_vec();
        }
        let packet = if self.src.is_ipv4() { self.ipv4(&datagram) } else { self.ipv6(&datagram) };
        let ether_type: u16 = if self.src.is_ipv4() { 0x0800 } else { 0x86dd };
        [&self.link_dst[..], &self.link_src, &ether_type.to_be_bytes(), &packet].concat()
    }

    /// Offset of the transport header.
    pub(crate) fn l4(&self) -> usize {
        let extensions: usize = self.extensions.iter().map(|(_, body)| body.len() + 1).sum();
        let fragment = if self.part.is_some() && !self.src.is_ipv4() { 8 } else { 0 };
        ETHERNET + if self.src.is_ipv4() { 20 + self.options.len() } else { 40 + extensions + fragment }
    }

    /// In two parts, the first of which ends at `at` bytes into the datagram.
    pub(crate) fn parts(&self, id: u32, at: usize) -> (Self, Self) {
        let part = |start, len, more| self.with(|frame| frame.part = Some(Part { id, start, len, more }));
        (part(0, at, true), part(at, usize::MAX / 2, false))
    }

    /// The IP protocol of the body.
    pub(crate) fn protocol(&self) -> u8 {
        match self.body {
            Body::Tcp(_) => protocol::TCP,
            Body::Udp => protocol::UDP,
            Body::EchoRequest | Body::EchoReply | Body::Icmp(_) if self.src.is_ipv4() => protocol::ICMP,
            Body::EchoRequest | Body::EchoReply | Body::Icmp(_) => protocol::ICMPV6,
            Body::Other(number) => number,
        }
    }

    fn datagram(&self) -> Vec<u8> {
        let (sport, dport) = (self.src.port().to_be_bytes(), self.dst.port().to_be_bytes());
        let v4 = self.src.is_ipv4();
        let (header, checksum_at) = match self.body {
            Body::Tcp(flags) => {
                // Sequence and acknowledgment number, offset (one option word), flags, window, checksum, urgent, MSS.
                let rest = [1, 2, 3, 4, 5, 6, 7, 8, 0x60, flags, 0xfa, 0xf0, 0, 0, 0, 0, 2, 4, 5, 0xb4];
                ([&sport[..], &dport, &rest].concat(), Some(16))
            }
            Body::Udp => {
                let len = u16::try_from(8 + self.payload.len()).unwrap();
                ([&sport[..], &dport, &len.to_be_bytes(), &[0, 0]].concat(), (!self.no_checksum).then_some(6))
            }
            Body::EchoRequest => ([&[if v4 { 8 } else { 128 }, 0, 0, 0], &sport[..], &[0, 7]].concat(), Some(2)),
            Body::EchoReply => ([&[if v4 { 0 } else { 129 }, 0, 0, 0], &dport[..], &[0, 7]].concat(), Some(2)),
            Body::Icmp(kind) => (vec![kind, 0, 0, 0], Some(2)),
            Body::Other(_) => (Vec::new(), None),
        };
        let mut datagram = [header, self.payload.clone()].concat();
        if let Some(at) = checksum_at {
            let pseudo = self.pseudo_header(datagram.len());
            let mut checksum = checksum(&[&pseudo[..], &datagram].concat());
            if self.protocol() == protocol::UDP && checksum == 0 {
                checksum = 0xffff;
            }
            datagram[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        datagram
    }

    /// The checksum of the pseudo-header of so long a datagram alone.
    pub(crate) fn pseudo_checksum(&self, len: usize) -> u16 {
        checksum(&self.pseudo_header(len))
    }

    /// What a transport checksum covers beside the datagram (RFC 9293 section 3.1, RFC 8200 section 8.1); ICMP for IPv4 has
    /// none.
    fn pseudo_header(&self, len: usize) -> Vec<u8> {
        if self.protocol() == protocol::ICMP {
            return Vec::new();
        }
        let len = u32::try_from(len).unwrap().to_be_bytes();
        [octets(self.src.ip()), octets(self.dst.ip()), len.to_vec(), vec![0, 0, 0, self.protocol()]].concat()
    }

    fn ipv4(&self, datagram: &[u8]) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let total = u16::try_from(header_len + datagram.len()).unwrap().to_be_bytes();
        let (id, fragment) = match self.part {
            Some(part) => (part.id, fragment_field(&part, part.start / 8)),
            None => (0x1234, 0x4000),
        };
        let [_, _, id_high, id_low] = id.to_be_bytes();
        let [fragment_high, fragment_low] = u16::to_be_bytes(fragment);
        let mut header = vec![0x40 | u8::try_from(header_len / 4).unwrap(), 0x28, total[0], total[1], id_high, id_low];
        header.extend([fragment_high, fragment_low, self.ttl, self.protocol(), 0, 0]);
        header.extend(octets(self.src.ip()).iter().chain(&octets(self.dst.ip())).chain(&self.options));
        let sum = checksum(&header).to_be_bytes();
        header[10..12].copy_from_slice(&sum);
        [&header, datagram].concat()
    }

    fn ipv6(&self, datagram: &[u8]) -> Vec<u8> {
        let mut extensions = self.extensions.clone();
        if let Some(part) = self.part {
            let field = (part.start as u16 & !7) | u16::from(part.more);
            let [high, low] = field.to_be_bytes();
            extensions.push((protocol::FRAGMENT, [&[0, high, low][..], &part.id.to_be_bytes()].concat()));
        }
        let mut next: Vec<u8> = extensions.iter().map(|(number, _)| *number).collect();
        next.push(self.protocol());
        let mut rest = Vec::new();
        for ((_, body), next) in extensions.iter().zip(&next[1..]) {
            rest.push(*next);
            rest.extend(body);
        }
        rest.extend(datagram);
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        let header = [0x62, 0x8a, 0xbc, 0xde, len[0], len[1], next[0], self.ttl];
        [&header[..], &octets(self.src.ip()), &octets(self.dst.ip()), &rest].concat()
    }
}

fn fragment_field(part: &Part, offset: usize) -> u16 {
    u16::try_from(offset).unwrap() | if part.more { 0x2000 } else { 0 }
}

/// Hop-by-hop or destination options of 8 bytes: padding alone, as many eights more as said.
pub(crate) fn options_header(number: u8, more_eights: u8) -> (u8, Vec<u8>) {
    let padding = 4 + 8 * usize::from(more_eights);
    (number, [vec![more_eights, 1, u8::try_from(padding).unwrap()], vec![0; padding]].concat())
}

/// A routing header of type 4 with no segments listed.
pub(crate) fn routing_header(segments_left: u8) -> (u8, Vec<u8>) {
    (protocol::ROUTING, vec![0, 4, segments_left, 0, 0, 0, 0])
}

/// A frame with any Ethernet type.
pub(crate) fn raw(link_dst: [u8; 6], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&link_dst[..], &PEER_MAC, &ether_type.to_be_bytes(), payload].concat()
}

/// Makes the checksum of an IPv4 header without options right again, after a change of it.
pub(crate) fn seal(frame: &mut [u8]) {
    if let [_, _, _, _, _, _, _, _, _, _, _, _, 0x08, 0x00, packet @ ..] = frame
        && let Some(header) = packet.get_mut(..20)
    {
        header[10..12].fill(0);
        let sum = checksum(header).to_be_bytes();
        header[10..12].copy_from_slice(&sum);
    }
}

/// The Internet checksum (RFC 1071), from scratch.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u64 =
        bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// Bytes of an address.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
