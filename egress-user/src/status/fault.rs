//! What can be the matter with a router.

use std::fmt;

/// Why, in one word. In order of weight: the first of several faults gives the conditions their reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The datapath is not there, or not whole.
    DatapathMissing,
    /// The external interface's master does not exist.
    MasterMissing,
    /// The master is down or has no carrier.
    MasterDown,
    /// The external or the cluster interface does not exist.
    InterfaceMissing,
    /// Another host has one of the addresses.
    AddressConflict,
    /// A gateway does not answer ARP or neighbour discovery.
    GatewayUnreachable,
    /// A destination has no route.
    NoRoute,
    /// The system differs from what it should be and could not be put right.
    NotApplied,
    /// Another program stands between the network and ours.
    ForeignProgram,
    /// The flow table is full or nearly so.
    FlowTableNearlyFull,
    /// The source ports towards a destination are all taken or nearly so.
    PortsNearlyExhausted,
    /// The latest edit of the specification has errors.
    SpecificationInvalid,
    /// The specification cannot be read.
    SpecificationUnreadable,
    /// The latest edit is of another router.
    OtherRouter,
}

impl Reason {
    /// All of them, by weight.
    pub const ALL: [Self; 14] = [
        Self::DatapathMissing,
        Self::MasterMissing,
        Self::MasterDown,
        Self::InterfaceMissing,
        Self::AddressConflict,
        Self::GatewayUnreachable,
        Self::NoRoute,
        Self::NotApplied,
        Self::ForeignProgram,
        Self::FlowTableNearlyFull,
        Self::PortsNearlyExhausted,
        Self::SpecificationInvalid,
        Self::SpecificationUnreadable,
        Self::OtherRouter,
    ];

    /// The word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DatapathMissing => "DatapathMissing",
            Self::MasterMissing => "MasterMissing",
            Self::MasterDown => "MasterDown",
            Self::InterfaceMissing => "InterfaceMissing",
            Self::AddressConflict => "AddressConflict",
            Self::GatewayUnreachable => "GatewayUnreachable",
            Self::NoRoute => "NoRoute",
            Self::NotApplied => "NotApplied",
            Self::ForeignProgram => "ForeignProgram",
            Self::FlowTableNearlyFull => "FlowTableNearlyFull",
            Self::PortsNearlyExhausted => "PortsNearlyExhausted",
            Self::SpecificationInvalid => "SpecificationInvalid",
            Self::SpecificationUnreadable => "SpecificationUnreadable",
            Self::OtherRouter => "OtherRouter",
        }
    }

    /// Whether time alone, or somebody else, may cure it: worth another try without another edit.
    pub const fn may_pass(self) -> bool {
        !matches!(self, Self::SpecificationInvalid | Self::OtherRouter)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that is the matter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// Why, in one word.
    pub reason: Reason,
    /// Why, with the object's name and, where there is one, the way out.
    pub message: String,
    /// Whether all packets are lost by it.
    pub blocks: bool,
}

impl Fault {
    /// A fault that leaves at least some packets their way.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), blocks: false }
    }

    /// A fault that lets nothing through.
    pub fn blocking(reason: Reason, message: impl Into<String>) -> Self {
        Self { blocks: true, ..Self::new(reason, message) }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// The pattern that the API server checks reasons with.
    #[test]
    fn reasons_are_distinct_words_in_camel_case() {
        let names: HashSet<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for name in names {
            assert!(name.starts_with(|c: char| c.is_ascii_uppercase()), "{name}");
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "{name}");
        }
        assert!(Reason::ALL.is_sorted());
    }
}
