//! `coati-backend blocks …` on buckets.

use std::collections::BTreeSet;
use std::sync::Arc;

use coati_backend::block::{BlockId, BlockSummary, NewBlock, write_block};
use coati_backend::blocks::{Added, Blocks, BlocksConfig, Change, WriterId};
use coati_backend::catalog::MemoryCatalog;
use coati_backend::live::Trace;
use coati_backend::store::Store;
use coati_backend::telemetry::BlocksMetrics;
use opentelemetry_proto::tonic::trace::v1::TracesData;
use rstest::rstest;

use crate::buckets::{Server, moto, rgw};
use crate::corpus::{Corpus, START_NS, traces};
use crate::{part, run};

const PREFIX: &str = "some/prefix";

/// Puts two blocks into the bucket; what they are, and all traces.
fn fill(server: &Server) -> (Vec<BlockSummary>, Vec<Arc<Trace>>) {
    let store: Arc<dyn Store> = Arc::new(server.store(PREFIX));
    let config = BlocksConfig { clock: || START_NS + 60_000_000_000, ..BlocksConfig::default() };
    let catalog = Arc::new(MemoryCatalog::default());
    let blocks =
        Blocks::open(Arc::clone(&store), WriterId::random(), catalog, config, BlocksMetrics::default()).unwrap();
    let requests: Vec<_> = Corpus::new(7, 300).collect();
    let halves = requests.chunks(requests.len().div_ceil(2));
    let summaries = halves.zip(0..).map(|(requests, number)| {
        let traces = traces(requests.iter().cloned());
        let new = NewBlock {
            id: BlockId::new(START_NS, number),
            tenant: "single-tenant".into(),
            level: 0,
            received_first_ns: START_NS,
            received_last_ns: START_NS,
        };
        let (summary, filter) = write_block(store.as_ref(), new, &traces).unwrap();
        let ids = traces.iter().map(|trace| trace.id).collect();
        let added = Added { summary: summary.clone(), filter, ids };
        blocks.commit(Change { add: vec![added], ..Change::default() }).unwrap();
        summary
    });
    (summaries.collect(), traces(requests.iter().cloned()))
}

fn span_ids(data: &TracesData) -> BTreeSet<Vec<u8>> {
    let scopes = data.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
    scopes.flat_map(|scope| &scope.spans).map(|span| span.span_id.clone()).collect()
}

#[rstest]
#[case::moto(moto)]
#[case::ceph(rgw)]
fn the_tools_work_on_a_bucket(#[case] server: fn() -> Server) {
    let server = server();
    let (mut blocks, traces) = fill(&server);
    let (_folder, settings) = part(&server, PREFIX);
    let blocks_tool = |words: &str| {
        let words: Vec<&str> = ["blocks"].into_iter().chain(words.split_whitespace()).collect();
        run(&words, &settings, &[])
    };

    let (sound, text) = blocks_tool("list --json");
    assert!(sound, "{text}");
    let mut listed: Vec<BlockSummary> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    listed.sort_by_key(|block| block.id);
    blocks.sort_by_key(|block| block.id);
    assert_eq!(listed, blocks);

    let first = blocks.first().unwrap();
    let (sound, text) = blocks_tool(&format!("inspect {}", first.id));
    assert!(sound && text.contains(&format!("spans     {} in {} traces", first.spans, first.traces)), "{text}");

    let (sound, text) = blocks_tool("verify");
    assert!(sound && text.starts_with("2 blocks, ") && text.ends_with(": all is well\n"), "{text}");

    let mut exported = BTreeSet::new();
    for block in &blocks {
        let (sound, text) = blocks_tool(&format!("export {}", block.id));
        assert!(sound && text.lines().count() as u64 == block.traces, "{text}");
        text.lines().for_each(|line| exported.extend(span_ids(&serde_json::from_str(line).unwrap())));
    }
    let spans = traces.iter().flat_map(|trace| &trace.spans);
    assert_eq!(exported, spans.map(|span| span.view().span_id.to_vec()).collect());
    // A trace of both blocks.
    let trace = traces.iter().max_by_key(|trace| trace.spans.len()).unwrap();
    let (sound, text) = blocks_tool(&format!("export --trace {}", trace.id));
    assert!(sound, "{text}");
    assert_eq!(span_ids(&serde_json::from_str(&text).unwrap()).len(), trace.spans.len());

    // What is wrong is named.
    let store = server.store(PREFIX);
    store.delete(&first.filter_path()).unwrap();
    let (sound, text) = blocks_tool("verify");
    assert!(!sound && text.contains(&format!("{}: is missing", first.filter_path())), "{text}");
    let manifests: Vec<String> = store.list("manifest/").unwrap().into_iter().map(|object| object.path).collect();
    for path in manifests {
        store.delete(&path).unwrap();
    }
    let (sound, text) = blocks_tool("list");
    assert!(!sound && text.contains("it has no manifest"), "{text}");
    let (sound, text) = blocks_tool("rebuild --write");
    assert!(
        sound && text.starts_with("2 blocks, ") && text.ends_with("list of blocks made anew as version 1\n"),
        "{text}"
    );
    let (sound, text) = blocks_tool("list --json");
    assert!(sound && text.lines().count() == 2, "{text}");
}

#[test]
fn a_wrong_key_is_one_line() {
    let server = rgw();
    let folder = tempfile::tempdir().unwrap();
    let config = coati_backend::config::S3Config { secret_key: "hidden".into(), ..server.config("") };
    let (sound, text) = run(&["blocks", "list"], &crate::settings(folder.path(), &config), &[]);
    assert!(!sound && text.lines().count() == 1 && text.contains("SignatureDoesNotMatch"), "{text}");
    assert!(!text.contains("hidden"), "{text}");
}
