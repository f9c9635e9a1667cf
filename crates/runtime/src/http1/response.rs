//! Writes the head of a response. The codec alone decides how the body is framed and whether the connection lives on.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, Response, StatusCode, header};

use super::After;

/// Whether the body goes over the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Sent,
    /// The request was a HEAD: its length is told, nothing follows.
    Told,
    /// The status allows none (1xx, 204, 304).
    Never,
}

pub(super) fn content(status: StatusCode, method: &http::Method) -> Content {
    match status {
        _ if status.is_informational() => Content::Never,
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => Content::Never,
        _ if *method == http::Method::HEAD => Content::Told,
        _ => Content::Sent,
    }
}

/// Appends status line and headers to `out`. `Content-Length`, `Transfer-Encoding` and `Connection` in the response are
/// replaced by what is true.
pub(super) fn write_head(out: &mut BytesMut, response: &Response<Bytes>, content: Content, after: After) {
    let status = response.status();
    out.reserve(256);
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(status.canonical_reason().unwrap_or("").as_bytes());
    out.put_slice(b"\r\n");
    for (name, value) in response.headers() {
        if [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION].contains(name) {
            continue;
        }
        out.put_slice(name.as_str().as_bytes());
        out.put_slice(b": ");
        out.put_slice(value.as_bytes());
        out.put_slice(b"\r\n");
    }
    match content {
        Content::Sent | Content::Told => write_length(out, response.body().len()),
        Content::Never => {}
    }
    out.put_slice(match after {
        After::KeepAlive => b"connection: keep-alive\r\n\r\n",
        After::Close => b"connection: close\r\n\r\n",
    });
}

/// A number as a header's value: one allocation, and without the formatter, which costs more than the rest of a short head.
#[must_use]
pub fn number(value: u64) -> HeaderValue {
    let mut digits = [0; DIGITS_MAX];
    HeaderValue::from_bytes(decimal(value, &mut digits)).unwrap_or_else(|_| unreachable!("digits are a header value"))
}

const DIGITS_MAX: usize = 20;

/// The decimal digits of a number.
fn decimal(value: u64, digits: &mut [u8; DIGITS_MAX]) -> &[u8] {
    let mut at = DIGITS_MAX;
    let mut rest = value;
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
        if rest == 0 {
            return &digits[at..];
        }
    }
}

fn write_length(out: &mut BytesMut, length: usize) {
    out.put_slice(b"content-length: ");
    out.put_slice(decimal(length as u64, &mut [0; DIGITS_MAX]));
    out.put_slice(b"\r\n");
}
