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
mod told;

#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use coati_common::wellknown::span as key;
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::Span,
};

pub use clock::Clock;
pub use headers::HeaderConfig;
pub use request::RequestSpan;
pub(crate) use request::Sink;
pub use route::{IgnoreMode, RouteConfig, Routes, Unmatched};
pub use sampling::{RateLimit, Ratio, Sampler, SamplerName, SamplingConfig};
pub(crate) use select::Kept;
pub use select::{AttributeConfig, AttributeFilter};

use crate::{
    decode::{DecodeConfig, Exchange, Method, RequestHead, Role},
    discover::Process,
    kubernetes::Kubernetes,
    stitch::Ids,
};
use address::{AddressText, Authority};
use error::Error;
use told::{LastTold, Told};

/// A span and the process that it belongs to; the exporter groups spans by process.
#[derive(Clone, Debug)]
pub struct FinishedSpan {
    /// Whose resource the span is sent under.
    pub process: Arc<Process>,
    /// The span.
    pub span: Span,
}

impl FinishedSpan {
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
    last: LastTold,
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
            last: LastTold::new(),
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

    /// Which attributes spans have in the end; `None` if all.
    pub const fn filter(&mut self) -> Option<&mut AttributeFilter> {
        self.attributes.as_mut()
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
    pub fn describe<'a>(
        &mut self,
        exchange: &'a Exchange,
        ids: Ids,
        process: &'a Arc<Process>,
        clock: Clock,
    ) -> RequestSpan<'a> {
        let generation = self.kubernetes.as_ref().map_or(0, Kubernetes::generation);
        let again = self.last.again(exchange, process, generation).map(Arc::clone);
        let is_again = again.is_some();
        let told = again.unwrap_or_else(|| {
            let told = Arc::new(self.tell(exchange, process));
            // A path that the server does not know may get its route yet, and calls of gRPC have heads of their own.
            if is_known(exchange) && exchange.grpc.is_none() {
                self.last.note(exchange, process, generation, &told);
            }
            told
        });
        let (error, headers) = (Error::of(exchange), self.describe_headers(exchange));
        RequestSpan { exchange, process, ids, clock, told, is_again, error, headers }
    }

    /// What the span says of the request.
    fn tell(&mut self, exchange: &Exchange, process: &Process) -> Told {
        let Exchange { origin, unix_path, request, .. } = exchange;
        let (name, route_at) = self.name(exchange, &process.service_name);
        let host = request.host().map(Authority::parse);
        let server = if origin.role == Role::Server { origin.local } else { origin.remote };
        let server_address = if let Some(path) = unix_path {
            // The host that was asked for is as good as any other there.
            Some((**path).into())
        } else if host.is_some() || origin.has_addresses() {
            Some(self.server_address(host, server.ip()))
        } else {
            None
        };
        let server_port = host.and_then(|host| host.port).or_else(|| Some(server.port()).filter(|port| *port != 0));
        let default = || Cow::Borrowed(request::default_scheme(origin));
        Told {
            name,
            route_at,
            query: request.query().map(|query| self.query(query)),
            scheme: request.scheme().map_or_else(default, |scheme| scheme.to_ascii_lowercase().into()),
            server_address,
            server_port: server_port.filter(|_| !origin.is_unix),
            remote: origin.has_addresses().then(|| AddressText::of(origin.remote.ip()).as_str().into()),
            peer: self.kubernetes.as_ref().and_then(|it| it.peer(origin.remote.ip())),
            encoded: OnceLock::new(),
        }
    }

    /// What a request is called, and where in that its route begins: `METHOD route`, or the method alone; an unknown method is
    /// called `HTTP`, and a call of gRPC by its own name.
    fn name(&mut self, exchange: &Exchange, service: &str) -> (String, Option<usize>) {
        let request = &exchange.request;
        if let Some((service, method)) = exchange.grpc.and(request.path()).and_then(grpc::names) {
            return ([service, "/", method].concat(), None);
        }
        let method = if request.method == Method::Other { "HTTP" } else { request.method.as_str() };
        let Some(path) = request.path().filter(|_| exchange.grpc.is_none()) else { return (method.to_owned(), None) };
        // Room for an id in the place of a short one, as a rule.
        let mut name = String::with_capacity(method.len() + path.len() + 16);
        name.push_str(method);
        name.push(' ');
        let route_at = name.len();
        if self.routes.route(service, exchange.origin.role, path, is_known(exchange), &mut name) {
            return (name, Some(route_at));
        }
        name.truncate(method.len());
        (name, None)
    }

    /// The headers that are shown, as attributes.
    fn describe_headers(&self, exchange: &Exchange) -> Vec<KeyValue> {
        let Exchange { request, response, .. } = exchange;
        let mut attributes = Vec::new();
        if !self.headers.wants_any() {
            return attributes;
        }
        let HeaderConfig { request: of_request, response: of_response, .. } = &self.headers;
        self.headers.capture(of_request, key::HTTP_REQUEST_HEADER, request.headers(), &mut attributes);
        if let Some(response) = response {
            self.headers.capture(of_response, key::HTTP_RESPONSE_HEADER, response.headers(), &mut attributes);
        }
        attributes
    }

    /// The name by which the server was asked for; if it was an address, or nothing, what Kubernetes calls that address.
    fn server_address(&self, host: Option<Authority<'_>>, server: IpAddr) -> Box<str> {
        let peer = self.kubernetes.as_ref().and_then(|kubernetes| {
            let address = match host {
                Some(host) => host.name.parse().ok(),
                None => Some(server),
            };
            kubernetes.peer(address?)
        });
        match (peer, host) {
            (Some(peer), _) => (*peer.name).into(),
            (None, Some(host)) => host.name.into(),
            (None, None) => server.to_string().into(),
        }
    }

    fn query(&self, query: &str) -> String {
        if self.redact_query { redact::query(query) } else { query.to_owned() }
    }
}

/// Whether the server knows the path: those that it does not would use up the words that it does.
fn is_known(exchange: &Exchange) -> bool {
    exchange.response.as_ref().is_none_or(|response| response.status != 404)
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

impl Sink for Attributes {
    fn text(&mut self, key: &'static str, text: &str) {
        Self::text(self, key, text);
    }

    fn joined(&mut self, key: &'static str, parts: &[&str]) {
        Self::text(self, key, parts.concat());
    }

    fn int(&mut self, key: &'static str, number: i64) {
        Self::int(self, key, number);
    }

    fn double(&mut self, key: &'static str, number: f64) {
        Self::double(self, key, number);
    }
}
