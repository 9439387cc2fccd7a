//! The agent killed and started again while packets flow.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use egress_lab::source::{Pace, Traffic};
use egress_lab::{Family, wait_until};

use super::super::rig::{Path, Rig};
use super::{Bench, subject};

/// The name in reports.
pub(in super::super) const NAME: &str = "restart";
/// Packets together, and how often: 10,000 a second.
const PACE: Pace = Pace { burst: 10, period: Duration::from_millis(1) };
/// How long the load may take to show.
const SEEN_WITHIN: Duration = Duration::from_secs(10);

/// Measures it.
pub(in super::super) fn run(bench: &mut Bench, rigs: &mut [Rig]) -> Result<()> {
    for rig in rigs.iter_mut().filter(|rig| rig.path == Path::Tc) {
        for family in Family::ALL {
            let traffic = rig.traffic(family, 1)?;
            // Half a second of new flows, and then the same again, established.
            rig.choose(&Traffic {
                first_rule: traffic.first_rule,
                first_port: 40_000,
                ports: 5000,
                flows: 5000,
                in_turn: true,
                ..traffic
            })?;
            for _ in 0..bench.rounds {
                bench.go_on()?;
                let Rig { source, lab, router, .. } = rig;
                let router = router.as_mut().context("no router in the rig")?;
                source.reset()?;
                let (sent, took) = source.pace(&lab.client, PACE, |counts| {
                    wait_until("packets", SEEN_WITHIN, || counts().packets > 1000)?;
                    router.kill()?;
                    let killed = Instant::now();
                    router.start()?;
                    let took = killed.elapsed();
                    let then = counts().packets;
                    wait_until("packets after the restart", SEEN_WITHIN, || counts().packets > then + 1000)?;
                    Ok(took)
                })?;
                let lost = sent as f64 - source.arrived()?.sink.packets as f64;
                let mut add = |name: &str, unit, value| {
                    bench.record.add(subject(name, rig.uplink, Some(family), rig.path, unit), value)
                };
                add("restart-lost", "packets", lost);
                add("restart-sent", "packets", sent as f64);
                add(NAME, "ms until ready", took.as_secs_f64() * 1e3);
                bench.progress.inc(1);
            }
        }
    }
    Ok(())
}
