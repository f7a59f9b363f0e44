//! Attributes of a request, in little memory.
//!
//! Nearly every span has some sixteen of them. Their keys never change, and half of their values never do, so only the others
//! are texts of their own: most of what a span costs would be to allocate the same words again.

use std::borrow::Cow;

use coati_common::wellknown::span as key;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};

use crate::decode::{Role, WebSocket};

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RequestValue {
    Text(Cow<'static, str>),
    Int(i64),
    Double(f64),
}

/// The attributes of a request, in their order; a key comes once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestAttributes(Vec<(&'static str, RequestValue)>);

impl RequestAttributes {
    /// None yet, and room for so many.
    pub(super) fn with_capacity(attributes: usize) -> Self {
        Self(Vec::with_capacity(attributes))
    }

    pub(crate) fn text(&mut self, key: &'static str, value: impl Into<Cow<'static, str>>) {
        self.0.push((key, RequestValue::Text(value.into())));
    }

    pub(crate) fn int(&mut self, key: &'static str, value: impl Into<i64>) {
        self.0.push((key, RequestValue::Int(value.into())));
    }

    pub(crate) fn count(&mut self, key: &'static str, value: u64) {
        self.int(key, i64::try_from(value).unwrap_or(i64::MAX));
    }

    pub(crate) fn seconds(&mut self, key: &'static str, ns: u64) {
        self.0.push((key, RequestValue::Double(ns as f64 / 1e9)));
    }

    pub(super) fn websocket(&mut self, websocket: &WebSocket, role: Role) {
        let WebSocket { requests, responses, close_code } = *websocket;
        let (sent, received) = if role == Role::Client { (requests, responses) } else { (responses, requests) };
        if let Some(messages) = sent.messages {
            self.count(key::COATI_WEBSOCKET_MESSAGES_SENT, messages);
        }
        if let Some(messages) = received.messages {
            self.count(key::COATI_WEBSOCKET_MESSAGES_RECEIVED, messages);
        }
        self.count(key::COATI_WEBSOCKET_BYTES_SENT, sent.bytes);
        self.count(key::COATI_WEBSOCKET_BYTES_RECEIVED, received.bytes);
        if let Some(code) = close_code {
            self.int(key::COATI_WEBSOCKET_CLOSE_CODE, code);
        }
    }

    /// Leaves only those whose keys are wanted.
    pub(super) fn retain(&mut self, mut keeps: impl FnMut(&str) -> bool) {
        self.0.retain(|(key, _)| keeps(key));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &RequestValue)> {
        self.0.iter().map(|(key, value)| (*key, value))
    }

    /// The same as OTLP has them.
    pub(crate) fn otlp(&self) -> impl Iterator<Item = KeyValue> {
        self.iter().map(|(key, value)| {
            let value = match value {
                RequestValue::Text(text) => any_value::Value::StringValue(text.clone().into_owned()),
                RequestValue::Int(number) => any_value::Value::IntValue(*number),
                RequestValue::Double(number) => any_value::Value::DoubleValue(*number),
            };
            KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
        })
    }
}
