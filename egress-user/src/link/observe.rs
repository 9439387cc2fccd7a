//! The present state of a network namespace, as far as the external interface is concerned.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use futures_util::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoData, InfoMacVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, MacVlanMode,
};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};
use serde::{Deserialize, Serialize};

use super::error::LinkError;
use super::mac::Mac;
use super::netlink;
use super::netns::Netns;
use crate::compile::MacvlanMode;

/// What a namespace holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// By kernel index.
    pub interfaces: Vec<Interface>,
    /// Unicast and unreachable routes of every table but `local`.
    pub routes: Vec<Route>,
    /// Policy rules, in the order in which the kernel tries them, IPv4's first.
    pub rules: Vec<PolicyRule>,
    /// The kernel settings that were asked for; `None` where the kernel has no such setting.
    pub sysctls: BTreeMap<Sysctl, Option<String>>,
    /// The number by which this namespace calls the other one that was asked about, when it has one.
    pub peer_id: Option<i32>,
}

impl Snapshot {
    /// The interface of that name.
    #[must_use]
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }

    /// The interface of that kernel index.
    #[must_use]
    pub fn by_index(&self, index: u32) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.index == index)
    }

    /// The setting's value; `None` where the kernel has no such setting or it was not asked for.
    #[must_use]
    pub fn sysctl(&self, key: &Sysctl) -> Option<&str> {
        self.sysctls.get(key).and_then(Option::as_deref)
    }

    /// The names of all interfaces but `lo`.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.interfaces.iter().filter(|interface| !interface.loopback).map(|interface| interface.name.clone()).collect()
    }
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Kernel index in its namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Ethernet address; none on interfaces of another kind.
    pub mac: Option<Mac>,
    /// In bytes, without the Ethernet header.
    pub mtu: u32,
    /// Set up by the administrator.
    pub up: bool,
    /// Has a carrier.
    pub lower_up: bool,
    /// Is `lo`.
    pub loopback: bool,
    /// The kernel's name of the kind, as `macvlan`; none on plain hardware.
    pub kind: Option<String>,
    /// On a macvlan.
    pub macvlan: Option<ObservedMode>,
    /// The interface that this one sits on, by index in its own namespace.
    pub parent: Option<u32>,
    /// The number of the parent's namespace; none when it is the same one.
    pub parent_netns: Option<i32>,
    /// The bridge, bond, switch or VRF that this interface is a port of.
    pub controller: Option<u32>,
    /// Free text for people, which this program uses to know its own interfaces.
    pub alias: Option<String>,
    /// In the kernel's order: the first IPv4 address of a subnet is its primary one.
    pub addresses: Vec<InterfaceAddress>,
}

impl Interface {
    /// The state of this address, if the interface has it.
    #[must_use]
    pub fn address(&self, address: IpAddr) -> Option<&InterfaceAddress> {
        self.addresses.iter().find(|held| held.net.addr() == address)
    }
}

/// Mode of an existing macvlan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ObservedMode {
    /// One that the specification can ask for.
    Known(MacvlanMode),
    /// Another one, as `source`.
    Other,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct InterfaceAddress {
    /// The address with its subnet's prefix length.
    pub net: IpNet,
    /// Not usable: another host has it (IPv6 duplicate address detection).
    pub duplicate: bool,
    /// Not usable yet: duplicate address detection is going on.
    pub tentative: bool,
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// Next hop; none when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Outgoing interface by index; none for an unreachable route or one with several next hops.
    pub interface: Option<u32>,
    /// Lower is preferred.
    pub metric: u32,
    /// Routing table.
    pub table: u32,
    /// Answers with an ICMP error instead of forwarding.
    pub unreachable: bool,
    /// The gateway is taken to be on the link though no subnet says so.
    pub onlink: bool,
}

/// A policy rule that looks a table up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyRule {
    /// Which rule list it is in.
    pub family: Family,
    /// Lower is tried first.
    pub priority: u32,
    /// Packets from there.
    pub from: Option<IpNet>,
    /// Packets that came in by this interface; `lo` means packets of the host's own.
    pub iif: Option<String>,
    /// Packets that were told to leave by this interface.
    pub oif: Option<String>,
    /// Packets with this mark.
    pub mark: Option<Mark>,
    /// Routing table to look up.
    pub table: u32,
}

/// A packet mark as a policy rule sees it: `packet.mark & mask == value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// The bits.
    pub value: u32,
    /// Which bits count.
    pub mask: u32,
}

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// 0.0.0.0/0 or ::/0.
    #[must_use]
    pub fn everything(self) -> IpNet {
        match self {
            Self::V4 => IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0),
            Self::V6 => IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0),
        }
    }
}

/// A kernel setting below `/proc/sys`, as `net/ipv4/ip_forward`: with slashes, because interface names have dots.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sysctl(String);

impl Sysctl {
    /// The setting of that path below `/proc/sys`.
    #[must_use]
    pub fn new(path: impl Into<String>) -> Self {
        Self(path.into())
    }

    /// An interface's IPv4 setting. `all` stands for all interfaces.
    #[must_use]
    pub fn ipv4(interface: &str, name: &str) -> Self {
        Self(format!("net/ipv4/conf/{interface}/{name}"))
    }

    /// An interface's IPv6 setting. `all` stands for all interfaces.
    #[must_use]
    pub fn ipv6(interface: &str, name: &str) -> Self {
        Self(format!("net/ipv6/conf/{interface}/{name}"))
    }

    /// Whether it belongs to that interface.
    #[must_use]
    pub fn is_of(&self, interface: &str) -> bool {
        let rest = self.0.strip_prefix("net/ipv4/conf/").or_else(|| self.0.strip_prefix("net/ipv6/conf/"));
        rest.and_then(|rest| rest.strip_prefix(interface)).is_some_and(|rest| rest.starts_with('/'))
    }

    /// Whether it exists only on kernels with IPv6.
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        self.0.starts_with("net/ipv6/")
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/proc/sys").join(&self.0)
    }
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads the state of `netns`: everything that a plan needs, `sysctls` among it, and the number by which it calls
/// `peer`.
///
/// # Errors
/// [`LinkError::Observe`] naming the part that could not be read.
pub fn snapshot(netns: &Netns, sysctls: &[Sysctl], peer: Option<&Netns>) -> Result<Snapshot, LinkError> {
    let label = netns.label();
    let failed = |what| move |source| LinkError::Observe { what, netns: label.to_owned(), source };
    let request = |what| move |error| failed(what)(netlink::reason(error));
    netlink::with(netns, async |handle| {
        let links: Vec<LinkMessage> =
            handle.link().get().execute().try_collect().await.map_err(request("interfaces"))?;
        let addresses: Vec<AddressMessage> =
            handle.address().get().execute().try_collect().await.map_err(request("addresses"))?;
        let mut interfaces: Vec<Interface> = links.iter().map(interface).collect();
        for (index, address) in addresses.iter().filter_map(address) {
            if let Some(interface) = interfaces.iter_mut().find(|interface| interface.index == index) {
                interface.addresses.push(address);
            }
        }
        let mut routes = Vec::new();
        let messages = [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
        for message in messages {
            let found: Vec<RouteMessage> =
                handle.route().get(message).execute().try_collect().await.map_err(request("routes"))?;
            routes.extend(found.iter().filter_map(route));
        }
        let mut rules = Vec::new();
        for (version, family) in [(IpVersion::V4, Family::V4), (IpVersion::V6, Family::V6)] {
            let found: Vec<RuleMessage> =
                handle.rule().get(version).execute().try_collect().await.map_err(request("policy rules"))?;
            rules.extend(found.iter().map(|message| rule(message, family)));
        }
        // After the interfaces: listing them makes the kernel give each namespace that it mentions a number.
        let peer_id = match peer {
            Some(peer) => namespace_id(handle, peer).await.map_err(failed("namespace numbers"))?,
            None => None,
        };
        let sysctls = sysctls
            .iter()
            .map(|key| Ok((key.clone(), read_sysctl(key)?)))
            .collect::<io::Result<_>>()
            .map_err(failed("kernel settings"))?;
        Ok(Snapshot { interfaces, routes, rules, sysctls, peer_id })
    })
}

/// The setting's value in the calling thread's namespace; `None` where the kernel has no such setting.
pub(super) fn read_sysctl(key: &Sysctl) -> io::Result<Option<String>> {
    match std::fs::read_to_string(key.path()) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn interface(message: &LinkMessage) -> Interface {
    let flags = message.header.flags;
    let mut interface = Interface {
        index: message.header.index,
        up: flags.contains(LinkFlags::Up),
        lower_up: flags.contains(LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        ..Interface::default()
    };
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Address(bytes) if ethernet => {
                interface.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac);
            }
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Link(index) => interface.parent = Some(*index),
            LinkAttribute::LinkNetNsId(id) => interface.parent_netns = Some(*id),
            LinkAttribute::Controller(index) => interface.controller = Some(*index),
            LinkAttribute::IfAlias(alias) => interface.alias = Some(alias.clone()),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => interface.kind = Some(kind.to_string()),
                        LinkInfo::Data(InfoData::MacVlan(data)) => interface.macvlan = data.iter().find_map(mode),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    interface
}

fn mode(info: &InfoMacVlan) -> Option<ObservedMode> {
    let InfoMacVlan::Mode(mode) = info else { return None };
    Some(match mode {
        MacVlanMode::Bridge => ObservedMode::Known(MacvlanMode::Bridge),
        MacVlanMode::Private => ObservedMode::Known(MacvlanMode::Private),
        MacVlanMode::Vepa => ObservedMode::Known(MacvlanMode::Vepa),
        MacVlanMode::Passthrough => ObservedMode::Known(MacvlanMode::Passthru),
        _ => ObservedMode::Other,
    })
}

fn address(message: &AddressMessage) -> Option<(u32, InterfaceAddress)> {
    let mut local = None;
    let mut peer = None;
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point interface `Address` is the other end; without `Local`, as in IPv6, it is our own.
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => peer = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let net = IpNet::new(local.or(peer)?, message.header.prefix_len).ok()?;
    let duplicate = flags.contains(AddressFlags::Dadfailed);
    let tentative = flags.contains(AddressFlags::Tentative) && !duplicate;
    Some((message.header.index, InterfaceAddress { net, duplicate, tentative }))
}

fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let unreachable = header.kind == RouteType::Unreachable;
    if !unreachable && header.kind != RouteType::Unicast {
        return None;
    }
    let family = match header.address_family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    let mut route = Route {
        destination: family.everything(),
        gateway: None,
        interface: None,
        metric: 0,
        table: header.table.into(),
        unreachable,
        onlink: header.flags.contains(RouteFlags::Onlink),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => {
                route.destination = IpNet::new(ip(to)?, header.destination_prefix_length).ok()?;
            }
            RouteAttribute::Gateway(gateway) => route.gateway = ip(gateway),
            RouteAttribute::Oif(index) => route.interface = Some(*index),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Table(table) => route.table = *table,
            _ => {}
        }
    }
    if unreachable {
        // IPv6 hangs them on lo.
        route.interface = None;
    }
    Some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn rule(message: &RuleMessage, family: Family) -> PolicyRule {
    let mut rule = PolicyRule {
        family,
        priority: 0,
        from: None,
        iif: None,
        oif: None,
        mark: None,
        table: message.header.table.into(),
    };
    let (mut value, mut mask) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(from) => rule.from = IpNet::new(*from, message.header.src_len).ok(),
            RuleAttribute::Iifname(name) => rule.iif = Some(name.clone()),
            RuleAttribute::Oifname(name) => rule.oif = Some(name.clone()),
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::FwMark(bits) => value = Some(*bits),
            RuleAttribute::FwMask(bits) => mask = Some(*bits),
            _ => {}
        }
    }
    if value.is_some() || mask.is_some() {
        rule.mark = Some(Mark { value: value.unwrap_or(0), mask: mask.unwrap_or(u32::MAX) });
    }
    rule
}

async fn namespace_id(mut handle: Handle, peer: &Netns) -> io::Result<Option<i32>> {
    let mut message = NsidMessage::default();
    let fd = u32::try_from(peer.file().as_raw_fd()).map_err(io::Error::other)?;
    message.attributes = vec![NsidAttribute::Fd(fd)];
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let mut responses = handle.request(request).map_err(netlink::reason)?;
    let mut id = None;
    while let Some(response) = responses.next().await {
        match response.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(message)) => {
                id = message.attributes.iter().find_map(|attribute| match attribute {
                    // -1: no number yet, so no interface here sits on one over there.
                    NsidAttribute::Id(id) => u32::try_from(*id).is_ok().then_some(*id),
                    _ => None,
                });
            }
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            _ => {}
        }
    }
    Ok(id)
}
