//! The tables of one generation, worked out before anything is written. Pure.

use std::net::IpAddr;

use egress_ebpf::addr::{Addr, Port};
use egress_ebpf::contract::{
    Action, Config, MAX_RULES, RULE_FALLBACK, RuleValue, SOURCES_PER_SIDE, Side, Slice, config_flag,
};
use egress_ebpf::event::Logging;
use egress_ebpf::timeout::{self, protocol};

use super::DatapathError;
use crate::compile::{Protocol, RuleTable};

/// One of the router's interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index in the router's namespace.
    pub index: u32,
    /// Every address it has or is about to get, link-local ones included.
    pub addresses: Vec<IpAddr>,
}

/// Both of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interfaces {
    /// Where clients are.
    pub cluster: Interface,
    /// Where destinations are.
    pub external: Interface,
    /// The external addresses that flows come from, in the specification's order; all are among `external.addresses`.
    pub snat: Vec<IpAddr>,
    /// Link address of the cluster interface.
    pub cluster_mac: [u8; 6],
    /// Link address of the external interface.
    pub external_mac: [u8; 6],
    /// The smaller of the two interfaces' MTU, without link header.
    pub mtu: u32,
}

/// A packet of this length fits any link that carries IPv6 (RFC 8200 section 5). One that fits is not asked after again until the
/// tables are made anew, so larger ones always are: an interface's MTU may be lowered meanwhile.
const SMALL: u32 = 1280;
const ETHERNET_HEADER: u32 = 14;

/// Settings from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Most flows at a time.
    pub flows: u32,
    /// First and last source port that flows may get; `None` for nf_nat's classes.
    pub snat_ports: Option<(u16, u16)>,
    /// Ports of the pod itself that the fallback leaves alone.
    pub local_ports: Vec<(Protocol, u16)>,
    /// `ip_local_port_range` of the router's namespace.
    pub ephemeral_ports: (u16, u16),
    /// Idle timeouts in seconds, by class.
    pub timeouts_s: [u32; timeout::CLASSES],
    /// What is told of flows and drops.
    pub logging: Logging,
    /// Whether plain packets are sent past the kernel's stack. Without it the kernel forwards them all.
    pub redirect: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            flows: 65536,
            snat_ports: None,
            local_ports: Vec::new(),
            ephemeral_ports: (32768, 60999),
            timeouts_s: timeout::defaults_s(),
            logging: Logging::default(),
            redirect: true,
        }
    }
}

/// What goes into the maps.
#[derive(Clone, Debug)]
pub struct Tables {
    pub(super) config: Config,
    /// Family (4 or 6), protocol, port, value.
    pub(super) rules: Vec<(u8, u8, Port, RuleValue)>,
    /// Addresses of each interface, by side.
    pub(super) cluster: Vec<Addr>,
    pub(super) external: Vec<Addr>,
    pub(super) snat: Vec<Addr>,
}

impl Tables {
    /// Works the tables out.
    ///
    /// # Errors
    ///
    /// When there are more addresses or rules than the maps hold.
    pub fn new(rules: &RuleTable, settings: &Settings, interfaces: &Interfaces) -> Result<Self, DatapathError> {
        for interface in [&interfaces.cluster, &interfaces.external] {
            if interface.addresses.len() > SOURCES_PER_SIDE as usize {
                return Err(DatapathError::TooManyAddresses {
                    interface: interface.name.clone(),
                    count: interface.addresses.len(),
                    limit: SOURCES_PER_SIDE,
                });
            }
        }
        let entries = rule_entries(rules, settings);
        let limit = MAX_RULES / 2;
        if entries.len() > limit as usize {
            return Err(DatapathError::TooManyRules { count: rules.rules.len(), limit });
        }
        let addrs = |addresses: &[IpAddr]| addresses.iter().copied().map(Addr::from).collect::<Vec<_>>();
        let (first, last) = settings.snat_ports.unwrap_or((0, 0));
        Ok(Self {
            config: Config {
                cluster_ifindex: interfaces.cluster.index,
                external_ifindex: interfaces.external.index,
                flags: if settings.redirect { config_flag::REDIRECT } else { 0 },
                snat_v4: Slice::default(),
                snat_v6: Slice::default(),
                snat_port_first: first,
                snat_port_last: last,
                local_port_first: settings.ephemeral_ports.0,
                local_port_last: settings.ephemeral_ports.1,
                timeouts_s: settings.timeouts_s,
                shortest_s: timeout::shortest_s(&settings.timeouts_s),
                pad: 0,
                changed_ns: 0,
                always_fits: interfaces.mtu.min(SMALL) + ETHERNET_HEADER,
                cluster_mac: interfaces.cluster_mac,
                external_mac: interfaces.external_mac,
                snat_slots: [0; SOURCES_PER_SIDE as usize],
            },
            rules: entries,
            cluster: addrs(&interfaces.cluster.addresses),
            external: addrs(&interfaces.external.addresses),
            snat: addrs(&interfaces.snat),
        })
    }

    pub(super) fn addresses(&self, side: Side) -> &[Addr] {
        match side {
            Side::Cluster => &self.cluster,
            Side::External => &self.external,
        }
    }
}

/// Family, protocol, port and value of every entry of a rule table.
pub(super) fn rule_entries(table: &RuleTable, settings: &Settings) -> Vec<(u8, u8, Port, RuleValue)> {
    let local = RuleValue {
        destination: Addr::UNSPECIFIED,
        target_port: Port::NONE,
        action: Action::Local as u8,
        pad: 0,
        rule: RULE_FALLBACK,
    };
    let mut entries = Vec::with_capacity(table.rules.len() + 1);
    for &(protocol, port) in &settings.local_ports {
        for family in [4, 6] {
            entries.push((family, protocol_number(protocol), Port::new(port), local));
        }
    }
    // A rule comes after a local port of the same number, and so replaces it: the specification wins.
    for rule in &table.rules {
        let value = RuleValue {
            destination: rule.destination.into(),
            target_port: rule.target_port.map_or(Port::NONE, |port| Port::new(port.get())),
            action: Action::Translate as u8,
            pad: 0,
            rule: rule.index,
        };
        entries.push((family(rule.destination), protocol_number(rule.protocol), Port::new(rule.port.get()), value));
    }
    if let Some(destination) = table.fallback {
        let value = RuleValue { destination: destination.into(), action: Action::Translate as u8, ..local };
        entries.push((family(destination), 0, Port::NONE, value));
    }
    entries
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 4 } else { 6 }
}

/// IP protocol number of a rule's protocol.
pub fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
        Protocol::Sctp => protocol::SCTP,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, addresses: &[&str]) -> Interface {
        Interface { name: name.into(), index: 2, addresses: addresses.iter().map(|a| a.parse().unwrap()).collect() }
    }

    #[test]
    fn a_rule_wins_over_a_local_port_and_the_fallback_serves_one_family() {
        let rules = RuleTable {
            rules: vec![crate::compile::Rule {
                index: 3,
                protocol: Protocol::Tcp,
                port: 9100.try_into().unwrap(),
                destination: "203.0.113.26".parse().unwrap(),
                target_port: None,
            }],
            fallback: Some("2001:db8::1".parse().unwrap()),
        };
        let settings = Settings { local_ports: vec![(Protocol::Tcp, 9100)], ..Settings::default() };
        let interfaces = Interfaces {
            cluster: interface("eth0", &["10.128.0.2"]),
            external: interface("net1", &["192.168.12.99"]),
            snat: vec!["192.168.12.99".parse().unwrap()],
            cluster_mac: [0; 6],
            external_mac: [0; 6],
            mtu: 1500,
        };
        let tables = Tables::new(&rules, &settings, &interfaces).unwrap();
        let last_v4 = tables.rules.iter().rev().find(|(family, ..)| *family == 4).unwrap();
        assert_eq!((last_v4.3.action, last_v4.3.rule), (Action::Translate as u8, 3));
        let fallback: Vec<_> = tables.rules.iter().filter(|(_, protocol, ..)| *protocol == 0).collect();
        assert_eq!(fallback.len(), 1);
        assert_eq!(fallback[0].0, 6);
        // TCP, UDP, ICMP, SCTP, others.
        assert_eq!(tables.config.shortest_s[..5], [10, 30, 30, 3, 600]);
    }

    #[test]
    fn too_many_addresses_are_refused() {
        let many: Vec<String> = (0..257).map(|i| format!("10.0.{}.{}", i / 256, i % 256)).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let interfaces = Interfaces {
            cluster: interface("eth0", &many),
            external: interface("net1", &[]),
            snat: vec![],
            cluster_mac: [0; 6],
            external_mac: [0; 6],
            mtu: 1500,
        };
        let error = Tables::new(&RuleTable::default(), &Settings::default(), &interfaces).unwrap_err();
        assert!(error.to_string().contains("eth0 has 257 addresses"), "{error}");
    }
}
