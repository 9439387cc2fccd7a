//! What can go wrong with the link, each with its subject and, where there is one, the way out.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use super::change::Change;
use super::mac::Mac;
use super::observe::Sysctl;

/// Why the external interface cannot be read, made or removed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The namespace does not exist or may not be opened.
    #[error("open network namespace {netns} ({})", path.display())]
    OpenNetns {
        /// As the user named it.
        netns: String,
        /// The file that was tried.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The namespace exists and cannot be entered: needs `CAP_SYS_ADMIN`.
    #[error("enter network namespace {netns}")]
    EnterNetns {
        /// As the user named it.
        netns: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Another `egress-router` works on the namespace.
    #[error("network namespace {netns} is in the hands of {holder}: end it first, or edit the file that it follows")]
    Busy {
        /// As the user named it.
        netns: String,
        /// Who has it.
        holder: Holder,
    },
    /// Reading the present state failed.
    #[error("read {what} of network namespace {netns}")]
    Observe {
        /// Which part of the state.
        what: &'static str,
        /// The namespace.
        netns: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The interface to the cluster is missing.
    #[error(
        "no cluster interface {interface} in network namespace {netns}, which has {}; name another with --cluster-interface",
        list(candidates)
    )]
    NoClusterInterface {
        /// The name that was looked for.
        interface: String,
        /// Where.
        netns: String,
        /// The interfaces that are there.
        candidates: Vec<String>,
    },
    /// The cluster interface has no link addresses, as a tunnel has not: frames could neither be told apart nor be sent back.
    #[error(
        "cluster interface {interface} in network namespace {netns} is not an Ethernet interface: it has no link addresses, \
         by which packets come to the router and replies go back; name another with --cluster-interface"
    )]
    ClusterNotEthernet {
        /// The cluster interface.
        interface: String,
        /// Where.
        netns: String,
    },
    /// An interface name that Linux does not take, or the cluster interface's own.
    #[error(
        "external interface cannot be called {0:?}: 1 to 15 bytes, no slash or space, not the cluster interface's name"
    )]
    InterfaceName(String),
    /// The router has an IPv6 address and the kernel has no IPv6.
    #[error("no IPv6 in network namespace {netns}: the kernel was started without it")]
    NoIpv6 {
        /// Where.
        netns: String,
    },
    /// The specification has no address.
    #[error("the router has no address")]
    NoAddress,
    /// The interface to the outside would share an address with the interface to the cluster.
    #[error("address {address} is already on the cluster interface {interface}")]
    AddressOnCluster {
        /// The address of the specification.
        address: IpAddr,
        /// The cluster interface.
        interface: String,
    },
    /// The address belongs to the host that the master is part of.
    #[error("address {address} is already on {interface} in network namespace {netns}")]
    AddressOnHost {
        /// The address of the specification.
        address: IpAddr,
        /// Who has it.
        interface: String,
        /// Where.
        netns: String,
    },
    /// A rule leads to the macvlan's own host.
    #[error(
        "{host} is an address of {interface} in network namespace {netns}, which carries the macvlan: a macvlan never reaches \
         its own host (Linux's rule, in every mode); name another address of that host, outside the router's subnet, or another \
         master"
    )]
    HostOutOfReach {
        /// Whom a rule leads to.
        host: IpAddr,
        /// The master.
        interface: String,
        /// Where.
        netns: String,
    },
    /// The specification's master does not exist.
    #[error("no master interface {master} in network namespace {netns}, which has {}", list(candidates))]
    MasterMissing {
        /// The specification's master.
        master: String,
        /// Where it was looked for.
        netns: String,
        /// The interfaces that could be masters.
        candidates: Vec<String>,
    },
    /// The specification names no master and none can be inferred.
    #[error(
        "no interface in network namespace {netns} has {address} in its subnet and none has the default route; \
         name one as macvlan.master: {}",
        list(candidates)
    )]
    MasterUnknown {
        /// The address that was looked for.
        address: IpAddr,
        /// Where.
        netns: String,
        /// The interfaces that could be masters.
        candidates: Vec<String>,
    },
    /// The specification names no master and several fit.
    #[error(
        "several interfaces in network namespace {netns} could be the master for {address}: {}; name one as macvlan.master",
        list(candidates)
    )]
    MasterAmbiguous {
        /// The address that was looked for.
        address: IpAddr,
        /// Where.
        netns: String,
        /// The interfaces that fit.
        candidates: Vec<String>,
    },
    /// The master cannot carry the macvlan.
    #[error("master interface {master} in network namespace {netns} {fault}")]
    MasterUnfit {
        /// The master.
        master: String,
        /// Where.
        netns: String,
        /// What is the matter with it.
        fault: MasterFault,
    },
    /// An interface of the right name exists that is not ours and differs.
    #[error(
        "interface {interface} in network namespace {netns} exists and is another one: {}; `--adopt` uses it as it is",
        list(differences)
    )]
    Mismatch {
        /// The external interface's name.
        interface: String,
        /// Where.
        netns: String,
        /// In what it differs.
        differences: Vec<Difference>,
    },
    /// Somebody on the wire has the addresses.
    #[error("{}", list(.0))]
    Conflict(Vec<Conflict>),
    /// An announcement was asked for an address that the interface does not have.
    #[error("{interface} in network namespace {netns} does not hold {address}: not announced")]
    NotHeld {
        /// The interface.
        interface: String,
        /// Where.
        netns: String,
        /// The address.
        address: IpAddr,
    },
    /// An interface disappeared or was never there.
    #[error("no interface {interface} in network namespace {netns}")]
    NoInterface {
        /// The interface.
        interface: String,
        /// Where.
        netns: String,
    },
    /// A step failed; what was done before it has been undone, but for `not_undone`.
    #[error("{change}{}", not_undone_note(not_undone))]
    Apply {
        /// The step.
        change: Box<Change>,
        /// Why it failed.
        source: Box<LinkError>,
        /// What could not be undone.
        not_undone: Vec<LinkError>,
    },
    /// A netlink request, read or write failed.
    #[error("in network namespace {netns}")]
    Request {
        /// Where.
        netns: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A kernel setting could not be written.
    #[error("write {value} to {} in network namespace {netns}", key.path().display())]
    Sysctl {
        /// The setting.
        key: Sysctl,
        /// The value.
        value: String,
        /// Where.
        netns: String,
        /// The kernel's reason: `EROFS` when /proc/sys is read-only, as in an unprivileged container.
        source: io::Error,
    },
    /// Sending or receiving frames failed.
    #[error("send or receive frames on {interface} in network namespace {netns}")]
    Packet {
        /// The interface.
        interface: String,
        /// Where.
        netns: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The ends of flows could not be told that they are over.
    #[error("tell the ends of flows that they are over, from network namespace {netns}")]
    Sever {
        /// Where.
        netns: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The record of what was there before could not be read or written.
    #[error("keep record of earlier settings in {}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// The process that works on a namespace, when it can be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder(pub(super) Option<u32>);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "another egress-router (process {pid})"),
            None => f.write_str("another egress-router"),
        }
    }
}

/// Why an interface cannot carry a macvlan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MasterFault {
    /// Not set up.
    Down,
    /// Set up, and the other end is not there.
    NoCarrier,
    /// `lo`.
    Loopback,
    /// Has no Ethernet address.
    NotEthernet,
    /// A port of a bridge, bond or switch, which takes every frame before a macvlan would see it.
    Enslaved {
        /// The bridge, bond or switch.
        controller: String,
        /// Its kind.
        kind: String,
    },
    /// Itself a macvlan in passthru mode, or already the master of one.
    PassthruTaken {
        /// The passthru interface.
        by: String,
    },
    /// Too small for IPv6, which needs 1280 bytes.
    MtuTooSmall(u32),
}

impl fmt::Display for MasterFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down => f.write_str("is down: set it up first (ip link set ... up)"),
            Self::NoCarrier => f.write_str("has no carrier: its other end is down or not plugged in"),
            Self::Loopback => f.write_str("is a loopback interface"),
            Self::NotEthernet => f.write_str("is not an Ethernet interface"),
            Self::Enslaved { controller, kind } => write!(
                f,
                "is a port of {controller} ({kind}), which takes its frames before a macvlan sees them: use {controller} or another interface"
            ),
            Self::PassthruTaken { by } => {
                write!(f, "is taken by {by}, a macvlan in passthru mode, which shares with none")
            }
            Self::MtuTooSmall(mtu) => write!(f, "has an MTU of {mtu}, and IPv6 needs 1280"),
        }
    }
}

/// One property in which an existing interface differs from what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The property.
    pub field: &'static str,
    /// What the specification asks for.
    pub wanted: String,
    /// What is there.
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, wanted {}", self.field, self.found, self.wanted)
    }
}

/// An address that another host on the external network uses or is about to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The address.
    pub address: IpAddr,
    /// Who has it.
    pub holder: Mac,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "address {} is in use by {} on the external network", self.address, self.holder)
    }
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    if items.is_empty() {
        return "none".to_owned();
    }
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

impl LinkError {
    /// Who has the addresses because of which it failed.
    #[must_use]
    pub fn conflicts(&self) -> &[Conflict] {
        match self {
            Self::Conflict(conflicts) => conflicts,
            Self::Apply { source, .. } => source.conflicts(),
            _ => &[],
        }
    }
}

fn not_undone_note(errors: &[LinkError]) -> String {
    if errors.is_empty() { String::new() } else { format!(" (and could not undo: {})", list(errors)) }
}
