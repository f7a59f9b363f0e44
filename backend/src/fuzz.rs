//! The parsers of outside bytes, one function each: for the fuzz targets in `fuzz/`, and for the test that replays
//! their corpus. None of them may panic, whatever the bytes.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

use crate::block::{Block, Filter};
use crate::blocks::Manifest;
use crate::{generator, otlp, overrides, promql, traceql, wal};
use coati_common::otlp_json as json;

/// A parser of outside bytes.
pub type Target = fn(&[u8]);

/// Every parser, with the name of its fuzz target and of its folder in `fuzz/corpus`.
pub const TARGETS: &[(&str, Target)] = &[
    ("block", block),
    ("generator_state", generator_state),
    ("history", history),
    ("manifest", manifest),
    ("otlp", otlp),
    ("overrides", overrides),
    ("otlp_json", otlp_json),
    ("remote_write_queue", remote_write_queue),
    ("span_names", span_names),
    ("traceql", traceql),
    ("wal", wal),
];

/// A block, or the filter beside one: everything that can be read of it.
pub fn block(bytes: &[u8]) {
    let _ = Filter::decode("fuzz", &Bytes::copy_from_slice(bytes));
    let Ok(block) = Block::of_bytes("fuzz", Bytes::copy_from_slice(bytes)) else { return };
    let _ = (block.resources().is_ok(), block.scopes().is_ok(), block.verify());
    for (id, _) in block.trace_ids().unwrap_or_default() {
        let _ = block.trace(&id);
    }
}

/// Counters of the generator.
pub fn generator_state(bytes: &[u8]) {
    let _ = generator::check_state(bytes);
}

/// Samples of a tenant.
pub fn history(bytes: &[u8]) {
    let _ = promql::check_history(bytes);
}

/// Names of spans, one a line, as patterns.
pub fn span_names(bytes: &[u8]) {
    assert!(generator::check_names(&String::from_utf8_lossy(bytes)));
}

/// A request that waits to be sent.
pub fn remote_write_queue(bytes: &[u8]) {
    let _ = generator::decode_queued(bytes);
}

/// A commit to the list of blocks; what was read is written as something that reads the same.
pub fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::decode(bytes) {
        let again = manifest.encode().and_then(|bytes| Manifest::decode(&bytes));
        assert_eq!(again.ok(), Some(manifest));
    }
}

/// What a tenant said of itself, as it lies in the store and as it comes.
pub fn overrides(bytes: &[u8]) {
    assert!(overrides::check_stored(bytes));
}

/// An OTLP request in protobuf: what can be read in place prost decodes, and all of it can be looked at.
pub fn otlp(bytes: &[u8]) {
    let Ok(checked) = otlp::check(bytes) else { return };
    assert!(ExportTraceServiceRequest::decode(bytes).is_ok());
    for span in checked.resource_spans.iter().flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans)
    {
        let events = span.events().flat_map(|event| event.attributes()).count();
        let links = span.links().flat_map(|link| link.attributes()).count();
        let decoded = span.decode();
        assert_eq!(span.attributes().count(), decoded.attributes.len());
        assert_eq!(events, decoded.events.iter().map(|event| event.attributes.len()).sum::<usize>());
        assert_eq!(links, decoded.links.iter().map(|link| link.attributes.len()).sum::<usize>());
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
    let mut unpacker = wal::Unpacker::default();
    for piece in wal::scan(bytes, 0, salt) {
        if let wal::Piece::Frame(_, frame) = piece {
            let _ = unpacker.request(&frame);
        }
    }
}
