//! Causes for which the kernel programs lose something; each is a counter, one cell a CPU.

/// Why a record or a byte did not reach user space. The value is the index into the `LOSSES` per-CPU array.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u32)]
pub enum Loss {
    /// The ring buffer was full: a [`crate::event::Kind::Begin`] record, and with it a whole exchange, is missing.
    RingFullBegin = 0,
    /// The ring buffer was full: a [`crate::event::Kind::Data`] record is missing, its exchange is incomplete.
    RingFullData = 1,
    /// The ring buffer was full: a [`crate::event::Kind::End`] record is missing.
    RingFullEnd = 2,
    /// The ring buffer was full: a process record is missing.
    RingFullProcess = 3,
    /// The map of connections was full: the exchange is missing.
    ConnectionsFull = 4,
    /// The map of running system calls was full: what that call moved is missing.
    CallsFull = 5,
    /// The bytes of a system call could not be read (page not present): the head is missing or cut.
    PayloadUnreadable = 6,
    /// The kernel did not run our program when a call returned: what that call moved is missing. Found out when the
    /// thread makes the next call.
    ReturnMissed = 7,
    /// The kernel did not run our program because it was in the middle of the same one, or of one that excludes it: a
    /// call, an end of a connection or a process record is missing. Counted by the kernel, and by the programs in TLS
    /// libraries.
    ProgramSkipped = 8,
    /// The map of processes that call CUDA was full: what a call did is not counted.
    CudaFull = 9,
}

impl Loss {
    /// Every cause, in the order of the counters.
    pub const ALL: [Self; 10] = [
        Self::RingFullBegin,
        Self::RingFullData,
        Self::RingFullEnd,
        Self::RingFullProcess,
        Self::ConnectionsFull,
        Self::CallsFull,
        Self::PayloadUnreadable,
        Self::ReturnMissed,
        Self::ProgramSkipped,
        Self::CudaFull,
    ];

    /// The value of the `cause` label in the agent's metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RingFullBegin => "ring_full_begin",
            Self::RingFullData => "ring_full_data",
            Self::RingFullEnd => "ring_full_end",
            Self::RingFullProcess => "ring_full_process",
            Self::ConnectionsFull => "connections_full",
            Self::CallsFull => "calls_full",
            Self::PayloadUnreadable => "payload_unreadable",
            Self::ReturnMissed => "return_missed",
            Self::ProgramSkipped => "program_skipped",
            Self::CudaFull => "cuda_full",
        }
    }
}
