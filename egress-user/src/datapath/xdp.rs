//! XDP programs before the tc ones, on devices whose drivers run them.
//!
//! They only take work off the tc programs, which stay where they are and decide. So one that is missing costs speed and
//! nothing else, and where the devices do not fit there are none.
//!
//! As [`attach`](super::attach), this runs on a thread inside the router's namespace.

use std::path::Path;

use aya::Ebpf;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{ProgramError, Xdp};

use super::attach::{Attached, Hook, is_same, pin_error};
use super::device::{Device, Features};
use super::error::hint;
use super::load::load;
use super::{DatapathError, Interfaces, PinDir};

/// A program and the interface that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Requests, on the cluster interface.
    Request,
    /// Replies, on the external interface.
    Reply,
}

impl Place {
    pub(super) const ALL: [Self; 2] = [Self::Request, Self::Reply];

    /// Name of the program.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Request => "xdp_request",
            Self::Reply => "xdp_reply",
        }
    }

    /// Name of the interface.
    pub(super) fn interface(self, interfaces: &Interfaces) -> &str {
        match self {
            Self::Request => &interfaces.cluster.name,
            Self::Reply => &interfaces.external.name,
        }
    }
}

/// Attaches both programs, replaces their predecessors in place, or takes those away, as `how` asks and the devices allow.
/// Returns whether anything changed.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    interfaces: &Interfaces,
    pins: &PinDir,
    how: Hook,
) -> Result<bool, DatapathError> {
    let outcome = match (how, unfit(interfaces, pins, how)?) {
        (Hook::Tc | Hook::Tcx | Hook::Clsact, _) => return detach(pins),
        (Hook::Xdp, Some(refusal)) => Err(refusal),
        (Hook::Auto, Some(reason)) => {
            tracing::debug!(%reason, "no XDP programs");
            return detach(pins);
        }
        (Hook::Auto | Hook::Xdp, None) => attach_both(ebpf, interfaces, pins),
    };
    match outcome {
        Err(reason) if how == Hook::Auto => {
            tracing::warn!(%reason, "no XDP programs: the tc programs do all the work");
            detach(pins)?;
            Ok(true)
        }
        outcome => outcome,
    }
}

fn attach_both(ebpf: &mut Ebpf, interfaces: &Interfaces, pins: &PinDir) -> Result<bool, DatapathError> {
    let mut changed = false;
    for place in Place::ALL {
        match attach_one(ebpf, place, place.interface(interfaces), pins) {
            Ok(attached) => changed |= attached != Attached::Unchanged,
            Err(error) => {
                // Neither, or both: packets of one direction must not overtake each other for nothing.
                detach(pins)?;
                return Err(error);
            }
        }
    }
    Ok(changed)
}

fn attach_one(ebpf: &mut Ebpf, place: Place, interface: &str, pins: &PinDir) -> Result<Attached, DatapathError> {
    let refused = |source: ProgramError| DatapathError::Attach {
        program: place.name(),
        interface: interface.to_owned(),
        hint: hint(&source),
        source: Box::new(source),
    };
    let pin = pins.link(place.name());
    let live = live_link(&pin, interface)?;
    if live.is_none() {
        unpin(&pin)?;
    }
    let program = loaded(ebpf, place)?;
    if let Some(link) = live {
        let info = FdLink::info(&link).map_err(|source| pin_error("read link", &pin, source))?;
        if is_same(info.program_id(), program.info(), pins) {
            return Ok(Attached::Unchanged);
        }
        let link = XdpLink::try_from(link).map_err(|source| pin_error("read link", &pin, source))?;
        let id = program.attach_to_link(link).map_err(refused)?;
        // The pin keeps the link; the handle here is done with.
        drop(program.take_link(id).map_err(refused)?);
        return Ok(Attached::Replaced);
    }
    let id = program.attach(interface, XdpMode::Driver).map_err(refused)?;
    let link = program.take_link(id).map_err(refused)?;
    let link = FdLink::try_from(link).map_err(|source| pin_error("pin link", &pin, source))?;
    link.pin(&pin).map_err(|source| pin_error("pin link", &pin, source))?;
    Ok(Attached::New)
}

/// Why the devices are not for XDP programs, if they are not.
fn unfit(interfaces: &Interfaces, pins: &PinDir, how: Hook) -> Result<Option<DatapathError>, DatapathError> {
    if !matches!(how, Hook::Auto | Hook::Xdp) {
        return Ok(None);
    }
    for place in Place::ALL {
        let interface = place.interface(interfaces);
        let unfit = |reason: String| DatapathError::UnfitForXdp { interface: interface.to_owned(), reason };
        let Some(device) = device(interface)? else { return Ok(Some(unfit("it is gone".to_owned()))) };
        let ours = runs(&pins.link(place.name()), &device)?.is_some();
        let (kind, others) = (device.kind.as_deref(), !ours && !device.programs.is_empty());
        if let Some(reason) = fault(kind, device.features(), how, others) {
            return Ok(Some(unfit(reason)));
        }
    }
    Ok(None)
}

/// `others` is whether a program of somebody else is on the device.
fn fault(kind: Option<&str>, features: Features, how: Hook, others: bool) -> Option<String> {
    if !features.takes_programs() {
        return Some(match kind {
            Some(kind) => {
                format!("a {kind} runs no native XDP programs here (Linux 6.3 or newer tells which devices do)")
            }
            None => "its driver runs no native XDP programs (Linux 6.3 or newer tells which do)".to_owned(),
        });
    }
    if how == Hook::Auto
        && let Some(kind) = kind
    {
        return Some(format!("a {kind} would lose more by XDP than it gains: `--hook xdp` takes it all the same"));
    }
    if !features.sends_redirected() {
        return Some(match kind {
            Some("veth") => {
                "its other end takes no redirected frames: switch GRO on there (ethtool -K ... gro on)".to_owned()
            }
            _ => "its driver sends no redirected frames".to_owned(),
        });
    }
    others.then(|| "another XDP program is attached to it".to_owned())
}

/// Programs that are not where they were asked for, or where they were put, each with its interface.
pub(super) fn missing(
    pins: &PinDir,
    interfaces: &Interfaces,
    how: Hook,
) -> Result<Vec<(&'static str, String)>, DatapathError> {
    let mut missing = Vec::new();
    for place in Place::ALL {
        let wanted = how == Hook::Xdp || pins.link(place.name()).exists();
        if wanted && !is_attached(place, interfaces, pins)? {
            missing.push((place.name(), place.interface(interfaces).to_owned()));
        }
    }
    Ok(missing)
}

/// Takes the programs away. Returns whether there was one.
pub(super) fn detach(pins: &PinDir) -> Result<bool, DatapathError> {
    let mut found = false;
    for place in Place::ALL {
        found |= unpin(&pins.link(place.name()))?;
    }
    Ok(found)
}

/// Whether the program of a place is where it was put.
pub(super) fn is_attached(place: Place, interfaces: &Interfaces, pins: &PinDir) -> Result<bool, DatapathError> {
    Ok(live_link(&pins.link(place.name()), place.interface(interfaces))?.is_some())
}

/// The pinned link, if its program still is on the interface.
fn live_link(pin: &Path, interface: &str) -> Result<Option<FdLink>, DatapathError> {
    match device(interface)? {
        Some(device) => runs(pin, &device),
        None => Ok(None),
    }
}

/// The pinned link, if its program is on this device.
fn runs(pin: &Path, device: &Device) -> Result<Option<FdLink>, DatapathError> {
    if !pin.exists() {
        return Ok(None);
    }
    let link = PinnedLink::from_pin(pin).map_err(|source| pin_error("open link", pin, source))?;
    let link = FdLink::from(link);
    let id = FdLink::info(&link).map_err(|source| pin_error("read link", pin, source))?.program_id();
    Ok(device.programs.contains(&id).then_some(link))
}

fn device(interface: &str) -> Result<Option<Device>, DatapathError> {
    Device::find(interface).map_err(|source| DatapathError::Device { interface: interface.to_owned(), source })
}

fn unpin(pin: &Path) -> Result<bool, DatapathError> {
    if !pin.exists() {
        return Ok(false);
    }
    std::fs::remove_file(pin).map_err(|source| pin_error("unpin", pin, source))?;
    Ok(true)
}

/// The program, loaded the first time that it is asked for: a kernel that cannot (before Linux 5.18) is no obstacle where
/// nobody asks.
pub(super) fn loaded(ebpf: &mut Ebpf, place: Place) -> Result<&mut Xdp, DatapathError> {
    let name = place.name();
    let missing = DatapathError::Missing { kind: "program", name };
    let Some(program) = ebpf.program_mut(name) else { return Err(missing) };
    let program: &mut Xdp = program.try_into().map_err(|_wrong_type| missing)?;
    if program.fd().is_err() {
        load(name, || program.load())?;
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a driver says that does all that is needed.
    const ALL: Features = Features(0b111);

    #[test]
    fn a_device_is_for_xdp_if_its_driver_runs_programs_and_sends_what_they_redirect() {
        assert_eq!(fault(None, ALL, Hook::Auto, false), None);
        assert_eq!(fault(None, ALL, Hook::Xdp, false), None);
        for (features, reason) in [(0, "runs no native"), (0b001, "runs no native"), (0b011, "sends no redirected")] {
            for how in [Hook::Auto, Hook::Xdp] {
                let said = fault(None, Features(features), how, false).unwrap();
                assert!(said.contains(reason), "{features:b}: {said}");
            }
        }
    }

    #[test]
    fn a_veth_gets_xdp_only_where_it_is_asked_for() {
        assert!(fault(Some("veth"), ALL, Hook::Auto, false).unwrap().contains("--hook xdp"));
        assert_eq!(fault(Some("veth"), ALL, Hook::Xdp, false), None);
        assert!(fault(Some("veth"), Features(0b011), Hook::Xdp, false).unwrap().contains("GRO"));
    }

    #[test]
    fn anothers_program_is_left_alone() {
        assert!(fault(None, ALL, Hook::Auto, true).unwrap().contains("another XDP program"));
        assert_eq!(fault(None, ALL, Hook::Xdp, false), None);
    }
}
