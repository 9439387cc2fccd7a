//! Any text as the legacy image's variables, one after the other with a NUL between: it is refused, or becomes a specification
//! without errors.
#![no_main]

use egress_fuzz::spec::{LegacyEnvironment, from_legacy, load_str};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let mut variables = text.splitn(3, '\0');
    let mut next = || variables.next().unwrap_or_default();
    let environment = LegacyEnvironment { source: next(), gateway: next(), destination: next() };
    let Ok(router) = from_legacy(environment) else { return };
    let written = serde_json::to_string(&router).expect("an object is JSON");
    let _ = load_str("legacy.json", &written);
});
