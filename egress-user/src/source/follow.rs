//! Follows the object, and writes its status.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::api::{Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::DynamicObject;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::herald::Herald;
use super::{SourceError, object};
use crate::agent::{FileWatch, Status};
use crate::compile::RouterName;

/// How soon a status that could not be written is written again.
const PAUSE: Duration = Duration::from_secs(1);
/// How long another's status is left in the place of one's own: it may be that of another agent, which writes again, too.
const YIELD: Duration = Duration::from_secs(10);
/// Who the API says that writes it.
const MANAGER: &str = "egress-router";

/// How an API is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// By the current context of a kubeconfig.
    Kubeconfig(PathBuf),
    /// As a pod of the cluster.
    InCluster,
}

/// One router of an API.
pub struct Source {
    api: Api<DynamicObject>,
    herald: Herald,
    name: RouterName,
    /// The mirror of the object.
    spec: PathBuf,
    /// What the agent says.
    status: PathBuf,
}

/// What is known of the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nothing yet, or the API cannot be reached.
    Nothing,
    /// It is there.
    There,
    /// It is not there.
    Gone,
}

impl Source {
    /// A router of an API, with its files in a directory. Asks nothing yet.
    ///
    /// # Errors
    ///
    /// When the way to the API is not described.
    pub async fn new(access: &Access, name: RouterName, directory: &Path) -> Result<Self, SourceError> {
        // The process may have several users of TLS; they agree on one provider.
        let _set_before = rustls::crypto::ring::default_provider().install_default();
        let config = match access {
            Access::InCluster => Config::incluster().map_err(|error| SourceError::InCluster(Box::new(error)))?,
            Access::Kubeconfig(path) => {
                let failed = |error| SourceError::Kubeconfig { path: path.clone(), source: Box::new(error) };
                let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
                Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)?
            }
        };
        let client = Client::try_from(config).map_err(|error| SourceError::Client(Box::new(error)))?;
        let herald = Herald::new(client.clone(), &name);
        let api = Api::namespaced_with(client, &name.namespace, &object::resource());
        let file = |kind: &str| directory.join(format!("{}.{}.{kind}.json", name.namespace, name.name));
        Ok(Self { api, herald, spec: file("spec"), status: file("status"), name })
    }

    /// The file with the specification.
    pub fn spec(&self) -> &Path {
        &self.spec
    }

    /// The file that the agent is to write its status to.
    pub fn status(&self) -> &Path {
        &self.status
    }

    /// The router.
    pub fn name(&self) -> &RouterName {
        &self.name
    }

    /// Follows object and status for as long as this is awaited.
    ///
    /// # Errors
    ///
    /// When the mirror cannot be written or watched.
    pub(super) async fn follow(&self, seen: &watch::Sender<Seen>) -> Result<(), SourceError> {
        let selected = watcher::Config::default().fields(&format!("metadata.name={}", self.name.name));
        let mut events = std::pin::pin!(watcher(self.api.clone(), selected).default_backoff());
        if let Some(directory) = self.status.parent() {
            let failed = |source| SourceError::Mirror { path: directory.to_owned(), source };
            std::fs::create_dir_all(directory).map_err(failed)?;
        }
        let mut said = FileWatch::new(&self.status)?;
        let mut listed = false;
        let mut theirs = Value::Null;
        let (mut due, mut written) = (None, None::<Instant>);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(Event::Init)) => listed = false,
                    Some(Ok(Event::InitApply(object) | Event::Apply(object))) => {
                        listed = true;
                        theirs = object::conditions(&object);
                        self.herald.follow(&object);
                        object::write(&self.spec, &object::mirrored(&object))?;
                        seen.send_replace(Seen::There);
                        due.get_or_insert(written.map_or_else(Instant::now, |written| written + YIELD));
                    }
                    Some(Ok(Event::InitDone)) if listed => {}
                    Some(Ok(Event::InitDone | Event::Delete(_))) => {
                        (theirs, written) = (Value::Null, None);
                        seen.send_replace(Seen::Gone);
                    }
                    Some(Err(error)) => warn!("{}: {error}; what was said last stays in force", self.name),
                    None => return Ok(()),
                },
                () = said.changed() => due = Some(Instant::now()),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    due = match self.tell(&mut theirs, *seen.borrow() == Seen::There).await {
                        Told::Nothing => None,
                        Told::Written => {
                            written = Some(Instant::now());
                            None
                        }
                        Told::Refused => Some(Instant::now() + PAUSE),
                    };
                }
            }
        }
    }

    /// Writes the conditions if they are others than the object's.
    async fn tell(&self, theirs: &mut Value, there: bool) -> Told {
        // Who stands by leaves the object to the router that works.
        let ours = Status::read(&self.status).filter(|status| there && !status.standby);
        let Some(Ok(ours)) = ours.map(|ours| serde_json::to_value(ours.conditions)) else { return Told::Nothing };
        if same(&ours, theirs) {
            return Told::Nothing;
        }
        match self.write(&ours).await {
            Ok(()) => {
                self.herald.tell(theirs, &ours);
                *theirs = ours;
                Told::Written
            }
            Err(error) => {
                warn!("{}: write the status: {error}", self.name);
                Told::Refused
            }
        }
    }

    async fn write(&self, conditions: &Value) -> Result<(), kube::Error> {
        let patch = Patch::Merge(json!({"status": {"conditions": conditions}}));
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        self.api.patch_status(&self.name.name, &parameters, &patch).await.map(|_| ())
    }

    /// Says that the specification cannot be put in force, while no agent runs that could.
    pub(super) async fn refuse(&self, why: &str) {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "InvalidSpec", "message": why, "lastTransitionTime": now});
        let follows = json!([condition("Available", "False"), condition("Progressing", "False")]);
        let conditions =
            json!([condition("Available", "False"), condition("Progressing", "False"), condition("Degraded", "True")]);
        match self.write(&conditions).await {
            Ok(()) => self.herald.tell(&follows, &conditions),
            Err(error) => info!("{}: write the status: {error}", self.name),
        }
    }
}

/// What became of a status that was to be told.
enum Told {
    /// It says what is known.
    Nothing,
    Written,
    Refused,
}

/// Whether conditions say the same, in whatever order and with whatever fields an API adds.
fn same(ours: &Value, theirs: &Value) -> bool {
    let entries = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let (ours, theirs) = (entries(ours), entries(theirs));
    let found = |one: &Value| {
        theirs.iter().any(|other| {
            let same = |(name, value): (&String, &Value)| other.get(name) == Some(value);
            one.as_object().is_some_and(|fields| fields.iter().all(same))
        })
    };
    ours.len() == theirs.len() && ours.iter().all(found)
}
