use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span, Status};
use proptest::prelude::*;
use rstest::rstest;
use serde_json::Value;

use super::*;
use crate::live::TraceId;
use crate::query::fixture::{attributes, int, service, span, text};

const TRACE: TraceId = TraceId([7; 16]);

fn data(services: Vec<ResourceSpans>) -> TracesData {
    TracesData { resource_spans: services }
}

fn with(span: Span, kind: i32, code: StatusCode, more: &[(&str, Any)]) -> Span {
    let status = Some(Status { code: code as i32, message: String::new() });
    Span { kind, status, attributes: attributes(more), ..span }
}

/// A request that asks a database and a cart; `slower` is what the database takes beside its 20 ms.
fn checkout(slower: u64, cart: StatusCode, version: &str) -> TracesData {
    let root = span(TRACE, 1, 0, "GET /checkout", 0, 100 + slower);
    let cart = with(span(TRACE, 2, 1, "GET /cart", 10, 30), 2, cart, &[]);
    let select = with(span(TRACE, 3, 2, "SELECT", 15, 20 + slower), 3, StatusCode::Unset, &[("db.rows", int(3))]);
    data(vec![
        service("shop", &[], "", vec![with(root, 2, StatusCode::Ok, &[("version", text(version))])]),
        service("cart", &[], "", vec![cart, select]),
    ])
}

fn json(base: &TracesData, compare: &TracesData, format: Format) -> Value {
    serde_json::from_slice(&diff(base, compare, format).unwrap()).unwrap()
}

fn patch(base: &TracesData, compare: &TracesData) -> Value {
    json(base, compare, Format::Patch)
}

#[test]
fn what_is_the_same_is_not_told() {
    let (before, after) = (checkout(0, StatusCode::Ok, "1"), checkout(4, StatusCode::Ok, "1"));
    let patch = patch(&before, &after);
    assert_eq!(patch["stats"]["matchedSpans"], 3);
    for list in ["modified", "added", "removed", "warnings"] {
        assert_eq!(patch[list], Value::Array(Vec::new()), "{list}");
    }
}

#[test]
fn a_patch_tells_every_change() {
    let after = checkout(80, StatusCode::Error, "2");
    insta::assert_snapshot!(format!("{:#}", patch(&checkout(0, StatusCode::Ok, "1"), &after)), @r#"
    {
      "added": [],
      "base": {
        "spanCount": 3,
        "traceId": "07070707070707070707070707070707"
      },
      "compare": {
        "spanCount": 3,
        "traceId": "07070707070707070707070707070707"
      },
      "modified": [
        {
          "changes": [
            {
              "after": 180000000,
              "before": 100000000,
              "op": "modify",
              "target": {
                "name": "duration_nanos",
                "type": "field"
              }
            },
            {
              "after": "2",
              "before": "1",
              "op": "modify",
              "target": {
                "key": "version",
                "scope": "span",
                "type": "attribute"
              }
            }
          ],
          "span": {
            "kind": "server",
            "name": "GET /checkout",
            "path": [
              0
            ],
            "service": "shop"
          }
        },
        {
          "changes": [
            {
              "after": "error",
              "before": "ok",
              "op": "modify",
              "target": {
                "name": "status",
                "type": "field"
              }
            }
          ],
          "span": {
            "kind": "server",
            "name": "GET /cart",
            "path": [
              0,
              0
            ],
            "service": "cart"
          }
        },
        {
          "changes": [
            {
              "after": 100000000,
              "before": 20000000,
              "op": "modify",
              "target": {
                "name": "duration_nanos",
                "type": "field"
              }
            }
          ],
          "span": {
            "kind": "client",
            "name": "SELECT",
            "path": [
              0,
              0,
              0
            ],
            "service": "cart"
          }
        }
      ],
      "removed": [],
      "stats": {
        "addedSpans": 0,
        "attributeChanges": 1,
        "eventChanges": 0,
        "fieldChanges": 3,
        "matchedSpans": 3,
        "modifiedSpans": 3,
        "removedSpans": 0,
        "spanCountA": 3,
        "spanCountB": 3,
        "truncated": false
      },
      "version": "trace-patch-v0",
      "warnings": []
    }
    "#);
}

#[test]
fn a_summary_tells_what_changed_for_services() {
    let after = checkout(80, StatusCode::Error, "2");
    insta::assert_snapshot!(format!("{:#}", json(&checkout(0, StatusCode::Ok, "1"), &after, Format::Summary)), @r#"
    {
      "base": {
        "durationMs": 100,
        "errorSpanCount": 0,
        "rootName": "GET /checkout",
        "rootService": "shop",
        "spanCount": 3,
        "sumSpanDurationMs": 150,
        "traceId": "07070707070707070707070707070707"
      },
      "changedServices": [
        "cart",
        "shop"
      ],
      "compare": {
        "durationMs": 180,
        "errorSpanCount": 1,
        "rootName": "GET /checkout",
        "rootService": "shop",
        "spanCount": 3,
        "sumSpanDurationMs": 310,
        "traceId": "07070707070707070707070707070707"
      },
      "services": [
        {
          "added": 0,
          "modified": 2,
          "name": "cart",
          "newErrors": 1,
          "removed": 0,
          "resolvedErrors": 0,
          "sumSpanDurationDeltaMs": 80
        },
        {
          "added": 0,
          "modified": 1,
          "name": "shop",
          "newErrors": 0,
          "removed": 0,
          "resolvedErrors": 0,
          "sumSpanDurationDeltaMs": 80
        }
      ],
      "signals": {
        "errors": "increased",
        "spanCount": "unchanged",
        "structure": "unchanged",
        "sumSpanDuration": "increased",
        "traceLatency": "increased"
      },
      "stats": {
        "addedSpans": 0,
        "attributeChanges": 1,
        "errorSpanDelta": 1,
        "fieldChanges": 3,
        "matchedSpans": 3,
        "modifiedSpans": 3,
        "removedSpans": 0,
        "spanCountDelta": 0,
        "sumSpanDurationDeltaMs": 160,
        "traceLatencyDeltaMs": 80
      },
      "trust": {
        "matchedSpanRatio": 1.0,
        "structureOverlap": 1.0
      },
      "version": "trace-summary-v0-native"
    }
    "#);
}

#[test]
fn spans_come_and_go_with_their_place() {
    let one = |spans| data(vec![service("shop", &[], "", spans)]);
    let root = || span(TRACE, 1, 0, "root", 0, 10);
    let before = one(vec![root(), span(TRACE, 2, 1, "a", 1, 1), span(TRACE, 3, 2, "b", 1, 1)]);
    let after = one(vec![root(), span(TRACE, 2, 1, "a", 1, 1), span(TRACE, 4, 1, "c", 2, 1)]);
    let patch = patch(&before, &after);
    assert_eq!(patch["added"][0]["target"], serde_json::json!({ "type": "span", "parentPath": [0], "index": 1 }));
    assert_eq!(patch["added"][0]["span"]["name"], "c");
    assert_eq!(patch["removed"][0]["target"], serde_json::json!({ "type": "span", "path": [0, 0, 0] }));
    assert_eq!(json(&before, &after, Format::Summary)["signals"]["structure"], "changed");
}

#[test]
fn a_span_with_another_parent_is_the_same_span_elsewhere() {
    let below = |parent| {
        let spans = vec![span(TRACE, 1, 0, "r", 0, 9), span(TRACE, 2, 1, "a", 1, 1), span(TRACE, 3, parent, "b", 2, 1)];
        data(vec![service("shop", &[], "", spans)])
    };
    let (before, after) = (below(1), below(2));
    assert_eq!(patch(&before, &after)["stats"]["matchedSpans"], 3);
    let summary = json(&before, &after, Format::Summary);
    assert_eq!(
        (&summary["signals"]["structure"], &summary["services"]),
        (&"changed".into(), &Value::Array(Vec::new()))
    );
    assert_eq!(summary["changedServices"], serde_json::json!(["shop"]));
}

#[rstest]
#[case::little_of_a_size("http.response.body.size", int(1_000), int(1_040), false)]
#[case::much_of_a_size("http.response.body.size", int(1_000), int(1_200), true)]
#[case::little_of_another_number("db.rows", int(1_000), int(1_001), true)]
#[case::whole_and_fraction("n", int(3), Any::DoubleValue(3.0), false)]
#[case::no_number_stays_none("n", Any::DoubleValue(f64::NAN), Any::DoubleValue(f64::NAN), false)]
#[case::number_and_text("n", int(3), text("3"), true)]
#[case::infinite("file.size", Any::DoubleValue(f64::INFINITY), Any::DoubleValue(f64::INFINITY), false)]
#[case::bytes("n", Any::BytesValue(vec![1]), Any::BytesValue(vec![2]), true)]
fn values_of_attributes(#[case] key: &str, #[case] before: Any, #[case] after: Any, #[case] is_change: bool) {
    let of = |value: Any| {
        let span = with(span(TRACE, 1, 0, "r", 0, 9), 1, StatusCode::Unset, &[(key, value)]);
        data(vec![service("shop", &[], "", vec![span])])
    };
    assert_eq!(patch(&of(before), &of(after))["stats"]["attributeChanges"], i32::from(is_change));
}

#[test]
fn the_few_that_changed_of_many_alike_are_found() {
    let calls = |failed: &[u8]| {
        let mut spans = vec![span(TRACE, 1, 0, "r", 0, 90)];
        spans.extend((2..40).map(|id| {
            let code = if failed.contains(&id) { StatusCode::Error } else { StatusCode::Ok };
            with(span(TRACE, id, 1, "call", u64::from(id), 1), 3, code, &[("n", int(i64::from(id)))])
        }));
        data(vec![service("shop", &[], "", spans)])
    };
    let patch = patch(&calls(&[]), &calls(&[5, 30]));
    assert_eq!((&patch["stats"]["modifiedSpans"], &patch["stats"]["addedSpans"]), (&2.into(), &0.into()));
    assert_eq!(patch["warnings"][0]["code"], "ambiguous_span_match");
}

#[test]
fn odd_traces_are_compared_and_what_is_odd_is_said() {
    let one = |spans| data(vec![service("", &[], "", spans)]);
    let base = one(vec![
        span(TRACE, 1, 1, "own parent", 0, 9),
        span(TRACE, 1, 2, "circle", 0, 9),
        span(TRACE, 2, 1, "b", 1, 1),
    ]);
    let endless = Span { end_time_unix_nano: 0, ..span(TRACE, 1, 0, "GET /user/12345678", 0, 1) };
    let patch = patch(&base, &one(vec![endless]));
    let codes: Vec<_> = patch["warnings"].as_array().unwrap().iter().map(|warning| &warning["code"]).collect();
    assert_eq!(codes, ["high_cardinality_span_name", "duplicate_span_id", "invalid_duration"]);
    assert_eq!((&patch["stats"]["removedSpans"], &patch["stats"]["addedSpans"]), (&3.into(), &1.into()));
    assert_eq!(json(&base, &one(Vec::new()), Format::Summary)["changedServices"], serde_json::json!(["<unknown>"]));
}

#[test]
fn a_long_patch_is_left_out_of_a_composed_answer() {
    let (before, after) = (checkout(0, StatusCode::Ok, "1"), checkout(80, StatusCode::Error, "2"));
    let short = json(&before, &after, Format::Composed);
    assert_eq!(
        (&short["patch"]["version"], &short["summary"]["version"]),
        (&Format::Patch.name().into(), &Format::Summary.name().into())
    );
    let long = data(vec![service(
        "shop",
        &[],
        "",
        vec![with(span(TRACE, 1, 0, "r", 0, 9), 1, StatusCode::Ok, &[("a", text(&"x".repeat(70_000)))])],
    )]);
    let long = json(&before, &long, Format::Composed);
    // What is removed is told without attributes, what is added too.
    assert_eq!(long["patch"]["stats"]["addedSpans"], 1);
    let same = |value: &str| {
        data(vec![service(
            "shop",
            &[],
            "",
            vec![with(span(TRACE, 1, 0, "r", 0, 9), 1, StatusCode::Ok, &[("a", text(&value.repeat(70_000)))])],
        )])
    };
    let omitted = json(&same("x"), &same("y"), Format::Composed);
    assert!(omitted.get("patch").is_none());
    assert_eq!(omitted["patchOmitted"]["reason"], "over_budget");
    assert!(omitted["patchOmitted"]["bytes"].as_u64().unwrap() > 140_000);
}

#[test]
fn a_chain_of_many_spans_is_no_problem_and_too_many_deep_changes_are_refused() {
    let chain = |name: &str, length: u32| {
        let id = |number: u32| if number == 0 { Vec::new() } else { u64::from(number).to_be_bytes().to_vec() };
        let spans = (1..=length).map(|number| Span {
            span_id: id(number),
            parent_span_id: id(number - 1),
            ..span(TRACE, 0, 0, name, 0, 1)
        });
        data(vec![service("shop", &[], "", spans.collect())])
    };
    assert_eq!(patch(&chain("a", 20_000), &chain("a", 20_000))["stats"]["matchedSpans"], 20_000);
    assert!(matches!(diff(&chain("a", 20_000), &chain("b", 1), Format::Patch), Err(DiffError::TooDeep { .. })));
}

fn traces() -> impl Strategy<Value = TracesData> {
    let spans = (1u8..9, 0u8..9, "[ab]", 0u64..4, 0u64..3, 0i32..3, 0i64..2);
    prop::collection::vec(spans, 0..12).prop_map(|spans| {
        let spans = spans.into_iter().map(|(id, parent, name, start, length, code, value)| {
            let code = StatusCode::try_from(code).unwrap();
            with(span(TRACE, id, parent, &name, start, length), 2, code, &[("n", int(value))])
        });
        data(vec![service("shop", &[], "", spans.collect())])
    })
}

proptest! {
    #[test]
    fn a_trace_does_not_differ_from_itself(trace in traces()) {
        let patch = patch(&trace, &trace);
        let stats = &patch["stats"];
        prop_assert_eq!(&stats["matchedSpans"], &stats["spanCountA"]);
        prop_assert_eq!(&stats["modifiedSpans"], &Value::from(0));
    }

    #[test]
    fn every_span_is_paired_or_told(base in traces(), compare in traces()) {
        let patch = patch(&base, &compare);
        let count = |name: &str| patch["stats"][name].as_u64().unwrap();
        prop_assert_eq!(count("matchedSpans") + count("addedSpans"), count("spanCountB"));
        prop_assert_eq!(count("matchedSpans") + count("removedSpans"), count("spanCountA"));
        let spans = |data: &TracesData| data.resource_spans[0].scope_spans[0].spans.len() as u64;
        prop_assert_eq!((count("spanCountA"), count("spanCountB")), (spans(&base), spans(&compare)));
    }
}
