//! What metrics need to know of a request.

use super::histogram::Exemplar;
use crate::{
    decode::{Incomplete, Role},
    span::RequestSpan,
    stitch::Ids,
};

/// A request at one of its ends. What is not known is empty.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Request<'a> {
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
    pub(super) trace_id: [u8; 16],
    pub(super) span_id: [u8; 8],
    pub(super) begin_unix_ns: u64,
    pub(super) end_unix_ns: u64,
}

impl<'a> Request<'a> {
    /// What `span` says, as far as metrics are made of it.
    pub(crate) fn of(span: &'a RequestSpan<'_>) -> Self {
        let exchange = span.exchange();
        let role = exchange.origin.role;
        let (rpc_service, rpc_method) = span.call().unwrap_or_default();
        let [begin_unix_ns, end_unix_ns] = span.unix_ns();
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        // A client says both in its URL only.
        let is_placed = role == Role::Server || span.has_url();
        let Ids { trace_id, span_id, .. } = span.ids;
        Self {
            role,
            span_name: span.name(),
            is_error: span.is_error(),
            method: exchange.request.method.as_str(),
            scheme: if is_placed { span.scheme() } else { "" },
            route: span.route().filter(|_| role == Role::Server).unwrap_or_default(),
            status: exchange.response.as_ref().map(|response| response.status.into()),
            server_address: span.server_address().unwrap_or_default(),
            server_port: span.server_port().map(Into::into),
            path: span.path().filter(|_| is_placed).unwrap_or_default(),
            client_address: span.remote().filter(|_| role == Role::Server).unwrap_or_default(),
            rpc_system: if exchange.grpc.is_some() { "grpc" } else { "" },
            rpc_service,
            rpc_method,
            rpc_status: exchange.grpc.and_then(|call| call.status).map(Into::into),
            peer_name: span.peer().map(|peer| &*peer.name).unwrap_or_default(),
            peer_namespace: span.peer().map(|peer| &*peer.namespace).unwrap_or_default(),
            asked_bytes: exchange.request_body_bytes.map(bytes),
            answered_bytes: exchange.response_body_bytes.map(bytes),
            is_end_known: !matches!(exchange.incomplete, Some(Incomplete::End | Incomplete::Response)),
            trace_id,
            span_id,
            begin_unix_ns,
            end_unix_ns,
        }
    }

    /// How long it took.
    pub(super) fn seconds(&self) -> f64 {
        self.end_unix_ns.saturating_sub(self.begin_unix_ns) as f64 / 1e9
    }

    /// It as the one that stands for others that took about as long.
    pub(super) fn exemplar(&self) -> Exemplar {
        let Self { trace_id, span_id, .. } = *self;
        Exemplar { trace_id, span_id, value: self.seconds(), unix_ns: self.end_unix_ns }
    }
}
