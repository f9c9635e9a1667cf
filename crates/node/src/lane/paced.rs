//! A stream that takes the guaranteed lane's time in pieces.
//!
//! Whoever sends its request byte by byte, or an answer of megabytes, would keep the lane from others. So one read or write
//! moves at most 64 KiB, and beyond a few small ones that every request needs each of them waits for its turn in a budget
//! that admission accounts for: first come, first served, and one turn a connection at a time. While a connection waits, nothing
//! it sends wakes the lane; its data waits in the kernel, whose buffers bound it.
//!
//! A turn is taken when there is something to move, and lost when it is not used at once: else whoever holds thousands of
//! connections could save as many turns and use them in one instant. Invocations that took a slot have turns of their own, so that
//! no stranger delays their input or their answer.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use model::Time;
use runtime::sys::clock;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
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

/// Reads of a head at most: whoever sends it in more pieces has his connection closed. Plain clients write each header line, or each
/// part of one, by itself.
const HEAD_READS_MAX: u32 = 64;
/// Turns for the body of a request that was let in, before it waits with all others: what 64 KiB take, split unluckily.
const BODY_TURNS: u32 = 16;
/// Reads of what a client still sends that is not served any more.
const LAST_READS: u32 = 2;
/// Turns of one input or result that are laid to the lane: several times what 6 MiB take. Whoever sends byte by byte does so on
/// its own time from there on.
const TRANSIT_TURNS_MAX: u32 = 1_000;
/// How late a timer of the lane may be.
const TIMER: Duration = Duration::from_millis(2);
/// A turn that came is lost after this time.
const KEPT: Duration = Duration::from_millis(5);

/// Turns that many connections take from one budget.
pub(super) type Turns = Rc<RefCell<Budget>>;

/// The budgets that a connection takes its turns from.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    /// Of whatever holds no slot.
    pub(super) others: Turns,
    pub(super) slots: Turns,
}

impl Lines {
    /// The same for everything.
    pub(super) fn one(turns: Turns) -> Self {
        Self { others: Rc::clone(&turns), slots: turns }
    }
}

/// What is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Head {
        reads: u32,
    },
    Any,
    /// Nothing that matters: after so many reads the stream ends.
    Last {
        reads: u32,
    },
}

#[derive(Debug)]
pub(super) struct Paced<S> {
    stream: S,
    stage: Cell<Stage>,
    reads: Pace,
    writes: Pace,
}

impl<S> Paced<S> {
    /// `None` where nothing is reserved that could be taken.
    pub(super) fn new(stream: S, lines: Option<Lines>) -> Self {
        let (reads, writes) = (Pace::new(lines.clone(), FREE_READS), Pace::new(lines, FREE_WRITES));
        Self { stream, stage: Cell::new(Stage::Any), reads, writes }
    }

    /// What is read next is a long result, or written a long input, until the next one is named.
    pub(super) fn reads_for(&self, transit: Option<Rc<Transit>>) {
        self.reads.transit.replace(transit);
    }

    pub(super) fn writes_for(&self, transit: Option<Rc<Transit>>) {
        self.writes.transit.replace(transit);
    }

    /// The next request begins.
    pub(super) fn next_request(&self) {
        self.reads.left.set(FREE_READS.count);
        self.writes.left.set(FREE_WRITES.count);
        self.reads.own.set(0);
        self.writes.own.set(0);
    }

    /// The next request of a client begins, with its head.
    pub(super) fn next_head(&self) {
        self.next_request();
        self.stage.set(Stage::Head { reads: 0 });
    }

    /// The head is there.
    pub(super) fn head_is_read(&self) {
        self.stage.set(Stage::Any);
    }

    /// Who sends the request may do so: its body comes next.
    pub(super) fn let_in(&self) {
        self.reads.own.set(BODY_TURNS);
    }

    /// What is answered next took a slot.
    pub(super) fn took_slot(&self) {
        self.writes.own.set(u32::MAX);
    }

    /// Nothing more is served. What was sent meanwhile is read for a moment, without turns, so that its client sees the answer.
    pub(super) fn end_soon(&self) {
        self.reads.left.set(LAST_READS);
        self.reads.own.set(0);
        self.stage.set(Stage::Last { reads: 0 });
    }

    pub(super) fn into_inner(self) -> S {
        self.stream
    }
}

/// How long the lane had a long input or result in its hands: from when the other side had done its part until it is that one's turn
/// again. No invocation's run time. Time in which it had both of an invocation counts as the input's only.
#[derive(Debug, Default)]
pub(super) struct Transit {
    /// Of a result: the input of its invocation, and how long the lane had had that when it got this.
    input: Option<Rc<Self>>,
    input_then: Cell<Duration>,
    with_lane: Cell<Duration>,
    since: Cell<Option<Time>>,
    /// When the piece at hand is moved at the latest, as far as is known.
    until: Cell<Time>,
    turns: Cell<u32>,
}

impl Transit {
    /// A result whose input may still be on its way.
    pub(super) fn beside(input: Rc<Self>) -> Self {
        Self { input: Some(input), ..Self::default() }
    }

    pub(super) fn with_lane(&self, now: Time) -> Duration {
        self.with_lane_beside(now, self.input_with_lane(now))
    }

    /// The same where the lane has had the input so long by then.
    pub(super) fn with_lane_beside(&self, now: Time, input: Duration) -> Duration {
        let both = input.saturating_sub(self.input_then.get());
        self.with_lane.get() + self.since.get().map_or(Duration::ZERO, |since| now.since(since).saturating_sub(both))
    }

    fn input_with_lane(&self, now: Time) -> Duration {
        self.input.as_ref().map_or(Duration::ZERO, |input| input.with_lane(now))
    }

    /// When it will be the other side's turn again, if it is not.
    pub(super) fn until(&self) -> Option<Time> {
        self.since.get().map(|_| self.until.get())
    }

    /// It is the lane's turn: it moves the next piece at `from`.
    pub(super) fn lanes(&self, now: Time, from: Time) {
        self.until.set(from + TIMER);
        self.turns.set(self.turns.get() + 1);
        if self.turns.get() <= TRANSIT_TURNS_MAX && self.since.get().is_none() {
            self.since.set(Some(now));
            self.input_then.set(self.input_with_lane(now));
        }
    }

    /// It is the other side's turn, or all is moved.
    pub(super) fn others(&self) {
        self.others_at(clock::now());
    }

    fn others_at(&self, now: Time) {
        if self.since.get().is_some() {
            self.with_lane.set(self.with_lane(now));
            self.since.set(None);
        }
    }
}

/// One direction.
#[derive(Debug)]
struct Pace {
    lines: Option<Lines>,
    free: Free,
    left: Cell<u32>,
    /// Turns that come from those of slots.
    own: Cell<u32>,
    turn: Turn,
    transit: RefCell<Option<Rc<Transit>>>,
}

#[derive(Debug)]
enum Turn {
    None,
    Waits(Pin<Box<Sleep>>),
    Come { at: Time },
}

impl Pace {
    fn new(lines: Option<Lines>, free: Free) -> Self {
        Self { lines, free, left: Cell::new(free.count), own: Cell::new(0), turn: Turn::None, transit: RefCell::default() }
    }

    /// Ready when the next piece may be moved, with its largest size. `is_ready` says whether there is something to move.
    fn poll_turn(
        &mut self,
        context: &mut Context<'_>,
        mut is_ready: impl FnMut(&mut Context<'_>) -> Poll<io::Result<()>>,
    ) -> Poll<io::Result<usize>> {
        let Some(lines) = &self.lines else { return Poll::Ready(Ok(usize::MAX)) };
        if 0 < self.left.get() {
            return Poll::Ready(Ok(self.free.bytes));
        }
        loop {
            match &mut self.turn {
                Turn::None => {
                    if is_ready(context)?.is_pending() {
                        self.others();
                        return Poll::Pending;
                    }
                    let now = clock::now();
                    let own = self.own.get();
                    self.own.set(own.saturating_sub(1));
                    let from = if 0 < own { &lines.slots } else { &lines.others }.borrow_mut().book(now);
                    if let Some(transit) = &*self.transit.borrow() {
                        transit.lanes(now, from);
                    }
                    self.turn = match from <= now {
                        true => Turn::Come { at: now },
                        false => Turn::Waits(Box::pin(tokio::time::sleep(from.since(now)))),
                    };
                }
                Turn::Waits(sleep) => {
                    ready!(sleep.as_mut().poll(context));
                    self.turn = Turn::Come { at: clock::now() };
                }
                Turn::Come { at } if KEPT < clock::now().since(*at) => self.turn = Turn::None,
                Turn::Come { .. } => return Poll::Ready(Ok(PIECE_BYTES)),
            }
        }
    }

    /// Nothing can be moved before the other side did something.
    fn others(&self) {
        if let Some(transit) = &*self.transit.borrow() {
            transit.others();
        }
    }

    /// A piece was moved.
    fn moved(&mut self) {
        match self.left.get().checked_sub(1) {
            Some(left) => self.left.set(left),
            None => self.turn = Turn::None,
        }
    }
}

/// Says whether there is something to move, without moving it.
pub(super) trait Readiness {
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl Readiness for TcpStream {
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(context)
    }

    fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write_ready(context)
    }
}

/// A stream that somebody else may look at while its task waits on it.
#[derive(Clone, Debug)]
pub(super) struct Shared(Rc<RefCell<TcpStream>>);

impl Shared {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self(Rc::new(RefCell::new(stream)))
    }

    /// Whether something lies unread in its socket.
    pub(super) fn has_unread(&self) -> bool {
        runtime::sys::socket::has_unread(&*self.0.borrow())
    }

    fn poll<T>(&self, poll: impl FnOnce(Pin<&mut TcpStream>) -> Poll<T>) -> Poll<T> {
        poll(Pin::new(&mut self.0.borrow_mut()))
    }
}

impl Readiness for Shared {
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow().poll_read_ready(context)
    }

    fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow().poll_write_ready(context)
    }
}

impl AsyncRead for Shared {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_read(context, buffer))
    }
}

impl AsyncWrite for Shared {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(|stream| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.poll(|stream| stream.poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_shutdown(context))
    }
}

impl<S> Paced<S> {
    /// Counts a read against what its stage allows: whether there is one more.
    fn may_read(&self) -> io::Result<bool> {
        match (self.stage.get(), &self.reads.lines) {
            (Stage::Any, _) | (Stage::Head { .. }, None) => Ok(true),
            (Stage::Head { reads }, Some(_)) if HEAD_READS_MAX <= reads => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "the head of a request came in too many pieces"))
            }
            (Stage::Head { .. }, Some(_)) => Ok(true),
            (Stage::Last { reads }, _) => Ok(reads < LAST_READS),
        }
    }

    fn has_read(&self) {
        match self.stage.get() {
            Stage::Head { reads } => self.stage.set(Stage::Head { reads: reads + 1 }),
            Stage::Last { reads } => self.stage.set(Stage::Last { reads: reads + 1 }),
            Stage::Any => {}
        }
    }
}

impl<S: AsyncRead + Readiness + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let it = &mut *self;
        if !it.may_read()? {
            return Poll::Ready(Ok(()));
        }
        let stream = &it.stream;
        let most = ready!(it.reads.poll_turn(context, |context| stream.poll_readable(context)))?;
        let read = if buffer.remaining() <= most {
            Pin::new(&mut it.stream).poll_read(context, buffer)
        } else {
            let mut piece = ReadBuf::new(buffer.initialize_unfilled_to(most));
            let read = Pin::new(&mut it.stream).poll_read(context, &mut piece);
            let count = piece.filled().len();
            buffer.advance(count);
            read
        };
        if read.is_pending() {
            it.reads.others();
        }
        ready!(read)?;
        it.reads.moved();
        it.has_read();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Readiness + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let it = &mut *self;
        let stream = &it.stream;
        let most = ready!(it.writes.poll_turn(context, |context| stream.poll_writable(context)))?;
        let piece = &bytes[..bytes.len().min(most)];
        let written = Pin::new(&mut it.stream).poll_write(context, piece);
        if written.is_pending() {
            it.writes.others();
        }
        let written = ready!(written);
        it.writes.moved();
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let it = &mut *self;
        let stream = &it.stream;
        let most = ready!(it.writes.poll_turn(context, |context| stream.poll_writable(context)))?;
        let whole: usize = slices.iter().map(|slice| slice.len()).sum();
        if most < whole {
            let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
            return self.poll_write(context, first);
        }
        let written = Pin::new(&mut it.stream).poll_write_vectored(context, slices);
        if written.is_pending() {
            it.writes.others();
        }
        let written = ready!(written);
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

    /// Whoever asks finds something to move.
    impl Readiness for tokio::io::DuplexStream {
        fn poll_readable(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_writable(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn turns(per_second: u32, at_once: u32) -> Turns {
        Rc::new(RefCell::new(Budget::new(per_second, at_once)))
    }

    fn line(per_second: u32, at_once: u32) -> Lines {
        Lines::one(turns(per_second, at_once))
    }

    /// A connection whose free reads are used up, and how many of a line's hundred turns were taken after `then`.
    async fn turns_taken(then: impl AsyncFnOnce(&mut TcpStream, &mut Paced<TcpStream>)) -> u32 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut there = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (here, _) = listener.accept().await.unwrap();
        let others = turns(1, 100);
        let mut paced = Paced::new(here, Some(Lines { others: Rc::clone(&others), slots: turns(1, 100) }));
        for _ in 0..FREE_READS.count {
            there.write_all(b"x").await.unwrap();
            paced.read_exact(&mut [0; 1]).await.unwrap();
        }
        then(&mut there, &mut paced).await;
        let now = clock::now();
        let mut others = others.borrow_mut();
        let left = (0..100).take_while(|_| others.spend(now).is_ok()).count();
        100 - u32::try_from(left).unwrap()
    }

    #[tokio::test]
    async fn a_connection_that_sends_nothing_takes_no_turn() {
        let taken = turns_taken(async |_, paced| {
            // The socket says that nothing is there only after a read that found nothing.
            for _ in 0..20 {
                tokio::task::yield_now().await;
                let read = paced.read_u8();
                assert!(futures_poll(std::pin::pin!(read)).is_pending());
            }
        });
        assert!(taken.await <= 1);
    }

    #[tokio::test]
    async fn what_took_a_slot_and_who_is_let_in_take_nothing_from_others() {
        let taken = turns_taken(async |there, paced| {
            paced.let_in();
            paced.took_slot();
            for _ in 0..FREE_READS.count + 5 {
                there.write_all(b"x").await.unwrap();
                paced.read_exact(&mut [0; 1]).await.unwrap();
                paced.write_all(b"y").await.unwrap();
            }
        });
        assert_eq!(taken.await, 0);
    }

    #[tokio::test]
    async fn what_a_client_sends_that_is_not_served_takes_no_turn() {
        let taken = turns_taken(async |there, paced| {
            paced.end_soon();
            let mut junk = vec![0; 1 << 20];
            there.write_all(&junk[..200_000]).await.unwrap();
            let mut count = 0;
            while let Ok(read @ 1..) = paced.read(&mut junk).await {
                count += read;
            }
            assert!(count <= FREE_READS.bytes * 2, "{count} bytes were read");
        });
        assert_eq!(taken.await, 0);
    }

    #[tokio::test]
    async fn what_a_full_socket_holds_up_is_the_other_sides_time_though_little_is_left() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _there = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (here, _) = listener.accept().await.unwrap();
        let mut paced = Paced::new(here, Some(line(1_000_000, 100_000)));
        let transit = Rc::<Transit>::default();
        paced.writes_for(Some(Rc::clone(&transit)));
        let rest = vec![0; PIECE_BYTES - 1];
        let full = std::future::poll_fn(|context| {
            while let Poll::Ready(written) =
                Pin::new(&mut paced).poll_write_vectored(context, &[IoSlice::new(&rest[..100]), IoSlice::new(&rest[100..])])
            {
                written.unwrap();
            }
            Poll::Ready(())
        });
        full.await;
        assert_eq!(transit.until(), None);
    }

    #[tokio::test]
    async fn a_head_in_many_pieces_ends_its_connection() {
        let (mut there, here) = duplex(1 << 10);
        let mut paced = Paced::new(here, Some(line(1_000, 100)));
        paced.next_head();
        for _ in 0..HEAD_READS_MAX {
            there.write_all(b"x").await.unwrap();
            paced.read_exact(&mut [0; 1]).await.unwrap();
        }
        there.write_all(b"x").await.unwrap();
        assert_eq!(paced.read_exact(&mut [0; 1]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_large_answer_is_written_whole_in_pieces() {
        let (there, here) = duplex(1 << 20);
        let mut paced = Paced::new(here, Some(line(1_000_000, 100)));
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
        let mut reader = Paced::new(there, Some(line(1_000_000, 100)));
        let mut got = Vec::new();
        reader.read_to_end(&mut got).await.unwrap();
        assert!(got == sent);
    }

    #[tokio::test]
    async fn whoever_sends_byte_by_byte_waits_for_turns_that_others_take_too() {
        let shared = turns(1, 2);
        let (mut there, here) = duplex(1 << 10);
        let mut trickled = Paced::new(here, Some(Lines::one(Rc::clone(&shared))));
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
        let mut paced = Paced::new(here, Some(line(1, 1)));
        for _ in 0..20 {
            there.write_all(b"x").await.unwrap();
            paced.read_exact(&mut [0; 1]).await.unwrap();
            paced.write_all(b"y").await.unwrap();
            there.read_exact(&mut [0; 1]).await.unwrap();
            paced.next_request();
        }
    }

    #[test]
    fn what_is_with_the_lane_beside_its_input_counts_once() {
        let at = Time::from_millis;
        let input = Rc::new(Transit::default());
        let result = Transit::beside(Rc::clone(&input));
        let check = |now, expected: [u64; 2]| {
            let found = [input.with_lane(at(now)), result.with_lane(at(now))];
            assert_eq!(found, expected.map(Duration::from_millis), "at {now} ms");
        };
        input.lanes(at(100), at(100));
        result.lanes(at(110), at(110));
        check(130, [30, 0]);
        input.others_at(at(140));
        check(150, [40, 10]);
        input.lanes(at(160), at(160));
        result.others_at(at(170));
        check(180, [60, 20]);
        input.others_at(at(190));
        result.lanes(at(200), at(200));
        check(210, [70, 30]);
    }

    fn futures_poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(std::task::Waker::noop()))
    }
}
