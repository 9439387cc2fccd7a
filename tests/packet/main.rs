//! Packet tests: the real programs, run on built packets.

use std::path::Path;

use egress_user::datapath::{Datapath, PinDir};

#[test]
fn the_kernel_loads_every_program() {
    let pins = PinDir::new(Path::new("/sys/fs/bpf/egress-test"), u64::from(std::process::id()));
    let loaded = Datapath::load(pins.clone(), 1024);
    if let Err(error) = &loaded {
        let mut cause: Option<&dyn std::error::Error> = Some(error);
        while let Some(this) = cause {
            eprintln!("{this}");
            cause = this.source();
        }
    }
    pins.remove().unwrap();
    loaded.map(|_| ()).unwrap();
}
