//! What the programs tell: read their records, say which they are to make, count those that were lost.
#![expect(unsafe_code, reason = "a descriptor that the runtime waits for has to outlive its registration")]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};

use aya::maps::{MapData, RingBuf};
use bytemuck::pod_read_unaligned;
use egress_ebpf::contract::{Flow, FlowKey, RULE_FALLBACK, map};
use egress_ebpf::event::{Budget, Event, Kind, Logging, Stream, TRANSLATION, TUPLE, is_sampled};
use serde::Serialize;
use tokio::io::unix::AsyncFd;

use super::flows::{monotonic_ns, socket};
use super::maps::{Maps, ring_buffer};
use super::{Datapath, DatapathError, PinDir, Reader};

/// The records of one ring buffer, as they come. Whoever reads takes: there is to be one reader.
pub struct Events {
    ring: RingBuf<MapData>,
    stream: Stream,
    maps: Maps,
}

/// Records that were not told, since the datapath was installed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Untold {
    /// Because there were more than the rate allows.
    pub over_rate: u64,
    /// Because nobody had read the earlier ones.
    pub no_room: u64,
}

impl Untold {
    fn and(self, other: Self) -> Self {
        Self { over_rate: self.over_rate + other.over_rate, no_room: self.no_room + other.no_room }
    }
}

/// What is told of flows and drops, as `status` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LoggingRow {
    /// One flow in so many.
    pub one_in: u32,
    /// Most records a second of flows, and of drops, on each processor.
    pub rate: u32,
    /// Records of flows that were lost.
    pub flows_untold: Untold,
    /// Records of drops that were lost.
    pub drops_untold: Untold,
}

impl Events {
    /// Opens what the programs tell of flows and drops.
    ///
    /// # Errors
    ///
    /// When none are installed, or the ring buffer cannot be mapped.
    pub fn of_flows(pins: &PinDir) -> Result<Self, DatapathError> {
        Self::open(pins, map::EVENTS, Stream::Flows)
    }

    /// Opens what they tell of traced packets.
    ///
    /// # Errors
    ///
    /// As of flows.
    pub fn of_trace(pins: &PinDir) -> Result<Self, DatapathError> {
        Self::open(pins, map::TRACED, Stream::Trace)
    }

    fn open(pins: &PinDir, name: &'static str, stream: Stream) -> Result<Self, DatapathError> {
        let maps = Maps::open(pins)?;
        Ok(Self { ring: ring_buffer(pins, name)?, stream, maps })
    }

    /// Lets the runtime, in which this is to be called, wait for records.
    ///
    /// # Errors
    ///
    /// When the runtime cannot watch one more descriptor.
    pub fn watched(self) -> io::Result<Watched> {
        // SAFETY: the ring buffer owns the descriptor that it names, never replaces it, and closes it when it is dropped, which
        // is when the registration ends.
        Ok(Watched(unsafe { AsyncFd::register(self) }?))
    }

    /// The next record, if there is one.
    pub fn take(&mut self) -> Option<Event> {
        loop {
            let item = self.ring.next()?;
            // A record of another length is of a later version of this program.
            if item.len() == size_of::<Event>() {
                return Some(pod_read_unaligned(&item));
            }
        }
    }

    /// How many were lost.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn untold(&self) -> Result<Untold, DatapathError> {
        let untold = self.maps.untold(self.stream)?;
        Ok(if self.stream == Stream::Flows { untold.and(self.maps.untold(Stream::Drops)?) } else { untold })
    }
}

/// [`Events`] that can be waited for.
pub struct Watched(AsyncFd<Events>);

impl Watched {
    /// Waits until there are records, or may be.
    pub async fn ready(&mut self) {
        match self.0.readable_mut().await {
            // All are taken after this, and the kernel says when there are more.
            Ok(mut ready) => ready.clear_ready(),
            // The runtime ends.
            Err(_) => std::future::pending().await,
        }
    }

    /// The records.
    pub fn events(&mut self) -> &mut Events {
        self.0.get_mut()
    }
}

/// Readable when there are records.
impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl Datapath {
    /// Says what is to be told of flows and drops.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn set_logging(&mut self, logging: Logging) -> Result<(), DatapathError> {
        self.maps.set_logging(logging)
    }

    /// What the programs tell of flows and drops, from now on.
    ///
    /// # Errors
    ///
    /// As [`Events::of_flows`].
    pub fn events(&self) -> Result<Events, DatapathError> {
        Events::of_flows(self.pins())
    }
}

impl Reader {
    /// Records of flows and drops that were lost.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn untold(&self) -> Result<Untold, DatapathError> {
        let (flows, drops) = (self.maps.untold(Stream::Flows)?, self.maps.untold(Stream::Drops)?);
        Ok(flows.and(drops))
    }

    /// What is told of flows and drops; nothing where it is off.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn logging(&self) -> Result<Option<LoggingRow>, DatapathError> {
        let Logging { one_in, rate } = self.maps.logging()?;
        if rate == 0 {
            return Ok(None);
        }
        let (flows_untold, drops_untold) = (self.maps.untold(Stream::Flows)?, self.maps.untold(Stream::Drops)?);
        Ok(Some(LoggingRow { one_in, rate, flows_untold, drops_untold }))
    }
}

impl Maps {
    fn untold(&self, stream: Stream) -> Result<Untold, DatapathError> {
        let of = |budget: &Budget| Untold { over_rate: budget.over_rate, no_room: budget.no_room };
        Ok(self.budgets(stream)?.iter().map(of).fold(Untold::default(), Untold::and))
    }
}

/// Flows of the sample that user space ends: records as the programs make them of those that they end.
pub(super) struct Closed {
    logging: Logging,
    now_ns: u64,
    pub(super) events: Vec<Event>,
}

impl Closed {
    pub(super) fn new(logging: Logging) -> Self {
        Self { logging, now_ns: monotonic_ns(), events: Vec::new() }
    }

    /// Notes a flow by its requests' entry.
    pub(super) fn note(&mut self, key: &FlowKey, flow: &Flow, reply: Option<&Flow>) {
        if self.logging.rate == 0 || !is_sampled(key, flow.created_ns, self.logging.one_in) {
            return;
        }
        let mut event: Event = bytemuck::Zeroable::zeroed();
        event.at_ns = self.now_ns;
        event.kind = Kind::Closed as u8;
        event.set_flow(key, flow, reply);
        self.events.push(event);
    }
}

/// Source and destination of the packet as it arrived, or of a flow's requests, if they are known.
pub fn arrived(event: &Event) -> Option<(SocketAddr, SocketAddr)> {
    let key = &event.key;
    event.knows(TUPLE).then(|| (socket(key.src, key.src_port), socket(key.dst, key.dst_port)))
}

/// Source and destination that it gets, if they are known.
pub fn translated(event: &Event) -> Option<(SocketAddr, SocketAddr)> {
    let ends = || (socket(event.to_src, event.to_src_port), socket(event.to_dst, event.to_dst_port));
    event.knows(TRANSLATION).then(ends)
}

/// Index of the rule in the specification: none for the fallback, and where the translation is not known.
pub fn rule_of(event: &Event) -> Option<u32> {
    (event.knows(TRANSLATION) && event.rule != RULE_FALLBACK).then_some(event.rule)
}
