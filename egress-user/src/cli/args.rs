//! The arguments of every command, parsed to types at the edge.

use std::ffi::OsStr;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::builder::TypedValueParser as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use egress_ebpf::event::MAX_RATE;
use ipnet::IpNet;

use super::flows::{FlowOrder, RuleOfFlow};
use super::output::Format;
use super::serve::{Crd, Serve};
use super::trace::Traced;
use super::values::{Confine, ExistingFlows, FastPath, Hook, LocalPort, LogLevel, Netns, OnExit, PortRange, Timeout};
use crate::source::Access;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  a specification is wrong
  2  the command line is wrong
  3  the system refused, or is not as it has to be";

const EXAMPLES: &str = "\
Examples:
  egress-router validate router.yaml
  egress-router plan --spec router.yaml --netns router
  egress-router run --spec router.yaml
  egress-router flows -o json";

/// Redirects connections to external hosts, from stable source addresses, as an EgressRouter specification says.
#[derive(Debug, Parser)]
#[command(name = "egress-router", version, max_term_width = 100, after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// Least level of the messages on standard error.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "LEVEL")]
    pub log_level: LogLevel,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check specifications and show every problem in its place.
    #[command(after_help = "\
Examples:
  egress-router validate router.yaml other.json
  kubectl get egressrouter NAME -o yaml | egress-router validate -
  egress-router validate -o short router.yaml    (one line a problem, for editors)

Exits with 1 when there is an error, with 3 when a file cannot be read; warnings alone are no failure.")]
    Validate(Validate),

    /// Show what `apply` would change: the link, its routes, the rules.
    #[command(after_help = "\
Example:
  egress-router plan --spec router.yaml --netns router")]
    Plan(Plan),

    /// Apply a specification, keep it applied and follow the file's edits, until a signal.
    #[command(after_help = "\
Examples:
  egress-router run --spec router.yaml
  egress-router run --spec router.yaml --netns router --local-port tcp/9090 --on-exit remove
  egress-router run --api router.kubeconfig --router default/egress
  egress-router run --spec router.yaml --standby    (on each of two nodes: one works, the other takes over)

Prints `ready` (and tells systemd) once packets are translated. SIGHUP reads the file again; SIGINT and SIGTERM end it; SIGUSR1 makes the
log say more, SIGUSR2 as much as at the start.")]
    Run(Run),

    /// Apply a specification once and exit; what it set up goes on working.
    #[command(after_help = "\
Example:
  egress-router apply --spec router.yaml --netns router

Applying the same specification again changes nothing.")]
    Apply(Apply),

    /// Take away everything that `run` or `apply` set up; nothing there is fine too.
    #[command(after_help = "\
Example:
  egress-router delete --netns router")]
    Delete(Delete),

    /// Show the router as it is: its link, its routes, how many rules and flows, its counters.
    #[command(after_help = "\
Examples:
  egress-router status --netns router
  egress-router status --netns router -o json | jq .link.external.mac")]
    Status(Show),

    /// Show the rules in force.
    #[command(after_help = "\
Examples:
  egress-router rules --netns router
  egress-router rules --counts    (with what their live flows have counted)")]
    Rules(Rules),

    /// Show the live flows.
    #[command(after_help = "\
Examples:
  egress-router flows --netns router
  egress-router flows --client 10.128.0.0/14 --sort bytes --limit 10
  egress-router flows --rule fallback -o json")]
    Flows(Flows),

    /// Show how many packets were dropped, by reason.
    #[command(after_help = "\
Examples:
  egress-router drops --netns router
  egress-router drops --watch 1    (what is dropped each second, until a signal)")]
    Drops(Drops),

    /// Show the router at work: rates by rule, busiest flows and clients, drops.
    #[command(after_help = "\
Examples:
  egress-router top --netns router
  egress-router top --once    (one picture as text)

Keys: q ends, p pauses.")]
    Top(Top),

    /// Tell which rule a packet would hit, and why.
    #[command(after_help = "\
Examples:
  egress-router trace tcp/80 --from 10.128.0.1
  egress-router trace icmp --from 10.128.0.1 -o json
  egress-router trace udp/53 --from fd00:10::1 --spec router.yaml    (by a specification that is not applied)
  egress-router trace --live tcp/80 --from 10.128.0.1    (the packets themselves, as they pass)")]
    Trace(Trace),

    /// Turn the legacy router image's environment into a specification.
    #[command(after_help = "\
Examples:
  EGRESS_SOURCE=192.168.12.99/24 EGRESS_GATEWAY=192.168.12.1 EGRESS_DESTINATION=203.0.113.26 egress-router import-legacy
  egress-router import-legacy --source 192.168.12.99/24 --gateway 192.168.12.1 --destination \"$(cat destinations)\"

Accepts what the image accepted, and refuses with its words what it refused.")]
    ImportLegacy(ImportLegacy),

    /// Print the manual page, or write the pages of all commands.
    #[command(after_help = "\
Examples:
  egress-router man | man -l -
  egress-router man --directory /usr/local/share/man/man1")]
    Man(Man),

    /// Serve the EgressRouter API on this machine: for kubectl, without a cluster.
    #[command(after_help = "\
Example:
  egress-router serve --data /var/lib/egress-router --kubeconfig router.kubeconfig
  kubectl --kubeconfig router.kubeconfig apply -f router.yaml

Prints `ready` once it answers. The same manifests go to a cluster that has `egress-router crd`.")]
    Serve(Serve),

    /// Print the CustomResourceDefinition, for a cluster.
    #[command(after_help = "\
Example:
  egress-router crd | kubectl apply -f -")]
    Crd(Crd),

    /// Print a completion script for a shell.
    #[command(after_help = "\
Example:
  egress-router completions bash > /etc/bash_completion.d/egress-router")]
    Completions(Completions),
}

/// The command's name, for messages.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Validate(_) => "validate",
            Self::Plan(_) => "plan",
            Self::Run(_) => "run",
            Self::Apply(_) => "apply",
            Self::Delete(_) => "delete",
            Self::Status(_) => "status",
            Self::Rules(_) => "rules",
            Self::Flows(_) => "flows",
            Self::Drops(_) => "drops",
            Self::Top(_) => "top",
            Self::Trace(_) => "trace",
            Self::ImportLegacy(_) => "import-legacy",
            Self::Man(_) => "man",
            Self::Serve(_) => "serve",
            Self::Crd(_) => "crd",
            Self::Completions(_) => "completions",
        })
    }
}

/// Arguments of `validate`.
#[derive(Debug, Args)]
pub struct Validate {
    /// Files of YAML or JSON; `-` is standard input.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// How to show problems.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: ValidateFormat,
}

/// Form of `validate`'s report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ValidateFormat {
    /// With the offending text underlined.
    #[default]
    Text,
    /// One line a problem: `file:line:column: error: field: message`.
    Short,
    /// JSON.
    Json,
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub struct Plan {
    /// What is wanted.
    #[command(flatten)]
    pub spec: Spec,
    /// Where.
    #[command(flatten)]
    pub target: Target,
    /// Where the link's master is.
    #[command(flatten)]
    pub master: Master,
    /// How packets are translated.
    #[command(flatten)]
    pub datapath: Datapath,
    /// Form of the plan.
    #[command(flatten)]
    pub output: Output,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// What is wanted.
    #[command(flatten)]
    pub spec: Followed,
    /// Where.
    #[command(flatten)]
    pub target: Target,
    /// Where the link's master is.
    #[command(flatten)]
    pub master: Master,
    /// How packets are translated.
    #[command(flatten)]
    pub datapath: Datapath,

    /// Stand by: have the addresses only while no other router answers for them. For several agents of one specification, each
    /// on a node of its own. Not with --adopt: who stands by asks from the macvlan's master, and an adopted interface has none.
    #[arg(long, conflicts_with = "adopt", help_heading = "Agent")]
    pub standby: bool,

    /// What to leave behind at the end: `keep` lets the datapath go on without the agent.
    #[arg(long, value_enum, default_value_t, value_name = "WHAT", help_heading = "Agent")]
    pub on_exit: OnExit,

    /// File to write the router's status to, as JSON, whenever it changes.
    #[arg(long, value_name = "FILE", help_heading = "Agent")]
    pub status_file: Option<PathBuf>,

    /// File to log flows and drops to, a JSON line for each flow that began, each that ended, and each packet dropped.
    #[arg(long, value_name = "FILE", help_heading = "Agent")]
    pub flow_log: Option<PathBuf>,

    /// Log one flow in so many; drops are not sampled.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "flow_log", help_heading = "Agent",
        value_parser = clap::value_parser!(u32).range(1..))]
    pub flow_log_sample: u32,

    /// Most events a second of flows, and of drops, on each processor. What is left out is counted, and the log says so.
    #[arg(long, value_name = "N", default_value_t = 1000, requires = "flow_log", help_heading = "Agent",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_RATE)))]
    pub flow_log_rate: u32,

    /// `off` keeps capabilities, files and system calls that the agent does not need.
    #[arg(long, value_enum, default_value_t, value_name = "ON|OFF", help_heading = "Agent")]
    pub confine: Confine,

    /// Where to serve `/metrics` (OpenMetrics), `/healthz` and `/readyz`, as in 0.0.0.0:9180. In the router's own namespace
    /// the fallback leaves that port alone.
    #[arg(long, value_name = "ADDRESS:PORT", help_heading = "Agent")]
    pub metrics: Option<SocketAddr>,
}

/// Arguments of `apply`.
#[derive(Debug, Args)]
pub struct Apply {
    /// What is wanted.
    #[command(flatten)]
    pub spec: Spec,
    /// Where.
    #[command(flatten)]
    pub target: Target,
    /// Where the link's master is.
    #[command(flatten)]
    pub master: Master,
    /// How packets are translated.
    #[command(flatten)]
    pub datapath: Datapath,
}

/// Arguments of `delete`.
#[derive(Debug, Args)]
pub struct Delete {
    /// Where.
    #[command(flatten)]
    pub target: Target,
    /// Where the link's master is.
    #[command(flatten)]
    pub master: Master,
}

/// Arguments of the commands that show a router at work.
#[derive(Debug, Args)]
pub struct Show {
    /// Where.
    #[command(flatten)]
    pub target: Target,
    /// Form of the result.
    #[command(flatten)]
    pub output: Output,
}

/// Arguments of `rules`.
#[derive(Debug, Args)]
pub struct Rules {
    /// Where.
    #[command(flatten)]
    pub target: Target,
    /// Form of the result.
    #[command(flatten)]
    pub output: Output,

    /// Show what the live flows of each rule have counted, too.
    #[arg(long)]
    pub counts: bool,
}

/// Arguments of `flows`.
#[derive(Debug, Args)]
pub struct Flows {
    /// Where.
    #[command(flatten)]
    pub target: Target,
    /// Form of the result.
    #[command(flatten)]
    pub output: Output,
    /// Which.
    #[command(flatten)]
    pub filter: FlowFilter,
}

/// Which flows, in which order.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Selection")]
pub struct FlowFilter {
    /// Of this client, or of the clients of this network.
    #[arg(long, value_name = "IP[/LENGTH]", value_parser = super::flows::network)]
    pub client: Option<IpNet>,

    /// To this host, or to the hosts of this network.
    #[arg(long, value_name = "IP[/LENGTH]", value_parser = super::flows::network)]
    pub destination: Option<IpNet>,

    /// Of this protocol, by name or number.
    #[arg(long, value_name = "PROTOCOL")]
    pub protocol: Option<String>,

    /// To this port of the router.
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,

    /// Of this rule: its index in the specification, or `fallback`.
    #[arg(long, value_name = "INDEX|fallback")]
    pub rule: Option<RuleOfFlow>,

    /// In this state, as in tcp-established.
    #[arg(long, value_name = "STATE")]
    pub state: Option<String>,

    /// By what to order them.
    #[arg(long, value_enum, default_value_t, value_name = "BY")]
    pub sort: FlowOrder,

    /// Only the first so many.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

/// Arguments of `drops`.
#[derive(Debug, Args)]
pub struct Drops {
    /// Where.
    #[command(flatten)]
    pub target: Target,
    /// Form of the result.
    #[command(flatten)]
    pub output: Output,

    /// Show what was dropped meanwhile every so many seconds, until a signal.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
        value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub watch: Option<u32>,
}

/// Arguments of `top`.
#[derive(Debug, Args)]
pub struct Top {
    /// Where.
    #[command(flatten)]
    pub target: Target,

    /// Milliseconds between two pictures.
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(100..=60_000))]
    pub interval: u32,

    /// One picture as text, as where standard output is no terminal.
    #[arg(long)]
    pub once: bool,
}

/// Arguments of `trace`.
#[derive(Debug, Args)]
pub struct Trace {
    /// The packet, as in tcp/80, udp/53, icmp.
    #[arg(value_name = "PROTOCOL[/PORT]", required_unless_present = "live")]
    pub packet: Option<Traced>,

    /// The client, with its port where a live flow matters.
    #[arg(long, value_name = "IP[:PORT]", value_parser = super::trace::client, required_unless_present = "live")]
    pub from: Option<SocketAddr>,

    /// Show what becomes of the packets that pass, until a signal: those of this protocol and with this port and `--from`'s address
    /// on either side of the translation; all without. Packets of established flows take the long way meanwhile.
    #[arg(long, conflicts_with_all = ["spec", "to"])]
    pub live: bool,

    /// End after so many seconds.
    #[arg(long, value_name = "SECONDS", requires = "live", value_parser = clap::value_parser!(u32).range(1..))]
    pub during: Option<u32>,

    /// Most packets shown a second, of each processor.
    #[arg(long, value_name = "N", requires = "live", default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_RATE)))]
    pub rate: u32,

    /// The address that it is sent to [default: the router's]
    #[arg(long, value_name = "IP")]
    pub to: Option<IpAddr>,

    /// By this specification, instead of what is in force.
    #[arg(long, value_name = "FILE")]
    pub spec: Option<PathBuf>,

    /// Which router, when the file has several.
    #[arg(long, value_name = "[NAMESPACE/]NAME", requires = "spec")]
    pub router: Option<String>,

    /// Where.
    #[command(flatten)]
    pub target: Target,
    /// Form of the result.
    #[command(flatten)]
    pub output: Output,
}

/// Arguments of `import-legacy`.
#[derive(Debug, Args)]
pub struct ImportLegacy {
    /// IPv4 address that connections come from, with or without a prefix length.
    #[arg(long, env = "EGRESS_SOURCE", default_value = "", hide_default_value = true, value_name = "IP[/LENGTH]")]
    pub source: String,

    /// IPv4 address of the gateway.
    #[arg(long, env = "EGRESS_GATEWAY", default_value = "", hide_default_value = true, value_name = "IP")]
    pub gateway: String,

    /// Lines of `PORT PROTOCOL IP [REMOTE PORT]`, the last one may be a fallback `IP`.
    #[arg(long, env = "EGRESS_DESTINATION", default_value = "", hide_default_value = true, value_name = "LINES")]
    pub destination: String,

    /// Name of the router.
    #[arg(long, default_value = crate::spec::LEGACY_NAME)]
    pub name: String,
}

/// Arguments of `man`.
#[derive(Debug, Args)]
pub struct Man {
    /// Folder to write a page for each command to, instead of printing one.
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
}

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Which specification.
#[derive(Debug, Args)]
#[command(next_help_heading = "Specification")]
pub struct Spec {
    /// File with the EgressRouter, YAML or JSON.
    #[arg(id = "spec", long = "spec", value_name = "FILE")]
    pub file: PathBuf,

    /// Which router, when the file has several.
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    pub router: Option<String>,
}

/// Which specification, of a file or of an API.
#[derive(Debug, Args)]
#[command(next_help_heading = "Specification")]
pub struct Followed {
    /// File with the EgressRouter, YAML or JSON.
    #[arg(id = "spec", long = "spec", value_name = "FILE", required_unless_present = "api")]
    pub file: Option<PathBuf>,

    /// Follow an object of an API instead, and write its status: a kubeconfig, or `in-cluster`.
    #[arg(long, value_name = "KUBECONFIG|in-cluster", conflicts_with = "spec", requires = "router",
        value_parser = api_access)]
    pub api: Option<Access>,

    /// Which router, when the file has several; of an API always.
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    pub router: Option<String>,

    /// Directory for the last word of an API, which holds while it cannot be reached.
    #[arg(long, value_name = "DIR", default_value = "/run/egress-router/api")]
    pub mirror: PathBuf,
}

#[expect(clippy::unnecessary_wraps, reason = "the form of a value parser")]
fn api_access(text: &str) -> Result<Access, std::convert::Infallible> {
    Ok(if text == "in-cluster" { Access::InCluster } else { Access::Kubeconfig(PathBuf::from(text)) })
}

/// Which router of this machine.
#[derive(Debug, Args)]
#[command(next_help_heading = "Router")]
pub struct Target {
    /// The router's network namespace: a name, as of `ip netns`, or a path [default: the own one]
    #[arg(long, value_name = "NAME|PATH")]
    pub netns: Option<Netns>,

    /// The interface that clients come in by.
    #[arg(long, value_name = "NAME", default_value = "eth0", value_parser = interface_name())]
    pub cluster_interface: String,

    /// The interface that connections leave by; made where it does not exist.
    #[arg(long, value_name = "NAME", default_value = "net1", value_parser = interface_name())]
    pub external_interface: String,

    /// Directory for the pinned programs and tables, in a BPF file system. The routers of a machine share it.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/egress-router")]
    pub bpffs: PathBuf,
}

/// What the external interface is.
#[derive(Debug, Args)]
#[command(next_help_heading = "Link")]
pub struct Master {
    /// Use the external interface that is there, of whatever kind (a virtual function, a device of the host, a veth), instead
    /// of making a macvlan; it gets the specification's addresses, and stays when the router goes.
    #[arg(long, conflicts_with = "master_netns")]
    pub adopt: bool,

    /// Network namespace of the external interface's master [default: the host's, by way of process 1]
    #[arg(long, value_name = "NAME|PATH")]
    pub master_netns: Option<Netns>,
}

/// How packets are translated.
#[derive(Debug, Args)]
#[command(next_help_heading = "Datapath")]
pub struct Datapath {
    /// How the programs are attached.
    #[arg(long, value_enum, default_value_t)]
    pub hook: Hook,

    /// Most flows at a time. The tables' memory is taken at once.
    #[arg(long, value_name = "N", default_value_t = 65536,
        value_parser = clap::value_parser!(u32).range(64..=16 << 20))]
    pub flows: u32,

    /// Source ports to choose from where a client's own port is taken [default: as the kernel's NAT]
    #[arg(long, value_name = "LO-HI")]
    pub snat_ports: Option<PortRange>,

    /// A port of the router itself that the fallback must not take, as in tcp/9090; may be repeated.
    #[arg(long = "local-port", value_name = "PROTO/PORT")]
    pub local_ports: Vec<LocalPort>,

    /// How long a flow in a state may be idle, as in tcp-established=7200, or `auto` to take what the router namespace's
    /// connection tracking is set to; may be repeated [default: connection tracking's defaults]
    #[arg(long = "timeout", value_name = "STATE=SECONDS|auto")]
    pub timeouts: Vec<Timeout>,

    /// `off` lets the kernel's stack forward every packet, to compare, or where a filter there has to see them all.
    #[arg(long, value_enum, default_value_t, value_name = "ON|OFF")]
    pub fast_path: FastPath,

    /// What becomes of live flows whose rule changes: `keep` lets them go on to their old destination, `drain=SECONDS` for so
    /// long, `cut` ends them at once (TCP is reset, UDP told that the port is unreachable).
    #[arg(long, default_value = "keep", value_name = "keep|drain=SECONDS|cut")]
    pub existing_flows: ExistingFlows,
}

/// Form of a result.
#[derive(Debug, Args)]
pub struct Output {
    /// Form of the result.
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// Parses the name of a network interface by the same rule as the specification's master.
fn interface_name() -> impl clap::builder::TypedValueParser<Value = String> {
    clap::builder::OsStringValueParser::new().try_map(|text| {
        let text: &OsStr = &text;
        let name = text.to_str().ok_or_else(|| "not UTF-8".to_owned())?;
        crate::spec::check_interface_name(name)?;
        Ok::<_, String>(name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        let words = std::iter::once("egress-router").chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.command)
    }

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_of_run() {
        let Ok(Command::Run(run)) = parse("run --spec f") else { panic!("run") };
        assert_eq!(run.target.cluster_interface, "eth0");
        assert_eq!(run.target.external_interface, "net1");
        assert_eq!(run.target.bpffs, PathBuf::from("/sys/fs/bpf/egress-router"));
        assert_eq!((run.target.netns, run.master.master_netns), (None, None));
        assert_eq!((run.datapath.flows, run.datapath.hook), (65536, Hook::Auto));
        assert_eq!((run.on_exit, run.datapath.existing_flows), (OnExit::Keep, ExistingFlows::Keep));
        assert_eq!((run.spec.file, run.spec.router), (Some(PathBuf::from("f")), None));
    }

    #[test]
    fn a_router_of_an_api_is_named() {
        let Ok(Command::Run(run)) = parse("run --api in-cluster --router a/b") else { panic!("run") };
        assert_eq!((run.spec.api, run.spec.file), (Some(Access::InCluster), None));
        for line in
            ["run --api k", "run --api k --spec f --router a/b", "run --router a/b", "serve", "serve --data d --run x"]
        {
            assert!(parse(line).is_err_and(|error| error.exit_code() == 2), "{line:?}");
        }
        let Ok(Command::Serve(serve)) = parse("serve --data d --run a/b=ns --run a/c=/run/netns/x") else {
            panic!("serve")
        };
        assert_eq!((serve.routers.len(), serve.listen.port()), (2, 6443));
    }

    #[test]
    fn local_ports_add_up() {
        let line = "run --spec f --local-port tcp/9090 --local-port udp/53 --snat-ports 100-200 --flows 64";
        let Ok(Command::Run(run)) = parse(line) else { panic!("run") };
        assert_eq!(run.datapath.local_ports.len(), 2);
        assert_eq!(run.datapath.flows, 64);
        assert_eq!(run.datapath.snat_ports.map(|range| range.last().get()), Some(200));
    }

    #[test]
    fn what_one_command_takes_its_opposite_takes_too() {
        for verb in ["plan --spec f", "run --spec f", "apply --spec f", "delete"] {
            let line = format!("{verb} --netns r --master-netns /proc/1/ns/net --bpffs /b --external-interface x");
            assert!(parse(&line).is_ok(), "{line}");
        }
        for verb in ["status", "rules", "flows", "drops", "trace tcp/80 --from 10.0.0.1"] {
            assert!(parse(&format!("{verb} --bpffs /b -o json")).is_ok(), "{verb}");
        }
    }

    #[test]
    fn bad_lines_are_usage_errors() {
        let bad = [
            "",
            "run",
            "run --spec f --flows 63",
            "run --spec f --flows 16777217",
            "run --spec f --snat-ports 9",
            "run --spec f --local-port 80",
            "run --spec f --hook dpdk",
            "run --spec f --standby --adopt",
            "run --spec f --existing-flows drain",
            "run --spec f --cluster-interface a/b",
            "run --spec f --external-interface longer-than-fifteen",
            "apply",
            "validate",
            "rules -o text",
            "trace tcp --from 10.0.0.1",
            "trace tcp/80",
            "flows --client 10.0",
            "drops --watch 0",
            "completions",
            "unknown",
        ];
        for line in bad {
            assert!(parse(line).is_err_and(|error| error.exit_code() == 2), "{line:?}");
        }
    }
}
