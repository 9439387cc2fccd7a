//! The system calls that no safe crate offers. All unsafe code of the user crate's link room is in this file.
#![expect(unsafe_code, reason = "sockaddr_ll and SO_NETNS_COOKIE have no safe constructor or getter in nix")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "libc types the kernel's small constants and the sizes of its small structs wider than its fields"
)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;

use super::frame::{ETH_IPV6, ICMPV6, NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION};

/// The kernel's number for a network namespace, unique since boot (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// # Errors
/// `ENOPROTOOPT` on older kernels.
pub(super) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: both pointers are to live locals of the sizes that the kernel is told, and the descriptor is open
    // for as long as it is borrowed.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    Ok(cookie)
}

/// A raw packet socket that receives frames of one EtherType from one interface, multicast to any group included,
/// and sends whole frames out of it. Of IPv6 it receives neighbour solicitations and advertisements only: a node's other
/// traffic would crowd them out. Nothing comes of what the stack itself would not take, as are frames of VLANs that have no
/// interface here: their tag is gone when a packet socket sees them.
///
/// # Errors
/// `EPERM` without `CAP_NET_RAW`; `ENETDOWN` when the interface is down.
pub(super) fn packet_socket(ifindex: u32, ethertype: u16) -> io::Result<OwnedFd> {
    let protocol = ethertype.to_be();
    // Protocol 0 until bind: otherwise frames of every interface queue up in between.
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
    let fd = Errno::result(fd)?;
    // SAFETY: the descriptor was just made and has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    attach_filter(socket.as_fd(), if ethertype == ETH_IPV6 { &NEIGHBOUR_DISCOVERY } else { &FOR_THIS_HOST })?;
    let index = i32::try_from(ifindex).map_err(|_overflow| Errno::ENODEV)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol,
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address is a live local sockaddr_ll, which is what AF_PACKET expects, and its size is given.
    let result = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    };
    Errno::result(result)?;
    // Another host's duplicate address probe goes to a multicast group that this host has not joined.
    let membership = libc::packet_mreq {
        mr_ifindex: index,
        mr_type: libc::PACKET_MR_ALLMULTI as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    // SAFETY: the option's value is a live local packet_mreq, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            (&raw const membership).cast(),
            size_of::<libc::packet_mreq>() as libc::socklen_t,
        )
    };
    Errno::result(result)?;
    Ok(socket)
}

/// One instruction of classic BPF (linux/bpf_common.h); jumps skip `yes` or `no` instructions.
const fn instruction(code: u32, yes: u8, no: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: yes, jf: no, k }
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
/// Loads the packet's type, which is no byte of it.
const PACKET_TYPE: libc::sock_filter = instruction(LOAD, 0, 0, (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32);
const OTHER_HOST: u32 = libc::PACKET_OTHERHOST as u32;

/// What is not for another host.
const FOR_THIS_HOST: [libc::sock_filter; 4] = [
    PACKET_TYPE,
    instruction(EQUAL, 1, 0, OTHER_HOST),
    instruction(RETURN, 0, 0, u32::MAX),
    instruction(RETURN, 0, 0, 0),
];

/// Of that, ICMPv6 right after the fixed header, of the two types: what anybody hears must be so plain (RFC 4861, 7.1).
const NEIGHBOUR_DISCOVERY: [libc::sock_filter; 9] = [
    PACKET_TYPE,
    instruction(EQUAL, 6, 0, OTHER_HOST),
    instruction(LOAD, 0, 0, 14 + 6),
    instruction(EQUAL, 0, 4, ICMPV6 as u32),
    instruction(LOAD, 0, 0, 14 + 40),
    instruction(EQUAL, 1, 0, NEIGHBOUR_SOLICITATION as u32),
    instruction(EQUAL, 0, 1, NEIGHBOUR_ADVERTISEMENT as u32),
    instruction(RETURN, 0, 0, u32::MAX),
    instruction(RETURN, 0, 0, 0),
];

fn attach_filter(socket: BorrowedFd<'_>, program: &[libc::sock_filter]) -> io::Result<()> {
    // The kernel only reads the program, though its struct says otherwise.
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the option's value is a live local sock_fprog, whose size is given and whose pointer and length are those of
    // a slice that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    Errno::result(result)?;
    Ok(())
}
