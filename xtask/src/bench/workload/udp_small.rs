//! Smallest UDP packets of established flows: what one costs the processor.
//!
//! Each path's packets go from the source to the sink on one processor. What is reported is the processor time a packet
//! takes, less what it takes to be dropped at the router's entrance.

use anyhow::Result;
use egress_lab::Family;
use egress_lab::kernel_nat::Uplink;

use super::super::record::median;
use super::super::rig::{Path, Rig};
use super::{Bench, subject};

/// The name in reports.
pub(in super::super) const NAME: &str = "udp-small";
/// Flows that the packets belong to: few enough for every cache.
const FLOWS: u32 = 64;
/// Packets before the clock runs: each flow is established then.
const WARM_UP: u32 = 2048;
/// Packets in a slice.
const SLICE: u32 = 8192;
/// Slices of each path in a round, taken in turns.
const SLICES: usize = 7;

/// Measures it.
pub(in super::super) fn run(bench: &mut Bench, rigs: &mut [Rig], uplink: Uplink) -> Result<()> {
    for family in Family::ALL {
        let mut values = rigs.iter().map(|rig| (rig.path, Vec::new())).collect::<Vec<_>>();
        for rig in rigs.iter_mut() {
            let traffic = rig.traffic(family, FLOWS)?;
            rig.choose(&traffic)?;
            rig.source.send(&rig.lab.client, bench.core, WARM_UP)?;
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
            for ((_, values), slices) in values.iter_mut().zip(&slices) {
                values.extend(median(slices));
            }
            bench.progress.inc(1);
        }
        note(bench, &values, uplink, family);
    }
    Ok(())
}

/// Puts down each path's cost, less the floor.
fn note(bench: &mut Bench, values: &[(Path, Vec<f64>)], uplink: Uplink, family: Family) {
    let of = |path| values.iter().find(|(this, _)| *this == path).map(|(_, values)| values.clone()).unwrap_or_default();
    let floor = of(Path::Floor);
    let path_only = |path| of(path).iter().zip(&floor).map(|(whole, floor)| whole - floor).collect::<Vec<_>>();
    let subject = |workload: &str, path, unit| subject(workload, uplink, Some(family), path, unit);
    for (path, whole) in values {
        for value in whole {
            bench.record.add(subject("udp-small-whole", *path, "ns/packet"), *value);
            bench.record.add(subject("udp-small-rate", *path, "packets/s of one core"), 1e9 / value);
        }
        if *path != Path::Floor {
            for value in path_only(*path) {
                bench.record.add(subject(NAME, *path, "ns/packet"), value);
            }
        }
    }
}
