//! `coati-backend blocks …`: looks at the blocks of a store, while a backend works on it or not. Nothing is changed, but by
//! `rebuild`, while none does.

mod export;
mod inspect;
mod list;
mod place;
mod rebuild;
mod table;
mod verify;

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::block::{BlockError, BlockId};
use crate::blocks::BlocksError;
use crate::catalog::CatalogError;
use crate::config::Config;
use crate::live::TraceId;
use crate::store::{OpenError, StoreError};

pub use inspect::{ColumnSize, column_sizes};
use place::Place;

/// Looks at the blocks of a store; all but `rebuild` change nothing, and work while a backend runs
///
/// The store is that of --data-dir, or the one that --config names, or --store. Exit codes: 0 done and nothing found,
/// 1 failed or something found, 2 wrong command line.
#[derive(Args, Debug)]
#[command(disable_help_subcommand = true)]
#[expect(clippy::doc_markdown, reason = "the comments are the text of --help, where Markdown is noise")]
pub struct Options {
    /// Directory of a store, such as DATA_DIR/store or a copy of a bucket [default: what --data-dir or --config say]
    #[arg(long, global = true, value_name = "DIRECTORY")]
    store: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Lists the blocks, those with the newest data first
    List(list::Options),
    /// Shows what is in a block: columns and their sizes, resources, attributes, row groups
    Inspect(inspect::Options),
    /// Reads everything and says what is wrong, one line each; exit code 1 if anything is
    Verify(verify::Options),
    /// Writes the traces of a block, or one trace from all blocks, as OTLP
    Export(export::Options),
    /// Makes the list of blocks anew from all blocks that are there, after manifests were lost; all backends must be stopped
    Rebuild(rebuild::Options),
}

/// Whether anything is wrong with what was looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Nothing.
    Sound,
    /// Something, and it was printed.
    Damaged,
}

/// Why a command could not be done.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// A block cannot be read.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The list of blocks cannot be read.
    #[error(transparent)]
    Blocks(#[from] BlocksError),
    /// The catalog cannot be told.
    #[error("the list of blocks is made anew, but the catalog cannot be told: delete it, it is made anew too")]
    Catalog(#[source] CatalogError),
    /// A backend runs.
    #[error("{} is in use: stop the backend first", path.display())]
    InUse {
        /// The directory of the store.
        path: PathBuf,
    },
    /// The directory of the store does not exist.
    #[error("{}: no such directory", path.display())]
    NoDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// There are no manifests.
    #[error("{place} is no store of blocks: it has no manifest")]
    NoStore {
        /// What was looked at.
        place: String,
    },
    /// No manifest lists the block.
    #[error("{place} has no block {id}")]
    NoBlock {
        /// What was looked at.
        place: String,
        /// The block.
        id: BlockId,
    },
    /// No block has the trace.
    #[error("{place} has no trace {id} of tenant {tenant}")]
    NoTrace {
        /// What was looked at.
        place: String,
        /// The trace.
        id: TraceId,
        /// Whose it would be.
        tenant: String,
    },
    /// The bucket cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The result cannot be written.
    #[error("cannot write {path}")]
    Output {
        /// The file, or standard output.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The store does not do what is asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Does what the command line asks for; results go to `output`.
pub fn run(options: &Options, config: &Config, output: &mut dyn Write) -> Result<Outcome, ToolError> {
    let place = match &options.action {
        Action::Rebuild(_) => Place::open_alone(options.store.as_deref(), config)?,
        _ => Place::open(options.store.as_deref(), config)?,
    };
    let outcome = match &options.action {
        Action::List(options) => list::run(&place, options, output),
        Action::Inspect(options) => inspect::run(&place, options, output),
        Action::Verify(options) => verify::run(&place, options, output),
        Action::Export(options) => export::run(&place, options, output),
        Action::Rebuild(options) => rebuild::run(&place, options, config, output),
    };
    output.flush().map_err(unwritten)?;
    outcome
}

/// An error of the standard output.
fn unwritten(source: io::Error) -> ToolError {
    ToolError::Output { path: "standard output".to_owned(), source }
}

/// Bytes with a unit, as people read them.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
        let mut size = self.0 as f64;
        let mut unit = "B";
        for larger in UNITS {
            if size < 1024.0 {
                break;
            }
            (size, unit) = (size / 1024.0, larger);
        }
        let decimals = usize::from(unit != "B" && size < 100.0);
        f.pad(&format!("{size:.decimals$} {unit}"))
    }
}

/// A time as RFC 3339 has it, UTC, to the second.
struct Time(u64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1_000_000_000;
        let (days, of_day) = (seconds / 86_400, seconds % 86_400);
        // Howard Hinnant's `civil_from_days`: years begin in March, so that the leap day is the last one.
        let shifted = days + 719_468;
        let (era, of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
        f.pad(&format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"))
    }
}
