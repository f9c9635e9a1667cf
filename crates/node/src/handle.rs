//! The control plane's handle on the two running lanes.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::port::{Deployment, Reservation};
use journal::record::Counters;
use model::{FunctionKey, FunctionName};
use tokio::sync::{mpsc, oneshot};

use crate::auth::keys::Keys;
use crate::door;
use crate::lane::Usage;
use crate::lane::message::Command;
use crate::lanes::{Closed, Image, Installed, Lane, Lanes, Lease, LeaseError, Pending, Route};

/// Commands that may wait for a lane.
pub(crate) const COMMANDS_MAX: usize = 256;

/// Sends commands to both lanes and the door. A function of the guaranteed lane is known to the best-effort lane too, for its excess.
#[derive(Debug)]
pub(crate) struct Handle {
    guaranteed: mpsc::Sender<Command>,
    best_effort: mpsc::Sender<Command>,
    door: mpsc::Sender<door::Command>,
    /// Where functions are at home. Used by control alone, never on a lane's thread.
    homes: Mutex<Homes>,
}

/// Functions by the lane they were installed in; for a moment a function that moves is in both.
#[derive(Debug, Default)]
struct Homes {
    guaranteed: BTreeSet<FunctionKey>,
    best_effort: BTreeSet<FunctionKey>,
}

impl Handle {
    pub(crate) fn new(
        guaranteed: mpsc::Sender<Command>,
        best_effort: mpsc::Sender<Command>,
        door: mpsc::Sender<door::Command>,
    ) -> Self {
        Self { guaranteed, best_effort, door, homes: Mutex::default() }
    }

    /// Has nothing more accepted; ends when nothing runs any more.
    pub(crate) async fn drain(&self) -> Result<(), Closed> {
        ask(self.door.clone(), |done| door::Command::Shut { done }).await?;
        ask(self.guaranteed.clone(), |done| Command::Drain { done }).await?;
        ask(self.best_effort.clone(), |done| Command::Drain { done }).await
    }

    /// Has the door accept connections.
    pub(crate) async fn accept(&self, listener: std::net::TcpListener) -> Result<(), Closed> {
        ask(self.door.clone(), |done| door::Command::Accept { listener, done }).await
    }

    /// Has both lanes and the door let in the new keys and nothing else; ends when they do.
    pub(crate) async fn rotate(&self, keys: &Keys) -> Result<(), Closed> {
        for lane in [&self.guaranteed, &self.best_effort] {
            let keys = Box::new(keys.clone());
            ask(lane.clone(), |done| Command::Rotate { keys, done }).await?;
        }
        let keys = Box::new(keys.clone());
        ask(self.door.clone(), |done| door::Command::Rotate { keys, done }).await
    }

    /// What the instances of both lanes held and used so far.
    pub(crate) async fn usage(&self) -> Result<Usage, Closed> {
        let mut guaranteed = ask(self.guaranteed.clone(), |done| Command::Usage { done }).await?;
        let best_effort = ask(self.best_effort.clone(), |done| Command::Usage { done }).await?;
        let door = ask(self.door.clone(), |done| door::Command::Usage { done }).await?;
        guaranteed.queues.extend(best_effort.queues);
        guaranteed.queues.push(door.queue());
        guaranteed.traffic.push(door.traffic());
        guaranteed.traffic.extend(best_effort.traffic);
        guaranteed.functions.extend(best_effort.functions);
        guaranteed.best_effort = best_effort.best_effort;
        Ok(guaranteed)
    }

    fn homes(&self) -> std::sync::MutexGuard<'_, Homes> {
        self.homes.lock().expect("invariant: nothing panics while it holds this lock")
    }
}

/// Sends a command and waits for its answer.
async fn ask<C, T>(to: mpsc::Sender<C>, command: impl FnOnce(oneshot::Sender<T>) -> C) -> Result<T, Closed> {
    let (done, answer) = oneshot::channel();
    to.send(command(done)).await.map_err(|_| Closed)?;
    answer.await.map_err(|_| Closed)
}

fn install(
    lane: mpsc::Sender<Command>,
    deployment: Deployment,
    image: Arc<Image>,
    beside: Vec<(FunctionKey, Reservation)>,
) -> Pending<Result<Installed, Closed>> {
    Box::pin(ask(lane, |done| Command::Install { deployment: Box::new(deployment), image, beside, done }))
}

/// What the best-effort lane is to know of a guarantee.
fn mirror(function: FunctionKey, reservation: Reservation) -> Command {
    Command::Mirror { function, reservation: Box::new(reservation) }
}

impl Lanes for Handle {
    fn install(
        &self,
        lane: Lane,
        deployment: Deployment,
        image: Arc<Image>,
        beside: Vec<(FunctionKey, Reservation)>,
    ) -> Pending<Result<Installed, Closed>> {
        match lane {
            Lane::BestEffort => {
                self.homes().best_effort.insert(deployment.function);
                install(self.best_effort.clone(), Deployment { reservation: None, ..deployment }, image, beside)
            }
            Lane::Guaranteed => {
                self.homes().guaranteed.insert(deployment.function);
                let for_excess = Deployment { reservation: None, ..deployment.clone() };
                let excess = self.best_effort.clone();
                let own = deployment.reservation.clone().map(|reservation| (deployment.function, reservation));
                let promised: Vec<(FunctionKey, Reservation)> = own.into_iter().chain(beside.iter().cloned()).collect();
                let guaranteed = install(self.guaranteed.clone(), deployment, Arc::clone(&image), beside);
                Box::pin(async move {
                    match guaranteed.await? {
                        // Only now: had it not served, both lanes would run on what they ran before. That the best-effort
                        // lane is ready is not waited for: what a guarantee needs must not depend on its load.
                        Installed::Serving => {
                            let (done, _) = oneshot::channel();
                            let command = Command::Install { deployment: Box::new(for_excess), image, beside: Vec::new(), done };
                            excess.send(command).await.map_err(|_| Closed)?;
                            for (function, reservation) in promised {
                                excess.send(mirror(function, reservation)).await.map_err(|_| Closed)?;
                            }
                            Ok(Installed::Serving)
                        }
                        Installed::CannotServe { log } => Ok(Installed::CannotServe { log }),
                    }
                })
            }
        }
    }

    fn revise(&self, all: Vec<(FunctionKey, Reservation)>) -> Pending<Result<(), Closed>> {
        let (guaranteed, best_effort) = (self.guaranteed.clone(), self.best_effort.clone());
        Box::pin(async move {
            let told = all.clone();
            ask(guaranteed, |done| Command::Revise { all: told, done }).await?;
            for (function, reservation) in all {
                best_effort.send(mirror(function, reservation)).await.map_err(|_| Closed)?;
            }
            Ok(())
        })
    }

    fn warm(&self, function: FunctionKey) -> Pending<Result<Duration, Closed>> {
        Box::pin(ask(self.guaranteed.clone(), move |done| Command::Warm { function, done }))
    }

    fn remove(&self, lane: Lane, function: FunctionKey) -> Pending<Result<(), Closed>> {
        let (guaranteed, best_effort) = (self.guaranteed.clone(), self.best_effort.clone());
        // The best-effort lane needs a function that is at home there, and one whose excess it runs.
        let needed = {
            let mut homes = self.homes();
            match lane {
                Lane::Guaranteed => homes.guaranteed.remove(&function),
                Lane::BestEffort => homes.best_effort.remove(&function),
            };
            homes.guaranteed.contains(&function) || homes.best_effort.contains(&function)
        };
        Box::pin(async move {
            if lane == Lane::Guaranteed {
                ask(guaranteed, |done| Command::Remove { function, done }).await?;
            }
            if needed { Ok(()) } else { ask(best_effort, |done| Command::Remove { function, done }).await }
        })
    }

    fn route(&self, name: &FunctionName, route: Option<Route>) -> Pending<Result<(), Closed>> {
        let (lanes, door, name) = ([self.guaranteed.clone(), self.best_effort.clone()], self.door.clone(), name.clone());
        Box::pin(async move {
            for lane in lanes {
                let (name, route) = (name.clone(), route.clone());
                ask(lane, |done| Command::Route { name, route, done }).await?;
            }
            ask(door, |done| door::Command::Route { name, route, done }).await
        })
    }

    fn pre_invoke(&self, function: FunctionKey, lead: Duration) -> Pending<Result<Lease, LeaseError>> {
        let lane = self.guaranteed.clone();
        Box::pin(async move {
            let asked = ask(lane, |done| Command::PreInvoke { function, lead, done }).await;
            asked.unwrap_or(Err(LeaseError::Closed))
        })
    }

    fn counters(&self) -> Pending<Result<Vec<Counters>, Closed>> {
        Box::pin(ask(self.guaranteed.clone(), |done| Command::Counters { done }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers a lane's removals and tells which came.
    async fn removals(mut lane: mpsc::Receiver<Command>) -> Vec<FunctionKey> {
        let mut removed = Vec::new();
        while let Some(command) = lane.recv().await {
            if let Command::Remove { function, done } = command {
                removed.push(function);
                done.send(()).unwrap();
            }
        }
        removed
    }

    #[tokio::test]
    async fn a_function_that_gained_a_guarantee_keeps_its_copy_for_excess() {
        let ((to_guaranteed, guaranteed), (to_best_effort, best_effort)) = (mpsc::channel(8), mpsc::channel(8));
        let handle = Handle::new(to_guaranteed, to_best_effort, mpsc::channel(1).0);
        let function = FunctionKey(7);
        handle.homes().best_effort.insert(function);
        handle.homes().guaranteed.insert(function);
        let work = async {
            handle.remove(Lane::BestEffort, function).await.unwrap();
            handle.remove(Lane::Guaranteed, function).await.unwrap();
            drop(handle);
        };
        let ((), guaranteed, best_effort) = tokio::join!(work, removals(guaranteed), removals(best_effort));
        assert_eq!((guaranteed, best_effort), (vec![function], vec![function]));
    }
}
