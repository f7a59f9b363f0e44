//! What the kernel programs, the agent and the backend share.
//!
//! Everything here is `no_std` and free of dependencies, because `agent-ebpf` compiles it for the kernel.
#![no_std]

pub mod counter;
pub mod cuda;
pub mod event;
pub mod follow;
pub mod limits;
pub mod loss;
pub mod sniff;
pub mod stitch;
pub mod tls;
pub mod wellknown;
