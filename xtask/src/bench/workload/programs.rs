//! What each program takes for one packet, by the kernel's own count.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use egress_lab::load::{self, Server, Service};
use egress_lab::{Family, bpf};

use super::super::rig::{Path, Rig};
use super::{Bench, subject};

/// The name in reports; the program follows.
pub(in super::super) const NAME: &str = "program";
/// The programs that packets of an established flow pass.
const PROGRAMS: [&str; 4] = ["cluster_ingress", "external_egress", "external_ingress", "cluster_egress"];
/// Requests of a round.
const REQUESTS: usize = 2000;
/// Packets of a round.
const PACKETS: u32 = 8192;

/// Measures it.
pub(in super::super) fn run(bench: &mut Bench, rigs: &mut [Rig]) -> Result<()> {
    for rig in rigs.iter_mut().filter(|rig| rig.path == Path::Tc) {
        for family in Family::ALL {
            let at = SocketAddr::new(rig.server(family), 5002);
            let server = Server::start(&rig.lab.outside, at, Service::Echo, bench.core)?;
            let to = SocketAddr::new(rig.address(family), 5002);
            let traffic = rig.traffic(family, 64)?;
            rig.choose(&traffic)?;
            rig.source.send(&rig.lab.client, bench.core, 128)?;
            for _ in 0..bench.rounds {
                bench.go_on()?;
                let counting = bpf::count_time()?;
                let before = runs(rig)?;
                rig.source.send(&rig.lab.client, bench.core, PACKETS)?;
                let between = runs(rig)?;
                load::tcp_requests(&rig.lab.client, to, bench.core, REQUESTS)?;
                let after = runs(rig)?;
                drop(counting);
                for (load, from, till) in [("udp", &before, &between), ("tcp", &between, &after)] {
                    for (program, (from, till)) in PROGRAMS.iter().zip(from.iter().zip(till)) {
                        // A run now and then is the slow path's, or neighbour discovery's.
                        if till.count - from.count >= 1000 {
                            let ns = (till.ns - from.ns) as f64 / (till.count - from.count) as f64;
                            let name = format!("{NAME}-{program}-{load}");
                            bench.record.add(subject(&name, rig.uplink, Some(family), rig.path, "ns/run"), ns);
                        }
                    }
                }
                bench.progress.inc(1);
            }
            drop(server);
        }
    }
    bench.record.remark("program: with the kernel counting, which itself takes some 20 ns a run");
    Ok(())
}

fn runs(rig: &Rig) -> Result<Vec<bpf::Runs>> {
    let router = rig.router.as_ref().context("no router in the rig")?;
    PROGRAMS.iter().map(|program| bpf::runs(&router.pin(&format!("link_{program}"))?)).collect()
}
