//! Load, attach, fill: the datapath of one router.

use aya::programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use bytemuck::Zeroable as _;
use egress_ebpf::contract::{Config, config_flag, map};
use egress_ebpf::table;
use egress_ebpf::verdict::Hook as Place;
use serde::Serialize;

use super::attach::{self, Attached, Held, Hook, ORDER};
use super::error::hint;
use super::maps::{Maps, check_pins};
use super::table::{give_shape, unpin_remains};
use super::{DatapathError, Interfaces, PinDir, Tables, object, xdp};

/// Programs loaded, maps pinned.
pub struct Datapath {
    pins: PinDir,
    pub(super) ebpf: Ebpf,
    pub(super) maps: Maps,
    links: Held,
    csum_ipv6: bool,
    fresh: bool,
    previous: Option<u8>,
}

/// What [`Datapath::install`] and [`Datapath::attach`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Installed {
    /// How the tc programs are attached.
    pub hook: Hook,
    /// Whether anything was attached or replaced.
    pub changed: bool,
}

/// A program on an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramRow {
    /// Its name.
    pub program: &'static str,
    /// The interface.
    pub interface: String,
    /// `tcx`, `clsact` or `xdp`; none if it is missing.
    pub attached: Option<String>,
}

/// Tables that were in force when the datapath was suspended.
#[must_use = "the datapath lets nothing pass"]
pub struct Suspended {
    generation: u8,
    config: Box<Config>,
}

impl Datapath {
    /// Loads the programs, and takes over the maps that are pinned already, or makes and pins new ones.
    ///
    /// `flows` sizes a new flow table; a pinned one keeps its size. Nothing is attached yet.
    ///
    /// # Errors
    ///
    /// Any of [`DatapathError`]'s about the object, the pins and the kernel. Maps that this call pinned are unpinned again.
    pub fn load(pins: PinDir, flows: u32) -> Result<Self, DatapathError> {
        let object = object::bytes()?;
        pins.create()?;
        unpin_remains(&pins)?;
        // Two entries a flow.
        let wanted = table::places(flows.saturating_mul(2));
        let places = check_pins(&pins, wanted)?;
        if let Some(places) = places.filter(|places| *places != wanted) {
            tracing::warn!(
                flows = table::entries(places) / 2,
                "the flow table keeps the size that it was made with, for its flows' sake: `egress-router delete` first to change it"
            );
        }
        let fresh = places.is_none();
        Self::load_object(&object, &pins, places.unwrap_or(wanted), fresh).inspect_err(|_| {
            if fresh {
                let _ = pins.remove();
            }
        })
    }

    fn load_object(object: &[u8], pins: &PinDir, places: u32, fresh: bool) -> Result<Self, DatapathError> {
        let mut loader = EbpfLoader::new();
        loader.map_max_entries(map::FLOWS, places);
        for name in map::ALL {
            loader.map_pin_path(name, pins.map(name));
        }
        let mut ebpf = loader.load(object).map_err(|source| DatapathError::Load { hint: hint(&source), source })?;
        give_shape(pins)?;
        for place in ORDER {
            load_program(&mut ebpf, place.name())?;
        }
        let csum_ipv6 = probe_csum_ipv6(&mut ebpf)?;
        let maps = Maps::open(pins)?;
        Ok(Self { pins: pins.clone(), ebpf, maps, links: Held::default(), csum_ipv6, fresh, previous: None })
    }

    /// Whether the maps were made by this process.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Where it is pinned.
    pub fn pins(&self) -> &PinDir {
        &self.pins
    }

    /// Puts tables in force, all at once. Live flows stay. Returns whether that changed anything.
    ///
    /// # Errors
    ///
    /// When a map refuses an entry; the tables that were in force then still are.
    pub fn install(&mut self, tables: &Tables) -> Result<bool, DatapathError> {
        let mut tables = tables.clone();
        if self.csum_ipv6 {
            tables.config.flags |= config_flag::CSUM_IPV6;
        }
        self.previous = self.maps.install(&tables)?;
        Ok(self.previous.is_some())
    }

    /// Puts the tables in force again that were before the last [`install`](Self::install).
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn restore(&mut self) -> Result<(), DatapathError> {
        self.previous.take().map_or(Ok(()), |generation| self.maps.switch(generation))
    }

    /// Lets every flow look its next hops up again, after a change of the link, its routes or of a neighbour that answered. Without it they
    /// do by themselves within [`HOP_TURN_SHIFT`](egress_ebpf::contract::HOP_TURN_SHIFT).
    ///
    /// # Errors
    ///
    /// When the map cannot be read or written.
    pub fn refresh_hops(&mut self) -> Result<(), DatapathError> {
        self.maps.refresh_hops()
    }

    /// Lets no packet pass, until other tables are installed or [`resume`](Self::resume) puts these in force again.
    ///
    /// # Errors
    ///
    /// When the map cannot be read or written.
    pub fn suspend(&mut self) -> Result<Suspended, DatapathError> {
        let suspended = Suspended { generation: self.maps.generation()?, config: Box::new(self.maps.config()?) };
        self.maps.set_config(suspended.generation, &Config::zeroed())?;
        Ok(suspended)
    }

    /// Puts the tables in force again that [`suspend`](Self::suspend) found, for an external interface that may have got
    /// another index. To be called on a thread inside the router's namespace, for it attaches the programs first.
    ///
    /// # Errors
    ///
    /// When the kernel refuses something; nothing passes then.
    pub fn resume(&mut self, suspended: Suspended, interfaces: &Interfaces, hook: Hook) -> Result<(), DatapathError> {
        self.attach(interfaces, hook)?;
        let config = Config { external_ifindex: interfaces.external.index, ..*suspended.config };
        self.maps.set_config(suspended.generation, &config)?;
        self.previous = None;
        self.maps.switch(suspended.generation)?;
        self.refresh_hops()
    }

    /// Attaches the programs. To be called on a thread inside the router's namespace, after [`install`](Self::install).
    ///
    /// # Errors
    ///
    /// When the kernel refuses one; those that this call newly attached are then detached again.
    pub fn attach(&mut self, interfaces: &Interfaces, hook: Hook) -> Result<Installed, DatapathError> {
        let mut done: Vec<Place> = Vec::new();
        let mut installed = Installed { hook, changed: false };
        for place in ORDER {
            let program = program(&mut self.ebpf, place.name())?;
            match attach::attach(program, place, interfaces, (&self.pins, &mut self.links), installed.hook) {
                Ok((attached, how)) => {
                    installed.hook = how;
                    installed.changed |= attached != Attached::Unchanged;
                    if attached == Attached::New {
                        done.push(place);
                    }
                }
                Err(error) => return Err(self.detach(&done, interfaces, error)),
            }
        }
        match xdp::attach(&mut self.ebpf, interfaces, &self.pins, hook) {
            Ok(changed) => installed.changed |= changed,
            Err(error) => return Err(self.detach(&done, interfaces, error)),
        }
        // Programs of another version would translate once more what ours have.
        for other in self.pins.others() {
            installed.changed = true;
            tracing::warn!(
                pins = %other.path().display(),
                "took over from another version with another layout: its programs are detached, and its flows are not taken \
                 over (connections go on as new flows where their port is free)"
            );
            other.remove().map_err(|mut errors| errors.swap_remove(0))?;
        }
        Ok(installed)
    }

    /// Undoes what an [`attach`](Self::attach) did before it failed.
    fn detach(&mut self, done: &[Place], interfaces: &Interfaces, failed: DatapathError) -> DatapathError {
        for place in done {
            self.links.release(*place);
            let _ = std::fs::remove_file(self.pins.link(place.name()));
            let _ = attach::detach_clsact(*place, interfaces);
        }
        failed
    }

    /// Programs of others that packets meet before they meet ours at an entrance, or after ours at an exit, each with its
    /// interface. To be called on a thread inside the router's namespace.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn strangers(
        pins: &PinDir,
        interfaces: &Interfaces,
        hook: Hook,
    ) -> Result<Vec<(String, String)>, DatapathError> {
        let mut strangers = Vec::new();
        if hook != Hook::Clsact {
            for place in ORDER {
                let interface = attach::place(place, interfaces).0;
                let found = attach::strangers(place, interfaces, pins)?;
                strangers.extend(found.into_iter().map(|name| (name, interface.to_owned())));
            }
        }
        Ok(strangers)
    }

    /// Pins again what maps somebody has unpinned, with all that is in them. Returns whether there were any.
    ///
    /// # Errors
    ///
    /// When there is nowhere to pin them, or the kernel does not let it; they serve their programs as before.
    pub fn pin_again(&self) -> Result<bool, DatapathError> {
        let mut any = false;
        for name in map::ALL {
            let pin = self.pins.map(name);
            if pin.exists() {
                continue;
            }
            self.pins.create()?;
            let map = self.ebpf.map(name).ok_or(DatapathError::Missing { kind: "map", name })?;
            map.pin(&pin).map_err(|source| attach::pin_error("pin map", &pin, source))?;
            any = true;
        }
        Ok(any)
    }

    /// Programs that are not attached, with the interface that each is missing on. To be called on a thread inside the
    /// router's namespace.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn missing(
        pins: &PinDir,
        interfaces: &Interfaces,
        hook: Hook,
    ) -> Result<Vec<(&'static str, String)>, DatapathError> {
        let mut missing = Vec::new();
        for place in ORDER {
            if !attach::is_attached(place, interfaces, pins, hook)? {
                missing.push((place.name(), attach::place(place, interfaces).0.to_owned()));
            }
        }
        missing.extend(xdp::missing(pins, interfaces, hook)?);
        Ok(missing)
    }

    /// Every program and how it is attached; XDP programs only where they are. To be called on a thread inside the router's
    /// namespace.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn programs(pins: &PinDir, interfaces: &Interfaces) -> Result<Vec<ProgramRow>, DatapathError> {
        let mut rows = Vec::new();
        for place in xdp::Place::ALL {
            if xdp::is_attached(place, interfaces, pins)? {
                let interface = place.interface(interfaces).to_owned();
                rows.push(ProgramRow { program: place.name(), interface, attached: Some(Hook::Xdp.to_string()) });
            }
        }
        for place in Place::ALL {
            let interface = attach::place(place, interfaces).0.to_owned();
            let attached = attach::present(place, interfaces, pins)?.map(|how| how.to_string());
            rows.push(ProgramRow { program: place.name(), interface, attached });
        }
        Ok(rows)
    }

    /// Takes programs and maps of `pins` away. Idempotent; to be called on a thread inside the router's namespace. Returns
    /// whether there was anything.
    ///
    /// # Errors
    ///
    /// All of them: a failure does not keep the rest from being removed.
    pub fn delete(pins: &PinDir, interfaces: &Interfaces) -> Result<bool, Vec<DatapathError>> {
        let mut errors = Vec::new();
        let mut found = false;
        match xdp::detach(pins) {
            Ok(detached) => found |= detached,
            Err(error) => errors.push(error),
        }
        // The entrance first: nothing is translated any more when the guard goes.
        for place in ORDER.into_iter().rev() {
            match attach::detach_clsact(place, interfaces) {
                Ok(detached) => found |= detached,
                Err(error) => errors.push(error),
            }
        }
        match pins.remove() {
            Ok(removed) => found |= removed,
            Err(more) => errors.extend(more),
        }
        if errors.is_empty() { Ok(found) } else { Err(errors) }
    }
}

pub(super) fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, DatapathError> {
    let missing = DatapathError::Missing { kind: "program", name };
    let Some(program) = ebpf.program_mut(name) else { return Err(missing) };
    program.try_into().map_err(|_wrong_type| missing)
}

/// The kernel gives a verification up when a signal arrives meanwhile; the next try may go through.
const LOAD_TRIES: u32 = 5;

fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<(), DatapathError> {
    let program = program(ebpf, name)?;
    load(name, || program.load())
}

pub(super) fn load(
    name: &'static str,
    mut load: impl FnMut() -> Result<(), ProgramError>,
) -> Result<(), DatapathError> {
    let mut tries = 1;
    loop {
        match load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == std::io::ErrorKind::WouldBlock && tries < LOAD_TRIES =>
            {
                tries += 1;
            }
            loaded => {
                return loaded.map_err(|source| DatapathError::Program { program: name, hint: hint(&source), source });
            }
        }
    }
}

/// Runs the probe program once, on a packet of zeros.
fn probe_csum_ipv6(ebpf: &mut Ebpf) -> Result<bool, DatapathError> {
    const PROBE: &str = "probe_csum_ipv6";
    load_program(ebpf, PROBE)?;
    let frame = [0_u8; 128];
    let mut options = TestRunOptions::new();
    options.data_in = Some(&frame);
    let result = program(ebpf, PROBE)?.test_run(options).map_err(|source| DatapathError::Program {
        program: PROBE,
        hint: hint(&source),
        source,
    })?;
    Ok(result.return_value == 1)
}
