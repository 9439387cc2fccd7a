//! Whatever the text, and whatever the router.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use proptest::prelude::*;

use super::{BASE, lines, only};
use crate::compile::compile;
use crate::spec::{
    ApiVersion, Condition, ConditionStatus, ConditionType, EgressRouter, EgressRouterAddress, EgressRouterSpec,
    EgressRouterStatus, Kind, L4RedirectRule, MacvlanConfig, MacvlanMode, Metadata, Mode, NetworkInterface, Protocol,
    RedirectConfig, Style, load_str,
};

/// Text that is nearly YAML, or nearly a router.
fn nearly_yaml() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "a",
        "ip",
        "spec",
        ": ",
        ":",
        "- ",
        "-",
        "\n",
        "\n  ",
        "\n    ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "&a ",
        "*a",
        "<<: ",
        "!x ",
        "!!str ",
        "|\n",
        ">\n",
        "'",
        "\"",
        "#",
        "---\n",
        "...\n",
        "%YAML 1.2\n",
        "\t",
        "\r\n",
        "\u{feff}",
        "ü",
        "? ",
        "80",
        "10.0.0.1/8",
        "kind: EgressRouter\n",
        "kind: List\n",
        "items:\n",
        "~",
        "\\",
        "\0",
    ]);
    prop::collection::vec(pieces, 0..60).prop_map(|pieces| pieces.concat())
}

/// The sound router with a part replaced by something else.
fn mutated() -> impl Strategy<Value = String> {
    (0..BASE.len(), 0..40_usize, nearly_yaml()).prop_map(|(start, length, insert)| {
        let end = (start + length).min(BASE.len());
        format!("{}{insert}{}", &BASE[..start], &BASE[end..])
    })
}

fn holds(text: &str) {
    let loaded = load_str("f", text);
    let lines_of_text = text.split('\n').count();
    for diagnostic in &loaded.diagnostics {
        assert!((1..=lines_of_text).contains(&diagnostic.line) && diagnostic.column >= 1, "{diagnostic}");
        assert!(!diagnostic.message.is_empty());
        assert!(!diagnostic.render(Style::Plain).contains("Failed to read contents"), "{diagnostic}");
    }
    let unsound = loaded.routers.iter().any(|router| router.valid.is_none());
    assert!(!unsound || loaded.has_errors(), "a router is refused without a word");
    assert!(!loaded.routers.is_empty() || !loaded.diagnostics.is_empty() || text.contains("List"), "nothing is said");
    loaded.routers.iter().filter_map(|router| router.valid.as_ref()).for_each(|valid| drop(compile(valid)));
}

/// Text that YAML can hold as it is: JSON lets more characters stand unescaped in a text than YAML does.
fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9 .:/#&*!'\"-]{0,12}",
        "[^\\p{Cc}\\p{Cn}]{0,8}",
        Just("true".to_owned()),
        Just("0x1f".to_owned())
    ]
}

fn v4_hosts() -> impl Strategy<Value = IpAddr> {
    // 198.18.0.0/15: never among the router's own addresses, which are of 10.0.0.0/8.
    (0..0x1_ffff_u32).prop_map(|host| IpAddr::V4(Ipv4Addr::from(0xc612_0000 + host)))
}

fn v6_hosts() -> impl Strategy<Value = IpAddr> {
    any::<u64>().prop_map(|host| IpAddr::V6(Ipv6Addr::from((0x2001_0db8_u128 << 96) | u128::from(host))))
}

fn ports() -> impl Strategy<Value = NonZeroU16> {
    any::<NonZeroU16>()
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let map = || prop::collection::btree_map(texts(), texts(), 0..3);
    let namespace = prop::option::of("[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?");
    (
        "[a-z0-9]([a-z0-9.]{0,10}[a-z])?",
        namespace,
        prop::option::of(texts()),
        prop::option::of(any::<i64>()),
        map(),
        map(),
    )
        .prop_filter("no empty label", |(name, ..)| !name.contains(".."))
        .prop_map(|(name, namespace, uid, generation, labels, annotations)| Metadata {
            name,
            namespace,
            uid,
            generation,
            labels,
            annotations,
        })
}

fn rules() -> impl Strategy<Value = Vec<L4RedirectRule>> {
    let protocols = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    let hosts = prop_oneof![v4_hosts(), v6_hosts()];
    prop::collection::vec((hosts, ports(), protocols, prop::option::of(ports())), 0..12).prop_map(|rules| {
        let mut seen = HashSet::new();
        let rules = rules.into_iter().map(|(destination_ip, port, protocol, target_port)| L4RedirectRule {
            destination_ip,
            port,
            protocol,
            target_port,
        });
        rules.filter(|rule| seen.insert((rule.destination_ip.is_ipv6(), rule.protocol, rule.port))).collect()
    })
}

/// Addresses of both families, so that any destination has one.
fn addresses() -> impl Strategy<Value = Vec<EgressRouterAddress>> {
    let v4 = prop::collection::btree_set(2..0xff_fffe_u32, 1..4);
    let v6 = prop::collection::btree_set(2..u64::MAX, 1..4);
    (v4, v6, any::<bool>(), any::<bool>()).prop_map(|(v4, v6, gateway4, gateway6)| {
        let v4 = v4.into_iter().map(|host| EgressRouterAddress {
            ip: format!("{}/8", Ipv4Addr::from(0x0a00_0000 + host)),
            gateway: gateway4.then_some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))),
        });
        let v6 = v6.into_iter().map(|host| EgressRouterAddress {
            ip: format!("{}/64", Ipv6Addr::from((0xfd00_u128 << 112) | u128::from(host))),
            gateway: gateway6.then(|| "fe80::1".parse().unwrap()),
        });
        v4.chain(v6).collect()
    })
}

fn statuses() -> impl Strategy<Value = EgressRouterStatus> {
    let kinds = prop::sample::select(ConditionType::NAMES.to_vec());
    let states = prop::sample::select(ConditionStatus::NAMES.to_vec());
    let texts = || prop::option::of(texts());
    let condition = (kinds, states, texts(), texts(), texts()).prop_map(|(kind, status, time, reason, message)| {
        Condition { kind: kind.1, status: status.1, last_transition_time: time, reason, message }
    });
    prop::collection::vec(condition, 0..3).prop_map(|conditions| EgressRouterStatus { conditions })
}

fn routers() -> impl Strategy<Value = EgressRouter> {
    let modes = prop::sample::select(MacvlanMode::NAMES.to_vec());
    let master = prop::option::of("[a-z][a-z0-9.-]{0,14}");
    let fallback = prop::option::of(prop_oneof![v4_hosts(), v6_hosts()]);
    (metadata(), modes, master, addresses(), rules(), fallback, prop::option::of(statuses())).prop_map(
        |(metadata, mode, master, addresses, redirect_rules, fallback_ip, status)| EgressRouter {
            api_version: ApiVersion::V1,
            kind: Kind::EgressRouter,
            metadata,
            spec: EgressRouterSpec {
                mode: Mode::Redirect,
                redirect: RedirectConfig { redirect_rules, fallback_ip },
                network_interface: NetworkInterface { macvlan: MacvlanConfig { mode: mode.1, master } },
                addresses,
            },
            status,
        },
    )
}

proptest! {
    #[test]
    fn arbitrary_text(text in any::<String>()) {
        holds(&text);
    }

    #[test]
    fn arbitrary_yaml(text in nearly_yaml()) {
        holds(&text);
    }

    #[test]
    fn arbitrary_damage(text in mutated()) {
        holds(&text);
    }

    #[test]
    fn arbitrary_routers_come_back_equal(router in routers()) {
        let yaml = serde_saphyr::to_string(&router).unwrap();
        let json = serde_json::to_string_pretty(&router).unwrap();
        for text in [&yaml, &json] {
            let loaded = load_str("f", text);
            prop_assert!(!loaded.has_errors(), "{}\n{}", lines(&loaded.diagnostics), text);
            prop_assert_eq!(only(&loaded), &router, "{}", text);
        }
    }

    #[test]
    fn compiling_keeps_everything(router in routers()) {
        let loaded = load_str("f", &serde_json::to_string(&router).unwrap());
        let desired = compile(loaded.routers.first().and_then(|router| router.valid.as_ref()).expect("a valid router"));
        prop_assert_eq!(&desired.router.name, &router.metadata.name);
        prop_assert_eq!(desired.link.addresses.len(), router.spec.addresses.len());
        for (address, wanted) in desired.link.addresses.iter().zip(&router.spec.addresses) {
            prop_assert_eq!(address.net.to_string(), wanted.ip.clone());
            prop_assert_eq!(address.gateway, wanted.gateway);
        }
        for (index, (rule, wanted)) in desired.rules.rules.iter().zip(&router.spec.redirect.redirect_rules).enumerate() {
            prop_assert_eq!(usize::try_from(rule.index).unwrap(), index);
            prop_assert_eq!((rule.destination, rule.port), (wanted.destination_ip, wanted.port));
            prop_assert_eq!((rule.protocol, rule.target_port), (wanted.protocol, wanted.target_port));
        }
        prop_assert_eq!(desired.rules.rules.len(), router.spec.redirect.redirect_rules.len());
        prop_assert_eq!(desired.rules.fallback, router.spec.redirect.fallback_ip);
    }
}
