//! The kernel programs against real sockets: what every record says, for both ends of a connection.
//!
//! Needs root and a kernel that can run the programs; without, it says what is not covered.

mod closing;
mod exchanges;
mod loss;
mod processes;
mod system_calls;
mod watch;
