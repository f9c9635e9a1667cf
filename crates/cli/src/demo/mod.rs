//! Demonstrations, and what they share.

pub(crate) mod neighbour;
pub(crate) mod own_node;
pub(crate) mod traffic;
