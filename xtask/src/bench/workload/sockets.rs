//! Real sockets through each path: connections, requests, streams. Both ends and the router share one processor.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use egress_lab::load::{self, Echo, Server, Service};
use egress_lab::{Family, Netns};

use super::super::record::median;
use super::super::rig::{CONGESTION_CONTROL, Path, Rig};
use super::{Bench, subject};

/// Ports that the base rigs' rules lead on: one a service.
pub(in super::super) const PORTS: [(&str, u16); 4] = [("tcp", 5001), ("tcp", 5002), ("tcp", 5003), ("udp", 5004)];

/// Slices of each path in a round, taken in turns.
const SLICES: usize = 7;
/// What all streams of a slice carry together.
const STREAM_BYTES: usize = 64 << 20;

/// One of these workloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Load {
    /// Connect, ask, be answered, close.
    Crr,
    /// Ask and be answered, over one TCP connection.
    Rr,
    /// The same with UDP.
    UdpRr,
    /// As much as goes through, over so many connections.
    Stream(usize),
}

impl Load {
    /// The name in reports.
    fn name(self) -> String {
        match self {
            Self::Crr => "crr".to_owned(),
            Self::Rr => "rr".to_owned(),
            Self::UdpRr => "udp-rr".to_owned(),
            Self::Stream(streams) => format!("stream{streams}"),
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Crr => 5001,
            Self::Rr => 5002,
            Self::Stream(_) => 5003,
            Self::UdpRr => 5004,
        }
    }

    /// Runs a slice; what it measured, by the figure's name and unit.
    fn slice(self, bench: &Bench, client: &Netns, to: SocketAddr) -> Result<Vec<(String, &'static str, f64)>> {
        let (core, quick) = (bench.core, bench.quick);
        let name = self.name();
        let latency = |mut times: Vec<Duration>| {
            times.sort();
            let at =
                |part: usize| times.get(times.len() * part / 100).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6);
            vec![(format!("{name}-p50"), "us", at(50)), (format!("{name}-p99"), "us", at(99))]
        };
        let requests = if quick { 1000 } else { 2000 };
        Ok(match self {
            Self::Crr => {
                let lasting = Duration::from_millis(if quick { 60 } else { 100 });
                vec![(name, "connections/s", load::connections(client, to, core, lasting)?)]
            }
            Self::Rr => latency(load::tcp_requests(client, to, core, requests)?),
            Self::UdpRr => latency(load::udp_requests(client, to, core, requests)?),
            Self::Stream(streams) => {
                let bytes = STREAM_BYTES / streams;
                let rate = load::streams(client, to, core, streams, bytes)?;
                vec![(name, "Gbit/s", rate * 8.0 / 1e9)]
            }
        })
    }
}

/// A server in a rig, of either kind.
#[expect(dead_code, reason = "held for what dropping it does")]
enum Serving {
    Tcp(Server),
    Udp(Echo),
}

/// Measures one of them, over both families.
pub(in super::super) fn run(bench: &mut Bench, rigs: &[Rig], load: Load) -> Result<()> {
    let rigs = rigs.iter().filter(|rig| Path::BOTH_WAYS.contains(&rig.path)).collect::<Vec<_>>();
    if load != Load::UdpRr {
        bench.record.remark(format!(
            "TCP: both ends send by {CONGESTION_CONTROL}, whatever this machine's default is: one that paces shows its own \
             estimates and timers"
        ));
    }
    for family in Family::ALL {
        let serve = |rig: &&Rig| -> Result<Serving> {
            let at = SocketAddr::new(rig.server(family), load.port());
            let service = match load {
                Load::Crr => Service::Once,
                Load::Rr => Service::Echo,
                Load::Stream(_) => Service::Take,
                Load::UdpRr => return Ok(Serving::Udp(Echo::start(&rig.lab.outside, at, bench.core)?)),
            };
            Ok(Serving::Tcp(Server::start(&rig.lab.outside, at, service, bench.core)?))
        };
        let servers = rigs.iter().map(serve).collect::<Result<Vec<_>>>()?;
        for round in 0..=bench.rounds {
            let mut slices = rigs.iter().map(|_| Vec::new()).collect::<Vec<_>>();
            // The round before the first only warms up.
            for _ in 0..if round == 0 { 1 } else { SLICES } {
                for (rig, slices) in rigs.iter().zip(&mut slices) {
                    bench.go_on()?;
                    let to = SocketAddr::new(rig.address(family), load.port());
                    let slice = load.slice(bench, &rig.lab.client, to);
                    slices.push(slice.with_context(|| format!("{} over {family} by {}", load.name(), rig.path))?);
                    bench.breathe();
                }
            }
            if round == 0 {
                continue;
            }
            for (rig, slices) in rigs.iter().zip(&slices) {
                for (index, (name, unit, _)) in slices.first().into_iter().flatten().enumerate() {
                    let values = slices.iter().filter_map(|slice| slice.get(index)).map(|(.., value)| *value);
                    if let Some(value) = median(&values.collect::<Vec<_>>()) {
                        bench.record.add(subject(name, rig.uplink, Some(family), rig.path, unit), value);
                    }
                }
            }
            bench.progress.inc(1);
        }
        drop(servers);
    }
    Ok(())
}
