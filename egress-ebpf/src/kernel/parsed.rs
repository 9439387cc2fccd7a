//! What the headers of a packet say.
//!
//! A packet is read once, by a global BPF function, into this CPU's work space; everything after works on what stands there.
//! That keeps the programs' stacks small, and the verifier, which knows nothing of a map's content, meets one state after
//! parsing and not one for each kind of packet.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use egress_ebpf::addr::{Addr, Port};
use egress_ebpf::contract::{Direction, FlowKey, FragmentKey, FragmentPorts, Mark, Side};
use egress_ebpf::sctp;
use egress_ebpf::tcp::flag;
use egress_ebpf::timeout::{SECOND_NS, protocol};
use egress_ebpf::verdict::DropReason;

use super::established::Frame as _;
use super::family::{Family, V4, V6};
use super::maps::FRAGMENTS;
use super::packet::{L3, Packet};
use super::{Scene, answer, scene, work};

/// Where a packet stands in its datagram.
#[repr(u8)]
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

/// What a transport header is, as far as translation is concerned.
#[repr(u8)]
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

/// Where a transport checksum is, and what it covers.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coverage {
    /// There is none, or one that no address and no port changes.
    None,
    /// The message alone.
    Message,
    /// A pseudo-header with the addresses too.
    Addresses,
    /// The same, and zero means that there is none.
    Optional,
}

/// The headers of a packet.
#[repr(C)]
pub(crate) struct Parsed {
    pub(crate) src: Addr,
    pub(crate) dst: Addr,
    /// Offset of the IP header from the start of the frame.
    pub(crate) l3: u32,
    /// Offset of the transport header from the start of the frame.
    pub(crate) l4: u32,
    /// Least length of the transport header.
    pub(crate) least: u32,
    /// Where the packet ends, by its own account, from the start of the frame.
    pub(crate) end: u32,
    /// Identification of the datagram, as it lies in the header.
    pub(crate) id: u32,
    /// Offset of the transport checksum from the start of the frame.
    pub(crate) checksum: u32,
    /// Source port; of an echo request its identifier.
    pub(crate) src_port: Port,
    /// Destination port; of an echo reply its identifier.
    pub(crate) dst_port: Port,
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    pub(crate) fragment: Fragment,
    pub(crate) kind: Kind,
    pub(crate) coverage: Coverage,
    /// TCP's flags, or what an SCTP chunk is in TCP's words; else an ACK, the flag that opens and closes nothing.
    pub(crate) flags: u8,
    /// Whether there are ports.
    pub(crate) has_ports: bool,
    /// Whether the IP header's checksum is right, as far as that is for us to find: see `read_fixed`.
    pub(crate) is_sound: bool,
}

/// How much of a packet is there.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it, at the start of the frame.
    Whole = 0,
    /// The first eight bytes of its transport header, at least: an ICMP error quotes it (RFC 792).
    Quoted = 1,
}

/// Reads the packet's headers.
#[inline(always)]
pub(crate) fn parse<F: Family>(packet: &Packet) -> Result<&'static Parsed, DropReason> {
    parse_at::<F>(packet, L3, Part::Whole)?;
    let parsed = &work().ok_or(DropReason::KernelCall)?.parsed;
    if parsed.is_sound && parsed.has_length(packet.len()) { Ok(parsed) } else { Err(DropReason::Malformed) }
}

/// Reads the headers of the packet that the ICMP error in `WORK` quotes.
#[inline(always)]
pub(crate) fn parse_quoted<F: Family>(packet: &Packet, at: u32) -> Result<&'static Parsed, DropReason> {
    parse_at::<F>(packet, at, Part::Quoted)?;
    let quoted = &work().ok_or(DropReason::KernelCall)?.quoted;
    // A later fragment names no ports, and no host reports an error about one (RFC 1122 section 3.2.2).
    if quoted.fragment == Fragment::Later { Err(DropReason::IcmpUnmatched) } else { Ok(quoted) }
}

#[inline(always)]
fn parse_at<F: Family>(packet: &Packet, at: u32, part: Part) -> Result<(), DropReason> {
    let ctx = packet.ctx().skb.skb;
    answer::decode(if F::IS_V4 { parse_v4(ctx, at, part as u32) } else { parse_v6(ctx, at, part as u32) })
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn parse_v4(ctx: *mut __sk_buff, at: u32, part: u32) -> u32 {
    answer::encode(read::<V4>(ctx, at, part))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn parse_v6(ctx: *mut __sk_buff, at: u32, part: u32) -> u32 {
    answer::encode(read::<V6>(ctx, at, part))
}

#[inline(always)]
fn read<F: Family>(ctx: *mut __sk_buff, at: u32, part: u32) -> Result<(), DropReason> {
    let packet = Packet::new(TcContext::new(ctx));
    let work = work().ok_or(DropReason::KernelCall)?;
    let whole = part == Part::Whole as u32;
    let parsed = if whole { &mut work.parsed } else { &mut work.quoted };
    parsed.l3 = at;
    // Nothing of an earlier packet stands here when this one cannot be read.
    parsed.src = Addr::UNSPECIFIED;
    parsed.dst = Addr::UNSPECIFIED;
    parsed.src_port = Port::NONE;
    parsed.dst_port = Port::NONE;
    parsed.flags = flag::ACK;
    parsed.has_ports = false;
    parsed.coverage = Coverage::None;
    parsed.least = 0;
    F::read_header(&packet, parsed)?;
    if parsed.fragment == Fragment::Later {
        parsed.kind = Kind::Absent;
        return Ok(());
    }
    match parsed.protocol {
        protocol::TCP => {
            parsed.set_tcp();
            if whole {
                parsed.flags = packet.read(parsed.l4 + 13)?;
            }
        }
        protocol::UDP | protocol::UDP_LITE => {
            parsed.set_udp();
        }
        protocol::DCCP => {
            parsed.kind = Kind::Dccp;
            parsed.least = 12;
            parsed.cover(Coverage::Addresses, 6);
        }
        protocol::SCTP => {
            parsed.set_sctp();
            if whole {
                // Twelve bytes of header, then the first chunk, which starts with its type.
                parsed.flags = sctp::flags(packet.read(parsed.l4 + 12).unwrap_or(0));
            }
        }
        icmp if icmp == F::ICMP => return read_icmp::<F>(&packet, parsed),
        _ => {
            parsed.kind = Kind::Other;
            return Ok(());
        }
    }
    let [src, dst]: [u16; 2] = packet.read(parsed.l4)?;
    parsed.src_port = Port::from_wire(src);
    parsed.dst_port = Port::from_wire(dst);
    parsed.has_ports = true;
    Ok(())
}

#[inline(always)]
fn read_icmp<F: Family>(packet: &Packet, parsed: &mut Parsed) -> Result<(), DropReason> {
    parsed.least = 8;
    let words: [u32; 2] = packet.read(parsed.l4)?;
    let [icmp_type, ..] = words[0].to_ne_bytes();
    let [id_high, id_low, ..] = words[1].to_ne_bytes();
    let id = Port::from_wire(u16::from_ne_bytes([id_high, id_low]));
    parsed.cover(if F::IS_V4 { Coverage::Message } else { Coverage::Addresses }, 2);
    parsed.kind = if icmp_type == F::ECHO_REQUEST {
        parsed.src_port = id;
        Kind::EchoRequest
    } else if icmp_type == F::ECHO_REPLY {
        parsed.dst_port = id;
        Kind::EchoReply
    } else if F::is_link_control(icmp_type) {
        Kind::LinkControl
    } else if F::is_icmp_error(icmp_type) {
        Kind::IcmpError
    } else {
        Kind::OtherIcmp
    };
    Ok(())
}

impl Parsed {
    #[inline(always)]
    pub(crate) fn set_tcp(&mut self) {
        self.kind = Kind::Tcp;
        self.least = 20;
        self.cover(Coverage::Addresses, 16);
    }

    #[inline(always)]
    pub(crate) fn set_udp(&mut self) {
        self.kind = Kind::Udp;
        self.least = 8;
        self.cover(Coverage::Optional, 6);
    }

    /// Its checksum covers no address.
    #[inline(always)]
    pub(crate) fn set_sctp(&mut self) {
        self.kind = Kind::Sctp;
        self.least = 12;
        self.coverage = Coverage::None;
    }

    #[inline(always)]
    fn cover(&mut self, coverage: Coverage, offset: u32) {
        self.coverage = coverage;
        self.checksum = self.l4 + offset;
    }

    /// Whether the headers end inside the packet, by the length that it says it has, and the packet inside its frame. The
    /// frame may go on: with padding of the link, in which nothing is to be read.
    #[inline(always)]
    pub(crate) fn has_length(&self, frame: u32) -> bool {
        // What the kernel has put together from many segments may be longer than the field can say ("BIG TCP").
        let too_long_to_say = frame > u32::from(u16::MAX);
        too_long_to_say || (self.l4 + self.least <= self.end && self.end <= frame)
    }

    /// Whether there is nothing between the fixed IP header and the transport header, and the datagram is whole.
    #[inline(always)]
    pub(crate) fn is_plain<F: Family>(&self) -> bool {
        self.l4 == self.l3 + F::PLAIN && self.fragment == Fragment::Whole
    }

    /// Whether there is nothing in the packet that a forwarding host has to write to.
    #[inline(always)]
    pub(crate) fn is_without_options<F: Family>(&self) -> bool {
        !F::IS_V4 || self.l4 == self.l3 + F::PLAIN
    }

    /// The source port that this packet has once the source half that `mark` asks for is done.
    #[inline(always)]
    pub(crate) fn source_after(&self, mark: Mark) -> Port {
        if self.has_ports || self.kind == Kind::EchoRequest { mark.port() } else { self.src_port }
    }

    /// Key of the flow that a packet arriving in this direction belongs to.
    #[inline(always)]
    pub(crate) fn flow_key(&self, direction: Direction) -> FlowKey {
        FlowKey::new(&self.src, &self.dst, [self.src_port, self.dst_port], self.protocol, direction)
    }

    /// Key of the entry whose packets, arriving in `direction`, are answers to this one.
    #[inline(always)]
    pub(crate) fn answer_key(&self, direction: Direction) -> FlowKey {
        FlowKey::new(&self.dst, &self.src, [self.dst_port, self.src_port], self.protocol, direction)
    }
}

/// How long a first fragment's ports are remembered: as long as Linux keeps an incomplete IPv4 datagram
/// (`net.ipv4.ipfrag_time`).
const FRAGMENT_TIMEOUT_S: u32 = 30;

/// Of a packet in fragments: learns the ports of a later one from its first, and remembers a first one's.
#[inline(always)]
pub(crate) fn join_fragments(parsed: &Parsed, side: Side) -> Result<(), DropReason> {
    if parsed.fragment == Fragment::Whole { Ok(()) } else { answer::decode(join(side as u32)) }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn join(side: u32) -> u32 {
    let Some(scene) = scene() else { return answer::encode(Err(DropReason::Unconfigured)) };
    answer::encode(join_at(&scene, side))
}

#[inline(always)]
fn join_at(scene: &Scene, side: u32) -> Result<(), DropReason> {
    let work = scene.work();
    let parsed = &mut work.parsed;
    work.fragment_key = FragmentKey {
        src: parsed.src,
        dst: parsed.dst,
        id: parsed.id,
        protocol: parsed.protocol,
        side: (side & 1) as u8,
        pad: [0; 2],
    };
    #[expect(clippy::cast_possible_truncation, reason = "differences are taken modulo 2^32, 136 years")]
    let now_s = (scene.now_ns / SECOND_NS) as u32;
    if parsed.fragment == Fragment::First {
        let ports = FragmentPorts { src_port: parsed.src_port, dst_port: parsed.dst_port, seen_s: now_s };
        return FRAGMENTS.insert(&work.fragment_key, &ports, 0).map_err(|_errno| DropReason::KernelCall);
    }
    // SAFETY: the value is copied at once; an entry reused meanwhile for another datagram is another first fragment's.
    let ports = unsafe { FRAGMENTS.get(&work.fragment_key) }.copied().ok_or(DropReason::FragmentUnknown)?;
    if now_s.wrapping_sub(ports.seen_s) > FRAGMENT_TIMEOUT_S {
        return Err(DropReason::FragmentUnknown);
    }
    parsed.src_port = ports.src_port;
    parsed.dst_port = ports.dst_port;
    Ok(())
}
