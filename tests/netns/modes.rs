//! The macvlan: its master, mode, MTU and address are those of the specification.

use egress_lab::address::{GATEWAY, SERVER_1, SNAT, second_external};
use egress_lab::router::Router;
use egress_lab::{Lab, Options};
use serde_json::Value;

use crate::specs::{Text, assert_works};
use crate::system::{System, apply, assert_same, delete};

/// The external interface as the kernel shows it.
fn net1(lab: &Lab) -> Value {
    let shown: Value = serde_json::from_str(&lab.router.ip(["-d", "-j", "link", "show", "net1"]).unwrap()).unwrap();
    shown[0].clone()
}

/// Number and address of an interface of the node.
fn node_link(lab: &Lab, name: &str) -> (Value, Value) {
    let shown: Value = serde_json::from_str(&lab.node.ip(["-j", "link", "show", name]).unwrap()).unwrap();
    (shown[0]["ifindex"].clone(), shown[0]["address"].clone())
}

fn mode_is_on_the_link_and_works(mode: &'static str, shown: &str) {
    let lab = Lab::build(&Options { uplink_mtu: 1400, ..Options::default() }).unwrap();
    let router = Router::new(&lab, &Text { mode, ..Text::of(SNAT) }.yaml()).unwrap();
    let before = System::of(&lab, &router);
    apply(&router).assert_done();

    let link = net1(&lab);
    assert_eq!(link["linkinfo"]["info_kind"], "macvlan");
    assert_eq!(link["linkinfo"]["info_data"]["mode"], shown);
    assert_eq!(link["mtu"], 1400, "the master's");
    let (index, master_mac) = node_link(&lab, "up0");
    assert_eq!(link["link_index"], index, "not on up0: {link}");
    let mac = link["address"].as_str().unwrap().to_owned();
    let first_octet = u8::from_str_radix(&mac[..2], 16).unwrap();
    if mode == "Passthru" {
        assert_eq!(mac, master_mac.as_str().unwrap());
    } else {
        assert_eq!(first_octet & 0b11, 0b10, "{mac} is not a locally administered unicast address");
    }
    assert_works(&lab, SNAT);
    let neighbours = lab.outside.ip(["neighbour", "show", "to", &SNAT.v4.to_string()]).unwrap();
    assert!(neighbours.contains(&mac), "the outside knows {neighbours}, not {mac}");

    delete(&router).assert_done();
    assert_same(&before, &System::of(&lab, &router), "after delete");
    apply(&router).assert_done();
    assert_eq!(net1(&lab)["address"], mac.as_str(), "the address is another one the second time");
    assert_works(&lab, SNAT);
}

#[test]
fn bridge_mode() {
    mode_is_on_the_link_and_works("Bridge", "bridge");
}

#[test]
fn private_mode() {
    mode_is_on_the_link_and_works("Private", "private");
}

#[test]
fn vepa_mode() {
    mode_is_on_the_link_and_works("VEPA", "vepa");
}

#[test]
fn passthru_mode() {
    mode_is_on_the_link_and_works("Passthru", "passthru");
}

#[test]
fn the_master_is_the_one_named_or_the_one_whose_subnet_holds_the_address() {
    let lab = Lab::build(&Options { second_uplink: true, ..Options::default() }).unwrap();
    let first = Text::of(SNAT);
    let second = Text {
        addresses: vec![(second_external(99), Some(second_external(1)))],
        rules: vec![("TCP", 80, SERVER_1, Some(8080))],
        ..first.clone()
    };
    let named = Text { master: Some("up1"), ..second.clone() };
    // Named against the subnet: the specification decides.
    let odd = Text { master: Some("up1"), addresses: vec![(SNAT, Some(GATEWAY))], ..first.clone() };
    let router = Router::new(&lab, &first.yaml()).unwrap();
    for (text, master) in [(first, "up0"), (second, "up1"), (named, "up1"), (odd, "up1")] {
        router.edit(&text.yaml()).unwrap();
        let said = apply(&router);
        said.assert_done();
        assert_eq!(net1(&lab)["link_index"], node_link(&lab, master).0, "{text:?} is not on {master}: {said:?}");
    }
}

#[test]
fn routers_of_other_names_have_other_addresses() {
    let lab = Lab::build(&Options::default()).unwrap();
    let macs = ["one", "two"].map(|name| {
        let router = Router::new(&lab, &Text { name, ..Text::of(SNAT) }.yaml()).unwrap();
        apply(&router).assert_done();
        net1(&lab)["address"].clone()
    });
    assert_ne!(macs[0], macs[1]);
}
