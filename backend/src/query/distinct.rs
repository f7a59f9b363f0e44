//! Spans that came again, and spans that came before they were over.

use std::collections::HashMap;
use std::iter::successors;
use std::sync::Arc;

use foldhash::fast::RandomState;
use prost::Message;

use crate::live::{Batch, Trace};
use crate::otlp::SpanRef;

/// Most spans of one id, kind and start that another one is compared with: many must not cost the square of their number.
const CANDIDATES: usize = 16;

/// A span and what it was sent under.
type Sent<'a> = (&'a Arc<Batch>, SpanRef<'a>);

/// All spans of a trace with their batches, in the order of arrival, each in its last version: neither those that came
/// again nor those that a later version has replaced.
///
/// A sender that did not hear the acknowledgement sends the same once more, and after a crash the log brings what is in a
/// block already. Spans that differ in anything but the order of their attributes are all there, and so are those of one
/// batch: what was sent again came in another one.
///
/// Agents send spans that run for long before they are over, marked as partial (ADR 0027). Of those with the same id, kind and
/// start the one that is over is left, else the one that ends last, whatever came first.
pub fn distinct_spans(trace: &Trace) -> Vec<(&Arc<Batch>, SpanRef<'_>)> {
    let spans: Vec<_> = trace.spans.iter().map(|span| (&span.batch, span.view())).collect();
    let is_one_batch = is_one_batch(trace);
    // One batch alone repeats nothing, unless its spans have versions; and most traces have no id twice.
    let has_versions = || spans.iter().any(|(batch, _)| batch.of_agent());
    if spans.len() < 2 || (is_one_batch && !has_versions()) || !has_id_twice(&spans) {
        return spans;
    }
    latest(if is_one_batch { spans } else { without_repeated(&spans) })
}

/// Leaves out what came again in another batch.
fn without_repeated<'a>(spans: &[Sent<'a>]) -> Vec<Sent<'a>> {
    let mut distinct: Vec<Sent<'a>> = Vec::with_capacity(spans.len());
    // The last span of each id, kind and start, and the one like it before each.
    let mut known: HashMap<Key<'_>, usize, RandomState> = HashMap::default();
    let mut before_it: Vec<Option<usize>> = Vec::with_capacity(spans.len());
    for sent in spans.chunk_by(|a, b| Arc::ptr_eq(a.0, b.0)) {
        let begin = distinct.len();
        for (batch, span) in sent {
            let is_again =
                |(before_batch, before): &Sent<'_>| same_span(before, span) && same_sender(before_batch, batch);
            let last = known.get(&key(span)).copied();
            let alike = successors(last, |index| before_it.get(*index).copied().flatten());
            let mut candidates = alike.take(CANDIDATES).filter_map(|index| distinct.get(index));
            if !candidates.any(is_again) {
                distinct.push((batch, *span));
            }
        }
        let new = distinct.iter().enumerate().skip(begin);
        before_it.extend(new.map(|(index, (_, span))| known.insert(key(span), index)));
    }
    distinct
}

/// Leaves out the versions of spans that were not over and that a later version has replaced.
fn latest(spans: Vec<Sent<'_>>) -> Vec<Sent<'_>> {
    let partial: Vec<bool> = spans.iter().map(|(batch, span)| batch.of_agent() && span.is_partial()).collect();
    if !partial.contains(&true) {
        return spans;
    }
    let mut last: HashMap<Key<'_>, Version<'_>, RandomState> = HashMap::default();
    for ((_, span), is_partial) in spans.iter().zip(&partial) {
        let version = version(span, *is_partial);
        last.entry(key(span)).and_modify(|last| *last = version.max(*last)).or_insert(version);
    }
    let mut left = Vec::with_capacity(last.len());
    for (sent, is_partial) in spans.into_iter().zip(partial) {
        let key = key(&sent.1);
        let is_last = last.get(&key).is_some_and(|last| *last == version(&sent.1, true));
        if is_last {
            // Of several that are the same it is the first.
            last.remove(&key);
        }
        if is_last || !is_partial {
            left.push(sent);
        }
    }
    left
}

/// The greatest is the last: one that is over, or the one that ends last. Equal ends tell nothing: then the bytes decide, so
/// that the order of arrival does not.
type Version<'a> = (bool, u64, &'a [u8]);

const fn version<'a>(span: &SpanRef<'a>, is_partial: bool) -> Version<'a> {
    (!is_partial, span.end_time_unix_nano, span.as_bytes())
}

fn is_one_batch(trace: &Trace) -> bool {
    let mut batches = trace.spans.iter().map(|span| &span.batch);
    batches.next().is_none_or(|first| batches.all(|batch| Arc::ptr_eq(first, batch)))
}

/// Whether two spans may have the same id.
fn has_id_twice(spans: &[Sent<'_>]) -> bool {
    let short = |span: &SpanRef<'_>| span.span_id.first_chunk().map_or(0, |id| u64::from_ne_bytes(*id));
    let mut ids: Vec<u64> = spans.iter().map(|(_, span)| short(span)).collect();
    ids.sort_unstable();
    ids.array_windows().any(|[before, id]| before == id)
}

/// Id, kind and start.
type Key<'a> = (&'a [u8], i32, u64);

fn key<'a>(span: &SpanRef<'a>) -> Key<'a> {
    (span.span_id, span.kind, span.start_time_unix_nano)
}

/// The attributes of a span are a set: their order says nothing.
fn same_span(a: &SpanRef<'_>, b: &SpanRef<'_>) -> bool {
    let alike =
        a.name == b.name && a.end_time_unix_nano == b.end_time_unix_nano && a.parent_span_id == b.parent_span_id;
    alike && (a.as_bytes() == b.as_bytes() || canonical(a) == canonical(b))
}

fn canonical(span: &SpanRef<'_>) -> Vec<u8> {
    let mut span = span.decode();
    span.attributes.sort_by_cached_key(Message::encode_to_vec);
    span.status.get_or_insert_default();
    span.encode_to_vec()
}

fn same_sender(a: &Arc<Batch>, b: &Arc<Batch>) -> bool {
    Arc::ptr_eq(a, b)
        || (a.resource_schema_url == b.resource_schema_url
            && a.scope_schema_url == b.scope_schema_url
            && same_message(&a.resource, &b.resource)
            && same_message(&a.scope, &b.scope))
}

/// Encoded, a number that is none equals itself.
fn same_message<M: Message + PartialEq>(a: &Arc<M>, b: &Arc<M>) -> bool {
    Arc::ptr_eq(a, b) || a == b || a.encode_to_vec() == b.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use coati_common::wellknown::AGENT_SCOPE;
    use coati_common::wellknown::span::COATI_SPAN_PARTIAL;
    use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span, Status};
    use rstest::rstest;

    use super::super::fixture::{EPOCH, SHOP, attributes, int, service, span, text, trace};
    use super::*;

    fn sent(change: impl FnOnce(&mut Span)) -> ResourceSpans {
        let mut span = span(SHOP, 1, 0, "GET", 0, 10);
        span.attributes = attributes(&[("a", int(1)), ("b", text("x")), ("c", Any::DoubleValue(f64::NAN))]);
        change(&mut span);
        service("shop", &[("weight", Any::DoubleValue(f64::NAN))], "http", vec![span])
    }

    #[rstest]
    #[case::the_same(|_: &mut Span| {}, 1)]
    #[case::other_order_of_attributes(|span: &mut Span| span.attributes.reverse(), 1)]
    #[case::a_status_of_nothing(|span: &mut Span| span.status = Some(Status::default()), 1)]
    #[case::other_status(|span: &mut Span| span.status = Some(Status { code: 2, ..Status::default() }), 2)]
    #[case::other_start(|span: &mut Span| span.start_time_unix_nano = EPOCH + 1, 2)]
    #[case::other_end(|span: &mut Span| span.end_time_unix_nano += 1, 2)]
    #[case::other_kind(|span: &mut Span| span.kind = 3, 2)]
    #[case::other_name(|span: &mut Span| span.name = "POST".to_owned(), 2)]
    #[case::other_parent(|span: &mut Span| span.parent_span_id = vec![9; 8], 2)]
    #[case::other_value(|span: &mut Span| span.attributes[0].value = span.attributes[1].value.clone(), 2)]
    #[case::more_attributes(|span: &mut Span| span.attributes.push(span.attributes[0].clone()), 2)]
    #[case::other_id(|span: &mut Span| span.span_id = vec![2; 8], 2)]
    fn what_came_again_is_left_out(#[case] change: fn(&mut Span), #[case] expected: usize) {
        let trace = trace(vec![sent(|_| {}), sent(change), sent(|_| {})]);
        assert_eq!(distinct_spans(&trace).len(), expected);
    }

    #[test]
    fn what_one_batch_has_twice_counts_twice() {
        let twice = || {
            let mut twice = sent(|_| {});
            let spans = &mut twice.scope_spans[0].spans;
            spans.push(spans[0].clone());
            twice
        };
        let distinct = |sent: Vec<ResourceSpans>| distinct_spans(&trace(sent)).len();
        assert_eq!(distinct(vec![twice()]), 2);
        assert_eq!(distinct(vec![twice(), twice(), sent(|_| {})]), 2);
        assert_eq!(distinct(vec![sent(|span| span.name = "POST".to_owned()), twice(), twice()]), 3);
    }

    /// A version of a span of the agent: how many milliseconds it ends before the others, and whether it is partial.
    fn version(earlier: u64, is_partial: bool) -> Span {
        let mut span = span(SHOP, 1, 0, "GET", 0, 100 - earlier);
        if is_partial {
            span.attributes = attributes(&[("a", int(1)), (COATI_SPAN_PARTIAL, Any::BoolValue(true))]);
        }
        span
    }

    fn of_agent(spans: Vec<Span>) -> ResourceSpans {
        service("shop", &[], AGENT_SCOPE, spans)
    }

    /// Milliseconds that each span that is left lasts.
    fn lengths(sent: Vec<ResourceSpans>) -> Vec<u64> {
        let trace = trace(sent);
        distinct_spans(&trace).iter().map(|(_, span)| (span.end_time_unix_nano - EPOCH) / 1_000_000).collect()
    }

    #[rstest]
    #[case::open(&[(0, true)], &[100])]
    #[case::over(&[(50, true), (0, false)], &[100])]
    #[case::the_last_comes_first(&[(0, false), (50, true)], &[100])]
    #[case::of_several_the_last(&[(50, true), (10, true), (30, true)], &[90])]
    #[case::the_same_again(&[(50, true), (50, true)], &[50])]
    #[case::one_that_is_over_wins_though_it_ends_earlier(&[(0, true), (50, false)], &[50])]
    #[case::what_is_over_is_never_replaced(&[(50, false), (0, false), (20, true)], &[50, 100])]
    fn a_later_version_replaces_a_partial_one(#[case] versions: &[(u64, bool)], #[case] expected: &[u64]) {
        let spans = || versions.iter().map(|(earlier, is_partial)| version(*earlier, *is_partial));
        assert_eq!(lengths(vec![of_agent(spans().collect())]), expected, "in one batch");
        assert_eq!(lengths(spans().map(|span| of_agent(vec![span])).collect()), expected, "each in its own");
    }

    #[rstest]
    #[case::of_another_sender(vec![service("shop", &[], "http", vec![version(50, true), version(0, false)])], 2)]
    #[case::other_kind(vec![of_agent(vec![Span { kind: 3, ..version(50, true) }, version(0, false)])], 2)]
    #[case::other_id(vec![of_agent(vec![Span { span_id: vec![9; 8], ..version(50, true) }, version(0, false)])], 2)]
    #[case::other_resource(
        vec![of_agent(vec![version(50, true)]), service("shop of pod 7", &[], AGENT_SCOPE, vec![version(0, false)])], 1
    )]
    fn versions_are_told_by_id_kind_and_start(#[case] sent: Vec<ResourceSpans>, #[case] expected: usize) {
        assert_eq!(lengths(sent).len(), expected);
    }

    #[rstest]
    #[case::resource(|sent: &mut ResourceSpans| sent.resource.as_mut().unwrap().dropped_attributes_count = 1)]
    #[case::scope(|sent: &mut ResourceSpans| sent.scope_spans[0].scope.as_mut().unwrap().version = "2".to_owned())]
    #[case::resource_schema(|sent: &mut ResourceSpans| sent.schema_url = "x".to_owned())]
    #[case::scope_schema(|sent: &mut ResourceSpans| sent.scope_spans[0].schema_url = "x".to_owned())]
    fn the_same_of_another_sender_is_another(#[case] change: fn(&mut ResourceSpans)) {
        let mut other = sent(|_| {});
        change(&mut other);
        assert_eq!(distinct_spans(&trace(vec![sent(|_| {}), other])).len(), 2);
    }
}
