//! Who asks, and what they may do.
//!
//! Tokens come from a file in kube-apiserver's form, `token,user,uid,"group,group"`. Groups decide:
//!
//! | group | may |
//! |---|---|
//! | `system:masters` | everything |
//! | `egress-router:view` | get, list and watch routers and events |
//! | `egress-router:edit` | that, and write routers; their status stays the agent's |
//! | `egress-router:agent` | get, list and watch routers, and write their status and events |
//!
//! A group with `:NAMESPACE` at its end is for that namespace only. Whoever is known may read the discovery documents and
//! the namespaces, and ask what he may do.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::resource::Resource;
use super::route::{Objects, Target};
use super::status::Refusal;

/// Why the token file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("read the tokens in {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// A line says too little.
    #[error("{}:{line}: a line is token,user,uid,\"group,group\"; this one has no {missing}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
        /// What is missing.
        missing: &'static str,
    },
}

/// The group of all who have a token.
const KNOWN: &str = "system:authenticated";

/// Somebody who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    /// Name.
    pub(super) name: String,
    groups: Vec<String>,
}

/// Who has which token.
#[derive(Debug, Default)]
pub struct Tokens {
    users: HashMap<String, User>,
}

impl Tokens {
    /// Reads a token file.
    ///
    /// # Errors
    /// When it cannot be read, or a line is incomplete.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|source| TokenError::Read { path: path.to_owned(), source })?;
        let mut tokens = Self::default();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let missing = |missing| TokenError::Line { path: path.to_owned(), line: index + 1, missing };
            let mut fields = fields(line).into_iter();
            let token = fields.next().filter(|token| !token.is_empty()).ok_or_else(|| missing("token"))?;
            let name = fields.next().filter(|name| !name.is_empty()).ok_or_else(|| missing("user"))?;
            fields.next().ok_or_else(|| missing("uid"))?;
            let groups = fields.next().unwrap_or_default();
            tokens.add(&token, &name, groups.split(',').map(str::trim).filter(|group| !group.is_empty()));
        }
        Ok(tokens)
    }

    /// One who may do everything, with this token.
    pub fn administrator(token: &str) -> Self {
        let mut tokens = Self::default();
        tokens.add(token, "admin", std::iter::once("system:masters"));
        tokens
    }

    /// With a token for agents besides.
    #[must_use]
    pub fn with_agent(mut self, token: &str) -> Self {
        self.add(token, "egress-router", std::iter::once("egress-router:agent"));
        self
    }

    fn add<'g>(&mut self, token: &str, name: &str, groups: impl Iterator<Item = &'g str>) {
        let groups = groups.chain([KNOWN]).map(str::to_owned).collect();
        self.users.insert(token.to_owned(), User { name: name.to_owned(), groups });
    }

    /// A token of somebody who may do everything, for a kubeconfig.
    pub fn any_administrator(&self) -> Option<&str> {
        let all = self.users.iter().filter(|(_, user)| user.groups.iter().any(|group| group == "system:masters"));
        all.map(|(token, _)| token.as_str()).min()
    }

    /// Who asks, by the Authorization header; with a warning, if there is something odd about it.
    ///
    /// # Errors
    /// 401 for a token that nobody has, and for none where that is not let through.
    pub(super) fn authenticate(
        &self,
        header: Option<&str>,
        anonymous: bool,
    ) -> Result<(User, Option<String>), Refusal> {
        let nobody = || User { name: "system:anonymous".to_owned(), groups: vec!["system:unauthenticated".to_owned()] };
        let mut warning = None;
        let mut parts = header.unwrap_or_default().split(' ');
        let token = match (parts.next(), parts.next(), parts.next()) {
            (Some(scheme), Some(""), Some(token)) if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() => {
                let what =
                    "the provided Authorization header contains extra space before the bearer token, and is ignored";
                warning = Some(what.to_owned());
                None
            }
            (Some(scheme), Some(token), _) if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() => Some(token),
            _ => None,
        };
        match token {
            Some(token) => match self.users.get(token) {
                Some(user) => Ok((user.clone(), warning)),
                None => Err(Refusal::unauthorized()),
            },
            None if anonymous => Ok((nobody(), warning)),
            None => Err(Refusal::unauthorized()),
        }
    }
}

/// A token that nobody guesses.
pub fn new_token() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

/// The fields of a line of CSV.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for character in line.trim_end().chars() {
        match (character, fields.last_mut()) {
            ('"', _) => quoted = !quoted,
            (',', _) if !quoted => fields.push(String::new()),
            (other, Some(field)) => field.push(other),
            (_, None) => {}
        }
    }
    fields.into_iter().map(|field| field.trim().to_owned()).collect()
}

/// Whether somebody may do it.
///
/// # Errors
/// 403 with who may not do what.
pub(super) fn authorize(user: &User, verb: &str, target: &Target) -> Result<(), Refusal> {
    if user.is_in("system:masters") {
        return Ok(());
    }
    let name = &user.name;
    match target {
        Target::Objects(objects) if user.may(verb, objects) => Ok(()),
        Target::Objects(objects) => {
            let plural = objects.resource.plural();
            let resource = match &objects.subresource {
                Some(subresource) => format!("{plural}/{subresource}"),
                None => plural.to_owned(),
            };
            let place = match &objects.namespace {
                Some(namespace) => format!("in the namespace {namespace:?}"),
                None => "at the cluster scope".to_owned(),
            };
            let group = objects.resource.group();
            let what = format!("User {name:?} cannot {verb} resource {resource:?} in API group {group:?} {place}");
            Err(Refusal::forbidden(objects.resource, objects.name.as_deref().unwrap_or_default(), &what))
        }
        // Whoever is known may ask what he may do.
        Target::Review(_) if user.is_in(KNOWN) => Ok(()),
        Target::Review(path) | Target::Other(path) if user.may_ask(path) => Ok(()),
        Target::Review(path) | Target::Other(path) => {
            Err(Refusal::forbidden_path(format!("forbidden: User {name:?} cannot {verb} path {path:?}")))
        }
    }
}

impl User {
    /// Its groups.
    pub(super) fn groups(&self) -> &[String] {
        &self.groups
    }

    fn is_in(&self, name: &str) -> bool {
        self.groups.iter().any(|group| group == name)
    }

    /// Whether it may do something with objects, without being in `system:masters`.
    fn may(&self, verb: &str, objects: &Objects) -> bool {
        let has = |role: &str| {
            self.is_in(role)
                || objects.namespace.as_ref().is_some_and(|namespace| self.is_in(&format!("{role}:{namespace}")))
        };
        let (view, edit, agent) = (has("egress-router:view"), has("egress-router:edit"), has("egress-router:agent"));
        let reads = matches!(verb, "get" | "list" | "watch");
        let main = objects.subresource.is_none();
        match objects.resource {
            Resource::Routers => {
                let status = objects.subresource.as_deref() == Some("status");
                (view && reads && main) || (edit && main) || (agent && ((reads && main) || status))
            }
            Resource::CoreEvents | Resource::Events => {
                (reads && (view || edit || agent)) || (agent && matches!(verb, "create" | "patch" | "update"))
            }
            Resource::Namespaces => reads && self.is_in(KNOWN),
        }
    }

    /// Whether it may ask for a path that is no object, without being in `system:masters`.
    fn may_ask(&self, path: &str) -> bool {
        let below = |roots: &[&str]| roots.iter().any(|root| path == *root || path.starts_with(&format!("{root}/")));
        path == "/version"
            || below(&["/healthz", "/livez", "/readyz"])
            || (self.is_in(KNOWN) && below(&["/api", "/apis", "/openapi", "/version"]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secret,admin,1,\"system:masters\"\n\n# no one\nt2,bob,2\nt3,eve,3,\"a, b\"\n")
            .unwrap();
        let tokens = Tokens::read(file.path()).unwrap();
        assert_eq!(tokens.any_administrator(), Some("secret"));
        let (eve, _) = tokens.authenticate(Some("Bearer t3"), false).unwrap();
        assert_eq!(eve.groups, ["a", "b", "system:authenticated"]);
        assert!(tokens.authenticate(Some("Bearer nope"), true).is_err());
        assert!(tokens.authenticate(None, false).is_err());
        assert_eq!(tokens.authenticate(Some("Basic x"), true).unwrap().0.name, "system:anonymous");
        std::fs::write(file.path(), "secret,admin\n").unwrap();
        let error = Tokens::read(file.path()).unwrap_err().to_string();
        assert!(error.ends_with(":1: a line is token,user,uid,\"group,group\"; this one has no uid"), "{error}");
    }
}
