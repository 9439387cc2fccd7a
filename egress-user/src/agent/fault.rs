//! From errors to the faults that the status tells.

use super::AgentError;
use super::error::Chain;
use crate::compile::SpecError;
use crate::link::{LinkError, MasterFault};
use crate::spec::ReadError;
use crate::status::{Fault, Reason};

/// What an edit that cannot be read or applied says of the router.
pub(super) fn of_edit(what: &str, error: &(dyn std::error::Error + 'static)) -> Fault {
    let reason = match (error.downcast_ref::<SpecError>(), error.downcast_ref::<AgentError>()) {
        (Some(SpecError::Read(ReadError::Io { .. })), _) => Reason::SpecificationUnreadable,
        (Some(_), _) => Reason::SpecificationInvalid,
        (None, Some(error)) => reason(error),
        (None, None) => Reason::NotApplied,
    };
    Fault::new(reason, format!("{what}: {}", Chain(error)))
}

/// What a failed repair says of it.
pub(super) fn of_repair(what: &str, error: &AgentError) -> Fault {
    Fault::new(reason(error), format!("{what}: {}", Chain(error)))
}

fn reason(error: &AgentError) -> Reason {
    match error {
        AgentError::Link(error) => link_reason(error),
        AgentError::NotUndone { failed, .. } => reason(failed),
        AgentError::OtherRouter { .. } => Reason::OtherRouter,
        _ => Reason::NotApplied,
    }
}

fn link_reason(error: &LinkError) -> Reason {
    match error {
        LinkError::Conflict(_) | LinkError::AddressOnHost { .. } => Reason::AddressConflict,
        LinkError::MasterMissing { .. } | LinkError::MasterUnknown { .. } => Reason::MasterMissing,
        LinkError::MasterUnfit { fault: MasterFault::Down | MasterFault::NoCarrier, .. } => Reason::MasterDown,
        LinkError::Apply { source, .. } => link_reason(source),
        LinkError::NoClusterInterface { .. } => Reason::InterfaceMissing,
        _ => Reason::NotApplied,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_apart_however_deep_they_are() {
        let conflict = LinkError::Conflict(Vec::new());
        let deep = AgentError::NotUndone { failed: Box::new(AgentError::Link(conflict)), not_undone: Vec::new() };
        assert_eq!(of_edit("edit", &deep).reason, Reason::AddressConflict);
        let down = LinkError::MasterUnfit {
            master: "up0".to_owned(),
            netns: "host".to_owned(),
            fault: MasterFault::NoCarrier,
        };
        assert_eq!(of_repair("repair", &AgentError::Link(down)).reason, Reason::MasterDown);
        let read = crate::compile::desired_from_file(std::path::Path::new("/nonexistent/spec"), None).unwrap_err();
        let fault = of_edit("edit refused", &read);
        assert_eq!(fault.reason, Reason::SpecificationUnreadable);
        assert!(fault.message.starts_with("edit refused: read /nonexistent/spec: No such file"), "{fault}");
        let io = std::io::Error::other("x");
        assert_eq!(of_edit("edit", &io).reason, Reason::NotApplied);
    }
}
