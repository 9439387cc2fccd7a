//! Texts in, diagnostics and routers out.

mod accepted;
mod property;
mod refused_fields;
mod refused_texts;

use super::{Diagnostic, EgressRouter, Loaded, load_str};

/// A sound router that has every field; the refused ones are made from it by changing one thing.
const BASE: &str = "\
apiVersion: network.operator.openshift.io/v1
kind: EgressRouter
metadata:
  name: r
spec:
  mode: Redirect
  networkInterface:
    macvlan:
      mode: Bridge
      master: eth1
  addresses:
    - ip: 192.168.12.99/24
      gateway: 192.168.12.1
    - ip: fd00:12::99/64
      gateway: fd00:12::1
  redirect:
    redirectRules:
      - destinationIP: 203.0.113.26
        port: 80
        protocol: TCP
        targetPort: 8080
      - destinationIP: 2001:db8::26
        port: 80
        protocol: UDP
    fallbackIP: 203.0.113.27
";

/// One expected diagnostic: line, column, severity and field, and a part of the message or the help.
type Expected = (usize, usize, &'static str, &'static str, &'static str);

/// The only router of a text that has no error.
fn only(loaded: &Loaded) -> &EgressRouter {
    assert!(!loaded.has_errors(), "{}", lines(&loaded.diagnostics));
    match loaded.routers.as_slice() {
        [router] => router.valid.as_ref().expect("no error, so valid").router(),
        routers => panic!("{} routers", routers.len()),
    }
}

fn lines(diagnostics: &[Diagnostic]) -> String {
    diagnostics.iter().map(|diagnostic| format!("{diagnostic}\n")).collect()
}

/// Checks that a text has these problems and no others, in this order, and that no router with an error is valid.
#[track_caller]
fn assert_found(what: &str, text: &str, expected: &[Expected]) {
    let loaded = load_str("f", text);
    let found = lines(&loaded.diagnostics);
    assert_eq!(loaded.diagnostics.len(), expected.len(), "{what}: expected {expected:#?}, found\n{found}\nin\n{text}");
    for (diagnostic, (line, column, severity, field, part)) in loaded.diagnostics.iter().zip(expected) {
        let place = (diagnostic.line, diagnostic.column, diagnostic.field.as_str());
        assert_eq!(place, (*line, *column, *field), "{what}, found\n{found}\nin\n{text}");
        assert_eq!(diagnostic.severity.to_string(), *severity, "{what}, found\n{found}");
        assert!(diagnostic.to_string().contains(part), "{what}: {part:?} is not in {diagnostic}");
        assert!(diagnostic.render(super::Style::Plain).contains(&format!("[f:{line}:{column}]")), "{what}");
    }
    if loaded.has_errors() {
        assert!(loaded.routers.iter().all(|router| router.valid.is_none()), "{what}: valid in spite of\n{found}");
    }
}
