//! Two traces compared, through the router.

use super::*;

async fn post(body: &str) -> (u16, String) {
    let (status, _, body) =
        send(api(), Request::post("/api/v2/traces/diff").body(Body::from(body.to_owned())).unwrap()).await;
    (status.as_u16(), String::from_utf8(body).unwrap())
}

const JOB: &str = "ffffffffffffffffffffffffffffffff";

fn of(base: &str, compare: &str, more: &str) -> String {
    format!(r#"{{"base":{{"traceId":"{base}","start":1,"end":2}},"compare":{{"traceId":"{compare}"}}{more}}}"#)
}

#[rstest]
#[case::default("", "trace-patch-v0")]
#[case::patch(r#","format":"trace-patch-v0""#, "trace-patch-v0")]
#[case::summary(r#","format":"trace-summary-v0-native""#, "trace-summary-v0-native")]
#[case::composed(r#","format":"trace-summary-v0-composed""#, "trace-summary-v0-composed")]
#[tokio::test]
async fn formats(#[case] format: &str, #[case] version: &str) {
    let (status, body) = post(&of(SHOP, JOB, format)).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &answer["version"]), (200, &version.into()));
}

#[tokio::test]
async fn a_trace_does_not_differ_from_itself() {
    let (_, body) = post(&of(SHOP, SHOP, "")).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(answer["stats"]["matchedSpans"], answer["stats"]["spanCountA"]);
    assert_eq!(answer["base"]["traceId"], format!("{SHOP:0>32}"));
    for list in ["modified", "added", "removed"] {
        assert_eq!(answer[list], Value::Array(Vec::new()), "{list}");
    }
}

#[rstest]
#[case::no_json("{", 400, "invalid trace diff request: EOF while parsing")]
#[case::one_trace(r#"{"base":{"traceId":"1"}}"#, 400, "missing field `compare`")]
#[case::no_id(&of(SHOP, "", ""), 400, "invalid trace diff request: compare.traceId is missing")]
#[case::wrong_id(&of("xyz", SHOP, ""), 400, "invalid character 'x' at position 1")]
#[case::format(&of(SHOP, JOB, r#","format":"text""#), 400, "format \"text\" is none of trace-patch-v0, ")]
#[case::time(
    &format!(r#"{{"base":{{"traceId":"1","start":3,"end":2}},"compare":{{"traceId":"{SHOP}"}}}}"#), 400,
    "base.start is after base.end"
)]
#[case::unknown(&of(SHOP, "1", ""), 404, "trace 00000000000000000000000000000001 is not there")]
#[tokio::test]
async fn what_is_wrong_is_told(#[case] body: &str, #[case] status: u16, #[case] part: &str) {
    let (got, text) = post(body).await;
    assert!(got == status && text.contains(part), "{got} {text}");
}

#[tokio::test]
async fn only_post_is_taken() {
    assert_eq!(get("/api/v2/traces/diff").await.0, 405);
}
