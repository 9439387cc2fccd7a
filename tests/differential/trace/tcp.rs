//! Connections: the numbers in their segments are right unless they are meant to be wrong, for connection tracking looks.

use egress_lab::frame::{Body, Frame};
use egress_lab::random::Random;

use super::Place;
use crate::step::{End, Flow, Step};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// A connection under way: who has sent how far.
struct Connection<'a> {
    random: &'a mut Random,
    flow: Flow,
    /// The next byte of each end.
    next: [u32; 2],
    steps: Vec<Step>,
}

impl<'a> Connection<'a> {
    fn new(random: &'a mut Random, place: &Place) -> Self {
        let (port, target) = random.pick(&[(80, 8080), (443, 443)]);
        let next = [random.long(), random.long()];
        Self { flow: place.flow(port, target), next, random, steps: Vec::new() }
    }

    fn segment(&mut self, from: End, flags: u8, length: usize) -> Frame {
        let (own, other) = (from as usize, 1 - from as usize);
        let frame = match from {
            End::Client => self.flow.request(self.random, Body::Tcp(flags)),
            End::Outside => self.flow.reply(self.random, Body::Tcp(flags)),
        };
        let acknowledgment = if flags & ACK != 0 { self.next[other] } else { 0 };
        Frame { payload: self.random.bytes(length), sequence: self.next[own], acknowledgment, ..frame }
    }

    /// Sends a segment, once or, as after a loss, twice.
    fn send(&mut self, name: &'static str, from: End, flags: u8, length: usize) {
        let segment = self.segment(from, flags, length);
        let counted = u32::from(flags & (SYN | FIN) != 0) + u32::try_from(length).unwrap();
        self.next[from as usize] = self.next[from as usize].wrapping_add(counted);
        for _ in 0..if self.random.chance(8) { 2 } else { 1 } {
            self.steps.push(Step::one(name, from, segment.clone()));
        }
    }

    /// Sends a segment that leaves everything as it was.
    fn send_odd(&mut self, name: &'static str, from: End, flags: u8, change: impl FnOnce(&mut Frame)) {
        let segment = self.segment(from, flags, 0).with(change);
        self.steps.push(Step::one(name, from, segment));
    }

    fn open(&mut self) {
        self.send("a SYN", End::Client, SYN, 0);
        self.send("a SYN's answer", End::Outside, SYN | ACK, 0);
        self.send("a segment", End::Client, ACK, 0);
    }

    fn exchange(&mut self) {
        for _ in 0..self.random.below(4) + 1 {
            let from = self.random.pick(&[End::Client, End::Outside]);
            let length = self.random.below(400) + 1;
            self.send("a segment", from, PSH | ACK, length);
            self.send("a segment", other(from), ACK, 0);
        }
    }

    fn close(&mut self) {
        let first = self.random.pick(&[End::Client, End::Outside]);
        self.send("a FIN", first, FIN | ACK, 0);
        self.send("a segment", other(first), ACK, 0);
        self.send("a FIN", other(first), FIN | ACK, 0);
        self.send("a segment", first, ACK, 0);
    }
}

fn other(end: End) -> End {
    if end == End::Client { End::Outside } else { End::Client }
}

pub(super) fn whole(random: &mut Random, place: &Place) -> Vec<Step> {
    let mut connection = Connection::new(random, place);
    connection.open();
    connection.exchange();
    connection.close();
    connection.steps
}

pub(super) fn refused(random: &mut Random, place: &Place) -> Vec<Step> {
    let mut connection = Connection::new(random, place);
    connection.send("a SYN", End::Client, SYN, 0);
    connection.send_odd("a reset", End::Outside, RST | ACK, |_| ());
    // And again, as clients do.
    connection.send_odd("a SYN", End::Client, SYN, |segment| segment.sequence = segment.sequence.wrapping_sub(1));
    connection.steps
}

pub(super) fn reset(random: &mut Random, place: &Place) -> Vec<Step> {
    let mut connection = Connection::new(random, place);
    connection.open();
    connection.exchange();
    let from = connection.random.pick(&[End::Client, End::Outside]);
    connection.send_odd("a reset", from, RST | ACK, |_| ());
    // What was under way when it came.
    let length = connection.random.below(100) + 1;
    let late = connection.segment(other(from), PSH | ACK, length);
    connection.steps.push(Step::one("a segment after a reset", other(from), late));
    connection.steps
}

pub(super) fn half_closed(random: &mut Random, place: &Place) -> Vec<Step> {
    let mut connection = Connection::new(random, place);
    connection.open();
    let first = connection.random.pick(&[End::Client, End::Outside]);
    connection.send("a FIN", first, FIN | ACK, 0);
    for _ in 0..connection.random.below(6) + 1 {
        let length = connection.random.below(400) + 1;
        connection.send("a segment", other(first), PSH | ACK, length);
        connection.send("a segment", first, ACK, 0);
    }
    connection.send("a FIN", other(first), FIN | ACK, 0);
    connection.send("a segment", first, ACK, 0);
    connection.steps
}

pub(super) fn opened_from_both_sides(random: &mut Random, place: &Place) -> Vec<Step> {
    let mut connection = Connection::new(random, place);
    connection.send("a SYN", End::Client, SYN, 0);
    let answer = connection.segment(End::Outside, SYN, 0);
    connection.next[1] = connection.next[1].wrapping_add(1);
    connection.steps.push(Step::one("a SYN that meets a SYN", End::Outside, answer));
    for from in [End::Client, End::Outside] {
        let back = |segment: &mut Frame| segment.sequence = segment.sequence.wrapping_sub(1);
        connection.send_odd("a SYN's answer", from, SYN | ACK, back);
    }
    connection.send("a segment", End::Client, ACK, 0);
    connection.exchange();
    connection.steps
}

pub(super) fn picked_up(random: &mut Random, place: &Place) -> Vec<Step> {
    let mut connection = Connection::new(random, place);
    connection.send("a segment", End::Client, ACK, 0);
    connection.send("a segment", End::Outside, ACK, 0);
    connection.exchange();
    connection.close();
    connection.steps
}

pub(super) fn used_again(random: &mut Random, place: &Place) -> Vec<Step> {
    let mut connection = Connection::new(random, place);
    connection.open();
    connection.close();
    // The next connection's numbers go on from the last one's, as RFC 6191 has it.
    connection.next = connection.next.map(|next| next.wrapping_add(100_000));
    connection.open();
    connection.exchange();
    connection.steps
}

pub(super) fn outside_the_window(random: &mut Random, place: &Place) -> Vec<Step> {
    let mut connection = Connection::new(random, place);
    connection.open();
    connection.exchange();
    for from in [End::Client, End::Outside] {
        let far = connection.random.pick(&[1 << 24, 1 << 28, 1 << 30]);
        connection.send_odd("a segment outside the window", from, ACK, |segment| {
            segment.sequence = segment.sequence.wrapping_add(far);
        });
    }
    // It has done no harm.
    connection.exchange();
    // A reset that only guesses.
    let from = connection.random.pick(&[End::Client, End::Outside]);
    let far = |segment: &mut Frame| segment.sequence = segment.sequence.wrapping_add(1 << 29);
    connection.send_odd("a reset outside the window", from, RST, far);
    connection.exchange();
    connection.steps
}

pub(super) fn odd_beginnings(random: &mut Random, place: &Place) -> Vec<Step> {
    let mut steps = Vec::new();
    let beginnings = [
        ("a reset of no connection", RST),
        ("a reset of no connection", RST | ACK),
        ("a FIN of no connection", FIN | ACK),
        ("a SYN's answer of no connection", SYN | ACK),
        ("a segment without flags", 0),
        ("a segment with flags that exclude each other", SYN | FIN),
        ("a segment with flags that exclude each other", SYN | RST),
        ("a segment with flags that exclude each other", FIN | PSH | 0x20),
    ];
    for (number, (name, flags)) in (0..).zip(beginnings) {
        let mut connection = Connection::new(random, &place.sibling(number));
        connection.send_odd(name, End::Client, flags, |_| ());
        steps.extend(connection.steps);
    }
    steps
}
