//! `blocks list`.

use std::cmp::Reverse;
use std::io::Write;

use clap::Args;

use super::place::Place;
use super::table::{self, Align};
use super::{Outcome, Size, Time, ToolError, unwritten};
use crate::block::BlockSummary;

#[derive(Args, Debug)]
pub(super) struct Options {
    /// Only the blocks of this tenant
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// One JSON object a line, with all that the manifest says
    #[arg(long)]
    json: bool,
}

pub(super) fn run(place: &Place, options: &Options, output: &mut dyn Write) -> Result<Outcome, ToolError> {
    let state = place.state()?;
    let wanted = |block: &&BlockSummary| options.tenant.as_deref().is_none_or(|tenant| *block.tenant == *tenant);
    let mut blocks: Vec<_> = state.blocks().map(AsRef::as_ref).filter(wanted).collect();
    blocks.sort_by_key(|block| (Reverse(block.end_ns), block.id));
    if options.json { as_json(&blocks, output) } else { as_table(&blocks, output) }.map_err(unwritten)?;
    Ok(Outcome::Sound)
}

fn as_json(blocks: &[&BlockSummary], output: &mut dyn Write) -> std::io::Result<()> {
    for block in blocks {
        serde_json::to_writer(&mut *output, block)?;
        writeln!(output)?;
    }
    Ok(())
}

fn as_table(blocks: &[&BlockSummary], output: &mut dyn Write) -> std::io::Result<()> {
    let columns = [
        ("block", Align::Left),
        ("tenant", Align::Left),
        ("level", Align::Right),
        ("from", Align::Left),
        ("to", Align::Left),
        ("spans", Align::Right),
        ("traces", Align::Right),
        ("size", Align::Right),
        ("bytes/span", Align::Right),
    ];
    let row = |block: &&BlockSummary| {
        vec![
            block.id.to_string(),
            block.tenant.to_string(),
            block.level.to_string(),
            Time(block.start_ns).to_string(),
            Time(block.end_ns).to_string(),
            block.spans.to_string(),
            block.traces.to_string(),
            Size(block.total_bytes()).to_string(),
            format!("{:.1}", block.total_bytes() as f64 / block.spans.max(1) as f64),
        ]
    };
    let rows: Vec<_> = blocks.iter().map(row).collect();
    table::write(output, &columns, &rows)?;
    let sum = |of: fn(&BlockSummary) -> u64| blocks.iter().map(|block| of(block)).sum::<u64>();
    let (spans, bytes) = (sum(|block| block.spans), sum(BlockSummary::total_bytes));
    writeln!(output, "{} blocks, {spans} spans, {}", blocks.len(), Size(bytes))
}
