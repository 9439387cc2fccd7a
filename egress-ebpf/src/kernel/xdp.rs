//! A frame before the kernel has made a packet of it.

use core::hint::black_box;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::generated::{bpf_check_mtu, bpf_redirect};
use aya_ebpf::programs::XdpContext;
use egress_ebpf::addr::Addr;
use egress_ebpf::checksum::{self, Delta};
use egress_ebpf::contract::{Config, Direction};
use egress_ebpf::verdict::{DropReason, Verdict};

use super::established::Frame;
use super::family::Family;
use super::packet::{Ends, Head, L3, LinkHop};
use super::parsed::{Kind, Parsed};

/// Offset of the EtherType.
const ETHER_TYPE: u32 = 12;

/// A frame in one of the XDP programs.
pub(crate) struct XdpFrame {
    ctx: XdpContext,
    start: usize,
    end: usize,
}

impl XdpFrame {
    #[inline(always)]
    pub(crate) fn new(ctx: XdpContext) -> Self {
        // The context has them as 32-bit numbers, which the verifier makes pointers of; the compiler, which does not know,
        // would keep their lower halves.
        let (start, end) = (black_box(ctx.data()), black_box(ctx.data_end()));
        Self { ctx, start, end }
    }

    /// EtherType, network order, as it stands in the frame: a VLAN's tag is one.
    #[inline(always)]
    pub(crate) fn ether_type(&self) -> Option<u16> {
        self.head(ETHER_TYPE + 2)?.read(ETHER_TYPE)
    }
}

impl Frame for XdpFrame {
    /// Of a frame in several pieces, the first one's: it is then shorter than its packet says, and so not taken.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "no frame is that long")]
    fn len(&self) -> u32 {
        (self.end - self.start) as u32
    }

    #[inline(always)]
    fn head(&self, len: u32) -> Option<Head> {
        Head::new(self.start, self.end, len)
    }

    #[inline(always)]
    fn is_for_router(&self, config: &Config, direction: Direction) -> bool {
        let mac = match direction {
            Direction::Request => &config.cluster_mac,
            Direction::Reply => &config.external_mac,
        };
        let words = |mac: &[u8; 6]| -> [u16; 3] { bytemuck::cast(*mac) };
        self.head(6).and_then(|head| head.read::<[u16; 3]>(0)).is_some_and(|to| to == words(mac))
    }

    /// A frame from a socket on this host, by a veth, may hold only the pseudo-header's part of its checksum, for a device to
    /// finish. Nothing beside it says so here, but that part can be told: it is the sum of what it covers. (One in 65,536 whole
    /// checksums looks the same, and takes the other way in vain.)
    #[inline(always)]
    fn has_known_checksum<F: Family>(&self, head: &Head, parsed: &Parsed) -> Option<bool> {
        let Some(at) = checksum_at::<F>(parsed) else { return Some(true) };
        let length = parsed.end - parsed.l4;
        let partial = checksum::pseudo_header(&parsed.src, &parsed.dst, parsed.protocol, length);
        let field: u16 = head.read(at)?;
        Some(!checksum::is_same(field, partial))
    }

    #[inline(always)]
    fn fits(&self, config: &Config, ifindex: u32) -> bool {
        if self.len() <= config.always_fits {
            return true;
        }
        let mut mtu = 0_u32;
        // SAFETY: the context is valid and `mtu` is the 32-bit number that the helper reads and writes.
        let answer = unsafe { bpf_check_mtu(self.ctx.ctx.cast(), ifindex, &raw mut mtu, 0, 0) };
        answer == 0
    }

    #[inline(always)]
    fn rewrite_in_place<F: Family>(
        &mut self,
        _config: &Config,
        head: &Head,
        parsed: &Parsed,
        ends: &Ends,
    ) -> Result<(), DropReason> {
        let addresses = parsed.address_change(ends);
        write::<F>(head, parsed, addresses, ends).ok_or(DropReason::Malformed)
    }

    /// The kernel is to take note of the packet that does.
    #[inline(always)]
    fn refresh_hop(&self, _ifindex: u32) -> Option<()> {
        None
    }

    #[inline(always)]
    fn send<F: Family>(
        &mut self,
        ifindex: u32,
        hop: &LinkHop<'_>,
        _neighbour: Option<&Addr>,
    ) -> Result<(), DropReason> {
        self.head(L3).and_then(|head| head.write_hop(hop)).ok_or(DropReason::Malformed)?;
        // SAFETY: the helper takes numbers only.
        let action = unsafe { bpf_redirect(ifindex, 0) };
        if action == i64::from(xdp_action::XDP_REDIRECT) { Ok(()) } else { Err(DropReason::KernelCall) }
    }

    #[inline(always)]
    fn verdict(_direction: Direction) -> Verdict {
        Verdict::Accelerated
    }
}

/// Offset of the transport checksum, where one covers addresses and ports: a constant for each protocol, which the verifier
/// can compare with the length that was checked.
#[inline(always)]
fn checksum_at<F: Family>(parsed: &Parsed) -> Option<u32> {
    match parsed.kind {
        Kind::Tcp => Some(L3 + F::PLAIN + 16),
        Kind::Udp => Some(L3 + F::PLAIN + 6),
        _ => None,
    }
}

#[inline(always)]
fn write<F: Family>(head: &Head, parsed: &Parsed, addresses: Delta, ends: &Ends) -> Option<()> {
    head.write_ends::<F>(parsed.ttl, addresses, ends)?;
    let Some(at) = checksum_at::<F>(parsed) else { return Some(()) };
    let optional = parsed.kind == Kind::Udp;
    let old: u16 = head.read(at)?;
    if optional && old == 0 {
        return Some(());
    }
    let new = match addresses.and(parsed.transport_port_change(ends)).apply(old) {
        0 if optional => 0xffff,
        new => new,
    };
    head.write(at, &new)
}
