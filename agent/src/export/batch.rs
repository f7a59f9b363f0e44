//! Many spans as one request.

use std::{sync::Arc, time::Duration};

use coati_common::wellknown::AGENT_SCOPE;
use foldhash::HashMap;
use opentelemetry_proto::tonic::{common::v1::InstrumentationScope, trace::v1::ScopeSpans};
use prost::{
    Message as _,
    bytes::Bytes,
    encoding::{WireType, encode_key, encode_varint},
};

use super::queue::{EncodedSpans, Next, Spans, Under};

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

/// Spans grouped by what they are sent under, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Batch {
    groups: Vec<Group>,
    /// Group of a process, by the address of its description: two descriptions of one process id are two resources. Of
    /// relayed spans by the address of what an SDK has sent them under.
    group_of: HashMap<usize, usize>,
    spans: usize,
    bytes: usize,
}

/// Spans that are sent under the same.
#[derive(Debug)]
struct Group {
    /// Also keeps its address from being used again.
    under: Under,
    /// The spans, encoded, as they came out of the queue: copied once, into the request.
    spans: Vec<Vec<u8>>,
    /// Bytes of all of them.
    bytes: usize,
}

impl Batch {
    /// Adds spans that wait. False if it is full, or would be with those that wait.
    pub(super) fn fill(&mut self, spans: &mut Spans, limits: &Limits) -> bool {
        while !self.is_full(limits) {
            match spans.next_if(|spans| self.spans + spans.count <= limits.spans) {
                Next::Spans(spans) => self.add(spans),
                Next::TooMany => return false,
                Next::None => return true,
            }
        }
        false
    }

    /// Adds spans.
    pub(super) fn add(&mut self, spans: EncodedSpans) {
        let EncodedSpans { under, count, fields } = spans;
        self.spans += count;
        self.bytes += fields.len();
        let address = match &under {
            Under::Process(process) => Arc::as_ptr(process).addr(),
            Under::Relayed(relayed) => Arc::as_ptr(relayed).addr(),
        };
        let group = *self.group_of.entry(address).or_insert_with(|| {
            self.groups.push(Group { under, spans: Vec::new(), bytes: 0 });
            self.groups.len() - 1
        });
        if let Some(group) = self.groups.get_mut(group) {
            group.bytes += fields.len();
            group.spans.push(fields);
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

    /// The encoded `ExportTraceServiceRequest`: encoded once, however often it is sent.
    pub(super) fn encode(self) -> Bytes {
        let mut request = Vec::with_capacity(self.bytes + self.bytes / 8);
        for Group { under, spans, bytes } in self.groups {
            let mut resource = Vec::new();
            let scope = match under {
                Under::Process(process) => {
                    field(&mut resource, tag::RESOURCE, &process.resource.encode_to_vec());
                    ScopeSpans { scope: Some(scope()), ..ScopeSpans::default() }.encode_to_vec()
                }
                Under::Relayed(relayed) => {
                    resource.extend_from_slice(&relayed.resource);
                    relayed.scope.clone()
                }
            };
            begin_field(&mut resource, tag::SCOPE_SPANS, scope.len() + bytes);
            begin_field(&mut request, tag::RESOURCE_SPANS, resource.len() + scope.len() + bytes);
            request.extend_from_slice(&resource);
            request.extend_from_slice(&scope);
            for spans in spans {
                request.extend_from_slice(&spans);
            }
        }
        request.into()
    }
}

/// Numbers of the fields of `opentelemetry/proto/trace/v1/trace.proto` and `…/collector/trace/v1/trace_service.proto`.
mod tag {
    pub(super) const RESOURCE_SPANS: u32 = 1;
    pub(super) const RESOURCE: u32 = 1;
    pub(super) const SCOPE_SPANS: u32 = 2;
}

/// Appends a field that is a message.
fn field(buffer: &mut Vec<u8>, number: u32, message: &[u8]) {
    begin_field(buffer, number, message.len());
    buffer.extend_from_slice(message);
}

/// Appends what comes before a message of so many bytes.
fn begin_field(buffer: &mut Vec<u8>, number: u32, len: usize) {
    encode_key(number, WireType::LengthDelimited, buffer);
    encode_varint(len as u64, buffer);
}

fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: AGENT_SCOPE.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;

    use super::*;
    use crate::{
        export::{
            queue::bounded,
            tests::{encoded, process, span},
        },
        telemetry::Telemetry,
    };

    const LIMITS: Limits = Limits { spans: 3, bytes: 10_000, delay: Duration::ZERO };

    #[test]
    fn one_resource_and_one_scope_for_each_process() {
        let (shop, cart) = (process(1, "shop"), process(2, "cart"));
        let mut batch = Batch::default();
        for (process, number) in [(&shop, 1), (&cart, 2), (&shop, 3)] {
            batch.add(encoded(span(process, number)));
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
        batch.add(encoded(span(&process(1, "sh"), 1)));
        batch.add(encoded(span(&process(1, "nginx"), 2)));
        assert_eq!(ExportTraceServiceRequest::decode(batch.encode()).unwrap().resource_spans.len(), 2);
    }

    /// Spans come out of the queue two at a time here, and three fit.
    #[tokio::test]
    async fn what_does_not_fit_is_for_the_next() {
        let shop = process(1, "shop");
        let (mut queue, mut spans) = bounded(10, 2, 1, Telemetry::default());
        for number in 1..=5 {
            queue.push(span(&shop, number));
        }
        queue.flush();
        let mut sizes = Vec::new();
        for _ in 0..2 {
            let mut batch = Batch::default();
            batch.add(spans.wait().await.unwrap());
            let has_room = batch.fill(&mut spans, &LIMITS);
            sizes.push((batch.len(), has_room));
        }
        assert_eq!(sizes, [(2, false), (3, false)]);
        assert!(matches!(spans.next_if(|_| true), Next::None));
    }

    #[test]
    fn is_full_by_spans_or_by_bytes() {
        let shop = process(1, "shop");
        let mut batch = Batch::default();
        for number in 1..=3 {
            assert!(!batch.is_full(&LIMITS));
            batch.add(encoded(span(&shop, number)));
        }
        assert!(batch.is_full(&LIMITS));

        let mut large = span(&shop, 1);
        large.span.name = "x".repeat(10_000);
        let mut batch = Batch::default();
        batch.add(encoded(large));
        assert!(batch.is_full(&LIMITS));
    }
}
