//! Being told by the kernel when a router's interfaces, addresses, routes, rules, settings or gateways change.

use std::io;

use futures_util::StreamExt as _;
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Place;
use super::error::LinkError;
use super::neighbour::Neighbours;
use super::netns::Netns;

/// What is watched in the router's namespace.
const HERE: &[MulticastGroup] = &[
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Tc,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];
/// Forwarding and the like, whose messages rtnetlink does not read: `RTNLGRP_IPV4_NETCONF` and `RTNLGRP_IPV6_NETCONF`.
const SETTINGS: u32 = 1 << (24 - 1) | 1 << (25 - 1);
/// What is watched in the master's, where every pod of the node comes and goes.
const THERE: &[MulticastGroup] = &[MulticastGroup::Link];

/// A watch on a router's place. Tells that something changed, not what: whoever is told looks.
#[derive(Debug)]
pub struct Watch {
    changes: mpsc::Receiver<()>,
    tasks: Vec<JoinHandle<()>>,
}

impl Watch {
    /// Starts watching. To be called in an asynchronous runtime.
    ///
    /// `master` is the master's name: of the other interfaces in its namespace nothing is told.
    ///
    /// # Errors
    /// [`LinkError::Observe`] when the kernel does not let it.
    pub fn new(place: &Place, master: &str) -> Result<Self, LinkError> {
        // One pending change is as good as many.
        let (sender, changes) = mpsc::channel(1);
        let external = place.external_interface.clone();
        // Neighbours on the cluster interface come and go with clients, and are none of ours.
        let mut neighbours = Neighbours::default();
        let mut index = place.router.run(|| if_nametoindex(external.as_str()))?.unwrap_or(0);
        let here = move |message: &RouteNetlinkMessage| match message {
            RouteNetlinkMessage::NewLink(link) => {
                if name(link) == Some(&external) && index != link.header.index {
                    index = link.header.index;
                    neighbours = Neighbours::default();
                }
                true
            }
            RouteNetlinkMessage::NewNeighbour(message) => {
                message.header.ifindex == index && neighbours.changed(message)
            }
            RouteNetlinkMessage::DelNeighbour(message) => {
                let is_ours = message.header.ifindex == index;
                if is_ours {
                    neighbours.gone(message);
                }
                is_ours
            }
            _ => true,
        };
        let mut tasks =
            vec![follow(&place.router, HERE, here, sender.clone())?, follow_settings(&place.router, sender.clone())?];
        if !place.router.is(&place.master)? {
            let master = master.to_owned();
            let there = move |message: &RouteNetlinkMessage| match message {
                RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => name(link) == Some(&master),
                _ => false,
            };
            tasks.push(follow(&place.master, THERE, there, sender)?);
        }
        Ok(Self { changes, tasks })
    }

    /// Waits for the next change.
    pub async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            // Both connections are gone, which the kernel does not do.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn follow(
    netns: &Netns,
    groups: &'static [MulticastGroup],
    mut concerns_us: impl FnMut(&RouteNetlinkMessage) -> bool + Send + 'static,
    changes: mpsc::Sender<()>,
) -> Result<JoinHandle<()>, LinkError> {
    let runtime = Handle::current();
    // The socket is opened inside the namespace, which is what binds it, and belongs to the runtime.
    let open = || {
        let _inside = runtime.enter();
        new_multicast_connection(groups)
    };
    let failed = |source: io::Error| LinkError::Observe { what: "changes", netns: netns.label().to_owned(), source };
    let (connection, _handle, mut messages) = netns.run(open)?.map_err(failed)?;
    Ok(tokio::spawn(async move {
        let tell = async {
            while let Some((message, _sender)) = messages.next().await {
                if is_change(&message, &mut concerns_us) {
                    let _already_pending = changes.try_send(());
                }
            }
        };
        // In one task: the connection ends with the watch.
        tokio::join!(connection, tell);
    }))
}

/// Tells of every message to [`SETTINGS`], whatever it says.
fn follow_settings(netns: &Netns, changes: mpsc::Sender<()>) -> Result<JoinHandle<()>, LinkError> {
    let runtime = Handle::current();
    let open = || {
        let _inside = runtime.enter();
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, SETTINGS))?;
        Ok(socket)
    };
    let failed = |source: io::Error| LinkError::Observe { what: "changes", netns: netns.label().to_owned(), source };
    let socket = netns.run(open)?.map_err(failed)?;
    Ok(tokio::spawn(async move {
        loop {
            // An error is an overrun: something has changed, and more than was read.
            let _what = socket.recv_from_full().await;
            let _already_pending = changes.try_send(());
        }
    }))
}

/// What cannot be told, as after an overrun of the socket's buffer, may have been anything.
fn is_change(
    message: &NetlinkMessage<RouteNetlinkMessage>,
    concerns_us: &mut impl FnMut(&RouteNetlinkMessage) -> bool,
) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(message) => concerns_us(message),
        _ => true,
    }
}

fn name(link: &LinkMessage) -> Option<&String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    })
}
