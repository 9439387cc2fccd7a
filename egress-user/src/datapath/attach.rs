//! tc programs on interfaces: tcx links where the kernel has them (6.6), clsact filters before that.
//!
//! Everything here has to run on a thread inside the router's namespace: interfaces are looked up by name there.

use std::collections::BTreeMap;
use std::fmt;

use aya::maps::MapInfo;
use aya::programs::links::{FdLink, Link as _, PinnedLink};
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType, TcHandle};
use aya::programs::{LinkOrder, ProgramError, ProgramInfo, SchedClassifier, loaded_programs};
use egress_ebpf::contract::map;
use egress_ebpf::verdict::Hook as Place;
use nix::net::if_::if_nametoindex;

use super::error::hint;
use super::{DatapathError, Interfaces, PinDir, clsact};

/// How programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hook {
    /// As [`Tc`](Self::Tc), and XDP programs before them where both interfaces are hardware that takes them.
    #[default]
    Auto,
    /// tcx if the kernel has it, else clsact.
    Tc,
    /// As [`Tc`](Self::Tc), and XDP programs before them, or an error.
    Xdp,
    /// Pinned tcx links.
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Tc => "tc",
            Self::Xdp => "xdp",
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
    /// It was there, without its pin.
    PinnedAgain,
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
    (pins, held): (&PinDir, &mut Held),
    how: Hook,
) -> Result<(Attached, Hook), DatapathError> {
    match how {
        Hook::Clsact => {}
        Hook::Tcx => return Ok((attach_tcx(program, hook, interfaces, pins, held)?, Hook::Tcx)),
        Hook::Auto | Hook::Tc | Hook::Xdp => match attach_tcx(program, hook, interfaces, pins, held) {
            Ok(attached) => return Ok((attached, Hook::Tcx)),
            Err(error) if lacks_tcx(&error) => {}
            Err(error) => return Err(error),
        },
    }
    let attached = attach_clsact(program, hook, interfaces, pins)?;
    held.release(hook);
    Ok((attached, Hook::Clsact))
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
    held: &mut Held,
) -> Result<Attached, DatapathError> {
    let (interface, attach_type) = place(hook, interfaces);
    let refused = |source: ProgramError| attach_error(hook, interface, source);
    let pin = pins.link(hook.name());
    let mut there = Attached::Unchanged;
    let mut live = live_link(&pin, interface, attach_type)?;
    if live.is_none() {
        live = held.pin_again(hook, &pin, interface, attach_type)?;
        there = Attached::PinnedAgain;
    }
    if live.is_none() && pin.exists() {
        // Its interface has gone.
        std::fs::remove_file(&pin).map_err(|source| pin_error("unpin", &pin, source))?;
    }
    if let Some(link) = live {
        let info = FdLink::info(&link).map_err(|source| pin_error("read link", &pin, source))?;
        if is_same(info.program_id(), program.info(), pins) {
            held.0.insert(hook.name(), link);
            return Ok(there);
        }
        let link = SchedClassifierLink::try_from(link).map_err(|source| pin_error("read link", &pin, source))?;
        let id = program.attach_to_link(link).map_err(refused)?;
        let link = program.take_link(id).map_err(refused)?;
        let link = FdLink::try_from(link).map_err(|source| pin_error("read link", &pin, source))?;
        held.0.insert(hook.name(), link);
        return Ok(Attached::Replaced);
    }
    let order = match attach_type {
        TcAttachType::Ingress => LinkOrder::first(),
        _ => LinkOrder::last(),
    };
    let id = program.attach_with_options(interface, attach_type, TcAttachOptions::TcxOrder(order)).map_err(refused)?;
    let link = program.take_link(id).map_err(refused)?;
    let link = FdLink::try_from(link).map_err(|source| pin_error("pin link", &pin, source))?;
    let link = link.pin(&pin).map_err(|source| pin_error("pin link", &pin, source))?;
    held.0.insert(hook.name(), link.into());
    // Filters of a time when this kernel, or the user, wanted clsact would translate everything twice.
    detach_clsact(hook, interfaces)?;
    Ok(Attached::New)
}

/// tcx links, held open: whoever takes a pin away does not take the program off its interface, as long as this process lives.
#[derive(Default)]
pub(super) struct Held(BTreeMap<&'static str, FdLink>);

impl Held {
    /// Lets go of a hook's link: without a pin, its program is then detached.
    pub(super) fn release(&mut self, hook: Place) {
        self.0.remove(hook.name());
    }

    /// Pins the link of a hook again whose pin is gone, if its program is where it belongs.
    fn pin_again(
        &mut self,
        hook: Place,
        pin: &std::path::Path,
        interface: &str,
        attach_type: TcAttachType,
    ) -> Result<Option<FdLink>, DatapathError> {
        match self.0.get(hook.name()) {
            Some(link) if !pin.exists() && is_on(link, pin, interface, attach_type)? => {}
            _ => return Ok(None),
        }
        let pinned = self.0.remove(hook.name()).map(|link| link.pin(pin)).transpose();
        Ok(pinned.map_err(|source| pin_error("pin link", pin, source))?.map(FdLink::from))
    }
}

/// Whether the program of a hook is attached, in the way that is wanted.
pub(super) fn is_attached(
    hook: Place,
    interfaces: &Interfaces,
    pins: &PinDir,
    how: Hook,
) -> Result<bool, DatapathError> {
    let (interface, attach_type) = place(hook, interfaces);
    if if_nametoindex(interface).is_err() {
        return Ok(false);
    }
    let pin = pins.link(hook.name());
    let tcx = || Ok::<_, DatapathError>(live_link(&pin, interface, attach_type)?.is_some());
    let clsact = || Ok::<_, DatapathError>(!our_filters(hook, interfaces)?.is_empty());
    Ok(match how {
        Hook::Auto | Hook::Tc | Hook::Xdp => tcx()? || clsact()?,
        Hook::Tcx => tcx()?,
        Hook::Clsact => clsact()? && !pin.exists(),
    })
}

/// In which way the program of a hook is attached; `None` if it is not.
pub(super) fn present(hook: Place, interfaces: &Interfaces, pins: &PinDir) -> Result<Option<Hook>, DatapathError> {
    for how in [Hook::Tcx, Hook::Clsact] {
        if is_attached(hook, interfaces, pins, how)? {
            return Ok(Some(how));
        }
    }
    Ok(None)
}

/// Names of the programs that packets meet outside ours: before it at an entrance, after it at an exit. None where ours is
/// not a tcx link.
pub(super) fn strangers(hook: Place, interfaces: &Interfaces, pins: &PinDir) -> Result<Vec<String>, DatapathError> {
    let (interface, attach_type) = place(hook, interfaces);
    let pin = pins.link(hook.name());
    if if_nametoindex(interface).is_err() {
        return Ok(Vec::new());
    }
    let Some(link) = live_link(&pin, interface, attach_type)? else { return Ok(Vec::new()) };
    let own = FdLink::info(&link).map_err(|source| pin_error("read link", &pin, source))?.program_id();
    let (_revision, mut programs) = SchedClassifier::query_tcx(interface, attach_type)
        .map_err(|source| pin_error("find on its interface the program of", &pin, source))?;
    if hook.is_egress() {
        programs.reverse();
    }
    let outside = programs.iter().take_while(|program| program.id() != own);
    Ok(outside.map(|program| program.name_as_str().unwrap_or("without a name").to_owned()).collect())
}

/// The pinned link, if it still is where it belongs.
fn live_link(
    pin: &std::path::Path,
    interface: &str,
    attach_type: TcAttachType,
) -> Result<Option<FdLink>, DatapathError> {
    if !pin.exists() {
        return Ok(None);
    }
    let link = match PinnedLink::from_pin(pin) {
        Ok(link) => FdLink::from(link),
        // Somebody has just taken it away.
        Err(_) if !pin.exists() => return Ok(None),
        Err(source) => return Err(pin_error("open link", pin, source)),
    };
    Ok(is_on(&link, pin, interface, attach_type)?.then_some(link))
}

/// Whether the program of a link is on an interface.
fn is_on(
    link: &FdLink,
    pin: &std::path::Path,
    interface: &str,
    attach_type: TcAttachType,
) -> Result<bool, DatapathError> {
    let id = FdLink::info(link).map_err(|source| pin_error("read link", pin, source))?.program_id();
    let (_revision, programs) = SchedClassifier::query_tcx(interface, attach_type)
        .map_err(|source| pin_error("find on its interface the program of", pin, source))?;
    Ok(programs.iter().any(|program| program.id() == id))
}

/// Whether the program of this id does what a loaded one would: the same instructions on the same pinned tables.
pub(super) fn is_same(id: u32, program: Result<ProgramInfo, ProgramError>, pins: &PinDir) -> bool {
    let (Ok(new), Some(old)) = (program, loaded_programs().flatten().find(|info| info.id() == id)) else {
        return false;
    };
    let tables = |info: &ProgramInfo| info.map_ids().ok().flatten().unwrap_or_default();
    let (before, now) = (tables(&old), tables(&new));
    let pinned = map::ALL.iter().filter_map(|name| MapInfo::from_pin(pins.map(name)).ok()).map(|info| info.id());
    old.tag() == new.tag() && pinned.into_iter().all(|id| before.contains(&id) == now.contains(&id))
}

fn attach_clsact(
    program: &mut SchedClassifier,
    hook: Place,
    interfaces: &Interfaces,
    pins: &PinDir,
) -> Result<Attached, DatapathError> {
    let (interface, attach_type) = place(hook, interfaces);
    let refused = |source: ProgramError| attach_error(hook, interface, source);
    let present = our_filters(hook, interfaces)?;
    let pin = pins.link(hook.name());
    if let [filter] = present.as_slice()
        && is_same(filter.program_id, program.info(), pins)
        && !pin.exists()
    {
        return Ok(Attached::Unchanged);
    }
    if let Err(refusal) = tc::qdisc_add_clsact(interface)
        && clsact::is_taken_by_ingress(interface).unwrap_or(false)
    {
        // The kernel would take a filter for egress and run it at ingress.
        let hint = ": it has an ingress qdisc in clsact's place, remove that (tc qdisc del ... ingress)";
        let (program, interface) = (hook.name(), interface.to_owned());
        return Err(DatapathError::Attach { program, interface, hint, source: Box::new(refusal) });
    }
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let (id, attached) = if let Some(old) = present.first() {
        let handle = TcHandle::from(old.handle);
        let old = SchedClassifierLink::attached(interface, attach_type, old.priority, handle, None)
            .map_err(|source| refused(tc::TcError::IoError(source).into()))?;
        (program.attach_to_link(old).map_err(refused)?, Attached::Replaced)
    } else {
        let options = TcAttachOptions::Netlink(options);
        (program.attach_with_options(interface, attach_type, options).map_err(refused)?, Attached::New)
    };
    // A filter lives until it is taken away; forgetting the handle keeps it from being taken away here.
    std::mem::forget(program.take_link(id).map_err(refused)?);
    if pin.exists() {
        std::fs::remove_file(&pin).map_err(|source| pin_error("unpin", &pin, source))?;
    }
    Ok(attached)
}

/// The clsact filters that run our program of this hook: one, unless somebody else has been at it.
fn our_filters(hook: Place, interfaces: &Interfaces) -> Result<Vec<clsact::Filter>, DatapathError> {
    let (interface, attach_type) = place(hook, interfaces);
    let mut filters =
        clsact::filters(interface, attach_type).map_err(|source| filter_error("find", hook, interface, source))?;
    filters.retain(|filter| filter.name == hook.name());
    Ok(filters)
}

/// Takes our clsact filter away, if there is one, and the qdisc when that was the last filter on it. Returns whether there
/// was anything.
pub(super) fn detach_clsact(hook: Place, interfaces: &Interfaces) -> Result<bool, DatapathError> {
    let (interface, attach_type) = place(hook, interfaces);
    let filters = our_filters(hook, interfaces)?;
    if filters.is_empty() {
        return Ok(false);
    }
    let failed = |source| filter_error("remove", hook, interface, source);
    for filter in &filters {
        let handle = TcHandle::from(filter.handle);
        let link =
            SchedClassifierLink::attached(interface, attach_type, filter.priority, handle, None).map_err(failed)?;
        link.detach().map_err(|source| attach_error(hook, interface, source))?;
    }
    clsact::remove_if_empty(interface).map_err(failed)?;
    Ok(true)
}

fn filter_error(action: &'static str, hook: Place, interface: &str, source: std::io::Error) -> DatapathError {
    DatapathError::Filter { action, program: hook.name(), interface: interface.to_owned(), source }
}

fn attach_error(hook: Place, interface: &str, source: ProgramError) -> DatapathError {
    DatapathError::Attach {
        program: hook.name(),
        interface: interface.to_owned(),
        hint: hint(&source),
        source: Box::new(source),
    }
}

pub(super) fn pin_error(
    action: &'static str,
    path: &std::path::Path,
    source: impl std::error::Error + Send + Sync + 'static,
) -> DatapathError {
    DatapathError::Pin { action, path: path.to_path_buf(), source: Box::new(source) }
}
