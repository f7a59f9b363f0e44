//! Several tenants are asked at once: the shop is one's and lies in a block, the job another's and lies in memory.

use super::blocks::{with_a_block, with_a_block_of, without_metrics};
use super::*;

async fn ask(state: &ApiState, path: &str, tenants: &str) -> (u16, String) {
    let request = Request::get(path).header("X-Scope-OrgID", tenants).body(Body::empty()).unwrap();
    let (status, _, body) = send(router(state.clone()), request).await;
    (status.as_u16(), String::from_utf8(body).unwrap())
}

fn of_two_tenants() -> ApiState {
    let (state, ..) = with_a_block_of("a", "b");
    ApiState { tenancy: Tenancy::new(true), catalog: Arc::new(catalog_of("a", "b")), ..state }
}

/// What two tenants have together is what one would answer who has all of it.
#[rstest]
#[case::search("/api/search?q={}&spss=0")]
#[case::one_trace("/api/search?q={}&limit=1")]
#[case::pages("/api/search?q={}&limit=1&offset=1")]
#[case::by_duration("/api/search?q={}&orderBy=duration")]
#[case::tags("/api/search/tags")]
#[case::tags_of_a_query("/api/v2/search/tags?q={name!=\"x\"}")]
#[case::values("/api/search/tag/service.name/values")]
#[case::typed_values("/api/v2/search/tag/resource.service.name/values")]
#[case::values_of_a_query("/api/v2/search/tag/name/values?q={kind!=server}")]
#[case::range("/api/metrics/query_range?q={}|rate()by(resource.service.name)&start=1767225600&end=1767232800&step=60s")]
#[case::instant("/api/metrics/query?q={}|count_over_time()&start=1767225600&end=1767232800")]
#[case::shop("/api/v2/traces/a1b02030405060708090a0b0c0d0e")]
#[case::job("/api/traces/ffffffffffffffffffffffffffffffff")]
#[tokio::test]
async fn several_tenants_answer_as_one(#[case] path: &str) {
    let path = path.replace('{', "%7B").replace('}', "%7D").replace('|', "%7C").replace('"', "%22");
    let expected = ask(&with_a_block().0, &path, "").await;
    let found = ask(&of_two_tenants(), &path, "b|a").await;
    assert_eq!((expected.0, found.0), (200, 200), "{}", found.1);
    assert_eq!(without_metrics(&found.1), without_metrics(&expected.1));
}

#[tokio::test]
async fn a_trace_that_two_tenants_have_is_answered_once() {
    let state = of_two_tenants();
    // The shop asked a bank, whose spans are the other tenant's: after all others.
    let bank = fixture::service("bank", &[], "http", vec![fixture::span(fixture::SHOP, 99, 1, "POST /pay", 600, 100)]);
    let request =
        opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest { resource_spans: vec![bank] };
    state.live.insert("b", crate::live::group_message(&request), fixture::EPOCH, 1);
    for (query, order, matched) in [("{}", "", 7), ("{}", "&orderBy=duration", 7), ("{name=\"POST /pay\"}", "", 1)] {
        let path = format!("/api/search?q={}&spss=0&total=true{order}", encoded(query));
        for tenants in ["a|b", "b|a"] {
            let (_, body) = ask(&state, &path, tenants).await;
            let body: Value = serde_json::from_str(&body).unwrap();
            let traces = body["traces"].as_array().unwrap();
            let shop: Vec<_> = traces.iter().filter(|trace| trace["traceID"] == SHOP).collect();
            assert_eq!(shop.len(), 1, "{query} {tenants}: {body}");
            assert_eq!(shop[0]["spanSets"][0]["matched"], matched, "{query} {tenants}: {body}");
            assert_eq!(shop[0]["spanSets"][0]["spans"].as_array().unwrap().len(), matched);
            if query == "{}" {
                assert_eq!((&shop[0]["durationMs"], &shop[0]["rootServiceName"]), (&700.into(), &"frontend".into()));
                assert_eq!(shop[0]["serviceStats"]["bank"]["spanCount"], 1, "{body}");
            }
        }
    }
    let path = format!("/api/search?q={}&limit=1&total=true", encoded("{}"));
    let request = Request::get(path).header("X-Scope-OrgID", "a|b").body(Body::empty()).unwrap();
    let (_, headers, _) = send(router(state), request).await;
    assert_eq!(headers["coati-total-traces"], "2");
}

#[tokio::test]
async fn each_tenant_has_its_own() {
    let state = of_two_tenants();
    for (tenants, services) in
        [("a", "cart,frontend"), ("b", "job"), ("a|b", "cart,frontend,job"), ("a|c", "cart,frontend")]
    {
        for path in ["/api/search/tag/service.name/values", "/api/search/tag/service.name/values?q=%7Bname!=%22x%22%7D"]
        {
            let (status, body) = ask(&state, path, tenants).await;
            let body: Value = serde_json::from_str(&body).unwrap();
            let values: Vec<_> =
                body["tagValues"].as_array().unwrap().iter().map(|value| value.as_str().unwrap()).collect();
            assert_eq!((status, values.join(",").as_str()), (200, services), "{tenants} {path}");
        }
    }
    let both = "/api/traces/a1b02030405060708090a0b0c0d0e";
    assert_eq!([ask(&state, both, "b").await.0, ask(&state, both, "b|a").await.0], [404, 200]);
}

#[rstest]
#[case::nobody("", 401, "no org id")]
#[case::half("a|", 400, "tenant ID 'x-scope-orgid' is invalid: at most 150 letters, digits and !-_.*'() are allowed")]
#[tokio::test]
async fn names_that_are_none(#[case] tenants: &str, #[case] status: u16, #[case] text: &str) {
    let answer = ask(&of_two_tenants(), "/api/search?q=%7B%7D", tenants).await;
    assert_eq!(answer, (status, text.to_owned()));
}
