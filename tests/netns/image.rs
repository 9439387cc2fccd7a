//! The container image: its one binary, run with nothing else in sight.

use std::fs;
use std::path::{Path, PathBuf};

use egress_lab::address::SERVER_1;
use egress_lab::{Family, Options};

use crate::rig::{Rig, Spec, anyone, at};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/image").canonicalize().unwrap()
}

#[test]
#[ignore = "`cargo xtask test image` builds what it runs"]
fn the_image_is_one_binary_that_runs_alone() {
    let files: Vec<_> = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files, ["egress-router"]);
    let mut rig = Rig::prepare(&Options::default(), &Spec::new().udp(7000, SERVER_1, None), &[]);
    // What a pod gives to its container: devices, processes, settings, pins, state, the specification; and the lab's namespaces.
    let spec = rig.router.spec();
    rig.router.run_through(&format!(
        "shift; exec unshare --mount --propagation private sh -c '\
         set -e; root={spec}/image; mkdir $root; mount -t tmpfs image $root; cp {image}/egress-router $root/; \
         mkdir -p $root/proc $root/sys/fs/bpf $root/run/netns $root/run/egress-router $root{spec}; \
         mount --rbind /proc $root/proc; mount --bind /sys/fs/bpf $root/sys/fs/bpf; \
         mount --rbind /run/netns $root/run/netns; mount --bind {spec} $root{spec}; \
         exec chroot $root /egress-router \"$@\"' sh \"$@\"",
        image = root().display(),
        spec = spec.parent().unwrap().display(),
    ));
    rig.router.start().unwrap();
    let pid = rig.router.pid().unwrap();
    let seen = fs::read_dir(format!("/proc/{pid}/root")).unwrap().map(|entry| entry.unwrap().file_name());
    let seen: std::collections::BTreeSet<_> = seen.map(|name| name.into_string().unwrap()).collect();
    assert!(!seen.contains("lib") && !seen.contains("bin") && seen.contains("egress-router"), "{seen:?}");
    let _servers = Family::ALL.map(|family| rig.udp_server(at(SERVER_1, family, 7000)));
    for family in Family::ALL {
        rig.udp(anyone(family), 7000);
    }
    assert_eq!(rig.router.terminate().unwrap().code(), Some(0), "{}", rig.router.stderr());
}
