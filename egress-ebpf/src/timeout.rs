//! How long a flow may be idle before it counts as gone.
//!
//! The defaults are those of Linux's connection tracker (`nf_conntrack_proto_tcp.c`, `_udp.c`, `_sctp.c`, `_icmp.c`,
//! `_generic.c`), so that what lives through kernel NAT lives here. An expired entry is absent from the moment it
//! expires, whether anybody sweeps it or not.

use crate::contract::Flow;
use crate::sctp;
use crate::tcp::{self, seen};

/// IP protocol numbers that the datapath tells apart.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite.
    pub const UDP_LITE: u8 = 136;
}

/// What a flow is doing, as far as its timeout is concerned. Indexes [`Config::timeouts_s`](crate::contract::Config).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A SYN was sent.
    TcpSynSent = 0,
    /// It was answered by a SYN.
    TcpSynRecv = 1,
    /// Open.
    TcpEstablished = 2,
    /// The requesting side sends no more.
    TcpFinWait = 3,
    /// The replying side sends no more.
    TcpCloseWait = 4,
    /// Neither side sends more.
    TcpTimeWait = 5,
    /// Reset.
    TcpClose = 6,
    /// UDP that was not answered.
    Udp = 7,
    /// UDP with traffic both ways for more than two seconds.
    UdpStream = 8,
    /// An echo request.
    Icmp = 9,
    /// An SCTP association that was not answered yet.
    SctpOpening = 10,
    /// An SCTP association.
    SctpEstablished = 11,
    /// Anything else.
    Generic = 12,
    /// An SCTP association that is shutting down.
    SctpShutdown = 13,
    /// An SCTP association that has ended.
    SctpClosed = 14,
}

impl Class {
    /// All classes, by number.
    pub const ALL: [Self; 15] = [
        Self::TcpSynSent,
        Self::TcpSynRecv,
        Self::TcpEstablished,
        Self::TcpFinWait,
        Self::TcpCloseWait,
        Self::TcpTimeWait,
        Self::TcpClose,
        Self::Udp,
        Self::UdpStream,
        Self::Icmp,
        Self::SctpOpening,
        Self::SctpEstablished,
        Self::Generic,
        Self::SctpShutdown,
        Self::SctpClosed,
    ];

    /// Name, as the command line shows and takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TcpSynSent => "tcp-syn-sent",
            Self::TcpSynRecv => "tcp-syn-recv",
            Self::TcpEstablished => "tcp-established",
            Self::TcpFinWait => "tcp-fin-wait",
            Self::TcpCloseWait => "tcp-close-wait",
            Self::TcpTimeWait => "tcp-time-wait",
            Self::TcpClose => "tcp-close",
            Self::Udp => "udp",
            Self::UdpStream => "udp-stream",
            Self::Icmp => "icmp",
            Self::SctpOpening => "sctp-opening",
            Self::SctpEstablished => "sctp-established",
            Self::Generic => "generic",
            Self::SctpShutdown => "sctp-shutdown",
            Self::SctpClosed => "sctp-closed",
        }
    }

    /// The protocols whose flows can be of this class.
    const fn group(self) -> Group {
        match self {
            Self::TcpSynSent
            | Self::TcpSynRecv
            | Self::TcpEstablished
            | Self::TcpFinWait
            | Self::TcpCloseWait
            | Self::TcpTimeWait
            | Self::TcpClose => Group::Tcp,
            Self::Udp | Self::UdpStream => Group::Udp,
            Self::Icmp => Group::Icmp,
            Self::SctpOpening | Self::SctpEstablished | Self::SctpShutdown | Self::SctpClosed => Group::Sctp,
            Self::Generic => Group::Other,
        }
    }

    /// Whether such a flow gives way to others when the table is nearly full: it has only begun, or is about to end.
    pub const fn gives_way(self) -> bool {
        !matches!(self, Self::TcpEstablished | Self::UdpStream | Self::SctpEstablished | Self::Generic)
    }

    /// Connection tracking's default, in seconds.
    pub const fn default_s(self) -> u32 {
        match self {
            Self::TcpSynSent | Self::TcpFinWait | Self::TcpTimeWait => 120,
            Self::TcpSynRecv | Self::TcpCloseWait => 60,
            Self::TcpEstablished => 5 * 24 * 3600,
            Self::TcpClose | Self::SctpClosed => 10,
            Self::Udp | Self::Icmp => 30,
            Self::UdpStream => 120,
            Self::SctpOpening | Self::SctpShutdown => 3,
            Self::SctpEstablished => 210,
            Self::Generic => 600,
        }
    }
}

/// Length of [`Config::timeouts_s`](crate::contract::Config): the classes, rounded up.
pub const CLASSES: usize = 16;

/// All defaults, in seconds, by class number.
pub fn defaults_s() -> [u32; CLASSES] {
    let mut table = [Class::Generic.default_s(); CLASSES];
    for (limit, class) in table.iter_mut().zip(Class::ALL) {
        *limit = class.default_s();
    }
    table
}

/// Protocols whose flows can be of the same classes.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// TCP.
    Tcp = 0,
    /// UDP and UDP-Lite.
    Udp = 1,
    /// ICMP and ICMPv6.
    Icmp = 2,
    /// SCTP.
    Sctp = 3,
    /// All others.
    Other = 4,
}

/// Length of [`Config::shortest_s`](crate::contract::Config): the groups, rounded up.
pub const GROUPS: usize = 8;

impl Group {
    /// That of an IP protocol.
    #[inline(always)]
    pub const fn of(protocol: u8) -> Self {
        match protocol {
            protocol::TCP => Self::Tcp,
            protocol::UDP | protocol::UDP_LITE => Self::Udp,
            protocol::ICMP | protocol::ICMPV6 => Self::Icmp,
            protocol::SCTP => Self::Sctp,
            _ => Self::Other,
        }
    }
}

/// By [`Group`], the shortest idle timeout that its flows can have, whatever both directions have sent.
pub fn shortest_s(timeouts_s: &[u32; CLASSES]) -> [u32; GROUPS] {
    let mut shortest = [u32::MAX; GROUPS];
    for (class, limit) in Class::ALL.iter().zip(timeouts_s) {
        if let Some(place) = shortest.get_mut(class.group() as usize) {
            *place = (*place).min(*limit);
        }
    }
    shortest
}

/// Whether a flow of which this is one entry is alive, however silent the other direction is.
#[expect(clippy::indexing_slicing, reason = "there is one for each group")]
#[inline(always)]
pub const fn is_young(protocol: u8, flow: &Flow, shortest_s: &[u32; GROUPS], now_ns: u64) -> bool {
    now_ns.saturating_sub(flow.last_seen_ns) < shortest_s[Group::of(protocol) as usize] as u64 * SECOND_NS
}

/// Nanoseconds in a second.
pub const SECOND_NS: u64 = 1_000_000_000;

/// What the flow of these two entries is doing. `request` and `reply` are the entries' `seen`; `lasted_ns` the time from the
/// flow's beginning to its last packet: a lookup's question and answer are no stream, however long ago they were.
#[inline(always)]
pub const fn class(protocol: u8, request: u8, reply: u8, lasted_ns: u64) -> Class {
    match Group::of(protocol) {
        Group::Tcp => tcp::class(request, reply),
        Group::Udp => {
            if reply & seen::ANY != 0 && lasted_ns > 2 * SECOND_NS {
                Class::UdpStream
            } else {
                Class::Udp
            }
        }
        Group::Icmp => Class::Icmp,
        Group::Sctp => sctp::class(request, reply),
        Group::Other => Class::Generic,
    }
}

/// Whether a flow is gone. `own` is the entry at hand, of direction `own_is_request`; `twin` its partner, if there is one.
///
/// A flow is as young as the younger of its entries: traffic in one direction alone keeps both.
#[inline(always)]
pub fn expired(
    protocol: u8,
    own: &Flow,
    own_is_request: bool,
    twin: Option<&Flow>,
    timeouts_s: &[u32; CLASSES],
    now_ns: u64,
) -> bool {
    let (twin_seen, twin_last_ns) = match twin {
        Some(twin) => (twin.seen, twin.last_seen_ns),
        None => (0, 0),
    };
    let last_ns = if twin_last_ns > own.last_seen_ns { twin_last_ns } else { own.last_seen_ns };
    let lasted_ns = last_ns.saturating_sub(own.created_ns);
    let class = if own_is_request {
        class(protocol, own.seen, twin_seen, lasted_ns)
    } else {
        class(protocol, twin_seen, own.seen, lasted_ns)
    };
    // The mask keeps the index inside the table for the verifier; every class is below it.
    let limit_s = match timeouts_s.get(class as usize & (CLASSES - 1)) {
        Some(limit) => *limit,
        None => Class::Generic.default_s(),
    };
    now_ns.saturating_sub(last_ns) >= limit_s as u64 * SECOND_NS
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    #[test]
    fn classes_are_dense_and_fit_the_table() {
        for (i, class) in Class::ALL.iter().enumerate() {
            assert_eq!(*class as usize, i);
        }
        assert!(Class::ALL.len() <= CLASSES);
    }

    #[test]
    fn the_shortest_timeout_of_a_protocol_is_that_of_its_shortest_class() {
        let shortest = shortest_s(&defaults_s());
        let of = |protocol| shortest[Group::of(protocol) as usize];
        assert_eq!([protocol::TCP, protocol::UDP, protocol::UDP_LITE].map(of), [10, 30, 30]);
        assert_eq!([protocol::ICMP, protocol::ICMPV6, protocol::SCTP, 47, 50].map(of), [30, 30, 3, 600, 600]);
        // Whatever two entries have seen, what is young is not expired.
        for protocol in 0..=u8::MAX {
            let limit = u64::from(of(protocol));
            for (own, other) in (0..=u8::MAX).flat_map(|own| (0..=u8::MAX).map(move |other| (own, other))) {
                for lasted_ns in [0, 3 * SECOND_NS] {
                    let class = class(protocol, own, other, lasted_ns);
                    assert!(u64::from(class.default_s()) >= limit, "{protocol}, {own}, {other}: {class:?}");
                }
            }
        }
        let flow = Flow { last_seen_ns: 5 * SECOND_NS, ..Flow::zeroed() };
        assert!(is_young(protocol::TCP, &flow, &shortest, 15 * SECOND_NS - 1));
        assert!(!is_young(protocol::TCP, &flow, &shortest, 15 * SECOND_NS));
    }

    #[test]
    fn established_connections_outlive_a_two_hour_keepalive() {
        assert!(Class::TcpEstablished.default_s() >= 2 * 3600 + 4 * 60, "RFC 5382 REQ-5");
    }

    #[test]
    fn the_younger_entry_decides() {
        let flow = |last_s: u64, seen: u8| Flow { last_seen_ns: last_s * SECOND_NS, seen, ..Flow::zeroed() };
        let own = flow(100, seen::ANY);
        let at = |now_s: u64, twin: Option<&Flow>| {
            expired(protocol::UDP, &own, true, twin, &defaults_s(), now_s * SECOND_NS)
        };
        assert!(!at(129, None));
        assert!(at(130, None), "unanswered UDP lives 30 s");
        let twin = flow(120, seen::ANY);
        assert!(!at(239, Some(&twin)), "120 s after the reply");
        assert!(at(240, Some(&twin)));
        let silent = flow(0, 0);
        assert!(at(130, Some(&silent)));
    }

    #[test]
    fn a_clock_behind_the_entry_never_expires_it() {
        let own = Flow { last_seen_ns: 10 * SECOND_NS, seen: seen::ANY, ..Flow::zeroed() };
        assert!(!expired(protocol::UDP, &own, true, None, &defaults_s(), 9 * SECOND_NS));
    }
}
