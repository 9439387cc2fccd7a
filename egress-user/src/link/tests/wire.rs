//! What the external network hears, and what it answers.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::unistd::read;

use super::lab::*;
use crate::compile::{LinkPlan, MacvlanMode};
use crate::link::frame::{ETH_ARP, ETH_IPV6};
use crate::link::sys::packet_socket;
use crate::link::{Conflict, LinkError, Mac, Place, announce, announce_rounds, delete, observe, plan, prepare};

const OURS: [&str; 2] = ["192.168.12.99", "2001:db8:12::99"];

/// Frames that came in at the outside's interface.
struct Capture {
    sockets: [std::os::fd::OwnedFd; 2],
}

impl Capture {
    fn start(lab: &Lab) -> Self {
        let index = crate::link::snapshot(&lab.outside.netns, &[], None).unwrap().interface("s0").unwrap().index;
        let sockets = lab.outside.netns.run(|| [ETH_ARP, ETH_IPV6].map(|kind| packet_socket(index, kind).unwrap()));
        Self { sockets: sockets.unwrap() }
    }

    /// Waits until as many frames of `from` have come as are expected of those that `wanted` picks.
    fn frames(&self, count: usize, wanted: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut frames = Vec::new();
        while frames.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} frames: {frames:02x?}", frames.len());
            for socket in &self.sockets {
                let mut frame = vec![0; 2048];
                match read(socket, &mut frame) {
                    Ok(length) => {
                        frame.truncate(length);
                        if wanted(&frame) {
                            frames.push(frame);
                        }
                    }
                    Err(_empty) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        }
        frames
    }
}

fn is_arp(frame: &[u8]) -> bool {
    frame[12..14] == [0x08, 0x06]
}

fn is_advertisement(frame: &[u8]) -> bool {
    frame[12..14] == [0x86, 0xdd] && frame[20] == 58 && frame[54] == 136
}

#[test]
fn announcements_arrive_in_every_form_three_times() {
    let lab = Lab::new();
    let mac = lab.apply(&dual_stack()).unwrap().mac;
    let capture = Capture::start(&lab);
    let addresses: Vec<IpAddr> = OURS.map(|address| address.parse().unwrap()).to_vec();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let started = Instant::now();
    runtime.block_on(announce_rounds(lab.router.netns.clone(), "net1".to_owned(), addresses)).unwrap();
    assert!((2000..3000).contains(&started.elapsed().as_millis()), "a second apart: {:?}", started.elapsed());

    let ours = [192, 168, 12, 99];
    let gratuitous = |frame: &[u8]| is_arp(frame) && frame[28..32] == ours && frame[38..42] == ours;
    let mut arp = capture.frames(6, gratuitous);
    arp.sort();
    for (index, frame) in arp.iter().enumerate() {
        assert_eq!(frame[..6], [0xff; 6], "to everybody");
        assert_eq!(frame[6..12], mac.0);
        assert_eq!(frame[22..28], mac.0);
        assert_eq!(frame[20..22], if index < 3 { [0, 1] } else { [0, 2] }, "three requests, three replies");
    }
    let capture = Capture::start(&lab);
    announce(&lab.router.netns, "net1", &[OURS[1].parse().unwrap()]).unwrap();
    for frame in capture.frames(1, is_advertisement) {
        let all_nodes: std::net::Ipv6Addr = "ff02::1".parse().unwrap();
        let own: std::net::Ipv6Addr = OURS[1].parse().unwrap();
        assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(frame[21], 255, "hop limit");
        assert_eq!((&frame[22..38], &frame[38..54]), (&own.octets()[..], &all_nodes.octets()[..]));
        assert_eq!(frame[58] & 0xe0, 0x20, "override; not solicited, no router");
        assert_eq!(frame[62..78], own.octets());
        assert_eq!(frame[78..86], [&[2, 1][..], &mac.0].concat());
    }
}

#[test]
fn neighbours_learn_the_new_mac_from_an_announcement() {
    let lab = Lab::new();
    // A neighbour that was learned a moment ago is not changed within this time: one reason for three rounds.
    lab.outside.set_sysctl("net/ipv4/neigh/s0/locktime", "0");
    lab.outside.ip("neighbour replace 192.168.12.99 lladdr 02:00:00:00:00:66 dev s0 nud stale");
    lab.outside.ip("-6 neighbour replace 2001:db8:12::99 lladdr 02:00:00:00:00:66 dev s0 nud stale");
    let mac = lab.apply(&dual_stack()).unwrap().mac;
    announce(&lab.router.netns, "net1", &OURS.map(|address| address.parse().unwrap())).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    for address in OURS {
        while !lab.outside.ip(&format!("neighbour show {address}")).contains(&mac.to_string()) {
            assert!(Instant::now() < deadline, "{}", lab.outside.ip("neighbour show"));
        }
    }
}

#[test]
fn only_the_owner_announces() {
    let lab = Lab::new();
    lab.apply(&dual_stack()).unwrap();
    let stranger: IpAddr = "192.168.12.98".parse().unwrap();
    let error = announce(&lab.router.netns, "net1", &[OURS[0].parse().unwrap(), stranger]).unwrap_err();
    assert!(matches!(error, LinkError::NotHeld { address, .. } if address == stranger), "{error:?}");
}

#[track_caller]
fn conflicts(error: LinkError) -> Vec<Conflict> {
    match error {
        LinkError::Apply { source, not_undone, .. } if not_undone.is_empty() => match *source {
            LinkError::Conflict(conflicts) => conflicts,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_address_in_use_is_refused_with_its_holders_mac_until_it_is_free() {
    for (index, net) in ["192.168.12.99/24", "2001:db8:12::99/64"].into_iter().enumerate() {
        let lab = Lab::new();
        lab.outside.ip(&format!("address add {net} dev s0{}", if index == 1 { " nodad" } else { "" }));
        let before = lab.state();
        let holder = Mac::try_from(OUTSIDE_MAC.to_owned()).unwrap();
        let error = lab.apply(&dual_stack()).unwrap_err();
        assert!(!lab.record().exists());
        assert_eq!(conflicts(error), [Conflict { address: OURS[index].parse().unwrap(), holder }]);
        assert_same(&lab.state(), &before, "after the conflict");
        lab.outside.ip(&format!("address delete {net} dev s0"));
        lab.apply(&dual_stack()).unwrap();
    }
}

#[test]
fn two_routers_with_one_address_the_second_waits_for_the_first_to_go() {
    let (first, second) = (Lab::new(), Lab::new());
    let name = crate::compile::RouterName { namespace: "egress".to_owned(), name: "second".to_owned() };
    let place = Place { master: first.host.netns.clone(), ..second.place() };
    let first_mac = first.apply(&dual_stack()).unwrap().mac;
    let apply_second = || {
        let plan = plan(&place, &name, &dual_stack(), &[]).unwrap();
        let mut applied = prepare(&place, plan, &second.record()).unwrap();
        let claimed = applied.claim();
        if claimed.is_err() {
            applied.undo().unwrap();
        }
        claimed
    };
    let holders: Vec<Mac> = conflicts(apply_second().unwrap_err()).iter().map(|conflict| conflict.holder).collect();
    assert_eq!(holders, [first_mac, first_mac]);
    delete(&first.place(), &first.record()).unwrap();
    apply_second().unwrap();
    let second_mac = observe(&place).unwrap().external.unwrap().mac.unwrap();
    assert_ne!(second_mac, first_mac);
    assert!(first.outside.reaches(&second.router, None, OURS[0]));
    assert_eq!(second_mac, plan(&place, &name, &dual_stack(), &[]).unwrap().mac);
}

#[test]
fn addresses_are_usable_at_once() {
    let lab = Lab::new();
    // With duplicate detection on, as everywhere but in this lab.
    lab.router.set_sysctl("net/ipv6/conf/default/accept_dad", "1");
    lab.apply(&LinkPlan { mode: MacvlanMode::Bridge, ..dual_stack() }).unwrap();
    let external = observe(&lab.place()).unwrap().external.unwrap();
    for address in OURS {
        let held = external.address(address.parse().unwrap()).unwrap();
        assert!(!held.tentative && !held.duplicate, "{held:?}");
    }
}

#[test]
fn nobody_outside_gets_an_answer_for_the_cluster_address() {
    let lab = Lab::new();
    lab.router.set_sysctl("net/ipv4/conf/all/proxy_arp", "1");
    lab.apply(&dual_stack()).unwrap();
    lab.outside.ip("route add 10.128.0.0/24 dev s0");
    for target in ["10.128.0.2", "10.128.0.1"] {
        let from: IpAddr = OUTSIDE[0].parse().unwrap();
        let socket = lab.outside.netns.run(|| std::net::UdpSocket::bind((from, 0))).unwrap().unwrap();
        socket.send_to(b"ask", (target, 9)).unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    for target in ["10.128.0.2", "10.128.0.1"] {
        loop {
            let neighbour = lab.outside.ip(&format!("neighbour show {target}"));
            assert!(!neighbour.contains("lladdr"), "{target} was answered: {neighbour}");
            if neighbour.contains("FAILED") {
                break;
            }
            assert!(Instant::now() < deadline, "{neighbour}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
