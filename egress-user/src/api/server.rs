//! What each request gets.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, Method, Response};
use serde_json::Value;
use tokio::sync::Semaphore;

use super::answer::{Asked, warn};
use super::auth::{Tokens, authorize};
use super::call::{Call, Given};
use super::delete::{self, Deleted};
use super::events::keep::{Events, KEEPING};
use super::form::{self, Include, ListMeta};
use super::list::{self, ListOptions};
use super::managed::Endpoint;
use super::metrics::Metrics;
use super::negotiate::{self, Accepted, Encoding, Form, Offer, PatchType};
use super::options::{self, Verb};
use super::resource::Resource;
use super::route::{Objects, Query, Target};
use super::status::{self, Refusal};
use super::store::{Key, Store, Stored};
use super::watch::Watch;
use super::write::{self, Namespaces, Place, Written};
use super::{discovery, meta, review};

/// One server.
#[derive(Debug)]
pub(super) struct Server {
    /// Its routers.
    pub(super) store: Arc<Store>,
    /// What happened to them.
    pub(super) events: Arc<Store>,
    /// Who may ask.
    pub(super) tokens: Tokens,
    /// Whether somebody without a token may ask at all.
    pub(super) anonymous: bool,
    /// Which namespaces there are.
    pub(super) namespaces: Namespaces,
    /// Where it listens, for clients.
    pub(super) address: String,
    /// Requests at a time, watches apart.
    pub(super) in_flight: Semaphore,
    /// Watches at a time.
    pub(super) watches: Arc<Semaphore>,
    /// What is counted.
    pub(super) metrics: Metrics,
}

/// Answers a request.
pub(super) async fn serve(State(server): State<Arc<Server>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let query = Query::new(parts.uri.query().unwrap_or_default());
    let target = Target::of(parts.uri.path());
    let verb = verb(&target, &parts.method, &query);
    let watch = verb == "watch";
    let asked = Asked { headers: parts.headers, query, http: parts.version, watch };
    let mut call = Call { asked, body: Some(body) };
    let mut warnings = Vec::new();
    let answered = server.answer(&mut call, &target, verb, &mut warnings).await;
    let mut response = match answered {
        Ok(response) => response,
        Err(refusal) => {
            call.discard_body().await;
            call.asked.refuse(&refusal)
        }
    };
    warn(&mut response, &warnings);
    server.metrics.count(if verb.is_empty() { "other" } else { verb }, response.status().as_u16());
    response
}

/// Kubernetes' verb for a request; empty for a method that is none.
fn verb(target: &Target, method: &Method, query: &Query) -> &'static str {
    let Target::Objects(objects) = target else {
        return match *method {
            Method::GET => "get",
            Method::HEAD => "head",
            Method::POST => "post",
            Method::PUT => "put",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            Method::OPTIONS => "options",
            _ => "",
        };
    };
    match *method {
        Method::GET | Method::HEAD if objects.watch => "watch",
        Method::GET | Method::HEAD if objects.name.is_some() => "get",
        Method::GET | Method::HEAD if query.switch("watch").unwrap_or(false) => "watch",
        Method::GET | Method::HEAD => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if objects.name.is_some() => "delete",
        Method::DELETE => "deletecollection",
        _ => "",
    }
}

impl Server {
    async fn answer(
        self: &Arc<Self>,
        call: &mut Call,
        target: &Target,
        verb: &str,
        warnings: &mut Vec<String>,
    ) -> Result<Response<Body>, Refusal> {
        let header = call.asked.headers.get(AUTHORIZATION).map(|value| String::from_utf8_lossy(value.as_bytes()));
        let (user, warning) = self.tokens.authenticate(header.as_deref(), self.anonymous)?;
        warnings.extend(warning);
        authorize(&user, verb, target)?;
        match target {
            Target::Objects(objects) if verb == "watch" && objects.resource != Resource::Namespaces => {
                self.watch(&call.asked, objects)
            }
            Target::Objects(objects) => {
                let _permit = self.in_flight.try_acquire().map_err(|_full| Refusal::too_many_requests())?;
                match objects.resource {
                    Resource::Namespaces => self.namespaces(&call.asked, objects, verb),
                    _ => self.objects(call, objects, verb).await,
                }
            }
            Target::Review(path) => {
                if verb != "post" {
                    return Err(Refusal::method_not_allowed());
                }
                let _permit = self.in_flight.try_acquire().map_err(|_full| Refusal::too_many_requests())?;
                let body = call.read_body().await?;
                let protobuf =
                    call.content_type().is_some_and(|ty| ty.starts_with("application/vnd.kubernetes.protobuf"));
                let review = review::answer(path, &user, &body, protobuf)?;
                Ok(call.asked.answer(201, &review, call.asked.accepted(Offer::Objects)?.encoding))
            }
            Target::Other(path) => self.document(&call.asked, path, verb),
        }
    }

    fn store_of(&self, resource: Resource) -> &Arc<Store> {
        match resource {
            Resource::Events | Resource::CoreEvents => &self.events,
            Resource::Routers | Resource::Namespaces => &self.store,
        }
    }

    async fn objects(
        self: &Arc<Self>,
        call: &mut Call,
        objects: &Objects,
        verb: &str,
    ) -> Result<Response<Body>, Refusal> {
        let resource = objects.resource;
        let Some(namespace) = objects.namespace.clone() else {
            return match verb {
                "list" => self.list(&call.asked, resource, None),
                _ => Ok(call.asked.page_not_found()),
            };
        };
        let endpoint = match objects.subresource.as_deref() {
            None => Endpoint::Main,
            Some("status") if resource == Resource::Routers => Endpoint::Status,
            Some(_) => return Err(Refusal::not_found(resource, objects.name.as_deref().unwrap_or_default())),
        };
        let name = objects.name.clone();
        let events = resource != Resource::Routers;
        match (verb, name, endpoint) {
            ("list", None, _) => self.list(&call.asked, resource, Some(&namespace)),
            ("get", Some(name), _) => self.get(&call.asked, resource, &Key::new(&namespace, &name)),
            ("delete", Some(name), Endpoint::Main) => self.delete(call, resource, &Key::new(&namespace, &name)).await,
            ("deletecollection", None, _) => self.delete_all(call, resource, &namespace).await,
            ("update" | "patch", None, _) => Err(Refusal::bad_request("name must be provided")),
            ("create" | "update" | "patch", name, _) if events => {
                self.write_event(call, resource, &namespace, verb, name.as_deref().unwrap_or_default()).await
            }
            ("create", _, Endpoint::Main) => self.create(call, &namespace).await,
            ("update", Some(name), _) => self.update(call, &namespace, &name, endpoint).await,
            ("patch", Some(name), _) => self.patch(call, &namespace, &name, endpoint).await,
            (verb, ..) => Err(Refusal::verb_not_supported(resource, verb)),
        }
    }

    /// Namespaces, which can be read only.
    fn namespaces(&self, asked: &Asked, objects: &Objects, verb: &str) -> Result<Response<Body>, Refusal> {
        let resource = Resource::Namespaces;
        let accepted = asked.accepted(Offer::Objects)?;
        let include = Self::include(asked, &accepted)?;
        let state = self.store.state();
        let stored = |name: &str| Stored::new(state.newest(), Arc::new(discovery::namespace(name)));
        match (verb, &objects.name) {
            ("list", None) => {
                let options = ListOptions::new(resource, &asked.query, false)?;
                let names = match &self.namespaces {
                    Namespaces::Only(names) => names.clone(),
                    Namespaces::Implicit => {
                        let mut names = state.namespaces();
                        names.push(crate::spec::DEFAULT_NAMESPACE.to_owned());
                        names
                    }
                };
                let names: BTreeSet<String> = names.into_iter().collect();
                let all = names.iter().map(|name| (name, stored(name)));
                let items: Vec<Stored> = all
                    .filter(|(name, namespace)| options.selector.matches("", name, &namespace.value))
                    .map(|(_, namespace)| namespace)
                    .collect();
                let metadata = ListMeta { version: state.newest(), ..ListMeta::default() };
                Self::listed(asked, resource, &items, &metadata, &accepted, include)
            }
            ("get", Some(name)) => {
                self.namespaces.check(name)?;
                Self::show(asked, resource, &accepted, 200, stored(name).versioned())
            }
            _ => Err(Refusal::method_not_allowed()),
        }
    }

    fn include(asked: &Asked, accepted: &Accepted) -> Result<Include, Refusal> {
        match accepted.form {
            Form::Table => Include::of(asked.query.text("includeObject").as_deref()),
            _ => Ok(Include::Metadata),
        }
    }

    fn show(
        asked: &Asked,
        resource: Resource,
        accepted: &Accepted,
        code: u16,
        object: Value,
    ) -> Result<Response<Body>, Refusal> {
        let shown = form::item(resource, object, accepted, Self::include(asked, accepted)?)?;
        Ok(asked.answer(code, &shown, accepted.encoding))
    }

    fn get(&self, asked: &Asked, resource: Resource, key: &Key) -> Result<Response<Body>, Refusal> {
        let accepted = asked.accepted(Offer::Objects)?;
        if asked.query.text("export").is_some() {
            let what = "the export parameter, deprecated since v1.14, is no longer supported";
            return Err(Refusal::bad_request(what));
        }
        let asked_for = asked.query.text("resourceVersion").unwrap_or_default();
        let state = self.store_of(resource).state();
        if !asked_for.is_empty() {
            let version = list::version(&asked_for).map_err(Refusal::internal)?;
            if version > state.newest() {
                return Err(Refusal::version_too_large(version, state.newest()));
            }
        }
        let stored = state.get(key).cloned().ok_or_else(|| Refusal::not_found(resource, &key.name))?;
        drop(state);
        if accepted.is_plain_json() {
            let pieces = vec![resource.text(&stored), Bytes::from_static(b"\n")];
            return Ok(asked.pieces(200, pieces, accepted.encoding.media_type()));
        }
        Self::show(asked, resource, &accepted, 200, resource.shown(&stored))
    }

    fn list(&self, asked: &Asked, resource: Resource, namespace: Option<&str>) -> Result<Response<Body>, Refusal> {
        let accepted = asked.accepted(Offer::Objects)?;
        if accepted.form == Form::Metadata {
            return Err(form::refuse_list());
        }
        let options = ListOptions::new(resource, &asked.query, false)?;
        let include = Self::include(asked, &accepted)?;
        let (items, metadata) = list::list(self.store_of(resource), namespace, &options)?;
        Self::listed(asked, resource, &items, &metadata, &accepted, include)
    }

    fn listed(
        asked: &Asked,
        resource: Resource,
        items: &[Stored],
        metadata: &ListMeta,
        accepted: &Accepted,
        include: Include,
    ) -> Result<Response<Body>, Refusal> {
        if accepted.is_plain_json() {
            let pieces = form::pieces(resource, items, metadata);
            return Ok(asked.pieces(200, pieces, accepted.encoding.media_type()));
        }
        Ok(asked.answer(200, &form::list(resource, items, metadata, accepted, include)?, accepted.encoding))
    }

    fn watch(self: &Arc<Self>, asked: &Asked, objects: &Objects) -> Result<Response<Body>, Refusal> {
        let resource = objects.resource;
        let accepted = asked.accepted(Offer::Events)?;
        let mut options = ListOptions::new(resource, &asked.query, true)?;
        if let Some(name) = &objects.name {
            options.selector = options.selector.named(name);
        }
        let include = Self::include(asked, &accepted)?;
        let permit = Arc::clone(&self.watches).try_acquire_owned().map_err(|_full| Refusal::too_many_requests())?;
        let store = self.store_of(resource);
        let watch = Watch::new(store, resource, objects.namespace.clone(), options, accepted.clone(), include)?;
        let events = futures_util::StreamExt::map(watch.into_stream(), move |event| {
            // The watch is one of those that are let in for as long as it lasts.
            let _held = &permit;
            event
        });
        let mut response = Response::new(Body::from_stream(events));
        let headers = response.headers_mut();
        let media_type = match accepted.encoding {
            Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
            _ => "application/json",
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        Ok(response)
    }

    fn place<'a>(&'a self, namespace: &'a str) -> Place<'a> {
        Place { store: &self.store, namespaces: &self.namespaces, namespace }
    }

    fn written(asked: &Asked, accepted: &Accepted, written: Written) -> Result<Response<Body>, Refusal> {
        let shown = Self::show(asked, Resource::Routers, accepted, written.code, written.object);
        let mut response = shown.map_err(|refusal| refusal.with_warnings(&written.warnings))?;
        warn(&mut response, &written.warnings);
        Ok(response)
    }

    async fn create(&self, call: &mut Call, namespace: &str) -> Result<Response<Body>, Refusal> {
        let Given { accepted, options, object, warnings } = Given::read(call, Verb::Create).await?;
        let written = write::create(self.place(namespace), object, &options, warnings).await?;
        Self::written(&call.asked, &accepted, written)
    }

    async fn update(
        &self,
        call: &mut Call,
        namespace: &str,
        name: &str,
        endpoint: Endpoint,
    ) -> Result<Response<Body>, Refusal> {
        let Given { accepted, options, object, warnings } = Given::read(call, Verb::Update).await?;
        let written = write::update(self.place(namespace), name, endpoint, object, &options, warnings).await?;
        Self::written(&call.asked, &accepted, written)
    }

    async fn patch(
        &self,
        call: &mut Call,
        namespace: &str,
        name: &str,
        endpoint: Endpoint,
    ) -> Result<Response<Body>, Refusal> {
        let ty = negotiate::patch_type(call.content_type())?;
        let accepted = call.asked.accepted(Offer::Objects)?;
        let body = call.read_body().await?;
        let verb = if ty == PatchType::Apply { Verb::Apply } else { Verb::Patch };
        let options = options::of_write(&call.asked.query, call.asked.agent(), verb)?;
        let written = write::patch(self.place(namespace), name, endpoint, ty, &body, &options).await?;
        Self::written(&call.asked, &accepted, written)
    }

    async fn write_event(
        &self,
        call: &mut Call,
        resource: Resource,
        namespace: &str,
        verb: &str,
        name: &str,
    ) -> Result<Response<Body>, Refusal> {
        let accepted = call.asked.accepted(Offer::Objects)?;
        let (store, namespaces) = (&self.events, &self.namespaces);
        let events = Events { store, namespaces, namespace, resource, keeping: KEEPING };
        let body = call.read_body().await?;
        let options = |verb| options::of_write(&call.asked.query, call.asked.agent(), verb);
        let ty = call.content_type();
        let (code, event) = match verb {
            "create" => (201, events.create(&body, negotiate::body_type(ty)?, &options(Verb::Create)?).await?),
            "update" => (200, events.update(name, &body, negotiate::body_type(ty)?, &options(Verb::Update)?).await?),
            _ => (200, events.patch(name, negotiate::patch_type(ty)?, &body, &options(Verb::Patch)?).await?),
        };
        Self::show(&call.asked, resource, &accepted, code, event)
    }

    async fn delete(&self, call: &mut Call, resource: Resource, key: &Key) -> Result<Response<Body>, Refusal> {
        let accepted = call.asked.accepted(Offer::Objects)?;
        let body = call.read_body().await?;
        let options = options::of_delete(&call.asked.query, &body, || negotiate::body_type(call.content_type()))?;
        match delete::delete(self.store_of(resource), resource, key, &options).await? {
            Deleted::Waiting(object) => Self::show(&call.asked, resource, &accepted, 200, object),
            Deleted::Gone(object) => {
                let uid = meta::get(&object, "uid").cloned().unwrap_or_default();
                Ok(call.asked.answer(200, &status::deleted(resource, &key.name, &uid), accepted.encoding))
            }
        }
    }

    async fn delete_all(
        &self,
        call: &mut Call,
        resource: Resource,
        namespace: &str,
    ) -> Result<Response<Body>, Refusal> {
        let accepted = call.asked.accepted(Offer::Objects)?;
        if accepted.form == Form::Metadata {
            return Err(form::refuse_list());
        }
        let body = call.read_body().await?;
        let options = options::of_delete(&call.asked.query, &body, || negotiate::body_type(call.content_type()))?;
        let listed = ListOptions::new(resource, &call.asked.query, false)?;
        let store = self.store_of(resource);
        let (items, metadata) = list::list(store, Some(namespace), &listed)?;
        for item in &items {
            let key = Key::new(namespace, meta::text(&item.value, "name"));
            match delete::delete(store, resource, &key, &options).await {
                Ok(_) => {}
                // Somebody else was faster.
                Err(refusal) if refusal.code == 404 => {}
                Err(refusal) => return Err(refusal),
            }
        }
        let include = Self::include(&call.asked, &accepted)?;
        Self::listed(&call.asked, resource, &items, &metadata, &accepted, include)
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
