//! Hearing on the wire that somebody else uses the router's addresses, long after they were probed for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::error::{Conflict, LinkError};
use super::frame::ClaimKind;
use super::mac::Mac;
use super::netns::Netns;
use super::observe::Interface;
use super::probe::Listeners;

/// Ears on the external interface. What is redirected past the stack never comes here, so they cost packets nothing.
#[derive(Debug)]
pub struct Rivals {
    listeners: Listeners,
    index: u32,
    own: Mac,
}

impl Rivals {
    /// Listens on an interface that is up. None without an Ethernet address.
    ///
    /// # Errors
    /// [`LinkError::Packet`] without `CAP_NET_RAW`, or when the interface is down or gone.
    pub fn listen(netns: &Netns, interface: &Interface) -> Result<Option<Self>, LinkError> {
        let Some(own) = interface.mac else { return Ok(None) };
        let index = interface.index;
        let failed =
            |source| LinkError::Packet { interface: interface.name.clone(), netns: netns.label().to_owned(), source };
        let listeners = netns.run(|| Listeners::open(index))?.map_err(failed)?;
        Ok(Some(Self { listeners, index, own }))
    }

    /// Whether it listens on this interface as it is now.
    #[must_use]
    pub fn is_on(&self, interface: &Interface) -> bool {
        self.index == interface.index && Some(self.own) == interface.mac
    }

    /// The interface's own Ethernet address.
    #[must_use]
    pub fn own(&self) -> Mac {
        self.own
    }

    /// Who has said since the last time that it has one of these addresses. Who only asks for one does not contend for it
    /// (RFC 5227, 2.4). With the own Ethernet address it is either another router of the same identity, or a frame of
    /// one's own that the network gives back.
    #[must_use]
    pub fn heard(&self, addresses: &[IpAddr]) -> Vec<Conflict> {
        let mut holders = BTreeMap::new();
        // An interface that went down says so once, and is heard again when it is up.
        let _went_down = self.listeners.drain(&mut |claim| {
            if claim.kind == ClaimKind::Holds && addresses.contains(&claim.address) {
                // A stranger's claim is not to be hidden by one's own.
                let holder = holders.entry(claim.address).or_insert(claim.by);
                if *holder == self.own {
                    *holder = claim.by;
                }
            }
        });
        holders.into_iter().map(|(address, holder)| Conflict { address, holder }).collect()
    }
}
