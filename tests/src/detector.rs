//! The detector at the outside: nothing may arrive there but what has a source that was given to the router.
//!
//! It looks at every frame that the outside's interface receives, for the whole life of the lab, whoever sent it, so
//! that a packet which no test thought of is found too.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, bail};

use crate::address::{NODE, SECOND_NODE};
use crate::capture::{Frame, Reader};
use crate::packet::{self, Content, Packet, protocol};
use crate::topology::OUTSIDE_INTERFACE;
use crate::{Lab, Netns, pcap};

/// How many offending frames are kept for the error and the pcap; all are counted.
const KEPT: usize = 64;

/// Watches one interface for packets that must not be there.
#[derive(Debug)]
pub struct Detector {
    reader: Reader,
    findings: Arc<Mutex<Findings>>,
    allowed: HashSet<IpAddr>,
}

/// What the detector has seen.
#[derive(Debug, Default, Clone)]
pub struct Findings {
    /// How many frames were looked at.
    pub frames: u64,
    /// How many IP packets came from each source.
    pub sources: BTreeMap<IpAddr, u64>,
    /// How many frames broke a rule.
    pub offences: u64,
    kept: Vec<(Offence, Frame)>,
}

/// Why a frame must not be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offence {
    /// An IP packet or an ARP message with a source that is not the router's.
    Leak {
        /// The source that it has.
        source: IpAddr,
        /// Where it is going.
        destination: IpAddr,
        /// IP's protocol number; absent for ARP.
        protocol: Option<u8>,
    },
    /// A packet whose checksum is wrong.
    Checksum {
        /// Which one.
        which: &'static str,
        /// The packet's source.
        source: IpAddr,
        /// Where it is going.
        destination: IpAddr,
    },
    /// A frame that says it is IP or ARP and is too short to be.
    Malformed,
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leak { source, destination, protocol: Some(protocol) } => {
                write!(f, "leak: {source} -> {destination}, protocol {protocol}")
            }
            Self::Leak { source, destination, protocol: None } => write!(f, "leak: ARP of {source} for {destination}"),
            Self::Checksum { which, source, destination } => {
                write!(f, "wrong {which} checksum: {source} -> {destination}")
            }
            Self::Malformed => f.write_str("malformed frame"),
        }
    }
}

impl Detector {
    /// Starts watching the outside of `lab`, where only `allowed` (the SNAT addresses) and the nodes themselves may appear.
    /// Checksums are verified too when the lab's offloads are off; else they are rightly unfinished.
    ///
    /// # Errors
    /// When the capture cannot be started.
    pub fn start(lab: &Lab, allowed: impl IntoIterator<Item = IpAddr>) -> Result<Self> {
        let node = if lab.options.node_addresses { NODE.both().to_vec() } else { Vec::new() };
        let second = if lab.second.is_some() { SECOND_NODE.both().to_vec() } else { Vec::new() };
        let checksums = !lab.options.offloads;
        Self::watch(&lab.outside, OUTSIDE_INTERFACE, allowed.into_iter().chain(node).chain(second), checksums)
    }

    /// Starts watching what `device` receives in `netns`, where only `allowed` may be a source.
    ///
    /// # Errors
    /// When the capture cannot be started.
    pub fn watch(
        netns: &Netns,
        device: &str,
        allowed: impl IntoIterator<Item = IpAddr>,
        checksums: bool,
    ) -> Result<Self> {
        let allowed = allowed.into_iter().collect::<HashSet<_>>();
        let findings = Arc::new(Mutex::new(Findings::default()));
        let (sink, rules) = (Arc::clone(&findings), allowed.clone());
        let reader = Reader::start(netns, device, move |frame| {
            sink.lock().unwrap_or_else(PoisonError::into_inner).look_at(frame, &rules, checksums);
        })?;
        Ok(Self { reader, findings, allowed })
    }

    /// What was seen up to now.
    ///
    /// # Errors
    /// When a frame was missed.
    pub fn findings(&self) -> Result<Findings> {
        self.reader.settle()?;
        Ok(self.findings.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Checks that nothing that arrived up to now broke a rule.
    ///
    /// # Errors
    /// With the first offences and the path of a pcap file that holds them; also when a frame was missed.
    pub fn assert_clean(&self) -> Result<()> {
        let findings = self.findings()?;
        if findings.offences == 0 {
            return Ok(());
        }
        let file = match pcap::dump("offences", findings.kept.iter().map(|(_, frame)| frame)) {
            Ok(path) => path.display().to_string(),
            Err(error) => format!("no file: {error:#}"),
        };
        let mut allowed = self.allowed.iter().map(ToString::to_string).collect::<Vec<_>>();
        allowed.sort();
        let list = findings.kept.iter().take(8).map(|(offence, _)| format!("\n  {offence}")).collect::<String>();
        bail!(
            "{} of {} frames at the outside must not be there (allowed sources: {}; frames in {file}):{list}",
            findings.offences,
            findings.frames,
            allowed.join(", ")
        )
    }
}

impl Findings {
    /// The kept offences, first come first.
    pub fn offences(&self) -> impl Iterator<Item = &Offence> {
        self.kept.iter().map(|(offence, _)| offence)
    }

    fn look_at(&mut self, frame: Frame, allowed: &HashSet<IpAddr>, checksums: bool) {
        self.frames += 1;
        let content = packet::read(&frame.bytes);
        if let Content::Ip(packet) = &content {
            *self.sources.entry(packet.source).or_default() += 1;
        }
        if let Some(offence) = offence(&content, allowed, checksums) {
            self.offences += 1;
            if self.kept.len() < KEPT {
                self.kept.push((offence, frame));
            }
        }
    }
}

fn offence(content: &Content<'_>, allowed: &HashSet<IpAddr>, checksums: bool) -> Option<Offence> {
    match content {
        Content::Ip(packet) => {
            if !allowed.contains(&packet.source) && !is_link_traffic(packet) {
                let (source, destination) = (packet.source, packet.destination);
                return Some(Offence::Leak { source, destination, protocol: Some(packet.protocol) });
            }
            let which = if checksums { packet.wrong_checksum() } else { None };
            which.map(|which| Offence::Checksum { which, source: packet.source, destination: packet.destination })
        }
        // An ARP probe has no sender yet (RFC 5227).
        Content::Arp { sender, .. } if *sender == Ipv4Addr::UNSPECIFIED => None,
        Content::Arp { sender, target } => {
            let source = IpAddr::V4(*sender);
            let known = allowed.contains(&source);
            (!known).then_some(Offence::Leak { source, destination: IpAddr::V4(*target), protocol: None })
        }
        Content::Other(_) => None,
        Content::Malformed => Some(Offence::Malformed),
    }
}

/// Multicast listener and neighbour discovery messages, which a link's own or no address may send (RFC 2710, 3810, 4861).
fn is_link_traffic(packet: &Packet<'_>) -> bool {
    let own = matches!(packet.source, IpAddr::V6(source) if packet::is_link_local(source));
    let kind = packet.icmp().map(|(kind, _)| kind);
    own && packet.protocol == protocol::ICMPV6 && matches!(kind, Some(130..=136 | 143))
}
