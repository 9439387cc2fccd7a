//! What the documents in `docs/` say of the tests, checked against the tree.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

use crate::workspace;

/// Names of all test functions.
fn tests() -> HashSet<String> {
    fn look(dir: &Path, found: &mut HashSet<String>) {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                let name = entry.file_name();
                if name != "target" && !name.to_string_lossy().starts_with('.') {
                    look(&path, found);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let lines = text.lines().map(str::trim);
                let mut is_test = false;
                for line in lines {
                    if let Some(rest) = line.strip_prefix("fn ").or_else(|| line.strip_prefix("async fn ")) {
                        if is_test {
                            found.extend(rest.split(['(', '<']).next().map(str::to_owned));
                        }
                        is_test = false;
                    }
                    is_test |= line == "#[test]" || line.starts_with("#[tokio::test");
                }
            }
        }
    }
    let mut found = HashSet::new();
    look(&workspace::root(), &mut found);
    found
}

/// The rows of a document's tables, without their heads.
fn rows(document: &str) -> Vec<Vec<String>> {
    let path = workspace::root().join("docs").join(document);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let lines = text.lines().collect::<Vec<_>>();
    let is_head = |at: usize| lines.get(at + 1).is_some_and(|next| next.starts_with("|---"));
    let rows = lines.iter().enumerate().filter(|(at, line)| line.starts_with("| ") && !is_head(*at));
    rows.map(|(_, line)| cells(line)).collect()
}

/// The tests that a row names.
fn named(row: &[String]) -> Vec<String> {
    let is_name = |word: &&str| {
        // Nothing else in these documents has so many words: names of drop reasons have two.
        word.split('_').count() > 1
            && word.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
            || matches!(*word, "handshake")
    };
    let last = row.last().map(String::as_str).unwrap_or_default();
    last.split('`').skip(1).step_by(2).filter(is_name).map(str::to_owned).collect()
}

fn check(document: &str, shown: &[&str], unshown: &[&str], status: usize) -> BTreeMap<String, usize> {
    let tests = tests();
    let mut counts = BTreeMap::new();
    for row in rows(document) {
        let word = &row[status];
        *counts.entry(word.clone()).or_default() += 1;
        let named = named(&row);
        for name in &named {
            assert!(tests.contains(name), "{document} names {name}, which is no test: {row:?}");
        }
        if shown.contains(&word.as_str()) {
            assert!(!named.is_empty(), "{document}: shown by nothing: {row:?}");
        } else {
            assert!(unshown.contains(&word.as_str()), "{document}: {word:?} in {row:?}");
            assert!(row.last().is_some_and(|why| why.len() > 10), "{document}: no reason: {row:?}");
        }
    }
    counts
}

#[test]
fn every_clause_is_shown_or_has_a_reason() {
    let counts = check("rfc.md", &["met"], &["not met", "no case"], 2);
    assert!(counts.values().sum::<usize>() > 60, "{counts:?}");
}

#[test]
fn every_reported_case_is_covered_or_has_a_reason() {
    check("cases.md", &["covered"], &["not applicable", "open"], 2);
    // Each of the cases once.
    let rows = rows("cases.md");
    let ids = rows.iter().map(|row| row[0].clone()).collect::<Vec<_>>();
    let rooms = [
        ('A', 17),
        ('R', 9),
        ('L', 11),
        ('P', 6),
        ('F', 11),
        ('I', 7),
        ('G', 3),
        ('S', 8),
        ('D', 7),
        ('O', 5),
        ('V', 8),
    ];
    let wanted = rooms.iter().flat_map(|(room, count)| (1..=*count).map(move |number| format!("{room}{number}")));
    assert_eq!(ids, wanted.collect::<Vec<_>>());
}
