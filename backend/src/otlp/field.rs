//! Numbers of the fields of OTLP 1.x (`opentelemetry/proto/trace/v1/trace.proto`, `common/v1/common.proto`); those of `Span`
//! stand here, those of others in modules.
#![expect(missing_docs, reason = "they are called as in OTLP")]

pub const TRACE_ID: u8 = 1;
pub const SPAN_ID: u8 = 2;
pub const TRACE_STATE: u8 = 3;
pub const PARENT_SPAN_ID: u8 = 4;
pub const NAME: u8 = 5;
pub const KIND: u8 = 6;
pub const START: u8 = 7;
pub const END: u8 = 8;
pub const ATTRIBUTES: u8 = 9;
pub const DROPPED_ATTRIBUTES_COUNT: u8 = 10;
pub const EVENTS: u8 = 11;
pub const DROPPED_EVENTS_COUNT: u8 = 12;
pub const LINKS: u8 = 13;
pub const DROPPED_LINKS_COUNT: u8 = 14;
pub const STATUS: u8 = 15;
pub const FLAGS: u8 = 16;

pub mod event {
    pub const TIME: u8 = 1;
    pub const NAME: u8 = 2;
    pub const ATTRIBUTES: u8 = 3;
    pub const DROPPED_ATTRIBUTES_COUNT: u8 = 4;
}

pub mod link {
    pub const TRACE_ID: u8 = 1;
    pub const SPAN_ID: u8 = 2;
    pub const TRACE_STATE: u8 = 3;
    pub const ATTRIBUTES: u8 = 4;
    pub const DROPPED_ATTRIBUTES_COUNT: u8 = 5;
    pub const FLAGS: u8 = 6;
}

pub mod status {
    pub const MESSAGE: u8 = 2;
    pub const CODE: u8 = 3;
}

/// `KeyValue`.
pub mod attribute {
    pub const KEY: u8 = 1;
    pub const VALUE: u8 = 2;
}

/// `AnyValue`.
pub mod any {
    pub const STRING: u8 = 1;
    pub const BOOL: u8 = 2;
    pub const INT: u8 = 3;
    pub const DOUBLE: u8 = 4;
}
