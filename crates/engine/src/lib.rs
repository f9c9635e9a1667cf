//! One node as a state machine: events in, actions out.
//!
//! A node runs its functions in two lanes. The guaranteed lane ([`reserved`]) owns every function with an admitted
//! guarantee: its pacer, its queue, its instances. The best-effort lane ([`shared`]) owns everything else and the excess
//! of the first. Each lane is one single-threaded state machine; they exchange nothing but [`port::Action::Demote`] and what a
//! [`mirror`] of the envelopes lets through, so that best-effort load cannot reach the guaranteed lane's state. Time, randomness and input are handed in.

pub mod audit;
pub mod gaps;
pub mod mirror;
pub mod port;
pub mod reserved;
pub mod shared;

#[cfg(test)]
mod hostile;
mod restarts;
mod shadow;
#[cfg(test)]
mod tests;
mod verdict;
#[cfg(test)]
mod world;
