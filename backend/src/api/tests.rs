//! Every endpoint, through the router, on the shop and the job of the query tests.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Arc;

use axum::body::Body;
use flate2::read::GzDecoder;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use opentelemetry_proto::tonic::trace::v1::TracesData;
use prost::Message;
use rstest::rstest;
use serde_json::Value;
use tower::ServiceExt;

use super::tempopb::{SearchResponse, SearchTagValuesV2Response, SearchTagsV2Response, TraceByIdResponse};
use super::*;
use crate::catalog::{Hours, MemoryCatalog, Scope, Seen, TagValue};
use crate::live::Limits;
use crate::query::fixture;
use crate::tenant::SINGLE_TENANT;

/// The shop started in this second.
const SECOND: u64 = fixture::EPOCH / 1_000_000_000;
const SHOP: &str = "a1b02030405060708090a0b0c0d0e";

fn catalog() -> MemoryCatalog {
    let text = |text: &str| Some(TagValue::String(text.to_owned()));
    let seen = |scope, name: &str, value, hours| Seen { scope, name: name.to_owned(), value, hours };
    let shop = Hours::from_seconds(SECOND, SECOND);
    let job = Hours::from_seconds(SECOND + 3_600, SECOND + 3_600);
    let catalog = MemoryCatalog::default();
    let tags = [
        seen(Scope::Resource, "service.name", text("frontend"), shop),
        seen(Scope::Resource, "service.name", text("cart"), shop),
        seen(Scope::Resource, "service.name", text("job"), job),
        seen(Scope::Resource, "region", text("eu"), shop),
        seen(Scope::Span, "http.status_code", Some(TagValue::Int(500)), shop),
        seen(Scope::Span, "http.status_code", Some(TagValue::Int(200)), shop),
        seen(Scope::Span, "http.status_code", text("teapot"), shop),
        seen(Scope::Span, "a/b c", text(""), shop),
        seen(Scope::Event, "exception.message", text("locked"), shop),
        seen(Scope::Intrinsic, "name", text("SELECT"), shop),
        seen(Scope::Intrinsic, "rootServiceName", text("frontend"), shop),
    ];
    catalog.put(SINGLE_TENANT, &tags).unwrap();
    catalog
}

fn api_of(tenancy: Tenancy, ready: bool) -> Router {
    let readiness = Readiness::default();
    readiness.set(ready);
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
            let count =
                "tempo_request_duration_seconds_count{method=\"GET\",route=\"/api/echo\",status_code=\"200\"} 1";
            assert!(body.contains(count), "{body}");
        }
    }
}

// Traces.

#[tokio::test]
async fn a_trace_as_json() {
    insta::assert_snapshot!(pretty(&json("/api/v2/traces/ffffffffffffffffffffffffffffffff").await).replace(
        &fixture::live().trace(SINGLE_TENANT, &fixture::JOB).unwrap().bytes.to_string(), "[bytes]"
    ), @r#"
    {
      "metrics": {
        "inspectedBytes": "[bytes]"
      },
      "trace": {
        "resourceSpans": [
          {
            "resource": {
              "attributes": [
                {
                  "key": "service.name",
                  "value": {
                    "stringValue": "job"
                  }
                }
              ]
            },
            "scopeSpans": [
              {
                "scope": {
                  "attributes": [
                    {
                      "key": "library.kind",
                      "value": {
                        "stringValue": "http"
                      }
                    }
                  ],
                  "name": "cron",
                  "version": "1.2"
                },
                "spans": [
                  {
                    "endTimeUnixNano": "1767229200020000000",
                    "name": "step",
                    "parentSpanId": "AAAAAAAAAGM=",
                    "spanId": "AAAAAAAAAAc=",
                    "startTimeUnixNano": "1767229200000000000",
                    "status": {},
                    "traceId": "/////////////////////w=="
                  },
                  {
                    "endTimeUnixNano": "1767229200015000000",
                    "name": "inner",
                    "parentSpanId": "AAAAAAAAAAc=",
                    "spanId": "AAAAAAAAAAg=",
                    "startTimeUnixNano": "1767229200005000000",
                    "status": {},
                    "traceId": "/////////////////////w=="
                  }
                ]
              }
            ]
          }
        ]
      }
    }
    "#);
}

#[tokio::test]
async fn a_span_as_json_has_everything_that_was_sent() {
    let trace: Value = serde_json::from_str(&json(&format!("/api/traces/{SHOP}")).await).unwrap();
    let spans = &trace["batches"][1]["scopeSpans"][0]["spans"];
    insta::assert_snapshot!(serde_json::to_string_pretty(&spans[1]).unwrap(), @r#"
    {
      "attributes": [
        {
          "key": "db.rows",
          "value": {
            "intValue": "7"
          }
        },
        {
          "key": "cached",
          "value": {
            "boolValue": true
          }
        }
      ],
      "endTimeUnixNano": "1767225600130000000",
      "events": [
        {
          "attributes": [
            {
              "key": "exception.message",
              "value": {
                "stringValue": "locked"
              }
            },
            {
              "key": "code",
              "value": {
                "intValue": "40"
              }
            }
          ],
          "name": "exception",
          "timeUnixNano": "1767225600035000000"
        },
        {
          "name": "retry",
          "timeUnixNano": "1767225600080000000"
        }
      ],
      "kind": "SPAN_KIND_CLIENT",
      "links": [
        {
          "attributes": [
            {
              "key": "why",
              "value": {
                "stringValue": "batch"
              }
            }
          ],
          "spanId": "CQkJCQkJCQk=",
          "traceId": "/////////////////////w=="
        }
      ],
      "name": "SELECT",
      "parentSpanId": "AAAAAAAAAAM=",
      "spanId": "AAAAAAAAAAQ=",
      "startTimeUnixNano": "1767225600030000000",
      "status": {},
      "traceId": "AAobAgMEBQYHCAkKCwwNDg=="
    }
    "#);
    assert_eq!(spans[0]["status"].to_string(), r#"{"code":"STATUS_CODE_ERROR","message":"no stock"}"#);
    let attributes = spans[2]["attributes"].to_string();
    let expected = concat!(
        r#"[{"key":"db.rows","value":{"intValue":"3"}},{"key":"ratio","value":{"doubleValue":0.5}},"#,
        r#"{"key":"raw","value":{"bytesValue":"AQI="}},"#,
        r#"{"key":"map","value":{"kvlistValue":{"values":[{"key":"x","value":{"intValue":"1"}}]}}}]"#
    );
    assert_eq!(attributes, expected);
}

#[tokio::test]
async fn the_first_version_calls_its_list_batches() {
    let first: Value = serde_json::from_str(&json(&format!("/api/traces/{SHOP}")).await).unwrap();
    let second: Value = serde_json::from_str(&json(&format!("/api/v2/traces/{SHOP}")).await).unwrap();
    assert_eq!(first.as_object().unwrap().keys().collect::<Vec<_>>(), ["batches"]);
    assert_eq!(first["batches"], second["trace"]["resourceSpans"]);
    assert_eq!(first["batches"].as_array().unwrap().len(), 2);
}

/// What Grafana looks into without asking whether it is there.
#[tokio::test]
async fn a_trace_as_protobuf_has_all_its_messages() {
    let (answer, _) = protobuf::<TraceByIdResponse>(&format!("/api/v2/traces/{SHOP}")).await;
    let (data, _) = protobuf::<TracesData>(&format!("/api/traces/{SHOP}")).await;
    assert_eq!(answer.trace.as_ref(), Some(&data));
    let mut spans = 0;
    for resource_spans in &data.resource_spans {
        assert!(resource_spans.resource.is_some());
        for scope_spans in &resource_spans.scope_spans {
            assert!(scope_spans.scope.is_some());
            for span in &scope_spans.spans {
                assert!(span.status.is_some(), "{}", span.name);
                spans += 1;
            }
        }
    }
    assert_eq!(spans, 6);
    let mut sent = fixture::shop();
    for span in sent.iter_mut().flat_map(|r| &mut r.scope_spans).flat_map(|s| &mut s.spans) {
        span.status.get_or_insert_default();
    }
    assert_eq!(data.resource_spans, sent);
}

#[tokio::test]
async fn a_trace_that_is_not_there() {
    assert_eq!(get("/api/traces/abc").await, (404, String::new(), String::new()));
    assert_eq!(json("/api/v2/traces/abc").await, r#"{"trace":{},"metrics":{}}"#);
    let (answer, bytes) = protobuf::<TraceByIdResponse>("/api/v2/traces/abc").await;
    assert_eq!(bytes, [0x0a, 0, 0x12, 0]);
    assert_eq!(answer.trace, Some(TracesData::default()));
}

#[rstest]
#[case::whole("000a1b02030405060708090a0b0c0d0e")]
#[case::as_search_prints_it(SHOP)]
#[case::capitals("A1B02030405060708090A0B0C0D0E")]
#[case::with_times("a1b02030405060708090a0b0c0d0e?start=1&end=2")]
#[tokio::test]
async fn ids_are_read_with_and_without_zeros(#[case] id: &str) {
    assert_eq!(get(&format!("/api/traces/{id}")).await.0, 200);
}

// Search.

#[tokio::test]
async fn a_search_as_json() {
    let body = search("{ status = error && .http.status_code > 400 } | select(name, resource.service.name)", "").await;
    let bytes = fixture::live().snapshot(SINGLE_TENANT).iter().map(|trace| trace.bytes).sum::<usize>();
    insta::assert_snapshot!(pretty(&body).replace(&bytes.to_string(), "[bytes]"), @r#"
    {
      "metrics": {
        "completedJobs": 1,
        "inspectedBytes": "[bytes]",
        "inspectedSpans": "8",
        "inspectedTraces": 2,
        "totalJobs": 1
      },
      "traces": [
        {
          "durationMs": 500,
          "rootServiceName": "frontend",
          "rootTraceName": "GET /cart",
          "serviceStats": {
            "cart": {
              "errorCount": 1,
              "spanCount": 3
            },
            "frontend": {
              "spanCount": 3
            }
          },
          "spanSet": {
            "matched": 1,
            "spans": [
              {
                "attributes": [
                  {
                    "key": "status",
                    "value": {
                      "stringValue": "error"
                    }
                  },
                  {
                    "key": "http.status_code",
                    "value": {
                      "intValue": "500"
                    }
                  },
                  {
                    "key": "service.name",
                    "value": {
                      "stringValue": "cart"
                    }
                  }
                ],
                "durationNanos": "370000000",
                "name": "GET /items",
                "spanID": "0000000000000003",
                "startTimeUnixNano": "1767225600020000000"
              }
            ]
          },
          "spanSets": [
            {
              "matched": 1,
              "spans": [
                {
                  "attributes": [
                    {
                      "key": "status",
                      "value": {
                        "stringValue": "error"
                      }
                    },
                    {
                      "key": "http.status_code",
                      "value": {
                        "intValue": "500"
                      }
                    },
                    {
                      "key": "service.name",
                      "value": {
                        "stringValue": "cart"
                      }
                    }
                  ],
                  "durationNanos": "370000000",
                  "name": "GET /items",
                  "spanID": "0000000000000003",
                  "startTimeUnixNano": "1767225600020000000"
                }
              ]
            }
          ],
          "startTimeUnixNano": "1767225600000000000",
          "traceID": "a1b02030405060708090a0b0c0d0e"
        }
      ]
    }
    "#);
}

#[tokio::test]
async fn a_search_without_a_query_shows_no_spans() {
    let body = json("/api/search").await;
    let traces = body.split_once(",\"metrics\"").unwrap().0;
    insta::assert_snapshot!(traces, @r#"{"traces":[{"traceID":"ffffffffffffffffffffffffffffffff","rootServiceName":"<root span not yet received>","startTimeUnixNano":"1767229200000000000","durationMs":20},{"traceID":"a1b02030405060708090a0b0c0d0e","rootServiceName":"frontend","rootTraceName":"GET /cart","startTimeUnixNano":"1767225600000000000","durationMs":500}]"#);
    let tagged = json(&format!("/api/search?tags={}", encoded("service.name=cart http.status_code=500"))).await;
    assert!(tagged.contains(SHOP) && !tagged.contains("spanSet") && !tagged.contains("serviceStats"), "{tagged}");
}

#[tokio::test]
async fn nothing_found_is_an_empty_list() {
    let body = search("{ .nope = 1 }", "").await;
    assert!(body.starts_with(r#"{"traces":[],"metrics":{"#), "{body}");
}

#[tokio::test]
async fn a_search_as_protobuf_is_the_same() {
    let query = encoded("{} | by(resource.service.name) | count() > 1");
    let (answer, _) = protobuf::<SearchResponse>(&format!("/api/search?q={query}")).await;
    assert_eq!(answer.traces.len(), 2);
    let shop = &answer.traces[1];
    assert_eq!(shop.trace_id, SHOP);
    assert_eq!(shop.span_sets.len(), 2);
    assert_eq!(shop.span_set.as_ref(), shop.span_sets.first());
    assert_eq!(shop.service_stats["cart"].error_count, 1);
    assert!(answer.metrics.is_some());
}

/// Grafana refuses an answer that has any other field.
#[rstest]
#[case("{ status = error && .http.status_code > 400 || event:name != nil } | select(name, resource.service.name)")]
#[case("{} | by(kind) | count() > 0 | avg(duration) > 1ns")]
#[case(
    "{ span:id != \"\" && trace:id != \"\" && span:parentID != \"\" && .raw != nil && .map != nil || .retries != nil }"
)]
#[tokio::test]
async fn a_search_has_no_field_that_clients_do_not_know(#[case] query: &str) {
    let answer: Value = serde_json::from_str(&search(query, "").await).unwrap();
    let mut fields = BTreeSet::new();
    collect_fields("", &answer, &mut fields);
    let known = [
        ": metrics traces",
        ".metrics: completedJobs inspectedBytes inspectedSpans inspectedTraces totalBlockBytes totalBlocks totalJobs",
        ".traces: durationMs rootServiceName rootTraceName serviceStats spanSet spanSets startTimeUnixNano traceID",
        ".traces.serviceStats.*: errorCount spanCount",
        ".traces.spanSet: attributes matched spans",
        ".traces.spanSets: attributes matched spans",
        ".traces.spanSet.spans: attributes durationNanos name spanID startTimeUnixNano",
        ".traces.spanSets.spans: attributes durationNanos name spanID startTimeUnixNano",
    ];
    let known: BTreeSet<String> = known
        .iter()
        .flat_map(|line| {
            let (path, names) = line.split_once(": ").unwrap();
            names.split(' ').map(move |name| format!("{path}.{name}"))
        })
        .collect();
    // What is below an attribute is OTLP's.
    let unknown: Vec<_> = fields.iter().filter(|f| !f.contains(".attributes.") && !known.contains(*f)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let expected = [".metrics.inspectedSpans", ".traces.spanSets.spans.attributes", ".traces.serviceStats.*.spanCount"];
    assert!(expected.iter().all(|field| fields.contains(*field)), "{fields:?}");
}

fn collect_fields(path: &str, value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Array(list) => list.iter().for_each(|item| collect_fields(path, item, into)),
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.ends_with("serviceStats") { format!("{path}.*") } else { format!("{path}.{name}") };
                if !path.ends_with('*') {
                    into.insert(path.clone());
                }
                collect_fields(&path, value, into);
            }
        }
        _ => {}
    }
}

#[rstest]
#[case::limit("{}", "&limit=1", 1)]
#[case::most("{}", "&limit=262144", 2)]
#[case::before("{}", "&start=1&end=2", 0)]
#[case::window("{}", "&start=1767225600&end=1767225700", 1)]
#[case::open_end("{}", "&start=1767225700", 1)]
#[case::zero_is_open("{}", "&start=0&end=0", 2)]
#[case::min_duration("{}", "&minDuration=100ms", 1)]
#[case::max_duration("{}", "&maxDuration=0.1s", 1)]
#[case::stray_parameter("{}", "&foo=bar", 2)]
#[case::metrics("{ status = error } | rate() by(name)", "", 1)]
#[case::hints("{} | select(.a) with(most_recent=true)", "", 2)]
#[tokio::test]
async fn parameters_of_a_search(#[case] query: &str, #[case] more: &str, #[case] found: usize) {
    let answer: Value = serde_json::from_str(&search(query, more).await).unwrap();
    assert_eq!(answer["traces"].as_array().unwrap().len(), found);
}

#[rstest]
#[case::default("", 3)]
#[case::fewer("&spss=1", 1)]
#[case::all("&spss=0", 6)]
#[tokio::test]
async fn spans_of_a_spanset_are_limited(#[case] more: &str, #[case] shown: usize) {
    let answer: Value = serde_json::from_str(&search("{ resource.service.name != \"job\" }", more).await).unwrap();
    let set = &answer["traces"][0]["spanSets"][0];
    assert_eq!((set["spans"].as_array().unwrap().len(), set["matched"].as_u64()), (shown, Some(6)));
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
#[case("/api/search?q=%7B+parent.a+%7D", "invalid TraceQL query: parent not yet supported")]
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
    assert_eq!(get(path).await, (400, "text/plain; charset=utf-8".to_owned(), text.to_owned()));
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

// Tags.

#[rstest]
#[case::all(
    "/api/search/tags",
    r#"{"tagNames":["a/b c","exception.message","http.status_code","region","service.name"],"metrics":{}}"#
)]
#[case::resource("/api/search/tags?scope=resource", r#"{"tagNames":["region","service.name"],"metrics":{}}"#)]
#[case::empty("/api/search/tags?scope=link", r#"{"tagNames":[],"metrics":{}}"#)]
#[case::limited("/api/search/tags?limit=2", r#"{"tagNames":["a/b c","exception.message"],"metrics":{}}"#)]
#[case::later("/api/search/tags?start=1767229200&end=1767229300", r#"{"tagNames":["service.name"],"metrics":{}}"#)]
#[tokio::test]
async fn names_of_tags(#[case] path: &str, #[case] expected: &str) {
    assert_eq!(json(path).await, expected);
}

#[tokio::test]
async fn names_of_intrinsics() {
    let answer: Value = serde_json::from_str(&json("/api/search/tags?scope=intrinsic").await).unwrap();
    let names: Vec<_> = answer["tagNames"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(names.is_sorted());
    assert!(
        ["duration", "name", "rootServiceName", "span:name", "status", "traceDuration"]
            .iter()
            .all(|n| names.contains(n))
    );
    // Every one of them can be asked for.
    for name in names {
        assert_eq!(get(&format!("/api/v2/search/tag/{name}/values")).await.0, 200, "{name}");
    }
}

#[tokio::test]
async fn names_of_tags_by_scope() {
    let body = json("/api/v2/search/tags?limit=5000&start=1767225600&end=1767225700").await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    let scopes = answer["scopes"].as_array().unwrap().iter();
    let scopes: Vec<_> = scopes.filter(|s| s["name"] != "intrinsic").map(Value::to_string).collect();
    insta::assert_snapshot!(scopes.join("\n"), @r#"
    {"name":"event","tags":["exception.message"]}
    {"name":"resource","tags":["region","service.name"]}
    {"name":"span","tags":["a/b c","http.status_code"]}
    "#);
    assert!(body.contains(r#""name":"intrinsic""#) && body.ends_with(r#""metrics":{}}"#));
    assert!(body == json("/api/v2/search/tags?limit=5000&scope=none&start=1767225600&end=1767225700").await);
    let (answer, _) = protobuf::<SearchTagsV2Response>("/api/v2/search/tags?scope=resource").await;
    assert_eq!(answer.scopes[0].tags, ["region", "service.name"]);
}

#[tokio::test]
async fn names_of_tags_of_matching_spans() {
    let body =
        json(&format!("/api/v2/search/tags?scope=span&q={}", encoded("{ name = \"SELECT\" && .db.rows = "))).await;
    let expected =
        r#"{"scopes":[{"name":"span","tags":["cached","db.rows","map","ratio","raw"]}],"metrics":{"inspectedBytes":"#;
    assert!(body.starts_with(expected), "{body}");
}

#[rstest]
#[case::values("service.name", r#"["cart","frontend","job"]"#)]
#[case::mixed("http.status_code", r#"["200","500","teapot"]"#)]
#[case::intrinsic("name", r#"["SELECT"]"#)]
#[case::root("root.service.name", r#"["frontend"]"#)]
#[case::status("status.code", r#"["error","ok","unset"]"#)]
#[case::error("error", r#"["true"]"#)]
#[case::none("nope", "[]")]
#[tokio::test]
async fn values_of_a_tag(#[case] name: &str, #[case] values: &str) {
    let expected = format!("{{\"tagValues\":{values},\"metrics\":{{}}}}");
    assert_eq!(json(&format!("/api/search/tag/{name}/values")).await, expected);
}

#[rstest]
#[case::resource(
    "resource.service.name",
    "",
    r#"[{"type":"string","value":"cart"},{"type":"string","value":"frontend"},{"type":"string","value":"job"}]"#
)]
#[case::limit("resource.service.name", "?limit=1", r#"[{"type":"string","value":"cart"}]"#)]
#[case::window("resource.service.name", "?start=1767229200&end=1767229300", r#"[{"type":"string","value":"job"}]"#)]
#[case::stray_parameter(
    "resource.service.name",
    "?tag=resource.service.name&limit=1",
    r#"[{"type":"string","value":"cart"}]"#
)]
#[case::wrong_scope("span.service.name", "", "[]")]
#[case::any_scope(
    ".http.status_code",
    "",
    r#"[{"type":"string","value":"teapot"},{"type":"int","value":"200"},{"type":"int","value":"500"}]"#
)]
#[case::slash_and_space("span.%22a%2Fb%20c%22", "", r#"[{"type":"string"}]"#)]
#[case::raw_slash("span.%22a/b%20c%22", "", r#"[{"type":"string"}]"#)]
#[case::name("name", "", r#"[{"type":"string","value":"SELECT"}]"#)]
#[case::scoped_name("span:name", "", r#"[{"type":"string","value":"SELECT"}]"#)]
#[case::status(
    "status",
    "",
    r#"[{"type":"keyword","value":"error"},{"type":"keyword","value":"ok"},{"type":"keyword","value":"unset"}]"#
)]
#[case::kind("span:kind", "?limit=2", r#"[{"type":"keyword","value":"client"},{"type":"keyword","value":"consumer"}]"#)]
#[case::duration("duration", "", "[]")]
#[case::ids("trace:id", "", "[]")]
#[tokio::test]
async fn values_of_a_tag_with_types(#[case] name: &str, #[case] more: &str, #[case] values: &str) {
    let expected = format!("{{\"tagValues\":{values},\"metrics\":{{}}}}");
    assert_eq!(json(&format!("/api/v2/search/tag/{name}/values{more}")).await, expected);
}

#[rstest]
#[case::filtered("name", "{ status = error }", r#"[{"type":"string","value":"GET /items"}]"#)]
#[case::unfinished(
    ".http.status_code",
    "{ resource.service.name = \"cart\" && .http.status_code = ",
    r#"[{"type":"int","value":"500"}]"#
)]
#[case::keywords_stay(
    "status",
    "{ name = \"x\" }",
    r#"[{"type":"keyword","value":"error"},{"type":"keyword","value":"ok"},{"type":"keyword","value":"unset"}]"#
)]
#[case::everything("resource.region", "{}", r#"[{"type":"string","value":"eu"}]"#)]
#[case::not_understood("resource.region", "{ foo }", r#"[{"type":"string","value":"eu"}]"#)]
#[case::trace_duration("trace:duration", "{ name = \"render\" }", r#"[{"type":"int","value":"500000000"}]"#)]
#[tokio::test]
async fn values_on_matching_spans(#[case] name: &str, #[case] query: &str, #[case] values: &str) {
    let body = json(&format!("/api/v2/search/tag/{name}/values?q={}", encoded(query))).await;
    assert!(body.starts_with(&format!("{{\"tagValues\":{values},\"metrics\":{{")), "{body}");
}

#[tokio::test]
async fn values_as_protobuf() {
    let path = "/api/v2/search/tag/resource.region/values";
    let (answer, _) = protobuf::<SearchTagValuesV2Response>(path).await;
    assert_eq!((answer.tag_values[0].r#type.as_str(), answer.tag_values[0].value.as_str()), ("string", "eu"));
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
        let job = state.run(move |_, cancelled| {
            started.send(()).unwrap();
            while !cancelled.load(std::sync::atomic::Ordering::Relaxed) {
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
