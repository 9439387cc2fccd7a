//! `--metrics`: figures that say what happened, to a real Prometheus too; and the dashboard and the alerts ask for nothing
//! that is not exported.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use egress_lab::address::{SERVER_1, SERVER_2};
use egress_lab::{Family, Options, wait_until};
use serde_json::Value;

use crate::rig::{Rig, Spec, TIMEOUT, anyone, at};
use crate::system::run;

/// An address that nobody listens on.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// Status and body of a page.
pub(crate) fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

struct Served {
    rig: Rig,
    address: SocketAddr,
}

impl Served {
    fn start(spec: &Spec) -> Self {
        let address = free_address();
        let rig = Rig::with(&Options::default(), spec, &["--metrics", &address.to_string()]);
        Self { rig, address }
    }

    fn figures(&self) -> String {
        let (status, body) = get(self.address, "/metrics");
        assert_eq!(status, 200);
        assert!(body.ends_with("# EOF\n"), "{body}");
        body
    }

    /// The value of a series, by its name and labels as written.
    fn figure(&self, series: &str) -> f64 {
        let figures = self.figures();
        let value = figures.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {series} in\n{figures}")).parse().unwrap()
    }
}

#[test]
fn figures_say_what_happened() {
    let spec = Spec::new().udp(7000, SERVER_1, None).tcp(80, SERVER_1, 8080).fallback(SERVER_2.ip(Family::V4));
    let served = Served::start(&spec);
    let rig = &served.rig;
    assert_eq!((get(served.address, "/healthz").0, get(served.address, "/readyz").0), (200, 200));
    assert_eq!(get(served.address, "/elsewhere").0, 404);
    let udp = |direction: &str| format!("{{family=\"IPv4\",protocol=\"UDP\",port=\"7000\",direction=\"{direction}\"}}");
    let rule = "{family=\"IPv4\",protocol=\"UDP\",port=\"7000\"}";
    assert_eq!(served.figure(&format!("egress_router_rule_flows{rule}")), 0.0);

    let _server = rig.udp_server(at(SERVER_1, Family::V4, 7000));
    let (client, _) = rig.udp(anyone(Family::V4), 7000);
    for _ in 0..9 {
        client.exchange(b"more", TIMEOUT).result.unwrap();
    }
    let (_second, _) = rig.udp(anyone(Family::V4), 7000);
    assert_eq!(served.figure(&format!("egress_router_rule_packets_total{}", udp("request"))), 11.0);
    assert_eq!(served.figure(&format!("egress_router_rule_packets_total{}", udp("reply"))), 11.0);
    assert_eq!(served.figure(&format!("egress_router_rule_flows{rule}")), 2.0);
    assert_eq!(served.figure(&format!("egress_router_rule_flows_opened_total{rule}")), 2.0);
    assert_eq!(served.figure("egress_router_flows"), 2.0);
    let ports = format!(
        "egress_router_ports_used{{protocol=\"UDP\",source=\"192.168.12.99\",destination=\"{}:7000\"}}",
        SERVER_1.v4
    );
    assert_eq!(served.figure(&ports), 2.0);
    let info = format!(
        "egress_router_rule_info{{family=\"IPv4\",protocol=\"TCP\",port=\"80\",destination=\"{}\",destination_port=\"8080\"}}",
        SERVER_1.v4
    );
    assert_eq!(served.figure(&info), 1.0);
    // The rule goes, its flows stay and count on.
    rig.router.edit(&Spec::new().tcp(80, SERVER_1, 8080).yaml()).unwrap();
    wait_until("the edit to be in force", TIMEOUT, || served.figure("egress_router_applies_total") == 2.0).unwrap();
    client.exchange(b"more", TIMEOUT).result.unwrap();
    assert_eq!(served.figure(&format!("egress_router_rule_packets_total{}", udp("request"))), 12.0);

    rig.router.edit("kind: nonsense\n").unwrap();
    wait_until("the edit to be refused", TIMEOUT, || served.figure("egress_router_edits_refused_total") == 1.0)
        .unwrap();
    assert_eq!(served.figure("egress_router_fault{reason=\"SpecificationInvalid\"}"), 1.0);
    assert_eq!(get(served.address, "/readyz").0, 200, "the last good specification is in force");
    rig.node.sysctl(["net.ipv6.conf.up0.keep_addr_on_down=1"]).unwrap();
    rig.node.ip(["link", "set", "up0", "down"]).unwrap();
    wait_until("the router not to be ready", TIMEOUT, || get(served.address, "/readyz").0 == 503).unwrap();
    assert_eq!(served.figure("egress_router_interface_carrier{interface=\"net1\",side=\"external\"}"), 0.0);
    assert_eq!(get(served.address, "/healthz").0, 200);
}

#[test]
fn an_address_that_is_taken_is_named() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut rig = Rig::prepare(&Options::default(), &Spec::new(), &["--metrics", &address]);
    let error = format!("{:#}", rig.router.start().unwrap_err());
    assert!(error.contains(&format!("serve metrics on {address}: Address already in use")), "{error}");
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// `prometheus` or `promtool`: on the path, else where `cargo xtask test` has unpacked them.
fn tool(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let unpacked = project().join("target/tools/prometheus/usr/bin");
    let mut places = std::env::split_paths(&path).chain([unpacked]).map(|dir| dir.join(name));
    places.find(|file| file.is_file()).unwrap_or_else(|| panic!("no {name}: `cargo xtask test netns` fetches it"))
}

/// Every name that begins like ours, in any text.
fn names(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text.split(|c: char| !word(c)).filter(|word| word.starts_with("egress_router_"));
    words.map(str::to_owned).collect()
}

fn exported(figures: &str) -> BTreeSet<String> {
    let types = figures.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.to_owned() }).collect()
}

#[test]
fn dashboard_and_alerts_ask_for_what_is_exported() {
    let served = Served::start(&Spec::new().udp(7000, SERVER_1, None));
    let exported = exported(&served.figures());
    let deploy = project().join("deploy");
    for file in ["prometheus/rules.yaml", "prometheus/rules_test.yaml", "grafana/egress-router.json"] {
        let text = fs::read_to_string(deploy.join(file)).unwrap();
        let asked = names(&text);
        assert!(asked.len() > 5, "{file}: {asked:?}");
        let missing: Vec<_> = asked.difference(&exported).collect();
        assert!(missing.is_empty(), "{file} asks for {missing:?}, which are not among {exported:?}");
    }
    let dashboard: Value =
        serde_json::from_slice(&fs::read(deploy.join("grafana/egress-router.json")).unwrap()).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 10);
    let reasons =
        ["MasterDown", "GatewayUnreachable"].map(|reason| format!("egress_router_fault{{reason=\"{reason}\"}}"));
    let figures = served.figures();
    assert!(reasons.iter().all(|series| figures.contains(series)), "{figures}");
}

#[test]
fn promtool_approves_of_the_alerts_and_they_fire() {
    let dir = project().join("deploy/prometheus");
    let said = run(Command::new(tool("promtool")).current_dir(&dir).args(["check", "rules", "rules.yaml"]));
    assert!(said.assert_done().stdout.contains("SUCCESS"), "{said:?}");
    let said = run(Command::new(tool("promtool")).current_dir(&dir).args(["test", "rules", "rules_test.yaml"]));
    assert!(said.assert_done().stdout.contains("SUCCESS"), "{said:?}");
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_real_prometheus_scrapes_it() {
    let served = Served::start(&Spec::new().udp(7000, SERVER_1, None));
    let files = tempfile::tempdir().unwrap();
    let rules = project().join("deploy/prometheus/rules.yaml");
    let config = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{}]\nscrape_configs:\n\
         - {{job_name: router, static_configs: [{{targets: [\"{}\"]}}]}}\n",
        rules.display(),
        served.address
    );
    fs::write(files.path().join("prometheus.yml"), config).unwrap();
    let web = free_address();
    let prometheus = Command::new(tool("prometheus"))
        .current_dir(files.path())
        .arg("--config.file=prometheus.yml")
        .arg("--storage.tsdb.path=data")
        .arg(format!("--web.listen-address={web}"))
        .stdout(Stdio::null())
        .stderr(fs::File::create(files.path().join("log")).unwrap())
        .spawn()
        .unwrap();
    let _prometheus = Running(prometheus);
    let log = || fs::read_to_string(files.path().join("log")).unwrap();
    wait_until("Prometheus to listen", TIMEOUT, || TcpStream::connect(web).is_ok())
        .unwrap_or_else(|error| panic!("{error:#}\n{}", log()));
    let query = |expression: &str| -> Vec<Value> {
        let (_, body) = get(web, &format!("/api/v1/query?query={expression}"));
        let answer: Value = serde_json::from_str(&body).unwrap_or_default();
        answer["data"]["result"].as_array().cloned().unwrap_or_default()
    };
    wait_until("the router to be scraped", TIMEOUT, || !query("egress_router_condition").is_empty())
        .unwrap_or_else(|error| panic!("{error:#}\n{}", log()));
    let available = query("egress_router_condition%7Bcondition%3D%22Available%22%7D");
    assert_eq!(available[0]["value"][1], "1", "{available:?}");
    assert_eq!(query("up")[0]["value"][1], "1");
    wait_until("the rules to be evaluated", TIMEOUT, || {
        let (_, body) = get(web, "/api/v1/rules");
        let answer: Value = serde_json::from_str(&body).unwrap_or_default();
        let rules = answer["data"]["groups"][0]["rules"].as_array().cloned().unwrap_or_default();
        rules.len() > 8 && rules.iter().all(|rule| rule["health"] == "ok" && rule["lastError"].is_null())
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", get(web, "/api/v1/rules").1, log()));
    wait_until("a second scrape", Duration::from_secs(20), || {
        query("count_over_time(egress_router_flows%5B1m%5D)").first().is_some_and(|one| one["value"][1] != "1")
    })
    .unwrap();
}
