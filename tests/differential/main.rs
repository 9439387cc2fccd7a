//! Differential: the same packets through the kernel's NAT, with the rules as the original writes them, and through the
//! router; what both ends see must agree.
//!
//! | module | what |
//! |---|---|
//! | [`step`] | what is sent: packets, and the flow that they are of |
//! | [`trace`] | generated sequences of steps, one kind of conversation each |
//! | [`twin`] | two labs that differ in who translates; each step goes through both |
//! | [`outcome`] | what a step brought to the two ends, made comparable, and compared |
//! | [`accepted`] | the differences that are meant, each with its reason |
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on panics where it stands")]

mod accepted;
mod outcome;
mod step;
mod trace;
mod twin;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;

use egress_lab::Family;
use egress_lab::random::Random;

use accepted::ACCEPTED;
use outcome::Difference;
use twin::{Twins, World};

/// How often each kind of trace is played in each world, for each family.
const ROUNDS: usize = 60;

#[test]
fn the_router_means_what_kernel_nat_means() {
    let seed = Random::seed();
    let worlds = [
        World { fallback: Family::V4, cluster_mtu: 1500, uplink_mtu: 1400 },
        World { fallback: Family::V6, cluster_mtu: 1400, uplink_mtu: 1500 },
    ];
    let (mut traces, mut steps) = (0, 0);
    let mut packets = [0; 2];
    let mut accepted = BTreeMap::<&str, u64>::new();
    let mut refused = Vec::new();
    for world in worlds {
        let mut twins = Twins::start(&world);
        let mut random = Random::new(seed);
        for round in 0..ROUNDS {
            for family in Family::ALL {
                for (name, shape) in trace::SHAPES {
                    traces += 1;
                    let place = twins.place(family, round);
                    for step in shape(&mut random, &place) {
                        steps += 1;
                        let Some(difference) = twins.play(&step) else { continue };
                        match ACCEPTED.iter().find(|row| row.covers(&difference)) {
                            Some(row) => *accepted.entry(row.name).or_default() += 1,
                            None => refused.push(format!("{family}, {name}: {difference}")),
                        }
                    }
                }
            }
        }
        packets[0] += twins.packets();
        packets[1] += twins.seen();
    }
    let mut report = format!("EGRESS_SEED={seed}: {traces} traces, {steps} steps, ");
    write!(report, "{} packets sent through each, {} seen at the ends", packets[0], packets[1]).unwrap();
    write!(report, "\naccepted differences, {} in all:", accepted.values().sum::<u64>()).unwrap();
    for (name, count) in &accepted {
        write!(report, "\n  {count:>5}  {name}").unwrap();
    }
    // Past the harness, which would show it only when something fails.
    writeln!(std::io::stderr(), "{report}").unwrap();
    let unused = ACCEPTED.iter().map(|row| row.name).filter(|name| !accepted.contains_key(name)).collect::<Vec<_>>();
    assert!(refused.is_empty(), "{} differences are not accepted: {}", refused.len(), first_of_each(&refused));
    assert!(unused.is_empty(), "accepted, and never met: {unused:?}");
}

/// The first few differences of each trace's kind: most are the same one again.
fn first_of_each(refused: &[String]) -> String {
    let mut seen = BTreeMap::<&str, u32>::new();
    let mut text = String::new();
    for difference in refused {
        let line = difference.lines().next().unwrap_or_default();
        let count = seen.entry(line).or_default();
        *count += 1;
        if *count == 1 {
            write!(text, "\n{difference}").unwrap();
        }
    }
    text
}

#[test]
fn accepted_differences_have_names_of_their_own_and_reasons() {
    let mut names = ACCEPTED.iter().map(|row| row.name).collect::<Vec<_>>();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), ACCEPTED.len());
    assert!(ACCEPTED.iter().all(|row| row.reason.len() > 40));
    let nothing = Difference::default();
    assert!(!ACCEPTED.iter().any(|row| row.covers(&nothing)), "a row that covers anything");
}
