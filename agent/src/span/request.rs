//! The span of a request that is over, told but not made.
//!
//! Nearly every span becomes bytes and nothing else, and has some sixteen attributes: to allocate the same words again would be
//! most of what it costs. So all is borrowed from the exchange, and who wants the attributes is given them one after the other.

use std::{borrow::Cow, sync::Arc};

use coati_common::wellknown::span as key;
use opentelemetry_proto::tonic::{
    common::v1::KeyValue,
    trace::v1::{Span, SpanFlags, Status, span::Event, span::SpanKind},
};

use super::{Attributes, Clock, FinishedSpan, address::Authority, error::Error, grpc, told::Told};
use crate::{
    decode::{Exchange, Method, Origin, Progress, Role, WebSocket},
    discover::Process,
    kubernetes::Peer,
    stitch::Ids,
};

/// Attributes that a request has, as a rule: most have sixteen.
const ATTRIBUTES: usize = 18;

/// Takes attributes, one after the other.
pub(crate) trait Sink {
    fn text(&mut self, key: &'static str, text: &str);

    /// A text that is these parts.
    fn joined(&mut self, key: &'static str, parts: &[&str]);

    fn int(&mut self, key: &'static str, number: i64);

    fn double(&mut self, key: &'static str, number: f64);

    fn count(&mut self, key: &'static str, count: u64) {
        self.int(key, i64::try_from(count).unwrap_or(i64::MAX));
    }

    fn seconds(&mut self, key: &'static str, ns: u64) {
        self.double(key, ns as f64 / 1e9);
    }
}

/// What the span of a request says. What is not known is absent.
#[derive(Debug)]
pub struct RequestSpan<'a> {
    pub(super) exchange: &'a Exchange,
    /// Whose resource it is sent under.
    pub(crate) process: &'a Arc<Process>,
    /// Its place in a trace.
    pub(crate) ids: Ids,
    pub(super) clock: Clock,
    /// What it shares with others.
    pub(super) told: Arc<Told>,
    /// It was told of another one before.
    pub(super) is_again: bool,
    pub(super) error: Option<Error>,
    /// The headers that are shown.
    pub(super) headers: Vec<KeyValue>,
}

impl RequestSpan<'_> {
    /// What happened on the wire.
    pub(crate) const fn exchange(&self) -> &Exchange {
        self.exchange
    }

    pub(crate) fn name(&self) -> &str {
        &self.told.name
    }

    pub(crate) fn route(&self) -> Option<&str> {
        self.told.name.get(self.told.route_at?..)
    }

    pub(crate) fn path(&self) -> Option<&str> {
        self.exchange.request.path()
    }

    pub(crate) fn scheme(&self) -> &str {
        &self.told.scheme
    }

    pub(crate) fn server_address(&self) -> Option<&str> {
        self.told.server_address.as_deref()
    }

    pub(crate) fn server_port(&self) -> Option<u16> {
        self.told.server_port
    }

    /// Address of the other end.
    pub(crate) fn remote(&self) -> Option<&str> {
        self.told.remote.as_deref()
    }

    /// What Kubernetes calls the other end.
    pub(crate) fn peer(&self) -> Option<&Peer> {
        self.told.peer.as_ref()
    }

    /// Service and method of a call of gRPC.
    pub(crate) fn call(&self) -> Option<(&str, &str)> {
        self.exchange.grpc.and(self.path()).and_then(grpc::names)
    }

    /// [`Self::of_request`] as it was sent of others.
    pub(crate) fn encoded(&self) -> Option<&[u8]> {
        self.told.encoded.get().map(|bytes| &**bytes)
    }

    /// Keeps it for those that are told alike, if there are likely to be some.
    pub(crate) fn keep_encoded(&self, bytes: &[u8]) {
        if self.is_again {
            self.told.encoded.get_or_init(|| bytes.into());
        }
    }

    /// Whether a client says its URL: who asks for a tunnel has none, and of HTTP/2 it may not be known.
    pub(crate) fn has_url(&self) -> bool {
        let request = &self.exchange.request;
        request.method != Method::Connect && !request.is_target_unknown()
    }

    pub(crate) const fn is_error(&self) -> bool {
        self.error.is_some()
    }

    pub(crate) const fn kind(&self) -> SpanKind {
        match self.exchange.origin.role {
            Role::Server => SpanKind::Server,
            Role::Client => SpanKind::Client,
        }
    }

    /// Begin and end, nanoseconds since the epoch.
    pub(crate) fn unix_ns(&self) -> [u64; 2] {
        [self.exchange.origin.begin_ns, self.exchange.end_ns].map(|ns| self.clock.unix_ns(ns))
    }

    pub(crate) fn status(&self) -> Option<Status> {
        self.error.map(Error::status)
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.exchange.progress.iter().map(|it| progress(it, self.clock)).collect()
    }

    /// The headers that are shown: attributes behind the others.
    pub(crate) fn headers(&self) -> &[KeyValue] {
        &self.headers
    }

    pub(crate) fn flags(&self) -> u32 {
        flags(&self.ids)
    }

    /// The span as something that can be kept and changed.
    pub fn finished(&self) -> FinishedSpan {
        let mut attributes = Attributes(Vec::with_capacity(ATTRIBUTES + self.headers.len()));
        self.attributes(&mut attributes);
        attributes.0.extend_from_slice(&self.headers);
        let [start_time_unix_nano, end_time_unix_nano] = self.unix_ns();
        let span = Span {
            name: self.told.name.clone(),
            kind: self.kind().into(),
            start_time_unix_nano,
            end_time_unix_nano,
            attributes: attributes.0,
            events: self.events(),
            status: self.status(),
            flags: self.flags(),
            trace_id: self.ids.trace_id.to_vec(),
            span_id: self.ids.span_id.to_vec(),
            parent_span_id: self.ids.parent_span_id.map(|id| id.to_vec()).unwrap_or_default(),
            trace_state: self.ids.trace_state.clone().into_owned(),
            ..Span::default()
        };
        FinishedSpan { process: Arc::clone(self.process), span }
    }

    /// Gives the attributes to `sink`, all but the headers that are shown. A key comes once.
    pub(crate) fn attributes(&self, sink: &mut impl Sink) {
        self.of_request(sink);
        self.of_exchange(sink);
    }

    /// The first of them: what is known without the answer, but for the status of gRPC.
    pub(crate) fn of_request(&self, sink: &mut impl Sink) {
        let Exchange { origin, request, .. } = self.exchange;
        if let Some(call) = self.exchange.grpc {
            sink.text(key::RPC_SYSTEM, "grpc");
            if let Some((service, method)) = self.call() {
                sink.text(key::RPC_SERVICE, service);
                sink.text(key::RPC_METHOD, method);
            }
            if let Some(status) = call.status {
                sink.int(key::RPC_GRPC_STATUS_CODE, status.into());
            }
        }
        sink.text(key::HTTP_REQUEST_METHOD, request.method.as_str());
        if request.method == Method::Other {
            sink.text(key::HTTP_REQUEST_METHOD_ORIGINAL, request.method_text());
        }
        match origin.role {
            Role::Server => self.of_server(sink),
            Role::Client => self.of_client(sink),
        }
        if origin.is_unix {
            sink.text(key::NETWORK_TRANSPORT, "unix");
        }
        if let Some(address) = self.server_address() {
            sink.text(key::SERVER_ADDRESS, address);
        }
        if let Some(port) = self.server_port() {
            sink.int(key::SERVER_PORT, port.into());
        }
        if let Some(peer) = self.peer() {
            sink.text(key::SERVICE_PEER_NAME, &peer.name);
            sink.text(key::SERVICE_PEER_NAMESPACE, &peer.namespace);
        }
        if let Some(version) = request.version {
            sink.text(key::NETWORK_PROTOCOL_VERSION, version.as_str());
        }
        if let Some(user_agent) = request.user_agent() {
            sink.text(key::USER_AGENT_ORIGINAL, user_agent);
        }
    }

    /// The others: what is of this exchange alone.
    pub(crate) fn of_exchange(&self, sink: &mut impl Sink) {
        let Exchange { origin, response, .. } = self.exchange;
        if let Some(bytes) = self.exchange.request_body_bytes {
            sink.count(key::HTTP_REQUEST_BODY_SIZE, bytes);
        }
        if let Some(response) = response {
            sink.int(key::HTTP_RESPONSE_STATUS_CODE, response.status.into());
        }
        if let Some(bytes) = self.exchange.response_body_bytes {
            sink.count(key::HTTP_RESPONSE_BODY_SIZE, bytes);
        }
        if let Some(error) = self.error {
            sink.text(key::ERROR_TYPE, &error.text());
        }
        if let Some(first_ns) = self.exchange.response_first_ns {
            sink.seconds(key::COATI_TIME_TO_FIRST_BYTE, first_ns.saturating_sub(origin.begin_ns));
            sink.seconds(key::COATI_RESPONSE_DURATION, self.exchange.end_ns.saturating_sub(first_ns));
            sink.int(key::COATI_RESPONSE_CHUNKS, self.exchange.response_chunks.into());
        }
        if let Some(websocket) = &self.exchange.websocket {
            of_websocket(websocket, origin.role, sink);
        }
        if let Some(incomplete) = self.exchange.incomplete {
            sink.text(key::COATI_INCOMPLETE, incomplete.as_str());
        }
    }

    fn of_server(&self, sink: &mut impl Sink) {
        if let Some(path) = self.path() {
            sink.text(key::URL_PATH, path);
        }
        if let Some(query) = &self.told.query {
            sink.text(key::URL_QUERY, query);
        }
        sink.text(key::URL_SCHEME, self.scheme());
        if let Some(route) = self.route() {
            sink.text(key::HTTP_ROUTE, route);
        }
        if let Some(remote) = self.remote() {
            sink.text(key::CLIENT_ADDRESS, remote);
            sink.int(key::CLIENT_PORT, self.exchange.origin.remote.port().into());
        }
    }

    fn of_client(&self, sink: &mut impl Sink) {
        let Exchange { origin, unix_path, .. } = self.exchange;
        if self.has_url() {
            self.url(sink);
        }
        if let Some(remote) = self.remote() {
            sink.text(key::NETWORK_PEER_ADDRESS, remote);
            sink.int(key::NETWORK_PEER_PORT, origin.remote.port().into());
        } else if let Some(path) = unix_path {
            sink.text(key::NETWORK_PEER_ADDRESS, path);
        }
    }

    /// The absolute URL that a client asked for, without credentials.
    fn url(&self, sink: &mut impl Sink) {
        let origin = &self.exchange.origin;
        let host: Cow<'_, str> = match self.exchange.request.host().map(Authority::parse) {
            Some(host) => host.text.into(),
            None if origin.has_addresses() => origin.remote.to_string().into(),
            None => "".into(),
        };
        let path = self.path().unwrap_or_default();
        match &self.told.query {
            Some(query) => sink.joined(key::URL_FULL, &[self.scheme(), "://", &host, path, "?", query]),
            None => sink.joined(key::URL_FULL, &[self.scheme(), "://", &host, path]),
        }
    }
}

fn of_websocket(websocket: &WebSocket, role: Role, sink: &mut impl Sink) {
    let WebSocket { requests, responses, close_code } = *websocket;
    let (sent, received) = if role == Role::Client { (requests, responses) } else { (responses, requests) };
    if let Some(messages) = sent.messages {
        sink.count(key::COATI_WEBSOCKET_MESSAGES_SENT, messages);
    }
    if let Some(messages) = received.messages {
        sink.count(key::COATI_WEBSOCKET_MESSAGES_RECEIVED, messages);
    }
    sink.count(key::COATI_WEBSOCKET_BYTES_SENT, sent.bytes);
    sink.count(key::COATI_WEBSOCKET_BYTES_RECEIVED, received.bytes);
    if let Some(code) = close_code {
        sink.int(key::COATI_WEBSOCKET_CLOSE_CODE, code.into());
    }
}

/// The trace flags, and whether the parent is of another process.
pub(super) fn flags(ids: &Ids) -> u32 {
    let remote = match ids.is_parent_remote {
        Some(true) => SpanFlags::ContextHasIsRemoteMask as u32 | SpanFlags::ContextIsRemoteMask as u32,
        Some(false) => SpanFlags::ContextHasIsRemoteMask as u32,
        None => 0,
    };
    u32::from(ids.flags) | remote
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
pub(super) const fn default_scheme(origin: &Origin) -> &'static str {
    if origin.is_tls { "https" } else { "http" }
}
