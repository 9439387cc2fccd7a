//! Model: random sequences of packets, edits and time through the real programs, against a NAT written as plainly as
//! possible.
//!
//! What the model says becomes of a packet is said by changing the packet's description; so each comparison, byte by byte,
//! also shows that every checksum is right, that nothing is touched but what must be, that a hop is counted exactly once,
//! and that what comes back to a client is from where it sent to.
//!
//! | module | what |
//! |---|---|
//! | [`nat`] | the model |
//! | [`play`] | one sequence, through both |
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on panics where it stands")]

#[allow(dead_code, clippy::cast_possible_truncation, reason = "the packet tests use all of it, and say why")]
#[path = "../packet/frame.rs"]
mod frame;
mod nat;
mod play;
#[allow(dead_code, reason = "the packet tests use all of it")]
#[path = "../packet/rig.rs"]
mod rig;

use std::io::Write as _;

use egress_lab::Family;
use egress_lab::random::Random;

use play::{Play, Tally};

/// How many sequences each kind of set-up plays.
const SEQUENCES: u64 = 4;
/// What happens in each of them.
const EVENTS: usize = 600;

#[test]
fn the_programs_do_what_the_model_does() {
    let seed = Random::seed();
    let mut tally = Tally::default();
    for sequence in 0..SEQUENCES {
        for fallback in Family::ALL {
            for (redirect, ports) in [(false, None), (true, None), (true, Some((40_000, 40_003)))] {
                let numbers = seed.wrapping_add(sequence);
                let mut random = Random::new(numbers);
                let world = play::World { fallback, redirect, ports };
                rig::with(&play::setup(&world, 0), |rig| {
                    let mut play =
                        Play::new(rig, &world, format!("EGRESS_SEED={seed}, sequence {sequence}, {world:?}"));
                    (0..EVENTS).for_each(|_| play.event(&mut random));
                    tally.add(&play.tally);
                });
            }
        }
    }
    writeln!(std::io::stderr(), "EGRESS_SEED={seed}: {tally}").unwrap();
    tally.assert_everything_happened();
}
