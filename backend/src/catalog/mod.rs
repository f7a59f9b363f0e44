//! The catalog: what can be computed again from the log, kept at hand.
//!
//! Never the only copy of anything: deleting it costs a rebuild and nothing else.
