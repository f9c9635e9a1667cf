//! `takt guarantee`: what is promised for a function, and how to change it.

use anyhow::{Result, bail};
use http::Method;
use serde_json::{Map, Value, json};

use crate::admission;
use crate::args::{
    ClassVerb, DeleteClassArgs, GuaranteeArgs, GuaranteeVerb, OneFunctionArgs, SetClassArgs, SetGuaranteeArgs, ShowClassesArgs,
};
use crate::client::Client;
use crate::exit::Exit;
use crate::output::{self, Format};

/// Does what the verb says.
pub fn run(args: &GuaranteeArgs, format: Format) -> Result<Exit> {
    match &args.verb {
        GuaranteeVerb::Show(one) => print(one, "guarantee", format),
        GuaranteeVerb::Explain(one) => print(one, "guarantee/explain", format),
        GuaranteeVerb::Set(set) => ask(set, format),
        GuaranteeVerb::Withdraw(one) => withdraw(one, format),
        GuaranteeVerb::Class(class) => match &class.verb {
            ClassVerb::Set(set) => set_class(set, format),
            ClassVerb::Show(show) => show_classes(show, format),
            ClassVerb::Delete(delete) => delete_class(delete, format),
        },
    }
}

fn print(args: &OneFunctionArgs, path: &str, format: Format) -> Result<Exit> {
    let value = Client::new(&args.node)?.call(Method::GET, &format!("/v1/functions/{}/{path}", args.name), None)?.success()?;
    match (format, value["explanation"].as_array()) {
        (Format::Json, _) => output::json(&value),
        (Format::Human, Some(sentences)) => sentences.iter().for_each(|sentence| println!("{}", admission::plain(sentence))),
        (Format::Human, None) => print!("{}", admission::given(&value)),
    }
    Ok(Exit::Ok)
}

fn ask(args: &SetGuaranteeArgs, format: Format) -> Result<Exit> {
    let pairs = args.terms.pairs();
    if pairs.is_empty() {
        bail!("no terms are given; state some, such as --rate 30/s --max-run-time 20ms --deadline 100ms");
    }
    let terms: Map<String, Value> = pairs.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
    let path = format!("/v1/functions/{}/guarantee", args.name);
    let answer = Client::new(&args.node)?.call(Method::PUT, &path, Some(&Value::Object(terms)))?;
    if admission::is_refusal(&answer) {
        return admission::print_refusal(&answer, format);
    }
    let value = answer.success()?;
    match format {
        Format::Json => output::json(&value),
        Format::Human => print!("Guaranteed for {}:\n{}", args.name, admission::given(&value)),
    }
    Ok(Exit::Ok)
}

fn withdraw(args: &OneFunctionArgs, format: Format) -> Result<Exit> {
    let path = format!("/v1/functions/{}/guarantee", args.name);
    Client::new(&args.node)?.call(Method::DELETE, &path, None)?.success()?;
    match format {
        Format::Json => output::json(&json!({ "withdrawn": args.name })),
        Format::Human => println!("{} runs as best effort now; what was reserved for it is free.", args.name),
    }
    Ok(Exit::Ok)
}

fn set_class(args: &SetClassArgs, format: Format) -> Result<Exit> {
    let terms = json!({ "rate": args.rate, "burst": args.burst.get() });
    let answer = Client::new(&args.node)?.call(Method::PUT, &format!("/v1/rate-classes/{}", args.name), Some(&terms))?;
    if admission::is_refusal(&answer) {
        return admission::print_refusal(&answer, format);
    }
    answer.success()?;
    match format {
        Format::Json => output::json(&json!({ "rate_class": args.name, "rate": args.rate, "burst": args.burst.get() })),
        Format::Human => println!("Functions with rate_class = \"{}\" share {}, burst {}.", args.name, args.rate, args.burst),
    }
    Ok(Exit::Ok)
}

fn show_classes(args: &ShowClassesArgs, format: Format) -> Result<Exit> {
    let classes = Client::new(&args.node)?.call(Method::GET, "/v1/rate-classes", None)?.success()?;
    match format {
        Format::Json => output::json(&classes),
        Format::Human => {
            let row = |(name, terms): (&String, &Value)| {
                vec![name.clone(), admission::plain(&terms["rate"]), admission::plain(&terms["burst"])]
            };
            let rows: Vec<Vec<String>> = classes.as_object().into_iter().flatten().map(row).collect();
            print!("{}", output::table(&["rate class", "rate", "burst"], &rows));
        }
    }
    Ok(Exit::Ok)
}

fn delete_class(args: &DeleteClassArgs, format: Format) -> Result<Exit> {
    Client::new(&args.node)?.call(Method::DELETE, &format!("/v1/rate-classes/{}", args.name), None)?.success()?;
    match format {
        Format::Json => output::json(&json!({ "deleted": args.name })),
        Format::Human => println!("The rate class {} is gone.", args.name),
    }
    Ok(Exit::Ok)
}
