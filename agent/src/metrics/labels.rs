//! Which requests are counted together, and what they have in common.

use coati_common::prometheus::label_value;
use coati_common::wellknown::{resource, span as key};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};

use super::{graph::Edge, names::Kind, request::Request};
use crate::decode::Role;

/// The value of a label. One that is empty is one that is not there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Value<'a> {
    Text(&'a str),
    /// Two texts with a slash between.
    Path(&'a str, &'a str),
    Number(Option<i64>),
}

/// Something that has labels. They come in the same order whatever their values are.
pub(crate) trait Labelled {
    fn visit<'a>(&'a self, see: &mut impl FnMut(&'static str, Value<'a>));
}

/// Labels, in the two notations that are needed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Labels {
    /// As they stand on `/metrics`, without braces.
    pub(crate) text: String,
    /// As OTLP has them.
    pub(crate) attributes: Vec<KeyValue>,
}

impl Labels {
    /// The labels of requests for whose own there is no room.
    pub(super) fn overflow() -> Self {
        let mut labels = Self::default();
        labels.add_as("otel.metric.overflow", "true", any_value::Value::BoolValue(true));
        labels
    }

    pub(crate) fn of(labelled: &impl Labelled) -> Self {
        let mut labels = Self::default();
        labelled.visit(&mut |name, value| labels.add(name, value));
        labels
    }

    /// Adds one if it has a value.
    pub(super) fn add(&mut self, name: &str, value: Value<'_>) {
        match value {
            Value::Text("") | Value::Path("", "") | Value::Number(None) => {}
            Value::Text(text) | Value::Path("", text) | Value::Path(text, "") => self.add_text(name, text),
            Value::Path(left, right) => self.add_text(name, &format!("{left}/{right}")),
            Value::Number(Some(number)) => self.add_as(name, &number.to_string(), any_value::Value::IntValue(number)),
        }
    }

    fn add_text(&mut self, name: &str, text: &str) {
        self.add_as(name, text, any_value::Value::StringValue(text.to_owned()));
    }

    fn add_as(&mut self, name: &str, shown: &str, value: any_value::Value) {
        add_to_text(&mut self.text, name, shown);
        self.attributes.push(attribute(name, value));
    }
}

pub(super) fn attribute(name: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: name.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// Adds a label in the notation of `/metrics`.
pub(super) fn add_to_text(text: &mut String, name: &str, value: &str) {
    if !text.is_empty() {
        text.push(',');
    }
    text.extend(name.chars().map(|letter| if letter == '.' { '_' } else { letter }));
    text.push_str("=\"");
    label_value(value, |piece| text.push_str(piece));
    text.push('"');
}

/// Puts everything that makes requests differ into `identity`. No allocation: every request comes through here.
///
/// What ends a text, and what begins a number, are bytes that no text has.
pub(super) fn identify(identity: &mut Vec<u8>, kind: Kind, service: u64, labelled: &impl Labelled) {
    const END: u8 = 0xff;
    const NUMBER: u8 = 0xfe;
    identity.clear();
    identity.push(kind as u8);
    identity.extend_from_slice(&service.to_le_bytes());
    labelled.visit(&mut |_, value| match value {
        Value::Text(text) => {
            identity.extend_from_slice(text.as_bytes());
            identity.push(END);
        }
        Value::Path(left, right) => {
            identity.extend_from_slice(left.as_bytes());
            identity.push(END);
            identity.extend_from_slice(right.as_bytes());
            identity.push(END);
        }
        Value::Number(Some(number)) => {
            identity.push(NUMBER);
            identity.extend_from_slice(&number.to_le_bytes());
        }
        Value::Number(None) => identity.push(END),
    });
}

/// A request of HTTP.
pub(super) struct Http<'a>(pub(super) &'a Request<'a>);

impl Labelled for Http<'_> {
    fn visit<'a>(&'a self, see: &mut impl FnMut(&'static str, Value<'a>)) {
        let Self(request) = self;
        see(key::HTTP_REQUEST_METHOD, Value::Text(request.method));
        see(key::URL_SCHEME, Value::Text(request.scheme));
        see(key::HTTP_RESPONSE_STATUS_CODE, Value::Number(request.status));
        see(key::HTTP_ROUTE, Value::Text(request.route));
        see(key::SERVER_ADDRESS, Value::Text(request.server_address));
        see(key::SERVER_PORT, Value::Number(request.server_port));
        see(key::URL_PATH, Value::Text(request.path));
        see(key::CLIENT_ADDRESS, Value::Text(request.client_address));
    }
}

/// A call of gRPC, under the names of the conventions of today: spans still have those of yesterday.
pub(super) struct Rpc<'a>(pub(super) &'a Request<'a>);

impl Labelled for Rpc<'_> {
    fn visit<'a>(&'a self, see: &mut impl FnMut(&'static str, Value<'a>)) {
        let Self(request) = self;
        see("rpc.method", Value::Path(request.rpc_service, request.rpc_method));
        see("rpc.system.name", Value::Text(request.rpc_system));
        see("rpc.response.status_code", Value::Number(request.rpc_status));
        see(key::SERVER_ADDRESS, Value::Text(request.server_address));
    }
}

/// A request as its span is called.
pub(super) struct OfSpan<'a>(pub(super) &'a Request<'a>);

impl Labelled for OfSpan<'_> {
    fn visit<'a>(&'a self, see: &mut impl FnMut(&'static str, Value<'a>)) {
        let Self(request) = self;
        let kind = match request.role {
            Role::Server => "SPAN_KIND_SERVER",
            Role::Client => "SPAN_KIND_CLIENT",
        };
        see("span.name", Value::Text(request.span_name));
        see("span.kind", Value::Text(kind));
        see("status.code", Value::Text(if request.is_error { "STATUS_CODE_ERROR" } else { "STATUS_CODE_UNSET" }));
    }
}

/// Whose metrics these are, for those who also have Beyla's.
pub(super) const SOURCE: &str = "coati-agent";

impl Labelled for Edge<'_> {
    fn visit<'a>(&'a self, see: &mut impl FnMut(&'static str, Value<'a>)) {
        see("client", Value::Text(self.client.name));
        see("client_service_namespace", Value::Text(self.client.namespace));
        see("client_k8s_namespace_name", Value::Text(self.client.k8s_namespace));
        see("client_k8s_cluster_name", Value::Text(self.client.k8s_cluster));
        see("server", Value::Text(self.server.name));
        see("server_service_namespace", Value::Text(self.server.namespace));
        see("server_k8s_namespace_name", Value::Text(self.server.k8s_namespace));
        see("server_k8s_cluster_name", Value::Text(self.server.k8s_cluster));
        see("connection_type", Value::Text(self.connection_type));
        see("source", Value::Text(SOURCE));
    }
}

/// The node, by its number.
pub(super) struct HostInfo<'a>(pub(super) &'a str);

impl Labelled for HostInfo<'_> {
    fn visit<'a>(&'a self, see: &mut impl FnMut(&'static str, Value<'a>)) {
        see("grafana_host_id", Value::Text(self.0));
    }
}

/// Labels of `target_info`, in front of which stand those of the service.
pub(super) const OF_TARGET: [&str; 4] =
    [resource::HOST_ID, resource::HOST_NAME, resource::OS_TYPE, resource::TELEMETRY_SDK_NAME];
