//! From memory to blocks: which traces leave the live set, and when.
//!
//! A trace is due when nothing has come of it for a while, or when it is old; a block is written when what is due fills
//! one, or has waited long enough. While memory is short the traces that were quiet for longest leave at once.

mod cutter;
mod policy;
mod sink;
#[cfg(test)]
mod tests;

pub use cutter::{Cutter, CutterConfig, Stopped};
pub use policy::{CutPolicy, Cutoff};
pub use sink::{BlockSink, CutError, Registry};
