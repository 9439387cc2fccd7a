//! What goes wrong around a router: told in its status within a second, and put right as soon as it can be.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use egress_lab::address::{GATEWAY, ROUTER, SERVER_1, SERVER_2, SNAT, client};
use egress_lab::inject::Injector;
use egress_lab::{Family, Options, bpf, wait_until};
use etherparse::{Icmpv6Type, PacketBuilder};
use serde_json::Value;
use tempfile::TempDir;

use crate::live::{Live, LiveUdp};
use crate::rig::{Rig, Spec, TIMEOUT, anyone, at};
use crate::system::{command, run};

/// For what is told or mended at once, on a busy machine. What is polled for takes longer.
const AT_ONCE: Duration = Duration::from_secs(2);

struct Watched {
    rig: Rig,
    _files: TempDir,
    status: PathBuf,
}

impl Watched {
    fn start() -> Self {
        let files = tempfile::tempdir().unwrap();
        let status = files.path().join("status.json");
        let spec = Spec::new().udp(7000, SERVER_1, None);
        let rig = Rig::with(&Options::default(), &spec, &["--status-file", status.to_str().unwrap()]);
        Self { rig, _files: files, status }
    }

    /// One condition of the status file.
    fn condition(&self, kind: &str) -> Value {
        let status: Value = serde_json::from_str(&fs::read_to_string(&self.status).unwrap()).unwrap();
        status["conditions"].as_array().unwrap().iter().find(|one| one["type"] == kind).unwrap().clone()
    }

    fn is(&self, kind: &str, status: &str, reason: &str) -> bool {
        let condition = self.condition(kind);
        condition["status"] == status && condition["reason"] == reason
    }

    fn wait(&self, within: Duration, kind: &str, status: &str, reason: &str) -> Duration {
        let started = Instant::now();
        wait_until(&format!("{kind} to be {status}, {reason}"), within, || self.is(kind, status, reason))
            .unwrap_or_else(|error| panic!("{error:#}: {}\n{}", self.condition(kind), self.rig.router.stderr()));
        started.elapsed()
    }

    fn assert_well(&self) {
        for (kind, status, reason) in [
            ("Available", "True", "Translating"),
            ("Progressing", "False", "Settled"),
            ("Degraded", "False", "AsSpecified"),
        ] {
            self.wait(TIMEOUT, kind, status, reason);
        }
        for family in Family::ALL {
            let _server = self.rig.udp_server(at(SERVER_1, family, 7000));
            self.rig.udp(anyone(family), 7000);
        }
    }
}

#[test]
fn a_router_that_is_well_says_so_and_since_when() {
    let watched = Watched::start();
    watched.assert_well();
    let before = fs::read_to_string(&watched.status).unwrap();
    let reported = watched.rig.router.report("status").unwrap();
    let file: Value = serde_json::from_str(&before).unwrap();
    assert_eq!(reported["conditions"], file["conditions"]);
    assert_eq!(reported["agent"], watched.rig.router.pid().unwrap());
    let message = watched.condition("Available")["message"].as_str().unwrap().to_owned();
    assert_eq!(message, "2 rules and no fallback in force, from 192.168.12.99, fd00:12::99");
    assert!(watched.rig.router.show("status").unwrap().starts_with("| CONDITION "));
    // Two sweeps later nothing is said anew.
    let started = Instant::now();
    wait_until("two sweeps to pass", TIMEOUT, || started.elapsed() > Duration::from_secs(11)).unwrap();
    assert_eq!(fs::read_to_string(&watched.status).unwrap(), before);
}

#[test]
fn a_restart_of_the_agent_is_no_transition() {
    let mut watched = Watched::start();
    watched.assert_well();
    let (before, started) = (fs::read_to_string(&watched.status).unwrap(), Instant::now());
    // Times are told to the second.
    wait_until("the next second", TIMEOUT, || started.elapsed() > Duration::from_millis(1100)).unwrap();
    for kill in [true, false] {
        let router = &mut watched.rig.router;
        if kill { router.kill() } else { router.terminate() }.unwrap();
        router.start().unwrap();
        watched.assert_well();
        assert_eq!(fs::read_to_string(&watched.status).unwrap(), before);
    }
    // What has changed meanwhile is told as before.
    watched.rig.router.kill().unwrap();
    watched.rig.router.delete().unwrap();
    watched.rig.router.start().unwrap();
    watched.assert_well();
    assert_ne!(fs::read_to_string(&watched.status).unwrap(), before, "it was away");
    watched.rig.router.kill().unwrap();
    watched.rig.node.ip(["link", "set", "up0", "down"]).unwrap();
    watched.rig.router.start().unwrap();
    watched.wait(TIMEOUT, "Available", "False", "MasterDown");
}

#[test]
fn a_master_that_goes_down_is_told_at_once_and_what_it_took_is_put_back() {
    let watched = Watched::start();
    watched.assert_well();
    let since = watched.condition("Available")["lastTransitionTime"].clone();
    watched.rig.node.sysctl(["net.ipv6.conf.up0.keep_addr_on_down=1"]).unwrap();
    watched.rig.node.ip(["link", "set", "up0", "down"]).unwrap();
    let took = watched.wait(AT_ONCE, "Available", "False", "MasterDown");
    eprintln!("master down told after {took:?}");
    // Transitions are told to the second.
    let down = Instant::now();
    wait_until("the next second", TIMEOUT, || down.elapsed() > Duration::from_millis(1100)).unwrap();
    watched.rig.node.ip(["link", "set", "up0", "up"]).unwrap();
    watched.assert_well();
    assert_ne!(watched.condition("Available")["lastTransitionTime"], since);
}

#[test]
fn a_cluster_interface_that_is_deleted_is_told_and_served_when_it_is_made_again() {
    let watched = Watched::start();
    watched.assert_well();
    let lab: &egress_lab::Lab = &watched.rig;
    for _ in 0..2 {
        lab.router.ip(["link", "delete", "eth0"]).unwrap();
        watched.wait(AT_ONCE, "Available", "False", "InterfaceMissing");
        lab.router
            .ip(["link", "add", "eth0", "type", "veth", "peer", "name", "c0", "netns", lab.client.name()])
            .unwrap();
        for (netns, device, hosts) in
            [(&lab.client, "c0", vec![client(0), client(1)]), (&lab.router, "eth0", vec![ROUTER])]
        {
            for host in hosts {
                netns.ip(["address", "add", &format!("{}/24", host.v4), "dev", device]).unwrap();
                netns.ip(["address", "add", &format!("{}/64", host.v6), "dev", device, "nodad"]).unwrap();
            }
            netns.ip(["link", "set", device, "up"]).unwrap();
        }
        watched.assert_well();
    }
}

#[test]
fn a_gateway_that_does_not_answer_is_named() {
    let watched = Watched::start();
    watched.assert_well();
    let outside = &watched.rig.outside;
    outside.ip(["link", "set", "s0", "arp", "off"]).unwrap();
    // Else the kernel believes what it knew for half a minute.
    watched.rig.router_netns().ip(["neighbour", "flush", "dev", "net1"]).unwrap();
    watched.wait(TIMEOUT, "Degraded", "True", "GatewayUnreachable");
    let message = watched.condition("Degraded")["message"].as_str().unwrap().to_owned();
    assert!(message.contains(&format!("gateway {} does not answer ARP on net1", GATEWAY.v4)), "{message}");
    outside.ip(["link", "set", "s0", "arp", "on"]).unwrap();
    watched.assert_well();
}

#[test]
fn what_somebody_takes_away_is_put_back_at_once() {
    let watched = Watched::start();
    watched.assert_well();
    let netns = watched.rig.router_netns();
    let configuration = || watched.rig.configuration().unwrap();
    let before = configuration();
    let faults = [
        "address delete 192.168.12.99/24 dev net1",
        "address delete fd00:12::99/64 dev net1",
        "route flush table 25959",
        "-6 route flush table 25959",
        "rule delete from 192.168.12.99",
        "-6 rule delete iif eth0",
        "link set net1 down",
    ];
    for fault in faults {
        netns.ip(fault.split(' ')).unwrap();
        // With three probes for an address before it is claimed.
        let started = Instant::now();
        wait_until(&format!("the agent to mend: {fault}"), Duration::from_secs(6), || configuration() == before)
            .unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", configuration(), watched.rig.router.stderr()));
        eprintln!("{fault}: mended after {:?}", started.elapsed());
    }
    netns.ip(["link", "delete", "net1"]).unwrap();
    let planned = || run(&mut command(&watched.rig.router, "plan")).stdout;
    wait_until("the interface to be made again", Duration::from_secs(6), || planned().contains("nothing to change"))
        .unwrap();
    netns.sysctl(["net.ipv4.conf.eth0.forwarding=0"]).unwrap();
    wait_until("forwarding to be on again", AT_ONCE, || {
        netns.run(|| fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/forwarding").unwrap().trim() == "1")
    })
    .unwrap();
    watched.assert_well();
}

const PROGRAMS: [&str; 4] = ["cluster_ingress", "cluster_egress", "external_ingress", "external_egress"];

#[test]
fn a_detached_program_is_attached_again() {
    let watched = Watched::start();
    for name in PROGRAMS {
        let repairs = || watched.rig.router.stderr().matches("had drifted and was put right").count();
        let before = repairs();
        bpf::detach(&watched.rig.router.pin(&format!("link_{name}")).unwrap()).unwrap();
        wait_until("the program to be attached again", TIMEOUT, || repairs() > before).unwrap();
        assert!(run(&mut command(&watched.rig.router, "plan")).stdout.contains("nothing to change"));
        watched.assert_well();
    }
}

#[test]
fn a_link_whose_pin_is_taken_away_stays_attached_and_is_pinned_again() {
    let spec = || Spec::new().tcp(80, SERVER_1, 8080).udp(7000, SERVER_1, None);
    let rig = Rig::start(&spec());
    let _servers = Family::ALL
        .map(|family| (rig.tcp_server(at(SERVER_1, family, 8080)), rig.udp_server(at(SERVER_1, family, 7000))));
    let live = Live::start(&rig);
    for (round, name) in PROGRAMS.iter().cycle().take(24).enumerate() {
        // Beside an edit, for which every link is looked at: at any moment of that.
        let other = if round % 2 == 0 { SERVER_1 } else { SERVER_2 };
        rig.router.edit(&spec().tcp(90, other, 8080).yaml()).unwrap();
        std::thread::sleep(Duration::from_millis(50 + 7 * u64::try_from(round).unwrap()));
        let name = format!("link_{name}");
        fs::remove_file(rig.router.pin(&name).unwrap()).unwrap();
        for family in Family::ALL {
            rig.tcp(at(client(1), family, 0), 80);
        }
        wait_until("the link to be pinned again", TIMEOUT, || rig.router.pin(&name).is_ok()).unwrap();
        live.wait();
    }
    live.finish();
}

#[test]
fn a_datapath_whose_pins_are_all_taken_away_goes_on_with_its_flows() {
    let rig = Rig::start(&Spec::new().tcp(80, SERVER_1, 8080).udp(7000, SERVER_1, None));
    let _servers = Family::ALL
        .map(|family| (rig.tcp_server(at(SERVER_1, family, 8080)), rig.udp_server(at(SERVER_1, family, 7000))));
    let live = Live::start(&rig);
    for _ in 0..3 {
        live.wait();
        fs::remove_dir_all(rig.router.bpffs()).unwrap();
        wait_until("the datapath to be pinned again", TIMEOUT, || rig.router.report("flows").is_ok()).unwrap();
        live.wait();
    }
    live.finish();
}

#[test]
fn packets_pass_while_the_bpf_file_system_is_unmounted_under_the_agent() {
    let mut rig = Rig::prepare(&Options::default(), &Spec::new().udp(7000, SERVER_1, None), &[]);
    // With a BPF file system of its own, which nobody else has mounted.
    rig.router.run_through("exec unshare --mount sh -c 'mount -t bpf bpf /sys/fs/bpf && exec \"$@\"' sh \"$@\"");
    rig.router.start().unwrap();
    let _servers = Family::ALL.map(|family| rig.udp_server(at(SERVER_1, family, 7000)));
    let udp = Family::ALL.map(|family| LiveUdp::start(&rig, family, 7000));
    let pid = rig.router.pid().unwrap().to_string();
    run(Command::new("nsenter").args(["-t", &pid, "-m", "umount", "--lazy", "/sys/fs/bpf"])).assert_done();
    let since = Instant::now();
    wait_until("a few repairs", TIMEOUT, || since.elapsed() > Duration::from_secs(4)).unwrap();
    for family in Family::ALL {
        rig.udp(at(client(1), family, 0), 7000);
    }
    udp.iter().for_each(LiveUdp::wait);
    for live in udp {
        live.finish();
    }
    assert!(rig.router.stderr().contains("the system ha"), "it did not notice: {}", rig.router.stderr());
}

/// "This address is at my MAC", from another host: an ARP request for its own address, or a neighbour advertisement.
pub(crate) fn claim(holder: [u8; 6], address: IpAddr) -> Vec<u8> {
    let mut frame = Vec::new();
    match address {
        IpAddr::V4(ip) => {
            frame.extend([0xff; 6]);
            frame.extend(holder);
            frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
            frame.extend(holder);
            frame.extend(ip.octets());
            frame.extend([0; 6]);
            frame.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            let all_nodes = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
            let mut payload = vec![0x20, 0, 0, 0];
            payload.extend(ip.octets());
            payload.extend([2, 1]);
            payload.extend(holder);
            let message = Icmpv6Type::Unknown { type_u8: 136, code_u8: 0, bytes5to8: payload[..4].try_into().unwrap() };
            PacketBuilder::ethernet2(holder, [0x33, 0x33, 0, 0, 0, 1])
                .ipv6(ip.octets(), all_nodes, 255)
                .icmpv6(message)
                .write(&mut frame, &payload[4..])
                .unwrap();
        }
    }
    frame
}

#[test]
fn another_holder_of_an_address_is_told_and_the_address_defended() {
    let watched = Watched::start();
    watched.assert_well();
    let holder = [2, 0, 0, 0, 0, 7];
    let injector = Injector::open(&watched.rig.outside, "s0").unwrap();
    for address in SNAT.both() {
        injector.send(&claim(holder, address)).unwrap();
        watched.wait(AT_ONCE, "Degraded", "True", "AddressConflict");
        let text = format!("address {address} is in use by 02:00:00:00:00:07 on the external network");
        wait_until("the address to be told", AT_ONCE, || {
            watched.condition("Degraded")["message"].as_str().is_some_and(|message| message.contains(&text))
        })
        .unwrap_or_else(|error| panic!("{error:#}: {}", watched.condition("Degraded")));
        assert_eq!(watched.condition("Available")["status"], "True");
    }
    // Who believed the other one is told better.
    let own = watched.rig.router_netns().mac("net1").unwrap().map(|octet| format!("{octet:02x}")).join(":");
    for address in SNAT.both() {
        wait_until("the outside to know the holder again", TIMEOUT, || {
            watched.rig.outside.ip(["neighbour", "show", "to", &address.to_string()]).unwrap().contains(&own)
        })
        .unwrap();
    }
    // Not heard for a while, it is forgotten.
    wait_until("the conflict to be over", Duration::from_secs(60), || watched.is("Degraded", "False", "AsSpecified"))
        .unwrap();
}

/// "Who has this address?", from a host that has none yet: an ARP probe, or the solicitation of duplicate address detection.
fn question(asker: [u8; 6], address: IpAddr) -> Vec<u8> {
    let mut frame = Vec::new();
    match address {
        IpAddr::V4(ip) => {
            frame.extend([0xff; 6]);
            frame.extend(asker);
            frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
            frame.extend(asker);
            frame.extend([0; 10]);
            frame.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            let [.., x, y, z] = ip.octets();
            let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z];
            PacketBuilder::ethernet2(asker, [0x33, 0x33, 0xff, x, y, z])
                .ipv6([0; 16], group, 255)
                .icmpv6(Icmpv6Type::Unknown { type_u8: 135, code_u8: 0, bytes5to8: [0; 4] })
                .write(&mut frame, &ip.octets())
                .unwrap();
        }
    }
    frame
}

// RFC 5227, 2.4: a conflict is a packet whose sender has the address.
#[test]
fn who_only_asks_for_an_address_is_no_other_holder() {
    let watched = Watched::start();
    watched.assert_well();
    let (asker, holder) = ([2, 0, 0, 0, 0, 8], [2, 0, 0, 0, 0, 7]);
    let injector = Injector::open(&watched.rig.outside, "s0").unwrap();
    for address in SNAT.both() {
        injector.send(&question(asker, address)).unwrap();
        // What comes later in the same queue has been heard, so the question was.
        injector.send(&claim(holder, address)).unwrap();
        wait_until("the claim to be told", TIMEOUT, || {
            let message = watched.condition("Degraded")["message"].to_string();
            message.contains(&format!("{address} is in use by 02:00:00:00:00:07"))
        })
        .unwrap();
    }
    assert!(!watched.rig.router.stderr().contains("02:00:00:00:00:08"), "{}", watched.rig.router.stderr());
}
