//! Whether the backend can serve.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by the server once the log is replayed, unset when it stops; read by `/ready`. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// True between the end of the replay and the stop.
    pub fn is_ready(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Says what [`Self::is_ready`] answers from now on.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }
}
