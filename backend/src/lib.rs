//! The backend, in the order in which a span travels: `receive` → `wal` → [`live`]; and a query: `traceql` → `query` →
//! `api`. `server` wires the stages.

pub mod catalog;
pub mod live;
pub mod telemetry;
pub mod traceql;
pub mod wal;
