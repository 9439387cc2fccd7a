//! All of 10,000 rules replaced while packets flow, each of which needs one of them.

use std::time::Duration;

use anyhow::{Result, ensure};
use egress_lab::address::GATEWAY;
use egress_lab::kernel_nat::{Filter, Uplink};
use egress_lab::source::{Pace, Traffic, monotonic};
use egress_lab::{Family, wait_until};

use super::super::rig::{Parts, Path, Rig, Rules, build_all};
use super::{Bench, subject};

/// The name in reports.
pub(in super::super) const NAME: &str = "swap";
/// Rules of each family.
const RULES: u32 = 10_000;
/// Packets together, and how often: 10,000 a second.
const PACE: Pace = Pace { burst: 10, period: Duration::from_millis(1) };
/// How long the new rules may take to be in force.
const SWAPPED_WITHIN: Duration = Duration::from_secs(60);

/// Measures it.
pub(in super::super) fn run(bench: &mut Bench, parts: &Parts) -> Result<()> {
    let rules = Rules::udp(1, RULES);
    let wanted = if bench.quick { vec![Path::Tc] } else { vec![Path::Tc, Path::Nft] };
    let mut rigs = build_all(bench, &wanted, |path| Rig::build_timed(parts, *path, Uplink::Macvlan, &rules, 1 << 20))?;
    for rig in &mut rigs {
        let traffic = rig.traffic(Family::V4, 1)?;
        // Each packet opens a flow, so that each needs a rule; established flows keep their destination anyway.
        let ports = 50_000;
        let traffic = Traffic {
            rules: RULES,
            scattered: true,
            in_turn: true,
            first_port: 1024,
            ports,
            flows: 800_000,
            clients: 16,
            ..traffic
        };
        rig.choose(&traffic)?;
    }
    for _ in 0..bench.rounds {
        for rig in &mut rigs {
            bench.go_on()?;
            let one = swap(rig, &rules)?;
            let mut add = |name: &str, unit, value| {
                bench.record.add(subject(name, rig.uplink, Some(Family::V4), rig.path, unit), value)
            };
            add(NAME, "ms until in force", one.until_in_force_ms);
            add("swap-mixed", "ms of both", one.mixed_ms);
            add("swap-lost", "packets", one.lost);
            add("swap-sent", "packets", one.sent);
        }
        bench.progress.inc(1);
    }
    Ok(())
}

struct Swap {
    until_in_force_ms: f64,
    mixed_ms: f64,
    lost: f64,
    sent: f64,
}

/// From rules to one host to rules to another, under load, and back again without.
fn swap(rig: &mut Rig, rules: &Rules) -> Result<Swap> {
    // The last bit of the destination tells them apart.
    let others = rules.led_to(GATEWAY);
    rig.source.reset()?;
    let (path, Rig { source, lab, router, .. }) = (rig.path, rig);
    let put = |rules: &Rules| match (path, &router) {
        (Path::Tc, Some(router)) => router.edit(&rules.spec()),
        _ => rules.kernel().give_to(Filter::Nftables, lab),
    };
    let (sent, edited) = source.pace(&lab.client, PACE, |counts| {
        wait_until("packets under the old rules", SWAPPED_WITHIN, || counts().packets > 1000)?;
        let edited = monotonic()?;
        put(&others)?;
        wait_until("packets under the new rules", SWAPPED_WITHIN, || counts().odd > 1000)?;
        Ok(edited)
    })?;
    let counted = source.arrived()?.sink;
    ensure!(counted.first_odd_ns > 0 && counted.last_even_ns > 0, "no packet under one of the two sets of rules");
    let ms = |from: u64, to: u64| (to as f64 - from as f64) / 1e6;
    let swap = Swap {
        until_in_force_ms: ms(edited, counted.first_odd_ns),
        mixed_ms: ms(counted.first_odd_ns, counted.last_even_ns).max(0.0),
        lost: sent as f64 - counted.packets as f64,
        sent: sent as f64,
    };
    source.reset()?;
    source.pace(&lab.client, PACE, |counts| {
        put(rules)?;
        wait_until("packets under the old rules again", SWAPPED_WITHIN, || {
            let counts = counts();
            counts.packets > counts.odd
        })
    })?;
    Ok(swap)
}
