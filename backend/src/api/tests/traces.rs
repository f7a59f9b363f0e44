//! Traces by id.

use opentelemetry_proto::tonic::trace::v1::TracesData;

use super::*;
use crate::api::tempopb::TraceByIdResponse;

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

async fn llm(path: &str) -> Value {
    let (status, headers, body) = get_with(path, &[("accept", "application/vnd.grafana.llm")]).await;
    let content_type = headers["content-type"].to_str().unwrap();
    assert_eq!((status, content_type), (StatusCode::OK, "application/vnd.grafana.llm+json"));
    serde_json::from_slice(&body).unwrap()
}

#[tokio::test]
async fn a_trace_for_language_models() {
    let answer = llm(&format!("/api/v2/traces/{SHOP}")).await;
    assert_eq!(answer["trace"]["traceId"], "000a1b02030405060708090a0b0c0d0e");
    assert!(answer["metrics"]["inspectedBytes"].as_u64().unwrap() > 0);
    let cart = &answer["trace"]["services"][1];
    assert_eq!((&cart["serviceName"], &cart["resource"]), (&"cart".into(), &serde_json::json!({ "region": "us" })));
    let scope = &cart["scopes"][0];
    assert_eq!((&scope["name"], &scope["version"]), (&"sql".into(), &"1.2".into()));
    insta::assert_snapshot!(scope["spans"][1], @r#"{"attributes":{"cached":true,"db.rows":7},"durationMs":100.0,"endTimeUnixNano":"1767225600130000000","events":[{"attributes":{"code":40,"exception.message":"locked"},"name":"exception","timeUnixNano":"1767225600035000000"},{"name":"retry","timeUnixNano":"1767225600080000000"}],"kind":"SPAN_KIND_CLIENT","links":[{"attributes":{"why":"batch"},"spanId":"0909090909090909","traceId":"ffffffffffffffffffffffffffffffff"}],"name":"SELECT","parentSpanId":"0000000000000003","spanId":"0000000000000004","startTimeUnixNano":"1767225600030000000","status":{"code":"STATUS_CODE_UNSET","message":""}}"#);
    let status = serde_json::json!({ "code": "STATUS_CODE_ERROR", "message": "no stock" });
    assert_eq!(scope["spans"][0]["status"], status);
    assert_eq!(scope["spans"][2]["attributes"]["raw"], "0102");
    assert_eq!(llm("/api/v2/traces/abc").await, serde_json::json!({}));
}

#[tokio::test]
async fn values_for_language_models() {
    let answer = llm("/api/v2/search/tag/span.http.status_code/values").await;
    assert_eq!(answer["tagValues"], serde_json::json!({ "int": ["200", "500"], "string": ["teapot"] }));
}

#[rstest]
#[case::matches("q={ name = \"SELECT\" }", "4 5")]
#[case::with_all_above("q={ span:id = \"4\" }&keep_hierarchy=true", "1 2 3 4")]
#[case::with_one_above("q={ span:id = \"4\" }&keep_hierarchy=true&ancestor_depth=1", "3 4")]
#[case::with_one_level_below("q={ span:id = \"2\" }&match_depth=1", "2 3")]
#[case::with_all_below("q={ span:id = \"2\" }&match_depth=-1", "2 3 4 5")]
#[case::nothing("q={ name = \"nope\" }", "")]
#[case::by_the_parent("q={ parent.resource.service.name = \"frontend\" }", "2 3 6")]
#[case::everything("q={}", "1 2 3 4 5 6")]
#[case::no_query("keep_hierarchy=true", "1 2 3 4 5 6")]
#[tokio::test]
async fn a_part_of_a_trace(#[case] params: &str, #[case] expected: &str) {
    let params = params.replace(' ', "%20").replace('{', "%7B").replace('}', "%7D").replace('"', "%22");
    let body: Value = serde_json::from_str(&json(&format!("/api/v2/traces/{SHOP}?{params}")).await).unwrap();
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let scopes = list(&body["trace"], "resourceSpans").into_iter().flat_map(|resource| list(&resource, "scopeSpans"));
    let spans: Vec<_> = scopes.map(|scope| list(&scope, "spans")).collect();
    assert!(spans.iter().all(|spans| !spans.is_empty()), "an empty part is left: {body}");
    let ids = spans.iter().flatten().map(|span| span["spanId"].as_str().unwrap().to_owned());
    // The last byte of an id, from its base64.
    let digits = |id: String| {
        (1..7).find(|n: &u8| id == base64::Engine::encode(&base64::prelude::BASE64_STANDARD, [0, 0, 0, 0, 0, 0, 0, *n]))
    };
    let mut ids: Vec<_> = ids.map(|id| digits(id).unwrap().to_string()).collect();
    ids.sort_unstable();
    assert_eq!(ids.join(" "), expected);
}

#[rstest]
#[case::pipeline(
    "q=%7B%7D%20%7C%20count()%20%3E%201",
    "invalid TraceQL query: a trace by id takes one filter, such as { status = error }"
)]
#[case::metrics("q=%7B%7D%20%7C%20rate()", "invalid TraceQL query: a trace by id takes one filter, no metrics")]
#[case::pruning("span_pruning=maybe", "invalid span_pruning: maybe, expecting true or false")]
#[case::few("span_pruning=true&span_pruning_min_spans=1", "invalid span_pruning_min_spans: 1 is less than 2")]
#[case::deep(
    "span_pruning=true&span_pruning_max_parent_depth=-2",
    "invalid span_pruning_max_parent_depth: must be -1 or more"
)]
#[case::depth("q=%7B%7D&match_depth=-2", "invalid match_depth: must be -1 or more")]
#[case::flag("q=%7B%7D&keep_hierarchy=maybe", "invalid keep_hierarchy: maybe, expecting true or false")]
#[tokio::test]
async fn a_part_that_is_none(#[case] params: &str, #[case] text: &str) {
    let (status, _, body) = get(&format!("/api/v2/traces/{SHOP}?{params}")).await;
    assert_eq!((status, body.as_str()), (400, text));
}
