//! SCTP: a server that tells each client whom it saw, and clients with a chosen source, on one-to-one sockets (RFC 6458
//! section 4). Messages keep their bounds, as nothing else here does that has connections.

use std::io::{self, IoSliceMut, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{Backlog, MsgFlags, SockProtocol, SockType, listen, recvmsg};

use crate::Netns;
pub use crate::endpoint::Seen;
use crate::endpoint::{bound, connect_within, ready};

/// How often a server looks whether it should end.
const PATROL: Duration = Duration::from_millis(20);
/// How long a server waits for a message, or for room for one.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server on one address, in a namespace. It ends when dropped.
#[derive(Debug)]
pub struct SctpServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl SctpServer {
    /// Listens on `address` in `netns`; answers each message with `<source> <server>`, a newline and the message.
    ///
    /// # Errors
    /// When the kernel has no SCTP, and when the address is not the namespace's own, or taken.
    pub fn start(netns: &Netns, address: SocketAddr) -> Result<Self> {
        let open = || {
            let socket = bound(SockType::Stream, Some(SockProtocol::Sctp), address)?;
            listen(&socket, Backlog::MAXCONN)?;
            // The standard library's streams are any connection's: nothing that they do is TCP's alone, but for an option.
            Ok::<_, io::Error>(TcpListener::from(socket))
        };
        let listener = netns.run(open).with_context(|| format!("listen on {address}/SCTP"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name(format!("serve {address}/SCTP"))
            .spawn(move || accept_all(&listener, &theirs))
            .with_context(|| format!("start a thread for {address}/SCTP"))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for SctpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept_all(listener: &TcpListener, stop: &AtomicBool) {
    let Ok(waiting) = listener.as_fd().try_clone_to_owned() else { return };
    while !stop.load(Ordering::Acquire) {
        if !ready(&waiting, PollFlags::POLLIN, Instant::now() + PATROL).unwrap_or(false) {
            continue;
        }
        let Ok((stream, source)) = listener.accept() else { continue };
        let serve = move || {
            // The client knows what became of its association; a server has nobody to tell.
            let _ = serve(stream, source);
        };
        if let Err(error) = std::thread::Builder::new().name(format!("serve {source}")).spawn(serve) {
            eprintln!("lab: no thread for {source}: {error}");
        }
    }
}

fn serve(mut stream: TcpStream, source: SocketAddr) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let seen = Seen { source, server: stream.local_addr()? };
    while let Some(message) = receive(&stream)? {
        // One write is one message.
        stream.write_all(&[format!("{seen}\n").as_bytes(), &message].concat())?;
    }
    Ok(())
}

/// The next message; none when the other side has shut the association down.
fn receive(stream: &TcpStream) -> io::Result<Option<Vec<u8>>> {
    let (mut message, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        let (length, complete) =
            match recvmsg::<()>(stream.as_raw_fd(), &mut [IoSliceMut::new(&mut buffer)], None, MsgFlags::empty()) {
                Ok(part) => (part.bytes, part.flags.contains(MsgFlags::MSG_EOR)),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
        if length == 0 {
            return Ok(None);
        }
        message.extend(buffer.iter().take(length));
        if complete {
            return Ok(Some(message));
        }
    }
}

/// A client's association.
#[derive(Debug)]
pub struct Association {
    stream: TcpStream,
}

impl Association {
    /// Opens one from `from` (port 0: any; the unspecified address: all) to `to`. `timeout` is for that, and for each message
    /// later.
    ///
    /// # Errors
    /// The socket's own: refused, timed out, unreachable; also when `from` cannot be bound.
    pub fn open(netns: &Netns, from: SocketAddr, to: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let socket = netns.run(|| {
            let socket = bound(SockType::Stream, Some(SockProtocol::Sctp), from)?;
            connect_within(&socket, to, timeout).map(|()| socket)
        })?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self { stream })
    }

    /// Sends a message and waits until it has come back. Returns whom the server saw.
    ///
    /// # Errors
    /// When the association fails or times out, and when the answer is not the message.
    pub fn exchange(&mut self, message: &[u8]) -> io::Result<Seen> {
        self.stream.write_all(message)?;
        let answer = receive(&self.stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let line = answer.split(|byte| *byte == b'\n').next().unwrap_or_default();
        if answer.get(line.len() + 1..) != Some(message) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "what came back differs from what was sent"));
        }
        String::from_utf8_lossy(line).parse()
    }

    /// Shuts it down as RFC 9260 section 9.2 says, and waits until the other side has agreed.
    ///
    /// # Errors
    /// When it fails or times out, and when there is a message still.
    pub fn close(self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)?;
        match receive(&self.stream) {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(io::Error::new(io::ErrorKind::InvalidData, "a message that nobody asked for")),
            // The socket may be without its association already.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            Err(error) => Err(error),
        }
    }
}
