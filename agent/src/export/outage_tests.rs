//! What becomes of spans while an endpoint is away and there is a queue on disk.

use std::{path::Path, sync::Arc};

use super::{
    tests::{self, Bench, Destination, idle, serve, settings, start},
    *,
};
use crate::telemetry::DropCause;
use rstest::rstest;
use tokio::{net::TcpListener, time::sleep};

fn on_disk(settings: Settings, folder: &Path) -> Settings {
    let queue = QueueSettings { directory: folder.to_owned(), max_bytes: 1 << 20, fsync: Fsync::Never };
    Settings { queue: Some(queue), ..settings }
}

/// An address that nobody listens on until somebody does.
fn reserved() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn disk_has(bench: &Bench, spans: usize) {
    let name = "coati_agent_export_disk_spans{endpoint=\"127.0.0.1";
    for _ in 0..2000 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &bench.telemetry.registry()).unwrap();
        let sum = text.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit(' ').next());
        if sum.map(|value| value.parse::<usize>().unwrap()).sum::<usize>() == spans {
            return;
        }
        sleep(Duration::from_millis(5)).await;
    }
    panic!("{spans} spans do not come to the disk");
}

#[tokio::test]
async fn what_a_killed_agent_had_queued_is_sent_by_the_next_once_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let address = reserved();
    let settings = on_disk(settings(address, Protocol::Grpc), folder.path());
    let bench = Bench::start(&settings);
    bench.push(1..=50);
    disk_has(&bench, 50).await;
    // As kill -9 does: nothing is told to end.
    bench.exporter.abort();
    drop(bench);
    sleep(Duration::from_millis(50)).await;

    let bench = Bench::start(&settings);
    bench.push(51..=60);
    disk_has(&bench, 60).await;
    assert_eq!(bench.telemetry.queue_length.get(), 60);
    let destination = Destination::default();
    serve(&destination, Protocol::Grpc, TcpListener::bind(address).await.unwrap());
    idle(&bench.telemetry).await;
    assert_eq!(destination.names(), (1..=60).collect::<Vec<_>>());
    assert_eq!(bench.telemetry.spans_exported.get(), 60);
    // The disk is not used any more.
    bench.push(61..=65);
    idle(&bench.telemetry).await;
    assert_eq!(destination.names().len(), 65);
    let files =
        std::fs::read_dir(folder.path()).unwrap().flat_map(|entry| std::fs::read_dir(entry.unwrap().path()).unwrap());
    assert_eq!(files.map(|file| file.unwrap().file_name()).collect::<Vec<_>>(), ["cursor"]);
}

#[tokio::test]
async fn the_end_during_an_outage_writes_what_is_in_memory_to_disk() {
    let folder = tempfile::tempdir().unwrap();
    let address = reserved();
    let settings = on_disk(settings(address, Protocol::HttpProtobuf), folder.path());
    let bench = Bench::start(&settings);
    bench.push(1..=95);
    let telemetry = bench.finish(Duration::from_secs(2)).await;
    assert_eq!(DropCause::ALL.map(|cause| telemetry.spans_dropped(cause).get()), [0; 6]);

    let bench = Bench::start(&settings);
    let destination = Destination::default();
    serve(&destination, Protocol::HttpProtobuf, TcpListener::bind(address).await.unwrap());
    while destination.names().len() < 95 {
        sleep(Duration::from_millis(5)).await;
    }
    idle(&bench.telemetry).await;
    assert_eq!(destination.names(), (1..=95).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_endpoint_that_answers_needs_no_disk() {
    let folder = tempfile::tempdir().unwrap();
    let destination = Destination::default();
    let bench = Bench::start(&on_disk(start(&destination, Protocol::Grpc).await, folder.path()));
    bench.push(1..=40);
    idle(&bench.telemetry).await;
    assert_eq!(destination.names(), (1..=40).collect::<Vec<_>>());
    let cursor = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path().join("cursor");
    assert_eq!(std::fs::metadata(cursor).unwrap().len(), 0, "nothing was ever there");
}

#[tokio::test]
async fn what_an_endpoint_is_slow_to_take_goes_to_disk() {
    let folder = tempfile::tempdir().unwrap();
    // Accepts connections by its backlog and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bench = Bench::start(&on_disk(settings(silent.local_addr().unwrap(), Protocol::HttpProtobuf), folder.path()));
    bench.push(1..=30);
    disk_has(&bench, 30).await;
}

#[rstest]
#[case::in_memory(false)]
#[case::on_disk(true)]
#[tokio::test]
async fn what_an_sdk_was_told_is_taken_arrives(#[case] has_disk: bool) {
    let folder = tempfile::tempdir().unwrap();
    let address = reserved();
    let settings = settings(address, Protocol::Grpc);
    let settings = if has_disk { on_disk(settings, folder.path()) } else { settings };
    let bench = Bench::start(&settings);
    let under = Arc::new(Relayed { resource: Vec::new(), scope: Vec::new() });
    let mut taken = Vec::new();
    for number in 1..=300 {
        let bytes = prost::Message::encode_to_vec(&tests::span(&tests::process(1, "shop"), number).span);
        match bench.relay.push(vec![RelayedSpan { under: Arc::clone(&under), bytes }]) {
            Ok(()) => taken.push(number),
            Err(error) => assert_eq!(error, RelayError::Full),
        }
        if number % 10 == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    }
    // In memory half of the room is theirs, and what is under way; on disk there is room for all.
    assert!(if has_disk { taken.len() == 300 } else { (40..=70).contains(&taken.len()) }, "{}", taken.len());
    bench.push(1001..=1020);
    let destination = Destination::default();
    serve(&destination, Protocol::Grpc, TcpListener::bind(address).await.unwrap());
    idle(&bench.telemetry).await;
    assert_eq!(destination.names(), taken.into_iter().chain(1001..=1020).collect::<Vec<_>>());
    assert_eq!(DropCause::ALL.map(|cause| bench.telemetry.spans_dropped(cause).get()), [0; 6]);
}

#[tokio::test]
async fn an_endpoint_that_is_away_does_not_stop_the_others() {
    for folder in [None, Some(tempfile::tempdir().unwrap())] {
        let address = reserved();
        let (here, away) = (Destination::default(), Destination::default());
        let mut settings = start(&here, Protocol::Grpc).await;
        settings.endpoints.push(tests::settings(address, Protocol::Grpc).endpoints.remove(0));
        if let Some(folder) = &folder {
            settings = on_disk(settings, folder.path());
        }
        let bench = Bench::start(&settings);
        bench.push(1..=50);
        while here.names().len() < 50 {
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(here.names(), (1..=50).collect::<Vec<_>>());
        serve(&away, Protocol::Grpc, TcpListener::bind(address).await.unwrap());
        idle(&bench.telemetry).await;
        assert_eq!(away.names(), (1..=50).collect::<Vec<_>>());
        assert_eq!(bench.telemetry.spans_exported.get(), 100, "once for each");
    }
}

#[tokio::test]
async fn two_endpoints_need_two_names() {
    let mut settings = settings(reserved(), Protocol::Grpc);
    settings.endpoints.push(settings.endpoints[0].clone());
    let error = exporter(&settings, &Telemetry::default(), || 0.0).unwrap_err().to_string();
    assert!(error.starts_with("there are two endpoints with the name `127.0.0.1:"), "{error}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_had_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let settings = on_disk(settings(reserved(), Protocol::Grpc), &file);
    let error = exporter(&settings, &Telemetry::default(), || 0.0).unwrap_err().to_string();
    assert!(error.starts_with("cannot use ") && error.contains(file.to_str().unwrap()), "{error}");
}

/// The outage: ten minutes at 1,000 spans/s, killed in the middle. By hand: it takes as long as `SECONDS` says.
#[tokio::test]
#[ignore = "takes as long as the outage lasts"]
async fn a_long_outage() {
    let seconds: u32 = std::env::var("SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(600);
    let folder = tempfile::tempdir().unwrap();
    let address = reserved();
    let mut settings = on_disk(settings(address, Protocol::Grpc), folder.path());
    settings.queue.as_mut().unwrap().max_bytes = 512 << 20;
    (settings.queue_spans, settings.batch_spans) = (16_384, 4096);
    let mut pushed = 0;
    for _half in 0..2 {
        let bench = Bench::start(&settings);
        let started = tokio::time::Instant::now();
        let before = pushed;
        while started.elapsed() < Duration::from_secs(u64::from(seconds)) / 2 {
            let due = before + (started.elapsed().as_secs_f64() * 1000.0) as u32;
            bench.push(pushed + 1..=due);
            pushed = due;
            sleep(Duration::from_millis(10)).await;
        }
        disk_has(&bench, pushed as usize).await;
        bench.exporter.abort();
        drop(bench);
        sleep(Duration::from_millis(100)).await;
    }
    let bytes: u64 = walk(folder.path());
    let bench = Bench::start(&settings);
    let destination = Destination::default();
    let started = tokio::time::Instant::now();
    serve(&destination, Protocol::Grpc, TcpListener::bind(address).await.unwrap());
    while destination.names().len() < pushed as usize {
        sleep(Duration::from_millis(10)).await;
    }
    let drained = started.elapsed();
    idle(&bench.telemetry).await;
    assert_eq!(destination.names(), (1..=pushed).collect::<Vec<_>>());
    println!("{pushed} spans waited in {bytes} bytes, drained in {drained:?}, none lost, none twice");
}

/// What it would cost to write everything to disk before it is sent. By hand: it measures and checks nothing.
#[test]
#[ignore = "measures"]
fn cost_of_the_disk() {
    use opentelemetry_proto::tonic::{common::v1, trace::v1::Span};
    let shop = tests::process(1, "shop");
    let text = |key: &str, text: String| v1::KeyValue {
        key: key.to_owned(),
        value: Some(v1::AnyValue { value: Some(v1::any_value::Value::StringValue(text)) }),
        ..Default::default()
    };
    let id = |bytes: usize| std::iter::repeat_with(|| fastrand::u8(..)).take(bytes).collect::<Vec<_>>();
    let batch_of = |count: usize| {
        let mut batch = batch::Batch::default();
        for number in 0..count {
            let attributes =
                (0..10).map(|key| text(&format!("http.some.attribute.{key}"), format!("value {key} {}", number % 50)));
            let span = Span {
                trace_id: id(16),
                span_id: id(8),
                parent_span_id: id(8),
                name: "GET /api/{id}".to_owned(),
                attributes: attributes.collect(),
                start_time_unix_nano: fastrand::u64(..),
                end_time_unix_nano: fastrand::u64(..),
                ..Span::default()
            };
            batch.add(tests::encoded(crate::span::FinishedSpan { process: Arc::clone(&shop), span }));
        }
        batch
    };
    for (fsync, batches, spans) in [
        (Fsync::Never, 200, 200),
        (Fsync::Every(Duration::from_secs(1)), 200, 200),
        (Fsync::Always, 200, 200),
        (Fsync::Never, 20, 4000),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let queue = QueueSettings { directory: folder.path().to_owned(), max_bytes: 1 << 30, fsync };
        let mut disk = disk::DiskQueue::open(disk::Folder::lock(folder.path().join("q")).unwrap(), &queue).unwrap();
        let made: Vec<_> = (0..batches).map(|_| batch_of(spans)).collect();
        let started = std::time::Instant::now();
        let encoded: Vec<_> = made
            .into_iter()
            .enumerate()
            .map(|(sequence, batch)| Encoded { sequence: sequence as u64, spans: spans as u64, body: batch.encode() })
            .collect();
        let encode = started.elapsed();
        let raw: usize = encoded.iter().map(|request| request.body.len()).sum();
        let started = std::time::Instant::now();
        for request in &encoded {
            disk.append(request).unwrap();
        }
        let append = started.elapsed();
        let all = (batches * spans) as f64;
        let bytes = disk.bytes() as f64 / all;
        let started = std::time::Instant::now();
        while let Some(request) = disk.oldest().unwrap() {
            disk.done(request.sequence).unwrap();
        }
        let read = started.elapsed();
        let ns = |time: Duration| time.as_nanos() as f64 / all;
        println!(
            "{fsync:?} {spans} a request: encode {:.0} ns, write {:.0} ns, read {:.0} ns a span; {:.0} bytes raw, {bytes:.1} on disk",
            ns(encode),
            ns(append),
            ns(read),
            raw as f64 / all
        );
    }
}

fn walk(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| if entry.path().is_dir() { walk(&entry.path()) } else { entry.metadata().unwrap().len() }).sum()
}
