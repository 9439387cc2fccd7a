//! Label and field selectors.

use serde_json::Value;

use super::json::go_quoted_bytes;
use super::names;
use super::resource::Resource;

/// What objects a list or a watch is about.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldTerm>,
}

#[derive(Clone, Debug)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    Above,
    Below,
}

#[derive(Clone, Debug)]
struct FieldTerm {
    field: Field,
    equal: bool,
    value: String,
}

#[derive(Clone, Copy, Debug)]
enum Field {
    Name,
    Namespace,
    /// At this place in the object.
    At(&'static str),
}

impl Selector {
    /// Reads both selectors of a query.
    ///
    /// # Errors
    /// kube-apiserver's message.
    pub(super) fn new(resource: Resource, labels: &[u8], fields: &[u8]) -> Result<Self, String> {
        let fields = parse_fields(resource, &String::from_utf8_lossy(fields))?;
        Ok(Self { labels: parse_labels(labels)?, fields })
    }

    /// Whether it selects everything.
    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// With one name only, besides.
    pub(super) fn named(mut self, name: &str) -> Self {
        self.fields.push(FieldTerm { field: Field::Name, equal: true, value: name.to_owned() });
        self
    }

    /// Whether an object is selected.
    pub(super) fn matches(&self, namespace: &str, name: &str, object: &Value) -> bool {
        let fields = self.fields.iter().all(|term| {
            let value = match term.field {
                Field::Name => name,
                Field::Namespace => namespace,
                Field::At(place) => object.pointer(place).and_then(Value::as_str).unwrap_or_default(),
            };
            (value == term.value) == term.equal
        });
        fields && self.labels.iter().all(|requirement| requirement.matches(object.pointer("/metadata/labels")))
    }
}

impl Requirement {
    fn matches(&self, labels: Option<&Value>) -> bool {
        let value = labels.and_then(|labels| labels.get(&self.key)).and_then(Value::as_str);
        let listed = |value: &str| self.values.iter().any(|one| one == value);
        let bound = || self.values.first().and_then(|bound| bound.parse::<i64>().ok());
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match self.operator {
            Operator::In => value.is_some_and(listed),
            Operator::NotIn => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Above => number().zip(bound()).is_some_and(|(number, bound)| number > bound),
            Operator::Below => number().zip(bound()).is_some_and(|(number, bound)| number < bound),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(Vec<u8>),
    Symbol(&'static str),
    End,
}

impl Token {
    fn text(&self) -> String {
        match self {
            Self::Word(word) => String::from_utf8_lossy(word).into_owned(),
            Self::Symbol(symbol) => (*symbol).to_owned(),
            Self::End => String::new(),
        }
    }
}

const SYMBOLS: [&str; 8] = ["==", "!=", "=", "!", "(", ")", ",", ">"];

fn tokens(text: &[u8]) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        if first.is_ascii_whitespace() {
            rest = after;
        } else if let Some(symbol) = SYMBOLS.iter().chain(&["<"]).find(|symbol| rest.starts_with(symbol.as_bytes())) {
            tokens.push(Token::Symbol(symbol));
            rest = rest.get(symbol.len()..).unwrap_or_default();
        } else {
            let end = rest.iter().position(|byte| byte.is_ascii_whitespace() || b"=!(),><".contains(byte));
            let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
            tokens.push(Token::Word(word.to_vec()));
            rest = after;
        }
    }
    tokens
}

struct Tokens(std::iter::Peekable<std::vec::IntoIter<Token>>);

impl Tokens {
    fn next(&mut self) -> Token {
        self.0.next().unwrap_or(Token::End)
    }

    fn peek(&mut self) -> Token {
        self.0.peek().cloned().unwrap_or(Token::End)
    }
}

const COMMA: Token = Token::Symbol(",");
const CLOSE: Token = Token::Symbol(")");
const NOT: Token = Token::Symbol("!");

fn parse_labels(text: &[u8]) -> Result<Vec<Requirement>, String> {
    let mut tokens = Tokens(tokens(text).into_iter().peekable());
    let mut requirements = Vec::new();
    loop {
        match tokens.peek() {
            Token::End => return Ok(requirements),
            token if matches!(token, Token::Word(_)) || token == NOT => {
                let requirement = parse_requirement(&mut tokens);
                requirements.push(requirement.map_err(|what| format!("unable to parse requirement: {what}"))?);
            }
            token => {
                return Err(format!("found '{}', expected: !, identifier, or 'end of string'", token.text()));
            }
        }
        match tokens.next() {
            Token::End => return Ok(requirements),
            token if token == COMMA => {
                let next = tokens.peek();
                if !matches!(next, Token::Word(_)) && next != NOT {
                    return Err(format!("found '{}', expected: identifier after ','", next.text()));
                }
            }
            token => return Err(format!("found '{}', expected: ',' or 'end of string'", token.text())),
        }
    }
}

fn parse_requirement(tokens: &mut Tokens) -> Result<Requirement, String> {
    let mut token = tokens.next();
    let negated = token == NOT;
    if negated {
        token = tokens.next();
    }
    let Token::Word(word) = token else { return Err(format!("found '{}', expected: identifier", token.text())) };
    let wrong = names::qualified(&word);
    if !wrong.is_empty() {
        return Err(format!("<nil>: Invalid value: {}: {}", go_quoted_bytes(&word), wrong.join("; ")));
    }
    let key = String::from_utf8_lossy(&word).into_owned();
    let next = tokens.peek();
    if negated {
        return Ok(Requirement { key, operator: Operator::DoesNotExist, values: Vec::new() });
    }
    if next == Token::End || next == COMMA {
        return Ok(Requirement { key, operator: Operator::Exists, values: Vec::new() });
    }
    let operator = match tokens.next() {
        Token::Symbol("=" | "==") => (Operator::In, false),
        Token::Symbol("!=") => (Operator::NotIn, false),
        Token::Symbol(">") => (Operator::Above, false),
        Token::Symbol("<") => (Operator::Below, false),
        Token::Word(word) if word == b"in" => (Operator::In, true),
        Token::Word(word) if word == b"notin" => (Operator::NotIn, true),
        other => return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", other.text())),
    };
    let (operator, list) = operator;
    let mut values = if list { parse_values(tokens)? } else { vec![parse_value(tokens)?] };
    values.sort();
    values.dedup();
    for (index, value) in values.iter().enumerate() {
        if matches!(operator, Operator::Above | Operator::Below) && value.parse::<i64>().is_err() {
            let what = "for 'Gt', 'Lt' operators, the value must be an integer";
            return Err(format!("values[{index}]: Invalid value: {value:?}: {what}"));
        }
        let wrong = names::label_value(value.as_bytes());
        if !wrong.is_empty() {
            return Err(format!("values[{index}][{key}]: Invalid value: {value:?}: {}", wrong.join("; ")));
        }
    }
    Ok(Requirement { key, operator, values })
}

fn parse_value(tokens: &mut Tokens) -> Result<String, String> {
    let next = tokens.peek();
    if next == Token::End || next == COMMA {
        return Ok(String::new());
    }
    match tokens.next() {
        Token::Word(word) => Ok(String::from_utf8_lossy(&word).into_owned()),
        other => Err(format!("found '{}', expected: identifier", other.text())),
    }
}

/// The values in parentheses; between commas there may be nothing.
fn parse_values(tokens: &mut Tokens) -> Result<Vec<String>, String> {
    let open = tokens.next();
    if open != Token::Symbol("(") {
        return Err(format!("found '{}' expected: '('", open.text()));
    }
    let mut values = Vec::new();
    let mut empty = true;
    loop {
        match tokens.next() {
            Token::Word(word) => {
                values.push(String::from_utf8_lossy(&word).into_owned());
                empty = false;
                let next = tokens.peek();
                if next != COMMA && next != CLOSE {
                    return Err(format!("found '{}', expected: ',' or ')'", next.text()));
                }
            }
            token if token == COMMA => {
                if empty {
                    values.push(String::new());
                }
                empty = true;
            }
            token if token == CLOSE => {
                if empty {
                    values.push(String::new());
                }
                return Ok(values);
            }
            other => return Err(format!("found '{}', expected: ',', or identifier", other.text())),
        }
    }
}

fn parse_fields(resource: Resource, text: &str) -> Result<Vec<FieldTerm>, String> {
    let mut terms = Vec::new();
    for term in split_unescaped(text).into_iter().filter(|term| !term.is_empty()) {
        let split = ["!=", "==", "="]
            .iter()
            .filter_map(|operator| term.find(operator).map(|at| (at, *operator)))
            .min_by_key(|(at, operator)| (*at, std::cmp::Reverse(operator.len())));
        let Some((at, operator)) = split else {
            return Err(format!("invalid selector: '{text}'; can't understand '{term}'"));
        };
        let (name, value) = (term.get(..at).unwrap_or_default(), term.get(at + operator.len()..).unwrap_or_default());
        let field = match name {
            "metadata.name" => Field::Name,
            "metadata.namespace" => Field::Namespace,
            other => match resource.selectable(other) {
                Some(place) => Field::At(place),
                None => return Err(format!("field label not supported: {other}")),
            },
        };
        terms.push(FieldTerm { field, equal: operator != "!=", value: unescaped(value)? });
    }
    Ok(terms)
}

fn split_unescaped(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut escaped = false;
    for character in text.chars() {
        match terms.last_mut() {
            Some(_) if character == ',' && !escaped => terms.push(String::new()),
            Some(term) => term.push(character),
            None => {}
        }
        escaped = character == '\\' && !escaped;
    }
    terms
}

fn unescaped(text: &str) -> Result<String, String> {
    let mut plain = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            plain.push(character);
            continue;
        }
        match characters.next() {
            Some(next @ ('\\' | ',' | '=')) => plain.push(next),
            Some(next) => return Err(format!("invalid field selector: invalid escape sequence: \\{next}")),
            None => return Err("invalid field selector: invalid escape sequence: \\".to_owned()),
        }
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selects() {
        let object = json!({"metadata": {"labels": {"app": "web", "n": "5"}}});
        let cases = [
            ("", true),
            ("app", true),
            ("!app", false),
            ("app=web,n>4", true),
            ("n<5", false),
            ("app in (db, web)", true),
            ("app notin (web)", false),
            ("x!=y", true),
            ("app in ()", false),
        ];
        for (text, selected) in cases {
            let selector = Selector::new(Resource::Routers, text.as_bytes(), b"").unwrap();
            assert_eq!(selector.matches("ns", "a", &object), selected, "{text}");
        }
        let by_name = Selector::new(Resource::Routers, b"", b"metadata.name=a,metadata.namespace!=x").unwrap();
        assert!(by_name.matches("ns", "a", &object) && !by_name.matches("ns", "b", &object));
    }

    #[test]
    fn refuses_with_the_originals_words() {
        let refused = |labels: &[u8], fields: &[u8]| Selector::new(Resource::Routers, labels, fields).unwrap_err();
        assert_eq!(refused(b"a=b=c", b""), "found '=', expected: ',' or 'end of string'");
        assert_eq!(refused(b"", b"spec.x=1"), "field label not supported: spec.x");
        assert_eq!(refused(b"", b"involvedObject.name=a"), "field label not supported: involvedObject.name");
        assert!(Selector::new(Resource::CoreEvents, b"", b"involvedObject.name=a").is_ok());
    }
}
