//! YAML as kube-apiserver reads it (YAML 1.1 in JSON's types) and writes it (sorted, folded at 80 columns).

mod read;
mod write;

pub(super) use read::decode;
pub(super) use write::encode;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn reads_the_first_document() {
        let read = decode(b"a: &x [1, yes, '1']\nb: *x\na: 2\n---\nc: 1\n").unwrap();
        assert_eq!(read.value, json!({"a": 2, "b": [1, true, "1"]}));
        assert_eq!(read.duplicates, ["line 3: key \"a\" already set in map"]);
        assert_eq!(decode(b"").unwrap().value, Value::Null);
        assert_eq!(decode(b"{\"a\": {\"b\": null}}").unwrap().value, json!({"a": {"b": null}}));
        let bomb = (0..40).fold("a0: &a0 [x,x,x,x,x,x,x,x]\n".to_owned(), |text, n| {
            format!("{text}a{}: &a{} [*a{n},*a{n},*a{n},*a{n}]\n", n + 1, n + 1)
        });
        assert!(decode(bomb.as_bytes()).is_err());
    }

    #[test]
    fn writes_sorted_and_folded() {
        let value = json!({
            "b": {"list": [{"x": 1, "y": []}, "text"], ".": {}},
            "a": "2026-01-02T03:04:05Z", "n": "80", "t": "yes", "m": "it's: so", "l": "one\ntwo\n",
            "long": format!("{} end of it", "word ".repeat(18).trim()),
        });
        let expected = "a: \"2026-01-02T03:04:05Z\"\nb:\n  .: {}\n  list:\n  - x: 1\n    \"y\": []\n  - text\n\
            l: |\n  one\n  two\nlong: word word word word word word word word word word word word word word word word\n  \
            word word end of it\nm: 'it''s: so'\n\"n\": \"80\"\nt: \"yes\"\n";
        assert_eq!(encode(&value), expected);
        assert_eq!(decode(expected.as_bytes()).unwrap().value, value);
    }
}
