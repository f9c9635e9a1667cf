//! The management front: it takes over the connections that ask for anything but an invocation.
//!
//! Each of its connections serves one request and is closed. A client that deploys and then invokes over one pooled
//! connection thereby comes back through the guaranteed lane, where invocations belong.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::{Buf, BytesMut};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tower::ServiceExt;

use crate::auth::sigv4::PayloadHash;
use crate::auth::{Access, Denied, Grant, PathClass};
use crate::front::today;
use model::UrlAccess;

use crate::lane::{self, message::Moved};
use crate::management;

/// Management connections at once; one more is refused unread.
pub(crate) const CONNECTIONS_MAX: usize = 256;
/// Connections that may wait to be taken over.
pub(crate) const QUEUE_MAX: usize = 256;
/// A request's head must be there within this time.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Requests that run when the node stops may end within this time.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// A signed body must be there within this time.
const BODY_WITHIN: Duration = Duration::from_secs(120);

/// Serves moved connections, so many at once, until `stop` turns true, then lets running requests end.
pub(crate) async fn serve(
    (mut moved, most): (mpsc::Receiver<Moved>, usize),
    (router, access): (Router, Arc<Mutex<Access>>),
    mut stop: watch::Receiver<bool>,
) {
    let gate = Gate { router, access };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            next = moved.recv() => match next {
                Some(connection) if connections.len() < most => {
                    let gate = gate.clone();
                    connections.spawn(async move {
                        // A broken management connection concerns its client alone, which sees it break.
                        let _ = serve_one(connection, gate).await;
                    });
                }
                Some(connection) => lane::close_busy(&connection.stream),
                None => break,
            },
            Some(_) = connections.join_next() => {}
            _ = stop.changed() => break,
        }
    }
    // What follows a log, or sends its body for ever, does not end by itself.
    let ended = timeout(STOP_WITHIN, async { while connections.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        connections.shutdown().await;
    }
}

async fn serve_one(moved: Moved, gate: Gate) -> Result<(), hyper::Error> {
    let Ok(stream) = TcpStream::from_std(moved.stream) else { return Ok(()) };
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let gate = gate.clone();
        async move { Ok::<_, Infallible>(gate.pass(request).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .serve_connection(TokioIo::new(Resumed { unread: moved.unread, stream }), service)
        .await
}

/// Lets requests through to the paths that may ask what they ask.
#[derive(Clone)]
struct Gate {
    router: Router,
    /// Only this thread's tasks take the lock, for the time of one check.
    access: Arc<Mutex<Access>>,
}

impl Gate {
    async fn pass(&self, request: Request<hyper::body::Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let class = PathClass::of(parts.uri.path());
        let checked = {
            let mut access = self.access.lock().unwrap_or_else(PoisonError::into_inner);
            access.check(&parts, class, UrlAccess::Keyed, today())
        };
        let request = match checked {
            Ok(Grant::Open | Grant::Token) => Request::from_parts(parts, Body::new(body)),
            Ok(Grant::Signature(unproven)) => {
                // The signature covers the body, which must therefore be here before anything is done.
                let body = Limited::new(body, management::MAX_PACKAGE_REQUEST_BYTES).collect();
                let Ok(Ok(body)) = timeout(BODY_WITHIN, body).await else {
                    let mut response = Response::new(Body::empty());
                    *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
                    return response;
                };
                let body = body.to_bytes();
                if let Err(error) = unproven.finish(PayloadHash::of(&body)) {
                    return Denied::from(error).response(class).map(Body::from);
                }
                Request::from_parts(parts, Body::from(body))
            }
            Err(denied) => return denied.response(class).map(Body::from),
        };
        self.router.clone().oneshot(request).await.unwrap_or_else(|never: Infallible| match never {})
    }
}

/// A stream whose first bytes were read already.
struct Resumed {
    unread: BytesMut,
    stream: TcpStream,
}

impl AsyncRead for Resumed {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let count = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Resumed {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
