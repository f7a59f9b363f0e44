use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use rstest::rstest;

use super::fixture::{JOB, SHOP, job, live, shop, span, trace};
use super::*;
use crate::live::{Trace, TraceId};
use crate::traceql;

fn plan(query: &str) -> Plan {
    Plan::new(&traceql::parse(query).unwrap_or_else(|error| panic!("{query}: {error}"))).unwrap()
}

/// Last bytes of the ids of the spans that match, one list for each spanset.
fn sets(trace: &Trace, query: &str) -> Vec<Vec<u8>> {
    let plan = plan(query);
    let spans = LiveSpan::of_trace(trace, plan.needs_nested);
    let id = |index: usize| spans[index].span().span_id[7];
    let mut sets: Vec<Vec<u8>> =
        plan.run(&spans).into_iter().map(|set| set.spans.into_iter().map(id).collect()).collect();
    for set in &mut sets {
        set.sort_unstable();
    }
    sets
}

#[rstest]
#[case::everything("{}", &[1, 2, 3, 4, 5, 6])]
#[case::nothing("{ false }", &[])]
#[case::span("{ span.http.status_code = 500 }", &[3])]
#[case::resource("{ resource.service.name = \"cart\" }", &[3, 4, 5])]
#[case::wrong_scope("{ span.service.name = \"cart\" }", &[])]
#[case::unscoped("{ .region = \"eu\" }", &[1, 2, 6])]
#[case::unscoped_takes_the_span_first("{ .a = \"span\" }", &[1])]
#[case::unscoped_then_the_resource("{ .a = \"resource\" }", &[2, 6])]
#[case::unscoped_then_the_event("{ .exception.message = \"locked\" }", &[4])]
#[case::unscoped_then_the_link("{ .why = \"batch\" }", &[4])]
#[case::unscoped_then_the_library("{ .library.kind = \"http\" }", &[1, 2, 3, 4, 5, 6])]
#[case::event("{ event.exception.message =~ \"lo.*\" }", &[4])]
#[case::event_number("{ event.code > 39 }", &[4])]
#[case::link("{ link.why = \"batch\" }", &[4])]
#[case::instrumentation("{ instrumentation.library.kind != nil && instrumentation:name = \"sql\" }", &[3, 4, 5])]
#[case::instrumentation_version("{ instrumentation:version = \"1.2\" && kind = internal }", &[6])]
#[case::name("{ name = \"SELECT\" }", &[4, 5])]
#[case::duration("{ duration >= 370ms && duration < 0.5s }", &[2, 3])]
#[case::duration_as_number("{ duration = 100000000 }", &[4, 5])]
#[case::status("{ status = error }", &[3])]
#[case::status_not("{ status != unset }", &[1, 3])]
#[case::status_message("{ statusMessage = \"no stock\" }", &[3])]
#[case::kind("{ kind = server }", &[1, 3])]
#[case::kind_unset("{ kind = unspecified }", &[])]
#[case::root("{ rootName = \"GET /cart\" && rootServiceName = \"frontend\" && kind = internal }", &[6])]
#[case::trace_duration("{ traceDuration = 500ms && name = \"render\" }", &[6])]
#[case::trace_id("{ trace:id = \"000a1b02030405060708090a0b0c0d0e\" && name = \"GET\" }", &[2])]
#[case::trace_id_without_zeros("{ trace:id = \"A1B02030405060708090a0b0c0d0e\" && name = \"GET\" }", &[2])]
#[case::span_id("{ span:id = \"0000000000000003\" || span:id = \"4\" }", &[3, 4])]
#[case::parent_id("{ span:parentID = \"0000000000000003\" }", &[4, 5])]
#[case::root_has_no_parent("{ span:parentID = \"\" }", &[1])]
#[case::child_count("{ span:childCount = 2 }", &[1, 3])]
#[case::nested_root("{ nestedSetParent < 0 }", &[1])]
#[case::nested_left("{ nestedSetLeft = 1 && nestedSetRight = 12 }", &[1])]
#[case::event_name("{ event:name = \"retry\" }", &[4])]
#[case::event_name_is_none_of("{ event:name != \"retry\" }", &[])]
#[case::event_name_is_other("{ event:name != \"other\" }", &[4])]
#[case::event_time("{ event:timeSinceStart < 10ms }", &[4])]
#[case::link_ids("{ link:traceID = \"ffffffffffffffffffffffffffffffff\" && link:spanID = \"909090909090909\" }", &[4])]
#[case::missing_is_unequal_to_nothing("{ .http.status_code != 200 }", &[3])]
#[case::missing_matches_nothing("{ .http.route !~ \"x\" }", &[3])]
#[case::exists("{ .http.status_code != nil }", &[1, 3])]
#[case::missing("{ .http.status_code = nil }", &[2, 4, 5, 6])]
#[case::intrinsics_exist("{ name != nil && kind = internal }", &[6])]
#[case::bytes_exist("{ span.raw != nil && span.map != nil }", &[5])]
#[case::bytes_equal_nothing("{ span.raw = \"AQI=\" || span.raw != \"x\" }", &[])]
#[case::types_do_not_match("{ .http.status_code = \"500\" || .http.route = 3 || .cached = \"true\" }", &[])]
#[case::int_and_float("{ .http.status_code > 499.5 }", &[3])]
#[case::float("{ .ratio = 0.5 }", &[5])]
#[case::bool_attribute("{ .cached }", &[4])]
#[case::bool_compared("{ .cached = true }", &[4])]
#[case::not_bool("{ !.cached }", &[])]
#[case::text_is_no_truth("{ .http.route }", &[])]
#[case::not_comparison("{ !(.http.status_code = 500) }", &[1, 2, 4, 5, 6])]
#[case::text_order("{ .http.route > \"/a\" && .http.route <= \"/items\" }", &[3])]
#[case::regex_is_anchored("{ name =~ \"GET\" }", &[2])]
#[case::regex("{ name =~ \"GET.*\" }", &[1, 2, 3])]
#[case::not_regex("{ name !~ \"GET.*|SELECT\" }", &[6])]
#[case::regex_on_a_number("{ .http.status_code =~ \"5..\" }", &[])]
#[case::array_any("{ .retries = 3 && .retries > 2 && .retries < 2 }", &[3])]
#[case::array_none("{ .retries != 3 }", &[])]
#[case::array_not_in("{ .retries != 2 }", &[3])]
#[case::array_regex("{ .tags =~ \"b\" && .tags !~ \"c\" }", &[3])]
#[case::arithmetic("{ .db.rows * 2 + 1 = 15 }", &[4])]
#[case::between_attributes("{ .db.rows - .db.rows = 0 }", &[4, 5])]
#[case::negative("{ -.db.rows < -5 }", &[4])]
#[case::by_zero("{ .db.rows / 0 = 0 || .db.rows / 0 != 0 }", &[])]
#[case::constants("{ 1 + 1 = 2 && \"a\" < \"b\" && kind = internal }", &[6])]
#[case::and_or_from_the_left("{ false && false || kind = internal }", &[6])]
#[case::or_and_from_the_left("{ kind = internal || kind = server && status = error }", &[3])]
#[case::both("{ kind = internal } && { status = error }", &[3, 6])]
#[case::both_but_one_is_empty("{ kind = internal } && { .nope }", &[])]
#[case::either("{ kind = internal } || { .nope }", &[6])]
#[case::descendant("{ name = \"GET\" } >> { name = \"SELECT\" }", &[4, 5])]
#[case::descendant_of_nothing("{ name = \"render\" } >> { name = \"SELECT\" }", &[])]
#[case::not_of_itself("{ name = \"GET\" } >> { name = \"GET\" }", &[])]
#[case::child("{ name = \"GET\" } > {}", &[3])]
#[case::ancestor("{ name = \"SELECT\" } << {}", &[1, 2, 3])]
#[case::parent("{ name = \"SELECT\" } < {}", &[3])]
#[case::sibling("{ name = \"SELECT\" } ~ {}", &[4, 5])]
#[case::only_sibling("{ name = \"render\" } ~ {}", &[2])]
#[case::not_descendant("{ name = \"GET\" } !>> {}", &[1, 2, 6])]
#[case::not_child("{ name = \"GET\" } !> {}", &[1, 2, 4, 5, 6])]
#[case::not_ancestor("{ name = \"SELECT\" } !<< {}", &[4, 5, 6])]
#[case::not_parent("{ name = \"SELECT\" } !< {}", &[1, 2, 4, 5, 6])]
#[case::not_sibling("{ name = \"render\" } !~ {}", &[1, 3, 4, 5, 6])]
#[case::union_descendant("{ name = \"GET\" } &>> { name = \"SELECT\" }", &[2, 4, 5])]
#[case::union_child("{ name = \"GET\" } &> { }", &[2, 3])]
#[case::union_ancestor("{ name = \"SELECT\" } &<< { kind = server }", &[1, 3, 4, 5])]
#[case::union_parent("{ name = \"SELECT\" } &< { kind = server }", &[3, 4, 5])]
#[case::union_sibling("{ name = \"render\" } &~ { }", &[2, 6])]
#[case::pipe("{ kind = client } | { name = \"SELECT\" }", &[4, 5])]
#[case::count("{ kind = client } | count() > 2", &[2, 4, 5])]
#[case::count_not("{ kind = client } | count() > 3", &[])]
#[case::avg("{ name = \"SELECT\" } | avg(.db.rows) = 5", &[4, 5])]
#[case::sum("{ } | sum(.db.rows) = 10", &[1, 2, 3, 4, 5, 6])]
#[case::max("{ } | max(duration) = 500ms | { kind = internal }", &[6])]
#[case::min("{ name = \"SELECT\" } | min(.db.rows * 2) = 6", &[4, 5])]
#[case::aggregate_of_nothing("{ } | max(.nope) >= 0", &[])]
#[case::scalar_first("count() = 6 | { status = error }", &[3])]
#[case::pipelines_as_operands("({ kind = server } | count() = 2) >> ({ kind = client } | { name = \"SELECT\" })", &[4, 5])]
#[case::select("{ status = error } | select(name)", &[3])]
#[case::metrics_are_left_away("{ status = error } | rate() by(name)", &[3])]
#[case::structure_tab(
    "({ nestedSetParent < 0 } &>> { kind = server }) || ({ nestedSetParent < 0 }) | select(status, nestedSetLeft)",
    &[1, 3]
)]
fn finds_spans(#[case] query: &str, #[case] expected: &[u8]) {
    let found = sets(&trace(shop()), query);
    let expected = if expected.is_empty() { vec![] } else { vec![expected.to_vec()] };
    assert_eq!(found, expected, "{query}");
}

#[rstest]
#[case::by("{ } | by(resource.service.name)", &[vec![1, 2, 6], vec![3, 4, 5]])]
#[case::by_missing("{ } | by(.http.status_code)", &[vec![1], vec![2, 4, 5, 6], vec![3]])]
#[case::by_and_count("{ } | by(kind) | count() > 1", &[vec![1, 3], vec![2, 4, 5]])]
#[case::by_twice("{ kind = client } | by(name) | by(.db.rows)", &[vec![2], vec![4], vec![5]])]
#[case::coalesce("{ } | by(kind) | count() > 1 | coalesce()", &[vec![1, 2, 3, 4, 5]])]
fn groups_spans(#[case] query: &str, #[case] expected: &[Vec<u8>]) {
    assert_eq!(sets(&trace(shop()), query), expected, "{query}");
}

#[test]
fn spans_whose_parent_never_came_are_no_roots() {
    let trace = trace(job());
    assert_eq!(sets(&trace, "{ nestedSetParent < 0 }"), Vec::<Vec<u8>>::new());
    assert_eq!(sets(&trace, "{ nestedSetParent = 0 }"), [[7]]);
    assert_eq!(sets(&trace, "{ name = \"step\" } > { name = \"inner\" }"), [[8]]);
    assert_eq!(sets(&trace, "{ rootName = \"step\" }"), Vec::<Vec<u8>>::new());
}

#[test]
fn spans_that_came_again_count_once() {
    let again = trace([shop(), shop()].concat());
    assert_eq!(again.spans.len(), 12);
    assert_eq!(sets(&again, "{} | count() = 6"), [[1, 2, 3, 4, 5, 6]]);
    let mut changed = shop();
    changed[0].scope_spans[0].spans[0].name = "GET /other".to_owned();
    assert_eq!(sets(&trace([shop(), changed].concat()), "{}"), [[1, 1, 2, 3, 4, 5, 6]]);
}

#[rstest]
#[case("{} | count() + 1 > 2", "scalar filter (count() + 1 > 2) not yet supported")]
#[case("1 < 2", "scalar filter (1 < 2) not yet supported")]
#[case("({} | count()) > 2", "scalar filter (({ true } | count()) > 2) not yet supported")]
#[case("({} | rate()) + 1", "a search for (({ true } | rate()) + 1) not yet supported")]
fn what_cannot_be_run_is_refused(#[case] query: &str, #[case] error: &str) {
    assert_eq!(Plan::new(&traceql::parse(query).unwrap()).unwrap_err().to_string(), error);
}

#[rstest]
#[case::name("{ parent.resource.service.name = \"frontend\" && resource.service.name = \"cart\" }", &[3])]
#[case::of_span("{ parent.span.http.status_code = 500 }", &[4, 5])]
#[case::first_scope_that_has_it("{ parent.a = \"span\" }", &[2, 6])]
#[case::of_two_spans("{ parent.resource.region != resource.region }", &[3])]
#[case::roots_have_none("{ parent.resource.service.name = nil }", &[1])]
#[case::with_structure("{ parent.resource.region = \"us\" } ~ { name = \"SELECT\" }", &[4, 5])]
fn parents_are_looked_at(#[case] query: &str, #[case] expected: &[u8]) {
    let found = run(&SearchRequest { spans_per_spanset: 0, ..request(query) });
    let shop = found.traces.iter().find(|found| found.id == SHOP).unwrap();
    let ids: Vec<u8> = shop.spansets[0].spans.iter().map(|span| span.id.parse().unwrap()).collect();
    assert_eq!(ids, expected);
}

#[test]
fn an_attribute_of_the_parent_is_shown_as_such() {
    let found = run(&request("{ span:id = \"3\" } | select(parent.resource.service.name, resource.service.name)"));
    let shown: Vec<_> = found.traces[0].spansets[0].spans[0].attributes.iter().map(|kv| kv.key.as_str()).collect();
    assert_eq!(shown, ["parent.service.name", "service.name"]);
}

#[rstest]
#[case::newest(OrderBy::Start, false, 0, &[JOB, SHOP])]
#[case::oldest(OrderBy::Start, true, 0, &[SHOP, JOB])]
#[case::longest(OrderBy::Duration, false, 0, &[SHOP, JOB])]
#[case::shortest(OrderBy::Duration, true, 0, &[JOB, SHOP])]
#[case::most(OrderBy::Matched, false, 0, &[SHOP, JOB])]
#[case::fewest(OrderBy::Matched, true, 0, &[JOB, SHOP])]
#[case::second(OrderBy::Duration, false, 1, &[JOB])]
#[case::none_is_left(OrderBy::Duration, false, 2, &[])]
fn traces_come_in_order(
    #[case] by: OrderBy,
    #[case] ascending: bool,
    #[case] offset: usize,
    #[case] expected: &[TraceId],
) {
    let order = Order { by, ascending };
    let result = run(&SearchRequest { order, offset, count_all: true, ..request("{}") });
    assert_eq!((ids(&result).as_slice(), result.total), (expected, Some(2)));
    let one = run(&SearchRequest { order, offset, limit: 1, ..request("{}") });
    assert_eq!((ids(&one), one.total), (expected.iter().take(1).copied().collect(), None));
}

#[test]
fn all_matches_are_counted_whatever_the_limit() {
    let result = run(&SearchRequest { limit: 1, count_all: true, ..request("{}") });
    assert_eq!((ids(&result).as_slice(), result.total), (&[JOB][..], Some(2)));
    let result = run(&SearchRequest { count_all: true, ..request("{ status = error }") });
    assert_eq!(result.total, Some(1));
}

fn request(query: &str) -> SearchRequest {
    SearchRequest {
        plan: Some(plan(query)),
        show_spans: true,
        limit: 20,
        spans_per_spanset: 3,
        ..SearchRequest::default()
    }
}

fn ids(result: &SearchResult) -> Vec<TraceId> {
    result.traces.iter().map(|found| found.id).collect()
}

fn run(request: &SearchRequest) -> SearchResult {
    search(&View::of_live(live().snapshot("single-tenant")), request, &AtomicBool::new(false)).unwrap()
}

/// Seconds since the epoch.
const SHOP_SECOND: u64 = fixture::EPOCH / 1_000_000_000;
const JOB_SECOND: u64 = SHOP_SECOND + 3600;

#[rstest]
#[case::all(SearchRequest { limit: 20, ..SearchRequest::default() }, &[JOB, SHOP])]
#[case::newest(SearchRequest { limit: 1, ..SearchRequest::default() }, &[JOB])]
#[case::query(request("{ status = error }"), &[SHOP])]
#[case::from(SearchRequest { window: Window { start: Some(SHOP_SECOND + 1), end: None }, ..request("{}") }, &[JOB])]
#[case::until(SearchRequest { window: Window { start: None, end: Some(SHOP_SECOND) }, ..request("{}") }, &[SHOP])]
#[case::between(
    SearchRequest { window: Window { start: Some(SHOP_SECOND + 1), end: Some(JOB_SECOND - 1) }, ..request("{}") },
    &[]
)]
#[case::overlap(
    SearchRequest { window: Window { start: Some(SHOP_SECOND), end: Some(JOB_SECOND) }, ..request("{}") },
    &[JOB, SHOP]
)]
#[case::at_least(SearchRequest { min_duration_ns: Some(500_000_000), ..request("{}") }, &[SHOP])]
#[case::at_most(SearchRequest { max_duration_ns: Some(499_999_999), ..request("{}") }, &[JOB])]
fn finds_traces(#[case] request: SearchRequest, #[case] expected: &[TraceId]) {
    assert_eq!(ids(&run(&request)), expected);
}

#[test]
fn what_was_looked_at_is_counted() {
    let result = run(&SearchRequest { window: Window { start: Some(JOB_SECOND), end: None }, ..request("{ .nope }") });
    assert_eq!((result.inspected.traces, result.inspected.spans), (1, 2));
    assert!(result.inspected.bytes > 0);
}

#[test]
fn a_search_stops_when_nobody_waits_for_it() {
    let result =
        search(&View::of_live(live().snapshot("single-tenant")), &request("{}"), &AtomicBool::new(true)).unwrap();
    assert_eq!(result, SearchResult::default());
}

#[test]
fn spans_are_counted_before_they_are_cut() {
    let result = run(&SearchRequest { spans_per_spanset: 2, ..request("{ .http.status_code = nil }") });
    let set = &result.traces[1].spansets[0];
    assert_eq!((set.spans.len(), set.matched), (2, 4));
    let all = run(&SearchRequest { spans_per_spanset: 0, ..request("{ }") });
    assert_eq!(all.traces[1].spansets[0].spans.len(), 6);
}

#[test]
fn spans_show_what_the_query_mentions() {
    let query = "{ (.http.status_code = 500 || .nope = 1) && status = error && duration > 1ms && rootName != \"\" } \
                 | select(name, resource.service.name, kind, nestedSetLeft, .nope2, retries)";
    let query = query.replace(", retries", ", .retries");
    let result = run(&request(&query));
    let span = &result.traces[0].spansets[0].spans[0];
    let shown: Vec<_> =
        span.attributes.iter().map(|kv| format!("{}={}", kv.key, serde_json::to_string(&kv.value).unwrap())).collect();
    insta::assert_snapshot!(format!("{} {}\n{}", span.id, span.name, shown.join("\n")), @r#"
    0000000000000003 GET /items
    http.status_code={"intValue":"500"}
    status={"stringValue":"error"}
    service.name={"stringValue":"cart"}
    kind={"stringValue":"server"}
    nestedSetLeft={"intValue":"3"}
    nope2={"stringValue":"nil"}
    retries={"arrayValue":{"values":[{"intValue":"1"},{"intValue":"3"}]}}
    "#);
}

#[test]
fn of_several_events_one_is_shown() {
    let result = run(&request("{ event:name = \"retry\" } | select(event.exception.message)"));
    let attributes = &result.traces[0].spansets[0].spans[0].attributes;
    let shown: Vec<_> =
        attributes.iter().map(|kv| (kv.key.as_str(), serde_json::to_string(&kv.value).unwrap())).collect();
    let expected = [
        ("event:name", r#"{"stringValue":"exception"}"#.to_owned()),
        ("exception.message", r#"{"stringValue":"locked"}"#.to_owned()),
    ];
    assert_eq!(shown, expected);
}

#[test]
fn sets_show_what_they_were_grouped_and_counted_by() {
    let result = run(&request("{ } | by(resource.service.name) | count() = 3 | avg(duration) > 1ms"));
    let shown: Vec<_> = result.traces[0]
        .spansets
        .iter()
        .flat_map(|set| &set.attributes)
        .map(|kv| format!("{}={}", kv.key, serde_json::to_string(&kv.value).unwrap()))
        .collect();
    insta::assert_snapshot!(shown.join("\n"), @r#"
    by(resource.service.name)={"stringValue":"frontend"}
    count()={"intValue":"3"}
    avg(duration)={"stringValue":"323.333333ms"}
    by(resource.service.name)={"stringValue":"cart"}
    count()={"intValue":"3"}
    avg(duration)={"stringValue":"190ms"}
    "#);
}

#[test]
fn services_are_counted_over_the_whole_trace() {
    let result = run(&request("{ name = \"render\" }"));
    let services: Vec<_> = result.traces[0].services.iter().map(|(k, v)| (k.as_str(), v.spans, v.errors)).collect();
    assert_eq!(services, [("cart", 3, 1), ("frontend", 3, 0)]);
}

fn values(field: &str, filter: Option<&str>) -> Vec<String> {
    let scan = TagScan { plan: filter.map(plan), limit: 100, ..TagScan::default() };
    let field = traceql::parse_field(field).unwrap();
    let (values, _) =
        scan_values(&View::of_live(live().snapshot("single-tenant")), &field, &scan, &AtomicBool::new(false)).unwrap();
    values.iter().map(|value| format!("{} {value}", value.type_name())).collect()
}

#[rstest]
#[case::text("resource.service.name", None, &["string cart", "string frontend", "string job"])]
#[case::filtered("name", Some("{ status = error }"), &["string GET /items"])]
#[case::numbers(".http.status_code", None, &["int 200", "int 500"])]
#[case::array(".retries", None, &["int 1", "int 3"])]
#[case::others(".cached", None, &["bool true"])]
#[case::float(".ratio", None, &["float 0.5"])]
#[case::duration("trace:duration", Some("{ kind = internal }"), &["int 500000000"])]
#[case::none(".nope", None, &[])]
fn collects_values(#[case] field: &str, #[case] filter: Option<&str>, #[case] expected: &[&str]) {
    assert_eq!(values(field, filter), expected);
}

#[test]
fn values_are_limited() {
    let scan = TagScan { limit: 2, ..TagScan::default() };
    let field = traceql::parse_field("name").unwrap();
    let (values, _) =
        scan_values(&View::of_live(live().snapshot("single-tenant")), &field, &scan, &AtomicBool::new(false)).unwrap();
    assert_eq!(values.len(), 2);
}

#[test]
fn collects_names_of_matching_spans() {
    let scan = TagScan { plan: Some(plan("{ name = \"SELECT\" && .db.rows = 7 }")), limit: 100, ..TagScan::default() };
    let (names, _) =
        scan_names(&View::of_live(live().snapshot("single-tenant")), &scan, &AtomicBool::new(false)).unwrap();
    let names: Vec<_> =
        names.into_iter().map(|(scope, names)| (scope, names.into_iter().collect::<Vec<_>>().join(" "))).collect();
    let expected = [
        ("event", "code exception.message"),
        ("instrumentation", "library.kind"),
        ("link", "why"),
        ("resource", "region service.name"),
        ("span", "cached db.rows"),
    ];
    assert_eq!(names.iter().map(|(scope, names)| (*scope, names.as_str())).collect::<Vec<_>>(), expected);
}

/// A trace whose span `i + 1` has the parent that is given for it, 0 for none.
fn tree(parents: &[u8]) -> Arc<Trace> {
    let spans = parents.iter().enumerate().map(|(index, parent)| {
        let id = index as u8 + 1;
        span(SHOP, id, *parent, if id.is_multiple_of(2) { "even" } else { "odd" }, u64::from(id), 1)
    });
    trace(vec![fixture::service("s", &[], "l", spans.collect())])
}

/// Ids above a span, nearest first.
fn above(parents: &[u8], id: u8) -> Vec<u8> {
    let mut chain = Vec::new();
    let mut at = parents[usize::from(id) - 1];
    while at != 0 && usize::from(at) <= parents.len() && !chain.contains(&at) {
        chain.push(at);
        at = parents[usize::from(at) - 1];
    }
    chain
}

/// Whether the second id stands in a relation to the first.
type Test<'a> = Box<dyn Fn(u8, u8) -> bool + 'a>;

proptest! {
    /// Every structural operator agrees with walking up the parents by hand.
    #[test]
    fn structure_is_what_parents_say(parents in prop::collection::vec(0u8..8, 1..9)) {
        // Only parents that came before: no circles, which are in no tree.
        let parents: Vec<u8> = parents.iter().enumerate().map(|(i, p)| if usize::from(*p) <= i { *p } else { 0 }).collect();
        let trace = tree(&parents);
        let all: Vec<u8> = (1..=parents.len() as u8).collect();
        let odd = |id: &u8| id % 2 == 1;
        let even: Vec<u8> = all.iter().copied().filter(|id| !odd(id)).collect();
        let odds: Vec<u8> = all.iter().copied().filter(odd).collect();
        let parent = |id: u8| parents[usize::from(id) - 1];
        let tests: Vec<(&str, Test<'_>)> = vec![
            (">", Box::new(|from, to| parent(to) == from)),
            ("<", Box::new(|from, to| parent(from) == to)),
            (">>", Box::new(|from, to| above(&parents, to).contains(&from))),
            ("<<", Box::new(|from, to| above(&parents, from).contains(&to))),
            ("~", Box::new(|from, to| from != to && parent(from) != 0 && parent(from) == parent(to))),
        ];
        for (sign, test) in &tests {
            let right: Vec<u8> = even.iter().copied().filter(|to| odds.iter().any(|from| test(*from, *to))).collect();
            let left: Vec<u8> = odds.iter().copied().filter(|from| even.iter().any(|to| test(*from, *to))).collect();
            let not: Vec<u8> = even.iter().copied().filter(|id| !right.contains(id)).collect();
            let mut both: Vec<u8> = left.iter().chain(&right).copied().collect();
            both.sort_unstable();
            for (sign, expected) in [(sign.to_string(), right), (format!("!{sign}"), not), (format!("&{sign}"), both)] {
                let found = sets(&trace, &format!("{{ name = \"odd\" }} {sign} {{ name = \"even\" }}"));
                prop_assert_eq!(found.concat(), expected, "{} in {:?}", sign, parents);
            }
        }
    }
}
