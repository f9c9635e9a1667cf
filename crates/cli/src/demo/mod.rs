//! Demonstrations: complete workloads with their own functions, input and report.

pub(crate) mod traffic;
