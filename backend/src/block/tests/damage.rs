//! Blocks that are not what was written.

use std::sync::Arc;

use bytes::Bytes;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::Event;
use proptest::prelude::*;

use super::super::*;
use super::samples::{attribute, batch, span, trace};
use super::written;
use crate::live::Trace;

/// A few kilobytes with something in every kind of column.
fn small_block() -> Bytes {
    let rich = |id: u8| Span {
        attributes: vec![
            attribute("text", Value::StringValue(format!("value {id}"))),
            attribute("int", Value::IntValue(i64::from(id))),
            attribute("double", Value::DoubleValue(f64::from(id) / 3.0)),
            attribute("bool", Value::BoolValue(id.is_multiple_of(2))),
            attribute("bytes", Value::BytesValue(vec![id; 3])),
        ],
        events: vec![Event { name: "event".to_owned(), time_unix_nano: 12, ..Event::default() }],
        ..span(1, id, id - 1, u64::from(id))
    };
    let of = |id: u8| trace(id, vec![batch("a", (1..8).map(rich).collect()), batch("b", vec![span(id, 9, 3, 4)])]);
    let (store, summary, _) = written(&[of(1), of(2), of(3)]);
    store.object(&summary.data_path())
}

/// Everything that can be read of it.
fn read(bytes: Bytes) -> Result<Vec<Trace>, BlockError> {
    let block = Block::of_bytes("b.parquet", bytes)?;
    let (_, _) = (block.resources(), block.scopes());
    for (id, _) in block.trace_ids()? {
        block.trace(&id)?;
    }
    block.traces().collect()
}

#[test]
fn every_shorter_block_is_refused() {
    let bytes = small_block();
    assert_eq!(read(bytes.clone()).unwrap().len(), 3);
    for length in 0..bytes.len() {
        let error = Block::of_bytes("b.parquet", bytes.slice(..length)).unwrap_err();
        assert!(error.to_string().contains("b.parquet"), "{length}: {error}");
    }
}

#[test]
fn a_block_of_another_version_is_refused() {
    let bytes = small_block();
    let mut other = bytes.to_vec();
    let key = b"coati.format";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len();
    // The value follows as field 2, a string of one byte.
    assert_eq!(&other[at..at + 3], [0x18, 1, b'1']);
    other[at + 2] = b'9';
    let error = Block::of_bytes("b.parquet", other.into()).unwrap_err();
    insta::assert_snapshot!(error, @r#"b.parquet has block format "9", this program reads format 1"#);
}

#[test]
fn a_parquet_file_that_is_no_block_is_refused() {
    use arrow_array::{Int32Array, RecordBatch};
    let batch = RecordBatch::try_from_iter([("a", Arc::new(Int32Array::from(vec![1])) as _)]).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    let error = Block::of_bytes("b.parquet", writer.into_inner().unwrap().into()).unwrap_err();
    insta::assert_snapshot!(error, @"b.parquet is damaged: coati.format is missing");
}

#[test]
fn verification_notices_what_reading_does_not() {
    let bytes = small_block();
    let good = Block::of_bytes("b.parquet", bytes.clone()).unwrap();
    good.verify().unwrap();
    // Span ids are not compressed, and any id is one.
    let chunk = good.parquet().row_group(0).column(1);
    let at = (chunk.data_page_offset() + chunk.compressed_size() - 1) as usize;
    let mut changed = bytes.to_vec();
    changed[at] ^= 1;
    let changed = Block::of_bytes("b.parquet", changed.into()).unwrap();
    insta::assert_snapshot!(changed.verify().unwrap_err(), @"b.parquet is damaged: its checksum is another");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 512 } else { 20_000 }))]

    #[test]
    fn changed_bytes_do_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = BLOCK.with(|bytes| bytes.to_vec());
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        // Whatever comes out, it comes out.
        let _ = read(bytes.into());
    }

    #[test]
    fn changed_bytes_of_the_footer_do_no_harm(changes in prop::collection::vec((0_usize..6_000, any::<u8>()), 1..3)) {
        let mut bytes = BLOCK.with(|bytes| bytes.to_vec());
        for (at, byte) in changes {
            let at = bytes.len() - 1 - at.min(bytes.len() - 1);
            bytes[at] = byte;
        }
        let _ = read(bytes.into());
    }
}

thread_local! {
    static BLOCK: Bytes = small_block();
}
