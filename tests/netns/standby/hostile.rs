//! What others do to routers that stand by: on the network, to the nodes, and to the specification.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use egress_lab::address::{SECOND_ROUTER, SNAT};
use egress_lab::inject::Injector;
use egress_lab::{Netns, wait_until};

use super::{MOVED, Pair, answers, has_net1};
use crate::healing::claim;
use crate::metrics::get;
use crate::rig::TIMEOUT;
use crate::specs::Text;

/// Another host of the external network.
const STRANGER: [u8; 6] = [2, 0, 0, 0, 0, 7];

/// Sends frames again and again, until the result of `meanwhile` is there.
fn during<T>(
    netns: &Netns,
    device: &str,
    frames: &[Vec<u8>],
    pause: Option<Duration>,
    meanwhile: impl FnOnce() -> T,
) -> T {
    let injector = Injector::open(netns, device).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for frame in frames {
                    // A full queue is no fault of the test.
                    let _ = injector.send(frame);
                }
                pause.into_iter().for_each(thread::sleep);
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meanwhile));
        over.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn who_has_the_address_in_another_vlan_of_the_same_wire_has_it_not_here() {
    let mut pair = Pair::new();
    let tagged = |mut frame: Vec<u8>| {
        frame.splice(12..12, [0x81, 0x00, 0x00, 0x05]);
        frame
    };
    let frames: Vec<_> = SNAT.both().map(|address| tagged(claim(STRANGER, address))).into();
    during(&pair.lab.outside, "s0", &frames, Some(Duration::from_millis(100)), || {
        pair.second.router.launch().unwrap();
        wait_until("it to work", TIMEOUT, || pair.second.works()).unwrap_or_else(|error| {
            panic!("{error:#}: {}\n{}", pair.second.condition("Available"), pair.second.router.stderr())
        });
    });
    let warned: Vec<_> =
        pair.second.router.stderr().lines().filter(|line| line.contains("WARN")).map(str::to_owned).collect();
    assert!(warned.is_empty(), "{warned:#?}");
    pair.assert_works(SECOND_ROUTER);
}

#[test]
fn a_flood_of_claims_does_not_take_the_agent_away_from_its_work() {
    let pair = Pair::settled();
    let frames = vec![claim(STRANGER, [192, 168, 12, 77].into()); 64];
    during(&pair.lab.outside, "s0", &frames, None, || {
        for _ in 0..20 {
            assert_eq!(get(pair.first.metrics, "/metrics").0, 200);
            assert_eq!(get(pair.second.metrics, "/metrics").0, 200);
        }
    });
    assert!(pair.first.works() && pair.second.is("Available", "False", "Standby"), "{}", pair.told());
}

#[test]
fn who_feigns_to_be_another_router_wins_no_more_than_the_time_that_he_does() {
    let pair = Pair::settled();
    let own = pair.lab.router.mac("net1").unwrap();
    let frames = SNAT.both().map(|address| claim(own, address));
    during(&pair.lab.outside, "s0", &frames, Some(Duration::from_millis(100)), || {
        wait_until("the first to give way", TIMEOUT, || !pair.first.works())
            .unwrap_or_else(|error| panic!("{error:#}\n{}", pair.told()));
    });
    pair.wait_for_one();
    pair.assert_one_stays();
}

#[test]
fn who_cannot_be_reached_by_clients_any_more_gives_way() {
    let pair = Pair::settled();
    pair.lab.router.ip(["link", "delete", "eth0"]).unwrap();
    wait_until("the second to work", TIMEOUT, || pair.second.works())
        .unwrap_or_else(|error| panic!("{error:#}\n{}", pair.told()));
    assert!(!has_net1(&pair.lab.router), "{}", pair.told());
    assert!(pair.first.condition("Available")["message"].to_string().contains("eth0"), "{}", pair.told());
    pair.assert_works(SECOND_ROUTER);
}

#[test]
fn an_interface_that_is_deleted_by_hand_leaves_one_router() {
    let pair = Pair::settled();
    for _ in 0..3 {
        let works = if pair.first.works() { &pair.lab.router } else { &pair.nodes().router };
        works.ip(["link", "delete", "net1"]).unwrap();
        wait_until("a router to have it", TIMEOUT, || has_net1(&pair.lab.router) || has_net1(&pair.nodes().router))
            .unwrap();
        pair.wait_for_one();
    }
    pair.assert_one_stays();
}

#[test]
fn an_edit_that_moves_the_router_reaches_both_at_different_times_and_leaves_one() {
    let pair = Pair::settled();
    let moved = Text::of(MOVED).yaml();
    pair.second.router.edit(&moved).unwrap();
    wait_until("the second to work", TIMEOUT, || pair.second.works())
        .unwrap_or_else(|error| panic!("{error:#}\n{}", pair.told()));
    pair.first.router.edit(&moved).unwrap();
    wait_until("the edit to be read", TIMEOUT, || pair.first.router.stderr().contains(&MOVED.v4.to_string())).unwrap();
    pair.first.wait("Available", "False", "Standby");
    pair.first.wait("Degraded", "False", "AsSpecified");
    assert!(pair.second.works() && !has_net1(&pair.lab.router), "{}", pair.told());
    assert_eq!(answers(&pair.lab), [0, 0], "for the addresses of before");
}

#[test]
fn one_that_waits_says_so_when_it_could_not_take_over() {
    let mut pair = Pair::of(&Text { master: Some("up0"), ..Text::of(SNAT) }, &[]);
    pair.first.router.start().unwrap();
    pair.second.router.launch().unwrap();
    pair.second.wait("Available", "False", "Standby");
    let (node, router) = (&pair.nodes().node, &pair.nodes().router);
    node.ip(["link", "set", "up0", "name", "renamed0"]).unwrap();
    pair.second.wait("Available", "False", "MasterMissing");
    node.ip(["link", "set", "renamed0", "name", "up0"]).unwrap();
    pair.second.wait("Available", "False", "Standby");
    router.ip(["link", "set", "eth0", "name", "renamed0"]).unwrap();
    wait_until("the missing interface to be named", TIMEOUT, || {
        pair.second.condition("Available")["message"].to_string().contains("eth0")
    })
    .unwrap_or_else(|error| panic!("{error:#}: {}", pair.second.condition("Available")));
    router.ip(["link", "set", "renamed0", "name", "eth0"]).unwrap();
    pair.second.wait("Available", "False", "Standby");
    pair.second.wait("Degraded", "False", "AsSpecified");
}

#[test]
fn an_agent_that_cannot_begin_with_what_an_earlier_one_left_gives_it_up() {
    let mut pair = Pair::settled();
    pair.first.router.kill().unwrap();
    // What an edit wants that came meanwhile cannot be had: its addresses are probed for, and the link is down.
    let more = Text { addresses: vec![(SNAT, None), (MOVED, None)], ..Text::of(SNAT) };
    pair.first.router.edit(&more.yaml()).unwrap();
    pair.lab.node.ip(["link", "set", "up0", "down"]).unwrap();
    wait_until("the second to work", TIMEOUT, || pair.second.works()).unwrap();
    pair.first.router.launch().unwrap();
    pair.first.wait("Available", "False", "MasterDown");
    assert!(!has_net1(&pair.lab.router), "it kept what it cannot answer for");
}
