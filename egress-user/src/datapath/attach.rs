//! Programs on interfaces: tcx links where the kernel has them (6.6), clsact filters before that.
//!
//! Everything here has to run on a thread inside the router's namespace: interfaces are looked up by name there.

use std::fmt;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType, TcHandle};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, loaded_programs};
use egress_ebpf::verdict::Hook as Place;

use super::error::hint;
use super::{DatapathError, Interfaces, PinDir};

/// How programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hook {
    /// tcx if the kernel has it, else clsact.
    #[default]
    Auto,
    /// Pinned tcx links.
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// What attaching did with one program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// It was not there.
    New,
    /// Another version was there, and was replaced in place.
    Replaced,
    /// It was there.
    Unchanged,
}

/// Preference and handle of our clsact filters.
const PRIORITY: u16 = 20;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// All hooks, in the order of attaching: the guard at the exit first, the entrance last.
pub(super) const ORDER: [Place; 4] =
    [Place::ExternalEgress, Place::ExternalIngress, Place::ClusterEgress, Place::ClusterIngress];

/// Name of the interface that a hook is on, and which side of it.
pub(super) fn place(hook: Place, interfaces: &Interfaces) -> (&str, TcAttachType) {
    match hook {
        Place::ClusterIngress => (&interfaces.cluster.name, TcAttachType::Ingress),
        Place::ClusterEgress => (&interfaces.cluster.name, TcAttachType::Egress),
        Place::ExternalIngress => (&interfaces.external.name, TcAttachType::Ingress),
        Place::ExternalEgress => (&interfaces.external.name, TcAttachType::Egress),
    }
}

/// Attaches a loaded program, or puts it in the place of its predecessor without a gap.
pub(super) fn attach(
    program: &mut SchedClassifier,
    hook: Place,
    interfaces: &Interfaces,
    pins: &PinDir,
    how: Hook,
) -> Result<(Attached, Hook), DatapathError> {
    match how {
        Hook::Clsact => Ok((attach_clsact(program, hook, interfaces, pins)?, Hook::Clsact)),
        Hook::Tcx => Ok((attach_tcx(program, hook, interfaces, pins)?, Hook::Tcx)),
        Hook::Auto => match attach_tcx(program, hook, interfaces, pins) {
            Ok(attached) => Ok((attached, Hook::Tcx)),
            Err(error) if lacks_tcx(&error) => Ok((attach_clsact(program, hook, interfaces, pins)?, Hook::Clsact)),
            Err(error) => Err(error),
        },
    }
}

/// A kernel before 6.6 does not know the attach type.
fn lacks_tcx(error: &DatapathError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(this) = cause {
        if let Some(io) = this.downcast_ref::<std::io::Error>() {
            return matches!(io.raw_os_error(), Some(nix::libc::EINVAL | nix::libc::EOPNOTSUPP));
        }
        cause = this.source();
    }
    false
}

fn attach_tcx(
    program: &mut SchedClassifier,
    hook: Place,
    interfaces: &Interfaces,
    pins: &PinDir,
) -> Result<Attached, DatapathError> {
    let (interface, attach_type) = place(hook, interfaces);
    let refused = |source: ProgramError| attach_error(hook, interface, source);
    let pin = pins.link(hook.name());
    if let Some(link) = live_link(&pin, interface, attach_type)? {
        let info = FdLink::info(&link).map_err(|source| pin_error("read link", &pin, source))?;
        if tag_of(info.program_id()) == program.info().ok().map(|new| new.tag()) {
            return Ok(Attached::Unchanged);
        }
        let link = SchedClassifierLink::try_from(link).map_err(|source| pin_error("read link", &pin, source))?;
        let id = program.attach_to_link(link).map_err(refused)?;
        // The pin keeps the link; the handle here is done with.
        drop(program.take_link(id).map_err(refused)?);
        return Ok(Attached::Replaced);
    }
    let order = match attach_type {
        TcAttachType::Ingress => LinkOrder::first(),
        _ => LinkOrder::last(),
    };
    let id = program.attach_with_options(interface, attach_type, TcAttachOptions::TcxOrder(order)).map_err(refused)?;
    let link = program.take_link(id).map_err(refused)?;
    let link = FdLink::try_from(link).map_err(|source| pin_error("pin link", &pin, source))?;
    link.pin(&pin).map_err(|source| pin_error("pin link", &pin, source))?;
    // Filters of a time when this kernel, or the user, wanted clsact would translate everything twice.
    detach_clsact(hook, interfaces)?;
    Ok(Attached::New)
}

/// The pinned link, if it still is where it belongs. One whose interface has gone is unpinned.
fn live_link(
    pin: &std::path::Path,
    interface: &str,
    attach_type: TcAttachType,
) -> Result<Option<FdLink>, DatapathError> {
    if !pin.exists() {
        return Ok(None);
    }
    let link = PinnedLink::from_pin(pin).map_err(|source| pin_error("open link", pin, source))?;
    let link = FdLink::from(link);
    let id = FdLink::info(&link).map_err(|source| pin_error("read link", pin, source))?.program_id();
    let (_revision, programs) = SchedClassifier::query_tcx(interface, attach_type)
        .map_err(|source| pin_error("find on its interface the program of", pin, source))?;
    if programs.iter().any(|program| program.id() == id) {
        return Ok(Some(link));
    }
    std::fs::remove_file(pin).map_err(|source| pin_error("unpin", pin, source))?;
    Ok(None)
}

fn tag_of(program_id: u32) -> Option<u64> {
    loaded_programs().flatten().find(|info| info.id() == program_id).map(|info| info.tag())
}

fn attach_clsact(
    program: &mut SchedClassifier,
    hook: Place,
    interfaces: &Interfaces,
    pins: &PinDir,
) -> Result<Attached, DatapathError> {
    let (interface, attach_type) = place(hook, interfaces);
    let refused = |source: ProgramError| attach_error(hook, interface, source);
    // There is one already, or the filter that is refused next says what is wrong.
    let _ = tc::qdisc_add_clsact(interface);
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let (id, attached) = match program.attach_with_options(interface, attach_type, TcAttachOptions::Netlink(options)) {
        Ok(id) => (id, Attached::New),
        Err(_exists) => {
            let old = SchedClassifierLink::attached(interface, attach_type, PRIORITY, HANDLE, None)
                .map_err(|source| refused(tc::TcError::IoError(source).into()))?;
            (program.attach_to_link(old).map_err(refused)?, Attached::Replaced)
        }
    };
    // A filter lives until it is taken away; forgetting the handle keeps it from being taken away here.
    std::mem::forget(program.take_link(id).map_err(refused)?);
    let pin = pins.link(hook.name());
    if pin.exists() {
        std::fs::remove_file(&pin).map_err(|source| pin_error("unpin", &pin, source))?;
    }
    Ok(attached)
}

/// Takes our clsact filter away, if there is one.
pub(super) fn detach_clsact(hook: Place, interfaces: &Interfaces) -> Result<bool, DatapathError> {
    let (interface, attach_type) = place(hook, interfaces);
    match tc::qdisc_detach_program(interface, attach_type, hook.name()) {
        Ok(()) => Ok(true),
        // No such filter, no qdisc, or no interface: nothing to take away.
        Err(_) => Ok(false),
    }
}

fn attach_error(hook: Place, interface: &str, source: ProgramError) -> DatapathError {
    DatapathError::Attach {
        program: hook.name(),
        interface: interface.to_owned(),
        hint: hint(&source),
        source: Box::new(source),
    }
}

fn pin_error(
    action: &'static str,
    path: &std::path::Path,
    source: impl std::error::Error + Send + Sync + 'static,
) -> DatapathError {
    DatapathError::Pin { action, path: path.to_path_buf(), source: Box::new(source) }
}
