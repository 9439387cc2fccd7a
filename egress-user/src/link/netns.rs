//! Network namespaces: how the user names them, and how code runs inside one.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use serde::Serialize;

use super::error::{Holder, LinkError};
use super::sys;

/// How a network namespace is named on the command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum NetnsRef {
    /// The namespace of the calling thread.
    Own,
    /// A name that `ip netns` shows: `/run/netns/NAME`.
    Name(String),
    /// A file that is, or has mounted on it, a namespace.
    Path(PathBuf),
    /// The namespace of a process.
    Pid(u32),
}

impl NetnsRef {
    fn path(&self) -> PathBuf {
        match self {
            // Not /proc/self: that is the process's first thread.
            Self::Own => PathBuf::from("/proc/thread-self/ns/net"),
            Self::Name(name) => PathBuf::from("/run/netns").join(name),
            Self::Path(path) => path.clone(),
            Self::Pid(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        }
    }

    /// Opens the namespace, which keeps it alive.
    ///
    /// # Errors
    /// [`LinkError::OpenNetns`] when there is no such file or it is not readable.
    pub fn open(&self) -> Result<Netns, LinkError> {
        let path = self.path();
        let file = File::open(&path).map_err(|source| LinkError::OpenNetns {
            netns: self.to_string(),
            path: path.clone(),
            source,
        })?;
        Ok(Netns { file: Arc::new(file), label: self.to_string() })
    }
}

impl fmt::Display for NetnsRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("own"),
            Self::Name(name) => f.write_str(name),
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Pid(pid) => write!(f, "pid {pid}"),
        }
    }
}

/// A value with a slash is a path, any other a name.
impl FromStr for NetnsRef {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text.contains('/') { Self::Path(PathBuf::from(text)) } else { Self::Name(text.to_owned()) })
    }
}

/// An open network namespace. Clones share the descriptor.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<File>,
    label: String,
}

impl Netns {
    /// The host's namespace: that of process 1.
    ///
    /// In a container without the host's process namespace, process 1 is the container's own and this is the
    /// router's namespace: [`is`](Self::is) tells.
    ///
    /// # Errors
    /// [`LinkError::OpenNetns`] when process 1 may not be inspected.
    pub fn host() -> Result<Self, LinkError> {
        let path = NetnsRef::Pid(1).path();
        let file = File::open(&path).map_err(|source| LinkError::OpenNetns {
            netns: "host".to_owned(),
            path: path.clone(),
            source,
        })?;
        Ok(Self { file: Arc::new(file), label: "host".to_owned() })
    }

    /// What error messages call it.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Runs `work` on a thread of its own inside the namespace, and waits for it.
    ///
    /// The caller's thread stays where it is: a thread of an async runtime that changed its namespace would take
    /// other tasks along. `/proc/sys/net` follows the thread; `/sys` does not, so `work` must not read it.
    ///
    /// # Errors
    /// [`LinkError::EnterNetns`] without `CAP_SYS_ADMIN`, or when the file is no network namespace.
    ///
    /// # Panics
    /// With the panic of `work`.
    pub fn run<T, F>(&self, work: F) -> Result<T, LinkError>
    where
        T: Send,
        F: FnOnce() -> T + Send,
    {
        let enter_error = |source| LinkError::EnterNetns { netns: self.label.clone(), source };
        std::thread::scope(|scope| {
            let inside = std::thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, || {
                    setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
                    Ok(work())
                })
                .map_err(enter_error)?;
            inside.join().unwrap_or_else(|panic| resume_unwind(panic)).map_err(enter_error)
        })
    }

    /// The kernel's number for the namespace, unique since boot. Linux 5.14.
    ///
    /// # Errors
    /// [`LinkError::EnterNetns`], also on a kernel that has no such number.
    pub fn cookie(&self) -> Result<u64, LinkError> {
        self.run(|| {
            let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
            sys::netns_cookie(socket.as_fd())
        })?
        .map_err(|source| LinkError::EnterNetns { netns: self.label.clone(), source })
    }

    /// Keeps other processes that ask the same from the namespace, for as long as the result lives. The lock is on the
    /// namespace itself: there is no file to clean up, and it holds between containers that share nothing else.
    ///
    /// # Errors
    /// [`LinkError::Busy`] when another process has it; [`LinkError::OpenNetns`] when it cannot be locked at all.
    pub fn lock(&self) -> Result<NetnsLock, LinkError> {
        let failed = |source| LinkError::OpenNetns { netns: self.label.clone(), path: PathBuf::new(), source };
        let file = self.file.try_clone().map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(NetnsLock { _lock: lock }),
            Err((file, Errno::EWOULDBLOCK)) => {
                Err(LinkError::Busy { netns: self.label.clone(), holder: Holder(lock_holder(&file)) })
            }
            Err((_, error)) => Err(failed(error.into())),
        }
    }

    /// The process that has the [`lock`](Self::lock), as far as this process may know.
    #[must_use]
    pub fn holder(&self) -> Option<u32> {
        lock_holder(&self.file)
    }

    /// Whether both are the same namespace.
    ///
    /// # Errors
    /// [`LinkError::OpenNetns`] when a descriptor cannot be inspected.
    pub fn is(&self, other: &Self) -> Result<bool, LinkError> {
        use std::os::unix::fs::MetadataExt;
        let inode = |netns: &Self| {
            netns.file.metadata().map(|m| (m.dev(), m.ino())).map_err(|source| LinkError::OpenNetns {
                netns: netns.label.clone(),
                path: PathBuf::new(),
                source,
            })
        };
        Ok(inode(self)? == inode(other)?)
    }
}

/// A namespace that other processes leave alone meanwhile: see [`Netns::lock`].
#[derive(Debug)]
pub struct NetnsLock {
    _lock: Flock<File>,
}

/// The process that has the lock, as far as this process may know: `1: FLOCK  ADVISORY  WRITE 4711 00:04:4026532281 0 EOF`.
fn lock_holder(file: &File) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let inode = file.metadata().ok()?.ino().to_string();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (kind, pid, place) = (words.next()?, words.nth(2)?, words.next()?);
        (kind == "FLOCK" && place.rsplit(':').next()? == inode).then(|| pid.parse().ok())?
    })
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}
