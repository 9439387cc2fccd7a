//! The packet: the one type through which bytes are read and written.
//!
//! Reads copy. Writes go through [`Packet::rewrite`], which keeps every checksum that covers what it changes; there is no
//! setter that would leave one stale. Checksums are changed by the kernel's helpers alone, since only they know whether a
//! field is whole or still to be finished by a device.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::bpf_l4_csum_replace;
use aya_ebpf::programs::TcContext;
use bytemuck::Pod;
use egress_ebpf::addr::{Addr, Port};
use egress_ebpf::checksum::Delta;
use egress_ebpf::contract::{Config, config_flag};
use egress_ebpf::verdict::DropReason;

use super::family::Family;
use super::headers::{End, Headers, Transport};

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
    pub(crate) fn mark(&self) -> u32 {
        // SAFETY: a program's context pointer is valid while it runs.
        unsafe { (*self.ctx.skb.skb).mark }
    }

    /// Sets `skb->mark`.
    #[inline(always)]
    pub(crate) fn set_mark(&mut self, mark: u32) {
        self.ctx.set_mark(mark);
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
        let ports = Delta::ZERO.port(transport.src_port, ends.src_port).port(transport.dst_port, ends.dst_port);
        let src_moves = ends.src_port != transport.src_port;
        let dst_moves = ends.dst_port != transport.dst_port;
        if !src_moves && !dst_moves {
            return Ok(());
        }
        if let Some(checksum) = transport.checksum::<F>() {
            self.replace_l4(headers.l4 + checksum.offset, ports, checksum.mangled)?;
        }
        if let Some(offset) = transport.port_offset(End::Source).filter(|_| src_moves) {
            self.write(headers.l4 + offset, &ends.src_port)?;
        }
        if let Some(offset) = transport.port_offset(End::Destination).filter(|_| dst_moves) {
            self.write(headers.l4 + offset, &ends.dst_port)?;
        }
        Ok(())
    }

    #[inline(always)]
    fn rewrite_addresses<F: Family>(
        &mut self,
        config: &Config,
        headers: &Headers,
        transport: &Transport,
        ends: &Ends,
    ) -> Result<(), DropReason> {
        let src_moves = ends.src != headers.src;
        let dst_moves = ends.dst != headers.dst;
        if !src_moves && !dst_moves {
            return Ok(());
        }
        let delta = Delta::ZERO.addr(&headers.src, &ends.src).addr(&headers.dst, &ends.dst);
        if let Some(checksum) = transport.checksum::<F>().filter(|checksum| checksum.covers_addresses) {
            let ipv6 = if !F::IS_V4 && config.flags & config_flag::CSUM_IPV6 != 0 { BPF_F_IPV6 } else { 0 };
            let flags = checksum.mangled | u64::from(BPF_F_PSEUDO_HDR) | ipv6;
            self.replace_l4(headers.l4 + checksum.offset, delta, flags)?;
        }
        if F::IS_V4 {
            self.ctx
                .l3_csum_replace((L3 + F::CHECKSUM) as usize, 0, u64::from(delta.wsum()), 0)
                .map_err(|_errno| DropReason::KernelCall)?;
        }
        if src_moves {
            self.write_address::<F>(L3 + F::SOURCE, &ends.src)?;
        }
        if dst_moves {
            self.write_address::<F>(L3 + F::DESTINATION, &ends.dst)?;
        }
        Ok(())
    }

    #[inline(always)]
    fn replace_l4(&mut self, offset: u32, delta: Delta, flags: u64) -> Result<(), DropReason> {
        self.ctx.l4_csum_replace(offset as usize, 0, u64::from(delta.wsum()), flags).map_err(|_errno| DropReason::KernelCall)
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

/// Flag of a checksum whose zero means "none": zero stays zero, and a computed zero becomes 0xffff.
pub(crate) const MANGLED: u64 = BPF_F_MARK_MANGLED_0 as u64;

/// See the program of the same purpose.
pub(crate) fn knows_csum_ipv6(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid; the helper checks the offset, and a zero difference changes nothing.
    let errno = unsafe { bpf_l4_csum_replace(ctx.skb.skb, L3 + 40 + 6, 0, 0, BPF_F_IPV6 | u64::from(BPF_F_PSEUDO_HDR)) };
    errno == 0
}
