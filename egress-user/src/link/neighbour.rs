//! Whether neighbours on the external network answer: the kernel asks them, and knows.

use std::collections::HashMap;
use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use serde::Serialize;

use super::error::LinkError;
use super::mac::Mac;
use super::netlink;
use super::netns::Netns;

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

/// The neighbours of one interface, by what the kernel tells of them.
///
/// The kernel tells of each step of asking whether a neighbour is still there, which is most of what it tells and no change: who
/// is where it was, and answers, needs nothing looked up again.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    known: HashMap<IpAddr, (Option<Mac>, Answer)>,
}

impl Neighbours {
    /// Takes note of a neighbour. Returns whether it is another than before: at another place, or fallen silent, or back.
    pub(super) fn changed(&mut self, message: &NeighbourMessage) -> bool {
        // What cannot be read may say anything.
        let Some(Neighbour { address, mac, answer }) = read(message) else { return true };
        let before = self.known.insert(address, (mac, answer)).unwrap_or((None, Answer::Asked));
        before != (mac, answer)
    }

    /// Takes note of a neighbour that the kernel has forgotten.
    pub(super) fn gone(&mut self, message: &NeighbourMessage) {
        if let Some(neighbour) = read(message) {
            self.known.remove(&neighbour.address);
        }
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

    #[test]
    fn being_asked_again_is_no_change() {
        use NeighbourState::{Delay, Failed, Incomplete, Probe, Reachable, Stale};
        const HERE: Option<[u8; 6]> = Some([2, 0, 0, 0, 0, 1]);
        const THERE: Option<[u8; 6]> = Some([2, 0, 0, 0, 0, 2]);
        for address in ["192.168.12.1", "fd00:12::1"] {
            let mut neighbours = Neighbours::default();
            let steps = [
                (None, Incomplete, false),
                (HERE, Reachable, true),
                (HERE, Stale, false),
                (HERE, Delay, false),
                (HERE, Probe, false),
                (HERE, Reachable, false),
                (THERE, Stale, true),
                (THERE, Failed, true),
                (THERE, Probe, true),
            ];
            for (number, (mac, state, is_news)) in steps.into_iter().enumerate() {
                assert_eq!(neighbours.changed(&message(address, mac, state)), is_news, "{address}, step {number}");
            }
            assert!(neighbours.changed(&message("192.168.12.9", HERE, Stale)), "another one");
            neighbours.gone(&message(address, THERE, Stale));
            assert!(neighbours.changed(&message(address, THERE, Stale)), "back again");
        }
    }
}
