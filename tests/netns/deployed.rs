//! The pod of `deploy/` at work, as a kubelet would have it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use egress_lab::address::{ROUTER, SNAT};
use egress_lab::router::Router;
use egress_lab::{Family, Lab, Options, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::specs::{Text, assert_works};
use crate::system::{System, assert_same};

/// How many seconds it is looked at, once it is ready.
const WATCHED_S: u32 = 15;

/// The pod's part of the manifest.
fn pod() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes/router.yaml");
    let text = fs::read_to_string(path).unwrap();
    let mut objects = text.split("\n---\n").map(|one| serde_saphyr::from_str::<Value>(one).unwrap());
    objects.find(|object| object["kind"] == "Deployment").unwrap()["spec"]["template"]["spec"].clone()
}

/// A process that does not outlive the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a probe of the kubelet's gets: an HTTP status, or none.
fn probe(lab: &Lab, probe: &Value, port: u16) -> Option<u16> {
    let path = probe["httpGet"]["path"].as_str().unwrap();
    let address = SocketAddr::new(ROUTER.ip(Family::V4), port);
    lab.client.run(|| {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.split(' ').nth(1)?.parse().ok()
    })
}

#[test]
fn the_pods_command_stays_up_and_answers_its_probes() {
    let lab = Lab::build(&Options::default()).unwrap();
    let router = Router::new(&lab, &Text::of(SNAT).yaml()).unwrap();
    let before = System::of(&lab, &router);
    let pod = pod();
    let container = &pod["containers"][0];
    assert_eq!(container["command"], Value::Null, "the image's own");
    let arguments = container["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
    // Where things are is the lab's: the specification, the pins, and the node's namespace, which a pod finds by itself.
    let arguments = arguments.filter(|word| !word.starts_with("--spec="));
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{}", lab.router.name())).arg(router.command("run").get_program());
    command.args(arguments).arg("--spec").arg(router.spec());
    command.args(["--master-netns", lab.node.name()]).arg("--bpffs").arg(router.bpffs());
    let mut agent =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map(Process).unwrap();

    let port = u16::try_from(container["ports"][0]["containerPort"].as_u64().unwrap()).unwrap();
    let startup = &container["startupProbe"];
    let patience = startup["periodSeconds"].as_u64().unwrap() * startup["failureThreshold"].as_u64().unwrap();
    wait_until("the startup probe", Duration::from_secs(patience), || probe(&lab, startup, port) == Some(200)).unwrap();
    for second in 0..WATCHED_S {
        for name in ["readinessProbe", "livenessProbe"] {
            assert_eq!(probe(&lab, &container[name], port), Some(200), "{name} in second {second}");
        }
        assert!(agent.0.try_wait().unwrap().is_none(), "it ended in second {second}");
        sleep(Duration::from_secs(1));
    }
    assert_works(&lab, SNAT);

    kill(Pid::from_raw(agent.0.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    let grace = Duration::from_secs(pod["terminationGracePeriodSeconds"].as_u64().unwrap());
    let mut status = None;
    wait_until("the pod to end", grace, || {
        status = agent.0.try_wait().unwrap();
        status.is_some()
    })
    .unwrap();
    assert_eq!(status.unwrap().code(), Some(0));
    assert_same(&before, &System::of(&lab, &router), "after the pod's end");
}
