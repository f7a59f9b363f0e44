use std::{
    collections::{BTreeMap, VecDeque},
    io::Read as _,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
    routing::post,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    resource::v1::Resource,
    trace::v1::Span,
};
use prost::Message as _;
use rstest::rstest;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tonic::{
    Code, Request, Response, Status, async_trait,
    codec::CompressionEncoding,
    transport::{self, server::TcpIncoming},
};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;
use crate::{
    discover::{Exports, Process},
    span::FinishedSpan,
    telemetry::{DropCause, RequestOutcome},
};

pub(super) fn process(tgid: u32, name: &str) -> Arc<Process> {
    let attribute = opentelemetry_proto::tonic::common::v1::KeyValue { key: name.to_owned(), ..Default::default() };
    let resource = Resource { attributes: vec![attribute], ..Resource::default() };
    Arc::new(Process { tgid, service_name: name.to_owned(), resource, sampler: None, exports: Exports::default() })
}

pub(super) fn span(process: &Arc<Process>, number: u32) -> FinishedSpan {
    let span = Span { name: number.to_string(), trace_id: vec![1; 16], span_id: vec![2; 8], ..Span::default() };
    FinishedSpan { process: Arc::clone(process), span }
}

pub(super) fn encoded(finished: FinishedSpan) -> queue::EncodedSpans {
    let mut spans = queue::EncodedSpans::new(queue::Under::Process(finished.process), 0);
    spans.add(&finished.span.encode_to_vec());
    spans
}

/// What a server is to do with the next request; when the script is over it accepts.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Reject(i64),
    Fail { grpc: Code, http: u16, after: Option<Duration> },
}

#[derive(Clone, Debug, Default)]
pub(super) struct Destination {
    script: Arc<Mutex<VecDeque<Step>>>,
    /// Names of the spans that were accepted.
    names: Arc<Mutex<Vec<u32>>>,
    requests: Arc<Mutex<Vec<(Instant, HeaderMap)>>>,
}

impl Destination {
    pub(super) fn following(script: impl IntoIterator<Item = Step>) -> Self {
        Self { script: Arc::new(Mutex::new(script.into_iter().collect())), ..Self::default() }
    }

    fn take(&self, headers: HeaderMap, request: &ExportTraceServiceRequest) -> Result<i64, Step> {
        self.requests.lock().unwrap().push((Instant::now(), headers));
        let step = self.script.lock().unwrap().pop_front();
        let rejected = match step {
            None => 0,
            Some(Step::Reject(rejected)) => rejected,
            Some(step @ Step::Fail { .. }) => return Err(step),
        };
        let spans = request.resource_spans.iter().flat_map(|group| &group.scope_spans).flat_map(|scope| &scope.spans);
        self.names.lock().unwrap().extend(spans.map(|span| span.name.parse::<u32>().unwrap()));
        Ok(rejected)
    }

    pub(super) fn names(&self) -> Vec<u32> {
        self.names.lock().unwrap().clone()
    }

    pub(super) fn headers(&self) -> Vec<HeaderMap> {
        self.requests.lock().unwrap().iter().map(|(_, headers)| headers.clone()).collect()
    }

    /// Time between the first two requests.
    fn pause(&self) -> Duration {
        let requests = self.requests.lock().unwrap();
        requests[1].0 - requests[0].0
    }
}

fn partial(rejected_spans: i64) -> ExportTraceServiceResponse {
    let partial_success =
        (rejected_spans > 0).then(|| ExportTracePartialSuccess { rejected_spans, error_message: "no".to_owned() });
    ExportTraceServiceResponse { partial_success }
}

#[async_trait]
impl TraceService for Destination {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let headers = request.metadata().clone().into_headers();
        match self.take(headers, request.get_ref()) {
            Ok(rejected) => Ok(Response::new(partial(rejected))),
            Err(Step::Fail { grpc, after: Some(after), .. }) => {
                Err(Status::with_error_details(grpc, "no", ErrorDetails::with_retry_info(Some(after))))
            }
            Err(Step::Fail { grpc, .. }) => Err(Status::new(grpc, "no")),
            Err(Step::Reject(_)) => panic!("not a failure"),
        }
    }
}

pub(super) async fn traces(
    State(destination): State<Destination>,
    headers: HeaderMap,
    body: Bytes,
) -> impl IntoResponse {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let body = if headers.contains_key("content-encoding") {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap();
        plain
    } else {
        body.to_vec()
    };
    match destination.take(headers, &ExportTraceServiceRequest::decode(&body[..]).unwrap()) {
        Ok(rejected) => (StatusCode::OK, HeaderMap::new(), partial(rejected).encode_to_vec()),
        Err(Step::Fail { http, after, .. }) => {
            let after = after.map(|after| (header::RETRY_AFTER, after.as_secs().to_string().parse().unwrap()));
            (StatusCode::from_u16(http).unwrap(), HeaderMap::from_iter(after), Vec::new())
        }
        Err(Step::Reject(_)) => panic!("not a failure"),
    }
}

pub(super) fn serve(destination: &Destination, protocol: Protocol, listener: TcpListener) -> JoinHandle<()> {
    let destination = destination.clone();
    match protocol {
        Protocol::Grpc => tokio::spawn(async move {
            let service = TraceServiceServer::new(destination).accept_compressed(CompressionEncoding::Gzip);
            // Without it each answer waits for the 40 ms of the client's delayed acknowledgement.
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        }),
        Protocol::HttpProtobuf => tokio::spawn(async move {
            let router = Router::new().route("/v1/traces", post(traces)).with_state(destination);
            axum::serve(listener, router).await.unwrap();
        }),
    }
}

pub(super) fn settings(address: SocketAddr, protocol: Protocol) -> Settings {
    let path = if protocol == Protocol::HttpProtobuf { "/v1/traces" } else { "" };
    let endpoint = EndpointSettings {
        name: address.to_string(),
        endpoint: format!("http://{address}{path}"),
        protocol,
        compression: Compression::None,
        headers: BTreeMap::new(),
        timeout: Duration::from_secs(10),
        tls: None,
        auth: Auth::None,
        proxies: Proxies::default(),
    };
    Settings {
        endpoints: vec![endpoint],
        queue: None,
        queue_spans: 100,
        batch_spans: 10,
        batch_bytes: 1 << 20,
        batch_delay: Duration::from_millis(200),
    }
}

/// The same with another endpoint.
pub(super) fn with(mut settings: Settings, change: impl FnOnce(&mut EndpointSettings)) -> Settings {
    change(&mut settings.endpoints[0]);
    settings
}

/// An exporter at work, with its destination.
pub(super) struct Bench {
    queue: Mutex<Option<SpanQueue>>,
    /// The way of spans that SDKs have made.
    pub(super) relay: RelayQueue,
    pub(super) telemetry: Telemetry,
    pub(super) exporter: JoinHandle<()>,
    deadline: watch::Sender<Option<Instant>>,
}

impl Bench {
    pub(super) fn start(settings: &Settings) -> Self {
        let telemetry = Telemetry::default();
        let (queue, exporter) = exporter(settings, &telemetry, || 0.0).unwrap();
        let (deadline, watched) = watch::channel(None);
        let relay = queue.relay(exporter.room());
        Self {
            queue: Mutex::new(Some(queue)),
            relay,
            telemetry,
            exporter: tokio::spawn(exporter.run(watched)),
            deadline,
        }
    }

    pub(super) fn push(&self, numbers: impl IntoIterator<Item = u32>) {
        let shop = process(1, "shop");
        let mut queue = self.queue.lock().unwrap();
        let queue = queue.as_mut().unwrap();
        for number in numbers {
            queue.push(span(&shop, number));
        }
        queue.flush();
    }

    /// Ends as the agent does.
    pub(super) async fn finish(self, within: Duration) -> Telemetry {
        drop(self.queue.lock().unwrap().take());
        self.deadline.send(Some(Instant::now() + within)).unwrap();
        timeout(within + Duration::from_secs(5), self.exporter).await.unwrap().unwrap();
        self.telemetry
    }
}

pub(super) async fn start(destination: &Destination, protocol: Protocol) -> Settings {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = settings(listener.local_addr().unwrap(), protocol);
    serve(destination, protocol, listener);
    settings
}

/// Waits until the exporter has nothing left to do.
pub(super) async fn idle(telemetry: &Telemetry) {
    timeout(Duration::from_secs(30), async {
        while telemetry.queue_length.get() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("the queue does not become empty");
}

#[rstest]
#[tokio::test]
async fn spans_arrive_in_order_and_are_counted(
    #[values(Protocol::Grpc, Protocol::HttpProtobuf)] protocol: Protocol,
    #[values(Compression::None, Compression::Gzip, Compression::Auto)] compression: Compression,
) {
    let destination = Destination::default();
    let settings = with(start(&destination, protocol).await, |endpoint| {
        endpoint.compression = compression;
        endpoint.headers = BTreeMap::from([("X-Scope-OrgID".to_owned(), "home".into())]);
    });
    let bench = Bench::start(&settings);
    bench.push(1..=25);
    let telemetry = bench.finish(Duration::from_secs(5)).await;
    assert_eq!(destination.names(), (1..=25).collect::<Vec<_>>());
    assert_eq!(telemetry.spans_exported.get(), 25);
    assert_eq!(telemetry.queue_length.get(), 0);
    assert_eq!(telemetry.export_requests(RequestOutcome::Accepted).get(), 3);
    let requests = destination.requests.lock().unwrap();
    let headers = &requests[0].1;
    assert_eq!(headers["x-scope-orgid"], "home");
    let encoding = if protocol == Protocol::Grpc { "grpc-encoding" } else { "content-encoding" };
    assert_eq!(headers.contains_key(encoding), compression == Compression::Gzip, "{headers:?}");
}

#[rstest]
#[tokio::test]
async fn a_span_is_sent_soon(#[values(Protocol::Grpc, Protocol::HttpProtobuf)] protocol: Protocol) {
    let destination = Destination::default();
    let bench = Bench::start(&start(&destination, protocol).await);
    let started = Instant::now();
    bench.push([1]);
    idle(&bench.telemetry).await;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!(destination.names(), [1]);
}

#[rstest]
#[case::unavailable(Code::Unavailable, 503, None, Duration::from_millis(100))]
#[case::asked_for(Code::ResourceExhausted, 429, Some(Duration::from_secs(1)), Duration::from_secs(1))]
#[tokio::test]
async fn what_can_be_sent_again_is(
    #[values(Protocol::Grpc, Protocol::HttpProtobuf)] protocol: Protocol,
    #[case] grpc: Code,
    #[case] http: u16,
    #[case] after: Option<Duration>,
    #[case] pause: Duration,
) {
    let destination = Destination::following([Step::Fail { grpc, http, after }]);
    let bench = Bench::start(&start(&destination, protocol).await);
    bench.push(1..=3);
    idle(&bench.telemetry).await;
    assert_eq!(destination.names(), [1, 2, 3]);
    assert!(destination.pause() >= pause, "{:?}", destination.pause());
    assert_eq!(bench.telemetry.export_requests(RequestOutcome::Retried).get(), 1);
    assert_eq!(bench.telemetry.spans_exported.get(), 3);
}

#[rstest]
#[tokio::test]
async fn what_is_refused_is_counted_and_the_next_is_sent(
    #[values(Protocol::Grpc, Protocol::HttpProtobuf)] protocol: Protocol,
) {
    let destination =
        Destination::following([Step::Fail { grpc: Code::InvalidArgument, http: 400, after: None }, Step::Reject(2)]);
    let bench = Bench::start(&start(&destination, protocol).await);
    bench.push(1..=20);
    let telemetry = bench.finish(Duration::from_secs(5)).await;
    assert_eq!(destination.names(), (11..=20).collect::<Vec<_>>());
    assert_eq!(telemetry.spans_dropped(DropCause::Refused).get(), 10);
    assert_eq!(telemetry.spans_dropped(DropCause::Rejected).get(), 2);
    assert_eq!(telemetry.spans_exported.get(), 8);
    assert_eq!(telemetry.export_requests(RequestOutcome::Refused).get(), 1);
}

#[rstest]
#[tokio::test]
async fn an_outage_loses_only_what_does_not_fit(#[values(Protocol::Grpc, Protocol::HttpProtobuf)] protocol: Protocol) {
    // Nobody listens here yet; the address stays ours, because the socket exists.
    let reserved = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    let destination = Destination::default();
    let bench = Bench::start(&settings(address, protocol));
    bench.push(1..=5);
    sleep(Duration::from_millis(300)).await;
    // One batch is under way, the queue takes 100 more.
    bench.push(6..=150);
    let dropped = bench.telemetry.spans_dropped(DropCause::QueueFull).get();
    assert_eq!(dropped, 145 - 100);
    assert!(bench.telemetry.export_requests(RequestOutcome::Retried).get() >= 1);

    serve(&destination, protocol, TcpListener::bind(address).await.unwrap());
    idle(&bench.telemetry).await;
    assert_eq!(destination.names(), (1..=105).collect::<Vec<_>>());
    assert_eq!(bench.telemetry.spans_exported.get(), 105);
}

/// Takes a connection, reads a request and hangs up.
async fn die_in_a_request(listener: &TcpListener, protocol: Protocol) {
    let (mut connection, _) = listener.accept().await.unwrap();
    if protocol == Protocol::Grpc {
        const EMPTY_SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        connection.write_all(&EMPTY_SETTINGS).await.unwrap();
    }
    let mut read = Vec::new();
    // The name of the process is in the body.
    while !read.windows(4).any(|window| window == b"shop") {
        assert!(connection.read_buf(&mut read).await.unwrap() > 0, "the client hung up");
    }
}

#[rstest]
#[tokio::test]
async fn what_an_endpoint_had_taken_when_it_died_is_sent_again(
    #[values(Protocol::Grpc, Protocol::HttpProtobuf)] protocol: Protocol,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bench = Bench::start(&settings(listener.local_addr().unwrap(), protocol));
    bench.push(1..=5);
    timeout(Duration::from_secs(10), die_in_a_request(&listener, protocol)).await.unwrap();
    let destination = Destination::default();
    serve(&destination, protocol, listener);
    idle(&bench.telemetry).await;
    assert_eq!(destination.names(), [1, 2, 3, 4, 5]);
    assert_eq!(bench.telemetry.spans_exported.get(), 5);
    assert!(bench.telemetry.export_requests(RequestOutcome::Retried).get() >= 1);
}

#[rstest]
#[tokio::test]
async fn the_end_waits_no_longer_than_its_deadline(
    #[values(Protocol::Grpc, Protocol::HttpProtobuf)] protocol: Protocol,
) {
    let reserved = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bench = Bench::start(&settings(reserved.local_addr().unwrap(), protocol));
    drop(reserved);
    bench.push(1..=30);
    let started = Instant::now();
    let telemetry = bench.finish(Duration::from_millis(500)).await;
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(telemetry.spans_dropped(DropCause::Shutdown).get(), 30);
    assert_eq!(telemetry.queue_length.get(), 0);
}

#[tokio::test]
async fn the_end_cuts_a_pause_short() {
    let long = Duration::from_mins(2);
    let destination = Destination::following([Step::Fail { grpc: Code::Unavailable, http: 503, after: Some(long) }]);
    let bench = Bench::start(&start(&destination, Protocol::Grpc).await);
    bench.push([1]);
    while bench.telemetry.export_requests(RequestOutcome::Retried).get() == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    let telemetry = bench.finish(Duration::from_secs(5)).await;
    assert_eq!(destination.names(), [1]);
    assert_eq!(telemetry.spans_exported.get(), 1);
}

#[tokio::test]
async fn an_endpoint_that_never_answers_is_given_up() {
    // Accepts connections by its backlog and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let timeout = Duration::from_millis(200);
        let bench = Bench::start(&with(settings(silent.local_addr().unwrap(), protocol), |it| it.timeout = timeout));
        bench.push([1]);
        sleep(Duration::from_millis(900)).await;
        assert!(bench.telemetry.export_requests(RequestOutcome::Retried).get() >= 1, "{protocol:?}");
    }
}

#[rstest]
#[case::no_scheme(
    "127.0.0.1:4317",
    "cannot export to `127.0.0.1:4317`: it must begin with `http://` or `https://` and name a host"
)]
#[case::another_scheme(
    "ftp://tempo:4317",
    "cannot export to `ftp://tempo:4317`: it must begin with `http://` or `https://`"
)]
#[case::nonsense("http://", "cannot export to `http://`: ")]
#[tokio::test]
async fn bad_endpoints_are_named(
    #[values(Protocol::Grpc, Protocol::HttpProtobuf)] protocol: Protocol,
    #[case] endpoint: &str,
    #[case] expected: &str,
) {
    let settings = settings("127.0.0.1:1".parse().unwrap(), protocol);
    let settings = with(settings, |it| endpoint.clone_into(&mut it.endpoint));
    let error = exporter(&settings, &Telemetry::default(), || 0.0).unwrap_err().to_string();
    assert!(error.starts_with(expected), "{error}");
}

#[tokio::test]
async fn bad_headers_are_named_without_their_value() {
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let headers = BTreeMap::from([("authorization".to_owned(), "secret\n".into())]);
        let settings = with(settings("127.0.0.1:1".parse().unwrap(), protocol), |it| it.headers = headers);
        let error = exporter(&settings, &Telemetry::default(), || 0.0).unwrap_err().to_string();
        assert!(error.contains("`authorization`") && !error.contains("secret"), "{error}");
    }
}
