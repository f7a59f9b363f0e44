//! What was decided, counted.

/// How exchanges found their place.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct StitchCounters {
    /// Continued the trace of a `traceparent`.
    pub by_header: u64,
    /// Server exchanges that are the other end of a client's on this node, told by the stream positions.
    pub by_position: u64,
    /// Client exchanges of a process with one open server exchange whose response had not begun.
    pub in_process: u64,
    /// Client exchanges below the server exchange that the kernel says they are made for, as the program itself keeps it: by
    /// goroutine, by nginx's request, by context of Python.
    pub by_program: u64,
    /// Client exchanges below the only server exchange that their thread had open.
    pub by_thread: u64,
    /// Server exchanges whose client may be on another node: their trace ids are provisional.
    pub provisional: u64,
    /// Roots.
    pub roots: u64,
    /// Of the roots: client exchanges of a process with several open server exchanges, any of which may have made them.
    pub ambiguous: u64,
    /// Exchanges beyond [`max_open`](super::StitchConfig::max_open).
    pub untracked: u64,
    /// Client exchanges without an answer, forgotten before their server could have read them.
    pub unanswered_forgotten: u64,
}
