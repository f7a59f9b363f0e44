//! What the live set must know of blocks before the log is replayed.
//!
//! The log may still have spans whose caller, in an older request, is in a block only. Where they were united with its
//! trace before the crash they must be again, and where they were not they must not: they may be in a block too, and one
//! span would be in two traces.

use std::ops::ControlFlow;

use tracing::warn;

use super::ServerError;
use crate::block::{Block, BlockError};
use crate::blocks::Blocks;
use crate::live::{CALLERS_KNOWN_FOR, LiveSet};
use crate::telemetry::chain;
use crate::wal::Log;

/// Tells the live set of what was stored lately, if there is something to replay from number `from` on.
///
/// A block that cannot be read is left out, with a warning.
pub(super) fn recall(live: &LiveSet, blocks: &Blocks, log: &Log, from: u64) -> Result<(), ServerError> {
    let first = log.oldest_first(from, |frame| ControlFlow::Break(frame.received_ns)).map_err(ServerError::Log)?;
    let ControlFlow::Break(first_ns) = first else { return Ok(()) };
    let list = blocks.snapshot();
    let since_ns = first_ns.saturating_sub(CALLERS_KNOWN_FOR.as_nanos() as u64);
    let mut recent: Vec<_> = list.blocks().filter(|entry| entry.summary.received_last_ns >= since_ns).collect();
    // If there are too many, the last ones count.
    recent.sort_unstable_by_key(|entry| entry.summary.received_last_ns);
    let mut opened = Vec::new();
    for entry in recent {
        let tenant = &entry.summary.tenant;
        let known = blocks.open_block(entry).map_err(|error| chain(&error)).and_then(|block| {
            callers_of(&block, live, tenant, first_ns).map_err(|error| chain(&error))?;
            opened.push((block, tenant));
            Ok(())
        });
        if let Err(error) = known {
            warn!(block = %entry.id(), error, "what other nodes called by its spans may be in two traces");
        }
    }
    // After all callers: who was stored without one stays so.
    for (block, tenant) in opened {
        for id in block.distinct_ids() {
            match id {
                Ok(id) => live.know_stored(tenant, id, first_ns),
                Err(error) => {
                    warn!(block = block.path(), error = chain(&error), "its spans may be in two traces");
                    break;
                }
            }
        }
    }
    Ok(())
}

fn callers_of(block: &Block, live: &LiveSet, tenant: &str, now_ns: u64) -> Result<(), BlockError> {
    block.calls(|trace, span| live.know_caller(tenant, span, trace, now_ns))
}
