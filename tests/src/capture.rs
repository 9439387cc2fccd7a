//! Every frame that an interface receives.
//!
//! A packet socket with a large buffer, read by a thread; frames that found no room are counted, so that "all" can be
//! asserted. Frames arrive in the socket's queue while they are received, so once traffic has ended, an empty queue
//! means that nothing is left: see [`Capture::settle`].

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg, setsockopt, socket, sockopt,
};

use crate::{Netns, sys, wait_until};

/// Room for what arrives while the reader waits for a processor. 100 MB of TCP in small segments fits.
const BUFFER_BYTES: usize = 256 << 20;
/// Longer frames are cut: the largest that segmentation offload makes is 64 KiB and headers.
const FRAME_BYTES: usize = (64 << 10) + 256;
/// How many of the latest frames a capture keeps.
const KEPT_FRAMES: usize = 8192;

/// One received frame.
#[derive(Debug, Clone)]
pub struct Frame {
    /// When it was read.
    pub at: SystemTime,
    /// From the Ethernet header on.
    pub bytes: Vec<u8>,
    /// Its length on the wire, in bytes.
    pub length: usize,
}

/// A thread that gives every frame received on an interface to a closure, until it is dropped.
#[derive(Debug)]
pub(crate) struct Reader {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Tickets drawn by those who want the queue read empty.
    asked: AtomicU64,
    /// The last ticket drawn before the queue was seen empty.
    emptied: AtomicU64,
    drops: AtomicU64,
}

impl Reader {
    pub(crate) fn start(netns: &Netns, device: &str, mut sink: impl FnMut(Frame) + Send + 'static) -> Result<Self> {
        let socket = netns.run(|| open(device))?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let read = move || {
            let mut buffer = vec![0; FRAME_BYTES];
            while !theirs.stop.load(Ordering::Acquire) {
                let asked = theirs.asked.load(Ordering::Acquire);
                if let Err(error) = read_all(&socket, &mut buffer, &mut sink) {
                    // Frames may be missing now, and whoever asserts on the capture must learn of it.
                    eprintln!("lab: read captured frames: {error}");
                    theirs.drops.fetch_add(1, Ordering::AcqRel);
                }
                theirs.drops.fetch_add(sys::packet_drops(&socket).unwrap_or(1), Ordering::AcqRel);
                theirs.emptied.store(asked, Ordering::Release);
                let mut waiting = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut waiting, PollTimeout::from(5_u8));
            }
        };
        let thread = std::thread::Builder::new()
            .name(format!("capture {device}"))
            .spawn(read)
            .context("start the capture's thread")?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Waits until everything that had arrived when this was called has been read.
    pub(crate) fn settle(&self) -> Result<()> {
        let ticket = self.shared.asked.fetch_add(1, Ordering::AcqRel) + 1;
        wait_until("the capture to read what has arrived", Duration::from_secs(60), || {
            self.shared.emptied.load(Ordering::Acquire) >= ticket
        })?;
        let drops = self.shared.drops.load(Ordering::Acquire);
        ensure!(drops == 0, "the capture missed {drops} frames, so it can prove nothing");
        Ok(())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Opens a packet socket on `device` of the calling thread's namespace.
fn open(device: &str) -> Result<OwnedFd> {
    let index = if_nametoindex(device).with_context(|| format!("find interface {device}"))?;
    // Protocol 0 receives nothing: no frame of another interface gets in before the bind.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None::<SockProtocol>)
        .context("open a packet socket, which needs root")?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).context("enlarge the capture's buffer")?;
    sys::ignore_outgoing(&socket).context("leave outgoing frames out of the capture")?;
    sys::bind_packet(&socket, index, nix::libc::ETH_P_ALL).with_context(|| format!("bind the capture to {device}"))?;
    Ok(socket)
}

/// Reads until the queue is empty.
fn read_all(socket: &OwnedFd, buffer: &mut [u8], sink: &mut impl FnMut(Frame)) -> nix::Result<()> {
    loop {
        let (kept, length) = {
            let mut slices = [IoSliceMut::new(buffer)];
            // With MSG_TRUNC the length on the wire is returned, which may be more than was kept.
            match recvmsg::<()>(socket.as_raw_fd(), &mut slices, None, MsgFlags::MSG_TRUNC) {
                Ok(message) => (message.bytes.min(FRAME_BYTES), message.bytes),
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => continue,
                // Of an SCTP packet that no device has cut yet: its receiver takes the parts out, though a capture has them
                // too. It is gone, and there is nothing to be said of it.
                Err(Errno::EFAULT) => continue,
                Err(error) => return Err(error),
            }
        };
        sink(Frame { at: SystemTime::now(), bytes: buffer.get(..kept).unwrap_or_default().to_vec(), length });
    }
}

/// Every frame that an interface receives, read by whoever owns this, when he likes.
#[derive(Debug)]
pub struct Tap {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Tap {
    /// Starts looking at what `device` receives in `netns`.
    ///
    /// # Errors
    /// When the interface is not there, or we are not root.
    pub fn open(netns: &Netns, device: &str) -> Result<Self> {
        Ok(Self { socket: netns.run(|| open(device))?, buffer: vec![0; FRAME_BYTES] })
    }

    /// What has arrived since the last call.
    ///
    /// # Errors
    /// When a frame was missed.
    pub fn read(&mut self) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        read_all(&self.socket, &mut self.buffer, &mut |frame| frames.push(frame)).context("read captured frames")?;
        let drops = sys::packet_drops(&self.socket)?;
        ensure!(drops == 0, "the capture missed {drops} frames, so it can prove nothing");
        Ok(frames)
    }
}

/// The latest frames that an interface received, for tests to look at.
#[derive(Debug)]
pub struct Capture {
    reader: Reader,
    frames: Arc<Mutex<VecDeque<Frame>>>,
}

impl Capture {
    /// Starts capturing what `device` receives in `netns`.
    ///
    /// # Errors
    /// When the interface is not there, or we are not root.
    pub fn start(netns: &Netns, device: &str) -> Result<Self> {
        let frames = Arc::new(Mutex::new(VecDeque::new()));
        let sink = Arc::clone(&frames);
        let reader = Reader::start(netns, device, move |frame| {
            let mut frames = sink.lock().unwrap_or_else(PoisonError::into_inner);
            if frames.len() == KEPT_FRAMES {
                frames.pop_front();
            }
            frames.push_back(frame);
        })?;
        Ok(Self { reader, frames })
    }

    /// The latest frames, oldest first, with everything that has arrived by now.
    ///
    /// # Errors
    /// When a frame was missed.
    pub fn frames(&self) -> Result<Vec<Frame>> {
        self.settle()?;
        Ok(self.frames.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect())
    }

    /// Waits until everything that has arrived by now was read.
    ///
    /// # Errors
    /// When a frame was missed.
    pub fn settle(&self) -> Result<()> {
        self.reader.settle()
    }

    /// Waits for a frame of which `look` makes something.
    ///
    /// # Errors
    /// When none came within `timeout`; the error names `what`.
    pub fn wait_for<T>(&self, what: &str, timeout: Duration, mut look: impl FnMut(&Frame) -> Option<T>) -> Result<T> {
        crate::wait::wait_for(what, timeout, || {
            self.frames.lock().unwrap_or_else(PoisonError::into_inner).iter().find_map(&mut look)
        })
    }
}
