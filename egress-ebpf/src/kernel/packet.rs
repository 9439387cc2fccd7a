//! The packet: the one type through which bytes are read and written.
//!
//! Reads copy. Writes go through [`Packet::rewrite`] and [`Packet::rewrite_quoted`], which keep every checksum that covers
//! what they change; there is no setter that would leave one stale. A packet's own checksums are changed by the kernel's
//! helpers alone, since only they know whether a field is whole or still to be finished by a device.

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_REDIRECT, bpf_check_mtu_flags::BPF_MTU_CHK_SEGS,
    bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1,
};
use aya_ebpf::helpers::generated::{bpf_check_mtu, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh};
use aya_ebpf::programs::TcContext;
use bytemuck::Pod;
use egress_ebpf::addr::{Addr, Port};
use egress_ebpf::checksum::Delta;
use egress_ebpf::contract::{Config, Direction, Mark, config_flag};
use egress_ebpf::crc32c;
use egress_ebpf::verdict::{DropReason, Verdict};

use super::established::Frame;
use super::family::{Family, V4, V6};
use super::flow::refresh_hop;
use super::forward::redirected;
use super::maps::Work;
use super::parsed::{Coverage, Fragment, Kind, Parsed};
use super::{answer, size, work};

/// Offset of the IP header: both interfaces are Ethernet.
pub(crate) const L3: u32 = 14;

/// `BPF_F_IPV6` of `bpf_l4_csum_replace` (Linux 6.16): an IPv6 address changed, for which no IP header checksum makes up.
const BPF_F_IPV6: u64 = 1 << 7;

/// `skb->pkt_type` of a frame for this host.
const PACKET_HOST: u32 = 0;

/// Source and destination that a packet is to have.
#[repr(C)]
pub(crate) struct Ends {
    pub(crate) src: Addr,
    pub(crate) dst: Addr,
    pub(crate) src_port: Port,
    pub(crate) dst_port: Port,
}

/// How a frame is addressed on its link: the next hop's address, and that of the interface.
pub(crate) struct LinkHop<'a> {
    pub(crate) to: &'a [u8; 6],
    pub(crate) from: &'a [u8; 6],
}

/// The first bytes of a frame, where they lie. Not to be used after a call that may move them: the verifier refuses that.
pub(crate) struct Head {
    start: usize,
    len: u32,
}

impl Head {
    /// The first `len` of the bytes from `start` to `end`.
    #[inline(always)]
    pub(crate) fn new(start: usize, end: usize, len: u32) -> Option<Self> {
        (start + len as usize <= end).then_some(Self { start, len })
    }

    /// The `T` at `offset` from the start of the frame.
    #[inline(always)]
    pub(crate) fn read<T: Pod>(&self, offset: u32) -> Option<T> {
        let at = self.at::<T>(offset)?;
        // SAFETY: `at` points to a whole `T` inside the frame, at an even address.
        Some(unsafe { at.read() }.0)
    }

    /// Writes a `T` there.
    #[inline(always)]
    pub(crate) fn write<T: Pod>(&self, offset: u32, value: &T) -> Option<()> {
        let at = self.at::<T>(offset)?;
        // SAFETY: as above, and the kernel makes the bytes ours alone before a program that writes them runs.
        unsafe { at.write(Even(*value)) };
        Some(())
    }

    /// Writes the link addresses.
    #[inline(always)]
    pub(crate) fn write_hop(&self, hop: &LinkHop<'_>) -> Option<()> {
        self.write(0, hop.to)?;
        self.write(6, hop.from)
    }

    /// Writes one hop less and new ends into the headers of a packet without options, and IPv4's header checksum.
    #[inline(always)]
    pub(crate) fn write_ends<F: Family>(&self, ttl: u8, addresses: Delta, ends: &Ends) -> Option<()> {
        let hops_left = ttl.wrapping_sub(1);
        if F::IS_V4 {
            let old: u16 = self.read(L3 + F::CHECKSUM)?;
            let new = addresses.even_byte(ttl, hops_left).apply(old);
            self.write(L3 + F::CHECKSUM, &new)?;
            self.write(L3 + F::SOURCE, &[ends.src.v4_word(), ends.dst.v4_word()])?;
        } else {
            self.write(L3 + F::SOURCE, &[ends.src, ends.dst])?;
        }
        self.write(L3 + F::TTL, &hops_left)?;
        self.write(L3 + F::PLAIN, &[ends.src_port, ends.dst_port])
    }

    #[inline(always)]
    fn at<T>(&self, offset: u32) -> Option<*mut Even<T>> {
        // Both are constants wherever this is inlined.
        (offset + size::<T>() <= self.len).then_some((self.start + offset as usize) as *mut Even<T>)
    }
}

/// A `T` at an even address, and no rounder one: where Linux puts a frame, and the frame's headers their fields.
#[repr(C, packed(2))]
struct Even<T>(T);

/// A frame in one of the hooks.
pub(crate) struct Packet {
    ctx: TcContext,
}

impl Packet {
    pub(crate) fn new(ctx: TcContext) -> Self {
        Self { ctx }
    }

    /// The context, for helpers that only look.
    #[inline(always)]
    pub(crate) fn ctx(&self) -> &TcContext {
        &self.ctx
    }

    /// EtherType, network order, of the packet behind the link header.
    #[inline(always)]
    pub(crate) fn ether_type(&self) -> u16 {
        // SAFETY: a program's context pointer is valid while it runs.
        let protocol = unsafe { (*self.ctx.skb.skb).protocol };
        (protocol & 0xffff) as u16
    }

    /// Whether the frame came to this host's own link address.
    #[inline(always)]
    pub(crate) fn is_for_host(&self) -> bool {
        // SAFETY: a program's context pointer is valid while it runs.
        let pkt_type = unsafe { (*self.ctx.skb.skb).pkt_type };
        pkt_type == PACKET_HOST
    }

    /// Whether the frame belongs to a VLAN. VLAN 0 only carries a priority.
    #[inline(always)]
    pub(crate) fn is_tagged(&self) -> bool {
        // SAFETY: a program's context pointer is valid while it runs.
        let tci = unsafe { (*self.ctx.skb.skb).vlan_tci };
        tci & 0xfff != 0
    }

    /// `skb->mark`.
    #[inline(always)]
    pub(crate) fn mark(&self) -> Mark {
        // SAFETY: a program's context pointer is valid while it runs.
        Mark(unsafe { (*self.ctx.skb.skb).mark })
    }

    /// Sets `skb->mark`.
    #[inline(always)]
    pub(crate) fn set_mark(&mut self, mark: Mark) {
        self.ctx.set_mark(mark.0);
    }

    /// Takes our mark off: at ingress, where nobody but this datapath may say that a packet is half translated; at egress,
    /// where nobody behind the interface shall meet it.
    #[inline(always)]
    pub(crate) fn clear_mark(&mut self) {
        if self.mark().is_ours() {
            self.ctx.set_mark(0);
        }
    }

    /// Copies a `T` at `offset` from the start of the frame.
    #[inline(always)]
    pub(crate) fn read<T: Pod>(&self, offset: u32) -> Result<T, DropReason> {
        self.ctx.load(offset as usize).map_err(|_errno| DropReason::Malformed)
    }

    /// Gives the packet in `WORK` these ends, and every checksum what that asks for. With `hop`, counts one more hop.
    #[inline(always)]
    pub(crate) fn rewrite<F: Family>(&mut self, config: &Config, ends: Ends, hop: Hop) -> Result<(), DropReason> {
        let work = work().ok_or(DropReason::KernelCall)?;
        work.ends = ends;
        work.csum_ipv6 = config.flags & config_flag::CSUM_IPV6 != 0;
        let ctx = self.ctx.skb.skb;
        answer::decode(match (F::IS_V4, hop) {
            (true, Hop::Kernel) => rewrite_v4(ctx),
            (true, Hop::Count) => forward_v4(ctx),
            (false, Hop::Kernel) => rewrite_v6(ctx),
            (false, Hop::Count) => forward_v6(ctx),
        })
    }

    /// Changes the transport checksum by what the addresses and the ports change, if it covers them.
    #[inline(always)]
    fn replace_checksum<F: Family>(
        &mut self,
        parsed: &Parsed,
        addresses: Delta,
        ports: Delta,
        csum_ipv6: bool,
    ) -> Result<(), DropReason> {
        let mangled = if parsed.coverage == Coverage::Optional { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        if matches!(parsed.coverage, Coverage::Addresses | Coverage::Optional) {
            let ipv6 = if !F::IS_V4 && csum_ipv6 { BPF_F_IPV6 } else { 0 };
            self.replace_l4(parsed.checksum, addresses, mangled | u64::from(BPF_F_PSEUDO_HDR) | ipv6)?;
        }
        if ports != Delta::ZERO && parsed.coverage != Coverage::None {
            self.replace_l4(parsed.checksum, ports, mangled)?;
        }
        Ok(())
    }

    /// Gives the packet that an ICMP error quotes the ends in `WORK`, and its checksums, as far as they are quoted, and the
    /// error's own, what that asks for.
    #[inline(always)]
    pub(crate) fn rewrite_quoted<F: Family>(&mut self, ends: Ends) -> Result<(), DropReason> {
        let work = work().ok_or(DropReason::KernelCall)?;
        work.ends = ends;
        let Work { parsed: error, quoted, ends, .. } = work;
        let addresses = quoted.address_change(ends);
        let ports = quoted.port_change(ends);
        let mut total = addresses.and(ports);
        if quoted.coverage != Coverage::None {
            let covered = if quoted.coverage == Coverage::Message { ports } else { total };
            total = total.and(self.rewrite_quoted_checksum(quoted, covered)?);
        }
        if F::IS_V4 {
            let at = quoted.l3 + F::CHECKSUM;
            let old: u16 = self.read(at)?;
            let new = addresses.apply(old);
            self.write(at, &new)?;
            total = total.field(old, new);
        }
        self.write_ends::<F>(quoted, ends)?;
        self.replace_l4(error.checksum, total, 0)
    }

    /// A quoted checksum is plain bytes, whole or cut off. Returns what its change adds to the sum of the quoting packet.
    #[inline(always)]
    fn rewrite_quoted_checksum(&mut self, quoted: &Parsed, covered: Delta) -> Result<Delta, DropReason> {
        let Ok(old) = self.read::<u16>(quoted.checksum) else { return Ok(Delta::ZERO) };
        let optional = quoted.coverage == Coverage::Optional;
        if optional && old == 0 {
            return Ok(Delta::ZERO);
        }
        let new = match covered.apply(old) {
            0 if optional => 0xffff,
            new => new,
        };
        self.write(quoted.checksum, &new)?;
        Ok(Delta::ZERO.field(old, new))
    }

    /// Sends the packet out of an interface, to a neighbour that the kernel resolves.
    #[inline(always)]
    fn redirect_to_neighbour<F: Family>(&mut self, ifindex: u32, neighbour: &Addr) -> Result<(), DropReason> {
        let address = if F::IS_V4 {
            bpf_redir_neigh__bindgen_ty_1 { ipv4_nh: neighbour.v4_word() }
        } else {
            bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: neighbour.words() }
        };
        let mut hop = bpf_redir_neigh { nh_family: u32::from(F::ADDRESS_FAMILY), __bindgen_anon_1: address };
        // SAFETY: `hop` lives on the stack and its size goes with it.
        let action = unsafe { bpf_redirect_neigh(ifindex, &raw mut hop, size::<bpf_redir_neigh>().cast_signed(), 0) };
        expect_redirect(action)
    }

    /// Sends the packet out of an interface, to a link address.
    #[inline(always)]
    fn redirect_to_link(&mut self, ifindex: u32, hop: &LinkHop<'_>) -> Result<(), DropReason> {
        self.head(L3).and_then(|head| head.write_hop(hop)).ok_or(DropReason::Malformed)?;
        // SAFETY: the helper takes numbers only.
        let action = unsafe { bpf_redirect(ifindex, 0) };
        expect_redirect(action)
    }

    #[inline(always)]
    fn replace_l4(&mut self, offset: u32, delta: Delta, flags: u64) -> Result<(), DropReason> {
        self.ctx
            .l4_csum_replace(offset as usize, 0, u64::from(delta.wsum()), flags)
            .map_err(|_errno| DropReason::KernelCall)
    }

    /// SCTP's checksum after its ports have changed. Zero means that a device is to compute it: then it is left alone.
    #[inline(always)]
    fn replace_sctp_checksum(&mut self, parsed: &Parsed, ends: &Ends) -> Result<(), DropReason> {
        let at = parsed.l4 + SCTP_CHECKSUM;
        let old: u32 = self.read(at)?;
        if old == 0 {
            return Ok(());
        }
        if parsed.fragment != Fragment::Whole || parsed.end < at {
            return Err(DropReason::ChecksumElsewhere);
        }
        let pair = |src: Port, dst: Port| bytemuck::cast::<_, u32>([src, dst]);
        let change = pair(parsed.src_port, parsed.dst_port) ^ pair(ends.src_port, ends.dst_port);
        self.write(at, &(old ^ crc32c_change(change, parsed.end - parsed.l4)))
    }

    /// Source and destination lie side by side in every header, so each pair is one write.
    #[inline(always)]
    fn write_ends<F: Family>(&mut self, parsed: &Parsed, ends: &Ends) -> Result<(), DropReason> {
        if F::IS_V4 {
            self.write(parsed.l3 + F::SOURCE, &[ends.src.v4_word(), ends.dst.v4_word()])?;
        } else {
            self.write(parsed.l3 + F::SOURCE, &[ends.src, ends.dst])?;
        }
        if parsed.has_ports {
            return self.write(parsed.l4, &[ends.src_port, ends.dst_port]);
        }
        match parsed.kind {
            Kind::EchoRequest => self.write(parsed.l4 + ECHO_ID, &ends.src_port),
            Kind::EchoReply => self.write(parsed.l4 + ECHO_ID, &ends.dst_port),
            _ => Ok(()),
        }
    }

    #[inline(always)]
    fn write<T: Pod>(&mut self, offset: u32, value: &T) -> Result<(), DropReason> {
        self.ctx.store(offset as usize, value, 0).map_err(|_errno| DropReason::KernelCall)
    }
}

impl Frame for Packet {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.ctx.len()
    }

    #[inline(always)]
    fn head(&self, len: u32) -> Option<Head> {
        Head::new(self.ctx.data(), self.ctx.data_end(), len)
    }

    #[inline(always)]
    fn is_for_router(&self, _config: &Config, _direction: Direction) -> bool {
        self.is_for_host()
    }

    /// The kernel's helpers know what each packet's is, and so what to change in it.
    #[inline(always)]
    fn has_known_checksum<F: Family>(&self, _head: &Head, _parsed: &Parsed) -> Option<bool> {
        Some(true)
    }

    #[inline(always)]
    fn fits(&self, config: &Config, ifindex: u32) -> bool {
        if self.len() <= config.always_fits {
            return true;
        }
        let mut mtu = 0_u32;
        // SAFETY: the context is valid and `mtu` is the 32-bit number that the helper reads and writes.
        let answer =
            unsafe { bpf_check_mtu(self.ctx.skb.skb.cast(), ifindex, &raw mut mtu, 0, u64::from(BPF_MTU_CHK_SEGS)) };
        answer == 0
    }

    #[inline(always)]
    fn rewrite_in_place<F: Family>(
        &mut self,
        config: &Config,
        head: &Head,
        parsed: &Parsed,
        ends: &Ends,
    ) -> Result<(), DropReason> {
        let (addresses, ports) = (parsed.address_change(ends), parsed.transport_port_change(ends));
        head.write_ends::<F>(parsed.ttl, addresses, ends).ok_or(DropReason::Malformed)?;
        self.replace_checksum::<F>(parsed, addresses, ports, config.flags & config_flag::CSUM_IPV6 != 0)
    }

    #[inline(always)]
    fn refresh_hop(&self, ifindex: u32) -> Option<()> {
        (refresh_hop(self.ctx.skb.skb, ifindex) == 0).then_some(())
    }

    #[inline(always)]
    fn send<F: Family>(&mut self, ifindex: u32, hop: &LinkHop<'_>, neighbour: Option<&Addr>) -> Result<(), DropReason> {
        self.set_mark(Mark::DONE);
        match neighbour {
            Some(neighbour) => self.redirect_to_neighbour::<F>(ifindex, neighbour),
            None => self.redirect_to_link(ifindex, hop),
        }
    }

    #[inline(always)]
    fn verdict(direction: Direction) -> Verdict {
        redirected(direction)
    }
}

/// Whether a rewrite counts a hop, as forwarding does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hop {
    /// The kernel counts it.
    Kernel,
    /// Here.
    Count,
}

// Global BPF functions, for the verifier, one for each way: a program that has one that writes packets where they lie has the
// kernel look at each packet first, whether they may be written. The egress programs, which leave most packets alone, have none.

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn rewrite_v4(ctx: *mut __sk_buff) -> u32 {
    answer::encode(rewrite::<V4>(ctx, Hop::Kernel))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn rewrite_v6(ctx: *mut __sk_buff) -> u32 {
    answer::encode(rewrite::<V6>(ctx, Hop::Kernel))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn forward_v4(ctx: *mut __sk_buff) -> u32 {
    answer::encode(rewrite::<V4>(ctx, Hop::Count))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn forward_v6(ctx: *mut __sk_buff) -> u32 {
    answer::encode(rewrite::<V6>(ctx, Hop::Count))
}

#[inline(always)]
fn rewrite<F: Family>(ctx: *mut __sk_buff, hop: Hop) -> Result<(), DropReason> {
    let mut packet = Packet::new(TcContext::new(ctx));
    let Work { parsed, ends, csum_ipv6, .. } = work().ok_or(DropReason::KernelCall)?;
    let addresses = parsed.address_change(ends);
    let ports = parsed.port_change(ends);
    let count = hop == Hop::Count;
    if count && matches!(parsed.kind, Kind::Tcp | Kind::Udp) && parsed.l3 == L3 && parsed.is_plain::<F>() {
        // As most packets are: written where they lie, which saves a call for each field.
        if let Some(head) = packet.head(L3 + F::PLAIN + 4) {
            head.write_ends::<F>(parsed.ttl, addresses, ends).ok_or(DropReason::Malformed)?;
            return packet.replace_checksum::<F>(parsed, addresses, ports, *csum_ipv6);
        }
    }
    packet.replace_checksum::<F>(parsed, addresses, ports, *csum_ipv6)?;
    if ports != Delta::ZERO && parsed.kind == Kind::Sctp {
        packet.replace_sctp_checksum(parsed, ends)?;
    }
    let ttl = parsed.ttl.wrapping_sub(1);
    if F::IS_V4 {
        let hops = if count { Delta::ZERO.even_byte(parsed.ttl, ttl) } else { Delta::ZERO };
        let delta = u64::from(addresses.and(hops).wsum());
        let at = (parsed.l3 + F::CHECKSUM) as usize;
        packet.ctx.l3_csum_replace(at, 0, delta, 0).map_err(|_errno| DropReason::KernelCall)?;
    }
    if count {
        packet.write(parsed.l3 + F::TTL, &ttl)?;
    }
    packet.write_ends::<F>(parsed, ends)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn crc32c_change(change: u32, length: u32) -> u32 {
    // The words are little-endian here, as the CRC's bytes are: BPF programs are compiled for little-endian kernels.
    crc32c::change(change, length, |a, b| crc32c_multiply(a, b))
}

// Global for the verifier: from Linux 6.18 on it follows both values of a bit that is made a mask, through each of the 34
// multiplications where they are inlined, and is two thirds of the way to its limit.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn crc32c_multiply(a: u32, b: u32) -> u32 {
    crc32c::multiply(a, b)
}

impl Parsed {
    #[inline(always)]
    pub(crate) fn address_change(&self, ends: &Ends) -> Delta {
        Delta::ZERO.addr(&self.src, &ends.src).addr(&self.dst, &ends.dst)
    }

    /// Of ports that are in the packet, that is.
    #[inline(always)]
    fn port_change(&self, ends: &Ends) -> Delta {
        match self.kind {
            Kind::EchoRequest => Delta::ZERO.port(self.src_port, ends.src_port),
            Kind::EchoReply => Delta::ZERO.port(self.dst_port, ends.dst_port),
            _ if self.has_ports => self.transport_port_change(ends),
            _ => Delta::ZERO,
        }
    }

    /// Of a packet of a protocol that has ports.
    #[inline(always)]
    pub(crate) fn transport_port_change(&self, ends: &Ends) -> Delta {
        Delta::ZERO.port(self.src_port, ends.src_port).port(self.dst_port, ends.dst_port)
    }
}

#[inline(always)]
fn expect_redirect(action: i64) -> Result<(), DropReason> {
    if action == i64::from(TC_ACT_REDIRECT) { Ok(()) } else { Err(DropReason::KernelCall) }
}

/// Offset of the checksum in an SCTP packet.
const SCTP_CHECKSUM: u32 = 8;

/// Offset of the identifier in an ICMP or ICMPv6 echo.
const ECHO_ID: u32 = 4;

/// See the program of the same purpose.
pub(crate) fn knows_csum_ipv6(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid; the helper checks the offset, and a zero difference changes nothing.
    let errno =
        unsafe { bpf_l4_csum_replace(ctx.skb.skb, L3 + 40 + 6, 0, 0, BPF_F_IPV6 | u64::from(BPF_F_PSEUDO_HDR)) };
    errno == 0
}
