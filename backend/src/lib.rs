//! The backend, in the order in which a span travels: [`receive`] → [`wal`] → [`live`] → [`cut`] → [`block`] → [`store`],
//! and [`blocks`] says which there are; and a query: [`traceql`] → [`query`] → [`api`]. [`server`] wires the stages.

pub mod access;
pub mod api;
pub mod block;
pub mod blocks;
pub mod catalog;
mod checked_json;
pub mod cli;
pub mod compact;
pub mod config;
pub mod cut;
pub mod diff;
#[doc(hidden)]
pub mod fuzz;
pub mod generator;
pub mod live;
pub mod otlp;
pub mod overrides;
pub mod promql;
pub mod query;
pub mod receive;
mod sealed;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod tenant;
pub mod tools;
pub mod traceql;
pub mod wal;
