//! What names, labels, annotations and finalizers may look like, with kube-apiserver's sentences.

const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
    alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
    '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
    '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex \
    used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// Whether alphanumeric characters begin and end a text, with `within` allowed between them.
fn is_bounded(text: &[u8], within: &[u8], alphanumeric: fn(&u8) -> bool) -> bool {
    let ends = text.first().is_some_and(alphanumeric) && text.last().is_some_and(alphanumeric);
    ends && text.iter().all(|byte| alphanumeric(byte) || within.contains(byte))
}

fn is_lower(byte: &u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// What is wrong with an object's name.
pub(super) fn subdomain(name: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if name.len() > 253 {
        wrong.push("must be no more than 253 characters".to_owned());
    }
    if !name.split('.').all(|part| is_bounded(part.as_bytes(), b"-", is_lower)) {
        wrong.push(SUBDOMAIN.to_owned());
    }
    wrong
}

/// Whether it can be a namespace's name (RFC 1123 label).
pub(super) fn is_label(name: &str) -> bool {
    name.len() <= 63 && is_bounded(name.as_bytes(), b"-", is_lower)
}

/// What is wrong with the key of a label or an annotation, or with a finalizer.
pub(super) fn qualified(key: &[u8]) -> Vec<String> {
    let parts: Vec<&[u8]> = key.split(|byte| *byte == b'/').collect();
    let mut wrong = Vec::new();
    let name = match parts.as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                wrong.push("prefix part must be non-empty".to_owned());
            } else {
                let shown = String::from_utf8_lossy(prefix);
                wrong.extend(subdomain(&shown).into_iter().map(|what| format!("prefix part {what}")));
            }
            *name
        }
        _ => {
            let what = format!(
                "a valid label key {QUALIFIED} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            );
            return vec![what];
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        wrong.push("name part must be no more than 63 bytes".to_owned());
    }
    if !is_bounded(name, b"-_.", u8::is_ascii_alphanumeric) {
        wrong.push(format!("name part {QUALIFIED}"));
    }
    wrong
}

/// What is wrong with the value of a label.
pub(super) fn label_value(value: &[u8]) -> Vec<String> {
    let mut wrong = Vec::new();
    if value.len() > 63 {
        wrong.push("must be no more than 63 bytes".to_owned());
    }
    if !value.is_empty() && !is_bounded(value, b"-_.", u8::is_ascii_alphanumeric) {
        wrong.push(LABEL_VALUE.to_owned());
    }
    wrong
}
