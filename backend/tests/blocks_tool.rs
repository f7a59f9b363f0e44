//! `coati-backend blocks …` on stores as the backend writes them, sound and damaged.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "these are tests, helpers included")]

#[path = "../benches/corpus/mod.rs"]
mod corpus;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use coati_backend::block::{BlockId, BlockSummary, NewBlock, write_block};
use coati_backend::blocks::{Added, Blocks, BlocksConfig, Change, WriterId};
use coati_backend::catalog::{BlockCatalog, MemoryCatalog, SeenList, SledCatalog};
use coati_backend::cli::{self, Command};
use coati_backend::live::Trace;
use coati_backend::store::{LocalStore, Store};
use coati_backend::telemetry::{BlocksMetrics, CatalogMetrics, chain};
use coati_backend::tools::{self, Outcome};
use corpus::{Corpus, START_NS, traces};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{Span, TracesData};
use prost::Message;
use rstest::rstest;
use tempfile::TempDir;

/// A data directory with blocks: two of the only tenant, which share traces, and one of another.
struct Data {
    dir: TempDir,
    blocks: Vec<BlockSummary>,
    traces: Vec<Arc<Trace>>,
}

impl Data {
    fn new() -> Self {
        Self::with(|_| {})
    }

    /// `change` is done to the summaries before they are committed.
    fn with(change: impl Fn(&mut BlockSummary)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(LocalStore::open(&dir.path().join("store")).unwrap());
        let config = BlocksConfig { clock: || START_NS + 60_000_000_000, ..BlocksConfig::default() };
        let catalog = Arc::new(MemoryCatalog::default());
        let metrics = BlocksMetrics::default();
        let blocks = Blocks::open(Arc::clone(&store), WriterId::random(), catalog, config, metrics).unwrap();
        let requests: Vec<_> = Corpus::new(7, 300).collect();
        let (first, second) = requests.split_at(requests.len() / 2);
        let mut summaries = Vec::new();
        for (number, (tenant, part)) in
            [("single-tenant", first), ("single-tenant", second), ("other", second)].into_iter().enumerate()
        {
            let traces = traces(part.iter().cloned());
            let new = NewBlock {
                id: BlockId::new(START_NS + number as u64 * 1_000_000_000, number as u128),
                tenant: tenant.into(),
                level: 0,
                received_first_ns: START_NS + number as u64 * 1_000_000_000,
                received_last_ns: START_NS + 5_000_000_000,
            };
            let (mut summary, filter) = write_block(store.as_ref(), new, &traces).unwrap();
            change(&mut summary);
            summaries.push(summary.clone());
            let ids = traces.iter().map(|trace| trace.id).collect();
            let added = Added { summary, filter, ids };
            blocks.commit(Change { add: vec![added], ..Change::default() }).unwrap();
        }
        Self { dir, blocks: summaries, traces: traces(requests.into_iter()) }
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn file(&self, path: &str) -> PathBuf {
        self.store().join(path)
    }

    /// Runs `coati-backend blocks <arguments>` on it.
    fn run(&self, arguments: &str) -> (Outcome, String) {
        run(&format!("{arguments} --data-dir {}", self.dir.path().display())).unwrap()
    }
}

fn run(arguments: &str) -> Result<(Outcome, String), String> {
    let arguments = ["coati-backend", "blocks"].into_iter().chain(arguments.split_whitespace()).map(Into::into);
    let Command::Blocks(options, config) = cli::parse(arguments, &|_| None).map_err(|error| error.to_string())? else {
        panic!("no command of blocks");
    };
    let mut output = Vec::new();
    let outcome = tools::run(&options, &config, &mut output).map_err(|error| chain(&error))?;
    Ok((outcome, String::from_utf8(output).unwrap()))
}

fn spans(traces: &[Arc<Trace>]) -> BTreeSet<Vec<u8>> {
    traces.iter().flat_map(|trace| &trace.spans).map(|span| key(&span.decode())).collect()
}

/// The order of attributes is not kept.
fn key(span: &Span) -> Vec<u8> {
    let mut span = span.clone();
    span.attributes.sort_by(|a, b| a.key.cmp(&b.key));
    span.encode_to_vec()
}

fn spans_of(data: &TracesData) -> BTreeSet<Vec<u8>> {
    let scopes = data.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
    scopes.flat_map(|scope| &scope.spans).map(key).collect()
}

fn damage(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 0xff;
    fs::write(file, bytes).unwrap();
}

#[test]
fn list_shows_every_block_the_newest_data_first() {
    let data = Data::new();
    let (outcome, text) = data.run("list");
    assert_eq!(outcome, Outcome::Sound);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 1 + 3 + 1);
    let titles: Vec<_> = lines[0].split_whitespace().collect();
    assert_eq!(titles, ["block", "tenant", "level", "from", "to", "spans", "traces", "size", "bytes/span"]);
    let spans: u64 = data.blocks.iter().map(|block| block.spans).sum();
    assert!(lines[4].starts_with(&format!("3 blocks, {spans} spans, ")), "{}", lines[4]);
    assert!(lines[1].contains("2026-11-21T"), "{}", lines[1]);

    let (_, text) = data.run("list --json");
    let mut listed: Vec<BlockSummary> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(listed.is_sorted_by(|a, b| a.end_ns >= b.end_ns));
    listed.sort_by_key(|block| block.id);
    assert_eq!(listed, data.blocks);
    assert_eq!(data.run("list --json --tenant other").1.lines().count(), 1);
}

#[test]
fn inspect_accounts_for_every_byte() {
    let data = Data::new();
    let block = &data.blocks[0];
    let (_, text) = data.run(&format!("inspect {} --all", block.id));
    assert!(text.contains(&format!("spans     {} in {} traces", block.spans, block.traces)), "{text}");
    assert!(text.contains("span.http.route") && text.contains("service.name=gateway"), "{text}");
    let columns = text.split("\n\n").find(|part| part.starts_with("column ")).unwrap();
    let bytes = columns.lines().skip(1).map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap());
    assert_eq!(bytes.sum::<u64>(), block.bytes);
}

#[test]
fn verify_finds_nothing_in_a_sound_store() {
    let data = Data::new();
    let (outcome, text) = data.run("verify");
    assert_eq!(outcome, Outcome::Sound, "{text}");
    assert!(text.starts_with("3 blocks, ") && text.ends_with(": all is well\n"), "{text}");
    let (outcome, text) = data.run(&format!("verify {}", data.blocks[1].id));
    assert!(outcome == Outcome::Sound && text.starts_with("1 blocks, "), "{text}");
}

#[rstest]
#[case::data_is_gone(|data: &Data| fs::remove_file(data.file(&data.blocks[0].data_path())).unwrap(), "parquet: is missing")]
#[case::filter_is_gone(|data: &Data| fs::remove_file(data.file(&data.blocks[0].filter_path())).unwrap(), "filter: is missing")]
#[case::data_is_cut_off(
    |data: &Data| File::options().write(true).open(data.file(&data.blocks[0].data_path())).unwrap().set_len(100).unwrap(),
    "has 100 bytes, the manifest says"
)]
#[case::filter_is_changed(|data: &Data| damage(&data.file(&data.blocks[0].filter_path()), 60), "its checksum is another")]
#[case::filter_of_another_block(
    |data: &Data| {
        // Of the same size, as only the content is to be wrong.
        let ids = (0..data.blocks[0].traces).map(|number| coati_backend::live::TraceId(u128::from(number).to_be_bytes()));
        let filter = coati_backend::block::Filter::of(ids).encode();
        assert_eq!(filter.len() as u64, data.blocks[0].filter_bytes);
        fs::write(data.file(&data.blocks[0].filter_path()), filter).unwrap();
    },
    "traces that the block has"
)]
#[case::stray_file(
    |data: &Data| {
        let stray = File::create(data.file("blocks/single-tenant/stray.parquet")).unwrap();
        stray.set_modified(SystemTime::now() - Duration::from_hours(4)).unwrap();
    },
    "blocks/single-tenant/stray.parquet: belongs to no block"
)]
fn verify_says_what_is_wrong(#[case] harm: fn(&Data), #[case] expected: &str) {
    let data = Data::new();
    harm(&data);
    let (outcome, text) = data.run("verify");
    assert_eq!(outcome, Outcome::Damaged, "{text}");
    assert!(text.lines().next().unwrap().contains(expected), "{text}");
    assert!(text.ends_with(": 1 finding\n"), "{text}");
}

#[test]
fn verify_sees_damage_anywhere_in_a_block() {
    let data = Data::new();
    let path = data.file(&data.blocks[0].data_path());
    let sound = fs::read(&path).unwrap();
    // The footer's end has its own test in `block`.
    for part in 0..16 {
        damage(&path, sound.len() / 16 * part + 7);
        let (outcome, text) = data.run(&format!("verify {}", data.blocks[0].id));
        assert_eq!(outcome, Outcome::Damaged, "part {part}: {text}");
        assert!(text.contains(&data.blocks[0].data_path()), "{text}");
        fs::write(&path, &sound).unwrap();
    }
}

#[rstest]
#[case::spans(|summary: &mut BlockSummary| summary.spans += 1)]
#[case::traces(|summary: &mut BlockSummary| summary.traces -= 1)]
#[case::start(|summary: &mut BlockSummary| summary.start_ns -= 1)]
#[case::services(|summary: &mut BlockSummary| summary.services = None)]
fn verify_compares_the_manifest_with_the_block(#[case] change: fn(&mut BlockSummary)) {
    let (outcome, text) = Data::with(change).run("verify");
    assert_eq!(outcome, Outcome::Damaged, "{text}");
    assert!(text.contains("the manifest says"), "{text}");
}

#[test]
fn files_that_may_be_committed_soon_are_no_finding() {
    let data = Data::new();
    File::create(data.file("blocks/single-tenant/00000000000000000000000000000001.parquet")).unwrap();
    let (outcome, text) = data.run("verify");
    assert_eq!(outcome, Outcome::Sound, "{text}");
    assert!(text.ends_with("all is well; 1 files are not committed, and younger than three hours\n"), "{text}");
}

#[test]
fn exported_blocks_hold_every_span() {
    let data = Data::new();
    let (mut from_json, mut from_proto) = (BTreeSet::new(), BTreeSet::new());
    for block in &data.blocks[..2] {
        let (_, text) = data.run(&format!("export {}", block.id));
        assert_eq!(text.lines().count() as u64, block.traces);
        for line in text.lines() {
            from_json.extend(spans_of(&serde_json::from_str(line).unwrap()));
        }
        let file = data.dir.path().join(format!("{}.pb", block.id));
        data.run(&format!("export {} --format otlp-proto --output {}", block.id, file.display()));
        let bytes = fs::read(file).unwrap();
        from_proto.extend(spans_of(&TracesData::decode(bytes.as_slice()).unwrap()));
        // The same bytes are a request.
        ExportTraceServiceRequest::decode(bytes.as_slice()).unwrap();
    }
    let expected = spans(&data.traces);
    assert_eq!(from_json, expected);
    assert_eq!(from_proto, expected);
}

#[test]
fn an_exported_trace_is_whole() {
    let data = Data::new();
    let of_block = |number: usize| {
        let (_, text) = data.run(&format!("export {}", data.blocks[number].id));
        let ids = text.lines().map(|line| {
            let data: TracesData = serde_json::from_str(line).unwrap();
            data.resource_spans[0].scope_spans[0].spans[0].trace_id.clone()
        });
        ids.collect::<BTreeSet<_>>()
    };
    let (first, second) = (of_block(0), of_block(1));
    let shared = first.intersection(&second).next().expect("a trace in both blocks");
    let trace = data.traces.iter().find(|trace| trace.id.0.as_slice() == shared.as_slice()).unwrap();
    let (_, text) = data.run(&format!("export --trace {}", trace.id));
    let exported: TracesData = serde_json::from_str(&text).unwrap();
    assert_eq!(spans_of(&exported), spans(std::slice::from_ref(trace)));
}

#[test]
fn mistakes_are_named() {
    let data = Data::new();
    let at = data.store().display().to_string();
    let error = |arguments: &str| run(&format!("{arguments} --store {at}")).unwrap_err();
    let unknown = "00000000000000000000000000000abc";
    assert_eq!(error(&format!("inspect {unknown}")), format!("{at} has no block {unknown}"));
    assert_eq!(error(&format!("verify {unknown}")), format!("{at} has no block {unknown}"));
    assert_eq!(
        error(&format!("export --trace {unknown} --tenant x")),
        format!("{at} has no trace {unknown} of tenant x")
    );
    assert!(error("inspect 12").contains("\"12\" is not a block id"), "{}", error("inspect 12"));
    assert!(error("export --trace 12").contains("expected 32 hexadecimal digits"), "{}", error("export --trace 12"));
    assert!(error("export").contains("required"), "{}", error("export"));
    let file = data.dir.path().join("there");
    fs::write(&file, "").unwrap();
    let to_file = error(&format!("export {} -o {}", data.blocks[0].id, file.display()));
    assert!(to_file.starts_with(&format!("cannot write {}: File exists", file.display())), "{to_file}");

    assert_eq!(run("list --store /no/such").unwrap_err(), "/no/such: no such directory");
    let empty = tempfile::tempdir().unwrap();
    let path = empty.path().display();
    assert_eq!(
        run(&format!("list --store {path}")).unwrap_err(),
        format!("{path} is no store of blocks: it has no manifest")
    );
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0, "looking must not change anything");
    assert_eq!(run("").unwrap_err(), "blocks: expected one of list, inspect, verify, export, rebuild");
}

#[test]
fn a_damaged_manifest_is_named() {
    let data = Data::new();
    let manifest = fs::read_dir(data.file("manifest")).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
    damage(&manifest, 50);
    let error = run(&format!("verify --store {}", data.store().display())).unwrap_err();
    assert!(error.contains(&*manifest.file_name().unwrap().to_string_lossy()), "{error}");
}

#[test]
fn rebuild_makes_the_list_anew() {
    let data = Data::new();
    fs::write(data.file("blocks/single-tenant/00000000000000000000000000000009.parquet"), "no block").unwrap();
    fs::remove_dir_all(data.file("manifest")).unwrap();
    fs::create_dir(data.file("manifest")).unwrap();
    let list = || run(&format!("list --json --data-dir {}", data.dir.path().display()));
    list().unwrap_err();
    // A catalog that has seen more than there is now.
    let catalog_path = data.dir.path().join("catalog");
    let name = data.store().canonicalize().unwrap().display().to_string();
    let catalog = || SledCatalog::open(&catalog_path, &CatalogMetrics::default(), Ok).unwrap();
    catalog().put_seen_list(&name, SeenList { version: 9, went_back: true }).unwrap();

    let (outcome, text) = data.run("rebuild");
    assert_eq!(outcome, Outcome::Damaged);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("blocks/single-tenant/00000000000000000000000000000009.parquet "), "{text}");
    assert!(lines[1].starts_with("3 blocks, ") && lines[1].ends_with("nothing is changed without --write"), "{text}");
    list().unwrap_err();
    let (_, text) = data.run("rebuild --write");
    assert!(text.ends_with("1 files are no blocks: list of blocks made anew as version 1\n"), "{text}");
    let (_, text) = list().unwrap();
    let mut listed: Vec<BlockSummary> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    listed.sort_by_key(|block| block.id);
    assert_eq!(listed, data.blocks);
    assert_eq!(catalog().seen_list(&name).unwrap(), Some(SeenList { version: 1, went_back: false }));
}

#[test]
fn rebuild_leaves_a_running_backend_alone() {
    let data = Data::new();
    let running = LocalStore::open(&data.store()).unwrap();
    let rebuild = || run(&format!("rebuild --write --data-dir {}", data.dir.path().display()));
    assert_eq!(rebuild().unwrap_err(), format!("{} is in use: stop the backend first", data.store().display()));
    drop(running);
    rebuild().unwrap();
}
