//! One step of a plan as a netlink request, or a write to `/proc/sys`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use futures_util::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{LinkAttribute, MacVlanMode, State};
use rtnetlink::packet_route::route::{RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, LinkMacVlan, LinkUnspec, RouteMessageBuilder};

use super::change::{Change, EgressRoute, Hop, Macvlan};
use super::error::LinkError;
use super::netns::Netns;
use super::observe::{Family, PolicyRule, Sysctl};
use super::routing::EGRESS_TABLE;
use super::{Place, netlink, probe};
use crate::compile::MacvlanMode;

/// Does the step.
pub(super) fn execute(place: &Place, change: &Change) -> Result<(), LinkError> {
    let router = &place.router;
    match change {
        Change::CreateLink(link) => create_link(place, link),
        Change::DeleteLink(link) => {
            on_link(router, &link.name, async |handle, index| handle.link().del(index).execute().await)
        }
        Change::SetMac { interface, to, .. } => on_link(router, interface, async |handle, index| {
            let message = LinkUnspec::new_with_index(index).address(to.0.to_vec()).build();
            handle.link().set(message).execute().await
        }),
        Change::SetMtu { interface, to, .. } => on_link(router, interface, async |handle, index| {
            handle.link().set(LinkUnspec::new_with_index(index).mtu(*to).build()).execute().await
        }),
        Change::SetUp { interface, up } => on_link(router, interface, async |handle, index| {
            let link = LinkUnspec::new_with_index(index);
            handle.link().set(if *up { link.up() } else { link.down() }.build()).execute().await?;
            if *up { wait_until_operational(&handle, index).await } else { Ok(()) }
        }),
        Change::SetSysctl { key, to, .. } => write_sysctl(router, key, to),
        Change::Probe { interface, addresses } => probe::probe(place, interface, addresses),
        Change::AddAddress { interface, address } => on_link(router, interface, async |handle, index| {
            let mut request = handle.address().add(index, address.addr(), address.prefix_len());
            if address.addr().is_ipv6() {
                // The probe has asked already: usable at once, and never quietly `dadfailed`.
                request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
            request.execute().await
        }),
        Change::RemoveAddress { interface, address } => on_link(router, interface, async |handle, index| {
            let message = handle.address().add(index, address.addr(), address.prefix_len()).message_mut().clone();
            handle.address().del(message).execute().await
        }),
        Change::AddRoute(route) => request(router, async |handle| {
            let message = route_message(&handle, route).await?;
            handle.route().add(message).execute().await
        }),
        Change::RemoveRoute(route) => request(router, async |handle| {
            let message = route_message(&handle, route).await?;
            handle.route().del(message).execute().await
        }),
        Change::ReplaceRoute { to, .. } => request(router, async |handle| {
            let message = route_message(&handle, to).await?;
            handle.route().add(message).replace().execute().await
        }),
        Change::AddRule(rule) => request(router, async |handle| {
            let mut request = handle.rule().add();
            *request.message_mut() = rule_message(rule);
            request.execute().await
        }),
        Change::RemoveRule(rule) => {
            request(router, async |handle| handle.rule().del(rule_message(rule)).execute().await)
        }
    }
}

/// IPv6 hears no neighbour solicitation before the kernel has noticed the carrier, which is at once or, when the
/// interface's index happens to be its master's, within a second. Without a carrier there is nothing to wait for.
async fn wait_until_operational(handle: &Handle, index: u32) -> Result<(), rtnetlink::Error> {
    const INTERVAL: Duration = Duration::from_millis(10);
    for _ in 0..150 {
        let link = handle.link().get().match_index(index).execute().try_next().await?;
        let operational =
            |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::OperState(State::Up | State::Unknown));
        if link.is_none_or(|link| link.attributes.iter().any(operational)) {
            break;
        }
        tokio::time::sleep(INTERVAL).await;
    }
    Ok(())
}

/// Made in the master's namespace, where the master's name means something, straight into the router's: it is never
/// visible under another name or in another place.
fn create_link(place: &Place, link: &Macvlan) -> Result<(), LinkError> {
    let mode = match link.mode {
        MacvlanMode::Bridge => MacVlanMode::Bridge,
        MacvlanMode::Private => MacVlanMode::Private,
        MacvlanMode::Vepa => MacVlanMode::Vepa,
        MacvlanMode::Passthru => MacVlanMode::Passthrough,
    };
    let target = place.router.file().as_raw_fd();
    on_link(&place.master, &link.master, async |handle, master| {
        let mut message = LinkMacVlan::new(&link.name, master, mode).mtu(link.mtu).setns_by_fd(target);
        if let Some(mac) = link.mac {
            message = message.address(mac.0.to_vec());
        }
        handle.link().add(message.build()).execute().await
    })?;
    // The kernel takes no alias at creation.
    let named = on_link(&place.router, &link.name, async |handle, index| {
        handle.link().set(LinkUnspec::new_with_index(index).alias(&link.alias).build()).execute().await
    });
    let finished =
        named.and_then(|()| link.settings.iter().try_for_each(|(key, value)| write_sysctl(&place.router, key, value)));
    finished.inspect_err(|_failed| {
        // Half a step is none: the caller undoes whole ones.
        let _ignored = execute(place, &Change::DeleteLink(link.clone()));
    })
}

/// Writes the setting in the namespace, where its interfaces are.
fn write_sysctl(netns: &Netns, key: &Sysctl, value: &str) -> Result<(), LinkError> {
    netns.run(|| std::fs::write(key.path(), value))?.map_err(|source| LinkError::Sysctl {
        key: key.clone(),
        value: value.to_owned(),
        netns: netns.label().to_owned(),
        source,
    })
}

fn request<F>(netns: &Netns, work: F) -> Result<(), LinkError>
where
    F: AsyncFnOnce(Handle) -> Result<(), rtnetlink::Error> + Send,
{
    netlink::with(netns, async |handle| {
        work(handle)
            .await
            .map_err(|error| LinkError::Request { netns: netns.label().to_owned(), source: netlink::reason(error) })
    })
}

fn on_link<F>(netns: &Netns, interface: &str, work: F) -> Result<(), LinkError>
where
    F: AsyncFnOnce(Handle, u32) -> Result<(), rtnetlink::Error> + Send,
{
    netlink::with(netns, async |handle| {
        let failed = |error| LinkError::Request { netns: netns.label().to_owned(), source: netlink::reason(error) };
        let index = match index_of(&handle, interface).await {
            Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -(Errno::ENODEV as i32) => {
                let (interface, netns) = (interface.to_owned(), netns.label().to_owned());
                return Err(LinkError::NoInterface { interface, netns });
            }
            other => other.map_err(failed)?,
        };
        work(handle, index).await.map_err(failed)
    })
}

async fn index_of(handle: &Handle, interface: &str) -> Result<u32, rtnetlink::Error> {
    let mut found = handle.link().get().match_name(interface).execute();
    Ok(found.try_next().await?.ok_or(rtnetlink::Error::RequestFailed)?.header.index)
}

async fn route_message(handle: &Handle, route: &EgressRoute) -> Result<RouteMessage, rtnetlink::Error> {
    let (interface, gateway, onlink) = match &route.hop {
        Hop::Link { interface } => (Some(interface), None, false),
        Hop::Gateway { gateway, interface, onlink } => (Some(interface), Some(*gateway), *onlink),
        Hop::Unreachable => (None, None, false),
    };
    let index = match interface {
        Some(interface) => Some(index_of(handle, interface).await?),
        None => None,
    };
    let mut message = match route.family() {
        Family::V4 => {
            let mut builder = RouteMessageBuilder::<Ipv4Addr>::new();
            if let IpAddr::V4(to) = route.destination.network() {
                builder = builder.destination_prefix(to, route.destination.prefix_len());
            }
            if let Some(IpAddr::V4(gateway)) = gateway {
                builder = builder.gateway(gateway);
            }
            // The scope that makes a subnet's hosts acceptable as gateways.
            let scope = if matches!(route.hop, Hop::Link { .. }) { RouteScope::Link } else { RouteScope::Universe };
            complete(builder.scope(scope), index, onlink, route)
        }
        Family::V6 => {
            let mut builder = RouteMessageBuilder::<Ipv6Addr>::new();
            if let IpAddr::V6(to) = route.destination.network() {
                builder = builder.destination_prefix(to, route.destination.prefix_len());
            }
            if let Some(IpAddr::V6(gateway)) = gateway {
                builder = builder.gateway(gateway);
            }
            complete(builder, index, onlink, route)
        }
    };
    if matches!(route.hop, Hop::Unreachable) {
        message.header.kind = RouteType::Unreachable;
    }
    Ok(message)
}

fn complete<T>(builder: RouteMessageBuilder<T>, index: Option<u32>, onlink: bool, route: &EgressRoute) -> RouteMessage {
    let mut builder = builder.table_id(EGRESS_TABLE).priority(route.metric);
    if let Some(index) = index {
        builder = builder.output_interface(index);
    }
    if onlink {
        builder = builder.onlink();
    }
    builder.build()
}

fn rule_message(rule: &PolicyRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = match rule.family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    message.header.action = RuleAction::ToTable;
    message.attributes.push(RuleAttribute::Table(rule.table));
    message.attributes.push(RuleAttribute::Priority(rule.priority));
    if let Some(from) = rule.from {
        message.header.src_len = from.prefix_len();
        message.attributes.push(RuleAttribute::Source(from.addr()));
    }
    if let Some(iif) = &rule.iif {
        message.attributes.push(RuleAttribute::Iifname(iif.clone()));
    }
    if let Some(oif) = &rule.oif {
        message.attributes.push(RuleAttribute::Oifname(oif.clone()));
    }
    if let Some(mark) = rule.mark {
        message.attributes.push(RuleAttribute::FwMark(mark.value));
        message.attributes.push(RuleAttribute::FwMask(mark.mask));
    }
    message
}
