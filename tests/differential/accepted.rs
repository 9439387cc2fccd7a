//! The differences that are meant. Whatever else is different is a fault.

use crate::outcome::Difference;

/// One difference, and why it is there.
pub(crate) struct Accepted {
    pub(crate) name: &'static str,
    /// The steps at which it may be met.
    steps: &'static [&'static str],
    /// What may come by the original alone.
    original: &'static [&'static str],
    /// What may come by the router alone.
    ours: &'static [&'static str],
    /// Which fields may be different, of what comes by both.
    changed: &'static [&'static str],
    pub(crate) reason: &'static str,
}

impl Accepted {
    pub(crate) fn covers(&self, difference: &Difference) -> bool {
        let within = |found: &std::collections::BTreeSet<String>, may: &[&str]| {
            found.iter().all(|one| may.contains(&one.as_str()))
        };
        self.steps.contains(&difference.step)
            && within(&difference.only_original, self.original)
            && within(&difference.only_ours, self.ours)
            && within(&difference.changed, self.changed)
    }
}

/// All of them.
pub(crate) const ACCEPTED: &[Accepted] = &[
    Accepted {
        name: "no sequence numbers",
        steps: &["a segment outside the window", "a reset outside the window"],
        original: &["client: reset", "outside: reset"],
        ours: &["client: TCP", "outside: TCP", "client: reset", "outside: reset"],
        changed: &[],
        reason: "Connection tracking calls a segment outside the window invalid, leaves it untranslated, and the router's own \
                 stack answers it with a reset. Here the two ends judge their own windows, as they must anyhow; a reset that \
                 is not theirs is taken back by the next segment (RFC 7857 section 2.2).",
    },
    Accepted {
        name: "odd first segments",
        steps: &[
            "a reset of no connection",
            "a FIN of no connection",
            "a SYN's answer of no connection",
            "a segment without flags",
            "a segment with flags that exclude each other",
        ],
        original: &["client: reset"],
        ours: &["outside: TCP", "outside: reset"],
        changed: &[],
        reason: "Connection tracking picks a connection up in mid-stream by an ACK only; what else comes first goes \
                 untranslated to the router's own stack. Here a rule claims every segment of its port, and the destination \
                 answers: after a restart with an empty table a FIN or a reset still reaches the other end.",
    },
    Accepted {
        name: "fragments before their first",
        steps: &["fragments, the first one last"],
        original: &["client: fragment", "outside: fragment"],
        ours: &[],
        changed: &[],
        reason: "Connection tracking collects all fragments before it looks at the first. Here nothing is collected: a \
                 fragment whose ports are not known yet is dropped and counted (README, limits).",
    },
    Accepted {
        name: "fragments of what never gets whole",
        steps: &["fragments, one missing"],
        original: &[],
        ours: &["client: fragment", "outside: fragment"],
        changed: &[],
        reason: "Nothing is collected, so that a fragment is missing is for the destination to find, as on any router \
                 without NAT. The fragments that are sent on are translated.",
    },
    Accepted {
        name: "atomic fragments",
        steps: &["a datagram in one fragment"],
        original: &[],
        ours: &[],
        changed: &[
            "client: length",
            "client: options",
            "client: payload",
            "outside: length",
            "outside: options",
            "outside: payload",
        ],
        reason: "Connection tracking takes the fragment header off an IPv6 datagram that is whole. Here no header that is \
                 not translated is changed: RFC 6946 has the destination take such a datagram as it is.",
    },
    Accepted {
        name: "many extension headers",
        steps: &["more extension headers than are walked"],
        original: &["client: UDP", "outside: UDP"],
        ours: &[],
        changed: &[],
        reason: "The walk is bounded for the verifier, at what RFC 8200 section 4.1 lists; what hides its ports behind more \
                 is dropped and counted, never let through unseen.",
    },
    Accepted {
        name: "source routes",
        steps: &["a route of its own"],
        original: &["client: UDP", "outside: UDP"],
        ours: &[],
        changed: &[],
        reason: "An IPv6 packet with segments left is not at its destination yet: its outer address is that of a waypoint, \
                 and translating that is meaningless. Dropped and counted; the kernel forwards it.",
    },
    Accepted {
        name: "wrong checksums",
        steps: &["a wrong transport checksum"],
        original: &[],
        ours: &["client: UDP", "outside: UDP"],
        changed: &[],
        reason: "Connection tracking sums the whole payload up, and what is wrong goes untranslated to the router's own \
                 stack, which drops it. Here transport checksums are updated and never computed, so that a wrong one stays as wrong \
                 as it was, and the next host that looks drops the packet; nothing turns right by being translated.",
    },
    Accepted {
        name: "an authentication header",
        steps: &["a packet with an authentication header"],
        original: &["client: protocol 51", "outside: protocol 51", "outside: ICMP 4/1", "client: ICMP 4/1"],
        ours: &["client: protocol 51", "outside: protocol 51"],
        changed: &[],
        reason: "IPv6's connection tracking looks behind it for another protocol; here it is one without ports. Neither can \
                 be of use: it signs the addresses, so that no translated packet passes (RFC 4302 section 3.3.3.1).",
    },
    Accepted {
        name: "silence to the outside",
        steps: &["a datagram of another host", "a SYN from outside", "a datagram from outside"],
        original: &["outside: reset", "outside: ICMP 3/3", "outside: ICMP 1/4"],
        ours: &[],
        changed: &[],
        reason: "What would open something from the outside is dropped and counted, not answered by the router's own stack: \
                 nothing listens there for the outside, and a scanner need not learn that.",
    },
    Accepted {
        name: "no way in",
        steps: &["a packet to a pod", "a packet to the router's inner address"],
        original: &["client: TCP", "client: UDP", "outside: untranslated reset"],
        ours: &[],
        changed: &[],
        reason: "The original forwards whatever the outside sends to a pod's address, and answers for its own inner one with \
                 a source that the outside must never see. Here nothing comes in that belongs to no flow.",
    },
    Accepted {
        name: "no open router",
        steps: &["a packet to another host", "a packet to another pod", "a packet to the router's outer address"],
        original: &[
            "outside: UDP",
            "outside: TCP",
            "outside: untranslated UDP",
            "client: ICMP 3/3",
            "client: ICMP 1/4",
            "client: UDP",
        ],
        ours: &[],
        changed: &[],
        reason: "The original's rules do not look at the destination, and forwarding is on: every host that a pod names is \
                 reached through it. Here only packets to the router's own address on the cluster interface are taken.",
    },
];
