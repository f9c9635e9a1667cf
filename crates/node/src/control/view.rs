//! What everybody may see of the control plane without waiting for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::{FunctionKey, FunctionName, FunctionSpec, RateClass, RateClassName};
use plan::admission::{Answer, Book, Demand, Grant};

use super::{Costs, Error};
use crate::lane::idle::threads_with_class;
use crate::lane::ration::connections_per_invocation;
use crate::lanes::Lane;
use crate::registry::{Function, Measured};

/// Whether new guarantees are given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    #[default]
    Open,
    /// The evidence cannot be written.
    Shut { reason: String },
}

/// Whether the functions of before the restart are up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Starting,
    Running,
}

/// Where a function runs now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    pub key: FunctionKey,
    pub lane: Lane,
}

/// One state of the control plane; a new one is published after every change.
#[derive(Clone, Debug)]
pub struct View {
    pub functions: BTreeMap<FunctionName, Arc<Function>>,
    pub homes: BTreeMap<FunctionName, Home>,
    pub rate_classes: BTreeMap<RateClassName, RateClass>,
    pub book: Arc<Book>,
    pub gate: Gate,
    pub phase: Phase,
    /// Why unused code could not be removed, if it could not.
    pub code_problem: Option<String>,
    pub(super) costs: Costs,
}

impl View {
    /// Errors when there is no such function.
    pub fn function(&self, name: &FunctionName) -> Result<&Arc<Function>, Error> {
        self.functions.get(name).ok_or_else(|| Error::NoFunction { function: name.clone() })
    }

    /// What admission granted to a function.
    #[must_use]
    pub fn grant(&self, name: &FunctionName) -> Option<&Grant> {
        self.book.grant(name)
    }

    /// Whether the function's guarantee would be admitted now, without admitting it.
    pub fn would_admit(&self, spec: &FunctionSpec) -> Result<Option<Answer>, Error> {
        let measured = self.functions.get(&spec.name).map(|function| function.measured).unwrap_or_default();
        let Some(demand) = demand(spec, |class| self.rate_classes.get(class), (&self.costs, measured))? else {
            return Ok(None);
        };
        let (_, answer) = self.book.admit(&demand).map_err(|source| Error::Refused { source })?;
        Ok(Some(answer))
    }
}

/// What a function asks of the node; `None` without a guarantee.
pub(super) fn demand<'a>(
    spec: &FunctionSpec,
    class: impl FnOnce(&RateClassName) -> Option<&'a RateClass>,
    (costs, measured): (&Costs, Measured),
) -> Result<Option<Demand>, Error> {
    let Some(stated) = &spec.guarantee else {
        return Ok(None);
    };
    let terms = stated.resolve(spec.timeout).map_err(|source| Error::Terms { function: spec.name.clone(), source })?;
    let rate_class = match &terms.pacing {
        model::Pacing::Own { .. } => None,
        model::Pacing::Shared(name) => {
            let found = class(name).ok_or_else(|| Error::NoRateClass { class: name.clone() })?;
            Some(found.clone())
        }
    };
    Ok(Some(Demand {
        function: spec.name.clone(),
        terms,
        rate_class,
        memory: spec.memory,
        cold_start: measured.cold_start.max(costs.cold_start_least),
        recycle: costs.recycle,
        connections: connections_per_invocation(spec.runtime),
        threads: threads_with_class(spec.runtime),
        instance_cost: costs.instance_cost(spec.runtime),
    }))
}
