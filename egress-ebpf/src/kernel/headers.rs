//! What the IP and transport headers of a packet say.

use egress_ebpf::addr::{Addr, Port};
use egress_ebpf::contract::{Direction, FlowKey, FragmentKey, FragmentPorts, Side};
use egress_ebpf::tcp::flag;
use egress_ebpf::timeout::{SECOND_NS, protocol};
use egress_ebpf::verdict::DropReason;

use super::Scene;
use super::family::Family;
use super::maps::FRAGMENTS;
use super::packet::{MANGLED, Packet};

/// Where a packet stands in its datagram.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fragment {
    /// It is the datagram.
    Whole,
    /// It starts it: the transport header is here.
    First,
    /// It goes on: no transport header.
    Later,
}

impl Fragment {
    #[inline(always)]
    pub(crate) fn of(offset: u16, more: bool) -> Self {
        match (offset, more) {
            (0, false) => Self::Whole,
            (0, true) => Self::First,
            _ => Self::Later,
        }
    }
}

/// The IP header, with what its extension headers add.
pub(crate) struct Headers {
    pub(crate) src: Addr,
    pub(crate) dst: Addr,
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    /// Offset of the transport header from the start of the frame.
    pub(crate) l4: u32,
    pub(crate) fragment: Fragment,
    /// Identification of the datagram, as it lies in the header.
    pub(crate) id: u32,
}

/// One end of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

/// What a transport header is, as far as translation is concerned.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Udp,
    Sctp,
    Dccp,
    EchoRequest,
    EchoReply,
    /// An ICMP error; its type is not needed.
    IcmpError,
    /// Neighbour or multicast listener discovery.
    LinkControl,
    /// Any other ICMP message.
    OtherIcmp,
    /// A protocol without ports, as far as we know.
    Other,
    /// A later fragment: no header to change.
    Absent,
}

/// The transport header.
pub(crate) struct Transport {
    pub(crate) kind: Kind,
    pub(crate) src_port: Port,
    pub(crate) dst_port: Port,
    /// TCP's flags; for everything else an ACK, the flag that opens and closes nothing.
    pub(crate) tcp_flags: u8,
}

/// Where a transport checksum is, and what it covers.
pub(crate) struct Checksum {
    /// Offset in the transport header.
    pub(crate) offset: u32,
    /// Whether a pseudo-header with the addresses is part of it.
    pub(crate) covers_addresses: bool,
    /// [`MANGLED`] or 0.
    pub(crate) mangled: u64,
}

impl Transport {
    /// Reads the transport header of a packet that is whole or a first fragment; that of a later fragment is `Absent`.
    #[inline(always)]
    pub(crate) fn read<F: Family>(packet: &Packet, headers: &Headers) -> Result<Self, DropReason> {
        if matches!(headers.fragment, Fragment::Later) {
            return Ok(Self { kind: Kind::Absent, src_port: Port::NONE, dst_port: Port::NONE, tcp_flags: flag::ACK });
        }
        let kind = match headers.protocol {
            protocol::TCP => Kind::Tcp,
            protocol::UDP | protocol::UDP_LITE => Kind::Udp,
            protocol::SCTP => Kind::Sctp,
            protocol::DCCP => Kind::Dccp,
            icmp if icmp == F::ICMP => return Self::read_icmp::<F>(packet, headers),
            _ => return Ok(Self { kind: Kind::Other, src_port: Port::NONE, dst_port: Port::NONE, tcp_flags: flag::ACK }),
        };
        let [src, dst]: [u16; 2] = packet.read(headers.l4)?;
        let tcp_flags = if matches!(kind, Kind::Tcp) {
            // Reading the last field that may be written proves that the header is whole up to there.
            let [flags, _, _, _, _, _, _]: [u8; 7] = packet.read(headers.l4 + 13)?;
            flags
        } else {
            flag::ACK
        };
        Ok(Self { kind, src_port: Port::from_wire(src), dst_port: Port::from_wire(dst), tcp_flags })
    }

    #[inline(always)]
    fn read_icmp<F: Family>(packet: &Packet, headers: &Headers) -> Result<Self, DropReason> {
        let words: [u32; 2] = packet.read(headers.l4)?;
        let [icmp_type, ..] = words[0].to_ne_bytes();
        let [id_high, id_low, ..] = words[1].to_ne_bytes();
        let id = Port::from_wire(u16::from_ne_bytes([id_high, id_low]));
        let (kind, src_port, dst_port) = if icmp_type == F::ECHO_REQUEST {
            (Kind::EchoRequest, id, Port::NONE)
        } else if icmp_type == F::ECHO_REPLY {
            (Kind::EchoReply, Port::NONE, id)
        } else if F::is_link_control(icmp_type) {
            (Kind::LinkControl, Port::NONE, Port::NONE)
        } else if F::is_icmp_error(icmp_type) {
            (Kind::IcmpError, Port::NONE, Port::NONE)
        } else {
            (Kind::OtherIcmp, Port::NONE, Port::NONE)
        };
        Ok(Self { kind, src_port, dst_port, tcp_flags: flag::ACK })
    }

    /// Offset in the transport header of this end's port or identifier.
    #[inline(always)]
    pub(crate) fn port_offset(&self, end: End) -> Option<u32> {
        match (self.kind, end) {
            (Kind::Tcp | Kind::Udp | Kind::Sctp | Kind::Dccp, End::Source) => Some(0),
            (Kind::Tcp | Kind::Udp | Kind::Sctp | Kind::Dccp, End::Destination) => Some(2),
            (Kind::EchoRequest, End::Source) | (Kind::EchoReply, End::Destination) => Some(4),
            _ => None,
        }
    }

    /// The Internet checksum of this transport. SCTP's is a CRC that covers no address.
    #[inline(always)]
    pub(crate) fn checksum<F: Family>(&self) -> Option<Checksum> {
        match self.kind {
            Kind::Tcp => Some(Checksum { offset: 16, covers_addresses: true, mangled: 0 }),
            Kind::Udp => Some(Checksum { offset: 6, covers_addresses: true, mangled: MANGLED }),
            Kind::Dccp => Some(Checksum { offset: 6, covers_addresses: true, mangled: 0 }),
            Kind::EchoRequest | Kind::EchoReply | Kind::IcmpError | Kind::LinkControl | Kind::OtherIcmp => {
                Some(Checksum { offset: 2, covers_addresses: !F::IS_V4, mangled: 0 })
            }
            Kind::Sctp | Kind::Other | Kind::Absent => None,
        }
    }

    /// Learns the ports of a later fragment from its first one, and remembers a first one's.
    #[inline(always)]
    pub(crate) fn join_fragments(&mut self, headers: &Headers, side: Side, scene: &Scene) -> Result<(), DropReason> {
        if matches!(headers.fragment, Fragment::Whole) {
            return Ok(());
        }
        let key = &mut scene.work().fragment_key;
        *key = FragmentKey {
            src: headers.src,
            dst: headers.dst,
            id: headers.id,
            protocol: headers.protocol,
            side: side as u8,
            pad: [0; 2],
        };
        let now_s = (scene.now_ns / SECOND_NS) as u32;
        if matches!(headers.fragment, Fragment::First) {
            let ports = FragmentPorts { src_port: self.src_port, dst_port: self.dst_port, seen_s: now_s };
            return FRAGMENTS.insert(&*key, &ports, 0).map_err(|_errno| DropReason::KernelCall);
        }
        // SAFETY: the value is copied at once; an entry reused meanwhile for another datagram is another first fragment's.
        let Some(ports) = (unsafe { FRAGMENTS.get(&*key) }).copied() else {
            return Err(DropReason::FragmentUnknown);
        };
        if now_s.wrapping_sub(ports.seen_s) > FRAGMENT_TIMEOUT_S {
            return Err(DropReason::FragmentUnknown);
        }
        self.src_port = ports.src_port;
        self.dst_port = ports.dst_port;
        Ok(())
    }

    /// Key of the flow that a packet arriving in this direction belongs to.
    #[inline(always)]
    pub(crate) fn flow_key(&self, headers: &Headers, direction: Direction) -> FlowKey {
        FlowKey {
            src: headers.src,
            dst: headers.dst,
            src_port: self.src_port,
            dst_port: self.dst_port,
            protocol: headers.protocol,
            direction: direction as u8,
            pad: [0; 2],
        }
    }
}

/// How long a first fragment's ports are remembered: as long as Linux keeps an incomplete IPv4 datagram
/// (`net.ipv4.ipfrag_time`).
const FRAGMENT_TIMEOUT_S: u32 = 30;
