//! What the control plane asks of the two lanes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engine::port::{Deployment, Reservation};
use journal::record::Counters;
use model::{FunctionKey, FunctionName, FunctionSpec, LeaseId, Version};

/// Which of the node's two lanes runs a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Guaranteed,
    BestEffort,
}

/// What an instance is started from: the function as stated and where its code lies, read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub spec: FunctionSpec,
    pub version: Version,
    pub code: PathBuf,
    /// Base64 of the SHA-256 of the uploaded package.
    pub code_sha256: String,
}

/// How an installation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    Serving,
    /// Instances do not become ready; the last lines they wrote say why.
    CannotServe {
        log: String,
    },
}

/// The lanes have shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node is shutting down")]
pub struct Closed;

/// A held instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub id: LeaseId,
    /// How long from now the lease can still be used.
    pub expires_in: Duration,
}

/// Why no lease was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    #[error("the node is shutting down")]
    Closed,
    #[error("function `{function}` has no guarantee with a declared lead; set `lead` to at least {wanted:?}")]
    NoLead { function: FunctionName, wanted: Duration },
    #[error("a lead of {wanted:?} exceeds the declared lead of {declared:?} of function `{function}`")]
    LeadTooLong { function: FunctionName, wanted: Duration, declared: Duration },
    #[error("no instance is held: {reason}")]
    Refused { reason: String },
}

/// A future the control plane waits on.
pub type Pending<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;

/// The control plane's handle on the running lanes. Calls are made from the control plane, serialised by it.
pub trait Lanes: Send + Sync + 'static {
    /// Installs or replaces a function in a lane, make before break; ends when the new version serves. A function that
    /// changes lanes is installed in its new one first and removed from the old one after. Where it cannot serve, both lanes
    /// run of the function what they ran before the call; control takes nothing back there. At the instant at which the new
    /// version serves in the guaranteed lane, the functions in `beside` are revised, in that order; never where it does not.
    fn install(
        &self,
        lane: Lane,
        deployment: Deployment,
        image: Arc<Image>,
        beside: Vec<(FunctionKey, Reservation)>,
    ) -> Pending<Result<Installed, Closed>>;

    /// Changes priorities, bounds or T of functions in the guaranteed lane whose code stays as it is, at one instant and in this
    /// order. Members of a rate class whose rate changes come together, and none of them changes cores.
    fn revise(&self, all: Vec<(FunctionKey, Reservation)>) -> Pending<Result<(), Closed>>;

    /// Ends when a function of the guaranteed lane has its warm reserve, or is gone; answers how long
    /// the slowest start of its version took, from the order until it could take an invocation.
    fn warm(&self, function: FunctionKey) -> Pending<Result<Duration, Closed>>;

    /// Removes a function from a lane; its running invocations may end.
    fn remove(&self, lane: Lane, function: FunctionKey) -> Pending<Result<(), Closed>>;

    /// Makes a name known to the front: where its requests go and what they need to be let in. Called after `install`
    /// answered, and with `None` before `remove`.
    fn route(&self, name: &FunctionName, route: Option<Route>) -> Pending<Result<(), Closed>>;

    /// Starts and holds an instance of a guaranteed function.
    fn pre_invoke(&self, function: FunctionKey, lead: Duration) -> Pending<Result<Lease, LeaseError>>;

    /// The live counters of every function of the guaranteed lane.
    fn counters(&self) -> Pending<Result<Vec<Counters>, Closed>>;
}

/// Where requests for a function go.
#[derive(Clone, Debug)]
pub struct Route {
    pub key: FunctionKey,
    pub standing: Standing,
    pub image: Arc<Image>,
}

/// What the front may do with requests for a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Guaranteed,
    BestEffort,
    /// Its guarantee no longer fits; requests are refused with that reason.
    Suspended,
}
