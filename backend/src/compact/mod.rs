//! Compaction and retention: small blocks become large ones, old ones go.
