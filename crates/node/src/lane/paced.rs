//! A stream that takes the guaranteed lane's time in pieces.
//!
//! Whoever sends its request byte by byte, or an answer of megabytes, would keep the lane from others. So one read or write
//! moves at most 64 KiB, and beyond a few small ones that every request needs each of them waits for its turn in a budget
//! that admission accounts for: first come, first served, and one turn a connection at a time. While a connection waits, nothing
//! it sends wakes the lane; its data waits in the kernel, whose buffers bound it.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use runtime::sys::clock;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::budget::Budget;

/// What one read or write moves at most.
const PIECE_BYTES: usize = 64 << 10;
/// Reads of one request that wait for nobody (its head, its body, and what comes of a first packet that was split), and what
/// each of them moves at most.
const FREE_READS: Free = Free { count: 3, bytes: 16 << 10 };
/// Writes of one answer that wait for nobody.
const FREE_WRITES: Free = Free { count: 2, bytes: 32 << 10 };

#[derive(Clone, Copy, Debug)]
struct Free {
    count: u32,
    bytes: usize,
}

/// Turns that many connections take from one budget.
pub(super) type Turns = Rc<RefCell<Budget>>;

#[derive(Debug)]
pub(super) struct Paced<S> {
    stream: S,
    reads: Pace,
    writes: Pace,
}

impl<S> Paced<S> {
    /// `None` where nothing is reserved that could be taken.
    pub(super) fn new(stream: S, turns: Option<Turns>) -> Self {
        Self { stream, reads: Pace::new(turns.clone(), FREE_READS), writes: Pace::new(turns, FREE_WRITES) }
    }

    /// The next request begins.
    pub(super) fn next_request(&self) {
        self.reads.left.set(FREE_READS.count);
        self.writes.left.set(FREE_WRITES.count);
    }

    pub(super) fn into_inner(self) -> S {
        self.stream
    }
}

/// One direction.
#[derive(Debug)]
struct Pace {
    turns: Option<Turns>,
    free: Free,
    left: Cell<u32>,
    turn: Turn,
}

#[derive(Debug)]
enum Turn {
    None,
    Waits(Pin<Box<Sleep>>),
    Come,
}

impl Pace {
    fn new(turns: Option<Turns>, free: Free) -> Self {
        Self { turns, free, left: Cell::new(free.count), turn: Turn::None }
    }

    /// Ready when the next piece may be moved, with its largest size.
    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<usize> {
        let Some(turns) = &self.turns else { return Poll::Ready(usize::MAX) };
        if 0 < self.left.get() {
            return Poll::Ready(self.free.bytes);
        }
        if let Turn::None = self.turn {
            let now = clock::now();
            let from = turns.borrow_mut().book(now);
            self.turn = if from <= now { Turn::Come } else { Turn::Waits(Box::pin(tokio::time::sleep(from.since(now)))) };
        }
        if let Turn::Waits(sleep) = &mut self.turn {
            ready!(sleep.as_mut().poll(context));
            self.turn = Turn::Come;
        }
        Poll::Ready(PIECE_BYTES)
    }

    /// A piece was moved.
    fn moved(&mut self) {
        match self.left.get().checked_sub(1) {
            Some(left) => self.left.set(left),
            None => self.turn = Turn::None,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let it = &mut *self;
        let most = ready!(it.reads.poll_turn(context));
        if buffer.remaining() <= most {
            ready!(Pin::new(&mut it.stream).poll_read(context, buffer))?;
        } else {
            let mut piece = ReadBuf::new(buffer.initialize_unfilled_to(most));
            ready!(Pin::new(&mut it.stream).poll_read(context, &mut piece))?;
            let count = piece.filled().len();
            buffer.advance(count);
        }
        it.reads.moved();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let it = &mut *self;
        let most = ready!(it.writes.poll_turn(context));
        let piece = &bytes[..bytes.len().min(most)];
        let written = ready!(Pin::new(&mut it.stream).poll_write(context, piece));
        it.writes.moved();
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let most = ready!(self.writes.poll_turn(context));
        let whole: usize = slices.iter().map(|slice| slice.len()).sum();
        if most < whole {
            let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
            return self.poll_write(context, first);
        }
        let it = &mut *self;
        let written = ready!(Pin::new(&mut it.stream).poll_write_vectored(context, slices));
        it.writes.moved();
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn turns(per_second: u32, at_once: u32) -> Turns {
        Rc::new(RefCell::new(Budget::new(per_second, at_once)))
    }

    #[tokio::test]
    async fn a_large_answer_is_written_whole_in_pieces() {
        let (there, here) = duplex(1 << 20);
        let mut paced = Paced::new(here, Some(turns(1_000_000, 100)));
        let sent: Vec<u8> = (0..1_000_000_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let mut pieces = Vec::new();
        let mut left = &sent[..];
        while !left.is_empty() {
            let count = paced.write(left).await.unwrap();
            pieces.push(count);
            left = &left[count..];
        }
        assert_eq!(pieces[..3], [FREE_WRITES.bytes, FREE_WRITES.bytes, PIECE_BYTES]);
        drop(paced);
        let mut reader = Paced::new(there, Some(turns(1_000_000, 100)));
        let mut got = Vec::new();
        reader.read_to_end(&mut got).await.unwrap();
        assert!(got == sent);
    }

    #[tokio::test]
    async fn whoever_sends_byte_by_byte_waits_for_turns_that_others_take_too() {
        let shared = turns(1, 2);
        let (mut there, here) = duplex(1 << 10);
        let mut trickled = Paced::new(here, Some(Rc::clone(&shared)));
        let mut byte = [0; 1];
        for _ in 0..FREE_READS.count + 2 {
            there.write_all(b"x").await.unwrap();
            trickled.read_exact(&mut byte).await.unwrap();
        }
        // Free reads and both turns are used up: one more byte is there, and is not read.
        there.write_all(b"x").await.unwrap();
        let read = std::pin::pin!(trickled.read_exact(&mut byte));
        assert!(futures_poll(read).is_pending());
        let from = shared.borrow_mut().book(clock::now());
        assert!(clock::now() < from, "the budget is empty for others too");
    }

    #[tokio::test]
    async fn a_new_request_reads_and_answers_at_once() {
        let (mut there, here) = duplex(1 << 10);
        let mut paced = Paced::new(here, Some(turns(1, 1)));
        for _ in 0..20 {
            there.write_all(b"x").await.unwrap();
            paced.read_exact(&mut [0; 1]).await.unwrap();
            paced.write_all(b"y").await.unwrap();
            there.read_exact(&mut [0; 1]).await.unwrap();
            paced.next_request();
        }
    }

    fn futures_poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(std::task::Waker::noop()))
    }
}
