//! The corpus that benchmarks measure with is what they say it is.

#[path = "../benches/corpus/mod.rs"]
mod corpus;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use coati_backend::live::{Trace, TraceSpan};
use corpus::{Corpus, REQUEST_SPANS, traces};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;

const TRACES: u64 = 3_000;

fn spans(trace: &Trace) -> Vec<Span> {
    trace.spans.iter().map(TraceSpan::decode).collect()
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    match attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

#[test]
fn shape_of_traces() {
    let traces = traces(Corpus::new(1, TRACES));
    assert_eq!(traces.len() as u64, TRACES);
    let decoded: Vec<Span> = traces.iter().flat_map(|trace| spans(trace)).collect();
    let all = || decoded.iter();
    let count = all().count() as f64;
    let per_trace = count / TRACES as f64;
    assert!((16.5..18.5).contains(&per_trace), "{per_trace} spans per trace");
    let attributes = all().map(|span| span.attributes.len()).sum::<usize>() as f64 / count;
    assert!((9.0..11.0).contains(&attributes), "{attributes} attributes per span");
    let routes: BTreeSet<_> = all().filter_map(|span| text(&span.attributes, "http.route")).collect();
    assert_eq!(routes.len(), 12);
    let errors = all().filter(|span| span.status.as_ref().is_some_and(|status| status.code == 2)).count() as f64;
    assert!((0.01..0.10).contains(&(errors / count)), "{errors} errors of {count} spans");
    assert!(all().any(|span| !span.events.is_empty()) && all().any(|span| !span.links.is_empty()));
    let resources = || traces.iter().flat_map(|trace| trace.spans.iter().map(|span| &span.batch.resource));
    assert!(resources().all(|resource| resource.attributes.len() == 9));
    let services: BTreeSet<_> = resources().filter_map(|resource| text(&resource.attributes, "service.name")).collect();
    assert_eq!(services.len(), 16);
}

#[test]
fn every_trace_is_one_tree_and_children_lie_within_their_parents() {
    for trace in traces(Corpus::new(2, 500)) {
        let spans = spans(&trace);
        let by_id: HashMap<_, _> = spans.iter().map(|span| (span.span_id.as_slice(), span)).collect();
        assert_eq!(by_id.len(), trace.spans.len());
        assert_eq!(spans.iter().filter(|span| span.parent_span_id.is_empty()).count(), 1);
        for child in spans.iter().filter(|span| !span.parent_span_id.is_empty()) {
            let parent = by_id[child.parent_span_id.as_slice()];
            assert!(parent.start_time_unix_nano <= child.start_time_unix_nano);
            assert!(child.end_time_unix_nano <= parent.end_time_unix_nano);
        }
    }
}

#[test]
fn requests_are_repeatable_and_cut_through_traces() {
    let requests: Vec<_> = Corpus::new(3, TRACES).collect();
    assert_eq!(requests, Corpus::new(3, TRACES).collect::<Vec<_>>());
    assert_ne!(requests, Corpus::new(4, TRACES).collect::<Vec<_>>());
    let sizes = requests.iter().map(|request| request.resource_spans[0].scope_spans[0].spans.len());
    assert!(sizes.clone().all(|size| (1..=REQUEST_SPANS).contains(&size)));
    assert!(sizes.filter(|size| *size == REQUEST_SPANS).count() * 10 > requests.len() * 9);
    let is_in_several =
        |trace: &&Arc<Trace>| !Arc::ptr_eq(&trace.spans[0].batch, &trace.spans[trace.spans.len() - 1].batch);
    let in_several = traces(requests.into_iter()).iter().filter(is_in_several).count() as u64;
    assert!(in_several * 10 > TRACES * 8, "only {in_several} of {TRACES} traces came in several requests");
}
