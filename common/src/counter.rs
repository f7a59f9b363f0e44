//! What the kernel programs count, one cell a CPU: indices into the `COUNTERS` per-CPU array.

/// Records written or lost: the next [`crate::event::Header::cpu_seq`].
pub const RECORDS: u32 = 0;
/// Exchanges begun, told or lost.
pub const BEGUN: u32 = 1;
/// Connections followed.
pub const CONNECTIONS: u32 = 2;
/// How many counters there are.
pub const COUNT: u32 = 3;
