//! Rules about the text of one file.

use super::Finding;

/// Words that mark unfinished work. They are put together here so that this file does not hold them.
const UNFINISHED: [&str; 4] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];

/// Crates that decide and therefore are told the time and do no input or output.
pub(super) const PURE: [&str; 6] = ["model", "plan", "dispatch", "journal", "trace", "engine"];

/// What a pure crate's source must not name.
const IMPURE: [&str; 10] = [
    "std::net",
    "std::fs",
    "std::process",
    "std::thread",
    "Instant::now",
    "SystemTime",
    "std::env",
    "tokio",
    "async fn",
    "std::os",
];

const UNSAFE_FORMS: [&str; 5] =
    [concat!("unsafe", " {"), concat!("unsafe", " fn"), concat!("unsafe", " impl"), concat!("unsafe", " extern"), "(unsafe_code"];

/// Where unsafe code may live.
const UNSAFE_HOME: &str = "crates/runtime/src/sys";

/// The findings in one text file, in the order of its lines.
pub(super) fn check(path: &str, content: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in content.lines().enumerate() {
        let mut add = |message: String| findings.push(Finding::new(path, index + 1, message));
        if line.ends_with([' ', '\t', '\r']) {
            add("white space at the end of the line".to_owned());
        }
        if line.contains('\t') && !tabs_are_meant(path) {
            add("a tab; use spaces".to_owned());
        }
        if let Some(word) = UNFINISHED.into_iter().find(|word| has_word(line, word)) {
            add(format!("`{word}`: finish it, or state the gap in docs/promises.md"));
        }
        if path.ends_with(".rs") {
            check_code(path, line, &mut add);
        }
    }
    if !content.is_empty() && !content.ends_with('\n') {
        findings.push(Finding::new(path, content.lines().count(), "the last line has no end"));
    }
    findings
}

fn check_code(path: &str, line: &str, add: &mut impl FnMut(String)) {
    let code = line.split("//").next().unwrap_or(line);
    if code.trim_start().starts_with(concat!("#[", "ignore")) {
        add("a test that does not run; make it pass or take it out".to_owned());
    }
    if !path.starts_with(UNSAFE_HOME) && !path.starts_with("xtask/") && UNSAFE_FORMS.iter().any(|form| code.contains(form)) {
        add(format!("unsafe code outside {UNSAFE_HOME}"));
    }
    if let Some(name) = pure_crate(path)
        && let Some(word) = IMPURE.into_iter().find(|word| code.contains(word))
    {
        add(format!("`{word}` in `{name}`, which decides and does not act: take what it needs as an argument"));
    }
}

/// The pure crate whose shipped source `path` is; its tests may read files.
fn pure_crate(path: &str) -> Option<&str> {
    let (name, rest) = path.strip_prefix("crates/")?.split_once('/')?;
    let shipped = rest.starts_with("src/") && !rest.ends_with("/tests.rs") && !rest.contains("/tests/");
    (PURE.contains(&name) && shipped).then_some(name)
}

fn tabs_are_meant(path: &str) -> bool {
    path.ends_with(".tsv") || path.contains("/golden/") || path.contains("/fixtures/")
}

fn has_word(line: &str, word: &str) -> bool {
    let in_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(in_word) && !after.is_some_and(in_word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_lines(path: &str, content: &str, lines: &[usize]) {
        let found: Vec<usize> = check(path, content).into_iter().map(|finding| finding.line).collect();
        assert_eq!(found, lines, "{path}: {content:?}");
    }

    #[test]
    fn unfinished_work_is_found_as_a_whole_word() {
        check_lines("a.md", concat!("TO", "DO: later\n"), &[1]);
        check_lines("a.md", "XXXL and HACKNEY\n", &[]);
    }

    #[test]
    fn white_space_has_its_place() {
        check_lines("a.md", "one \ntwo\n\tthree\nfour", &[1, 3, 4]);
        check_lines("crates/journal/tests/golden/a.txt", "\tmeant\n", &[]);
    }

    #[test]
    fn unsafe_code_has_one_home() {
        let code = concat!("    unsafe", " { read() }\n");
        check_lines("crates/node/src/lib.rs", code, &[1]);
        check_lines("crates/runtime/src/sys/clock.rs", code, &[]);
        check_lines("crates/node/src/lib.rs", concat!("// unsafe", " { in words }\n"), &[]);
    }

    #[test]
    fn a_crate_that_decides_asks_no_clock() {
        check_lines("crates/engine/src/lib.rs", "let now = std::time::Instant::now();\n", &[1]);
        check_lines("crates/node/src/lib.rs", "use std::net::TcpListener;\n", &[]);
        check_lines("crates/engine/tests/seeds.rs", "let seeds = std::env::var(\"TAKT_SEEDS\");\n", &[]);
        check_lines("crates/engine/src/reserved/tests.rs", "std::thread::scope(|scope| {});\n", &[]);
    }

    #[test]
    fn a_skipped_test_is_found() {
        check_lines("crates/node/src/lib.rs", concat!("    #[", "ignore = \"slow\"]\n"), &[1]);
    }
}
