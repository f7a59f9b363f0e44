//! The parsers of outside bytes, one function each: for the fuzz targets in `fuzz/`, and for the test that replays
//! their corpus. None of them may panic, whatever the bytes.

use bytes::Bytes;

use crate::block::{Block, Filter};
use crate::blocks::Manifest;
use crate::receive::json;
use crate::{traceql, wal};

/// A parser of outside bytes.
pub type Target = fn(&[u8]);

/// Every parser, with the name of its fuzz target and of its folder in `fuzz/corpus`.
pub const TARGETS: &[(&str, Target)] =
    &[("block", block), ("manifest", manifest), ("otlp_json", otlp_json), ("traceql", traceql), ("wal", wal)];

/// A block, or the filter beside one: everything that can be read of it.
pub fn block(bytes: &[u8]) {
    let _ = Filter::decode("fuzz", bytes);
    let Ok(block) = Block::of_bytes("fuzz", Bytes::copy_from_slice(bytes)) else { return };
    let _ = (block.resources().is_ok(), block.scopes().is_ok(), block.verify());
    for (id, _) in block.trace_ids().unwrap_or_default() {
        let _ = block.trace(&id);
    }
}

/// A commit to the list of blocks; what was read is written as something that reads the same.
pub fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::decode(bytes) {
        let again = manifest.encode().and_then(|bytes| Manifest::decode(&bytes));
        assert_eq!(again.ok(), Some(manifest));
    }
}

/// An OTLP/JSON request.
pub fn otlp_json(bytes: &[u8]) {
    let _ = json::decode(bytes);
}

/// A query; what was read prints as something that reads the same, what was not is shown with its error.
pub fn traceql(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = traceql::filter_of_unfinished(text);
    let _ = traceql::parse_field(text);
    match traceql::parse(text) {
        Ok(query) => assert_eq!(traceql::parse(&query.to_string()).ok(), Some(query), "{text}"),
        Err(error) => assert!(error.shown_in(text).starts_with(&error.to_string()), "{text}"),
    }
}

/// Frames of the log, from any offset and with any salt.
pub fn wal(bytes: &[u8]) {
    let salt = bytes.first_chunk().map_or(0, |first| u32::from_le_bytes(*first));
    for piece in wal::scan(bytes, 0, salt) {
        if let wal::Piece::Frame(_, frame) = piece {
            let _ = frame.request();
        }
    }
}
