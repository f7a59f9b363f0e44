//! Which spans count, and for how many.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use rstest::rstest;

use super::tests::{NOW_MS, TENANT, collected, counting, of, shown, span};
use super::*;
use crate::telemetry::ReasonLabels;

#[rstest]
#[case::include("{include: {match_type: strict, attributes: [{key: kind, value: SPAN_KIND_SERVER}]}}", 1)]
#[case::all_of(
    "{include: {match_type: strict, attributes: [{key: kind, value: SPAN_KIND_SERVER}, {key: span.n, value: 7}]}}",
    0
)]
#[case::any_of(
    "{include_any: {match_type: strict, attributes: [{key: kind, value: SPAN_KIND_SERVER}]}}, {include_any: {match_type: strict, attributes: [{key: span.n, value: 7}]}}",
    2
)]
#[case::any_of_what_matches_whole(
    "{include_any: {match_type: strict, attributes: [{key: kind, value: SPAN_KIND_SERVER}, {key: span.n, value: 7}]}}",
    0
)]
#[case::any_is_enough(
    "{include: {match_type: strict, attributes: [{key: name, value: nothing}]}}, {include_any: {match_type: strict, attributes: [{key: span.n, value: 7}]}}",
    1
)]
#[case::excluded_whatever_else(
    "{include_any: {match_type: strict, attributes: [{key: span.n, value: 7}]}, exclude: {match_type: regex, attributes: [{key: kind, value: CLIENT}]}}",
    0
)]
#[case::exclude("{exclude: {match_type: regex, attributes: [{key: resource.service.name, value: '^sh'}]}}", 0)]
#[case::exclude_all_of(
    "{exclude: {match_type: regex, attributes: [{key: resource.service.name, value: 'op'}, {key: status, value: ERR}]}}",
    2
)]
#[case::by_name("{include: {match_type: regex, attributes: [{key: name, value: 'span [3-9]'}]}}", 1)]
fn filters(#[case] policy: &str, #[case] passing: usize) {
    let yaml = format!("processors: [span-metrics]\nprocessor: {{span_metrics: {{filter_policies: [{policy}]}}}}");
    let spans = vec![span(2, 1, 0, 3, &[]), span(3, 2, 0, 3, &[("n", "7")])];
    let generator = counting(&yaml, [of("shop", spans)]);
    let text = shown(&generator.collect(NOW_MS + 1_000), "calls");
    assert_eq!(text.lines().count(), passing, "{text}");
    let (processor, reason) = ("span-metrics".to_owned(), "span_metrics_filtered".to_owned());
    let labels = ReasonLabels { tenant: TENANT.to_owned(), processor, reason };
    assert_eq!(generator.metrics.discarded.get_or_create(&labels).get(), 2 - passing as u64);
}

#[rstest]
#[case::key("{key: service.name, value: x}", "found `service.name`")]
#[case::regex("{key: name, value: '('}", "expected a regular expression, found `(`")]
fn bad_filters(#[case] attribute: &str, #[case] expected: &str) {
    for processor in ["span_metrics", "service_graphs"] {
        let policy = format!("{{include: {{match_type: regex, attributes: [{attribute}]}}}}");
        let yaml = format!("processor: {{{processor}: {{filter_policies: [{policy}]}}}}");
        let config: GeneratorConfig = serde_saphyr::from_str(&yaml).unwrap();
        let error = Generator::new(&config, "", GeneratorMetrics::default(), 0).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        let error = check(&config).unwrap_err().to_string();
        assert_eq!(error, format!("metrics_generator.processor.{processor}.filter_policies[0]"));
    }
}

#[test]
fn a_span_may_stand_for_many() {
    let yaml = "processor:
  span_metrics: {span_multiplier_key: X-SampleRatio, enable_tracestate_span_multiplier: true}
  service_graphs: {enable_tracestate_span_multiplier: true}";
    let sampled = Span { trace_state: "ot=th:c".to_owned(), ..span(2, 1, 0, 100, &[]) };
    let bytes = sampled.encoded_len();
    let ratio = |ratio: Value| {
        let value = Some(AnyValue { value: Some(ratio) });
        let attribute = KeyValue { key: "X-SampleRatio".to_owned(), value, ..KeyValue::default() };
        Span { attributes: vec![attribute], ..span(1, 1, 9, 3, &[]) }
    };
    // The trace state goes first, and what is no ratio says nothing.
    let both = Span { trace_state: "ot=th:8".to_owned(), ..ratio(Value::DoubleValue(0.25)) };
    let none = [Value::DoubleValue(0.0), Value::IntValue(10), Value::StringValue("0.1".to_owned())].map(ratio);
    let requests = [
        of("a", vec![sampled]),
        of("b", vec![ratio(Value::DoubleValue(0.1))]),
        of("c", vec![both]),
        of("d", none.to_vec()),
    ];
    let text = collected(yaml, requests, "");
    let lines: Vec<_> = text.lines().filter(|line| line.contains("_total") && !line.contains("size")).collect();
    insta::assert_snapshot!(lines.join("\n"), @"
    traces_service_graph_request_failed_total{client=user, connection_type=virtual_node, server=a} 0
    traces_service_graph_request_total{client=user, connection_type=virtual_node, server=a} 4
    traces_spanmetrics_calls_total{service=a, span_kind=SPAN_KIND_SERVER, span_name=span 2, status_code=STATUS_CODE_UNSET} 4
    traces_spanmetrics_calls_total{service=b, span_kind=SPAN_KIND_INTERNAL, span_name=span 1, status_code=STATUS_CODE_UNSET} 10
    traces_spanmetrics_calls_total{service=c, span_kind=SPAN_KIND_INTERNAL, span_name=span 1, status_code=STATUS_CODE_UNSET} 2
    traces_spanmetrics_calls_total{service=d, span_kind=SPAN_KIND_INTERNAL, span_name=span 1, status_code=STATUS_CODE_UNSET} 3
    ");
    assert!(
        text.contains("request_server_seconds_sum{client=user, connection_type=virtual_node, server=a} 0.4"),
        "{text}"
    );
    // Bytes that came stand for themselves.
    let size = format!(
        "size_total{{service=a, span_kind=SPAN_KIND_SERVER, span_name=span 2, status_code=STATUS_CODE_UNSET}} {bytes}"
    );
    assert!(text.lines().any(|line| line.ends_with(&size)), "{size}: {text}");
}
