//! Answers from samples that are known. What a real Prometheus answers to the same is in `tests/tests`.

use ::http::{Request, StatusCode};
use axum::body::Body;
use http_body_util::BodyExt;
use proptest::prelude::*;
use rstest::rstest;
use std::sync::Arc;
use tower::ServiceExt;

use super::*;
use crate::tenant::{SINGLE_TENANT, Tenancy};

/// Every 15 s for ten minutes: requests of two edges rise by 3 and 6, one fails sometimes; `old` ends half way.
fn history() -> History {
    let history = History::new(u64::MAX, usize::MAX);
    for number in 0..=40_u64 {
        let mut adding = history.add(SINGLE_TENANT, 15_000 * number);
        let begin = |begins: bool| begins.then(|| 15_000 * number - 14_999).filter(|_| number > 0);
        let mut add = |name: &str, client: &str, server: &str, value: f64, begins: bool| {
            let labels = [("__name__", name), ("client", client), ("server", server)];
            adding.sample(&labels, value, begin(begins));
        };
        let count = number as f64;
        add("requests_total", "a", "b", 3.0 * count, false);
        add("requests_total", "b", "c", 6.0 * count, false);
        add("failed_total", "a", "b", (number / 8) as f64, false);
        if number >= 30 {
            add("requests_total", "b", "late", 10.0, number == 30);
        }
        if number <= 20 {
            add("old", "x", "y", if number == 20 { STALE } else { 1.0 }, false);
        }
        for (le, share) in [("0.1", 0.5), ("0.2", 0.9), ("+Inf", 1.0)] {
            adding.sample(&[("__name__", "seconds_bucket"), ("client", "a"), ("le", le)], share * 10.0 * count, None);
        }
    }
    history
}

fn shown(value: &Value) -> String {
    match value {
        Value::Scalar(value) => value.to_string(),
        Value::Text(text) => text.clone(),
        Value::Matrix(series) => format!("{series:?}"),
        Value::Vector(samples) => {
            let label = |sample: &Sample| {
                sample.labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
            };
            let line = |sample: &Sample| format!("{{{}}} {}", label(sample), (sample.value * 1e6).round() / 1e6);
            samples.iter().map(line).collect::<Vec<_>>().join("; ")
        }
    }
}

#[rstest]
#[case::selector("requests_total{client=\"a\"}", "{__name__=requests_total,client=a,server=b} 120")]
#[case::regex("requests_total{server=~\"b|c\",client!=\"a\"}", "{__name__=requests_total,client=b,server=c} 240")]
#[case::offset("requests_total{client=\"a\"} offset 1m", "{__name__=requests_total,client=a,server=b} 108")]
#[case::ended("old", "")]
#[case::before_it_ended("old offset 6m", "{__name__=old,client=x,server=y} 1")]
#[case::graph(
    "sum by (client, server) (rate(requests_total{}[5m]))",
    "{client=a,server=b} 0.2; {client=b,server=c} 0.4; {client=b,server=late} 0.033333"
)]
#[case::groups("group by (client) (requests_total)", "{client=a} 1; {client=b} 1")]
#[case::or_of_filters(
    "sum by (server) (rate(requests_total{client=\"a\"}[1m])) OR sum by (server) (rate(requests_total{server=\"c\"}[1m]))",
    "{server=b} 0.2; {server=c} 0.4"
)]
#[case::top("topk(1, sum(rate(requests_total[1m])) by (client))", "{client=b} 0.4")]
#[case::quantile("histogram_quantile(.9, sum(rate(seconds_bucket[5m])) by (le))", "{} 0.2")]
#[case::median("histogram_quantile(0.5, seconds_bucket)", "{client=a} 0.1")]
#[case::in_the_last_bucket("histogram_quantile(0.99, seconds_bucket)", "{client=a} 0.2")]
#[case::increase_from_zero("increase(requests_total{server=\"late\"}[5m])", "{client=b,server=late} 10")]
#[case::ratio("failed_total / requests_total", "{client=a,server=b} 0.041667")]
#[case::ratio_of_sums("sum(failed_total) / sum(requests_total) * 100", "{} 1.351351")]
#[case::many_to_one(
    "requests_total / on (client) group_left () sum by (client) (requests_total)",
    "{client=a,server=b} 1; {client=b,server=c} 0.96; {client=b,server=late} 0.04"
)]
#[case::filter(
    "requests_total > 100",
    "{__name__=requests_total,client=a,server=b} 120; {__name__=requests_total,client=b,server=c} 240"
)]
#[case::bool_filter("requests_total{client=\"a\"} > bool 100", "{client=a,server=b} 1")]
#[case::unless(
    "requests_total unless on (server) failed_total",
    "{__name__=requests_total,client=b,server=c} 240; {__name__=requests_total,client=b,server=late} 10"
)]
#[case::without("sum without (server) (requests_total)", "{client=a} 120; {client=b} 250")]
#[case::scalar("1 + 2 * 3 ^ 2 % 5", "4")]
#[case::over_time(
    "max_over_time(requests_total{client=\"a\"}[1m]) - min_over_time(requests_total{client=\"a\"}[1m])",
    "{client=a,server=b} 12"
)]
#[case::resets("resets(failed_total[10m])", "{client=a,server=b} 0")]
#[case::nothing("nothing", "")]
#[case::vector("scalar(vector(3)) + time()", "603")]
#[case::or_vector("sum(nothing) or vector(0)", "{} 0")]
#[case::label_replace(
    "label_replace(requests_total{client=\"a\"}, \"node\", \"$1-x\", \"server\", \"(.*)\")",
    "{__name__=requests_total,client=a,node=b-x,server=b} 120"
)]
#[case::label_removed("label_replace(old offset 6m, \"client\", \"\", \"\", \"\")", "{__name__=old,server=y} 1")]
#[case::label_join(
    "label_join(requests_total{client=\"a\"}, \"edge\", \"/\", \"client\", \"server\")",
    "{__name__=requests_total,client=a,edge=a/b,server=b} 120"
)]
#[case::absent("absent(nothing{a=\"b\",c=~\"d\",e=\"f\",e=\"g\"})", "{a=b} 1")]
#[case::not_absent("absent(requests_total)", "")]
#[case::absent_over_time("absent_over_time(old{client=\"x\"}[1m])", "{client=x} 1")]
#[case::subquery("max_over_time(rate(requests_total{client=\"a\"}[1m])[5m:15s])", "{client=a,server=b} 0.2")]
#[case::subquery_offset("min_over_time(requests_total{client=\"a\"}[2m:30s] offset 1m)", "{client=a,server=b} 84")]
#[case::count_values("count_values(\"n\", requests_total > 100)", "{n=120} 1; {n=240} 1")]
#[case::timestamp("timestamp(old offset 6m)", "{client=x,server=y} 240")]
#[case::deriv("deriv(requests_total{client=\"a\"}[5m])", "{client=a,server=b} 0.2")]
#[case::predict("predict_linear(requests_total{client=\"a\"}[5m], 60)", "{client=a,server=b} 132")]
#[case::holt_winters("holt_winters(requests_total{client=\"a\"}[1m], 0.5, 0.5)", "{client=a,server=b} 120")]
#[case::smoothed_by_its_new_name(
    "double_exponential_smoothing(requests_total{client=\"a\"}[1m], 0.5, 0.5)",
    "{client=a,server=b} 120"
)]
#[case::clamp("clamp(requests_total{client=\"a\"}, 1, 50)", "{client=a,server=b} 50")]
#[case::hour("hour() + minute(vector(3661))", "{} 1")]
#[case::spread("stddev_over_time(requests_total{client=\"a\"}[1m])", "{client=a,server=b} 4.242641")]
#[case::range_vector(
    "old[1m] offset 6m",
    "[({\"__name__\": \"old\", \"client\": \"x\", \"server\": \"y\"}, [(180000, 1.0), (195000, 1.0), (210000, 1.0), (225000, 1.0), (240000, 1.0)])]"
)]
fn queries(#[case] query: &str, #[case] expected: &str) {
    let (_, value) = evaluate(&history(), SINGLE_TENANT, query, Range::instant(600_000)).unwrap().pop().unwrap();
    assert_eq!(shown(&value), expected);
}

#[rstest]
#[case::syntax("sum(", "invalid parameter")]
#[case::function("histogram_count(requests_total)", "not supported by Coati: histogram_count()")]
#[case::same_labels("rate({__name__=~\"requests_total|failed_total\"}[5m])", "same labelset")]
#[case::bad_label("label_replace(requests_total, \"a b\", \"\", \"\", \"\")", "invalid destination label name")]
#[case::bad_regex("label_replace(requests_total, \"a\", \"\", \"\", \"(\")", "invalid regular expression")]
#[case::many_to_many("requests_total / on (client) requests_total", "many-to-many")]
#[case::deep(&format!("{}1{}", "(".repeat(200), ")".repeat(200)), "nested deeper")]
#[case::long(&"1 + ".repeat(10_000), "longer than")]
fn refusals(#[case] query: &str, #[case] expected: &str) {
    let error = evaluate(&history(), SINGLE_TENANT, query, Range::instant(600_000)).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

proptest! {
    #[test]
    fn any_query_is_answered_or_refused(query in "[a-z(){}\\[\\]0-9+*/=~\",:. -]{0,60}") {
        let _ = evaluate(&history(), SINGLE_TENANT, &query, Range::instant(600_000));
    }

    #[test]
    fn queries_that_look_like_some(
        function in prop::sample::select(vec!["rate", "increase", "irate", "delta", "idelta", "last_over_time", "changes", "deriv", "stddev_over_time"]),
        aggregation in prop::sample::select(vec!["sum", "avg", "min", "max", "count", "group", "stddev", "topk", "quantile"]),
        time in -1_000_000..1_000_000_i64,
        minutes in 1..30_u32,
    ) {
        let parameter = if matches!(aggregation, "topk" | "quantile") { "0.5," } else { "" };
        let query = format!("{aggregation}({parameter} {function}(requests_total[{minutes}m])) by (client)");
        evaluate(&history(), SINGLE_TENANT, &query, Range::instant(time)).unwrap();
    }
}

async fn ask(request: Request<Body>) -> (StatusCode, serde_json::Value) {
    let response = router(Arc::new(history()), Tenancy::new(false)).oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{body:?}")))
}

async fn get(path: &str) -> (StatusCode, serde_json::Value) {
    ask(Request::get(format!("/prometheus/api/v1/{path}")).body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn answers_look_like_those_of_prometheus() {
    let (_, answer) = get("query?query=sum(requests_total)&time=600").await;
    insta::assert_snapshot!(answer, @r#"{"data":{"result":[{"metric":{},"value":[600,"370"]}],"resultType":"vector"},"status":"success"}"#);
    let (_, answer) = get("query?query=1/0&time=1.5").await;
    insta::assert_snapshot!(answer, @r#"{"data":{"result":[1.5,"+Inf"],"resultType":"scalar"},"status":"success"}"#);
    let (_, answer) = get("query_range?query=requests_total%7Bclient%3D%22a%22%7D&start=0&end=60&step=30s").await;
    insta::assert_snapshot!(answer, @r#"{"data":{"result":[{"metric":{"__name__":"requests_total","client":"a","server":"b"},"values":[[0,"0"],[30,"6"],[60,"12"]]}],"resultType":"matrix"},"status":"success"}"#);
    let (_, answer) = get("series?match[]=failed_total&limit=1").await;
    insta::assert_snapshot!(answer, @r#"{"data":[{"__name__":"failed_total","client":"a","server":"b"}],"status":"success"}"#);
    let (_, answer) = get("labels?match[]=seconds_bucket").await;
    insta::assert_snapshot!(answer, @r#"{"data":["__name__","client","le"],"status":"success"}"#);
    let (_, answer) = get("label/__name__/values").await;
    insta::assert_snapshot!(answer, @r#"{"data":["failed_total","old","requests_total","seconds_bucket"],"status":"success"}"#);
    let (_, answer) = get("metadata").await;
    assert_eq!(answer["data"]["seconds"][0]["type"], "histogram");
    assert_eq!(answer["data"]["requests_total"][0]["type"], "counter");
    let (_, answer) = get("status/buildinfo").await;
    assert_eq!(answer["data"]["version"], "2.42.0");
}

#[tokio::test]
async fn a_query_may_be_posted_as_a_form() {
    let request = Request::post("/prometheus/api/v1/query")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Body::from("query=sum%28requests_total%29+%2B+1&time=600"))
        .unwrap();
    let (_, answer) = ask(request).await;
    assert_eq!(answer["data"]["result"][0]["value"][1], "371");
}

#[rstest]
#[case::syntax("query?query=sum(", StatusCode::BAD_REQUEST, "bad_data")]
#[case::unsupported("query?query=histogram_sum(x)", StatusCode::UNPROCESSABLE_ENTITY, "execution")]
#[case::range("query_range?query=x[5m]&start=0&end=9&step=1", StatusCode::BAD_REQUEST, "bad_data")]
#[case::step("query_range?query=1&start=0&end=9&step=0", StatusCode::BAD_REQUEST, "bad_data")]
#[case::order("query_range?query=1&start=9&end=0&step=1", StatusCode::BAD_REQUEST, "bad_data")]
#[case::points("query_range?query=1&start=0&end=20000&step=1", StatusCode::BAD_REQUEST, "bad_data")]
#[case::time("query?query=1&time=x", StatusCode::BAD_REQUEST, "bad_data")]
#[case::far("query?query=1&time=1e300", StatusCode::BAD_REQUEST, "bad_data")]
#[case::no_match("series", StatusCode::BAD_REQUEST, "bad_data")]
#[tokio::test]
async fn errors_look_like_those_of_prometheus(#[case] path: &str, #[case] status: StatusCode, #[case] kind: &str) {
    let (found, answer) = get(path).await;
    assert_eq!((found, &answer["status"], &answer["errorType"]), (status, &"error".into(), &kind.into()), "{answer}");
}
