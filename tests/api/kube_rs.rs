//! kube-rs, the client that the agent uses: typed objects, watcher, reflector.

use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Api, Client, Config};
use serde_json::json;

use crate::server::Server;

/// Time for anything that has to happen.
const WITHIN: Duration = Duration::from_secs(20);

/// A client of the administrator.
pub(crate) async fn client(server: &Server) -> Client {
    let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

/// The resource, for objects of no type.
pub(crate) fn resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("network.operator.openshift.io", "v1", "EgressRouter"))
}

fn router(name: &str, fallback: &str) -> DynamicObject {
    DynamicObject::new(name, &resource())
        .data(json!({"spec": {"addresses": [{"ip": "192.0.2.9/24"}], "redirect": {"fallbackIP": fallback}}}))
}

fn fallback(object: &DynamicObject) -> &str {
    object.data.pointer("/spec/redirect/fallbackIP").and_then(|value| value.as_str()).unwrap_or_default()
}

#[tokio::test]
async fn writes_and_reads() {
    let server = Server::start(&[]);
    let api: Api<DynamicObject> = Api::namespaced_with(client(&server).await, "default", &resource());
    let made = api.create(&PostParams::default(), &router("a", "10.0.0.1")).await.unwrap();
    assert_eq!((fallback(&made), made.metadata.generation), ("10.0.0.1", Some(1)));

    let mut stale = made.clone();
    let merge = Patch::Merge(json!({"spec": {"redirect": {"fallbackIP": "10.0.0.2"}}}));
    let patched = api.patch("a", &PatchParams::default(), &merge).await.unwrap();
    assert_eq!((fallback(&patched), patched.metadata.generation), ("10.0.0.2", Some(2)));
    stale.metadata.labels = Some([("x".to_owned(), "y".to_owned())].into());
    let refused = api.replace("a", &PostParams::default(), &stale).await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 409), "{refused}");

    let status = json!({"status": {"conditions": [
        {"type": "Available", "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z"},
    ]}});
    let with_status = api.patch_status("a", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    assert_eq!(with_status.data.pointer("/status/conditions/0/type"), Some(&json!("Available")));

    let applied =
        api.patch("a", &PatchParams::apply("tool").force(), &Patch::Apply(router("a", "10.0.0.3"))).await.unwrap();
    let managers = applied.metadata.managed_fields.unwrap();
    assert!(managers.iter().any(|entry| entry.manager.as_deref() == Some("tool")), "{managers:?}");
    assert_eq!(api.list(&ListParams::default().limit(1)).await.unwrap().items.len(), 1);
    assert!(api.delete("a", &DeleteParams::default()).await.unwrap().is_right());
    assert!(api.get_opt("a").await.unwrap().is_none());
}

#[tokio::test]
async fn a_reflector_sees_everything_and_survives_a_restart() {
    let mut server = Server::start(&[]);
    let api: Api<DynamicObject> = Api::namespaced_with(client(&server).await, "default", &resource());
    api.create(&PostParams::default(), &router("a", "10.0.0.1")).await.unwrap();

    let writer = reflector::store::Writer::new(resource());
    let store = writer.as_reader();
    let stream = reflector::reflector(writer, watcher::watcher(api.clone(), watcher::Config::default()));
    let follower = tokio::spawn(stream.default_backoff().touched_objects().for_each(|_| async {}));
    tokio::time::timeout(WITHIN, store.wait_until_ready()).await.unwrap().unwrap();
    let sees = |wanted: &'static str| {
        let store = store.clone();
        async move {
            let seen = || store.state().iter().any(|object| fallback(object) == wanted);
            tokio::time::timeout(WITHIN, async {
                while !seen() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
            .await
        }
    };
    sees("10.0.0.1").await.unwrap();
    server.kill();
    server.launch();
    let merge = Patch::Merge(json!({"spec": {"redirect": {"fallbackIP": "10.0.0.2"}}}));
    api.patch("a", &PatchParams::default(), &merge).await.unwrap();
    sees("10.0.0.2").await.unwrap();
    api.delete("a", &DeleteParams::default()).await.unwrap();
    tokio::time::timeout(WITHIN, async {
        while !store.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    follower.abort();
}

#[tokio::test]
async fn a_watcher_by_streaming_list() {
    let server = Server::start(&[]);
    let api: Api<DynamicObject> = Api::namespaced_with(client(&server).await, "default", &resource());
    for name in ["a", "b"] {
        api.create(&PostParams::default(), &router(name, "10.0.0.1")).await.unwrap();
    }
    let config = watcher::Config::default().streaming_lists();
    let mut events = std::pin::pin!(watcher::watcher(api, config).applied_objects());
    let mut names = Vec::new();
    for _ in 0..2 {
        let object = tokio::time::timeout(WITHIN, events.try_next()).await.unwrap().unwrap().unwrap();
        names.extend(object.metadata.name);
    }
    assert_eq!(names, ["a", "b"]);
}
