//! Client spans of agents: below them may be what agents of other nodes saw.

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use coati_common::wellknown::AGENT_SCOPE;

use super::schema::column;
use super::{Block, BlockError};
use crate::live::TraceId;

/// `CLIENT`, as OTLP numbers kinds of spans.
const CLIENT_KIND: i32 = 3;

/// Rows that are read at once.
const ROWS: usize = 8_192;

impl Block {
    /// Shows every client span that an agent of Coati made, with its trace. Reads four columns, or none if there is nothing
    /// of an agent in the block.
    pub fn calls(&self, mut visit: impl FnMut(TraceId, [u8; 8])) -> Result<(), BlockError> {
        let of_agent: Vec<bool> = self.scopes()?.iter().map(|entry| entry.scope.name == AGENT_SCOPE).collect();
        if !of_agent.contains(&true) {
            return Ok(());
        }
        for group in 0..self.parquet().num_row_groups() {
            let mask = self.mask([column::TRACE_ID, column::SPAN_ID, column::KIND, column::SCOPE]);
            for batch in self.rows(group, mask, None, ROWS)? {
                calls_of(&batch?, &of_agent, &mut visit)
                    .ok_or_else(|| BlockError::damaged(self.path(), "ids, kinds or scopes are of another type"))?;
            }
        }
        Ok(())
    }
}

fn calls_of(batch: &RecordBatch, of_agent: &[bool], visit: &mut impl FnMut(TraceId, [u8; 8])) -> Option<()> {
    let ids = |name| batch.column_by_name(name)?.as_fixed_size_binary_opt();
    let numbers = |name| batch.column_by_name(name)?.as_primitive_opt::<Int32Type>();
    let (traces, spans) = (ids(column::TRACE_ID)?, ids(column::SPAN_ID)?);
    let (kinds, scopes) = (numbers(column::KIND)?, numbers(column::SCOPE)?);
    for row in (0..batch.num_rows()).filter(|row| kinds.value(*row) == CLIENT_KIND) {
        let scope = usize::try_from(scopes.value(row)).ok()?;
        if of_agent.get(scope).is_some_and(|of_agent| *of_agent) {
            visit(TraceId::try_from(traces.value(row)).ok()?, spans.value(row).try_into().ok()?);
        }
    }
    Some(())
}
