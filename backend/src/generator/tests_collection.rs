//! When samples are taken of which tenant.

use super::collected::{PointValue, SeriesState};
use super::expose::expose;
use super::tests::{NOW_MS, generator, of, span};
use super::*;

const SECOND: u64 = 1_000;

fn count(generator: &Generator, tenant: &str, sequence: u64) {
    generator.count(tenant, &of("shop", vec![span(1, sequence as u8, 0, 50, &[])]), NOW_MS * 1_000_000, sequence);
}

/// What is collected so many seconds later, if it is the time for it: calls of each tenant, and since when they are counted
/// if they are new.
fn due(generator: &Generator, seconds: u64) -> Vec<String> {
    let collected = generator.collect_of(Whose::Due, NOW_MS + seconds * SECOND);
    let mut found = Vec::new();
    for tenant in collected.sampled() {
        tenant.points(|point| {
            let is_calls = point.labels.contains(&("__name__", "traces_spanmetrics_calls_total"));
            let PointValue::Float(value) = point.value else { return };
            if is_calls && point.state != SeriesState::Gone {
                let begins = point.begins(tenant, collected.time_ms).map(|begin| (begin - 1 - NOW_MS) / SECOND);
                let begins = begins.map(|begin| format!(" since {begin}")).unwrap_or_default();
                found.push(format!("{} {value}{begins}", tenant.tenant));
            }
        });
    }
    found.sort();
    found
}

const YAML: &str = "
registry: {collection_interval: 10s}
tenants: {slow: {collection_interval: 30s}, quick: {collection_interval: 5s}, none: {disable_collection: true}}
";

#[test]
fn a_tenant_has_its_own_time() {
    let generator = generator(YAML);
    for (sequence, tenant) in (1..).zip(["all", "slow", "quick", "none"]) {
        count(&generator, tenant, sequence);
    }
    let next = |seconds: u64| generator.next_collection(NOW_MS + seconds * SECOND);
    assert_eq!(next(1), Some(Duration::from_secs(4)));
    assert_eq!(due(&generator, 4), Vec::<String>::new());
    assert_eq!(due(&generator, 5), ["quick 1 since 0"]);
    assert_eq!(next(5), Some(Duration::from_secs(5)));
    assert_eq!(due(&generator, 10), ["all 1 since 0", "quick 1"]);
    count(&generator, "slow", 5);
    count(&generator, "none", 6);
    assert_eq!(due(&generator, 20), ["all 1", "quick 1"]);
    // A timer is early or late at times.
    assert_eq!(due(&generator, 29), ["all 1", "quick 1", "slow 2 since 0"]);
    assert_eq!(due(&generator, 31), Vec::<String>::new());
    // At the end everything is told that may be.
    let last = generator.collect(NOW_MS + 32 * SECOND);
    let mut told: Vec<_> = last.sampled().map(|tenant| &*tenant.tenant).collect();
    told.sort_unstable();
    assert_eq!(told, ["all", "quick", "slow"]);
}

#[test]
fn a_series_of_which_no_samples_were_taken_is_new_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let before = generator(YAML);
    count(&before, "slow", 1);
    count(&before, "all", 2);
    state::save(&path, &before.collect_of(Whose::Due, NOW_MS + 10 * SECOND)).unwrap();
    let after = generator(YAML);
    assert!(after.restore(&path).unwrap());
    count(&after, "slow", 3);
    assert_eq!(due(&after, 20), ["all 1"]);
    assert_eq!(due(&after, 40), ["all 1", "slow 2 since 10"]);
}

/// Its spans count, and its stale series end, as if somebody were told.
#[test]
fn who_wants_no_samples_goes_on_when_it_wants_them_again() {
    let generator = generator("registry: {stale_duration: 60s, collection_interval: 10s}");
    count(&generator, "a", 1);
    assert_eq!(due(&generator, 10), ["a 1 since 0"]);
    let latest = Latest::default();
    latest.set(&generator.collect(NOW_MS + 11 * SECOND));
    let shown = |latest: &Latest| expose(latest.get("a").as_deref()).lines().count();
    assert!(shown(&latest) > 1);

    generator.set_tenants(&serde_saphyr::from_str("a: {disable_collection: true}").unwrap()).unwrap();
    count(&generator, "a", 2);
    assert_eq!(due(&generator, 30), Vec::<String>::new());
    latest.set(&generator.collect(NOW_MS + 31 * SECOND));
    assert_eq!(shown(&latest), 1, "what was there before is not shown as if it were new");
    generator.set_tenants(&BTreeMap::new()).unwrap();
    assert_eq!(due(&generator, 50), ["a 2"]);
    generator.set_tenants(&serde_saphyr::from_str("a: {disable_collection: true}").unwrap()).unwrap();
    due(&generator, 61);
    assert_eq!(generator.counted().tenants["a"].room.series.active, 0);
}

#[test]
fn exemplars_have_the_label_that_the_tenant_wants() {
    let generator = generator("trace_id_label_name: trace_id\ntenants: {a: {trace_id_label_name: traceId}}");
    for (sequence, (tenant, label)) in (1..).zip([("a", "# {traceId=\""), ("b", "# {trace_id=\"")]) {
        count(&generator, tenant, 2 * sequence);
        generator.collect(NOW_MS + 4 * sequence * SECOND);
        count(&generator, tenant, 2 * sequence + 1);
        let collected = generator.collect(NOW_MS + (4 * sequence + 1) * SECOND);
        let text = expose(collected.tenants.iter().find(|found| &*found.tenant == tenant).map(AsRef::as_ref));
        assert!(text.contains(label), "{text}");
    }
}
