//! UDP: a server that answers every datagram with whom it saw, clients with a chosen source, and a paced stream that
//! counts what is lost.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::libc;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, SockProtocol, SockType, SockaddrStorage, connect, recv, sendto, setsockopt, sockopt};

pub use crate::endpoint::Seen;
use crate::endpoint::{any_port, bound, ready};
use crate::wait::Attempt;
use crate::{Netns, sys};

/// How often a server looks whether it should end.
const PATROL: Duration = Duration::from_millis(20);
/// The largest datagram.
const DATAGRAM_BYTES: usize = 65_535;

/// A server on one address, in a namespace. It ends when dropped.
#[derive(Debug)]
pub struct UdpServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    seen: Mutex<BTreeMap<SocketAddr, u64>>,
}

impl UdpServer {
    /// Listens on `address` in `netns`; answers each datagram with `<source> <server>`, a newline and the datagram.
    ///
    /// # Errors
    /// When the address is not the namespace's own, or taken.
    pub fn start(netns: &Netns, address: SocketAddr) -> Result<Self> {
        let open = || {
            let socket = UdpSocket::bind(address)?;
            socket.set_read_timeout(Some(PATROL))?;
            setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20))?;
            Ok::<_, io::Error>(socket)
        };
        let socket = netns.run(open).with_context(|| format!("listen on {address}/UDP"))?;
        let address = socket.local_addr().with_context(|| format!("find the port of {address}/UDP"))?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(format!("serve {address}/UDP"))
            .spawn(move || answer_all(&socket, address, &theirs))
            .with_context(|| format!("start a thread for {address}/UDP"))?;
        Ok(Self { address, shared, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many datagrams came from each source.
    pub fn seen(&self) -> BTreeMap<SocketAddr, u64> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer_all(socket: &UdpSocket, server: SocketAddr, shared: &Shared) {
    let mut buffer = vec![0; DATAGRAM_BYTES];
    while !shared.stop.load(Ordering::Acquire) {
        // A timeout, or an ICMP error about an earlier answer: neither ends the server.
        let Ok((length, source)) = socket.recv_from(&mut buffer) else { continue };
        *shared.seen.lock().unwrap_or_else(PoisonError::into_inner).entry(source).or_default() += 1;
        let mut answer = format!("{}\n", Seen { source, server }).into_bytes();
        answer.extend(buffer.get(..length).unwrap_or_default());
        let _ = socket.send_to(&answer, source);
    }
}

/// A client's socket, connected, so that only the one peer can answer it and ICMP errors come back as errors.
#[derive(Debug)]
pub struct UdpClient {
    socket: UdpSocket,
    waiting: OwnedFd,
}

impl UdpClient {
    /// Binds `from` (port 0: any) and connects to `to`; nothing is sent yet.
    ///
    /// # Errors
    /// When `from` cannot be bound, or there is no route.
    pub fn open(netns: &Netns, from: SocketAddr, to: SocketAddr) -> io::Result<Self> {
        let socket = netns.run(|| {
            let socket = bound(SockType::Datagram, None, from)?;
            connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
            Ok::<_, io::Error>(socket)
        })?;
        let waiting = socket.try_clone()?;
        Ok(Self { socket: UdpSocket::from(socket), waiting })
    }

    /// The client's own end.
    ///
    /// # Errors
    /// The socket's own.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The socket itself, for what the methods here do not do.
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Chooses what becomes of a datagram that is larger than the way allows.
    ///
    /// # Errors
    /// The socket's own.
    pub fn oversize(&self, oversize: Oversize) -> io::Result<()> {
        let v4 = self.local()?.is_ipv4();
        let (level, name, value) = match oversize {
            Oversize::Refuse if v4 => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
            Oversize::Fragment if v4 => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
            Oversize::Refuse => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO),
            Oversize::Fragment => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT),
        };
        sys::set_option(&self.socket, level, name, value)
    }

    /// Has the socket report every ICMP error, also those that may pass.
    ///
    /// # Errors
    /// The socket's own.
    pub fn hear_errors(&self) -> io::Result<()> {
        let (level, name) = match self.local()? {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVERR),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
        };
        sys::set_option(&self.socket, level, name, 1)
    }

    /// Sets the TTL or hop limit of what is sent.
    ///
    /// # Errors
    /// The socket's own.
    pub fn set_hops(&self, hops: u8) -> io::Result<()> {
        let (level, name) = match self.local()? {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TTL),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
        };
        sys::set_option(&self.socket, level, name, hops.into())
    }

    /// Sends `payload` once and waits for its answer. Returns whom the server saw.
    pub fn exchange(&self, payload: &[u8], timeout: Duration) -> Attempt<Seen> {
        Attempt::of(|| {
            let deadline = Instant::now() + timeout;
            self.socket.send(payload)?;
            loop {
                let Some((seen, echo)) = self.receive(deadline)? else {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer to the datagram"));
                };
                // Answers to an earlier try that came too late are passed over.
                if echo == payload {
                    return Ok(seen);
                }
            }
        })
    }

    /// The next answer, if one comes before the deadline.
    fn receive(&self, deadline: Instant) -> io::Result<Option<(Seen, Vec<u8>)>> {
        if !ready(&self.waiting, PollFlags::POLLIN, deadline)? {
            return Ok(None);
        }
        let mut buffer = vec![0; DATAGRAM_BYTES];
        let length = match self.socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) => {
                // The queue that errors are kept in too would have the socket look readable for ever.
                while recv(self.waiting.as_raw_fd(), &mut buffer, MsgFlags::MSG_ERRQUEUE).is_ok() {}
                return Err(error);
            }
        };
        let answer = buffer.get(..length).unwrap_or_default();
        let mut parts = answer.splitn(2, |byte| *byte == b'\n');
        let line = String::from_utf8_lossy(parts.next().unwrap_or_default());
        let seen = line.parse::<Seen>()?;
        Ok(Some((seen, parts.next().unwrap_or_default().to_vec())))
    }
}

/// What a socket does with a datagram that is larger than the way allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oversize {
    /// Don't fragment: the path MTU is learned, and what is larger is refused with `EMSGSIZE`.
    Refuse,
    /// Fragment it, here or, with IPv4, anywhere on the way.
    Fragment,
}

/// Opens a socket, exchanges `payload` once, and closes.
pub fn exchange(netns: &Netns, from: SocketAddr, to: SocketAddr, payload: &[u8], timeout: Duration) -> Attempt<Seen> {
    Attempt::of(|| UdpClient::open(netns, from, to)?.exchange(payload, timeout).result)
}

/// Sends one datagram with a checksum of one's own choice, right or wrong, which no ordinary socket would send.
///
/// # Errors
/// When `from` is not the namespace's own address, or there is no route.
pub fn send_with_checksum(
    netns: &Netns,
    from: SocketAddr,
    to: SocketAddr,
    payload: &[u8],
    checksum: u16,
) -> io::Result<()> {
    let length = u16::try_from(8 + payload.len()).map_err(io::Error::other)?;
    let mut datagram = [from.port(), to.port(), length, checksum].map(u16::to_be_bytes).concat();
    datagram.extend(payload);
    let socket = netns.run(|| bound(SockType::Raw, Some(SockProtocol::Udp), any_port(from.ip())))?;
    let to = SockaddrStorage::from(any_port(to.ip()));
    sendto(socket.as_raw_fd(), &datagram, &to, MsgFlags::empty())?;
    Ok(())
}

/// A stream of numbered datagrams at an even pace, for tests in which not one may be lost.
#[derive(Debug)]
pub struct PacedStream {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: Option<JoinHandle<Report>>,
}

/// What became of a paced stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// How many datagrams were sent.
    pub sent: u64,
    /// The numbers of those that were never answered, and when each was sent.
    pub lost: BTreeMap<u64, Instant>,
    /// How many answers came more than once.
    pub doubled: u64,
    /// How many were answered by each server, and as whom it saw us.
    pub answered: BTreeMap<Seen, u64>,
    /// What the socket said, and when: an ICMP error for an earlier datagram, no room.
    pub errors: Vec<(Instant, String)>,
}

impl Report {
    /// Whether every datagram was answered exactly once, and the socket heard no error.
    pub fn is_perfect(&self) -> bool {
        self.lost.is_empty() && self.doubled == 0 && self.errors.is_empty()
    }
}

impl PacedStream {
    /// Starts sending one datagram every `period`.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(client: UdpClient, period: Duration) -> Result<Self> {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (their_stop, their_answered) = (Arc::clone(&stop), Arc::clone(&answered));
        let thread = std::thread::Builder::new()
            .name("paced stream".to_owned())
            .spawn(move || stream(&client, period, &their_stop, &their_answered))
            .context("start the paced stream's thread")?;
        Ok(Self { stop, answered, thread: Some(thread) })
    }

    /// How many answers have come so far: wait for it to grow, to know that the stream flows.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Acquire)
    }

    /// Stops sending, gives the last answers half a second, and reports.
    ///
    /// # Errors
    /// When the stream's thread panicked.
    pub fn finish(mut self) -> Result<Report> {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.take().context("the stream was finished before")?;
        thread.join().map_err(|_panic| anyhow!("the paced stream panicked"))
    }
}

impl Drop for PacedStream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn stream(client: &UdpClient, period: Duration, stop: &AtomicBool, answered: &AtomicU64) -> Report {
    let mut report = Report::default();
    let mut due = Instant::now();
    while !stop.load(Ordering::Acquire) {
        if let Err(error) = client.socket.send(&report.sent.to_be_bytes()) {
            report.errors.push((Instant::now(), format!("send {}: {error}", report.sent)));
        }
        report.lost.insert(report.sent, Instant::now());
        report.sent += 1;
        due += period;
        take_answers(client, due, &mut report, answered);
    }
    let last = Instant::now() + Duration::from_millis(500);
    while !report.lost.is_empty() && Instant::now() < last {
        // One answer at a time, to end as soon as none is missing.
        let soon = last.min(Instant::now() + Duration::from_millis(5));
        take_answers(client, soon, &mut report, answered);
    }
    report
}

/// Takes answers until the deadline.
fn take_answers(client: &UdpClient, deadline: Instant, report: &mut Report, answered: &AtomicU64) {
    loop {
        match client.receive(deadline) {
            Ok(None) => return,
            Ok(Some((seen, echo))) => {
                let number = echo.try_into().map(u64::from_be_bytes);
                if number.is_ok_and(|number| report.lost.remove(&number).is_some()) {
                    answered.fetch_add(1, Ordering::AcqRel);
                } else {
                    report.doubled += 1;
                }
                *report.answered.entry(seen).or_default() += 1;
            }
            Err(error) => report.errors.push((Instant::now(), format!("after {}: {error}", report.sent))),
        }
    }
}
