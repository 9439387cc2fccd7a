//! Routers that an API describes: packets of both families go where kubectl says, and the conditions say how that went.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use egress_lab::address::{GATEWAY, Host, ROUTER, SERVER_1, SERVER_2, SNAT, client};
use egress_lab::endpoint::any_port;
use egress_lab::router::binary;
use egress_lab::udp::{self, UdpServer};
use egress_lab::wait::wait_for;
use egress_lab::{Family, Lab, Options, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tempfile::TempDir;

use crate::kubectl::Kubectl;
use crate::server::Server;

const WITHIN: Duration = Duration::from_secs(60);
/// The port of the router and of the servers.
const PORT: u16 = 7000;

/// A lab with its servers, whose router's pins go when it does.
struct Place {
    lab: Lab,
    bpffs: PathBuf,
    _servers: Vec<UdpServer>,
}

impl Place {
    fn new() -> Self {
        let lab = Lab::build(&Options::default()).unwrap();
        let bpffs = PathBuf::from("/sys/fs/bpf").join(lab.router.name());
        let hosts = [SERVER_1, SERVER_2].into_iter();
        let addresses = hosts.flat_map(|host| host.both().map(|ip| (host, SocketAddr::new(ip, PORT))));
        let start = |(host, address)| {
            let start = || UdpServer::start(lab.server(host).unwrap(), address).ok();
            wait_for("the port to be free", WITHIN, start).unwrap()
        };
        let servers = addresses.map(start).collect();
        Self { lab, bpffs, _servers: servers }
    }

    fn arguments(&self) -> Vec<String> {
        let bpffs = self.bpffs.display().to_string();
        ["--master-netns", self.lab.node.name(), "--bpffs", &bpffs].map(str::to_owned).to_vec()
    }

    /// Which server a datagram to the router reached; none if nothing came back.
    fn server_of_a_datagram(&self, family: Family) -> Option<IpAddr> {
        let to = SocketAddr::new(ROUTER.ip(family), PORT);
        let from = any_port(client(0).ip(family));
        let attempt = udp::exchange(&self.lab.client, from, to, b"hello", Duration::from_millis(500));
        let seen = attempt.result.ok()?;
        assert_eq!(seen.source.ip(), SNAT.ip(family));
        Some(seen.server.ip())
    }

    /// Waits until datagrams of each family reach a server, or none.
    fn reaches(&self, server: Option<Host>) {
        for family in Family::ALL {
            let wanted = server.map(|host| host.ip(family));
            let what = format!("{family} datagrams to reach {wanted:?}");
            wait_until(&what, WITHIN, || self.server_of_a_datagram(family) == wanted).unwrap();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut delete = Command::new(binary().unwrap());
        delete.args(["delete", "--netns", self.lab.router.name()]).args(self.arguments());
        let _nothing_left = delete.output();
    }
}

/// A router of both families whose rules lead to a server.
fn manifest(server: Host) -> String {
    let rules = server.both().map(|ip| json!({"port": PORT, "protocol": "UDP", "destinationIP": ip}));
    json!({
        "apiVersion": "network.operator.openshift.io/v1", "kind": "EgressRouter", "metadata": {"name": "r"},
        "spec": {
            // What has defaults, too: with servers before 1.25 kubectl itself asks for what the schema requires.
            "mode": "Redirect",
            "networkInterface": {"macvlan": {"mode": "Bridge"}},
            "addresses": [
                {"ip": format!("{}/24", SNAT.v4), "gateway": GATEWAY.v4},
                {"ip": format!("{}/64", SNAT.v6), "gateway": GATEWAY.v6},
            ],
            "redirect": {"redirectRules": rules},
        },
    })
    .to_string()
}

/// The JSON patch that makes the rules lead to a server.
fn to(server: Host) -> String {
    let rules = server.both().into_iter().enumerate();
    let replace = |(index, ip): (usize, IpAddr)| {
        let path = format!("/spec/redirect/redirectRules/{index}/destinationIP");
        json!({"op": "replace", "path": path, "value": ip})
    };
    rules.map(replace).collect::<serde_json::Value>().to_string()
}

/// A specification's life, as who writes it sees it by kubectl, and as clients see it by their packets.
fn does_what_kubectl_says(place: &Place, kubectl: &Kubectl) {
    let turned = |condition: &str| {
        let condition = format!("--for=condition={condition}");
        kubectl.says(&["wait", &condition, "egressrouter/r", "--timeout=60s"], "", "condition met");
    };
    kubectl.says(&["apply", "-f", "-"], &manifest(SERVER_1), "created");
    turned("Available");
    place.reaches(Some(SERVER_1));
    kubectl.says(&["get", "egressrouters"], "", "Available   True");

    kubectl.says(&["patch", "egressrouter", "r", "--type=json", "-p", &to(SERVER_2)], "", "patched");
    place.reaches(Some(SERVER_2));

    // What cannot work is said, and what worked goes on.
    let unusable = "{\"spec\":{\"addresses\":[{\"ip\":\"192.168.12.99\"}]}}";
    kubectl.says(&["patch", "egressrouter", "r", "--type=merge", "-p", unusable], "", "patched");
    turned("Degraded");
    place.reaches(Some(SERVER_2));
    // And in the events, beside what was before.
    let described = |wanted: &str| {
        let what = format!("kubectl describe to say {wanted:?}");
        wait_until(&what, WITHIN, || kubectl.ok(&["describe", "egressrouter", "r"]).contains(wanted)).unwrap();
    };
    described("Degraded is True: ");
    described("Available is True: ");
    kubectl.says(&["apply", "-f", "-"], &manifest(SERVER_1), "configured");
    turned("Degraded=False");
    place.reaches(Some(SERVER_1));

    kubectl.says(&["delete", "egressrouter", "r"], "", "deleted");
    place.reaches(None);
    kubectl.says(&["apply", "-f", "-"], &manifest(SERVER_1), "created");
    turned("Available");
    place.reaches(Some(SERVER_1));
}

#[test]
fn a_served_router_does_what_kubectl_says() {
    let place = Place::new();
    let run = format!("conf/r={}", place.lab.router.name());
    let mut arguments = vec!["--run".to_owned(), run, "--on-exit".to_owned(), "remove".to_owned()];
    arguments.extend(place.arguments());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let server = Server::start(&arguments);
    does_what_kubectl_says(&place, &Kubectl::new(&server));
}

/// `egress-router run --api` for the router `r` of kubectl's API. Dropping it kills it.
struct Agent(Child);

impl Agent {
    fn start(place: &Place, kubectl: &Kubectl) -> Self {
        Self::with(place, kubectl, "mirror", &[])
    }

    fn with(place: &Place, kubectl: &Kubectl, mirror: &str, arguments: &[&str]) -> Self {
        let router = format!("{}/r", kubectl.namespace());
        let mut command = Command::new(binary().unwrap());
        command
            .args(["run", "--router", &router, "--netns", place.lab.router.name(), "--log-level", "warn"])
            .arg("--api")
            .arg(kubectl.kubeconfig())
            .arg("--mirror")
            .arg(kubectl.home().join(mirror))
            .args(arguments)
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
    let mut server = Server::start(&["--history", "1"]);
    let kubectl = Kubectl::new(&server);
    let agent = Agent::start(&place, &kubectl);
    kubectl.says(&["apply", "-f", "-"], &manifest(SERVER_1), "created");
    place.reaches(Some(SERVER_1));
    kubectl.says(&["wait", "--for=condition=Available", "egressrouter/r", "--timeout=60s"], "", "condition met");

    // The API goes away: packets go on, also through a new agent.
    server.kill();
    place.reaches(Some(SERVER_1));
    agent.terminate();
    let agent = Agent::start(&place, &kubectl);
    place.reaches(Some(SERVER_1));

    // It comes back, has forgotten the history that the agent knows of, and is followed again.
    server.launch();
    for index in 0..3 {
        let label = format!("x={index}");
        kubectl.says(&["label", "egressrouter", "r", "--overwrite", &label], "", "labeled");
        std::thread::sleep(Duration::from_millis(700));
    }
    kubectl.says(&["patch", "egressrouter", "r", "--type=json", "-p", &to(SERVER_2)], "", "patched");
    place.reaches(Some(SERVER_2));
    agent.terminate();
}

#[test]
fn two_agents_that_work_for_one_object_do_not_write_its_status_in_turns_for_ever() {
    // Two networks: neither hears the other, as when one network has fallen in two.
    let (one, other) = (Place::new(), Place::new());
    let server = Server::start(&[]);
    let kubectl = Kubectl::new(&server);
    kubectl.says(&["apply", "-f", "-"], &manifest(SERVER_1), "created");
    let agents = [(&one, "one"), (&other, "other")].map(|(place, mirror)| {
        let agent = Agent::with(place, &kubectl, mirror, &["--standby"]);
        place.reaches(Some(SERVER_1));
        agent
    });
    let version = || -> u64 {
        kubectl.ok(&["get", "egressrouter", "r", "-o", "jsonpath={.metadata.resourceVersion}"]).trim().parse().unwrap()
    };
    let (before, since) = (version(), Instant::now());
    wait_until("a while to pass", WITHIN, || since.elapsed() > Duration::from_secs(5)).unwrap();
    let writes = version() - before;
    assert!(writes < 10, "{writes} writes within 5 seconds");
    kubectl.says(&["get", "egressrouters"], "", "Available   True");
    agents.into_iter().for_each(Agent::terminate);
}

/// A namespace of a cluster that somebody else runs. What was made there goes when it does.
struct Cluster {
    kubectl: Kubectl,
    /// Whether the definition is ours to take away.
    defined: bool,
    _home: TempDir,
}

impl Cluster {
    /// The cluster of `EGRESS_KUBECONFIG`, which learns of the object if it does not know it.
    fn new() -> Self {
        let kubeconfig = std::env::var_os("EGRESS_KUBECONFIG").map(PathBuf::from);
        let kubeconfig = kubeconfig.expect("EGRESS_KUBECONFIG names the kubeconfig of a cluster's administrator");
        let home = tempfile::Builder::new().prefix("egress-api").tempdir().unwrap();
        let namespace = format!("egress-test-{}", std::process::id());
        let kubectl = Kubectl::of(&kubeconfig, home.path(), &namespace);
        let defined = !kubectl.run(&["get", "crd", DEFINITION], "").ok;
        let cluster = Self { kubectl, defined, _home: home };
        if defined {
            let definition = Command::new(binary().unwrap()).arg("crd").output().unwrap();
            let definition = String::from_utf8(definition.stdout).unwrap();
            cluster.kubectl.says(&["apply", "-f", "-"], &definition, "created");
            let established = ["wait", "--for=condition=Established", "--timeout=60s"];
            cluster.kubectl.ok(&[&established[..], &["crd", DEFINITION]].concat());
        }
        cluster.kubectl.ok(&["create", "namespace", &namespace]);
        cluster
    }

    /// kubectl as the agent, who may what docs/api.md says that he needs, and no more.
    fn as_agent(&self) -> Kubectl {
        let rule = |group: &str, resource: &str, verbs: &[&str]| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs});
        let rules = [
            rule("network.operator.openshift.io", "egressrouters", &["get", "list", "watch"]),
            rule("network.operator.openshift.io", "egressrouters/status", &["patch"]),
            rule("events.k8s.io", "events", &["create", "patch"]),
        ];
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "agent"}, "rules": rules,
        });
        self.kubectl.says(&["create", "-f", "-"], &role.to_string(), "created");
        self.kubectl.ok(&["create", "serviceaccount", "agent"]);
        let subject = format!("--serviceaccount={}:agent", self.kubectl.namespace());
        self.kubectl.ok(&["create", "rolebinding", "agent", "--role=agent", &subject]);
        let config = self.kubectl.ok(&["config", "view", "--raw", "--minify", "--flatten", "-o", "json"]);
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        config["users"][0]["user"] = json!({"token": self.kubectl.ok(&["create", "token", "agent"]).trim()});
        let kubeconfig = self.kubectl.home().join("agent.kubeconfig");
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        Kubectl::of(&kubeconfig, self.kubectl.home(), self.kubectl.namespace())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kubectl.run(&["delete", "egressrouters", "--all", "--wait=false"], "");
        self.kubectl.run(&["delete", "namespace", self.kubectl.namespace(), "--wait=false"], "");
        if self.defined {
            self.kubectl.run(&["delete", "crd", DEFINITION, "--wait=false"], "");
        }
    }
}

const DEFINITION: &str = "egressrouters.network.operator.openshift.io";

/// A cluster's own API server is followed as ours is: by an agent that is killed, too.
#[test]
#[ignore = "needs a cluster: EGRESS_KUBECONFIG=FILE cargo xtask test api -- --ignored real_cluster"]
fn an_agent_of_a_real_cluster_does_what_kubectl_says() {
    let (place, cluster) = (Place::new(), Cluster::new());
    let (kubectl, by_agent) = (&cluster.kubectl, &cluster.as_agent());
    let agent = Agent::start(&place, by_agent);
    does_what_kubectl_says(&place, kubectl);
    by_agent.fails(&["patch", "egressrouter", "r", "--type=merge", "-p", "{}"], "", "cannot patch resource");

    // What it wrote is in the status, where the specification's writers cannot write.
    let forged = "{\"status\":{\"conditions\":[]}}";
    kubectl.says(&["patch", "egressrouter", "r", "--type=merge", "-p", forged], "", "patched");
    let available = "jsonpath={.status.conditions[?(@.type==\"Available\")].status}";
    kubectl.says(&["get", "egressrouter", "r", "-o", available], "", "True");
    let by = "jsonpath={.metadata.managedFields[?(@.manager==\"egress-router\")].operation}";
    kubectl.says(&["get", "egressrouter", "r", "--show-managed-fields", "-o", by], "", "Update");

    // Killed: packets go on. Started again, it takes up what was said meanwhile.
    drop(agent);
    place.reaches(Some(SERVER_1));
    kubectl.says(&["patch", "egressrouter", "r", "--type=json", "-p", &to(SERVER_2)], "", "patched");
    place.reaches(Some(SERVER_1));
    let agent = Agent::start(&place, by_agent);
    place.reaches(Some(SERVER_2));
    kubectl.says(&["wait", "--for=condition=Available", "egressrouter/r", "--timeout=60s"], "", "condition met");
    agent.terminate();
}
