//! What the kernel programs, the agent and the backend share.
//!
//! Everything here is `no_std` and free of dependencies, because `agent-ebpf` compiles it for the kernel; what is not has
//! a feature of its own.
#![no_std]

#[cfg(feature = "std")]
extern crate std;

pub mod counter;
pub mod cuda;
#[cfg(feature = "std")]
pub mod error;
pub mod event;
pub mod follow;
pub mod go;
pub mod limits;
pub mod loss;
#[cfg(feature = "otlp-json")]
pub mod otlp_json;
pub mod process;
pub mod prometheus;
pub mod python;
pub mod sniff;
pub mod stitch;
pub mod tls;
pub mod wellknown;
