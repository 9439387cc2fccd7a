//! Asking the external network who has a router's addresses, whether this router has them or not.
//!
//! The questions go out of the macvlan's master, with the master's own Ethernet address: the router's would make switches
//! send its packets here. A macvlan and its own host hear nothing of each other, so this router never answers: whoever does
//! is another one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use super::Place;
use super::decode::snapshot;
use super::error::LinkError;
use super::frame::{self, ClaimKind};
use super::mac::Mac;
use super::probe::Listeners;

/// Mouth and ears on a master.
#[derive(Debug)]
pub struct Inquiry {
    listeners: Listeners,
    netns: String,
    master: String,
    own: Mac,
}

/// What was heard.
#[derive(Debug, Default)]
pub struct Heard {
    /// Who has which address.
    pub holders: BTreeMap<IpAddr, Mac>,
    /// Who else asks for one of them.
    pub asking: BTreeSet<Mac>,
    /// Whether the network gives back what this host sends, as a reflecting switch does: then this router answers, too.
    pub reflected: bool,
}

impl Inquiry {
    /// Begins to listen on a master.
    ///
    /// # Errors
    /// [`LinkError::NoInterface`]; [`LinkError::Packet`] without `CAP_NET_RAW`.
    pub fn open(place: &Place, master: &str) -> Result<Self, LinkError> {
        let netns = place.master.label();
        let no_interface = || LinkError::NoInterface { interface: master.to_owned(), netns: netns.to_owned() };
        let state = snapshot(&place.master, &[], None)?;
        let found = state.interface(master).ok_or_else(no_interface)?;
        let (index, own) = (found.index, found.mac.ok_or_else(no_interface)?);
        let failed = |source| LinkError::Packet { interface: master.to_owned(), netns: netns.to_owned(), source };
        let listeners = place.master.run(|| Listeners::open(index))?.map_err(failed)?;
        Ok(Self { listeners, netns: netns.to_owned(), master: master.to_owned(), own })
    }

    /// The master that it listens on.
    #[must_use]
    pub fn master(&self) -> &str {
        &self.master
    }

    /// The master's Ethernet address.
    #[must_use]
    pub fn own(&self) -> Mac {
        self.own
    }

    /// Asks once for each address.
    ///
    /// # Errors
    /// [`LinkError::Packet`] when the master is down or gone.
    pub fn ask(&self, addresses: &[IpAddr]) -> Result<(), LinkError> {
        let ask = |address: &IpAddr| self.listeners.send(*address, &frame::probe(self.own, *address));
        addresses.iter().try_for_each(ask).map_err(|source| self.failed(source))
    }

    /// What has been said of these addresses since the last time.
    ///
    /// # Errors
    /// [`LinkError::Packet`] when the master went down: then nothing can have been heard.
    pub fn heard(&self, addresses: &[IpAddr]) -> Result<Heard, LinkError> {
        let mut heard = Heard::default();
        let hear = &mut |claim: frame::Claim| {
            if !addresses.contains(&claim.address) {
                return;
            }
            match claim.kind {
                _ if claim.by == self.own => heard.reflected = true,
                ClaimKind::Holds => drop(heard.holders.insert(claim.address, claim.by)),
                ClaimKind::Asks => drop(heard.asking.insert(claim.by)),
            }
        };
        self.listeners.drain(hear).map_err(|source| self.failed(source))?;
        Ok(heard)
    }

    fn failed(&self, source: io::Error) -> LinkError {
        LinkError::Packet { interface: self.master.clone(), netns: self.netns.clone(), source }
    }
}
