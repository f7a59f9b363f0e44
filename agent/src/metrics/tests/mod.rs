use coati_common::wellknown::{resource, span as key};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value},
    resource::v1::Resource,
    trace::v1::{Span, Status, span::SpanKind, status::StatusCode},
};
use proptest::prelude::*;
use rstest::rstest;

use super::{
    histogram::{Histogram, SECONDS},
    labels::identify,
    *,
};
use crate::{
    discover::{Exports, Process},
    span::FinishedSpan,
    telemetry::Telemetry,
};

mod choice;
mod names;
mod otlp;
mod spans;

fn pair(key: &str, value: &str) -> KeyValue {
    let number = value.parse().map(any_value::Value::IntValue);
    let value = number.unwrap_or_else(|_| any_value::Value::StringValue(value.to_owned()));
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn span(service: &str, kind: SpanKind, milliseconds: u64, attributes: &[(&str, &str)]) -> FinishedSpan {
    let of_service = [
        (resource::SERVICE_NAME, service),
        ("k8s.namespace.name", "home"),
        ("k8s.pod.uid", "u-1"),
        (resource::TELEMETRY_SDK_LANGUAGE, "go"),
        (resource::PROCESS_COMMAND, "shopd"),
    ];
    let resource =
        Resource { attributes: of_service.map(|(key, value)| pair(key, value)).into(), ..Resource::default() };
    let process = Process {
        tgid: std::process::id(),
        service_name: service.to_owned(),
        resource,
        sampler: None,
        exports: Exports::default(),
    };
    let span = Span {
        kind: kind.into(),
        trace_id: vec![0xab; 16],
        span_id: vec![0xcd; 8],
        start_time_unix_nano: 1_000_000_000,
        end_time_unix_nano: 1_000_000_000 + milliseconds * 1_000_000,
        attributes: attributes.iter().map(|(key, value)| pair(key, value)).collect(),
        ..Span::default()
    };
    FinishedSpan { process: Arc::new(process), span }
}

/// A request as its span says it: what the metrics of the request are to agree with.
pub(crate) fn read<'a>(span: &'a Span, attributes: &'a [KeyValue]) -> Request<'a> {
    let role = if span.kind() == SpanKind::Server { Role::Server } else { Role::Client };
    let value = |wanted: &str| {
        let found = attributes.iter().find(|attribute| attribute.key == wanted)?;
        found.value.as_ref()?.value.as_ref()
    };
    let text = |wanted: &str| match value(wanted) {
        Some(any_value::Value::StringValue(text)) => text.as_str(),
        _ => "",
    };
    let number = |wanted: &str| match value(wanted) {
        Some(any_value::Value::IntValue(number)) => Some(*number),
        _ => None,
    };
    // Clients have both in the whole URL only.
    let (scheme, path) = match text(key::URL_FULL).split_once("://") {
        Some((scheme, rest)) => {
            let path = rest.find('/').and_then(|start| rest.get(start..)).unwrap_or_default();
            (scheme, path.split(['?', '#']).next().unwrap())
        }
        None => (text(key::URL_SCHEME), text(key::URL_PATH)),
    };
    Request {
        role,
        span_name: &span.name,
        is_error: span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error),
        method: text(key::HTTP_REQUEST_METHOD),
        scheme,
        route: text(key::HTTP_ROUTE),
        status: number(key::HTTP_RESPONSE_STATUS_CODE),
        server_address: text(key::SERVER_ADDRESS),
        server_port: number(key::SERVER_PORT),
        path,
        client_address: text(key::CLIENT_ADDRESS),
        rpc_system: text(key::RPC_SYSTEM),
        rpc_service: text(key::RPC_SERVICE),
        rpc_method: text(key::RPC_METHOD),
        rpc_status: number(key::RPC_GRPC_STATUS_CODE),
        peer_name: text(key::SERVICE_PEER_NAME),
        peer_namespace: text(key::SERVICE_PEER_NAMESPACE),
        asked_bytes: number(key::HTTP_REQUEST_BODY_SIZE),
        answered_bytes: number(key::HTTP_RESPONSE_BODY_SIZE),
        is_end_known: !matches!(text(key::COATI_INCOMPLETE), "end" | "response"),
        trace_id: span.trace_id[..].try_into().unwrap(),
        span_id: span.span_id[..].try_into().unwrap(),
        begin_unix_ns: span.start_time_unix_nano,
        end_unix_ns: span.end_time_unix_nano,
    }
}

impl RequestMetrics {
    fn count_span(&self, finished: &FinishedSpan, now_ns: u64, is_kept: bool, peer: Option<&Arc<Process>>) {
        let request = read(&finished.span, &finished.span.attributes);
        self.count(&request, &finished.process, now_ns, is_kept, peer);
    }
}

const GET: [(&str, &str); 8] = [
    (key::HTTP_REQUEST_METHOD, "GET"),
    (key::URL_SCHEME, "http"),
    (key::HTTP_RESPONSE_STATUS_CODE, "200"),
    (key::HTTP_ROUTE, "/api/{id}"),
    (key::SERVER_ADDRESS, "shop"),
    (key::SERVER_PORT, "80"),
    (key::URL_PATH, "/api/7"),
    (key::HTTP_RESPONSE_BODY_SIZE, "300"),
];

fn text(metrics: &RequestMetrics) -> String {
    let mut text = String::new();
    metrics.write(Format::OpenMetrics, &mut text).unwrap();
    text
}

#[test]
fn a_request_is_counted_under_beylas_names_and_labels() {
    let metrics = RequestMetrics::default();
    metrics.count_span(&span("shop", SpanKind::Server, 30, &GET), 1, true, None);
    metrics.count_span(&span("shop", SpanKind::Server, 60, &GET), 2, true, None);
    let text = text(&metrics);
    let labels = "service_name=\"shop\",k8s_namespace_name=\"home\",job=\"shop\",http_request_method=\"GET\",url_scheme=\"http\",\
                  http_response_status_code=\"200\",http_route=\"/api/{id}\",server_address=\"shop\",server_port=\"80\"";
    for line in [
        "# TYPE http_server_request_duration_seconds histogram".to_owned(),
        "# UNIT http_server_response_body_size_bytes bytes".to_owned(),
        format!("http_server_request_duration_seconds_bucket{{{labels},le=\"0.025\"}} 0"),
        format!("http_server_request_duration_seconds_bucket{{{labels},le=\"0.05\"}} 1"),
        format!("http_server_request_duration_seconds_bucket{{{labels},le=\"0.075\"}} 2"),
        format!("http_server_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} 2"),
        format!("http_server_request_duration_seconds_sum{{{labels}}} 0.09"),
        format!("http_server_request_duration_seconds_count{{{labels}}} 2"),
        format!("http_server_response_body_size_bytes_bucket{{{labels},le=\"512.0\"}} 2"),
    ] {
        assert!(text.lines().any(|found| found == line || found.split(" # ").next() == Some(&line)), "{line}\n{text}");
    }
    // Not known, not invented.
    assert!(!text.contains("http_server_request_body_size"), "{text}");
}

#[test]
fn calls_and_clients_have_labels_of_their_own() {
    let metrics = RequestMetrics::default();
    let call = [
        (key::RPC_SYSTEM, "grpc"),
        (key::RPC_SERVICE, "shop.Cart"),
        (key::RPC_METHOD, "Add"),
        (key::RPC_GRPC_STATUS_CODE, "5"),
        (key::HTTP_REQUEST_METHOD, "POST"),
        (key::SERVER_ADDRESS, "cart"),
    ];
    metrics.count_span(&span("shop", SpanKind::Client, 1, &call), 1, true, None);
    metrics.count_span(
        &span("shop", SpanKind::Client, 1, &[(key::URL_FULL, "https://a/b"), (key::SERVER_ADDRESS, "a")]),
        1,
        true,
        None,
    );
    let text = text(&metrics);
    let call = "rpc_client_call_duration_seconds_count{service_name=\"shop\",k8s_namespace_name=\"home\",job=\"shop\",\
                rpc_method=\"shop.Cart/Add\",rpc_system_name=\"grpc\",rpc_response_status_code=\"5\",server_address=\"cart\"} 1";
    assert!(text.contains(call), "{text}");
    let client = "http_client_request_duration_seconds_count{service_name=\"shop\",k8s_namespace_name=\"home\",job=\"shop\",\
                  url_scheme=\"https\",server_address=\"a\"} 1";
    assert!(text.contains(client), "{text}");
}

#[test]
fn more_label_sets_than_there_is_room_for_are_counted_together() {
    let telemetry = Telemetry::default();
    let metrics = &telemetry.requests;
    metrics.configure(MetricsSettings { max_series: 3, ..MetricsSettings::default() });
    for host in 0..10 {
        metrics.count_span(
            &span("shop", SpanKind::Server, 1, &[(key::SERVER_ADDRESS, &format!("host-{host}"))]),
            1,
            true,
            None,
        );
    }
    metrics.count_span(&span("shop", SpanKind::Server, 1, &[(key::SERVER_ADDRESS, "host-1")]), 1, true, None);
    let text = text(metrics);
    assert!(text.contains("http_server_request_duration_seconds_count{otel_metric_overflow=\"true\"} 7"), "{text}");
    assert!(text.contains("server_address=\"host-1\"} 2"), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("http_server_request_duration_seconds_count")).count(), 4);
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, &telemetry.registry()).unwrap();
    assert!(page.contains("coati_agent_metrics_overflow_total 7"), "{page}");
}

#[test]
fn what_is_not_seen_any_more_is_forgotten_and_makes_room() {
    let metrics = RequestMetrics::new(MetricsSettings { max_series: 1, ..MetricsSettings::default() });
    let minute = 60_000_000_000;
    metrics.count_span(&span("old", SpanKind::Server, 1, &[]), 0, true, None);
    metrics.expire(5 * minute - 1);
    assert!(text(&metrics).contains("old"));
    metrics.expire(5 * minute);
    assert!(!text(&metrics).contains("http_server"));
    metrics.count_span(&span("new", SpanKind::Server, 1, &[]), 6 * minute, true, None);
    assert!(text(&metrics).contains("service_name=\"new\""));
}

#[test]
fn durations_that_are_not_known_are_left_out_and_counted() {
    let metrics = RequestMetrics::default();
    for incomplete in ["end", "response", "head"] {
        metrics.count_span(&span("shop", SpanKind::Server, 1, &[(key::COATI_INCOMPLETE, incomplete)]), 1, true, None);
    }
    assert!(
        text(&metrics)
            .contains("duration_seconds_count{service_name=\"shop\",k8s_namespace_name=\"home\",job=\"shop\"} 1")
    );
    assert_eq!(metrics.skipped("end_unknown").get(), 2);
}

#[test]
fn off_is_off() {
    let metrics = RequestMetrics::new(MetricsSettings { features: Features::NONE, ..MetricsSettings::default() });
    metrics.count_span(&span("shop", SpanKind::Server, 1, &GET), 1, true, None);
    assert_eq!(text(&metrics), "");
}

#[test]
fn buckets_name_a_request_if_that_is_wanted() {
    let off = RequestMetrics::new(MetricsSettings { exemplars: false, ..MetricsSettings::default() });
    off.count_span(&span("shop", SpanKind::Server, 30, &[]), 1, true, None);
    assert!(!text(&off).contains(" # "));
    let metrics = RequestMetrics::default();
    metrics.count_span(&span("shop", SpanKind::Server, 30, &[]), 1, true, None);
    // A span that nobody has stands for nothing.
    metrics.count_span(&span("shop", SpanKind::Server, 300, &[]), 1, false, None);
    let text = text(&metrics);
    let exemplar = format!(" # {{trace_id=\"{}\",span_id=\"{}\"}} 0.03 1.030", "ab".repeat(16), "cd".repeat(8));
    let with: Vec<_> = text.lines().filter(|line| line.ends_with(&exemplar)).collect();
    assert_eq!(with.len(), 1, "{text}");
    assert!(with[0].contains("le=\"0.05\""), "{with:?}");
}

/// Requests of every kind.
fn of_every_kind() -> Vec<FinishedSpan> {
    let http = GET.into_iter().chain([(key::HTTP_REQUEST_BODY_SIZE, "1")]).collect::<Vec<_>>();
    let call = [
        (key::RPC_SYSTEM, "grpc"),
        (key::RPC_SERVICE, "a.B"),
        (key::RPC_METHOD, "C"),
        (key::RPC_GRPC_STATUS_CODE, "0"),
    ];
    let call: Vec<_> = call.into_iter().chain([(key::SERVER_ADDRESS, "b")]).collect();
    let kinds = [SpanKind::Server, SpanKind::Client];
    let mut all: Vec<_> =
        kinds.into_iter().flat_map(|kind| [span("shop", kind, 1, &http), span("shop", kind, 1, &call)]).collect();
    let process = span("shop", SpanKind::Server, 1, &[]).process;
    for finished in &mut all {
        "GET /api/{id}".clone_into(&mut finished.span.name);
        finished.process = Arc::clone(&process);
    }
    all
}

/// Everything of a node on which these are, for the page of metrics.
pub(crate) fn count_all(metrics: &RequestMetrics, inferences: &[Inference]) {
    metrics.configure(MetricsSettings { features: Feature::ALL.into_iter().collect(), ..MetricsSettings::default() });
    "id".clone_into(&mut metrics.lock().host_id);
    for finished in of_every_kind() {
        metrics.count_span(&finished, 1, true, None);
        for inference in inferences {
            let request = read(&finished.span, &finished.span.attributes);
            metrics.count_inference(inference, Role::Server, &request, &finished.process, 1, true);
        }
    }
    for now_ns in [1, 2] {
        metrics.look_at_processes(&ProcTree::new("/proc"), now_ns);
    }
}

/// A server with workers is one service, as is a command that is run again and again; replicas are several.
#[rstest]
#[case::worker("node:7", "node:8", 7, 8, 1)]
#[case::without_a_host_name("7", "8", 7, 8, 1)]
#[case::replicas("a", "b", 7, 8, 2)]
#[case::the_number_is_part_of_a_name("pod-7", "pod-8", 7, 8, 2)]
fn services_are_told_apart_by_what_they_say(
    #[case] first: &str,
    #[case] second: &str,
    #[case] first_pid: u32,
    #[case] second_pid: u32,
    #[case] services: usize,
) {
    let metrics = RequestMetrics::default();
    for (instance, tgid) in [(first, first_pid), (second, second_pid)] {
        let mut finished = span("shop", SpanKind::Server, 1, &GET);
        let mut process = (*finished.process).clone();
        process.tgid = tgid;
        process.resource.attributes.push(pair(resource::SERVICE_INSTANCE_ID, instance));
        process.resource.attributes.push(pair(resource::HOST_NAME, "node"));
        finished.process = Arc::new(process);
        metrics.count_span(&finished, 1, true, None);
    }
    let text = text(&metrics);
    let counts: Vec<_> =
        text.lines().filter(|line| line.starts_with("http_server_request_duration_seconds_count")).collect();
    assert_eq!(counts.len(), services, "{text}");
}

#[test]
fn processes_that_are_gone_are_forgotten_with_their_series() {
    let metrics = RequestMetrics::default();
    let finished = span("shop", SpanKind::Server, 1, &GET);
    metrics.count_span(&finished, 0, true, None);
    let process = Arc::downgrade(&finished.process);
    drop(finished);
    metrics.expire(1);
    assert!(process.upgrade().is_none());
    let counted = || metrics.points().iter().filter(|point| point.metric.otlp.starts_with("http.")).count();
    assert_eq!(counted(), 2);
    metrics.expire(600_000_000_000);
    assert_eq!(counted(), 0);
    // One tick later nobody needs its service.
    metrics.expire(600_000_000_001);
    assert!(metrics.points().is_empty());
}

proptest! {
    /// Every value is in one bucket, the one that Prometheus would put it into.
    #[test]
    fn a_histogram_counts_every_value_once(values in proptest::collection::vec(0.0..20.0_f64, 0..50)) {
        let mut histogram = Histogram::new(SECONDS.into(), Aggregation::Explicit);
        for value in &values {
            histogram.observe(*value, None);
        }
        prop_assert_eq!(histogram.count(), values.len() as u64);
        let mut cumulative = 0;
        for (bound, count) in SECONDS.iter().zip(&histogram.counts) {
            cumulative += count;
            prop_assert_eq!(cumulative, values.iter().filter(|value| *value <= bound).count() as u64);
        }
    }

    /// Two requests are counted together if and only if they have the same labels.
    #[test]
    fn an_identity_is_what_labels_say(
        left in ("[a/]{0,2}", "[a/]{0,2}", proptest::option::of(0_i64..3), 0_i64..2),
        right in ("[a/]{0,2}", "[a/]{0,2}", proptest::option::of(0_i64..3), 0_i64..2),
        is_call: bool,
    ) {
        let spans = [&left, &right].map(|(one, other, status, port)| {
            let texts = if is_call { [key::RPC_SERVICE, key::RPC_METHOD] } else { [key::HTTP_ROUTE, key::SERVER_ADDRESS] };
            let mut attributes = vec![pair(texts[0], one), pair(texts[1], other), pair(key::SERVER_PORT, &port.to_string())];
            attributes.extend(is_call.then(|| pair(key::RPC_SYSTEM, "grpc")));
            let status_key = if is_call { key::RPC_GRPC_STATUS_CODE } else { key::HTTP_RESPONSE_STATUS_CODE };
            attributes.extend(status.map(|status| pair(status_key, &status.to_string())));
            let mut finished = span("shop", SpanKind::Server, 1, &[]);
            finished.span.attributes = attributes;
            finished
        });
        let kind = if is_call { Kind::RpcServer } else { Kind::HttpServer };
        let [left, right] = spans.each_ref().map(|span| {
            let request = read(&span.span, &span.span.attributes);
            let mut identity = Vec::new();
            if is_call {
                identify(&mut identity, kind, 1, &Rpc(&request));
                (identity, Labels::of(&Rpc(&request)))
            } else {
                identify(&mut identity, kind, 1, &Http(&request));
                (identity, Labels::of(&Http(&request)))
            }
        });
        // `a/` and `` are `a/` joined, and so are `a` and ``: the identity may tell more apart than the labels.
        prop_assert!(left.1 == right.1 || left.0 != right.0);
        prop_assert!(is_call || (left.1 == right.1) == (left.0 == right.0));
    }

    /// Whatever a client sends as a host stays inside its label.
    #[test]
    fn labels_cannot_be_broken_out_of(host in ".*") {
        let metrics = RequestMetrics::default();
        metrics.count_span(&span("shop", SpanKind::Server, 1, &[(key::SERVER_ADDRESS, &format!("h{host}"))]), 1, true, None);
        for line in text(&metrics).split('\n').filter(|line| !line.is_empty() && !line.starts_with('#')) {
            prop_assert!(line.starts_with("http_server_") || line.starts_with("target_info{"), "{}", line);
            let value = line.rsplit_once(" # ").map_or(line, |(line, _)| line).rsplit(' ').next().unwrap();
            prop_assert!(value.parse::<f64>().is_ok(), "{}", line);
        }
    }
}
