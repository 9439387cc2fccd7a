//! What may become of a packet.
//!
//! Every program returns `Result<Verdict, DropReason>`; one match turns it into the kernel's action and counts it. Both
//! enums are dense, so that their numbers index the counters, and named, so that user space can print them.

/// The program that saw a packet; the first half of a counter's index.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Requests arrive.
    ClusterIngress = 0,
    /// Slow-path replies, kernel-made ICMP errors and the pod's own packets leave.
    ClusterEgress = 1,
    /// Replies arrive.
    ExternalIngress = 2,
    /// Slow-path requests, kernel-made ICMP errors and the pod's own packets leave.
    ExternalEgress = 3,
}

impl Hook {
    /// All hooks, by number.
    pub const ALL: [Self; 4] = [Self::ClusterIngress, Self::ClusterEgress, Self::ExternalIngress, Self::ExternalEgress];

    /// Whether packets leave here.
    #[inline(always)]
    pub const fn is_egress(self) -> bool {
        matches!(self, Self::ClusterEgress | Self::ExternalEgress)
    }

    /// Name of the program, as the kernel and the command line show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClusterIngress => "cluster_ingress",
            Self::ClusterEgress => "cluster_egress",
            Self::ExternalIngress => "external_ingress",
            Self::ExternalEgress => "external_egress",
        }
    }
}

macro_rules! dense {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// All of them, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The one with this number.
            #[inline(always)]
            pub const fn from_number(number: u32) -> Option<Self> {
                $(if number == Self::$variant as u32 { return Some(Self::$variant); })+
                None
            }

            /// The name that metrics and tables show.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

dense! {
    /// The packet goes on, in one of these ways.
    #[must_use]
    Verdict {
        /// Not IP, another VLAN's, multicast, neighbour discovery: none of our business.
        Pass = "pass",
        /// For the router's own stack, or from it.
        Local = "local",
        /// No rule and no fallback: the router's own stack refuses it (reset, port unreachable).
        Rejected = "rejected",
        /// A request, its destination translated, sent on by the kernel.
        Request = "request",
        /// A reply, its destination translated, sent on by the kernel.
        Reply = "reply",
        /// The source half of a packet that the kernel sent on, done at egress.
        SourceHalf = "source_half",
        /// A request, translated whole and redirected past the kernel's stack.
        RequestRedirected = "request_redirected",
        /// A reply, translated whole and redirected past the kernel's stack.
        ReplyRedirected = "reply_redirected",
        /// A redirected packet, leaving.
        Redirected = "redirected",
        /// An ICMP error of the kernel's own about a half-translated packet, put right at egress.
        KernelError = "kernel_error",
        /// A packet of an established flow, translated whole and redirected by the XDP program before this one.
        Accelerated = "accelerated",
    }
}

dense! {
    /// The packet ends here, and this is why.
    DropReason {
        /// The packet ends before its headers do, or a length in it is wrong, or its IPv4 header's checksum.
        Malformed = "malformed",
        /// Arrived on the cluster interface for an address that is not the router's.
        ForeignDestination = "foreign_destination",
        /// Came from the outside and belongs to no flow, nor to a socket that the pod opened.
        Unsolicited = "unsolicited",
        /// The rule's destination has no router address of its family to come from.
        NoSourceAddress = "no_source_address",
        /// Every source port that the flow may have is taken.
        PortsExhausted = "ports_exhausted",
        /// The flow table is full.
        TableFull = "table_full",
        /// Was about to leave the external interface with a source that is not the router's.
        Leak = "leak",
        /// A translated packet was routed out of the wrong interface.
        WrongInterface = "wrong_interface",
        /// A later fragment whose first was not seen.
        FragmentUnknown = "fragment_unknown",
        /// An ICMP error that quotes no packet of any flow.
        IcmpUnmatched = "icmp_unmatched",
        /// More extension headers than the router walks, or one that it must not forward.
        ExtensionHeader = "extension_header",
        /// The packet's checksum covers bytes that are not in it: a fragment of an SCTP packet whose port changes.
        ChecksumElsewhere = "checksum_elsewhere",
        /// A kernel call failed that should not have.
        KernelCall = "kernel_call",
        /// The datapath is attached but not configured yet.
        Unconfigured = "unconfigured",
    }
}

/// How many hooks there are.
pub const HOOKS: u32 = 4;

const _: () = assert!(Hook::ALL.len() == HOOKS as usize);

/// Outcomes of one hook: verdicts first, drop reasons after them.
pub const OUTCOMES_PER_HOOK: u32 = 32;

/// Index of a verdict's counter in `COUNTERS`.
#[inline(always)]
pub const fn verdict_index(hook: Hook, verdict: Verdict) -> u32 {
    hook as u32 * OUTCOMES_PER_HOOK + verdict as u32
}

/// Index of a drop reason's counter in `COUNTERS`.
#[inline(always)]
pub const fn drop_index(hook: Hook, reason: DropReason) -> u32 {
    hook as u32 * OUTCOMES_PER_HOOK + FIRST_DROP + reason as u32
}

const FIRST_DROP: u32 = 12;

const _: () = assert!(Verdict::ALL.len() <= FIRST_DROP as usize);
const _: () = assert!(FIRST_DROP as usize + DropReason::ALL.len() <= OUTCOMES_PER_HOOK as usize);

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_outcome_has_its_own_counter_and_name() {
        let mut indices = HashSet::new();
        for hook in Hook::ALL {
            for &verdict in Verdict::ALL {
                assert!(indices.insert(verdict_index(hook, verdict)));
            }
            for &reason in DropReason::ALL {
                assert!(indices.insert(drop_index(hook, reason)));
            }
        }
        for (number, &reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(DropReason::from_number(number.try_into().unwrap()), Some(reason));
        }
        assert_eq!(DropReason::from_number(99), None);
        let names: HashSet<_> =
            Verdict::ALL.iter().map(|v| v.name()).chain(DropReason::ALL.iter().map(|d| d.name())).collect();
        assert_eq!(names.len(), Verdict::ALL.len() + DropReason::ALL.len());
    }
}
