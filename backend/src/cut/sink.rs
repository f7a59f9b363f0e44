//! Where cut traces go.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::live::TenantCut;

/// Stores what was cut.
pub trait BlockSink: Send + Sync {
    /// Writes the traces to blocks, one for each tenant, and commits all of them at once together with the checkpoint:
    /// the number in the log below which every request is in committed blocks. Once this has returned without an error
    /// every reader finds the blocks. Blocks the caller.
    ///
    /// Soon after `abandoned` is set it gives up, and nothing is committed.
    fn store(&self, tenants: &[TenantCut], checkpoint: u64, abandoned: &AtomicBool) -> Result<(), CutError>;
}

/// Why traces did not get into blocks. They are still in memory and in the log.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// The backend stops and waits no longer.
    #[error("given up: the backend stops")]
    Abandoned,
    /// A block could not be written.
    #[error("cannot write a block of tenant {tenant}")]
    Write {
        /// Whose it is.
        tenant: Arc<str>,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The blocks were written, but not made known.
    #[error("cannot commit blocks")]
    Commit(#[source] Box<dyn std::error::Error + Send + Sync>),
}
