//! What is sent: packets of both ends, with places left open for what only a lab knows.

use std::net::{IpAddr, SocketAddr};

use egress_lab::frame::Frame;

/// Which end of the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum End {
    /// The client's.
    Client,
    /// The outside's.
    Outside,
}

impl End {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Outside => "outside",
        }
    }
}

/// A conversation through the router: its four ends, as they are when the client's port is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Flow {
    pub(crate) client: SocketAddr,
    pub(crate) router: SocketAddr,
    pub(crate) snat: SocketAddr,
    pub(crate) server: SocketAddr,
}

/// One packet.
#[derive(Debug, Clone)]
pub(crate) enum Sent {
    /// As it is.
    Packet(Frame),
    /// An ICMP error that quotes so many bytes behind the other packet's IP header.
    Error { from: IpAddr, to: IpAddr, kind: [u8; 2], rest: [u8; 4], about: Frame, length: usize },
}

/// What is done to a packet's bytes after it was built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    None,
    /// The transport's checksum is wrong.
    Transport,
    /// The IPv4 header's checksum is wrong.
    Header,
    /// The packet ends this many bytes earlier than it says.
    Short(usize),
    /// So many bytes of padding follow it.
    Padded(usize),
}

/// Packets that are sent in a row, before anybody looks at what they brought.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    /// What it is an example of.
    pub(crate) name: &'static str,
    pub(crate) from: End,
    pub(crate) packets: Vec<Sent>,
    pub(crate) damage: Damage,
    /// The conversation whose source port is learnt from what leaves, and put into what comes back.
    pub(crate) flow: Option<Flow>,
}

impl Step {
    /// One packet.
    pub(crate) fn one(name: &'static str, from: End, frame: Frame) -> Self {
        Self::many(name, from, vec![frame])
    }

    /// Packets in a row.
    pub(crate) fn many(name: &'static str, from: End, frames: Vec<Frame>) -> Self {
        let packets = frames.into_iter().map(Sent::Packet).collect();
        Self { name, from, packets, damage: Damage::None, flow: None }
    }

    /// An ICMP error.
    pub(crate) fn error(name: &'static str, from: End, error: Sent) -> Self {
        Self { name, from, packets: vec![error], damage: Damage::None, flow: None }
    }

    pub(crate) fn of(self, flow: &Flow) -> Self {
        Self { flow: Some(*flow), ..self }
    }

    pub(crate) fn damaged(self, damage: Damage) -> Self {
        Self { damage, ..self }
    }
}

impl Sent {
    /// The IP packet, with the source port that the conversation was given where it is not the client's own.
    pub(crate) fn bytes(&self, port: Option<(Flow, u16)>, damage: Damage) -> Vec<u8> {
        let given = |end: &mut SocketAddr| {
            if let Some((flow, port)) = port
                && *end == flow.snat
            {
                end.set_port(port);
            }
        };
        let mut bytes = match self {
            Self::Packet(frame) => frame.with(|frame| given(&mut frame.destination)).packet(),
            Self::Error { from, to, kind, rest, about, length } => {
                let about = about.with(|frame| given(&mut frame.source));
                Frame::error(*from, *to, *kind, *rest, &about.quote(*length)).packet()
            }
        };
        let header = if bytes[0] >> 4 == 4 { usize::from(bytes[0] & 15) * 4 } else { 40 };
        match damage {
            Damage::None => {}
            Damage::Transport => {
                // Its last byte: a checksum covers everything.
                let last = bytes.len() - 1;
                bytes[last.max(header)] ^= 0x5a;
            }
            Damage::Header if header != 40 || bytes[0] >> 4 == 4 => bytes[10] ^= 0x5a,
            Damage::Header => {}
            Damage::Short(by) => bytes.truncate(bytes.len().saturating_sub(by).max(header)),
            Damage::Padded(by) => bytes.extend(vec![0xee; by]),
        }
        bytes
    }
}
