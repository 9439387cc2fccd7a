//! What is not a plain packet of a plain conversation.

use egress_lab::Family;
use egress_lab::address::{ROUTER, SNAT};
use egress_lab::frame::{Body, Frame, Part};
use egress_lab::random::Random;

use super::{Place, udp_rule, varied};
use crate::outcome::with_port;
use crate::step::{Damage, End, Step};
use crate::twin::{POD, SERVER, STRANGER};

/// A datagram each way, so that both directions are known.
fn acquainted(random: &mut Random, place: &Place) -> (crate::step::Flow, Vec<Step>) {
    let flow = udp_rule(random, place);
    let steps = vec![
        Step::one("a datagram", End::Client, flow.request(random, Body::Udp)),
        Step::one("a datagram back", End::Outside, flow.reply(random, Body::Udp)),
    ];
    (flow, steps)
}

pub(super) fn fragments(random: &mut Random, place: &Place) -> Vec<Step> {
    let (flow, mut steps) = acquainted(random, place);
    // No two datagrams of the same ends may have the same number while fragments of one are remembered.
    let first_id = u32::from(place.port);
    for from in [End::Client, End::Outside] {
        let whole = match from {
            End::Client => flow.request(random, Body::Udp),
            End::Outside => flow.reply(random, Body::Udp),
        };
        let length = 8 * (random.below(20) + 5);
        let numbered =
            |id: u32| Frame { id, dont_fragment: false, payload: vec![0x5a; length * 2 + 3], ..whole.clone() };
        let parts = numbered(first_id).parts(length);
        steps.push(Step::many("fragments in order", from, parts));
        let mut parts = numbered(first_id + 1).parts(length);
        parts.swap(1, 2);
        steps.push(Step::many("fragments, the first one first", from, parts));
        let mut parts = numbered(first_id + 2).parts(length);
        parts.reverse();
        steps.push(Step::many("fragments, the first one last", from, parts));
        let mut parts = numbered(first_id + 3).parts(length);
        parts.remove(1);
        steps.push(Step::many("fragments, one missing", from, parts));
        let whole = numbered(first_id + 4);
        let part = Part { start: 0, length: usize::MAX / 2, more: false };
        steps.push(Step::many("a datagram in one fragment", from, vec![whole.with(|whole| whole.part = Some(part))]));
    }
    steps
}

pub(super) fn ttl(random: &mut Random, place: &Place) -> Vec<Step> {
    let (flow, mut steps) = acquainted(random, place);
    for ttl in [0, 1, 2, 255] {
        let request = flow.request(random, Body::Udp).with(|frame| frame.ttl = ttl);
        steps.push(Step::one(
            if ttl < 2 { "a request that may go no further" } else { "a datagram" },
            End::Client,
            request,
        ));
        let reply = flow.reply(random, Body::Udp).with(|frame| frame.ttl = ttl);
        steps.push(Step::one(
            if ttl < 2 { "a reply that may go no further" } else { "a datagram back" },
            End::Outside,
            reply,
        ));
    }
    // The first packet of a conversation too.
    let flow = place.sibling(1).flow(80, 8080);
    let request = flow.request(random, Body::Tcp(2)).with(|frame| frame.ttl = 1);
    steps.push(Step::one("a request that may go no further", End::Client, request));
    steps
}

pub(super) fn larger_than_a_link(random: &mut Random, place: &Place) -> Vec<Step> {
    let (flow, mut steps) = acquainted(random, place);
    for dont_fragment in [true, false] {
        let large = |frame: Frame, random: &mut Random| Frame { payload: random.bytes(1430), dont_fragment, ..frame };
        let request = large(flow.request(random, Body::Udp), random);
        let reply = large(flow.reply(random, Body::Udp), random);
        // Only what the sender's own link carries can be sent.
        steps.push(if place.uplink_is_narrow {
            Step::one("a request larger than the link", End::Client, request)
        } else {
            Step::one("a reply larger than the link", End::Outside, reply)
        });
    }
    steps
}

pub(super) fn options(random: &mut Random, place: &Place) -> Vec<Step> {
    let (flow, mut steps) = acquainted(random, place);
    let both = |steps: &mut Vec<Step>, random: &mut Random, name, change: &dyn Fn(&mut Frame)| {
        steps.push(Step::one(name, End::Client, flow.request(random, Body::Udp).with(change)));
        steps.push(Step::one(name, End::Outside, flow.reply(random, Body::Udp).with(change)));
    };
    match place.family {
        Family::V4 => {
            // No operation, router alert, a timestamp and a route to be recorded, each with and without room.
            let harmless: [&[u8]; 5] = [
                &[1, 1, 1, 0],
                &[148, 4, 0, 0],
                &[68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                &[7, 7, 8, 1, 2, 3, 4, 0],
            ];
            for options in harmless {
                both(&mut steps, random, "options", &|frame| frame.options = options.to_vec());
            }
            let routed = [&[131, 7, 4][..], &[203, 0, 113, 97], &[0]].concat();
            both(&mut steps, random, "a route of its own", &|frame| frame.options.clone_from(&routed));
        }
        Family::V6 => {
            let chains: [&[(u8, Vec<u8>)]; 5] = [
                &[padding(0, 0)],
                &[padding(60, 0)],
                &[padding(60, 4)],
                &[routing(0)],
                &[padding(0, 0), padding(60, 0), routing(0), padding(60, 1)],
            ];
            for chain in chains {
                both(&mut steps, random, "extension headers", &|frame| frame.extensions = chain.to_vec());
            }
            let many = vec![padding(60, 0); 6];
            both(&mut steps, random, "more extension headers than are walked", &|frame| {
                frame.extensions.clone_from(&many)
            });
            let routed = vec![routing(1)];
            both(&mut steps, random, "a route of its own", &|frame| frame.extensions.clone_from(&routed));
        }
    }
    steps
}

/// Options of 8 bytes and a multiple more, padding alone.
fn padding(number: u8, eights: u8) -> (u8, Vec<u8>) {
    let length = 4 + 8 * eights;
    (number, [vec![eights, 1, length], vec![0; length.into()]].concat())
}

/// A routing header of the type that experiments have (RFC 4727), with no addresses.
fn routing(segments_left: u8) -> (u8, Vec<u8>) {
    (43, vec![0, 253, segments_left, 0, 0, 0, 0])
}

pub(super) fn damaged(random: &mut Random, place: &Place) -> Vec<Step> {
    let (flow, mut steps) = acquainted(random, place);
    for from in [End::Client, End::Outside] {
        let packet = |random: &mut Random| match from {
            End::Client => flow.request(random, Body::Udp),
            End::Outside => flow.reply(random, Body::Udp),
        };
        let cases = [
            ("a wrong transport checksum", Damage::Transport),
            ("a wrong header checksum", Damage::Header),
            ("a packet that ends too early", Damage::Short(random.below(8) + 1)),
            ("a packet with padding", Damage::Padded(random.below(20) + 1)),
        ];
        for (name, damage) in cases {
            if damage == Damage::Header && place.family == Family::V6 {
                continue;
            }
            let packet = packet(random).with(|frame| frame.payload.push(1));
            steps.push(Step::one(name, from, packet).damaged(damage));
        }
    }
    // Nothing of it is left.
    steps.push(Step::one("a datagram", End::Client, flow.request(random, Body::Udp)));
    steps.push(Step::one("a datagram back", End::Outside, flow.reply(random, Body::Udp)));
    steps
}

pub(super) fn unclaimed(random: &mut Random, place: &Place) -> Vec<Step> {
    let port = random.pick(&[1, 22, 81, 8080, 65_535]);
    let flow = place.flow_to(place.fallback.unwrap_or(SERVER), port, port);
    let syn = flow.request(random, Body::Tcp(2)).with(|frame| frame.payload.clear());
    let data = flow.by_port(place.port + 1).request(random, Body::Tcp(0x10));
    vec![
        Step::one("a packet that no rule names", End::Client, syn),
        Step::one("a packet that no rule names", End::Client, data),
        Step::one("a packet that no rule names", End::Client, flow.request(random, Body::Udp)),
        // TCP's port, by UDP, and the other way round.
        Step::one("a packet that no rule names", End::Client, place.sibling(2).flow(80, 80).request(random, Body::Udp)),
    ]
}

pub(super) fn other_protocols(random: &mut Random, place: &Place) -> Vec<Step> {
    // Each of another client: without ports there is one conversation for each.
    let flow = place.flow_to(place.fallback.unwrap_or(SERVER), 0, 0);
    let protocol = random.pick(&[4, 50, 88, 89, 103, 112, 253]);
    let mut steps = vec![Step::one("a packet without ports", End::Client, flow.request(random, Body::Other(protocol)))];
    if place.fallback.is_some() {
        steps.push(Step::one("a packet without ports back", End::Outside, flow.reply(random, Body::Other(protocol))));
        // IPv6 counts it among the extension headers; here it says that nothing follows it.
        let signed = |mut frame: Frame| {
            frame.payload = [vec![59, 4, 0, 0], vec![7; 20]].concat();
            frame
        };
        let request = signed(flow.request(random, Body::Other(51)));
        steps.push(Step::one("a packet with an authentication header", End::Client, request));
        let reply = signed(flow.reply(random, Body::Other(51)));
        steps.push(Step::one("a packet with an authentication header", End::Outside, reply));
    }
    steps
}

pub(super) fn wrong_hosts(random: &mut Random, place: &Place) -> Vec<Step> {
    let (flow, mut steps) = acquainted(random, place);
    let frame = |random: &mut Random, from, body| varied(random, Frame::new(from, flow.snat, body));
    let stranger = place.at(STRANGER, flow.server.port());
    let other_port = with_port(flow.server, 4444);
    for from in [stranger, other_port] {
        steps.push(Step::one("a datagram of another host", End::Outside, frame(random, from, Body::Udp)));
    }
    let connection = place.sibling(1).flow(80, 8080);
    let syn = connection.request(random, Body::Tcp(2)).with(|frame| frame.payload.clear());
    steps.push(Step::one("a SYN", End::Client, syn));
    for from in [place.at(STRANGER, 8080), with_port(connection.server, 4444)] {
        let segment = varied(random, Frame::new(from, connection.snat, Body::Tcp(0x12)));
        steps.push(Step::one("a segment of another host", End::Outside, segment));
    }
    // What the client sends to elsewhere is not its conversation either.
    steps.push(Step::one("a datagram back", End::Outside, flow.reply(random, Body::Udp)));
    steps
}

pub(super) fn opened_by_the_outside(random: &mut Random, place: &Place) -> Vec<Step> {
    let from = place.at(STRANGER, place.port);
    let to = |port| place.at(SNAT, port);
    let port = random.pick(&[22, 80, 8080, 50_000]);
    let syn = varied(random, Frame::new(from, to(port), Body::Tcp(2))).with(|frame| frame.payload.clear());
    let segment = varied(random, Frame::new(with_port(from, place.port + 1), to(port), Body::Tcp(0x10)));
    let client = place.at(place.client, 80);
    vec![
        Step::one("a SYN from outside", End::Outside, syn),
        Step::one("a segment from outside", End::Outside, segment),
        Step::one("a datagram from outside", End::Outside, varied(random, Frame::new(from, to(port), Body::Udp))),
        Step::one(
            "an echo request from outside",
            End::Outside,
            varied(random, Frame::new(from, to(0), Body::EchoRequest)),
        ),
        Step::one("a packet to a pod", End::Outside, varied(random, Frame::new(from, client, Body::Tcp(2)))),
        Step::one("a packet to a pod", End::Outside, varied(random, Frame::new(from, client, Body::Udp))),
        Step::one("a packet to the router's inner address", End::Outside, {
            varied(random, Frame::new(from, place.at(ROUTER, 80), Body::Tcp(2)))
        }),
    ]
}

pub(super) fn other_destinations(random: &mut Random, place: &Place) -> Vec<Step> {
    let flow = place.flow(80, 8080);
    let to = |to| flow.client.port().checked_add(1).map(|port| (with_port(flow.client, port), to)).unwrap();
    let frame = |random: &mut Random, (from, to), body| varied(random, Frame::new(from, to, body));
    let elsewhere = random.pick(&[place.at(STRANGER, 80), place.at(STRANGER, 7000), place.at(STRANGER, 12_345)]);
    vec![
        Step::one("a packet to another host", End::Client, frame(random, to(elsewhere), Body::Udp)),
        Step::one("a packet to another host", End::Client, frame(random, to(elsewhere), Body::Tcp(2))),
        Step::one("a packet to another pod", End::Client, frame(random, to(place.at(POD, 12_345)), Body::Udp)),
        Step::one(
            "a packet to the router's outer address",
            End::Client,
            frame(random, to(place.at(SNAT, 12_345)), Body::Udp),
        ),
    ]
}
