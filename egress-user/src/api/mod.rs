//! The EgressRouter API on one machine: the endpoints that kube-apiserver serves for the custom resource, with the same
//! answers, on a store of its own.
//!
//! The way of a request: [`listen`] (TLS, limits) → `server` (who may, which endpoint), `call` (the body) → for reads `list`, `watch`;
//! for writes `object` (read, prune, default, check), `patch`, `managed` on `typed` (field ownership), `write`, `apply`,
//! `replace`, `delete` → `store` → `form` and `answer` (tables, metadata, JSON, YAML). What is listed and watched besides
//! routers is in `resource`: `events`, and namespaces, which are not stored.
//!
//! Invariants:
//! - An answered write is on the disk. A write that is based on another version than the stored one is refused.
//! - Every change has the version after the one before; a watch shows each once, in order, or says that it cannot.
//! - What the server answers is what the recorded answers of real API servers say, down to the texts of refusals.
//! - No request costs more than bounded memory: sizes, depths, counts and times are limited.

mod answer;
mod apply;
mod auth;
mod call;
mod crd;
mod delete;
mod discovery;
mod documents;
mod events;
mod fields;
mod form;
mod json;
mod last_applied;
mod list;
pub mod listen;
mod managed;
mod meta;
mod metrics;
mod names;
mod negotiate;
mod object;
mod openapi;
mod options;
mod patch;
mod protobuf;
mod replace;
mod resource;
mod review;
mod route;
mod schema;
mod selector;
mod server;
mod status;
mod store;
mod tls;
mod typed;
mod watch;
mod write;
mod yaml;

pub use auth::{TokenError, Tokens, new_token};
pub use crd::{COLUMNS, definition};
pub use listen::{ListenError, Listening, Options};
pub use store::StoreError;
pub use tls::{Identity, TlsError, write_private};

/// The API group.
const GROUP: &str = "network.operator.openshift.io";
/// Its version.
const VERSION: &str = "v1";
/// The resource, as paths name it.
const PLURAL: &str = "egressrouters";
/// One of it.
const SINGULAR: &str = "egressrouter";
/// A list of it.
const LIST_KIND: &str = "EgressRouterList";
