//! What a global BPF function returns: a number, 0 for success, else a drop reason's and one.

use egress_ebpf::verdict::DropReason;

#[inline(always)]
pub(crate) fn encode(outcome: Result<(), DropReason>) -> u32 {
    match outcome {
        Ok(()) => 0,
        Err(reason) => reason as u32 + 1,
    }
}

#[inline(always)]
pub(crate) fn decode(answer: u32) -> Result<(), DropReason> {
    match answer {
        0 => Ok(()),
        reason => Err(DropReason::from_number(reason - 1).unwrap_or(DropReason::KernelCall)),
    }
}
