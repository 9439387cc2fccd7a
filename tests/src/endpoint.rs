//! Sockets with a chosen source, and connects with a limit.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, getsockopt, setsockopt, socket,
    sockopt,
};

/// What a server knows of a conversation: the source that it saw, and where the packet arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seen {
    /// The peer, as the server sees it.
    pub source: SocketAddr,
    /// The server's own end.
    pub server: SocketAddr,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.source, self.server)
    }
}

impl FromStr for Seen {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        let parse = || {
            let (source, server) = text.trim_end().split_once(' ')?;
            Some(Self { source: source.parse().ok()?, server: server.parse().ok()? })
        };
        parse().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("server said {text:?}")))
    }
}

/// Opens a socket of `kind`, bound to `from`. Port 0 leaves the port to the kernel.
pub(crate) fn bound(kind: SockType, protocol: Option<SockProtocol>, from: SocketAddr) -> io::Result<OwnedFd> {
    let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol)?;
    if from.port() != 0 {
        // The port can be had although an earlier connection left it in TIME_WAIT, or another socket has it towards another
        // peer. Not where the kernel chooses: it would give two datagram sockets the same one.
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    Ok(socket)
}

/// Connects a stream socket, within `timeout`.
pub(crate) fn connect_within(socket: &OwnedFd, to: SocketAddr, timeout: Duration) -> io::Result<()> {
    let deadline = Instant::now() + timeout;
    set_nonblocking(socket, true)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) => {}
        Err(Errno::EINPROGRESS) => {
            if !ready(socket, PollFlags::POLLOUT, deadline)? {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("connect to {to}: no answer")));
            }
            let error = getsockopt(socket, sockopt::SocketError)?;
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
        }
        Err(error) => return Err(error.into()),
    }
    set_nonblocking(socket, false)
}

/// Waits until the socket can be read or written; false when the deadline came first.
pub(crate) fn ready(socket: &OwnedFd, flags: PollFlags, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, or the last part of a millisecond would be spun away.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut waiting = [PollFd::new(socket.as_fd(), flags)];
        match poll(&mut waiting, timeout) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

fn set_nonblocking(socket: &OwnedFd, on: bool) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    let flags = if on { flags | OFlag::O_NONBLOCK } else { flags - OFlag::O_NONBLOCK };
    fcntl(socket, FcntlArg::F_SETFL(flags))?;
    Ok(())
}

/// The address of `ip` with port 0: any.
pub fn any_port(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, 0)
}
