//! The head of a request: where it ends, what it says, how its body is framed.
//!
//! `httparse` is lenient where proxies and servers have disagreed and requests were smuggled between them; everything it
//! lets through beyond RFC 9112's grammar is refused here.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header};

use super::Error;

/// The most headers [`Limits::headers`] can allow.
pub const MAX_HEADERS: usize = 128;
const CRLF: &[u8] = b"\r\n";
/// More digits than this do not fit in a `u64` for certain.
const MAX_LENGTH_DIGITS: usize = 19;

/// What a request's head may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Request line and headers together, in bytes, with the empty line that ends them.
    pub head_bytes: usize,
    /// Number of headers, at most [`MAX_HEADERS`].
    pub headers: usize,
}

impl Default for Limits {
    /// 32 KiB in 100 headers: room for a signed call with the largest client context AWS allows.
    fn default() -> Self {
        Self { head_bytes: 32 << 10, headers: 100 }
    }
}

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
}

/// Whether the client wants the connection to live on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    KeepAlive,
    Close,
}

/// Bytes of the empty lines that `bytes` begin with; more lines than `most` are refused.
pub(super) fn empty_lines(bytes: &[u8], most: usize) -> Result<usize, Error> {
    let count = bytes.chunks_exact(CRLF.len()).take(most + 1).take_while(|line| *line == CRLF).count();
    if most < count {
        return Err(Error::Head { reason: "too many empty lines before it" });
    }
    Ok(count * CRLF.len())
}

/// Finds the end of a head (or of trailers): the offset behind the first empty line. `seen` bytes were looked at before.
/// A CR or LF that does not stand in a CRLF pair is refused as soon as it is seen.
pub(super) fn find_end(bytes: &[u8], seen: usize) -> Result<Option<usize>, Error> {
    // An empty line may straddle what was seen: step back over its beginning.
    let mut at = seen.saturating_sub(3);
    while at < bytes.len() {
        let Some(offset) = bytes[at..].iter().position(|byte| *byte == b'\r' || *byte == b'\n') else { return Ok(None) };
        at += offset;
        let pair = match bytes[at] {
            b'\n' if at == 0 || bytes[at - 1] != b'\r' => {
                return Err(Error::Head { reason: "a line feed without carriage return" });
            }
            b'\n' => {
                at += 1;
                continue;
            }
            _ => bytes.get(at..at + 2),
        };
        match pair {
            None => return Ok(None),
            Some(CRLF) if 2 <= at && &bytes[at - 2..at] == CRLF => return Ok(Some(at + 2)),
            Some(CRLF) => at += 2,
            Some(_) => return Err(Error::Head { reason: "a carriage return without line feed" }),
        }
    }
    Ok(None)
}

/// Reads a complete head, as found by [`find_end`]. The parts share `raw`.
pub(super) fn parse(raw: &Bytes, limits: &Limits) -> Result<Parts, Error> {
    let limit = limits.headers.min(MAX_HEADERS);
    let mut slots = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut []);
    let status = httparse::ParserConfig::default()
        .parse_request_with_uninit_headers(&mut head, raw, &mut slots[..limit])
        .map_err(|error| refusal(error, limit))?;
    if !matches!(status, httparse::Status::Complete(length) if length == raw.len()) {
        return Err(Error::Head { reason: "an empty line in its middle" });
    }
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = method(head.method.unwrap_or_default())?;
    parts.uri = target(raw, head.path.unwrap_or_default(), &parts.method)?;
    parts.version = if head.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    parts.headers = headers(raw, head.headers)?;
    check_host(&parts)?;
    framing(&parts)?;
    expects_continue(&parts)?;
    Ok(parts)
}

fn refusal(error: httparse::Error, limit: usize) -> Error {
    match error {
        httparse::Error::TooManyHeaders => Error::TooManyHeaders { limit },
        httparse::Error::Version => Error::Version,
        httparse::Error::HeaderName => Error::Head { reason: "an invalid header name" },
        httparse::Error::HeaderValue => Error::Head { reason: "an invalid header value" },
        httparse::Error::NewLine => Error::Head { reason: "an invalid line end" },
        httparse::Error::Status | httparse::Error::Token => Error::Head { reason: "an invalid request line" },
    }
}

fn method(text: &str) -> Result<Method, Error> {
    match Method::from_bytes(text.as_bytes()) {
        Ok(Method::CONNECT) => Err(Error::Method),
        Ok(method) => Ok(method),
        Err(_) => Err(Error::Head { reason: "an invalid method" }),
    }
}

fn target(raw: &Bytes, text: &str, method: &Method) -> Result<Uri, Error> {
    let error = Error::Head { reason: "an invalid request target" };
    let plain = text.bytes().all(|byte| matches!(byte, 0x21..=0x7e) && byte != b'#');
    let shaped = text.starts_with('/')
        || text.starts_with("http://")
        || text.starts_with("https://")
        || (text == "*" && *method == Method::OPTIONS);
    if !plain || !shaped {
        return Err(error);
    }
    Uri::from_maybe_shared(raw.slice_ref(text.as_bytes())).map_err(|_| error)
}

/// Copies header lines into a map whose values share `raw`.
pub(super) fn headers(raw: &Bytes, lines: &[httparse::Header<'_>]) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::with_capacity(lines.len());
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| Error::Head { reason: "an invalid header name" })?;
        let value = HeaderValue::from_maybe_shared(raw.slice_ref(line.value))
            .map_err(|_| Error::Head { reason: "an invalid header value" })?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// RFC 9112 section 3.2: one `Host`, and in HTTP/1.1 no request without.
fn check_host(parts: &Parts) -> Result<(), Error> {
    let hosts = parts.headers.get_all(header::HOST).iter().count();
    if 1 < hosts || (hosts == 0 && parts.version == Version::HTTP_11) {
        return Err(Error::Head { reason: "not exactly one `Host` header" });
    }
    Ok(())
}

/// RFC 9112 section 6.3, with every doubtful case refused.
pub(super) fn framing(parts: &Parts) -> Result<Framing, Error> {
    let mut codings = parts.headers.get_all(header::TRANSFER_ENCODING).iter();
    let mut lengths = parts.headers.get_all(header::CONTENT_LENGTH).iter();
    let (coding, length) = (codings.next(), lengths.next());
    if codings.next().is_some() || lengths.next().is_some() {
        return Err(Error::Framing { reason: "it states a length or coding twice" });
    }
    match (coding, length) {
        (Some(_), Some(_)) => Err(Error::Framing { reason: "it states both a length and a coding" }),
        (Some(_), None) if parts.version == Version::HTTP_10 => {
            Err(Error::Framing { reason: "HTTP/1.0 knows no transfer codings" })
        }
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        (Some(_), None) => Err(Error::Coding),
        (None, Some(length)) => content_length(length).map(Framing::Length),
        (None, None) => Ok(Framing::Length(0)),
    }
}

fn content_length(value: &HeaderValue) -> Result<u64, Error> {
    let digits = value.as_bytes();
    let error = Error::Framing { reason: "its `Content-Length` is not a number of bytes" };
    if digits.is_empty() || MAX_LENGTH_DIGITS < digits.len() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(error);
    }
    value.to_str().ok().and_then(|text| text.parse().ok()).ok_or(error)
}

/// Whether the client waits for a go-ahead before it sends the body. HTTP/1.0 knows no expectations.
pub(super) fn expects_continue(parts: &Parts) -> Result<bool, Error> {
    match parts.headers.get(header::EXPECT) {
        None => Ok(false),
        Some(_) if parts.version == Version::HTTP_10 => Ok(false),
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => Ok(true),
        Some(_) => Err(Error::Expectation),
    }
}

/// RFC 9112 section 9.3.
pub(super) fn wish(parts: &Parts) -> Wish {
    let has = |wanted: &str| {
        let values = parts.headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case(wanted))
    };
    if has("close") || (parts.version == Version::HTTP_10 && !has("keep-alive")) { Wish::Close } else { Wish::KeepAlive }
}
