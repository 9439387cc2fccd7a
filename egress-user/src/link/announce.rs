//! Telling the external network where the router's addresses are, once packets would be translated.
//!
//! Peers and switches keep what they learned for seconds to hours; whoever held the address before may be in there.

use std::net::IpAddr;
use std::time::Duration;

use nix::unistd::write;

use super::decode::snapshot;
use super::error::LinkError;
use super::frame::{self, ETH_ARP, ETH_IPV6};
use super::netns::Netns;
use super::sys::packet_socket;

/// How often: a single announcement gets lost, or is ignored by a switch that is learning the port.
const ROUNDS: u32 = 3;
const INTERVAL: Duration = Duration::from_secs(1);

/// Announces each address once: IPv4 by ARP request and by ARP reply, IPv6 by an unsolicited neighbour advertisement
/// with the override flag. To every host on the network.
///
/// # Errors
/// [`LinkError::NotHeld`] when the interface does not have an address, or knows that another host has it: only the
/// owner announces. [`LinkError::Packet`] without `CAP_NET_RAW` or when the interface is down.
pub fn announce(netns: &Netns, interface: &str, addresses: &[IpAddr]) -> Result<(), LinkError> {
    let (name, label) = (|| interface.to_owned(), || netns.label().to_owned());
    let no_interface = || LinkError::NoInterface { interface: name(), netns: label() };
    let state = snapshot(netns, &[], None)?;
    let found = state.interface(interface).ok_or_else(no_interface)?;
    let (index, own) = (found.index, found.mac.ok_or_else(no_interface)?);
    let held = |address: &IpAddr| found.address(*address).is_some_and(|held| !held.duplicate && !held.tentative);
    if let Some(address) = addresses.iter().find(|address| !held(address)) {
        return Err(LinkError::NotHeld { interface: name(), netns: label(), address: *address });
    }
    let send = || {
        for (kind, v4) in [(ETH_ARP, true), (ETH_IPV6, false)] {
            let mut frames = addresses.iter().filter(|address| address.is_ipv4() == v4).peekable();
            if frames.peek().is_some() {
                let socket = packet_socket(index, kind)?;
                for frame in frames.flat_map(|address| frame::announcements(own, *address)) {
                    write(&socket, &frame)?;
                }
            }
        }
        Ok(())
    };
    netns.run(send)?.map_err(|source| LinkError::Packet { interface: name(), netns: label(), source })
}

/// Announces three times, a second apart. Goes on after a failure, and stops when the interface no longer holds the
/// addresses.
///
/// # Errors
/// As [`announce`]: the last one.
pub async fn announce_rounds(netns: Netns, interface: String, addresses: Vec<IpAddr>) -> Result<(), LinkError> {
    let mut last = Ok(());
    for round in 0..ROUNDS {
        if round > 0 {
            tokio::time::sleep(INTERVAL).await;
        }
        let (netns, interface, addresses) = (netns.clone(), interface.clone(), addresses.clone());
        let sent = tokio::task::spawn_blocking(move || announce(&netns, &interface, &addresses)).await;
        last = sent.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        if let Err(LinkError::NotHeld { .. } | LinkError::NoInterface { .. }) = last {
            break;
        }
    }
    last
}
