//! The agent's work between two events: reads the specification again, puts right what has drifted, looks how the router is,
//! and says so.

mod standby;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use egress_ebpf::event::Event;
use jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::backoff::Backoff;
use super::error::Chain;
use super::existing::{Draining, ExistingFlows};
use super::flow_log::{FlowLog, Unlogged};
use super::metrics::{self, Figures, Rule, RuleName};
use super::pace::Pace;
use super::status::Status;
use super::{AgentError, Applied, Options, Router, fault, health, service};
use crate::compile::{Desired, RuleTable, desired_from_file};
use crate::datapath::{Connection, RuleId, Swept, Untold, Use, protocol_name, protocol_number};
use crate::link::{self, Conflict, Mac, Neighbour, News, Observed, Rivals};
use crate::status::{Activity, ConditionType, Conditions, Fault, InForce, Picture, Reason, judge};

pub(super) use standby::ROUND;
use standby::Standby;

/// Bounds of the wait before an edit that could not be applied is tried again.
const RETRY_EDIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Bounds of the wait before a repair that failed is.
const RETRY_REPAIR: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// An address is defended at most this often (RFC 5227, DEFEND_INTERVAL).
const DEFEND: Duration = Duration::from_secs(10);
/// How long a claim of somebody else's counts after it was heard last.
const REMEMBER: Duration = Duration::from_secs(30);

/// What the agent has done since it began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Specifications put in force, the first one included.
    pub(super) applied: u64,
    /// Edits refused, retries not counted.
    pub(super) refused: u64,
    /// Times that the system had drifted and was put right.
    pub(super) repaired: u64,
    /// Times that it could not be.
    pub(super) repairs_failed: u64,
    /// Times that the status could not be written.
    pub(super) status_failed: u64,
    /// Times that it took the addresses over, after standing by.
    pub(super) takeovers: u64,
}

/// The agent's state.
pub(super) struct Keeper {
    pub(super) router: Router,
    /// What is in force.
    pub(super) desired: Desired,
    pub(super) options: Options,
    pub(super) counts: Counts,
    pub(super) conditions: Conditions,
    /// When the latest edit, which is not in force, is tried again.
    pub(super) retry_edit: Backoff,
    /// When the system, which is not as it should be, is.
    pub(super) retry_repair: Backoff,
    /// Why the latest edit is not in force.
    refused: Option<Fault>,
    /// Why the system is not as it should be.
    drifted: Option<Fault>,
    /// What else is the matter.
    found: Vec<Fault>,
    neighbours: Vec<Neighbour>,
    pub(super) in_force: bool,
    /// In standby mode: what is known of the others.
    standby: Option<Standby>,
    status_fails: bool,
    flow_log: Option<FlowLog>,
    rivals: Option<Rivals>,
    /// Who claimed one of our addresses, and when last.
    claimed: BTreeMap<IpAddr, (Mac, Instant)>,
    draining: Draining,
    pace: Pace,
    started: Timestamp,
    announcing: Option<JoinHandle<()>>,
    /// The external interface's master.
    pub(super) master: String,
    /// What was written last.
    written: Option<Status>,
}

impl Keeper {
    pub(super) fn new(router: Router, desired: Desired, options: Options) -> Self {
        let flow_log = options.flow_log.as_deref().map(|file| FlowLog::start(file, router.logging().rate));
        let standby = options.standby.then(Standby::default);
        // An earlier agent's router has gone on without it: what is as it was has not changed because of a restart. Of one
        // that was taken away meanwhile nothing holds that was said.
        let before = Status::read(router.status_file())
            .filter(|before| before.router == desired.router)
            .filter(|before| (before.standby && options.standby) || router.goes_on());
        Self {
            router,
            desired,
            options,
            counts: Counts::default(),
            conditions: before.map(|before| before.conditions).unwrap_or_default(),
            retry_edit: Backoff::new(RETRY_EDIT.0, RETRY_EDIT.1),
            retry_repair: Backoff::new(RETRY_REPAIR.0, RETRY_REPAIR.1),
            refused: None,
            drifted: None,
            found: Vec::new(),
            neighbours: Vec::new(),
            in_force: false,
            standby,
            status_fails: false,
            flow_log,
            rivals: None,
            claimed: BTreeMap::new(),
            draining: Draining::default(),
            pace: Pace::new(Instant::now()),
            started: Timestamp::now(),
            announcing: None,
            master: String::new(),
            written: None,
        }
    }

    /// The first apply, unless it is to stand by.
    pub(super) fn start(&mut self) -> Result<(), AgentError> {
        if self.begins_waiting()? {
            return Ok(());
        }
        if self.conditions == Conditions::default() {
            self.tell();
        }
        match self.router.apply(&self.desired) {
            Ok(applied) => {
                self.succeeded(&applied);
                Ok(())
            }
            Err(failed) if self.is_standby() => self.gives_up(&failed),
            Err(failed) => {
                self.drifted = Some(fault::of_repair("the specification could not be applied", &failed));
                self.tell();
                Err(failed)
            }
        }
    }

    /// Reads the file again and applies it if it says something else. A file that cannot be applied changes nothing.
    pub(super) fn reload(&mut self) {
        let (new, warnings) = match desired_from_file(&self.options.file, self.options.router.as_deref()) {
            Ok(read) => read,
            Err(refused) => return self.refuse("edit refused, the last good specification stays in force", &refused),
        };
        if new == self.desired {
            self.accept();
            return self.tell();
        }
        for warning in warnings {
            warn!("{warning}");
        }
        if new.router != self.desired.router {
            let (now, ours) = (new.router, self.desired.router.clone());
            return self.refuse("edit refused", &AgentError::OtherRouter { now, ours });
        }
        if self.waits() {
            info!(router = %new.router, "edit read: it is what the router will take over with");
            self.desired = new;
            self.accept();
            self.restart_standby(false);
            return self.tell();
        }
        // What was said on the wire about addresses that were not the router's yet shall not count against it once they are.
        self.hear();
        match self.router.apply(&new) {
            Ok(applied) => {
                self.desired = new;
                self.accept();
                self.succeeded(&applied);
            }
            Err(failed) if self.comes_second(&new, &failed) => {
                self.desired = new;
                self.accept();
                self.give_way(&Chain(&failed).to_string());
                self.tell();
            }
            Err(failed) => self.refuse("edit not applied, the last good specification stays in force", &failed),
        }
    }

    /// Removes flows that are over, if that is due, and looks how the router is. Returns when to do so again.
    pub(super) fn sweep(&mut self) -> Duration {
        if self.pace.is_due(Instant::now()) {
            self.sweep_flows();
        }
        let again = self.pace.next_look(Instant::now());
        self.look();
        self.tell();
        again
    }

    fn sweep_flows(&mut self) {
        let began = Instant::now();
        let swept = self.router.sweep(self.ends_stale());
        let crowded = swept.as_ref().is_ok_and(|swept| swept.gave_way > 0);
        self.pace.swept(Instant::now(), began.elapsed(), crowded);
        match swept {
            Ok(swept) => {
                if swept.removed + swept.gave_way > 0 {
                    debug!(live = swept.live, removed = swept.removed, gave_way = swept.gave_way, "swept flows");
                }
                self.account(swept);
            }
            Err(failed) => warn!("sweep: {}", Chain(&failed)),
        }
    }

    /// The kernel has news: flows look their next hops up again, unless it is of nobody that they go to, and whatever has
    /// drifted is put right.
    pub(super) fn network_changed(&mut self, news: News) {
        if news == News::Changed
            && let Err(failed) = self.router.refresh_hops()
        {
            warn!("after a change of the network: {}", Chain(&failed));
        }
        self.mend();
    }

    /// What a sweep found: flows that are over are logged, and stale ones ended when their time is up.
    fn account(&mut self, swept: Swept) {
        self.log_closed(swept.closed);
        if self.ends_stale() {
            self.end_stale(swept.stale);
        }
    }

    fn log_closed(&self, closed: Vec<Event>) {
        if let Some(log) = &self.flow_log {
            log.closed(closed);
        }
    }

    /// Logs what programs tell that have just been loaded.
    fn follow_events(&self) {
        let Some(log) = &self.flow_log else { return };
        match self.router.events() {
            Ok(events) => events.into_iter().for_each(|events| log.follow(events)),
            Err(failed) => warn!("follow the flow log: {}", Chain(&failed)),
        }
    }

    /// Writes what is left to log.
    pub(super) async fn finish_log(&mut self) {
        if let Some(log) = self.flow_log.take() {
            log.finish().await;
        }
    }

    /// What is not in the flow log.
    fn unlogged(&self, untold: Untold) -> Option<Unlogged> {
        self.flow_log.as_ref().map(|log| log.unlogged(untold))
    }

    /// Something has changed: puts right what has to be, and looks how the router is.
    pub(super) fn mend(&mut self) {
        if self.retry_repair.allows(Instant::now()) {
            self.repair();
        }
        self.look();
        self.tell();
    }

    /// What nobody tells of: whether somebody on the wire claims an address, and whether the programs are attached.
    pub(super) fn guard(&mut self) {
        if self.hear() {
            self.look();
            self.tell();
        }
        self.guard_programs();
    }

    /// Listens who claims the router's addresses. Returns whether there is anything to say about it.
    fn hear(&mut self) -> bool {
        let Some(rivals) = &self.rivals else { return false };
        let addresses = self.addresses();
        let now = Instant::now();
        let own = rivals.own();
        let (twins, heard): (Vec<_>, Vec<_>) =
            rivals.heard(&addresses).into_iter().partition(|conflict| self.is_twin(conflict.holder, own));
        if let Some(standby) = &mut self.standby {
            standby.note(twins);
        }
        let news = !heard.is_empty();
        for Conflict { address, holder } in heard {
            let before = self.claimed.insert(address, (holder, now));
            // RFC 5227, 2.4 (c): defended, but not in a war of announcements.
            if before.is_none_or(|(_, last)| now.duration_since(last) > DEFEND) {
                warn!(%address, %holder, "another host claims an address of the router: announced again");
                self.announce(addresses.clone());
            }
        }
        let before = self.claimed.len();
        self.claimed.retain(|_, (_, last)| now.duration_since(*last) < REMEMBER);
        news || self.claimed.len() != before
    }

    /// Repairs when a program is not where it should be, which the kernel tells nobody.
    fn guard_programs(&mut self) {
        match self.router.unattached() {
            Ok(missing) if missing.is_empty() => {}
            _ => self.mend(),
        }
    }

    fn repair(&mut self) {
        match self.router.apply(&self.desired) {
            Ok(applied) if applied.is_unchanged() => {
                self.drifted = None;
                self.retry_repair.settled();
            }
            Ok(applied) => {
                warn!("the system had drifted and was put right");
                self.counts.repaired += 1;
                report(&self.desired, &applied);
                self.take_over(&applied);
                self.announce_change(&applied);
                self.drifted = None;
                self.retry_repair.settled();
            }
            Err(failed) => {
                self.counts.repairs_failed += 1;
                self.drift(fault::of_repair("the system has drifted and could not be put right", &failed));
                self.retry_repair.failed(Instant::now());
            }
        }
    }

    /// The system is not as it should be, for this reason.
    fn drift(&mut self, fault: Fault) {
        // Once, not with every attempt.
        if self.drifted.as_ref() != Some(&fault) {
            error!(reason = %fault.reason, "{fault}");
        }
        self.drifted = Some(fault);
    }

    /// The addresses that it speaks for, or is to speak for.
    fn addresses(&self) -> Vec<IpAddr> {
        self.desired.link.addresses.iter().map(|address| address.net.addr()).collect()
    }

    /// Looks at the interfaces, the gateways and the tables.
    fn look(&mut self) {
        let observed = match self.router.observe() {
            Ok(observed) => observed,
            Err(failed) if failed.is_of_cluster() => {
                return self.find(vec![Fault::blocking(Reason::InterfaceMissing, failed.to_string())]);
            }
            Err(failed) => return warn!("look at the interfaces: {}", Chain(&failed)),
        };
        let gateways = health::gateways(&observed);
        let works = observed.external.as_ref().is_some_and(|external| external.up && external.lower_up);
        let neighbours = if works { self.router.neighbours(&gateways) } else { Ok(Vec::new()) };
        match neighbours {
            Ok(mut now) => {
                for one in &mut now {
                    self.compare(one);
                }
                self.neighbours = now;
            }
            Err(failed) => warn!("ask the gateways: {}", Chain(&failed)),
        }
        let external = self.router.place().external_interface.clone();
        let destinations = health::destinations(&self.desired.rules);
        let used = self.router.tally().used().clone();
        self.keep_ears(observed.external.as_ref().filter(|_| works));
        let claims = self.claimed.iter().map(|(address, (holder, _))| {
            let conflict = Conflict { address: *address, holder: *holder };
            Fault::new(Reason::AddressConflict, conflict.to_string())
        });
        let claims: Vec<Fault> = claims.collect();
        let mut found = health::faults(&external, &observed, &self.neighbours, &destinations, &used);
        found.extend(claims);
        match self.router.strangers() {
            Ok(strangers) => found.extend(health::strangers(&strangers)),
            Err(failed) => debug!("look for programs of others: {}", Chain(&failed)),
        }
        self.find(found);
    }

    /// This is the matter now.
    fn find(&mut self, found: Vec<Fault>) {
        for new in found.iter().filter(|new| !self.found.contains(new)) {
            warn!(reason = %new.reason, "{new}");
        }
        for old in self.found.iter().filter(|old| !found.contains(old)) {
            info!(reason = %old.reason, "no longer: {old}");
        }
        self.found = found;
    }

    /// Listens on the external interface as it is now.
    fn keep_ears(&mut self, external: Option<&link::Interface>) {
        let Some(external) = external else {
            self.rivals = None;
            return;
        };
        if self.rivals.as_ref().is_some_and(|rivals| rivals.is_on(external)) {
            return;
        }
        match Rivals::listen(&self.router.place().router, external) {
            Ok(rivals) => self.rivals = rivals,
            Err(failed) => warn!("listen for other holders of the addresses: {}", Chain(&failed)),
        }
    }

    /// What was known of a gateway before counts as long as it is being asked.
    fn compare(&self, now: &mut Neighbour) {
        let Some(before) = self.neighbours.iter().find(|before| before.address == now.address) else { return };
        if now.answer == link::Answer::Asked {
            now.answer = before.answer;
        }
        now.mac = now.mac.or(before.mac);
        if let (Some(old), Some(new)) = (before.mac, now.mac)
            && old != new
        {
            info!(gateway = %now.address, from = %old, to = %new, "a gateway has another Ethernet address now");
        }
    }

    /// Tells the network, in the background, where addresses are.
    fn announce(&mut self, addresses: Vec<IpAddr>) {
        let place = self.router.place();
        let (netns, interface) = (place.router.clone(), place.external_interface.clone());
        let announcing = tokio::spawn(async move {
            if let Err(failed) = link::announce_rounds(netns, interface, addresses).await {
                warn!("announce: {}", Chain(&failed));
            }
        });
        // What an earlier one still had to say, this one says.
        if let Some(earlier) = self.announcing.replace(announcing) {
            earlier.abort();
        }
    }

    fn announce_change(&mut self, applied: &Applied) {
        if !applied.link.is_empty() {
            self.announce(applied.addresses.clone());
        }
    }

    /// What follows when other programs or tables are in force.
    fn take_over(&mut self, applied: &Applied) {
        if applied.loaded {
            self.follow_events();
        }
        if let Some(swept) = &applied.swept {
            self.account(swept.clone());
        }
    }

    fn succeeded(&mut self, applied: &Applied) {
        report(&self.desired, applied);
        self.take_over(applied);
        self.announce_change(applied);
        self.counts.applied += 1;
        self.in_force = true;
        self.master.clone_from(&applied.master);
        self.drifted = None;
        self.retry_repair.settled();
        self.look();
        self.tell();
    }

    fn ends_stale(&self) -> bool {
        self.options.existing_flows != ExistingFlows::Keep
    }

    /// Ends flows that go where the rules do not lead any more, once their time is up.
    fn end_stale(&mut self, stale: Vec<Connection>) {
        let grace = match self.options.existing_flows {
            ExistingFlows::Keep => return,
            ExistingFlows::Drain(grace) => grace,
            ExistingFlows::Cut => Duration::ZERO,
        };
        let due = self.draining.due(stale, grace, Instant::now());
        if due.is_empty() {
            return;
        }
        info!(flows = due.len(), "cut flows of rules that have changed");
        let mut closed = Vec::new();
        if let Err(failed) = self.router.cut(&due, &mut closed) {
            warn!("{}", Chain(&failed));
        }
        self.log_closed(closed);
    }

    fn accept(&mut self) {
        self.refused = None;
        self.retry_edit.settled();
    }

    /// Keeps what is in force.
    fn refuse(&mut self, what: &str, error: &(dyn std::error::Error + 'static)) {
        let fault = fault::of_edit(what, error);
        // Once, not with every attempt.
        if self.refused.as_ref() != Some(&fault) {
            self.counts.refused += 1;
            error!(reason = %fault.reason, "{fault}");
        }
        if fault.reason.may_pass() {
            self.retry_edit.failed(Instant::now());
        } else {
            self.retry_edit.settled();
        }
        self.refused = Some(fault);
        self.tell();
    }

    /// What is known of the router.
    fn picture(&self) -> Picture {
        let no_interface = self.found.iter().any(|fault| fault.blocks);
        let drifted = self.drifted.clone().map(|fault| Fault { blocks: fault.blocks || no_interface, ..fault });
        let retried = self.refused.as_ref().is_some_and(|fault| fault.reason.may_pass());
        let activity = match (self.in_force, &self.drifted, retried) {
            (false, None, _) => self.standby.is_none().then_some(Activity::Starting),
            (false, Some(_), _) => None,
            (true, Some(_), _) => Some(Activity::Repairing),
            (true, None, true) => Some(Activity::Retrying),
            (true, None, false) => self.draining.is_under_way().then_some(Activity::Draining),
        };
        let in_force = self.in_force.then(|| InForce {
            rules: self.desired.rules.rules.len(),
            fallback: self.desired.rules.fallback,
            addresses: self.addresses(),
        });
        let waiting =
            self.standby.as_ref().filter(|_| !self.in_force).map(|standby| standby.sentence(&self.addresses()));
        let faults = drifted.into_iter().chain(self.refused.clone()).chain(self.found.iter().cloned()).collect();
        Picture { in_force, waiting, faults, activity }
    }

    /// Brings the conditions up to date, and writes them where they are not what was written last.
    fn tell(&mut self) {
        self.conditions.update(judge(&self.picture()), Timestamp::now());
        let status = Status::new(&self.desired, self.waits(), self.conditions.clone());
        let files = || std::iter::once(self.router.status_file()).chain(self.options.status_file.as_deref());
        if self.written.as_ref() == Some(&status) && files().all(Path::exists) {
            return;
        }
        let mut failures = Vec::new();
        for file in files() {
            failures.extend(status.write(file).err());
        }
        if let Some(available) = self.conditions.get(ConditionType::Available) {
            service::status(&format!("{}: {}", available.reason, available.message));
        }
        if failures.is_empty() {
            self.written = Some(status);
            self.status_fails = false;
            return;
        }
        for failed in failures {
            // The next look writes it again; it is told once.
            self.counts.status_failed += 1;
            if !self.status_fails {
                warn!("{}", Chain(&failed));
            }
        }
        self.status_fails = true;
    }

    /// What is told to a scrape.
    pub(super) fn figures(&mut self) -> String {
        match self.router.sweep(false) {
            Ok(swept) => self.log_closed(swept.closed),
            Err(failed) => warn!("sweep: {}", Chain(&failed)),
        }
        let table = rule_ids(&self.desired.rules);
        self.router.tally().retain(|id| table.iter().any(|(known, _)| known == id));
        let mut totals = self.router.tally().rules().clone();
        if self.waits() {
            totals.values_mut().for_each(|totals| totals.flows = 0);
        }
        let mut rules: Vec<Rule> = Vec::with_capacity(table.len());
        for (id, destination) in &table {
            let totals = totals.get(id).copied().unwrap_or_default();
            rules.push(Rule { name: RuleName::of(id, protocol_name), destination: Some(*destination), totals });
        }
        let gone = totals.iter().filter(|(id, _)| table.iter().all(|(known, _)| known != *id));
        rules.extend(gone.map(|(id, totals)| Rule {
            name: RuleName::of(id, protocol_name),
            destination: None,
            totals: *totals,
        }));
        let used = if self.waits() { Use::default() } else { self.router.tally().used().clone() };
        let mut figures = Figures {
            active: !self.waits(),
            started_s: self.started.as_second() as f64,
            conditions: self.conditions.clone(),
            faults: self.picture().faults.iter().map(|fault| fault.reason).collect(),
            counts: self.counts,
            rules: Figures::bound(rules),
            flows: used.flows,
            flows_limit: used.capacity,
            ports: used.ports,
            gateways: self.neighbours.iter().map(|one| (one.address, one.answer != link::Answer::Silent)).collect(),
            ..Figures::default()
        };
        let counted = || {
            let reader = self.router.reader()?;
            Ok::<_, AgentError>((reader.counters()?, reader.port_tries()?, reader.untold()?))
        };
        match counted() {
            // Nothing is there to be read.
            _ if self.waits() => {}
            Ok((counters, port_searches, untold)) => {
                figures.counters = counters;
                figures.port_searches = port_searches;
                figures.unlogged = self.unlogged(untold);
            }
            Err(failed) => warn!("read the counters: {}", Chain(&failed)),
        }
        match self.router.observe() {
            Ok(observed) => figures.interfaces = interfaces(&observed),
            Err(failed) => warn!("look at the interfaces: {}", Chain(&failed)),
        }
        figures.encode().unwrap_or_else(|failed| {
            warn!("write metrics: {failed}");
            String::new()
        })
    }

    /// Takes the router away, and what tells of it.
    pub(super) fn remove(&mut self) -> Result<(), AgentError> {
        self.take_away()?;
        let files = std::iter::once(self.router.status_file()).chain(self.options.status_file.as_deref());
        for file in files {
            let _never_written = std::fs::remove_file(file);
        }
        Ok(())
    }

    fn take_away(&mut self) -> Result<(), AgentError> {
        let closed = self.router.all_closed().unwrap_or_default();
        self.router.delete()?;
        self.log_closed(closed);
        Ok(())
    }

    /// What was known of the network by an interface that is gone.
    fn forget_wire(&mut self) {
        self.rivals = None;
        self.claimed.clear();
        self.neighbours.clear();
        self.found.clear();
        self.drifted = None;
        self.retry_repair.settled();
        if let Some(announcing) = self.announcing.take() {
            announcing.abort();
        }
    }
}

/// The rules by what they are known by, each with where it leads to; port 0 where that is the client's choice.
fn rule_ids(rules: &RuleTable) -> Vec<(RuleId, SocketAddr)> {
    let family = |ip: IpAddr| if ip.is_ipv4() { 4 } else { 6 };
    let mut ids: Vec<_> = rules
        .rules
        .iter()
        .map(|rule| {
            let port = Some((protocol_number(rule.protocol), rule.port.get()));
            let to = SocketAddr::new(rule.destination, rule.destination_port().get());
            (RuleId { family: family(rule.destination), port }, to)
        })
        .collect();
    ids.extend(rules.fallback.map(|ip| (RuleId { family: family(ip), port: None }, SocketAddr::new(ip, 0))));
    ids
}

fn interfaces(observed: &Observed) -> Vec<metrics::Interface> {
    let figures = |side, interface: &link::Interface| metrics::Interface {
        name: interface.name.clone(),
        side,
        up: interface.up,
        carrier: interface.lower_up,
        addresses: interface.addresses.len(),
    };
    let external = observed.external.as_ref().map(|external| figures("external", external));
    std::iter::once(figures("cluster", &observed.cluster)).chain(external).collect()
}

fn report(desired: &Desired, applied: &Applied) {
    for change in &applied.link {
        info!("{change}");
    }
    info!(
        router = %desired.router,
        rules = desired.rules.rules.len(),
        programs_changed = applied.programs,
        tables_changed = applied.tables,
        tables_took_ms = u64::try_from(applied.tables_took.as_millis()).unwrap_or(u64::MAX),
        "applied"
    );
}
