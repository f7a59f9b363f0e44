//! What the metrics of requests are called.

use super::{
    point::{Metric, Prefix, Shape, Unit},
    settings::{Bounds, Buckets},
};
use crate::inference;
use coati_common::wellknown::{gen_ai, span as key};

/// What the requests of a label set are, or what is told of them.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Kind {
    HttpServer,
    HttpClient,
    RpcServer,
    RpcClient,
    Span,
    SpanOtel,
    SpanSizes,
    GraphClient,
    GraphServer,
    Graph,
    Model,
    ModelPace,
    ModelTokens,
}

const fn seconds(otlp: &'static str, prometheus: &'static str, help: &'static str) -> Metric {
    Metric { otlp, prometheus, help, unit: Unit::Seconds, shape: Shape::Histogram, prefix: Prefix::Service }
}

const fn counter(otlp: &'static str, prometheus: &'static str, help: &'static str, unit: Unit) -> Metric {
    Metric { otlp, prometheus, help, unit, shape: Shape::Counter, prefix: Prefix::Service }
}

macro_rules! http {
    ($end:literal) => {
        [
            seconds(
                concat!("http.", $end, ".request.duration"),
                concat!("http_", $end, "_request_duration_seconds"),
                concat!("Duration of HTTP requests, at their ", $end),
            ),
            Metric {
                unit: Unit::Bytes,
                ..seconds(
                    concat!("http.", $end, ".request.body.size"),
                    concat!("http_", $end, "_request_body_size_bytes"),
                    concat!("Size of bodies of HTTP requests, at their ", $end),
                )
            },
            Metric {
                unit: Unit::Bytes,
                ..seconds(
                    concat!("http.", $end, ".response.body.size"),
                    concat!("http_", $end, "_response_body_size_bytes"),
                    concat!("Size of bodies of HTTP responses, at their ", $end),
                )
            },
        ]
    };
}

macro_rules! rpc {
    ($end:literal) => {
        [seconds(
            concat!("rpc.", $end, ".call.duration"),
            concat!("rpc_", $end, "_call_duration_seconds"),
            concat!("Duration of calls of gRPC, at their ", $end),
        )]
    };
}

const HTTP_SERVER: [Metric; 3] = http!("server");
const HTTP_CLIENT: [Metric; 3] = http!("client");
const RPC_SERVER: [Metric; 1] = rpc!("server");
const RPC_CLIENT: [Metric; 1] = rpc!("client");

const fn of_span(metric: Metric) -> Metric {
    Metric { prefix: Prefix::Span, ..metric }
}

const REQUEST_SIZE: Metric = of_span(counter(
    "traces_spanmetrics_size_total",
    "traces_spanmetrics_size",
    "Bytes of the bodies of requests, by span",
    Unit::None,
));
const RESPONSE_SIZE: Metric = of_span(counter(
    "traces_spanmetrics_response_size_total",
    "traces_spanmetrics_response_size",
    "Bytes of the bodies of responses, by span",
    Unit::None,
));
const SPAN: [Metric; 4] = [
    of_span(seconds("traces_spanmetrics_latency", "traces_spanmetrics_latency", "Duration of requests, by span")),
    of_span(counter("traces_spanmetrics_calls_total", "traces_spanmetrics_calls", "Requests, by span", Unit::None)),
    REQUEST_SIZE,
    RESPONSE_SIZE,
];
const SPAN_SIZES: [Metric; 2] = [REQUEST_SIZE, RESPONSE_SIZE];
const SPAN_OTEL: [Metric; 2] = [
    of_span(seconds(
        "traces.span.metrics.duration",
        "traces_span_metrics_duration_seconds",
        "Duration of requests, by span",
    )),
    of_span(counter("traces.span.metrics.calls", "traces_span_metrics_calls", "Requests, by span", Unit::None)),
];

const fn of_edge(metric: Metric) -> Metric {
    Metric { prefix: Prefix::None, ..metric }
}

const GRAPH_CLIENT: [Metric; 1] = [of_edge(seconds(
    "traces_service_graph_request_client",
    "traces_service_graph_request_client_seconds",
    "Duration of requests from one service to another, at the client",
))];
const GRAPH_SERVER: [Metric; 1] = [of_edge(seconds(
    "traces_service_graph_request_server",
    "traces_service_graph_request_server_seconds",
    "Duration of requests from one service to another, at the server",
))];
const GRAPH: [Metric; 2] = [
    of_edge(counter(
        "traces_service_graph_request_total",
        "traces_service_graph_request",
        "Requests from one service to another",
        Unit::None,
    )),
    of_edge(counter(
        "traces_service_graph_request_failed_total",
        "traces_service_graph_request_failed",
        "Requests from one service to another that failed",
        Unit::None,
    )),
];

const MODEL: [Metric; 1] = [seconds(
    "gen_ai.server.request.duration",
    "gen_ai_server_request_duration_seconds",
    "Time that inference requests took",
)];
const MODEL_PACE: [Metric; 2] = [
    seconds(
        "gen_ai.server.time_to_first_token",
        "gen_ai_server_time_to_first_token_seconds",
        "Time to the first token of a stream",
    ),
    seconds(
        "gen_ai.server.time_per_output_token",
        "gen_ai_server_time_per_output_token_seconds",
        "Time from one token to the next",
    ),
];
const MODEL_TOKENS: [Metric; 1] = [Metric {
    unit: Unit::Other("{token}"),
    ..seconds("gen_ai.client.token.usage", "gen_ai_client_token_usage", "Tokens of prompts and answers")
}];

/// A label, and whether it is there unless somebody asks for it.
pub(super) struct Label {
    pub(super) name: &'static str,
    pub(super) is_default: bool,
}

const fn label(name: &'static str) -> Label {
    Label { name, is_default: true }
}

const HTTP_LABELS: [Label; 8] = [
    label(key::HTTP_REQUEST_METHOD),
    label(key::URL_SCHEME),
    label(key::HTTP_RESPONSE_STATUS_CODE),
    label(key::HTTP_ROUTE),
    label(key::SERVER_ADDRESS),
    label(key::SERVER_PORT),
    // Of these there may be very many.
    Label { name: key::URL_PATH, is_default: false },
    Label { name: key::CLIENT_ADDRESS, is_default: false },
];
const RPC_LABELS: [Label; 4] =
    [label("rpc.method"), label("rpc.system.name"), label("rpc.response.status_code"), label(key::SERVER_ADDRESS)];
const SPAN_LABELS: [Label; 3] = [label("span.name"), label("span.kind"), label("status.code")];
const MODEL_LABELS: [Label; 4] =
    [label(gen_ai::OPERATION_NAME), label(gen_ai::PROVIDER_NAME), label(gen_ai::REQUEST_MODEL), label(key::ERROR_TYPE)];
const TOKEN_LABELS: [Label; 6] = [
    label(gen_ai::OPERATION_NAME),
    label(gen_ai::PROVIDER_NAME),
    label(gen_ai::REQUEST_MODEL),
    label(key::ERROR_TYPE),
    label("coati.role"),
    label("gen_ai.token.type"),
];

const fn info(otlp: &'static str, prometheus: &'static str, help: &'static str) -> Metric {
    Metric { otlp, prometheus, help, unit: Unit::None, shape: Shape::Gauge, prefix: Prefix::None }
}

/// Not by OTLP: whoever takes that makes it of the resource.
pub(super) const TARGET_INFO: Metric = info("", "target_info", "Services of which there are metrics");
pub(super) const TRACES_TARGET_INFO: Metric =
    info("traces_target_info", "traces_target_info", "Services of which there are metrics of spans");
pub(super) const TRACES_HOST_INFO: Metric =
    info("traces_host_info", "traces_host_info", "The node on which there are services");

impl Kind {
    pub(super) const ALL: [Self; 13] = [
        Self::HttpServer,
        Self::HttpClient,
        Self::RpcServer,
        Self::RpcClient,
        Self::Span,
        Self::SpanOtel,
        Self::SpanSizes,
        Self::GraphClient,
        Self::GraphServer,
        Self::Graph,
        Self::Model,
        Self::ModelPace,
        Self::ModelTokens,
    ];

    /// The metrics that a request of this kind counts in.
    pub(crate) const fn metrics(self) -> &'static [Metric] {
        match self {
            Self::HttpServer => &HTTP_SERVER,
            Self::HttpClient => &HTTP_CLIENT,
            Self::RpcServer => &RPC_SERVER,
            Self::RpcClient => &RPC_CLIENT,
            Self::Span => &SPAN,
            Self::SpanOtel => &SPAN_OTEL,
            Self::SpanSizes => &SPAN_SIZES,
            Self::GraphClient => &GRAPH_CLIENT,
            Self::GraphServer => &GRAPH_SERVER,
            Self::Graph => &GRAPH,
            Self::Model => &MODEL,
            Self::ModelPace => &MODEL_PACE,
            Self::ModelTokens => &MODEL_TOKENS,
        }
    }

    /// Its labels beside those of the service, in the order in which they are visited. Those of edges are not to be chosen, and not here.
    pub(super) const fn labels(self) -> &'static [Label] {
        match self {
            Self::HttpServer | Self::HttpClient => &HTTP_LABELS,
            Self::RpcServer | Self::RpcClient => &RPC_LABELS,
            Self::Span | Self::SpanOtel | Self::SpanSizes => &SPAN_LABELS,
            Self::GraphClient | Self::GraphServer | Self::Graph => &[],
            Self::Model | Self::ModelPace => &MODEL_LABELS,
            Self::ModelTokens => &TOKEN_LABELS,
        }
    }

    /// Where the buckets of its metric at this place end.
    pub(super) fn bounds(self, place: usize, buckets: &Buckets) -> Bounds {
        match (self, place) {
            (Self::HttpServer | Self::HttpClient, 1) => buckets.request_sizes.clone(),
            (Self::HttpServer | Self::HttpClient, 2) => buckets.response_sizes.clone(),
            (Self::Model, _) => inference::DURATION.into(),
            (Self::ModelPace, 0) => inference::FIRST_TOKEN.into(),
            (Self::ModelPace, _) => inference::PER_TOKEN.into(),
            (Self::ModelTokens, _) => inference::TOKENS.into(),
            _ => buckets.durations.clone(),
        }
    }
}
