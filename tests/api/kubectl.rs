//! The real kubectl, from the first look to the last delete.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::server::Server;

/// kubectl with an API.
#[derive(Clone)]
pub(crate) struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
    namespace: String,
    token: Option<&'static str>,
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    /// Whether it worked.
    pub(crate) ok: bool,
    /// Its output.
    pub(crate) stdout: String,
    /// Its messages.
    pub(crate) stderr: String,
}

impl Kubectl {
    /// kubectl for a server's administrator.
    pub(crate) fn new(server: &Server) -> Self {
        Self::of(&server.kubeconfig(), server.directory(), "conf")
    }

    /// kubectl for whom a kubeconfig is of, in a namespace. What it keeps is kept in a directory.
    pub(crate) fn of(kubeconfig: &Path, home: &Path, namespace: &str) -> Self {
        // `cargo xtask test api` installs one where there is none, and says where.
        let program = std::env::var_os("EGRESS_KUBECTL").map_or_else(|| PathBuf::from("kubectl"), PathBuf::from);
        let (kubeconfig, home, namespace) = (kubeconfig.to_owned(), home.to_owned(), namespace.to_owned());
        Self { program, kubeconfig, home, namespace, token: None }
    }

    /// The same as somebody else.
    pub(crate) fn with_token(&self, token: &'static str) -> Self {
        Self { token: Some(token), ..self.clone() }
    }

    /// The kubeconfig that it uses.
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A directory that goes with the test.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// The namespace that it asks for.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A command, ready to be started.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .args(["--namespace", &self.namespace])
            .args(self.token.map(|token| format!("--token={token}")))
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", &self.home)
            .env("KUBECTL_KYAML", "false")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, arguments: &[&str], stdin: &str) -> Said {
        let mut process = self.command(arguments).spawn().unwrap_or_else(|error| {
            panic!("{}: {error}; `cargo xtask test api` installs kubectl", self.program.display())
        });
        process.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        let output = process.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { ok: output.status.success(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// A command that works; its output.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        self.ok_with(arguments, "")
    }

    fn ok_with(&self, arguments: &[&str], stdin: &str) -> String {
        let said = self.run(arguments, stdin);
        assert!(said.ok, "kubectl {arguments:?}: {said:?}");
        said.stdout
    }

    /// A command that works, and what its output holds.
    pub(crate) fn says(&self, arguments: &[&str], stdin: &str, wanted: &str) {
        let said = self.ok_with(arguments, stdin);
        assert!(said.contains(wanted), "kubectl {arguments:?} should say {wanted:?}: {said}");
    }

    /// A command that fails, and what its message holds.
    pub(crate) fn fails(&self, arguments: &[&str], stdin: &str, wanted: &str) {
        let said = self.run(arguments, stdin);
        assert!(
            !said.ok && said.stderr.contains(wanted),
            "kubectl {arguments:?} should refuse with {wanted:?}: {said:?}"
        );
    }
}

const KIND: &str = "egressrouter.network.operator.openshift.io";

/// A manifest.
pub(crate) fn manifest(extra: &str) -> String {
    format!(
        "apiVersion: network.operator.openshift.io/v1\nkind: EgressRouter\nmetadata:\n  name: a\n  labels: {{app: web}}\n\
         spec:\n  addresses:\n  - ip: 192.168.12.99/24\n    gateway: 192.168.12.1\n  redirect:\n    redirectRules:\n    - \
         port: 80\n      protocol: TCP\n      destinationIP: 203.0.113.26\n{extra}"
    )
}

#[test]
fn a_look_around() {
    let server = Server::start(&["--namespace", "conf"]);
    let kubectl = Kubectl::new(&server);
    kubectl.says(&["api-resources"], "", "egressrouters");
    kubectl.says(&["api-versions"], "", "network.operator.openshift.io/v1");
    kubectl.says(&["version"], "", "Server Version: v1.");
    kubectl.says(&["explain", "egressrouter"], "", "KIND:       EgressRouter");
    let explained = kubectl.ok(&["explain", "egressrouter.spec.redirect.redirectRules"]);
    assert!(explained.contains("destinationIP") && explained.contains("-required-"), "{explained}");
    kubectl.says(&["explain", "egressrouter", "--recursive"], "", "macvlan");
    kubectl.says(&["get", "namespaces", "-o", "name"], "", "namespace/conf");
    let none = kubectl.run(&["get", "egressrouters"], "");
    assert!(none.ok && none.stderr.contains("No resources found in conf namespace"), "{none:?}");
}

#[test]
fn made_and_seen() {
    let server = Server::start(&["--namespace", "conf"]);
    let kubectl = Kubectl::new(&server);
    let file = manifest("");
    kubectl.says(&["create", "-f", "-", "--dry-run=server"], &file, &format!("{KIND}/a created (server dry run)"));
    kubectl.says(&["create", "-f", "-", "--dry-run=server", "-o", "yaml"], &file, "mode: Bridge");
    kubectl.fails(&["get", "egressrouter", "a"], "", "\"a\" not found");
    kubectl.says(&["apply", "-f", "-"], &file, &format!("{KIND}/a created"));
    kubectl.says(&["apply", "-f", "-"], &file, &format!("{KIND}/a unchanged"));
    let more = manifest("    fallbackIP: 203.0.113.27\n");
    let diff = kubectl.run(&["diff", "-f", "-"], &more);
    assert!(diff.stdout.contains("+    fallbackIP: 203.0.113.27"), "{diff:?}");
    kubectl.says(&["apply", "-f", "-"], &more, &format!("{KIND}/a configured"));
    kubectl.says(&["apply", "-f", "-"], &file, &format!("{KIND}/a configured"));
    kubectl.says(&["apply", "view-last-applied", "egressrouter", "a"], "", "destinationIP: 203.0.113.26");

    kubectl.says(&["get", "egressrouters"], "", "NAME   CONDITION   STATUS\na ");
    kubectl.says(&["get", "egressrouters", "-o", "wide"], "", "CONDITION");
    kubectl.says(&["get", "egressrouters", "--show-labels"], "", "app=web");
    kubectl.says(&["get", "egressrouter", "a", "-o", "yaml"], "", "destinationIP: 203.0.113.26");
    kubectl.says(&["get", "egressrouters", "-o", "json"], "", "\"kind\": \"List\"");
    assert_eq!(kubectl.ok(&["get", "egressrouters", "-o", "name"]), format!("{KIND}/a\n"));
    assert_eq!(kubectl.ok(&["get", "egressrouters", "-o", "jsonpath={.items[*].metadata.name}"]), "a");
    kubectl.says(&["get", "egressrouters", "-l", "app=web", "-o", "name"], "", "/a");
    assert_eq!(kubectl.ok(&["get", "egressrouters", "-l", "app=db", "-o", "name"]), "");
    kubectl.says(
        &["get", "egressrouters", "--field-selector", "metadata.name=a", "--chunk-size=1", "-o", "name"],
        "",
        "/a",
    );
    kubectl.says(&["get", "egressrouters", "--sort-by=.metadata.name"], "", "a ");
    kubectl.says(&["get", "egressrouter", "a", "--subresource=status"], "", "CONDITION");
    kubectl.says(&["describe", "egressrouter", "a"], "", "Destination IP:  203.0.113.26");
    kubectl.fails(&["get", "egressrouter", "missing"], "", "\"missing\" not found");
    kubectl.fails(&["create", "-f", "-"], &file, "already exists");
}

#[test]
fn bad_manifests_are_refused_with_their_fields() {
    let server = Server::start(&["--namespace", "conf"]);
    let kubectl = Kubectl::new(&server);
    let wrong = manifest("").replace("TCP", "ICMP");
    kubectl.fails(
        &["create", "-f", "-"],
        &wrong,
        "spec.redirect.redirectRules[0].protocol: Unsupported value: \"ICMP\"",
    );
    let unknown = manifest("  extra: 1\n");
    kubectl.fails(&["create", "-f", "-"], &unknown, "unknown field \"spec.extra\"");
    let warned = kubectl.run(&["create", "-f", "-", "--validate=warn", "--dry-run=server"], &unknown);
    assert!(warned.ok && warned.stderr.contains("unknown field \"spec.extra\""), "{warned:?}");
    kubectl.says(&["create", "-f", "-", "--validate=ignore"], &unknown, "created");
}

#[test]
fn changed_in_every_way() {
    let server = Server::start(&["--namespace", "conf"]);
    let kubectl = Kubectl::new(&server);
    kubectl.ok_with(&["create", "-f", "-"], &manifest(""));
    kubectl.says(&["label", "egressrouter", "a", "tier=front"], "", "labeled");
    kubectl.says(&["label", "egressrouter", "a", "tier=back", "--overwrite"], "", "labeled");
    kubectl.says(&["label", "egressrouter", "a", "tier-"], "", "unlabeled");
    kubectl.says(&["annotate", "egressrouter", "a", "note=x"], "", "annotated");
    let merge = "{\"spec\":{\"redirect\":{\"fallbackIP\":\"10.0.0.1\"}}}";
    kubectl.says(&["patch", "egressrouter", "a", "--type=merge", "-p", merge], "", "patched");
    kubectl.says(&["patch", "egressrouter", "a", "--type=merge", "-p", merge], "", "patched (no change)");
    let json = "[{\"op\":\"remove\",\"path\":\"/spec/redirect/fallbackIP\"}]";
    kubectl.says(&["patch", "egressrouter", "a", "--type=json", "-p", json], "", "patched");
    kubectl.fails(&["patch", "egressrouter", "a", "-p", merge], "", "strategic-merge-patch+json is not supported");
    let edited = server.directory().join("editor.sh");
    std::fs::write(&edited, "#!/bin/sh\nsed -i s/203.0.113.26/203.0.113.99/ \"$1\"\n").unwrap();
    Command::new("chmod").arg("+x").arg(&edited).status().unwrap();
    let mut edit = kubectl.command(&["edit", "egressrouter", "a"]);
    let output = edit.env("KUBE_EDITOR", &edited).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    kubectl.says(&["get", "egressrouter", "a", "-o", "yaml"], "", "destinationIP: 203.0.113.99");
    kubectl.says(&["replace", "-f", "-"], &manifest(""), "replaced");

    // The owner by replace stands in the way of apply, and gives way when forced.
    let other = manifest("").replace("203.0.113.26", "203.0.113.27");
    kubectl.fails(&["apply", "--server-side", "-f", "-"], &other, "conflict with \"kubectl-replace\"");
    kubectl.says(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &other, "serverside-applied");
    kubectl.says(
        &["apply", "--server-side", "--dry-run=server", "-f", "-"],
        &other,
        "serverside-applied (server dry run)",
    );
    kubectl.fails(&["scale", "egressrouter", "a", "--replicas=2"], "", "NotFound");
}

#[test]
fn waits_and_watches() {
    let server = Server::start(&["--namespace", "conf"]);
    let kubectl = Kubectl::new(&server);
    kubectl.ok_with(&["create", "-f", "-"], &manifest(""));
    let mut watch = kubectl.command(&["get", "egressrouters", "-w"]).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.next().unwrap().starts_with("NAME") && lines.next().unwrap().starts_with("a "));
    let status = "{\"status\":{\"conditions\":[{\"type\":\"Available\",\"status\":\"True\",\"lastTransitionTime\":\"2026-01-02T03:04:05Z\"}]}}";
    kubectl.says(&["patch", "egressrouter", "a", "--subresource=status", "--type=merge", "-p", status], "", "patched");
    assert!(lines.next().unwrap().contains("Available"));
    watch.kill().unwrap();
    watch.wait().unwrap();
    kubectl.says(&["wait", "--for=condition=Available", "egressrouter/a", "--timeout=10s"], "", "condition met");
    kubectl.fails(&["wait", "--for=condition=Degraded", "egressrouter/a", "--timeout=1s"], "", "timed out");
    kubectl.says(
        &["wait", "--for=jsonpath={.spec.mode}=Redirect", "egressrouter/a", "--timeout=10s"],
        "",
        "condition met",
    );
    let waiting = kubectl.command(&["wait", "--for=delete", "egressrouter/a", "--timeout=20s"]).spawn().unwrap();
    kubectl.says(&["delete", "egressrouter", "a"], "", "deleted");
    let output = waiting.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn deleted_in_every_way() {
    let server = Server::start(&["--namespace", "conf"]);
    let kubectl = Kubectl::new(&server);
    let create = || kubectl.says(&["create", "-f", "-"], &manifest(""), "created");
    create();
    kubectl.says(&["delete", "egressrouter", "a", "--dry-run=server"], "", "deleted");
    kubectl.says(&["get", "egressrouters", "-o", "name"], "", "/a");
    kubectl.says(&["delete", "egressrouter", "a"], "", "deleted");
    for cascade in ["--cascade=orphan", "--cascade=foreground"] {
        create();
        kubectl.says(&["delete", "egressrouter", "a", cascade, "--wait=false"], "", "deleted");
        // A garbage collector would take the finalizer away; here the user does.
        let patch = "{\"metadata\":{\"finalizers\":null}}";
        kubectl.says(&["patch", "egressrouter", "a", "--type=merge", "-p", patch], "", "patched");
    }
    create();
    kubectl.says(&["delete", "-f", "-", "--ignore-not-found"], &manifest(""), "deleted");
    create();
    kubectl.says(&["delete", "egressrouters", "--all"], "", "deleted");
    create();
    kubectl.says(&["delete", "egressrouters", "-l", "app=web", "--force", "--grace-period=0"], "", "deleted");
    create();
    kubectl.says(&["replace", "--force", "-f", "-"], &manifest(""), "replaced");
    kubectl.says(&["delete", "egressrouter", "a", "--cascade=background"], "", "deleted");
    kubectl.fails(&["delete", "egressrouter", "a"], "", "not found");
    let path = "/apis/network.operator.openshift.io/v1/namespaces/conf/egressrouters";
    kubectl.says(&["create", "--raw", path, "-f", "-"], &raw(), "\"uid\"");
    kubectl.says(&["delete", "--raw", &format!("{path}/a")], "", "Success");
}

fn raw() -> String {
    "{\"apiVersion\":\"network.operator.openshift.io/v1\",\"kind\":\"EgressRouter\",\"metadata\":{\"name\":\"a\"},\
     \"spec\":{\"addresses\":[],\"redirect\":{}}}"
        .to_owned()
}
