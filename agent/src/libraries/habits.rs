//! What processes do that are probed for that only.

/// What is known of what a process does: only then its executable is looked into, and only as far as that.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub(super) struct Habits {
    /// It speaks TLS, and no probe has seen it: its executable is searched for names that it does not export.
    pub(super) speaks_tls: bool,
    /// It sends requests. If it is written in Go or has an event loop that is known, it is told for which request.
    pub(super) asks: bool,
    /// It does so while it answers several. If it runs Python, it is told for which.
    pub(super) is_crowded: bool,
}

impl Habits {
    /// Both.
    pub(super) const fn with(self, others: Self) -> Self {
        Self {
            speaks_tls: self.speaks_tls || others.speaks_tls,
            asks: self.asks || others.asks,
            is_crowded: self.is_crowded || others.is_crowded,
        }
    }

    /// What is not among `others`.
    pub(super) const fn beyond(self, others: Self) -> Self {
        Self {
            speaks_tls: self.speaks_tls && !others.speaks_tls,
            asks: self.asks && !others.asks,
            is_crowded: self.is_crowded && !others.is_crowded,
        }
    }

    /// Whether there is nothing in `others` that is not here.
    pub(super) const fn covers(self, others: Self) -> bool {
        self.speaks_tls >= others.speaks_tls && self.asks >= others.asks && self.is_crowded >= others.is_crowded
    }
}
