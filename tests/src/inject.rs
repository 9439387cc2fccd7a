//! Frames that no socket would send: foreign sources, odd headers, broken checksums.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, send, socket};

use crate::{Netns, sys};

/// Sends frames by one interface, as they are.
#[derive(Debug)]
pub struct Injector {
    socket: OwnedFd,
    device: String,
}

impl Injector {
    /// Opens `device` of `netns` for sending.
    ///
    /// # Errors
    /// When the interface is not there, or we are not root.
    pub fn open(netns: &Netns, device: &str) -> Result<Self> {
        let open = || -> Result<OwnedFd> {
            let index = if_nametoindex(device).with_context(|| format!("find interface {device}"))?;
            // Protocol 0: it shall send only, and its queue never fill.
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None::<SockProtocol>)
                .context("open a packet socket, which needs root")?;
            sys::bind_packet(&socket, index, 0).with_context(|| format!("bind to {device}"))?;
            Ok(socket)
        };
        Ok(Self { socket: netns.run(open)?, device: device.to_owned() })
    }

    /// Sends one frame, from its Ethernet header on.
    ///
    /// # Errors
    /// When the interface is down or the frame longer than its MTU allows.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = send(self.socket.as_raw_fd(), frame, MsgFlags::empty())
            .with_context(|| format!("send {} bytes by {}", frame.len(), self.device))?;
        ensure!(sent == frame.len(), "{} sent {sent} of {} bytes", self.device, frame.len());
        Ok(())
    }
}
