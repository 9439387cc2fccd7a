//! Doing the steps of a plan, and taking them back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use futures_util::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::MacVlanMode;
use rtnetlink::packet_route::route::{RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, LinkMacVlan, LinkUnspec, RouteMessageBuilder};

use super::change::{Change, EgressRoute, Hop, Macvlan};
use super::error::LinkError;
use super::netns::Netns;
use super::observe::{Family, PolicyRule, Snapshot, Sysctl, snapshot};
use super::plan::{ALIAS_PREFIX, EGRESS_TABLE, Plan, own_addresses, present_routes, present_rules};
use super::record::Record;
use super::{Place, netlink, probe};
use crate::compile::MacvlanMode;

/// A plan in the course of being applied, and what it takes to undo it.
#[derive(Debug)]
#[must_use = "the claim stage has not been done yet"]
pub struct Applied {
    place: Place,
    plan: Plan,
    done: Vec<Change>,
    record: PathBuf,
    before: Record,
}

/// Does a plan's link stage: afterwards the external interface exists, down and without addresses (or as it was, if
/// it existed), for the datapath to attach its programs.
///
/// `record` is the file that [`delete`] needs to restore earlier settings.
///
/// # Errors
/// [`LinkError::Apply`] with the step that failed; the steps before it are undone.
pub fn prepare(place: &Place, plan: Plan, record: &Path) -> Result<Applied, LinkError> {
    let before = Record::load(record)?;
    let mut applied = Applied { place: place.clone(), plan, done: Vec::new(), record: record.to_owned(), before };
    let steps = applied.plan.link_stage.clone();
    applied.perform(steps)?;
    Ok(applied)
}

impl Applied {
    /// Does the claim stage: sets the interface up, asks the network whether somebody has the addresses, adds them,
    /// then routes, rules and forwarding.
    ///
    /// # Errors
    /// [`LinkError::Apply`] with the step that failed; its source is a [`LinkError::Conflict`] when somebody has an
    /// address. What the claim stage did is undone, the link stage is not: [`undo`](Self::undo) does.
    pub fn claim(&mut self) -> Result<(), LinkError> {
        let steps = self.plan.claim_stage.clone();
        let all: Vec<Change> = self.plan.changes().cloned().collect();
        // Written before anything is changed: a crash half-way must not lose the earlier values.
        let interface = &self.place.external_interface;
        self.before.with(&all, interface, self.plan.adopted).save(&self.record)?;
        self.perform(steps).inspect_err(|_failed| {
            if let Err(error) = self.before.save(&self.record) {
                tracing::warn!(%error, "the record of earlier settings lists some that were not changed");
            }
        })
    }

    /// The steps done so far, in order.
    #[must_use]
    pub fn done(&self) -> &[Change] {
        &self.done
    }

    /// The plan being applied.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Takes back every step that was done, last first, and goes on after a failure.
    ///
    /// # Errors
    /// All of them.
    pub fn undo(mut self) -> Result<(), Vec<LinkError>> {
        let mut errors = self.undo_down_to(0);
        errors.extend(self.before.save(&self.record).err());
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Does the steps in order; when one fails, takes back those of this call.
    fn perform(&mut self, steps: Vec<Change>) -> Result<(), LinkError> {
        let start = self.done.len();
        for change in steps {
            tracing::debug!(%change, "link");
            if let Err(source) = execute(&self.place, &change) {
                let not_undone = self.undo_down_to(start);
                return Err(LinkError::Apply { change: Box::new(change), source: Box::new(source), not_undone });
            }
            self.done.push(change);
        }
        Ok(())
    }

    fn undo_down_to(&mut self, start: usize) -> Vec<LinkError> {
        let mut errors = Vec::new();
        for change in self.done.drain(start..).rev() {
            let Some(inverse) = change.inverse() else { continue };
            tracing::debug!(change = %inverse, "undo link");
            errors.extend(execute_once(&self.place, &inverse));
        }
        errors
    }
}

/// Takes the external interface away, with its routes and rules, and restores the settings that `record` lists.
/// Returns what was done: nothing, the second time.
///
/// An interface that was adopted stays and loses the addresses that were added to it.
///
/// # Errors
/// Every step that failed; the others are done.
pub fn delete(place: &Place, record: &Path) -> Result<Vec<Change>, Vec<LinkError>> {
    let known = Record::load(record).map_err(|error| vec![error])?;
    let keys: Vec<Sysctl> = known.sysctls.keys().cloned().collect();
    let here = snapshot(&place.router, &keys, None).map_err(|error| vec![error])?;
    let steps = steps_to_delete(&here, &place.external_interface, &known);
    let mut errors: Vec<LinkError> = steps.iter().filter_map(|change| execute_once(place, change)).collect();
    if errors.is_empty() {
        errors.extend(Record::default().save(record).err());
    }
    if errors.is_empty() { Ok(steps) } else { Err(errors) }
}

/// Forwarding goes off first and the rules go before the link: no moment in which a packet that the rules kept on the
/// external side could go another way.
fn steps_to_delete(here: &Snapshot, external: &str, record: &Record) -> Vec<Change> {
    let restored = record.sysctls.iter().filter(|(key, setting)| here.sysctl(key) == Some(setting.set.as_str()));
    let (forwarding, others): (Vec<_>, Vec<_>) = restored
        .map(|(key, setting)| Change::SetSysctl {
            key: key.clone(),
            from: Some(setting.set.clone()),
            to: setting.before.clone(),
        })
        .partition(|change| change.inverse().is_some_and(|inverse| inverse.switches_forwarding_on()));
    let mut steps = forwarding;
    if let Some(interface) = here.interface(external) {
        if interface.alias.as_deref().is_some_and(|alias| alias.starts_with(ALIAS_PREFIX)) {
            steps.push(Change::DeleteLink(Macvlan {
                name: external.to_owned(),
                master: String::new(),
                mode: MacvlanMode::default(),
                mac: interface.mac,
                mtu: interface.mtu,
                alias: interface.alias.clone().unwrap_or_default(),
            }));
        } else {
            let ours = own_addresses(interface).filter(|address| record.addresses.contains(address));
            steps.extend(ours.map(|address| Change::RemoveAddress { interface: external.to_owned(), address }));
        }
    }
    let gone_with_the_link = |route: &EgressRoute| {
        steps.iter().any(|step| matches!(step, Change::DeleteLink(_))) && !matches!(route.hop, Hop::Unreachable)
    };
    let routes: Vec<Change> =
        present_routes(here).filter(|route| !gone_with_the_link(route)).map(Change::RemoveRoute).collect();
    steps.extend(present_rules(here).cloned().map(Change::RemoveRule));
    steps.extend(routes);
    steps.extend(others);
    steps
}

/// As [`execute`], where what is to be removed may be gone already.
fn execute_once(place: &Place, change: &Change) -> Option<LinkError> {
    let source = execute(place, change).err().filter(|error| !is_gone(error))?;
    Some(LinkError::Apply { change: Box::new(change.clone()), source: Box::new(source), not_undone: Vec::new() })
}

fn is_gone(error: &LinkError) -> bool {
    const GONE: [Errno; 4] = [Errno::ENODEV, Errno::ENOENT, Errno::ESRCH, Errno::EADDRNOTAVAIL];
    match error {
        LinkError::NoInterface { .. } => true,
        LinkError::Request { source, .. } | LinkError::Sysctl { source, .. } => {
            source.raw_os_error().is_some_and(|code| GONE.contains(&Errno::from_raw(code)))
        }
        _ => false,
    }
}

fn execute(place: &Place, change: &Change) -> Result<(), LinkError> {
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
            handle.link().set(if *up { link.up() } else { link.down() }.build()).execute().await
        }),
        Change::SetSysctl { key, to, .. } => write_sysctl(router, key, to),
        Change::Probe { interface, addresses } => probe::probe(router, interface, addresses),
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
    named.inspect_err(|_failed| {
        // Without its alias it would be a stranger to `delete`.
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
