//! Rules about what a crate depends on.

use anyhow::{Context, Result};
use toml::{Table, Value};

use super::Finding;
use super::text::PURE;

/// Which of our crates each may build on: the one direction of the house.
const HOUSE: [(&str, &[&str]); 12] = [
    ("model", &[]),
    ("plan", &["model"]),
    ("dispatch", &["model"]),
    ("journal", &["model"]),
    ("trace", &["model"]),
    ("runtime", &["model"]),
    ("engine", &["plan", "dispatch", "journal", "trace", "model"]),
    ("node", &["engine", "runtime", "plan", "journal", "trace", "model"]),
    ("sim", &["engine", "plan", "dispatch", "journal", "trace", "model"]),
    ("cli", &["node", "sim", "plan", "trace", "model"]),
    ("bench", &["cli", "node", "journal", "plan", "model"]),
    ("xtask", &[]),
];

/// What a crate that only decides has no use for.
const IMPURE: [&str; 12] =
    ["tokio", "hyper", "hyper-util", "axum", "tower", "rusqlite", "libc", "rustix", "ureq", "notify", "getrandom", "time"];

/// The findings in one `Cargo.toml`.
pub(super) fn check(path: &str, content: &str) -> Result<Vec<Finding>> {
    let manifest: Table = content.parse().with_context(|| format!("{path} is not TOML"))?;
    let mut findings = Vec::new();
    if manifest.contains_key("workspace") {
        check_table(path, &manifest, &mut findings);
        return Ok(findings);
    }
    if !inherits(manifest.get("lints")) {
        findings.push(Finding::new(path, 0, "no `[lints] workspace = true`"));
    }
    let name = path.trim_end_matches("/Cargo.toml").trim_start_matches("crates/");
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let Some(dependencies) = manifest.get(section).and_then(Value::as_table) else {
            continue;
        };
        for (dependency, entry) in dependencies {
            if !inherits(Some(entry)) {
                findings.push(Finding::new(path, 0, format!("`{dependency}` does not come from the workspace's table")));
            }
            if let Some(message) = direction(name, dependency, section) {
                findings.push(Finding::new(path, 0, message));
            }
        }
    }
    Ok(findings)
}

/// Versions in the workspace's table are stated with their default features off.
fn check_table(path: &str, manifest: &Table, findings: &mut Vec<Finding>) {
    let table = manifest.get("workspace").and_then(|workspace| workspace.get("dependencies")).and_then(Value::as_table);
    for (dependency, entry) in table.into_iter().flatten() {
        let ours = entry.get("path").is_some();
        let bare = entry.get("default-features").and_then(Value::as_bool) == Some(false);
        if !ours && !bare {
            findings.push(Finding::new(path, 0, format!("`{dependency}` without `default-features = false`")));
        }
    }
}

fn inherits(entry: Option<&Value>) -> bool {
    entry.and_then(|entry| entry.get("workspace")).and_then(Value::as_bool) == Some(true)
}

/// What is wrong with `name` building on `dependency`, if anything.
fn direction(name: &str, dependency: &str, section: &str) -> Option<String> {
    let is_ours = HOUSE.iter().any(|(ours, _)| *ours == dependency);
    let allowed = HOUSE.iter().find(|(ours, _)| *ours == name).map(|(_, below)| *below);
    match allowed {
        None => Some(format!("`{name}` is not in the house's list of crates")),
        Some(below) if is_ours && !below.contains(&dependency) => {
            Some(format!("`{name}` builds on `{dependency}`; it may build on {}", list(below)))
        }
        Some(_) if section == "dependencies" && PURE.contains(&name) && IMPURE.contains(&dependency) => {
            Some(format!("`{name}` decides and does not act; it has no use for `{dependency}`"))
        }
        Some(_) => None,
    }
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "none of ours".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "[package]\nname = \"x\"\n[lints]\nworkspace = true\n";

    fn check_count(path: &str, dependencies: &str, count: usize) {
        let findings = check(path, &format!("{HEAD}{dependencies}")).unwrap();
        assert_eq!(findings.len(), count, "{findings:?}");
    }

    #[test]
    fn dependencies_come_from_the_table() {
        check_count("crates/node/Cargo.toml", "[dependencies]\nserde.workspace = true\n", 0);
        check_count("crates/node/Cargo.toml", "[dependencies]\nserde = \"1\"\n", 1);
        check_count("crates/node/Cargo.toml", "[dev-dependencies]\nserde = { version = \"1\" }\n", 1);
    }

    #[test]
    fn crates_build_on_those_below_them() {
        check_count("crates/engine/Cargo.toml", "[dependencies]\nplan.workspace = true\n", 0);
        check_count("crates/plan/Cargo.toml", "[dependencies]\nengine.workspace = true\n", 1);
        check_count("crates/plan/Cargo.toml", "[dependencies]\ntokio.workspace = true\n", 1);
        check_count("crates/unheard/Cargo.toml", "[dependencies]\nserde.workspace = true\n", 1);
    }

    #[test]
    fn the_table_states_features() {
        let findings = check("Cargo.toml", "[workspace.dependencies]\na = \"1\"\nb = { path = \"b\" }\n").unwrap();
        assert_eq!(findings.len(), 1, "{findings:?}");
    }
}
