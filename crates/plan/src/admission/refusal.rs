//! A no, with its reason, its numbers and what would be possible.

use std::fmt;
use std::time::Duration;

use model::{FunctionName, Level, Rate, RateClassName, brief_duration, format_duration};

/// Why a guarantee cannot be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub function: FunctionName,
    pub binding: Binding,
    /// The largest rate, in three digits, that is admitted with all else equal; `None`: no rate helps.
    pub offer: Option<Rate>,
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guarantee of function `{}` cannot be given: {}; ", self.function, self.binding)?;
        match (self.offer, &self.binding) {
            (Some(rate), _) => write!(f, "the largest rate that fits with all else equal is {rate}"),
            (None, Binding::Level { .. }) => f.write_str("no rate changes that"),
            (None, Binding::RateClass { .. } | Binding::Handover { .. } | Binding::Unknown) => {
                f.write_str("the guarantees given before stay as they are")
            }
            (
                None,
                Binding::Cpu { .. }
                | Binding::Front { .. }
                | Binding::Second { .. }
                | Binding::Start { .. }
                | Binding::Deadline { .. }
                | Binding::Unbounded { .. }
                | Binding::Instances { .. }
                | Binding::Memory { .. },
            ) => f.write_str("no smaller rate fits either: raise `start_within` or `deadline`, or lower `max_run_time`, `cpu`, `burst` or `memory`"),
        }
    }
}

/// The resource that binds: what the function needs of it, and what is left for it. Shares are in billionths of a core.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Binding {
    #[error("it needs {} of core {core}, which has {} left", cores_needed(*.needed), cores_left(*.available))]
    Cpu { core: u16, needed: u64, available: u64 },
    #[error(
        "with it up to {} of core {core} would be used within one second, and {} are left before the kernel stops what is real-time",
        cores_needed(*.needed), cores_left(*.available)
    )]
    Second { core: u16, needed: u64, available: u64 },
    #[error(
        "taking and answering its requests needs {} of the front's core, and {} are left for that",
        cores_needed(*.needed), cores_left(*.available)
    )]
    Front { needed: u64, available: u64 },
    #[error(
        "function `{function}` would start up to {} late on core {core} (with a dispatch tolerance of {}), and {} are promised",
        brief_duration(*bound + *tolerance), brief_duration(*tolerance), format_duration(*promised)
    )]
    Start { function: FunctionName, core: u16, bound: Duration, tolerance: Duration, promised: Duration },
    #[error(
        "function `{function}` would end up to {} after its arrival on core {core} (with a dispatch tolerance of {}), and {} are promised",
        brief_duration(*bound + *tolerance), brief_duration(*tolerance), format_duration(*promised)
    )]
    Deadline { function: FunctionName, core: u16, bound: Duration, tolerance: Duration, promised: Duration },
    #[error("the time in which function `{function}` would end on core {core} has no bound")]
    Unbounded { function: FunctionName, core: u16 },
    #[error("it needs {needed} instances, and {available} are left on this node")]
    Instances { needed: u32, available: u32 },
    #[error("its instances need {} of memory, and {} are left", megabytes(*.needed), megabytes(*.available))]
    Memory { needed: u64, available: u64 },
    #[error("it requires level {required}, and this node can give {available}, because it runs without real-time scheduling")]
    Level { required: Level, available: Level },
    #[error(
        "rate class `{class}` is shared at {admitted_rate} with bursts of {admitted_burst} already, not at {asked_rate} with bursts of {asked_burst}"
    )]
    RateClass { class: RateClassName, admitted_rate: Rate, admitted_burst: u32, asked_rate: Rate, asked_burst: u32 },
    #[error(
        "during the hand-over both versions need {} of memory, and {} are there",
        megabytes(*.needed), megabytes(*.available)
    )]
    Handover { needed: u64, available: u64 },
    #[error("it has no guarantee")]
    Unknown,
}

/// "0.425 cores", rounded up.
fn cores_needed(nanocores: u64) -> String {
    cores_left(nanocores.saturating_add(999_999))
}

/// "0.425 cores", rounded down.
fn cores_left(nanocores: u64) -> String {
    format!("{}.{:03} cores", nanocores / 1_000_000_000, nanocores % 1_000_000_000 / 1_000_000)
}

/// "96 MB": mebibytes as everywhere, all memory here being whole ones but for what the node has.
fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes >> 20)
}
