//! The tag index of a block, when it is built anew.

use std::sync::atomic::AtomicBool;

use tracing::debug;

use super::{Hours, Scope, Seen, TagIndex};
use crate::block::{Block, BlockError};
use crate::query::{FullTags, TagReader, Value};
use crate::telemetry::chain;

/// New tags that are written at once.
const WRITE_AT: usize = 1_024;

/// Tells a [`TagIndex`] of the blocks of one tenant, best the newest first: of a tag with too many values those of the
/// first blocks are kept.
pub struct BlockTags<'i> {
    index: &'i TagIndex,
    tenant: &'i str,
    full: FullTags,
}

impl<'i> BlockTags<'i> {
    /// Of a tenant.
    pub fn new(index: &'i TagIndex, tenant: &'i str) -> Self {
        Self { index, tenant, full: FullTags::default() }
    }

    /// Tells of all tags of a block, as seen in all hours of the block: which spans have them is not read. False if the
    /// catalog does not take them, or `stop` was set before the end. Blocks.
    pub fn add(&mut self, block: &Block, stop: &AtomicBool) -> Result<bool, BlockError> {
        let Self { index, tenant, full } = self;
        let summary = block.summary();
        let hours = Hours::of_nanos(summary.start_ns).union(Hours::of_nanos(summary.end_ns));
        let (mut fresh, mut is_written) = (Vec::new(), true);
        let mut write = |fresh: &mut Vec<Seen>| {
            let written = index.record(tenant, fresh);
            is_written &= written.inspect_err(|error| debug!(error = %chain(error), "tags not indexed")).is_ok();
            fresh.clear();
        };
        let mut visit = |scope: Scope, name: &str, values: &[Value<'_>]| {
            let takes_more = index.observe_values(tenant, (scope, name), values, hours, &mut fresh);
            if fresh.len() >= WRITE_AT {
                write(&mut fresh);
            }
            takes_more
        };
        let is_read = TagReader { visit: &mut visit, full }.read(block, stop)?;
        write(&mut fresh);
        Ok(is_read && is_written)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::block::{BlockId, NewBlock, write_block};
    use crate::catalog::{Catalog, IndexLimits, MemoryCatalog, TagValue};
    use crate::live::{Trace, TraceId, group_message};
    use crate::query::fixture::{int, service, span, text};
    use crate::query::random;
    use crate::store::{MemoryStore, Store};
    use crate::telemetry::CatalogMetrics;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;

    const TENANT: &str = "t";

    fn index(limits: IndexLimits) -> (Arc<MemoryCatalog>, TagIndex) {
        let catalog = Arc::new(MemoryCatalog::default());
        let index = TagIndex::open(Arc::clone(&catalog) as _, limits, CatalogMetrics::default()).unwrap();
        (catalog, index)
    }

    fn entries(catalog: &MemoryCatalog) -> BTreeMap<(Scope, String, Option<TagValue>), Hours> {
        let mut entries = BTreeMap::new();
        catalog
            .for_each(&mut |_, Seen { scope, name, value, hours }| _ = entries.insert((scope, name, value), hours))
            .unwrap();
        entries
    }

    fn block(traces: &[Arc<Trace>]) -> Block {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let new = NewBlock {
            id: BlockId::new(0, 1),
            tenant: TENANT.into(),
            level: 0,
            received_first_ns: 0,
            received_last_ns: 0,
        };
        let (summary, _) = write_block(store.as_ref(), new, traces).unwrap();
        Block::open(store, &summary).unwrap()
    }

    /// Both ways find the same tags, and the block's hours are no narrower.
    fn assert_same(traces: &[Arc<Trace>]) {
        let (of_spans, by_spans) = index(IndexLimits::default());
        for trace in traces {
            let fresh = by_spans.observe(TENANT, [trace.as_ref()]);
            by_spans.record(TENANT, &fresh).unwrap();
        }
        let (of_block, by_block) = index(IndexLimits::default());
        assert!(BlockTags::new(&by_block, TENANT).add(&block(traces), &AtomicBool::new(false)).unwrap());
        let (of_spans, of_block) = (entries(&of_spans), entries(&of_block));
        assert_eq!(of_block.keys().collect::<Vec<_>>(), of_spans.keys().collect::<Vec<_>>());
        for (tag, hours) in of_spans {
            assert!(of_block[&tag].contains(hours), "{tag:?}");
        }
    }

    /// A block of several pages, with every kind of column.
    fn large() -> Vec<Arc<Trace>> {
        let one = |number: u32| {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&number.to_be_bytes());
            let spans = (1..=8_u8).map(|place| {
                let row = number * 8 + u32::from(place);
                let name = if place == 1 { "" } else { "GET" };
                let mut span = span(TraceId(id), place, place / 2, name, u64::from(row), 5);
                span.attributes = crate::query::fixture::attributes(&[
                    ("few", text(["a", "b", ""][row as usize % 3])),
                    // Its dictionary overflows.
                    ("half", text(&format!("{:0>96}", row / 2 % 8_000))),
                    ("port", int(i64::from(row % 5_000))),
                    ("late", if row > 19_000 { text("only at the end") } else { int(7) }),
                ]);
                if row.is_multiple_of(1_000) {
                    span.attributes.extend(crate::query::fixture::attributes(&[("rare", int(i64::from(row)))]));
                }
                span
            });
            let resource_spans = vec![service(["shop", "cart"][number as usize % 2], &[], "library", spans.collect())];
            Arc::new(group_message(&ExportTraceServiceRequest { resource_spans }).remove(0))
        };
        (0..2_500).map(one).collect()
    }

    #[test]
    fn a_large_block_has_the_tags_of_its_spans() {
        assert_same(&large());
    }

    #[test]
    fn no_more_values_are_indexed_than_may_be() {
        let traces = large();
        let limits = IndexLimits { values: 100, ..IndexLimits::default() };
        let (catalog, by_block) = index(limits);
        let block = block(&traces);
        let mut tags = BlockTags::new(&by_block, TENANT);
        assert!(tags.add(&block, &AtomicBool::new(false)).unwrap());
        assert!(tags.full.contains(&(Scope::Span, "half".into())) && tags.full.contains(&(Scope::Span, "port".into())));
        assert!(!tags.full.contains(&(Scope::Span, "few".into())));
        assert_eq!(catalog.tag_values(TENANT, Scope::Span, "half", None, 1_000).unwrap().len(), 100);
        assert!(tags.add(&block, &AtomicBool::new(false)).unwrap());
    }

    #[test]
    fn it_can_be_stopped() {
        let (_, by_block) = index(IndexLimits::default());
        let block = block(&large());
        assert!(!BlockTags::new(&by_block, TENANT).add(&block, &AtomicBool::new(true)).unwrap());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_block_has_the_tags_of_its_spans(trace in random::trace()) {
            assert_same(&[trace]);
        }
    }
}
