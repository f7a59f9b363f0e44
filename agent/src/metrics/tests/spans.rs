//! Metrics of spans, and the service graph.

use super::*;

fn with(features: &[Feature]) -> RequestMetrics {
    let features = features.iter().copied().collect();
    RequestMetrics::new(MetricsSettings { features, exemplars: false, ..MetricsSettings::default() })
}

fn lines(metrics: &RequestMetrics, prefix: &str) -> Vec<String> {
    text(metrics).lines().filter(|line| line.starts_with(prefix)).map(str::to_owned).collect()
}

fn failed(mut finished: FinishedSpan) -> FinishedSpan {
    finished.span.status = Some(Status { code: StatusCode::Error.into(), ..Status::default() });
    finished
}

#[test]
fn spans_are_counted_as_tempo_does() {
    let metrics = with(&[Feature::ApplicationSpan]);
    let mut finished = span("shop", SpanKind::Server, 30, &GET);
    finished.span.name = "GET /api/{id}".to_owned();
    metrics.count_span(&finished, 1, true, None);
    metrics.count_span(&failed(finished), 1, true, None);
    let labels = "service_name=\"shop\",k8s_namespace_name=\"home\",job=\"shop\",telemetry_sdk_language=\"go\",source=\"coati-agent\",\
                  span_name=\"GET /api/{id}\",span_kind=\"SPAN_KIND_SERVER\",status_code=\"STATUS_CODE_";
    assert_eq!(
        lines(&metrics, "traces_spanmetrics_calls_total"),
        ["ERROR", "UNSET"].map(|code| format!("traces_spanmetrics_calls_total{{{labels}{code}\"}} 1"))
    );
    assert_eq!(
        lines(&metrics, "traces_spanmetrics_response_size_total"),
        ["ERROR", "UNSET"].map(|code| format!("traces_spanmetrics_response_size_total{{{labels}{code}\"}} 300"))
    );
    assert_eq!(lines(&metrics, "traces_spanmetrics_latency_count").len(), 2);
    assert_eq!(lines(&metrics, "traces_target_info").len(), 1);
    assert_eq!(lines(&metrics, "http_server").len(), 0);
}

#[rstest]
#[case::otel(&[Feature::ApplicationSpanOtel], &["traces_span_metrics_calls_total", "traces_span_metrics_duration_seconds_count"])]
#[case::sizes(&[Feature::ApplicationSpanSizes], &["traces_spanmetrics_size_total", "traces_spanmetrics_response_size_total"])]
#[case::host(&[Feature::ApplicationHost], &["traces_host_info"])]
#[case::service_graph(&[Feature::ApplicationServiceGraph], &["traces_service_graph_request_total", "traces_service_graph_request_failed_total", "traces_service_graph_request_server_seconds_count"])]
#[case::application(&[Feature::Application], &["http_server_request_duration_seconds_count", "http_server_response_body_size_bytes_count"])]
fn a_feature_is_its_metrics_and_no_others(#[case] features: &[Feature], #[case] expected: &[&str]) {
    let metrics = with(features);
    metrics.count_span(&span("shop", SpanKind::Server, 30, &GET), 1, true, None);
    let text = text(&metrics);
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let mut names: Vec<_> = samples.map(|line| line.split(['{', ' ']).next().unwrap()).collect();
    names.retain(|name| !name.ends_with("_bucket") && !name.ends_with("_sum") && !name.ends_with("target_info"));
    names.sort_unstable();
    let mut expected = expected.to_vec();
    // Nothing is known of the body of the request, so of its size there is only that nothing was counted.
    expected.sort_unstable();
    assert_eq!(names, expected, "{text}");
}

const PEER: [(&str, &str); 2] = [(key::SERVICE_PEER_NAME, "cart"), (key::SERVICE_PEER_NAMESPACE, "till")];
const ADDRESS: [(&str, &str); 1] = [(key::SERVER_ADDRESS, "api.example")];

#[rstest]
// On this node: the server's end counts.
#[case::client(SpanKind::Client, &ADDRESS, Some("cart"), "client", "shop>cart", "", 0)]
#[case::server(SpanKind::Server, &[], Some("cart"), "server", "cart>shop", "", 1)]
// In the cluster: the agent of the server's node counts.
#[case::client_of_a_service(SpanKind::Client, &PEER, None, "client", "shop>cart", "", 0)]
#[case::server_of_a_pod(SpanKind::Server, &PEER, None, "server", "cart>shop", "", 1)]
// Outside.
#[case::client_of_somebody(SpanKind::Client, &ADDRESS, None, "client", "shop>api.example", "virtual_node", 1)]
#[case::server_of_somebody(SpanKind::Server, &[], None, "server", "user>shop", "virtual_node", 1)]
fn who_calls_whom(
    #[case] kind: SpanKind,
    #[case] attributes: &[(&str, &str)],
    #[case] peer: Option<&str>,
    #[case] end: &str,
    #[case] edge: &str,
    #[case] connection_type: &str,
    #[case] counted: usize,
) {
    let metrics = with(&[Feature::ApplicationServiceGraph]);
    let (client, server) = edge.split_once('>').unwrap();
    let peer = peer.map(|name| span(name, SpanKind::Server, 1, &[]).process);
    metrics.count_span(&failed(span("shop", kind, 30, attributes)), 1, true, peer.as_ref());
    let durations = lines(&metrics, &format!("traces_service_graph_request_{end}_seconds_count"));
    let [duration] = &durations[..] else { panic!("{durations:?}") };
    assert!(
        duration.contains(&format!("client=\"{client}\"")) && duration.contains(&format!(",server=\"{server}\"")),
        "{duration}"
    );
    assert_eq!(duration.contains("connection_type=\"virtual_node\""), connection_type == "virtual_node", "{duration}");
    assert!(!duration.contains("service_name="), "{duration}");
    for name in ["traces_service_graph_request_total", "traces_service_graph_request_failed_total"] {
        assert_eq!(lines(&metrics, name).len(), counted, "{name}");
    }
}

#[test]
fn who_calls_itself_is_in_no_graph() {
    let metrics = with(&[Feature::ApplicationServiceGraph]);
    let finished = span("shop", SpanKind::Server, 1, &[]);
    metrics.count_span(&finished, 1, true, Some(&finished.process));
    assert_eq!(lines(&metrics, "traces_service_graph"), [""; 0]);
}

#[test]
fn the_page_is_also_there_in_the_older_format() {
    let metrics = RequestMetrics::default();
    metrics.count_span(&span("shop", SpanKind::Server, 30, &GET), 1, true, None);
    let mut page = String::new();
    metrics.write(Format::Prometheus, &mut page).unwrap();
    assert!(!page.contains(" # {") && !page.contains("# UNIT"), "{page}");
    assert!(page.contains("le=\"1\"}") && page.contains("le=\"0.005\"}"), "{page}");
    let old = plain(
        "# HELP a Help.\n# TYPE a counter\n# UNIT a b\na_total 1\n# HELP b Info.\n# TYPE b info\nb_info{c=\"d\"} 1\n# EOF\n",
    );
    assert_eq!(
        old,
        "# HELP a_total Help.\n# TYPE a_total counter\na_total 1\n# HELP b_info Info.\n# TYPE b_info gauge\nb_info{c=\"d\"} 1\n"
    );
}

#[rstest]
#[case::nothing("", Format::OpenMetrics)]
#[case::anything("*/*", Format::OpenMetrics)]
#[case::prometheus(
    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
    Format::OpenMetrics
)]
#[case::older("text/plain;version=0.0.4;q=1,*/*;q=0.1", Format::Prometheus)]
fn the_format_is_what_is_asked_for(#[case] accept: &str, #[case] format: Format) {
    assert_eq!(Format::of(accept, false), format);
    assert_eq!(Format::of(accept, true), format);
}

const MESSAGES: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";

/// Prometheus asks for messages first where it takes native histograms, else at times behind text.
#[rstest]
#[case::first("", ";q=0.8", Format::Protobuf)]
#[case::first_by_weight(";q=0.6", ";version=1.0.0;q=0.5", Format::Protobuf)]
#[case::behind(";q=0.4", ";version=1.0.0;q=0.5", Format::OpenMetrics)]
fn messages_are_for_who_asks_for_them_first(#[case] messages: &str, #[case] text: &str, #[case] format: Format) {
    let accept = format!("{MESSAGES}{messages},application/openmetrics-text{text},text/plain;version=0.0.4;q=0.2");
    assert_eq!(Format::of(&accept, true), format);
    assert_eq!(Format::of(&accept, false), Format::OpenMetrics, "text shows all that there is");
}

proptest! {
    /// However few label sets there is room for, and whatever spans are kept: each request is counted once.
    #[test]
    fn nothing_is_lost_and_nothing_counted_twice(
        requests in proptest::collection::vec((0..5_u8, 0..3_u8, proptest::bool::ANY), 0..60),
        max_series in 1..8_usize,
    ) {
        let features = Feature::ALL.into_iter().collect();
        let metrics = RequestMetrics::new(MetricsSettings { features, max_series, ..MetricsSettings::default() });
        for (service, route, is_kept) in &requests {
            let attributes = [(key::HTTP_ROUTE, &*format!("/{route}"))];
            metrics.count_span(&span(&format!("s{service}"), SpanKind::Server, 1, &attributes), 1, *is_kept, None);
        }
        let sum = |name: &str| {
            let points = metrics.points();
            let values = points.iter().filter(|point| point.metric.prometheus == name).map(|point| match &point.value {
                Value::Counter(value) | Value::Gauge(value) => *value,
                Value::Histogram(histogram) => histogram.count() as f64,
            });
            values.sum::<f64>()
        };
        for name in [
            "http_server_request_duration_seconds",
            "traces_spanmetrics_latency",
            "traces_spanmetrics_calls",
            "traces_span_metrics_calls",
            "traces_service_graph_request",
            "traces_service_graph_request_server_seconds",
        ] {
            prop_assert_eq!(sum(name) as usize, requests.len(), "{}", name);
        }
    }
}
