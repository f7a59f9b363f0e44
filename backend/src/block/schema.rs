//! The columns of a block: `docs/format/block.md` in code.

use std::sync::Arc;

use arrow_schema::{DataType, Field, FieldRef, Fields, Schema};
use parquet::arrow::parquet_to_arrow_schema;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};

use super::attributes::{AttributeType, Columns};

/// Names of the columns.
pub mod column {
    /// 16 bytes.
    pub const TRACE_ID: &str = "trace_id";
    /// 8 bytes.
    pub const SPAN_ID: &str = "span_id";
    /// Null if it is the id of the row of this trace whose [`NESTED_LEFT`] is [`NESTED_PARENT`]; null too if that is -1 and
    /// the span was sent without a parent.
    pub const PARENT_SPAN_ID: &str = "parent_span_id";
    /// As in [`crate::query::NestedSet`].
    pub const NESTED_LEFT: &str = "nested_left";
    /// As in [`crate::query::NestedSet`].
    pub const NESTED_RIGHT: &str = "nested_right";
    /// As in [`crate::query::NestedSet`].
    pub const NESTED_PARENT: &str = "nested_parent";
    /// Earliest start of the trace's spans in this block; the same in all rows of a trace.
    pub const TRACE_START: &str = "trace_start_unix_nano";
    /// Latest end of the trace's spans in this block; the same in all rows of a trace.
    pub const TRACE_END: &str = "trace_end_unix_nano";
    /// Start of the span, nanoseconds after [`TRACE_START`].
    pub const START_OFFSET: &str = "start_offset_nano";
    /// End minus start, modulo 2^64.
    pub const DURATION: &str = "duration_nano";
    /// Name of the span.
    pub const NAME: &str = "name";
    /// Number of OTLP's `SpanKind`.
    pub const KIND: &str = "kind";
    /// Number of OTLP's `StatusCode`; null if the span has no status.
    pub const STATUS_CODE: &str = "status_code";
    /// Null if empty.
    pub const STATUS_MESSAGE: &str = "status_message";
    /// Null if empty.
    pub const TRACE_STATE: &str = "trace_state";
    /// Null if 0.
    pub const FLAGS: &str = "flags";
    /// Null if 0.
    pub const DROPPED_ATTRIBUTES_COUNT: &str = "dropped_attributes_count";
    /// Null if 0.
    pub const DROPPED_EVENTS_COUNT: &str = "dropped_events_count";
    /// Null if 0.
    pub const DROPPED_LINKS_COUNT: &str = "dropped_links_count";
    /// `service.name` of the resource, if it is a string.
    pub const SERVICE_NAME: &str = "service_name";
    /// Index into the block's resources.
    pub const RESOURCE: &str = "resource";
    /// Index into the block's scopes.
    pub const SCOPE: &str = "scope";
    /// Number, within the trace, of the `ResourceSpans` that the span came in; null if it is that of [`SCOPE_SPANS`].
    pub const RESOURCE_SPANS: &str = "resource_spans";
    /// Number, within the trace, of the `ScopeSpans` that the span came in.
    pub const SCOPE_SPANS: &str = "scope_spans";
    /// In which order the span had its attributes, a byte each: the number of a promoted column, 255 for the next one of
    /// [`ATTRIBUTES`]. Null if it is the order of the columns, then of the list.
    pub const ATTRIBUTE_ORDER: &str = "attribute_order";
    /// What the names of the promoted columns begin with; the key follows.
    pub const PROMOTED_PREFIX: &str = "span.";
    /// Attributes that have no column.
    pub const ATTRIBUTES: &str = "attributes";
    /// List of [`event`].
    pub const EVENTS: &str = "events";
    /// List of [`link`].
    pub const LINKS: &str = "links";
}

/// Fields of an attribute in a list. At most one of the values is there; none if the attribute has no value.
pub mod attribute {
    /// Key.
    pub const KEY: &str = "key";
    /// `stringValue`.
    pub const STRING: &str = "string";
    /// `intValue`.
    pub const INT: &str = "int";
    /// `doubleValue`.
    pub const DOUBLE: &str = "double";
    /// `boolValue`.
    pub const BOOL: &str = "bool";
    /// Any other, an encoded `AnyValue`.
    pub const OTHER: &str = "other";
}

/// Fields of an event.
pub mod event {
    /// Nanoseconds after the start of the span, modulo 2^64.
    pub const TIME_OFFSET: &str = "time_offset_nano";
    /// Name.
    pub const NAME: &str = "name";
    /// Null if 0.
    pub const DROPPED_ATTRIBUTES_COUNT: &str = "dropped_attributes_count";
    /// List of [`super::attribute`].
    pub const ATTRIBUTES: &str = "attributes";
}

/// Fields of a link.
pub mod link {
    /// As it was sent; 16 bytes if it is right.
    pub const TRACE_ID: &str = "trace_id";
    /// As it was sent; 8 bytes if it is right.
    pub const SPAN_ID: &str = "span_id";
    /// Null if empty.
    pub const TRACE_STATE: &str = "trace_state";
    /// Null if 0.
    pub const FLAGS: &str = "flags";
    /// Null if 0.
    pub const DROPPED_ATTRIBUTES_COUNT: &str = "dropped_attributes_count";
    /// List of [`super::attribute`].
    pub const ATTRIBUTES: &str = "attributes";
}

/// In [`column::ATTRIBUTE_ORDER`]: the next attribute of the list.
pub(super) const ORDER_OF_LIST: u8 = 255;

/// Keys of the footer.
pub(super) mod footer {
    pub(crate) const FORMAT: &str = "coati.format";
    pub(crate) const SUMMARY: &str = "coati.summary";
    pub(crate) const ATTRIBUTES: &str = "coati.attributes";
    pub(crate) const RESOURCES: &str = "coati.resources";
    pub(crate) const SCOPES: &str = "coati.scopes";
    pub(crate) const CHECKSUM: &str = "coati.checksum";
}

/// The columns that are written, in their order.
pub(super) fn write_schema(columns: &Columns) -> Schema {
    let required = |name: &str, of: DataType| Field::new(name, of, false);
    let optional = |name: &str, of: DataType| Field::new(name, of, true);
    let mut fields = vec![
        required(column::TRACE_ID, DataType::FixedSizeBinary(16)),
        required(column::SPAN_ID, DataType::FixedSizeBinary(8)),
        optional(column::PARENT_SPAN_ID, DataType::Binary),
        required(column::NESTED_LEFT, DataType::Int32),
        required(column::NESTED_RIGHT, DataType::Int32),
        required(column::NESTED_PARENT, DataType::Int32),
        required(column::TRACE_START, DataType::UInt64),
        required(column::TRACE_END, DataType::UInt64),
        required(column::START_OFFSET, DataType::UInt64),
        required(column::DURATION, DataType::Int64),
        required(column::NAME, DataType::Utf8),
        required(column::KIND, DataType::Int32),
        optional(column::STATUS_CODE, DataType::Int32),
        optional(column::STATUS_MESSAGE, DataType::Utf8),
        optional(column::TRACE_STATE, DataType::Utf8),
        optional(column::FLAGS, DataType::UInt32),
        optional(column::DROPPED_ATTRIBUTES_COUNT, DataType::UInt32),
        optional(column::DROPPED_EVENTS_COUNT, DataType::UInt32),
        optional(column::DROPPED_LINKS_COUNT, DataType::UInt32),
        optional(column::SERVICE_NAME, DataType::Utf8),
        required(column::RESOURCE, DataType::Int32),
        required(column::SCOPE, DataType::Int32),
        optional(column::RESOURCE_SPANS, DataType::Int32),
        required(column::SCOPE_SPANS, DataType::Int32),
        optional(column::ATTRIBUTE_ORDER, DataType::Binary),
    ];
    fields.extend(columns.promoted().iter().map(|promoted| {
        let of = match promoted.of {
            AttributeType::String => DataType::Utf8,
            AttributeType::Int => DataType::Int64,
            AttributeType::Double => DataType::Float64,
            AttributeType::Bool => DataType::Boolean,
            AttributeType::Other => DataType::Binary,
        };
        optional(&promoted_column(&promoted.key), of)
    }));
    fields.push(required(column::ATTRIBUTES, list_of(attribute_fields())));
    fields.push(required(column::EVENTS, list_of(event_fields())));
    fields.push(required(column::LINKS, list_of(link_fields())));
    Schema::new(fields)
}

/// Name of the column of a promoted key.
pub fn promoted_column(key: &str) -> String {
    format!("{}{key}", column::PROMOTED_PREFIX)
}

pub(super) fn attribute_fields() -> Fields {
    Fields::from(vec![
        Field::new(attribute::KEY, DataType::Utf8, false),
        Field::new(attribute::STRING, DataType::Utf8, true),
        Field::new(attribute::INT, DataType::Int64, true),
        Field::new(attribute::DOUBLE, DataType::Float64, true),
        Field::new(attribute::BOOL, DataType::Boolean, true),
        Field::new(attribute::OTHER, DataType::Binary, true),
    ])
}

pub(super) fn event_fields() -> Fields {
    Fields::from(vec![
        Field::new(event::TIME_OFFSET, DataType::Int64, false),
        Field::new(event::NAME, DataType::Utf8, false),
        Field::new(event::DROPPED_ATTRIBUTES_COUNT, DataType::UInt32, true),
        Field::new(event::ATTRIBUTES, list_of(attribute_fields()), false),
    ])
}

pub(super) fn link_fields() -> Fields {
    Fields::from(vec![
        Field::new(link::TRACE_ID, DataType::Binary, false),
        Field::new(link::SPAN_ID, DataType::Binary, false),
        Field::new(link::TRACE_STATE, DataType::Utf8, true),
        Field::new(link::FLAGS, DataType::UInt32, true),
        Field::new(link::DROPPED_ATTRIBUTES_COUNT, DataType::UInt32, true),
        Field::new(link::ATTRIBUTES, list_of(attribute_fields()), false),
    ])
}

/// The element of a list, named as Parquet wants it.
pub(super) fn element(fields: Fields) -> FieldRef {
    Arc::new(Field::new("element", DataType::Struct(fields), false))
}

fn list_of(fields: Fields) -> DataType {
    DataType::List(element(fields))
}

/// The types that columns are read as: those of the file, and `Dictionary(Int32, …)` for texts and bytes that have a
/// dictionary in the first row group.
pub(super) fn read_schema(metadata: &ParquetMetaData) -> Result<Schema, ParquetError> {
    let inferred = parquet_to_arrow_schema(metadata.file_metadata().schema_descr(), None)?;
    let chunks = metadata.row_groups().first().map(RowGroupMetaData::columns).unwrap_or_default();
    let mut has_dictionary = chunks.iter().map(|chunk| chunk.dictionary_page_offset().is_some());
    let fields: Vec<_> = inferred.fields().iter().map(|field| with_dictionaries(field, &mut has_dictionary)).collect();
    Ok(Schema::new(fields))
}

/// Visits the leaves in the order of the column chunks.
fn with_dictionaries(field: &FieldRef, has_dictionary: &mut impl Iterator<Item = bool>) -> FieldRef {
    let of = match field.data_type() {
        DataType::List(element) => DataType::List(with_dictionaries(element, has_dictionary)),
        DataType::Struct(fields) => {
            DataType::Struct(fields.iter().map(|field| with_dictionaries(field, has_dictionary)).collect())
        }
        leaf => {
            let has_dictionary = has_dictionary.next().unwrap_or_default();
            match leaf {
                DataType::Utf8 | DataType::Binary if has_dictionary => {
                    DataType::Dictionary(Box::new(DataType::Int32), Box::new(leaf.clone()))
                }
                leaf => leaf.clone(),
            }
        }
    };
    Arc::new(field.as_ref().clone().with_data_type(of))
}
