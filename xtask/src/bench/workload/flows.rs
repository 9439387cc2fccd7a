//! Many live flows: what a packet costs as the table fills.

use anyhow::Result;
use egress_lab::kernel_nat::Uplink;
use egress_lab::source::Traffic;
use egress_lab::{Family, memory};

use super::super::record::median;
use super::super::rig::{Parts, Path, Rig, Rules, build_all};
use super::{Bench, subject};

/// The name in reports; the number of flows follows.
pub(in super::super) const NAME: &str = "flows";
/// Size of the table, the same whatever is in it.
const TABLE: u32 = 1_200_000;
/// Bytes of the table for each flow that it takes: four places.
const FLOW_BYTES: usize = 512;
/// Source ports of one client and rule: fewer than there are, so that each flow keeps its own.
const PORTS: u16 = 32_768;
/// Rules: a port of the router's address can be had once for each destination and its port.
const RULES: u32 = 32;
/// Packets of a slice.
const SLICE: u32 = 1 << 16;
/// Flows that have packets while all others only live, as most do most of the time.
const BUSY: u32 = 1000;
/// Slices of their packets in a round.
const BUSY_SLICES: u32 = 5;

/// Measures it.
pub(in super::super) fn run(bench: &mut Bench, parts: &Parts, family: Family) -> Result<()> {
    let ours: &[u32] = if bench.quick { &[1000, 1_000_000] } else { &[1000, 100_000, 1_000_000] };
    let kernel: &[u32] = if bench.quick { &[1000] } else { &[1000, 100_000] };
    let wanted = ours.iter().map(|flows| (Path::Tc, *flows)).chain(kernel.iter().map(|flows| (Path::Nft, *flows)));
    let wanted = wanted.chain([(Path::Floor, 1000)]).collect::<Vec<_>>();
    if family == Family::V4 {
        bench.record.remark(
            "flows: the kernel's table is as large as this machine allows (net.netfilter.nf_conntrack_max), too small for \
             1,000,000",
        );
        bench.record.remark(format!(
            "flows: a read of memory that waits for the one before takes {:.0} ns here, anywhere in as much as the table takes",
            memory::wait_ns(FLOW_BYTES * TABLE as usize)
        ));
    }
    let mut rigs = build_all(bench, &wanted, |(path, _)| {
        Rig::build(parts, *path, Uplink::Macvlan, &Rules::udp(9000, RULES), TABLE)
    })?;
    let mut rigs = wanted.iter().map(|(_, flows)| *flows).zip(rigs.iter_mut()).collect::<Vec<_>>();
    for (flows, rig) in &mut rigs {
        rig.choose(&traffic(rig, family, *flows)?)?;
        send_all(bench, rig, *flows, &mut Vec::new())?;
    }
    // A flow without an answer lives 30 seconds. Each round reaches every flow once, so that all stay alive.
    let largest = ours.last().copied().unwrap_or(SLICE);
    for _ in 0..bench.rounds {
        let mut slices = rigs.iter().map(|_| Vec::new()).collect::<Vec<_>>();
        for _ in 0..largest.div_ceil(SLICE) {
            for ((_, rig), slices) in rigs.iter_mut().zip(&mut slices) {
                send_all(bench, rig, SLICE, slices)?;
            }
        }
        let costs = slices.iter().map(|slices| median(slices).unwrap_or(f64::NAN)).collect::<Vec<_>>();
        let floor = costs.last().copied().unwrap_or(f64::NAN);
        let figure =
            |what: &str, rig: &Rig| subject(&format!("{NAME}-{what}"), rig.uplink, Some(family), rig.path, "ns/packet");
        for ((flows, rig), cost) in rigs.iter().zip(&costs).filter(|((_, rig), _)| rig.path != Path::Floor) {
            bench.record.add(figure(&flows.to_string(), rig), cost - floor);
        }
        for (flows, rig) in rigs.iter_mut().filter(|(flows, rig)| rig.path == Path::Tc && *flows > BUSY) {
            let mut costs = Vec::new();
            let all = traffic(rig, family, *flows)?;
            rig.choose(&Traffic { flows: BUSY, ..all.clone() })?;
            // The first of each looks at an entry that was idle.
            send_all(bench, rig, BUSY, &mut Vec::new())?;
            send_all(bench, rig, BUSY_SLICES * SLICE, &mut costs)?;
            rig.choose(&all)?;
            let cost = median(&costs).unwrap_or(f64::NAN);
            bench.record.add(figure(&format!("{BUSY}-of-{flows}"), rig), cost - floor);
        }
        bench.progress.inc(1);
    }
    let live = rigs.iter().filter(|(_, rig)| rig.path == Path::Tc).map(|(flows, rig)| Ok((*flows, rig.live_flows()?)));
    for (flows, live) in live.collect::<Result<Vec<_>>>()? {
        anyhow::ensure!(live >= u64::from(flows), "{live} of {flows} flows are live");
    }
    Ok(())
}

/// So many flows, spread over all rules.
fn traffic(rig: &Rig, family: Family, flows: u32) -> Result<Traffic> {
    let ports = PORTS.min(u16::try_from(flows).unwrap_or(PORTS));
    Ok(Traffic { first_port: 16_384, ports, clients: 16, rules: RULES, ..rig.traffic(family, flows)? })
}

fn send_all(bench: &Bench, rig: &mut Rig, packets: u32, costs: &mut Vec<f64>) -> Result<()> {
    let mut left = packets;
    while left > 0 {
        bench.go_on()?;
        let now = left.min(SLICE);
        costs.push(rig.send(bench.core, now)?);
        left -= now;
        bench.breathe();
    }
    Ok(())
}
