//! Packets that each open a flow: what a new flow costs.

use anyhow::Result;
use egress_lab::Family;
use egress_lab::source::Traffic;

use super::super::record::median;
use super::super::rig::{Path, Rig};
use super::{Bench, subject};

/// The name in reports.
pub(in super::super) const NAME: &str = "new-flows";
/// Packets in a slice.
const SLICE: u32 = 2048;
/// Slices of each path in a round, taken in turns.
const SLICES: usize = 5;

/// Measures it.
pub(in super::super) fn run(bench: &mut Bench, rigs: &mut [Rig]) -> Result<()> {
    for family in Family::ALL {
        for rig in rigs.iter_mut() {
            let established = rig.traffic(family, 1)?;
            // Other ports and clients than any workload before had; the kernel's table never sees a tuple twice.
            let traffic = Traffic {
                first_rule: established.first_rule + 1,
                first_port: 1024,
                ports: 50_000,
                clients: 3,
                rules: 3,
                flows: 150_000,
                in_turn: true,
                ..established
            };
            rig.choose(&traffic)?;
        }
        for _ in 0..bench.rounds {
            let mut slices = rigs.iter().map(|_| Vec::with_capacity(SLICES)).collect::<Vec<_>>();
            for _ in 0..SLICES {
                for (rig, slices) in rigs.iter_mut().zip(&mut slices) {
                    bench.go_on()?;
                    slices.push(rig.send(bench.core, SLICE)?);
                    bench.breathe();
                }
            }
            let costs = rigs.iter().zip(&slices).map(|(rig, slices)| (rig.path, median(slices).unwrap_or(f64::NAN)));
            let costs = costs.collect::<Vec<_>>();
            let floor = costs.iter().find(|(path, _)| *path == Path::Floor).map_or(0.0, |(_, floor)| *floor);
            for (rig, (path, cost)) in rigs.iter().zip(&costs) {
                if path.tracks() {
                    let cost = cost - floor;
                    bench.record.add(subject(NAME, rig.uplink, Some(family), *path, "ns/flow"), cost);
                    bench.record.add(subject("new-flow-rate", rig.uplink, Some(family), *path, "flows/s"), 1e9 / cost);
                }
            }
            bench.progress.inc(1);
        }
    }
    Ok(())
}
