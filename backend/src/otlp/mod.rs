//! OTLP messages read in place: a span is, from the sender to the block, the bytes that it was sent as.
//!
//! [`check()`] walks a request once, before anything is kept of it; what it lets pass is what prost would decode, so the
//! views of [`SpanRef`] and its parts have no errors. Of spans nothing is copied; resources and scopes, of which many spans share
//! one, are decoded.

mod check;
pub mod field;
mod rewrite;
mod span;
#[cfg(test)]
mod tests;
mod value;
mod wire;
mod write;

pub use check::{Checked, Odd, ResourceSpansRef, ScopeSpansRef, check};
pub use rewrite::Top;
pub use span::{EventRef, LinkRef, SpanRef, StatusRef};
pub use value::{AttributeRef, Attributes, Encoded, Text, ValueRef};
pub use write::MessageWriter;
