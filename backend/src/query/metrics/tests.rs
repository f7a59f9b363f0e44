use std::sync::Arc;

use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::live::{Limits, LiveSet, Trace};
use crate::query::fixture::{EPOCH, attributes, int, live, service, span, text};
use crate::query::{PlanError, fixture};
use crate::traceql;

const MS: u64 = 1_000_000;

fn plan(query: &str) -> MetricsPlan {
    let query = traceql::parse(query).unwrap_or_else(|error| panic!("{query}: {error}"));
    MetricsPlan::new(&query).unwrap().unwrap()
}

/// The first half second, in steps of 250 ms.
fn request(query: &str) -> MetricsRequest {
    MetricsRequest {
        plan: plan(query),
        intervals: Intervals::range(EPOCH, EPOCH + 500 * MS, 250 * MS),
        exemplars: 0,
        max_series: 0,
        max_bytes: 1 << 20,
    }
}

fn instant(query: &str) -> MetricsRequest {
    MetricsRequest { intervals: Intervals::instant(EPOCH, EPOCH + 500 * MS), ..request(query) }
}

fn answer(request: &MetricsRequest) -> MetricsResult {
    query_metrics(&View::of_live(live().snapshot("single-tenant")), request, &AtomicBool::new(false)).unwrap()
}

fn shown_value(value: &LabelValue) -> String {
    match value {
        LabelValue::Nil => "nil".to_owned(),
        LabelValue::Text(text) => text.clone(),
        LabelValue::Bool(truth) => truth.to_string(),
        LabelValue::Int(int) => int.to_string(),
        LabelValue::Float(float) => format!("{float:?}"),
        LabelValue::List(list) => format!("{:?}", list.iter().map(shown_value).collect::<Vec<_>>()),
    }
}

fn shown(result: &MetricsResult) -> Vec<String> {
    let line = |series: &Series| {
        let labels: Vec<_> =
            series.labels.iter().map(|(name, value)| format!("{name}={}", shown_value(value))).collect();
        let values: Vec<_> = series.values.iter().map(|value| format!("{value:.3}")).collect();
        format!("{} {}", labels.join(","), values.join(" "))
    };
    result.series.iter().map(line).collect()
}

#[test]
fn traces_are_counted_as_well_as_spans() {
    let spans = shown(&answer(&instant("{ span:parentID != \"\" } | count_over_time()")));
    let traces = shown(&answer(&instant("{ span:parentID != \"\" } | count_over_time() with(traces=true)")));
    assert_eq!(
        (spans, traces),
        (vec!["__name__=count_over_time 5.000".to_owned()], vec!["__name__=count_over_time 1.000".to_owned()])
    );
    let by_service = "{} | count_over_time() by(resource.service.name) with(traces=true)";
    let all = MetricsRequest { intervals: Intervals::instant(EPOCH - 1, EPOCH + 500 * MS), ..request(by_service) };
    assert_eq!(shown(&answer(&all)), ["resource.service.name=cart 1.000", "resource.service.name=frontend 1.000"]);
}

#[test]
fn only_counts_can_be_of_traces() {
    let query = traceql::parse("{} | avg_over_time(duration) with(traces=true)").unwrap();
    let error = MetricsPlan::new(&query).unwrap_err().to_string();
    assert_eq!(error, "the hint traces for anything but rate() and count_over_time() not yet supported");
}

#[test]
fn series_by_the_parent() {
    let lines = shown(&answer(&instant("{ name = \"SELECT\" } | count_over_time() by(parent.span.http.route)")));
    assert_eq!(lines, ["parent.span.http.route=/items 2.000"]);
}

/// The root starts when the first half second does, so it is in the interval before; then come four spans, then one.
#[rstest]
#[case::rate("{} | rate()", &["__name__=rate 4.000 16.000 4.000"])]
#[case::count("{} | count_over_time()", &["__name__=count_over_time 1.000 4.000 1.000"])]
#[case::count_of_nothing("{ .nope } | count_over_time()", &["__name__=count_over_time 0.000 0.000 0.000"])]
#[case::by("{} | count_over_time() by(resource.service.name)", &[
    "resource.service.name=cart 0.000 3.000 0.000", "resource.service.name=frontend 1.000 1.000 1.000",
])]
#[case::by_keyword("{} | count_over_time() by(status)", &[
    "status=error 0.000 1.000 0.000", "status=ok 1.000 0.000 0.000", "status=unset 0.000 3.000 1.000",
])]
#[case::by_missing("{} | count_over_time() by(span.http.status_code)", &[
    "span.http.status_code=nil 0.000 3.000 1.000", "span.http.status_code=200 1.000 0.000 0.000",
    "span.http.status_code=500 0.000 1.000 0.000",
])]
#[case::by_two("{ kind = server } | count_over_time() by(name, span.http.route)", &[
    "name=GET /cart 1.000 0.000 0.000", "name=GET /items,span.http.route=/items 0.000 1.000 0.000",
])]
#[case::by_nested("{ kind = client } | count_over_time() by(nestedSetParent)", &[
    "nestedSetParent=1 0.000 1.000 0.000", "nestedSetParent=3 0.000 2.000 0.000",
])]
#[case::structure("{ name = `GET` } >> { name = `SELECT` } | count_over_time()", &["__name__=count_over_time 0.000 2.000 0.000"])]
#[case::aggregate("{} | count() > 5 | count_over_time()", &["__name__=count_over_time 1.000 4.000 1.000"])]
#[case::min("{} | min_over_time(duration)", &["__name__=min_over_time 0.500 0.100 0.080"])]
#[case::max("{} | max_over_time(duration)", &["__name__=max_over_time 0.500 0.390 0.080"])]
#[case::sum("{} | sum_over_time(duration)", &["__name__=sum_over_time 0.500 0.960 0.080"])]
#[case::avg("{} | avg_over_time(duration)", &["__name__=avg_over_time 0.500 0.240 0.080"])]
#[case::of_an_attribute("{} | sum_over_time(span.db.rows)", &["__name__=sum_over_time NaN 10.000 NaN"])]
#[case::of_an_array("{} | sum_over_time(span.retries)", &["__name__=sum_over_time NaN 4.000 NaN"])]
#[case::of_nothing("{} | sum_over_time(span.nope)", &[])]
#[case::histogram("{} | histogram_over_time(duration)", &[
    "__bucket=0.134217728 0.000 2.000 1.000", "__bucket=0.536870912 1.000 2.000 0.000",
])]
#[case::histogram_by("{ name = `SELECT` } | histogram_over_time(span.db.rows) by(name)", &[
    "name=SELECT,__bucket=4.0 0.000 1.000 0.000", "name=SELECT,__bucket=8.0 0.000 1.000 0.000",
])]
#[case::quantiles("{} | quantile_over_time(duration, 0.5, 1)", &["p=0.5 0.500 0.100 0.080", "p=1.0 0.500 0.390 0.080"])]
#[case::quantile_by("{ .region = `us` } | quantile_over_time(duration, .9) by(.region)", &[".region=us,p=0.9 NaN 0.370 NaN"])]
#[case::top("{} | count_over_time() by(name) | topk(1)", &[
    "name=GET /cart 1.000 NaN NaN", "name=SELECT NaN 2.000 NaN", "name=render NaN NaN 1.000",
])]
#[case::bottom("{} | count_over_time() by(resource.service.name) | bottomk(1)", &[
    "resource.service.name=cart 0.000 NaN 0.000", "resource.service.name=frontend NaN 1.000 NaN",
])]
#[case::filter("{} | count_over_time() > 1", &["__name__=count_over_time NaN 4.000 NaN"])]
#[case::filter_by_duration("{} | max_over_time(duration) >= 390ms", &["__name__=max_over_time 0.500 0.390 NaN"])]
#[case::filter_all("{} | rate() > 100", &[])]
#[case::arithmetic("({ status = error } | count_over_time()) / ({} | count_over_time())", &[
    "__name__=(count_over_time / count_over_time) 0.000 0.250 0.000",
])]
#[case::per_label("({} | sum_over_time(duration) by(name)) / ({} | count_over_time() by(name))", &[
    "name=GET NaN 0.390 NaN", "name=GET /cart 0.500 NaN NaN", "name=GET /items NaN 0.370 NaN",
    "name=SELECT NaN 0.100 NaN", "name=render NaN NaN 0.080",
])]
#[case::with_a_number("({} | count_over_time()) * 2", &["__name__=(count_over_time * 2) 2.000 8.000 2.000"])]
#[case::folded_as_integers("(7 / 2) * ({} | count_over_time())", &["__name__=(3 * count_over_time) 3.000 12.000 3.000"])]
#[case::by_zero("({} | rate()) / 0", &[])]
#[case::hints("{} | count_over_time() with(sample=0.1, most_recent=true, exemplars=5)", &["__name__=count_over_time 1.000 4.000 1.000"])]
fn answers(#[case] query: &str, #[case] expected: &[&str]) {
    let result = answer(&request(query));
    assert_eq!(shown(&result), expected);
    assert_eq!(result.partial, None);
}

#[rstest]
#[case::rate("{} | rate()", &["__name__=rate 12.000"])]
#[case::quantile("{} | quantile_over_time(duration, .5)", &["p=0.5 0.100"])]
#[case::top("{} | rate() by(name) | topk(1)", &["name=SELECT 4.000"])]
fn instants_are_of_the_whole_range(#[case] query: &str, #[case] expected: &[&str]) {
    assert_eq!(shown(&answer(&instant(query))), expected);
}

#[test]
fn comparisons_count_values_of_all_attributes() {
    let result = answer(&instant("{} | compare({ resource.service.name = `cart` }, 1)"));
    let lines = shown(&result);
    let about = |name: &str| lines.iter().filter(|line| line.contains(&format!(",{name}="))).collect::<Vec<_>>();
    assert_eq!(
        about("resource.service.name"),
        [
            "__meta_type=baseline,resource.service.name=frontend 3.000",
            "__meta_type=baseline_total,resource.service.name=nil 3.000",
            "__meta_type=selection,resource.service.name=cart 3.000",
            "__meta_type=selection_total,resource.service.name=nil 3.000",
        ]
    );
    assert_eq!(
        about("name"),
        [
            "__meta_type=baseline,name=GET 1.000",
            "__meta_type=baseline_total,name=nil 3.000",
            "__meta_type=selection,name=SELECT 2.000",
            "__meta_type=selection_total,name=nil 3.000",
        ]
    );
    assert_eq!(
        about("event.code"),
        ["__meta_type=selection,event.code=40 1.000", "__meta_type=selection_total,event.code=nil 1.000",]
    );
    assert_eq!(
        about("span.retries"),
        ["__meta_type=selection,span.retries=1 1.000", "__meta_type=selection_total,span.retries=nil 1.000",]
    );
    for endless in ["duration", "span:id", "trace:id", "statusMessage=,"] {
        assert_eq!(about(endless), Vec::<&String>::new(), "{endless}");
    }
}

#[test]
fn a_selection_can_have_a_time() {
    let from = EPOCH + 30 * MS;
    let query = format!("{{}} | compare({{ name = `SELECT` }}, 10, {from}, {})", from + 1);
    let lines = shown(&answer(&instant(&query)));
    assert!(lines.contains(&"__meta_type=selection,name=SELECT 1.000".to_owned()), "{lines:?}");
    assert!(lines.contains(&"__meta_type=baseline,name=SELECT 1.000".to_owned()), "{lines:?}");
}

#[rstest]
#[case::spans("{}", None)]
#[case::search("{} | count() > 2", None)]
fn what_asks_for_spans_is_no_metrics_query(#[case] query: &str, #[case] expected: Option<()>) {
    assert_eq!(MetricsPlan::new(&traceql::parse(query).unwrap()).unwrap().map(|_| ()), expected);
}

#[rstest]
#[case::many_labels("{} | rate() by(.a, .b, .c, .d, .e, .f)", "metrics group by 6 values")]
#[case::many_labels_and_a_bucket(
    "{} | histogram_over_time(duration) by(.a, .b, .c, .d, .e)",
    "metrics group by 5 values"
)]
#[case::top_of_a_comparison("{} | compare({ .a }) | topk(2)", "a second stage, or arithmetic, on compare()")]
#[case::aggregates("{} | count() > max(duration) | rate()", "scalar filter (count() > max(duration))")]
fn what_is_not_done_is_refused(#[case] query: &str, #[case] what: &str) {
    let Ok(query) = traceql::parse(query) else { panic!("no query") };
    assert_eq!(MetricsPlan::new(&query).map(|_| ()), Err(PlanError::Unsupported(what.to_owned())));
}

#[test]
fn exemplars_lead_to_traces() {
    let ask = |query: &str, exemplars| answer(&MetricsRequest { exemplars, ..request(query) });
    let exemplars = |result: &MetricsResult| -> Vec<(u64, String, String)> {
        let all = result.series.iter().flat_map(|series| &series.exemplars);
        all.map(|e| {
            let label = |name| shown_value(&e.labels.iter().find(|(key, _)| key == name).unwrap().1);
            (
                (e.start_ns - EPOCH) / MS,
                format!("{:.3}", e.value),
                format!("{} {}", label("trace:id"), label("span:id")),
            )
        })
        .collect()
    };
    let result = ask("{ status = error } | rate()", 10);
    let id = "a1b02030405060708090a0b0c0d0e 0000000000000003";
    // A rate has no value of its own on a span: it takes that of the interval.
    assert_eq!(exemplars(&result), [(20, "4.000".to_owned(), id.to_owned())]);
    let result = ask("{ status = error } | max_over_time(duration)", 10);
    assert_eq!(exemplars(&result), [(20, "0.370".to_owned(), id.to_owned())]);
    // Each stands for the quantile that it is nearest to.
    let result = ask("{ kind = server } | quantile_over_time(duration, 0.1, 0.9)", 10);
    let counts: Vec<_> = result.series.iter().map(|series| series.exemplars.len()).collect();
    assert_eq!(counts, [1, 1]);
    assert_eq!(exemplars(&ask("{} | rate()", 3)).len(), 3);
    assert!(exemplars(&ask("{} | rate() by(name)", 3)).len() <= 3);
    assert_eq!(exemplars(&ask("{} | rate() with(exemplars=false)", 10)), []);
    assert_eq!(exemplars(&ask("{} | rate() with(exemplars=1)", 10)).len(), 1);
    assert_eq!(exemplars(&answer(&MetricsRequest { exemplars: 10, ..instant("{} | rate()") })), []);
}

#[test]
fn too_many_series_are_a_partial_answer() {
    let result = answer(&MetricsRequest { max_series: 2, ..request("{} | rate() by(name)") });
    assert_eq!(shown(&result), ["name=GET 0.000 4.000 0.000", "name=GET /cart 4.000 0.000 0.000"]);
    let message = "Response exceeds maximum series limit of 2, a partial response is returned. Warning: the accuracy \
                   of each individual value is not guaranteed.";
    assert_eq!(result.partial.as_deref(), Some(message));
}

#[test]
fn too_much_memory_is_a_partial_answer() {
    for query in ["{} | rate() by(name)", "{} | compare({ status = error })"] {
        let result = answer(&MetricsRequest { max_bytes: 300, ..request(query) });
        assert!(result.partial.unwrap().starts_with("Query exceeds the memory limit of 300 bytes"));
        assert!(result.series.len() < 5, "{query}");
    }
}

#[test]
fn a_cancelled_query_looks_at_nothing_more() {
    let view = View::of_live(live().snapshot("single-tenant"));
    let result = query_metrics(&view, &request("{} | rate()"), &AtomicBool::new(true)).unwrap();
    assert_eq!(result.inspected, Inspected::default());
}

#[test]
fn spans_without_an_end_are_counted() {
    let live = LiveSet::new(Limits::default());
    let mut open = span(fixture::JOB, 1, 0, "open", 100, 0);
    open.end_time_unix_nano = 0;
    let resource_spans = vec![service("s", &[], "l", vec![open])];
    let request_of =
        |resource_spans| opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest { resource_spans };
    live.insert("t", crate::live::group_message(&request_of(resource_spans)), EPOCH, 0);
    let result =
        query_metrics(&View::of_live(live.snapshot("t")), &request("{} | count_over_time()"), &AtomicBool::new(false))
            .unwrap();
    assert_eq!(shown(&result), ["__name__=count_over_time 0.000 1.000 0.000"]);
}

/// Traces of one span each.
fn traces(spans: &[(u64, u64, u8)]) -> Vec<Arc<Trace>> {
    let one = |(number, (start, length, name)): (usize, &(u64, u64, u8))| {
        let mut id = [1; 16];
        id[..8].copy_from_slice(&(number as u64).to_be_bytes());
        let mut span = span(crate::live::TraceId(id), 1, 0, &format!("name {name}"), *start, *length);
        span.attributes = attributes(&[("n", int(i64::from(*name))), ("t", text("x"))]);
        fixture::trace(vec![service("s", &[], "l", vec![span])])
    };
    spans.iter().enumerate().map(one).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn the_answer_does_not_depend_on_how_the_work_is_divided(
        spans in prop::collection::vec((0u64..600, 1u64..5_000, 0u8..4), 1..40), seed in any::<u64>(),
    ) {
        let traces = traces(&spans);
        let mut shuffled = traces.clone();
        shuffled.sort_by_key(|trace| u64::from(trace.id.0[7]).wrapping_mul(seed | 1));
        for query in [
            "{} | rate() by(name)", "{} | avg_over_time(duration)", "{} | quantile_over_time(duration, .5, .99) by(.n)",
            "{} | histogram_over_time(duration)", "{} | compare({ .n = 1 }, 2)", "{} | sum_over_time(.n) by(.t) | topk(1)",
            "({} | max_over_time(duration) by(name)) - ({} | min_over_time(duration) by(name))",
        ] {
            let request = MetricsRequest { exemplars: 6, max_bytes: 1 << 24, ..request(query) };
            let whole = query_metrics(&View::of_live(traces.clone()), &request, &AtomicBool::new(false)).unwrap();
            let (left, right) = shuffled.split_at(shuffled.len() / 3);
            let mut parts = [left, right].map(|part| {
                let mut partial = Partial::new(&request);
                partial.observe_view(&View::of_live(part.to_vec()), &request, &AtomicBool::new(false)).unwrap();
                partial
            }).into_iter();
            let mut merged = parts.next().unwrap();
            merged.merge(parts.next().unwrap(), &request);
            let merged = merged.finish(&request);
            prop_assert_eq!(shown(&merged), shown(&whole));
            prop_assert_eq!(merged.inspected, whole.inspected);
            let exemplars = |result: &MetricsResult| {
                result.series.iter().map(|series| format!("{:?}", series.exemplars)).collect::<Vec<_>>()
            };
            prop_assert_eq!(exemplars(&merged), exemplars(&whole));
        }
    }

    #[test]
    fn quantiles_of_durations_are_within_one_percent(
        lengths in prop::collection::vec(1u64..100_000, 1..60), part in 0f64..=1.0,
    ) {
        let spans: Vec<_> = lengths.iter().map(|length| (100, *length, 0)).collect();
        let request = instant(&format!("{{}} | quantile_over_time(duration, {part:.6})"));
        let result = query_metrics(&View::of_live(traces(&spans)), &request, &AtomicBool::new(false)).unwrap();
        let mut sorted = lengths.clone();
        sorted.sort_unstable();
        let part: f64 = format!("{part:.6}").parse().unwrap();
        let rank = ((part * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len());
        let exact = sorted[rank - 1] as f64 / 1e3;
        let found = result.series[0].values[0];
        prop_assert!((found - exact).abs() <= 0.01 * exact, "{found} for {exact}");
    }
}
