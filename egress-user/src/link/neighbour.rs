//! Whether neighbours on the external network answer: the kernel asks them, and knows.

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

/// Whether a message is about a neighbour of this interface.
pub(super) fn is_on(message: &NeighbourMessage, index: u32) -> bool {
    message.header.ifindex == index
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
