//! The `EgressRouter` object as its API defines it (`network.operator.openshift.io/v1`).
//!
//! Field names, accepted values and defaults equal the schema of the original; what a *useful* router needs beyond
//! that is in [`check`](super::check). Serde's reading is for objects that an API server has let through; files go
//! through [`load`](super::load()), which knows positions.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;

/// The one API version.
pub const API_VERSION: &str = "network.operator.openshift.io/v1";
/// The one kind.
pub const KIND: &str = "EgressRouter";

/// One router: who may be reached through it, and from which addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("required" = ["spec"]))]
pub struct EgressRouter {
    /// Always `network.operator.openshift.io/v1`.
    #[serde(default)]
    #[schemars(with = "String", skip_serializing_if = "schema::always")]
    pub api_version: ApiVersion,
    /// Always `EgressRouter`.
    #[serde(default)]
    #[schemars(with = "String", skip_serializing_if = "schema::always")]
    pub kind: Kind,
    /// Name and labels.
    #[schemars(schema_with = "schema::any_object")]
    pub metadata: Metadata,
    /// What is asked for.
    pub spec: EgressRouterSpec,
    /// What is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<EgressRouterStatus>,
}

/// `apiVersion`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ApiVersion {
    /// [`API_VERSION`].
    #[default]
    #[serde(rename = "network.operator.openshift.io/v1")]
    V1,
}

/// `kind`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Kind {
    /// [`KIND`].
    #[default]
    EgressRouter,
}

/// `metadata`, as far as a router has a use for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Name of the object.
    pub name: String,
    /// Namespace of the object; absent in many files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Set by the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Set by the cluster: counts changes of `spec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// `spec`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend(
    "required" = ["addresses", "mode", "networkInterface"],
    "oneOf" = [{"properties": {"mode": {"enum": ["Redirect"]}}, "required": ["redirect"]}]
))]
pub struct EgressRouterSpec {
    /// How traffic is let out.
    #[serde(default)]
    pub mode: Mode,
    /// What goes where; required by the one mode there is.
    pub redirect: RedirectConfig,
    /// The interface that traffic leaves by.
    #[serde(default)]
    pub network_interface: NetworkInterface,
    /// Addresses that traffic leaves with. May be empty.
    pub addresses: Vec<EgressRouterAddress>,
}

/// `spec.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// Clients connect to the router, which rewrites source and destination.
    #[default]
    Redirect,
}

/// `spec.redirect`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RedirectConfig {
    /// Ports with a destination of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redirect_rules: Vec<L4RedirectRule>,
    /// Destination of everything else.
    #[serde(default, rename = "fallbackIP", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::address")]
    pub fallback_ip: Option<IpAddr>,
}

/// One of `spec.redirect.redirectRules`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct L4RedirectRule {
    /// Host that the connection is sent to.
    #[serde(rename = "destinationIP")]
    #[schemars(schema_with = "schema::address")]
    pub destination_ip: IpAddr,
    /// Port on the router.
    #[schemars(schema_with = "schema::port")]
    pub port: NonZeroU16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the destination; absent: the same as [`port`](Self::port).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::port")]
    pub target_port: Option<NonZeroU16>,
}

/// Transport protocol of a rule, named as in the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
    /// IP protocol 132.
    Sctp,
}

impl Protocol {
    /// Each protocol with its name in the API.
    pub const NAMES: [(&str, Self); 3] = [("TCP", Self::Tcp), ("UDP", Self::Udp), ("SCTP", Self::Sctp)];
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// `spec.networkInterface`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("oneOf" = [{"required": ["macvlan"]}]))]
pub struct NetworkInterface {
    /// The one kind of interface there is.
    #[serde(default)]
    pub macvlan: MacvlanConfig,
}

/// `spec.networkInterface.macvlan`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("required" = ["mode"]))]
pub struct MacvlanConfig {
    /// How the macvlan shares its master.
    #[serde(default)]
    pub mode: MacvlanMode,
    /// The node's interface; absent: found by the addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<String>,
}

/// Mode of a macvlan interface, named as in the API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum MacvlanMode {
    /// Macvlans of one master talk to each other directly.
    #[default]
    Bridge,
    /// Macvlans of one master never talk to each other.
    Private,
    /// Everything goes through the switch, which has to reflect it.
    #[serde(rename = "VEPA")]
    Vepa,
    /// The one macvlan takes the master's own MAC address.
    Passthru,
}

impl MacvlanMode {
    /// Each mode with its name in the API.
    pub const NAMES: [(&str, Self); 4] =
        [("Bridge", Self::Bridge), ("Private", Self::Private), ("VEPA", Self::Vepa), ("Passthru", Self::Passthru)];
}

/// One of `spec.addresses`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressRouterAddress {
    /// Host address with the length of its subnet's prefix. The schema takes any text.
    pub ip: String,
    /// Next hop to everything outside the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::address")]
    pub gateway: Option<IpAddr>,
}

/// `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressRouterStatus {
    /// At most one of each type.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// One of `status.conditions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which condition.
    #[serde(rename = "type")]
    pub kind: ConditionType,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// RFC 3339 time of the last change of [`status`](Self::status); the schema wants the field and takes null.
    #[schemars(required, schema_with = "schema::nullable_time")]
    pub last_transition_time: Option<String>,
    /// Why, in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// `status.conditions[].type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ConditionType {
    /// Traffic is translated.
    Available,
    /// On the way from one state to another.
    Progressing,
    /// Not what the specification asks for.
    Degraded,
}

impl ConditionType {
    /// Each type with its name in the API.
    pub const NAMES: [(&str, Self); 3] =
        [("Available", Self::Available), ("Progressing", Self::Progressing), ("Degraded", Self::Degraded)];
}

/// `status.conditions[].status`: text, not a boolean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Nobody can tell.
    Unknown,
}

impl ConditionStatus {
    /// Each status with its name in the API.
    pub const NAMES: [(&str, Self); 3] = [("True", Self::True), ("False", Self::False), ("Unknown", Self::Unknown)];
}
