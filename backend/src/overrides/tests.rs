//! What tenants set themselves: who wins, what stays, what is refused.

use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::checked_json;
use crate::config;
use crate::store::MemoryStore;
use crate::telemetry::ProcessorLabels;

const FILE: &str = "
overrides: {user_configurable_overrides: {enabled: true}}
metrics_generator:
  processors: [span-metrics]
  tenants:
    a: {max_active_series: 7, processor: {span_metrics: {dimensions: [region], enable_target_info: true}}}
";

struct Bench {
    overrides: Overrides,
    generator: Arc<Generator>,
    metrics: GeneratorMetrics,
}

fn config_of(text: &str) -> Config {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    config::read(file.path()).unwrap()
}

impl Bench {
    /// A backend that starts on this store.
    fn on(store: &MemoryStore) -> Self {
        let (config, metrics) = (config_of(FILE), GeneratorMetrics::default());
        let generator = Arc::new(Generator::new(&config.metrics_generator, "", metrics.clone(), 0).unwrap());
        let overrides = Overrides::new(&config, Arc::clone(&generator), metrics.clone());
        overrides.open(Arc::new(store.clone()));
        overrides.refresh().unwrap();
        Self { overrides, generator, metrics }
    }

    /// Whether a kind of metrics is made for a tenant.
    fn makes(&self, tenant: &str, processor: &str) -> bool {
        self.generator.count(tenant, &[], 0, self.generator.counted_to());
        self.generator.collect(1_000);
        let labels = ProcessorLabels { tenant: tenant.to_owned(), processor: processor.to_owned() };
        self.metrics.processors.get_or_create(&labels).get() == 1
    }

    fn paths(store: &MemoryStore) -> Vec<String> {
        store.list("").unwrap().into_iter().map(|object| object.path).collect()
    }
}

#[test]
fn what_was_set_is_in_force_at_once_and_after_a_restart_and_elsewhere() {
    let store = MemoryStore::new();
    let (bench, other) = (Bench::on(&store), Bench::on(&store));
    assert!(matches!(bench.overrides.get("a"), Err(OverridesError::NotThere)));
    assert!(!bench.makes("a", "host-info"));
    let body =
        br#"{"metrics_generator":{"processors":["host-info"],"processor":{"span_metrics":{"dimensions":["zone"]}}}}"#;
    assert_eq!(bench.overrides.set("a", NO_VERSION, body).unwrap(), 1);
    assert!(bench.makes("a", "host-info"));
    assert!(!bench.makes("a", "span-metrics"), "it wins over what is on for all");
    assert!(!bench.makes("b", "host-info"));
    other.overrides.refresh().unwrap();
    let restarted = Bench::on(&store);
    for bench in [&bench, &other, &restarted] {
        assert!(bench.makes("a", "host-info"));
        let said = bench.overrides.get("a").unwrap();
        assert_eq!((said.version, said.limits), (1, serde_json::from_slice(body).unwrap()));
        let shown = bench.overrides.of("a").unwrap();
        insta::allow_duplicates! {
            insta::assert_snapshot!(shown, @r#"{"max_active_series":7,"processor":{"span_metrics":{"dimensions":["zone"],"enable_target_info":true}},"processors":["host-info"]}"#);
        }
    }
    bench.overrides.delete("a", 1).unwrap();
    assert!(!bench.makes("a", "host-info"));
    assert!(matches!(bench.overrides.get("a"), Err(OverridesError::NotThere)));
    other.overrides.refresh().unwrap();
    assert!(!other.makes("a", "host-info") && !Bench::on(&store).makes("a", "host-info"));
    assert_eq!(bench.overrides.tenants(), BTreeSet::from(["a".to_owned()]), "the file still says something");
    // One object stays: versions never come again.
    assert_eq!(Bench::paths(&store), ["overrides/a/00000000000000000002.json"]);
    assert_eq!(bench.overrides.set("a", NO_VERSION, b"{}").unwrap(), 3);
}

#[test]
fn only_who_knows_the_version_changes_it() {
    let store = MemoryStore::new();
    let (one, two) = (Bench::on(&store).overrides, Bench::on(&store).overrides);
    assert!(matches!(one.set("a", 1, b"{}"), Err(OverridesError::Version)));
    assert_eq!(one.set("a", 0, b"{}").unwrap(), 1);
    assert!(matches!(two.set("a", 0, b"{}"), Err(OverridesError::Version)), "another backend was told meanwhile");
    assert_eq!(two.set("a", 1, b"{}").unwrap(), 2);
    assert!(matches!(one.delete("a", 1), Err(OverridesError::Version)));
    let patched = one.patch("a", None, br#"{"metrics_generator":{"generate_native_histograms":"both"}}"#).unwrap();
    assert_eq!(patched.version, 3);
    assert!(matches!(one.patch("a", Some(2), b"{}"), Err(OverridesError::Version)));
    assert!(matches!(one.delete("b", 0), Err(OverridesError::NotThere)));
    let patched = one.patch("a", Some(3), br#"{"metrics_generator":null,"forwarders":null}"#).unwrap();
    assert_eq!((patched.version, patched.limits), (4, json!({})));
    assert_eq!(one.patch("new", None, br#"{"forwarders":null}"#).unwrap().version, 1);
}

#[test]
fn all_that_counts_for_a_tenant_is_shown() {
    let overrides = Bench::on(&MemoryStore::new()).overrides;
    overrides
        .patch("b", None, br#"{"metrics_generator":{"processor":{"service_graphs":{"dimensions":["zone"]}}}}"#)
        .unwrap();
    let of_b = overrides.merged("b").unwrap();
    let at = |path: &str| of_b.limits.pointer(&format!("/metrics_generator{path}")).cloned().unwrap_or_default();
    assert_eq!((of_b.version, at("/processors")), (1, json!(["span-metrics"])));
    assert_eq!(at("/processor/service_graphs/dimensions"), json!(["zone"]));
    assert_eq!(at("/processor/span_metrics/enable_target_info"), json!(false));
    assert_eq!(at("/storage"), Value::Null, "where series go is nobody's business");
    let of_a = overrides.merged("a").unwrap();
    assert_eq!(
        (of_a.version, of_a.limits.pointer("/metrics_generator/max_active_series")),
        (NO_VERSION, Some(&json!(7)))
    );
    // What is shown of who has no more series than all can be set as it is.
    overrides.set("c", NO_VERSION, overrides.merged("c").unwrap().limits.to_string().as_bytes()).unwrap();
}

#[rstest]
#[case::not_honoured(r#"{"forwarders":["x"]}"#, "forwarders: unknown field `forwarders`, expected `metrics_generator`")]
#[case::not_theirs(
    r#"{"metrics_generator":{"max_active_series":9}}"#,
    "metrics_generator.max_active_series: unknown field `max_active_series`"
)]
#[case::nor_this(
    r#"{"metrics_generator":{"max_cardinality_per_label":9}}"#,
    "metrics_generator.max_cardinality_per_label: unknown field"
)]
#[case::headers(
    r#"{"metrics_generator":{"remote_write_headers":{"X-Scope-OrgID":"b"}}}"#,
    "metrics_generator.remote_write_headers: unknown field"
)]
#[case::sanitization(
    r#"{"metrics_generator":{"span_name_sanitization":"on"}}"#,
    "expected `disabled`, `dry_run` or `enabled`, found `on`"
)]
#[case::factor(
    r#"{"metrics_generator":{"native_histogram_bucket_factor":1}}"#,
    "native_histogram_bucket_factor: expected a number above 1"
)]
#[case::mapping(
    r#"{"metrics_generator":{"processor":{"span_metrics":{"dimension_mappings":[{"name":"x"}]}}}}"#,
    "dimension_mappings[0]: expected `source_labels`"
)]
#[case::policy_of_graphs(
    r#"{"metrics_generator":{"processor":{"service_graphs":{"filter_policies":[{}]}}}}"#,
    "service_graphs.filter_policies[0]: expected `include`, `include_any` or `exclude`"
)]
#[case::interval(
    r#"{"metrics_generator":{"collection_interval":"5s"}}"#,
    "metrics_generator.collection_interval: expected a time from 15s to 5m, found `5s`"
)]
#[case::not_used(
    r#"{"metrics_generator":{"processor":{"service_graphs":{"workers":2}}}}"#,
    "metrics_generator.processor.service_graphs.workers: not used: requests are counted as they come"
)]
#[case::deep(
    r#"{"metrics_generator":{"processor":{"span_metrics":{"dimension":[]}}}}"#,
    "metrics_generator.processor.span_metrics.dimension: unknown field"
)]
#[case::processor(
    r#"{"metrics_generator":{"processors":["local-blocks"]}}"#,
    "metrics_generator.processors[0]: unknown variant"
)]
#[case::histograms(
    r#"{"metrics_generator":{"generate_native_histograms":"all"}}"#,
    "expected `classic`, `native` or `both`"
)]
#[case::buckets(
    r#"{"metrics_generator":{"processor":{"span_metrics":{"histogram_buckets":[2,1]}}}}"#,
    "histogram_buckets: expected 1 to 63 rising numbers"
)]
#[case::policy(
    r#"{"metrics_generator":{"processor":{"span_metrics":{"filter_policies":[{"include":{"match_type":"regex","attributes":[{"key":"name","value":"("}]}}]}}}}"#,
    "filter_policies[0]"
)]
#[case::name(
    r#"{"metrics_generator":{"processor":{"host_info":{"metric_name":"a b"}}}}"#,
    "expected the name of a metric, found `a b`"
)]
#[case::no_object("3", "overrides: invalid type")]
#[case::no_json("{", "overrides are no JSON")]
#[case::long(&format!("\"{}\"", "x".repeat(MAX_BYTES)), "longer than 65536 bytes")]
fn what_cannot_be_used_is_named_and_changes_nothing(#[case] body: &str, #[case] expected: &str) {
    let store = MemoryStore::new();
    let overrides = Bench::on(&store).overrides;
    for error in [
        overrides.set("b", NO_VERSION, body.as_bytes()).unwrap_err(),
        overrides.patch("b", None, body.as_bytes()).unwrap_err(),
    ] {
        let text = chain(&error);
        assert!(text.contains(expected), "{text}");
    }
    assert_eq!(Bench::paths(&store), [""; 0]);
}

#[test]
fn what_is_secret_is_not_shown() {
    let file = "overrides: {user_configurable_overrides: {enabled: true}}
metrics_generator: {tenants: {a: {max_active_series: 7, remote_write_headers: {Authorization: hidden}}}}";
    let config = config_of(file);
    let generator = Arc::new(Generator::new(&config.metrics_generator, "", GeneratorMetrics::default(), 0).unwrap());
    let overrides = Overrides::new(&config, generator, GeneratorMetrics::default());
    overrides.open(Arc::new(MemoryStore::new()));
    assert_eq!(
        overrides.of("a").unwrap(),
        json!({"max_active_series": 7, "remote_write_headers": {"Authorization": "***"}})
    );
    let of_tenant = overrides.merged("a").unwrap().limits.to_string();
    assert!(of_tenant.contains(r#""max_active_series":7"#), "{of_tenant}");
    // What a tenant says does not lose them.
    overrides.patch("a", None, br#"{"metrics_generator":{"span_name_sanitization":"dry_run"}}"#).unwrap();
    assert!(overrides.of("a").unwrap().to_string().contains("***"));
    for text in [of_tenant, overrides.merged("a").unwrap().limits.to_string()] {
        assert!(!text.contains("hidden") && !text.contains("remote_write_headers"), "{text}");
    }
}

#[test]
fn the_file_that_changes_stays_below_what_tenants_set() {
    let bench = Bench::on(&MemoryStore::new());
    bench.overrides.patch("a", None, br#"{"metrics_generator":{"processors":["host-info"]}}"#).unwrap();
    let file = "metrics_generator: {processors: [span-metrics], tenants: {a: {processors: [service-graphs]}, c: {processors: []}}}";
    bench.overrides.set_file(&config_of(file)).unwrap();
    let made = |tenant: &str| ["host-info", "service-graphs", "span-metrics"].map(|name| bench.makes(tenant, name));
    assert_eq!(made("a"), [true, false, false]);
    assert_eq!(made("c"), [false; 3]);
}

#[test]
fn what_is_damaged_in_the_store_is_told_and_changes_nothing() {
    let store = MemoryStore::new();
    let bench = Bench::on(&store);
    bench.overrides.patch("a", None, br#"{"metrics_generator":{"processors":["host-info"]}}"#).unwrap();
    for (name, content) in
        [("a/00000000000000000002.json", "{}"), ("b/00000000000000000001.json", "x"), ("a/notes.txt", "")]
    {
        store.create(&format!("overrides/{name}"), content.into()).unwrap();
    }
    bench.overrides.refresh().unwrap();
    assert_eq!(bench.metrics.failed_overrides.get(), 2);
    assert!(bench.makes("a", "host-info"));
    assert!(matches!(bench.overrides.set("a", 1, b"{}"), Err(OverridesError::Unreadable { .. })));
}

#[test]
fn a_fixture_of_this_format_is_read() {
    let bytes = include_bytes!("../../tests/fixtures/overrides-1.json");
    let stored = Stored::decode(bytes).unwrap();
    assert_eq!(
        (stored.version, stored.said().unwrap().limits),
        (12, json!({"metrics_generator": {"processors": ["host-info"]}}))
    );
    assert_eq!(stored.encode(), bytes);
    for end in 0..bytes.len() {
        Stored::decode(&bytes[..end]).unwrap_err();
    }
    let later = checked_json::encode(&json!({"format": 2})).unwrap();
    assert_eq!(Stored::decode(&later).unwrap_err().to_string(), "it has format 2");
}

/// JSON of any kind.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), (0..3).prop_map(Value::from)];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[abc]", inner, 0..3)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn bytes_of_any_kind_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        prop_assert!(check_stored(&bytes));
    }

    #[test]
    fn what_was_patched_once_is_not_changed_by_the_same_patch(target in value(), patch in value()) {
        let mut once = target;
        merge_patch(&mut once, patch.clone());
        let mut twice = once.clone();
        merge_patch(&mut twice, patch);
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn what_is_put_over_wins(below in value(), above in value()) {
        let mut joined = below;
        put_over(&mut joined, &above);
        let mut again = joined.clone();
        put_over(&mut again, &above);
        prop_assert_eq!(joined, again);
    }
}
