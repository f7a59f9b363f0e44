//! Kernel records → HTTP exchanges.
//!
//! [`Decoder`] keeps a table of connections. On each, requests wait in order for their responses; bytes of either
//! direction are handed to the message that they belong to, and an exchange ends with the last byte of its response:
//! as soon as the framing says so, else when the connection's next request or its end tells.
//!
//! Nothing is guessed: what is not known is in [`Exchange::incomplete`], and what is lost is in [`DecodeCounters`].

mod body;
mod connection;
mod counters;
mod exchange;
mod export;
mod framing;
mod http1;
mod http2;
mod message;
mod method;
mod open;
mod progress;
mod table;
mod target;
mod websocket;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use counters::DecodeCounters;
pub use exchange::{
    Bodies, Exchange, ExchangeId, Failure, Grpc, Incomplete, Key, Origin, Progress, Role, WebSocket, WebSocketSide,
    Within,
};
pub use framing::Framing;
pub use http1::{Head, HeadError, RequestHead, ResponseHead, Upgrade};
#[doc(hidden)]
pub use http2::fuzz::fuzz_http2;
pub use http2::hpack::{HeaderDecoder, HeaderField, HpackError};
pub use method::{Method, Version};
pub use table::{DecodeConfig, Decoder, LongRunning};
#[doc(hidden)]
pub use websocket::fuzz_websocket;

/// What becomes of an exchange. `Opened` is only told of requests whose head comes in pieces; every exchange that was
/// opened or has begun gives exactly one `Ended` or `Dropped`.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The first bytes of a request were seen.
    Opened(&'a Origin),
    /// The head of a request was read.
    Began(&'a Origin, &'a RequestHead),
    /// The first byte of a response was seen, at this time, and more of it must come. Told again where that turns out to
    /// have been an interim response.
    Answered(&'a Origin, u64),
    /// The connection was switched to WebSocket: what its process does from now on is not done for this request.
    Upgraded(&'a Origin),
    /// The exchange has been open for long, and this is what would be told of it if it ended now. Told again now and then,
    /// with an end that is never earlier, before `Ended` or `Dropped`.
    Running(&'a Exchange),
    /// Nothing more will be known of the exchange.
    Ended(&'a Exchange),
    /// The exchange is lost; a counter says why.
    Dropped(&'a Origin),
}
