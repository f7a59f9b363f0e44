//! What a server of remote write sees, and what waits for it.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use http::{HeaderMap, StatusCode};
use proptest::prelude::*;
use prost::Message;
use rstest::rstest;

use super::queue::{Queue, Queued, decode_queued};
use super::remote_write::version_1;
use super::send::Sender;
use super::{Format, TenantHeaders};
use crate::config::RemoteWriteConfig;
use crate::generator::tests::{NOW_MS, counting, generator, of, span};
use crate::telemetry::GeneratorMetrics;

/// `prometheus.WriteRequest` of remote write 1.0.
#[derive(Clone, PartialEq, Message)]
pub(super) struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    pub(super) timeseries: Vec<TimeSeries>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    pub(super) labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    pub(super) samples: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    pub(super) exemplars: Vec<Exemplar>,
    #[prost(message, repeated, tag = "4")]
    pub(super) histograms: Vec<Histogram>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Label {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) value: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Sample {
    #[prost(double, tag = "1")]
    pub(super) value: f64,
    #[prost(int64, tag = "2")]
    pub(super) timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Exemplar {
    #[prost(message, repeated, tag = "1")]
    pub(super) labels: Vec<Label>,
    #[prost(double, tag = "2")]
    pub(super) value: f64,
    #[prost(int64, tag = "3")]
    pub(super) timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Histogram {
    #[prost(uint64, tag = "1")]
    pub(super) count: u64,
    #[prost(double, tag = "3")]
    pub(super) sum: f64,
    #[prost(sint32, tag = "4")]
    pub(super) schema: i32,
    #[prost(double, tag = "5")]
    pub(super) zero_threshold: f64,
    #[prost(uint64, tag = "6")]
    pub(super) zero_count: u64,
    #[prost(message, repeated, tag = "11")]
    pub(super) spans: Vec<BucketSpan>,
    #[prost(sint64, repeated, packed = "false", tag = "12")]
    pub(super) deltas: Vec<i64>,
    #[prost(int64, tag = "15")]
    pub(super) timestamp: i64,
    /// Only in 2.0.
    #[prost(int64, tag = "17")]
    pub(super) start_timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct BucketSpan {
    #[prost(sint32, tag = "1")]
    pub(super) offset: i32,
    #[prost(uint32, tag = "2")]
    pub(super) length: u32,
}

pub(super) fn config(yaml: &str) -> RemoteWriteConfig {
    serde_saphyr::from_str(&format!("url: http://127.0.0.1:9/w\n{yaml}")).unwrap()
}

pub(super) fn queue(folder: &std::path::Path, config: &RemoteWriteConfig, max_bytes: u64) -> Queue {
    Queue::remote_write(folder, config, max_bytes, GeneratorMetrics::default()).unwrap()
}

/// What a server of remote write 1.0 gets.
pub(super) fn series_of(queued: &Queued) -> Vec<TimeSeries> {
    assert_eq!(queued.format, Format::RemoteWrite2);
    let message = snap::raw::Decoder::new().decompress_vec(&version_1(&queued.body).unwrap()).unwrap();
    WriteRequest::decode(message.as_slice()).unwrap().timeseries
}

/// All series that wait; labels as text, without those of service and span.
fn waiting(queue: &Queue) -> Vec<(String, TimeSeries)> {
    let mut found = Vec::new();
    while let Some((number, queued)) = queue.oldest().unwrap() {
        for series in series_of(&queued) {
            let names: Vec<_> = series.labels.iter().map(|label| label.name.as_str()).collect();
            assert!(names.is_sorted(), "{names:?}");
            let value =
                |name: &str| series.labels.iter().find(|label| label.name == name).map(|label| label.value.as_str());
            let name = value("__name__").unwrap();
            let le = value("le").map(|le| format!(" le={le}")).unwrap_or_default();
            found.push((format!("{name}{le}"), series));
        }
        queue.done(number);
    }
    found
}

fn values(series: &TimeSeries) -> Vec<(i64, f64)> {
    series.samples.iter().map(|sample| (sample.timestamp - NOW_MS as i64, sample.value)).collect()
}

pub(super) const SPANS: &str =
    "processors: [span-metrics]\nprocessor: {span_metrics: {histogram_buckets: [0.1]}}\nregistry: {stale_duration: 1m}";

#[test]
fn a_new_series_begins_with_zero_and_ends_with_a_marker() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path(), &config(""), 1 << 20);
    let generator = counting(SPANS, [of("shop", vec![span(2, 1, 0, 50, &[]), span(2, 2, 0, 500, &[])])]);
    let push = |after: u64| queue.push(&generator.collect(NOW_MS + after)).unwrap();
    push(15_000);
    let first = waiting(&queue);
    let of = |found: &[(String, TimeSeries)], name: &str| {
        found.iter().find(|(found, _)| found == name).unwrap_or_else(|| panic!("{name}: {found:?}")).1.clone()
    };
    assert_eq!(first.len(), 6);
    assert_eq!(values(&of(&first, "traces_spanmetrics_calls_total")), [(1, 0.0), (15_000, 2.0)]);
    assert_eq!(values(&of(&first, "traces_spanmetrics_latency_bucket le=0.1")), [(1, 0.0), (15_000, 1.0)]);
    let above = of(&first, "traces_spanmetrics_latency_bucket le=+Inf");
    assert_eq!(values(&above), [(1, 0.0), (15_000, 2.0)]);
    let label = Label { name: "traceID".to_owned(), value: "1a".to_owned() };
    let timestamp = NOW_MS as i64 + 15_000;
    assert_eq!(above.exemplars, [Exemplar { labels: vec![label], value: 0.5, timestamp }]);
    push(30_000);
    let second = waiting(&queue);
    assert_eq!(values(&of(&second, "traces_spanmetrics_calls_total")), [(30_000, 2.0)]);
    assert!(of(&second, "traces_spanmetrics_latency_bucket le=+Inf").exemplars.is_empty());
    push(75_000);
    let last = waiting(&queue);
    let bits = of(&last, "traces_spanmetrics_calls_total").samples[0].value.to_bits();
    assert_eq!(bits, 0x7ff0_0000_0000_0002);
    push(90_000);
    assert_eq!(waiting(&queue), []);
}

#[test]
fn a_native_histogram_is_one_series() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path(), &config(""), 1 << 20);
    let yaml = format!("{SPANS}\ngenerate_native_histograms: native");
    let spans = [1, 1000, 1000, 1001, 4000, 0].map(|millis| span(2, 1, 0, millis, &[])).to_vec();
    queue.push(&counting(&yaml, [of("shop", spans)]).collect(NOW_MS + 15_000)).unwrap();
    let found = waiting(&queue);
    let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        ["traces_spanmetrics_calls_total", "traces_spanmetrics_size_total", "traces_spanmetrics_latency"]
    );
    let [empty, histogram] = found[2].1.histograms.as_slice() else { panic!("{found:?}") };
    assert_eq!((empty.count, empty.timestamp, empty.spans.len()), (0, NOW_MS as i64 + 1, 0));
    assert_eq!((histogram.count, histogram.zero_count, histogram.schema), (6, 1, 3));
    assert!((histogram.sum - 7.002).abs() < 1e-9);
    // 1 ms is in bucket -79, 1 s in 0, 1.001 s in 1, 4 s in 16: two thousandths are eighths of powers of two.
    let spans: Vec<_> = histogram.spans.iter().map(|span| (span.offset, span.length)).collect();
    assert_eq!(spans, [(-79, 1), (78, 2), (14, 1)]);
    assert_eq!(histogram.deltas, [1, 1, -1, 0]);
    let without = config("send_native_histograms: false\nsend_exemplars: false");
    let queue = Queue::remote_write(&folder.path().join("b"), &without, 1 << 20, GeneratorMetrics::default()).unwrap();
    queue.push(&counting(&yaml, [of("shop", vec![span(2, 1, 0, 1, &[])])]).collect(NOW_MS + 15_000)).unwrap();
    assert_eq!(waiting(&queue).len(), 2);
}

#[test]
fn requests_are_small_and_have_all() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path(), &config(""), 1 << 24);
    let named = |number: u32| opentelemetry_proto::tonic::trace::v1::Span {
        name: number.to_string(),
        ..span(2, 1, 0, 50, &[])
    };
    queue.push(&counting(SPANS, [of("shop", (0..1_000).map(named).collect())]).collect(NOW_MS + 15_000)).unwrap();
    let mut sizes = Vec::new();
    while let Some((number, queued)) = queue.oldest().unwrap() {
        let series = series_of(&queued);
        sizes.push((series.len(), queued.samples as usize));
        queue.done(number);
    }
    assert_eq!(sizes, [(2_000, 4_000), (2_000, 4_000), (2_000, 4_000)]);
}

fn queued(number: u64) -> Queued {
    // Of a version that knew only 1.0, whose body is sent as it is.
    let body = vec![number as u8; 100];
    Queued { tenant: "t".to_owned(), time_ms: number, samples: 7, format: Format::RemoteWrite1, body }
}

#[test]
fn what_waits_is_there_after_a_restart_in_its_order() {
    let folder = tempfile::tempdir().unwrap();
    let config = config("");
    let first = queue(folder.path(), &config, 1 << 20);
    (1..=3).for_each(|number| first.push_request(&queued(number)).unwrap());
    let (number, oldest) = first.oldest().unwrap().unwrap();
    assert_eq!(oldest, queued(1));
    first.done(number);
    drop(first);
    fs::write(folder.path().join(Queue::remote_write_name(&config)).join("new"), "torn").unwrap();
    let again = queue(folder.path(), &config, 1 << 20);
    again.push_request(&queued(4)).unwrap();
    let mut times = Vec::new();
    while let Some((number, queued)) = again.oldest().unwrap() {
        times.push(queued.time_ms);
        again.done(number);
    }
    assert_eq!(times, [2, 3, 4]);
}

#[test]
fn a_full_queue_gives_up_the_oldest_and_counts_it() {
    let folder = tempfile::tempdir().unwrap();
    let length = queued(1).encode().len() as u64;
    let queue = queue(folder.path(), &config(""), 2 * length);
    (1..=5).for_each(|number| queue.push_request(&queued(number)).unwrap());
    assert_eq!(queue.oldest().unwrap().unwrap().1.time_ms, 4);
    assert_eq!(lost(&queue, "queue_full"), 21);
}

pub(super) fn lost(queue: &Queue, reason: &str) -> u64 {
    let labels = crate::telemetry::LossLabels { url: queue.url().to_owned(), reason: reason.to_owned() };
    queue.metrics.lost_samples.get_or_create(&labels).get()
}

#[test]
fn a_damaged_file_is_passed_over_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let config = config("");
    let queue = queue(folder.path(), &config, 1 << 20);
    (1..=2).for_each(|number| queue.push_request(&queued(number)).unwrap());
    let path = folder.path().join(Queue::remote_write_name(&config)).join(format!("{:020}", 1));
    fs::write(&path, b"CGRWnoise").unwrap();
    assert_eq!(queue.oldest().unwrap().unwrap().1.time_ms, 2);
    assert_eq!(lost(&queue, "damaged"), 1);
}

/// As when there are too many open files; a folder in its place is refused for root as well.
#[test]
fn a_file_that_cannot_be_read_now_waits() {
    let folder = tempfile::tempdir().unwrap();
    let config = config("");
    let queue = queue(folder.path(), &config, 1 << 20);
    (1..=2).for_each(|number| queue.push_request(&queued(number)).unwrap());
    let path = folder.path().join(Queue::remote_write_name(&config)).join(format!("{:020}", 1));
    let aside = path.with_extension("aside");
    fs::rename(&path, &aside).unwrap();
    fs::create_dir(&path).unwrap();
    let error = queue.oldest().unwrap_err();
    assert_eq!(error.to_string(), path.display().to_string());
    fs::remove_dir(&path).unwrap();
    fs::rename(&aside, &path).unwrap();
    assert_eq!(queue.oldest().unwrap().unwrap().1, queued(1));
    assert_eq!(lost(&queue, "damaged"), 0);
}

#[test]
fn a_file_that_is_cut_or_changed_is_refused() {
    let bytes = queued(9).encode();
    assert_eq!(decode_queued(&bytes).unwrap(), queued(9));
    for length in 0..bytes.len() {
        assert!(decode_queued(&bytes[..length]).is_err(), "{length}");
        let mut changed = bytes.clone();
        changed[length] ^= 0x10;
        assert!(decode_queued(&changed).is_err(), "{length}");
    }
}

/// The files of `docs/format/remote-write-queue.md`, as their versions have them for ever.
#[test]
fn the_formats_are_those_of_the_fixtures() {
    let body = b"\x04\x0cbody".to_vec();
    let format = Format::RemoteWrite1;
    let queued = Queued { tenant: "team-a".to_owned(), time_ms: NOW_MS, samples: 2, format, body };
    assert_eq!(decode_queued(include_bytes!("../../../tests/fixtures/remote-write-queue-1")).unwrap(), queued);
    let fixture = include_bytes!("../../../tests/fixtures/remote-write-queue-2");
    let queued = Queued { format: Format::RemoteWrite2, ..queued };
    assert_eq!(decode_queued(fixture).unwrap(), queued);
    assert_eq!(queued.encode(), fixture);
}

proptest! {
    #[test]
    fn any_bytes_are_a_request_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_queued(&bytes);
    }
}

pub(super) type Seen = Arc<Mutex<Vec<(HeaderMap, Bytes)>>>;

/// A server that gives these answers, one after the other, and then takes everything.
pub(super) async fn server(answers: Vec<StatusCode>) -> (String, Seen) {
    let seen = Seen::default();
    let answers = Arc::new(Mutex::new(answers));
    let take = async |State((seen, answers)): State<(Seen, Arc<Mutex<Vec<StatusCode>>>)>, headers, body| {
        seen.lock().unwrap().push((headers, body));
        let mut answers = answers.lock().unwrap();
        let status = if answers.is_empty() { StatusCode::NO_CONTENT } else { answers.remove(0) };
        (status, [("retry-after", "0")])
    };
    let router = Router::new().route("/w", post(take)).with_state((Arc::clone(&seen), answers));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/w", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, router).into_future());
    (url, seen)
}

#[rstest]
#[case::taken(vec![], &[1, 2, 3], 0)]
#[case::later(vec![StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS], &[1, 1, 1, 2, 3], 0)]
#[case::refused(vec![StatusCode::NO_CONTENT, StatusCode::BAD_REQUEST], &[1, 2, 3], 7)]
#[tokio::test]
async fn a_server_gets_everything_in_order(
    #[case] answers: Vec<StatusCode>,
    #[case] expected: &[u8],
    #[case] refused: u64,
) {
    let (url, seen) = server(answers).await;
    let yaml = "headers: {X-Extra: secret}\nbasic_auth: {username: u, password: p}";
    let config = RemoteWriteConfig { url, ..config(yaml) };
    let folder = tempfile::tempdir().unwrap();
    let queue = Arc::new(queue(folder.path(), &config, 1 << 20));
    (1..=2).for_each(|number| queue.push_request(&queued(number)).unwrap());
    let sender = Sender::remote_write(Arc::clone(&queue), &config, true, TenantHeaders::default()).unwrap();
    let sender = tokio::spawn(sender.run());
    while queue.oldest().unwrap().is_some() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // What comes while it waits is sent too.
    queue.push_request(&queued(3)).unwrap();
    queue.more.notify_one();
    while queue.oldest().unwrap().is_some() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    sender.abort();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.iter().map(|(_, body)| body[0]).collect::<Vec<_>>(), expected);
    assert_eq!(lost(&queue, "refused"), refused);
    let header = |name: &str| seen[0].0.get(name).unwrap().to_str().unwrap();
    assert_eq!(
        [
            "content-encoding",
            "content-type",
            "x-prometheus-remote-write-version",
            "x-scope-orgid",
            "x-extra",
            "authorization"
        ]
        .map(header),
        ["snappy", "application/x-protobuf", "0.1.0", "t", "secret", "Basic dTpw"]
    );
}

#[rstest]
#[case::url("url: nowhere", "url: expected a URL")]
#[case::header("headers: {'a b': x}", "headers: a b")]
#[case::authority("tls_config: {ca_file: /no/such/file}", "tls_config.ca_file: /no/such/file")]
#[case::relabeling("write_relabel_configs: [{action: drop}, {action: hashmod}]", "write_relabel_configs[1]")]
#[case::password("basic_auth: {password_file: /no/such/file}", "basic_auth.password_file: /no/such/file")]
fn bad_settings_are_named(#[case] yaml: &str, #[case] expected: &str) {
    let yaml = if yaml.starts_with("url") { yaml.to_owned() } else { format!("url: http://127.0.0.1:9/w\n{yaml}") };
    let config: RemoteWriteConfig = serde_saphyr::from_str(&yaml).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let sender = Queue::remote_write(folder.path(), &config, 1, GeneratorMetrics::default())
        .and_then(|queue| Sender::remote_write(Arc::new(queue), &config, false, TenantHeaders::default()));
    let error = sender.unwrap_err();
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn user_and_password_are_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let config = RemoteWriteConfig { url: "https://u:p@host:1/a/b".to_owned(), ..config("") };
    assert_eq!(queue(folder.path(), &config, 1).url(), "https://host:1/a/b");
    let _ = generator("{}");
}
