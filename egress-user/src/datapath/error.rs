//! What can go wrong between user space and the datapath.

use std::path::PathBuf;

use egress_ebpf::contract::map;
use thiserror::Error;

/// An error of the datapath room. Each names the object it is about.
#[derive(Debug, Error)]
pub enum DatapathError {
    /// Another build's object cannot be read.
    #[error("read the BPF object {}", path.display())]
    Object {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Tracing is one person's at a time.
    #[error("trace packets: somebody traces already; wait until that has ended")]
    Traced,
    /// The binary was built without a BPF object.
    #[error("this build of egress-router carries no BPF object: build it with `cargo xtask build`")]
    NoObject,
    /// The BPF object could not be parsed, or a map could not be made.
    #[error("load the BPF object{hint}")]
    Load {
        /// What to do about it, or nothing.
        hint: &'static str,
        /// The loader's reason.
        #[source]
        source: aya::EbpfError,
    },
    /// The kernel refused a program.
    #[error("load program {program}{hint}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What to do about it, or nothing.
        hint: &'static str,
        /// The kernel's reason, with the verifier's log.
        #[source]
        source: aya::programs::ProgramError,
    },
    /// The kernel does not tell about a program that it has loaded.
    #[error("ask the kernel about program {program}")]
    Told {
        /// Its name.
        program: String,
        /// The kernel's reason.
        #[source]
        source: aya::programs::ProgramError,
    },
    /// The object lacks a program or a map that this build expects.
    #[error("the BPF object has no {kind} {name}: object and binary are of different builds, run `cargo xtask build`")]
    Missing {
        /// `program` or `map`.
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// A program could not be attached.
    #[error("attach {program} to {interface}{hint}")]
    Attach {
        /// Name of the program.
        program: &'static str,
        /// Name of the interface.
        interface: String,
        /// What to do about it, or nothing.
        hint: &'static str,
        /// The kernel's reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The clsact filter of a program could not be found or taken away.
    #[error("{action} the filter {program} of {interface}")]
    Filter {
        /// What was tried.
        action: &'static str,
        /// Name of the program.
        program: &'static str,
        /// Name of the interface.
        interface: String,
        /// The kernel's reason.
        #[source]
        source: std::io::Error,
    },
    /// `--hook xdp` asks for what a device cannot do.
    #[error("{interface} is not for XDP: {reason}; `--hook tc` does without")]
    UnfitForXdp {
        /// Name of the interface.
        interface: String,
        /// Why.
        reason: String,
    },
    /// The kernel does not tell about a device.
    #[error("find out what {interface} can do for XDP")]
    Device {
        /// Name of the interface.
        interface: String,
        /// The kernel's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file of the pin directory could not be handled.
    #[error("{action} {}", path.display())]
    Pin {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is no datapath for this namespace.
    #[error("no datapath is installed for this namespace (looked in {}): start `egress-router run` or `apply` first", path.display())]
    NotInstalled {
        /// The pin directory.
        path: PathBuf,
    },
    /// A pinned map is not what this build needs.
    #[error("pinned map {} has {field} {found}, this build needs {wanted}: run `egress-router delete` first", path.display())]
    Incompatible {
        /// The pin.
        path: PathBuf,
        /// What differs.
        field: &'static str,
        /// As it is.
        found: u32,
        /// As it should be.
        wanted: u32,
    },
    /// A map could not be read or written.
    #[error("{action} map {map}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// Name of the map.
        map: &'static str,
        /// The kernel's reason.
        #[source]
        source: aya::maps::MapError,
    },
    /// The flow table could not be mapped into memory.
    #[error("map {} into memory", map::FLOWS)]
    MapFlows {
        /// The kernel's reason.
        #[source]
        source: std::io::Error,
    },
    /// More addresses than a mark can name.
    #[error("{interface} has {count} addresses, at most {limit} can be used")]
    TooManyAddresses {
        /// Name of the interface.
        interface: String,
        /// How many it has.
        count: usize,
        /// How many are possible.
        limit: u32,
    },
    /// More rules than the table holds.
    #[error("{count} rules do not fit: at most {limit} are possible")]
    TooManyRules {
        /// How many there are.
        count: usize,
        /// How many are possible.
        limit: u32,
    },
}

/// What an operating system error of a BPF call usually means.
pub(super) fn hint(error: &(dyn std::error::Error + 'static)) -> &'static str {
    let mut cause = Some(error);
    while let Some(this) = cause {
        if let Some(io) = this.downcast_ref::<std::io::Error>() {
            return match io.raw_os_error() {
                Some(nix::libc::EPERM) => ": not permitted, needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (run as root)",
                Some(nix::libc::ENOSYS) => ": this kernel has no BPF (CONFIG_BPF_SYSCALL)",
                Some(nix::libc::ENOMEM) => ": not enough memory, lower --flows or raise the memory limit",
                Some(nix::libc::ENODEV) => ": the interface is gone",
                _ => "",
            };
        }
        cause = this.source();
    }
    ""
}
