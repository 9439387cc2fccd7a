//! The legacy router image's environment: `EGRESS_SOURCE`, `EGRESS_GATEWAY` and `EGRESS_DESTINATION`.
//!
//! Accepts and refuses what its script (`egress-router.sh`) does, with its error texts, so that what ran there is taken over
//! and what did not is not. Two of its limits are left behind in the specification, not here: a port is unique whatever its
//! protocol, and the fallback comes last. What the script let pass and could not work is refused too, with a text of our own:
//! octets beyond 255.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;

use ipnet::Ipv4Net;
use thiserror::Error;

use super::types::{
    ApiVersion, EgressRouter, EgressRouterAddress, EgressRouterSpec, Kind, L4RedirectRule, MacvlanConfig, Metadata,
    Mode, NetworkInterface, Protocol, RedirectConfig,
};

/// The legacy variables as they are set; empty counts as unset.
#[derive(Clone, Copy, Debug, Default)]
pub struct LegacyEnvironment<'a> {
    /// `EGRESS_SOURCE`: IPv4 address, with or without a prefix length.
    pub source: &'a str,
    /// `EGRESS_GATEWAY`: IPv4 address.
    pub gateway: &'a str,
    /// `EGRESS_DESTINATION`: rules, one a line.
    pub destination: &'a str,
}

/// Why the variables say nothing. The texts up to [`PortTaken`](Self::PortTaken) are the script's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LegacyError {
    /// No IPv4 address.
    #[error("EGRESS_SOURCE unspecified or invalid")]
    Source,
    /// No IPv4 address.
    #[error("EGRESS_GATEWAY unspecified or invalid")]
    Gateway,
    /// Not set.
    #[error("EGRESS_DESTINATION unspecified")]
    NoDestination,
    /// A line of no known form.
    #[error("EGRESS_DESTINATION value '{0}' is invalid")]
    Line(String),
    /// A line after the fallback.
    #[error("EGRESS_DESTINATION fallback IP must be the last line")]
    AfterFallback,
    /// A port out of range.
    #[error("Invalid port: {0}, must be in the range 1 to 65535")]
    Port(String),
    /// Two lines with one port.
    #[error("EGRESS_DESTINATION localport {0} is already used, must be unique for each destination")]
    PortTaken(NonZeroU16),
    /// Digits and dots that are no address.
    #[error("{variable} has {text:?}, which looks like an IPv4 address and is none")]
    Address {
        /// Which variable.
        variable: &'static str,
        /// What it has.
        text: String,
    },
}

/// Name of the object that legacy variables become.
pub const LEGACY_NAME: &str = "egress-router";

/// The router that the variables describe.
///
/// # Errors
/// The first thing that is wrong, as the script would have it.
pub fn from_legacy(environment: LegacyEnvironment<'_>) -> Result<EgressRouter, LegacyError> {
    let (source, length) = match environment.source.split_once('/') {
        Some((source, length)) => (source, Some(length)),
        None => (environment.source, None),
    };
    if !looks_like_ip(source) || length.is_some_and(|length| !is_number(length)) {
        return Err(LegacyError::Source);
    }
    if !looks_like_ip(environment.gateway) {
        return Err(LegacyError::Gateway);
    }
    let address = ipv4("EGRESS_SOURCE", source)?;
    let length = length.map_or(Some(32), |length| length.parse().ok());
    let net = length.and_then(|length| Ipv4Net::new(address, length).ok()).ok_or(LegacyError::Source)?;
    let gateway = ipv4("EGRESS_GATEWAY", environment.gateway)?;
    Ok(EgressRouter {
        api_version: ApiVersion::V1,
        kind: Kind::EgressRouter,
        metadata: Metadata { name: LEGACY_NAME.to_owned(), ..Metadata::default() },
        spec: EgressRouterSpec {
            mode: Mode::Redirect,
            redirect: destinations(environment.destination)?,
            network_interface: NetworkInterface { macvlan: MacvlanConfig::default() },
            addresses: vec![EgressRouterAddress { ip: net.to_string(), gateway: Some(gateway.into()) }],
        },
        status: None,
    })
}

fn destinations(text: &str) -> Result<RedirectConfig, LegacyError> {
    if text.is_empty() {
        return Err(LegacyError::NoDestination);
    }
    let mut redirect = RedirectConfig::default();
    for line in text.lines() {
        // As the shell's `read` does.
        let line = line.trim_matches([' ', '\t']);
        if line.chars().all(|c| c.is_ascii_whitespace()) || line.starts_with('#') {
            continue;
        }
        if redirect.fallback_ip.is_some() {
            return Err(LegacyError::AfterFallback);
        }
        let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
        match words.as_slice() {
            [ip] if looks_like_ip(ip) => redirect.fallback_ip = Some(destination(ip)?),
            [local, protocol, ip] if is_rule(local, protocol, ip) => rule(&mut redirect, local, protocol, ip, None)?,
            [local, protocol, ip, remote] if is_rule(local, protocol, ip) && is_number(remote) => {
                rule(&mut redirect, local, protocol, ip, Some(remote))?;
            }
            _ => return Err(LegacyError::Line(line.to_owned())),
        }
    }
    Ok(redirect)
}

fn is_rule(port: &str, protocol: &str, ip: &str) -> bool {
    is_number(port) && matches!(protocol, "tcp" | "udp") && looks_like_ip(ip)
}

fn rule(
    redirect: &mut RedirectConfig,
    local: &str,
    protocol: &str,
    ip: &str,
    remote: Option<&str>,
) -> Result<(), LegacyError> {
    let local = port(local)?;
    let target_port = remote.map(port).transpose()?;
    if redirect.redirect_rules.iter().any(|rule| rule.port == local) {
        return Err(LegacyError::PortTaken(local));
    }
    redirect.redirect_rules.push(L4RedirectRule {
        destination_ip: destination(ip)?,
        port: local,
        protocol: if protocol == "tcp" { Protocol::Tcp } else { Protocol::Udp },
        target_port,
    });
    Ok(())
}

fn port(text: &str) -> Result<NonZeroU16, LegacyError> {
    text.parse().map_err(|_out_of_range| LegacyError::Port(text.to_owned()))
}

fn destination(text: &str) -> Result<IpAddr, LegacyError> {
    ipv4("EGRESS_DESTINATION", text).map(IpAddr::V4)
}

fn ipv4(variable: &'static str, text: &str) -> Result<Ipv4Addr, LegacyError> {
    text.parse().map_err(|_no_address| LegacyError::Address { variable, text: text.to_owned() })
}

/// `[[:digit:]]+`.
fn is_number(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_digit())
}

/// Four numbers with dots between, as the script's expression.
fn looks_like_ip(text: &str) -> bool {
    let numbers: Vec<&str> = text.split('.').collect();
    numbers.len() == 4 && numbers.into_iter().all(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::load_str;

    fn read(source: &str, gateway: &str, destination: &str) -> Result<EgressRouter, LegacyError> {
        from_legacy(LegacyEnvironment { source, gateway, destination })
    }

    /// Rules as `local protocol ip remote`, the fallback last.
    fn rules(destination: &str) -> Result<Vec<String>, LegacyError> {
        let redirect = read("1.2.3.4", "1.1.1.1", destination)?.spec.redirect;
        let rule = |rule: L4RedirectRule| {
            let remote = rule.target_port.map(|port| format!(" {port}")).unwrap_or_default();
            format!("{} {:?} {}{remote}", rule.port, rule.protocol, rule.destination_ip)
        };
        let mut rules: Vec<String> = redirect.redirect_rules.into_iter().map(rule).collect();
        rules.extend(redirect.fallback_ip.map(|ip| ip.to_string()));
        Ok(rules)
    }

    /// The test vectors of the image.
    #[test]
    fn what_the_script_takes() {
        assert_eq!(rules("10.1.2.3").unwrap(), ["10.1.2.3"]);
        assert_eq!(rules("10.1.2.3\n").unwrap(), ["10.1.2.3"]);
        assert_eq!(rules("80 tcp 10.4.5.6").unwrap(), ["80 Tcp 10.4.5.6"]);
        assert_eq!(rules("8080 tcp 10.7.8.9 80").unwrap(), ["8080 Tcp 10.7.8.9 80"]);
        let three = ["80 Tcp 10.4.5.6", "8080 Tcp 10.7.8.9 80", "10.1.2.3"];
        assert_eq!(rules("80 tcp 10.4.5.6\n8080 tcp 10.7.8.9 80\n10.1.2.3").unwrap(), three);
        let commented = "# My egress rules\n\n80 tcp 10.4.5.6\n\n# some comment\n  8080   tcp 10.7.8.9   80  \n\t\n\
                         # Fallback\n10.1.2.3\n\n# after the fallback\n";
        assert_eq!(rules(commented).unwrap(), three);
        assert_eq!(rules("53 udp 10.0.0.1").unwrap(), ["53 Udp 10.0.0.1"]);
        assert_eq!(rules("# nothing\n").unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_the_script_refuses_and_says() {
        let destination = |text: &str| rules(text).unwrap_err().to_string();
        let after = "EGRESS_DESTINATION fallback IP must be the last line";
        for (text, says) in [
            ("", "EGRESS_DESTINATION unspecified"),
            ("not an IP address", "EGRESS_DESTINATION value 'not an IP address' is invalid"),
            ("10.1.2.3\n80 tcp 10.4.5.6", after),
            ("10.1.2.3\n10.1.2.4", after),
            ("80 tcp 10.4.5.6\n10.1.2.3\n8080 tcp 10.7.8.9 80", after),
            ("80 tcp 10.4.5.6\ninvalid\n10.1.2.3", "EGRESS_DESTINATION value 'invalid' is invalid"),
            ("80 sctp 10.4.5.6", "EGRESS_DESTINATION value '80 sctp 10.4.5.6' is invalid"),
            ("80 TCP 10.4.5.6", "EGRESS_DESTINATION value '80 TCP 10.4.5.6' is invalid"),
            ("80 tcp 10.4.5.6/32", "EGRESS_DESTINATION value '80 tcp 10.4.5.6/32' is invalid"),
            ("80\ttcp 10.4.5.6", "EGRESS_DESTINATION value '80\ttcp 10.4.5.6' is invalid"),
            ("80 tcp 10.4.5.6 # web", "EGRESS_DESTINATION value '80 tcp 10.4.5.6 # web' is invalid"),
            ("800000 tcp 10.4.5.6", "Invalid port: 800000, must be in the range 1 to 65535"),
            ("80 tcp 10.4.5.6 0", "Invalid port: 0, must be in the range 1 to 65535"),
            (
                "80 tcp 10.4.5.6\n80 udp 10.4.5.7",
                "EGRESS_DESTINATION localport 80 is already used, must be unique for each destination",
            ),
        ] {
            assert_eq!(destination(text), says);
        }
        for source in ["", "not an IP", "1.2.3.4\n1.2.3.5", "1.2.3.4/", "1.2.3.4/33", "1.2.3.4/24/1", "fd00::1"] {
            assert_eq!(read(source, "1.1.1.1", "10.1.2.3").unwrap_err(), LegacyError::Source, "{source:?}");
        }
        for gateway in ["", "not an IP", "1.1.1.1/24", "1.1.1.1\n"] {
            assert_eq!(read("1.2.3.4", gateway, "10.1.2.3").unwrap_err(), LegacyError::Gateway, "{gateway:?}");
        }
    }

    #[test]
    fn what_only_looks_like_an_address_is_refused_by_name() {
        let error = read("1.2.3.4", "1.1.1.1", "10.1.2.300").unwrap_err().to_string();
        assert_eq!(error, "EGRESS_DESTINATION has \"10.1.2.300\", which looks like an IPv4 address and is none");
        assert!(read("1.2.3.400", "1.1.1.1", "10.1.2.3").unwrap_err().to_string().starts_with("EGRESS_SOURCE has"));
    }

    #[test]
    fn what_comes_out_is_a_valid_specification() {
        let router =
            read("192.168.12.99/24", "192.168.12.1", "80 tcp 10.4.5.6\n8080 udp 10.7.8.9 80\n10.1.2.3").unwrap();
        let yaml = serde_saphyr::to_string(&router).unwrap();
        let loaded = load_str("legacy.yaml", &yaml);
        assert!(loaded.diagnostics.is_empty(), "{:?}\n{yaml}", loaded.diagnostics);
        assert_eq!(loaded.routers[0].valid.as_ref().unwrap().router().spec, router.spec);
    }
}
