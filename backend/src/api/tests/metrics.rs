//! Metrics queries. The first half second of the shop, 250 ms after 250 ms, unless a test says otherwise.

use super::*;
use crate::api::tempopb::{PartialStatus, QueryInstantResponse, QueryRangeResponse};

/// The start, and what the shop did until a second later.
fn range_path(query: &str, more: &str) -> String {
    format!("/api/metrics/query_range?q={}&start={SECOND}&end={}{more}", encoded(query), SECOND + 1)
}

fn instant_path(query: &str) -> String {
    format!("/api/metrics/query?q={}&start={SECOND}&end={}", encoded(query), SECOND + 1)
}

/// Without the part that says what was looked at.
fn without_metrics(json: &str) -> String {
    let (before, after) = json.split_once(r#","metrics":{"#).unwrap();
    format!("{before}{}", after.split_once('}').unwrap().1)
}

#[tokio::test]
async fn a_range_as_json() {
    let body = json(&range_path("{ status = error } | rate() by(resource.service.name)", "&step=500ms")).await;
    insta::assert_snapshot!(without_metrics(&body), @r#"{"series":[{"labels":[{"key":"resource.service.name","value":{"stringValue":"cart"}}],"samples":[{"timestampMs":"1767225600000"},{"timestampMs":"1767225600500","value":2},{"timestampMs":"1767225601000"}],"exemplars":[{"labels":[{"key":"trace:id","value":{"stringValue":"a1b02030405060708090a0b0c0d0e"}},{"key":"span:id","value":{"stringValue":"0000000000000003"}},{"key":"name","value":{"stringValue":"GET /items"}},{"key":"duration","value":{"stringValue":"370ms"}},{"key":"resource.service.name","value":{"stringValue":"cart"}}],"value":2,"timestampMs":"1767225600020"}]}]}"#);
    let bytes = fixture::live().trace(SINGLE_TENANT, &fixture::SHOP).unwrap().bytes;
    let metrics = format!(
        r#""metrics":{{"inspectedTraces":1,"inspectedBytes":"{bytes}","completedJobs":1,"totalJobs":1,"inspectedSpans":"6"}}"#
    );
    assert!(body.contains(&metrics), "{body}");
}

#[tokio::test]
async fn an_instant_as_json() {
    let body = json(&instant_path("{} | quantile_over_time(duration, .5, .9)")).await;
    insta::assert_snapshot!(without_metrics(&body), @r#"{"series":[{"labels":[{"key":"p","value":{"doubleValue":0.5}}],"value":0.09975563747413405},{"labels":[{"key":"p","value":{"doubleValue":0.9}}],"value":0.5}]}"#);
    let body = json(&instant_path("{ .nope } | rate()")).await;
    insta::assert_snapshot!(without_metrics(&body), @r#"{"series":[{"labels":[{"key":"__name__","value":{"stringValue":"rate"}}]}]}"#);
}

/// Grafana reads instant answers with a parser that refuses what it does not know.
#[tokio::test]
async fn an_instant_has_no_fields_that_grafana_refuses() {
    for query in ["{} | rate() by(name)", "{} | compare({ status = error })", "{} | histogram_over_time(duration)"] {
        let body: Value = serde_json::from_str(&json(&instant_path(query)).await).unwrap();
        let allowed = |value: &Value, names: &[&str]| {
            let object = value.as_object().unwrap();
            assert!(object.keys().all(|key| names.contains(&key.as_str())), "{value}");
        };
        allowed(&body, &["series", "metrics"]);
        let metrics = [
            "inspectedTraces",
            "inspectedBytes",
            "totalBlocks",
            "completedJobs",
            "totalJobs",
            "totalBlockBytes",
            "inspectedSpans",
        ];
        allowed(&body["metrics"], &metrics);
        for series in body["series"].as_array().unwrap() {
            allowed(series, &["labels", "value"]);
            series["labels"].as_array().unwrap().iter().for_each(|label| allowed(label, &["key", "value"]));
        }
    }
}

#[tokio::test]
async fn answers_as_protobuf_are_the_same() {
    let (range, _) = protobuf::<QueryRangeResponse>(&range_path("{} | rate() by(name)", "&step=500ms")).await;
    assert_eq!(range.series.len(), 5);
    assert_eq!(range.series[0].samples.iter().map(|s| s.value).sum::<f64>().to_bits(), 2f64.to_bits());
    assert!(range.metrics.is_some());
    let (instant, _) = protobuf::<QueryInstantResponse>(&instant_path("{} | rate()")).await;
    assert_eq!(instant.series[0].value.to_bits(), 6f64.to_bits());
    assert_eq!(instant.series[0].labels[0].key, "__name__");
}

#[rstest]
#[case::seconds("start=1767225600&end=1767225601")]
#[case::nanoseconds("start=1767225600000000000&end=1767225601000000000")]
#[case::fraction("start=1767225600.0&end=1767225601.000")]
#[case::dates("start=2026-01-01T00:00:00Z&end=2026-01-01T01:00:01%2B01:00")]
#[case::since("since=1s&end=1767225601")]
#[tokio::test]
async fn ranges_can_be_written_in_many_ways(#[case] range: &str) {
    for step in ["500ms", "0.5"] {
        let path = format!("/api/metrics/query_range?query={}&{range}&step={step}", encoded("{} | count_over_time()"));
        let (answer, _) = protobuf::<QueryRangeResponse>(&path).await;
        let samples: Vec<_> = answer.series[0].samples.iter().map(|s| (s.timestamp_ms, s.value as u64)).collect();
        let at = |ms: i64| SECOND as i64 * 1_000 + ms;
        // The root starts on the bound of an interval, and belongs to the one before.
        assert_eq!(samples, [(at(0), 1), (at(500), 5), (at(1_000), 0)]);
    }
}

#[tokio::test]
async fn a_range_without_a_step_gets_one() {
    let path = format!(
        "/api/metrics/query_range?q={}&start={SECOND}&end={}",
        encoded("{} | count_over_time()"),
        SECOND + 3_600
    );
    let (answer, _) = protobuf::<QueryRangeResponse>(&path).await;
    assert_eq!(answer.series[0].samples.len(), 241);
    assert_eq!(answer.series[0].samples[1].timestamp_ms, (SECOND as i64 + 15) * 1_000);
}

/// Spans of the last seconds count: the range ends now, and the answer holds what was sent just before.
#[tokio::test]
async fn the_range_ends_now_and_what_is_new_counts() {
    let mut state = ApiState::new(
        Arc::new(fixture::live()),
        Arc::new(catalog()),
        Tenancy::new(false),
        Readiness::default(),
        Arc::default(),
    );
    state.clock = || UNIX_EPOCH + std::time::Duration::from_nanos(fixture::EPOCH + 500_000_000);
    let api = router(state);
    for path in
        ["/api/metrics/query?q=%7B%7D%7Ccount_over_time()", "/api/metrics/query_range?q=%7B%7D%7Ccount_over_time()"]
    {
        let (status, _, body) = send(api.clone(), Request::get(path).body(Body::empty()).unwrap()).await;
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(status, StatusCode::OK);
        let series = &body["series"][0];
        let samples = series["samples"].as_array().into_iter().flatten();
        let counted = samples.filter_map(|sample| sample["value"].as_f64()).sum::<f64>();
        assert_eq!((counted + series["value"].as_f64().unwrap_or_default()) as u64, 6, "{path}");
    }
}

#[tokio::test]
async fn exemplars_come_unasked() {
    let exemplars = async |more: &str, query: &str| {
        let (answer, _) = protobuf::<QueryRangeResponse>(&range_path(query, more)).await;
        answer.series.into_iter().flat_map(|series| series.exemplars).collect::<Vec<_>>()
    };
    let found = exemplars("&step=500ms", "{ status = error } | rate()").await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].timestamp_ms, SECOND as i64 * 1_000 + 20);
    let labels: Vec<_> = found[0].labels.iter().map(|label| label.key.as_str()).collect();
    assert_eq!(labels, ["trace:id", "span:id", "name", "duration", "resource.service.name"]);
    assert_eq!(exemplars("&step=500ms&exemplars=2", "{} | rate()").await.len(), 2);
    assert_eq!(exemplars("&step=500ms&exemplars=100000", "{} | rate() with(exemplars=false)").await.len(), 0);
}

#[tokio::test]
async fn too_many_series_are_a_partial_answer() {
    let (answer, _) =
        protobuf::<QueryRangeResponse>(&range_path("{} | rate() by(name)", "&step=500ms&maxSeries=2")).await;
    assert_eq!((answer.series.len(), answer.status()), (2, PartialStatus::Partial));
    let body = json(&range_path("{} | rate() by(name)", "&step=500ms&maxSeries=2")).await;
    let end = r#","status":"PARTIAL","message":"Response exceeds maximum series limit of 2, a partial response is returned. Warning: the accuracy of each individual value is not guaranteed."}"#;
    assert!(body.ends_with(end), "{body}");
}

#[rstest]
#[case::no_query(
    "start=1&end=2",
    "compiling query: parse error at line 1, col 1: syntax error: unexpected $end, expecting \"{\", \"(\" or a function"
)]
#[case::spans("q=%7B%7D&start=1&end=2", "not a metrics query")]
#[case::broken(
    "q=%7B%7D%7Crate(&start=1&end=2",
    "compiling query: parse error at line 1, col 9: syntax error: unexpected $end, expecting \")\""
)]
#[case::labels(
    "q=%7B%7D%7Crate()by(.a,.b,.c,.d,.e,.f)&start=1&end=2",
    "compiling query: metrics group by 6 values not yet supported"
)]
#[case::order("q=%7B%7D%7Crate()&start=2&end=2", "end must be greater than start")]
#[case::long(
    "q=%7B%7D%7Crate()&start=1&end=86402",
    "metrics query time range exceeds the maximum allowed duration of 24h0m0s"
)]
#[case::step(
    "q=%7B%7D%7Crate()&start=1&end=17901&step=1",
    "step of 1s is too small, minimum step for given range is 1.79s"
)]
#[case::no_step(
    "q=%7B%7D%7Crate()&start=1&end=361&step=0",
    "step of 0s is too small, minimum step for given range is 36ms"
)]
#[case::negative_step("q=%7B%7D%7Crate()&start=1&end=361&step=-5", "invalid step: must not be negative")]
#[case::no_number("q=%7B%7D%7Crate()&start=1&end=361&step=x", "cannot parse \"x\" to a valid duration")]
#[case::start(
    "q=%7B%7D%7Crate()&start=x&end=361",
    "could not parse 'start' parameter: strconv.ParseInt: parsing \"x\": invalid syntax"
)]
#[case::end(
    "q=%7B%7D%7Crate()&end=x",
    "could not parse 'end' parameter: strconv.ParseInt: parsing \"x\": invalid syntax"
)]
#[case::since("q=%7B%7D%7Crate()&since=x", "could not parse 'since' parameter: not a valid duration string: \"x\"")]
#[case::exemplars("q=%7B%7D%7Crate()&exemplars=x", "invalid exemplars: strconv.Atoi: parsing \"x\": invalid syntax")]
#[case::series("q=%7B%7D%7Crate()&maxSeries=-1", "invalid maxSeries: must be a non-negative number")]
#[tokio::test]
async fn what_is_wrong_is_said(#[case] params: &str, #[case] text: &str) {
    let paths =
        ["/api/metrics/query_range", "/api/metrics/query"].into_iter().take(2 - usize::from(params.contains("step")));
    for path in paths {
        let (status, content_type, body) = get(&format!("{path}?{params}")).await;
        // Below it the query is shown, if it was wrong.
        assert_eq!(
            (status, content_type.as_str(), body.lines().next()),
            (400, "text/plain; charset=utf-8", Some(text))
        );
    }
}
