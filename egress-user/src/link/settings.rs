//! The kernel settings that the router needs: which, and why.

use super::change::Change;
use super::observe::{Family, Sysctl};
use super::plan::{Inputs, families};

/// Kernel settings of the external interface. Nothing has relied on them before: they go away with it.
pub(super) fn external(inputs: Inputs<'_>) -> Vec<(Sysctl, &'static str)> {
    let v6 = families(inputs.link).contains(&Family::V6);
    let name = inputs.external_interface;
    let mut wanted: Vec<(Sysctl, &'static str)> = vec![
        // Never answer for, or speak as, an address of another interface.
        (Sysctl::ipv4(name, "proxy_arp"), "0"),
        (Sysctl::ipv4(name, "arp_ignore"), "1"),
        (Sysctl::ipv4(name, "arp_announce"), "2"),
        // The pod's routes name another interface for most sources that come in here: strict would drop every reply.
        // The effective value is the greater of this and `all`'s, and 2 (loose) is the greatest.
        (Sysctl::ipv4(name, "rp_filter"), "2"),
        (Sysctl::ipv4(name, "accept_redirects"), "0"),
        (Sysctl::ipv4(name, "accept_source_route"), "0"),
        // Removing the first address of a subnet must not take the others along.
        (Sysctl::ipv4(name, "promote_secondaries"), "1"),
    ];
    if v6 {
        wanted.extend([
            (Sysctl::ipv6(name, "accept_ra"), "0"),
            (Sysctl::ipv6(name, "autoconf"), "0"),
            (Sysctl::ipv6(name, "accept_redirects"), "0"),
            (Sysctl::ipv6(name, "proxy_ndp"), "0"),
            // Our own probe asks for the addresses. The link-local one, made from a MAC that only this router has, must be
            // usable at once: while it is tentative, no neighbour is solicited and the first requests are lost.
            (Sysctl::ipv6(name, "accept_dad"), "0"),
            (Sysctl::ipv6(name, "disable_ipv6"), "0"),
        ]);
    } else if inputs.here.sysctl(&Sysctl::ipv6("lo", "disable_ipv6")).is_some() {
        // No address, so no presence either: a link-local one would be reachable from the outside.
        wanted.push((Sysctl::ipv6(name, "disable_ipv6"), "1"));
    }
    wanted
}

/// Kernel settings that the router shares with the rest of its namespace, restored when it goes, and forwarding.
pub(super) fn shared(inputs: Inputs<'_>) -> Vec<(Sysctl, &'static str)> {
    let Inputs { cluster_interface: cluster, external_interface: external, here, .. } = inputs;
    let mut wanted: Vec<(Sysctl, &'static str)> = Vec::new();
    for family in families(inputs.link) {
        match family {
            Family::V4 => {
                // Effective when set for `all` or for the interface: `all` would undo net1's 0.
                wanted.push((Sysctl::ipv4("all", "proxy_arp"), "0"));
                wanted.push((Sysctl::new("net/ipv4/fwmark_reflect"), "1"));
                // ICMP errors about forwarded packets speak as the interface that the packet came in by: the rule
                // for that address then sends them back the way it came.
                wanted.push((Sysctl::new("net/ipv4/icmp_errors_use_inbound_ifaddr"), "1"));
                // Strict drops clients that the pod has no route to. Off stays off: loose would want a route too.
                let rp_filter = |name| here.sysctl(&Sysctl::ipv4(name, "rp_filter")).map_or("0", |value| value);
                if rp_filter(cluster).max(rp_filter("all")) == "1" {
                    wanted.push((Sysctl::ipv4(cluster, "rp_filter"), "2"));
                }
                // By interface, not net.ipv4.ip_forward: a third interface of the pod forwards nothing.
                wanted.push((Sysctl::ipv4(external, "forwarding"), "1"));
                wanted.push((Sysctl::ipv4(cluster, "forwarding"), "1"));
            }
            Family::V6 => {
                wanted.push((Sysctl::ipv6("lo", "disable_ipv6"), "0"));
                wanted.push((Sysctl::new("net/ipv6/fwmark_reflect"), "1"));
                // With 1, a forwarding host drops the routes that it learned from advertisements; with 2 it keeps them.
                let accept_ra = Sysctl::ipv6(cluster, "accept_ra");
                if here.sysctl(&accept_ra) == Some("1") {
                    wanted.push((accept_ra, "2"));
                }
                // IPv6 has no forwarding by interface before Linux 6.17.
                wanted.push((Sysctl::ipv6("all", "forwarding"), "1"));
            }
        }
    }
    wanted
}

/// Every setting that a plan looks at.
pub(super) fn read_by_plans(cluster: &str, external: &str) -> Vec<Sysctl> {
    const BOTH: [&str; 3] = ["forwarding", "rp_filter", "proxy_arp"];
    let external_v4 = ["arp_ignore", "arp_announce", "accept_redirects", "accept_source_route", "promote_secondaries"];
    let external_v6 = ["accept_ra", "autoconf", "accept_redirects", "proxy_ndp", "accept_dad", "disable_ipv6"];
    let global = [
        Sysctl::new("net/ipv4/fwmark_reflect"),
        Sysctl::new("net/ipv6/fwmark_reflect"),
        Sysctl::new("net/ipv4/icmp_errors_use_inbound_ifaddr"),
        Sysctl::new("net/ipv4/ip_local_port_range"),
        Sysctl::ipv6("all", "forwarding"),
        Sysctl::ipv6("lo", "disable_ipv6"),
        Sysctl::ipv6(cluster, "accept_ra"),
    ];
    [cluster, external, "all"]
        .into_iter()
        .flat_map(|interface| BOTH.map(|name| Sysctl::ipv4(interface, name)))
        .chain(external_v4.map(|name| Sysctl::ipv4(external, name)))
        .chain(external_v6.map(|name| Sysctl::ipv6(external, name)))
        .chain(global)
        .collect()
}

/// Writes for the settings whose `value` differs.
pub(super) fn changes<'a>(
    wanted: Vec<(Sysctl, &'static str)>,
    value: impl Fn(&Sysctl) -> Option<&'a str>,
) -> Vec<Change> {
    let differing = wanted.into_iter().filter_map(|(key, to)| {
        let from = value(&key).map(str::to_owned);
        (from.as_deref() != Some(to)).then(|| Change::SetSysctl { key, from, to: to.to_owned() })
    });
    differing.collect()
}
