//! The meaning: what a router must say, beyond its schema, so that it can be applied.
//!
//! This is the only place that decides whether a router is valid, and [`ValidRouter`] the only proof of it: `compile`
//! takes nothing else.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;

use super::diagnostic::{Problem, Severity};
use super::draft::{Draft, DraftAddress};
use super::host::{self, Fault};
use super::names;
use super::path::FieldPath;
use super::tree::shorten;
use super::types::{EgressRouter, Protocol};

/// An [`EgressRouter`] that passed every check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidRouter {
    router: EgressRouter,
    /// `spec.addresses[].ip`, parsed, in order.
    addresses: Vec<IpNet>,
}

impl ValidRouter {
    /// The object itself.
    pub fn router(&self) -> &EgressRouter {
        &self.router
    }

    /// `spec.addresses`, in order: host address with the length of its subnet's prefix, and gateway.
    pub fn addresses(&self) -> impl Iterator<Item = (IpNet, Option<IpAddr>)> {
        let gateways = self.router.spec.addresses.iter().map(|address| address.gateway);
        self.addresses.iter().copied().zip(gateways)
    }
}

/// Checks an object that was read without a text, as from an API server. The warnings come with the result.
///
/// # Errors
/// All problems, when at least one of them is an error.
pub fn validate(router: EgressRouter) -> Result<(ValidRouter, Vec<Problem>), Vec<Problem>> {
    let checked = check(&Draft::from(&router));
    match checked.addresses {
        Some(addresses) => Ok((ValidRouter { router, addresses }, checked.problems)),
        None => Err(checked.problems),
    }
}

/// What a check found.
pub(super) struct Checked {
    pub(super) problems: Vec<Problem>,
    /// The parsed addresses, when there was no error.
    addresses: Option<Vec<IpNet>>,
}

impl Checked {
    /// The proof, if nothing speaks against it; `draft` is what was checked.
    pub(super) fn finish(self, draft: Draft) -> Option<ValidRouter> {
        let addresses = self.addresses.filter(|_| draft.sound)?;
        Some(ValidRouter { router: draft.finish()?, addresses })
    }
}

/// Checks everything that could be read of a router.
pub(super) fn check(draft: &Draft) -> Checked {
    let mut check = Check { draft, problems: Vec::new(), addresses: Vec::new() };
    check.names();
    check.addresses();
    check.gateways();
    check.destinations();
    check.unique_rules();
    check.usefulness();
    let Check { problems, addresses, .. } = check;
    let sound = problems.iter().all(|problem| problem.severity == Severity::Warning);
    // A hole keeps its place among the addresses, so that it must not be skipped: no proof then.
    let addresses = addresses.into_iter().map(|(_, parsed)| parsed).collect::<Option<_>>().filter(|_| sound);
    Checked { problems, addresses }
}

struct Check<'d> {
    draft: &'d Draft,
    problems: Vec<Problem>,
    /// The addresses and what they parse to; `None` where they do not.
    addresses: Vec<(&'d DraftAddress, Option<IpNet>)>,
}

fn spec() -> FieldPath {
    FieldPath::root().field("spec")
}

fn redirect() -> FieldPath {
    spec().field("redirect")
}

fn address(index: usize) -> FieldPath {
    spec().field("addresses").index(index)
}

fn rule(index: usize) -> FieldPath {
    redirect().field("redirectRules").index(index)
}

impl Check<'_> {
    fn fault(&mut self, field: FieldPath, subject: &str, fault: Fault) {
        self.problems.push(Problem::error(field, format!("{subject} {}", fault.what)).help(fault.help));
    }

    fn names(&mut self) {
        let metadata = FieldPath::root().field("metadata");
        let texts = [
            (metadata.clone().field("name"), self.draft.name.as_deref().ok(), names::object as fn(&str) -> _),
            (metadata.field("namespace"), self.draft.metadata.namespace.as_deref(), names::namespace),
            (
                spec().field("networkInterface").field("macvlan").field("master"),
                self.draft.master.as_ref().ok().and_then(Option::as_deref),
                names::interface,
            ),
        ];
        for (field, text, judge) in texts {
            if let Some((text, Err(fault))) = text.map(|text| (text, judge(text))) {
                self.fault(field, &shorten(text), fault);
            }
        }
    }

    fn addresses(&mut self) {
        let draft = self.draft;
        let mut seen = HashMap::new();
        for (index, entry) in draft.addresses.iter().flatten().enumerate() {
            let field = address(index).field("ip");
            let parsed = match entry.ip.as_deref().map(host::subnet_address) {
                Ok(Ok(net)) => {
                    if let Some(fault) = host::own_fault(net) {
                        self.fault(field.clone(), &format!("the address {net}"), fault);
                    }
                    Some(net)
                }
                Ok(Err(fault)) => {
                    let subject = shorten(entry.ip.as_deref().unwrap_or_default());
                    self.fault(field.clone(), &subject, fault);
                    None
                }
                Err(_reported) => None,
            };
            if let Some(net) = parsed
                && let Some(first) = seen.insert(net.addr(), index)
            {
                let message = format!("the address {} is given twice", net.addr());
                let problem = Problem::error(field, message).help("remove one of the two");
                self.problems.push(problem.related(address(first).field("ip"), "first here"));
            }
            self.addresses.push((entry, parsed));
        }
    }

    fn gateways(&mut self) {
        let mut first_of_family: HashMap<bool, (usize, IpAddr)> = HashMap::new();
        for (index, (entry, net)) in self.addresses.clone().into_iter().enumerate() {
            let Ok(Some(gateway)) = entry.gateway else { continue };
            let field = address(index).field("gateway");
            if let Err(fault) = host::next_hop(gateway, net) {
                self.fault(field.clone(), &format!("the gateway {gateway}"), fault);
                continue;
            }
            if let Some(own) = self.own(gateway) {
                let message = format!("the gateway {gateway} is the router's own address");
                let problem = Problem::error(field, message).help("write the address of the next hop");
                self.problems.push(problem.related(address(own).field("ip"), "the router's address"));
                continue;
            }
            match first_of_family.get(&gateway.is_ipv6()) {
                Some((first, other)) if *other != gateway => {
                    let family = host::family(gateway);
                    let message = format!("a second {family} gateway, {gateway}, beside {other}");
                    let problem = Problem::error(field, message).help(format!(
                        "a router has one {family} default route: keep one gateway, once or on each address"
                    ));
                    self.problems.push(problem.related(address(*first).field("gateway"), "the first"));
                }
                Some(_) => {}
                None => {
                    first_of_family.insert(gateway.is_ipv6(), (index, gateway));
                    self.problems.extend(host::far_gateway(gateway, net).map(|message| {
                        let help = "it must answer on this link all the same; check that it is meant";
                        Problem::warning(field, message).help(help)
                    }));
                }
            }
        }
    }

    fn destinations(&mut self) {
        let rules = self.draft.rules.iter().flatten().enumerate();
        let rules = rules.filter_map(|(index, it)| Some((rule(index).field("destinationIP"), it.destination.ok()?)));
        let fallback = self.draft.fallback.ok().flatten().map(|host| (redirect().field("fallbackIP"), host));
        let destinations: Vec<_> = rules.chain(fallback).collect();
        for (field, destination) in &destinations {
            self.destination(field, *destination);
        }
        let all_read = self.draft.addresses.is_ok() && self.addresses.iter().all(|(_, net)| net.is_some());
        if !all_read {
            return;
        }
        if self.addresses.is_empty() {
            if !destinations.is_empty() {
                let problem = Problem::error(
                    spec().field("addresses"),
                    "there are destinations, but no address to reach them with",
                );
                self.problems.push(problem.help("give the router an address, as in 192.168.12.99/24"));
            }
            return;
        }
        for (field, destination) in destinations {
            if !self.addresses.iter().flat_map(|(_, net)| net).any(|net| net.addr().is_ipv6() == destination.is_ipv6())
            {
                let family = host::family(destination);
                let message = format!("the router has no {family} address to reach {destination} with");
                self.problems.push(
                    Problem::error(field, message)
                        .help("add one to spec.addresses, or write a destination of the other family"),
                );
            }
        }
    }

    fn destination(&mut self, field: &FieldPath, destination: IpAddr) {
        let subject = format!("the destination {destination}");
        if let Err(fault) = host::usable(destination) {
            return self.fault(field.clone(), &subject, fault);
        }
        if let Some(own) = self.own(destination) {
            let problem = Problem::error(field.clone(), format!("{subject} is the router's own address"));
            let problem = problem.help("traffic would go round in circles: write an external host");
            self.problems.push(problem.related(address(own).field("ip"), "the router's address"));
            return;
        }
        let nets: Vec<_> = self.addresses.iter().filter_map(|(_, net)| *net).collect();
        if let Some(fault) = nets.into_iter().find_map(|net| host::no_host_of(net, destination)) {
            self.fault(field.clone(), &subject, fault);
        }
    }

    fn unique_rules(&mut self) {
        let mut seen: HashMap<(bool, Protocol, NonZeroU16), usize> = HashMap::new();
        for (index, it) in self.draft.rules.iter().flatten().enumerate() {
            let (Ok(destination), Ok(protocol), Ok(port)) = (it.destination, it.protocol, it.port) else { continue };
            let key = (destination.is_ipv6(), protocol, port);
            let Some(first) = seen.get(&key) else {
                seen.insert(key, index);
                continue;
            };
            let message = format!("port {port}/{protocol} has an {} rule already", host::family(destination));
            let problem = Problem::error(rule(index).field("port"), message)
                .help("one port of one protocol goes to one destination of a family: remove one, or change its port")
                .related(rule(*first).field("port"), "first here");
            self.problems.push(problem);
        }
    }

    /// Warns about a router that does nothing.
    fn usefulness(&mut self) {
        let draft = self.draft;
        let none = |list: Option<usize>| list == Some(0);
        let no_destination = none(draft.rules.as_ref().map(Vec::len).ok()) && draft.fallback == Ok(None);
        if no_destination {
            let problem = Problem::warning(redirect(), "there is no rule and no fallback, so nothing is redirected");
            self.problems.push(problem.help("add redirectRules or a fallbackIP"));
        }
        if none(draft.addresses.as_ref().map(Vec::len).ok()) && no_destination {
            let problem =
                Problem::warning(spec().field("addresses"), "there is no address, so nothing can be translated");
            self.problems.push(problem.help("add one, as in 192.168.12.99/24"));
        }
    }

    /// Index of the router's address that equals `host`.
    fn own(&self, host: IpAddr) -> Option<usize> {
        self.addresses.iter().position(|(_, net)| net.is_some_and(|net| net.addr() == host))
    }
}
