//! Open blocks, so that not each query reads their footers anew.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::block::{Block, BlockId};

/// A bounded number of open blocks; those that were used last stay.
#[derive(Debug)]
pub(super) struct Footers {
    limit_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<BlockId, Open>,
    bytes: usize,
    /// Number of the latest use.
    uses: u64,
}

#[derive(Debug)]
struct Open {
    block: Block,
    bytes: usize,
    used: u64,
}

impl Footers {
    pub(super) fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, state: Mutex::default() }
    }

    pub(super) fn get(&self, id: BlockId) -> Option<Block> {
        let mut state = self.lock();
        state.uses += 1;
        let used = state.uses;
        let open = state.open.get_mut(&id)?;
        open.used = used;
        Some(open.block.clone())
    }

    /// Keeps an open block that takes `bytes`, unless that alone is over the limit.
    pub(super) fn put(&self, id: BlockId, block: Block, bytes: usize) {
        let mut state = self.lock();
        state.remove(id);
        if bytes > self.limit_bytes {
            return;
        }
        while state.bytes + bytes > self.limit_bytes {
            // Rare beside the reading of a footer, so a look at all of them is cheap enough.
            let Some(oldest) = state.open.iter().min_by_key(|(_, open)| open.used).map(|(id, _)| *id) else { break };
            state.remove(oldest);
        }
        state.uses += 1;
        let used = state.uses;
        state.bytes += bytes;
        state.open.insert(id, Open { block, bytes, used });
    }

    /// Closes all blocks but these.
    pub(super) fn retain(&self, keep: impl Fn(BlockId) -> bool) {
        let mut state = self.lock();
        let gone: Vec<BlockId> = state.open.keys().filter(|id| !keep(**id)).copied().collect();
        for id in gone {
            state.remove(id);
        }
    }

    /// Memory that open blocks take.
    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remove(&mut self, id: BlockId) {
        if let Some(open) = self.open.remove(&id) {
            self.bytes -= open.bytes;
        }
    }
}
