//! Paths of fields, as in `spec.redirect.redirectRules[2].port`.

use std::borrow::Cow;
use std::fmt;

/// Where a field is in its document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FieldPath(Vec<Step>);

/// One step down a document.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// Into a mapping.
    Field(Cow<'static, str>),
    /// Into a list, from 0.
    Index(usize),
}

impl FieldPath {
    /// The document itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// The field `name` of this mapping.
    #[must_use]
    pub fn field(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.0.push(Step::Field(name.into()));
        self
    }

    /// The element at `index` of this list, from 0.
    #[must_use]
    pub fn index(mut self, index: usize) -> Self {
        self.0.push(Step::Index(index));
        self
    }

    /// `inner`, seen from this path's origin.
    #[must_use]
    pub(super) fn join(mut self, inner: &Self) -> Self {
        self.0.extend(inner.0.iter().cloned());
        self
    }

    pub(super) fn steps(&self) -> &[Step] {
        &self.0
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Field(name) if is_plain(name) => {
                    write!(f, "{}{name}", if position == 0 { "" } else { "." })?;
                }
                Step::Field(name) => write!(f, "[{name:?}]")?,
            }
        }
        Ok(())
    }
}

/// Whether a name reads well between dots.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-')
}

/// A path under construction during a walk: borrows its parents, so that a walk without problems allocates nothing.
#[derive(Clone, Copy)]
pub(super) enum At<'a> {
    Root,
    Field(&'a At<'a>, &'a str),
    Index(&'a At<'a>, usize),
}

impl At<'_> {
    /// The owned path.
    pub(super) fn path(&self) -> FieldPath {
        match self {
            Self::Root => FieldPath::root(),
            Self::Field(parent, name) => parent.path().field((*name).to_owned()),
            Self::Index(parent, index) => parent.path().index(*index),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displays_as_users_write_it() {
        let path = FieldPath::root().field("spec").field("redirect").field("redirectRules").index(2).field("port");
        assert_eq!(path.to_string(), "spec.redirect.redirectRules[2].port");
        let odd = FieldPath::root().field("metadata").field("annotations").field("a.b/c");
        assert_eq!(odd.to_string(), "metadata.annotations[\"a.b/c\"]");
        assert_eq!(FieldPath::root().field("items").index(0).join(&path).to_string(), format!("items[0].{path}"));
    }
}
