//! What metrics need to know of a request, read out of its span in one pass.

use coati_common::wellknown::span as key;
use opentelemetry_proto::tonic::{
    common::v1::any_value::Value,
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};

use super::histogram::Exemplar;
use crate::{
    decode::Role,
    span::{FinishedSpan, RequestValue},
};

/// A request at one of its ends. What is not known is empty.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) role: Role,
    pub(super) span_name: &'a str,
    pub(super) is_error: bool,
    pub(super) method: &'a str,
    pub(super) scheme: &'a str,
    pub(super) route: &'a str,
    pub(super) status: Option<i64>,
    pub(super) server_address: &'a str,
    pub(super) server_port: Option<i64>,
    pub(super) path: &'a str,
    pub(super) client_address: &'a str,
    /// Empty if it is no call of gRPC.
    pub(super) rpc_system: &'a str,
    pub(super) rpc_service: &'a str,
    pub(super) rpc_method: &'a str,
    pub(super) rpc_status: Option<i64>,
    /// What Kubernetes calls the other end.
    pub(super) peer_name: &'a str,
    pub(super) peer_namespace: &'a str,
    pub(super) asked_bytes: Option<i64>,
    pub(super) answered_bytes: Option<i64>,
    /// False if it is not known when it was over.
    pub(super) is_end_known: bool,
    span: &'a Span,
}

impl<'a> Request<'a> {
    /// `None` if the span is no request.
    pub(super) fn of(finished: &'a FinishedSpan) -> Option<Self> {
        let span = &finished.span;
        let role = match SpanKind::try_from(span.kind) {
            Ok(SpanKind::Server) => Role::Server,
            Ok(SpanKind::Client) => Role::Client,
            _ => return None,
        };
        let mut request = Self {
            role,
            span_name: &span.name,
            is_error: span.status.as_ref().is_some_and(|status| status.code == StatusCode::Error as i32),
            method: "",
            scheme: "",
            route: "",
            status: None,
            server_address: "",
            server_port: None,
            path: "",
            client_address: "",
            rpc_system: "",
            rpc_service: "",
            rpc_method: "",
            rpc_status: None,
            peer_name: "",
            peer_namespace: "",
            asked_bytes: None,
            answered_bytes: None,
            is_end_known: true,
            span,
        };
        for (key, value) in finished.request.iter() {
            match value {
                RequestValue::Text(text) => request.text(key, text),
                RequestValue::Int(number) => request.number(key, *number),
                RequestValue::Double(_) => {}
            }
        }
        for attribute in &span.attributes {
            match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
                Some(Value::StringValue(text)) => request.text(&attribute.key, text),
                Some(Value::IntValue(number)) => request.number(&attribute.key, *number),
                _ => {}
            }
        }
        Some(request)
    }

    fn text(&mut self, key: &str, text: &'a str) {
        let place = match key {
            key::HTTP_REQUEST_METHOD => &mut self.method,
            key::URL_SCHEME => &mut self.scheme,
            key::HTTP_ROUTE => &mut self.route,
            key::SERVER_ADDRESS => &mut self.server_address,
            key::URL_PATH => &mut self.path,
            key::CLIENT_ADDRESS => &mut self.client_address,
            key::SERVICE_PEER_NAME => &mut self.peer_name,
            key::SERVICE_PEER_NAMESPACE => &mut self.peer_namespace,
            key::RPC_SYSTEM => &mut self.rpc_system,
            key::RPC_SERVICE => &mut self.rpc_service,
            key::RPC_METHOD => &mut self.rpc_method,
            // Clients have it in the whole URL only.
            key::URL_FULL => {
                let (scheme, rest) = text.split_once("://").unwrap_or_default();
                self.scheme = scheme;
                let path = rest.find('/').and_then(|start| rest.get(start..)).unwrap_or_default();
                self.path = path.split(['?', '#']).next().unwrap_or_default();
                return;
            }
            key::COATI_INCOMPLETE => {
                self.is_end_known = !matches!(text, "end" | "response");
                return;
            }
            _ => return,
        };
        *place = text;
    }

    fn number(&mut self, key: &str, number: i64) {
        let place = match key {
            key::HTTP_RESPONSE_STATUS_CODE => &mut self.status,
            key::SERVER_PORT => &mut self.server_port,
            key::RPC_GRPC_STATUS_CODE => &mut self.rpc_status,
            key::HTTP_REQUEST_BODY_SIZE => &mut self.asked_bytes,
            key::HTTP_RESPONSE_BODY_SIZE => &mut self.answered_bytes,
            _ => return,
        };
        *place = Some(number);
    }

    /// How long it took.
    pub(super) fn seconds(&self) -> f64 {
        self.span.end_time_unix_nano.saturating_sub(self.span.start_time_unix_nano) as f64 / 1e9
    }

    /// When it began, nanoseconds since the epoch.
    pub(super) const fn begin_unix_ns(&self) -> u64 {
        self.span.start_time_unix_nano
    }

    /// It as the one that stands for others that took about as long.
    pub(super) fn exemplar(&self) -> Option<Exemplar> {
        Some(Exemplar {
            trace_id: self.span.trace_id.as_slice().try_into().ok()?,
            span_id: self.span.span_id.as_slice().try_into().ok()?,
            value: self.seconds(),
            unix_ns: self.span.end_time_unix_nano,
        })
    }
}
