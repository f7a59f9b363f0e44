//! What the backend says of itself.

mod ready;

pub use ready::Readiness;
