//! The flow table: full, and seen from several processors.

use std::time::Duration;

use egress_lab::address::{SERVER_1, client};
use egress_lab::udp::UdpClient;
use egress_lab::{Family, Options, wait_until};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::Value;

use crate::rig::{Rig, Spec, TIMEOUT, at, router};

fn spec() -> Spec {
    Spec::new().tcp(80, SERVER_1, 8080).udp(7000, SERVER_1, None)
}

#[test]
fn a_full_table_refuses_new_flows_and_keeps_live_ones() {
    let rig = Rig::with(&Options::default(), &spec(), &["--flows", "64"]);
    let servers = Family::ALL.map(|family| rig.tcp_server(at(SERVER_1, family, 8080)));
    let mut idle = Family::ALL.map(|family| rig.tcp(at(client(0), family, 30_000), 80).0);
    for family in Family::ALL {
        // Nobody answers, and nobody has to: each datagram asks for a flow of its own.
        for port in 20_000..22_000 {
            let socket = UdpClient::open(&rig.client, at(client(1), family, port), router(family, 7000)).unwrap();
            let _ = socket.exchange(b"a flow, please", Duration::ZERO);
        }
    }
    wait_until("the datagrams to be counted", TIMEOUT, || rig.count("cluster_ingress", "table_full") > 3000).unwrap();
    for connection in &mut idle {
        connection.exchange(b"still here").unwrap();
    }
    drop(servers);
}

#[test]
fn a_flow_is_the_same_from_every_processor() {
    let rig = Rig::start(&spec());
    let _servers = Family::ALL.map(|family| rig.udp_server(at(SERVER_1, family, 7000)));
    let all = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let processors = (0..CpuSet::count()).filter(|number| all.is_set(*number).unwrap()).collect::<Vec<_>>();
    for family in Family::ALL {
        let (socket, seen) = rig.udp(at(client(0), family, 30_000), 7000);
        // A thread of its own, which does not have to be set free again.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for processor in processors.iter().cycle().take(20) {
                    let mut one = CpuSet::new();
                    one.set(*processor).unwrap();
                    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
                    let attempt = socket.exchange(&processor.to_be_bytes(), TIMEOUT);
                    assert_eq!(attempt.result.unwrap(), seen, "{family}, from processor {processor}");
                }
            });
        });
    }
    let flows = rig.flows();
    let packets = flows.iter().map(|flow| flow.get("requestPackets").and_then(Value::as_u64).unwrap());
    assert_eq!(packets.collect::<Vec<_>>(), [21, 21], "{flows:?}");
}
