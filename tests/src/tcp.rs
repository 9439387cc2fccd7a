//! TCP: a server that tells each client whom it saw and then echoes, and clients with a chosen source.
//!
//! The server answers the first bytes of a connection with a line, `<source> <server>`, and then sends back everything
//! that it gets. To an HTTP request it answers with a page instead, so that `curl` can be pointed at it.

use std::collections::BTreeMap;
use std::hash::Hasher as _;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::poll::PollFlags;
use nix::sys::socket::{SockType, setsockopt, sockopt};

use crate::Netns;
pub use crate::endpoint::Seen;
use crate::endpoint::{self, bound, connect_within};
use crate::wait::Attempt;

/// How often a server's threads look whether they should end.
const PATROL: Duration = Duration::from_millis(20);

/// An echo server on one address, in a namespace. It ends when dropped, and its connections with it.
#[derive(Debug)]
pub struct TcpServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    accepted: Mutex<Vec<Seen>>,
    /// By their number of `accepted`.
    open: Mutex<BTreeMap<usize, TcpStream>>,
}

impl TcpServer {
    /// Listens on `address` in `netns`. When it returns, clients can connect.
    ///
    /// # Errors
    /// When the address is not the namespace's own, or taken.
    pub fn start(netns: &Netns, address: SocketAddr) -> Result<Self> {
        let listener = netns
            .run(|| TcpListener::bind(address).and_then(|listener| listener.set_nonblocking(true).map(|()| listener)))
            .with_context(|| format!("listen on {address}/TCP"))?;
        let address = listener.local_addr().with_context(|| format!("find the port of {address}/TCP"))?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(format!("serve {address}/TCP"))
            .spawn(move || accept_all(&listener, &theirs))
            .with_context(|| format!("start a thread for {address}/TCP"))?;
        Ok(Self { address, shared, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Every connection that was made to it, in order.
    pub fn accepted(&self) -> Vec<Seen> {
        self.shared.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for stream in self.shared.open.lock().unwrap_or_else(PoisonError::into_inner).values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn accept_all(listener: &TcpListener, shared: &Arc<Shared>) {
    use std::os::fd::AsFd as _;
    let Ok(waiting) = listener.as_fd().try_clone_to_owned() else { return };
    while !shared.stop.load(Ordering::Acquire) {
        let deadline = std::time::Instant::now() + PATROL;
        if !endpoint::ready(&waiting, PollFlags::POLLIN, deadline).unwrap_or(false) {
            continue;
        }
        let Ok((stream, source)) = listener.accept() else { continue };
        let Ok(server) = stream.local_addr() else { continue };
        let seen = Seen { source, server };
        let number = {
            let mut accepted = shared.accepted.lock().unwrap_or_else(PoisonError::into_inner);
            accepted.push(seen);
            accepted.len()
        };
        if let Ok(handle) = stream.try_clone() {
            shared.open.lock().unwrap_or_else(PoisonError::into_inner).insert(number, handle);
        }
        let theirs = Arc::clone(shared);
        let serve = move || {
            // The client knows what became of its connection; a server has nobody to tell.
            let _ = serve(stream, seen);
            theirs.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        };
        if let Err(error) = std::thread::Builder::new().name(format!("serve {source}")).spawn(serve) {
            eprintln!("lab: no thread for {source}: {error}");
        }
    }
}

fn serve(mut stream: TcpStream, seen: Seen) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 256 << 10];
    let mut first = true;
    loop {
        let length = read_some(&mut stream, &mut buffer)?;
        let data = buffer.get(..length).unwrap_or_default();
        if length == 0 {
            return stream.shutdown(Shutdown::Write);
        }
        if first && (data.starts_with(b"GET ") || data.starts_with(b"HEAD ")) {
            let page = format!("this is {}; you come from {}\n", seen.server, seen.source);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", page.len());
            stream.write_all(head.as_bytes())?;
            stream.write_all(page.as_bytes())?;
            return stream.shutdown(Shutdown::Write);
        }
        if first {
            stream.write_all(format!("{seen}\n").as_bytes())?;
            first = false;
        }
        stream.write_all(data)?;
    }
}

/// A client's connection.
#[derive(Debug)]
pub struct TcpConnection {
    stream: TcpStream,
    seen: Option<Seen>,
}

impl TcpConnection {
    /// Connects from `from` (port 0: any) to `to`. `timeout` is for the connect, and for each read and write later.
    ///
    /// # Errors
    /// The socket's own: refused, timed out, unreachable; also when `from` cannot be bound.
    pub fn open(netns: &Netns, from: SocketAddr, to: SocketAddr, timeout: Duration) -> io::Result<Self> {
        netns.run(|| Self::open_here(from, to, timeout))
    }

    /// As [`open`](Self::open), in the namespace that the calling thread is in.
    ///
    /// # Errors
    /// The same.
    pub fn open_here(from: SocketAddr, to: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let socket = bound(SockType::Stream, None, from)?;
        connect_within(&socket, to, timeout)?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self { stream, seen: None })
    }

    /// Whom the server saw, once something was exchanged.
    pub fn seen(&self) -> Option<Seen> {
        self.seen
    }

    /// The client's own end.
    ///
    /// # Errors
    /// The socket's own.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// The socket itself, for what the methods here do not do.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Ends the connection with a reset instead of a close.
    ///
    /// # Errors
    /// The socket's own.
    pub fn reset(self) -> io::Result<()> {
        let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&self.stream, sockopt::Linger, &at_once).map_err(io::Error::from)
    }

    /// Sends `payload`, which must not be empty, and waits for the echo. Returns whom the server saw.
    ///
    /// # Errors
    /// When the connection fails or times out, and when the echo differs.
    pub fn exchange(&mut self, payload: &[u8]) -> io::Result<Seen> {
        self.stream.write_all(payload)?;
        let seen = self.greeting()?;
        let mut echo = vec![0; payload.len()];
        self.stream.read_exact(&mut echo)?;
        if echo != payload {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the echo differs from what was sent"));
        }
        Ok(seen)
    }

    /// Reads the server's line, when it was not read yet.
    fn greeting(&mut self) -> io::Result<Seen> {
        if let Some(seen) = self.seen {
            return Ok(seen);
        }
        let (mut line, mut byte) = (Vec::new(), [0]);
        while byte != *b"\n" {
            self.stream.read_exact(&mut byte)?;
            line.extend(byte);
        }
        let seen = String::from_utf8_lossy(&line).parse::<Seen>()?;
        self.seen = Some(seen);
        Ok(seen)
    }
}

/// Connects, exchanges `payload` once, and closes.
pub fn exchange(netns: &Netns, from: SocketAddr, to: SocketAddr, payload: &[u8], timeout: Duration) -> Attempt<Seen> {
    Attempt::of(|| TcpConnection::open(netns, from, to, timeout)?.exchange(payload))
}

/// What became of a large transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bulk {
    /// Whom the server saw.
    pub seen: Seen,
    /// How many bytes went each way.
    pub bytes: u64,
    /// Hash of what was sent.
    pub sent: u64,
    /// Hash of what came back.
    pub echoed: u64,
}

impl Bulk {
    /// Whether the same came back.
    pub fn is_intact(&self) -> bool {
        self.sent == self.echoed
    }
}

/// Sends `bytes` pseudo-random bytes and takes their echo at the same time, so that both directions are loaded.
pub fn bulk(netns: &Netns, from: SocketAddr, to: SocketAddr, bytes: u64, timeout: Duration) -> Attempt<Bulk> {
    Attempt::of(|| {
        let mut connection = TcpConnection::open(netns, from, to, timeout)?;
        let mut sending = connection.stream.try_clone()?;
        std::thread::scope(|scope| {
            let sender = scope.spawn(move || send_random(&mut sending, bytes));
            let received = connection.greeting().and_then(|seen| {
                let echoed = hash_all(&mut connection.stream)?;
                Ok((seen, echoed))
            });
            if received.is_err() {
                // Ends the sender too, which nobody reads from any more.
                let _ = connection.stream.shutdown(Shutdown::Both);
            }
            let sent = sender.join().map_err(|_panic| io::Error::other("the sender panicked"))?;
            let (seen, (echoed, got)) = received?;
            let sent = sent?;
            if got != bytes {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{got} of {bytes} bytes came back")));
            }
            Ok(Bulk { seen, bytes, sent, echoed })
        })
    })
}

fn send_random(stream: &mut TcpStream, bytes: u64) -> io::Result<u64> {
    let mut hash = std::hash::DefaultHasher::new();
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let mut chunk = vec![0_u8; 64 << 10];
    let mut left = bytes;
    while left > 0 {
        for place in chunk.chunks_mut(8) {
            // Marsaglia's xorshift: any two chunks differ, so one that is lost, doubled or moved changes the hash.
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            place.copy_from_slice(&word.to_le_bytes());
        }
        let length = usize::try_from(left).map_or(chunk.len(), |left| left.min(chunk.len()));
        let part = chunk.get(..length).unwrap_or_default();
        hash.write(part);
        stream.write_all(part)?;
        left -= u64::try_from(length).unwrap_or(u64::MAX).min(left);
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(hash.finish())
}

/// Reads to the end: hash and number of bytes.
fn hash_all(stream: &mut TcpStream) -> io::Result<(u64, u64)> {
    let mut hash = std::hash::DefaultHasher::new();
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        let length = read_some(stream, &mut buffer)?;
        if length == 0 {
            return Ok((hash.finish(), total));
        }
        hash.write(buffer.get(..length).unwrap_or_default());
        total += u64::try_from(length).unwrap_or(u64::MAX);
    }
}

/// As `read`, which gives up when the process was stopped and went on while it waited: with a timeout on the socket the
/// kernel does not start it again by itself (signal(7)).
fn read_some(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
