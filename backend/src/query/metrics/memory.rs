//! How much a query may hold.

/// An account of the memory that partial results take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    used: usize,
    max: usize,
    exceeded: bool,
}

impl Memory {
    pub(super) fn new(max: usize) -> Self {
        Self { used: 0, max, exceeded: false }
    }

    /// Accounts for a new series; none if there is no room for it.
    pub(super) fn take(&mut self, bytes: usize) -> Option<()> {
        let used = self.used.saturating_add(bytes);
        if used > self.max {
            self.exceeded = true;
            return None;
        }
        self.used = used;
        Some(())
    }

    /// Accounts for what a series that is there needs more: that leaves less to new ones.
    pub(super) fn note(&mut self, bytes: usize) {
        self.used = self.used.saturating_add(bytes);
    }

    /// Whether something was left away.
    pub(super) fn exceeded(&self) -> bool {
        self.exceeded
    }

    /// Takes over what other partial results met. Their memory is accounted for as they are merged.
    pub(super) fn merge(&mut self, other: &Self) {
        self.exceeded |= other.exceeded;
    }
}
