//! Puts the BPF object, if one has been built, where `datapath::object` can embed it.
//!
//! `cargo xtask build` makes the object first. Without it the crate still builds, checks and runs its unit tests; only
//! loading the datapath then fails, and says how to mend that.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=EGRESS_BPF_OBJECT");
    let embedded = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("datapath.o");
    let object = env::var_os("EGRESS_BPF_OBJECT").map(PathBuf::from);
    if let Some(object) = &object {
        println!("cargo::rerun-if-changed={}", object.display());
    }
    let bytes = object.and_then(|path| fs::read(path).ok()).unwrap_or_default();
    fs::write(&embedded, bytes).expect("write the embedded object to OUT_DIR");
}
