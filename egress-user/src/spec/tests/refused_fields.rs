//! One thing wrong with a sound router: the place, the field and the words of every problem.

use super::{BASE, Expected, assert_found};

const DESTINATION: &str = "spec.redirect.redirectRules[0].destinationIP";
const PORT: &str = "spec.redirect.redirectRules[0].port";
const IP: &str = "spec.addresses[0].ip";
const GATEWAY: &str = "spec.addresses[0].gateway";
const MASTER: &str = "spec.networkInterface.macvlan.master";

/// Replaces the first `from` of the sound router by `to`.
type Case = (&'static str, &'static str, &'static [Expected]);

#[track_caller]
fn check(cases: &[Case]) {
    for (from, to, expected) in cases {
        assert!(BASE.contains(from), "{from:?} is not in the sound router");
        assert_found(&format!("{from:?} -> {to:?}"), &BASE.replacen(from, to, 1), expected);
    }
}

#[test]
fn object() {
    check(&[
        (
            "openshift.io/v1",
            "openshift.io/v2",
            &[(1, 13, "error", "apiVersion", "is not network.operator.openshift.io/v1")],
        ),
        ("apiVersion: network.operator.openshift.io/v1\n", "", &[(1, 1, "error", "apiVersion", "is missing")]),
        ("EgressRouter", "egressrouter", &[(2, 7, "error", "kind", "did you mean EgressRouter?")]),
        ("EgressRouter", "Deployment", &[(2, 7, "error", "kind", "found the text \"Deployment\"")]),
        ("kind: EgressRouter\n", "", &[(1, 1, "error", "kind", "write kind: EgressRouter")]),
        ("  name: r\n", "  namespace: n\n", &[(3, 1, "error", "metadata.name", "name is missing")]),
        ("  name: r\n", "  name:\n", &[(3, 1, "error", "metadata.name", "name is missing")]),
        ("name: r", "name: R_1", &[(4, 9, "error", "metadata.name", "is not a name that Kubernetes takes")]),
        ("name: r", "name: 12", &[(4, 9, "error", "metadata.name", "put it in quotes: \"12\"")]),
        ("name: r", "name: r\n  namespace: a.b", &[(5, 14, "error", "metadata.namespace", "at most 63")]),
        ("name: r", "name: r\n  labels: {a: 1}", &[(5, 15, "error", "metadata.labels.a", "put it in quotes")]),
        ("name: r", "name: r\n  generation: x", &[(5, 15, "error", "metadata.generation", "whole number")]),
        (
            "name: r",
            "nmae: r",
            &[
                (3, 1, "error", "metadata.name", "name is missing"),
                (4, 3, "warning", "metadata.nmae", "did you mean name?"),
            ],
        ),
        ("metadata:\n  name: r\n", "", &[(1, 1, "error", "metadata", "metadata is missing")]),
        ("  name: r\n", "  - r\n", &[(3, 1, "error", "metadata", "expected a mapping, found a list")]),
    ]);
}

#[test]
fn spec() {
    check(&[
        ("mode: Redirect", "mode: redirect", &[(6, 9, "error", "spec.mode", "did you mean Redirect?")]),
        ("mode: Redirect", "mode: HTTPProxy", &[(6, 9, "error", "spec.mode", "write Redirect")]),
        (
            "mode: Bridge",
            "mode: bridge",
            &[(9, 13, "error", "spec.networkInterface.macvlan.mode", "did you mean Bridge?")],
        ),
        (
            "mode: Bridge",
            "mode: source",
            &[(9, 13, "error", "spec.networkInterface.macvlan.mode", "is not one of Bridge, Private, VEPA, Passthru")],
        ),
        (
            "mode: Bridge",
            "mode: 5",
            &[(9, 13, "error", "spec.networkInterface.macvlan.mode", "found the number \"5\"")],
        ),
        ("master: eth1", "master: a/b", &[(10, 15, "error", MASTER, "cannot be the name of a network interface")]),
        ("master: eth1", "master: 'eth 1'", &[(10, 15, "error", MASTER, "blank")]),
        ("master: eth1", "master: ..", &[(10, 15, "error", MASTER, "not . or ..")]),
        ("master: eth1", "master: ''", &[(10, 15, "error", MASTER, "leave it out")]),
        ("master: eth1", "master: enp3s0f0np0.1000", &[(10, 15, "error", MASTER, "at most 15 bytes, this one has 16")]),
        ("mode: Redirect", "mdoe: Redirect", &[(6, 3, "warning", "spec.mdoe", "did you mean mode?")]),
        (
            "mode: Redirect",
            "replicas: 2",
            &[(6, 3, "warning", "spec.replicas", "the fields here are mode, redirect, networkInterface, addresses")],
        ),
        ("macvlan:", "ipvlan:", &[(8, 5, "warning", "spec.networkInterface.ipvlan", "unknown field \"ipvlan\"")]),
        (
            "  redirect:\n    redirectRules:",
            "  redirect:\n    redirectRule:",
            &[(17, 5, "warning", "spec.redirect.redirectRule", "did you mean redirectRules?")],
        ),
    ]);
}

#[test]
fn ports() {
    const WHOLE: &str = "ports are whole numbers from 1 to 65535";
    check(&[
        ("port: 80", "port: 0", &[(19, 15, "error", PORT, "0 is not a port")]),
        ("port: 80", "port: 65536", &[(19, 15, "error", PORT, WHOLE)]),
        ("port: 80", "port: 99999999999999999999", &[(19, 15, "error", PORT, WHOLE)]),
        ("port: 80", "port: -80", &[(19, 15, "error", PORT, "-80 is not a port")]),
        ("port: 80", "port: 80.5", &[(19, 15, "error", PORT, "found the fraction \"80.5\"")]),
        ("port: 80", "port: '80'", &[(19, 15, "error", PORT, "remove the quotes: 80")]),
        ("port: 80", "port: http", &[(19, 15, "error", PORT, "found the text \"http\"")]),
        ("port: 80", "port: true", &[(19, 15, "error", PORT, "found the boolean \"true\"")]),
        ("port: 80", "port: 0080", &[(19, 15, "error", PORT, "write 80")]),
        ("port: 80", "port: [80]", &[(19, 9, "error", PORT, "found a list")]),
        ("port: 80", "port: null", &[(18, 9, "error", PORT, "port is missing")]),
        ("        port: 80\n", "", &[(18, 9, "error", PORT, "write the port that clients connect to")]),
        (
            "targetPort: 8080",
            "targetPort: 0",
            &[(21, 21, "error", "spec.redirect.redirectRules[0].targetPort", "0 is not a port")],
        ),
        (
            "targetPort: 8080",
            "targetport: 8080",
            &[(21, 9, "warning", "spec.redirect.redirectRules[0].targetport", "did you mean targetPort?")],
        ),
        (
            "protocol: TCP",
            "protocol: tcp",
            &[(20, 19, "error", "spec.redirect.redirectRules[0].protocol", "did you mean TCP? Case matters")],
        ),
        (
            "protocol: TCP",
            "protocol: ICMP",
            &[(20, 19, "error", "spec.redirect.redirectRules[0].protocol", "write one of TCP, UDP, SCTP")],
        ),
        (
            "        protocol: TCP\n",
            "",
            &[(18, 9, "error", "spec.redirect.redirectRules[0].protocol", "protocol is missing")],
        ),
    ]);
}

#[test]
fn destinations() {
    check(&[
        ("203.0.113.26", "10.0.0.1/32", &[(18, 24, "error", DESTINATION, "drop the mask: 10.0.0.1")]),
        ("203.0.113.26", "300.0.0.1", &[(18, 24, "error", DESTINATION, "four numbers from 0 to 255")]),
        ("203.0.113.26", "10.0.0.01", &[(18, 24, "error", DESTINATION, "without leading zeros")]),
        ("203.0.113.26", "10.0.0.1:80", &[(18, 24, "error", DESTINATION, "has a port; write 10.0.0.1")]),
        ("203.0.113.26", "'[2001:db8::1]'", &[(18, 24, "error", DESTINATION, "has brackets; write 2001:db8::1")]),
        ("203.0.113.26", "fe80::1%eth0", &[(18, 24, "error", DESTINATION, "has a zone")]),
        ("203.0.113.26", "' 10.0.0.1'", &[(18, 24, "error", DESTINATION, "has blanks around it; write 10.0.0.1")]),
        ("203.0.113.26", "example.com", &[(18, 24, "error", DESTINATION, "names are not resolved")]),
        ("203.0.113.26", "''", &[(18, 24, "error", DESTINATION, "is not an IP address")]),
        ("203.0.113.26", "{}", &[(18, 9, "error", DESTINATION, "expected an IP address, found a mapping")]),
        ("203.0.113.26", "0.0.0.0", &[(18, 24, "error", DESTINATION, "unspecified")]),
        ("203.0.113.26", "127.0.0.1", &[(18, 24, "error", DESTINATION, "loopback")]),
        ("203.0.113.26", "224.0.0.1", &[(18, 24, "error", DESTINATION, "multicast")]),
        ("203.0.113.26", "255.255.255.255", &[(18, 24, "error", DESTINATION, "the broadcast address")]),
        ("203.0.113.26", "192.168.12.255", &[(18, 24, "error", DESTINATION, "broadcast address of 192.168.12.0/24")]),
        ("203.0.113.26", "192.168.12.0", &[(18, 24, "error", DESTINATION, "the subnet 192.168.12.0/24 itself")]),
        ("203.0.113.26", "192.168.12.99", &[(18, 24, "error", DESTINATION, "the router's own address")]),
        ("203.0.113.26", "fd00:12::99", &[(18, 24, "error", DESTINATION, "the router's own address")]),
        ("203.0.113.26", "'::'", &[(18, 24, "error", DESTINATION, "unspecified")]),
        ("203.0.113.26", "'::1'", &[(18, 24, "error", DESTINATION, "loopback")]),
        ("203.0.113.26", "ff02::1", &[(18, 24, "error", DESTINATION, "multicast")]),
        ("203.0.113.26", "fe80::1", &[(18, 24, "error", DESTINATION, "link-local")]),
        ("203.0.113.26", "'::ffff:10.0.0.1'", &[(18, 24, "error", DESTINATION, "write 10.0.0.1")]),
        ("203.0.113.27", "10.0.0.1/8", &[(25, 17, "error", "spec.redirect.fallbackIP", "drop the mask")]),
        ("203.0.113.27", "127.0.0.1", &[(25, 17, "error", "spec.redirect.fallbackIP", "loopback")]),
        (
            "        protocol: UDP",
            "        protocol: TCP\n      - {destinationIP: 2001:db8::27, port: 80, protocol: TCP}",
            &[(25, 45, "error", "spec.redirect.redirectRules[2].port", "port 80/TCP has an IPv6 rule already")],
        ),
    ]);
}

#[test]
fn addresses() {
    const V6: &str = "spec.addresses[1].ip";
    check(&[
        ("192.168.12.99/24", "192.168.12.99", &[(12, 11, "error", IP, "as in 192.168.12.99/24")]),
        ("fd00:12::99/64", "fd00:12::99", &[(14, 11, "error", V6, "as in fd00:12::99/64")]),
        (
            "192.168.12.99/24",
            "192.168.12.99/33",
            &[(12, 11, "error", IP, "prefix length, \"33\", that is not from 1 to 32")],
        ),
        ("192.168.12.99/24", "192.168.12.99/0", &[(12, 11, "error", IP, "prefix length of 0")]),
        ("192.168.12.99/24", "192.168.12.99/255.255.255.0", &[(12, 11, "error", IP, "prefix length")]),
        ("192.168.12.99/24", "router/24", &[(12, 11, "error", IP, "write ADDRESS/PREFIX")]),
        ("192.168.12.99/24", "''", &[(12, 11, "error", IP, "is not an IP address")]),
        ("192.168.12.99/24", "7", &[(12, 11, "error", IP, "expected text, found the number")]),
        ("192.168.12.99/24", "192.168.12.0/24", &[(12, 11, "error", IP, "the subnet 192.168.12.0/24 itself")]),
        ("192.168.12.99/24", "192.168.12.255/24", &[(12, 11, "error", IP, "broadcast address of")]),
        (
            "192.168.12.99/24",
            "255.255.255.255/32",
            &[(12, 11, "error", IP, "is the broadcast address"), (13, 16, "warning", GATEWAY, "outside")],
        ),
        (
            "192.168.12.99/24",
            "224.0.0.5/4",
            &[(12, 11, "error", IP, "multicast"), (13, 16, "warning", GATEWAY, "outside")],
        ),
        ("fd00:12::99/64", "fd00:12::/64", &[(14, 11, "error", V6, "anycast")]),
        (
            "fd00:12::99/64",
            "fe80::99/64",
            &[
                (14, 11, "error", V6, "link-local"),
                (15, 16, "warning", "spec.addresses[1].gateway", "outside of the subnet fe80::/64"),
            ],
        ),
        (
            "fd00:12::99/64",
            "'::ffff:192.168.12.98/120'",
            &[
                (14, 11, "error", V6, "write 192.168.12.98"),
                (15, 16, "warning", "spec.addresses[1].gateway", "outside"),
            ],
        ),
        (
            "- ip: fd00:12::99/64",
            "- {}\n    - ip: fd00:12::99/64",
            &[(14, 7, "error", "spec.addresses[1].ip", "ip is missing")],
        ),
        (
            "- ip: fd00:12::99/64",
            "- 10.0.0.1/8\n    - ip: fd00:12::99/64",
            &[(14, 7, "error", "spec.addresses[1]", "expected a mapping, found the text")],
        ),
        (
            "      gateway: fd00:12::1\n",
            "      gateway: fd00:12::1\n    - ip: fd00:12:0::99/48\n",
            &[(16, 11, "error", "spec.addresses[2].ip", "the address fd00:12::99 is given twice")],
        ),
    ]);
}

#[test]
fn gateways() {
    check(&[
        (
            "192.168.12.1\n",
            "fd00:12::1\n",
            &[(13, 16, "error", GATEWAY, "is IPv6, but its address 192.168.12.99/24 is IPv4")],
        ),
        ("192.168.12.1\n", "192.168.12.99\n", &[(13, 16, "error", GATEWAY, "the router's own address")]),
        ("192.168.12.1\n", "192.168.12.255\n", &[(13, 16, "error", GATEWAY, "broadcast address of")]),
        ("192.168.12.1\n", "192.168.12.0\n", &[(13, 16, "error", GATEWAY, "itself")]),
        ("192.168.12.1\n", "0.0.0.0\n", &[(13, 16, "error", GATEWAY, "unspecified")]),
        ("192.168.12.1\n", "224.0.0.1\n", &[(13, 16, "error", GATEWAY, "multicast")]),
        ("192.168.12.1\n", "127.0.0.1\n", &[(13, 16, "error", GATEWAY, "loopback")]),
        ("192.168.12.1\n", "192.168.12.1/24\n", &[(13, 16, "error", GATEWAY, "drop the mask: 192.168.12.1")]),
        ("192.168.12.1\n", "''\n", &[(13, 16, "error", GATEWAY, "is not an IP address")]),
        ("192.168.12.1\n", "10.9.9.9\n", &[(13, 16, "warning", GATEWAY, "is outside of the subnet 192.168.12.0/24")]),
        (
            "    - ip: fd00",
            "    - {ip: 192.168.12.98/24, gateway: 192.168.12.2}\n    - ip: fd00",
            &[(
                14,
                39,
                "error",
                "spec.addresses[1].gateway",
                "a second IPv4 gateway, 192.168.12.2, beside 192.168.12.1",
            )],
        ),
    ]);
}

#[test]
fn a_hole_is_reported_once() {
    // The address is broken: that no address serves the destinations must not be said on top of it.
    check(&[
        (
            "    - ip: fd00:12::99/64\n      gateway: fd00:12::1\n",
            "    - ip: fd00:12::99\n",
            &[(14, 11, "error", "spec.addresses[1].ip", "has no prefix length")],
        ),
        (
            "    - ip: fd00:12::99/64\n      gateway: fd00:12::1\n",
            "",
            &[(
                20,
                24,
                "error",
                "spec.redirect.redirectRules[1].destinationIP",
                "no IPv6 address to reach 2001:db8::26",
            )],
        ),
    ]);
}

#[test]
fn everything_at_once() {
    let text = BASE
        .replace("name: r", "name: R")
        .replace("mode: Bridge", "mode: bridge")
        .replace("192.168.12.99/24", "192.168.12.99")
        .replacen("203.0.113.26", "10.0.0.1/32", 1)
        .replacen("port: 80", "port: 65536", 1)
        .replace("protocol: UDP", "protocol: udp\n        weight: 5")
        .replace("203.0.113.27", "127.0.0.1");
    assert_found(
        "everything",
        &text,
        &[
            (4, 9, "error", "metadata.name", ""),
            (9, 13, "error", "spec.networkInterface.macvlan.mode", ""),
            (12, 11, "error", "spec.addresses[0].ip", ""),
            (18, 24, "error", DESTINATION, ""),
            (19, 15, "error", PORT, ""),
            (24, 19, "error", "spec.redirect.redirectRules[1].protocol", ""),
            (25, 9, "warning", "spec.redirect.redirectRules[1].weight", ""),
            (26, 17, "error", "spec.redirect.fallbackIP", ""),
        ],
    );
}
