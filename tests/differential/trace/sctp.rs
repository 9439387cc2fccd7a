//! Associations: connection tracking reads their chunks and their tags.

use egress_lab::frame::{Body, Frame};
use egress_lab::random::Random;

use super::Place;
use crate::step::{End, Flow, Step};

// Types of chunk (RFC 9260 section 3.2).
const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const SACK: u8 = 3;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;

/// An association under way: the tags that its packets carry, of the client's side and the server's.
struct Association<'a> {
    random: &'a mut Random,
    flow: Flow,
    tags: [u32; 2],
    steps: Vec<Step>,
}

impl<'a> Association<'a> {
    fn new(random: &'a mut Random, place: &Place) -> Self {
        let (port, target) = random.pick(&[(9000, 9001), (9002, 9002)]);
        let tags = [random.long() | 1, random.long() | 1];
        Self { flow: place.flow(port, target), tags, random, steps: Vec::new() }
    }

    /// Sends one chunk, under the tag that the other side has chosen.
    fn send(&mut self, name: &'static str, from: End, kind: u8, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).unwrap().to_be_bytes();
        let mut chunk = [&[kind, 0][..], &length, value].concat();
        chunk.resize(chunk.len().next_multiple_of(4), 0);
        let tag = if kind == INIT { 0 } else { self.tags[1 - from as usize] };
        let frame = match from {
            End::Client => self.flow.request(self.random, Body::Sctp),
            End::Outside => self.flow.reply(self.random, Body::Sctp),
        };
        self.steps.push(Step::one(name, from, Frame { payload: chunk, sequence: tag, ..frame }));
    }

    fn open(&mut self) {
        for (from, kind) in [(End::Client, INIT), (End::Outside, INIT_ACK)] {
            // Tag, window, streams each way, first number.
            let tag = self.tags[from as usize].to_be_bytes();
            let value = [&tag[..], &[0, 1, 0, 0, 0, 10, 0, 10], &[0, 0, 0, 1]].concat();
            self.send("an association's beginning", from, kind, &value);
        }
        let cookie = self.random.bytes(24);
        self.send("an association's beginning", End::Client, COOKIE_ECHO, &cookie);
        self.send("an association's beginning", End::Outside, COOKIE_ACK, &[]);
    }

    fn exchange(&mut self) {
        for _ in 0..self.random.below(4) + 1 {
            let (from, to) = self.random.pick(&[(End::Client, End::Outside), (End::Outside, End::Client)]);
            let length = self.random.below(600) + 1;
            // Number, stream and its number, protocol, and the data.
            let value = [vec![0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0], self.random.bytes(length)].concat();
            self.send("a chunk of data", from, DATA, &value);
            self.send("a chunk of data", to, SACK, &[0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
        }
    }
}

pub(super) fn association(random: &mut Random, place: &Place) -> Vec<Step> {
    let mut association = Association::new(random, place);
    association.open();
    association.exchange();
    if association.random.chance(4) {
        let from = association.random.pick(&[End::Client, End::Outside]);
        association.send("an association's end", from, ABORT, &[]);
    } else {
        let (first, other) = association.random.pick(&[(End::Client, End::Outside), (End::Outside, End::Client)]);
        association.send("an association's end", first, SHUTDOWN, &[0, 0, 0, 1]);
        association.send("an association's end", other, SHUTDOWN_ACK, &[]);
        association.send("an association's end", first, SHUTDOWN_COMPLETE, &[]);
    }
    association.steps
}
