//! The files of `deploy/` against the command line and the agent: a flag that is renamed here is renamed there.

use std::path::Path;

use clap::Parser as _;
use serde_json::Value;

use super::args::{Cli, Command};
use crate::agent::TO_CHANGE;

fn deployed(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Command {
    let line = std::iter::once("egress-router").chain(words);
    Cli::try_parse_from(line).unwrap_or_else(|error| panic!("{error}")).command
}

#[test]
fn the_unit_starts_what_there_is_with_what_it_takes() {
    let unit = deployed("systemd/egress-router@.service");
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap();
    let Command::Run(run) = parse(value("ExecStart").split_whitespace().skip(1)) else { panic!("run") };
    assert!(run.status_file.unwrap().starts_with("/run/egress-router"));
    let mut capabilities: Vec<&str> = value("CapabilityBoundingSet").split_whitespace().collect();
    let mut needed: Vec<String> = TO_CHANGE.iter().map(ToString::to_string).collect();
    capabilities.sort_unstable();
    needed.sort_unstable();
    assert_eq!(capabilities, needed);
    assert_eq!(value("Type"), "notify");
}

/// The pod's part of the manifest.
fn pod() -> Value {
    let text = deployed("kubernetes/router.yaml");
    let objects = text.split("\n---\n").map(|one| serde_saphyr::from_str::<Value>(one).unwrap());
    let deployment = objects.into_iter().find(|object| object["kind"] == "Deployment").unwrap();
    deployment["spec"]["template"]["spec"].clone()
}

// Whoever asks for nothing is starved and evicted before all others (a pod's quality of service is "best effort" then).
#[test]
fn the_pod_asks_for_what_it_needs_and_is_not_evicted_first() {
    let pod = pod();
    for container in pod["containers"].as_array().unwrap() {
        let resources = &container["resources"];
        for resource in ["cpu", "memory"] {
            let asked = resources["requests"][resource].as_str();
            assert!(asked.is_some_and(|asked| asked.starts_with(|c: char| ('1'..='9').contains(&c))), "{resource}");
        }
        // An agent that is kept from running repairs late.
        assert!(resources["limits"]["memory"].is_string() && resources["limits"]["cpu"].is_null());
    }
    assert_eq!(pod["priorityClassName"], "system-cluster-critical");
    // A node that is lost is given up sooner than the default of five minutes, and one that is only marked is not fled from.
    let tolerations = pod["tolerations"].as_array().unwrap();
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let toleration = tolerations.iter().find(|toleration| toleration["key"] == key).unwrap();
        assert_eq!((&toleration["operator"], &toleration["effect"]), (&"Exists".into(), &"NoExecute".into()), "{key}");
        assert!(toleration["tolerationSeconds"].as_u64().unwrap() <= 30, "{key}");
    }
}

#[test]
fn the_pod_starts_what_there_is_and_its_specification_is_valid() {
    let text = deployed("kubernetes/router.yaml");
    let objects: Vec<Value> = text.split("\n---\n").map(|one| serde_saphyr::from_str(one).unwrap()).collect();
    let kind = |kind: &str| objects.iter().find(|object| object["kind"] == kind).unwrap();
    let container = &kind("Deployment")["spec"]["template"]["spec"]["containers"][0];
    let words: Vec<&str> = container["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    let Command::Run(run) = parse(words) else { panic!("run") };
    let port = &container["ports"][0];
    assert_eq!(port["containerPort"], run.metrics.unwrap().port());
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        assert_eq!(container[probe]["httpGet"]["port"], port["name"], "{probe}");
    }
    let path = run.spec.file.unwrap();
    let (folder, file) = (path.parent().unwrap().to_owned(), path.file_name().unwrap().to_owned());
    assert_eq!(container["volumeMounts"][0]["mountPath"], folder.to_str().unwrap());
    let spec = kind("ConfigMap")["data"][file.to_str().unwrap()].as_str().unwrap();
    let loaded = crate::spec::load_str("router.yaml", spec);
    assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics);
    // What it starts is the image's: the one program in it.
    let image = deployed("container/Containerfile");
    let root = image.lines().find_map(|line| line.strip_prefix("COPY --from=build /src/target/image/ ")).unwrap();
    assert!(image.contains(&format!("ENTRYPOINT [\"{root}egress-router\"]")) && container["command"].is_null());
}

#[test]
fn the_pods_that_stand_by_start_without_being_ready_and_on_nodes_of_their_own() {
    let patch: Value = serde_saphyr::from_str(&deployed("kubernetes/standby.yaml")).unwrap();
    let spec = &patch["spec"]["template"]["spec"];
    let (container, patched) = (&spec["containers"][0], &pod()["containers"][0]);
    assert_eq!(container["name"], patched["name"]);
    let words = |container: &Value| -> Vec<String> {
        container["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let arguments = words(container);
    let Command::Run(run) = parse(arguments.iter().map(String::as_str)) else { panic!("run") };
    assert!(run.standby);
    let others: Vec<String> = arguments.into_iter().filter(|word| word != "--standby").collect();
    assert_eq!(others, words(patched), "all else is as without it");
    assert_eq!(container["startupProbe"]["httpGet"]["path"], "/healthz");
    assert!(patch["spec"]["replicas"].as_u64().unwrap() > 1);
    let apart = &spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0];
    assert_eq!(apart["topologyKey"], "kubernetes.io/hostname");
}
