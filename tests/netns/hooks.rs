//! Both ways of attaching: tcx links, which Linux has from 6.6 on, and clsact filters.

use egress_lab::address::{ROUTER, SERVER_1, SERVER_2, SNAT, client};
use egress_lab::icmp::Echo;
use egress_lab::{Family, Options};

use crate::rig::{Rig, Spec, TIMEOUT, at};

#[test]
fn packets_are_translated_by_links_and_by_filters() {
    let auto_uses_filters = kernel() < (6, 6);
    // A specification has one fallback, which serves its own family, and pings go by the fallback.
    for (hook, filters, fallback) in [("auto", auto_uses_filters, Family::V4), ("clsact", true, Family::V6)] {
        let spec = Spec::new().tcp(80, SERVER_1, 8080).udp(7000, SERVER_1, None).fallback(SERVER_2.ip(fallback));
        let rig = Rig::prepare(&Options::default(), &spec, &["--hook", hook]);
        rig.router.apply().unwrap();
        let configuration = rig.configuration().unwrap();
        assert_eq!(configuration.contains("clsact"), filters, "{hook}: {configuration}");
        let status = rig.router.report("status").unwrap();
        let programs = status["programs"].as_array().unwrap();
        let wanted = if filters { "clsact" } else { "tcx" };
        assert_eq!(programs.len(), 4, "{status}");
        assert!(programs.iter().all(|program| program["attached"] == wanted), "{status}");
        for family in Family::ALL {
            let _tcp = rig.tcp_server(at(SERVER_1, family, 8080));
            let _udp = rig.udp_server(at(SERVER_1, family, 7000));
            let from = at(client(0), family, 30_000);
            assert_eq!(rig.tcp(from, 80).1.source.ip(), SNAT.ip(family));
            assert_eq!(rig.udp(from, 7000).1.source.ip(), SNAT.ip(family));
        }
        let (from, to) = (client(0).ip(fallback), ROUTER.ip(fallback));
        let echo = Echo { from, to, id: 7, sequence: 1, payload: b"by link or by filter" };
        assert_eq!(echo.exchange(&rig.client, TIMEOUT).result.unwrap(), to);
        rig.router.delete().unwrap();
        assert!(!rig.configuration().unwrap().contains("clsact"), "{hook}: the filters' qdisc is left");
    }
}

/// The running kernel's version.
fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}
