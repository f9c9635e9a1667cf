//! `/v1/functions/{name}/logs`: what instances printed, once or as it comes.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::header;
use hyper::body::Frame;
use model::FunctionName;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;

use super::functions::name;
use super::{Error, MAX_FOLLOWERS, Shared};
use crate::logs::{Logs, Page};

/// Lines of one answer, and of one piece of a stream.
const MAX_LINES: u64 = 10_000;
const PIECE_LINES: usize = 500;
/// Pieces made ahead of a slow reader.
const MAX_PIECES: usize = 4;

/// Which lines are wanted, and how.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// From this line on; a function's lines are numbered from 0. Absent: the newest.
    #[serde(default)]
    from: Option<u64>,
    /// At most this many of the newest, 1 to 10,000; by default 1,000.
    #[serde(default)]
    lines: Option<u64>,
    /// `true`: the answer goes on as lines come.
    #[serde(default)]
    follow: bool,
    #[serde(default)]
    format: Format,
}

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Format {
    /// As they were printed.
    #[default]
    Text,
    /// One JSON document per line: `number`, `at_ms`, `instance`, `text`; or `lost`, how many are no longer kept.
    Json,
}

#[utoipa::path(get, path = "/v1/functions/{name}/logs", params(("name" = String, Path), ("from" = Option<u64>, Query), ("lines" = Option<u64>, Query),
        ("follow" = bool, Query), ("format" = String, Query, description = "`text` or `json`")),
    responses((status = 200, content_type = "text/plain"), (status = 404)))]
pub(super) async fn read(
    State(shared): State<Shared>,
    Path(text): Path<String>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Error> {
    let name = name(&text)?;
    shared.control.view().function(&name)?;
    let lines = wanted.lines.unwrap_or(1_000).clamp(1, MAX_LINES);
    let from = wanted.from.unwrap_or_else(|| shared.logs.tail_from(&name, lines));
    let kind = match wanted.format {
        Format::Text => "text/plain; charset=utf-8",
        Format::Json => "application/x-ndjson",
    };
    let body = if wanted.follow {
        let permit = Arc::clone(&shared.followers).try_acquire_owned();
        let permit = permit.map_err(|_| Error::Busy { what: "followers of logs", limit: MAX_FOLLOWERS })?;
        Body::new(Follow::start(shared.logs.clone(), name, from, wanted.format, permit))
    } else {
        let limit = usize::try_from(lines).unwrap_or(usize::MAX);
        Body::from(written(&shared.logs.read(&name, from, limit), wanted.format))
    };
    Ok(([(header::CONTENT_TYPE, kind)], body).into_response())
}

fn written(page: &Page, format: Format) -> String {
    let mut text = String::new();
    // Writing into a `String` does not fail.
    let _infallible = match format {
        Format::Text => write_text(&mut text, page),
        Format::Json => write_json(&mut text, page),
    };
    text
}

fn write_text(text: &mut String, page: &Page) -> std::fmt::Result {
    if 0 < page.lost {
        writeln!(text, "[{} lines are no longer kept]", page.lost)?;
    }
    page.lines.iter().try_for_each(|line| writeln!(text, "{}", line.line.text))
}

fn write_json(text: &mut String, page: &Page) -> std::fmt::Result {
    if 0 < page.lost {
        writeln!(text, "{}", serde_json::json!({ "lost": page.lost }))?;
    }
    page.lines.iter().try_for_each(|it| {
        let (number, line) = (it.number, &it.line);
        let document =
            serde_json::json!({ "number": number, "at_ms": line.at_ms, "instance": line.instance.to_string(), "text": line.text });
        writeln!(text, "{document}")
    })
}

/// A body that goes on until its reader goes away.
struct Follow {
    pieces: mpsc::Receiver<String>,
    /// Ends with the body.
    _feeder: JoinSet<()>,
    _permit: OwnedSemaphorePermit,
}

impl Follow {
    fn start(logs: Logs, function: FunctionName, from: u64, format: Format, permit: OwnedSemaphorePermit) -> Self {
        let (sender, pieces) = mpsc::channel(MAX_PIECES);
        let mut feeder = JoinSet::new();
        feeder.spawn(feed(logs, function, from, format, sender));
        Self { pieces, _feeder: feeder, _permit: permit }
    }
}

async fn feed(logs: Logs, function: FunctionName, mut from: u64, format: Format, pieces: mpsc::Sender<String>) {
    let mut changes = logs.changes();
    loop {
        changes.mark_unchanged();
        let page = logs.read(&function, from, PIECE_LINES);
        from = page.next;
        if !page.lines.is_empty() {
            if pieces.send(written(&page, format)).await.is_err() {
                return;
            }
            continue;
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

impl HttpBody for Follow {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = |piece: String| Ok(Frame::data(Bytes::from(piece)));
        self.pieces.poll_recv(context).map(|piece| piece.map(frame))
    }
}
