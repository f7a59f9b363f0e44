//! Sizes that the kernel programs and user space must agree on.

/// Bytes of one direction of an exchange that the kernel copies at most (request head, response head).
pub const HEAD_BYTES: usize = 1024;

/// Bytes of HTTP/2 frames, the content of DATA frames left out, that one system call contributes at most.
pub const FRAMES_BYTES: usize = 8192;

/// Largest payload of one record.
pub const PAYLOAD_BYTES: usize = FRAMES_BYTES;

/// Bytes of the end of a response that one record carries at most.
pub const TAIL_BYTES: usize = 1024;

/// Steps of the walk over HTTP/2 frames in one system call. A frame takes two (header and payload), a buffer one.
pub const FRAME_STEPS: u32 = 512;

/// Response chunks of an exchange that get a record each; later ones are only counted in the connection's state.
pub const CHUNK_RECORDS: u32 = 64;

/// Connections with a recognised protocol that the kernel follows at once.
pub const CONNECTIONS: u32 = 65_536;

/// Threads whose calls are followed: those that have sent HTTP, received by TCP, or called a TLS library.
pub const CALLS: u32 = 32_768;

/// Places for notes of sends, a power of two: many are in one at once only where those who receive are slow.
pub const SENDING: u32 = 4096;

/// Places for notes of receives, a power of two: threads wait in one, where each has one connection.
pub const RECEIVING: u32 = 8192;

/// TLS sessions that the kernel follows at once.
pub const TLS_SESSIONS: u32 = 65_536;

/// Goroutines that can be inside a call of `crypto/tls` at once: one for each connection that is open.
pub const GOROUTINES: u32 = 65_536;

/// Processes written in Go of which it is told where goroutines keep their numbers.
pub const GO_PROCESSES: u32 = 4096;

/// Goroutines, and pooled connections of Go's HTTP client, of which the request is remembered that they work for.
pub const GO_WORK: u32 = 16_384;

/// Threads of event loops of which the request is remembered that they send for, and processes that run nginx.
pub const EVENT_LOOPS: u32 = 4096;

/// Connections that were made in callbacks, and on which nothing was sent yet, of which it is remembered for which request.
pub const MADE: u32 = 4096;

/// Calls of Node.js of which it is remembered for which request they were made, until they are answered.
pub const ASKED: u32 = 16_384;
/// Processes that run Python of which it is told where the interpreter keeps its threads' states.
pub const PYTHON_PROCESSES: u32 = 4096;

/// Threads of these whose states were found.
pub const PYTHON_THREADS: u32 = 32_768;

/// Contexts of Python of which the request is remembered that they work for.
pub const PYTHON_CONTEXTS: u32 = 16_384;

/// Contexts of Python from which others come in which requests were read.
pub const PYTHON_READERS: u32 = 8192;

/// Processes that speak TLS without a library that is known, of which that is remembered.
pub const TLS_PROCESSES: u32 = 1024;

/// Bytes of the ring buffer from the kernel to the agent.
pub const RING_BYTES: u32 = 4 << 20;

/// Bytes of the path of a new executable that an [`crate::event::Exec`] record carries.
pub const PATH_BYTES: usize = 128;

/// Bytes of the name of a Unix socket that a [`crate::event::Unix`] record carries: more than `sun_path` has.
pub const UNIX_PATH_BYTES: usize = 112;

/// Long responses to `POST` of which the kernel keeps the end at once.
pub const TAILS: u32 = 512;

/// Processes of which something is known: that they are exempt from being watched, or what they run.
pub const PROCESSES: u32 = 8192;

/// Places for those that are exempt, which are found without a look-up in a hash map; a power of two.
pub const SKIPPED: u32 = 4096;

/// Processes whose calls of CUDA are counted at once.
pub const CUDA_PROCESSES: u32 = 1024;

/// Threads that can be in a call of CUDA whose return matters at once.
pub const CUDA_CALLS: u32 = 4096;
