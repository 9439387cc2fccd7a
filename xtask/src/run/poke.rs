//! Lines to paste, for whoever wants to try the router by hand.

use std::fmt::Write as _;

use egress_lab::probe::{Kind, Probe};
use egress_lab::router::Router;
use egress_lab::topology::{EXTERNAL_INTERFACE, OUTSIDE_INTERFACE};
use egress_lab::{Family, Lab};

use crate::workspace;

/// The lines, for this lab.
pub(super) fn lines(lab: &Lab, router: &Router, probes: &[Probe]) -> String {
    let mut text = String::from("\nthe lab stays; from another terminal, as root:\n");
    // Writing to a string cannot fail, here and below.
    for request in probes.iter().filter_map(request) {
        let _ = writeln!(text, "  ip netns exec {} {request}", lab.client.name());
    }
    for (netns, what) in [
        (&lab.router, format!("ip -d link show {EXTERNAL_INTERFACE}")),
        (&lab.outside, format!("tcpdump -ni {OUTSIDE_INTERFACE}")),
    ] {
        let _ = writeln!(text, "  ip netns exec {} {what}", netns.name());
    }
    for verb in ["status", "rules", "flows", "drops"] {
        let command = router.reader(verb);
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>();
        let _ = writeln!(text, "  {}", words.join(" "));
    }
    let _ = writeln!(text, "edit the rules, and they follow: {}", router.spec().display());
    text.push_str("Ctrl-C removes everything");
    text
}

/// What tries one probe by hand, if a program is here that can.
fn request(probe: &Probe) -> Option<String> {
    let here = |program| workspace::on_path(program).is_some();
    let (ip, port) = (probe.to.ip(), probe.to.port());
    match probe.kind {
        Kind::IcmpEcho => here("ping").then(|| format!("ping -c 1 {ip}")),
        Kind::Tcp if here("curl") => Some(match Family::of(ip) {
            Family::V4 => format!("curl http://{ip}:{port}/"),
            Family::V6 => format!("curl -g 'http://[{ip}]:{port}/'"),
        }),
        Kind::Udp if here("nc") => Some(format!("sh -c 'echo hello | nc -u -w 1 {ip} {port}'")),
        // Bash alone can do both.
        Kind::Tcp => Some(format!("bash -c 'exec 3<>/dev/tcp/{ip}/{port}; echo hello >&3; head -n 1 <&3'")),
        Kind::Udp => Some(format!("bash -c 'exec 3<>/dev/udp/{ip}/{port}; echo hello >&3; head -n 1 <&3'")),
    }
}
