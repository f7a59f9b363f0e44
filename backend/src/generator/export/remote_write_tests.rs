//! Which version of remote write a server gets, and what its rules leave of series.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use http::{HeaderMap, StatusCode};
use prost::Message;
use rstest::rstest;

use super::TenantHeaders;
use super::send::Sender;
use super::tests::{Histogram, Label, SPANS, WriteRequest, config, lost, queue, series_of};
use crate::config::RemoteWriteConfig;
use crate::generator::tests::{NOW_MS, counting, of, span};

/// `io.prometheus.write.v2.Request` of remote write 2.0, as its specification has it.
#[derive(Clone, PartialEq, Message)]
struct Request2 {
    #[prost(string, repeated, tag = "4")]
    symbols: Vec<String>,
    #[prost(message, repeated, tag = "5")]
    timeseries: Vec<TimeSeries2>,
}

#[derive(Clone, PartialEq, Message)]
struct TimeSeries2 {
    #[prost(uint32, repeated, tag = "1")]
    labels_refs: Vec<u32>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample2>,
    #[prost(message, repeated, tag = "3")]
    histograms: Vec<Histogram>,
    #[prost(message, repeated, tag = "4")]
    exemplars: Vec<Exemplar2>,
    #[prost(message, optional, tag = "5")]
    metadata: Option<Metadata>,
    #[prost(int64, tag = "6")]
    created_timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample2 {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    timestamp: i64,
    #[prost(int64, tag = "3")]
    start_timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Exemplar2 {
    #[prost(uint32, repeated, tag = "1")]
    labels_refs: Vec<u32>,
    #[prost(double, tag = "2")]
    value: f64,
    #[prost(int64, tag = "3")]
    timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    /// 1 counter, 2 gauge, 3 histogram, 6 info.
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint32, tag = "3")]
    help_ref: u32,
    #[prost(uint32, tag = "4")]
    unit_ref: u32,
}

/// What a server of remote write 2.0 gets.
fn request_2(body: &[u8]) -> Request2 {
    Request2::decode(snap::raw::Decoder::new().decompress_vec(body).unwrap().as_slice()).unwrap()
}

#[test]
fn a_request_of_version_2_has_metadata_and_created_timestamps() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path(), &config(""), 1 << 20);
    let yaml = format!("{SPANS}\ngenerate_native_histograms: both");
    let generator = counting(&yaml, [of("shop", vec![span(2, 1, 0, 50, &[]), span(2, 2, 0, 500, &[])])]);
    queue.push(&generator.collect(NOW_MS + 15_000)).unwrap();
    let (_, queued) = queue.oldest().unwrap().unwrap();
    let Request2 { symbols, timeseries } = request_2(&queued.body);
    assert_eq!(symbols[0], "");
    let once: BTreeSet<_> = symbols.iter().collect();
    assert_eq!(once.len(), symbols.len(), "each text is there once");
    let text = |reference: u32| symbols[reference as usize].as_str();
    let mut shown = Vec::new();
    for series in &timeseries {
        let labels: Vec<_> = series.labels_refs.chunks(2).map(|pair| (text(pair[0]), text(pair[1]))).collect();
        assert!(labels.is_sorted(), "{labels:?}");
        assert!(series.samples.is_empty() != series.histograms.is_empty());
        assert_eq!(series.created_timestamp, NOW_MS as i64);
        assert!(series.samples.iter().all(|sample| sample.start_timestamp == NOW_MS as i64));
        assert!(series.histograms.iter().all(|histogram| histogram.start_timestamp == NOW_MS as i64));
        let of = |name: &str| labels.iter().find(|label| label.0 == name).map(|label| label.1);
        let metadata = series.metadata.as_ref().unwrap();
        let values: Vec<_> = series.samples.iter().map(|sample| sample.value).collect();
        let exemplars: Vec<_> = series
            .exemplars
            .iter()
            .map(|exemplar| {
                format!("{}={} {}", text(exemplar.labels_refs[0]), text(exemplar.labels_refs[1]), exemplar.value)
            })
            .collect();
        let counts: Vec<_> = series.histograms.iter().map(|histogram| histogram.count).collect();
        let name = of("__name__").unwrap();
        let le = of("le").map(|le| format!(" {le}")).unwrap_or_default();
        shown.push(format!(
            "{name}{le} {} {values:?} {counts:?} {exemplars:?}: {}",
            metadata.kind,
            text(metadata.help_ref)
        ));
    }
    insta::assert_snapshot!(shown.join("\n"), @r#"
    traces_spanmetrics_calls_total 1 [0.0, 2.0] [] []: Spans
    traces_spanmetrics_size_total 1 [0.0, 112.0] [] []: Bytes of spans
    traces_spanmetrics_latency_bucket 0.1 3 [0.0, 1.0] [] ["traceID=1a 0.05"]: Time from the start of a span to its end, in seconds
    traces_spanmetrics_latency_bucket +Inf 3 [0.0, 2.0] [] ["traceID=1a 0.5"]: Time from the start of a span to its end, in seconds
    traces_spanmetrics_latency_sum 3 [0.0, 0.55] [] []: Time from the start of a span to its end, in seconds
    traces_spanmetrics_latency_count 3 [0.0, 2.0] [] []: Time from the start of a span to its end, in seconds
    traces_spanmetrics_latency 3 [] [0, 2] ["traceID=1a 0.5"]: Time from the start of a span to its end, in seconds
    "#);
}

/// A server of remote write as the versions of Prometheus are: what it knows, and what it tells of what it wrote.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Knows {
    /// 1.0, and takes everything for that.
    Only1,
    /// 1.0, and says so.
    Only1AndSays,
    Both,
    /// It refuses one sample of each request.
    BothButOne,
}

type Seen = Arc<Mutex<Vec<(HeaderMap, Bytes)>>>;

async fn remote_write_server(knows: Knows) -> (String, Seen) {
    let seen = Seen::default();
    let take = async move |State(seen): State<Seen>, headers: HeaderMap, body: Bytes| {
        let is_2 = headers["content-type"].to_str().unwrap().contains("v2.Request");
        seen.lock().unwrap().push((headers, body.clone()));
        let mut answer = HeaderMap::new();
        if !is_2 || knows == Knows::Only1 {
            return (StatusCode::NO_CONTENT, answer);
        }
        if knows == Knows::Only1AndSays {
            return (StatusCode::UNSUPPORTED_MEDIA_TYPE, answer);
        }
        let series = request_2(&body).timeseries;
        let mut samples: usize = series.iter().map(|series| series.samples.len()).sum();
        samples -= usize::from(knows == Knows::BothButOne);
        answer.insert("x-prometheus-remote-write-samples-written", samples.into());
        answer.insert("x-prometheus-remote-write-histograms-written", 0.into());
        let status = if knows == Knows::Both { StatusCode::NO_CONTENT } else { StatusCode::BAD_REQUEST };
        (status, answer)
    };
    let router = Router::new().route("/w", post(take)).with_state(Arc::clone(&seen));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/w", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, router).into_future());
    (url, seen)
}

#[rstest]
#[case::both(Knows::Both, "", "2 2", 0)]
#[case::says_so(Knows::Only1AndSays, "", "2 1 1", 0)]
#[case::says_nothing(Knows::Only1, "", "2 1 1", 0)]
#[case::told_1(Knows::Both, "protobuf_message: prometheus.WriteRequest", "1 1", 0)]
#[case::told_2(Knows::Only1, "protobuf_message: io.prometheus.write.v2.Request", "2 2", 18)]
#[case::in_part(Knows::BothButOne, "", "2 2", 2)]
#[tokio::test]
async fn the_version_is_negotiated(
    #[case] knows: Knows,
    #[case] yaml: &str,
    #[case] versions: &str,
    #[case] refused: u64,
) {
    let (url, seen) = remote_write_server(knows).await;
    let config = RemoteWriteConfig { url, ..config(yaml) };
    let folder = tempfile::tempdir().unwrap();
    let queue = Arc::new(queue(folder.path(), &config, 1 << 20));
    let generator = counting(SPANS, [of("shop", vec![span(2, 1, 0, 50, &[])])]);
    for after in [15_000, 30_000] {
        queue.push(&generator.collect(NOW_MS + after)).unwrap();
    }
    let sender = Sender::remote_write(Arc::clone(&queue), &config, false, TenantHeaders::default()).unwrap();
    let sender = tokio::spawn(sender.run());
    while queue.oldest().unwrap().is_some() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    sender.abort();
    let seen = seen.lock().unwrap();
    let version = |headers: &HeaderMap| match headers["x-prometheus-remote-write-version"].to_str().unwrap() {
        "2.0.0" => "2",
        "0.1.0" => "1",
        other => panic!("{other}"),
    };
    assert_eq!(seen.iter().map(|(headers, _)| version(headers)).collect::<Vec<_>>().join(" "), versions);
    assert_eq!(lost(&queue, "refused"), refused);
    // What is counted of a server of 1.0 is in its own message.
    let (headers, body) = &seen[seen.len() - 1];
    if version(headers) == "1" {
        let message = snap::raw::Decoder::new().decompress_vec(body).unwrap();
        assert_eq!(WriteRequest::decode(message.as_slice()).unwrap().timeseries.len(), 6);
    }
}

#[test]
fn a_server_gets_what_its_rules_say() {
    let folder = tempfile::tempdir().unwrap();
    let rules = "write_relabel_configs:\n- {action: keep, source_labels: [__name__], regex: '.*_total'}\n\
        - {action: labeldrop, regex: 'span_.*'}\n- {target_label: cluster, replacement: home}\n";
    let queue = queue(folder.path(), &config(rules), 1 << 20);
    let yaml = format!("{SPANS}\n").replace("registry: {", "registry: {external_labels: {source: coati}, ");
    queue.push(&counting(&yaml, [of("shop", vec![span(2, 1, 0, 50, &[])])]).collect(NOW_MS + 15_000)).unwrap();
    let (_, queued) = queue.oldest().unwrap().unwrap();
    assert_eq!(queued.samples, 4);
    let shown = series_of(&queued).into_iter().map(|series| {
        let label = |label: &Label| format!("{}={}", label.name, label.value);
        series.labels.iter().map(label).collect::<Vec<_>>().join(" ")
    });
    insta::assert_snapshot!(shown.collect::<Vec<_>>().join("\n"), @"
    __name__=traces_spanmetrics_calls_total cluster=home service=shop source=coati status_code=STATUS_CODE_UNSET
    __name__=traces_spanmetrics_size_total cluster=home service=shop source=coati status_code=STATUS_CODE_UNSET
    ");
}
