//! Whatever somebody may do to a running router. It comes back by itself from each.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use egress_lab::address::client;
use egress_lab::udp::UdpClient;
use egress_lab::{Family, bpf, wait_until};

use super::load::{Takes, Windows};
use super::spec;
use crate::rig::{Rig, TIMEOUT, at, router};
use crate::system::{command, run};

/// The router as faults see it.
pub(super) struct Target<'a> {
    rig: &'a Rig,
    /// The status file, as it is seen from outside the agent's mount namespace.
    status: &'a Path,
    /// One edit at a time.
    editing: Mutex<()>,
}

pub(super) struct Fault {
    pub(super) name: &'static str,
    takes: Takes,
    inflict: fn(&Target),
}

pub(super) const ALL: [Fault; 9] = [
    Fault {
        name: "address removed",
        takes: Takes::Packets,
        inflict: |target| target.ip("address delete 192.168.12.99/24 dev net1"),
    },
    Fault { name: "link down", takes: Takes::Packets, inflict: |target| target.ip("link set net1 down") },
    Fault { name: "routes flushed", takes: Takes::Packets, inflict: |target| target.ip("-6 route flush table 25959") },
    Fault { name: "program detached", takes: Takes::Connections, inflict: |target| target.detach() },
    Fault { name: "pin removed", takes: Takes::Nothing, inflict: |target| target.unpin() },
    Fault { name: "wrong and right edit", takes: Takes::Nothing, inflict: |target| target.edit_wrongly() },
    Fault { name: "status removed", takes: Takes::Nothing, inflict: |target| fs::remove_file(target.status).unwrap() },
    Fault { name: "disk full at the status file", takes: Takes::Nothing, inflict: |target| target.fill_the_disk() },
    Fault { name: "table full", takes: Takes::NewFlows, inflict: |target| target.fill_the_table() },
];

impl Fault {
    /// Does it, and waits until the router is whole again.
    pub(super) fn pass(&self, target: &Target, windows: &Windows) {
        let from = Instant::now();
        (self.inflict)(target);
        target.wait_until_whole(self.name);
        windows.add(self.name, self.takes, from);
    }
}

impl<'a> Target<'a> {
    pub(super) fn new(rig: &'a Rig, status: &'a Path) -> Self {
        Self { rig, status, editing: Mutex::new(()) }
    }

    pub(super) fn edit(&self, spec: &str) {
        let _alone = self.editing.lock().unwrap_or_else(PoisonError::into_inner);
        self.rig.router.edit(spec).unwrap();
    }

    fn wait_until_whole(&self, after: &str) {
        let rig = self.rig;
        let planned = || run(&mut command(&rig.router, "plan")).stdout;
        wait_until(&format!("the router to be whole after: {after}"), TIMEOUT, || {
            planned().contains("nothing to change")
        })
        .unwrap_or_else(|error| panic!("{error:#}: {}\n{}", planned(), rig.router.stderr()));
        wait_until("the status to be there", TIMEOUT, || self.status.exists()).unwrap();
        for family in Family::ALL {
            let one = UdpClient::open(&rig.client, at(client(0), family, 0), router(family, 7000)).unwrap();
            let answered = || one.exchange(b"still there?", Duration::from_secs(1)).result.is_ok();
            wait_until(&format!("an answer over {family} after: {after}"), TIMEOUT, answered).unwrap_or_else(|error| {
                panic!("{error:#}: {}\n{}", rig.router.show("status").unwrap(), rig.router.stderr())
            });
        }
    }

    fn ip(&self, line: &str) {
        self.rig.router_netns().ip(line.split(' ')).unwrap();
    }

    fn detach(&self) {
        bpf::detach(&self.rig.router.pin("link_external_ingress").unwrap()).unwrap();
    }

    fn unpin(&self) {
        fs::remove_file(self.rig.router.pin("link_cluster_ingress").unwrap()).unwrap();
    }

    fn edit_wrongly(&self) {
        let router = &self.rig.router;
        let refused = || router.stderr().matches("edit refused").count();
        let before = refused();
        // Again, should a right edit follow too soon for the wrong one to be seen.
        wait_until("the edit to be refused", TIMEOUT, || {
            self.edit("kind: nonsense\n");
            wait_until("it to be seen", Duration::from_millis(500), || refused() > before).is_ok()
        })
        .unwrap();
        self.edit(&spec(0).yaml());
    }

    fn fill_the_disk(&self) {
        let failures = || self.rig.router.stderr().matches("write status to").count();
        let filler = self.status.with_file_name("filler");
        let before = failures();
        let mut file = fs::File::create(&filler).unwrap();
        // What the status leaves free is taken, too; the agent may be faster once or twice.
        wait_until("the agent to say so", TIMEOUT, || {
            let _gone_already = fs::remove_file(self.status);
            file.write_all(&vec![0; 128 << 10]).unwrap_err();
            failures() > before
        })
        .unwrap();
        fs::remove_file(&filler).unwrap();
    }

    /// Flows that one client opens and never goes on with, until the table refuses one. The agent makes room meanwhile, so
    /// that may take more than the table holds.
    fn fill_the_table(&self) {
        let full = || self.rig.count("cluster_ingress", "table_full");
        let before = full();
        for port in 10_000..60_000 {
            let client =
                UdpClient::open(&self.rig.client, at(client(1), Family::V4, port), router(Family::V4, 7000)).unwrap();
            client.socket().send(b"and that is all").unwrap();
            if port % 1000 == 0 && full() > before {
                return;
            }
        }
        panic!("the table was never full");
    }
}
