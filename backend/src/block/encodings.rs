//! How the file and its columns are written. Readers find out by themselves: this can change without a new version.

use std::slice;
use std::sync::Arc;

use parquet::basic::Type;
use parquet::errors::ParquetError;
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::{ColumnDescPtr, SchemaDescriptor};

use super::pages::{Column, Options, Values};
use super::schema::column;

/// Properties of a file. Columns see to themselves.
pub(super) fn writer_properties() -> Arc<WriterProperties> {
    let sorting = SortingColumn { column_idx: 0, descending: false, nulls_first: false };
    Arc::new(WriterProperties::builder().set_sorting_columns(Some(vec![sorting])).build())
}

/// Makes the columns of a schema, in their order.
pub(super) struct Leaves<'a>(slice::Iter<'a, ColumnDescPtr>);

impl<'a> Leaves<'a> {
    pub(super) fn of(schema: &'a SchemaDescriptor) -> Self {
        Self(schema.columns().iter())
    }

    /// The next column.
    pub(super) fn column<V: Values + Default>(&mut self) -> Result<Column<V>, ParquetError> {
        let descriptor = self.0.next();
        let descriptor =
            descriptor.ok_or_else(|| ParquetError::General("the schema has too few columns".to_owned()))?;
        // Fields of lists are called as columns are.
        let name = if descriptor.path().parts().len() == 1 { descriptor.name() } else { "" };
        let has_statistics = match name {
            column::TRACE_ID
            | column::TRACE_START
            | column::TRACE_END
            | column::DURATION
            | column::KIND
            | column::STATUS_CODE => true,
            name => {
                let is_numeric = matches!(descriptor.physical_type(), Type::INT64 | Type::DOUBLE);
                is_numeric && name.starts_with(column::PROMOTED_PREFIX)
            }
        };
        // Nothing makes random bytes smaller.
        let is_compressed = name != column::SPAN_ID;
        Ok(Column::new(ColumnDescPtr::clone(descriptor), Options { is_compressed, has_statistics }))
    }
}
