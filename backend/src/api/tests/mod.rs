//! Every endpoint, through the router, on the shop and the job of the query tests.

mod blocks;
mod diff;
mod drilldown;
mod grpc;
mod mcp;
mod metrics;
mod overrides;
mod search;
mod tags;
mod tenants;
mod traces;

use std::io::Read;
use std::sync::Arc;

use axum::body::Body;
use flate2::read::GzDecoder;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use prost::Message;
use rstest::rstest;
use serde_json::Value;
use tower::ServiceExt;

use axum::response::IntoResponse;

use super::*;
use crate::catalog::{Hours, MemoryCatalog, Scope, Seen, TagValue};
use crate::config::ByteSize;
use crate::live::Limits;
use crate::query::fixture;
use crate::tenant::SINGLE_TENANT;

/// The shop started in this second.
const SECOND: u64 = fixture::EPOCH / 1_000_000_000;
const SHOP: &str = "a1b02030405060708090a0b0c0d0e";

fn catalog() -> MemoryCatalog {
    catalog_of(SINGLE_TENANT, SINGLE_TENANT)
}

/// What the shop has is one tenant's, what the job has the other's.
fn catalog_of(of_shop: &str, of_job: &str) -> MemoryCatalog {
    let text = |text: &str| Some(TagValue::String(text.to_owned()));
    let seen = |scope, name: &str, value, hours| Seen { scope, name: name.to_owned(), value, hours };
    let shop = Hours::from_seconds(SECOND, SECOND);
    let job_hours = Hours::from_seconds(SECOND + 3_600, SECOND + 3_600);
    let catalog = MemoryCatalog::default();
    let tags = [
        seen(Scope::Resource, "service.name", text("frontend"), shop),
        seen(Scope::Resource, "service.name", text("cart"), shop),
        seen(Scope::Resource, "region", text("eu"), shop),
        seen(Scope::Span, "http.status_code", Some(TagValue::Int(500)), shop),
        seen(Scope::Span, "http.status_code", Some(TagValue::Int(200)), shop),
        seen(Scope::Span, "http.status_code", text("teapot"), shop),
        seen(Scope::Span, "a/b c", text(""), shop),
        seen(Scope::Event, "exception.message", text("locked"), shop),
        seen(Scope::Intrinsic, "name", text("SELECT"), shop),
        seen(Scope::Intrinsic, "rootServiceName", text("frontend"), shop),
    ];
    catalog.put(of_shop, &tags).unwrap();
    catalog.put(of_job, &[seen(Scope::Resource, "service.name", text("job"), job_hours)]).unwrap();
    catalog
}

fn api_of(tenancy: Tenancy, ready: bool) -> Router {
    let readiness = Readiness::default();
    if ready {
        readiness.set_ready();
    }
    router(ApiState::new(Arc::new(fixture::live()), Arc::new(catalog()), tenancy, readiness, Arc::default()))
}

fn api() -> Router {
    api_of(Tenancy::new(false), true)
}

async fn send(api: Router, request: Request<Body>) -> (StatusCode, http::HeaderMap, Vec<u8>) {
    let response = api.oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    (head.status, head.headers, body.collect().await.unwrap().to_bytes().to_vec())
}

async fn get_with(path: &str, headers: &[(&str, &str)]) -> (StatusCode, http::HeaderMap, Vec<u8>) {
    let request = headers.iter().fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
    send(api(), request.body(Body::empty()).unwrap()).await
}

/// Status, content type and text.
async fn get(path: &str) -> (u16, String, String) {
    let (status, headers, body) = get_with(path, &[]).await;
    let content_type = headers.get("content-type").map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
    (status.as_u16(), content_type, String::from_utf8(body).unwrap())
}

async fn json(path: &str) -> String {
    let (status, content_type, body) = get(path).await;
    assert_eq!((status, content_type.as_str()), (200, "application/json"), "{body}");
    body
}

async fn protobuf<M: Message + Default>(path: &str) -> (M, Vec<u8>) {
    let (status, headers, body) = get_with(path, &[("accept", "application/protobuf")]).await;
    assert_eq!((status, headers["content-type"].to_str().unwrap()), (StatusCode::OK, "application/protobuf"));
    (M::decode(&*body).unwrap(), body)
}

fn encoded(query: &str) -> String {
    query.bytes().fold(String::new(), |all, byte| format!("{all}%{byte:02x}"))
}

async fn search(query: &str, more: &str) -> String {
    json(&format!("/api/search?q={}{more}", encoded(query))).await
}

fn pretty(json: &str) -> String {
    serde_json::to_string_pretty(&serde_json::from_str::<Value>(json).unwrap()).unwrap()
}

// Status.

#[tokio::test]
async fn says_when_it_is_ready() {
    let (status, _, body) = send(api(), Request::get("/ready").body(Body::empty()).unwrap()).await;
    assert_eq!((status, body.as_slice()), (StatusCode::OK, &b"ready"[..]));
    let starting = api_of(Tenancy::new(false), false);
    let (status, ..) = send(starting, Request::get("/ready").body(Body::empty()).unwrap()).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn echoes() {
    assert_eq!(get("/api/echo").await, (200, "text/plain; charset=utf-8".to_owned(), "echo".to_owned()));
}

#[tokio::test]
async fn build_info_has_all_keys_and_a_version_that_unlocks_grafana() {
    let info: Value = serde_json::from_str(&json("/api/status/buildinfo").await).unwrap();
    let keys: Vec<_> = info.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["branch", "buildDate", "buildUser", "goVersion", "revision", "version"]);
    let version: Vec<u32> = info["version"].as_str().unwrap().split('.').map(|part| part.parse().unwrap()).collect();
    assert_eq!(version.len(), 3);
    assert!(version >= vec![2, 10, 0]);
}

#[tokio::test]
async fn shows_its_status_and_metrics() {
    let (status, _, body) = get("/status").await;
    assert!(status == 200 && body.contains("live traces: 2\n"), "{body}");
    let api = api();
    for path in ["/api/echo", "/metrics"] {
        let (status, headers, body) = send(api.clone(), Request::get(path).body(Body::empty()).unwrap()).await;
        assert_eq!(status, StatusCode::OK);
        if path == "/metrics" {
            assert!(headers["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
            let body = String::from_utf8(body).unwrap();
            let count = "tempo_request_duration_seconds_count{method=\"GET\",route=\"api_echo\",status_code=\"200\"} 1";
            assert!(body.contains(count), "{body}");
        }
    }
}

#[tokio::test]
async fn its_paths_are_told_and_all_there() {
    let (status, _, body) = get("/status/endpoints").await;
    assert_eq!((status, body.lines().count()), (200, PATHS.len()));
    for path in body.lines() {
        let (status, _, text) = get(&path.replace("{id}", "1").replace("{*rest}", "a/values")).await;
        assert!(["/api/mcp", "/api/overrides"].contains(&path) || text != "404 page not found", "{path}: {status}");
    }
    assert!(get("/status/version").await.2.contains("Tempo's API, version 2."));
    assert_eq!(get("/status/services").await.2, "coati-backend: Running\n");
}

#[tokio::test]
async fn the_configuration_is_shown_without_secrets() {
    let mut config = Config::default();
    let age = std::time::Duration::from_hours(90 * 24);
    let own = crate::config::TenantRetention { age: Some(age) };
    config.retention.tenants =
        [("a".to_owned(), own), ("b".to_owned(), crate::config::TenantRetention::default())].into();
    config.given = crate::config::Given::of_file(
        "storage: {s3: {bucket: b, secret_key: hidden}}\nretention: {tenants: {a: {age: 90d}}}\n",
    );
    let api = router(blocks::state_of(fixture::live()).with_config(&config));
    let mut all = String::new();
    for path in [
        "/status/config?mode=diff",
        "/status/runtime_config",
        "/status/overrides",
        "/status/overrides/a",
        "/status/overrides/b",
        "/status/usage-stats",
    ] {
        let (status, headers, body) = send(api.clone(), Request::get(path).body(Body::empty()).unwrap()).await;
        assert_eq!((status, headers["content-type"].to_str().unwrap()), (StatusCode::OK, "text/plain; charset=utf-8"));
        all.extend([path, "\n", std::str::from_utf8(&body).unwrap()]);
    }
    insta::assert_snapshot!(all, @r#"
    /status/config?mode=diff
    retention:
      tenants:
        a:
          age: 90d
    storage:
      s3:
        bucket: b
        secret_key: "***"
    /status/runtime_config
    overrides:
      a:
        compaction:
          block_retention: 2160h0m0s
    /status/overrides
    overrides:
      a:
        compaction:
          block_retention: 2160h0m0s
    /status/overrides/a
    overrides:
      a:
        compaction:
          block_retention: 2160h0m0s
    /status/overrides/b
    overrides: {}
    /status/usage-stats
    usage-stats: nothing is collected and nothing is sent
    "#);
    let whole = send(api.clone(), Request::get("/status/config").body(Body::empty()).unwrap()).await.2;
    let whole = String::from_utf8(whole).unwrap();
    assert!(whole.contains("query") && whole.contains("max_trace_bytes") && !whole.contains("hidden"), "{whole}");
    let (status, _, body) = send(api, Request::get("/status/bogus").body(Body::empty()).unwrap()).await;
    assert_eq!((status, body.as_slice()), (StatusCode::NOT_FOUND, &b"404 page not found"[..]));
}

// Errors.

#[rstest]
#[case(
    "/api/search?q=%7B+.a+%3D",
    "invalid TraceQL query: parse error at line 1, col 7: syntax error: unexpected $end, expecting an attribute, an intrinsic or a value"
)]
#[case(
    "/api/search?q=%7B+name+%3D+1+%7D",
    "invalid TraceQL query: binary operations must operate on the same type: name = 1"
)]
#[case("/api/search?q=%7B+parent+%3D+nil+%7D", "invalid TraceQL query: parent not yet supported")]
#[case("/api/search?orderBy=name", "invalid orderBy: name, expecting start, duration or matched")]
#[case("/api/search?orderBy=matched", "invalid orderBy: matched needs a query (q)")]
#[case("/api/search?order=up", "invalid order: up, expecting asc or desc")]
#[case("/api/search?offset=-1", "invalid offset: must be a non-negative number")]
#[case("/api/search?offset=262144", "offset 262144 and limit 20 exceed max limit 262144")]
#[case("/api/search?total=maybe", "invalid total: maybe, expecting true or false")]
#[case("/api/search?q=1+%3C+2", "invalid TraceQL query: scalar filter (1 < 2) not yet supported")]
#[case("/api/search?q=%7B%7D&tags=a%3Db", "invalid request: can't specify tags and q in the same query")]
#[case("/api/search?tags=%3Db", "invalid tags: unexpected '=' at pos 1")]
#[case("/api/search?tags=a%3Db+a%3Dc", "invalid tags: tag a has been set twice")]
#[case("/api/search?limit=0", "invalid limit: must be a positive number")]
#[case("/api/search?limit=-3", "invalid limit: must be a positive number")]
#[case("/api/search?limit=x", "invalid limit: strconv.Atoi: parsing \"x\": invalid syntax")]
#[case("/api/search?limit=300000", "limit 300000 exceeds max limit 262144")]
#[case(
    "/api/search?limit=99999999999999999999",
    "invalid limit: strconv.Atoi: parsing \"99999999999999999999\": value out of range"
)]
#[case("/api/search?spss=101", "spans per span set exceeds 100. received 101")]
#[case("/api/search?spss=-1", "invalid spss: must be a non-negative number")]
#[case("/api/search?start=5&end=4", "http parameter start must be before end. received start=5 end=4")]
#[case("/api/search?start=abc", "invalid start: strconv.ParseInt: parsing \"abc\": invalid syntax")]
#[case("/api/search?end=1767225600000", "invalid end: strconv.ParseInt: parsing \"1767225600000\": value out of range")]
#[case(
    "/api/search?start=1&end=604802",
    "range specified by start and end exceeds 168h0m0s. received start=1 end=604802"
)]
#[case("/api/search?minDuration=5", "invalid minDuration: time: invalid duration \"5\"")]
#[case("/api/search?maxDuration=-5s", "invalid maxDuration: time: invalid duration \"-5s\"")]
#[case("/api/search?minDuration=2s&maxDuration=1s", "invalid maxDuration: must be greater than minDuration")]
#[case("/api/traces/12xz", "trace IDs can only contain hex characters: invalid character 'x' at position 3")]
#[case("/api/v2/traces/12xz", "trace IDs can only contain hex characters: invalid character 'x' at position 3")]
#[case("/api/traces/000a1b02030405060708090a0b0c0d0e0", "trace IDs can't be larger than 128 bits")]
#[case("/api/traces/abc?start=9&end=3", "http parameter start must be before end. received start=9 end=3")]
#[case("/api/traces/abc?start=x", "invalid start: strconv.ParseInt: parsing \"x\": invalid syntax")]
#[case("/api/search/tags?scope=bogus", "invalid scope: bogus")]
#[case("/api/v2/search/tags?scope=bogus", "invalid scope: bogus")]
#[case("/api/v2/search/tags?limit=0", "invalid limit: must be a positive number")]
#[case(
    "/api/v2/search/tag/foo/values",
    "please provide a valid tagName: failed to parse identifier foo: parse error at line 1, col 1: syntax error: \
     unexpected \"foo\", expecting an intrinsic or a value; attributes have a scope: \".foo\", \"span.foo\""
)]
#[tokio::test]
async fn what_is_wrong_is_said_in_plain_text(#[case] path: &str, #[case] text: &str) {
    let (status, content_type, body) = get(path).await;
    // Below it the query is shown, if it was wrong.
    let first = body.lines().next().unwrap().to_owned();
    assert_eq!((status, content_type, first), (400, "text/plain; charset=utf-8".to_owned(), text.to_owned()));
}

#[rstest]
#[case::search("/api/search?q=%7B+nmae+%3D+1+%7D", "{ nmae = 1 }\n  ^")]
#[case::metrics("/api/metrics/query_range?q=%7B+nmae+%3D+1+%7D", "{ nmae = 1 }\n  ^")]
#[case::types("/api/metrics/query?q=%7B+.a+%26%26+name+%3D+1+%7D%7Crate()", "{ .a && name = 1 }|rate()\n        ^")]
#[case::identifier("/api/v2/search/tag/resorce.a/values", "resorce.a\n^")]
#[tokio::test]
async fn a_caret_shows_where_the_query_is_wrong(#[case] path: &str, #[case] shown: &str) {
    let (status, _, body) = get(path).await;
    assert!(status == 400 && body.ends_with(&format!("\n{shown}")), "{status} {body}");
}

// Limits.

fn limited(limits: QueryConfig) -> Router {
    let readiness = Readiness::default();
    let (live, catalog) = (Arc::new(fixture::live()), Arc::new(catalog()));
    router(ApiState::new(live, catalog, Tenancy::new(false), readiness, Arc::default()).with_limits(limits))
}

#[tokio::test]
async fn an_answer_that_takes_too_much_memory_is_refused() {
    let api = limited(QueryConfig { max_answer_bytes: ByteSize(100), ..QueryConfig::default() });
    let (status, _, body) = send(api.clone(), Request::get("/api/search?q=%7B%7D").body(Body::empty()).unwrap()).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{}", String::from_utf8_lossy(&body));
}

#[tokio::test]
async fn a_metrics_query_that_takes_too_much_memory_is_partial() {
    let api = limited(QueryConfig { max_metrics_bytes: ByteSize(1), ..QueryConfig::default() });
    let path = format!("/api/metrics/query?q=%7B%7D%7Crate()by(name)&start={SECOND}&end={}", SECOND + 1);
    let (status, _, body) = send(api, Request::get(path).body(Body::empty()).unwrap()).await;
    let body = String::from_utf8(body).unwrap();
    assert!(status == StatusCode::OK && body.contains("\"status\":\"PARTIAL\""), "{status} {body}");
}

#[tokio::test]
async fn a_query_that_takes_too_long_is_refused() {
    let state = blocks::state_of(fixture::live());
    let state =
        state.with_limits(QueryConfig { max_duration: std::time::Duration::from_millis(1), ..QueryConfig::default() });
    let job = state.run(|state, work| {
        state.query(&SINGLE_TENANT.into(), work, |_| {
            while !work.stop().load(std::sync::atomic::Ordering::Relaxed) {
                std::thread::yield_now();
            }
            Ok::<_, ApiError>(())
        })
    });
    let error = job.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "query takes longer than 1ms: narrow its time range, or ask for less");
    assert_eq!(error.into_response().status(), StatusCode::GATEWAY_TIMEOUT);
}

#[tokio::test]
async fn a_query_whose_turn_does_not_come_is_refused() {
    let limits = QueryConfig { max_duration: std::time::Duration::from_millis(1), ..QueryConfig::default() };
    let state = blocks::state_of(fixture::live()).with_limits(limits);
    let _all = state.permits.acquire_many(u32::try_from(state.permits.available_permits()).unwrap()).await.unwrap();
    let error = state.run(|_, _| ()).await.unwrap_err();
    assert_eq!(error.to_string(), "too many queries run at the moment");
    assert_eq!(error.into_response().status(), StatusCode::TOO_MANY_REQUESTS);
}

#[rstest]
#[case("/")]
#[case("/api")]
#[case("/api/unknown")]
#[case("/api/traces/")]
#[case("/api/metrics/summary")]
#[case("/status/unknown")]
#[case("/api/search/tag/foo")]
#[case("/api/v2/search/tag/.foo/value")]
#[tokio::test]
async fn unknown_paths(#[case] path: &str) {
    assert_eq!(get(path).await, (404, "text/plain; charset=utf-8".to_owned(), "404 page not found".to_owned()));
}

#[rstest]
#[case(Method::POST)]
#[case(Method::PUT)]
#[case(Method::DELETE)]
#[case(Method::OPTIONS)]
#[tokio::test]
async fn any_method_is_accepted(#[case] method: Method) {
    for path in ["/api/search?limit=1", "/api/traces/a1b02030405060708090a0b0c0d0e", "/api/v2/search/tags", "/api/echo"]
    {
        let request = Request::builder().method(method.clone()).uri(path).body(Body::from("ignored")).unwrap();
        assert_eq!(send(api(), request).await.0, StatusCode::OK, "{path}");
    }
}

// Form of the answer.

#[tokio::test]
async fn long_answers_are_compressed_for_those_who_ask() {
    let path = format!("/api/v2/traces/{SHOP}");
    let (_, headers, plain) = get_with(&path, &[]).await;
    assert_eq!(headers.get("content-encoding"), None);
    let (status, headers, packed) = get_with(&path, &[("accept-encoding", "gzip, deflate")]).await;
    assert_eq!((status, headers["content-encoding"].to_str().unwrap()), (StatusCode::OK, "gzip"));
    assert!(packed.len() < plain.len() / 2);
    let mut unpacked = Vec::new();
    GzDecoder::new(&*packed).read_to_end(&mut unpacked).unwrap();
    assert_eq!(unpacked, plain);
    let (_, headers, short) = get_with("/api/v2/traces/abc", &[("accept-encoding", "gzip")]).await;
    assert_eq!((headers.get("content-encoding"), short.as_slice()), (None, &br#"{"trace":{},"metrics":{}}"#[..]));
}

// Tenants.

#[tokio::test]
async fn tenants_see_their_own_traces_only() {
    let api = api_of(Tenancy::new(true), true);
    let request = |tenant: Option<&str>| {
        let request = Request::get(format!("/api/traces/{SHOP}"));
        let request = tenant.into_iter().fold(request, |request, tenant| request.header("X-Scope-OrgID", tenant));
        send(api.clone(), request.body(Body::empty()).unwrap())
    };
    assert_eq!(request(Some("single-tenant")).await.0, StatusCode::OK);
    assert_eq!(request(Some("other")).await.0, StatusCode::NOT_FOUND);
    assert_eq!(request(Some("a b")).await.0, StatusCode::BAD_REQUEST);
    let (status, _, body) = request(None).await;
    assert_eq!((status, body.as_slice()), (StatusCode::UNAUTHORIZED, &b"no org id"[..]));
}

#[tokio::test]
async fn without_tenants_the_header_is_ignored() {
    let (status, ..) = get_with(&format!("/api/traces/{SHOP}"), &[("X-Scope-OrgID", "other")]).await;
    assert_eq!(status, StatusCode::OK);
}

// Work.

#[tokio::test]
async fn a_query_whose_client_left_is_told_so() {
    let state = ApiState::new(
        Arc::new(LiveSet::new(Limits::default())),
        Arc::new(MemoryCatalog::default()),
        Tenancy::new(false),
        Readiness::default(),
        Arc::default(),
    );
    let (started, wait_started) = tokio::sync::oneshot::channel();
    let (stopped, wait_stopped) = tokio::sync::oneshot::channel();
    let query = tokio::spawn(async move {
        let job = state.run(move |_, work| {
            started.send(()).unwrap();
            while !work.stop().load(std::sync::atomic::Ordering::Relaxed) {
                std::thread::yield_now();
            }
            stopped.send(()).unwrap();
        });
        job.await
    });
    wait_started.await.unwrap();
    query.abort();
    wait_stopped.await.unwrap();
}
