//! One word per thing: what the glossary says a thing is not called, our documentation does not call it.
//!
//! Looked at are documents and documentation comments. What stands in quotes or as code is somebody else's word.

use super::Finding;

/// Words of the glossary's last column that mean something else as well.
const MEANT_OTHERWISE: [&str; 8] = ["action", "quota", "throttle", "request", "user", "account", "host", "log"];

/// Where a word is the usual one of what is spoken of.
const USUAL: [(&str, &str); 2] = [("crates/plan/src/", "job"), ("docs/decisions/0007-", "job")];

/// The words nothing is called by, lower case, from the text of the glossary: a table of word, meaning and what it is not.
pub(super) fn unwanted(glossary: &str) -> Vec<String> {
    let cells = glossary.lines().filter(|line| line.starts_with("| ")).filter_map(|line| line.split('|').nth(3));
    let words = cells.skip(1).flat_map(|cell| cell.split(',')).map(|word| word.split('(').next().unwrap_or(word));
    let words = words.map(|word| word.trim().to_ascii_lowercase()).filter(|word| !word.is_empty());
    words.filter(|word| !MEANT_OTHERWISE.contains(&word.as_str())).collect()
}

/// The unwanted words of one file.
pub(super) fn check(path: &str, content: &str, unwanted: &[String]) -> Vec<Finding> {
    let of = |line: &str| match path.rsplit_once('.') {
        Some((_, "md")) if path != "docs/glossary.md" => Some(line.to_owned()),
        Some((_, "rs")) if path.starts_with("crates/") => {
            let line = line.trim_start();
            line.strip_prefix("///").or_else(|| line.strip_prefix("//!")).map(str::to_owned)
        }
        _ => None,
    };
    let mut findings = Vec::new();
    let mut in_code = false;
    for (index, line) in content.lines().enumerate() {
        let Some(text) = of(line) else { continue };
        if text.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        let text = if in_code { String::new() } else { spoken(&text) };
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-');
        for word in words.map(|word| word.to_ascii_lowercase()) {
            let known = unwanted.iter().find(|unwanted| word == **unwanted || word.strip_suffix('s') == Some(unwanted));
            if let Some(known) = known.filter(|known| !USUAL.iter().any(|(at, usual)| path.starts_with(at) && usual == known)) {
                findings.push(Finding::new(path, index + 1, format!("`{known}`: docs/glossary.md has another word for it")));
            }
        }
    }
    findings
}

/// What is left without quotes and code.
fn spoken(line: &str) -> String {
    line.split(['`', '"']).step_by(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_lines(path: &str, content: &str, lines: &[usize]) {
        let glossary =
            "| word | meaning | not |\n|---|---|---|\n| instance | a copy | container, pod |\n| a | b | job (of Unix), user |\n";
        let unwanted = unwanted(glossary);
        assert_eq!(unwanted, ["container", "pod", "job"]);
        let found: Vec<usize> = check(path, content, &unwanted).into_iter().map(|finding| finding.line).collect();
        assert_eq!(found, lines, "{path}: {content:?}");
    }

    #[test]
    fn what_the_glossary_calls_otherwise_is_found() {
        check_lines("docs/a.md", "An instance is a container.\nPods and users.\nA podium.\n", &[1, 2]);
        check_lines("crates/node/src/a.rs", "/// A pod.\nlet pod = 1; // a pod\n//! Jobs.\n", &[1, 3]);
    }

    #[test]
    fn somebody_elses_words_may_be_quoted() {
        check_lines("docs/a.md", "Others say \"container\" or `pod`.\n```\ndocker run container\n```\n", &[]);
        check_lines("crates/plan/src/a.rs", "/// The job of an analysis.\n", &[]);
        check_lines("docs/glossary.md", "| instance | a copy | container |\n", &[]);
    }
}
