//! A lane: one thread, one event loop, one state machine, the connections of its clients and of its instances.
//!
//! Nothing here decides; the machine does. Nothing here blocks; what may block (starting instances, reading logs, writing
//! records) has threads of its own, fed over bounded queues.

mod api;
mod client;
mod core;
pub(crate) mod counts;
mod delays;
mod forward;
pub(crate) mod idle;
mod instance;
pub(crate) mod links;
mod machine;
pub(crate) mod message;
mod paced;
pub(crate) mod ration;
mod sampling;
mod seats;
mod transit;
pub(crate) mod watch;

#[cfg(test)]
mod allocations;
#[cfg(test)]
mod at_work;
#[cfg(test)]
pub(crate) mod tests;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use model::{Class, Time};
use rand_chacha::ChaCha12Rng;
use runtime::sys::{self, clock, sched};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, JoinSet, LocalSet};
use tokio::time::Instant;

pub(crate) use self::client::{LARGE_BYTES, LIMITS, Manners, Rendering, close_busy};
use self::core::Core;
pub(crate) use self::core::EXCESS_AT_ONCE;
use self::counts::What;
pub(crate) use self::delays::Delays;
pub(crate) use self::instance::CONNECTIONS_MAX as INSTANCE_CONNECTIONS_MAX;
use self::links::Links;
pub(crate) use self::machine::Machine;
use self::message::{Command, Moved, News, Traffic};
use self::paced::Lines;
use self::seats::{Seats, Silence};
use crate::auth::Access;
use crate::budget::Budget;
use crate::front::Front;
use crate::{lanes, management};

/// Priority of the guaranteed lane's thread: above every instance, below the probe.
pub(crate) const PRIORITY: u8 = 70;
/// New connections per second at most, and at once, that the guaranteed lane is handed and admission accounts for.
pub(crate) const HAND_OVERS_PER_SECOND_MAX: u32 = 300;
pub(crate) const HAND_OVERS_AT_ONCE: u32 = 4;
/// Pieces of long requests and answers per second, and at once, that the guaranteed lane moves for clients that were let in and
/// invocations that took a slot, for all other clients, and for instances.
pub(crate) const OTHERS_PIECES_PER_SECOND: u32 = 100;
pub(crate) const CLIENTS_PIECES_PER_SECOND: u32 = 400;
pub(crate) const INSTANCES_PIECES_PER_SECOND: u32 = 800;
pub(crate) const PIECES_AT_ONCE: u32 = 4;

/// Everything a lane's thread starts with.
pub(crate) struct Start<M> {
    pub(crate) lane: lanes::Lane,
    pub(crate) machine: M,
    pub(crate) links: Links,
    pub(crate) inbox: Inbox,
    pub(crate) front: Arc<Front>,
    pub(crate) rng: ChaCha12Rng,
    pub(crate) placement: Option<ThreadPlacement>,
}

/// Where the guaranteed lane's thread runs when the node has real-time scheduling.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThreadPlacement {
    pub(crate) core: u16,
}

/// What a lane's instances held and used since the lane started, and what waits in it.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    pub(crate) queues: Vec<management::Queue>,
    pub(crate) traffic: Vec<management::Traffic>,
    /// With the last start delays of each, for whoever asks to sort on a thread of their own.
    pub(crate) functions: Vec<(management::Usage, Delays)>,
    pub(crate) best_effort: management::BestEffort,
}

/// The receiving ends of a lane's queues.
pub(crate) struct Inbox {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) news: mpsc::Receiver<News>,
    pub(crate) traffic: mpsc::Receiver<Traffic>,
    pub(crate) results: mpsc::Receiver<Box<Rendering>>,
}

/// The part of a lane that its tasks share. One thread; no borrow lives across an `.await`.
pub(crate) struct Lane<M> {
    core: RefCell<Core<M>>,
    timer: AsyncFd<clock::Timer>,
    armed: RefCell<Option<Time>>,
    tasks: RefCell<JoinSet<()>>,
    seats: RefCell<Seats<AbortHandle>>,
    spawned: Notify,
    front: Arc<Front>,
    access: RefCell<Access>,
    which: lanes::Lane,
    /// What long requests and answers take of the lane; none where nothing is reserved.
    for_clients: Option<Lines>,
    for_instances: Option<Lines>,
}

impl<M: Machine> Lane<M> {
    fn new(machine: M, which: lanes::Lane, links: Links, (front, rng): (Arc<Front>, ChaCha12Rng)) -> io::Result<Self> {
        let turns = |per_second| match which {
            lanes::Lane::Guaranteed => Some(Rc::new(RefCell::new(Budget::new(per_second, PIECES_AT_ONCE)))),
            lanes::Lane::BestEffort => None,
        };
        Ok(Self {
            core: RefCell::new(Core::new(machine, which, links, (Arc::clone(&front), rng))),
            timer: sys::watch(clock::Timer::new()?)?,
            armed: RefCell::new(None),
            tasks: RefCell::new(JoinSet::new()),
            seats: RefCell::default(),
            spawned: Notify::new(),
            access: RefCell::new(front.access()),
            front,
            which,
            for_clients: turns(OTHERS_PIECES_PER_SECOND)
                .zip(turns(CLIENTS_PIECES_PER_SECOND))
                .map(|(others, slots)| Lines { others, slots }),
            for_instances: turns(INSTANCES_PIECES_PER_SECOND).map(Lines::one),
        })
    }

    /// Works on the state and arms the timer for what it wants next.
    fn with<T>(&self, work: impl FnOnce(&mut Core<M>) -> T) -> T {
        let (result, wake) = {
            let mut core = self.core.borrow_mut();
            let result = work(&mut core);
            (result, core.next_wake())
        };
        self.arm(wake);
        result
    }

    fn lane(&self) -> lanes::Lane {
        self.which
    }

    fn arm(&self, wake: Option<Time>) {
        let mut armed = self.armed.borrow_mut();
        if *armed == wake {
            return;
        }
        let set = match wake {
            Some(at) => self.timer.get_ref().set(at),
            None => self.timer.get_ref().cancel(),
        };
        set.expect("invariant: a timer descriptor that was made accepts any instant");
        *armed = wake;
    }

    /// Runs a task on this lane until it ends or the lane does.
    fn spawn(&self, task: impl Future<Output = ()> + 'static) -> AbortHandle {
        let task = self.tasks.borrow_mut().spawn_local(task);
        self.spawned.notify_one();
        task
    }

    fn count(&self, what: What) {
        self.core.borrow_mut().counts.add(what);
    }

    /// Takes in a connection, in place of a silent one where the lane holds too many, or refuses it where all of them work.
    fn connect(self: &Rc<Self>, moved: Moved) {
        if self.front.connections.lane <= self.seats.borrow().taken() {
            let Some(silent) = self.seats.borrow_mut().make_room(Instant::now()) else {
                close_busy(&moved.stream);
                self.count(What::RefusedBusy);
                return;
            };
            silent.abort();
            self.count(What::EvictedSilent);
        }
        let number = self.seats.borrow_mut().next();
        let silence = Silence::default();
        let seat = Seat { lane: Rc::clone(self), number };
        let task = self.spawn(client::serve(seat, moved, silence.clone()));
        self.seats.borrow_mut().sit(number, silence, task);
    }
}

/// Gives a connection's place back when it is dropped.
struct Seat<M> {
    lane: Rc<Lane<M>>,
    number: u64,
}

impl<M> Drop for Seat<M> {
    fn drop(&mut self) {
        self.lane.seats.borrow_mut().leave(self.number);
    }
}

/// Runs a lane on the calling thread until its command queue closes.
pub(crate) fn run<M: Machine>(start: Start<M>) -> io::Result<()> {
    let own = sched::current_thread();
    if let (None, lanes::Lane::Guaranteed) = (start.placement, start.lane) {
        // A kernel that does not listen lets it wait for its turn as any other.
        let _ = sched::ask_for_short_turns(own);
    }
    if let Some(placement) = start.placement {
        sched::set_cores(own, &[placement.core]).map_err(io::Error::other)?;
        sched::set_current(sched::Class::Fifo { priority: PRIORITY }).map_err(io::Error::other)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().event_interval(16).build()?;
    LocalSet::new().block_on(&runtime, serve(start))
}

async fn serve<M: Machine>(start: Start<M>) -> io::Result<()> {
    let lane = Rc::new(Lane::new(start.machine, start.lane, start.links, (start.front, start.rng))?);
    let mut inbox = start.inbox;
    loop {
        tokio::select! {
            biased;
            command = inbox.commands.recv() => match command {
                Some(Command::Rotate { keys, done }) => {
                    lane.access.borrow_mut().rotate(&keys);
                    // The control plane that gave up waiting needs no answer.
                    let _ = done.send(());
                }
                Some(command) => lane.with(|core| core.command(command)),
                None => return Ok(()),
            },
            ready = lane.timer.readable() => {
                let mut guard = ready?;
                lane.timer.get_ref().consume()?;
                guard.clear_ready();
                drop(guard);
                *lane.armed.borrow_mut() = None;
                lane.with(|core| core.wake(clock::now()));
            }
            Some(news) = inbox.news.recv() => news_of(&lane, news),
            Some(rendering) = inbox.results.recv() => rendering.make(),
            () = join(&lane) => {}
            Some(traffic) = inbox.traffic.recv() => match traffic {
                Traffic::New(moved) => {
                    lane.count(What::FromDoor);
                    lane.connect(moved);
                }
                Traffic::Connection(moved) => {
                    lane.count(What::TakenOver);
                    lane.connect(moved);
                }
                Traffic::Demoted(waiting) => lane.with(|core| core.adopt(*waiting, Class::BestEffort)),
                Traffic::Forwarded(waiting) => lane.with(|core| core.adopt(*waiting, Class::Guaranteed)),
                Traffic::Render(rendering) => rendering.make(),
                Traffic::Abandoned(id) => lane.with(|core| core.abandon_here(id)),
            },
        }
    }
}

/// Waits for tasks that end; a task that panicked is a bug of ours and takes the lane down with its message.
async fn join<M>(lane: &Lane<M>) {
    let ended = poll_fn(|context| match lane.tasks.borrow_mut().poll_join_next(context) {
        Poll::Ready(Some(ended)) => Poll::Ready(Some(ended)),
        Poll::Ready(None) => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await;
    match ended {
        Some(Ok(())) => {}
        Some(Err(error)) => assert!(!error.is_panic(), "a task of the lane panicked: {error}"),
        None => lane.spawned.notified().await,
    }
}

fn news_of<M: Machine>(lane: &Rc<Lane<M>>, news: News) {
    match news {
        News::Started { instance, running, listener, exit, began } => {
            if lane.with(|core| core.started(instance, &running, began)) {
                let serving = Rc::clone(lane);
                lane.spawn(async move { api::serve(serving, instance, (running, listener, exit)).await });
            }
        }
        News::Begun { instance } => lane.with(|core| core.event(engine::port::Event::Begun { instance })),
        News::NotStarted { instance } => lane.with(|core| core.gone(instance)),
        News::StartFailed { instance, failure } => lane.with(|core| core.start_failed(instance, &failure)),
        News::Placed { instance, on, threads } => lane.with(|core| core.placed(instance, on, threads)),
        News::Gap(gap) => lane.with(|core| core.gap(clock::now(), gap)),
    }
}
