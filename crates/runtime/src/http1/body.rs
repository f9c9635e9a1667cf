//! The body of a request as it lies in the input buffer: which of the next bytes are content.

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use super::Error;
use super::head::{Framing, find_end, headers};

/// A chunk's size line, its extensions included.
const MAX_SIZE_LINE_BYTES: usize = 256;
/// Trailers together. The Runtime API's streaming mode carries a whole error in one.
const MAX_TRAILER_BYTES: usize = 64 << 10;
const MAX_TRAILERS: usize = 16;
const CRLF: &[u8] = b"\r\n";

/// Where in a body the input buffer begins.
#[derive(Debug)]
pub(super) enum Body {
    Content { left: u64 },
    ChunkSize,
    Chunk { left: u64 },
    ChunkEnd,
    Trailers { seen: usize },
    Done,
}

/// What the next step of a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The first so many bytes of the buffer (at least one) are content; take them, then call [`Body::took`].
    Take(usize),
    /// Nothing can be said before more bytes are there.
    NeedMore,
    Done,
}

impl Body {
    pub(super) fn new(framing: Framing) -> Self {
        match framing {
            Framing::Length(0) => Self::Done,
            Framing::Length(left) => Self::Content { left },
            Framing::Chunked => Self::ChunkSize,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// A lower bound on the bytes still to come, zero when unknown.
    pub(super) fn left(&self) -> u64 {
        match self {
            Self::Content { left } | Self::Chunk { left } => *left,
            Self::ChunkSize | Self::ChunkEnd | Self::Trailers { .. } | Self::Done => 0,
        }
    }

    /// Consumes framing from the buffer until content, the end, or a lack of bytes. Trailers are added to `trailers`.
    pub(super) fn step(&mut self, buffer: &mut BytesMut, trailers: &mut HeaderMap) -> Result<Step, Error> {
        loop {
            *self = match self {
                Self::Done => return Ok(Step::Done),
                Self::Content { left } | Self::Chunk { left } => {
                    if buffer.is_empty() {
                        return Ok(Step::NeedMore);
                    }
                    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                    return Ok(Step::Take(here));
                }
                Self::ChunkSize => match size_line(buffer)? {
                    None => return Ok(Step::NeedMore),
                    Some((0, length)) => {
                        // The line's own end stays, so that an empty list of trailers ends with an empty line too.
                        buffer.advance(length - CRLF.len());
                        Self::Trailers { seen: 0 }
                    }
                    Some((left, length)) => {
                        buffer.advance(length);
                        Self::Chunk { left }
                    }
                },
                Self::ChunkEnd => match buffer.get(..2) {
                    Some(CRLF) => {
                        buffer.advance(2);
                        Self::ChunkSize
                    }
                    None if buffer.is_empty() || buffer[..] == CRLF[..1] => return Ok(Step::NeedMore),
                    Some(_) | None => return Err(Error::Framing { reason: "a chunk is longer than its size" }),
                },
                Self::Trailers { seen } => match find_end(buffer, *seen)? {
                    Some(end) if end <= MAX_TRAILER_BYTES => {
                        read_trailers(&Bytes::copy_from_slice(&buffer[CRLF.len()..end]), trailers)?;
                        buffer.advance(end);
                        Self::Done
                    }
                    None if buffer.len() <= MAX_TRAILER_BYTES => {
                        *seen = buffer.len();
                        return Ok(Step::NeedMore);
                    }
                    Some(_) | None => return Err(Error::HeadTooLong { limit: MAX_TRAILER_BYTES }),
                },
            };
        }
    }

    /// The caller took `count` bytes of content from the front of the buffer.
    ///
    /// # Panics
    /// When there was less content.
    pub(super) fn took(&mut self, count: usize) {
        let count = count as u64;
        *self = match *self {
            Self::Content { left } if left == count => Self::Done,
            Self::Content { left } if count < left => Self::Content { left: left - count },
            Self::Chunk { left } if left == count => Self::ChunkEnd,
            Self::Chunk { left } if count < left => Self::Chunk { left: left - count },
            ref other @ (Self::Content { .. }
            | Self::ChunkSize
            | Self::Chunk { .. }
            | Self::ChunkEnd
            | Self::Trailers { .. }
            | Self::Done) => unreachable!("{count} bytes taken from {other:?}"),
        };
    }
}

/// The size a chunk's first line states, and the line's length with its end.
fn size_line(buffer: &[u8]) -> Result<Option<(u64, usize)>, Error> {
    let error = Error::Framing { reason: "an invalid chunk size" };
    let window = &buffer[..buffer.len().min(MAX_SIZE_LINE_BYTES)];
    let Some(end) = window.iter().position(|byte| *byte == b'\r' || *byte == b'\n') else {
        let digits = window.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let hopeless = 16 < digits || (digits == 0 && !window.is_empty()) || window.len() == MAX_SIZE_LINE_BYTES;
        return if hopeless { Err(error) } else { Ok(None) };
    };
    let line = &window[..end];
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let extension = &line[digits..];
    let fine = (1..=16).contains(&digits)
        && (extension.is_empty() || extension[0] == b';')
        && extension.iter().all(|byte| matches!(byte, b'\t' | 0x20..=0x7e));
    if !fine || window[end] == b'\n' {
        return Err(error);
    }
    let text = std::str::from_utf8(&line[..digits]).unwrap_or_default();
    let Ok(size) = u64::from_str_radix(text, 16) else { return Err(error) };
    match buffer.get(end + 1) {
        None => Ok(None),
        Some(b'\n') => Ok(Some((size, end + 2))),
        Some(_) => Err(error),
    }
}

fn read_trailers(raw: &Bytes, trailers: &mut HeaderMap) -> Result<(), Error> {
    let mut slots = [httparse::EMPTY_HEADER; MAX_TRAILERS];
    match httparse::parse_headers(raw, &mut slots) {
        Ok(httparse::Status::Complete((_, lines))) => {
            *trailers = headers(raw, lines)?;
            Ok(())
        }
        Err(httparse::Error::TooManyHeaders) => Err(Error::TooManyHeaders { limit: MAX_TRAILERS }),
        Ok(httparse::Status::Partial) | Err(_) => Err(Error::Head { reason: "an invalid trailer" }),
    }
}
