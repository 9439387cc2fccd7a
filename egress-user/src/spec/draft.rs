//! A router on its way from a text to a checked object: what could be read, and holes where something could not.
//!
//! The [check](super::check) works on drafts, so that one pass over a file finds the faults of both the schema and the
//! meaning, and a hole never causes a second report.

use std::net::IpAddr;
use std::num::NonZeroU16;

use super::decode::{Read, Reported};
use super::types::{
    ApiVersion, EgressRouter, EgressRouterAddress, EgressRouterSpec, EgressRouterStatus, Kind, L4RedirectRule,
    MacvlanConfig, MacvlanMode, Metadata, Mode, NetworkInterface, Protocol, RedirectConfig,
};

/// An [`EgressRouter`] with holes.
pub(super) struct Draft {
    pub(super) name: Read<String>,
    /// Without the name.
    pub(super) metadata: Metadata,
    pub(super) master: Read<Option<String>>,
    pub(super) macvlan_mode: Read<MacvlanMode>,
    pub(super) addresses: Read<Vec<DraftAddress>>,
    pub(super) rules: Read<Vec<DraftRule>>,
    pub(super) fallback: Read<Option<IpAddr>>,
    pub(super) status: Option<EgressRouterStatus>,
    /// Whether nothing that belongs to this router was refused so far.
    pub(super) sound: bool,
}

pub(super) struct DraftAddress {
    pub(super) ip: Read<String>,
    pub(super) gateway: Read<Option<IpAddr>>,
}

pub(super) struct DraftRule {
    pub(super) destination: Read<IpAddr>,
    pub(super) port: Read<NonZeroU16>,
    pub(super) protocol: Read<Protocol>,
    pub(super) target_port: Read<Option<NonZeroU16>>,
}

impl DraftAddress {
    pub(super) fn unread() -> Self {
        Self { ip: Err(Reported), gateway: Err(Reported) }
    }
}

impl DraftRule {
    pub(super) fn unread() -> Self {
        Self { destination: Err(Reported), port: Err(Reported), protocol: Err(Reported), target_port: Err(Reported) }
    }
}

impl Draft {
    /// Nothing read yet: holes where something is required, defaults elsewhere.
    pub(super) fn empty() -> Self {
        Self {
            name: Err(Reported),
            metadata: Metadata::default(),
            master: Ok(None),
            macvlan_mode: Ok(MacvlanMode::default()),
            addresses: Err(Reported),
            rules: Err(Reported),
            fallback: Err(Reported),
            status: None,
            sound: true,
        }
    }

    /// The object, if there are no holes.
    pub(super) fn finish(self) -> Option<EgressRouter> {
        self.complete().ok()
    }

    fn complete(self) -> Read<EgressRouter> {
        let address = |it: DraftAddress| Ok(EgressRouterAddress { ip: it.ip?, gateway: it.gateway? });
        let rule = |it: DraftRule| {
            Ok(L4RedirectRule {
                destination_ip: it.destination?,
                port: it.port?,
                protocol: it.protocol?,
                target_port: it.target_port?,
            })
        };
        Ok(EgressRouter {
            api_version: ApiVersion::V1,
            kind: Kind::EgressRouter,
            metadata: Metadata { name: self.name?, ..self.metadata },
            spec: EgressRouterSpec {
                mode: Mode::Redirect,
                redirect: RedirectConfig {
                    redirect_rules: self.rules?.into_iter().map(rule).collect::<Read<_>>()?,
                    fallback_ip: self.fallback?,
                },
                network_interface: NetworkInterface {
                    macvlan: MacvlanConfig { mode: self.macvlan_mode?, master: self.master? },
                },
                addresses: self.addresses?.into_iter().map(address).collect::<Read<_>>()?,
            },
            status: self.status,
        })
    }
}

impl From<&EgressRouter> for Draft {
    fn from(router: &EgressRouter) -> Self {
        let spec = &router.spec;
        let address = |it: &EgressRouterAddress| DraftAddress { ip: Ok(it.ip.clone()), gateway: Ok(it.gateway) };
        let rule = |it: &L4RedirectRule| DraftRule {
            destination: Ok(it.destination_ip),
            port: Ok(it.port),
            protocol: Ok(it.protocol),
            target_port: Ok(it.target_port),
        };
        Self {
            name: Ok(router.metadata.name.clone()),
            metadata: router.metadata.clone(),
            master: Ok(spec.network_interface.macvlan.master.clone()),
            macvlan_mode: Ok(spec.network_interface.macvlan.mode),
            addresses: Ok(spec.addresses.iter().map(address).collect()),
            rules: Ok(spec.redirect.redirect_rules.iter().map(rule).collect()),
            fallback: Ok(spec.redirect.fallback_ip),
            status: router.status.clone(),
            sound: true,
        }
    }
}
