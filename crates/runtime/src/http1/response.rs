//! Writes the head of a response. The codec alone decides how the body is framed and whether the connection lives on.

use bytes::{BufMut, Bytes, BytesMut};
use http::{Response, StatusCode, header};

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

/// Without the formatter, which costs more than the rest of a short head.
fn write_length(out: &mut BytesMut, length: usize) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    let mut rest = length;
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.put_slice(b"content-length: ");
    out.put_slice(&digits[at..]);
    out.put_slice(b"\r\n");
}
