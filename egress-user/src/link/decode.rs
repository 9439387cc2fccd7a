//! Reading a namespace's state: what the kernel's netlink messages say.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

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

use super::error::LinkError;
use super::mac::Mac;
use super::netlink;
use super::netns::Netns;
use super::observe::{Family, Interface, InterfaceAddress, Mark, ObservedMode, PolicyRule, Route, Snapshot, Sysctl};
use crate::compile::MacvlanMode;

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
fn read_sysctl(key: &Sysctl) -> io::Result<Option<String>> {
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
