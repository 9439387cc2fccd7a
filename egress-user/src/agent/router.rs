//! One router: apply a desired state, take it away, read it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use egress_ebpf::contract::{Direction, Mark};
use egress_ebpf::event::{Event, Logging};

use super::AgentError;
use super::error::Chain;
use super::health;
use super::status::Status;
use crate::compile::Desired;
use crate::datapath::{
    Connection, Datapath, Events, Hook, Interface, Interfaces, PinDir, ProgramRow, Reader, Settings, Suspended, Swept,
    Tables, Tally,
};
use crate::link::{self, Change, Neighbour, NetnsLock, Observed, Place};
use crate::status::{Conditions, Fault, InForce, Picture, Reason, judge};

/// Where a router is, and how it is to work.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Its namespaces and interfaces.
    pub place: Place,
    /// Directory for pins.
    pub bpffs: PathBuf,
    /// How programs are attached.
    pub hook: Hook,
    /// Settings of the datapath.
    pub settings: Settings,
}

/// The mark that the datapath leaves on replies on the slow path, for the link's routing rules.
pub const REPLY_MARK: link::Mark = {
    let all = Mark::new(Direction::Reply, 0, egress_ebpf::addr::Port::NONE).0;
    link::Mark { value: all, mask: 0xff00_0000 }
};

/// Where routers keep what has to outlive a process, and is lost with the machine.
const STATE_DIR: &str = "/run/egress-router";

/// One router.
pub struct Router {
    setup: Setup,
    pins: PinDir,
    record: PathBuf,
    status: PathBuf,
    datapath: Option<Datapath>,
    /// What the flows add up to since this process began.
    tally: Tally,
    /// From the first change on.
    lock: Option<NetnsLock>,
}

/// The datapath before an apply, which a failed one brings back.
enum Before {
    Nothing,
    Running,
    Suspended(Box<Suspended>),
}

/// What an apply did.
#[derive(Debug, Default)]
pub struct Applied {
    /// Changes of the link, in order.
    pub link: Vec<Change>,
    /// Whether a program was attached or replaced, or something of the datapath pinned again.
    pub programs: bool,
    /// Whether the tables changed.
    pub tables: bool,
    /// How long it took to put the tables in force.
    pub tables_took: Duration,
    /// The external interface's master.
    pub master: String,
    /// The addresses that the router now speaks for.
    pub addresses: Vec<IpAddr>,
    /// What was found when the tables changed.
    pub swept: Option<Swept>,
    /// Whether the datapath was loaded.
    pub loaded: bool,
}

impl Applied {
    /// Whether everything was as wanted already.
    pub fn is_unchanged(&self) -> bool {
        self.link.is_empty() && !self.programs && !self.tables
    }
}

impl Router {
    /// A router at this place. Changes nothing.
    ///
    /// # Errors
    ///
    /// When the router's namespace cannot be entered.
    pub fn new(setup: Setup) -> Result<Self, AgentError> {
        let cookie = setup.place.router.cookie()?;
        let pins = PinDir::new(&setup.bpffs, cookie);
        let record = Path::new(STATE_DIR).join(format!("{cookie}.json"));
        let status = Path::new(STATE_DIR).join(format!("{cookie}.status.json"));
        Ok(Self { setup, pins, record, status, datapath: None, tally: Tally::default(), lock: None })
    }

    /// The file that the agent of this router keeps its status in, for whoever asks `status`.
    pub(super) fn status_file(&self) -> &Path {
        &self.status
    }

    /// Makes sure that there is a BPF file system to pin in, and a folder for what outlives the process; then says below
    /// which folders applies will write, for [`confine`](super::confine()).
    ///
    /// # Errors
    ///
    /// When there is none and none can be made.
    pub fn make_room(&self) -> Result<Vec<PathBuf>, AgentError> {
        self.pins.mount()?;
        let state = Path::new(STATE_DIR);
        std::fs::create_dir_all(state).map_err(|source| AgentError::Status { path: state.to_owned(), source })?;
        let pins = self.setup.bpffs.parent().unwrap_or(&self.setup.bpffs);
        let pins = pins.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        Ok(vec![pins.to_owned(), state.to_owned(), PathBuf::from("/proc/sys")])
    }

    /// Its interfaces and routes as they are.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be read, or has no cluster interface.
    pub fn observe(&self) -> Result<Observed, AgentError> {
        Ok(link::observe(&self.setup.place)?)
    }

    /// Whether the external interface has addresses: an earlier process has set the router up.
    ///
    /// # Errors
    ///
    /// As [`observe`](Self::observe).
    pub(super) fn has_addresses(&self) -> Result<bool, AgentError> {
        let is_global = |ip: IpAddr| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let external = self.observe()?.external;
        Ok(external.is_some_and(|external| external.addresses.iter().any(|held| is_global(held.net.addr()))))
    }

    /// Whether it has gone on without an agent.
    pub(super) fn goes_on(&self) -> bool {
        self.has_addresses().unwrap_or(false) && self.unattached().is_ok_and(|missing| missing.is_empty())
    }

    /// Whether these hosts on the external network answer; asks those again that the kernel is not sure of.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn neighbours(&self, addresses: &[IpAddr]) -> Result<Vec<Neighbour>, AgentError> {
        Ok(link::neighbours(&self.setup.place.router, &self.setup.place.external_interface, addresses)?)
    }

    /// What its agent says of it, if one is at work; else what can be seen.
    ///
    /// # Errors
    ///
    /// When no datapath is installed, or the kernel does not tell.
    pub fn conditions(&self) -> Result<Conditions, AgentError> {
        if self.setup.place.router.holder().is_some()
            && let Some(status) = Status::read(&self.status)
        {
            return Ok(status.conditions);
        }
        let reader = self.reader()?;
        let observed = self.observe()?;
        let works = observed.external.as_ref().is_some_and(|external| external.up && external.lower_up);
        // Asking takes a capability that reading does not; who lacks it is told the rest.
        let gateways = if works { health::gateways(&observed) } else { Vec::new() };
        let neighbours = self.neighbours(&gateways).unwrap_or_default();
        let rules = reader.rules()?;
        let destinations: Vec<IpAddr> = rules.iter().filter_map(|rule| rule.destination).collect();
        let external = &self.setup.place.external_interface;
        let mut faults = health::faults(external, &observed, &neighbours, &destinations, &reader.used()?);
        for (program, interface) in self.unattached()? {
            let message =
                format!("program {program} is not attached to {interface}: `egress-router apply` puts it back");
            faults.push(Fault::blocking(Reason::DatapathMissing, message));
        }
        faults.extend(health::strangers(&self.strangers()?));
        let in_force = InForce {
            rules: rules.iter().filter(|rule| rule.rule.is_some()).count(),
            fallback: rules.iter().find(|rule| rule.port.is_none()).and_then(|rule| rule.destination),
            addresses: reader.snat_addresses()?,
        };
        Ok(Conditions::unwatched(judge(&Picture { in_force: Some(in_force), faults, ..Picture::default() })))
    }

    /// Whether an agent is at work that stands by for another router.
    pub fn stands_by(&self) -> bool {
        self.setup.place.router.holder().is_some() && Status::read(&self.status).is_some_and(|status| status.standby)
    }

    /// What the flows add up to.
    pub fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }

    /// Where its datapath is pinned.
    pub fn pins(&self) -> &PinDir {
        &self.pins
    }

    /// Its place.
    pub fn place(&self) -> &Place {
        &self.setup.place
    }

    /// The installed datapath, for reading.
    ///
    /// # Errors
    ///
    /// When none is installed.
    pub fn reader(&self) -> Result<Reader, AgentError> {
        Ok(Reader::open(&self.pins)?)
    }

    /// What [`apply`](Self::apply) would change of the link.
    ///
    /// # Errors
    ///
    /// Whatever makes the wanted state impossible.
    pub fn plan(&self, desired: &Desired) -> Result<link::Plan, AgentError> {
        Ok(link::plan(&self.setup.place, &desired.router, &desired.link, &desired.rules.destinations())?)
    }

    /// The programs that [`apply`](Self::apply) would attach because they are not, each with its interface.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn unattached(&self) -> Result<Vec<(&'static str, String)>, AgentError> {
        let (interfaces, hook) = (self.names(), self.setup.hook);
        Ok(self.setup.place.router.run(|| Datapath::missing(&self.pins, &interfaces, hook))??)
    }

    /// Its programs, and how each is attached.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn programs(&self) -> Result<Vec<ProgramRow>, AgentError> {
        let interfaces = self.names();
        Ok(self.setup.place.router.run(|| Datapath::programs(&self.pins, &interfaces))??)
    }

    /// Programs of others that stand between the network and ours, each with its interface.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn strangers(&self) -> Result<Vec<(String, String)>, AgentError> {
        let (interfaces, hook) = (self.names(), self.setup.hook);
        Ok(self.setup.place.router.run(|| Datapath::strangers(&self.pins, &interfaces, hook))??)
    }

    /// Puts a desired state into effect: all of it, or nothing.
    ///
    /// # Errors
    ///
    /// Any. What was in force before still is, except where [`AgentError::NotUndone`] says otherwise.
    pub fn apply(&mut self, desired: &Desired) -> Result<Applied, AgentError> {
        self.lock()?;
        let plan = self.plan(desired)?;
        self.probe_early(&plan)?;
        // Held open, it goes on whatever becomes of its pins.
        let pinned = self.datapath.as_ref().map_or(Ok(false), Datapath::pin_again)?;
        let was_running = self.datapath.is_some();
        let mut datapath = match self.datapath.take() {
            Some(datapath) => datapath,
            None => Datapath::load(self.pins.clone(), self.setup.settings.flows)?,
        };
        let fresh = datapath.is_fresh() && !was_running;
        let suspended = match (plan.replaces_link() && !fresh).then(|| datapath.suspend()).transpose() {
            Ok(suspended) => suspended,
            Err(error) => {
                self.datapath = Some(datapath);
                return Err(error.into());
            }
        };
        let before = match (fresh, suspended) {
            (true, _) => Before::Nothing,
            (false, None) => Before::Running,
            (false, Some(suspended)) => Before::Suspended(Box::new(suspended)),
        };
        let mut link = match link::prepare(&self.setup.place, plan, &self.record) {
            Ok(link) => link,
            Err(failed) => return Err(self.take_back(datapath, Vec::new(), before, failed.into())),
        };
        match self.bring_up(&mut datapath, &mut link, desired) {
            Ok(applied) => {
                self.datapath = Some(datapath);
                Ok(Applied { loaded: !was_running, programs: applied.programs || pinned, ..applied })
            }
            Err(failed) => {
                // No packet by the new tables while the link becomes again what it was.
                let held = match &before {
                    Before::Nothing => Ok(()),
                    Before::Running => datapath.restore(),
                    Before::Suspended(_) => datapath.suspend().map(drop),
                };
                let mut not_undone: Vec<AgentError> = held.err().into_iter().map(AgentError::from).collect();
                not_undone.extend(link.undo().err().unwrap_or_default().into_iter().map(AgentError::from));
                Err(self.take_back(datapath, not_undone, before, failed))
            }
        }
    }

    /// Asks the network about new addresses of an interface that works already, before new tables make flows come from
    /// them. (One that is made or set up has no routes until it has claimed its addresses, so nothing leaves by it.)
    fn probe_early(&self, plan: &link::Plan) -> Result<(), AgentError> {
        let quiet =
            |change: &Change| matches!(change, Change::CreateLink(_) | Change::DeleteLink(_) | Change::SetUp { .. });
        if plan.changes().any(quiet) {
            return Ok(());
        }
        for change in plan.changes() {
            if let Change::Probe { interface, addresses } = change {
                link::probe(&self.setup.place, interface, addresses)?;
            }
        }
        Ok(())
    }

    /// Keeps other processes from working on the router.
    ///
    /// # Errors
    ///
    /// When one does.
    pub(super) fn lock(&mut self) -> Result<(), AgentError> {
        if self.lock.is_none() {
            self.lock = Some(self.setup.place.router.lock()?);
        }
        Ok(())
    }

    /// Steps 3 and 4 of an apply.
    fn bring_up(
        &mut self,
        datapath: &mut Datapath,
        link: &mut link::Applied,
        desired: &Desired,
    ) -> Result<Applied, AgentError> {
        let place = self.setup.place.clone();
        let observed = link::observe(&place)?;
        let interfaces = interfaces(&place, &observed, desired);
        let settings = Settings { ephemeral_ports: observed.local_ports, ..self.setup.settings.clone() };
        let started = Instant::now();
        let tables = Tables::new(&desired.rules, &settings, &interfaces)?;
        let changed = datapath.install(&tables)?;
        datapath.set_logging(settings.logging)?;
        let tables_took = started.elapsed();
        let hook = self.setup.hook;
        let installed = place.router.run(|| datapath.attach(&interfaces, hook))??;
        link.claim()?;
        if !link.done().is_empty() {
            datapath.refresh_hops()?;
        }
        // A flow that leaves from an address that is the router's no longer ends with it.
        let swept = if changed { Some(datapath.sweep(&mut self.tally, true)) } else { None };
        let swept = swept.transpose().unwrap_or_else(|failed| {
            tracing::warn!("sweep flows of addresses that are gone: {}", Chain(&failed));
            None
        });
        Ok(Applied {
            link: link.done().to_vec(),
            programs: installed.changed,
            tables: changed,
            tables_took,
            master: link.plan().master.clone(),
            addresses: interfaces.snat,
            swept,
            loaded: false,
        })
    }

    /// After a failed apply whose link has been undone: the datapath as it was before.
    fn take_back(
        &mut self,
        mut datapath: Datapath,
        mut not_undone: Vec<AgentError>,
        before: Before,
        failed: AgentError,
    ) -> AgentError {
        match before {
            Before::Nothing => {
                drop(datapath);
                not_undone.extend(self.delete_datapath().err().unwrap_or_default());
            }
            Before::Running => {
                not_undone.extend(datapath.restore().err().map(AgentError::from));
                not_undone.extend(datapath.refresh_hops().err().map(AgentError::from));
                self.datapath = Some(datapath);
            }
            Before::Suspended(suspended) => {
                not_undone.extend(self.resume(&mut datapath, *suspended).err());
                self.datapath = Some(datapath);
            }
        }
        if not_undone.is_empty() { failed } else { AgentError::NotUndone { failed: Box::new(failed), not_undone } }
    }

    /// The programs on the interface that was made again, then the tables that were in force.
    fn resume(&self, datapath: &mut Datapath, suspended: Suspended) -> Result<(), AgentError> {
        let place = &self.setup.place;
        let mut interfaces = self.names();
        interfaces.external.index = link::observe(place)?.external.map_or(0, |external| external.index);
        let hook = self.setup.hook;
        Ok(place.router.run(|| datapath.resume(suspended, &interfaces, hook))??)
    }

    /// Takes everything away. Idempotent. Returns whether there was anything.
    ///
    /// # Errors
    ///
    /// All of them, in one: a failure does not keep the rest from being taken away.
    pub fn delete(&mut self) -> Result<bool, AgentError> {
        self.lock()?;
        let mut errors = Vec::new();
        // The link first: as long as there are addresses and forwarding, the programs stay.
        let link = link::delete(&self.setup.place, &self.record).unwrap_or_else(|failed| {
            errors.extend(failed.into_iter().map(AgentError::from));
            Vec::new()
        });
        // Held open, it would go on without its pins.
        self.datapath = None;
        let datapath = self.delete_datapath().unwrap_or_else(|failed| {
            errors.extend(failed);
            false
        });
        if errors.is_empty() { Ok(!link.is_empty() || datapath) } else { Err(AgentError::Delete(errors)) }
    }

    fn delete_datapath(&self) -> Result<bool, Vec<AgentError>> {
        let interfaces = self.names();
        let router = &self.setup.place.router;
        let deleted = router.run(|| Datapath::delete(&self.pins, &interfaces)).map_err(|error| vec![error.into()])?;
        deleted.map_err(|errors| errors.into_iter().map(AgentError::from).collect())
    }

    /// The interfaces as far as it takes their names only.
    fn names(&self) -> Interfaces {
        let place = &self.setup.place;
        let interface = |name: &str| Interface { name: name.to_owned(), index: 0, addresses: Vec::new() };
        Interfaces {
            cluster: interface(&place.cluster_interface),
            external: interface(&place.external_interface),
            snat: Vec::new(),
            cluster_mac: [0; 6],
            external_mac: [0; 6],
            mtu: 0,
        }
    }

    /// Ends flows, and tells both ends of each. What is to be logged of them goes to `closed`.
    ///
    /// # Errors
    ///
    /// When the flow table cannot be written, or a packet cannot be sent; all flows have ended then.
    pub fn cut(&mut self, flows: &[Connection], closed: &mut Vec<Event>) -> Result<(), AgentError> {
        if let Some(datapath) = &mut self.datapath {
            closed.extend(datapath.end(flows)?);
        }
        let end = |protocol, near, far| link::End { protocol, near, far };
        let clients: Vec<_> = flows.iter().map(|flow| end(flow.protocol, flow.router, flow.client)).collect();
        let destinations: Vec<_> = flows.iter().map(|flow| end(flow.protocol, flow.source, flow.destination)).collect();
        Ok(link::sever(&self.setup.place.router, &clients, &destinations)?)
    }

    /// Lets every flow look its next hops up again: the network has changed.
    ///
    /// # Errors
    ///
    /// When the tables cannot be read or written.
    pub fn refresh_hops(&mut self) -> Result<(), AgentError> {
        match &mut self.datapath {
            Some(datapath) => Ok(datapath.refresh_hops()?),
            None => Ok(()),
        }
    }

    /// What is to be told of flows and drops.
    pub fn logging(&self) -> Logging {
        self.setup.settings.logging
    }

    /// What the programs tell of flows and drops; nothing while there are no programs.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn events(&self) -> Result<Option<Events>, AgentError> {
        Ok(self.datapath.as_ref().map(Datapath::events).transpose()?)
    }

    /// What would be logged if all flows ended now.
    ///
    /// # Errors
    ///
    /// When the flow table cannot be read.
    pub fn all_closed(&self) -> Result<Vec<Event>, AgentError> {
        Ok(self.datapath.as_ref().map(Datapath::all_closed).transpose()?.unwrap_or_default())
    }

    /// Removes flows that are over; with `find_stale`, finds those that the rules in force would not send where they go.
    ///
    /// # Errors
    ///
    /// When the flow table cannot be read or written.
    pub fn sweep(&mut self, find_stale: bool) -> Result<Swept, AgentError> {
        match &mut self.datapath {
            Some(datapath) => Ok(datapath.sweep(&mut self.tally, find_stale)?),
            None => Ok(Swept::default()),
        }
    }
}

fn interfaces(place: &Place, observed: &Observed, desired: &Desired) -> Interfaces {
    let addresses = |interface: &link::Interface| interface.addresses.iter().map(|held| held.net.addr()).collect();
    let snat: Vec<IpAddr> = desired.link.addresses.iter().map(|address| address.net.addr()).collect();
    Interfaces {
        cluster: Interface {
            name: place.cluster_interface.clone(),
            index: observed.cluster.index,
            addresses: addresses(&observed.cluster),
        },
        external: Interface {
            name: place.external_interface.clone(),
            index: observed.external.as_ref().map_or(0, |external| external.index),
            addresses: snat.clone(),
        },
        snat,
        cluster_mac: observed.cluster.mac.map_or([0; 6], |mac| mac.0),
        external_mac: observed.external.as_ref().and_then(|external| external.mac).map_or([0; 6], |mac| mac.0),
        mtu: observed.external.as_ref().map_or(0, |external| external.mtu).min(observed.cluster.mtu),
    }
}
