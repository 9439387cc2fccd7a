//! What a step brought to the two ends, made comparable, and compared.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use egress_lab::address::SNAT;
use egress_lab::packet::{self, Content, ip_bytes, protocol};

use crate::step::{End, Flow, Step};

/// A packet that arrived at one of the ends. What two kernels may choose differently is taken out of its bytes:
/// identifications, and the port that a conversation was given when its own was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observed {
    pub(crate) end: End,
    /// What it is, in a few words.
    pub(crate) kind: String,
    bytes: Vec<u8>,
    /// Which of its checksums is wrong.
    wrong: Option<&'static str>,
}

impl Observed {
    /// The IP packet in a frame; nothing for what only keeps the link going.
    pub(crate) fn of(end: End, frame: &[u8], [router, own]: [[u8; 6]; 2]) -> Option<Self> {
        let Content::Ip(packet) = packet::read(frame) else { return None };
        let is_discovery = |kind| matches!(kind, 130..=137 | 143);
        if packet.protocol == protocol::ICMPV6 && packet.icmp().is_some_and(|(kind, _)| is_discovery(kind)) {
            return None;
        }
        let mut kind = words_for(end, &packet);
        if frame[..6] != own || frame[6..12] != router {
            kind += " by another link address";
        }
        let wrong = packet.wrong_checksum();
        let mut bytes = ip_bytes(frame).unwrap_or_default().to_vec();
        forget_identification(&mut bytes);
        Some(Self { end, kind, bytes, wrong })
    }

    pub(crate) fn is_between(&self, source: IpAddr, destination: IpAddr) -> bool {
        self.packet(|packet| (packet.source, packet.destination) == (source, destination))
    }

    /// The source port, or an echo's identifier.
    pub(crate) fn source_port(&self) -> Option<u16> {
        let at = self.source_port_at()?;
        Some(u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]))
    }

    /// Puts the conversation's own source port in the place of the one that it was given.
    pub(crate) fn give_back(&mut self, flow: &Flow, port: u16) {
        let ours = self.end == End::Outside && self.is_between(flow.snat.ip(), flow.server.ip());
        if !ours || self.source_port() != Some(port) || self.wrong.is_some() {
            return;
        }
        let Some(at) = self.source_port_at() else { return };
        let own = flow.snat.port();
        self.bytes[at..at + 2].copy_from_slice(&own.to_be_bytes());
        // It was right before: so it is, after the change of one word (RFC 1624).
        let checksum_at = self.packet(|packet| match packet.protocol {
            protocol::TCP => Some(16),
            protocol::UDP if packet.payload[6..8] != [0, 0] => Some(6),
            protocol::ICMP | protocol::ICMPV6 => Some(2),
            _ => None,
        });
        if let Some(offset) = checksum_at {
            let transport = self.bytes.len() - self.packet(|packet| packet.payload.len());
            let field = transport + offset;
            let old = u16::from_be_bytes([self.bytes[field], self.bytes[field + 1]]);
            let mut sum = u32::from(!old) + u32::from(!port) + u32::from(own);
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            let [_, _, new @ ..] = (!sum).to_be_bytes();
            self.bytes[field..field + 2].copy_from_slice(&new);
        }
    }

    fn source_port_at(&self) -> Option<usize> {
        self.packet(|packet| {
            let transport = self.bytes.len() - packet.payload.len();
            let later = packet.fragment && !self.is_first_fragment();
            match packet.protocol {
                _ if later => None,
                protocol::TCP | protocol::UDP | protocol::SCTP => Some(transport),
                protocol::ICMP if packet.icmp()?.0 == 8 => Some(transport + 4),
                protocol::ICMPV6 if packet.icmp()?.0 == 128 => Some(transport + 4),
                _ => None,
            }
        })
    }

    fn is_first_fragment(&self) -> bool {
        if self.bytes[0] >> 4 == 4 {
            self.bytes[6] & 0x1f == 0 && self.bytes[7] == 0
        } else {
            self.bytes[42..44] == [0, 1]
        }
    }

    fn packet<T>(&self, look: impl FnOnce(&packet::Packet<'_>) -> T) -> T {
        let kind: u16 = if self.bytes[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
        let frame = [&[0; 12][..], &kind.to_be_bytes(), &self.bytes].concat();
        match packet::read(&frame) {
            Content::Ip(packet) => look(&packet),
            other => panic!("no longer a packet: {other:?}"),
        }
    }

    /// Names of the fields in which two packets differ.
    fn fields_unlike(&self, other: &Self) -> BTreeSet<&'static str> {
        let mut fields = BTreeSet::new();
        if self.wrong != other.wrong {
            fields.insert("checksum");
        }
        if self.bytes.len() != other.bytes.len() {
            fields.insert("length");
        }
        let v4 = self.bytes[0] >> 4 == 4;
        let header = if v4 { usize::from(self.bytes[0] & 15) * 4 } else { 40 };
        for at in (0..self.bytes.len().min(other.bytes.len())).filter(|at| self.bytes[*at] != other.bytes[*at]) {
            fields.insert(match at {
                0..=1 if v4 => "traffic class",
                2..=3 if v4 => "length",
                6..=7 if v4 => "fragment",
                8 if v4 => "ttl",
                10..=11 if v4 => "header checksum",
                12..=15 if v4 => "source",
                16..=19 if v4 => "destination",
                0..=3 => "traffic class and flow label",
                4..=5 if !v4 => "length",
                7 if !v4 => "ttl",
                8..=23 if !v4 => "source",
                24..=39 if !v4 => "destination",
                _ if at < header => "options",
                _ => "payload",
            });
        }
        fields
    }
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.end.name(), self.kind)?;
        if let Some(wrong) = self.wrong {
            write!(f, ", wrong {wrong} checksum")?;
        }
        f.write_str(" ")?;
        self.bytes.iter().take(120).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a packet is, as far as differences are told apart by it.
fn words_for(end: End, packet: &packet::Packet<'_>) -> String {
    let what = match packet.protocol {
        _ if packet.fragment => "fragment".to_owned(),
        protocol::TCP if packet.payload.get(13).is_some_and(|flags| flags & 4 != 0) => "reset".to_owned(),
        protocol::TCP => "TCP".to_owned(),
        protocol::UDP => "UDP".to_owned(),
        protocol::ICMP | protocol::ICMPV6 => match (packet.source.is_ipv4(), packet.icmp()) {
            (true, Some((0, _))) | (false, Some((129, _))) => "echo reply".to_owned(),
            (true, Some((8, _))) | (false, Some((128, _))) => "echo request".to_owned(),
            (_, Some((kind, code))) => format!("ICMP {kind}/{code}"),
            _ => "ICMP".to_owned(),
        },
        other => format!("protocol {other}"),
    };
    let translated = end == End::Client || SNAT.both().contains(&packet.source);
    if translated { what } else { format!("untranslated {what}") }
}

/// Identifications are the sender's choice; a header's checksum is right with another one too, or wrong as before.
fn forget_identification(bytes: &mut [u8]) {
    if bytes[0] >> 4 == 4 {
        bytes[4..6].fill(0);
        bytes[10..12].fill(0);
        forget_time(bytes);
        return;
    }
    let (mut next, mut at) = (bytes[6], 40);
    while [0, 43, 60].contains(&next) && at + 8 <= bytes.len() {
        next = bytes[at];
        at += 8 + 8 * usize::from(bytes[at + 1]);
    }
    if next == protocol::FRAGMENT && at + 8 <= bytes.len() {
        bytes[at + 4..at + 8].fill(0);
    }
}

/// What a timestamp option has recorded (RFC 791) is another time in each lab.
fn forget_time(bytes: &mut [u8]) {
    let header = usize::from(bytes[0] & 15) * 4;
    let mut at = 20;
    while at + 2 <= header && bytes[at] > 0 {
        let length = if bytes[at] == 1 { 1 } else { usize::from(bytes[at + 1]).max(2) };
        if bytes[at] == 68 {
            bytes[(at + 4).min(header)..(at + length).min(header)].fill(0);
        }
        at += length;
    }
}

/// In what a step came out differently.
#[derive(Debug, Default, Clone)]
pub(crate) struct Difference {
    /// The step's name.
    pub(crate) step: &'static str,
    /// What came by kernel NAT alone, as `end: kind`.
    pub(crate) only_original: BTreeSet<String>,
    /// What came by the router alone.
    pub(crate) only_ours: BTreeSet<String>,
    /// What came by both and was not the same, as `end: field`.
    pub(crate) changed: BTreeSet<String>,
    text: String,
}

impl Difference {
    /// Compares what the two brought; the order of packets does not matter.
    pub(crate) fn between(step: &Step, mut original: Vec<Observed>, mut ours: Vec<Observed>) -> Option<Self> {
        original.retain(|seen| match ours.iter().position(|other| other == seen) {
            Some(at) => {
                ours.remove(at);
                false
            }
            None => true,
        });
        if original.is_empty() && ours.is_empty() {
            return None;
        }
        let list = |seen: &[Observed]| seen.iter().map(|seen| format!("\n      {seen}")).collect::<String>();
        let text = format!("\n   by the original only:{}\n   by ours only:{}", list(&original), list(&ours));
        let mut difference = Self { step: step.name, text, ..Self::default() };
        for seen in original {
            let is_like = |other: &Observed| (other.end, &other.kind) == (seen.end, &seen.kind);
            match ours.iter().position(is_like) {
                Some(at) => {
                    let other = ours.remove(at);
                    let fields = seen.fields_unlike(&other);
                    difference.changed.extend(fields.iter().map(|field| format!("{}: {field}", seen.end.name())));
                }
                None => {
                    difference.only_original.insert(format!("{}: {}", seen.end.name(), seen.kind));
                }
            }
        }
        difference.only_ours = ours.iter().map(|seen| format!("{}: {}", seen.end.name(), seen.kind)).collect();
        Some(difference)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |words: &BTreeSet<String>| words.iter().cloned().collect::<Vec<_>>().join(", ");
        write!(
            f,
            "{}; original [{}], ours [{}], changed [{}]{}",
            self.step,
            list(&self.only_original),
            list(&self.only_ours),
            list(&self.changed),
            self.text
        )
    }
}

/// The same host with another port.
pub(crate) fn with_port(end: SocketAddr, port: u16) -> SocketAddr {
    SocketAddr::new(end.ip(), port)
}
