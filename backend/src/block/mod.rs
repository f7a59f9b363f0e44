//! Blocks: traces at rest, one immutable Parquet file each. Laid out as `docs/format/block.md` says.
//!
//! A block is written by a [`BlockWriter`], trace by trace, and read through a [`Block`]. Beside it lies a [`Filter`] that
//! tells whether it has a trace.

mod attributes;
mod buffers;
mod calls;
mod decode;
mod encodings;
mod error;
mod filter;
mod id;
mod lists;
mod object;
mod pages;
mod promoted;
mod reader;
pub mod schema;
mod summary;
mod tables;
#[cfg(test)]
mod tests;
mod traces;
mod writer;

pub use attributes::{AttributeCounts, AttributeType, Columns, MAX_PROMOTED, Promoted};
pub use error::BlockError;
pub use filter::{Filter, FilterShape};
pub use id::{BlockId, InvalidBlockId};
pub use object::{ObjectRead, ObjectReader};
pub use reader::{Block, Rows};
pub use summary::{BlockSummary, MAX_SERVICES, data_path, filter_path};
pub use tables::{ResourceEntry, ScopeEntry};
pub use traces::{IdIter, TraceIter};
pub use writer::{BlockWriter, NewBlock, write_block};

/// The format that this program writes, and the only one that it reads.
pub const FORMAT_VERSION: u32 = 1;
