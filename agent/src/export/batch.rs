//! Many spans as one request.

use std::{collections::HashMap, sync::Arc, time::Duration};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::InstrumentationScope,
    trace::v1::{ResourceSpans, ScopeSpans},
};
use prost::{Message as _, bytes::Bytes};

use crate::{discover::Process, span::FinishedSpan};

/// When a batch is full.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Spans at most.
    pub(super) spans: usize,
    /// Bytes of encoded spans; reached, not kept below, because the last span is already here.
    pub(super) bytes: usize,
    /// How long the first span waits for others.
    pub(super) delay: Duration,
}

/// Spans grouped by process, in the order in which processes and their spans came.
#[derive(Debug, Default)]
pub(super) struct Batch {
    groups: Vec<ResourceSpans>,
    /// Group of a process, by the address of its description: two descriptions of one process id are two resources.
    group_of: HashMap<usize, usize>,
    /// Keeps the addresses in `group_of` from being used again.
    processes: Vec<Arc<Process>>,
    spans: usize,
    bytes: usize,
}

impl Batch {
    /// Adds a span.
    pub(super) fn add(&mut self, finished: FinishedSpan) {
        let FinishedSpan { process, span } = finished;
        self.spans += 1;
        self.bytes += span.encoded_len();
        let address = Arc::as_ptr(&process).addr();
        let group = *self.group_of.entry(address).or_insert_with(|| {
            self.groups.push(ResourceSpans {
                resource: Some(process.resource.clone()),
                scope_spans: vec![ScopeSpans { scope: Some(scope()), ..ScopeSpans::default() }],
                ..ResourceSpans::default()
            });
            self.processes.push(process);
            self.groups.len() - 1
        });
        if let Some(scope) = self.groups.get_mut(group).and_then(|group| group.scope_spans.first_mut()) {
            scope.spans.push(span);
        }
    }

    /// How many spans it has.
    pub(super) fn len(&self) -> usize {
        self.spans
    }

    /// Whether it must go now.
    pub(super) fn is_full(&self, limits: &Limits) -> bool {
        self.spans >= limits.spans || self.bytes >= limits.bytes
    }

    /// The encoded request: encoded once, however often it is sent.
    pub(super) fn encode(self) -> Bytes {
        ExportTraceServiceRequest { resource_spans: self.groups }.encode_to_vec().into()
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "coati-agent".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::tests::{process, span};

    const LIMITS: Limits = Limits { spans: 3, bytes: 10_000, delay: Duration::ZERO };

    #[test]
    fn one_resource_and_one_scope_for_each_process() {
        let (shop, cart) = (process(1, "shop"), process(2, "cart"));
        let mut batch = Batch::default();
        for (process, number) in [(&shop, 1), (&cart, 2), (&shop, 3)] {
            batch.add(span(process, number));
        }
        assert_eq!(batch.len(), 3);
        let request = ExportTraceServiceRequest::decode(batch.encode()).unwrap();
        let groups: Vec<_> = request
            .resource_spans
            .iter()
            .map(|group| {
                assert_eq!(group.scope_spans.len(), 1);
                assert_eq!(group.scope_spans[0].scope.as_ref().unwrap().name, "coati-agent");
                let names: Vec<_> = group.scope_spans[0].spans.iter().map(|span| span.name.as_str()).collect();
                (group.resource.clone(), names)
            })
            .collect();
        assert_eq!(groups, [(Some(shop.resource.clone()), vec!["1", "3"]), (Some(cart.resource.clone()), vec!["2"])]);
    }

    #[test]
    fn a_new_program_in_a_process_is_another_resource() {
        let mut batch = Batch::default();
        batch.add(span(&process(1, "sh"), 1));
        batch.add(span(&process(1, "nginx"), 2));
        assert_eq!(ExportTraceServiceRequest::decode(batch.encode()).unwrap().resource_spans.len(), 2);
    }

    #[test]
    fn is_full_by_spans_or_by_bytes() {
        let shop = process(1, "shop");
        let mut batch = Batch::default();
        for number in 1..=3 {
            assert!(!batch.is_full(&LIMITS));
            batch.add(span(&shop, number));
        }
        assert!(batch.is_full(&LIMITS));

        let mut large = span(&shop, 1);
        large.span.name = "x".repeat(10_000);
        let mut batch = Batch::default();
        batch.add(large);
        assert!(batch.is_full(&LIMITS));
    }
}
