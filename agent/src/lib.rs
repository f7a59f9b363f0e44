//! The agent, in the order in which a request travels: [`capture`] → [`decode`] → [`stitch`] → [`discover`] →
//! [`span`] → [`export`]. [`pipeline`] wires the stages.

pub mod discover;
pub mod span;
