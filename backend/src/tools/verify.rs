//! `blocks verify`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::place::Place;
use super::{Outcome, Size, ToolError, unwritten};
use crate::block::schema::column;
use crate::block::{Block, BlockId, BlockSummary, MAX_SERVICES, data_path, filter_path};
use crate::blocks::manifest::RemovedBlock;
use crate::blocks::{ORPHAN_NS, SEARCH_EVERY_NS, State};
use crate::live::{Trace, TraceId};
use crate::otlp::SpanRef;
use crate::query::distinct_spans;
use crate::store::StoreError;
use crate::telemetry::chain;

/// Files that nobody committed are no mistake when they are younger: a backend may be about to commit them, and one that
/// was killed leaves them to the next sweep. Nanoseconds.
const UNCOMMITTED_NS: u64 = ORPHAN_NS + SEARCH_EVERY_NS;

/// Rows that are looked at together.
const BATCH_ROWS: usize = 8_192;

#[derive(Args, Debug)]
pub(super) struct Options {
    /// Only these blocks [default: all, and that there are no other files]
    #[arg(value_name = "BLOCK")]
    blocks: Vec<BlockId>,
}

/// Something that is not as it must be.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Finding {
    /// The object it is about.
    path: String,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Most errors name the object themselves.
        if self.what.starts_with(&self.path) {
            f.write_str(&self.what)
        } else {
            write!(f, "{}: {}", self.path, self.what)
        }
    }
}

pub(super) fn run(place: &Place, options: &Options, output: &mut dyn Write) -> Result<Outcome, ToolError> {
    // Listed before the manifests are read: what is committed later is not missing here.
    let files = Files::list(place)?;
    let state = place.state()?;
    let blocks = chosen(place, &state, &options.blocks)?;
    let progress = progress(blocks.iter().map(|block| block.bytes).sum());
    let (mut findings, mut spans) = (0_usize, 0_u64);
    let mut report = |found: Vec<Finding>, output: &mut dyn Write| {
        findings += found.len();
        progress.suspend(|| found.iter().try_for_each(|finding| writeln!(output, "{finding}"))).map_err(unwritten)
    };
    for summary in &blocks {
        progress.set_message(summary.id.to_string());
        let found = of_block(place, summary, &files);
        if found.is_empty() || place.state()?.blocks().any(|block| block.id == summary.id) {
            report(found, output)?;
            spans += summary.spans;
        }
        // Else it was removed while it was read.
        progress.inc(summary.bytes);
    }
    let mut uncommitted = 0;
    if options.blocks.is_empty() {
        let (stray, young) = strays(place, &state, &files)?;
        uncommitted = young;
        report(stray, output)?;
    }
    progress.finish_and_clear();
    let bytes = blocks.iter().map(|block| block.total_bytes()).sum();
    let verdict = match findings {
        0 => "all is well".to_owned(),
        1 => "1 finding".to_owned(),
        several => format!("{several} findings"),
    };
    let young = match uncommitted {
        0 => String::new(),
        files => format!("; {files} files are not committed, and younger than three hours"),
    };
    writeln!(output, "{} blocks, {spans} spans, {}: {verdict}{young}", blocks.len(), Size(bytes)).map_err(unwritten)?;
    Ok(if findings == 0 { Outcome::Sound } else { Outcome::Damaged })
}

fn chosen(place: &Place, state: &State, wanted: &[BlockId]) -> Result<Vec<Arc<BlockSummary>>, ToolError> {
    if wanted.is_empty() {
        return Ok(state.blocks().map(Arc::clone).collect());
    }
    let find = |id: &BlockId| {
        let found = state.blocks().find(|block| block.id == *id).map(Arc::clone);
        found.ok_or_else(|| ToolError::NoBlock { place: place.to_string(), id: *id })
    };
    wanted.iter().map(find).collect()
}

/// A bar on a terminal, nothing elsewhere.
fn progress(bytes: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {eta}");
    let bar = ProgressBar::new(bytes);
    style.map(|style| bar.clone().with_style(style)).unwrap_or(bar)
}

/// Sizes and times of what lies where blocks lie.
struct Files(BTreeMap<String, (u64, u64)>);

impl Files {
    fn list(place: &Place) -> Result<Self, ToolError> {
        let objects = place.store.list("blocks/")?;
        Ok(Self(objects.into_iter().map(|object| (object.path, (object.bytes, object.modified_ns))).collect()))
    }

    /// What is wrong with a file that must have so many bytes.
    fn check(&self, place: &Place, path: String, bytes: u64) -> Option<Finding> {
        let found = match self.0.get(&path) {
            Some((found, _)) => Ok(*found),
            // It may have come after the listing.
            None => place.store.size(&path),
        };
        let what = match found {
            Ok(found) if found == bytes => return None,
            Ok(found) => format!("has {found} bytes, the manifest says {bytes}"),
            Err(StoreError::NotFound { .. }) => "is missing".to_owned(),
            Err(error) => chain(&error),
        };
        Some(Finding { path, what })
    }
}

/// Files of no block, and how many of these are too young to be a mistake.
fn strays(place: &Place, before: &State, files: &Files) -> Result<(Vec<Finding>, usize), ToolError> {
    // Commits that were under way when the files were listed are done by now.
    let after = place.state()?;
    let known: BTreeSet<String> = [before, &after]
        .iter()
        .flat_map(|state| {
            let listed = state.blocks().flat_map(|block| [block.data_path(), block.filter_path()]);
            let of_removed =
                |block: &RemovedBlock| [data_path(&block.tenant, block.id), filter_path(&block.tenant, block.id)];
            listed.chain(state.removed().flat_map(of_removed))
        })
        .collect();
    let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    let is_young = |modified_ns: u64| modified_ns.saturating_add(UNCOMMITTED_NS) > now_ns;
    let (young, old): (Vec<_>, Vec<_>) = files
        .0
        .iter()
        .filter(|(path, _)| !known.contains(*path))
        .partition(|(_, (_, modified_ns))| is_young(*modified_ns));
    let finding = |path: &String| Finding { path: path.clone(), what: "belongs to no block".to_owned() };
    Ok((old.into_iter().map(|(path, _)| finding(path)).collect(), young.len()))
}

fn of_block(place: &Place, summary: &BlockSummary, files: &Files) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(files.check(place, summary.data_path(), summary.bytes));
    found.extend(files.check(place, summary.filter_path(), summary.filter_bytes));
    if !found.is_empty() {
        return found;
    }
    let mut about = |path: String, what: String| found.push(Finding { path, what });
    let filter = match place.filter(summary) {
        Ok(filter) => Some(filter),
        Err(error) => {
            about(summary.filter_path(), chain(&error));
            None
        }
    };
    let mut content = Content::default();
    let read = place.block(summary).and_then(|block| {
        block.verify_checksum()?;
        check_order(&block, &mut content)?;
        for trace in block.traces() {
            content.add(&trace?);
        }
        if *block.summary() != (BlockSummary { filter_bytes: block.summary().filter_bytes, ..summary.clone() }) {
            content.wrong.insert("the footer and the manifest say different things of it".to_owned());
        }
        Ok(())
    });
    match read {
        Ok(()) => content.compare(summary),
        Err(error) => {
            about(summary.data_path(), chain(&error));
            return found;
        }
    }
    for what in std::mem::take(&mut content.wrong) {
        about(summary.data_path(), what);
    }
    if let Some(filter) = filter {
        let lost = content.ids.iter().filter(|id| !filter.contains(id)).count();
        if lost > 0 {
            about(summary.filter_path(), format!("denies {lost} traces that the block has"));
        }
        if filter.count() != content.ids.len() as u64 {
            let (filter, block) = (filter.count(), content.ids.len());
            about(summary.filter_path(), format!("was made of {filter} traces, the block has {block}"));
        }
    }
    found
}

/// What is in a block, as it is read.
#[derive(Default)]
struct Content {
    ids: Vec<TraceId>,
    spans: u64,
    start_ns: Option<u64>,
    end_ns: u64,
    services: BTreeSet<String>,
    wrong: BTreeSet<String>,
}

impl Content {
    fn add(&mut self, trace: &Trace) {
        if self.ids.last().is_some_and(|last| *last >= trace.id) {
            self.wrong.insert(format!("trace {} is out of order", trace.id));
        }
        self.ids.push(trace.id);
        self.spans += trace.spans.len() as u64;
        let distinct = distinct_spans(trace).len();
        if distinct < trace.spans.len() {
            let again = trace.spans.len() - distinct;
            self.wrong.insert(format!("trace {} has {again} spans more than once", trace.id));
        }
        for span in &trace.spans {
            if let Some(service) = span.batch.service_name()
                && !self.services.contains(service)
            {
                self.services.insert(service.to_owned());
            }
            let SpanRef { start_time_unix_nano: start_ns, end_time_unix_nano: end_ns, .. } = span.view();
            self.start_ns = Some(self.start_ns.map_or(start_ns, |earliest| earliest.min(start_ns)));
            self.end_ns = self.end_ns.max(start_ns).max(end_ns);
        }
    }

    fn compare(&mut self, summary: &BlockSummary) {
        let mut differs = |what: &str, found: u64, said: u64| {
            if found != said {
                self.wrong.insert(format!("{what} {found}, the manifest says {said}"));
            }
        };
        differs("spans:", self.spans, summary.spans);
        differs("traces:", self.ids.len() as u64, summary.traces);
        differs("earliest start:", self.start_ns.unwrap_or_default(), summary.start_ns);
        differs("latest end:", self.end_ns, summary.end_ns);
        let services: Vec<_> = self.services.iter().cloned().collect();
        let listed = (services.len() <= MAX_SERVICES).then_some(services);
        if listed != summary.services {
            self.wrong.insert("has spans of other services than the manifest says".to_owned());
        }
    }
}

/// Rows are sorted by trace id, then by place in the tree; those in no tree come last.
fn check_order(block: &Block, content: &mut Content) -> Result<(), ToolError> {
    let mut last: Option<([u8; 16], u32)> = None;
    for row_group in 0..block.parquet().num_row_groups() {
        let mask = block.mask([column::TRACE_ID, column::NESTED_LEFT]);
        for batch in block.rows(row_group, mask, None, BATCH_ROWS)? {
            for key in keys(&batch?) {
                if last.is_some_and(|last| last > key) {
                    content.wrong.insert(format!("rows of trace {} are out of order", TraceId(key.0)));
                }
                last = Some(key);
            }
        }
    }
    Ok(())
}

fn keys(batch: &RecordBatch) -> Vec<([u8; 16], u32)> {
    let ids = batch.column_by_name(column::TRACE_ID).and_then(|column| column.as_fixed_size_binary_opt());
    let lefts = batch.column_by_name(column::NESTED_LEFT).and_then(|column| column.as_primitive_opt::<Int32Type>());
    let (Some(ids), Some(lefts)) = (ids, lefts) else { return Vec::new() };
    let key = |(id, left): (Option<&[u8]>, &i32)| {
        let id = id.and_then(|id| id.try_into().ok()).unwrap_or_default();
        (id, left.unsigned_abs().wrapping_sub(1))
    };
    ids.iter().zip(lefts.values()).map(key).collect()
}
