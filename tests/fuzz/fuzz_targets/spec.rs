//! Any text as a specification, YAML or JSON: it is read or refused, with every problem in its place; and what was read
//! comes out the same when it is written and read again.
#![no_main]

use egress_user::compile::compile;
use egress_user::spec::load_str;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let loaded = load_str("fuzz.yaml", text);
    for diagnostic in &loaded.diagnostics {
        // To show a problem is to walk through the text around it.
        let _ = format!("{diagnostic:?}");
    }
    for valid in loaded.routers.iter().filter_map(|router| router.valid.as_ref()) {
        let _ = compile(valid);
        let written = serde_json::to_string(valid.router()).expect("an object is JSON");
        let again = load_str("again.json", &written);
        let read = again.routers.first().and_then(|router| router.valid.as_ref()).expect(&written);
        assert_eq!(read.router(), valid.router());
    }
});
