//! `tempopb.StreamingQuerier`, called by tonic's client over a real connection.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use tokio::net::TcpListener;
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use super::*;
use crate::api::tempopb::{
    QueryInstantRequest, QueryInstantResponse, QueryRangeRequest, QueryRangeResponse, SearchRequest, SearchResponse,
    SearchTagValuesRequest, SearchTagValuesResponse, SearchTagValuesV2Response, SearchTagsRequest, SearchTagsResponse,
    SearchTagsV2Response,
};
use crate::live::TraceId;

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// All messages of an answer. Larger ones than 4 MiB the client refuses.
async fn call_as<In, Out>(
    address: SocketAddr,
    method: &str,
    message: In,
    tenant: Option<&str>,
) -> Result<Vec<Out>, Status>
where
    In: Message + Send + Sync + 'static,
    Out: Message + Default + Send + Sync + 'static,
{
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut client = Grpc::new(channel);
    client.ready().await.unwrap();
    let path = format!("/tempopb.StreamingQuerier/{method}").parse().unwrap();
    let mut request = tonic::Request::new(message);
    if let Some(tenant) = tenant {
        request.metadata_mut().insert("x-scope-orgid", MetadataValue::try_from(tenant).unwrap());
    }
    let codec = ProstCodec::<In, Out>::default();
    let mut stream = client.server_streaming(request, path, codec).await?.into_inner();
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        messages.push(message);
    }
    Ok(messages)
}

async fn call<In, Out>(method: &str, message: In) -> Result<Vec<Out>, Status>
where
    In: Message + Send + Sync + 'static,
    Out: Message + Default + Send + Sync + 'static,
{
    call_as(serve(api()).await, method, message, None).await
}

fn nanos(seconds: u64) -> u64 {
    seconds * 1_000_000_000
}

#[tokio::test]
async fn a_search_finds_what_http_finds() {
    let asked = SearchRequest {
        query: "{} | count() > 1".to_owned(),
        limit: 20,
        spans_per_span_set: 2,
        ..SearchRequest::default()
    };
    let messages: Vec<SearchResponse> = call("Search", asked).await.unwrap();
    let path = format!("/api/search?q={}&limit=20&spss=2", encoded("{} | count() > 1"));
    let (over_http, _) = protobuf::<SearchResponse>(&path).await;
    let traces: Vec<_> = messages.iter().flat_map(|message| message.traces.clone()).collect();
    assert_eq!(traces, over_http.traces);
    assert_eq!(messages.last().unwrap().metrics, over_http.metrics);
    assert!(messages.iter().all(|message| message.metrics.is_some()));
}

/// What Grafana asks to find out whether streaming works.
#[tokio::test]
async fn the_test_of_the_data_source() {
    let asked = SearchRequest {
        query: "{}".to_owned(),
        start: SECOND as u32 - 900,
        end: SECOND as u32 + 900,
        limit: 1,
        ..SearchRequest::default()
    };
    let messages: Vec<SearchResponse> = call("Search", asked).await.unwrap();
    assert_eq!(messages.iter().map(|message| message.traces.len()).sum::<usize>(), 1);
}

#[tokio::test]
async fn nothing_found_is_a_message_too() {
    let asked = SearchRequest { query: "{ .nope = 1 }".to_owned(), ..SearchRequest::default() };
    let messages: Vec<SearchResponse> = call("Search", asked).await.unwrap();
    assert_eq!(messages.len(), 1);
    let metrics = messages[0].metrics.unwrap();
    assert_eq!((metrics.completed_jobs, metrics.total_jobs), (1, 1));
}

#[tokio::test]
async fn the_old_search_works() {
    let tags = BTreeMap::from([("service.name".to_owned(), "cart".to_owned())]);
    let asked = SearchRequest { tags, min_duration_ms: 400, max_duration_ms: 600, ..SearchRequest::default() };
    let messages: Vec<SearchResponse> = call("Search", asked.clone()).await.unwrap();
    assert_eq!(messages[0].traces[0].trace_id, SHOP);
    let none = SearchRequest { min_duration_ms: 501, max_duration_ms: 0, ..asked };
    let messages: Vec<SearchResponse> = call("Search", none).await.unwrap();
    assert_eq!(messages.iter().map(|message| message.traces.len()).sum::<usize>(), 0);
}

/// A live set of so many traces, a millisecond after each other, with a name as long as given.
fn many(traces: u64, name_bytes: usize) -> LiveSet {
    let live = LiveSet::new(Limits { total_bytes: 1 << 30, trace_bytes: 1 << 30 });
    for number in 0..traces {
        let mut id = [7; 16];
        id[8..].copy_from_slice(&number.to_be_bytes());
        let span = fixture::span(TraceId(id), 1, 0, &"n".repeat(name_bytes), number, 1);
        let resource_spans = vec![fixture::service("s", &[], "l", vec![span])];
        live.insert(
            SINGLE_TENANT,
            crate::live::group_message(&ExportTraceServiceRequest { resource_spans }),
            fixture::EPOCH,
            0,
        );
    }
    live
}

async fn serve_live(live: LiveSet) -> SocketAddr {
    let state =
        ApiState::new(Arc::new(live), Arc::new(catalog()), Tenancy::new(false), Readiness::default(), Arc::default());
    serve(router(state)).await
}

#[tokio::test]
async fn long_results_come_in_several_messages_and_every_trace_once() {
    let address = serve_live(many(9_000, 10)).await;
    let asked = SearchRequest { query: "{}".to_owned(), limit: 8_500, ..SearchRequest::default() };
    let messages: Vec<SearchResponse> = call_as(address, "Search", asked, None).await.unwrap();
    let progress: Vec<_> =
        messages.iter().map(|m| m.metrics.unwrap()).map(|m| (m.completed_jobs, m.total_jobs)).collect();
    assert!(progress.len() >= 4 && progress.is_sorted(), "{progress:?}");
    assert_eq!((progress[0], progress[progress.len() - 1]), ((1, 3), (3, 3)));
    let starts: Vec<_> =
        messages.iter().flat_map(|message| &message.traces).map(|trace| trace.start_time_unix_nano).collect();
    assert_eq!(starts.len(), 8_500);
    assert!(starts.windows(2).all(|pair| pair[0] > pair[1]));
}

#[tokio::test]
async fn messages_are_smaller_than_four_mebibytes() {
    let address = serve_live(many(12, 900_000)).await;
    let asked = SearchRequest { query: "{} | select(name)".to_owned(), limit: 12, ..SearchRequest::default() };
    let messages: Vec<SearchResponse> = call_as(address, "Search", asked, None).await.unwrap();
    assert_eq!(messages.iter().map(|message| message.traces.len()).sum::<usize>(), 12);
    assert!(messages.iter().all(|message| message.encoded_len() <= 4 << 20));
    // One trace that is larger alone loses spans, not itself.
    let address = serve_live(many(1, 5_000_000)).await;
    let asked = SearchRequest { query: "{} | select(name)".to_owned(), ..SearchRequest::default() };
    let messages: Vec<SearchResponse> = call_as(address, "Search", asked, None).await.unwrap();
    let found = messages.iter().flat_map(|message| &message.traces).collect::<Vec<_>>();
    assert_eq!((found.len(), found[0].span_sets[0].matched, found[0].span_sets[0].spans.len()), (1, 1, 0));
}

#[tokio::test]
async fn tags_and_values() {
    let asked = || SearchTagsRequest { scope: "resource".to_owned(), ..SearchTagsRequest::default() };
    let names: Vec<SearchTagsResponse> = call("SearchTags", asked()).await.unwrap();
    assert_eq!(names[0].tag_names, ["region", "service.name"]);
    let limited = SearchTagsRequest { max_tags_per_scope: 1, ..asked() };
    let scopes: Vec<SearchTagsV2Response> = call("SearchTagsV2", limited).await.unwrap();
    assert_eq!(scopes[0].scopes[0].tags, ["region"]);
    let asked = SearchTagValuesRequest {
        tag_name: "service.name".to_owned(),
        start: SECOND as u32,
        end: SECOND as u32 + 1,
        ..SearchTagValuesRequest::default()
    };
    let values: Vec<SearchTagValuesResponse> = call("SearchTagValues", asked).await.unwrap();
    assert_eq!(values[0].tag_values, ["cart", "frontend"]);
    let asked = SearchTagValuesRequest {
        tag_name: "resource.service.name".to_owned(),
        query: "{ status = error }".to_owned(),
        ..SearchTagValuesRequest::default()
    };
    let values: Vec<SearchTagValuesV2Response> = call("SearchTagValuesV2", asked).await.unwrap();
    let shown: Vec<_> = values[0].tag_values.iter().map(|value| (&*value.r#type, &*value.value)).collect();
    assert_eq!(shown, [("string", "cart")]);
    assert!(values[0].metrics.is_some() && names[0].metrics.is_some() && scopes[0].metrics.is_some());
}

#[tokio::test]
async fn metrics() {
    let asked = QueryRangeRequest {
        query: "{} | rate() by(name)".to_owned(),
        start: nanos(SECOND),
        end: nanos(SECOND + 1),
        step: 500_000_000,
        exemplars: 3,
        ..QueryRangeRequest::default()
    };
    let messages: Vec<QueryRangeResponse> = call("MetricsQueryRange", asked.clone()).await.unwrap();
    let path = format!(
        "/api/metrics/query_range?q={}&start={SECOND}&end={}&step=500ms&exemplars=3",
        encoded(&asked.query),
        SECOND + 1
    );
    assert_eq!(messages, [protobuf::<QueryRangeResponse>(&path).await.0]);
    // A step of 0 is one that suits the range.
    let without_step = QueryRangeRequest { step: 0, max_series: 2, ..asked };
    let messages: Vec<QueryRangeResponse> = call("MetricsQueryRange", without_step).await.unwrap();
    assert_eq!((messages[0].series.len(), messages[0].status), (2, 1));
    let asked = QueryInstantRequest {
        query: "{} | count_over_time()".to_owned(),
        start: nanos(SECOND),
        end: nanos(SECOND + 1),
    };
    let messages: Vec<QueryInstantResponse> = call("MetricsQueryInstant", asked).await.unwrap();
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].series[0].value.to_bits(), 6f64.to_bits());
    assert!(messages[0].metrics.is_some());
}

#[tokio::test]
async fn many_series_come_in_several_messages() {
    let address = serve_live({
        let live = many(0, 0);
        for number in 0..400 {
            let mut id = [7; 16];
            id[..2].copy_from_slice(&u16::to_be_bytes(number));
            let span = fixture::span(TraceId(id), 1, 0, &format!("name {number}"), 100, 1);
            let resource_spans = vec![fixture::service("s", &[], "l", vec![span])];
            let request = ExportTraceServiceRequest { resource_spans };
            live.insert(SINGLE_TENANT, crate::live::group_message(&request), fixture::EPOCH, 0);
        }
        live
    })
    .await;
    let asked = QueryRangeRequest {
        query: "{} | rate() by(name)".to_owned(),
        start: nanos(SECOND),
        end: nanos(SECOND + 1_000),
        step: 1_000_000_000,
        ..QueryRangeRequest::default()
    };
    let messages: Vec<QueryRangeResponse> = call_as(address, "MetricsQueryRange", asked, None).await.unwrap();
    assert!(messages.len() > 2, "{}", messages.len());
    assert_eq!(messages.iter().map(|message| message.series.len()).sum::<usize>(), 400);
    assert!(messages.iter().all(|message| message.metrics.is_some() && message.encoded_len() <= 4 << 20));
}

#[tokio::test]
async fn what_is_wrong_becomes_a_status() {
    let of = |result: Result<Vec<SearchResponse>, Status>| {
        let status = result.unwrap_err();
        (status.code(), status.message().to_owned())
    };
    let broken = SearchRequest { query: "{ .a = }".to_owned(), ..SearchRequest::default() };
    let (code, text) = of(call("Search", broken).await);
    assert_eq!(code, Code::InvalidArgument);
    assert!(text.starts_with("invalid TraceQL query: parse error at line 1, col 8: "), "{text}");
    let long = QueryRangeRequest {
        query: "{} | rate()".to_owned(),
        start: 1,
        end: nanos(86_402),
        ..QueryRangeRequest::default()
    };
    let text = "metrics query time range exceeds the maximum allowed duration of 24h0m0s";
    let status = call::<_, QueryRangeResponse>("MetricsQueryRange", long).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, text));
    let (code, _) = of(call("Find", SearchRequest::default()).await);
    assert_eq!(code, Code::Unimplemented);
}

#[tokio::test]
async fn tenants_are_in_the_metadata() {
    let address = serve(api_of(Tenancy::new(true), true)).await;
    let ask = async |tenant: Option<&str>| {
        let result = call_as::<_, SearchResponse>(address, "Search", SearchRequest::default(), tenant).await;
        result.map(|messages| messages.iter().map(|message| message.traces.len()).sum::<usize>()).map_err(|s| s.code())
    };
    assert_eq!(ask(Some(SINGLE_TENANT)).await, Ok(2));
    assert_eq!(ask(Some("other")).await, Ok(0));
    assert_eq!(ask(Some("a b")).await, Err(Code::InvalidArgument));
    assert_eq!(ask(None).await, Err(Code::Unauthenticated));
}

/// Grafana dials the port at once, and goes on asking over HTTP/1.1.
#[tokio::test]
async fn http_1_is_spoken_on_the_same_port() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = serve(api()).await;
    let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
    connection.write_all(b"GET /api/echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("echo"), "{answer}");
    let asked = SearchRequest { query: "{}".to_owned(), ..SearchRequest::default() };
    assert!(call_as::<_, SearchResponse>(address, "Search", asked, None).await.is_ok());
    let request = Request::post("/tempopb.StreamingQuerier/Search").body(Body::empty()).unwrap();
    assert_eq!(send(api(), request).await.0, StatusCode::HTTP_VERSION_NOT_SUPPORTED);
}
