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
