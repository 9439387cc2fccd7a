//! What the benchmark's packet source and sink are told, and what they count. No part of the router.
//!
//! The source is an XDP program that the kernel runs on frames of its own making (`BPF_F_TEST_XDP_LIVE_FRAMES`). Such frames
//! come round again with whatever became of them on their way, so the source writes each one anew: the template, and in it
//! the addresses and ports of the flow whose turn it is. A word of payload makes up for what they add to the checksum,
//! so that it stays right without being computed.

use bytemuck::{Pod, Zeroable};

/// Names of the maps.
pub mod map {
    /// `Array<Plan>`, one element.
    pub const PLAN: &str = "PLAN";
    /// `Array<u32>`, one element: number of the next flow.
    pub const POSITION: &str = "POSITION";
    /// `PerCpuArray<Tally>`, by place: [`AT_ENTRANCE`](super::AT_ENTRANCE) or [`AT_SINK`](super::AT_SINK).
    pub const TALLY: &str = "TALLY";
}

/// Element of `TALLY` that the program at the router's entrance counts in.
pub const AT_ENTRANCE: u32 = 0;
/// Element of `TALLY` that the sink counts in.
pub const AT_SINK: u32 = 1;

/// Bytes of an IPv4 frame: the smallest of Ethernet, 18 bytes of payload.
pub const V4_BYTES: usize = 14 + 20 + 8 + PAYLOAD_BYTES;
/// Bytes of an IPv6 frame with the same payload.
pub const V6_BYTES: usize = 14 + 40 + 8 + PAYLOAD_BYTES;
/// Bytes of payload.
pub const PAYLOAD_BYTES: usize = 18;
/// First bytes of each payload, by which the sink knows our packets.
pub const MAGIC: [u8; 4] = *b"egrs";
/// Place in the payload of the word that keeps the checksum.
pub const BALANCE_AT: usize = 4;
/// The largest number of flows, for which no sum overflows.
pub const MAX_FLOWS: u32 = 1 << 30;

/// What to send.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Plan {
    /// The frame of the first flow: Ethernet, IP and UDP, with the balance and IPv4's checksum zero.
    pub template: [u8; V6_BYTES],
    /// Interface that the frames go out of.
    pub ifindex: u32,
    /// [`AddressKey`](crate::contract) family of the template: 4 or 6.
    pub family: u32,
    /// Flows are numbered from 0 to one less than this.
    pub flows: u32,
    /// The flow after number n is number n + step, modulo [`flows`](Self::flows).
    pub step: u32,
    /// So many flows in a row differ in the source port; then the line changes.
    pub ports: u32,
    /// Lines come from so many addresses in turn.
    pub clients: u32,
    /// Packets go to so many ports in turn.
    pub rules: u32,
    /// [`Spread`].
    pub spread: u32,
    /// Last two bytes of the first flow's source address, host order.
    pub first_client: u32,
    /// Source port of the first flow.
    pub first_port: u32,
    /// Destination port of the first rule.
    pub first_rule: u32,
    /// What source, ports and balance add up to, folded.
    pub sum: u32,
    /// Sum of the IPv4 header without the source's last two bytes and the checksum, folded.
    pub header_sum: u32,
}

/// What decides the rule of a flow.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Its line: flows of one rule differ in the source port.
    Lines = 0,
    /// Its source port, scattered over all rules.
    Ports = 1,
}

/// What was counted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Tally {
    /// Packets of ours.
    pub packets: u64,
    /// Of these, the ones whose destination's last bit is 1.
    pub odd: u64,
    /// Sum of the last two bytes of their sources' addresses: tells whether all came from one address.
    pub sources: u64,
    /// When the last packet to an even destination came, monotonic clock; 0 unless the sink keeps times.
    pub last_even_ns: u64,
    /// When the first packet to an odd destination came.
    pub first_odd_ns: u64,
}

/// The flow of this number: last two bytes of the source, source port, destination port.
#[inline(always)]
pub const fn flow(plan: &Plan, number: u32) -> (u32, u32, u32) {
    let ports = if plan.ports == 0 { 1 } else { plan.ports };
    let (line, port) = (number / ports, number % ports);
    let (clients, rules) =
        (if plan.clients == 0 { 1 } else { plan.clients }, if plan.rules == 0 { 1 } else { plan.rules });
    let rule = if plan.spread == Spread::Lines as u32 {
        line % rules
    } else {
        // 40503 is 2^16 divided by the golden ratio: neighbours come out far apart.
        ((port.wrapping_mul(40_503) & 0xffff) * rules) >> 16
    };
    (plan.first_client + line % clients, plan.first_port + port, plan.first_rule + rule)
}

/// Folds a sum of 16-bit words into one, carries added.
#[inline(always)]
pub const fn fold(sum: u32) -> u32 {
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum & 0xffff) + (sum >> 16)
}

/// The word that makes `parts`, each below 2^16, add up to `sum`.
#[inline(always)]
pub const fn balance(sum: u32, parts: u32) -> u32 {
    // Three times 0xffff is zero to the checksum, and not less than three parts.
    fold(sum + 0x2_fffd - parts)
}

const _: () = assert!(size_of::<Plan>() == V6_BYTES + 52);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flow_is_another_and_every_balance_holds() {
        let plan = Plan { flows: 6000, ports: 1000, clients: 4, rules: 8, first_port: 1024, ..Plan::zeroed() };
        for spread in [Spread::Lines, Spread::Ports] {
            let plan = Plan { spread: spread as u32, ports: if spread == Spread::Ports { 6000 } else { 1000 }, ..plan };
            let mut seen = [false; 1 << 16];
            for number in 0..plan.flows {
                let (client, port, rule) = flow(&plan, number);
                assert!(rule < 8 && client < 4);
                let place = if spread == Spread::Ports { port } else { (port - 1024) * 8 + rule } as usize;
                assert!(!core::mem::replace(&mut seen[place], true), "{number}");
                let parts = client + port + rule;
                assert_eq!(fold(parts + balance(0x1234, parts)) % 0xffff, 0x1234);
            }
        }
    }

    #[test]
    fn a_balance_holds_at_the_ends() {
        for (sum, parts) in [(0, 0), (0xffff, 0x2_fffd), (0, 0x2_fffd), (0xffff, 0)] {
            assert_eq!(fold(fold(parts) + balance(sum, parts)) % 0xffff, sum % 0xffff);
        }
    }
}
