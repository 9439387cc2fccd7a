//! Many rules: what a packet of an established flow costs, and what a new flow does, as the rules grow.

use anyhow::Result;
use egress_lab::Family;
use egress_lab::kernel_nat::Uplink;
use egress_lab::source::Traffic;

use super::super::record::median;
use super::super::rig::{Parts, Path, Rig, Rules, build_all};
use super::{Bench, subject};

/// The name in reports; the number of rules follows.
pub(in super::super) const NAME: &str = "rules";
/// As [`NAME`], for new flows.
pub(in super::super) const NEW: &str = "rules-new";
/// Established flows, the same number for any number of rules, so that only these make a difference.
const FLOWS: u32 = 1024;
/// Packets of a slice of established flows.
const SLICE: u32 = 8192;
/// Packets of a slice that opens flows.
const NEW_SLICE: u32 = 1024;
/// As [`NEW_SLICE`], where each is compared with many rules one after the other.
const SLOW_SLICE: u32 = 64;
/// Slices of each path in a round, taken in turns.
const SLICES: usize = 5;

/// Measures it. Each round has rigs of its own: where a rig's memory and its entries happen to lie makes a few hundredths.
pub(in super::super) fn run(bench: &mut Bench, parts: &Parts, family: Family) -> Result<()> {
    (0..bench.rounds).try_for_each(|_| round(bench, parts, family))
}

fn round(bench: &mut Bench, parts: &Parts, family: Family) -> Result<()> {
    let (ours, kernel): (&[u32], &[u32]) =
        if bench.quick { (&[1, 65_535], &[1, 1000]) } else { (&[1, 100, 10_000, 65_535], &[1, 100, 10_000]) };
    let wanted = ours.iter().map(|rules| (Path::Tc, *rules)).chain(kernel.iter().map(|rules| (Path::Nft, *rules)));
    let wanted = wanted.chain([(Path::Floor, 1)]).collect::<Vec<_>>();
    let mut rigs = build_all(bench, &wanted, |(path, rules)| {
        Rig::build(parts, *path, Uplink::Macvlan, &Rules::udp(1, *rules), 1 << 17)
    })?;
    let mut rigs = wanted.iter().map(|(_, rules)| *rules).zip(rigs.iter_mut()).collect::<Vec<_>>();
    let slow = |rig: &Rig, rules: u32| rig.path == Path::Nft && rules > 1000;

    for (rules, rig) in &mut rigs {
        let traffic = rig.traffic(family, FLOWS)?;
        rig.choose(&Traffic { rules: *rules, scattered: true, ..traffic })?;
        // Each flow is opened here, in pieces that leave others some time.
        let piece = if slow(rig, *rules) { SLOW_SLICE } else { FLOWS };
        for _ in 0..2 * FLOWS / piece {
            bench.go_on()?;
            rig.source.send(&rig.lab.client, bench.core, piece)?;
            bench.breathe();
        }
    }
    measure(bench, &mut rigs, family, (NAME, "ns/packet"), |_, _| SLICE)?;

    for (rules, rig) in &mut rigs {
        let traffic = rig.traffic(family, FLOWS)?;
        // None of the flows above, and so many that no port comes twice.
        let traffic = Traffic {
            rules: *rules,
            scattered: true,
            in_turn: true,
            first_port: 30_000,
            ports: 30_000,
            flows: 30_000,
            ..traffic
        };
        rig.choose(&traffic)?;
    }
    measure(
        bench,
        &mut rigs,
        family,
        (NEW, "ns/flow"),
        |rig, rules| if slow(rig, rules) { SLOW_SLICE } else { NEW_SLICE },
    )
}

fn measure(
    bench: &mut Bench,
    rigs: &mut [(u32, &mut Rig)],
    family: Family,
    (name, unit): (&str, &'static str),
    slice: impl Fn(&Rig, u32) -> u32,
) -> Result<()> {
    let mut slices = rigs.iter().map(|_| Vec::with_capacity(SLICES)).collect::<Vec<_>>();
    for _ in 0..SLICES {
        for ((rules, rig), slices) in rigs.iter_mut().zip(&mut slices) {
            bench.go_on()?;
            slices.push(rig.send(bench.core, slice(rig, *rules))?);
            bench.breathe();
        }
    }
    let costs = slices.iter().map(|slices| median(slices).unwrap_or(f64::NAN)).collect::<Vec<_>>();
    let floor = costs.last().copied().unwrap_or(f64::NAN);
    for ((rules, rig), cost) in rigs.iter().zip(&costs).filter(|((_, rig), _)| rig.path != Path::Floor) {
        let subject = subject(&format!("{name}-{rules}"), rig.uplink, Some(family), rig.path, unit);
        bench.record.add(subject, cost - floor);
    }
    bench.progress.inc(1);
    Ok(())
}
