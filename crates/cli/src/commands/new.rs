//! `takt new`: a function folder that works as it is.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use model::FunctionName;

use crate::args::{NewArgs, Template};
use crate::exit::Exit;
use crate::output::{self, Format};

/// One file of a template.
struct Part {
    path: &'static str,
    content: &'static str,
    mode: u32,
}

const fn file(path: &'static str, content: &'static str) -> Part {
    Part { path, content, mode: 0o644 }
}

const fn executable(path: &'static str, content: &'static str) -> Part {
    Part { path, content, mode: 0o755 }
}

const GUARANTEE: &str = include_str!("../../templates/guarantee.toml");

fn parts(template: Template) -> Vec<Part> {
    match template {
        Template::Python => vec![
            file("takt.toml", include_str!("../../templates/python/takt.toml")),
            file("handler.py", include_str!("../../templates/python/handler.py")),
            file("requirements.txt", include_str!("../../templates/python/requirements.txt")),
        ],
        Template::Nodejs => vec![
            file("takt.toml", include_str!("../../templates/nodejs/takt.toml")),
            file("index.js", include_str!("../../templates/nodejs/index.js")),
        ],
        Template::ProvidedSh => vec![
            file("takt.toml", include_str!("../../templates/provided-sh/takt.toml")),
            executable("bootstrap", include_str!("../../templates/provided-sh/bootstrap")),
        ],
        Template::Rust => vec![
            file("takt.toml", include_str!("../../templates/rust/takt.toml")),
            file("Cargo.toml", include_str!("../../templates/rust/Cargo.toml.template")),
            file("src/main.rs", include_str!("../../templates/rust/src/main.rs")),
            executable("build.sh", include_str!("../../templates/rust/build.sh")),
            file(crate::package::IGNORE_FILE, include_str!("../../templates/rust/taktignore")),
        ],
    }
}

/// r, C and D that fit what a template's runtime does with a small event, and a machine of one core.
const fn terms(template: Template) -> (&'static str, &'static str, &'static str) {
    match template {
        Template::Python | Template::Nodejs | Template::Rust => ("10/s", "20ms", "100ms"),
        // Starting curl twice is most of it.
        Template::ProvidedSh => ("2/s", "80ms", "250ms"),
    }
}

/// Stands for the function's name in a template; no text of any language.
const NAME: &str = "__NAME__";

fn fill(content: &str, name: &FunctionName) -> String {
    content.replace(NAME, name.as_str())
}

/// The text of a template's `takt.toml`.
fn takt_toml(template: Template, content: &str, name: &FunctionName) -> String {
    let (rate, run, deadline) = terms(template);
    let guarantee = GUARANTEE.replace("{rate}", rate).replace("{run}", run).replace("{deadline}", deadline);
    format!("{}{guarantee}", fill(content, name))
}

/// Makes the folder. Errors when it is there already: nothing is ever overwritten.
pub fn run(args: &NewArgs, format: Format) -> Result<Exit> {
    let folder = args.parent.join(args.name.as_str());
    fs::create_dir_all(&args.parent).with_context(|| format!("cannot make {}", args.parent.display()))?;
    match fs::create_dir(&folder) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("{} is there already; choose another name or remove it", folder.display())
        }
        Err(error) => return Err(error).with_context(|| format!("cannot make {}", folder.display())),
    }
    let mut written = Vec::new();
    for part in parts(args.template) {
        let text = match part.path {
            model::config::FILE_NAME => takt_toml(args.template, part.content, &args.name),
            _ => fill(part.content, &args.name),
        };
        write(&folder.join(part.path), &text, part.mode)?;
        written.push(part.path);
    }
    match format {
        Format::Json => output::json(&serde_json::json!({ "folder": folder, "files": written })),
        Format::Human => {
            println!("Made {} with {}.", folder.display(), written.join(", "));
            let build =
                if args.template == Template::Rust { format!("{}/build.sh && ", folder.display()) } else { String::new() };
            println!("Next: {build}takt deploy {}", folder.display());
        }
    }
    Ok(Exit::Ok)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .with_context(|| format!("cannot make {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use clap::ValueEnum;

    use super::*;

    fn make(template: Template, parent: &Path) -> Result<Exit> {
        run(&NewArgs { name: "hello".parse().unwrap(), template, parent: parent.to_owned() }, Format::Json)
    }

    #[test]
    fn every_template_states_a_function_with_a_guarantee_that_adds_up() {
        for template in Template::value_variants() {
            let parent = tempfile::tempdir().unwrap();
            make(*template, parent.path()).unwrap();
            let text = fs::read_to_string(parent.path().join("hello/takt.toml")).unwrap();
            let spec = model::config::parse(&text).unwrap();
            assert_eq!(spec.name.as_str(), "hello");
            spec.guarantee.unwrap().resolve(Duration::from_secs(3)).unwrap();
        }
    }

    #[test]
    fn an_existing_folder_is_left_as_it_is() {
        let parent = tempfile::tempdir().unwrap();
        fs::create_dir(parent.path().join("hello")).unwrap();
        let error = make(Template::Python, parent.path()).unwrap_err().to_string();
        assert!(error.contains("is there already"), "{error}");
        assert_eq!(fs::read_dir(parent.path().join("hello")).unwrap().count(), 0);
    }

    #[test]
    fn a_bootstrap_can_be_started() {
        let parent = tempfile::tempdir().unwrap();
        make(Template::ProvidedSh, parent.path()).unwrap();
        let mode = fs::metadata(parent.path().join("hello/bootstrap")).unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111);
    }
}
