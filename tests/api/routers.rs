//! Routers that an API describes: packets go where kubectl says, and the conditions say how that went.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use egress_lab::address::{ROUTER, SERVER_1, SERVER_2, SNAT, client};
use egress_lab::endpoint::any_port;
use egress_lab::router::binary;
use egress_lab::udp::{self, UdpServer};
use egress_lab::wait::wait_for;
use egress_lab::{Family, Lab, Options, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::kubectl::Kubectl;
use crate::server::Server;

const WITHIN: Duration = Duration::from_secs(60);

/// A lab whose router's pins go when it does.
struct Place {
    lab: Lab,
    bpffs: PathBuf,
}

impl Place {
    fn new() -> Self {
        let lab = Lab::build(&Options::default()).unwrap();
        let bpffs = PathBuf::from("/sys/fs/bpf").join(lab.router.name());
        Self { lab, bpffs }
    }

    fn arguments(&self) -> Vec<String> {
        let bpffs = self.bpffs.display().to_string();
        ["--master-netns", self.lab.node.name(), "--bpffs", &bpffs].map(str::to_owned).to_vec()
    }

    /// Whom the server of a datagram to the router saw; none if nothing came back.
    fn server_of_a_datagram(&self) -> Option<SocketAddr> {
        let to = SocketAddr::new(ROUTER.ip(Family::V4), 7000);
        let from = any_port(client(0).ip(Family::V4));
        let attempt = udp::exchange(&self.lab.client, from, to, b"hello", Duration::from_millis(500));
        let seen = attempt.result.ok()?;
        assert_eq!(seen.source.ip(), SNAT.ip(Family::V4));
        Some(seen.server)
    }

    /// Waits until datagrams reach a server.
    fn reaches(&self, server: SocketAddr) {
        let what = format!("datagrams to reach {server}");
        wait_until(&what, WITHIN, || self.server_of_a_datagram() == Some(server)).unwrap();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut delete = Command::new(binary().unwrap());
        delete.args(["delete", "--netns", self.lab.router.name()]).args(self.arguments());
        let _nothing_left = delete.output();
    }
}

fn servers(lab: &Lab) -> [UdpServer; 2] {
    [SERVER_1, SERVER_2].map(|host| {
        let address = SocketAddr::new(host.ip(Family::V4), 7000);
        wait_for("the port to be free", WITHIN, || UdpServer::start(lab.server(host).unwrap(), address).ok()).unwrap()
    })
}

fn manifest() -> String {
    format!(
        "apiVersion: network.operator.openshift.io/v1\nkind: EgressRouter\nmetadata:\n  name: r\nspec:\n  addresses:\n  - ip: \
         {}/24\n    gateway: 192.168.12.1\n  redirect:\n    redirectRules:\n    - port: 7000\n      protocol: UDP\n      \
         destinationIP: {}\n",
        SNAT.v4, SERVER_1.v4
    )
}

fn to_server_2() -> String {
    format!(
        "[{{\"op\":\"replace\",\"path\":\"/spec/redirect/redirectRules/0/destinationIP\",\"value\":\"{}\"}}]",
        SERVER_2.v4
    )
}

#[test]
fn a_served_router_does_what_kubectl_says() {
    let place = Place::new();
    let servers = servers(&place.lab);
    let run = format!("conf/r={}", place.lab.router.name());
    let mut arguments = vec!["--run".to_owned(), run, "--on-exit".to_owned(), "remove".to_owned()];
    arguments.extend(place.arguments());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let server = Server::start(&arguments);
    let kubectl = Kubectl::new(&server);

    kubectl.says(&["apply", "-f", "-"], &manifest(), "created");
    kubectl.says(&["wait", "--for=condition=Available", "egressrouter/r", "--timeout=60s"], "", "condition met");
    place.reaches(servers[0].address());
    kubectl.says(&["get", "egressrouters"], "", "Available   True");

    kubectl.says(&["patch", "egressrouter", "r", "--type=json", "-p", &to_server_2()], "", "patched");
    place.reaches(servers[1].address());

    // What cannot work is said, and what worked goes on.
    let unusable = "{\"spec\":{\"addresses\":[{\"ip\":\"192.168.12.99\"}]}}";
    kubectl.says(&["patch", "egressrouter", "r", "--type=merge", "-p", unusable], "", "patched");
    kubectl.says(&["wait", "--for=condition=Degraded", "egressrouter/r", "--timeout=60s"], "", "condition met");
    place.reaches(servers[1].address());
    // And in the events, beside what was before.
    let described = |wanted: &str| {
        let what = format!("kubectl describe to say {wanted:?}");
        wait_until(&what, WITHIN, || kubectl.ok(&["describe", "egressrouter", "r"]).contains(wanted)).unwrap();
    };
    described("Degraded is True: ");
    described("Available is True: ");
    kubectl.says(&["apply", "-f", "-"], &manifest(), "configured");
    kubectl.says(&["wait", "--for=condition=Degraded=False", "egressrouter/r", "--timeout=60s"], "", "condition met");
    place.reaches(servers[0].address());

    kubectl.says(&["delete", "egressrouter", "r"], "", "deleted");
    wait_until("the router to be gone", WITHIN, || place.server_of_a_datagram().is_none()).unwrap();
    kubectl.says(&["apply", "-f", "-"], &manifest(), "created");
    kubectl.says(&["wait", "--for=condition=Available", "egressrouter/r", "--timeout=60s"], "", "condition met");
    place.reaches(servers[0].address());
}

/// `egress-router run --api`. Dropping it ends it.
struct Agent(Child);

impl Agent {
    fn start(place: &Place, server: &Server) -> Self {
        let mirror = server.directory().join("mirror");
        let mut command = Command::new(binary().unwrap());
        command
            .args(["run", "--router", "conf/r", "--netns", place.lab.router.name(), "--log-level", "warn"])
            .arg("--api")
            .arg(server.kubeconfig())
            .arg("--mirror")
            .arg(mirror)
            .args(place.arguments())
            .stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn terminate(mut self) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGTERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

#[test]
fn an_agent_survives_its_api() {
    let place = Place::new();
    let servers = servers(&place.lab);
    let mut server = Server::start(&["--history", "1"]);
    let kubectl = |server: &Server, arguments: &[&str], stdin: &str, wanted: &str| {
        Kubectl::new(server).says(arguments, stdin, wanted);
    };
    let agent = Agent::start(&place, &server);
    kubectl(&server, &["apply", "-f", "-"], &manifest(), "created");
    place.reaches(servers[0].address());
    kubectl(&server, &["wait", "--for=condition=Available", "egressrouter/r", "--timeout=60s"], "", "condition met");

    // The API goes away: packets go on, also through a new agent.
    server.kill();
    place.reaches(servers[0].address());
    agent.terminate();
    let agent = Agent::start(&place, &server);
    place.reaches(servers[0].address());

    // It comes back, has forgotten the history that the agent knows of, and is followed again.
    server.launch();
    for index in 0..3 {
        let label = format!("x={index}");
        kubectl(&server, &["label", "egressrouter", "r", "--overwrite", &label], "", "labeled");
        std::thread::sleep(Duration::from_millis(700));
    }
    kubectl(&server, &["patch", "egressrouter", "r", "--type=json", "-p", &to_server_2()], "", "patched");
    place.reaches(servers[1].address());
    agent.terminate();
}
