//! `takt keys`: what opens a node.

use anyhow::{Context, Result};
use http::Method;

use super::env;
use crate::args::{KeysArgs, KeysVerb};
use crate::client::Client;
use crate::exit::Exit;
use crate::output::Format;

/// Does what the verb says.
pub fn run(args: &KeysArgs, format: Format) -> Result<Exit> {
    match &args.verb {
        KeysVerb::Rotate(rotate) => {
            let client = Client::new(&rotate.node)?;
            let keys = client.call(Method::POST, "/v1/keys/rotate", None)?.success()?;
            let key = |name: &str| keys[name].as_str().with_context(|| format!("the node's answer holds no `{name}`"));
            let keys = [key("access_key_id")?, key("secret_access_key")?, key("token")?];
            env::print(&client.address, keys, format);
            if format == Format::Human {
                eprintln!("The keys before these open nothing any more.");
            }
        }
    }
    Ok(Exit::Ok)
}
