//! What Grafana's Traces Drilldown asks, word for word, with its limits.

use super::*;

/// What a tab looks at first, and how many of the shop's spans that are.
const SIGNALS: [(&str, u64); 5] =
    [("nestedSetParent<0", 1), ("true", 6), ("kind=server", 2), ("kind=consumer", 0), ("span.db.system.name!=\"\"", 0)];

async fn series(query: &str, step: &str) -> Vec<Value> {
    let path = format!(
        "/api/metrics/query_range?q={}&start={}&end={}&step={step}",
        encoded(query),
        SECOND - 1_800,
        SECOND + 1_800
    );
    let body: Value = serde_json::from_str(&json(&path).await).unwrap();
    body["series"].as_array().unwrap().clone()
}

fn total(series: &Value) -> f64 {
    series["samples"].as_array().unwrap().iter().filter_map(|sample| sample["value"].as_f64()).sum()
}

fn label<'s>(series: &'s Value, name: &str) -> &'s Value {
    let labels = series["labels"].as_array().unwrap();
    labels.iter().find(|label| label["key"] == name).map_or(&Value::Null, |label| &label["value"])
}

#[tokio::test]
async fn health_probe() {
    let path = format!("/api/metrics/query_range?q={}&start={}&end={SECOND}", encoded("{} | rate()"), SECOND - 60);
    assert!(json(&path).await.contains(r#""stringValue":"rate""#));
}

#[tokio::test]
async fn red_panels() {
    for (signal, spans) in SIGNALS {
        let rate = series(&format!("{{{signal} && true}} | rate() "), "15s").await;
        assert_eq!((total(&rate[0]) * 15.0).round() as u64, spans, "{signal}");
        let errors = series(&format!("{{{signal} && true && status=error}} | rate() "), "15s").await;
        assert_eq!(total(&errors[0]) > 0.0, ["true", "kind=server"].contains(&signal), "{signal}");
        let query = format!("{{{signal} && true}} | quantile_over_time(duration, 0.5, 0.9) ");
        let quantiles = series(&query, "15s").await;
        assert_eq!(quantiles.len(), if spans > 0 { 2 } else { 0 }, "{signal}");
        if let [_, p90] = quantiles.as_slice() {
            assert_eq!(label(p90, "p")["doubleValue"], 0.9);
        }
    }
}

#[tokio::test]
async fn duration_heatmap() {
    let buckets = series("{nestedSetParent<0 && true} | histogram_over_time(duration) with(sample=true)", "15s").await;
    assert_eq!(buckets.len(), 1);
    assert_eq!(
        (label(&buckets[0], "__bucket")["doubleValue"].as_f64(), total(&buckets[0]) as u64),
        (Some(0.536_870_912), 1)
    );
}

#[tokio::test]
async fn time_seeker() {
    let query = encoded("{nestedSetParent<0 && true} | rate() with(sample=true)");
    let path = format!("/api/metrics/query_range?q={query}&start={}&end={}&step=30s", SECOND - 43_200, SECOND + 43_200);
    let body: Value = serde_json::from_str(&json(&path).await).unwrap();
    assert_eq!(body["series"][0]["samples"].as_array().unwrap().len(), 2_881);
}

#[rstest]
#[case::resource("resource.service.name", &["cart", "frontend"])]
#[case::span("span.http.route", &["/items"])]
#[case::intrinsic("rootServiceName", &["frontend"])]
#[tokio::test]
async fn breakdown(#[case] attribute: &str, #[case] values: &[&str]) {
    for function in ["rate()", "quantile_over_time(duration, 0.9)"] {
        let found =
            series(&format!("{{true && true && {attribute} != nil}} | {function} by({attribute})"), "15s").await;
        let found: Vec<_> = found.iter().map(|series| label(series, attribute)["stringValue"].clone()).collect();
        assert_eq!(found, values, "{function}");
    }
    let tile = format!("{{true && true && {attribute}=\"{}\"}} | rate() by({attribute})", values[0]);
    assert_eq!(series(&tile, "15s").await.len(), 1);
}

/// The step is the whole range, so every series has one value, of exactly this range.
#[rstest]
#[case::errors("{status = error}, 10", 1)]
#[case::duration("{duration >= 10ms && duration <= 380ms}, 10", 4)]
#[case::time("{duration >= 10ms && duration <= 380ms}, 10, 1767225600025000000, 1767225600500000000", 3)]
#[tokio::test]
async fn comparison(#[case] arguments: &str, #[case] selected: u64) {
    let found = series(&format!("{{true && true}} | compare({arguments})"), "3600s").await;
    assert!(found.iter().all(|series| series["samples"].as_array().unwrap().len() == 1));
    let of = |kind: &str, attribute: &str| -> u64 {
        let of_kind = found.iter().filter(|series| label(series, "__meta_type")["stringValue"] == kind);
        of_kind.filter(|series| !label(series, attribute).is_null()).map(|series| total(series) as u64).sum()
    };
    for kind in ["selection", "selection_total"] {
        assert_eq!(of(kind, "resource.service.name"), selected);
        assert_eq!(of(kind, "name"), selected);
    }
    assert_eq!(of("baseline_total", "status"), 6 - selected);
    assert!(found.iter().any(|series| label(series, "span.http.status_code")["intValue"] == "500"));
}

const STRUCTURE: &str = "select(status, resource.service.name, name, nestedSetParent, nestedSetLeft, nestedSetRight)";

#[rstest]
#[case::rate("{nestedSetParent<0 && true }", "{ kind = server }", 2)]
#[case::errors("{true && true && status = error }", "{ status = error }", 1)]
#[case::duration("{nestedSetParent<0 && true && duration > 300ms }", "{ duration > 300ms }", 3)]
#[tokio::test]
async fn structure(#[case] signal: &str, #[case] below: &str, #[case] spans: usize) {
    let query = format!("({signal} &>> {below}) || ({signal}) | {STRUCTURE}");
    let body: Value = serde_json::from_str(&search(&query, "&limit=200&spss=20").await).unwrap();
    let traces = body["traces"].as_array().unwrap();
    assert!(!traces.is_empty());
    for trace in traces {
        let sets = trace["spanSets"].as_array().unwrap();
        assert_eq!(sets.len(), 1);
        let found = sets[0]["spans"].as_array().unwrap();
        assert_eq!(found.len(), spans);
        for span in found {
            let keys: Vec<_> =
                span["attributes"].as_array().unwrap().iter().map(|kv| kv["key"].as_str().unwrap()).collect();
            for key in ["status", "service.name", "nestedSetParent", "nestedSetLeft", "nestedSetRight"] {
                assert!(keys.contains(&key), "{key} in {keys:?}");
            }
            assert!(span["name"].is_string());
        }
    }
}

#[tokio::test]
async fn exceptions() {
    let query = "{true && true && status = error} | select(resource.service.name, \
                 event.exception.message,event.exception.stacktrace,event.exception.type) with(most_recent=true)";
    let body = search(query, "&limit=400&spss=10").await;
    let body: Value = serde_json::from_str(&body).unwrap();
    let attributes = body["traces"][0]["spanSets"][0]["spans"][0]["attributes"].as_array().unwrap();
    let keys: Vec<_> = attributes.iter().map(|kv| kv["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["status", "service.name", "exception.message", "exception.stacktrace", "exception.type"]);
}

#[rstest]
#[case::errors("{true && true && status = error}")]
#[case::slow("{true && true && duration > 300ms} | select(resource.service.name, span.http.status_code)")]
#[tokio::test]
async fn traces_list(#[case] query: &str) {
    let body: Value = serde_json::from_str(&search(query, "&limit=200&spss=10").await).unwrap();
    assert_eq!(body["traces"].as_array().unwrap().len(), 1);
}
