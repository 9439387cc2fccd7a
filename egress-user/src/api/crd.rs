//! The CustomResourceDefinition: how a real API server learns of the object.

use serde_json::{Value, json};

use super::{GROUP, LIST_KIND, PLURAL, SINGULAR, VERSION};
use crate::spec::{KIND, open_api_schema};

/// The columns that `kubectl get` shows after the name, each with its JSON path.
pub const COLUMNS: [(&str, &str); 2] =
    [("Condition", ".status.conditions[*].type"), ("Status", ".status.conditions[*].status")];

/// The definition, made from the Rust types.
pub fn definition() -> Value {
    let columns: Vec<Value> =
        COLUMNS.iter().map(|(name, path)| json!({"name": name, "type": "string", "jsonPath": path})).collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{PLURAL}.{GROUP}"),
            "annotations": {"api-approved.openshift.io": "https://github.com/openshift/api/pull/851"},
        },
        "spec": {
            "group": GROUP,
            "names": {"kind": KIND, "listKind": LIST_KIND, "plural": PLURAL, "singular": SINGULAR},
            "scope": "Namespaced",
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "additionalPrinterColumns": columns,
                "schema": {"openAPIV3Schema": open_api_schema()},
                "subresources": {"status": {}},
            }],
        },
    })
}
