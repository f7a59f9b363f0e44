//! Names and values of tags.

use super::*;
use crate::api::tempopb::{SearchTagValuesV2Response, SearchTagsV2Response};

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
