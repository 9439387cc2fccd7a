//! Tracing live packets: what is decided about those that a filter takes, told as they pass.
//!
//! It ends by itself: the programs are told until when to tell, and whoever traces says it again before that. Meanwhile no flow's
//! next hop counts as settled, so that every packet takes the way on which something is decided and told.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use egress_ebpf::contract::{Config, map};
use egress_ebpf::event::{Event, Filter, Kind, Outcome, Why};
use egress_ebpf::verdict::{DropReason, Verdict};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::events::{Events, Untold, arrived, rule_of, translated};
use super::flows::{monotonic_ns, protocol_name};
use super::maps::{Maps, array_of, failed};
use super::{DatapathError, PinDir};

/// How long the programs go on telling when nobody says so again.
const HOLDS: Duration = Duration::from_secs(2);

/// Packets are traced as long as it lives, if [`hold`](Self::hold) is called often enough.
pub struct Tracer {
    maps: Maps,
    filter: Filter,
    before: Untold,
}

impl Tracer {
    /// How often [`hold`](Self::hold) is to be called.
    pub const EVERY: Duration = Duration::from_millis(250);

    /// Begins to trace packets that `filter` takes, and returns what is told of them.
    ///
    /// # Errors
    ///
    /// When no datapath is installed, or somebody traces already.
    pub fn start(pins: &PinDir, filter: Filter) -> Result<(Self, Events), DatapathError> {
        let maps = Maps::open(pins)?;
        if maps.trace()?.until_ns > monotonic_ns() {
            return Err(DatapathError::Traced);
        }
        let mut events = Events::of_trace(pins)?;
        // What an earlier one has not read.
        while events.take().is_some() {}
        let before = events.untold()?;
        let mut tracer = Self { maps, filter, before };
        tracer.hold()?;
        Ok((tracer, events))
    }

    /// Goes on tracing for a while.
    ///
    /// # Errors
    ///
    /// When a map cannot be written.
    pub fn hold(&mut self) -> Result<(), DatapathError> {
        let until_ns = monotonic_ns() + u64::try_from(HOLDS.as_nanos()).unwrap_or(0);
        self.maps.set_trace(Filter { until_ns, ..self.filter }, until_ns)
    }

    /// How many packets were not told of since it began.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn untold(&self, events: &Events) -> Result<u64, DatapathError> {
        let now = events.untold()?;
        Ok(now.over_rate + now.no_room - self.before.over_rate - self.before.no_room)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // What cannot be written ends by itself.
        let _ends_soon = self.maps.set_trace(bytemuck::Zeroable::zeroed(), monotonic_ns());
    }
}

impl Maps {
    fn trace(&self) -> Result<Filter, DatapathError> {
        let bytes = self.trace.get(&0, 0).map_err(failed("read", map::TRACE))?;
        Ok(bytemuck::pod_read_unaligned(&bytes))
    }

    /// Sets the filter, and until when flows look their next hops up with each packet. Where the agent changes its settings at
    /// this very moment, its repair finds what this has undone.
    fn set_trace(&mut self, filter: Filter, changed_ns: u64) -> Result<(), DatapathError> {
        self.trace.set(0, array_of(&filter), 0).map_err(failed("write", map::TRACE))?;
        let config = self.config()?;
        // Nothing passes, and nothing is to.
        if config.cluster_ifindex == 0 {
            return Ok(());
        }
        self.set_config(self.generation()?, &Config { changed_ns, ..config })
    }
}

/// A packet that was decided about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Traced {
    /// When it passed.
    pub time: Timestamp,
    /// The program that it met.
    pub program: &'static str,
    /// Protocol.
    pub protocol: String,
    /// Its source as it arrived.
    pub from: SocketAddr,
    /// Its destination as it arrived.
    pub to: SocketAddr,
    /// Its length, link header included.
    pub bytes: u32,
    /// What became of it, as the counters have it.
    pub verdict: &'static str,
    /// Whether it was dropped.
    pub dropped: bool,
    /// Why.
    pub because: String,
    /// Its source when it leaves.
    pub source: Option<SocketAddr>,
    /// Its destination when it leaves.
    pub destination: Option<SocketAddr>,
}

impl Traced {
    /// What a record tells; nothing if it is of another version of this program.
    pub fn of(event: &Event) -> Option<Self> {
        let (from, to) = arrived(event)?;
        let outcome = Outcome::from_number(event.outcome)?;
        let ago = monotonic_ns().saturating_sub(event.at_ns);
        let ago = SignedDuration::from_nanos(i64::try_from(ago).unwrap_or(i64::MAX));
        let ends = translated(event);
        let named = |address: SocketAddr| (address.ip() != unspecified(address)).then_some(address);
        Some(Self {
            time: Timestamp::now().checked_sub(ago).unwrap_or_default(),
            program: event.hook()?.name(),
            protocol: protocol_name(event.key.protocol),
            from,
            to,
            bytes: event.len,
            verdict: outcome.name(),
            dropped: matches!(outcome, Outcome::Dropped(_)),
            because: because(event, outcome)?,
            source: ends.and_then(|(source, _)| named(source)),
            destination: ends.map(|(_, destination)| destination),
        })
        .filter(|_| Kind::from_number(event.kind) == Some(Kind::Traced))
    }
}

fn unspecified(address: SocketAddr) -> IpAddr {
    if address.is_ipv4() { std::net::Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() }
}

fn because(event: &Event, outcome: Outcome) -> Option<String> {
    let verdict = match outcome {
        Outcome::On(verdict) => verdict,
        Outcome::Dropped(reason) => return Some(because_dropped(reason).to_owned()),
    };
    let rule = rule_of(event).map_or_else(|| "the fallback".to_owned(), |rule| format!("rule {rule}"));
    let why = Why::ALL.into_iter().find(|why| *why as u8 == event.why)?;
    Some(match (why, verdict) {
        (Why::NewFlow, _) => format!("{rule} claims it, and it opens a flow"),
        (Why::KnownFlow, _) => format!("it is a live flow's, opened by {rule}"),
        (Why::ErrorOfFlow, _) => format!("an ICMP error about a packet of a live flow, opened by {rule}"),
        (Why::PodSocket, _) => "a socket waits for it that the pod itself opened".to_owned(),
        (Why::LocalPort, _) => "that port is the pod's own (--local-port)".to_owned(),
        (Why::Harmless, _) => "the router's own stack answers it, if anybody does: it opens nothing".to_owned(),
        (Why::Outcome, Verdict::Rejected) => {
            "no rule names it and there is no fallback: the router's own stack refuses it".to_owned()
        }
        (Why::Outcome, Verdict::Pass) => "multicast, or what the link itself needs".to_owned(),
        (Why::Outcome, _) => "nothing had to be decided".to_owned(),
    })
}

fn because_dropped(reason: DropReason) -> &'static str {
    match reason {
        DropReason::Malformed => "it ends before its headers do, or a length in it is wrong",
        DropReason::ForeignDestination => "it is for none of the router's own addresses, and nothing else is forwarded",
        DropReason::Unsolicited => "no flow and no socket of the pod waits for it, and the outside opens nothing",
        DropReason::NoSourceAddress => "the router has no address of that family to send from",
        DropReason::PortsExhausted => "every source port that it may have towards that destination is taken",
        DropReason::TableFull => "the flow table is full (--flows)",
        DropReason::Leak => "it would leave with another source than the router's",
        DropReason::WrongInterface => "it was routed out of the wrong interface",
        DropReason::FragmentUnknown => "the first fragment of its datagram was not seen",
        DropReason::IcmpUnmatched => "an ICMP error that quotes no packet of any flow",
        DropReason::ExtensionHeader => {
            "more extension headers than the router walks, or one that is not to be forwarded"
        }
        DropReason::ChecksumElsewhere => "its checksum covers bytes of other fragments, and its port would change",
        DropReason::KernelCall => "a call of the kernel failed",
        DropReason::Unconfigured => "the router is being set up",
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use egress_ebpf::addr::Port;
    use egress_ebpf::contract::RULE_FALLBACK;
    use egress_ebpf::event::{TRANSLATION, TUPLE};

    use super::*;

    #[test]
    fn a_packet_is_told_with_why() {
        let addr = |text: &str| text.parse::<IpAddr>().unwrap().into();
        let mut event = Event { kind: Kind::Traced as u8, known: TUPLE | TRANSLATION, ..Event::zeroed() };
        (event.key.src, event.key.dst) = (addr("10.128.0.1"), addr("10.128.0.2"));
        (event.key.protocol, event.key.dst_port) = (6, Port::new(80));
        (event.to_src, event.to_dst) = (addr("192.168.12.99"), addr("203.0.113.26"));
        event.outcome = Outcome::On(Verdict::RequestRedirected).number();
        event.why = Why::NewFlow as u8;
        let told = Traced::of(&event).unwrap();
        assert_eq!((told.verdict, told.dropped), ("request_redirected", false));
        assert_eq!(told.because, "rule 0 claims it, and it opens a flow");
        assert_eq!(told.source.unwrap().to_string(), "192.168.12.99:0");
        event.rule = RULE_FALLBACK;
        assert!(Traced::of(&event).unwrap().because.starts_with("the fallback claims it"));
        event.known = TUPLE;
        event.outcome = Outcome::Dropped(DropReason::Unsolicited).number();
        let told = Traced::of(&event).unwrap();
        assert_eq!((told.dropped, told.destination), (true, None));
        // Of another version.
        for odd in [Event { outcome: 99, ..event }, Event { kind: 77, ..event }, Event { hook: 9, ..event }] {
            assert_eq!(Traced::of(&odd), None);
        }
    }
}
