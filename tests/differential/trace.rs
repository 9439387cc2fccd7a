//! Generated traces: each shape is a kind of conversation, and what is left open in it is drawn from a seed.

mod errors;
mod odd;
mod sctp;
mod tcp;

use std::net::SocketAddr;

use egress_lab::Family;
use egress_lab::address::{Host, ROUTER, SNAT};
use egress_lab::frame::{Body, Frame};
use egress_lab::random::Random;

use crate::outcome::with_port;
use crate::step::{End, Flow, Step};
use crate::twin::{CLIENTS, SERVER};

/// Where a trace happens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) family: Family,
    pub(crate) client: Host,
    /// A port that only this trace's conversations have, as are the seven after it.
    pub(crate) port: u16,
    /// Where the fallback leads to, if there is one for this family.
    pub(crate) fallback: Option<Host>,
    /// Whether the link to the outside carries less than that to the client.
    pub(crate) uplink_is_narrow: bool,
}

type Shape = fn(&mut Random, &Place) -> Vec<Step>;

/// All shapes.
pub(crate) const SHAPES: &[(&str, Shape)] = &[
    ("TCP, from open to close", tcp::whole),
    ("TCP, refused", tcp::refused),
    ("TCP, reset", tcp::reset),
    ("TCP, half closed", tcp::half_closed),
    ("TCP, opened from both sides", tcp::opened_from_both_sides),
    ("TCP, picked up in mid-stream", tcp::picked_up),
    ("TCP, the port used again", tcp::used_again),
    ("TCP, outside the window", tcp::outside_the_window),
    ("TCP, odd beginnings", tcp::odd_beginnings),
    ("SCTP", sctp::association),
    ("UDP", datagrams),
    ("echo", echoes),
    ("two clients with one port", contention),
    ("errors from the outside", errors::from_the_outside),
    ("errors from the client", errors::from_the_client),
    ("errors about nothing", errors::about_nothing),
    ("fragments", odd::fragments),
    ("ends of a packet's life", odd::ttl),
    ("larger than a link", odd::larger_than_a_link),
    ("options and extension headers", odd::options),
    ("wrong checksums and lengths", odd::damaged),
    ("no rule", odd::unclaimed),
    ("other protocols", odd::other_protocols),
    ("wrong hosts answer", odd::wrong_hosts),
    ("the outside opens", odd::opened_by_the_outside),
    ("other destinations", odd::other_destinations),
];

impl Place {
    fn at(&self, host: Host, port: u16) -> SocketAddr {
        SocketAddr::new(host.ip(self.family), port)
    }

    /// A conversation by the rule for this port.
    fn flow(&self, port: u16, target: u16) -> Flow {
        self.flow_to(SERVER, port, target)
    }

    fn flow_to(&self, server: Host, port: u16, target: u16) -> Flow {
        Flow {
            client: self.at(self.client, self.port),
            router: self.at(ROUTER, port),
            snat: self.at(SNAT, self.port),
            server: self.at(server, target),
        }
    }

    /// The same from another of the client's ports.
    fn sibling(&self, number: u16) -> Self {
        Self { port: self.port + number, ..*self }
    }
}

impl Flow {
    /// The same between other ports of client and router.
    fn by_port(&self, port: u16) -> Self {
        Self { client: with_port(self.client, port), snat: with_port(self.snat, port), ..*self }
    }

    /// From the client.
    fn request(&self, random: &mut Random, body: Body) -> Frame {
        varied(random, Frame::new(self.client, self.router, body))
    }

    /// From the server.
    fn reply(&self, random: &mut Random, body: Body) -> Frame {
        varied(random, Frame::new(self.server, self.snat, body))
    }

    /// A request as it leaves, which errors of the outside quote.
    fn sent(&self, frame: &Frame) -> Frame {
        frame.between(self.snat, self.server).forwarded()
    }

    /// A reply as it comes to the client, which errors of the client quote.
    fn received(&self, frame: &Frame) -> Frame {
        frame.between(self.router, self.client).forwarded()
    }
}

/// The same packet with other fields that translation must leave as they are.
fn varied(random: &mut Random, frame: Frame) -> Frame {
    let v4 = frame.source.is_ipv4();
    let length = random.below(200);
    Frame {
        payload: random.bytes(length),
        ttl: random.pick(&[2, 3, 33, 64, 128, 255]),
        traffic_class: random.byte(),
        flow_label: if v4 { 0 } else { random.long() & 0xf_ffff },
        id: if v4 { random.word().into() } else { random.long() },
        dont_fragment: random.chance(2),
        ..frame
    }
}

fn udp_rule(random: &mut Random, place: &Place) -> Flow {
    let (port, target) = random.pick(&[(7000, 7001), (53, 53)]);
    place.flow(port, target)
}

fn datagrams(random: &mut Random, place: &Place) -> Vec<Step> {
    let flow = udp_rule(random, place);
    let mut steps = Vec::new();
    for number in 0..random.below(8) + 2 {
        let body = if place.family == Family::V4 && random.chance(4) { Body::UdpUnchecked } else { Body::Udp };
        let step = if number == 0 || random.chance(2) {
            Step::one("a datagram", End::Client, flow.request(random, body))
        } else {
            Step::one("a datagram back", End::Outside, flow.reply(random, body))
        };
        steps.push(step);
    }
    if let Some(fallback) = place.fallback {
        let flow = place.sibling(1).flow_to(fallback, 7777, 7777);
        steps.push(Step::one("a datagram", End::Client, flow.request(random, Body::Udp)));
        steps.push(Step::one("a datagram back", End::Outside, flow.reply(random, Body::Udp)));
    }
    steps
}

fn echoes(random: &mut Random, place: &Place) -> Vec<Step> {
    // The port of an echo is its identifier.
    let flow = place.flow_to(place.fallback.unwrap_or(SERVER), 0, 0);
    let mut steps = Vec::new();
    for _ in 0..random.below(3) + 1 {
        steps.push(Step::one("an echo request", End::Client, flow.request(random, Body::EchoRequest)).of(&flow));
        if place.fallback.is_some() {
            steps.push(Step::one("an echo reply", End::Outside, flow.reply(random, Body::EchoReply)).of(&flow));
        }
    }
    steps
}

fn contention(random: &mut Random, place: &Place) -> Vec<Step> {
    // Another class of ports than all other traces have: what is given out here, none of them will ask for. An echo's
    // identifier has no class, so echoes say everywhere which conversation they are of.
    let place = &Place { port: place.port % 500 + 1, ..*place };
    let mut steps = Vec::new();
    let bodies = [Body::Udp, Body::Tcp(2), Body::EchoRequest];
    for body in &bodies[..if place.fallback.is_some() { 3 } else { 2 }] {
        let flows = CLIENTS.map(|client| {
            let place = Place { client, ..*place };
            match body {
                Body::Udp => place.flow(7000, 7001),
                Body::EchoRequest => place.flow_to(place.fallback.unwrap_or(SERVER), 0, 0),
                _ => place.flow(80, 8080),
            }
        });
        for flow in &flows {
            let first = flow.request(random, body.clone());
            steps.push(Step::one("a request with a port that may be taken", End::Client, first).of(flow));
        }
        for flow in flows.iter().rev() {
            let (answer, more) = match body {
                Body::Udp => (Body::Udp, Body::Udp),
                Body::EchoRequest => (Body::EchoReply, Body::EchoRequest),
                _ => (Body::Tcp(0x12), Body::Tcp(0x10)),
            };
            let tcp = matches!(body, Body::Tcp(_));
            let first = 0x0102_0304_u32;
            let answer = flow.reply(random, answer);
            let more = flow.request(random, more);
            let answer = Frame { sequence: 7000, acknowledgment: first + 1, ..answer };
            let more = Frame { sequence: first + 1, acknowledgment: 7001, ..more };
            let without_data = |frame: Frame| if tcp { frame.with(|frame| frame.payload.clear()) } else { frame };
            steps.push(Step::one("a reply to a port that was taken", End::Outside, without_data(answer)).of(flow));
            steps.push(Step::one("more from a port that was taken", End::Client, more).of(flow));
            if *body == Body::Udp {
                let about = flow.request(random, Body::Udp);
                let error = errors::unreachable(place, flow.server.ip(), flow.snat.ip(), flow.sent(&about), 64);
                steps.push(Step::error("an error about a port that was taken", End::Outside, error).of(flow));
            }
        }
    }
    // A SYN carries no data here.
    for step in steps.iter_mut().filter(|step| step.name == "a request with a port that may be taken") {
        for packet in &mut step.packets {
            if let crate::step::Sent::Packet(frame) = packet
                && matches!(frame.body, Body::Tcp(_))
            {
                frame.payload.clear();
            }
        }
    }
    steps
}
