//! `takt deploy`: a function folder becomes a function, with its guarantee or not at all.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use model::FunctionSpec;
use serde_json::{Value, json};
use toml::Table;

use crate::args::DeployArgs;
use crate::client::{Answer, Client};
use crate::exit::Exit;
use crate::output::{self, Format, Progress};
use crate::package::{Dependencies, Staging};
use crate::{admission, commands};

/// Packages, uploads, and prints what admission answered.
pub fn run(args: &DeployArgs, format: Format) -> Result<Exit> {
    let (text, spec) = configuration(args)?;
    let client = Client::new(&args.node)?;
    let progress = Progress::start(format, "deploying");
    let answer = upload(&client, &args.folder, &text, &spec, &mut Dependencies::default())?;
    progress.end();
    if admission::is_refusal(&answer) {
        return admission::print_refusal(&answer, format);
    }
    let value = answer.success()?;
    match format {
        Format::Json => output::json(&value),
        Format::Human => {
            println!("Deployed {}{}.", spec.name, version(&value));
            print!("{}", admission::given(&value["guarantee"]));
            println!("Call it: takt invoke {}{}", spec.name, commands::url_hint(&args.node));
        }
    }
    Ok(Exit::Ok)
}

/// Packages a folder and asks the node for the function that `text`, its configuration, states.
pub(crate) fn upload(
    client: &Client,
    folder: &Path,
    text: &str,
    spec: &FunctionSpec,
    dependencies: &mut Dependencies,
) -> Result<Answer> {
    let zip = Staging::prepare(folder, spec.runtime, dependencies)?.zip()?;
    let body = json!({ "takt_toml": text, "zip": STANDARD.encode(&zip) });
    client.call(Method::PUT, &format!("/v1/functions/{}", spec.name), Some(&body))
}

/// The function that a folder's `takt.toml` states, with the file's text.
pub(crate) fn stated(folder: &Path) -> Result<(String, FunctionSpec)> {
    let path = folder.join(model::config::FILE_NAME);
    let text = read(&path)?;
    let spec = check(&text, &path)?;
    Ok((text, spec))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}; `takt new` makes a function folder", path.display()))
}

fn check(text: &str, path: &Path) -> Result<FunctionSpec> {
    let spec = model::config::parse(text).with_context(|| format!("{} states no function", path.display()))?;
    if let Some(terms) = &spec.guarantee {
        terms.resolve(spec.timeout).with_context(|| format!("the guarantee in {} does not add up", path.display()))?;
    }
    Ok(spec)
}

fn version(value: &Value) -> String {
    value["version"].as_u64().map_or_else(String::new, |version| format!(", version {version}"))
}

/// The folder's `takt.toml` with the flags in place of what it says, and the function it states then.
fn configuration(args: &DeployArgs) -> Result<(String, FunctionSpec)> {
    let path = args.folder.join(model::config::FILE_NAME);
    let text = with_flags(&read(&path)?, args).with_context(|| format!("{} is not TOML", path.display()))?;
    let spec = check(&text, &path)?;
    Ok((text, spec))
}

fn with_flags(text: &str, args: &DeployArgs) -> Result<String, toml::de::Error> {
    let pairs = args.terms.pairs();
    if args.name.is_none() && args.memory.is_none() && pairs.is_empty() {
        return Ok(text.to_owned());
    }
    let mut table: Table = text.parse()?;
    if let Some(name) = &args.name {
        table.insert("name".to_owned(), name.to_string().into());
    }
    if let Some(memory) = &args.memory {
        table.insert("memory".to_owned(), memory.clone().into());
    }
    if !pairs.is_empty()
        && let Some(guarantee) = table.entry("guarantee").or_insert_with(|| Table::new().into()).as_table_mut()
    {
        // A rate of its own and a share in a rate class exclude each other; the flag wins over the file.
        for (key, _) in &pairs {
            match *key {
                "rate" => drop(guarantee.remove("rate_class")),
                "rate_class" => ["rate", "burst"].into_iter().for_each(|key| drop(guarantee.remove(key))),
                _ => {}
            }
        }
        for (key, value) in pairs {
            guarantee.insert(key.to_owned(), value.into());
        }
    }
    Ok(table.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use proptest::prelude::*;

    use super::*;
    use crate::args::{Cli, Command};

    const FILE: &str = "name = \"a\"\nruntime = \"python\"\n[guarantee]\nrate = \"5/s\"\nburst = 2\ndeadline = \"4s\"\n";

    fn flagged(flags: &[&str]) -> Result<FunctionSpec, model::config::Error> {
        let cli = Cli::try_parse_from(["takt", "deploy"].iter().chain(flags)).unwrap();
        let Command::Deploy(args) = cli.command else { panic!("deploy was typed") };
        model::config::parse(&with_flags(FILE, &args).unwrap())
    }

    fn check(flags: &[&str], expected: &[(&str, &str)]) {
        let pairs = flagged(flags).unwrap().guarantee.unwrap().to_pairs();
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(key, value)| (*key, value.as_str())).collect();
        assert_eq!(pairs, expected);
    }

    #[test]
    fn flags_take_the_place_of_what_the_file_says() {
        check(&[], &[("rate", "5/s"), ("burst", "2"), ("deadline", "4s")]);
        check(&["--rate", "9/s"], &[("rate", "9/s"), ("burst", "2"), ("deadline", "4s")]);
        check(&["--rate-class", "vr"], &[("rate_class", "vr"), ("deadline", "4s")]);
        let spec = flagged(&["--name", "b", "--memory", "256MB"]).unwrap();
        assert_eq!((spec.name.as_str(), spec.memory.mib()), ("b", 256));
    }

    #[test]
    fn a_flag_that_is_no_term_names_its_key() {
        let error = flagged(&["--cpu", "2"]).unwrap_err();
        assert!(format!("{:#}", anyhow::Error::new(error)).contains("`cpu`"));
    }

    proptest! {
        #[test]
        fn no_file_makes_the_flags_panic(text in "[a-z=\"\\[\\]\n ]{0,80}", rate in "[0-9]{1,3}/s") {
            let cli = Cli::try_parse_from(["takt", "deploy", "--rate", rate.as_str()]).unwrap();
            let Command::Deploy(args) = cli.command else { panic!("deploy was typed") };
            let _ = with_flags(&text, &args);
        }
    }
}
