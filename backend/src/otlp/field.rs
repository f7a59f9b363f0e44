//! Numbers of the fields of OTLP 1.x (`opentelemetry/proto/trace/v1/trace.proto`, `common/v1/common.proto`); those of `Span`
//! stand here, those of others in modules.
#![expect(missing_docs, reason = "they are called as in OTLP")]

pub const TRACE_ID: u32 = 1;
pub const SPAN_ID: u32 = 2;
pub const TRACE_STATE: u32 = 3;
pub const PARENT_SPAN_ID: u32 = 4;
pub const NAME: u32 = 5;
pub const KIND: u32 = 6;
pub const START: u32 = 7;
pub const END: u32 = 8;
pub const ATTRIBUTES: u32 = 9;
pub const DROPPED_ATTRIBUTES_COUNT: u32 = 10;
pub const EVENTS: u32 = 11;
pub const DROPPED_EVENTS_COUNT: u32 = 12;
pub const LINKS: u32 = 13;
pub const DROPPED_LINKS_COUNT: u32 = 14;
pub const STATUS: u32 = 15;
pub const FLAGS: u32 = 16;

/// The elements of `ArrayValue` and `KeyValueList`.
pub const ELEMENT: u32 = 1;

pub mod event {
    pub const TIME: u32 = 1;
    pub const NAME: u32 = 2;
    pub const ATTRIBUTES: u32 = 3;
    pub const DROPPED_ATTRIBUTES_COUNT: u32 = 4;
}

pub mod link {
    pub const TRACE_ID: u32 = 1;
    pub const SPAN_ID: u32 = 2;
    pub const TRACE_STATE: u32 = 3;
    pub const ATTRIBUTES: u32 = 4;
    pub const DROPPED_ATTRIBUTES_COUNT: u32 = 5;
    pub const FLAGS: u32 = 6;
}

pub mod status {
    pub const MESSAGE: u32 = 2;
    pub const CODE: u32 = 3;
}

/// `KeyValue`.
pub mod attribute {
    pub const KEY: u32 = 1;
    pub const VALUE: u32 = 2;
}

/// `AnyValue`.
pub mod any {
    pub const STRING: u32 = 1;
    pub const BOOL: u32 = 2;
    pub const INT: u32 = 3;
    pub const DOUBLE: u32 = 4;
    pub const ARRAY: u32 = 5;
    /// `kvlistValue`.
    pub const PAIRS: u32 = 6;
    pub const BYTES: u32 = 7;
    /// `stringValueStrindex`, of profiles.
    pub const INDEX: u32 = 8;
}
