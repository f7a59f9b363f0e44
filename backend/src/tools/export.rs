//! `blocks export`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use prost::Message;

use super::place::Place;
use super::{Outcome, ToolError, unwritten};
use crate::block::BlockId;
use crate::live::{Trace, TraceId};
use crate::query::traces_data;
use crate::tenant::SINGLE_TENANT;

#[derive(Args, Debug)]
pub(super) struct Options {
    /// The block whose traces are wanted
    #[arg(required_unless_present = "trace", conflicts_with = "trace", value_name = "BLOCK")]
    block: Option<BlockId>,
    /// A trace, 32 hexadecimal digits, from whatever blocks have a part of it
    #[arg(long, value_name = "ID", value_parser = trace_id)]
    trace: Option<TraceId>,
    /// Whose trace it is
    #[arg(long, value_name = "NAME", default_value = SINGLE_TENANT, requires = "trace")]
    tenant: String,
    /// How it is written
    #[arg(long, value_enum, default_value_t = Format::OtlpJson)]
    format: Format,
    /// File to write, which must not be there yet [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Both forms can be sent to `/v1/traces` again; of JSON, line by line.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Format {
    /// A line with one `TracesData` for each trace.
    OtlpJson,
    /// One `TracesData` of all traces.
    OtlpProto,
}

fn trace_id(text: &str) -> Result<TraceId, &'static str> {
    let expected = "expected 32 hexadecimal digits";
    let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = u128::from_str_radix(text, 16).ok().filter(|_| digits);
    number.map(|number| TraceId(number.to_be_bytes())).ok_or(expected)
}

pub(super) fn run(place: &Place, options: &Options, output: &mut dyn Write) -> Result<Outcome, ToolError> {
    let Some(path) = &options.output else { return export(place, options, output, &unwritten) };
    let name = path.display().to_string();
    let unwritten = |source| ToolError::Output { path: name.clone(), source };
    // What is found is looked up before the file is made, so that a mistake leaves no empty one.
    let mut file = BufWriter::new(File::create_new(path).map_err(unwritten)?);
    let done = export(place, options, &mut file, &unwritten).and_then(|outcome| {
        file.flush().map_err(unwritten)?;
        Ok(outcome)
    });
    if done.is_err() {
        let _gone = std::fs::remove_file(path);
    }
    done
}

fn export(
    place: &Place,
    options: &Options,
    output: &mut dyn Write,
    unwritten: &dyn Fn(std::io::Error) -> ToolError,
) -> Result<Outcome, ToolError> {
    let mut write = |trace: &Trace| write(output, trace, options.format).map_err(unwritten);
    if let Some(id) = options.block {
        let summary = place.summary(id)?;
        let block = place.block(&summary)?;
        for trace in block.traces() {
            write(&trace?)?;
        }
    }
    if let Some(id) = options.trace {
        write(&find(place, &options.tenant, id)?)?;
    }
    Ok(Outcome::Sound)
}

fn write(output: &mut dyn Write, trace: &Trace, format: Format) -> std::io::Result<()> {
    let data = traces_data(trace);
    match format {
        Format::OtlpJson => {
            serde_json::to_writer(&mut *output, &data)?;
            writeln!(output)
        }
        // Messages one after another are one message with the fields of all.
        Format::OtlpProto => output.write_all(&data.encode_to_vec()),
    }
}

/// A trace with what all blocks have of it, what was received first at the front.
fn find(place: &Place, tenant: &str, id: TraceId) -> Result<Trace, ToolError> {
    let state = place.state()?;
    let mut blocks: Vec<_> = state.blocks().filter(|block| *block.tenant == *tenant).collect();
    blocks.sort_by_key(|block| (block.received_first_ns, block.id));
    let mut whole = Trace::empty(id);
    for summary in blocks {
        if !place.filter(summary)?.contains(&id) {
            continue;
        }
        if let Some(fragment) = place.block(summary)?.trace(&id)? {
            whole.extend(fragment);
        }
    }
    let no_trace = || ToolError::NoTrace { place: place.to_string(), id, tenant: tenant.to_owned() };
    if whole.spans.is_empty() { Err(no_trace()) } else { Ok(whole) }
}
