//! Filters of the clsact qdisc, and the qdisc itself: what aya does not ask the kernel about.
//!
//! A tcx link lives as long as its pin. A filter lives as long as its qdisc, which nobody owns: so ours are found again by
//! the name of their program, and the qdisc goes with the last filter on it, whoever's that was.
//!
//! As [`attach`](super::attach), this runs on a thread inside the router's namespace.

use std::io;

use aya::programs::tc::TcAttachType;
use futures_util::TryStreamExt as _;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcOption};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use rtnetlink::{Error, Handle};

use crate::netlink::ask;

/// A BPF filter of a clsact qdisc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// Name of its program, cut at the kernel's 15 characters where the filter was not named in full.
    pub(super) name: String,
    /// Id of its program.
    pub(super) program_id: u32,
    /// Its preference and handle, by which it can be replaced or taken away.
    pub(super) priority: u16,
    /// See `priority`.
    pub(super) handle: u32,
}

/// The BPF filters on one side of an interface. None where there is no such interface or no clsact qdisc on it.
///
/// # Errors
///
/// The kernel's.
pub(super) fn filters(interface: &str, side: TcAttachType) -> io::Result<Vec<Filter>> {
    let Some(index) = index(interface)? else { return Ok(Vec::new()) };
    ask(async |handle| bpf_filters(&handle, index, side).await)
}

/// Takes the clsact qdisc of an interface away if no filter is left on either side of it. Returns whether it did.
///
/// # Errors
///
/// The kernel's.
pub(super) fn remove_if_empty(interface: &str) -> io::Result<bool> {
    let Some(index) = index(interface)? else { return Ok(false) };
    ask(async |handle| {
        if !has(&handle, index, "clsact").await? {
            return Ok(false);
        }
        for side in [TcAttachType::Ingress, TcAttachType::Egress] {
            if filter_headers(&handle, index, side).await? > 0 {
                return Ok(false);
            }
        }
        let mut request = handle.qdisc().del(index);
        request.message_mut().header.parent = TcHandle::CLSACT;
        request.message_mut().header.handle = TcHandle { major: u16::MAX, minor: 0 };
        request.execute().await?;
        Ok(true)
    })
    .or_else(|error| unless_gone(error).map(|()| false))
}

/// Whether an ingress qdisc, clsact's older relative, has the one place that there is for either.
///
/// # Errors
///
/// The kernel's.
pub(super) fn is_taken_by_ingress(interface: &str) -> io::Result<bool> {
    let Some(index) = index(interface)? else { return Ok(false) };
    ask(async |handle| has(&handle, index, "ingress").await)
}

/// Whether the interface has a qdisc of this kind.
async fn has(handle: &Handle, index: i32, kind: &str) -> Result<bool, Error> {
    let kind = TcAttribute::Kind(kind.to_owned());
    let mut all = handle.qdisc().get().index(index).execute();
    let mut found = false;
    while let Some(qdisc) = all.try_next().await? {
        found |= qdisc.header.index == index && qdisc.attributes.contains(&kind);
    }
    Ok(found)
}

/// How many filters of any kind there are on one side.
async fn filter_headers(handle: &Handle, index: i32, side: TcAttachType) -> Result<usize, Error> {
    let mut all = dump(handle, index, side);
    let mut count = 0;
    while let Some(message) = all.try_next().await? {
        count += usize::from(message.header.handle != TcHandle::UNSPEC);
    }
    Ok(count)
}

async fn bpf_filters(handle: &Handle, index: i32, side: TcAttachType) -> Result<Vec<Filter>, Error> {
    let mut all = dump(handle, index, side);
    let mut filters = Vec::new();
    while let Some(message) = all.try_next().await? {
        let options = message.attributes.iter().filter_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        });
        let (mut name, mut program_id) = (None, None);
        for option in options.flatten() {
            match option {
                TcOption::Bpf(TcFilterBpfOption::ProgName(text)) => name = Some(text.clone()),
                TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => program_id = Some(*id),
                _ => {}
            }
        }
        if let (Some(name), Some(program_id)) = (name, program_id) {
            // The kernel keeps the preference in the upper half and the protocol in the lower.
            let priority = u16::try_from(message.header.info >> 16).unwrap_or(u16::MAX);
            filters.push(Filter { name, program_id, priority, handle: message.header.handle.into() });
        }
    }
    Ok(filters)
}

fn dump(
    handle: &Handle,
    index: i32,
    side: TcAttachType,
) -> impl futures_util::Stream<Item = Result<netlink_packet_route::tc::TcMessage, Error>> + Unpin {
    let request = handle.traffic_filter(index).get();
    let request = match side {
        TcAttachType::Egress => request.egress(),
        _ => request.ingress(),
    };
    Box::pin(request.execute())
}

/// `None` when there is no such interface.
fn index(interface: &str) -> io::Result<Option<i32>> {
    match if_nametoindex(interface) {
        Ok(index) => Ok(i32::try_from(index).ok()),
        Err(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// No such interface, qdisc or filter: somebody was faster, or there never was one. The kernel says `EINVAL` of filters on
/// an interface without a qdisc.
fn unless_gone(error: io::Error) -> io::Result<()> {
    const GONE: [Errno; 3] = [Errno::ENODEV, Errno::ENOENT, Errno::EINVAL];
    if error.raw_os_error().is_some_and(|code| GONE.contains(&Errno::from_raw(code))) { Ok(()) } else { Err(error) }
}
