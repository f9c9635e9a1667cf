//! `takt env`: what makes AWS clients, and this tool elsewhere, talk to a node.

use anyhow::Result;
use serde_json::{Map, Value};

use crate::args::EnvArgs;
use crate::client::Address;
use crate::exit::Exit;
use crate::home;
use crate::output::{self, Format};

/// AWS clients insist on one; signatures name it, and the node takes any.
const REGION: &str = "us-east-1";

/// Prints the variables as lines that a shell can evaluate, or as one JSON object.
pub fn run(args: &EnvArgs, format: Format) -> Result<Exit> {
    let address = Address::parse(&args.node.url)?;
    let keys = home::keys(args.node.data_dir.clone())?;
    print(&address, [&keys.access_key_id, keys.secret_access_key.reveal(), keys.token.reveal()], format);
    Ok(Exit::Ok)
}

/// Prints what reaches a node at `address` with these keys: access key id, its secret, the token.
pub(super) fn print(address: &Address, [access_key_id, secret_access_key, token]: [&str; 3], format: Format) {
    let url = format!("http://{}", address.authority);
    let variables = [
        ("AWS_ENDPOINT_URL_LAMBDA", url.as_str()),
        ("AWS_ACCESS_KEY_ID", access_key_id),
        ("AWS_SECRET_ACCESS_KEY", secret_access_key),
        // Some clients read only the one, some only the other.
        ("AWS_REGION", REGION),
        ("AWS_DEFAULT_REGION", REGION),
        ("TAKT_URL", url.as_str()),
        ("TAKT_TOKEN", token),
    ];
    match format {
        Format::Json => {
            let object: Map<String, Value> =
                variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
            output::json(&Value::Object(object));
        }
        Format::Human => {
            for (name, value) in variables {
                println!("export {name}={}", quoted(value));
            }
        }
    }
}

/// A word that a POSIX shell reads back as exactly this text.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        assert_eq!(quoted("a b$c"), "'a b$c'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }
}
