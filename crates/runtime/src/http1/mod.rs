//! A small, strict HTTP/1.1 server codec: reads requests from a connection and writes responses to it, in turn.
//!
//! What the requests mean, and how long anybody may take, is left to the caller. One response is one write; one connection
//! holds one input buffer that is reused and shrinks after a large body; a connection can move between threads between two
//! requests or after a head was read. The invariant: no byte of one request is ever read as part of another. Whatever could
//! be read in two ways is refused with a typed [`Error`].

mod body;
mod error;
mod head;
mod response;

#[cfg(test)]
mod tests;

use std::future::pending;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, Method, Response};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use body::{Body, Step};
pub use error::Error;
use head::Wish;
pub use head::{Limits, MAX_HEADERS};
use response::Content;
pub use response::number;

/// The least room offered to one read.
const READ_BYTES: usize = 4 << 10;
/// The most room offered to one read, and so the size of the largest piece of [`Connection::read_piece`].
const MAX_READ_BYTES: usize = 64 << 10;
/// What is kept of either buffer between requests.
const KEPT_BYTES: usize = 16 << 10;
/// Bodies up to here are copied behind the head of their response; longer ones are written beside it (`writev`).
const JOINED_BYTES: usize = 16 << 10;
/// Empty lines forgiven before a request: clients that end bodies with one have nothing to say with more.
const EMPTY_LINES_MAX: usize = 4;
/// How much a client may send ahead while its response is pending, before it is no longer listened to.
const AHEAD_BYTES: usize = 64 << 10;
/// What is read and thrown away of a client that still sends after its connection was given up.
const LINGER_BYTES: usize = 1 << 20;
const GO_AHEAD: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What becomes of a connection after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    KeepAlive,
    Close,
}

/// What bytes that were read say of the request they begin with, before they are given to a [`Connection`].
#[derive(Debug)]
pub struct Peeked {
    pub parts: Parts,
    /// Bytes of the head, with the empty lines before it that are forgiven.
    pub head: usize,
    /// Bytes of the body behind it, where they are stated.
    pub body: Option<u64>,
    /// Its sender waits for `100 Continue` before it sends the body.
    pub awaits_go_ahead: bool,
}

/// Looks at a request whose head may be whole; `None` where more of it is to come. `seen` bytes were looked at before.
pub fn peek(input: &[u8], seen: usize, limits: &Limits) -> Result<Option<Peeked>, Error> {
    let skipped = head::empty_lines(input, EMPTY_LINES_MAX)?;
    let input = &input[skipped..];
    if input == b"\r" {
        return Ok(None);
    }
    let end = head::find_end(input, seen.saturating_sub(skipped))?;
    if limits.head_bytes < skipped + end.unwrap_or(input.len()) {
        return Err(Error::HeadTooLong { limit: limits.head_bytes });
    }
    let Some(end) = end else { return Ok(None) };
    let parts = head::parse(&Bytes::copy_from_slice(&input[..end]), limits)?;
    let body = match head::framing(&parts)? {
        head::Framing::Length(length) => Some(length),
        head::Framing::Chunked => None,
    };
    let awaits_go_ahead = head::expects_continue(&parts)?;
    Ok(Some(Peeked { parts, head: skipped + end, body, awaits_go_ahead }))
}

/// The server's side of one HTTP/1.1 connection.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    input: BytesMut,
    output: BytesMut,
    /// Bytes of `input` known not to end a head.
    seen: usize,
    /// Bytes of empty lines taken since the last head.
    skipped: usize,
    /// The request that was read and not yet answered.
    exchange: Option<Exchange>,
    after: After,
}

#[derive(Debug)]
struct Exchange {
    /// The head as it came, to be put back.
    raw: Option<Bytes>,
    method: Method,
    wish: Wish,
    go_ahead: GoAhead,
    body: Body,
    /// Content read so far for [`Connection::read_body`], here so that nothing is lost when the future is dropped.
    content: Vec<u8>,
    trailers: HeaderMap,
}

/// Whether the client waits for `100 Continue`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GoAhead {
    Awaited,
    NotAwaited,
}

impl Exchange {
    fn new(parts: &Parts, raw: Option<Bytes>) -> Result<Self, Error> {
        Ok(Self {
            raw,
            method: parts.method.clone(),
            wish: head::wish(parts),
            go_ahead: if head::expects_continue(parts)? { GoAhead::Awaited } else { GoAhead::NotAwaited },
            body: Body::new(head::framing(parts)?),
            content: Vec::new(),
            trailers: HeaderMap::new(),
        })
    }

    /// Whether another request may follow on its connection.
    fn lives_on(&self) -> bool {
        self.wish == Wish::KeepAlive && self.body.is_done()
    }
}

fn begun(exchange: &mut Option<Exchange>) -> &mut Exchange {
    exchange.as_mut().expect("invariant: whoever reads a body has begun its exchange")
}

impl<S> Connection<S> {
    pub fn new(stream: S) -> Self {
        Self::with_buffer(stream, BytesMut::new())
    }

    /// Takes over a connection between two requests of which `buffer` was read already.
    pub fn with_buffer(stream: S, buffer: BytesMut) -> Self {
        Self { stream, input: buffer, output: BytesMut::new(), seen: 0, skipped: 0, exchange: None, after: After::KeepAlive }
    }

    /// Takes over a connection whose next request's head was read as `parts`; `buffer` begins with the body.
    pub fn with_request(stream: S, buffer: BytesMut, parts: &Parts) -> Result<Self, Error> {
        let exchange = Some(Exchange::new(parts, None)?);
        Ok(Self { exchange, ..Self::with_buffer(stream, buffer) })
    }

    /// Gives the connection away with the bytes read and not yet used. After [`Connection::read_head`] they begin with the
    /// body; call [`Connection::unread_head`] first where the receiver shall read the head again.
    pub fn into_parts(self) -> (S, BytesMut) {
        (self.stream, self.input)
    }

    /// Puts the head that was just read back in front of the input, as it came. Returns whether that was possible: it is
    /// until the body was asked for.
    #[must_use]
    pub fn unread_head(&mut self) -> bool {
        let Some(raw) = self.exchange.as_mut().and_then(|exchange| exchange.raw.take()) else { return false };
        let mut input = BytesMut::with_capacity(raw.len() + self.input.len() + READ_BYTES);
        input.extend_from_slice(&raw);
        input.extend_from_slice(&self.input);
        self.input = input;
        self.seen = 0;
        self.exchange = None;
        true
    }

    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Bytes that were read and belong to no request yet: whether the client sent ahead.
    pub fn buffered(&self) -> usize {
        self.input.len()
    }

    /// Whether the whole head of the next request was read already: its sender waits for nothing before it.
    #[must_use]
    pub fn has_next(&self) -> bool {
        let rest = head::empty_lines(&self.input, EMPTY_LINES_MAX).map(|skipped| &self.input[skipped..]);
        rest.and_then(|rest| head::find_end(rest, 0)).is_ok_and(|end| end.is_some())
    }

    /// The trailers of the body that was read last; empty when it had none.
    pub fn take_trailers(&mut self) -> HeaderMap {
        self.exchange.as_mut().map(|exchange| std::mem::take(&mut exchange.trailers)).unwrap_or_default()
    }

    /// Takes a complete head from the input, if one is there.
    fn take_head(&mut self, limits: &Limits) -> Result<Option<Parts>, Error> {
        // RFC 9112 section 2.2: empty lines before a request are forgiven, as some clients end bodies with one.
        if self.seen == 0 {
            let skipped = head::empty_lines(&self.input, EMPTY_LINES_MAX - self.skipped / 2)?;
            self.input.advance(skipped);
            self.skipped += skipped;
        }
        if self.input[..] == b"\r"[..] {
            return Ok(None);
        }
        let end = head::find_end(&self.input, self.seen)?;
        if limits.head_bytes < self.skipped + end.unwrap_or(self.input.len()) {
            return Err(Error::HeadTooLong { limit: limits.head_bytes });
        }
        let Some(end) = end else {
            self.seen = self.input.len();
            return Ok(None);
        };
        // Copied once, so that the input buffer stays ours alone and is used again.
        let raw = Bytes::copy_from_slice(&self.input[..end]);
        self.input.advance(end);
        (self.seen, self.skipped) = (0, 0);
        let parts = head::parse(&raw, limits)?;
        self.exchange = Some(Exchange::new(&parts, Some(raw))?);
        Ok(Some(parts))
    }

    /// The exchange that `parts` began, begun again where it was on another connection object.
    fn exchange(&mut self, parts: &Parts) -> Result<&mut Exchange, Error> {
        if self.exchange.is_none() {
            self.exchange = Some(Exchange::new(parts, None)?);
        }
        let exchange = begun(&mut self.exchange);
        exchange.raw = None;
        Ok(exchange)
    }

    /// Drops content that was copied away from the front of the input.
    fn consume(&mut self, count: usize) {
        self.input.advance(count);
        begun(&mut self.exchange).body.took(count);
    }

    /// Answers the request that was read, but keeps the answer until the next one is written: for a client that has sent its
    /// next request already and reads both answers together. A connection that holds an answer is not to be given away. A
    /// response after which the connection closes is given back, and so is what would make more than 16 KiB.
    #[must_use]
    pub fn hold_response(&mut self, response: Response<Bytes>) -> Option<Response<Bytes>> {
        let lives_on = self.exchange.as_ref().is_some_and(Exchange::lives_on);
        if !lives_on || JOINED_BYTES < self.output.len() + response.body().len() {
            return Some(response);
        }
        let (_, body) = self.encode(response, After::KeepAlive);
        self.output.extend_from_slice(&body);
        None
    }

    /// Appends the head of a response to the output. Returns what becomes of the connection, and the body to send.
    fn encode(&mut self, response: Response<Bytes>, after: After) -> (After, Bytes) {
        let exchange = self.exchange.take();
        let after = if exchange.as_ref().is_some_and(Exchange::lives_on) { after } else { After::Close };
        let method = exchange.map_or(Method::GET, |exchange| exchange.method);
        let content = response::content(response.status(), &method);
        response::write_head(&mut self.output, &response, content, after);
        let body = match content {
            Content::Sent => response.into_body(),
            Content::Told | Content::Never => Bytes::new(),
        };
        (after, body)
    }

    fn shrink(&mut self) {
        // A buffer's capacity is what lies behind its reading position; only reclaiming shows its true size.
        for buffer in [&mut self.input, &mut self.output] {
            if buffer.is_empty() && buffer.try_reclaim(KEPT_BYTES + 1) {
                *buffer = BytesMut::new();
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Reads the head of the next request; `None` when the connection ended between two requests. Can be cancelled and
    /// called again.
    ///
    /// # Panics
    /// When the request before was not answered.
    pub async fn read_head(&mut self, limits: &Limits) -> Result<Option<Parts>, Error> {
        assert!(self.exchange.is_none(), "a request must be answered before the next is read");
        if self.after == After::Close {
            return Ok(None);
        }
        loop {
            if let Some(parts) = self.take_head(limits)? {
                return Ok(Some(parts));
            }
            if self.fill(READ_BYTES).await? == 0 {
                return if self.input.is_empty() { Ok(None) } else { Err(Error::Truncated) };
            }
        }
    }

    /// Waits until something of the next request is there; `false` when the connection ended before. Can be cancelled and
    /// called again.
    pub async fn begins(&mut self) -> Result<bool, Error> {
        if self.after == After::Close {
            return Ok(false);
        }
        Ok(!self.input.is_empty() || 0 < self.fill(READ_BYTES).await?)
    }

    /// Reads the whole body of the request `parts` began, at most `max` bytes. A length stated above `max` is refused
    /// before anything is read. Can be cancelled and called again.
    pub async fn read_body(&mut self, parts: &Parts, max: usize) -> Result<Bytes, Error> {
        let exchange = self.exchange(parts)?;
        let too_long = Error::BodyTooLong { limit: max };
        if (max as u64) < exchange.body.left() {
            return Err(too_long);
        }
        while let Step::Take(count) = self.step().await? {
            let exchange = begun(&mut self.exchange);
            if ((max - exchange.content.len()) as u64) < exchange.body.left() {
                return Err(too_long); // a chunk's size condemns it before its content is here
            }
            if exchange.content.is_empty() {
                let left = usize::try_from(exchange.body.left()).unwrap_or(max).min(MAX_READ_BYTES);
                exchange.content.reserve_exact(left.max(count));
            }
            exchange.content.extend_from_slice(&self.input[..count]);
            self.consume(count);
        }
        let exchange = begun(&mut self.exchange);
        Ok(Bytes::from(std::mem::take(&mut exchange.content)))
    }

    /// Reads the next piece of the body, 1 to 65,536 bytes; `None` at its end. The caller keeps the sum in bounds. Can be
    /// cancelled and called again.
    pub async fn read_piece(&mut self, parts: &Parts) -> Result<Option<Bytes>, Error> {
        self.exchange(parts)?;
        match self.step().await? {
            Step::Take(count) => {
                let count = count.min(MAX_READ_BYTES);
                let piece = Bytes::copy_from_slice(&self.input[..count]);
                self.consume(count);
                Ok(Some(piece))
            }
            Step::NeedMore | Step::Done => Ok(None),
        }
    }

    /// Reads and throws away what is left of the body, at most `max` bytes, so that a refusal reaches a client that reads
    /// only after it has sent everything. Can be cancelled and called again.
    pub async fn discard_body(&mut self, parts: &Parts, max: usize) -> Result<(), Error> {
        self.exchange(parts)?.content = Vec::new();
        let mut left = max;
        while let Step::Take(count) = self.step().await? {
            left = left.checked_sub(count).ok_or(Error::BodyTooLong { limit: max })?;
            self.consume(count);
        }
        Ok(())
    }

    /// Answers the request that was read, in one write, and says whether another may follow. `after` is what the caller
    /// wants; the connection closes also when the client asked for it or part of its body was left unread. When this is
    /// cancelled or fails, the connection is not used again.
    pub async fn write_response(&mut self, response: Response<Bytes>, after: After) -> Result<After, Error> {
        let (after, body) = self.encode(response, after);
        self.after = After::Close; // until the whole response is out
        let written = if body.len() <= JOINED_BYTES {
            self.output.extend_from_slice(&body);
            self.stream.write_all(&self.output).await
        } else {
            self.stream.write_all_buf(&mut (&mut self.output).chain(body)).await
        };
        written.map_err(|source| Error::Io { source })?;
        self.output.clear();
        self.stream.flush().await.map_err(|source| Error::Io { source })?;
        self.after = after;
        self.shrink();
        Ok(after)
    }

    /// Ends when the client has closed its side or the connection broke: what to wait for beside a pending response. What
    /// the client sends ahead is kept, up to 65,536 bytes; beyond them it is no longer listened to and this never ends.
    /// Can be cancelled and called again.
    pub async fn closed(&mut self) {
        loop {
            if AHEAD_BYTES <= self.input.len() {
                return pending().await;
            }
            match self.fill(READ_BYTES).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    /// Closes the connection so that the last response arrives: says that nothing follows, then throws away what the client
    /// still sends (at most 1 MiB) until it closes too. A plain drop with unread input would reset the connection.
    pub async fn close(mut self) -> Result<(), Error> {
        self.stream.shutdown().await.map_err(|source| Error::Io { source })?;
        let mut left = LINGER_BYTES;
        loop {
            self.input.clear();
            // Many connections may end at the same time: little room for each.
            let count = self.fill(READ_BYTES).await?;
            left = left.saturating_sub(count);
            if count == 0 || left == 0 {
                return Ok(());
            }
        }
    }

    /// The next step of the body, with as many reads as it takes.
    async fn step(&mut self) -> Result<Step, Error> {
        loop {
            let exchange = begun(&mut self.exchange);
            match exchange.body.step(&mut self.input, &mut exchange.trailers)? {
                Step::NeedMore => {}
                step @ (Step::Take(_) | Step::Done) => return Ok(step),
            }
            let room = usize::try_from(exchange.body.left()).unwrap_or(MAX_READ_BYTES);
            if exchange.go_ahead == GoAhead::Awaited {
                self.output.extend_from_slice(GO_AHEAD); // behind what is held
                self.stream.write_all_buf(&mut self.output).await.map_err(|source| Error::Io { source })?;
                self.stream.flush().await.map_err(|source| Error::Io { source })?;
                begun(&mut self.exchange).go_ahead = GoAhead::NotAwaited;
            }
            if self.fill(room.clamp(READ_BYTES, MAX_READ_BYTES)).await? == 0 {
                return Err(Error::Truncated);
            }
        }
    }

    /// Reads once, with at least `room` bytes of room and no more than that or the 16 KiB that are kept anyway: a buffer that
    /// grew does not make the next read larger. Zero is the end of the stream.
    async fn fill(&mut self, room: usize) -> Result<usize, Error> {
        self.input.reserve(room);
        let spare = self.input.capacity() - self.input.len();
        let room = room.max(spare.min(KEPT_BYTES));
        self.stream.read_buf(&mut (&mut self.input).limit(room)).await.map_err(|source| Error::Io { source })
    }
}
