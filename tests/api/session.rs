//! What else people ask kubectl for: who may what, where the API is, what an apply on the server's side takes over.

use crate::kubectl::{Kubectl, manifest};
use crate::server::Server;

#[test]
fn who_may_what() {
    let server = Server::start(&["--namespace", "conf"]);
    let admin = Kubectl::new(&server);
    admin.says(&["auth", "can-i", "delete", "egressrouters"], "", "yes");
    admin.says(&["auth", "can-i", "get", "/metrics"], "", "yes");
    admin.says(&["auth", "whoami"], "", "admin");
    let viewer = admin.with_token("viewer-token");
    viewer.says(&["auth", "can-i", "list", "egressrouters"], "", "yes");
    viewer.says(&["auth", "can-i", "get", "events"], "", "yes");
    let no = |kubectl: &Kubectl, arguments: &[&str]| {
        let said = kubectl.run(&[&["auth", "can-i"], arguments].concat(), "");
        assert!(!said.ok && said.stdout.contains("no"), "{arguments:?}: {said:?}");
    };
    no(&viewer, &["create", "egressrouters"]);
    no(&viewer, &["list", "egressrouters", "-A"]);
    no(&viewer, &["get", "/metrics"]);
    let writer = admin.with_token("writer-token");
    writer.says(&["auth", "can-i", "patch", "egressrouters"], "", "yes");
    no(&writer, &["patch", "egressrouters", "--subresource=status"]);
    // And it is as it was said.
    viewer.fails(&["create", "-f", "-"], &manifest(""), "cannot create resource \"egressrouters\"");
}

#[test]
fn where_it_is_and_what_it_has() {
    let server = Server::start(&["--namespace", "conf"]);
    let kubectl = Kubectl::new(&server);
    // Coloured, so in two parts.
    let info = kubectl.ok(&["cluster-info"]);
    assert!(info.contains("control plane") && info.contains(&format!("https://{}", server.address())), "{info}");
    kubectl.says(&["get", "namespaces"], "", "NAME   STATUS   AGE\nconf   Active");
    kubectl.says(&["get", "ns", "conf", "-o", "yaml"], "", "phase: Active");
    kubectl.says(&["get", "ns", "--field-selector", "metadata.name=conf", "-o", "name"], "", "namespace/conf");
    kubectl.fails(&["get", "ns", "none"], "", "namespaces \"none\" not found");
    kubectl.fails(&["create", "ns", "new"], "", "not allow");
    let names = kubectl.ok(&["api-resources", "-o", "name", "--verbs=list"]);
    let names: Vec<&str> = names.lines().collect();
    let wanted = ["egressrouters.network.operator.openshift.io", "events", "events.events.k8s.io", "namespaces"];
    assert!(wanted.iter().all(|name| names.contains(name)), "{names:?}");
    kubectl.says(&["get", "--raw", "/readyz?verbose"], "", "readyz check passed");
}

/// The managers of router `a`, with their operations.
fn managers(kubectl: &Kubectl) -> String {
    let path = "jsonpath={range .metadata.managedFields[*]}{.manager}={.operation} {end}";
    kubectl.ok(&["get", "egressrouter", "a", "--show-managed-fields", "-o", path])
}

#[test]
fn an_apply_on_the_servers_side_takes_over_from_the_clients() {
    let server = Server::start(&["--namespace", "conf"]);
    let kubectl = Kubectl::new(&server);
    kubectl.says(&["apply", "-f", "-"], &manifest("    fallbackIP: 203.0.113.27\n"), "created");
    assert_eq!(managers(&kubectl), "kubectl-client-side-apply=Update ");
    // Changed, and one field less: no conflict with oneself, and what is not applied any more goes.
    let other = manifest("").replace("203.0.113.26", "203.0.113.99");
    kubectl.says(&["apply", "--server-side", "-f", "-"], &other, "serverside-applied");
    let yaml = kubectl.ok(&["get", "egressrouter", "a", "-o", "yaml"]);
    assert!(yaml.contains("destinationIP: 203.0.113.99") && !yaml.contains("fallbackIP"), "{yaml}");
    // kubectl notes what it applied under a name of its own.
    assert_eq!(managers(&kubectl), "kubectl-last-applied=Apply kubectl=Apply ");
    // The client's own way goes on to work, both ways.
    kubectl.says(&["apply", "view-last-applied", "egressrouter", "a"], "", "destinationIP: 203.0.113.99");
    kubectl.says(&["apply", "-f", "-"], &manifest(""), "configured");
    kubectl.says(&["apply", "--server-side", "-f", "-"], &other, "serverside-applied");

    // What somebody else has changed since is his.
    let patch = r#"[{"op":"replace","path":"/spec/redirect/redirectRules/0/destinationIP","value":"203.0.113.50"}]"#;
    kubectl.says(&["patch", "egressrouter", "a", "--type=json", "-p", patch], "", "patched");
    kubectl.fails(&["apply", "--server-side", "-f", "-"], &manifest(""), "conflict with \"kubectl-patch\"");
    kubectl.fails(
        &["apply", "--server-side", "--field-manager=tool", "-f", "-"],
        &manifest("").replace("192.168.12.1\n", "192.168.12.2\n"),
        "conflict",
    );
    let diff = kubectl.run(&["diff", "--server-side", "--force-conflicts", "-f", "-"], &other);
    assert!(diff.stdout.contains("+") && diff.stdout.contains("destinationIP: 203.0.113.99"), "{diff:?}");
}

#[test]
fn the_status_by_kubectl() {
    let server = Server::start(&["--namespace", "conf"]);
    let kubectl = Kubectl::new(&server);
    kubectl.says(&["create", "-f", "-"], &manifest(""), "created");
    let status = manifest(
        "status:\n  conditions:\n  - type: Degraded\n    status: \"True\"\n    lastTransitionTime: 2026-01-02T03:04:05Z\n    reason: Test\n",
    );
    kubectl.says(&["replace", "--subresource=status", "-f", "-"], &status.replace("port: 80", "port: 81"), "replaced");
    let yaml = kubectl.ok(&["get", "egressrouter", "a", "-o", "yaml"]);
    assert!(yaml.contains("reason: Test") && yaml.contains("port: 80\n"), "the status and nothing else: {yaml}");
    kubectl.says(&["get", "egressrouters"], "", "Degraded    True");
    let json = r#"[{"op":"remove","path":"/status"}]"#;
    kubectl.says(&["patch", "egressrouter", "a", "--subresource=status", "--type=json", "-p", json], "", "patched");
    kubectl.says(&["get", "egressrouter", "a", "-o", "jsonpath={.status}"], "", "");
}
