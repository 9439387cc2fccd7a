//! Lists: of now, of an earlier version, page by page.

use base64::Engine as _;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Value, json};

use super::form::ListMeta;
use super::json::{self, kind};
use super::resource::Resource;
use super::route::Query;
use super::selector::Selector;
use super::status::{Cause, Refusal};
use super::store::{Key, Store, Stored};

/// Options of a list or a watch.
#[derive(Clone, Debug)]
pub(super) struct ListOptions {
    /// What it is about.
    pub(super) selector: Selector,
    /// Whether one name is selected.
    pub(super) single: bool,
    /// At most so many.
    pub(super) limit: Option<usize>,
    /// Where to go on.
    pub(super) token: String,
    /// The version that is asked for.
    pub(super) version: String,
    exact: Option<bool>,
    /// Whether a watch begins with what is there.
    pub(super) initial: Option<bool>,
    /// Whether a watch has bookmarks.
    pub(super) bookmarks: bool,
    /// When a watch ends.
    pub(super) timeout_s: Option<u64>,
}

impl ListOptions {
    /// Reads them.
    ///
    /// # Errors
    /// 400 or 422.
    pub(super) fn new(resource: Resource, query: &Query, watch: bool) -> Result<Self, Refusal> {
        let limit = query.number("limit").map_err(Refusal::bad_request)?;
        let timeout = query.number("timeoutSeconds").map_err(Refusal::bad_request)?;
        let fields = query.bytes("fieldSelector").unwrap_or_default();
        let selector = Selector::new(resource, query.bytes("labelSelector").unwrap_or_default(), fields);
        let selector = selector.map_err(Refusal::bad_request)?;
        let token = query.text("continue").unwrap_or_default();
        let version = query.text("resourceVersion").unwrap_or_default();
        let rule = query.text("resourceVersionMatch").unwrap_or_default();
        let initial = query.switch("sendInitialEvents");
        let asked = Asked { version: &version, rule: &rule, token: &token, initial: initial.is_some() };
        let causes = if watch { asked.check_watch() } else { asked.check_list() };
        if !causes.is_empty() {
            return Err(Refusal::invalid_options("ListOptions", &causes));
        }
        Ok(Self {
            selector,
            single: fields.starts_with(b"metadata.name="),
            limit: limit.and_then(|limit| usize::try_from(limit).ok()).filter(|limit| *limit > 0),
            token,
            version,
            exact: match rule.as_str() {
                "Exact" => Some(true),
                "NotOlderThan" => Some(false),
                _ => None,
            },
            initial,
            bookmarks: query.switch("allowWatchBookmarks").unwrap_or(false),
            timeout_s: timeout.and_then(|timeout| u64::try_from(timeout).ok()).filter(|timeout| *timeout > 0),
        })
    }
}

/// What a client asks for as to versions.
struct Asked<'a> {
    version: &'a str,
    rule: &'a str,
    token: &'a str,
    initial: bool,
}

impl Asked<'_> {
    fn check_list(&self) -> Vec<Cause> {
        const RULE: &str = "resourceVersionMatch";
        let mut causes = Vec::new();
        if !self.rule.is_empty() {
            if self.version.is_empty() {
                let what = "resourceVersionMatch is forbidden unless resourceVersion is provided";
                causes.push(Cause::forbidden(RULE, what));
            }
            if !self.token.is_empty() {
                causes.push(Cause::forbidden(RULE, "resourceVersionMatch is forbidden when continue is provided"));
            }
            if !matches!(self.rule, "Exact" | "NotOlderThan") {
                causes.push(Cause::unsupported(RULE, &self.rule.into(), &["Exact", "NotOlderThan", ""]));
            }
            if self.rule == "Exact" && self.version == "0" {
                let what = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                causes.push(Cause::forbidden(RULE, what));
            }
        }
        if self.initial {
            causes.push(Cause::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
        }
        causes
    }

    fn check_watch(&self) -> Vec<Cause> {
        const RULE: &str = "resourceVersionMatch";
        let mut causes = Vec::new();
        if self.initial && self.rule != "NotOlderThan" {
            let what = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            causes.push(Cause::forbidden(RULE, what));
        }
        if !self.rule.is_empty() {
            if !self.initial {
                let what = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                causes.push(Cause::forbidden(RULE, what));
            }
            if self.rule != "NotOlderThan" {
                causes.push(Cause::unsupported(RULE, &self.rule.into(), &["NotOlderThan"]));
            }
            if !self.token.is_empty() {
                causes.push(Cause::forbidden(RULE, "resourceVersionMatch is forbidden when continue is provided"));
            }
        }
        causes
    }
}

/// Reads a version that a client gives.
///
/// # Errors
/// Go's message.
pub(super) fn version(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_not_a_number: std::num::ParseIntError| {
        format!("resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax")
    })
}

/// Where the next page begins.
struct Token {
    /// The version of the first page; none for the newest.
    version: Option<u64>,
    /// The key after the last one, below the list's own place.
    start: String,
}

/// As Go reads it: what is left of the last letter does not matter.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

const TOKEN_FORMAT: &str = "meta.k8s.io/v1";

impl Token {
    fn encode(version: i64, start: &str) -> String {
        let text = json!({"v": TOKEN_FORMAT, "rv": version, "start": start}).to_string();
        BASE64.encode(text)
    }

    fn decode(text: &str) -> Result<Self, Refusal> {
        let refuse =
            |what: &str| Refusal::bad_request(format!("invalid continue token: continue key is not valid: {what}"));
        let bytes = BASE64.decode(text).map_err(|error| refuse(&error.to_string()))?;
        let token = json::decode(&bytes).map_err(|what| refuse(&what))?.value;
        if !token.is_object() {
            let what = format!("json: cannot unmarshal {} into Go value of type storage.continueToken", kind(&token));
            return Err(refuse(&what));
        }
        let format = token.get("v").and_then(Value::as_str).unwrap_or_default();
        if format != TOKEN_FORMAT {
            return Err(refuse(&format!("server does not recognize this encoded version {format}")));
        }
        let version = match token.get("rv").and_then(Value::as_i64).unwrap_or(0) {
            0 => {
                return Err(refuse(&format!("incorrect encoded start resourceVersion (version {TOKEN_FORMAT})")));
            }
            -1 => None,
            version => u64::try_from(version).ok(),
        };
        let start = token.get("start").and_then(Value::as_str).unwrap_or_default().to_owned();
        if start.is_empty() {
            return Err(refuse(&format!("encoded start key empty (version {TOKEN_FORMAT})")));
        }
        if start.split('/').any(|part| part == "..") {
            return Err(refuse(&start));
        }
        Ok(Self { version, start })
    }
}

/// The objects of a list, and its metadata.
///
/// # Errors
/// 400, 410 or 504.
pub(super) fn list(
    store: &Store,
    namespace: Option<&str>,
    options: &ListOptions,
) -> Result<(Vec<Stored>, ListMeta), Refusal> {
    let state = store.state();
    let newest = state.newest();
    let token = if options.token.is_empty() { None } else { Some(Token::decode(&options.token)?) };
    let mut limit = options.limit;
    let at = match &token {
        Some(token) => {
            if !matches!(options.version.as_str(), "" | "0") {
                return Err(Refusal::bad_request("specifying resource version is not allowed when using continue"));
            }
            token.version
        }
        None if options.version.is_empty() => None,
        None => {
            let asked = version(&options.version)
                .map_err(|what| Refusal::bad_request(format!("invalid resource version: {what}")))?;
            if asked > newest {
                return Err(Refusal::version_too_large(asked, newest));
            }
            if asked == 0 {
                limit = None;
            }
            let exact = options.exact.unwrap_or(asked > 0 && limit.is_some());
            exact.then_some(asked)
        }
    };
    if at.is_some_and(|at| at < state.floor()) {
        return Err(match token {
            Some(token) => Refusal::expired_continue(Token::encode(-1, &token.start)),
            None => Refusal::expired("The resourceVersion for the provided list is too old."),
        });
    }
    let shown = at.unwrap_or(newest);
    let page = Page { namespace, options, limit, start: token.map(|token| token.start) };
    let (items, last, remaining) = if shown < newest {
        page.of(state.objects_at(shown, namespace).iter())
    } else {
        page.of(state.objects(namespace))
    };
    let token = last.map(|last| Token::encode(i64::try_from(shown).unwrap_or(-1), &last));
    Ok((items, ListMeta { version: shown, token, remaining }))
}

/// A part of a list.
struct Page<'a> {
    namespace: Option<&'a str>,
    options: &'a ListOptions,
    limit: Option<usize>,
    start: Option<String>,
}

impl Page<'_> {
    /// The selected objects, where the next page starts, and how many are left.
    fn of<'s>(
        &self,
        objects: impl Iterator<Item = (&'s Key, &'s Stored)>,
    ) -> (Vec<Stored>, Option<String>, Option<usize>) {
        let below = |key: &Key| match self.namespace {
            Some(_) => key.name.clone(),
            None => format!("{}/{}", key.namespace, key.name),
        };
        let mut objects =
            objects.filter(|(key, _)| self.start.as_ref().is_none_or(|start| below(key) >= *start)).peekable();
        let mut items = Vec::new();
        while let Some((key, stored)) = objects.next() {
            if !self.options.selector.matches(&key.namespace, &key.name, &stored.value) {
                continue;
            }
            items.push(stored.clone());
            let full = self.limit.is_some_and(|limit| items.len() >= limit);
            if full && objects.peek().is_some() && !self.options.single {
                let next = format!("{}\0", below(key));
                let remaining = self.options.selector.is_empty().then(|| objects.count());
                return (items, Some(next), remaining);
            }
        }
        (items, None, None)
    }
}
