//! ICMP and ICMPv6 errors.

use std::net::IpAddr;

use egress_lab::Family;
use egress_lab::address::SNAT;
use egress_lab::frame::{Body, Frame};
use egress_lab::random::Random;

use super::{Place, udp_rule};
use crate::step::{End, Flow, Sent, Step};
use crate::twin::{HOP, SERVER, STRANGER};

/// Kinds of error, and what stands in the four bytes behind the checksum.
fn kinds(family: Family) -> &'static [([u8; 2], [u8; 4])] {
    match family {
        // Unreachable: net, host, protocol, port, too large, prohibited; time exceeded: on the way, in parts; a bad header.
        Family::V4 => &[
            ([3, 0], [0; 4]),
            ([3, 1], [0; 4]),
            ([3, 2], [0; 4]),
            ([3, 3], [0; 4]),
            ([3, 4], [0, 0, 5, 0]),
            ([3, 13], [0; 4]),
            ([11, 0], [0; 4]),
            ([11, 1], [0; 4]),
            ([12, 0], [20, 0, 0, 0]),
        ],
        Family::V6 => &[
            ([1, 0], [0; 4]),
            ([1, 1], [0; 4]),
            ([1, 3], [0; 4]),
            ([1, 4], [0; 4]),
            ([2, 0], [0, 0, 5, 0]),
            ([3, 0], [0; 4]),
            ([3, 1], [0; 4]),
            ([4, 1], [0, 0, 0, 40]),
        ],
    }
}

/// That a port is unreachable.
pub(super) fn unreachable(place: &Place, from: IpAddr, to: IpAddr, about: Frame, length: usize) -> Sent {
    let kind = if place.family == Family::V4 { [3, 3] } else { [1, 4] };
    Sent::Error { from, to, kind, rest: [0; 4], about, length }
}

fn any(random: &mut Random, place: &Place, from: IpAddr, to: IpAddr, about: Frame) -> Sent {
    let (kind, rest) = random.pick(kinds(place.family));
    // As little as eight bytes are quoted, and as much as there is.
    let length = random.pick(&[8, 8, 20, 28, 64, 500]);
    Sent::Error { from, to, kind, rest, about, length }
}

/// A conversation, its first request, and the body of an answer.
fn conversation(random: &mut Random, place: &Place, kinds: usize) -> (Flow, Frame, Frame) {
    let number = random.below(if place.fallback.is_some() { kinds } else { 2 });
    let (flow, request, reply) = match number {
        0 => (udp_rule(random, place), Body::Udp, Body::Udp),
        1 => (place.flow(80, 8080), Body::Tcp(2), Body::Tcp(0x12)),
        _ => (place.flow_to(place.fallback.unwrap_or(SERVER), 0, 0), Body::EchoRequest, Body::EchoReply),
    };
    let mut request = flow.request(random, request);
    let mut reply = flow.reply(random, reply);
    if number == 1 {
        request.payload.clear();
        reply.payload.clear();
        reply.acknowledgment = request.sequence.wrapping_add(1);
    }
    (flow, request, reply)
}

pub(super) fn from_the_outside(random: &mut Random, place: &Place) -> Vec<Step> {
    let (flow, request, reply) = conversation(random, place, 3);
    let mut steps = vec![Step::one("a request", End::Client, request.clone()).of(&flow)];
    if random.chance(2) {
        steps.push(Step::one("a reply", End::Outside, reply).of(&flow));
    }
    for _ in 0..random.below(3) + 1 {
        let from = random.pick(&[flow.server.ip(), HOP.ip(place.family)]);
        let error = any(random, place, from, flow.snat.ip(), flow.sent(&request));
        steps.push(Step::error("an error about a request", End::Outside, error).of(&flow));
    }
    steps
}

pub(super) fn from_the_client(random: &mut Random, place: &Place) -> Vec<Step> {
    let (flow, request, reply) = conversation(random, place, 2);
    let mut steps =
        vec![Step::one("a request", End::Client, request), Step::one("a reply", End::Outside, reply.clone())];
    for _ in 0..random.below(3) + 1 {
        let error = any(random, place, flow.client.ip(), flow.router.ip(), flow.received(&reply));
        steps.push(Step::error("an error about a reply", End::Client, error));
    }
    steps
}

pub(super) fn about_nothing(random: &mut Random, place: &Place) -> Vec<Step> {
    let flow = udp_rule(random, place);
    let request = flow.request(random, Body::Udp);
    // Nobody has sent what they are about.
    let from_outside = any(random, place, flow.server.ip(), flow.snat.ip(), flow.sent(&request));
    let reply = flow.reply(random, Body::Udp);
    let from_client = any(random, place, flow.client.ip(), flow.router.ip(), flow.received(&reply));
    let mut steps = vec![
        Step::error("an error about no conversation", End::Outside, from_outside),
        Step::error("an error about no conversation", End::Client, from_client),
    ];
    steps.push(Step::one("a request", End::Client, request.clone()));
    // About a conversation, but quoting a packet to somebody else.
    let other = request.between(flow.snat, place.at(STRANGER, flow.server.port()));
    let error = any(random, place, HOP.ip(place.family), SNAT.ip(place.family), other);
    steps.push(Step::error("an error about no conversation", End::Outside, error));
    steps
}
