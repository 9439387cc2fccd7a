//! The packet: the one type through which bytes are read and written.
//!
//! Reads copy. Writes go through [`Packet::rewrite`] and [`Packet::rewrite_quoted`], which keep every checksum that covers
//! what they change; there is no setter that would leave one stale. A packet's own checksums are changed by the kernel's
//! helpers alone, since only they know whether a field is whole or still to be finished by a device.

use aya_ebpf::bindings::{
    BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_REDIRECT, bpf_check_mtu_flags::BPF_MTU_CHK_SEGS, bpf_redir_neigh,
    bpf_redir_neigh__bindgen_ty_1,
};
use aya_ebpf::helpers::generated::{bpf_check_mtu, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh};
use aya_ebpf::programs::TcContext;
use bytemuck::Pod;
use egress_ebpf::addr::{Addr, Port};
use egress_ebpf::checksum::Delta;
use egress_ebpf::contract::{Config, Mark, config_flag};
use egress_ebpf::verdict::DropReason;

use super::family::Family;
use super::headers::{Checksum, End, Headers, Transport};

/// Offset of the IP header: both interfaces are Ethernet.
pub(crate) const L3: u32 = 14;

/// `BPF_F_IPV6` of `bpf_l4_csum_replace` (Linux 6.16): an IPv6 address changed, for which no IP header checksum makes up.
const BPF_F_IPV6: u64 = 1 << 7;

/// `skb->pkt_type` of a frame for this host.
const PACKET_HOST: u32 = 0;

/// Source and destination that a packet is to have.
pub(crate) struct Ends {
    pub(crate) src: Addr,
    pub(crate) dst: Addr,
    pub(crate) src_port: Port,
    pub(crate) dst_port: Port,
}

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

    /// Bytes, link header included.
    #[inline(always)]
    pub(crate) fn len(&self) -> u32 {
        self.ctx.len()
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

    /// Whether the packet, or each segment that it will be cut into, fits the interface.
    #[inline(always)]
    pub(crate) fn fits(&self, ifindex: u32) -> bool {
        let mut mtu = 0_u32;
        // SAFETY: the context is valid and `mtu` is the 32-bit number that the helper reads and writes.
        let answer =
            unsafe { bpf_check_mtu(self.ctx.skb.skb.cast(), ifindex, &raw mut mtu, 0, u64::from(BPF_MTU_CHK_SEGS)) };
        answer == 0
    }

    /// Copies a `T` at `offset` from the start of the frame.
    #[inline(always)]
    pub(crate) fn read<T: Pod>(&self, offset: u32) -> Result<T, DropReason> {
        self.ctx.load(offset as usize).map_err(|_errno| DropReason::Malformed)
    }

    /// Gives the packet these ends, and every checksum what that asks for.
    #[inline(always)]
    pub(crate) fn rewrite<F: Family>(
        &mut self,
        config: &Config,
        headers: &Headers,
        transport: &Transport,
        ends: &Ends,
    ) -> Result<(), DropReason> {
        self.rewrite_addresses::<F>(config, headers, transport, ends)?;
        let change = PortChange::of(transport, ends);
        if change.is_none() {
            return Ok(());
        }
        if let Some(checksum) = transport.checksum::<F>() {
            self.replace_l4(headers.l4 + checksum.offset, change.delta, checksum.mangled)?;
        }
        self.write_ports(headers.l4, &change, ends)
    }

    #[inline(always)]
    fn rewrite_addresses<F: Family>(
        &mut self,
        config: &Config,
        headers: &Headers,
        transport: &Transport,
        ends: &Ends,
    ) -> Result<(), DropReason> {
        let delta = Delta::ZERO.addr(&headers.src, &ends.src).addr(&headers.dst, &ends.dst);
        if let Some(checksum) = transport.checksum::<F>().filter(|checksum| checksum.covers_addresses) {
            let ipv6 = if !F::IS_V4 && config.flags & config_flag::CSUM_IPV6 != 0 { BPF_F_IPV6 } else { 0 };
            let flags = checksum.mangled | u64::from(BPF_F_PSEUDO_HDR) | ipv6;
            self.replace_l4(headers.l4 + checksum.offset, delta, flags)?;
        }
        if F::IS_V4 {
            self.replace_l3(headers.l3 + F::CHECKSUM, delta)?;
        }
        self.write_addresses::<F>(headers, ends)
    }

    /// Gives a packet that an ICMP error quotes these ends, and its checksums, as far as they are quoted, and the error's
    /// own, what that asks for.
    #[inline(always)]
    pub(crate) fn rewrite_quoted<F: Family>(
        &mut self,
        error: &Headers,
        quoted: &Headers,
        transport: &Transport,
        ends: &Ends,
    ) -> Result<(), DropReason> {
        let addresses = Delta::ZERO.addr(&quoted.src, &ends.src).addr(&quoted.dst, &ends.dst);
        let change = PortChange::of(transport, ends);
        let mut total = addresses.and(change.delta);
        if let Some(checksum) = transport.checksum::<F>() {
            let covered = if checksum.covers_addresses { total } else { change.delta };
            total = total.and(self.rewrite_quoted_checksum(quoted.l4 + checksum.offset, &checksum, covered)?);
        }
        if F::IS_V4 {
            let at = quoted.l3 + F::CHECKSUM;
            let old: u16 = self.read(at)?;
            let new = addresses.apply(old);
            self.write(at, &new)?;
            total = total.field(old, new);
        }
        self.write_addresses::<F>(quoted, ends)?;
        self.write_ports(quoted.l4, &change, ends)?;
        self.replace_l4(error.l4 + ICMP_CHECKSUM, total, 0)
    }

    /// A quoted checksum is plain bytes, whole or cut off. Returns what its change adds to the sum of the quoting packet.
    #[inline(always)]
    fn rewrite_quoted_checksum(&mut self, at: u32, checksum: &Checksum, covered: Delta) -> Result<Delta, DropReason> {
        let Ok(old) = self.read::<u16>(at) else { return Ok(Delta::ZERO) };
        let optional = checksum.mangled != 0;
        if optional && old == 0 {
            return Ok(Delta::ZERO);
        }
        let new = match covered.apply(old) {
            0 if optional => 0xffff,
            new => new,
        };
        self.write(at, &new)?;
        Ok(Delta::ZERO.field(old, new))
    }

    /// Counts one more hop.
    #[inline(always)]
    pub(crate) fn decrement_ttl<F: Family>(&mut self, headers: &Headers) -> Result<(), DropReason> {
        let ttl = headers.ttl - 1;
        if F::IS_V4 {
            self.replace_l3(headers.l3 + F::CHECKSUM, Delta::ZERO.even_byte(headers.ttl, ttl))?;
        }
        self.write(headers.l3 + F::TTL, &ttl)
    }

    /// Sends the packet out of an interface, to a neighbour that the kernel resolves.
    #[inline(always)]
    pub(crate) fn redirect_to_neighbour<F: Family>(&mut self, ifindex: u32, neighbour: &Addr) -> Result<(), DropReason> {
        let address = if F::IS_V4 {
            bpf_redir_neigh__bindgen_ty_1 { ipv4_nh: neighbour.v4_word() }
        } else {
            bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: neighbour.words() }
        };
        let mut hop = bpf_redir_neigh { nh_family: F::ADDRESS_FAMILY, __bindgen_anon_1: address };
        // SAFETY: `hop` lives on the stack and its size goes with it.
        let action = unsafe { bpf_redirect_neigh(ifindex, &raw mut hop, size_of_val(&hop) as i32, 0) };
        redirected(action)
    }

    /// Sends the packet out of an interface, to a link address.
    #[inline(always)]
    pub(crate) fn redirect_to_link(&mut self, ifindex: u32, to: [u8; 6], from: [u8; 6]) -> Result<(), DropReason> {
        self.write(0, &to)?;
        self.write(6, &from)?;
        // SAFETY: the helper takes numbers only.
        let action = unsafe { bpf_redirect(ifindex, 0) };
        redirected(action)
    }

    #[inline(always)]
    fn replace_l3(&mut self, offset: u32, delta: Delta) -> Result<(), DropReason> {
        self.ctx.l3_csum_replace(offset as usize, 0, u64::from(delta.wsum()), 0).map_err(|_errno| DropReason::KernelCall)
    }

    #[inline(always)]
    fn replace_l4(&mut self, offset: u32, delta: Delta, flags: u64) -> Result<(), DropReason> {
        self.ctx.l4_csum_replace(offset as usize, 0, u64::from(delta.wsum()), flags).map_err(|_errno| DropReason::KernelCall)
    }

    #[inline(always)]
    fn write_addresses<F: Family>(&mut self, headers: &Headers, ends: &Ends) -> Result<(), DropReason> {
        if ends.src != headers.src {
            self.write_address::<F>(headers.l3 + F::SOURCE, &ends.src)?;
        }
        if ends.dst != headers.dst {
            self.write_address::<F>(headers.l3 + F::DESTINATION, &ends.dst)?;
        }
        Ok(())
    }

    #[inline(always)]
    fn write_ports(&mut self, l4: u32, change: &PortChange, ends: &Ends) -> Result<(), DropReason> {
        if let Some(offset) = change.src_offset {
            self.write(l4 + offset, &ends.src_port)?;
        }
        if let Some(offset) = change.dst_offset {
            self.write(l4 + offset, &ends.dst_port)?;
        }
        Ok(())
    }

    #[inline(always)]
    fn write_address<F: Family>(&mut self, offset: u32, addr: &Addr) -> Result<(), DropReason> {
        if F::IS_V4 { self.write(offset, &addr.v4_word()) } else { self.write(offset, &addr.words()) }
    }

    #[inline(always)]
    fn write<T: Pod>(&mut self, offset: u32, value: &T) -> Result<(), DropReason> {
        self.ctx.store(offset as usize, value, 0).map_err(|_errno| DropReason::KernelCall)
    }
}

/// Which ports change, where they are, and what that does to a checksum.
struct PortChange {
    src_offset: Option<u32>,
    dst_offset: Option<u32>,
    delta: Delta,
}

impl PortChange {
    #[inline(always)]
    fn of(transport: &Transport, ends: &Ends) -> Self {
        let src_offset = transport.port_offset(End::Source).filter(|_| ends.src_port != transport.src_port);
        let dst_offset = transport.port_offset(End::Destination).filter(|_| ends.dst_port != transport.dst_port);
        let mut delta = Delta::ZERO;
        if src_offset.is_some() {
            delta = delta.port(transport.src_port, ends.src_port);
        }
        if dst_offset.is_some() {
            delta = delta.port(transport.dst_port, ends.dst_port);
        }
        Self { src_offset, dst_offset, delta }
    }

    #[inline(always)]
    fn is_none(&self) -> bool {
        self.src_offset.is_none() && self.dst_offset.is_none()
    }
}

#[inline(always)]
fn redirected(action: i64) -> Result<(), DropReason> {
    if action == i64::from(TC_ACT_REDIRECT) { Ok(()) } else { Err(DropReason::KernelCall) }
}

/// Offset of the checksum in an ICMP or ICMPv6 message.
const ICMP_CHECKSUM: u32 = 2;

/// Flag of a checksum whose zero means "none": zero stays zero, and a computed zero becomes 0xffff.
pub(crate) const MANGLED: u64 = BPF_F_MARK_MANGLED_0 as u64;

/// See the program of the same purpose.
pub(crate) fn knows_csum_ipv6(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid; the helper checks the offset, and a zero difference changes nothing.
    let errno = unsafe { bpf_l4_csum_replace(ctx.skb.skb, L3 + 40 + 6, 0, 0, BPF_F_IPV6 | u64::from(BPF_F_PSEUDO_HDR)) };
    errno == 0
}
