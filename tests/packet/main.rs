//! Packet tests: the real programs, run on built packets.
//!
//! | module | what it shows |
//! |---|---|
//! | [`frame`], [`rig`] | how: a builder of frames, and the real object with its real maps in a namespace of its own |
//! | [`accelerated`] | what the XDP programs take, and what they leave |
//! | [`golden`] | translation, byte by byte, there and back |
//! | [`verdicts`] | what is passed, refused and dropped, and how it is counted |
//! | [`ports`] | which source port a flow gets |
//! | [`races`] | two processors at once |
//! | [`life`] | a flow's states and timeouts, a full table, edits under live flows |
//! | [`events`] | what is told of flows and drops |
//! | [`fragments`] | packets in fragments |
//! | [`malformed`] | packets that are not what they say |
//! | [`safety`] | any bytes at all: only declared verdicts, and no leak |
//! | [`scale`] | every port a rule |
//! | [`table`] | a small flow table, full, and as flows come and go |
//! | [`verified`] | what the verifier has to walk, on each kernel |
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on panics where it stands")]
#![expect(clippy::cast_possible_truncation, reason = "frames are short, and random numbers are cut to size")]

mod accelerated;
mod events;
mod fragments;
mod frame;
mod golden;
mod life;
mod malformed;
mod ports;
mod races;
mod rig;
mod safety;
mod scale;
mod table;
mod verdicts;
mod verified;

#[test]
fn the_kernel_loads_every_program() {
    rig::bare(|_rig| ());
}
