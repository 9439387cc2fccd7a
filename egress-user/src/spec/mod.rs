//! The specification: the `EgressRouter` object, read from YAML or JSON, checked, with every problem in its place.
//!
//! The way of a text: [`Source`] → tree of spanned nodes (`parse`, `tree`) → draft of the object by the schema
//! (`document`, on `decode`) → checks of its meaning ([`check`](validate)) → [`ValidRouter`]. Each step collects its
//! problems and goes on with what it has, so one run shows them all.
//!
//! Invariants:
//! - What the schema of the original accepts and defaults, this does: unknown fields are warnings, absent fields get the
//!   same defaults. Beyond the schema, this refuses what could not work, and nothing else.
//! - A [`ValidRouter`] comes from here only, and a `Desired` from nothing but a [`ValidRouter`].
//! - No text makes this panic, recurse without bound or take memory out of proportion.

mod check;
mod decode;
mod diagnostic;
mod document;
mod draft;
mod host;
mod legacy;
mod load;
mod names;
mod parse;
mod path;
mod scalar;
mod schema;
mod sink;
mod source;
mod tree;
mod types;

#[cfg(test)]
mod tests;

pub use check::{ValidRouter, validate};
pub use diagnostic::{Diagnostic, Problem, Related, Severity, Style, summary};
pub use legacy::{LEGACY_NAME, LegacyEnvironment, LegacyError, from_legacy};
pub use load::{Loaded, LoadedRouter, MAX_BYTES, ReadError, load, load_reader, load_str};
pub use path::FieldPath;
pub use schema::open_api_schema;
pub use source::Source;
pub use types::{
    API_VERSION, ApiVersion, Condition, ConditionStatus, ConditionType, EgressRouter, EgressRouterAddress,
    EgressRouterSpec, EgressRouterStatus, KIND, Kind, L4RedirectRule, MacvlanConfig, MacvlanMode, Metadata, Mode,
    NetworkInterface, Protocol, RedirectConfig,
};

/// Namespace of an object that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Whether the kernel takes `name` for a network interface.
///
/// # Errors
/// What is wrong with it and what to do, in a sentence.
pub fn check_interface_name(name: &str) -> Result<(), String> {
    names::interface(name).map_err(|fault| format!("{name:?} {}; {}", fault.what, fault.help))
}
