//! The first request of a connection: how much of it must be there, who may send it, and where it belongs.

use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use http::request::Parts;
use model::{FunctionName, UrlAccess};
use runtime::http1::{self, After, Connection, Error as WireError, Limits};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Door, Seat, Stage, lane};
use crate::auth::sigv4::PayloadHash;
use crate::auth::{Grant, PathClass};
use crate::budget::Payer;
use crate::front::{Target, today};
use crate::lambda::path;
use crate::lane::counts::{What, Why};
use crate::lane::message::{Moved, Traffic};
use crate::lane::{LARGE_BYTES, Manners};
use crate::lanes::{Route, Standing};
use crate::url;

/// The first request must be there, or on its way to who serves it, within this time.
const WITHIN: Duration = Duration::from_secs(75);
/// An answer that refuses is taken within this time.
const WRITE_WITHIN: Duration = Duration::from_secs(5);
/// Reads that a head may come in, and as many more that a body may.
const READS_MAX: u32 = 64;
/// The room offered to one read.
const READ_BYTES: usize = 4 << 10;

/// A connection whose first request is read.
pub(super) struct First {
    stream: std::net::TcpStream,
    rest: Rest,
}

/// All of it but its socket.
struct Rest {
    peer: SocketAddr,
    unread: BytesMut,
    reads: u32,
    progress: Progress,
    manners: Manners,
}

/// How far the request is.
enum Progress {
    /// So many bytes were looked at, and end no head.
    Head { seen: usize },
    /// For the guaranteed lane: the body begins behind `head` bytes and ends at `whole`. The grant is taken once that is there.
    Body { head: usize, whole: usize, payer: Payer, grant: Option<Grant> },
}

/// Where a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Guaranteed(Payer),
    BestEffort(Why),
    Management,
}

/// Why a connection goes nowhere.
pub(super) enum End {
    /// Its client is gone, or broke off.
    Gone,
    Refused(WireError),
}

/// What a look at a connection found.
pub(super) enum Found {
    Way(Way),
    /// More of the request must come.
    Unfinished,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

/// A way that is not decided before the body is there.
enum Heading {
    Sure(Way),
    /// To the guaranteed lane, once the request is whole and from somebody who may send it.
    Guaranteed(Payer, Grant),
}

/// Reads on until the request is there, and hands the connection over.
pub(super) async fn serve(seat: Seat, first: First) {
    let First { stream, mut rest } = first;
    let Ok(mut stream) = TcpStream::from_std(stream) else { return };
    let way = match timeout(WITHIN, rest.finish(&mut stream, &seat)).await {
        Ok(Ok(way)) => way,
        Ok(Err(end)) => return ended(seat, (stream, rest), end).await,
        Err(_) => return seat.door.count(if rest.unread.is_empty() { What::Idle } else { What::CutShort }),
    };
    let door = Rc::clone(&seat.door);
    // Its request is there: nobody takes its place any more.
    drop(seat);
    go_in_turn(door, (stream, rest), way).await;
}

/// Answers, where there is something to say, and closes.
async fn ended(seat: Seat, (stream, rest): (TcpStream, Rest), end: End) {
    match end {
        End::Gone if rest.unread.is_empty() => {}
        End::Gone => seat.door.count(What::CutShort),
        End::Refused(error) => {
            seat.door.count(What::CutShort);
            // Whether or not the answer could be written, the connection is closed.
            let _ = timeout(WRITE_WITHIN, refuse(stream, &error)).await;
        }
    }
}

/// Answers on a connection whose first bytes are no request.
pub(super) async fn end(seat: Seat, first: First, end: End) {
    let First { stream, rest } = first;
    if let Ok(stream) = TcpStream::from_std(stream) {
        ended(seat, (stream, rest), end).await;
    }
}

/// Hands a connection over whose request is there, to the guaranteed lane when it is its turn.
pub(super) async fn go(door: Rc<Door>, first: First, way: Way) {
    let First { stream, rest } = first;
    if let Ok(stream) = TcpStream::from_std(stream) {
        go_in_turn(door, (stream, rest), way).await;
    }
}

/// The same, unless its client hangs up before its turn: then its place is free, and its turn the next one's.
async fn go_in_turn(door: Rc<Door>, (stream, mut rest): (TcpStream, Rest), way: Way) {
    let way = match way {
        Way::Guaranteed(payer) => {
            // It may wait long, beside many: no longer with room for more than it has read.
            door.step(rest.unread.len());
            rest.unread = BytesMut::from(&rest.unread[..]);
            let turn = tokio::select! {
                biased;
                () = hung_up(&stream) => return door.count(What::HungUp),
                turn = door.turn(payer) => turn,
            };
            turn.map_or(Way::BestEffort(Why::OverBudget), |()| way)
        }
        Way::BestEffort(_) | Way::Management => way,
    };
    // A stream that cannot leave this thread's reactor is broken, and closed.
    if let Ok(stream) = stream.into_std() {
        First { stream, rest }.go(&door, way);
    }
}

/// Ends when the client has closed its side or the connection broke. What it sends ahead stays unread. Safe to drop at any point.
async fn hung_up(stream: &TcpStream) {
    loop {
        match stream.ready(Interest::READABLE).await {
            Ok(ready) if !ready.is_read_closed() => {}
            Ok(_) | Err(_) => return,
        }
        // Something was sent ahead: only what comes after it is news. That this refuses is what it is for.
        let _: io::Result<()> = stream.try_io(Interest::READABLE, || Err(io::ErrorKind::WouldBlock.into()));
    }
}

async fn refuse(stream: TcpStream, error: &WireError) -> Result<(), WireError> {
    let Some(response) = error.response() else { return Ok(()) };
    let mut connection = Connection::new(stream);
    connection.write_response(response, After::Close).await?;
    connection.close().await
}

impl Rest {
    /// Reads what is needed to say where the connection goes. What was read stays when this is dropped.
    async fn finish(&mut self, stream: &mut TcpStream, seat: &Seat) -> Result<Way, End> {
        loop {
            if READS_MAX <= self.reads {
                match self.progress {
                    Progress::Head { .. } => return Err(End::Gone),
                    Progress::Body { .. } => return Ok(Way::BestEffort(Why::LongBody)),
                }
            }
            let room = self.room();
            self.unread.reserve(room);
            let silent = self.unread.is_empty();
            let count = stream.read_buf(&mut (&mut self.unread).limit(room)).await?;
            if count == 0 {
                return Err(End::Gone);
            }
            seat.door.step(count);
            self.reads += 1;
            if silent {
                seat.begin();
            }
            let before = self.stage();
            match self.look(&seat.door)? {
                Found::Way(way) => return Ok(way),
                Found::Unfinished if before != self.stage() => seat.go_on(self.stage()),
                Found::Unfinished => {}
            }
        }
    }

    /// Room for the next read: what is held stays within a head's limit and a byte, or a head and its body.
    fn room(&self) -> usize {
        match self.progress {
            Progress::Head { .. } => READ_BYTES.min((LIMITS.head_bytes + 1).saturating_sub(self.unread.len())).max(1),
            Progress::Body { whole, .. } => whole.saturating_sub(self.unread.len()).max(1),
        }
    }

    fn stage(&self) -> Stage {
        match self.progress {
            Progress::Head { .. } if self.unread.is_empty() => Stage::Silent,
            // By a function's open URL strangers come too.
            Progress::Head { .. } | Progress::Body { grant: None | Some(Grant::Open), .. } => Stage::Begun,
            Progress::Body { grant: Some(Grant::Signature(_)), .. } => Stage::Claimed,
            Progress::Body { grant: Some(Grant::Token), .. } => Stage::LetIn,
        }
    }

    /// Looks at what came.
    fn look(&mut self, door: &Door) -> Result<Found, End> {
        if let Progress::Head { seen } = self.progress {
            let Some(peeked) = http1::peek(&self.unread, seen, &LIMITS).map_err(End::Refused)? else {
                self.progress = Progress::Head { seen: self.unread.len() };
                return Ok(Found::Unfinished);
            };
            door.count(What::Request);
            let (payer, grant) = match door.heading(&peeked.parts) {
                Heading::Sure(way) => return Ok(Found::Way(way)),
                Heading::Guaranteed(payer, grant) => (payer, grant),
            };
            let length = peeked.body.and_then(|length| usize::try_from(length).ok()).filter(|length| *length <= LARGE_BYTES);
            // Who waits to be told to go on is told so by the lane that reads the body.
            let Some(length) = length.filter(|_| !peeked.awaits_go_ahead) else {
                return Ok(Found::Way(Way::BestEffort(Why::LongBody)));
            };
            self.reads = 0;
            self.progress = Progress::Body { head: peeked.head, whole: peeked.head + length, payer, grant: Some(grant) };
        }
        let Progress::Body { head, whole, payer, grant } = &mut self.progress else { return Ok(Found::Unfinished) };
        if self.unread.len() < *whole {
            return Ok(Found::Unfinished);
        }
        if let Some(Grant::Signature(unproven)) = grant.take() {
            door.step(*whole - *head);
            match unproven.finish(PayloadHash::of(&self.unread[*head..*whole])) {
                Ok(()) => self.manners = Manners::proved(),
                Err(_) => return Ok(Found::Way(Way::BestEffort(Why::NotLetIn))),
            }
        }
        Ok(Found::Way(Way::Guaranteed(*payer)))
    }
}

impl First {
    /// Of a socket that does not block.
    pub(super) fn new(stream: std::net::TcpStream, peer: SocketAddr) -> Self {
        let progress = Progress::Head { seen: 0 };
        Self { stream, rest: Rest { peer, unread: BytesMut::new(), reads: 0, progress, manners: Manners::default() } }
    }

    /// Looks at what is there already: of most connections that is the whole request.
    pub(super) fn look(&mut self, door: &Door) -> Result<Found, End> {
        let mut room = [0; READ_BYTES];
        match (&self.stream).read(&mut room) {
            Ok(0) => Err(End::Gone),
            Ok(count) => {
                self.rest.unread.extend_from_slice(&room[..count]);
                self.rest.reads += 1;
                self.rest.look(door)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Found::Unfinished),
            Err(_) => Err(End::Gone),
        }
    }

    /// Whether nothing came yet.
    pub(super) fn is_silent(&self) -> bool {
        self.rest.unread.is_empty()
    }

    pub(super) fn stage(&self) -> Stage {
        self.rest.stage()
    }

    /// Hands the connection over. Where there is no room its client is told so.
    pub(super) fn go(self, door: &Door, way: Way) {
        let Rest { peer, unread, manners, .. } = self.rest;
        let moved = Moved { stream: self.stream, peer, unread, manners };
        let exits = &door.exits;
        let (what, full) = match way {
            Way::Guaranteed(_) => (What::Moved(Why::Guaranteed), exits.guaranteed.try_send(Traffic::New(moved)).err().map(back)),
            Way::BestEffort(why) => (What::Moved(why), exits.best_effort.try_send(Traffic::New(moved)).err().map(back)),
            Way::Management => (What::ToManagement, exits.management.try_send(moved).err().map(|full| Some(full.into_inner()))),
        };
        match full {
            None => door.count(what),
            Some(back) => {
                door.count(What::RefusedBusy);
                if let Some(back) = back {
                    lane::close_busy(&back.stream);
                }
            }
        }
    }
}

fn back(full: tokio::sync::mpsc::error::TrySendError<Traffic>) -> Option<Moved> {
    match full.into_inner() {
        Traffic::New(moved) | Traffic::Connection(moved) => Some(moved),
        Traffic::Demoted(_) | Traffic::Forwarded(_) | Traffic::Render(_) | Traffic::Abandoned(_) => None,
    }
}

const LIMITS: Limits = lane::LIMITS;

impl Door {
    /// Where a head points to.
    fn heading(&self, parts: &Parts) -> Heading {
        let elsewhere = |why| Heading::Sure(Way::BestEffort(why));
        let (name, class) = match Target::of(parts.uri.path()) {
            Target::Management => return Heading::Sure(Way::Management),
            Target::Lease(_) => {
                return match self.access.borrow_mut().check(parts, PathClass::V1, UrlAccess::Keyed, today()) {
                    Ok(grant) => Heading::Guaranteed(Payer::Leases, grant),
                    Err(_) => elsewhere(Why::NotLetIn),
                };
            }
            Target::Invoke => match path::parse(&parts.method, parts.uri.path(), parts.uri.query()) {
                Ok(path::Call::Invoke(function)) => (function.serving(&self.front.home).ok().cloned(), PathClass::Aws),
                Ok(_) => return Heading::Sure(Way::Management),
                Err(_) => (None, PathClass::Aws),
            },
            Target::Url => (url::parse(parts.uri.path()).ok().map(|target| target.function), PathClass::FunctionUrl),
        };
        let route = name.and_then(|name: FunctionName| self.routes.borrow().get(&name).cloned());
        let Some(Route { key, image, .. }) = route.filter(|route| route.standing == Standing::Guaranteed) else {
            return elsewhere(Why::BestEffortFunction);
        };
        let url = match class {
            PathClass::FunctionUrl => image.spec.url,
            PathClass::Aws | PathClass::V1 => UrlAccess::Keyed,
        };
        match self.access.borrow_mut().check(parts, class, url, today()) {
            Ok(grant) => Heading::Guaranteed(Payer::Function(key), grant),
            Err(_) => elsewhere(Why::NotLetIn),
        }
    }
}
