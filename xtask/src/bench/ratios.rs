//! The figures that are compared: ours by a peer's, round by round.

use super::record::{Record, Subject};
use super::rig::Path;

/// What a ratio must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bound {
    /// A cost: no more than this.
    AtMost(f64),
    /// A rate: no less than this.
    AtLeast(f64),
    /// For information.
    Open,
}

impl Bound {
    /// Whether `value` keeps it; none when it is open.
    pub(super) fn holds(self, value: f64) -> Option<bool> {
        match self {
            Self::AtMost(bound) => Some(value <= bound),
            Self::AtLeast(bound) => Some(value >= bound),
            Self::Open => None,
        }
    }

    /// As a reader wants it.
    pub(super) fn shown(self) -> String {
        match self {
            Self::AtMost(bound) => format!("<= {bound:.2}"),
            Self::AtLeast(bound) => format!(">= {bound:.2}"),
            Self::Open => "-".to_owned(),
        }
    }
}

/// One figure by another.
struct Ratio {
    name: &'static str,
    ours: (&'static str, Path),
    peer: (&'static str, Path),
    bound: Bound,
}

const fn ratio(name: &'static str, ours: (&'static str, Path), peer: (&'static str, Path), bound: Bound) -> Ratio {
    Ratio { name, ours, peer, bound }
}

use Bound::{AtLeast, AtMost, Open};
use Path::{Forward, Iptables, Nft, Redirect, Tc, Xdp};

const RATIOS: &[Ratio] = &[
    ratio("tc_vs_nft_udp_small", ("udp-small", Tc), ("udp-small", Nft), AtMost(0.60)),
    ratio("tc_vs_iptables_udp_small", ("udp-small", Tc), ("udp-small", Iptables), Open),
    ratio("tc_vs_forward_udp_small", ("udp-small", Tc), ("udp-small", Forward), AtMost(1.15)),
    ratio("tc_vs_redirect_udp_small", ("udp-small", Tc), ("udp-small", Redirect), Open),
    ratio("xdp_vs_nft_udp_small", ("udp-small", Xdp), ("udp-small", Nft), AtMost(0.45)),
    ratio("xdp_vs_tc_udp_small", ("udp-small", Xdp), ("udp-small", Tc), Open),
    ratio("xdp_vs_forward_udp_small", ("udp-small", Xdp), ("udp-small", Forward), Open),
    ratio("forward_vs_nft_udp_small", ("udp-small", Forward), ("udp-small", Nft), Open),
    ratio("crr_vs_nft", ("crr", Tc), ("crr", Nft), AtLeast(1.2)),
    ratio("crr_vs_iptables", ("crr", Tc), ("crr", Iptables), Open),
    ratio("crr_vs_forward", ("crr", Tc), ("crr", Forward), Open),
    ratio("rr_p50_vs_nft", ("rr-p50", Tc), ("rr-p50", Nft), AtMost(1.0)),
    ratio("rr_p99_vs_nft", ("rr-p99", Tc), ("rr-p99", Nft), AtMost(1.0)),
    ratio("rr_p50_vs_forward", ("rr-p50", Tc), ("rr-p50", Forward), Open),
    ratio("udp_rr_p50_vs_nft", ("udp-rr-p50", Tc), ("udp-rr-p50", Nft), AtMost(1.0)),
    ratio("udp_rr_p99_vs_nft", ("udp-rr-p99", Tc), ("udp-rr-p99", Nft), AtMost(1.0)),
    ratio("stream1_vs_forward", ("stream1", Tc), ("stream1", Forward), AtLeast(0.95)),
    ratio("stream8_vs_forward", ("stream8", Tc), ("stream8", Forward), AtLeast(0.95)),
    ratio("stream1_vs_nft", ("stream1", Tc), ("stream1", Nft), Open),
    ratio("stream8_vs_nft", ("stream8", Tc), ("stream8", Nft), Open),
    ratio("new_flow_vs_nft", ("new-flows", Tc), ("new-flows", Nft), Open),
    ratio("rules_65535_vs_1", ("rules-65535", Tc), ("rules-1", Tc), AtMost(1.05)),
    ratio("rules_new_65535_vs_1", ("rules-new-65535", Tc), ("rules-new-1", Tc), Open),
    ratio("nft_rules_new_10000_vs_1", ("rules-new-10000", Nft), ("rules-new-1", Nft), Open),
    ratio("flows_1m_vs_1k", ("flows-1000000", Tc), ("flows-1000", Tc), AtMost(1.3)),
    ratio("flows_1k_of_1m_vs_1k", ("flows-1000-of-1000000", Tc), ("flows-1000", Tc), Open),
    ratio("flows_100k_vs_1k", ("flows-100000", Tc), ("flows-1000", Tc), Open),
    ratio("flows_100k_vs_nft", ("flows-100000", Tc), ("flows-100000", Nft), Open),
    ratio("nft_flows_100k_vs_1k", ("flows-100000", Nft), ("flows-1000", Nft), Open),
    ratio("memory_vs_nft", ("memory", Tc), ("memory", Nft), Open),
];

/// What a ratio of this name must be.
pub(super) fn bound(name: &str) -> Bound {
    let name = name.strip_suffix("_v6").unwrap_or(name);
    let name = name.strip_suffix("_veth").unwrap_or(name);
    RATIOS.iter().find(|ratio| ratio.name == name).map_or(Open, |ratio| ratio.bound)
}

/// Adds every ratio whose two figures are there: IPv4's by the bare name, the others' with what differs as a suffix.
pub(super) fn add(record: &mut Record) {
    for (uplink, uplink_suffix) in [("macvlan", ""), ("veth", "_veth")] {
        for ratio in RATIOS {
            // XDP programs there are on the veth alone, which needs no saying.
            let uplink_suffix = if ratio.ours.1 == Xdp { "" } else { uplink_suffix };
            for (family, suffix) in [(None, ""), (Some(4), ""), (Some(6), "_v6")] {
                let values = |(workload, path): (&str, Path)| {
                    let found = record.figures().map(|(subject, _)| subject).find(|subject| {
                        let Subject { workload: this, path: of, .. } = *subject;
                        subject.uplink == uplink && subject.family == family && this == workload && of == path.name()
                    });
                    found.map(|subject| record.of(subject).to_vec()).unwrap_or_default()
                };
                let (ours, peers) = (values(ratio.ours), values(ratio.peer));
                record.ratio(format!("{}{uplink_suffix}{suffix}", ratio.name), &ours, &peers);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_has_its_family_and_uplink_in_its_name() {
        let mut record = Record::default();
        for (uplink, family) in [("macvlan", 4), ("macvlan", 6), ("veth", 4)] {
            for (path, value) in [("tc", 1.0), ("nft", 2.0)] {
                let subject = Subject {
                    workload: "crr".to_owned(),
                    uplink,
                    family: Some(family),
                    path: path.to_owned(),
                    unit: "connections/s",
                };
                record.add(subject, value);
            }
        }
        add(&mut record);
        let names = record.ratios().map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(names, ["crr_vs_nft", "crr_vs_nft_v6", "crr_vs_nft_veth"]);
        assert_eq!(bound("crr_vs_nft_veth_v6"), AtLeast(1.2));
        assert_eq!(AtLeast(1.2).holds(0.5), Some(false));
    }
}
