//! Ethernet frames of ARP (RFC 826) and neighbour discovery (RFC 4861): the few that probing and announcing need.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::mac::Mac;

/// EtherType of ARP.
pub(super) const ETH_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub(super) const ETH_IPV6: u16 = 0x86dd;

const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
/// Hardware type Ethernet, protocol type IPv4, with their address lengths.
const ARP_ETHERNET_IPV4: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];

pub(super) const ICMPV6: u8 = 58;
pub(super) const NEIGHBOUR_SOLICITATION: u8 = 135;
pub(super) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const OVERRIDE: u8 = 0x20;
const TARGET_LINK_LAYER: u8 = 2;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// "Does anybody have this address?", from a host that has none yet: an ARP probe (RFC 5227, 2.1.1) or the neighbour
/// solicitation of duplicate address detection (RFC 4862, 5.4.2).
pub(super) fn probe(own: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => {
            let arp = Arp { operation: ARP_REQUEST, sender: (own, Ipv4Addr::UNSPECIFIED), target: (Mac([0; 6]), v4) };
            arp.to_frame(own)
        }
        IpAddr::V6(v6) => {
            let group = solicited_node(v6);
            let mut message = vec![NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
            message.extend(v6.octets());
            icmpv6_frame(own, Ipv6Addr::UNSPECIFIED, group, message)
        }
    }
}

/// "This address is at my MAC", unasked: for IPv4 both the request and the reply form, because some switches and
/// hosts learn from one only; for IPv6 a neighbour advertisement that overrides what neighbours know (RFC 4861, 7.2.6).
pub(super) fn announcements(own: Mac, address: IpAddr) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(v4) => [(ARP_REQUEST, Mac([0; 6])), (ARP_REPLY, own)]
            .map(|(operation, target)| Arp { operation, sender: (own, v4), target: (target, v4) }.to_frame(own))
            .to_vec(),
        IpAddr::V6(v6) => {
            let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
            message.extend(v6.octets());
            message.extend([TARGET_LINK_LAYER, 1]);
            message.extend(own.0);
            vec![icmpv6_frame(own, v6, ALL_NODES, message)]
        }
    }
}

/// What a frame says of an address, and who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) address: IpAddr,
    pub(super) by: Mac,
    pub(super) kind: ClaimKind,
}

/// What it is that is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClaimKind {
    /// It has the address.
    Holds,
    /// It asks who has it, as one does that has it not, and may be about to take it.
    Asks,
}

/// Reads a frame: any ARP packet says that its sender has its own address, but for a probe, which asks for another
/// (RFC 5227, 2.1.1). Likewise a neighbour advertisement, and a solicitation without a source (RFC 4862, 5.4.3 and
/// 5.4.4).
pub(super) fn claim(frame: &[u8]) -> Option<Claim> {
    let (ethernet, payload) = frame.split_first_chunk::<14>()?;
    let [.., s0, s1, s2, s3, s4, s5, t0, t1] = *ethernet;
    match u16::from_be_bytes([t0, t1]) {
        ETH_ARP => {
            let Arp { operation, sender: (by, sender), target: (_, target) } = Arp::parse(payload)?;
            let (kind, address) = if operation == ARP_REQUEST && sender.is_unspecified() {
                (ClaimKind::Asks, target)
            } else {
                (ClaimKind::Holds, sender)
            };
            Some(Claim { address: address.into(), by, kind })
        }
        ETH_IPV6 => neighbour_claim(payload, Mac([s0, s1, s2, s3, s4, s5])),
        _ => None,
    }
}

fn neighbour_claim(packet: &[u8], source: Mac) -> Option<Claim> {
    let (header, message) = packet.split_first_chunk::<40>()?;
    let [_, _, _, _, _, _, next, hop_limit, addresses @ ..] = header;
    let (from, _to) = addresses.split_first_chunk::<16>()?;
    // 255 proves that the packet comes from this link (RFC 4861, 7.1).
    if *next != ICMPV6 || *hop_limit != 255 {
        return None;
    }
    let (fixed, options) = message.split_first_chunk::<24>()?;
    let [kind, _, _, _, _, _, _, _, target @ ..] = fixed;
    let address: Ipv6Addr = (*target).into();
    match *kind {
        NEIGHBOUR_ADVERTISEMENT => {
            let by = match options {
                [TARGET_LINK_LAYER, 1, a, b, c, d, e, f, ..] => Mac([*a, *b, *c, *d, *e, *f]),
                _ => source,
            };
            Some(Claim { address: address.into(), by, kind: ClaimKind::Holds })
        }
        NEIGHBOUR_SOLICITATION if Ipv6Addr::from(*from).is_unspecified() => {
            Some(Claim { address: address.into(), by: source, kind: ClaimKind::Asks })
        }
        _ => None,
    }
}

struct Arp {
    operation: u16,
    sender: (Mac, Ipv4Addr),
    target: (Mac, Ipv4Addr),
}

impl Arp {
    fn to_frame(&self, source: Mac) -> Vec<u8> {
        let mut frame = ethernet(Mac::BROADCAST, source, ETH_ARP);
        frame.extend(ARP_ETHERNET_IPV4);
        frame.extend(self.operation.to_be_bytes());
        for (mac, address) in [self.sender, self.target] {
            frame.extend(mac.0);
            frame.extend(address.octets());
        }
        frame
    }

    fn parse(packet: &[u8]) -> Option<Self> {
        let (header, rest) = packet.split_first_chunk::<8>()?;
        let [kind @ .., o0, o1] = *header;
        if kind != ARP_ETHERNET_IPV4 {
            return None;
        }
        let (sender, rest) = rest.split_first_chunk::<10>()?;
        let (target, _padding) = rest.split_first_chunk::<10>()?;
        let pair = |[a, b, c, d, e, f, w, x, y, z]: [u8; 10]| (Mac([a, b, c, d, e, f]), Ipv4Addr::new(w, x, y, z));
        Some(Self { operation: u16::from_be_bytes([o0, o1]), sender: pair(*sender), target: pair(*target) })
    }
}

fn ethernet(destination: Mac, source: Mac, kind: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(96);
    frame.extend(destination.0);
    frame.extend(source.0);
    frame.extend(kind.to_be_bytes());
    frame
}

/// The group that the holder of an address listens to (RFC 4291, 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., x, y, z] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z])
}

/// A multicast ICMPv6 packet in its frame, with its checksum.
fn icmpv6_frame(own: Mac, source: Ipv6Addr, group: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut pseudo = Vec::with_capacity(128);
    pseudo.extend(source.octets());
    pseudo.extend(group.octets());
    pseudo.extend(u32::from(length).to_be_bytes());
    pseudo.extend([0, 0, 0, ICMPV6]);
    pseudo.extend(&message);
    if let [_, _, sum @ ..] = message.as_mut_slice()
        && let Some(sum) = sum.first_chunk_mut::<2>()
    {
        *sum = checksum(&pseudo).to_be_bytes();
    }
    // RFC 2464, 7: 33:33 and the last four bytes of the group.
    let [.., a, b, c, d] = group.octets();
    let mut frame = ethernet(Mac([0x33, 0x33, a, b, c, d]), own, ETH_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([ICMPV6, 255]);
    frame.extend(source.octets());
    frame.extend(group.octets());
    frame.extend(message);
    frame
}

/// RFC 1071.
pub(super) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += match pair {
            [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
            [high] => u32::from(*high) << 8,
            _ => 0,
        };
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const ADDRESSES: [&str; 2] = ["192.168.12.99", "2001:db8:12::99"];

    #[test]
    fn a_probe_asks_for_its_address_and_holds_none() {
        for address in ADDRESSES {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(claim(&probe(OWN, address)), Some(Claim { address, by: OWN, kind: ClaimKind::Asks }));
        }
    }

    #[test]
    fn who_announces_an_address_holds_it() {
        for address in ADDRESSES {
            let address: IpAddr = address.parse().unwrap();
            for frame in announcements(OWN, address) {
                assert_eq!(claim(&frame), Some(Claim { address, by: OWN, kind: ClaimKind::Holds }));
            }
        }
    }

    #[test]
    fn an_ordinary_question_says_that_the_asker_has_its_own_address() {
        let (own, asked) = (Ipv4Addr::new(192, 168, 12, 99), Ipv4Addr::new(192, 168, 12, 1));
        let arp = Arp { operation: ARP_REQUEST, sender: (OWN, own), target: (Mac([0; 6]), asked) };
        let expected = Claim { address: own.into(), by: OWN, kind: ClaimKind::Holds };
        assert_eq!(claim(&arp.to_frame(OWN)), Some(expected));
    }

    #[test]
    fn truncated_frames_claim_nothing_and_do_not_panic() {
        for address in ADDRESSES {
            let address: IpAddr = address.parse().unwrap();
            let frames = announcements(OWN, address).into_iter().chain([probe(OWN, address)]);
            for frame in frames {
                for length in 0..frame.len() {
                    let cut = claim(&frame[..length]);
                    // All but the link-layer option has to be there, and that has a substitute.
                    assert!(cut.is_none() || length >= 78, "{length} bytes of {frame:02x?} say {cut:?}");
                }
            }
        }
    }

    #[test]
    fn a_neighbour_message_from_beyond_the_link_claims_nothing() {
        let mut frame = probe(OWN, "2001:db8:12::99".parse().unwrap());
        frame[14 + 7] = 254;
        assert_eq!(claim(&frame), None);
    }

    #[test]
    fn the_checksum_of_a_frame_with_its_checksum_is_zero() {
        for frame in announcements(OWN, "2001:db8:12::99".parse().unwrap()) {
            let (addresses, message) = (&frame[14 + 8..14 + 40], &frame[14 + 40..]);
            let length = u8::try_from(message.len()).unwrap();
            let pseudo = [addresses, &[0, 0, 0, length, 0, 0, 0, ICMPV6], message].concat();
            assert_eq!(checksum(&pseudo), 0);
        }
    }
}
