//! Values of arguments, parsed at the edge.

use std::num::{NonZeroU16, NonZeroU32};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::ValueEnum;
use egress_ebpf::timeout::Class;

use crate::compile::Protocol;

/// Least level of log messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Failures only.
    Error,
    /// And what looks wrong.
    Warn,
    /// And what was changed.
    #[default]
    Info,
    /// And why.
    Debug,
    /// Everything.
    Trace,
}

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// How the programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Hook {
    /// The best that the kernel has; XDP programs too, where both interfaces are hardware that takes them.
    #[default]
    Auto,
    /// The best that the kernel has, without XDP.
    Tc,
    /// XDP programs before the others, on any interface that takes them; an error where one does not.
    Xdp,
    /// As tcx links, Linux 6.6 or newer.
    Tcx,
    /// As filters of a clsact qdisc.
    Clsact,
}

/// Which way translated packets take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum FastPath {
    /// Past the kernel's stack, where nothing speaks against it.
    #[default]
    On,
    /// All through the kernel's stack.
    Off,
}

/// An idle timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// All as the router namespace's connection tracking has them, where it has any.
    Auto,
    /// One state's.
    Of {
        /// The state.
        class: Class,
        /// Seconds.
        seconds: NonZeroU32,
    },
}

impl FromStr for Timeout {
    type Err = ArgError;

    fn from_str(text: &str) -> Result<Self, ArgError> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let parsed = text.split_once('=').and_then(|(name, seconds)| {
            let class = Class::ALL.into_iter().find(|class| class.name() == name)?;
            Some(Self::Of { class, seconds: seconds.parse().ok()? })
        });
        parsed.ok_or_else(|| ArgError::Timeout { text: text.to_owned() })
    }
}

/// What becomes of live flows when their rule changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExistingFlows {
    /// They go on to their old destination.
    #[default]
    Keep,
    /// They do for this many seconds, then are cut.
    Drain {
        /// Seconds.
        seconds: NonZeroU32,
    },
    /// They are cut.
    Cut,
}

impl FromStr for ExistingFlows {
    type Err = ArgError;

    fn from_str(text: &str) -> Result<Self, ArgError> {
        let wrong = || ArgError::ExistingFlows { text: text.to_owned() };
        match text {
            "keep" => Ok(Self::Keep),
            "cut" => Ok(Self::Cut),
            _ => {
                let seconds = text.strip_prefix("drain=").ok_or_else(wrong)?;
                Ok(Self::Drain { seconds: seconds.parse().map_err(|_no_number| wrong())? })
            }
        }
    }
}

/// Whether `run` gives up what it does not need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Confine {
    /// Capabilities, writable files, system calls.
    #[default]
    On,
    /// Nothing.
    Off,
}

/// What `run` leaves behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnExit {
    /// Everything: packets are translated without the agent.
    #[default]
    Keep,
    /// Nothing.
    Remove,
}

/// A network namespace, by the path of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns(PathBuf);

impl Netns {
    /// Where `ip netns` keeps its names.
    const NAMED: &str = "/run/netns";

    /// The namespace's file.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for Netns {
    type Err = ArgError;

    fn from_str(text: &str) -> Result<Self, ArgError> {
        match text {
            "" | "." | ".." => Err(ArgError::Netns { text: text.to_owned() }),
            _ if text.contains('/') => Ok(Self(PathBuf::from(text))),
            _ => Ok(Self(Path::new(Self::NAMED).join(text))),
        }
    }
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: NonZeroU16,
    last: NonZeroU16,
}

impl PortRange {
    /// Lowest port.
    pub fn first(self) -> NonZeroU16 {
        self.first
    }

    /// Highest port, not below [`first`](Self::first).
    pub fn last(self) -> NonZeroU16 {
        self.last
    }
}

impl FromStr for PortRange {
    type Err = ArgError;

    fn from_str(text: &str) -> Result<Self, ArgError> {
        let ends = text.split_once('-').and_then(|(first, last)| Some((port(first)?, port(last)?)));
        match ends {
            Some((first, last)) if first <= last => Ok(Self { first, last }),
            _ => Err(ArgError::PortRange { text: text.to_owned() }),
        }
    }
}

/// A port of the router itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalPort {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: NonZeroU16,
}

impl FromStr for LocalPort {
    type Err = ArgError;

    fn from_str(text: &str) -> Result<Self, ArgError> {
        let parsed = text.split_once('/').and_then(|(protocol, number)| {
            let mut names = Protocol::NAMES.into_iter();
            let (_, protocol) = names.find(|(name, _)| name.eq_ignore_ascii_case(protocol))?;
            Some(Self { protocol, port: port(number)? })
        });
        parsed.ok_or_else(|| ArgError::LocalPort { text: text.to_owned() })
    }
}

/// An argument that does not say what it should.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgError {
    /// Not a range of ports.
    #[error("{text:?} is not a range of ports: write LO-HI, from 1 to 65535, as in 32768-60999")]
    PortRange {
        /// What was given.
        text: String,
    },
    /// Not a protocol and a port.
    #[error("{text:?} is not a port of a protocol: write tcp/PORT, udp/PORT or sctp/PORT, from 1 to 65535")]
    LocalPort {
        /// What was given.
        text: String,
    },
    /// Not a timeout.
    #[error("{text:?} is not a timeout: write auto, or STATE=SECONDS with one of the states {}", states())]
    Timeout {
        /// What was given.
        text: String,
    },
    /// Not a fate of flows.
    #[error("{text:?} is not keep, cut or drain=SECONDS")]
    ExistingFlows {
        /// What was given.
        text: String,
    },
    /// Not a namespace.
    #[error("{text:?} is not a network namespace: write a name that `ip netns` lists, or a path with a slash")]
    Netns {
        /// What was given.
        text: String,
    },
}

fn states() -> String {
    Class::ALL.map(Class::name).join(", ")
}

/// Digits only: a sign or a blank is a mistake.
fn port(text: &str) -> Option<NonZeroU16> {
    text.chars().all(|c| c.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        let seconds = NonZeroU32::new(7440).unwrap();
        assert_eq!("auto".parse(), Ok(Timeout::Auto));
        assert_eq!("tcp-established=7440".parse(), Ok(Timeout::Of { class: Class::TcpEstablished, seconds }));
        for wrong in ["", "udp", "udp=", "udp=0", "udp=-1", "udp=1.5", "UDP=3", "tcp=3", "auto=1"] {
            let error = wrong.parse::<Timeout>().unwrap_err().to_string();
            assert!(error.contains("tcp-established"), "{wrong}: {error}");
        }
    }

    #[test]
    fn existing_flows() {
        let seconds = NonZeroU32::new(30).unwrap();
        assert_eq!("keep".parse(), Ok(ExistingFlows::Keep));
        assert_eq!("cut".parse(), Ok(ExistingFlows::Cut));
        assert_eq!("drain=30".parse(), Ok(ExistingFlows::Drain { seconds }));
        for wrong in ["", "drain", "drain=", "drain=0", "drain=-1", "drain=1s", "Cut", "cut=1"] {
            assert!(wrong.parse::<ExistingFlows>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn port_ranges() {
        let ends = |text: &str| text.parse::<PortRange>().map(|range| (range.first().get(), range.last().get()));
        assert_eq!(ends("32768-60999"), Ok((32768, 60999)));
        assert_eq!(ends("7-7"), Ok((7, 7)));
        for bad in ["", "-", "1", "1-", "-1", "0-1", "2-1", "1-65536", "1-2-3", "+1-2", " 1-2", "a-b"] {
            assert_eq!(ends(bad), Err(ArgError::PortRange { text: bad.to_owned() }));
        }
    }

    #[test]
    fn local_ports() {
        let tcp = LocalPort { protocol: Protocol::Tcp, port: NonZeroU16::MIN };
        assert_eq!("tcp/1".parse(), Ok(tcp));
        assert_eq!("TCP/1".parse(), Ok(tcp));
        assert_eq!("sctp/65535".parse::<LocalPort>().map(|it| it.protocol), Ok(Protocol::Sctp));
        for bad in ["", "tcp", "tcp/", "tcp/0", "tcp/65536", "icmp/1", "80/tcp", "tcp/80/1", "tcp/ 80"] {
            assert_eq!(bad.parse::<LocalPort>(), Err(ArgError::LocalPort { text: bad.to_owned() }));
        }
    }

    #[test]
    fn namespaces() {
        let path = |text: &str| text.parse::<Netns>().map(|netns| netns.path().to_owned());
        assert_eq!(path("router"), Ok(PathBuf::from("/run/netns/router")));
        assert_eq!(path("/proc/7/ns/net"), Ok(PathBuf::from("/proc/7/ns/net")));
        assert_eq!(path("./ns"), Ok(PathBuf::from("./ns")));
        for bad in ["", ".", ".."] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
    }
}
