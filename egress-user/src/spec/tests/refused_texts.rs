//! Texts that are wrong as a whole: not YAML, not one router, too deep, too large.

use super::super::tree::MAX_DEPTH;
use super::{BASE, assert_found, lines};
use crate::spec::{ReadError, Style, load, load_reader, load_str};

#[test]
fn broken_yaml_has_a_place() {
    assert_found("bracket", "a: [b\n", &[(1, 4, "error", "", "unclosed bracket")]);
    assert_found("tab", "a:\n\tb: c\n", &[(2, 2, "error", "", "tabs disallowed")]);
    assert_found("quote", "a: 'b\n", &[(1, 4, "error", "", "this is not YAML")]);
    assert_found("anchor", "a: *b\n", &[(1, 4, "error", "", "unknown anchor")]);
}

#[test]
fn a_broken_document_does_not_hide_the_next() {
    let text =
        format!("a: ]\n---\n{}", BASE.replace("port: 80\n        protocol: TCP", "port: 0\n        protocol: TCP"));
    assert_found(
        "second document",
        &text,
        &[
            (1, 4, "error", "", "this is not YAML"),
            (21, 15, "error", "spec.redirect.redirectRules[0].port", "0 is not a port"),
        ],
    );
}

#[test]
fn nothing_here() {
    for text in ["", "\n# only a comment\n", "---\n---\n", "null\n"] {
        let loaded = load_str("f", text);
        let found = lines(&loaded.diagnostics);
        assert!(
            loaded.has_errors() && found.starts_with("f:1:1: error: there is no EgressRouter here"),
            "{text:?}: {found}"
        );
        loaded.diagnostics.iter().for_each(|it| assert!(it.render(Style::Plain).contains("there is no"), "{text:?}"));
    }
    assert_found("scalar", "hello\n", &[(1, 1, "error", "", "expected a mapping, found the text \"hello\"")]);
    assert_found("list", "- a\n", &[(1, 3, "error", "", "expected a mapping, found a list")]);
}

#[test]
fn duplicate_fields() {
    let text = BASE.replace("  mode: Redirect\n", "  mode: Redirect\n  mode: Redirect\n");
    assert_found("mode", &text, &[(7, 3, "error", "spec.mode", "is given twice")]);
    let text = BASE.replacen("        port: 80\n", "        port: 80\n        port: 81\n", 1);
    assert_found("port", &text, &[(20, 9, "error", "spec.redirect.redirectRules[0].port", "keep one of the two")]);
    let report = load_str("f", &text).diagnostics.first().map(|it| it.render(Style::Plain)).unwrap_or_default();
    assert!(report.contains("first here"), "{report}");
}

#[test]
fn odd_keys_and_tags() {
    let text = BASE.replace("  name: r\n", "  name: r\n  [a, b]: c\n");
    assert_found("list as key", &text, &[(5, 3, "error", "metadata", "a list as a field's name")]);
    let text = BASE.replace("name: r", "name: !secret r");
    assert_found("tag", &text, &[(4, 17, "error", "metadata.name", "the tag !secret has no meaning here")]);
    let text = BASE.replace("mode: Redirect", "<<: [1]");
    assert_found("merge", &text, &[(6, 3, "error", "spec[\"<<\"]", "takes a mapping, not the number")]);
}

#[test]
fn two_routers_of_one_name() {
    let text = format!("{BASE}---\n{BASE}");
    let loaded = load_str("f", &text);
    assert_eq!(lines(&loaded.diagnostics).lines().count(), 1);
    let found = &loaded.diagnostics[0];
    assert_eq!((found.line, found.column, found.field.as_str()), (30, 9, "metadata.name"));
    assert!(found.message.contains("a second router named default/r"));
    assert_eq!(found.related.as_ref().map(|related| related.line), Some(4));
    let other = format!("{BASE}---\n{}", BASE.replace("name: r", "name: r\n  namespace: other"));
    assert!(load_str("f", &other).diagnostics.is_empty(), "another namespace is another router");
}

#[test]
fn faults_of_listed_routers_have_their_path() {
    let text = "{apiVersion: v1, kind: List, items: [{apiVersion: network.operator.openshift.io/v1, kind: EgressRouter,\n\
                metadata: {name: r}, spec: {addresses: [{ip: 10.0.0.1/8}], redirect: {fallbackIP: 127.0.0.1}}}]}";
    assert_found("list", text, &[(2, 83, "error", "items[0].spec.redirect.fallbackIP", "loopback")]);
    let wrong = text.replace("apiVersion: v1", "apiVersion: v2").replace("127.0.0.1", "10.0.0.2");
    let loaded = load_str("f", &wrong);
    assert_eq!(
        lines(&loaded.diagnostics),
        "f:1:14: error: apiVersion: \"v2\" is not v1; did you mean v1? Case matters\n"
    );
}

#[test]
fn depth_is_bounded() {
    for text in ["[".repeat(100_000), "{a: ".repeat(100_000), "- ".repeat(100_000), format!("a: {}", "[".repeat(200))] {
        let loaded = load_str("f", &text);
        let found = lines(&loaded.diagnostics);
        assert!(found.contains("nested more than 64 levels deep"), "{found}");
    }
}

#[test]
fn depth_through_aliases_is_bounded() {
    let mut text = String::from("- &a0 [x]\n");
    for level in 1..20_000 {
        text.push_str(&format!("- &a{level} [*a{}]\n", level - 1));
    }
    let found = lines(&load_str("f", &text).diagnostics);
    assert!(found.contains(&format!("f:{MAX_DEPTH}:")) && !found.contains("f:63:"), "{found}");
    assert!(found.contains("nested more than 64 levels deep"), "{found}");
}

#[test]
fn what_aliases_add_up_to_is_bounded() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..20 {
        let inner = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{inner}]\n"));
    }
    let found = lines(&load_str("f", &text).diagnostics);
    assert!(found.contains("more than 4000000 values, with every alias written out"), "{found}");
}

#[test]
fn what_merge_keys_add_up_to_is_bounded() {
    let mut text = String::from("a0: &a0 {k0: x}\n");
    for level in 1..5000 {
        text.push_str(&format!("a{level}: &a{level} {{<<: *a{}, k{level}: x}}\n", level - 1));
    }
    let found = lines(&load_str("f", &text).diagnostics);
    assert!(found.contains("merge keys bring in more than 100000 fields"), "{found}");
}

#[test]
fn an_alias_within_itself() {
    let found = lines(&load_str("f", "a: &a [*a]\n").diagnostics);
    assert!(found.contains("f:1:8: error: a[0]: an alias within the value that it stands for"), "{found}");
}

#[test]
fn what_is_reported_is_bounded_and_says_so() {
    let text = "a: b\n".repeat(50_001);
    let loaded = load_str("f", &text);
    assert_eq!(loaded.diagnostics.len(), 10_001);
    let last = loaded.diagnostics.last().map(ToString::to_string).unwrap_or_default();
    // 50,000 repetitions, one unknown field, four missing ones.
    assert!(last.starts_with("f:50002:1: error: 40005 more problems are not shown"), "{last}");
}

#[test]
fn files_that_are_no_text() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, b"kind: x\nname: \xff\n").unwrap();
    let error = load(file.path()).unwrap_err();
    assert!(matches!(error, ReadError::NotUtf8 { line: 2, .. }), "{error}");
    let endless = std::io::repeat(b' ');
    let error = load_reader("big".as_ref(), endless).unwrap_err();
    assert_eq!(error.to_string(), "read big: more than 64 MiB; split the file");
    let error = load("/".as_ref()).unwrap_err();
    assert!(matches!(error, ReadError::Io { .. }), "{error}");
}

#[test]
fn many_problems_in_one_long_line_are_reported_fast() {
    let rules = vec!["{\"destinationIP\":\"10.0.0.1/32\",\"port\":0,\"protocol\":\"tcp\"}"; 3000].join(",");
    let text = format!(
        "{{\"apiVersion\":\"network.operator.openshift.io/v1\",\"kind\":\"EgressRouter\",\"metadata\":{{\"name\":\"r\"}},\
         \"spec\":{{\"addresses\":[{{\"ip\":\"10.0.0.9/24\"}}],\"redirect\":{{\"redirectRules\":[{rules}]}}}}}}"
    );
    let loaded = load_str("f", &text);
    assert_eq!(loaded.diagnostics.len(), 9000);
    let report = loaded.diagnostics.last().map(|it| it.render(Style::Plain)).unwrap_or_default();
    assert!(report.len() < 2000, "a window of the line, not all of it: {} bytes", report.len());
}
