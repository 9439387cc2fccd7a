//! What has to be taken, with its defaults.

use std::net::IpAddr;

use super::{BASE, assert_found, lines, only};
use crate::compile::{MacvlanMode, Protocol, compile};
use crate::spec::{
    Condition, ConditionStatus, ConditionType, EgressRouter, FieldPath, Mode, Severity, load, load_str, validate,
};

const HEAD: &str = "apiVersion: network.operator.openshift.io/v1\nkind: EgressRouter\nmetadata: {name: r}\n";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn the_sound_router_has_no_problem() {
    assert_found("sound", BASE, &[]);
    let router = only(&load_str("f", BASE)).clone();
    assert_eq!(router.spec.redirect.redirect_rules.len(), 2);
    assert_eq!(router.spec.redirect.fallback_ip, Some(ip("203.0.113.27")));
    assert_eq!(router.spec.network_interface.macvlan.master.as_deref(), Some("eth1"));
}

#[test]
fn the_least_that_the_api_takes_is_defaulted() {
    let loaded = load_str("f", &format!("{HEAD}spec: {{mode: Redirect, redirect: {{}}, addresses: []}}\n"));
    let router = only(&loaded);
    assert_eq!(router.spec.mode, Mode::Redirect);
    assert_eq!(router.spec.network_interface.macvlan.mode, MacvlanMode::Bridge);
    assert_eq!(router.spec.network_interface.macvlan.master, None);
    assert!(router.spec.addresses.is_empty() && router.spec.redirect.redirect_rules.is_empty());
    let warnings: Vec<_> = loaded.diagnostics.iter().map(|it| (it.severity, it.field.as_str())).collect();
    assert_eq!(warnings, [(Severity::Warning, "spec.redirect"), (Severity::Warning, "spec.addresses")]);
}

#[test]
fn defaults_fill_every_level() {
    for interface in ["", "networkInterface: {}, ", "networkInterface: {macvlan: {}}, ", "networkInterface: null, "] {
        let spec = format!("spec: {{{interface}redirect: {{fallbackIP: 10.0.0.2}}, addresses: [{{ip: 10.0.0.1/8}}]}}");
        let loaded = load_str("f", &format!("{HEAD}{spec}\n"));
        assert_eq!(only(&loaded).spec.network_interface.macvlan.mode, MacvlanMode::Bridge, "{interface:?}");
        assert!(loaded.diagnostics.is_empty(), "{interface:?}: {}", lines(&loaded.diagnostics));
    }
}

#[test]
fn required_parts_are_required() {
    assert_found("no spec", HEAD, &[(1, 1, "error", "spec", "spec is missing")]);
    assert_found(
        "no redirect",
        &format!("{HEAD}spec: {{mode: Redirect, addresses: []}}\n"),
        &[(4, 1, "error", "spec.redirect", "redirect: {} is the least")],
    );
    assert_found(
        "no addresses",
        &format!("{HEAD}spec: {{redirect: {{fallbackIP: 10.0.0.1}}}}\n"),
        &[(4, 1, "error", "spec.addresses", "addresses is missing")],
    );
    let text = format!("{HEAD}spec: {{redirect: {{fallbackIP: 10.0.0.1}}, addresses: []}}\n");
    assert_found(
        "destinations without any address",
        &text,
        &[(4, 42, "error", "spec.addresses", "no address to reach them with")],
    );
}

#[test]
fn the_canonical_router() {
    let text = "\
apiVersion: network.operator.openshift.io/v1
kind: EgressRouter
metadata:
  name: egress-router-redirect
spec:
  networkInterface: {
    macvlan: {
      mode: \"Bridge\"
    }
  }
  addresses: [
    {
      ip: \"192.168.12.99/24\",
      gateway: \"192.168.12.1\"
    }
  ]
  mode: Redirect
  redirect: {
    redirectRules: [
      {
        destinationIP: \"10.0.0.99\",
        port: 80,
        protocol: UDP
      },
      {
        destinationIP: \"203.0.113.26\",
        port: 8080,
        targetPort: 80,
        protocol: TCP
      },
      {
        destinationIP: \"203.0.113.27\",
        port: 8443,
        targetPort: 443,
        protocol: TCP
      }
    ]
  }
";
    let loaded = load_str("f", text);
    assert!(loaded.diagnostics.is_empty(), "{}", lines(&loaded.diagnostics));
    let desired = compile(loaded.routers[0].valid.as_ref().unwrap());
    assert_eq!(desired.router.to_string(), "default/egress-router-redirect");
    assert_eq!(desired.link.mode, MacvlanMode::Bridge);
    assert_eq!(desired.link.addresses[0].net.to_string(), "192.168.12.99/24");
    assert_eq!(desired.link.addresses[0].gateway, Some(ip("192.168.12.1")));
    let rules: Vec<_> = desired.rules.rules.iter().map(ToString::to_string).collect();
    assert_eq!(rules, ["80/UDP -> 10.0.0.99:80", "8080/TCP -> 203.0.113.26:80", "8443/TCP -> 203.0.113.27:443"]);
    assert_eq!(desired.rules.rules[2].index, 2);
    assert_eq!((desired.rules.rules[0].target_port, desired.rules.fallback), (None, None));
}

#[test]
fn what_is_unusual_and_right() {
    let spec = |text: &str| format!("{HEAD}spec: {text}\n");
    let texts = [
        spec("{redirect: {fallbackIP: 10.0.0.2}, addresses: [{ip: 10.0.0.1/32, gateway: 10.0.0.1}]}")
            .replace("/32, gateway: 10.0.0.1", "/31, gateway: 10.0.0.0"),
        spec("{redirect: {fallbackIP: 169.254.169.254}, addresses: [{ip: 10.0.0.1/8}]}"),
        spec("{redirect: {fallbackIP: 2001:db8::1}, addresses: [{ip: 2001:DB8:0::2/127, gateway: fe80::1}]}"),
        spec(
            "{redirect: {fallbackIP: 10.0.0.9}, addresses: [{ip: 10.0.0.1/8, gateway: 10.0.0.2}, {ip: 10.0.0.3/8}, {ip: 10.0.0.4/8, gateway: 10.0.0.2}]}",
        ),
        spec(
            "{redirect: {redirectRules: [{destinationIP: 10.0.0.2, port: 0x50, protocol: SCTP}]}, addresses: [{ip: 10.0.0.1/8}]}",
        ),
        spec(
            "{redirect: {redirectRules: [{destinationIP: 10.0.0.2, port: 53, protocol: TCP}, {destinationIP: 10.0.0.2, port: 53, protocol: UDP}]}, addresses: [{ip: 10.0.0.1/8}]}",
        ),
    ];
    for text in texts {
        let loaded = load_str("f", &text);
        assert!(loaded.diagnostics.is_empty(), "{text}\n{}", lines(&loaded.diagnostics));
        only(&loaded);
    }
    let hexadecimal = load_str(
        "f",
        &spec(
            "{redirect: {redirectRules: [{destinationIP: 10.0.0.2, port: 0x50, protocol: SCTP}]}, addresses: [{ip: 10.0.0.1/8}]}",
        ),
    );
    let rule = only(&hexadecimal).spec.redirect.redirect_rules[0].clone();
    assert_eq!((rule.port.get(), rule.protocol), (80, Protocol::Sctp));
}

#[test]
fn json_with_tabs_and_escapes() {
    let text = "{\n\t\"apiVersion\": \"network.operator.openshift.io\\/v1\",\n\t\"kind\": \"EgressRouter\",\n\
                \t\"metadata\": {\"name\": \"r\", \"annotations\": {\"a.b/c\": \"\\u00fc\\ud83d\\ude00\"}},\n\
                \t\"spec\": {\"redirect\": {\"fallbackIP\": \"10.0.0.2\"}, \"addresses\": [{\"ip\": \"10.0.0.1/8\"}]}\n}";
    let loaded = load_str("f", text);
    let router = only(&loaded);
    assert_eq!(router.metadata.annotations["a.b/c"], "ü😀");
}

#[test]
fn anchors_merge_keys_and_a_byte_order_mark() {
    let text = format!(
        "\u{feff}{HEAD}spec:\n  addresses: [{{ip: 10.0.0.1/8}}]\n  redirect:\n    redirectRules:\n      \
         - &web {{destinationIP: 10.0.0.2, port: 80, protocol: TCP}}\n      - {{<<: *web, port: 81}}\n    \
         fallbackIP: &host 10.0.0.3\n"
    );
    let loaded = load_str("f", &text);
    let rules = &only(&loaded).spec.redirect.redirect_rules;
    assert_eq!(rules.iter().map(|rule| rule.port.get()).collect::<Vec<_>>(), [80, 81]);
    assert_eq!(rules[1].destination_ip, ip("10.0.0.2"));
    let quoted = load_str("f", &BASE.replace("name: r", "name: r\n  labels: {'<<': x}"));
    assert_eq!(only(&quoted).metadata.labels["<<"], "x", "in quotes it is no merge key");
}

#[test]
fn several_documents_and_lists() {
    let named = |name: &str| BASE.replace("name: r", &format!("name: {name}"));
    let names = |text: &str| {
        let loaded = load_str("f", text);
        assert!(loaded.diagnostics.is_empty(), "{}", lines(&loaded.diagnostics));
        loaded.routers.iter().map(|router| (router.name.clone(), router.line)).collect::<Vec<_>>()
    };
    let text = format!("---\n{}---\n---\n{}...\n", named("a"), named("b"));
    assert_eq!(names(&text), [("a".to_owned(), 5), ("b".to_owned(), 32)]);
    let item =
        |name| named(name).lines().map(|line| format!("    {line}\n")).collect::<String>().replacen("    ", "  - ", 1);
    for (kind, version) in [("List", "v1"), ("EgressRouterList", "network.operator.openshift.io/v1")] {
        let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{}}\nitems:\n{}{}", item("a"), item("b"));
        assert_eq!(names(&text).len(), 2, "{kind}");
    }
}

#[test]
fn metadata_and_status_of_a_cluster() {
    let text = BASE.replace(
        "  name: r\n",
        "  name: r\n  namespace: n\n  uid: u-1\n  generation: 7\n  resourceVersion: '5'\n  managedFields: []\n  \
         creationTimestamp: null\n  labels: {app: x}\n",
    ) + "status:\n  conditions:\n    - {type: Available, status: 'True', lastTransitionTime: null, reason: Up}\n";
    let loaded = load_str("f", &text);
    assert!(loaded.diagnostics.is_empty(), "{}", lines(&loaded.diagnostics));
    let router = only(&loaded);
    assert_eq!((router.metadata.generation, router.metadata.uid.as_deref()), (Some(7), Some("u-1")));
    let condition = Condition {
        kind: ConditionType::Available,
        status: ConditionStatus::True,
        last_transition_time: None,
        reason: Some("Up".to_owned()),
        message: None,
    };
    assert_eq!(router.status.as_ref().map(|status| status.conditions.as_slice()), Some(&[condition][..]));
}

#[test]
fn faults_of_the_status_are_warnings() {
    let text = format!("{BASE}status:\n  conditions:\n    - {{type: Available, status: true}}\n");
    assert_found("status", &text, &[(28, 33, "warning", "status.conditions[0].status", "found the boolean")]);
    only(&load_str("f", &text));
}

#[test]
fn objects_without_a_text_are_checked_the_same() {
    let good: EgressRouter = serde_saphyr::from_str(BASE).unwrap();
    let (valid, warnings) = validate(good.clone()).unwrap();
    assert_eq!((valid.router(), warnings.len()), (&good, 0));
    let bad: EgressRouter = serde_saphyr::from_str(&BASE.replace("192.168.12.99/24", "192.168.12.99")).unwrap();
    let problems = validate(bad).unwrap_err();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].field, FieldPath::root().field("spec").field("addresses").index(0).field("ip"));
    let text = "error: spec.addresses[0].ip: \"192.168.12.99\" has no prefix length; ";
    assert!(problems[0].to_string().starts_with(text), "{}", problems[0]);
}

#[test]
fn every_example_has_no_problem() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let mut examples = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let loaded = load(&path).unwrap();
        assert!(loaded.diagnostics.is_empty(), "{}", lines(&loaded.diagnostics));
        only(&loaded);
        examples += 1;
    }
    assert!(examples >= 3, "{examples} examples");
}

#[test]
fn ten_thousand_rules() {
    let rules: String = (1..=10_000)
        .map(|port| format!("      - {{destinationIP: 203.0.113.26, port: {port}, protocol: TCP, targetPort: 8080}}\n"))
        .collect();
    let text = format!("{HEAD}spec:\n  addresses: [{{ip: 10.0.0.1/8}}]\n  redirect:\n    redirectRules:\n{rules}");
    assert_eq!(only(&load_str("f", &text)).spec.redirect.redirect_rules.len(), 10_000);
}
