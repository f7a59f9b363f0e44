//! What senders are told when there is no room, and when there is again.

use super::*;

/// A disk that is full.
struct FullDisk;

impl Disk for FullDisk {
    fn create(&self, _: &Path) -> std::io::Result<Box<dyn crate::wal::SegmentFile>> {
        Err(std::io::ErrorKind::StorageFull.into())
    }

    fn open(&self, path: &Path) -> std::io::Result<Box<dyn crate::wal::SegmentFile>> {
        RealDisk.open(path)
    }

    fn remove(&self, path: &Path) -> std::io::Result<()> {
        RealDisk.remove(path)
    }
}

#[tokio::test]
async fn a_full_disk_is_an_error_that_senders_retry() {
    let stages = Stages::with(IngestConfig::default(), Limits::default(), Arc::new(FullDisk));
    let spans = request(vec![span(1, 1)]);
    let answer = stages.post(&[PROTOBUF], spans.encode_to_vec()).await;
    assert_eq!((answer.status, answer.retry_after.as_deref()), (StatusCode::SERVICE_UNAVAILABLE, Some("1")));
    let error = stages.grpc(Tenancy::new(false)).await.export(spans).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Unavailable, "disk full: the log cannot grow"));
    assert_eq!(error.get_details_retry_info().unwrap().retry_delay, Some(Duration::from_secs(1)));
    assert!(stages.stored(SINGLE_TENANT).is_empty(), "what is not on disk is not visible");
}

#[tokio::test]
async fn too_much_in_work_is_an_error_that_senders_retry() {
    let none = IngestConfig { max_in_flight_bytes: 0, ..IngestConfig::default() };
    let stages = Stages::with(none, Limits::default(), Arc::new(RealDisk));
    let spans = request(vec![span(1, 1)]);
    let answer = stages.post(&[PROTOBUF], spans.encode_to_vec()).await;
    assert_eq!((answer.status, answer.retry_after.as_deref()), (StatusCode::TOO_MANY_REQUESTS, Some("1")));
    let error = stages.grpc(Tenancy::new(false)).await.export(spans).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.get_details_retry_info().is_some());
    assert_eq!(stages.metric("coati_backend_refused_requests_total{reason=\"overloaded\"}"), "2");
}

/// A body of which the first bytes come, and then nothing.
fn stalled(bytes: usize) -> Body {
    let first = Ok::<_, std::io::Error>(Bytes::from(vec![b' '; bytes]));
    Body::from_stream(tokio_stream::iter([first]).chain(tokio_stream::pending()))
}

#[tokio::test]
async fn what_stalled_senders_have_sent_counts_as_in_work_until_they_are_cut_off() {
    let config = IngestConfig { read_timeout: Duration::from_millis(300), ..SMALL };
    let stages = Stages::with(config, Limits::default(), Arc::new(RealDisk));
    let post = |body| {
        let request = Request::post("/v1/traces").header(JSON.0, JSON.1).body(body).unwrap();
        answer(stages.http(Tenancy::new(false)), request)
    };
    let wait_for_bytes = async |bytes: &str| {
        while stages.metric("coati_backend_in_flight_bytes") != bytes {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let four =
        async { tokio::join!(post(stalled(4096)), post(stalled(4096)), post(stalled(4096)), post(stalled(4096))) };
    let fifth = async {
        wait_for_bytes("16384").await;
        let refused = post(Body::from("{}")).await;
        assert_eq!((refused.status, refused.retry_after.as_deref()), (StatusCode::TOO_MANY_REQUESTS, Some("1")));
    };
    let ((first, ..), ()) = tokio::join!(four, fifth);
    assert_eq!((first.status, first.retry_after), (StatusCode::REQUEST_TIMEOUT, None));
    assert_eq!(stages.metric("coati_backend_refused_requests_total{reason=\"stalled\"}"), "4");
    wait_for_bytes("0").await;
    assert_eq!(post(Body::from("{}")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn full_memory_is_an_error_that_senders_retry() {
    let limits = Limits { total_bytes: 1, ..Limits::default() };
    let stages = Stages::with(IngestConfig::default(), limits, Arc::new(RealDisk));
    let spans = request(vec![span(1, 1)]);
    assert_eq!(stages.post(&[PROTOBUF], spans.encode_to_vec()).await.status, StatusCode::OK);
    let answer = stages.post(&[PROTOBUF], spans.encode_to_vec()).await;
    assert_eq!((answer.status, answer.retry_after.as_deref()), (StatusCode::TOO_MANY_REQUESTS, Some("1")));
    let error = stages.grpc(Tenancy::new(false)).await.export(spans.clone()).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::ResourceExhausted, "too many traces in memory: the limit is 1 bytes")
    );
    assert!(error.get_details_retry_info().is_some());
    assert_eq!(logged(stages.dir.path()).len(), 1, "what is refused is not in the log");
    stages.live.cut(|_| true).commit();
    assert_eq!(stages.post(&[PROTOBUF], spans.encode_to_vec()).await.status, StatusCode::OK);
}

#[tokio::test]
async fn what_was_in_work_is_free_again() {
    let stages = Stages::with(SMALL, Limits::default(), Arc::new(RealDisk));
    for id in 1..=50 {
        let answer = stages.post(&[PROTOBUF], request(vec![span(1, id)]).encode_to_vec()).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
    assert_eq!(stages.metric("coati_backend_in_flight_bytes"), "0");
    assert_eq!((stages.applied.below(), stages.indexed.below()), (51, 51));
}
