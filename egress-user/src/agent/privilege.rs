//! What the process may do, asked before it tries: the kernel says no more than "not permitted".

use std::fmt;

use super::AgentError;

/// A capability (capabilities(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Interfaces, routes, rules, settings, attaching.
    NetAdmin,
    /// ARP and neighbour discovery frames.
    NetRaw,
    /// Entering namespaces.
    SysAdmin,
    /// Programs that read the packet's pointers.
    Perfmon,
    /// BPF.
    Bpf,
}

/// What changing a router takes.
pub const TO_CHANGE: &[Capability] =
    &[Capability::NetAdmin, Capability::NetRaw, Capability::SysAdmin, Capability::Perfmon, Capability::Bpf];
/// What reading one takes.
pub const TO_READ: &[Capability] = &[Capability::SysAdmin, Capability::Bpf];

impl Capability {
    /// Its number (linux/capability.h).
    fn bit(self) -> u64 {
        1 << match self {
            Self::NetAdmin => 12,
            Self::NetRaw => 13,
            Self::SysAdmin => 21,
            Self::Perfmon => 38,
            Self::Bpf => 39,
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        })
    }
}

/// Checks that the process has these capabilities.
///
/// # Errors
///
/// [`AgentError::Privilege`] names those that it lacks.
pub fn check(needed: &'static [Capability]) -> Result<(), AgentError> {
    // Where /proc does not tell, the kernel's own refusal will have to do.
    let effective = std::fs::read_to_string("/proc/self/status").ok().and_then(|status| effective(&status));
    let missing = effective.map(|effective| missing(needed, effective)).unwrap_or_default();
    if missing.is_empty() { Ok(()) } else { Err(AgentError::Privilege { needed, missing }) }
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// `CAP_SYS_ADMIN` includes what was part of it before Linux 5.8.
fn missing(needed: &[Capability], effective: u64) -> Vec<Capability> {
    let admin = effective & Capability::SysAdmin.bit() != 0;
    let included = |capability: Capability| admin && matches!(capability, Capability::Bpf | Capability::Perfmon);
    needed.iter().copied().filter(|one| effective & one.bit() == 0 && !included(*one)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t000001ffffffefff\nCapBnd:\t0\n";
        let effective = effective(status).unwrap();
        assert_eq!(missing(TO_CHANGE, effective), [Capability::NetAdmin]);
        assert_eq!(missing(TO_READ, effective), []);
        assert_eq!(missing(TO_CHANGE, 0), TO_CHANGE);
        let old = (1 << 12) | (1 << 13) | (1 << 21);
        assert_eq!(missing(TO_CHANGE, old), []);
        let error = AgentError::Privilege { needed: TO_READ, missing: vec![Capability::Bpf] }.to_string();
        assert!(error.contains("needs CAP_SYS_ADMIN, CAP_BPF, and the process lacks CAP_BPF"), "{error}");
    }
}
