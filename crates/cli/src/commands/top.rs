//! `takt top`: a node, live.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Result, bail};
use http::Method;
use tokio::time::Instant;

use crate::args::TopArgs;
use crate::client::Client;
use crate::exit::Exit;
use crate::output::{self, Format};
use crate::top::{Frame, Metrics, show, text};

const INTERVAL: Duration = Duration::from_secs(1);
/// Of a frame that is text.
const WIDTH: u16 = 120;

/// Shows the view, or one frame of it.
pub fn run(args: &TopArgs, format: Format) -> Result<Exit> {
    let client = Client::new(&args.node)?;
    let ask = |path: &str| client.call(Method::GET, path, None)?.success();
    if format == Format::Json {
        output::json(&serde_json::json!({ "node": ask("/v1/node")?, "functions": ask("/v1/functions")?["functions"] }));
        return Ok(Exit::Ok);
    }
    let mut before: Option<(Frame, Instant)> = None;
    let mut look = || {
        let (node, functions) = (ask("/v1/node")?, ask("/v1/functions")?);
        let page = client.call(Method::GET, "/metrics", None)?;
        if !page.status.is_success() {
            bail!("{}", page.message());
        }
        let metrics = Metrics::read(&String::from_utf8_lossy(&page.body));
        let now = Instant::now();
        let frame = Frame::read(&node, &functions, &metrics, before.as_ref().map(|(frame, at)| (frame, now - *at)));
        before = Some((frame.clone(), now));
        Ok(frame)
    };
    if !std::io::stdout().is_terminal() {
        print!("{}", text(&look()?, &args.node.url, WIDTH));
    } else {
        show(&args.node.url, INTERVAL, look)?;
    }
    Ok(Exit::Ok)
}
