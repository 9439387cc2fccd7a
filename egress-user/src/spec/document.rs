//! The schema: from a document's tree to a [`Draft`] of a router, with every departure from the schema reported.

use super::decode::{Decoder, Fields, Item, Read, Reported};
use super::diagnostic::Problem;
use super::draft::{Draft, DraftAddress, DraftRule};
use super::path::At;
use super::types::{
    API_VERSION, Condition, ConditionStatus, ConditionType, EgressRouterStatus, KIND, MacvlanMode, Metadata, Mode,
    Protocol,
};

/// Kinds that hold other objects, and the `apiVersion` that they come with.
const LISTS: [(&str, &str); 2] = [("List", "v1"), ("EgressRouterList", API_VERSION)];
/// Fields of any Kubernetes object's metadata. Those that a router has no use for are passed over.
const METADATA: [&str; 15] = [
    "name",
    "namespace",
    "labels",
    "annotations",
    "uid",
    "generation",
    "generateName",
    "creationTimestamp",
    "resourceVersion",
    "finalizers",
    "ownerReferences",
    "managedFields",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
];

/// Calls `found` with each router of a document: the document itself, or the elements of a list.
pub(super) fn document<'a>(
    decoder: &mut Decoder<'_>,
    item: &Item<'a>,
    found: &mut dyn FnMut(&mut Decoder<'_>, &Item<'_>, Draft),
) {
    let Some((kind, api_version)) = list_kind(item) else {
        let errors = decoder.errors();
        if let Ok(draft) = router(decoder, item) {
            let draft = Draft { sound: decoder.errors() == errors, ..draft };
            found(decoder, item, draft);
        }
        return;
    };
    let Ok(fields) = decoder.fields(item, &["apiVersion", "kind", "metadata", "items"]) else { return };
    // A fault here is reported; the elements are read all the same.
    let _reported = decoder.required(&fields, "apiVersion", &format!("write apiVersion: {api_version}"), |it, item| {
        it.one_of(item, &[(api_version, ())])
    });
    let _reported = decoder.required(&fields, "items", &format!("a {kind} holds its objects in items"), |it, item| {
        it.list(item, |it, element| document(it, element, found))
    });
}

/// Name and `apiVersion` of the list kind that a document has, if any.
fn list_kind(item: &Item<'_>) -> Option<(&'static str, &'static str)> {
    let kind = item.node.text_of("kind")?;
    LISTS.into_iter().find(|(name, _)| *name == kind)
}

fn router(decoder: &mut Decoder<'_>, item: &Item<'_>) -> Read<Draft> {
    // Another kind has other fields: to list each as unknown would bury the one thing that is wrong.
    let foreign = item.node.text_of("kind").is_some_and(|kind| !kind.eq_ignore_ascii_case(KIND));
    let known: &[&str] = &["apiVersion", "kind", "metadata", "spec", "status"];
    if let Some(kind) = item.node.entry("kind").filter(|_| foreign) {
        let message = format!("expected an {KIND}, found {}", kind.value.describe());
        let problem = Problem::error(At::Field(&item.at, "kind").path(), message);
        let help = format!("remove this document, or write kind: {KIND}");
        decoder.report(problem.help(help), &kind.mark(), None);
        return Err(Reported);
    }
    let fields = decoder.fields(item, known)?;
    let _reported = decoder.required(&fields, "apiVersion", &format!("write apiVersion: {API_VERSION}"), |it, item| {
        it.one_of(item, &[(API_VERSION, ())])
    });
    let _reported =
        decoder.required(&fields, "kind", &format!("write kind: {KIND}"), |it, item| it.one_of(item, &[(KIND, ())]));
    let mut draft = Draft::empty();
    let name = "write metadata: {name: NAME}";
    let _reported = decoder.required(&fields, "metadata", name, |it, item| metadata(it, item, &mut draft));
    let _reported =
        decoder.required(&fields, "spec", "say what the router does", |it, item| spec(it, item, &mut draft));
    // The API server drops the status of what users send, so nothing in it can make a router wrong.
    decoder.lenient = true;
    draft.status = decoder.optional(&fields, "status", status).unwrap_or_default();
    decoder.lenient = false;
    Ok(draft)
}

fn metadata(decoder: &mut Decoder<'_>, item: &Item<'_>, draft: &mut Draft) -> Read<()> {
    let fields = decoder.fields(item, &METADATA)?;
    draft.name = decoder.required(&fields, "name", "give the router a name", Decoder::text);
    let namespace = decoder.optional(&fields, "namespace", Decoder::text);
    let uid = decoder.optional(&fields, "uid", Decoder::text);
    let generation = decoder.optional(&fields, "generation", Decoder::number);
    let labels = decoder.optional(&fields, "labels", Decoder::texts);
    let annotations = decoder.optional(&fields, "annotations", Decoder::texts);
    draft.metadata = Metadata {
        name: String::new(),
        namespace: namespace?,
        uid: uid?,
        generation: generation?,
        labels: labels?.unwrap_or_default().into_iter().collect(),
        annotations: annotations?.unwrap_or_default().into_iter().collect(),
    };
    Ok(())
}

fn spec(decoder: &mut Decoder<'_>, item: &Item<'_>, draft: &mut Draft) -> Read<()> {
    let fields = decoder.fields(item, &["mode", "redirect", "networkInterface", "addresses"])?;
    let _reported = decoder.optional(&fields, "mode", |it, item| it.one_of(item, &[("Redirect", Mode::Redirect)]));
    let interface = decoder.optional(&fields, "networkInterface", |it, item| {
        let fields = it.fields(item, &["macvlan"])?;
        it.optional(&fields, "macvlan", |it, item| macvlan(it, item, draft))
    });
    if interface.is_err() {
        draft.master = Err(Reported);
    }
    let how = "list the router's addresses: [{ip: 192.168.12.99/24, gateway: 192.168.12.1}]";
    draft.addresses = decoder.required(&fields, "addresses", how, |it, item| it.list(item, address));
    let how = "the mode Redirect needs it; redirect: {} is the least";
    decoder.required(&fields, "redirect", how, |it, item| {
        let fields = it.fields(item, &["redirectRules", "fallbackIP"])?;
        draft.rules =
            it.optional(&fields, "redirectRules", |it, item| it.list(item, rule)).map(Option::unwrap_or_default);
        draft.fallback = it.optional(&fields, "fallbackIP", Decoder::host);
        Ok(())
    })
}

fn macvlan(decoder: &mut Decoder<'_>, item: &Item<'_>, draft: &mut Draft) -> Read<()> {
    let fields = decoder.fields(item, &["mode", "master"])?;
    let mode = decoder.optional(&fields, "mode", |it, item| it.one_of(item, &MacvlanMode::NAMES));
    draft.macvlan_mode = mode.map(Option::unwrap_or_default);
    draft.master = decoder.optional(&fields, "master", Decoder::text);
    Ok(())
}

fn address(decoder: &mut Decoder<'_>, item: &Item<'_>) -> DraftAddress {
    let Ok(fields) = decoder.fields(item, &["ip", "gateway"]) else { return DraftAddress::unread() };
    let ip = decoder.required(&fields, "ip", "write ip: ADDRESS/PREFIX, as in 192.168.12.99/24", Decoder::text);
    let gateway = decoder.optional(&fields, "gateway", Decoder::host);
    DraftAddress { ip, gateway }
}

fn rule(decoder: &mut Decoder<'_>, item: &Item<'_>) -> DraftRule {
    let known = ["destinationIP", "port", "protocol", "targetPort"];
    let Ok(fields) = decoder.fields(item, &known) else { return DraftRule::unread() };
    let destination =
        decoder.required(&fields, "destinationIP", "write the address of the host to redirect to", Decoder::host);
    let port = decoder.required(&fields, "port", "write the port that clients connect to", Decoder::port);
    let protocol = decoder
        .required(&fields, "protocol", "write one of TCP, UDP, SCTP", |it, item| it.one_of(item, &Protocol::NAMES));
    let target_port = decoder.optional(&fields, "targetPort", Decoder::port);
    DraftRule { destination, port, protocol, target_port }
}

fn status(decoder: &mut Decoder<'_>, item: &Item<'_>) -> Read<EgressRouterStatus> {
    let fields = decoder.fields(item, &["conditions"])?;
    let conditions =
        decoder.required(&fields, "conditions", "write conditions: []", |it, item| it.list(item, condition))?;
    Ok(EgressRouterStatus { conditions: conditions.into_iter().flatten().collect() })
}

fn condition(decoder: &mut Decoder<'_>, item: &Item<'_>) -> Read<Condition> {
    let fields = decoder.fields(item, &["type", "status", "lastTransitionTime", "reason", "message"])?;
    let kind =
        decoder.required(&fields, "type", "name the condition", |it, item| it.one_of(item, &ConditionType::NAMES));
    let status = decoder
        .required(&fields, "status", "say whether it holds", |it, item| it.one_of(item, &ConditionStatus::NAMES));
    let text = |decoder: &mut Decoder<'_>, fields: &Fields<'_>, name| decoder.optional(fields, name, Decoder::text);
    let last_transition_time = text(decoder, &fields, "lastTransitionTime");
    let reason = text(decoder, &fields, "reason");
    let message = text(decoder, &fields, "message");
    Ok(Condition {
        kind: kind?,
        status: status?,
        last_transition_time: last_transition_time?,
        reason: reason?,
        message: message?,
    })
}
