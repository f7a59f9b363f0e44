//! The agent, in the order in which a request travels: [`capture`] → [`decode`] → [`stitch`] → [`discover`] →
//! [`span`] → [`export`]. [`pipeline`] wires the stages.

pub mod capture;
pub mod cli;
pub mod config;
pub mod decode;
pub mod discover;
pub mod doctor;
pub mod ebpf;
pub mod export;
#[doc(hidden)]
pub mod fuzz;
pub mod gpu;
pub mod inference;
pub mod kernel;
pub mod kubernetes;
pub mod libraries;
pub mod metrics;
pub mod pipeline;
pub mod print;
pub mod privileges;
pub mod receive;
pub mod secret;
pub mod span;
pub mod stitch;
pub mod telemetry;
