//! Whether the backend can serve.

use std::sync::{Arc, PoisonError, RwLock};

/// Told by the server, read by `/ready`. Clones share the state.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<RwLock<Option<String>>>);

impl Default for Readiness {
    /// Not ready, because it starts.
    fn default() -> Self {
        Self(Arc::new(RwLock::new(Some("the backend starts".to_owned()))))
    }
}

impl Readiness {
    /// True between the end of the start and the stop.
    pub fn is_ready(&self) -> bool {
        self.missing().is_none()
    }

    /// Why it is not ready; none if it is.
    pub fn missing(&self) -> Option<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says that it is ready.
    pub fn set_ready(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Says that it is not ready, and why.
    pub fn set_missing(&self, why: impl Into<String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(why.into());
    }
}
