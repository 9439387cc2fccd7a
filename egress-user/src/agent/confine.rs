//! What a long-running agent gives up once it holds what it needs: capabilities, files, system calls.
//!
//! A fault in it, or in a crate below, then reaches no further than the router itself. To be called by the only thread of the
//! process: all three belong to threads, and are inherited by those that come later.

use std::collections::BTreeMap;
use std::path::PathBuf;

use caps::{CapSet, CapsHashSet};
use landlock::{ABI, AccessFs, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, path_beneath_rules};
use nix::libc;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use tracing::{debug, warn};

use super::privilege::TO_CHANGE;

/// What the agent never does: start or inspect programs, load code into the kernel, change mounts, users or the machine.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_by_handle_at,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_reboot,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_unshare,
    libc::SYS_personality,
];

/// Gives up all that can be given up here. What this kernel or this container does not let happen is told and does no harm.
///
/// `writable` are the folders that the agent goes on to write below; files elsewhere it can only read from now on.
pub fn confine(writable: &[PathBuf]) {
    if let Err(error) = drop_capabilities() {
        warn!("give up capabilities: {error}");
    }
    match restrict_files(writable) {
        Ok(RulesetStatus::FullyEnforced) => debug!("files: only what is needed can be written"),
        Ok(status) => debug!(?status, "files: this kernel's landlock does not hold all"),
        Err(error) => warn!("restrict files: {error}"),
    }
    if let Err(error) = restrict_calls() {
        warn!("restrict system calls: {error}");
    }
}

/// Keeps what an apply takes, of what there is.
fn drop_capabilities() -> Result<(), caps::errors::CapsError> {
    let needed: CapsHashSet = TO_CHANGE.iter().filter_map(|one| one.to_string().parse().ok()).collect();
    let has = caps::read(None, CapSet::Permitted)?;
    let keep: CapsHashSet = has.intersection(&needed).copied().collect();
    caps::clear(None, CapSet::Ambient).or_else(|error| {
        debug!("clear ambient capabilities: {error}");
        Ok::<_, caps::errors::CapsError>(())
    })?;
    // The bounding set first: taking from it is a capability itself. Who lacks that cannot gain any either.
    if has.contains(&caps::Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding)?.difference(&keep) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    caps::set(None, CapSet::Effective, &keep)?;
    caps::set(None, CapSet::Permitted, &keep)?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())
}

fn restrict_files(writable: &[PathBuf]) -> Result<RulesetStatus, landlock::RulesetError> {
    let abi = ABI::V3;
    let write = AccessFs::from_write(abi);
    let status = Ruleset::default()
        .handle_access(write | AccessFs::Execute)?
        .create()?
        .add_rules(path_beneath_rules(writable, write))?
        .restrict_self()?;
    Ok(status.ruleset)
}

/// Refused calls fail with "not permitted", as without the capability.
fn restrict_calls() -> Result<(), Box<dyn std::error::Error>> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let errno = u32::try_from(libc::EPERM)?;
    #[expect(clippy::useless_conversion, reason = "the width of a system call's number differs between platforms")]
    let rules: BTreeMap<i64, _> = REFUSED.iter().map(|call| (i64::from(*call), Vec::new())).collect();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno), arch)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)?;
    Ok(())
}
