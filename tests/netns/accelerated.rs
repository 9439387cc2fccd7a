//! XDP programs before the tc ones, and an external interface that was there before.

use egress_lab::address::{SERVER_1, SNAT, client};
use egress_lab::detector::Detector;
use egress_lab::topology::{CLUSTER_INTERFACE, EXTERNAL_INTERFACE, OUTSIDE_INTERFACE, set_offload};
use egress_lab::{Family, Options, tcp, wait_until};

use crate::live::Live;
use crate::rig::{Rig, Spec, TIMEOUT, at, router};

/// A rule with another port and one with the same, to a server.
fn spec() -> Spec {
    Spec::new().tcp(80, SERVER_1, 8080).udp(7000, SERVER_1, None)
}

/// A router in front of which both links' far ends take frames that XDP programs redirect to them.
fn rig(offloads: bool, hook: &str) -> Rig {
    let rig = Rig::given(&Options { offloads, ..Options::default() }, &spec(), &["--hook", hook]);
    set_offload(&rig.client, "c0", "gro", true).unwrap();
    set_offload(&rig.outside, OUTSIDE_INTERFACE, "gro", true).unwrap();
    rig
}

/// Ids of the XDP programs on both of the router's interfaces.
fn programs(rig: &Rig) -> Vec<String> {
    let of = |interface| {
        let link = rig.router_netns().ip(["-d", "link", "show", interface]).unwrap();
        let (_, rest) = link.split_once("prog/xdp id ")?;
        rest.split_whitespace().next().map(str::to_owned)
    };
    [CLUSTER_INTERFACE, EXTERNAL_INTERFACE].into_iter().filter_map(of).collect()
}

/// How many packets the XDP programs took, requests and replies.
fn taken(rig: &Rig) -> [u64; 2] {
    ["cluster_ingress", "external_ingress"].map(|program| rig.count(program, "accelerated"))
}

#[test]
fn packets_of_established_flows_go_by_xdp() {
    let mut rig = rig(false, "xdp");
    rig.router.start().unwrap();
    assert_eq!(programs(&rig).len(), 2);
    let status = rig.router.report("status").unwrap();
    let named = status["programs"].as_array().unwrap().iter().filter(|program| program["attached"] == "xdp");
    assert_eq!(named.count(), 2, "{status}");
    for family in Family::ALL {
        let _tcp = rig.tcp_server(at(SERVER_1, family, 8080));
        let _udp = rig.udp_server(at(SERVER_1, family, 7000));
        let before = taken(&rig);
        let from = at(client(0), family, 0);
        let (mut connection, seen) = rig.tcp(from, 80);
        let (datagrams, _) = rig.udp(from, 7000);
        assert_eq!(seen.source.ip(), SNAT.ip(family));
        let mut exchanges = 1;
        // For a moment after the start, which changes the network, packets look their next hop up and go by tc.
        wait_until("packets to go by XDP", TIMEOUT, || {
            connection.exchange(b"again").unwrap();
            datagrams.exchange(b"again", TIMEOUT).result.unwrap();
            exchanges += 1;
            taken(&rig).iter().zip(before).all(|(after, before)| *after >= before + 50)
        })
        .unwrap();
        // Whichever program each packet went by, the flow has counted it.
        let local = datagrams.local().unwrap().to_string();
        let flow = rig.flows().into_iter().find(|flow| flow["client"] == local.as_str()).unwrap();
        assert_eq!([&flow["requestPackets"], &flow["replyPackets"]], [exchanges, exchanges], "{flow}");
    }
}

#[test]
fn streams_arrive_whole_by_xdp() {
    let mut rig = rig(false, "xdp");
    // What GRO has put together has the checksum of no packet; each one's was checked before.
    rig.detector = Detector::watch(&rig.outside, OUTSIDE_INTERFACE, SNAT.both(), false).unwrap();
    rig.router.start().unwrap();
    for family in Family::ALL {
        let _tcp = rig.tcp_server(at(SERVER_1, family, 8080));
        let before = taken(&rig);
        let from = at(client(0), family, 0);
        let sent = tcp::bulk(&rig.client, from, router(family, 80), 8 << 20, TIMEOUT).result.unwrap();
        assert!(sent.is_intact(), "{sent:?}");
        assert!(taken(&rig).iter().zip(before).all(|(after, before)| *after > before + 100), "{family}");
    }
}

#[test]
fn packets_whose_checksum_a_device_is_to_finish_go_by_tc_and_arrive() {
    let mut rig = rig(true, "xdp");
    rig.router.start().unwrap();
    for family in Family::ALL {
        let _tcp = rig.tcp_server(at(SERVER_1, family, 8080));
        let _udp = rig.udp_server(at(SERVER_1, family, 7000));
        let from = at(client(0), family, 0);
        let (mut connection, _) = rig.tcp(from, 80);
        let (datagrams, _) = rig.udp(from, 7000);
        for number in 0..50_u32 {
            connection.exchange(&number.to_be_bytes()).unwrap();
            datagrams.exchange(&number.to_be_bytes(), TIMEOUT).result.unwrap();
        }
        let sent = tcp::bulk(&rig.client, from, router(family, 80), 1 << 20, TIMEOUT).result.unwrap();
        assert!(sent.is_intact(), "{sent:?}");
    }
    assert!(rig.count("cluster_ingress", "request_redirected") >= 100);
}

#[test]
fn a_device_that_is_not_for_xdp_is_refused_with_the_reason() {
    let said = |rig: &Rig| {
        let refusal = rig.router.apply().unwrap_err();
        format!("{refusal:#}")
    };
    // A macvlan has no native programs.
    let rig = Rig::prepare(&Options::default(), &spec(), &["--hook", "xdp"]);
    set_offload(&rig.client, "c0", "gro", true).unwrap();
    let before = rig.configuration().unwrap();
    let text = said(&rig);
    assert!(text.contains("net1 is not for XDP: a macvlan"), "{text}");
    assert_eq!(rig.configuration().unwrap(), before);

    // A veth whose other end would drop what is redirected to it.
    let rig = self::rig(true, "xdp");
    set_offload(&rig.client, "c0", "gro", false).unwrap();
    let before = rig.configuration().unwrap();
    let text = said(&rig);
    assert!(text.contains("eth0 is not for XDP: its other end") && text.contains("gro on"), "{text}");
    assert_eq!(rig.configuration().unwrap(), before);
    assert!(programs(&rig).is_empty());
}

#[test]
fn large_frames_do_not_keep_xdp_off() {
    // Between links of different sizes, what does not fit the other one is the kernel's to answer or to cut.
    for uplink_mtu in [9000, 1500] {
        let options = Options { offloads: false, cluster_mtu: 9000, uplink_mtu, ..Options::default() };
        let mut rig = Rig::given(&options, &spec(), &["--hook", "xdp"]);
        rig.detector = Detector::watch(&rig.outside, OUTSIDE_INTERFACE, SNAT.both(), false).unwrap();
        set_offload(&rig.client, "c0", "gro", true).unwrap();
        set_offload(&rig.outside, OUTSIDE_INTERFACE, "gro", true).unwrap();
        rig.router.start().unwrap();
        assert_eq!(programs(&rig).len(), 2);
        for family in Family::ALL {
            let _tcp = rig.tcp_server(at(SERVER_1, family, 8080));
            let before = taken(&rig);
            let from = at(client(0), family, 0);
            let sent = tcp::bulk(&rig.client, from, router(family, 80), 8 << 20, TIMEOUT).result.unwrap();
            assert!(sent.is_intact(), "{sent:?}");
            assert!(taken(&rig).iter().zip(before).all(|(after, before)| *after > before), "{family}");
        }
    }
}

#[test]
fn by_default_there_is_no_xdp_on_a_veth() {
    let rig = rig(true, "auto");
    rig.router.apply().unwrap();
    assert!(programs(&rig).is_empty());
    for family in Family::ALL {
        let _tcp = rig.tcp_server(at(SERVER_1, family, 8080));
        assert_eq!(rig.tcp(at(client(0), family, 0), 80).1.source.ip(), SNAT.ip(family));
    }
}

#[test]
fn an_adopted_interface_stays_and_is_as_it_was() {
    let rig = rig(true, "xdp");
    // The kernel gives an interface its queue when it is first set up.
    for state in ["up", "down"] {
        rig.router_netns().ip(["link", "set", EXTERNAL_INTERFACE, state]).unwrap();
    }
    let before = rig.configuration().unwrap();
    rig.router.apply().unwrap();
    assert!(rig.router.plan().unwrap().contains("nothing to change"));
    rig.router.delete().unwrap();
    // The kernel takes them off a moment after their last reference has gone.
    wait_until("the programs to be gone", TIMEOUT, || programs(&rig).is_empty()).unwrap();
    // It stays up, too.
    rig.router_netns().ip(["link", "set", EXTERNAL_INTERFACE, "down"]).unwrap();
    assert_eq!(rig.configuration().unwrap(), before);
}

#[test]
fn without_an_interface_to_adopt_there_is_an_error_that_names_it() {
    let rig = Rig::prepare(&Options::default(), &spec(), &[]);
    let Rig { router, .. } = &rig;
    let mut command = router.reader("apply");
    let output = command.arg("--adopt").arg("--spec").arg(router.spec()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("no interface net1"), "{said}");
}

#[test]
fn xdp_comes_and_goes_under_live_flows_without_a_loss() {
    let mut rig = rig(false, "xdp");
    rig.router.start().unwrap();
    let mut servers = Vec::new();
    for family in Family::ALL {
        servers.push((rig.tcp_server(at(SERVER_1, family, 8080)), rig.udp_server(at(SERVER_1, family, 7000))));
    }
    let live = Live::start(&rig);
    let attached = programs(&rig);
    for _ in 0..3 {
        // The agent that comes adopts what is there.
        rig.router.kill().unwrap();
        live.wait();
        rig.router.start().unwrap();
        assert_eq!(programs(&rig), attached);
        live.wait();
    }
    live.finish();
}

#[test]
fn programs_that_were_taken_off_are_put_back() {
    let mut rig = rig(false, "xdp");
    rig.router.start().unwrap();
    let pin = rig.router.pin("link_xdp_request").unwrap();
    std::fs::remove_file(&pin).unwrap();
    wait_until("the program to be back", TIMEOUT, || pin.exists() && programs(&rig).len() == 2).unwrap();
}
