//! Timeouts as the router namespace's connection tracking has them.

use std::path::Path;

use egress_ebpf::timeout::{CLASSES, Class};

use super::AgentError;
use crate::link::Netns;

/// Replaces each timeout of `table` that connection tracking has a setting for (`net.netfilter.nf_conntrack_*`, seconds). One
/// that it does not have, as all of them where it is not loaded, stays.
///
/// # Errors
///
/// When the namespace cannot be entered.
pub fn conntrack_timeouts(netns: &Netns, table: &mut [u32; CLASSES]) -> Result<(), AgentError> {
    let settings = netns.run(|| Class::ALL.map(setting))?;
    for (class, setting) in Class::ALL.into_iter().zip(settings) {
        if let Some(limit) = table.get_mut(class as usize)
            && let Some(seconds) = setting
        {
            *limit = seconds;
        }
    }
    Ok(())
}

fn setting(class: Class) -> Option<u32> {
    let file = Path::new("/proc/sys/net/netfilter").join(format!("nf_conntrack_{}", name(class)));
    std::fs::read_to_string(file).ok()?.trim().parse().ok().filter(|seconds| *seconds > 0)
}

fn name(class: Class) -> &'static str {
    match class {
        Class::TcpSynSent => "tcp_timeout_syn_sent",
        Class::TcpSynRecv => "tcp_timeout_syn_recv",
        Class::TcpEstablished => "tcp_timeout_established",
        Class::TcpFinWait => "tcp_timeout_fin_wait",
        Class::TcpCloseWait => "tcp_timeout_close_wait",
        Class::TcpTimeWait => "tcp_timeout_time_wait",
        Class::TcpClose => "tcp_timeout_close",
        Class::Udp => "udp_timeout",
        Class::UdpStream => "udp_timeout_stream",
        Class::Icmp => "icmp_timeout",
        Class::SctpOpening => "sctp_timeout_cookie_wait",
        Class::SctpEstablished => "sctp_timeout_established",
        Class::SctpShutdown => "sctp_timeout_shutdown_ack_sent",
        Class::SctpClosed => "sctp_timeout_closed",
        Class::Generic => "generic_timeout",
    }
}

#[cfg(test)]
mod tests {
    use egress_ebpf::timeout;
    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::link::NetnsRef;

    /// The defaults are conntrack's own, so a new namespace has them; a setting that was changed there is followed.
    #[test]
    fn the_defaults_are_connection_trackings() {
        let check = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("make a network namespace, which needs root");
            let netns = NetnsRef::Own.open().unwrap();
            let mut table = timeout::defaults_s();
            conntrack_timeouts(&netns, &mut table).unwrap();
            assert_eq!(table, timeout::defaults_s());
            std::fs::write("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", "77").unwrap();
            conntrack_timeouts(&netns, &mut table).unwrap();
            assert_eq!(table[Class::Udp as usize], 77);
        };
        std::thread::spawn(check).join().unwrap();
    }
}
