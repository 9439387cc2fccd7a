//! Being told by the kernel when a router's interfaces, addresses, routes, rules, settings or gateways change.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{Stream, StreamExt as _};
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::proto::Connection;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use tokio::runtime;
use tokio::sync::Notify;
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

/// What a [`Watch`] tells. The greater one asks for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum News {
    /// A neighbour on the external network answers that did not until now: no flow's next hop was known to be that one.
    Found,
    /// Anything else may have changed: whoever is told looks.
    Changed,
}

/// A watch on a router's place.
#[derive(Debug)]
pub struct Watch {
    pending: Arc<Pending>,
    tasks: Vec<JoinHandle<()>>,
}

impl Watch {
    /// Starts watching, and tells first of what may have changed before. To be called in an asynchronous runtime.
    ///
    /// `master` is the master's name: of the other interfaces in its namespace nothing is told.
    ///
    /// # Errors
    /// [`LinkError::Observe`] when the kernel does not let it.
    pub fn new(place: &Place, master: &str) -> Result<Self, LinkError> {
        let pending = Arc::new(Pending::default());
        let (connection, kernel, messages) = open(&place.router, || new_multicast_connection(HERE))?;
        let name = place.external_interface.clone();
        // Looked for once it would be told if another one took its place.
        let index = place.router.run(|| if_nametoindex(name.as_str()))?.unwrap_or(0);
        let external = External { name, index, neighbours: Neighbours::default() };
        let mut tasks = vec![
            spawn(connection, follow_router(messages, kernel, external, pending.clone())),
            follow_settings(&place.router, pending.clone())?,
        ];
        if !place.router.is(&place.master)? {
            let (connection, _kernel, messages) = open(&place.master, || new_multicast_connection(THERE))?;
            tasks.push(spawn(connection, follow_master(messages, master.to_owned(), pending.clone())));
        }
        Ok(Self { pending, tasks })
    }

    /// Waits for the next news.
    pub async fn changed(&self) -> News {
        self.pending.next().await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// News that nobody has heard yet: one is as good as many, and the greatest stands for all.
#[derive(Debug, Default)]
struct Pending {
    news: Mutex<Option<News>>,
    told: Notify,
}

impl Pending {
    fn tell(&self, news: News) {
        let mut pending = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        *pending = (*pending).max(Some(news));
        self.told.notify_one();
    }

    async fn next(&self) -> News {
        loop {
            self.told.notified().await;
            if let Some(news) = self.news.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return news;
            }
        }
    }
}

/// Opens a socket inside the namespace, which is what binds it; it belongs to the runtime.
fn open<T: Send>(netns: &Netns, socket: impl FnOnce() -> io::Result<T> + Send) -> Result<T, LinkError> {
    let runtime = runtime::Handle::current();
    let failed = |source| LinkError::Observe { what: "changes", netns: netns.label().to_owned(), source };
    netns
        .run(|| {
            let _inside = runtime.enter();
            socket()
        })?
        .map_err(failed)
}

/// In one task: the connection ends with the watch.
fn spawn(
    connection: Connection<RouteNetlinkMessage>,
    follow: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async {
        tokio::join!(connection, follow);
    })
}

/// The external interface, as far as is known from what was told.
struct External {
    name: String,
    /// 0 while there is none.
    index: u32,
    /// Those on the cluster interface come and go with clients, and are none of ours.
    neighbours: Neighbours,
}

impl External {
    /// Begins with the neighbours that the kernel knows now. Whatever happened until then is one change, noticed or not, and
    /// whatever happens from then on is told: the socket was open before.
    async fn learn(&mut self, kernel: &Handle) -> News {
        self.neighbours = Neighbours::on(kernel, self.index).await;
        News::Changed
    }

    /// Whether the link is the external interface made anew.
    fn is_remade(&self, link: &LinkMessage) -> bool {
        name(link) == Some(&self.name) && self.index != link.header.index
    }

    fn news(&mut self, message: &RouteNetlinkMessage) -> Option<News> {
        match message {
            RouteNetlinkMessage::NewNeighbour(message) if message.header.ifindex == self.index => {
                self.neighbours.told(message)
            }
            RouteNetlinkMessage::DelNeighbour(message) if message.header.ifindex == self.index => {
                self.neighbours.forgotten(message);
                None
            }
            RouteNetlinkMessage::NewNeighbour(_) | RouteNetlinkMessage::DelNeighbour(_) => None,
            _ => Some(News::Changed),
        }
    }
}

/// What the kernel tells of a namespace, and who it is from.
type Told = (NetlinkMessage<RouteNetlinkMessage>, SocketAddr);

async fn follow_router(
    mut messages: impl Stream<Item = Told> + Unpin,
    kernel: Handle,
    mut external: External,
    pending: Arc<Pending>,
) {
    pending.tell(external.learn(&kernel).await);
    while let Some((message, _sender)) = messages.next().await {
        let news = match &message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) if external.is_remade(link) => {
                external.index = link.header.index;
                Some(external.learn(&kernel).await)
            }
            NetlinkPayload::InnerMessage(message) => external.news(message),
            // As after an overrun of the socket's buffer: what was lost may have said anything.
            _ => Some(external.learn(&kernel).await),
        };
        if let Some(news) = news {
            pending.tell(news);
        }
    }
}

async fn follow_master(mut messages: impl Stream<Item = Told> + Unpin, master: String, pending: Arc<Pending>) {
    while let Some((message, _sender)) = messages.next().await {
        let concerns_us = match &message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link)) => {
                name(link) == Some(&master)
            }
            NetlinkPayload::InnerMessage(_) => false,
            // As in the router's namespace.
            _ => true,
        };
        if concerns_us {
            pending.tell(News::Changed);
        }
    }
}

/// Tells of every message to [`SETTINGS`], whatever it says.
fn follow_settings(netns: &Netns, pending: Arc<Pending>) -> Result<JoinHandle<()>, LinkError> {
    let socket = open(netns, || {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, SETTINGS))?;
        Ok(socket)
    })?;
    Ok(tokio::spawn(async move {
        loop {
            // An error is an overrun: something has changed, and more than was read.
            let _what = socket.recv_from_full().await;
            pending.tell(News::Changed);
        }
    }))
}

fn name(link: &LinkMessage) -> Option<&String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn one_pending_news_stands_for_all_and_is_the_greatest() {
        use News::{Changed, Found};
        let pending = Pending::default();
        for (told, heard) in [
            (vec![Found], Found),
            (vec![Found, Found], Found),
            (vec![Found, Changed], Changed),
            (vec![Changed, Found], Changed),
            (vec![Changed, Found, Changed], Changed),
        ] {
            assert_eq!(pending.next().now_or_never(), None, "before {told:?}");
            told.iter().for_each(|news| pending.tell(*news));
            assert_eq!(pending.next().now_or_never(), Some(heard), "{told:?}");
        }
        assert_eq!(pending.next().now_or_never(), None);
    }
}
