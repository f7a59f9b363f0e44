//! `blocks inspect`.

use std::collections::BTreeMap;
use std::io::{self, Write};

use clap::Args;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use parquet::file::metadata::RowGroupMetaData;

use super::place::Place;
use super::table::{self, Align};
use super::{Outcome, Size, Time, ToolError, unwritten};
use crate::block::{AttributeType, Block, BlockId, BlockSummary, ResourceEntry};

/// Resources of which all attributes are shown.
const SHOWN_RESOURCES: usize = 20;

#[derive(Args, Debug)]
pub(super) struct Options {
    /// The block
    #[arg(value_name = "BLOCK")]
    block: BlockId,
    /// Show all resources, not only the first 20
    #[arg(long)]
    all: bool,
}

/// What a column takes in a block.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ColumnSize {
    /// Its path in the schema, parts joined by `.`.
    pub name: String,
    /// Bytes in the file, dictionaries and page headers included.
    pub bytes: u64,
    /// Bytes before compression.
    pub uncompressed_bytes: u64,
    /// How its values are written.
    pub encodings: String,
}

/// Sizes of all columns over all row groups, the largest first; `footer` is what is left of the file: footer, indexes.
pub fn column_sizes(block: &Block) -> Vec<ColumnSize> {
    let mut sizes: BTreeMap<String, ColumnSize> = BTreeMap::new();
    for chunk in block.parquet().row_groups().iter().flat_map(RowGroupMetaData::columns) {
        let name = chunk.column_path().parts().join(".");
        let bytes = chunk.compressed_size().unsigned_abs();
        let uncompressed_bytes = chunk.uncompressed_size().unsigned_abs();
        let encodings: Vec<_> = chunk.encodings().map(|encoding| encoding.to_string()).collect();
        let encodings = encodings.join(" ");
        let size = sizes.entry(name.clone()).or_insert(ColumnSize { name, bytes: 0, uncompressed_bytes: 0, encodings });
        size.bytes += bytes;
        size.uncompressed_bytes += uncompressed_bytes;
    }
    let columns: u64 = sizes.values().map(|size| size.bytes).sum();
    let bytes = block.summary().bytes.saturating_sub(columns);
    let mut sizes: Vec<_> = sizes.into_values().collect();
    sizes.push(ColumnSize { name: "footer".to_owned(), bytes, uncompressed_bytes: bytes, encodings: String::new() });
    sizes.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    sizes
}

pub(super) fn run(place: &Place, options: &Options, output: &mut dyn Write) -> Result<Outcome, ToolError> {
    let summary = place.summary(options.block)?;
    let block = place.block(&summary)?;
    let resources = block.resources()?;
    print_summary(output, &summary).map_err(unwritten)?;
    print_row_groups(output, &block).map_err(unwritten)?;
    print_columns(output, &block).map_err(unwritten)?;
    print_attributes(output, &block).map_err(unwritten)?;
    let shown = if options.all { resources.len() } else { SHOWN_RESOURCES };
    print_resources(output, resources, shown).map_err(unwritten)?;
    Ok(Outcome::Sound)
}

fn print_summary(output: &mut dyn Write, summary: &BlockSummary) -> io::Result<()> {
    let BlockSummary {
        id, tenant, level, start_ns, end_ns, received_first_ns, received_last_ns, spans, traces, ..
    } = summary;
    let per = |bytes: u64| format!("{:.1} bytes per span", bytes as f64 / (*spans).max(1) as f64);
    writeln!(output, "block     {id}")?;
    writeln!(output, "tenant    {tenant}")?;
    writeln!(output, "level     {level}")?;
    writeln!(output, "spans     {spans} in {traces} traces")?;
    writeln!(output, "time      {} to {}", Time(*start_ns), Time(*end_ns))?;
    writeln!(output, "received  {} to {}", Time(*received_first_ns), Time(*received_last_ns))?;
    writeln!(output, "data      {}, {}: {}", Size(summary.bytes), per(summary.bytes), summary.data_path())?;
    let filter_bytes = summary.filter_bytes;
    writeln!(output, "filter    {}, {}: {}", Size(filter_bytes), per(filter_bytes), summary.filter_path())?;
    match &summary.services {
        Some(services) => writeln!(output, "services  {}", services.join(", ")),
        None => writeln!(output, "services  more than are listed"),
    }
}

fn print_row_groups(output: &mut dyn Write, block: &Block) -> io::Result<()> {
    let columns = [("row group", Align::Right), ("rows", Align::Right), ("size", Align::Right)];
    let groups = block.parquet().row_groups().iter().enumerate();
    let rows: Vec<_> = groups
        .map(|(number, group)| {
            let bytes = group.compressed_size().unsigned_abs();
            vec![number.to_string(), group.num_rows().to_string(), Size(bytes).to_string()]
        })
        .collect();
    writeln!(output)?;
    table::write(output, &columns, &rows)
}

fn print_columns(output: &mut dyn Write, block: &Block) -> io::Result<()> {
    let columns = [
        ("column", Align::Left),
        ("bytes", Align::Right),
        ("share", Align::Right),
        ("bytes/span", Align::Right),
        ("compression", Align::Right),
        ("encodings", Align::Left),
    ];
    let whole = block.summary().bytes.max(1) as f64;
    let spans = block.summary().spans.max(1) as f64;
    let rows: Vec<_> = column_sizes(block)
        .into_iter()
        .map(|ColumnSize { name, bytes, uncompressed_bytes, encodings }| {
            vec![
                name,
                bytes.to_string(),
                format!("{:.1} %", bytes as f64 * 100.0 / whole),
                format!("{:.2}", bytes as f64 / spans),
                format!("{:.1}×", uncompressed_bytes as f64 / bytes.max(1) as f64),
                encodings,
            ]
        })
        .collect();
    writeln!(output)?;
    table::write(output, &columns, &rows)
}

fn print_attributes(output: &mut dyn Write, block: &Block) -> io::Result<()> {
    let columns = [
        ("attribute of spans", Align::Left),
        ("type", Align::Left),
        ("spans", Align::Right),
        ("share", Align::Right),
        ("own column", Align::Left),
    ];
    let spans = block.summary().spans.max(1) as f64;
    let counts = block.attribute_counts();
    let rows: Vec<_> = counts
        .iter()
        .map(|(key, of, count)| {
            let promoted = block.promoted().iter().any(|promoted| *promoted.key == *key && promoted.of == of);
            vec![
                key.to_owned(),
                type_name(of).to_owned(),
                count.to_string(),
                format!("{:.1} %", count as f64 * 100.0 / spans),
                if promoted { "yes" } else { "" }.to_owned(),
            ]
        })
        .collect();
    writeln!(output)?;
    table::write(output, &columns, &rows)?;
    if counts.is_complete() { Ok(()) } else { writeln!(output, "and further keys, which were not counted") }
}

fn type_name(of: AttributeType) -> &'static str {
    match of {
        AttributeType::String => "string",
        AttributeType::Int => "int",
        AttributeType::Double => "double",
        AttributeType::Bool => "bool",
        AttributeType::Other => "other",
    }
}

fn print_resources(output: &mut dyn Write, resources: &[ResourceEntry], shown: usize) -> io::Result<()> {
    writeln!(output, "\n{} resources", resources.len())?;
    for (number, ResourceEntry { resource, schema_url }) in resources.iter().take(shown).enumerate() {
        let schema = if schema_url.is_empty() { String::new() } else { format!("  ({schema_url})") };
        let attributes: Vec<_> = resource.attributes.iter().map(attribute).collect();
        writeln!(output, "{number:>4}  {}{schema}", attributes.join("  "))?;
    }
    match resources.len().saturating_sub(shown) {
        0 => Ok(()),
        more => writeln!(output, "      and {more} more (--all)"),
    }
}

fn attribute(KeyValue { key, value, .. }: &KeyValue) -> String {
    format!("{key}={}", value.as_ref().map_or_else(String::new, text))
}

fn text(value: &AnyValue) -> String {
    match &value.value {
        None => String::new(),
        Some(Value::StringValue(text)) => text.escape_debug().to_string(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::BoolValue(truth)) => truth.to_string(),
        Some(Value::BytesValue(bytes)) => format!("{} bytes", bytes.len()),
        Some(Value::ArrayValue(array)) => format!("[{}]", array.values.iter().map(text).collect::<Vec<_>>().join(", ")),
        Some(Value::KvlistValue(list)) => {
            format!("{{{}}}", list.values.iter().map(attribute).collect::<Vec<_>>().join(", "))
        }
        Some(Value::StringValueStrindex(index)) => format!("string {index}"),
    }
}
