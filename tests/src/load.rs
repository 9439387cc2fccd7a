//! Loads of real sockets, both ends on one processor: connections, requests, streams.
//!
//! Client, router and server take turns on the processor that they share, each as soon as the one before it waits. So the
//! time by the clock is the time that the work takes, however busy the rest of the machine is.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use crate::Netns;
use crate::endpoint::any_port;
use crate::processor::Core;

/// How long one answer may take before the load has failed.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How often a UDP server looks whether it should end.
const PATROL: Duration = Duration::from_millis(50);
/// Bytes of a write or a read of a stream.
const CHUNK_BYTES: usize = 128 << 10;
/// What is asked and answered.
const MESSAGE: [u8; 1] = [b'?'];

/// What a server does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Answers one request, and closes.
    Once,
    /// Answers every request until the client closes.
    Echo,
    /// Takes all that comes.
    Take,
}

/// A TCP server whose threads hold a processor. It ends when dropped, once its clients have closed.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on `address` in `netns`.
    ///
    /// # Errors
    /// When the address is not the namespace's own, or taken.
    pub fn start(netns: &Netns, address: SocketAddr, service: Service, core: Core) -> Result<Self> {
        let listener = netns.run(|| TcpListener::bind(address)).with_context(|| format!("listen on {address}/TCP"))?;
        let theirs = listener.try_clone().context("share the listener")?;
        let thread = std::thread::Builder::new()
            .name(format!("load {address}/TCP"))
            .spawn(move || accept_all(&theirs, service, core))
            .context("start a server's thread")?;
        Ok(Self { listener, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes the thread that waits for a connection; a listener cannot be closed under it.
        let _ = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept_all(listener: &TcpListener, service: Service, core: Core) {
    if let Err(error) = core.hold() {
        eprintln!("lab: {error:#}");
        return;
    }
    let mut threads = Vec::new();
    while let Ok((stream, _)) = listener.accept() {
        // Without an answer the client reports the failure.
        match service {
            Service::Once => drop(answer_once(stream)),
            Service::Echo => drop(echo(stream)),
            // Several at a time; new threads inherit the processor.
            Service::Take => threads.push(std::thread::spawn(move || take(stream))),
        }
    }
    for thread in threads {
        let _ = thread.join();
    }
}

fn answer_once(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = MESSAGE;
    stream.read_exact(&mut buffer)?;
    stream.write_all(&buffer)
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = MESSAGE;
    loop {
        stream.read_exact(&mut buffer)?;
        stream.write_all(&buffer)?;
    }
}

fn take(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    while stream.read(&mut buffer)? > 0 {}
    // Tells the client that all has come.
    stream.write_all(&MESSAGE)
}

/// A UDP server that sends every datagram back, its thread holding a processor. It ends when dropped.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Listens on `address` in `netns`.
    ///
    /// # Errors
    /// When the address is not the namespace's own, or taken.
    pub fn start(netns: &Netns, address: SocketAddr, core: Core) -> Result<Self> {
        let socket = netns.run(|| UdpSocket::bind(address)).with_context(|| format!("listen on {address}/UDP"))?;
        // Shutting the socket down would wake the thread as well, but std takes the empty answer for an address.
        socket.set_read_timeout(Some(PATROL)).context("limit the wait")?;
        let stop = Arc::new(AtomicBool::new(false));
        let stops = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name(format!("load {address}/UDP"))
            .spawn(move || {
                if let Err(error) = core.hold() {
                    eprintln!("lab: {error:#}");
                    return;
                }
                let mut buffer = [0; 64];
                while !stops.load(Ordering::Acquire) {
                    let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                    let _ = socket.send_to(buffer.get(..length).unwrap_or_default(), from);
                }
            })
            .context("start a server's thread")?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Connects, asks, is answered and closes, again and again for `lasting`. Returns how often in a second.
///
/// # Errors
/// When a connection fails.
pub fn connections(netns: &Netns, to: SocketAddr, core: Core, lasting: Duration) -> Result<f64> {
    netns.run(|| {
        core.hold()?;
        let started = Instant::now();
        let mut done = 0_u32;
        while started.elapsed() < lasting {
            connection(to).with_context(|| format!("connection {done} to {to}"))?;
            done += 1;
        }
        Ok(f64::from(done) / started.elapsed().as_secs_f64())
    })
}

fn connection(to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, ANSWER_WITHIN)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.write_all(&MESSAGE)?;
    let mut buffer = MESSAGE;
    stream.read_exact(&mut buffer)?;
    // The server closes first: it waits out the connection's last packets, and no client runs out of ports.
    stream.read(&mut buffer).map(|_| ())
}

/// Asks over one TCP connection `requests` times, one after the other. Returns how long each took.
///
/// # Errors
/// When the connection fails.
pub fn tcp_requests(netns: &Netns, to: SocketAddr, core: Core, requests: usize) -> Result<Vec<Duration>> {
    netns.run(|| {
        core.hold()?;
        let mut stream = TcpStream::connect_timeout(&to, ANSWER_WITHIN).with_context(|| format!("connect to {to}"))?;
        stream.set_nodelay(true).context("send at once")?;
        stream.set_read_timeout(Some(ANSWER_WITHIN)).context("limit the wait")?;
        let mut buffer = MESSAGE;
        timed(requests, || {
            stream.write_all(&MESSAGE)?;
            stream.read_exact(&mut buffer)
        })
    })
}

/// As [`tcp_requests`], from one UDP socket.
///
/// # Errors
/// When an answer does not come.
pub fn udp_requests(netns: &Netns, to: SocketAddr, core: Core, requests: usize) -> Result<Vec<Duration>> {
    netns.run(|| {
        core.hold()?;
        let any = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind(any_port(any)).context("open a socket")?;
        socket.connect(to).with_context(|| format!("connect to {to}/UDP"))?;
        socket.set_read_timeout(Some(ANSWER_WITHIN)).context("limit the wait")?;
        let mut buffer = [0; 64];
        timed(requests, || {
            socket.send(&MESSAGE)?;
            socket.recv(&mut buffer).map(|_| ())
        })
    })
}

fn timed(requests: usize, mut request: impl FnMut() -> io::Result<()>) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(requests);
    for number in 0..requests {
        let started = Instant::now();
        request().with_context(|| format!("request {number}"))?;
        times.push(started.elapsed());
    }
    Ok(times)
}

/// Sends `bytes` over each of `streams` connections at once, until all have come. Returns bytes in a second, in all.
///
/// # Errors
/// When a connection fails.
pub fn streams(netns: &Netns, to: SocketAddr, core: Core, streams: usize, bytes: usize) -> Result<f64> {
    netns.run(|| {
        core.hold()?;
        let connect = |_| {
            let stream = TcpStream::connect_timeout(&to, ANSWER_WITHIN)?;
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            Ok(stream)
        };
        let connected = (0..streams).map(connect).collect::<io::Result<Vec<_>>>();
        let connected = connected.with_context(|| format!("connect to {to}"))?;
        let started = Instant::now();
        std::thread::scope(|scope| {
            // New threads inherit the namespace and the processor.
            let threads = connected.into_iter().map(|stream| scope.spawn(move || send_all(stream, bytes)));
            let threads = threads.collect::<Vec<_>>();
            threads.into_iter().try_for_each(|thread| {
                let sent = thread.join().map_err(|_panic| anyhow!("a stream panicked"))?;
                sent.with_context(|| format!("stream to {to}"))
            })
        })?;
        Ok((streams * bytes) as f64 / started.elapsed().as_secs_f64())
    })
}

fn send_all(mut stream: TcpStream, bytes: usize) -> io::Result<()> {
    let chunk = vec![0; CHUNK_BYTES];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(chunk.len());
        stream.write_all(chunk.get(..now).unwrap_or_default())?;
        left -= now;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut all_came = MESSAGE;
    stream.read_exact(&mut all_came)
}
