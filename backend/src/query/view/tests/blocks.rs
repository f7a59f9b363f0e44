//! What of the blocks is read, and what becomes of an answer when it cannot be.

use super::*;

/// The shop in a block, the job in another one.
fn two_blocks() -> World {
    let parts = fixture::shop().into_iter().map(|part| (part, 0));
    World::of(&parts.chain(fixture::job().into_iter().map(|part| (part, 1))).collect::<Vec<_>>())
}

fn ids(result: &SearchResult) -> Vec<TraceId> {
    result.traces.iter().map(|found| found.id).collect()
}

#[test]
fn without_a_damaged_block_answers_are_partial() {
    let world = two_blocks();
    let entry = world.blocks.snapshot().of(TENANT).find(|entry| entry.may_contain(&SHOP)).cloned().unwrap();
    world.store.overwrite(&entry.summary.data_path(), "no block".as_bytes().to_vec());
    let go_on = AtomicBool::new(false);
    let found = search(&world.view(), &search_request("{}", 20, Window::default()), &go_on).unwrap();
    assert_eq!((ids(&found), found.skipped), (vec![JOB], 1));
    let hours = Intervals::instant(EPOCH - 1, EPOCH + 7_200_000 * MS);
    let counted = query_metrics(&world.view(), &metrics_request("{} | count_over_time()", hours), &go_on).unwrap();
    assert_eq!(counted.series[0].values, [2.0]);
    let why = "1 blocks cannot be read, a partial response is returned without their spans.";
    assert_eq!(counted.partial.as_deref(), Some(why));
    let shop = View::find(&world.live, Some(&world.blocks), TENANT, &SHOP).unwrap();
    assert_eq!((shop.trace, shop.skipped), (None, 1));
    let job = View::find(&world.live, Some(&world.blocks), TENANT, &JOB).unwrap();
    assert_eq!((job.trace.map(|trace| trace.spans.len()), job.skipped), (Some(2), 0));
}

#[test]
fn a_store_that_fails_gives_no_answer() {
    let world = two_blocks();
    world.store.set_faults(|_, path| Some(Fault::unavailable(path)));
    let go_on = AtomicBool::new(false);
    let request = search_request("{}", 20, Window::default());
    assert!(matches!(search(&world.view(), &request, &go_on), Err(SearchError::Blocks(BlocksError::Block { .. }))));
    assert!(View::find(&world.live, Some(&world.blocks), TENANT, &SHOP).is_err());
    world.store.clear_faults();
    assert_eq!(ids(&search(&world.view(), &request, &go_on).unwrap()), [JOB, SHOP]);
}

#[test]
fn a_search_in_blocks_stops_when_nobody_waits_for_it() {
    let found = search(&two_blocks().view(), &search_request("{}", 20, Window::default()), &AtomicBool::new(true));
    assert_eq!(found.unwrap().traces, []);
}

/// Nothing of a block is read that cannot match.
#[rstest]
#[case::service("{ resource.service.name = \"till\" }")]
#[case::resource("{ resource.region = \"asia\" }")]
#[case::attribute("{ span.nope = 1 }")]
#[case::scope("{ instrumentation:name = \"lib\" }")]
#[case::both("{ status = error } && { span.nope != nil }")]
fn what_a_footer_rules_out_is_not_read(#[case] query: &str) {
    let world = two_blocks();
    let found = search(&world.view(), &search_request(query, 20, Window::default()), &AtomicBool::new(false)).unwrap();
    assert_eq!((found.traces.len(), found.inspected), (0, Inspected::default()));
}

/// Of a text that no dictionary has no row is read. Values of another type than most are in no column, nor in a dictionary.
#[rstest]
#[case::attribute("{ span.route = \"/nowhere\" }", 0, 0)]
#[case::regular_expression("{ span.route =~ \"/no.*\" }", 0, 0)]
#[case::name("{ name = \"POST\" }", 0, 0)]
#[case::whole_traces("{ span.route = \"/nowhere\" } >> {}", 0, 0)]
#[case::one_that_is_there("{ span.route = \"/a\" }", 100, 200)]
#[case::none("{ span.route = nil }", 1, 200)]
#[case::another_type("{ span.mixed = 7 }", 1, 200)]
#[case::perhaps_in_a_list("{ span.mixed = \"y\" }", 0, 200)]
fn texts_that_no_dictionary_has(#[case] query: &str, #[case] traces: usize, #[case] spans: u64) {
    let parts = (1..=200_u8).map(|number| {
        let route = (number > 1).then(|| ("route", fixture::text(if number % 2 == 0 { "/a" } else { "/b" })));
        let mixed = ("mixed", if number == 200 { fixture::int(7) } else { fixture::text("x") });
        let mut span = fixture::span(TraceId([number; 16]), 1, 0, "GET", number.into(), 1);
        span.attributes = fixture::attributes(&route.into_iter().chain([mixed]).collect::<Vec<_>>());
        (fixture::service("a", &[], "lib", vec![span]), 0)
    });
    let world = World::of(&parts.collect::<Vec<_>>());
    let found = search(&world.view(), &search_request(query, 500, Window::default()), &AtomicBool::new(false)).unwrap();
    assert_eq!((found.traces.len(), found.inspected.spans), (traces, spans));
}

/// The newest are known when the block of the older ones was not looked at.
#[test]
fn blocks_that_are_too_old_are_not_read() {
    let world = two_blocks();
    let mut parts = Vec::new();
    let request = search_request("{}", 1, Window::default());
    let done = search_in_parts(&world.view(), &request, &AtomicBool::new(false), &mut |traces, progress| {
        parts.push((traces.len(), progress.done, progress.total));
        true
    });
    assert_eq!(done.unwrap().inspected.spans, 2);
    assert_eq!(parts, [(1, 1, 2), (0, 2, 2)]);
}

/// A trace of one service, span by span: id, name, start in milliseconds.
fn part(trace: u8, spans: &[(u8, &str, u64)]) -> ResourceSpans {
    let spans =
        spans.iter().map(|(id, name, start_ms)| fixture::span(TraceId([trace; 16]), *id, 0, name, *start_ms, 1));
    fixture::service("a", &[], "lib", spans.collect())
}

/// What makes it match is in a block after the window; it started last of all in the window.
#[test]
fn a_trace_across_the_window_is_in_its_place() {
    let world = World::of(&[
        (part(1, &[(1, "match", 0)]), 0),
        (part(3, &[(2, "match", 5_000)]), 1),
        (part(2, &[(1, "match", 1_000)]), BLOCKS),
        (part(3, &[(1, "other", 1_500)]), BLOCKS),
    ]);
    let window = Window { start: None, end: Some(EPOCH / 1_000_000_000 + 2) };
    for (limit, expected) in [(1, vec![3]), (2, vec![3, 2]), (20, vec![3, 2, 1])] {
        let request = search_request("{ name = \"match\" }", limit, window);
        let found = search(&world.view(), &request, &AtomicBool::new(false)).unwrap();
        assert_eq!(ids(&found), expected.into_iter().map(|id| TraceId([id; 16])).collect::<Vec<_>>());
    }
}

/// The newest is known when the other one, which began before it, would be brought together.
#[test]
fn parts_of_traces_that_are_too_old_are_not_read() {
    let world = World::of(&[
        (part(1, &[(2, "b", 10), (3, "c", 9_000)]), 0),
        (part(2, &[(1, "a", 5_000)]), 0),
        (part(1, &[(1, "a", 0)]), 1),
    ]);
    let list = world.blocks.snapshot();
    let old = list.of(TENANT).find(|entry| entry.summary.traces == 1).unwrap().summary.data_path();
    world.store.set_faults(move |_, path| (path == old).then(|| Fault::unavailable(path)));
    let newest = search(&world.view(), &search_request("{}", 1, Window::default()), &AtomicBool::new(false));
    assert_eq!(ids(&newest.unwrap()), [TraceId([2; 16])]);
    assert!(search(&world.view(), &search_request("{}", 2, Window::default()), &AtomicBool::new(false)).is_err());
}

/// Traces that others displace do not count.
#[test]
fn an_answer_takes_bounded_memory() {
    let traces: Vec<_> = (1..=20).map(|number| (part(number, &[(1, "a", number.into())]), BLOCKS)).collect();
    let world = World::of(&traces);
    let search_in = |limit, max_bytes| {
        let request = SearchRequest { max_bytes, ..search_request("{}", limit, Window::default()) };
        search(&world.view(), &request, &AtomicBool::new(false)).map(|found| found.traces.len())
    };
    assert!(matches!(search_in(20, 4_096), Err(SearchError::TooLarge { max_bytes: 4_096 })));
    assert_eq!(search_in(20, 0).unwrap(), 20);
    assert_eq!(search_in(20, 1 << 20).unwrap(), 20);
    assert_eq!(search_in(3, 4_096).unwrap(), 3);
}

/// A block of which neither the data nor the filter is there any more.
#[test]
fn a_lost_block_makes_no_query_slow() {
    let many = (1..200_u8).map(|number| {
        let spans =
            (1..4).map(|id| fixture::span(TraceId([number; 16]), id, id / 2, "GET", number.into(), 5)).collect();
        (fixture::service("shop", &[], "library", spans), 1)
    });
    let parts = fixture::shop().into_iter().map(|part| (part, 0));
    let world = World::of(&parts.chain(many).collect::<Vec<_>>());
    let lost = world.blocks.snapshot().of(TENANT).find(|entry| entry.may_contain(&SHOP)).cloned().unwrap();
    for path in [lost.summary.data_path(), lost.summary.filter_path()] {
        world.store.delete(&path).unwrap();
    }
    // Nothing is known any more, as after a start without the catalog.
    let catalog = Arc::new(MemoryCatalog::default());
    let store = Arc::new(world.store.clone());
    let blocks = Blocks::open(store, WriterId::random(), catalog, BlocksConfig::default(), BlocksMetrics::default());
    let blocks = Arc::new(blocks.unwrap());
    let calls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counting = Arc::clone(&calls);
    world.store.set_faults(move |_, _| {
        counting.fetch_add(1, Ordering::Relaxed);
        None
    });
    let answer = || {
        calls.store(0, Ordering::Relaxed);
        let (view, go_on) = (View::new(&world.live, &blocks, TENANT), AtomicBool::new(false));
        let found = search(&view, &search_request("{} >> {}", 500, Window::default()), &go_on).unwrap();
        let hours = Intervals::instant(EPOCH - 1, EPOCH + 7_200_000 * MS);
        let counted = query_metrics(&view, &metrics_request("{} >> {} | count_over_time()", hours), &go_on).unwrap();
        let why = "1 blocks cannot be read, a partial response is returned without their spans.";
        assert_eq!(counted.partial.as_deref(), Some(why));
        (found.traces.len(), found.skipped, counted.series, calls.load(Ordering::Relaxed))
    };
    let (traces, skipped, series, slow) = answer();
    assert_eq!((traces, skipped), (199, 1));
    assert!(slow > 199, "every trace is looked for by itself: {slow} calls");
    blocks.warm(&AtomicBool::new(false));
    assert!(blocks.is_warm());
    let (traces, skipped, series_after, fast) = answer();
    assert_eq!((traces, skipped, series_after), (199, 1, series));
    assert!(fast < 20, "{fast} calls");
    let shop = View::find(&world.live, Some(&blocks), TENANT, &SHOP).unwrap();
    assert_eq!((shop.trace, shop.skipped), (None, 1));
}

/// Of traces that are shown in any case the newest need not come before the others.
#[test]
fn pages_of_many_traces_are_read_once() {
    let parts: Vec<_> = (1..=200_u8).map(|number| (part(number, &[(1, "a", number.into())]), 0)).collect();
    let world = World::of(&parts);
    let search_for = |limit| {
        let request = search_request("{ name = \"a\" }", limit, Window::default());
        search(&world.view(), &request, &AtomicBool::new(false)).unwrap()
    };
    let (few, many) = (search_for(20), search_for(200));
    assert_eq!((few.traces.len(), many.traces.len()), (20, 200));
    assert_eq!(few.traces, many.traces[..20]);
    assert_eq!(few.inspected, many.inspected);
}

/// A filter takes one id in 65,536 for one of its own.
#[test]
fn what_only_a_filter_has_is_not_looked_for() {
    let first = (part(1, &[(1, "a", 1)]), 0);
    let entry = World::of(std::slice::from_ref(&first)).blocks.snapshot().of(TENANT).next().cloned().unwrap();
    let id = (1_u128..1 << 24).map(|number| TraceId(number.to_be_bytes())).find(|id| entry.may_contain(id)).unwrap();
    let second = (fixture::service("a", &[], "lib", vec![fixture::span(id, 1, 0, "a", 2, 1)]), 1);
    let world = World::of(&[first, second]);
    let list = world.blocks.snapshot();
    let entries: Vec<_> = list.of(TENANT).cloned().collect();
    let [newer, older] = entries.as_slice() else { panic!("{} blocks", entries.len()) };
    assert!(list.is_shared(TENANT, &id));
    assert!(!world.blocks.is_in_another(&list, TENANT, &id, newer.id()));
    assert!(world.blocks.is_in_another(&list, TENANT, &id, older.id()));
    let found = search(&world.view(), &search_request("{}", 20, Window::default()), &AtomicBool::new(false)).unwrap();
    assert_eq!(ids(&found), [id, TraceId([1; 16])]);
    // What cannot be read may have it.
    world.store.overwrite(&older.summary.data_path(), "no block".as_bytes().to_vec());
    let again = open_again(&world);
    assert!(again.is_in_another(&again.snapshot(), TENANT, &id, newer.id()));
}

/// The same blocks, none of which is open.
fn open_again(world: &World) -> Blocks {
    let store = Arc::new(world.store.clone());
    let catalog = Arc::new(MemoryCatalog::default());
    Blocks::open(store, WriterId::random(), catalog, BlocksConfig::default(), BlocksMetrics::default()).unwrap()
}
