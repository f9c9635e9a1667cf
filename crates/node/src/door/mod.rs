//! The door: the thread that accepts every connection, reads its first request, and sends it where that belongs.
//!
//! Before a request is there nobody knows whom a connection is for. So nothing of the guaranteed lane is spent on it: that
//! lane gets connections whose first request is whole, from somebody who may send it, for a function it serves, and no more
//! of them a second than admission counts; each function has its part of those. All other work is done at the class of
//! what is idle, but for a bounded part of each second (see [`allowance`]).

mod allowance;
mod first;
mod places;

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use model::{FunctionName, Overflow};
use runtime::room::{Full, Room};
use runtime::sys::{clock, sched};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinError, JoinSet, LocalSet};

use self::allowance::Allowance;
pub(crate) use self::allowance::WITHIN_A_SECOND;
use self::first::{End, First, Found, Way};
use self::places::{Place, Places};
use crate::auth::Access;
use crate::auth::keys::Keys;
use crate::budget::{Payer, Shares};
use crate::calibrate::Classes;
use crate::front::Front;
use crate::lane::counts::{Counts, What};
use crate::lane::message::{Moved, Traffic};
use crate::lane::{self, HAND_OVERS_AT_ONCE};
use crate::lanes::{Route, Standing};
use crate::{management, starts};

/// Its name in threads and metrics.
pub(crate) const NAME: &str = "door";
/// Below every instance that serves: no promise is disturbed by whoever connects.
const PRIORITY: u8 = starts::MAKER_PRIORITY;
/// What exceeds the allowance goes before all other ordinary work, because it decides what that is.
const NICE: i8 = -10;
/// Commands that may wait for the door.
pub(crate) const COMMANDS_MAX: usize = 256;
/// Connections that wait in the kernel; it holds fewer where `net.core.somaxconn` is less.
pub(crate) const BACKLOG: i32 = 4_096;
/// The pause after an accept that failed.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
/// Connections of one function that wait for their hand-over, whatever happens to its excess.
const LINE_MAX: usize = 32;
/// Where more wait, no more than are handed over within this time.
const LINE_WITHIN: Duration = Duration::from_secs(1);
/// Stages of a connection whose first request is not there yet, each with places of its own.
pub(crate) const STAGES: usize = 3;
/// Turns of the event loop between two questions to the kernel about what came.
const EVENT_INTERVAL: u32 = 8;
/// Connections accepted in a row before what came on others is read: none of them is taken for silent meanwhile.
const IN_A_ROW: u32 = 32;
/// Steps of work between two looks at the CPU time they took.
const STEPS_PER_LOOK: usize = 16;
/// As many bytes read, or hashed, are a step of their own.
const BYTES_PER_STEP: usize = 4 << 10;

/// Everything the door starts with.
pub(crate) struct Start {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) exits: Exits,
    pub(crate) front: Arc<Front>,
    pub(crate) classes: Classes,
}

/// The port, not blocking.
type Listener = AsyncFd<OwnedFd>;

/// How far the first request of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Silent,
    Begun,
    /// Its head is there and claims a key by a signature, which the body is to prove.
    Claimed,
    /// Its head is there, from somebody who showed the token.
    LetIn,
}

/// Where connections go.
pub(crate) struct Exits {
    pub(crate) guaranteed: mpsc::Sender<Traffic>,
    pub(crate) best_effort: mpsc::Sender<Traffic>,
    pub(crate) management: mpsc::Sender<Moved>,
}

pub(crate) enum Command {
    /// Accept connections from here on.
    Accept {
        listener: std::net::TcpListener,
        done: oneshot::Sender<()>,
    },
    Route {
        name: FunctionName,
        route: Option<Route>,
        done: oneshot::Sender<()>,
    },
    /// Let in these keys, and the ones before no longer.
    Rotate {
        keys: Box<Keys>,
        done: oneshot::Sender<()>,
    },
    /// What was done with connections so far, and how many are here.
    Usage {
        done: oneshot::Sender<Usage>,
    },
    /// Accept nothing more.
    Shut {
        done: oneshot::Sender<()>,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) counts: Counts,
    pub(crate) waiting: usize,
    pub(crate) places: usize,
}

impl Usage {
    pub(crate) fn queue(&self) -> management::Queue {
        let number = |count| u64::try_from(count).unwrap_or(u64::MAX);
        management::Queue { name: NAME, length: number(self.waiting), limit: number(self.places) }
    }

    pub(crate) fn traffic(&self) -> management::Traffic {
        management::Traffic { lane: NAME, counts: self.counts }
    }
}

/// Those that wait for the hand-overs of one payer.
#[derive(Clone, Debug, Default)]
struct Line {
    turn: Rc<tokio::sync::Mutex<()>>,
    /// Its excess waits, so many at most and until this long after its arrival.
    queue: Option<(usize, Option<Duration>)>,
}

impl Line {
    fn of(route: &Route) -> Option<(usize, Option<Duration>)> {
        let terms = route.image.spec.guarantee.as_ref()?;
        match terms.overflow {
            Overflow::Queue { limit } => {
                Some((usize::try_from(limit).unwrap_or(usize::MAX), terms.deadline.map(|deadline| deadline.0)))
            }
            Overflow::BestEffort | Overflow::Reject => None,
        }
    }

    /// How many may wait in it where each payer is handed so many a second. What is excess may wait elsewhere, or is refused: it
    /// is told so soon. Where it waits for slots, it may as well wait here, but not so long that its deadline is over, and
    /// not for long: among it may be what conforms, and has not arrived yet.
    fn longest(&self, per_second: u32) -> usize {
        let Some((limit, deadline)) = self.queue else { return LINE_MAX };
        let within = deadline.map_or(LINE_WITHIN, |deadline| deadline.min(LINE_WITHIN));
        let timely = usize::try_from(within.as_millis() * u128::from(per_second) / 1_000).unwrap_or(usize::MAX);
        limit.min(timely).max(LINE_MAX)
    }
}

/// A connection that waits for its hand-over.
struct InLine<'a>(&'a RefCell<Room<Payer>>, Payer);

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.0.borrow_mut().exit(&self.1);
    }
}

/// The door's state. One thread; no borrow lives across an `.await`.
struct Door {
    exits: Exits,
    routes: RefCell<BTreeMap<FunctionName, Route>>,
    access: RefCell<Access>,
    front: Arc<Front>,
    hand_overs: RefCell<Shares<Payer>>,
    lines: RefCell<BTreeMap<Payer, Line>>,
    /// The places of all lines.
    room: RefCell<Room<Payer>>,
    places: RefCell<Places<AbortHandle>>,
    of_each: usize,
    counts: RefCell<Counts>,
    /// `None` where there is no real-time class.
    class: Option<RefCell<Allowance>>,
    ordinary: sched::Class,
    steps: Cell<usize>,
}

/// Gives the place of a connection back when it is dropped.
struct Seat {
    door: Rc<Door>,
    place: Place,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.door.places.borrow_mut().leave(self.place);
    }
}

impl Seat {
    /// The first bytes of the connection came.
    fn begin(&self) {
        let leaves = self.door.places.borrow_mut().begin(self.place);
        self.door.evict(leaves, What::EvictedBegun);
    }

    /// Its head is there.
    fn go_on(&self, stage: Stage) {
        let leaves = match stage {
            Stage::Silent | Stage::Begun => None,
            Stage::Claimed => self.door.places.borrow_mut().claim(self.place),
            Stage::LetIn => self.door.places.borrow_mut().let_in(self.place),
        };
        self.door.evict(leaves, What::EvictedBegun);
    }
}

impl Door {
    fn new(exits: Exits, front: Arc<Front>, classes: Classes) -> Self {
        let of_each = front.connections.stage;
        let mut hand_overs = Shares::new(front.hand_overs_per_second, HAND_OVERS_AT_ONCE);
        let mut room = Room::new(front.connections.lines);
        hand_overs.join(Payer::Leases);
        room.join(Payer::Leases);
        let preferred = sched::Class::Other { nice: NICE };
        let (class, ordinary) = match classes {
            // Some that may use the real-time classes may not raise a nice value.
            Classes::RealTime => (
                Some(RefCell::new(Allowance::new(clock::now(), clock::thread_cpu()))),
                sched::set_current(preferred).map_or(sched::Class::Other { nice: 0 }, |()| preferred),
            ),
            Classes::Ordinary => {
                // A kernel that does not listen lets it wait for its turn as any other.
                let _ = sched::ask_for_short_turns(sched::current_thread());
                (None, sched::Class::Other { nice: 0 })
            }
        };
        Self {
            exits,
            routes: RefCell::default(),
            access: RefCell::new(front.access()),
            front,
            hand_overs: RefCell::new(hand_overs),
            lines: RefCell::new(BTreeMap::from([(Payer::Leases, Line::default())])),
            room: RefCell::new(room),
            places: RefCell::new(Places::new(of_each)),
            of_each,
            counts: RefCell::default(),
            class,
            ordinary,
            steps: Cell::new(0),
        }
    }

    fn count(&self, what: What) {
        self.counts.borrow_mut().add(what);
    }

    /// A step of work was done, on so many bytes.
    fn step(&self, bytes: usize) {
        self.steps.set(self.steps.get() + 1 + bytes / BYTES_PER_STEP);
        if STEPS_PER_LOOK <= self.steps.get() {
            self.look();
        }
    }

    /// Gives this thread the class that its allowance leaves it.
    fn look(&self) {
        self.steps.set(0);
        let Some(class) = &self.class else { return };
        let mut allowance = class.borrow_mut();
        let before = allowance.standing();
        let now = allowance.look(clock::now(), clock::thread_cpu());
        if before != now {
            let class = match now {
                allowance::Standing::RealTime => sched::Class::Fifo { priority: PRIORITY },
                allowance::Standing::Ordinary => self.ordinary,
            };
            sched::set_current(class).expect("invariant: this node was found to have real-time classes");
        }
    }

    /// Ends when the real-time class may have come back. Safe to drop at any point.
    async fn resumes(&self) {
        let rest = self.class.as_ref().and_then(|class| class.borrow().resumes_in());
        match rest {
            Some(rest) => tokio::time::sleep(rest).await,
            None => pending().await,
        }
    }

    fn evict(&self, leaves: Option<AbortHandle>, what: What) {
        if let Some(leaves) = leaves {
            leaves.abort();
            self.count(what);
        }
    }

    /// Takes a hand-over to the guaranteed lane, where there is one and nobody of the same function waits for it.
    fn turn_now(&self, payer: Payer) -> Result<(), Full> {
        let turn = self.lines.borrow().get(&payer).map(|line| Rc::clone(&line.turn)).ok_or(Full)?;
        let _first = turn.try_lock().map_err(|_| Full)?;
        self.hand_overs.borrow_mut().spend(payer, clock::now()).map_err(|_| Full)
    }

    /// Waits for a hand-over to the guaranteed lane, behind those of the same function that came before; not where too many
    /// of them wait. Safe to drop at any point.
    async fn turn(&self, payer: Payer) -> Result<(), Full> {
        let line = self.lines.borrow().get(&payer).cloned().ok_or(Full)?;
        {
            let mut room = self.room.borrow_mut();
            let sharing = u32::try_from(room.sharing()).unwrap_or(u32::MAX).max(1);
            room.enter(payer, line.longest(self.front.hand_overs_per_second / sharing))?;
        }
        let _waits = InLine(&self.room, payer);
        let _first = line.turn.lock().await;
        loop {
            let spent = self.hand_overs.borrow_mut().spend(payer, clock::now());
            let Err(at) = spent else { return Ok(()) };
            tokio::time::sleep(at.since(clock::now())).await;
        }
    }

    fn routed(&self, name: FunctionName, route: Option<Route>) {
        let (mut hand_overs, mut room) = (self.hand_overs.borrow_mut(), self.room.borrow_mut());
        let guaranteed = route.as_ref().filter(|route| route.standing == Standing::Guaranteed);
        let (after, queue) = (guaranteed.map(|route| route.key), guaranteed.and_then(Line::of));
        let before = match route {
            Some(route) => self.routes.borrow_mut().insert(name, route),
            None => self.routes.borrow_mut().remove(&name),
        };
        if let Some(before) = before.filter(|before| Some(before.key) != after) {
            hand_overs.leave(Payer::Function(before.key));
            room.leave(&Payer::Function(before.key));
            self.lines.borrow_mut().remove(&Payer::Function(before.key));
        }
        if let Some(after) = after {
            hand_overs.join(Payer::Function(after));
            room.join(Payer::Function(after));
            self.lines.borrow_mut().entry(Payer::Function(after)).or_default().queue = queue;
        }
    }

    fn usage(&self) -> Usage {
        Usage { counts: *self.counts.borrow(), waiting: self.places.borrow().taken(), places: STAGES * self.of_each }
    }
}

/// Runs the door on the calling thread until its command queue closes.
pub(crate) fn run(start: Start) -> io::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().enable_time().event_interval(EVENT_INTERVAL).build()?;
    LocalSet::new().block_on(&runtime, serve(start))
}

async fn serve(start: Start) -> io::Result<()> {
    let Start { mut commands, exits, front, classes } = start;
    let door = Rc::new(Door::new(exits, front, classes));
    let (mut listener, mut tasks) = (None, JoinSet::new());
    let mut in_a_row = 0;
    loop {
        door.step(0);
        if IN_A_ROW <= in_a_row {
            tokio::task::yield_now().await;
            in_a_row = 0;
        }
        in_a_row += 1;
        tokio::select! {
            biased;
            command = commands.recv() => match command {
                Some(command) => listener = obey(&door, command, listener)?,
                None => return Ok(()),
            },
            () = door.resumes() => door.look(),
            Some(ended) = tasks.join_next() => check(ended),
            accepted = accept(listener.as_ref()) => match accepted {
                Ok(first) => take_in(&door, &mut tasks, first),
                Err(error) if is_shortage(&error) => {
                    let leaves = door.places.borrow_mut().oldest_silent();
                    door.evict(leaves, What::EvictedSilent);
                }
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            },
        }
    }
}

/// Takes in a connection: hands it over at once where its request is there, and waits for the rest where not.
fn take_in(door: &Rc<Door>, tasks: &mut JoinSet<()>, mut first: First) {
    door.count(What::Accepted);
    match first.look(door) {
        Ok(Found::Way(way)) => match way {
            Way::Guaranteed(payer) if door.turn_now(payer).is_err() => {
                tasks.spawn_local(first::go(Rc::clone(door), first, way));
            }
            Way::Guaranteed(_) | Way::BestEffort(_) | Way::Management => first.go(door, way),
        },
        Ok(Found::Unfinished) => {
            let stage = first.stage();
            sit(door, stage, |seat| tasks.spawn_local(first::serve(seat, first)));
        }
        Err(End::Gone) if first.is_silent() => {}
        Err(End::Gone) => door.count(What::CutShort),
        Err(end) => sit(door, Stage::Begun, |seat| tasks.spawn_local(first::end(seat, first, end))),
    }
}

/// Gives a connection a place while `task` serves it.
fn sit(door: &Rc<Door>, stage: Stage, task: impl FnOnce(Seat) -> AbortHandle) {
    let place = door.places.borrow_mut().next();
    let task = task(Seat { door: Rc::clone(door), place });
    let (leaves, what) = match stage {
        Stage::Silent => (door.places.borrow_mut().enter(place, task), What::EvictedSilent),
        Stage::Begun => (door.places.borrow_mut().enter_begun(place, task), What::EvictedBegun),
        Stage::Claimed => (door.places.borrow_mut().enter_claimed(place, task), What::EvictedBegun),
        Stage::LetIn => (door.places.borrow_mut().enter_let_in(place, task), What::EvictedBegun),
    };
    door.evict(leaves, what);
}

/// Does what the node asks for. Returns the listener there is from then on. Who asked and gave up needs no answer.
fn obey(door: &Door, command: Command, listener: Option<Listener>) -> io::Result<Option<Listener>> {
    match command {
        Command::Accept { listener: given, done } => {
            let given = runtime::sys::watch(OwnedFd::from(given))?;
            let _ = done.send(());
            return Ok(Some(given));
        }
        Command::Route { name, route, done } => {
            door.routed(name, route);
            let _ = done.send(());
        }
        Command::Rotate { keys, done } => {
            door.access.borrow_mut().rotate(&keys);
            let _ = done.send(());
        }
        Command::Usage { done } => {
            let _ = done.send(door.usage());
        }
        Command::Shut { done } => {
            drop(listener);
            let _ = done.send(());
            return Ok(None);
        }
    }
    Ok(listener)
}

/// A task that panicked is a bug of ours and takes the door down; who had to leave was cancelled.
fn check(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        assert!(!error.is_panic(), "a task of the door panicked: {error}");
    }
}

/// The next connection. Safe to drop at any point.
async fn accept(listener: Option<&Listener>) -> io::Result<First> {
    let Some(listener) = listener else { return pending().await };
    let accepted = loop {
        let mut ready = listener.readable().await?;
        match rustix::net::acceptfrom_with(listener.get_ref(), SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(accepted) => break Ok(accepted),
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(errno) => break Err(errno),
        }
    };
    let (stream, peer) = match accepted {
        Ok(accepted) => accepted,
        Err(errno) => {
            // Without descriptors every accept fails at once: this must not become a loop.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            return Err(errno.into());
        }
    };
    let stream = std::net::TcpStream::from(stream);
    stream.set_nodelay(true)?;
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).ok_or(Errno::CONNABORTED)?;
    Ok(First::new(stream, peer))
}

/// Errors of `accept` that pass when a connection gives up its descriptor and its buffers.
fn is_shortage(error: &io::Error) -> bool {
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    shortages.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Errors of `accept` that concern one connection or the network it came by.
fn is_passing(error: &io::Error) -> bool {
    let passing = [
        Errno::CONNABORTED,
        Errno::CONNRESET,
        Errno::PROTO,
        Errno::NOPROTOOPT,
        Errno::TIMEDOUT,
        Errno::INVAL,
        Errno::NETDOWN,
        Errno::NETUNREACH,
        Errno::HOSTDOWN,
        Errno::HOSTUNREACH,
        Errno::NONET,
        Errno::OPNOTSUPP,
        Errno::PERM,
    ];
    passing.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
