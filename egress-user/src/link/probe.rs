//! Asking the external network whether somebody has an address, before taking it.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};

use super::Place;
use super::decode::snapshot;
use super::error::{Conflict, LinkError};
use super::frame::{self, Claim, ClaimKind, ETH_ARP, ETH_IPV6};
use super::sys::packet_socket;

/// As RFC 5227 has it.
const PROBES: u32 = 3;
/// Shorter than RFC 5227's one to two seconds: a router that restarts is missed meanwhile, and a host on the same
/// link answers in milliseconds.
const INTERVAL: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 300 });

/// Frames that are read at a time: a flood that comes faster than it is read does not keep the reader for ever.
const MOST_FRAMES: usize = 4096;

/// Sends three probes for each address within a second from an interface of the router's, listening for whoever has one
/// or is about to take it (but in [`Place::standby`], where others ask all the time).
///
/// The addresses are not on the interface yet, and the interface is up. Hosts that cannot be heard are not found:
/// other macvlans of the same master when it is in mode private, vepa without a reflecting switch, and the host itself
/// in any mode.
///
/// # Errors
/// [`LinkError::Conflict`] naming the holders; [`LinkError::Packet`] without `CAP_NET_RAW`.
pub fn probe(place: &Place, interface: &str, addresses: &[IpAddr]) -> Result<(), LinkError> {
    let netns = &place.router;
    if addresses.is_empty() {
        return Ok(());
    }
    let no_interface = || LinkError::NoInterface { interface: interface.to_owned(), netns: netns.label().to_owned() };
    let state = snapshot(netns, &[], None)?;
    let found = state.interface(interface).ok_or_else(no_interface)?;
    let (index, own) = (found.index, found.mac.ok_or_else(no_interface)?);
    let counts = |claim: &Claim| {
        claim.by != own && addresses.contains(&claim.address) && (claim.kind == ClaimKind::Holds || !place.standby)
    };
    let holders = netns
        .run(|| {
            let listeners = Listeners::open(index)?;
            let mut holders = BTreeMap::new();
            for _ in 0..PROBES {
                for address in addresses {
                    listeners.send(*address, &frame::probe(own, *address))?;
                }
                listeners.listen(Instant::now() + INTERVAL, &mut |claim| {
                    if counts(&claim) {
                        holders.entry(claim.address).or_insert(claim.by);
                    }
                })?;
                if holders.len() == addresses.len() {
                    break;
                }
            }
            Ok(holders)
        })?
        .map_err(|source| LinkError::Packet {
            interface: interface.to_owned(),
            netns: netns.label().to_owned(),
            source,
        })?;
    if holders.is_empty() {
        return Ok(());
    }
    Err(LinkError::Conflict(holders.into_iter().map(|(address, holder)| Conflict { address, holder }).collect()))
}

#[derive(Debug)]
pub(super) struct Listeners {
    arp: OwnedFd,
    ipv6: OwnedFd,
}

impl Listeners {
    pub(super) fn open(index: u32) -> io::Result<Self> {
        Ok(Self { arp: packet_socket(index, ETH_ARP)?, ipv6: packet_socket(index, ETH_IPV6)? })
    }

    pub(super) fn send(&self, address: IpAddr, frame: &[u8]) -> io::Result<()> {
        write(if address.is_ipv4() { &self.arp } else { &self.ipv6 }, frame)?;
        Ok(())
    }

    fn listen(&self, until: Instant, hear: &mut impl FnMut(Claim)) -> io::Result<()> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let mut ready =
                [PollFd::new(self.arp.as_fd(), PollFlags::POLLIN), PollFd::new(self.ipv6.as_fd(), PollFlags::POLLIN)];
            // Rounded up: the last fraction of a millisecond would be spent spinning.
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO);
            match poll(&mut ready, timeout) {
                Err(Errno::EINTR) => {}
                other => {
                    other?;
                }
            }
            self.drain(hear)?;
        }
    }

    /// Tells what is said in the frames that have come already; of a flood, in more than the kernel keeps.
    pub(super) fn drain(&self, hear: &mut impl FnMut(Claim)) -> io::Result<()> {
        for socket in [&self.arp, &self.ipv6] {
            for _ in 0..MOST_FRAMES {
                let Some(frame) = receive(socket)? else { break };
                frame::claim(&frame).into_iter().for_each(&mut *hear);
            }
        }
        Ok(())
    }
}

fn receive(socket: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
    // Longer ones are cut, and none of those matters.
    let mut frame = vec![0; 256];
    match read(socket, &mut frame) {
        Ok(length) => {
            frame.truncate(length);
            Ok(Some(frame))
        }
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
