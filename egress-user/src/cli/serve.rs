//! `serve` and `crd`: the API on this machine, and what teaches it to a cluster.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use clap::builder::RangedU64ValueParser;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

use super::args::{Datapath, Master, Target};
use super::output::{self, Format};
use super::values::{Netns, OnExit};
use crate::api::{self, Identity, Listening, Options, Tokens};

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Address and port.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:6443")]
    pub listen: SocketAddr,

    /// Let the API be reached from other machines: an address that is not loopback is refused without this.
    #[arg(long)]
    pub reachable: bool,

    /// Directory for the objects, and for the certificate and the token that are made.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,

    /// File of tokens, as kube-apiserver's: `token,user,uid,"group,group"` a line [default: one token, for everything, is
    /// made and kept in DIR/token]
    #[arg(long, value_name = "FILE", help_heading = "Access")]
    pub token_file: Option<PathBuf>,

    /// Answer who has no token, as `system:anonymous`, which may ask for health and version only.
    #[arg(long, help_heading = "Access")]
    pub anonymous: bool,

    /// Certificate, PEM [default: one is made and kept in DIR]
    #[arg(long, value_name = "FILE", requires = "tls_key", help_heading = "Access")]
    pub tls_cert: Option<PathBuf>,

    /// Its key, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "Access")]
    pub tls_key: Option<PathBuf>,

    /// Write a kubeconfig for this server to a file, instead of to standard output.
    #[arg(long, value_name = "FILE", help_heading = "Access")]
    pub kubeconfig: Option<PathBuf>,

    /// A namespace that exists; may be repeated [default: every namespace exists]
    #[arg(long = "namespace", value_name = "NAME")]
    pub namespaces: Vec<String>,

    /// Run a router of this API in a network namespace, in this process; may be repeated.
    #[arg(long = "run", value_name = "NAMESPACE/NAME=NETNS", help_heading = "Routers")]
    pub routers: Vec<RouterIn>,

    /// What routers leave behind at the end.
    #[arg(long, value_enum, default_value_t, value_name = "WHAT", help_heading = "Routers")]
    pub on_exit: OnExit,

    /// Directory for the pinned programs and tables of the routers.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/egress-router", help_heading = "Routers")]
    pub bpffs: PathBuf,

    /// Where the link's master is.
    #[command(flatten)]
    pub master: Master,
    /// How packets are translated.
    #[command(flatten)]
    pub datapath: Datapath,

    /// How long changes are remembered, for watches and pages that go on where they were.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub history: u64,

    /// Requests at a time, and writes that wait for the disk. More get 429, and are to try again after a second. Health,
    /// metrics and discovery are always answered.
    #[arg(long, value_name = "COUNT", default_value_t = 400, help_heading = "Limits",
        value_parser = limit())]
    pub max_requests_inflight: usize,

    /// Watches at a time, which do not count as requests. More get 429.
    #[arg(long, value_name = "COUNT", default_value_t = 16_384, help_heading = "Limits",
        value_parser = limit())]
    pub max_watches: usize,
}

/// Arguments of `crd`.
#[derive(Debug, Args)]
pub struct Crd {
    /// Form of the definition.
    #[arg(short, long, value_enum, default_value_t = Format::Yaml, value_name = "FORMAT")]
    pub output: Format,
}

/// Prints the definition.
pub(super) fn crd(args: &Crd) -> anyhow::Result<ExitCode> {
    output::value(&api::definition(), args.output)?;
    Ok(ExitCode::SUCCESS)
}

/// How many there may be of something at a time. What is let in has to fit into memory.
fn limit() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=65_536)
}

/// A router and the namespace that it is in.
#[derive(Clone, Debug)]
pub struct RouterIn {
    name: String,
    netns: Netns,
}

impl FromStr for RouterIn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, netns) = text.split_once('=').ok_or("write NAMESPACE/NAME=NETNS")?;
        Ok(Self { name: name.to_owned(), netns: netns.parse().map_err(|error| format!("{error}"))? })
    }
}

/// A router that this process runs.
pub(super) struct Served<'a> {
    /// `NAMESPACE/NAME`.
    pub(super) router: String,
    /// Where it is.
    pub(super) target: Target,
    /// How it works.
    pub(super) args: &'a Serve,
    /// How it reaches the API.
    pub(super) kubeconfig: PathBuf,
    /// Where its files are.
    pub(super) directory: PathBuf,
}

/// How long a router that could not begin waits before it tries again.
const AGAIN: Duration = Duration::from_secs(2);

/// Serves until a signal.
pub(super) fn run(args: &Serve) -> anyhow::Result<()> {
    if !args.listen.ip().is_loopback() && !args.reachable {
        bail!("{} can be reached from other machines: give --reachable if that is meant", args.listen);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("set up the runtime")?;
    let serving = runtime.block_on(prepare(args))?;
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for router in &args.routers {
            let (served, ended) = (serving.served(args, router), &ended);
            scope.spawn(move || keep_running(&served, ended));
        }
        let served = runtime.block_on(serving.serve());
        ended.store(true, Ordering::Relaxed);
        served
    })
}

/// Runs a router until a signal; what keeps it from beginning may pass.
fn keep_running(served: &Served<'_>, ended: &AtomicBool) {
    while let Err(failed) = super::commands::run_served(served) {
        error!("{}: {failed:#}", served.router);
        let again = Instant::now() + AGAIN;
        while Instant::now() < again {
            if ended.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A server with its certificate.
struct Serving {
    server: Listening,
    tls: Arc<rustls::ServerConfig>,
    data: PathBuf,
    agents: PathBuf,
}

async fn prepare(args: &Serve) -> anyhow::Result<Serving> {
    std::fs::create_dir_all(&args.data).with_context(|| format!("make {}", args.data.display()))?;
    let agent = api::new_token();
    let tokens = tokens(args)?.with_agent(&agent);
    let administrator = tokens.any_administrator().map(str::to_owned);
    let options = Options {
        data: args.data.clone(),
        history: Duration::from_secs(args.history),
        tokens,
        anonymous: args.anonymous,
        namespaces: args.namespaces.clone(),
        max_requests: args.max_requests_inflight,
        max_watches: args.max_watches,
    };
    let server = Listening::new(args.listen, options).await?;
    let address = server.address();
    let identity = match (&args.tls_cert, &args.tls_key) {
        (Some(certificate), Some(key)) => Identity::read(certificate, key)?,
        _ => Identity::of_directory(&args.data, address)?,
    };
    let tls = identity.server_config()?;
    let agents = args.data.join("agents.kubeconfig");
    api::write_private(&agents, identity.kubeconfig(address, &agent).as_bytes())?;
    let kubeconfig = identity.kubeconfig(address, administrator.as_deref().unwrap_or("TOKEN"));
    match &args.kubeconfig {
        Some(file) => api::write_private(file, kubeconfig.as_bytes())?,
        None => output::text(&kubeconfig)?,
    }
    info!(%address, data = %args.data.display(), "serving");
    output::text(if args.kubeconfig.is_some() { "ready\n" } else { "# ready\n" })?;
    Ok(Serving { server, tls, data: args.data.clone(), agents })
}

impl Serving {
    fn served<'a>(&self, args: &'a Serve, router: &RouterIn) -> Served<'a> {
        let target = Target {
            netns: Some(router.netns.clone()),
            cluster_interface: "eth0".to_owned(),
            external_interface: "net1".to_owned(),
            bpffs: args.bpffs.clone(),
        };
        let (kubeconfig, directory) = (self.agents.clone(), self.data.join("routers"));
        Served { router: router.name.clone(), target, args, kubeconfig, directory }
    }

    async fn serve(self) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("set up signal handlers")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("set up signal handlers")?;
        // Not under systemd is fine.
        let _no_manager = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        tokio::select! {
            () = self.server.run(self.tls) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        info!("ended");
        Ok(())
    }
}

/// The tokens of the file, or the one that was made, or a new one.
fn tokens(args: &Serve) -> anyhow::Result<Tokens> {
    if let Some(file) = &args.token_file {
        return Ok(Tokens::read(file)?);
    }
    let file = args.data.join("token");
    let token = match std::fs::read_to_string(&file) {
        Ok(token) => token.trim().to_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let token = api::new_token();
            api::write_private(&file, token.as_bytes())?;
            token
        }
        Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
    };
    Ok(Tokens::administrator(&token))
}
