//! The few socket calls that nix has no safe wrapper for.

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::libc;

/// Binds a packet socket to one interface, to receive one Ethernet type: `ETH_P_ALL` for every one, 0 for none.
pub(crate) fn bind_packet(socket: &OwnedFd, ifindex: u32, ethernet_type: i32) -> io::Result<()> {
    let ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
    // SAFETY: sockaddr_ll is plain integers, for which all zeros is a value.
    let mut address = unsafe { std::mem::zeroed::<libc::sockaddr_ll>() };
    address.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    address.sll_protocol = u16::try_from(ethernet_type).map_err(io::Error::other)?.to_be();
    address.sll_ifindex = ifindex;
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
    // SAFETY: the pointer is to a sockaddr_ll that lives through the call, and the length is its size.
    let done = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Keeps frames that this machine sends out of a packet socket.
pub(crate) fn ignore_outgoing(socket: &OwnedFd) -> io::Result<()> {
    set_option(socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)
}

/// Sets a socket option whose value is a number.
pub(crate) fn set_option(socket: &impl AsRawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: the pointer is to an int that lives through the call, and the length is its size.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How many frames a packet socket had no room for since the last call.
pub(crate) fn packet_drops(socket: &OwnedFd) -> io::Result<u64> {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = libc::socklen_t::try_from(size_of::<libc::tpacket_stats>()).map_err(io::Error::other)?;
    // SAFETY: both pointers are to locals that live through the call, and the length is the first one's size.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(statistics.tp_drops.into()) }
}

/// Makes the calling thread run before every ordinary one (SCHED_FIFO, lowest priority).
pub(crate) fn run_first() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the pointer is to a parameter block that lives through the call; 0 is the calling thread.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes the program of a pinned BPF link off its hook. The link itself stays, without effect.
pub(crate) fn detach_link(pin: &Path) -> io::Result<()> {
    /// As the kernel numbers the call's commands.
    const BPF_OBJ_GET: libc::c_int = 7;
    const BPF_LINK_DETACH: libc::c_int = 34;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let attributes = [path.as_ptr() as u64, 0];
    // SAFETY: the pointer is to the command's attributes, a path's address, a descriptor and flags, which live through the call
    // as the path does.
    let link = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const attributes, size_of_val(&attributes)) };
    if link < 0 {
        return Err(io::Error::last_os_error());
    }
    let link = i32::try_from(link).map_err(io::Error::other)?;
    // SAFETY: the call has just made this descriptor, and nobody else knows of it.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    let attributes = link.as_raw_fd();
    // SAFETY: the pointer is to the command's attributes, a descriptor and no more, which live through the call.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &raw const attributes, size_of_val(&attributes)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// From now on, the `bpf` system call of this thread, and of what it starts, fails as on a kernel built without it.
pub(crate) fn refuse_bpf() -> io::Result<()> {
    let statement =
        |code: u32, k: u32| libc::sock_filter { code: u16::try_from(code).unwrap_or(u16::MAX), jt: 0, jf: 0, k };
    let call = u32::try_from(libc::SYS_bpf).map_err(io::Error::other)?;
    let no_such_call = u32::try_from(libc::ENOSYS).map_err(io::Error::other)?;
    let mut program = [
        // The number of the call is the first word of seccomp_data.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter { jf: 1, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call) },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | no_such_call),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: the pointer is to a sock_fprog that lives through the call, and its own pointer to as many instructions as
    // it says; the kernel copies both.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
