//! Traffic from before the start until after it: translated or dropped, never let through as it is.

use std::time::Duration;

use egress_lab::address::{ROUTER, SERVER_1, SNAT, client};
use egress_lab::endpoint::Seen;
use egress_lab::udp::{PacedStream, Report, UdpClient};
use egress_lab::{Family, Options, wait_until};

use crate::rig::{Rig, Spec, TIMEOUT, at, router};

const PERIOD: Duration = Duration::from_millis(1);

#[test]
fn traffic_during_the_start_is_translated_from_some_packet_on_and_never_leaks() {
    let mut rig = Rig::prepare(&Options::default(), &Spec::new().udp(7000, SERVER_1, None), &[]);
    // As a host that forwards already: were there a moment without the programs, packets would pass in it.
    rig.router_netns().sysctl(["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]).unwrap();
    let mut streams = Vec::new();
    let mut servers = Vec::new();
    for family in Family::ALL {
        servers.push(rig.udp_server(at(SERVER_1, family, 7000)));
        // To the router, by a rule that is to come; and past it, to the server itself, which no rule ever allows.
        let gateway = ROUTER.ip(family).to_string();
        rig.client.ip(["route", "add", &SERVER_1.ip(family).to_string(), "via", &gateway]).unwrap();
        let start = |number, to| {
            let socket = UdpClient::open(&rig.client, at(client(number), family, 30_000), to).unwrap();
            PacedStream::start(socket, PERIOD).unwrap()
        };
        streams.push((family, start(0, router(family, 7000)), start(1, at(SERVER_1, family, 7000))));
    }
    rig.router.start().unwrap();
    for (family, by_rule, past_it) in streams {
        wait_until("the stream to flow", TIMEOUT, || by_rule.answered() > 200).unwrap();
        let report = by_rule.finish().unwrap();
        let first = first_answered(&report);
        assert!(report.lost.keys().all(|number| *number < first), "{family}: lost after {first}: {:?}", report.lost);
        let seen = Seen { source: at(SNAT, family, 30_000), server: at(SERVER_1, family, 7000) };
        assert_eq!(report.answered.keys().collect::<Vec<_>>(), [&seen]);
        assert_eq!(report.doubled, 0);
        assert!(past_it.finish().unwrap().answered.is_empty(), "{family}");
    }
}

/// The number of the first datagram that was answered.
fn first_answered(report: &Report) -> u64 {
    (0..report.sent).find(|number| !report.lost.contains_key(number)).unwrap()
}
