//! Answers from blocks: the shop lies in one, the job in memory.

use std::sync::OnceLock;

use super::*;
use crate::api::tempopb::{PartialStatus, TraceByIdResponse};
use crate::block::{BlockId, NewBlock, write_block};
use crate::blocks::{Added, Blocks, BlocksConfig, Change, WriterId};
use crate::config::ByteSize;
use crate::live::LiveSet;
use crate::store::MemoryStore;
use crate::telemetry::BlocksMetrics;

/// The API, and the path of the block.
pub(super) fn with_a_block() -> (ApiState, MemoryStore, String) {
    with_a_block_of(SINGLE_TENANT, SINGLE_TENANT)
}

/// The same where the shop is one tenant's and the job another's.
pub(super) fn with_a_block_of(of_shop: &str, of_job: &str) -> (ApiState, MemoryStore, String) {
    let store = MemoryStore::new();
    let config = BlocksConfig { clock: || fixture::EPOCH, ..BlocksConfig::default() };
    let catalog = Arc::new(MemoryCatalog::default());
    let blocks =
        Blocks::open(Arc::new(store.clone()), WriterId::random(), catalog, config, BlocksMetrics::default()).unwrap();
    let new = NewBlock {
        id: BlockId::new(fixture::EPOCH, 1),
        tenant: of_shop.into(),
        level: 0,
        received_first_ns: fixture::EPOCH,
        received_last_ns: fixture::EPOCH,
    };
    let (summary, filter) = write_block(&store, new, &[fixture::trace(fixture::shop())]).unwrap();
    let path = summary.data_path();
    let added = Added { summary, filter, ids: vec![fixture::SHOP] };
    blocks.commit(Change { add: vec![added], ..Change::default() }).unwrap();
    let live = LiveSet::new(Limits::default());
    let resource_spans = fixture::job();
    let request = opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest { resource_spans };
    live.insert(of_job, crate::live::group_message(&request), fixture::EPOCH, 0);
    let opened = OnceLock::new();
    assert!(opened.set(Arc::new(blocks)).is_ok());
    (state_of(live).with_blocks(Arc::new(opened)), store, path)
}

pub(super) fn state_of(live: LiveSet) -> ApiState {
    let readiness = Readiness::default();
    ApiState::new(Arc::new(live), Arc::new(catalog()), Tenancy::new(false), readiness, Arc::default())
}

async fn get_from(state: &ApiState, path: &str) -> (u16, String) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let (status, _, body) = send(router(state.clone()), request).await;
    (status.as_u16(), String::from_utf8(body).unwrap())
}

/// Everything but what was looked at, which depends on where it lies.
pub(super) fn without_metrics(body: &str) -> Value {
    let mut body: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"));
    body.as_object_mut().unwrap().remove("metrics");
    body
}

#[rstest]
#[case::search("/api/search?q={status=error}")]
#[case::search_of_both("/api/search?q={}")]
#[case::tags("/api/search?tags=region%3Dus")]
#[case::metrics("/api/metrics/query?q={}|rate()by(name)&start=1767225590&end=1767225610")]
#[case::names("/api/v2/search/tags?q={name=\"SELECT\"}")]
#[case::values("/api/v2/search/tag/span.db.rows/values?q={kind=client}")]
#[tokio::test]
async fn answers_as_if_all_were_in_memory(#[case] path: &str) {
    let path = path.replace('{', "%7B").replace('}', "%7D").replace('"', "%22").replace('|', "%7C");
    let (state, ..) = with_a_block();
    let (status, body) = get_from(&state, &path).await;
    assert_eq!(status, 200, "{body}");
    let (_, expected) = get_from(&state_of(fixture::live()), &path).await;
    assert_eq!(without_metrics(&body), without_metrics(&expected));
}

#[tokio::test]
async fn finds_a_trace_in_a_block() {
    let (state, ..) = with_a_block();
    let (status, body) = get_from(&state, &format!("/api/traces/{SHOP}")).await;
    assert_eq!((status, body.matches("\"spanId\"").count()), (200, 6 + 1), "six spans and a link: {body}");
    let (_, body) = get_from(&state, &format!("/api/v2/traces/{SHOP}")).await;
    assert!(body.contains("GET /items") && !body.contains("PARTIAL"), "{body}");
}

#[tokio::test]
async fn says_what_is_missing_of_a_damaged_block() {
    let (state, store, path) = with_a_block();
    store.overwrite(&path, "no block".as_bytes().to_vec());
    let (status, body) = get_from(&state, &format!("/api/traces/{SHOP}")).await;
    assert_eq!((status, body.as_str()), (500, "not found, but not all blocks can be read"));
    let request = Request::get(format!("/api/v2/traces/{SHOP}")).header("accept", "application/protobuf");
    let (_, _, body) = send(router(state.clone()), request.body(Body::empty()).unwrap()).await;
    let found = TraceByIdResponse::decode(&*body).unwrap();
    assert_eq!((found.status, found.message.contains("cannot be read")), (PartialStatus::Partial as i32, true));
    let (status, body) = get_from(&state, "/api/search").await;
    assert_eq!((status, body.contains("ffffffff"), body.contains("GET /cart")), (200, true, false), "{body}");
}

#[tokio::test]
async fn waits_for_the_store_at_the_start() {
    let state = state_of(fixture::live()).with_blocks(Arc::default());
    for path in ["/api/search", "/api/traces/1", "/api/metrics/query?q=%7B%7D%7Crate()"] {
        let (status, body) = get_from(&state, path).await;
        assert_eq!((status, body.as_str()), (503, "blocks are not open yet"), "{path}");
    }
}

#[rstest]
#[case::search("/api/search?q=%7B%7D")]
#[case::metrics("/api/metrics/query?q=%7B%7D%7Crate()&start=1767225590&end=1767229300")]
#[case::values("/api/v2/search/tag/span.db.rows/values?q=%7Bname!=%22%22%7D")]
#[tokio::test]
async fn a_query_that_reads_too_much_is_refused(#[case] path: &str) {
    let (state, ..) = with_a_block();
    let limits = |bytes| QueryConfig { max_read_bytes: ByteSize(bytes), ..QueryConfig::default() };
    // The job's trace in memory is more than a byte, and the block comes after it.
    let (status, body) = get_from(&state.clone().with_limits(limits(1)), path).await;
    assert_eq!((status, body.as_str()), (422, "query reads more than 1B: narrow its time range, or ask for less"));
    assert_eq!(get_from(&state.with_limits(limits(1 << 20)), path).await.0, 200);
}

#[tokio::test]
async fn a_search_without_a_damaged_block_says_so_in_a_header() {
    let (state, store, path) = with_a_block();
    let ask = async || {
        let request = Request::get("/api/search?q=%7B%7D").body(Body::empty()).unwrap();
        let (status, headers, _) = send(router(state.clone()), request).await;
        (status, headers.get("coati-partial").map(|value| value.to_str().unwrap().to_owned()))
    };
    store.overwrite(&path, "no block".as_bytes().to_vec());
    assert_eq!(ask().await, (StatusCode::OK, Some("1 blocks cannot be read".to_owned())));
}

#[tokio::test]
async fn a_whole_search_says_nothing_of_it() {
    let (state, ..) = with_a_block();
    let request = Request::get("/api/search?q=%7B%7D").body(Body::empty()).unwrap();
    let (_, headers, _) = send(router(state), request).await;
    assert_eq!(headers.get("coati-partial"), None);
}
