//! Searches.

use std::collections::BTreeSet;

use super::*;
use crate::api::tempopb::SearchResponse;

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

async fn headers_of(path: &str) -> (Vec<String>, Option<String>) {
    let (status, headers, body) = get_with(path, &[]).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    let answer: Value = serde_json::from_slice(&body).unwrap();
    let ids = answer["traces"].as_array().unwrap().iter().map(|trace| trace["traceID"].as_str().unwrap().to_owned());
    (ids.collect(), headers.get("coati-total-traces").map(|total| total.to_str().unwrap().to_owned()))
}

#[tokio::test]
async fn pages_have_an_order_and_a_total() {
    let job = "ffffffffffffffffffffffffffffffff";
    assert_eq!(headers_of("/api/search?q=%7B%7D").await, (vec![job.to_owned(), SHOP.to_owned()], None));
    let page = |offset: u8| format!("/api/search?q=%7B%7D&orderBy=duration&limit=1&total=true&offset={offset}");
    assert_eq!(headers_of(&page(0)).await, (vec![SHOP.to_owned()], Some("2".to_owned())));
    assert_eq!(headers_of(&page(1)).await, (vec![job.to_owned()], Some("2".to_owned())));
    assert_eq!(headers_of(&page(2)).await, (vec![], Some("2".to_owned())));
    assert_eq!(headers_of("/api/search?order=asc&limit=1").await.0, [SHOP]);
}
