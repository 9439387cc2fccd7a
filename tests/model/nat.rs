//! A NAT, as plainly as it can be written: a list of connections, each with all that its two sides ever sent.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use egress_lab::Family;
use egress_lab::address::SNAT;

use crate::frame::flag::{ACK, FIN, RST, SYN};

/// What carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    /// Its identifier is the client's port.
    Echo,
}

/// One connection.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) protocol: Protocol,
    pub(crate) client: SocketAddr,
    pub(crate) router: SocketAddr,
    pub(crate) server: SocketAddr,
    pub(crate) snat: SocketAddr,
    /// TCP's flags of each packet that each side sent since the connection was opened; no flags for other protocols.
    sent: [Vec<u8>; 2],
    opened_s: u64,
    last_s: u64,
}

/// The side that a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Client,
    Server,
}

/// How long a connection lives without packets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    pub(crate) syn_sent_s: u64,
    pub(crate) syn_recv_s: u64,
    pub(crate) established_s: u64,
    pub(crate) fin_wait_s: u64,
    pub(crate) close_wait_s: u64,
    pub(crate) time_wait_s: u64,
    pub(crate) close_s: u64,
    pub(crate) udp_s: u64,
    pub(crate) udp_stream_s: u64,
    pub(crate) echo_s: u64,
}

/// Rules by family, protocol and router's port, and the fallback.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    pub(crate) rules: HashMap<(Family, Protocol, u16), SocketAddr>,
    pub(crate) fallback: Option<IpAddr>,
}

/// What becomes of a client's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// It is of this connection.
    Of(usize),
    /// It opens one to this server, from a port that is free.
    Opens(SocketAddr),
    /// It would open one, and every port is taken.
    Exhausted,
    /// No rule claims it.
    Rejected,
}

/// The whole of it.
#[derive(Debug)]
pub(crate) struct Nat {
    pub(crate) table: Table,
    pub(crate) timeouts: Timeouts,
    /// The ports that connections may get, if not those of the client's port's class.
    pub(crate) ports: Option<(u16, u16)>,
    pub(crate) now_s: u64,
    pub(crate) connections: Vec<Connection>,
}

impl Nat {
    /// What a packet from a client means.
    pub(crate) fn request(&self, protocol: Protocol, client: SocketAddr, router: SocketAddr) -> Request {
        let is_this = |one: &Connection| (one.protocol, one.client, one.router) == (protocol, client, router);
        if let Some(at) = self.connections.iter().position(is_this) {
            return Request::Of(at);
        }
        let family = Family::of(client.ip());
        let fallback = self.table.fallback.filter(|ip| Family::of(*ip) == family);
        let fallback = fallback.map(|ip| SocketAddr::new(ip, router.port()));
        match self.table.rules.get(&(family, protocol, router.port())).copied().or(fallback) {
            None => Request::Rejected,
            Some(server) if self.free_ports(protocol, client, server).is_empty() => Request::Exhausted,
            Some(server) => Request::Opens(server),
        }
    }

    /// The ports that a new connection may be given.
    pub(crate) fn free_ports(&self, protocol: Protocol, client: SocketAddr, server: SocketAddr) -> Vec<u16> {
        let class = match (protocol, client.port()) {
            (Protocol::Echo, _) => (0, 65_535),
            (_, port) => self.ports.unwrap_or(match port {
                0..512 => (1, 511),
                512..1024 => (600, 1023),
                _ => (1024, 65_535),
            }),
        };
        let snat = SNAT.ip(Family::of(client.ip()));
        let is_taken = |port| self.reply(protocol, server, SocketAddr::new(snat, port)).is_some();
        let free = |port: &u16| !is_taken(*port);
        // Its own, if it may have it; else any.
        if (class.0..=class.1).contains(&client.port()) && free(&client.port()) {
            return vec![client.port()];
        }
        (class.0..=class.1).filter(free).collect()
    }

    /// The connection that a server's packet is of.
    pub(crate) fn reply(&self, protocol: Protocol, server: SocketAddr, snat: SocketAddr) -> Option<usize> {
        self.connections.iter().position(|one| (one.protocol, one.server, one.snat) == (protocol, server, snat))
    }

    /// A new connection, which no packet was seen of yet.
    pub(crate) fn open(
        &mut self,
        protocol: Protocol,
        client: SocketAddr,
        router: SocketAddr,
        server: SocketAddr,
        port: u16,
    ) -> usize {
        let snat = SocketAddr::new(SNAT.ip(Family::of(client.ip())), port);
        let (opened_s, last_s) = (self.now_s, self.now_s);
        self.connections.push(Connection {
            protocol,
            client,
            router,
            server,
            snat,
            sent: Default::default(),
            opened_s,
            last_s,
        });
        self.connections.len() - 1
    }

    /// Notes a packet of a connection.
    pub(crate) fn packet(&mut self, at: usize, from: From, flags: u8) {
        let now_s = self.now_s;
        let limit_s = self.connections[at].limit_s(&self.timeouts);
        let connection = &mut self.connections[at];
        let is_over = limit_s == self.timeouts.time_wait_s || limit_s == self.timeouts.close_s;
        let opens = flags & (SYN | ACK | RST | FIN) == SYN;
        if connection.protocol == Protocol::Tcp && from == From::Client && opens && is_over {
            connection.sent = Default::default();
            connection.opened_s = now_s;
        }
        connection.sent[from as usize].push(flags);
        connection.last_s = now_s;
    }

    /// Lets time go by; what has been silent for too long is gone.
    pub(crate) fn pass(&mut self, time_s: u64) {
        self.now_s += time_s;
        let (now_s, timeouts) = (self.now_s, self.timeouts);
        self.connections.retain(|one| now_s - one.last_s < one.limit_s(&timeouts));
    }
}

impl Connection {
    fn limit_s(&self, timeouts: &Timeouts) -> u64 {
        let answered = !self.sent[From::Server as usize].is_empty();
        match self.protocol {
            Protocol::Echo => timeouts.echo_s,
            Protocol::Udp if answered && self.last_s - self.opened_s > 2 => timeouts.udp_stream_s,
            Protocol::Udp => timeouts.udp_s,
            Protocol::Tcp => self.tcp_limit_s(timeouts),
        }
    }

    fn tcp_limit_s(&self, timeouts: &Timeouts) -> u64 {
        let [client, server] = &self.sent;
        // What every receiver drops says nothing.
        let telling =
            |sent: &[u8]| sent.iter().copied().filter(|flags| flags & (SYN | ACK | RST) != 0).collect::<Vec<_>>();
        let picked_up = client.first().is_some_and(|flags| flags & SYN == 0 && flags & (ACK | RST) != 0);
        let (client, server) = (&telling(client), &telling(server));
        let is_reset = |sent: &[u8]| sent.last().is_some_and(|flags| flags & RST != 0);
        // A reset carries nothing else.
        let any = |sent: &[u8], what: &dyn Fn(u8) -> bool| sent.iter().any(|flags| flags & RST == 0 && what(*flags));
        let has_closed = |sent: &[u8]| any(sent, &|flags| flags & FIN != 0);
        if is_reset(client) || is_reset(server) {
            return timeouts.close_s;
        }
        match (has_closed(client), has_closed(server)) {
            (true, true) => return timeouts.time_wait_s,
            (true, false) => return timeouts.fin_wait_s,
            (false, true) => return timeouts.close_wait_s,
            (false, false) => {}
        }
        let confirmed = any(client, &|flags| flags & SYN == 0);
        let answered = any(server, &|_| true);
        match (picked_up, answered, confirmed) {
            (true, ..) => timeouts.established_s,
            (_, false, _) => timeouts.syn_sent_s,
            (_, true, false) => timeouts.syn_recv_s,
            (_, true, true) => timeouts.established_s,
        }
    }
}
