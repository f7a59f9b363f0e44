//! Blocks: traces at rest, one immutable Parquet file each. Laid out as `docs/format/block.md` says.

mod id;
mod summary;

pub use id::{BlockId, InvalidBlockId};
pub use summary::{BlockSummary, MAX_SERVICES};
