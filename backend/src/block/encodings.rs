//! How columns are encoded in the file. Readers find out by themselves: this can change without a new version.

use std::collections::HashSet;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType;
use foldhash::fast::RandomState;
use parquet::arrow::ArrowSchemaConverter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{EnabledStatistics, WriterProperties};

use super::schema::column;

/// Most rows of a row group: what a writer holds in memory.
const ROW_GROUP_ROWS: usize = 131_072;

/// Most rows of a page: what a reader of one trace decodes of each column.
const PAGE_ROWS: usize = 8_192;

/// Most bytes of a dictionary: what a reader of one trace decodes besides. A column with a larger one goes on without.
const DICTIONARY_BYTES: usize = 512 << 10;

/// Values that are looked at to decide whether a column gets a dictionary.
const SAMPLED_VALUES: usize = 2_048;

/// Properties for a file that begins with these rows.
pub(super) fn writer_properties(rows: &RecordBatch) -> Result<WriterProperties, ParquetError> {
    let schema = rows.schema();
    let descriptor = ArrowSchemaConverter::new().convert(&schema)?;
    let mut leaves = Vec::with_capacity(descriptor.num_columns());
    rows.columns().iter().for_each(|array| collect_leaves(array, &mut leaves));
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_dictionary_page_size_limit(DICTIONARY_BYTES)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_sorting_columns(Some(vec![SortingColumn { column_idx: 0, descending: false, nulls_first: false }]));
    for (leaf, array) in descriptor.columns().iter().zip(leaves) {
        let path = leaf.path().clone();
        // Fields of lists are called as columns are; only their types count.
        let name = if path.parts().len() == 1 { leaf.name() } else { "" };
        let has_statistics = match name {
            column::TRACE_ID
            | column::TRACE_START
            | column::TRACE_END
            | column::DURATION
            | column::KIND
            | column::STATUS_CODE => true,
            name => {
                name.starts_with(column::PROMOTED_PREFIX)
                    && matches!(array.data_type(), DataType::Int64 | DataType::Float64)
            }
        };
        if has_statistics {
            properties = properties.set_column_statistics_enabled(path.clone(), EnabledStatistics::Page);
        }
        if name == column::SPAN_ID {
            properties = properties.set_column_compression(path.clone(), Compression::UNCOMPRESSED);
        }
        properties = match encoding(name, &array) {
            None => properties.set_column_dictionary_enabled(path, true),
            Some(encoding) => {
                properties.set_column_dictionary_enabled(path.clone(), false).set_column_encoding(path, encoding)
            }
        };
    }
    Ok(properties.build())
}

/// Encoding of a column; none for a dictionary.
fn encoding(name: &str, array: &ArrayRef) -> Option<Encoding> {
    match name {
        column::TRACE_ID | column::SPAN_ID | column::TRACE_START | column::TRACE_END => return Some(Encoding::PLAIN),
        column::NESTED_LEFT
        | column::NESTED_RIGHT
        | column::NESTED_PARENT
        | column::START_OFFSET
        | column::DURATION => {
            return Some(Encoding::BYTE_STREAM_SPLIT);
        }
        _ => {}
    }
    match array.data_type() {
        DataType::Utf8 | DataType::Binary if distinct_percent(array) > 90 => Some(Encoding::PLAIN),
        DataType::Int64 if distinct_percent(array) > 60 => Some(Encoding::BYTE_STREAM_SPLIT),
        // Dictionaries take -0.0 for 0.0.
        DataType::Float64 => Some(Encoding::BYTE_STREAM_SPLIT),
        DataType::Boolean => Some(Encoding::PLAIN),
        _ => None,
    }
}

/// Distinct values of 100 that are there, in a sample.
fn distinct_percent(array: &ArrayRef) -> usize {
    let step = (array.len() - array.null_count()).div_ceil(SAMPLED_VALUES).max(1);
    let present = (0..array.len()).filter(|index| array.is_valid(*index)).step_by(step);
    let mut count = 0;
    let mut seen = HashSet::with_hasher(RandomState::default());
    let mut seen_numbers = HashSet::with_hasher(RandomState::default());
    match array.data_type() {
        DataType::Utf8 => {
            let array = array.as_string::<i32>();
            present.for_each(|index| {
                count += 1;
                seen.insert(array.value(index).as_bytes());
            });
        }
        DataType::Binary => {
            let array = array.as_binary::<i32>();
            present.for_each(|index| {
                count += 1;
                seen.insert(array.value(index));
            });
        }
        DataType::Int64 => {
            let array = array.as_primitive::<Int64Type>();
            present.for_each(|index| {
                count += 1;
                seen_numbers.insert(array.value(index));
            });
        }
        _ => {}
    }
    (seen.len() + seen_numbers.len()) * 100 / count.max(1)
}

/// The leaves of a column in the order in which Parquet has them.
fn collect_leaves(array: &ArrayRef, leaves: &mut Vec<ArrayRef>) {
    match array.data_type() {
        DataType::List(_) => collect_leaves(array.as_list::<i32>().values(), leaves),
        DataType::Struct(_) => array.as_struct().columns().iter().for_each(|column| collect_leaves(column, leaves)),
        _ => leaves.push(ArrayRef::clone(array)),
    }
}
