//! Guarantee: a span is found within a second of its acknowledgement, by search, by tag names and by tag values, also
//! while other spans pour in.

#![expect(clippy::indexing_slicing, reason = "indexing JSON gives null, it never panics")]
#![expect(clippy::print_stdout, reason = "the measured times are the point")]

mod otlp;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use coati_tests::backend::Backend;
use coati_tests::http;
use prost::Message;
use serde_json::Value;

const ROUNDS: u64 = 40;
const WITHIN: Duration = Duration::from_secs(1);

#[test]
fn an_acknowledged_span_is_found_within_a_second() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let backend = Backend::start(folder.path(), &[])?;
    let stop = AtomicBool::new(false);
    let url = format!("http://{}/v1/traces", backend.otlp_http);
    thread::scope(|scope| {
        let noise = scope.spawn(|| noise(&url, &stop));
        let measured = measure(&backend);
        stop.store(true, Ordering::Relaxed);
        let requests = noise.join().map_err(|_| anyhow::anyhow!("the noise's thread panicked"))??;
        ensure!(requests >= ROUNDS / 4, "only {requests} other requests came meanwhile");
        measured
    })
}

/// Other traffic: 20 spans a request, as fast as they are acknowledged.
fn noise(url: &str, stop: &AtomicBool) -> Result<u64> {
    let mut requests = 0;
    while !stop.load(Ordering::Relaxed) {
        requests += 1;
        let spans = (0..20).map(|number| otlp::span(u128::from(requests) << 64, number + 1, "noise")).collect();
        let answer = http::post(url, otlp::PROTOBUF, &otlp::request("noise", spans).encode_to_vec())?;
        ensure!(answer.status == 200, "status {}: {}", answer.status, answer.text());
        thread::sleep(Duration::from_millis(1));
    }
    Ok(requests)
}

fn measure(backend: &Backend) -> Result<()> {
    let (mut by_search, mut by_name, mut by_value) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let (key, value) = (format!("fresh.key.{round}"), format!("value {round}"));
        let mut span = otlp::span(u128::from(round), round, &format!("fresh {round}"));
        span.attributes.push(otlp::text(&key, &value));
        otlp::store(backend, &otlp::request("fresh", vec![span]))?;
        let acknowledged = Instant::now();

        let query = format!("{{ name = \"fresh {round}\" && span.{key} = \"{value}\" }}");
        by_search.push(until(acknowledged, &query, || Ok(backend.count(&query)? == 1))?);
        by_name.push(until(acknowledged, &format!("tag name {key}"), || {
            let answer = backend.get("/api/v2/search/tags?scope=span")?.json()?;
            let scopes = list(&answer["scopes"]).iter();
            Ok(scopes.flat_map(|scope| list(&scope["tags"])).any(|tag| tag == key.as_str()))
        })?);
        by_value.push(until(acknowledged, &format!("value of {key}"), || {
            let v2 = backend.get(&format!("/api/v2/search/tag/span.{key}/values"))?.json()?;
            let v1 = backend.get(&format!("/api/search/tag/{key}/values"))?.json()?;
            Ok(list(&v2["tagValues"]).iter().any(|found| found["value"] == value.as_str())
                && list(&v1["tagValues"]).iter().any(|found| found == value.as_str()))
        })?);
    }
    for (what, times) in [("search", &by_search), ("tag names", &by_name), ("tag values", &by_value)] {
        println!("{what}: at most {:?} after the acknowledgement", times.iter().max().unwrap_or(&WITHIN));
    }
    Ok(())
}

/// Asks until the answer is yes; how long that took since `acknowledged`.
fn until(acknowledged: Instant, what: &str, mut found: impl FnMut() -> Result<bool>) -> Result<Duration> {
    loop {
        if found()? {
            let taken = acknowledged.elapsed();
            ensure!(taken < WITHIN, "{what} was found after {taken:?}");
            return Ok(taken);
        }
        if acknowledged.elapsed() > WITHIN {
            bail!("{what} was not found within {WITHIN:?}");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
