//! The state of a lane: its machine, the requests that wait, its instances. Every change goes through [`Core::event`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use engine::gaps::Gaps;
use engine::mirror::Mirrors;
use engine::port::{Action, Deployment, Event, Placement, Refusal, Remark, Reservation};
use http::HeaderValue;
use journal::record::{Counters, Record};
use model::{Class, End, FunctionKey, FunctionName, InstanceId, InvocationId, LeaseId, Time, Version};
use rand_chacha::ChaCha12Rng;
use runtime::sys::clock;
use rustix::process::Pid;
use tokio::sync::oneshot;

use super::Usage;
use super::counts::Counts;
use super::delays::Delays;
use super::forward::Lines;
use super::idle::Returning;
use super::instance::Instance;
use super::links::{Links, NewInstance, Order};
use super::machine::Machine;
use super::message::{Command, Traffic};
use super::transit::Transits;
use super::watch::Watches;
use crate::assemble::error_line;
use crate::budget::{Payer, Shares};
use crate::front::Front;
use crate::instance::{Running, StartFailure};
use crate::invocation::{Ending, Outcome, Progress, Request, Waiting};
use crate::lambda::invoke;
use crate::lanes::{Image, Installed, Lane, Lease, LeaseError, Route, Standing};
use crate::management;
use crate::probe::Gap;

/// A gap that lasts is taken in piece by piece, none shorter than this.
const GAP_PIECE: Duration = Duration::from_micros(500);
/// Excess that a lane takes at once; admission accounts for that of both.
pub(crate) const EXCESS_AT_ONCE: u32 = 4;
/// How many leases may wait for their instance at once.
const LEASES_MAX: usize = 1_000;

pub(crate) struct Core<M> {
    machine: M,
    pub(super) lane: Lane,
    pub(super) links: Links,
    front: Arc<Front>,
    rng: ChaCha12Rng,
    functions: BTreeMap<FunctionKey, Function>,
    routes: BTreeMap<FunctionName, Route>,
    pub(super) waiting: BTreeMap<InvocationId, Waiting>,
    pub(super) instances: BTreeMap<InstanceId, Instance>,
    /// Leases whose instance is not ready yet, and those that wait for input.
    leases: BTreeMap<LeaseId, (FunctionKey, oneshot::Sender<Result<Lease, LeaseError>>)>,
    held: BTreeMap<LeaseId, FunctionKey>,
    pub(super) watches: Watches,
    pub(super) transits: Transits,
    events: VecDeque<Event>,
    actions: Vec<Action>,
    /// Time since the lane started in which a core's probe was not run, or the front's.
    pub(super) stolen: BTreeMap<u16, Duration>,
    /// The last gaps of all probes.
    pub(super) gaps: Gaps,
    /// Until when the gaps of each core are taken in; of one that lasts, the rest follows.
    gaps_until: BTreeMap<u16, Time>,
    /// The invocation whose arrival the machine is told just now.
    pub(super) arriving: Option<InvocationId>,
    /// The counters as last written to the evidence.
    counted: Vec<Counters>,
    drained: Option<oneshot::Sender<()>>,
    /// Functions whose warm reserve the control plane waits for; few, as it waits for one deployment at a time.
    pub(super) warming: Vec<(FunctionKey, oneshot::Sender<Duration>)>,
    /// What the guaranteed functions may have this lane do beyond their guarantees: in the guaranteed lane requests that take
    /// no slot, in the other one connections that are sent to the guaranteed lane, and requests beyond the envelope.
    excess: Shares<Payer>,
    /// The envelopes of guaranteed functions as the best-effort lane sees them.
    pub(super) mirrors: Mirrors,
    /// In the best-effort lane: requests that wait for the guaranteed lane.
    pub(super) lines: Lines,
    pub(super) counts: Counts,
    /// In the best-effort lane: when lasting runs were looked at last.
    pub(super) looked_at: Time,
    /// The last instance that was looked at, where more are to come.
    pub(super) looked_up_to: InstanceId,
    pub(super) returning: Returning,
}

/// Answers a request that no machine gets to see.
fn turn_away(waiting: Waiting, refusal: Refusal) {
    let now = clock::now();
    let outcome = Outcome {
        ending: Ending::Refused(refusal),
        class: waiting.class,
        arrived: waiting.request.arrived,
        ended: now,
        progress: waiting.progress,
    };
    // A client that went away in this instant needs no answer.
    let _ = waiting.answer.send(outcome);
}

fn remark(what: Remark) -> String {
    match what {
        Remark::NeverAsked { within } => format!(
            "killed: it answered an invocation and did not ask for the next one within {within:?}. A runtime asks as soon as it has \
             answered; what a function does between invocations it does beside that"
        ),
    }
}

/// Answers a request for a guaranteed function that no machine gets to see.
pub(super) fn refused(request: Request, refusal: Refusal) -> oneshot::Receiver<Outcome> {
    let (answer, receiver) = oneshot::channel();
    turn_away(Waiting { request, answer, class: Class::Guaranteed, progress: Progress::default() }, refusal);
    receiver
}

/// What is to be done when a version serves.
struct Installing {
    /// Functions to revise.
    beside: Vec<(FunctionKey, Reservation)>,
    done: oneshot::Sender<Installed>,
}

/// A function as this lane knows it. Two versions exist during a hand-over.
struct Function {
    images: BTreeMap<Version, Arc<Image>>,
    deployment: Deployment,
    installing: Option<(Version, Installing)>,
    serving: Option<Version>,
    /// What the last instance that did not become ready had to say.
    failure: String,
    /// Time its instances existed and ran invocations, summed.
    held: Duration,
    used: Duration,
    pub(super) delays: Delays,
    observed: Observed,
}

/// What a function's instances were seen to need, the most since its version was installed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Observed {
    /// From the order to start one until it could take an invocation.
    start: Duration,
    /// CPU from the answer to an invocation until it asked for the next.
    returning: Duration,
}

impl<M: Machine> Core<M> {
    pub(crate) fn new(machine: M, lane: Lane, links: Links, (front, rng): (Arc<Front>, ChaCha12Rng)) -> Self {
        let mut excess = Shares::new(front.excess_per_second.div_ceil(2), EXCESS_AT_ONCE);
        match lane {
            Lane::BestEffort => excess.join(Payer::Leases),
            Lane::Guaranteed => {}
        }
        Self {
            machine,
            lane,
            links,
            front,
            rng,
            functions: BTreeMap::new(),
            routes: BTreeMap::new(),
            waiting: BTreeMap::new(),
            instances: BTreeMap::new(),
            leases: BTreeMap::new(),
            held: BTreeMap::new(),
            watches: Watches::default(),
            transits: Transits::default(),
            events: VecDeque::new(),
            actions: Vec::new(),
            stolen: BTreeMap::new(),
            gaps: Gaps::new(),
            gaps_until: BTreeMap::new(),
            arriving: None,
            counted: Vec::new(),
            drained: None,
            warming: Vec::new(),
            excess,
            mirrors: Mirrors::default(),
            lines: Lines::default(),
            counts: Counts::default(),
            looked_at: clock::now(),
            looked_up_to: InstanceId(0),
            returning: Returning::default(),
        }
    }

    /// Where requests for a function go.
    pub(super) fn route(&self, name: &FunctionName) -> Option<&Route> {
        self.routes.get(name)
    }

    pub(super) fn new_id(&mut self) -> InvocationId {
        InvocationId::from_random(rand::RngExt::random(&mut self.rng))
    }

    /// Tells the machine what happened now and does what it asks for.
    pub(super) fn event(&mut self, event: Event) {
        self.event_at(clock::now(), event);
    }

    pub(super) fn event_at(&mut self, now: Time, event: Event) {
        // What was due before this event happens before it: the machine's clock does not go back.
        if self.machine.next_wake().is_some_and(|at| at <= now) {
            self.wake_machine(now);
        }
        self.events.push_back(event);
        self.settle(now);
    }

    /// Tells the machine what its own actions brought about, and whoever waits for where that led.
    fn settle(&mut self, now: Time) {
        while let Some(event) = self.events.pop_front() {
            self.machine.handle(now, event, &mut self.actions);
            self.run_actions(clock::now().max(now));
        }
        self.tell_warm();
        self.finish_drain();
    }

    /// Does what is due at `now`: the machine's own timers and the watches over running invocations.
    pub(super) fn wake(&mut self, now: Time) {
        self.wake_machine(now);
        for id in self.watches.due(now) {
            self.check_watch(now, id);
        }
        self.look_at_returning(now);
        self.look_at_lasting(now);
        self.settle(now);
    }

    fn wake_machine(&mut self, now: Time) {
        self.sense_gaps(now);
        self.sense_transits(now);
        self.machine.wake(now, &mut self.actions);
        self.run_actions(now);
    }

    pub(super) fn next_wake(&self) -> Option<Time> {
        [self.machine.next_wake(), self.watches.next(), self.returning.next(), self.next_sample()].into_iter().flatten().min()
    }

    fn run_actions(&mut self, now: Time) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            self.act(now, action);
        }
        self.actions = actions;
    }

    fn act(&mut self, now: Time, action: Action) {
        match action {
            Action::Start { instance, function, version, on } => self.start(instance, function, version, on),
            Action::Place { instance, on } => self.place(instance, on),
            Action::Tell { instance, what } => self.tell(instance, remark(what)),
            Action::Kill { instance } => self.kill(instance),
            Action::Deliver { id, instance, allowance, conforming } => self.deliver(now, id, instance, (allowance, conforming)),
            Action::Demote { id } => self.demote(id),
            Action::Refuse { id, refusal } => self.answer(now, id, Ending::Refused(refusal)),
            Action::Fail { id, end } => self.fail(now, id, end),
            Action::LeaseReady { lease, expires } => self.lease_ready(now, lease, expires),
            // How long it was held is in the record that the machine leaves of it.
            Action::LeaseEnded { lease, .. } => {
                self.held.remove(&lease);
                self.lease_failed(lease, "the lease ended before an instance was ready");
            }
            Action::LeaseRefused { lease, refusal } => self.lease_refused(now, lease, refusal),
            Action::Serving { function, version } => self.installed(function, version, Installed::Serving),
            Action::CannotServe { function, version } => {
                let log = self.functions.get(&function).map_or_else(String::new, |known| known.failure.clone());
                self.installed(function, version, Installed::CannotServe { log });
            }
            Action::Record(record) => self.links.record(*record),
        }
    }

    /// A command of the control plane.
    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Install { deployment, image, beside, done } => self.install(*deployment, image, Installing { beside, done }),
            Command::Revise { all, done } => {
                let event = self.revised(all);
                self.event(event);
                // The control plane that gave up waiting needs no answer.
                let _ = done.send(());
            }
            Command::Mirror { function, reservation } => self.mirrors.set(function, &reservation),
            Command::Remove { function, done } => {
                self.event(Event::Remove { function });
                self.mirrors.remove(function);
                self.functions.remove(&function);
                self.pays_no_more(function);
                self.returning.forget(function);
                let _ = done.send(());
            }
            Command::Route { name, route, done } => {
                self.routed(name, route);
                let _ = done.send(());
            }
            Command::Warm { function, done } => {
                self.warming.push((function, done));
                self.tell_warm();
            }
            Command::PreInvoke { function, lead, done } => self.pre_invoke(function, lead, done),
            Command::Counters { done } => {
                let _ = done.send(self.machine.counters());
            }
            Command::Usage { done } => {
                self.record_counters();
                let _ = done.send(self.usage());
            }
            // The lane itself does this.
            Command::Rotate { done, .. } => drop(done),
            Command::Drain { done } => {
                self.record_counters();
                self.drained = Some(done);
                self.lines.close();
                self.event(Event::Drain);
            }
        }
    }

    /// The launcher made the instance. Returns whether it is still wanted.
    pub(super) fn started(&mut self, instance: InstanceId, running: &Arc<Running>, began: Time) -> bool {
        let Some(known) = self.instances.get_mut(&instance) else {
            running.kill();
            return false;
        };
        known.started(Arc::clone(running), began);
        true
    }

    pub(super) fn start_failed(&mut self, instance: InstanceId, failure: &StartFailure) {
        self.note_failure(instance, &failure.text());
        self.gone(instance);
    }

    /// Answers those who wait for a warm reserve that is there, or whose function is gone.
    fn tell_warm(&mut self) {
        if self.warming.is_empty() {
            return;
        }
        for (function, done) in std::mem::take(&mut self.warming) {
            // The control plane gave up waiting.
            if done.is_closed() {
                continue;
            }
            let known = self.functions.get(&function);
            if known.is_some() && !self.machine.is_warm(function) {
                self.warming.push((function, done));
                continue;
            }
            // The control plane that gave up waiting needs no answer.
            let _ = done.send(known.map(|known| known.observed.start).unwrap_or_default());
        }
    }

    fn note_start(&mut self, instance: InstanceId) {
        let Some(known) = self.instances.get_mut(&instance) else { return };
        let (took, function) = (known.take_whole_start(clock::now()), known.function);
        if let (Some(took), Some(function)) = (took, self.functions.get_mut(&function)) {
            function.observed.start = function.observed.start.max(took);
        }
    }

    /// An instance that answered asks for its next invocation: what it used in between.
    pub(super) fn note_return(&mut self, instance: InstanceId) {
        let cpu = self.cpu_time(instance);
        let Some(known) = self.instances.get_mut(&instance) else { return };
        let (answered, function) = (known.answered.take(), known.function);
        if let (Some(answered), Some(function)) = (answered, self.functions.get_mut(&function)) {
            function.observed.returning = function.observed.returning.max(cpu.saturating_sub(answered));
        }
    }

    /// The instance's threads have the class the machine asked for.
    pub(super) fn placed(&mut self, instance: InstanceId, on: Placement, threads: Vec<Pid>) {
        self.keep_threads(instance, threads);
        if self.instances.get_mut(&instance).is_some_and(|known| known.placed(on)) {
            self.note_start(instance);
            self.sample_start(instance);
            self.event(Event::Ready { instance });
        }
    }

    /// Takes in what the probes missed up to `now`, before anything that fell due meanwhile is laid to an invocation's charge.
    fn sense_gaps(&mut self, now: Time) {
        let pulses = Arc::clone(&self.links.pulses);
        for gap in pulses.missed(now) {
            let known = self.gaps_until.get(&gap.core).copied().unwrap_or_default();
            if GAP_PIECE <= gap.until.since(gap.from.max(known)) {
                self.gap(now, gap);
            }
        }
    }

    /// Takes in what is new of a gap.
    pub(super) fn gap(&mut self, now: Time, gap: Gap) {
        let known = self.gaps_until.entry(gap.core).or_default();
        let (core, from, until) = (gap.core, gap.from.max(*known), gap.until);
        if until <= from {
            return;
        }
        *known = until;
        for home in 0..self.links.pulses.cores() {
            *self.stolen.entry(home).or_default() += self.gaps.fresh(core, home, from, until);
        }
        self.gaps.note(core, from, until);
        self.links.note(Record::ProbeGap { core, from, until });
        self.tell_machine(now, Event::ProbeGap { core, from, until });
        self.settle(now);
    }

    /// Tells the machine of what happened before anything that is due by now.
    pub(super) fn tell_machine(&mut self, now: Time, event: Event) {
        self.machine.handle(now, event, &mut self.actions);
        self.run_actions(now);
    }

    /// Notes what functions are told, and how their machine is told it.
    fn revised(&mut self, all: Vec<(FunctionKey, Reservation)>) -> Event {
        for (function, reservation) in &all {
            if let Some(known) = self.functions.get_mut(function) {
                known.deployment.reservation = Some(reservation.clone());
            }
        }
        Event::Revise(all)
    }

    fn install(&mut self, deployment: Deployment, image: Arc<Image>, installing: Installing) {
        let (key, version) = (deployment.function, deployment.version);
        let function = self.functions.entry(key).or_insert_with(|| Function {
            images: BTreeMap::new(),
            deployment: deployment.clone(),
            installing: None,
            serving: None,
            failure: String::new(),
            held: Duration::ZERO,
            used: Duration::ZERO,
            delays: Delays::default(),
            observed: Observed::default(),
        });
        if !function.images.contains_key(&version) {
            function.observed = Observed::default();
        }
        function.images.insert(version, image);
        function.deployment = deployment.clone();
        function.failure.clear();
        // A newer installation overtakes one that is still waiting; that one is told by its channel closing.
        function.installing = Some((version, installing));
        self.event(Event::Install(Box::new(deployment)));
    }

    fn installed(&mut self, key: FunctionKey, version: Version, how: Installed) {
        let Some(function) = self.functions.get_mut(&key) else { return };
        match how {
            Installed::Serving => {
                function.serving = Some(version);
                function.images.retain(|kept, _| version <= *kept);
            }
            Installed::CannotServe { .. } if function.serving == Some(version) => {}
            Installed::CannotServe { .. } => {
                function.images.remove(&version);
            }
        }
        if let Some((waits_for, Installing { beside, done })) =
            function.installing.take_if(|(waits_for, _)| *waits_for == version)
        {
            debug_assert_eq!(waits_for, version, "invariant: taken because equal");
            if how == Installed::Serving && !beside.is_empty() {
                let event = self.revised(beside);
                self.events.push_back(event);
            }
            let _ = done.send(how);
        }
    }

    /// Takes in a complete request; its client waits on the receiver.
    pub(super) fn submit(&mut self, request: Request, standing: Standing, lease: Option<LeaseId>) -> oneshot::Receiver<Outcome> {
        let (answer, receiver) = oneshot::channel();
        let class = match standing {
            Standing::Guaranteed => Class::Guaranteed,
            Standing::BestEffort | Standing::Suspended => Class::BestEffort,
        };
        let waiting = Waiting { request, answer, class, progress: Progress::default() };
        match (standing, self.lane) {
            (Standing::Suspended, _) => turn_away(waiting, Refusal::Suspended),
            // Whether it may go there was found out before.
            (Standing::Guaranteed, Lane::BestEffort) => self.hand_over(waiting, Traffic::Forwarded),
            (Standing::Guaranteed, Lane::Guaranteed) | (Standing::BestEffort, _) => self.take_in(waiting, lease),
        }
        receiver
    }

    /// Takes over an invocation from the other lane.
    pub(super) fn adopt(&mut self, mut waiting: Waiting, class: Class) {
        let (id, function) = (waiting.request.id, waiting.request.function);
        waiting.class = class;
        match class {
            // How long the lane without a promise took to read it and hand it over is not this one's delay.
            Class::Guaranteed => waiting.request.arrived = clock::now(),
            Class::BestEffort => {}
        }
        self.take_in(waiting, None);
        if self.lane == Lane::Guaranteed && !self.waiting.contains_key(&id) {
            // It found no slot, as slots were taken here too: the excess that is served here becomes less by it. Where none
            // is left, nothing follows: what the other lane's mirror lets through is bounded.
            let _ = self.spend_excess(Payer::Function(function));
        }
    }

    fn take_in(&mut self, waiting: Waiting, lease: Option<LeaseId>) {
        let Request { id, function, deadline, .. } = waiting.request;
        let at = match self.lane {
            Lane::Guaranteed => waiting.request.arrived,
            Lane::BestEffort => clock::now(),
        };
        self.waiting.insert(id, waiting);
        self.arriving = Some(id);
        let event = match lease {
            Some(lease) => {
                self.held.remove(&lease);
                Event::Supplied { id, lease, deadline }
            }
            None => Event::Arrived { id, function, deadline },
        };
        self.event_at(at, event);
        self.arriving = None;
    }

    fn hand_over(&mut self, waiting: Waiting, how: fn(Box<Waiting>) -> Traffic) {
        if let Err(back) = self.links.hand_over(waiting, how) {
            turn_away(*back, Refusal::Busy { limit: self.front.connections.hand_overs });
        }
    }

    /// Charges the guaranteed lane's work for a request that takes no slot; whoever finds nothing left keeps off that lane.
    pub(super) fn spend_excess(&mut self, payer: Payer) -> Result<(), Time> {
        self.excess.spend(payer, clock::now())
    }

    /// The function has a part of what this lane does for guaranteed ones.
    fn pays(&mut self, function: FunctionKey) {
        self.excess.join(Payer::Function(function));
        self.lines.join(Payer::Function(function));
    }

    fn pays_no_more(&mut self, function: FunctionKey) {
        self.excess.leave(Payer::Function(function));
        self.lines.leave(Payer::Function(function));
    }

    fn routed(&mut self, name: FunctionName, route: Option<Route>) {
        let before = match route {
            Some(route) => {
                match route.standing {
                    Standing::Guaranteed => self.pays(route.key),
                    Standing::BestEffort | Standing::Suspended => self.pays_no_more(route.key),
                }
                let key = route.key;
                self.routes.insert(name, route).filter(|before| before.key != key)
            }
            None => self.routes.remove(&name),
        };
        if let Some(before) = before {
            self.pays_no_more(before.key);
        }
    }

    /// The client of an invocation that the guaranteed lane demoted went away.
    pub(super) fn abandon_here(&mut self, id: InvocationId) {
        if self.waiting.contains_key(&id) {
            self.event(Event::Abandoned { id });
        }
    }

    /// The client of an invocation went away.
    pub(super) fn abandon(&mut self, id: InvocationId) {
        if self.waiting.contains_key(&id) {
            self.event(Event::Abandoned { id });
        } else {
            self.links.abandon_elsewhere(id);
        }
    }

    fn demote(&mut self, id: InvocationId) {
        if let Some(waiting) = self.waiting.remove(&id) {
            self.hand_over(waiting, Traffic::Demoted);
        }
    }

    fn fail(&mut self, now: Time, id: InvocationId, end: End) {
        let Some(waiting) = self.waiting.get(&id) else { return };
        let ending = match end {
            End::Overran => {
                let took = || now.since(waiting.progress.delivered.unwrap_or(waiting.request.arrived));
                Ending::Ran(invoke::Outcome::TimedOut(waiting.progress.run_time.unwrap_or_else(took)))
            }
            End::Crashed | End::Succeeded | End::Failed => Ending::Ran(self.crash_of(waiting)),
            End::Expired => Ending::Refused(Refusal::Expired { deadline: waiting.request.deadline.unwrap_or(now) }),
            End::Refused | End::Demoted => Ending::Refused(Refusal::Draining),
            // Nobody is there to be told.
            End::Cancelled => {
                self.waiting.remove(&id);
                self.watches.remove(id);
                self.transits.remove(id);
                return;
            }
        };
        self.answer(now, id, ending);
    }

    /// Says something about an instance in its function's log.
    pub(super) fn tell(&mut self, instance: InstanceId, text: String) {
        let function = self.instances.get(&instance).and_then(|known| self.functions.get(&known.function));
        if let Some(function) = function {
            self.links.tell(function.deployment.name.clone(), instance, text);
        }
    }

    fn crash_of(&self, waiting: &Waiting) -> invoke::Outcome {
        let instance = waiting.progress.instance.and_then(|instance| self.instances.get(&instance));
        instance.and_then(|instance| instance.exit.clone()).unwrap_or(invoke::Outcome::Exited(None))
    }

    /// Ends the wait of an invocation's client.
    pub(super) fn answer(&mut self, now: Time, id: InvocationId, ending: Ending) {
        self.watches.remove(id);
        self.transits.remove(id);
        let Some(waiting) = self.waiting.remove(&id) else { return };
        if let Ending::Ran(outcome) = &ending
            && let Some(instance) = waiting.progress.instance
            && let Err((_, message)) = outcome.clone().settle(id)
        {
            self.tell(instance, message);
        }
        let arrived = waiting.request.arrived;
        let outcome = Outcome { ending, class: waiting.class, arrived, ended: now, progress: waiting.progress };
        // A client that went away in this instant needs no answer.
        let _ = waiting.answer.send(outcome);
    }

    fn start(&mut self, instance: InstanceId, function: FunctionKey, version: Version, on: Placement) {
        let image = self.functions.get(&function).and_then(|function| function.images.get(&version)).cloned();
        let Some(image) = image else {
            self.events.push_back(Event::Gone { instance });
            return;
        };
        let arn = HeaderValue::from_str(&self.front.home.arn(&image.spec.name))
            .expect("invariant: names, regions and accounts are ASCII without control characters");
        let mut starting = Instance::starting((function, image.spec.runtime), arn, on);
        let start = NewInstance { instance, image, on, wanted: starting.is_wanted() };
        self.instances.insert(instance, starting);
        if self.links.order(Order::Start(start)).is_err() {
            self.note_failure(instance, "the node starts too many instances at once");
            self.instances.remove(&instance);
            self.events.push_back(Event::Gone { instance });
        }
    }

    fn place(&mut self, instance: InstanceId, on: Placement) {
        let Some(known) = self.instances.get_mut(&instance) else { return };
        if !known.move_to(on) {
            return;
        }
        match on {
            Placement::RealTime { priority, .. } => return known.work_at(priority),
            Placement::BestEffort => known.give_up_class(),
        }
        let Some(running) = known.running.clone() else { return };
        if self.links.order(Order::Place { instance, running, on }).is_err() {
            // The class could not be changed in time: what holds a wrong class must not go on.
            self.tell(instance, "killed: the node could not change its class in time".to_owned());
            self.kill(instance);
        }
    }

    fn kill(&mut self, instance: InstanceId) {
        if let Some(known) = self.instances.get_mut(&instance) {
            known.kill();
        }
    }

    fn lease_ready(&mut self, now: Time, lease: LeaseId, expires: Time) {
        if let Some((function, done)) = self.leases.remove(&lease) {
            self.held.insert(lease, function);
            // A caller that gave up lets the lease expire.
            let _ = done.send(Ok(Lease { id: lease, expires_in: expires.since(now) }));
        }
    }

    /// The route of the function that holds an instance for a lease.
    pub(super) fn leased(&self, lease: LeaseId) -> Option<Route> {
        let function = self.held.get(&lease)?;
        self.routes.values().find(|route| route.key == *function).cloned()
    }

    fn lease_refused(&mut self, now: Time, lease: LeaseId, refusal: Refusal) {
        self.lease_failed(lease, &super::links::refusal_text(refusal, now));
    }

    fn lease_failed(&mut self, lease: LeaseId, reason: &str) {
        if let Some((_, done)) = self.leases.remove(&lease) {
            // A caller that gave up needs no answer.
            let _ = done.send(Err(LeaseError::Refused { reason: reason.to_owned() }));
        }
    }

    fn pre_invoke(&mut self, function: FunctionKey, lead: Duration, done: oneshot::Sender<Result<Lease, LeaseError>>) {
        if LEASES_MAX <= self.leases.len() {
            let _ =
                done.send(Err(LeaseError::Refused { reason: format!("{LEASES_MAX} leases wait for their instance already") }));
            return;
        }
        // Random, so that a lease of before a restart names nothing now.
        // 53 bits: JavaScript reads larger numbers inexactly.
        let lease = LeaseId(rand::RngExt::random::<u64>(&mut self.rng) >> 11);
        self.leases.insert(lease, (function, done));
        self.event(Event::PreInvoke { lease, function, lead });
    }

    pub(super) fn note_failure(&mut self, instance: InstanceId, text: &str) {
        let function = self.instances.get(&instance).map(|known| known.function);
        if let Some(function) = function.and_then(|key| self.functions.get_mut(&key)) {
            text.clone_into(&mut function.failure);
        }
    }

    /// Keeps what a dead instance has to say where an installation may ask for it.
    pub(super) fn note_exit(&mut self, instance: InstanceId, exit: &str) {
        let function = self.instances.get(&instance).map(|known| known.function);
        if let Some(function) = function.and_then(|key| self.functions.get_mut(&key))
            && function.failure.is_empty()
        {
            exit.clone_into(&mut function.failure);
        }
    }

    /// B of the guarantee that a waiting invocation runs under.
    pub(super) fn start_within_of(&self, id: InvocationId) -> Option<Duration> {
        let function = self.waiting.get(&id).and_then(|waiting| self.functions.get(&waiting.request.function))?;
        function.deployment.reservation.as_ref().map(|reservation| reservation.terms.start_within)
    }

    /// S of the guarantee that a waiting invocation runs under.
    pub(super) fn start_bound_of(&self, id: InvocationId) -> Option<Duration> {
        let function = self.waiting.get(&id).and_then(|waiting| self.functions.get(&waiting.request.function))?;
        function.deployment.reservation.as_ref().map(|reservation| reservation.start_bound)
    }

    /// Keeps the start delay of an invocation that is about to be answered.
    pub(super) fn keep_delay(&mut self, id: InvocationId, delay: Duration) {
        let function = self.waiting.get(&id).map(|waiting| waiting.request.function);
        if let Some(function) = function.and_then(|key| self.functions.get_mut(&key)) {
            function.delays.add(delay);
        }
    }

    pub(super) fn gone(&mut self, instance: InstanceId) {
        self.settle_usage(clock::now(), instance);
        if let Some(error) = self.instances.get_mut(&instance).and_then(|known| known.classless.take()) {
            self.tell(instance, format!("killed: the node could not change its class: {}", error_line(&error)));
        }
        self.event(Event::Gone { instance });
        self.instances.remove(&instance);
        self.returning.remove(instance);
    }

    /// Adds what an instance held and used up to now to its function's sums, and begins anew.
    fn settle_usage(&mut self, now: Time, instance: InstanceId) {
        let Some(known) = self.instances.get_mut(&instance) else { return };
        if let Some(function) = self.functions.get_mut(&known.function) {
            function.held += now.since(known.held_since);
            function.used += std::mem::take(&mut known.used);
        }
        known.held_since = now;
    }

    /// Writes the live counters behind the records they count, where they changed.
    fn record_counters(&mut self) {
        let functions = self.machine.counters();
        if functions != self.counted {
            self.counted.clone_from(&functions);
            self.links.note(Record::Counters { at: clock::now(), functions });
        }
    }

    fn usage(&mut self) -> Usage {
        let now = clock::now();
        let instances: Vec<InstanceId> = self.instances.keys().copied().collect();
        for instance in instances {
            self.settle_usage(now, instance);
        }
        let name = match self.lane {
            Lane::Guaranteed => "guaranteed",
            Lane::BestEffort => "best-effort",
        };
        let mut counts: BTreeMap<FunctionKey, [u64; 3]> = BTreeMap::new();
        for instance in self.instances.values() {
            let [busy, idle, _] = counts.entry(instance.function).or_default();
            *(if instance.serving.is_some() { busy } else { idle }) += 1;
        }
        for waiting in self.waiting.values().filter(|waiting| waiting.progress.delivered.is_none()) {
            let [.., waits] = counts.entry(waiting.request.function).or_default();
            *waits += 1;
        }
        let mut functions = Vec::new();
        for (key, function) in &self.functions {
            let [busy, idle, waiting] = counts.get(key).copied().unwrap_or_default();
            // The excess of a guaranteed function is reported by the lane that runs it, if it ever came.
            if self.lane == Lane::Guaranteed || !function.held.is_zero() {
                let usage = management::Usage {
                    function: function.deployment.name.to_string(),
                    busy,
                    idle,
                    waiting,
                    start_delay_p99: None,
                    start_slowest: function.observed.start,
                    returning_dearest: function.observed.returning,
                    reserved_seconds: function.held.as_secs_f64(),
                    used_seconds: function.used.as_secs_f64(),
                };
                functions.push((usage, function.delays.clone()));
            }
        }
        let running = functions.iter().map(|(usage, _)| usage.busy).sum();
        let waiting = functions.iter().map(|(usage, _)| usage.waiting).sum();
        let length = u64::try_from(self.waiting.len()).unwrap_or(u64::MAX);
        let limit = u64::try_from(self.front.connections.lane).unwrap_or(u64::MAX);
        let queues = vec![management::Queue { name, length, limit }];
        let traffic = vec![management::Traffic { lane: name, counts: self.counts }];
        Usage { functions, queues, traffic, best_effort: management::BestEffort { waiting, running } }
    }

    pub(super) fn finish_drain(&mut self) {
        if self.waiting.is_empty()
            && self.lines.is_empty()
            && self.machine.is_drained()
            && let Some(done) = self.drained.take()
        {
            let _ = done.send(());
        }
    }
}
