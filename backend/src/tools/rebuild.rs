//! `blocks rebuild`.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;

use super::place::Place;
use super::{Outcome, Size, ToolError, unwritten};
use crate::block::BlockSummary;
use crate::blocks::{self, Rebuilt, Survey, WriterId};
use crate::catalog::{BlockCatalog, SeenList, SledCatalog};
use crate::config::Config;
use crate::telemetry::{CatalogMetrics, chain};

#[derive(Args, Debug)]
pub(super) struct Options {
    /// Writes the list; without this it is only said what would be in it
    #[arg(long)]
    write: bool,
}

pub(super) fn run(
    place: &Place,
    options: &Options,
    config: &Config,
    output: &mut dyn Write,
) -> Result<Outcome, ToolError> {
    let (found, version) = if options.write {
        let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let now_ns = u64::try_from(now_ns).unwrap_or(u64::MAX);
        let Rebuilt { version, blocks, unreadable } = blocks::rebuild(&place.store, WriterId::random(), now_ns)?;
        accept(place, config, version)?;
        (Survey { blocks, unreadable }, Some(version))
    } else {
        (blocks::survey(&place.store)?, None)
    };
    let Survey { blocks, unreadable } = found;
    for (path, error) in &unreadable {
        let error = chain(error);
        let named = if error.starts_with(path.as_str()) { String::new() } else { format!("{path}: ") };
        writeln!(output, "{named}{error}").map_err(unwritten)?;
    }
    let sum = |of: fn(&BlockSummary) -> u64| blocks.iter().map(|block| of(block)).sum::<u64>();
    let (count, spans, size) = (blocks.len(), sum(|block| block.spans), Size(sum(BlockSummary::total_bytes)));
    let done = match version {
        Some(version) => format!("list of blocks made anew as version {version}"),
        None => "nothing is changed without --write".to_owned(),
    };
    let bad = unreadable.len();
    writeln!(output, "{count} blocks, {spans} spans, {size}; {bad} files are no blocks: {done}").map_err(unwritten)?;
    Ok(if unreadable.is_empty() { Outcome::Sound } else { Outcome::Damaged })
}

/// Tells the catalog of the data directory, if there is one, that this list is the one to go by.
fn accept(place: &Place, config: &Config, version: u64) -> Result<(), ToolError> {
    let catalog = config.data_dir.join("catalog");
    if !catalog.is_dir() {
        return Ok(());
    }
    let seen = SeenList { version, went_back: false };
    let accept = |catalog: SledCatalog| catalog.put_seen_list(&place.to_string(), seen);
    SledCatalog::open(&catalog, &CatalogMetrics::default(), accept).map_err(ToolError::Catalog)
}
