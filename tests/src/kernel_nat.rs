//! The kernel's own NAT in the router's place: the rules as the original writes them, for nftables.
//!
//! It is what the router is compared with, and it proves the lab: what the kernel's NAT cannot pass, no router could.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::address::{GATEWAY, Host};
use crate::topology::{CLUSTER_INTERFACE, EXTERNAL_INTERFACE, MASTER};
use crate::{Family, Lab, wait_until};

/// One redirect rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The router's port.
    pub port: u16,
    /// Where it leads to; its family is the rule's.
    pub destination: IpAddr,
    /// The destination's port, when it is another one.
    pub target_port: Option<u16>,
}

/// What the kernel shall do.
#[derive(Debug, Clone, Default)]
pub struct KernelNat {
    /// The rules, of either family.
    pub rules: Vec<Rule>,
    /// Where everything else goes, at most one a family.
    pub fallback: Vec<IpAddr>,
    /// The router's addresses outside; none leaves the source as it is, which a detector must find.
    pub snat: Option<Host>,
}

impl KernelNat {
    /// Makes `net1` as the original does, with the address `external`, and gives the rules to nftables.
    ///
    /// # Errors
    /// When a tool is missing or the kernel refuses; the error names the command.
    pub fn install(&self, lab: &Lab, external: Host) -> Result<()> {
        forward(lab, external, Uplink::Macvlan)?;
        self.give_to(Filter::Nftables, lab)
    }

    /// Gives the rules to the kernel, in the place of those that were given before; `net1` is left alone.
    ///
    /// # Errors
    /// When a tool is missing or the kernel refuses.
    pub fn give_to(&self, filter: Filter, lab: &Lab) -> Result<()> {
        lab.options.families.iter().try_for_each(|family| match filter {
            Filter::Nftables => lab.router.nft(&self.table(*family)),
            Filter::Iptables => {
                let program = match family {
                    Family::V4 => "iptables-restore",
                    Family::V6 => "ip6tables-restore",
                };
                lab.router.feed(program, &self.iptables(*family))
            }
        })
    }

    /// The same rules for iptables.
    fn iptables(&self, family: Family) -> String {
        let mut text = String::from("*nat\n");
        let to = format!("-A PREROUTING -i {CLUSTER_INTERFACE}");
        for rule in self.rules.iter().filter(|rule| Family::of(rule.destination) == family) {
            let (protocol, port) = (rule.protocol, rule.port);
            // Writing to a string cannot fail, here and below.
            let _ = writeln!(text, "{to} -p {protocol} --dport {port} -j DNAT --to-destination {}", rule.target());
        }
        for ip in self.fallback.iter().filter(|ip| Family::of(**ip) == family) {
            let _ = writeln!(text, "{to} -j DNAT --to-destination {ip}");
        }
        if let Some(host) = self.snat {
            let _ = writeln!(text, "-A POSTROUTING -o {EXTERNAL_INTERFACE} -j SNAT --to-source {}", host.ip(family));
        }
        text.push_str("COMMIT\n");
        text
    }

    fn table(&self, family: Family) -> String {
        let name = match family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        // Made if it is not there, so that it can be taken away: all in one transaction.
        let mut text = format!("table {name} egress_cni\ndelete table {name} egress_cni\n");
        text +=
            &format!("table {name} egress_cni {{\n chain prerouting {{\n  type nat hook prerouting priority dstnat;\n");
        let to = format!("iif {CLUSTER_INTERFACE}");
        for rule in self.rules.iter().filter(|rule| Family::of(rule.destination) == family) {
            // Writing to a string cannot fail, here and below.
            let _ = writeln!(text, "  {to} {} dport {} dnat to {};", rule.protocol, rule.port, rule.target());
        }
        for ip in self.fallback.iter().filter(|ip| Family::of(**ip) == family) {
            // Of every protocol; neighbour discovery is no part of any connection, and stays.
            let _ = writeln!(text, "  {to} dnat to {ip};");
        }
        text.push_str(" }\n chain postrouting {\n  type nat hook postrouting priority srcnat;\n");
        if let Some(host) = self.snat {
            let _ = writeln!(text, "  oif {EXTERNAL_INTERFACE} snat to {};", host.ip(family));
        }
        text.push_str(" }\n}\n");
        text
    }
}

impl Rule {
    fn target(&self) -> String {
        match (self.target_port, self.destination) {
            (Some(port), IpAddr::V4(ip)) => format!("{ip}:{port}"),
            (Some(port), IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
            (None, ip) => ip.to_string(),
        }
    }
}

/// What takes the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// `nft`, as the original uses it.
    Nftables,
    /// `iptables-restore`, of whichever kind the system has.
    Iptables,
}

/// What `net1` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uplink {
    /// A macvlan on the node's uplink, as the original makes it.
    Macvlan,
    /// The node's uplink itself, one end of a veth: a device that takes XDP programs.
    Veth,
}

/// Makes `net1` as the original does, with the address `external`, and has the kernel forward.
///
/// # Errors
/// When the kernel refuses; the error names the command.
pub fn forward(lab: &Lab, external: Host, uplink: Uplink) -> Result<()> {
    make_link(lab, uplink).with_context(|| format!("make {EXTERNAL_INTERFACE} on {MASTER}"))?;
    lab.router.ip(["link", "set", EXTERNAL_INTERFACE, "up"])?;
    lab.router.sysctl(["net.ipv4.ip_forward=1"])?;
    for family in &lab.options.families {
        let (address, gateway) = (external.ip(*family), GATEWAY.ip(*family));
        let lines = match family {
            Family::V4 => format!("address add {address}/24 dev {EXTERNAL_INTERFACE}"),
            Family::V6 => format!("address add {address}/64 dev {EXTERNAL_INTERFACE} nodad"),
        };
        lab.router.ip_lines(&format!("{lines}\nroute replace default via {gateway} dev {EXTERNAL_INTERFACE}\n"))?;
        if *family == Family::V6 {
            lab.router.sysctl(["net.ipv6.conf.all.forwarding=1"])?;
        }
    }
    // Until its link-local address is sure, the router asks for no neighbour, and IPv6 requests wait.
    wait_until("duplicate address detection to end", Duration::from_secs(10), || {
        lab.router.ip(["address", "show", "tentative"]).is_ok_and(|text| text.is_empty())
    })
}

fn make_link(lab: &Lab, uplink: Uplink) -> Result<()> {
    match uplink {
        Uplink::Macvlan => {
            let router = lab.router.name();
            let words = ["link", "add", "link", MASTER, "name", EXTERNAL_INTERFACE, "netns", router, "type", "macvlan"];
            lab.node.ip(words.into_iter().chain(["mode", "bridge"])).map(|_| ())
        }
        Uplink::Veth => lab.give_uplink(),
    }
}
