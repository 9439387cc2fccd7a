//! One file a workload.

pub(super) mod api;
mod api_server;
pub(super) mod flows;
pub(super) mod memory;
pub(super) mod new_flows;
pub(super) mod programs;
pub(super) mod restart;
pub(super) mod rules;
pub(super) mod sockets;
pub(super) mod swap;
pub(super) mod udp_small;

use egress_lab::Family;
use egress_lab::kernel_nat::Uplink;

pub(super) use super::Bench;
use super::record::Subject;
use super::rig::{Path, uplink_name};

/// What a number of a path is of.
pub(super) fn subject(
    workload: &str,
    uplink: Uplink,
    family: Option<Family>,
    path: Path,
    unit: &'static str,
) -> Subject {
    let family = family.map(|family| match family {
        Family::V4 => 4,
        Family::V6 => 6,
    });
    Subject { workload: workload.to_owned(), uplink: uplink_name(uplink), family, path: path.name().to_owned(), unit }
}
