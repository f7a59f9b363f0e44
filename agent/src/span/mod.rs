//! A finished exchange as an OpenTelemetry span.
//!
//! Names, attributes and status follow the semantic conventions for HTTP and for gRPC; what is not known is left out.

mod address;
mod clock;
mod error;
mod grpc;
mod headers;
mod redact;
mod request;
mod route;
mod sampling;
mod select;

#[cfg(test)]
mod tests;

use std::{borrow::Cow, net::IpAddr, sync::Arc, time::Duration};

use coati_common::wellknown::span as key;
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{
        Span, SpanFlags,
        span::{Event, SpanKind},
    },
};

pub use clock::Clock;
pub use headers::HeaderConfig;
pub use request::RequestAttributes;
pub(crate) use request::RequestValue;
pub use route::{IgnoreMode, RouteConfig, Routes, Unmatched};
pub use sampling::{RateLimit, Ratio, Sampler, SamplerName, SamplingConfig};
pub use select::{AttributeConfig, AttributeFilter};

use crate::{
    decode::{DecodeConfig, Exchange, Method, Origin, Progress, RequestHead, Role},
    discover::Process,
    kubernetes::Kubernetes,
    stitch::Ids,
};
use address::Authority;
use error::Error;

/// Attributes that a request has, as a rule: most have sixteen.
const ATTRIBUTES: usize = 18;

/// A span and the process that it belongs to; the exporter groups spans by process.
#[derive(Clone, Debug)]
pub struct FinishedSpan {
    /// Whose resource the span is sent under.
    pub process: Arc<Process>,
    /// The attributes that say what the request was; they come before those of `span`.
    pub request: RequestAttributes,
    /// The span, with its other attributes.
    pub span: Span,
}

impl FinishedSpan {
    /// A span that is no request, or says all in its own attributes.
    pub fn plain(process: Arc<Process>, span: Span) -> Self {
        Self { process, request: RequestAttributes::default(), span }
    }

    /// All attributes, as OTLP has them.
    pub fn attributes(&self) -> impl Iterator<Item = KeyValue> {
        self.request.otlp().chain(self.span.attributes.iter().cloned())
    }

    /// Says that the request is not over: a later span with the same ids, kind and start replaces this one (ADR 0027).
    pub fn mark_partial(&mut self) {
        let mut attributes = Attributes(std::mem::take(&mut self.span.attributes));
        attributes.push(key::COATI_SPAN_PARTIAL, Value::BoolValue(true));
        self.span.attributes = attributes.0;
    }
}

/// What is put into spans.
#[derive(Clone, Debug, PartialEq)]
pub struct SpanConfig {
    /// Replace the values in queries by `REDACTED`.
    pub redact_query: bool,
    /// How routes are made of paths.
    pub routes: RouteConfig,
    /// Which headers are shown.
    pub headers: HeaderConfig,
    /// Which attributes stay.
    pub attributes: AttributeConfig,
    /// Which spans are kept.
    pub sampling: SamplingConfig,
    /// Spans of requests that pass in a second at most.
    pub max_per_second: Option<usize>,
    /// How long a request is under way before what is known of it is sent, and then ever more rarely; `None` for never.
    pub partial_after: Option<Duration>,
}

impl Default for SpanConfig {
    fn default() -> Self {
        Self {
            redact_query: true,
            routes: RouteConfig::default(),
            headers: HeaderConfig::default(),
            attributes: AttributeConfig::default(),
            sampling: SamplingConfig::default(),
            max_per_second: None,
            partial_after: DecodeConfig::default().show_after,
        }
    }
}

/// What becomes of a request that is over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// A span is made of it.
    Kept,
    /// None is, because its trace is not sampled.
    SampledOut,
    /// None is, because there were too many in this second.
    TooMany,
}

/// Makes spans.
#[derive(Debug)]
pub struct SpanBuilder {
    redact_query: bool,
    headers: HeaderConfig,
    attributes: Option<AttributeFilter>,
    sampling: SamplingConfig,
    limit: Option<RateLimit>,
    routes: Routes,
    clock: Clock,
    kubernetes: Option<Kubernetes>,
}

impl SpanBuilder {
    /// A builder that has seen no paths yet.
    pub fn new(config: SpanConfig, clock: Clock) -> Self {
        let SpanConfig { redact_query, routes, headers, attributes, sampling, max_per_second, partial_after: _ } =
            config;
        Self {
            redact_query,
            headers,
            attributes: AttributeFilter::new(&attributes),
            sampling,
            limit: max_per_second.map(RateLimit::new),
            routes: Routes::new(routes),
            clock,
            kubernetes: None,
        }
    }

    /// Names peers and servers that Kubernetes knows by their address.
    #[must_use]
    pub fn naming_peers(mut self, kubernetes: Option<Kubernetes>) -> Self {
        self.kubernetes = kubernetes;
        self
    }

    /// Another configuration. Routes that were seen stay routes, unless it is theirs that changes.
    pub fn set_config(&mut self, config: SpanConfig) {
        let is_other = *self.routes.config() != config.routes;
        let new = Self::new(config, self.clock).naming_peers(self.kubernetes.take());
        let old = std::mem::replace(self, new);
        if !is_other {
            self.routes = old.routes;
        }
    }

    /// Whether a span is made of `exchange`, which `process` took part in.
    pub fn verdict(&mut self, exchange: &Exchange, ids: &Ids, process: &Process) -> Verdict {
        let duration = Duration::from_nanos(exchange.end_ns.saturating_sub(exchange.origin.begin_ns));
        if !self.sampling.keeps(ids, process.sampler, Error::of(exchange).is_some(), duration) {
            Verdict::SampledOut
        } else if self.limit.as_mut().is_none_or(|limit| limit.passes(exchange.end_ns)) {
            Verdict::Kept
        } else {
            Verdict::TooMany
        }
    }

    /// Takes off the attributes that nobody wants; the last thing that is done to a span.
    pub fn select(&mut self, mut span: FinishedSpan) -> FinishedSpan {
        if let Some(attributes) = &mut self.attributes {
            attributes.apply(&mut span);
        }
        span
    }

    /// Of what the request is left out, because of its path.
    pub fn ignored(&self, request: &RequestHead) -> Option<IgnoreMode> {
        self.routes.ignored(request.path()?)
    }

    /// Sets what the kernel's clock means; to be called now and then, as wall clocks are corrected.
    pub const fn set_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    /// What the kernel's clock means.
    pub const fn clock(&self) -> Clock {
        self.clock
    }

    /// The span of `exchange`, which `process` took part in, and which `clock` was for.
    pub fn build(&mut self, exchange: &Exchange, ids: Ids, process: &Arc<Process>, clock: Clock) -> FinishedSpan {
        let request = &exchange.request;
        let role = exchange.origin.role;
        let status_code = exchange.response.as_ref().map(|response| response.status);
        let path = request.path();
        let call = exchange.grpc.and(path).and_then(grpc::names);
        let route = path.filter(|_| exchange.grpc.is_none()).and_then(|path| {
            // Paths that the server does not know would use up the words that it does.
            let is_known = status_code != Some(404);
            self.routes.route(&process.service_name, role, path, is_known)
        });
        let error = Error::of(exchange);
        let name = match call {
            Some((service, method)) => format!("{service}/{method}"),
            None => name(request, route.as_deref()),
        };
        let described = self.describe(exchange, path, route, error.as_ref());
        let span = Span {
            name,
            kind: match role {
                Role::Server => SpanKind::Server.into(),
                Role::Client => SpanKind::Client.into(),
            },
            start_time_unix_nano: clock.unix_ns(exchange.origin.begin_ns),
            end_time_unix_nano: clock.unix_ns(exchange.end_ns),
            attributes: self.describe_headers(exchange),
            events: exchange.progress.iter().map(|it| progress(it, clock)).collect(),
            status: error.map(Error::status),
            flags: flags(&ids),
            trace_id: ids.trace_id.to_vec(),
            span_id: ids.span_id.to_vec(),
            parent_span_id: ids.parent_span_id.map(|id| id.to_vec()).unwrap_or_default(),
            trace_state: ids.trace_state,
            ..Span::default()
        };
        FinishedSpan { process: Arc::clone(process), request: described, span }
    }

    fn describe(
        &self,
        exchange: &Exchange,
        path: Option<&str>,
        route: Option<String>,
        error: Option<&Error>,
    ) -> RequestAttributes {
        let Exchange { origin, unix_path, request, response, .. } = exchange;
        let host = request.host().map(Authority::parse);
        let mut attributes = RequestAttributes::with_capacity(ATTRIBUTES);

        if let Some(call) = exchange.grpc {
            attributes.text(key::RPC_SYSTEM, "grpc");
            if let Some((service, method)) = path.and_then(grpc::names) {
                attributes.text(key::RPC_SERVICE, service.to_owned());
                attributes.text(key::RPC_METHOD, method.to_owned());
            }
            if let Some(status) = call.status {
                attributes.int(key::RPC_GRPC_STATUS_CODE, status);
            }
        }
        attributes.text(key::HTTP_REQUEST_METHOD, request.method.as_str());
        if request.method == Method::Other {
            attributes.text(key::HTTP_REQUEST_METHOD_ORIGINAL, request.method_text().to_owned());
        }
        let scheme: Cow<'static, str> =
            request.scheme().map_or(default_scheme(origin).into(), |scheme| scheme.to_ascii_lowercase().into());
        let query = request.query().map(|query| self.query(query));
        let server = match origin.role {
            Role::Server => {
                if let Some(path) = path {
                    attributes.text(key::URL_PATH, path.to_owned());
                }
                if let Some(query) = query {
                    attributes.text(key::URL_QUERY, query.into_owned());
                }
                attributes.text(key::URL_SCHEME, scheme);
                if let Some(route) = route {
                    attributes.text(key::HTTP_ROUTE, route);
                }
                if origin.has_addresses() {
                    attributes.text(key::CLIENT_ADDRESS, address::text(origin.remote.ip()));
                    attributes.int(key::CLIENT_PORT, origin.remote.port());
                }
                origin.local
            }
            Role::Client => {
                if request.method != Method::Connect && !request.is_target_unknown() {
                    attributes.text(key::URL_FULL, full_url(&scheme, host, exchange, path, query.as_deref()));
                }
                if origin.has_addresses() {
                    attributes.text(key::NETWORK_PEER_ADDRESS, address::text(origin.remote.ip()));
                    attributes.int(key::NETWORK_PEER_PORT, origin.remote.port());
                } else if let Some(path) = unix_path {
                    attributes.text(key::NETWORK_PEER_ADDRESS, path.to_string());
                }
                origin.remote
            }
        };
        if origin.is_unix {
            attributes.text(key::NETWORK_TRANSPORT, "unix");
        }
        if let Some(path) = unix_path {
            // The host that was asked for is as good as any other there.
            attributes.text(key::SERVER_ADDRESS, path.to_string());
        } else if host.is_some() || origin.has_addresses() {
            attributes.text(key::SERVER_ADDRESS, self.server_address(host, server.ip()));
        }
        let port = host.and_then(|host| host.port).or_else(|| Some(server.port()).filter(|port| *port != 0));
        if let Some(port) = port.filter(|_| !origin.is_unix) {
            attributes.int(key::SERVER_PORT, port);
        }
        if let Some(peer) = self.kubernetes.as_ref().and_then(|it| it.peer(origin.remote.ip())) {
            attributes.text(key::SERVICE_PEER_NAME, peer.name.to_string());
            attributes.text(key::SERVICE_PEER_NAMESPACE, peer.namespace.to_string());
        }
        if let Some(version) = request.version {
            attributes.text(key::NETWORK_PROTOCOL_VERSION, version.as_str());
        }
        if let Some(user_agent) = request.user_agent() {
            attributes.text(key::USER_AGENT_ORIGINAL, user_agent.to_owned());
        }
        if let Some(bytes) = exchange.request_body_bytes {
            attributes.count(key::HTTP_REQUEST_BODY_SIZE, bytes);
        }
        if let Some(response) = response {
            attributes.int(key::HTTP_RESPONSE_STATUS_CODE, response.status);
        }
        if let Some(bytes) = exchange.response_body_bytes {
            attributes.count(key::HTTP_RESPONSE_BODY_SIZE, bytes);
        }
        if let Some(error) = error {
            attributes.text(key::ERROR_TYPE, error.text());
        }
        if let Some(first_ns) = exchange.response_first_ns {
            attributes.seconds(key::COATI_TIME_TO_FIRST_BYTE, first_ns.saturating_sub(origin.begin_ns));
            attributes.seconds(key::COATI_RESPONSE_DURATION, exchange.end_ns.saturating_sub(first_ns));
            attributes.int(key::COATI_RESPONSE_CHUNKS, exchange.response_chunks);
        }
        if let Some(websocket) = &exchange.websocket {
            attributes.websocket(websocket, origin.role);
        }
        if let Some(incomplete) = exchange.incomplete {
            attributes.text(key::COATI_INCOMPLETE, incomplete.as_str());
        }
        attributes
    }

    /// The headers that are shown, as attributes.
    fn describe_headers(&self, exchange: &Exchange) -> Vec<KeyValue> {
        let Exchange { request, response, .. } = exchange;
        let mut attributes = Vec::new();
        let HeaderConfig { request: of_request, response: of_response, .. } = &self.headers;
        self.headers.capture(of_request, key::HTTP_REQUEST_HEADER, request.headers(), &mut attributes);
        if let Some(response) = response {
            self.headers.capture(of_response, key::HTTP_RESPONSE_HEADER, response.headers(), &mut attributes);
        }
        attributes
    }

    /// The name by which the server was asked for; if it was an address, or nothing, what Kubernetes calls that address.
    fn server_address(&self, host: Option<Authority<'_>>, server: IpAddr) -> String {
        let peer = self.kubernetes.as_ref().and_then(|kubernetes| {
            let address = match host {
                Some(host) => host.name.parse().ok(),
                None => Some(server),
            };
            kubernetes.peer(address?)
        });
        match (peer, host) {
            (Some(peer), _) => peer.name.to_string(),
            (None, Some(host)) => host.name.to_owned(),
            (None, None) => address::text(server),
        }
    }

    fn query<'a>(&self, query: &'a str) -> Cow<'a, str> {
        if self.redact_query { redact::query(query).into() } else { query.into() }
    }
}

/// How far a long response had come.
fn progress(progress: &Progress, clock: Clock) -> Event {
    let mut attributes = Attributes(Vec::with_capacity(3));
    attributes.count(key::COATI_PROGRESS_REQUEST_BYTES, progress.request_bytes);
    attributes.count(key::COATI_PROGRESS_RESPONSE_BYTES, progress.response_bytes);
    attributes.int(key::COATI_PROGRESS_CHUNKS, progress.chunks);
    Event {
        time_unix_nano: clock.unix_ns(progress.time_ns),
        name: "progress".to_owned(),
        attributes: attributes.0,
        dropped_attributes_count: 0,
    }
}

/// The scheme of a request that does not say.
const fn default_scheme(origin: &Origin) -> &'static str {
    if origin.is_tls { "https" } else { "http" }
}

/// `METHOD route`, or the method alone; an unknown method is called `HTTP`.
fn name(request: &RequestHead, route: Option<&str>) -> String {
    let method = if request.method == Method::Other { "HTTP" } else { request.method.as_str() };
    let Some(route) = route else { return method.to_owned() };
    let mut name = String::with_capacity(method.len() + 1 + route.len());
    name.push_str(method);
    name.push(' ');
    name.push_str(route);
    name
}

/// The absolute URL that a client asked for, without credentials.
fn full_url(
    scheme: &str,
    host: Option<Authority<'_>>,
    exchange: &Exchange,
    path: Option<&str>,
    query: Option<&str>,
) -> String {
    let mut url = String::with_capacity(128);
    url.push_str(scheme);
    url.push_str("://");
    match host {
        Some(host) => url.push_str(host.text),
        None if exchange.origin.has_addresses() => url.push_str(&exchange.origin.remote.to_string()),
        None => {}
    }
    url.push_str(path.unwrap_or_default());
    if let Some(query) = query {
        url.push('?');
        url.push_str(query);
    }
    url
}

/// The trace flags, and whether the parent is of another process.
fn flags(ids: &Ids) -> u32 {
    let remote = match ids.is_parent_remote {
        Some(true) => SpanFlags::ContextHasIsRemoteMask as u32 | SpanFlags::ContextIsRemoteMask as u32,
        Some(false) => SpanFlags::ContextHasIsRemoteMask as u32,
        None => 0,
    };
    u32::from(ids.flags) | remote
}

/// Attributes in the making.
pub(crate) struct Attributes(pub(crate) Vec<KeyValue>);

impl Attributes {
    pub(crate) fn text(&mut self, key: &str, value: impl Into<String>) {
        self.push(key, Value::StringValue(value.into()));
    }

    pub(crate) fn int(&mut self, key: &str, value: impl Into<i64>) {
        self.push(key, Value::IntValue(value.into()));
    }

    pub(crate) fn count(&mut self, key: &str, value: u64) {
        self.int(key, i64::try_from(value).unwrap_or(i64::MAX));
    }

    pub(crate) fn seconds(&mut self, key: &str, ns: u64) {
        self.push(key, Value::DoubleValue(ns as f64 / 1e9));
    }

    pub(crate) fn double(&mut self, key: &str, value: f64) {
        self.push(key, Value::DoubleValue(value));
    }

    pub(crate) fn push(&mut self, key: &str, value: Value) {
        let value = Some(AnyValue { value: Some(value) });
        self.0.push(KeyValue { key: key.to_owned(), value, ..KeyValue::default() });
    }
}
