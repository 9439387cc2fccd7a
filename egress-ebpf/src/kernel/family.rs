//! IPv4 and IPv6 as one trait: programs choose once, and are written once.

use bytemuck::Pod;
use egress_ebpf::addr::Addr;
use egress_ebpf::checksum;
use egress_ebpf::timeout::protocol;
use egress_ebpf::verdict::DropReason;

use super::packet::Packet;
use super::parsed::{Fragment, Parsed};

mod sealed {
    pub(crate) trait Sealed {}
    impl Sealed for super::V4 {}
    impl Sealed for super::V6 {}
}

/// An IP version.
pub(crate) trait Family: sealed::Sealed {
    /// 4 or 6, as in a rule's key.
    const VERSION: u8;
    /// For the few real differences.
    const IS_V4: bool = Self::VERSION == 4;
    /// Offset of the source address in the IP header; the destination address follows it.
    const SOURCE: u32;
    /// Offset of the header checksum; IPv6 has none.
    const CHECKSUM: u32;
    /// Offset of the time to live, or hop limit.
    const TTL: u32;
    /// Length of a header without options or extensions.
    const PLAIN: u32;
    /// `AF_INET` or `AF_INET6`.
    const ADDRESS_FAMILY: u8;
    /// The protocol number of its ICMP.
    const ICMP: u8;
    /// ICMP type of an echo request.
    const ECHO_REQUEST: u8;
    /// ICMP type of an echo reply.
    const ECHO_REPLY: u8;

    /// The fixed part of the IP header.
    type Header: Pod;

    /// Takes over what the fixed part of the header at `parsed.l3` says, and whether its checksum agrees.
    fn read_fixed(header: &Self::Header, parsed: &mut Parsed) -> Result<(), DropReason>;

    /// Reads the IP header at `parsed.l3`, and the extension headers behind it.
    fn read_header(packet: &Packet, parsed: &mut Parsed) -> Result<(), DropReason>;

    /// Whether an ICMP message of this type reports an error and quotes the packet that caused it.
    fn is_icmp_error(icmp_type: u8) -> bool;

    /// Whether an ICMP message of this type keeps the link itself going (neighbour and multicast listener discovery), and
    /// must never be translated.
    fn is_link_control(icmp_type: u8) -> bool;
}

/// Internet Protocol version 4 (RFC 791).
pub(crate) enum V4 {}

/// Internet Protocol version 6 (RFC 8200).
pub(crate) enum V6 {}

impl Family for V4 {
    const VERSION: u8 = 4;
    const SOURCE: u32 = 12;
    const CHECKSUM: u32 = 10;
    const TTL: u32 = 8;
    const PLAIN: u32 = 20;
    const ADDRESS_FAMILY: u8 = 2;
    const ICMP: u8 = protocol::ICMP;
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;

    type Header = [u32; 5];

    #[inline(always)]
    fn read_header(packet: &Packet, parsed: &mut Parsed) -> Result<(), DropReason> {
        Self::read_fixed(&packet.read(parsed.l3)?, parsed)
    }

    #[inline(always)]
    fn read_fixed(words: &Self::Header, parsed: &mut Parsed) -> Result<(), DropReason> {
        let [version_ihl, _, length_high, length_low] = words[0].to_ne_bytes();
        let ihl = u32::from(version_ihl & 0xf) * 4;
        if version_ihl >> 4 != 4 || ihl < Self::PLAIN {
            return Err(DropReason::Malformed);
        }
        let [id_high, id_low, fragment_high, fragment_low] = words[1].to_ne_bytes();
        let fragment = u16::from_be_bytes([fragment_high, fragment_low]);
        let [ttl, protocol, ..] = words[2].to_ne_bytes();
        parsed.src = Addr::from_v4_word(words[3]);
        parsed.dst = Addr::from_v4_word(words[4]);
        parsed.protocol = protocol;
        parsed.ttl = ttl;
        parsed.l4 = parsed.l3 + ihl;
        parsed.end = parsed.l3 + u32::from(u16::from_be_bytes([length_high, length_low]));
        parsed.fragment = Fragment::of(fragment & 0x1fff, fragment & 0x2000 != 0);
        parsed.id = u32::from(u16::from_ne_bytes([id_high, id_low]));
        // With options, the kernel forwards the packet, and looks itself.
        parsed.is_sound = ihl != Self::PLAIN || checksum::is_right(words);
        Ok(())
    }

    /// RFC 792: destination unreachable, source quench, time exceeded, parameter problem. A redirect (5) quotes a packet too,
    /// but it tells whoever sent it by this link of another gateway there, and means nothing elsewhere.
    #[inline(always)]
    fn is_icmp_error(icmp_type: u8) -> bool {
        matches!(icmp_type, 3 | 4 | 11 | 12)
    }

    #[inline(always)]
    fn is_link_control(_icmp_type: u8) -> bool {
        false
    }
}

/// Most extension headers that are walked. Hop-by-hop options, destination options, routing, fragment, destination options
/// again: RFC 8200 section 4.1 recommends no packet with more.
const MAX_EXTENSIONS: u32 = 5;

mod next_header {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const DESTINATION: u8 = 60;
}

impl Family for V6 {
    const VERSION: u8 = 6;
    const SOURCE: u32 = 8;
    const CHECKSUM: u32 = 0;
    const TTL: u32 = 7;
    const PLAIN: u32 = 40;
    const ADDRESS_FAMILY: u8 = 10;
    const ICMP: u8 = protocol::ICMPV6;
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;

    type Header = [u32; 10];

    #[inline(always)]
    fn read_header(packet: &Packet, parsed: &mut Parsed) -> Result<(), DropReason> {
        Self::read_fixed(&packet.read(parsed.l3)?, parsed)?;
        walk_extensions(packet, parsed)
    }

    #[inline(always)]
    fn read_fixed(words: &Self::Header, parsed: &mut Parsed) -> Result<(), DropReason> {
        let [version, ..] = words[0].to_ne_bytes();
        if version >> 4 != 6 {
            return Err(DropReason::Malformed);
        }
        let [length_high, length_low, next, hop_limit] = words[1].to_ne_bytes();
        let [_, _, s0, s1, s2, s3, d0, d1, d2, d3] = *words;
        parsed.src = Addr::from_v6_words([s0, s1, s2, s3]);
        parsed.dst = Addr::from_v6_words([d0, d1, d2, d3]);
        // The form that IPv4 addresses have in the maps must not come in by an IPv6 header: it would be taken for IPv4's.
        if parsed.src.is_v4() || parsed.dst.is_v4() {
            return Err(DropReason::Malformed);
        }
        parsed.protocol = next;
        parsed.ttl = hop_limit;
        parsed.l4 = parsed.l3 + Self::PLAIN;
        parsed.end = parsed.l4 + u32::from(u16::from_be_bytes([length_high, length_low]));
        parsed.fragment = Fragment::Whole;
        parsed.id = 0;
        parsed.is_sound = true;
        Ok(())
    }

    /// RFC 4443 section 2.1: error messages have the high-order bit clear.
    #[inline(always)]
    fn is_icmp_error(icmp_type: u8) -> bool {
        icmp_type < 128
    }

    /// Multicast listener discovery (130-132, 143), router and neighbour discovery (133-136). A redirect (137) is not needed to
    /// keep a link going, and one that this router sends would tell a neighbour about packets it should never have forwarded.
    #[inline(always)]
    fn is_link_control(icmp_type: u8) -> bool {
        matches!(icmp_type, 130..=136 | 143)
    }
}

#[inline(always)]
fn walk_extensions(packet: &Packet, parsed: &mut Parsed) -> Result<(), DropReason> {
    // One round more than headers, to see what follows the last.
    for _ in 0..=MAX_EXTENSIONS {
        let is_extension = matches!(
            parsed.protocol,
            next_header::HOP_BY_HOP | next_header::ROUTING | next_header::FRAGMENT | next_header::DESTINATION
        );
        if !is_extension {
            return Ok(());
        }
        let [next, length, more_high, more_low, id0, id1, id2, id3]: [u8; 8] = packet.read(parsed.l4)?;
        let this = parsed.protocol;
        parsed.protocol = next;
        if this == next_header::FRAGMENT {
            let field = u16::from_be_bytes([more_high, more_low]);
            parsed.fragment = Fragment::of(field >> 3, field & 1 != 0);
            parsed.id = u32::from_ne_bytes([id0, id1, id2, id3]);
            parsed.l4 += 8;
            if parsed.fragment == Fragment::Later {
                return Ok(());
            }
            continue;
        }
        // A source-routed packet has its real destination inside the header; translating the outer one is meaningless.
        if this == next_header::ROUTING && more_low != 0 {
            return Err(DropReason::ExtensionHeader);
        }
        parsed.l4 += (u32::from(length) + 1) * 8;
    }
    Err(DropReason::ExtensionHeader)
}
