//! Queries as tools for language models.

use super::*;

async fn call_on(api: Router, body: &str) -> (StatusCode, Value) {
    let (status, _, body) = send(api, Request::post("/api/mcp").body(Body::from(body.to_owned())).unwrap()).await;
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

fn with_mcp() -> Router {
    limited(QueryConfig { mcp: true, ..QueryConfig::default() })
}

async fn result(method: &str, parameters: &Value) -> Value {
    let message = serde_json::json!({ "jsonrpc": "2.0", "id": 7, "method": method, "params": parameters });
    let (status, answer) = call_on(with_mcp(), &message.to_string()).await;
    assert_eq!((status, &answer["jsonrpc"], &answer["id"]), (StatusCode::OK, &"2.0".into(), &7.into()), "{answer}");
    answer
}

/// The text of a tool, and whether it is an error.
async fn tool(name: &str, arguments: Value) -> (String, bool) {
    let answer = result("tools/call", &serde_json::json!({ "name": name, "arguments": arguments })).await;
    let result = &answer["result"];
    (result["content"][0]["text"].as_str().unwrap().to_owned(), result["isError"].as_bool().unwrap())
}

#[tokio::test]
async fn is_off_unless_asked_for() {
    assert_eq!(call_on(api(), "{}").await.0, StatusCode::NOT_FOUND);
}

#[rstest]
#[case::known("2025-03-26", "2025-03-26")]
#[case::unknown("1999-01-01", "2025-06-18")]
#[tokio::test]
async fn introduces_itself(#[case] asked: &str, #[case] spoken: &str) {
    let answer = result("initialize", &serde_json::json!({ "protocolVersion": asked })).await;
    assert_eq!(answer["result"]["protocolVersion"], spoken);
    assert_eq!(answer["result"]["serverInfo"]["name"], "coati");
    let notification = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    assert_eq!(call_on(with_mcp(), notification).await.0, StatusCode::ACCEPTED);
    assert_eq!(result("ping", &Value::Null).await["result"], serde_json::json!({}));
}

#[tokio::test]
async fn offers_tempos_tools() {
    let answer = result("tools/list", &Value::Null).await;
    let names: Vec<_> = answer["result"]["tools"].as_array().unwrap().iter().map(|tool| tool["name"].clone()).collect();
    let expected = [
        "traceql-search",
        "traceql-metrics-instant",
        "traceql-metrics-range",
        "get-trace",
        "trace-diff",
        "get-attribute-names",
        "get-attribute-values",
        "docs-traceql",
        "docs-config",
    ];
    assert_eq!(names, expected);
    assert_eq!(answer["result"]["tools"][0]["inputSchema"]["required"], serde_json::json!(["query"]));
}

#[rstest]
#[case::search(
    "traceql-search",
    r#"{"query":"{ status = error }","start":"2026-01-01T00:00:00Z","end":"2026-01-01T00:01:00Z"}"#,
    SHOP
)]
#[case::other_time(
    "traceql-search",
    r#"{"query":"{}","start":"2020-01-01T00:00:00Z","end":"2020-01-01T00:01:00Z"}"#,
    "\"traces\":[]"
)]
#[case::instant(
    "traceql-metrics-instant",
    r#"{"query":"{} | count_over_time()","start":"2025-12-31T23:59:59Z","end":"2026-01-01T00:01:00Z"}"#,
    "\"value\":6"
)]
#[case::range(
    "traceql-metrics-range",
    r#"{"query":"{} | rate()","start":"2025-12-31T23:59:59Z","end":"2026-01-01T00:01:00Z"}"#,
    "\"samples\":["
)]
#[case::trace("get-trace", r#"{"trace_id":"a1b02030405060708090a0b0c0d0e"}"#, "\"serviceName\":\"cart\"")]
#[case::diff(
    "trace-diff",
    r#"{"base_trace_id":"a1b02030405060708090a0b0c0d0e","compare_trace_id":"ffffffffffffffffffffffffffffffff"}"#,
    "\"version\":\"trace-summary-v0-composed\""
)]
#[case::names("get-attribute-names", r#"{"scope":"resource"}"#, "service.name")]
#[case::values("get-attribute-values", r#"{"name":"resource.service.name"}"#, "\"string\":[\"cart\"")]
#[case::values_of_a_query(
    "get-attribute-values",
    r#"{"name":"resource.service.name","filter-query":"{ status = error }"}"#,
    "{\"string\":[\"cart\"]}"
)]
#[case::docs("docs-traceql", r#"{"name":"structural"}"#, "B somewhere below A")]
#[case::config("docs-config", "{}", "docs-config")]
#[tokio::test]
async fn tools_answer(#[case] name: &str, #[case] arguments: &str, #[case] part: &str) {
    let (text, is_error) = tool(name, serde_json::from_str(arguments).unwrap()).await;
    assert!(!is_error && text.contains(part), "{text}");
}

#[rstest]
#[case::query("traceql-search", r#"{"query":"{ nmae = 1 }"}"#, "did you mean \"name\"?\n{ nmae = 1 }\n  ^")]
#[case::argument("traceql-search", "{}", "the argument query is missing")]
#[case::time("traceql-search", r#"{"query":"{}","start":"soon"}"#, "could not parse 'start'")]
#[case::diff("trace-diff", r#"{"base_trace_id":"1","compare_trace_id":"2"}"#, "status 404")]
#[case::docs("docs-traceql", r#"{"name":"nope"}"#, "there is no documentation called \"nope\"")]
#[tokio::test]
async fn what_is_wrong_is_told_to_the_model(#[case] name: &str, #[case] arguments: &str, #[case] part: &str) {
    let (text, is_error) = tool(name, serde_json::from_str(arguments).unwrap()).await;
    assert!(is_error && text.contains(part), "{text}");
}

#[tokio::test]
async fn documents_can_be_read() {
    let list = result("resources/list", &Value::Null).await;
    let list = list["result"]["resources"].as_array().unwrap().clone();
    assert_eq!(list.len(), 7);
    for resource in list {
        let read = result("resources/read", &serde_json::json!({ "uri": resource["uri"] })).await;
        assert!(read["result"]["contents"][0]["text"].as_str().unwrap().len() > 200, "{resource}");
    }
}

#[rstest]
#[case::no_json("x", -32_700)]
#[case::no_method(r#"{"id":1}"#, -32_600)]
#[case::unknown_method(r#"{"id":1,"method":"nope"}"#, -32_601)]
#[case::unknown_tool(r#"{"id":1,"method":"tools/call","params":{"name":"nope"}}"#, -32_602)]
#[case::unknown_resource(r#"{"id":1,"method":"resources/read","params":{"uri":"docs://x"}}"#, -32_602)]
#[tokio::test]
async fn what_is_no_request_has_a_number(#[case] body: &str, #[case] code: i32) {
    let (status, answer) = call_on(with_mcp(), body).await;
    assert_eq!((status, answer["error"]["code"].as_i64()), (StatusCode::OK, Some(code.into())));
}

#[tokio::test]
async fn only_posts_are_taken() {
    let (status, ..) = send(with_mcp(), Request::get("/api/mcp").body(Body::empty()).unwrap()).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
}
