//! Whether neighbours on the external network answer: the kernel asks them, and knows.

use std::collections::HashMap;
use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use rtnetlink::Handle;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use serde::Serialize;
use tracing::warn;

use super::error::LinkError;
use super::mac::Mac;
use super::netlink;
use super::netns::Netns;
use super::watch::News;

/// A neighbour, as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its Ethernet address, the last that was known.
    pub mac: Option<Mac>,
    /// Whether it answers.
    pub answer: Answer,
}

/// Whether a neighbour answers ARP or neighbour discovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// It does, or did lately.
    Answers,
    /// It is being asked.
    Asked,
    /// It does not.
    Silent,
}

/// What the kernel knows of these neighbours of an interface. It asks those again that it is not sure of (`NTF_USE`), as a
/// packet to them would make it.
///
/// # Errors
/// [`LinkError::NoInterface`]; [`LinkError::Observe`] when the kernel does not tell.
pub fn neighbours(netns: &Netns, interface: &str, addresses: &[IpAddr]) -> Result<Vec<Neighbour>, LinkError> {
    if addresses.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |error| LinkError::Observe {
        what: "neighbours",
        netns: netns.label().to_owned(),
        source: netlink::reason(error),
    };
    let index = nix::net::if_::if_nametoindex;
    netlink::with(netns, async |handle| {
        let Ok(index) = index(interface) else {
            return Err(LinkError::NoInterface { interface: interface.to_owned(), netns: netns.label().to_owned() });
        };
        let messages: Vec<NeighbourMessage> =
            handle.neighbours().get().execute().try_collect().await.map_err(failed)?;
        let known: Vec<Neighbour> =
            messages.iter().filter(|one| one.header.ifindex == index).filter_map(read).collect();
        let mut found = Vec::new();
        for address in addresses {
            let one = known.iter().find(|one| one.address == *address).copied();
            found.push(one.unwrap_or(Neighbour { address: *address, mac: None, answer: Answer::Asked }));
            let ask = handle.neighbours().add(index, *address).state(NeighbourState::None);
            ask.flags(NeighbourFlags::Use).replace().execute().await.map_err(failed)?;
        }
        Ok(found)
    })
}

/// How often the kernel is asked for its neighbours: what it tells of other things meanwhile can be taken for an answer.
const DUMP_TRIES: u32 = 3;

/// The neighbours on one interface, by what the kernel tells of them.
///
/// The kernel tells of each step of asking whether a neighbour is still there, which is most of what it tells and no change: who
/// is where it was, and answers, needs nothing looked up again. Nor does a packet go another way because somebody is there who was
/// not: whoever sends to a silent neighbour asks for it, and learns. Nor because the kernel forgets one, as it does with those that
/// nothing has gone to for a minute, and with any when it knows too many: a flow that goes there asks in its own turn. (Of one that
/// somebody removes it says first that it is silent, and of an interface that loses all, that it changes.)
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    /// Where each was when it answered last, if it ever did, and whether it does.
    known: HashMap<IpAddr, (Option<Mac>, bool)>,
    /// Whether it is known of all others that they do not.
    is_complete: bool,
}

impl Neighbours {
    /// Those that the kernel knows now. To be asked for by who is told already of what happens meanwhile.
    pub(super) async fn on(kernel: &Handle, index: u32) -> Self {
        for _ in 0..DUMP_TRIES {
            let known: Result<Vec<NeighbourMessage>, _> = kernel.neighbours().get().execute().try_collect().await;
            match known {
                Ok(known) => {
                    let mut neighbours = Self { is_complete: true, ..Self::default() };
                    for message in known.iter().filter(|one| one.header.ifindex == index) {
                        neighbours.told(message);
                    }
                    return neighbours;
                }
                Err(failed) => warn!("read neighbours: {failed}"),
            }
        }
        Self::default()
    }

    /// Takes note of a neighbour. Returns whether that is news: it is at another place than when it answered last, or has fallen
    /// silent, or answers at last.
    pub(super) fn told(&mut self, message: &NeighbourMessage) -> Option<News> {
        // What cannot be read may say anything.
        let Some(Neighbour { address, mac, answer }) = read(message) else { return Some(News::Changed) };
        let before = self.before(address);
        let answers = answer == Answer::Answers;
        let last = before.and_then(|(mac, _)| mac);
        self.known.insert(address, (if answers { mac } else { last }, answers));
        match before {
            Some((_, false)) if !answers => None,
            Some((None, false)) => Some(News::Found),
            Some((there, false)) if there == mac => Some(News::Found),
            Some((there, true)) if answers && there == mac => None,
            _ => Some(News::Changed),
        }
    }

    /// Takes note of a neighbour that the kernel has forgotten, which is no news.
    pub(super) fn forgotten(&mut self, message: &NeighbourMessage) {
        if let Some(Neighbour { address, .. }) = read(message) {
            self.known.remove(&address);
        }
    }

    /// What was known of a neighbour; nothing, if it may have been anywhere.
    fn before(&self, address: IpAddr) -> Option<(Option<Mac>, bool)> {
        self.known.get(&address).copied().or_else(|| self.is_complete.then_some((None, false)))
    }
}

fn read(message: &NeighbourMessage) -> Option<Neighbour> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })?;
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac),
        _ => None,
    });
    let answer = match message.header.state {
        NeighbourState::Failed => Answer::Silent,
        NeighbourState::Incomplete | NeighbourState::None => Answer::Asked,
        _ => Answer::Answers,
    };
    Some(Neighbour { address, mac, answer })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(address: &str, mac: Option<[u8; 6]>, state: NeighbourState) -> NeighbourMessage {
        let address = match address.parse().unwrap() {
            IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
            IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
        };
        let mut message = NeighbourMessage::default();
        message.header.state = state;
        message.attributes.push(NeighbourAttribute::Destination(address));
        message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
        message
    }

    use NeighbourState::{Delay, Failed, Incomplete, Permanent, Probe, Reachable, Stale};

    const HERE: Option<[u8; 6]> = Some([2, 0, 0, 0, 0, 1]);
    const THERE: Option<[u8; 6]> = Some([2, 0, 0, 0, 0, 2]);
    const FOUND: Option<News> = Some(News::Found);
    const CHANGED: Option<News> = Some(News::Changed);

    fn complete() -> Neighbours {
        Neighbours { is_complete: true, ..Neighbours::default() }
    }

    #[test]
    fn each_step_of_a_neighbour_is_the_news_that_it_is() {
        for address in ["192.168.12.1", "fd00:12::1"] {
            let mut neighbours = complete();
            let steps = [
                (None, Incomplete, None),
                (None, Failed, None),
                (None, Incomplete, None),
                (HERE, Reachable, FOUND),
                (HERE, Stale, None),
                (HERE, Delay, None),
                (HERE, Probe, None),
                (HERE, Reachable, None),
                (THERE, Stale, CHANGED),
                (THERE, Permanent, None),
                (HERE, Permanent, CHANGED),
                (HERE, Failed, CHANGED),
                (None, Failed, None),
                (THERE, Probe, CHANGED),
                (None, Incomplete, CHANGED),
                (HERE, Failed, None),
                (THERE, Stale, FOUND),
            ];
            for (number, (mac, state, news)) in steps.into_iter().enumerate() {
                assert_eq!(neighbours.told(&message(address, mac, state)), news, "{address}, step {number}");
            }
        }
    }

    #[test]
    fn a_forgotten_neighbour_is_found_again_wherever_it_is() {
        for address in ["192.168.12.1", "fd00:12::1"] {
            let mut neighbours = complete();
            assert_eq!(neighbours.told(&message(address, HERE, Reachable)), FOUND);
            neighbours.forgotten(&message(address, HERE, Stale));
            assert_eq!(neighbours.told(&message(address, None, Incomplete)), None);
            assert_eq!(neighbours.told(&message(address, THERE, Reachable)), FOUND);
            assert!(neighbours.known.len() == 1, "what is forgotten takes no room");
        }
    }

    #[test]
    fn while_not_all_neighbours_are_known_an_unknown_one_may_have_been_anywhere() {
        for address in ["192.168.12.1", "fd00:12::1"] {
            for first in [(HERE, Reachable), (None, Incomplete), (None, Failed)] {
                let mut neighbours = Neighbours::default();
                let (mac, state) = first;
                assert_eq!(neighbours.told(&message(address, mac, state)), CHANGED, "{address} {state:?}");
            }
            let mut neighbours = Neighbours::default();
            neighbours.told(&message(address, HERE, Reachable));
            assert_eq!(neighbours.told(&message(address, HERE, Stale)), None, "{address} is known now");
        }
    }

    #[test]
    fn what_cannot_be_read_is_a_change() {
        assert_eq!(complete().told(&NeighbourMessage::default()), CHANGED);
    }
}
