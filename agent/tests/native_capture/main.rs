//! The kernel programs against real sockets: what every record says, for both ends of a connection.
//!
//! Needs root and a kernel that can run the programs; without, it says what is not covered.

#[cfg(test)]
mod closing;
#[cfg(test)]
mod cuda;
#[cfg(test)]
mod exchanges;
#[cfg(test)]
mod functions;
#[cfg(test)]
mod guest;
#[cfg(test)]
mod http2;
#[cfg(test)]
mod loss;
#[cfg(test)]
mod notes;
#[cfg(test)]
mod privileges;
#[cfg(test)]
mod processes;
#[cfg(test)]
mod software;
#[cfg(test)]
mod system_calls;
#[cfg(test)]
mod tails;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod unix_sockets;
#[cfg(test)]
mod uprobes;
#[cfg(test)]
mod watch;
#[cfg(test)]
mod websocket;
