//! What a flow takes of the kernel's memory.

use anyhow::{Context as _, Result};
use egress_lab::bpf;

use super::super::rig::{Path, Rig};
use super::{Bench, subject};

/// The name in reports.
pub(in super::super) const NAME: &str = "memory";

/// Reads it.
pub(in super::super) fn run(bench: &mut Bench, rigs: &[Rig]) -> Result<()> {
    for rig in rigs {
        let bytes = match (rig.path, &rig.router) {
            (Path::Tc, Some(router)) => {
                let table = bpf::table(&router.pin("FLOWS")?)?;
                table.bytes as f64 / f64::from(table.flows)
            }
            (Path::Nft, _) => bpf::slab_object_bytes("nf_conntrack").context("no slab nf_conntrack")? as f64,
            _ => continue,
        };
        bench.record.add(subject(NAME, rig.uplink, None, rig.path, "bytes/flow"), bytes);
    }
    bench.record.remark(
        "memory: ours is the whole table by its number of flows, taken when it is made; the kernel's is one object of the \
         slab nf_conntrack, without its extensions for NAT and its share of the hash table, taken flow by flow",
    );
    Ok(())
}
