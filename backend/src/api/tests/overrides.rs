//! What a tenant sets itself, over HTTP as Tempo has it.

use super::blocks::state_of;
use super::*;
use crate::config::Given;
use crate::generator::Generator;
use crate::overrides::Overrides;
use crate::store::MemoryStore;
use crate::telemetry::GeneratorMetrics;

const HOSTS: &str = r#"{"metrics_generator":{"processors":["host-info"]}}"#;

/// The API of several tenants; team-b has something in the file.
fn with_overrides(enabled: bool, is_open: bool) -> Router {
    let mut config = Config::default();
    config.overrides.user_configurable_overrides.enabled = enabled;
    config.given = Given::of_file("metrics_generator: {tenants: {team-b: {max_active_series: 5}}}");
    config.metrics_generator.tenants = serde_saphyr::from_str("{team-b: {max_active_series: 5}}").unwrap();
    let metrics = GeneratorMetrics::default();
    let generator = Arc::new(Generator::new(&config.metrics_generator, "", metrics.clone(), 0).unwrap());
    let overrides = Overrides::new(&config, generator, metrics);
    if is_open {
        overrides.open(Arc::new(MemoryStore::new()));
    }
    let state = state_of(fixture::live()).with_config(&config).with_overrides(Some(Arc::new(overrides)));
    router(ApiState { tenancy: Tenancy::new(true), ..state })
}

/// Status, `ETag` and body.
async fn ask(api: &Router, method: Method, path: &str, version: Option<&str>, body: &str) -> (u16, String, String) {
    let mut request = Request::builder().method(method).uri(path).header("X-Scope-OrgID", "team-a");
    if let Some(version) = version {
        request = request.header("If-Match", version);
    }
    let (status, headers, body) = send(api.clone(), request.body(Body::from(body.to_owned())).unwrap()).await;
    let etag = headers.get("etag").map(|etag| etag.to_str().unwrap().to_owned()).unwrap_or_default();
    (status.as_u16(), etag, String::from_utf8(body).unwrap())
}

#[tokio::test]
async fn overrides_are_set_shown_and_forgotten() {
    let api = with_overrides(true, true);
    let path = "/api/overrides";
    let get = || ask(&api, Method::GET, path, None, "");
    assert_eq!(get().await, (404, String::new(), String::new()));
    let set = ask(&api, Method::POST, path, Some("0"), HOSTS).await;
    assert_eq!(set, (200, "1".to_owned(), String::new()));
    assert_eq!(get().await, (200, "1".to_owned(), HOSTS.to_owned()));
    let change = r#"{"metrics_generator":{"processors":null,"generate_native_histograms":"both"}}"#;
    let patched = ask(&api, Method::PATCH, path, None, change).await;
    let expected = r#"{"metrics_generator":{"generate_native_histograms":"both"}}"#;
    assert_eq!(patched, (200, "2".to_owned(), expected.to_owned()));
    let (_, _, shown) = ask(&api, Method::GET, "/status/overrides", None, "").await;
    insta::assert_snapshot!(shown, @"
    overrides:
      team-a:
        metrics_generator:
          generate_native_histograms: both
      team-b:
        metrics_generator:
          max_active_series: 5
    ");
    let (_, _, shown) = ask(&api, Method::GET, "/status/overrides/team-b", None, "").await;
    assert!(shown.contains("max_active_series: 5") && !shown.contains("team-a"), "{shown}");
    let (status, etag, all) = ask(&api, Method::GET, "/api/overrides?scope=merged", None, "").await;
    let all: Value = serde_json::from_str(&all).unwrap();
    let generator = &all["metrics_generator"];
    assert_eq!((status, etag.as_str(), &generator["generate_native_histograms"]), (200, "2", &"both".into()));
    assert_eq!(generator["processors"], serde_json::json!(["span-metrics", "service-graphs"]));
    assert_eq!(ask(&api, Method::DELETE, path, Some("1"), "").await.0, 412);
    assert_eq!(ask(&api, Method::DELETE, path, Some("\"2\""), "").await.0, 200);
    assert_eq!(get().await.0, 404);
    assert_eq!(ask(&api, Method::GET, "/status/overrides/team-a", None, "").await.2, "overrides: {}\n");
}

#[rstest]
#[case::no_version(Method::POST, None, "{}", 428, "must specify If-Match header")]
#[case::no_version_to_delete(Method::DELETE, None, "", 428, "must specify If-Match header")]
#[case::other_version(Method::POST, Some("7"), "{}", 412, "version does not match")]
#[case::odd_version(Method::POST, Some("x"), "{}", 412, "version does not match")]
#[case::nothing_to_delete(Method::DELETE, Some("0"), "", 404, "")]
#[case::field(
    Method::POST,
    Some("0"),
    r#"{"forwarders":["x"]}"#,
    400,
    "forwarders: unknown field `forwarders`, expected `metrics_generator`"
)]
#[case::no_json(Method::PATCH, None, "{", 400, "overrides are no JSON: EOF while parsing an object at line 1 column 1")]
#[case::long(Method::PATCH, None, &"x".repeat(70_000), 413, "overrides are longer than 65536 bytes")]
#[case::method(Method::PUT, None, "{}", 405, "")]
#[tokio::test]
async fn what_is_refused_says_why(
    #[case] method: Method,
    #[case] version: Option<&str>,
    #[case] body: &str,
    #[case] status: u16,
    #[case] text: &str,
) {
    let api = with_overrides(true, true);
    let answer = ask(&api, method, "/api/overrides", version, body).await;
    assert_eq!((answer.0, answer.2.as_str()), (status, text));
    assert_eq!(ask(&api, Method::GET, "/api/overrides", None, "").await.0, 404);
}

#[tokio::test]
async fn they_are_off_or_not_there_yet() {
    let off = ask(&with_overrides(false, true), Method::GET, "/api/overrides", None, "").await;
    assert_eq!((off.0, off.2.as_str()), (404, "404 page not found"));
    let starting = ask(&with_overrides(true, false), Method::POST, "/api/overrides", Some("0"), "{}").await;
    assert_eq!((starting.0, starting.2.as_str()), (503, "the store is not open yet"));
    let scope = ask(&with_overrides(true, true), Method::GET, "/api/overrides?scope=x", None, "").await;
    assert_eq!((scope.0, scope.2.as_str()), (400, "invalid scope: x, expecting api or merged"));
    let request = Request::get("/api/overrides").header("X-Scope-OrgID", "a|b").body(Body::empty()).unwrap();
    assert_eq!(send(with_overrides(true, true), request).await.0, StatusCode::BAD_REQUEST);
}
