//! Which IP addresses can be a router's own, a next hop or a destination.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::decode::not_a_host;

/// What is wrong with something, as the end of a sentence, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) what: String,
    pub(super) help: String,
}

impl Fault {
    pub(super) fn new(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self { what: what.into(), help: help.into() }
    }
}

/// Name of an address' family.
pub(super) fn family(address: IpAddr) -> &'static str {
    if address.is_ipv6() { "IPv6" } else { "IPv4" }
}

/// Whether an address can be a host to which or from which packets are routed.
pub(super) fn usable(address: IpAddr) -> Result<(), Fault> {
    let link_local = match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if link_local {
        return Err(Fault::new("is link-local, which is never routed", "write a global or unique local address"));
    }
    unicast(address)
}

/// As [`usable`], but for a neighbour on the link, which may well be link-local.
fn unicast(address: IpAddr) -> Result<(), Fault> {
    let host = "write the address of one host";
    if let IpAddr::V6(address) = address
        && let Some(mapped) = address.to_ipv4_mapped()
    {
        return Err(Fault::new("is an IPv4 address in IPv6 notation", format!("write {mapped}")));
    }
    if address.is_unspecified() {
        return Err(Fault::new("is the unspecified address", host));
    }
    if address.is_loopback() {
        return Err(Fault::new("is a loopback address, which no packet on a wire may carry", host));
    }
    if address.is_multicast() {
        return Err(Fault::new(
            "is a multicast address",
            "write the address of one host; multicast is never translated",
        ));
    }
    if address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Err(Fault::new("is the broadcast address", host));
    }
    Ok(())
}

/// Whether `address` is one of the addresses of the subnet `net` that no host can have.
pub(super) fn no_host_of(net: IpNet, address: IpAddr) -> Option<Fault> {
    // RFC 3021 and RFC 6164: both addresses of a point-to-point link are hosts.
    let room = net.max_prefix_len() - net.prefix_len();
    if room < 2 || !net.contains(&address) {
        return None;
    }
    let subnet = net.trunc();
    if address == subnet.addr() {
        return Some(match subnet {
            IpNet::V4(_) => Fault::new(format!("is the address of the subnet {subnet} itself"), "write a host in it"),
            // RFC 4291, section 2.6.1.
            IpNet::V6(_) => {
                Fault::new(format!("is the anycast address of the routers of {subnet}"), "write a host in it")
            }
        });
    }
    (address.is_ipv4() && address == net.broadcast())
        .then(|| Fault::new(format!("is the broadcast address of {subnet}"), "write a host in it"))
}

/// Reads a router's own address, `ADDRESS/PREFIX`.
pub(super) fn subnet_address(text: &str) -> Result<IpNet, Fault> {
    match (text.parse(), text.parse::<IpAddr>()) {
        (Ok(net), _) => Ok(net),
        (Err(_), Ok(address)) => {
            let example = if address.is_ipv4() { 24 } else { 64 };
            let help = format!("add the length of your subnet's prefix, as in {address}/{example}");
            Err(Fault::new("has no prefix length", help))
        }
        (Err(_), Err(_)) => Err(not_an_address(text)),
    }
}

/// What keeps a host in its subnet from being a router's own address.
pub(super) fn own_fault(net: IpNet) -> Option<Fault> {
    if let Err(fault) = usable(net.addr()) {
        return Some(fault);
    }
    if net.prefix_len() == 0 {
        return Some(Fault::new(
            "has a prefix length of 0, which puts every host on the link",
            "write that of your subnet",
        ));
    }
    no_host_of(net, net.addr())
}

fn not_an_address(text: &str) -> Fault {
    let form = "write ADDRESS/PREFIX, as in 192.168.12.99/24";
    match text.split_once('/') {
        Some((address, prefix)) if address.parse::<IpAddr>().is_ok() => {
            let most = if address.contains(':') { 128 } else { 32 };
            Fault::new(format!("has a prefix length, {prefix:?}, that is not from 1 to {most}"), form)
        }
        Some((address, _)) if !address.is_empty() => Fault::new(not_a_host(address).0, form),
        _ => Fault::new("is not an IP address with a prefix length", form),
    }
}

/// Whether `gateway` can be the next hop of a router with the address `net`, as far as that is known.
pub(super) fn next_hop(gateway: IpAddr, net: Option<IpNet>) -> Result<(), Fault> {
    unicast(gateway)?;
    let Some(net) = net else { return Ok(()) };
    if net.addr().is_ipv6() != gateway.is_ipv6() {
        let (theirs, ours) = (family(gateway), family(net.addr()));
        let help = format!("write an {ours} gateway, or move this one to an {theirs} address");
        return Err(Fault::new(format!("is {theirs}, but its address {net} is {ours}"), help));
    }
    no_host_of(net, gateway).map_or(Ok(()), Err)
}

/// The warning about a gateway outside of its address' subnet: reachable, as an on-link route, but seldom meant.
pub(super) fn far_gateway(gateway: IpAddr, net: Option<IpNet>) -> Option<String> {
    let net = net.filter(|net| !net.contains(&gateway))?;
    let link_local = matches!(gateway, IpAddr::V6(address) if address.is_unicast_link_local());
    (!link_local).then(|| format!("the gateway {gateway} is outside of the subnet {}", net.trunc()))
}
