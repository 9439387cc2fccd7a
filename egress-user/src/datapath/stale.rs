//! Flows that go on to where the rules in force would not send them: what an edit leaves behind.

use std::collections::HashMap;
use std::net::SocketAddr;

use egress_ebpf::addr::Port;
use egress_ebpf::contract::{Action, Direction, Flow, FlowKey, RuleKey, RuleValue};
use egress_ebpf::event::Event;
use egress_ebpf::timeout::protocol;

use super::events::Closed;
use super::flows::{remove_pair, socket};
use super::maps::Maps;
use super::{Datapath, DatapathError, Entry};

/// One flow by its ends, as both sides see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// IP protocol.
    pub protocol: u8,
    /// The client.
    pub client: SocketAddr,
    /// The router's address and port that the client speaks to.
    pub router: SocketAddr,
    /// The address and port that the destination sees.
    pub source: SocketAddr,
    /// The destination.
    pub destination: SocketAddr,
}

/// Rules by family, protocol and port.
pub(super) type Rules = HashMap<(u8, u8, Port), RuleValue>;

impl Datapath {
    /// Ends flows: their entries are removed. One that is gone already is what is wanted. Returns what is to be logged of them.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn end(&mut self, connections: &[Connection]) -> Result<Vec<Event>, DatapathError> {
        self.maps.end(connections)
    }

    /// What would be logged if all flows ended now.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn all_closed(&self) -> Result<Vec<Event>, DatapathError> {
        self.maps.all_closed()
    }
}

impl Maps {
    pub(super) fn rules_by_port(&self) -> Result<Rules, DatapathError> {
        let id = |key: &RuleKey| (key.family, key.protocol, key.port);
        Ok(self.rules()?.into_iter().map(|(key, value)| (id(&key), value)).collect())
    }

    fn end(&self, connections: &[Connection]) -> Result<Vec<Event>, DatapathError> {
        let table = self.flows.table()?;
        let mut closed = Closed::new(self.logging()?);
        for one in connections {
            let request = table.find(&one.key()).filter(|entry| connection(&entry.key, &entry.flow) == *one);
            if let Some(request) = request {
                remove_pair(table, &request, &mut closed);
            }
        }
        Ok(closed.events)
    }

    fn all_closed(&self) -> Result<Vec<Event>, DatapathError> {
        let mut closed = Closed::new(self.logging()?);
        let table = self.flows.table()?;
        for Entry { key, flow, .. } in table.iter().filter(|entry| entry.key.is_request()) {
            closed.note(&key, &flow, table.get(&key.twin(&flow)).as_ref());
        }
        Ok(closed.events)
    }
}

impl Connection {
    /// Key of its requests' entry.
    fn key(&self) -> FlowKey {
        FlowKey {
            src: self.client.ip().into(),
            dst: self.router.ip().into(),
            src_port: Port::new(self.client.port()),
            dst_port: Port::new(self.router.port()),
            protocol: self.protocol,
            direction: Direction::Request as u8,
            pad: [0; 2],
        }
    }
}

pub(super) fn is_stale(rules: &Rules, key: &FlowKey, flow: &Flow) -> bool {
    let family = if key.src.is_v4() { 4 } else { 6 };
    let has_rules = matches!(key.protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
    let named = if has_rules { rules.get(&(family, key.protocol, key.dst_port)) } else { None };
    match named.or_else(|| rules.get(&(family, 0, Port::NONE))) {
        Some(rule) if rule.action == Action::Translate as u8 => {
            let port = if rule.target_port == Port::NONE { key.dst_port } else { rule.target_port };
            rule.destination != flow.to_dst || (has_rules && port != flow.to_dst_port)
        }
        Some(_) | None => true,
    }
}

pub(super) fn connection(key: &FlowKey, flow: &Flow) -> Connection {
    Connection {
        protocol: key.protocol,
        client: socket(key.src, key.src_port),
        router: socket(key.dst, key.dst_port),
        source: socket(flow.to_src, flow.to_src_port),
        destination: socket(flow.to_dst, flow.to_dst_port),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use bytemuck::Zeroable as _;
    use egress_ebpf::addr::Addr;

    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn rule(to: &str, port: u16) -> RuleValue {
        RuleValue { destination: addr(to), target_port: Port::new(port), ..RuleValue::zeroed() }
    }

    #[test]
    fn a_flow_is_stale_where_the_rules_lead_elsewhere() {
        let flow = |number: u8, port: u16, to: &str, to_port: u16| {
            let (src, dst) = (addr("10.128.0.1"), addr("10.128.0.2"));
            let key = FlowKey { src, dst, protocol: number, dst_port: Port::new(port), ..FlowKey::zeroed() };
            (key, Flow { to_dst: addr(to), to_dst_port: Port::new(to_port), ..Flow::zeroed() })
        };
        let mut rules = Rules::new();
        let stale = |rules: &Rules, (key, flow): (FlowKey, Flow)| is_stale(rules, &key, &flow);
        let web = || flow(protocol::TCP, 80, "203.0.113.26", 8080);
        assert!(stale(&rules, web()), "no rule any more");
        rules.insert((4, protocol::TCP, Port::new(80)), rule("203.0.113.26", 8080));
        assert!(!stale(&rules, web()));
        assert!(stale(&rules, flow(protocol::UDP, 80, "203.0.113.26", 8080)), "another protocol");
        rules.insert((4, protocol::TCP, Port::new(80)), rule("203.0.113.26", 0));
        assert!(stale(&rules, web()), "another port");
        rules.insert((4, protocol::TCP, Port::new(80)), rule("203.0.113.27", 8080));
        assert!(stale(&rules, web()), "another host");
        rules.insert((4, 0, Port::NONE), rule("203.0.113.26", 0));
        assert!(!stale(&rules, flow(protocol::ICMP, 0, "203.0.113.26", 0)));
        assert!(!stale(&rules, flow(protocol::UDP, 80, "203.0.113.26", 80)), "the fallback keeps the port");
        assert!(stale(&rules, web()), "a rule wins over the fallback");
        let local = RuleValue { action: Action::Local as u8, ..rule("0.0.0.0", 0) };
        rules.insert((4, protocol::UDP, Port::new(80)), local);
        assert!(stale(&rules, flow(protocol::UDP, 80, "203.0.113.26", 80)), "the pod's own now");
    }
}
