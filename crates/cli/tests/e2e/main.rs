//! Whole stories with a running node, real runtimes and real clients, as their users live them.
//!
//! What needs a client or a runtime that is not there prints one `skipped` line (`.ci/run` installs them all and says where).
//! Nothing here depends on how fast the machine is: what is asserted are answers, headers, counts, records and states.

#[cfg(test)]
mod admission;
#[cfg(test)]
#[path = "../common/alone.rs"]
mod alone;
#[cfg(test)]
mod attacks;
#[cfg(test)]
mod boto3;
#[cfg(test)]
mod endings;
#[cfg(test)]
mod evidence;
#[cfg(test)]
mod fair;
#[cfg(test)]
mod function_url;
#[cfg(test)]
mod handlers;
#[cfg(test)]
mod level;
#[cfg(test)]
mod other_clients;
#[cfg(test)]
mod overrun;
#[cfg(test)]
mod queue;
#[cfg(test)]
mod rate_class;
#[cfg(test)]
mod redeploy;
#[cfg(test)]
mod rest;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod starts;
#[cfg(test)]
mod steal;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tolerance;
#[cfg(test)]
mod tool;
#[cfg(test)]
mod untouched;
#[cfg(test)]
mod work_conserving;
