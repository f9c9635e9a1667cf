//! `takt delete`: a function goes, and what was reserved for it is free again.

use anyhow::Result;
use http::Method;

use crate::args::DeleteArgs;
use crate::client::Client;
use crate::exit::Exit;
use crate::output::{self, Format};

/// Deletes the function. Errors when there is none of that name.
pub fn run(args: &DeleteArgs, format: Format) -> Result<Exit> {
    Client::new(&args.node)?.call(Method::DELETE, &format!("/v1/functions/{}", args.name), None)?.success()?;
    match format {
        Format::Json => output::json(&serde_json::json!({ "deleted": args.name })),
        Format::Human => println!("Deleted {}.", args.name),
    }
    Ok(Exit::Ok)
}
