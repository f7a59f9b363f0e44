//! Requests that carry telemetry.

use super::http1::RequestHead;
use super::method::Method;

/// What the paths of OTLP's gRPC services begin with.
const GRPC: &str = "/opentelemetry.proto.collector.";
/// Paths of OTLP over HTTP.
const HTTP: [&str; 3] = ["/v1/traces", "/v1/metrics", "/v1/logs"];
/// What exporters call themselves: the first as the specification of OTLP's exporters asks of SDKs.
const EXPORTERS: [&str; 2] = ["otlp", "coati-agent/"];

/// What the path of OTLP's gRPC service for traces begins with.
const GRPC_TRACES: &str = "/opentelemetry.proto.collector.trace.";
/// Path of traces over HTTP.
const HTTP_TRACES: &str = "/v1/traces";

impl RequestHead {
    /// Whether the request exports spans, metrics or logs. Such requests make no spans: each would be exported by another.
    pub fn exports_telemetry(&self) -> bool {
        let Some(path) = self.path().filter(|_| self.method == Method::Post) else { return false };
        // Other programs may have such a path too; a service's name is nobody else's.
        let is_exporter = || {
            let agent = self.user_agent().unwrap_or_default().to_ascii_lowercase();
            EXPORTERS.iter().any(|name| agent.contains(name))
        };
        path.starts_with(GRPC) || HTTP.iter().any(|known| path.ends_with(known)) && is_exporter()
    }

    /// Whether what it exports are spans.
    pub fn exports_traces(&self) -> bool {
        let is_of_traces = |path: &str| path.starts_with(GRPC_TRACES) || path.ends_with(HTTP_TRACES);
        self.path().is_some_and(is_of_traces) && self.exports_telemetry()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::decode::Head;

    #[rstest]
    #[case::python("POST /v1/traces", "OTel-OTLP-Exporter-Python/1.27.0", true)]
    #[case::rust("POST /v1/metrics", "OTel OTLP Exporter Rust/0.33.1", true)]
    #[case::this_agent("POST /v1/traces", "coati-agent/0.1.0", true)]
    #[case::behind_a_prefix("POST /otlp/v1/logs", "OTel OTLP Exporter Go/1.30.0", true)]
    #[case::grpc("POST /opentelemetry.proto.collector.trace.v1.TraceService/Export", "grpc-go/1.6", true)]
    #[case::somebody_elses_path("POST /v1/metrics", "curl/8.5.0", false)]
    #[case::without_an_agent("POST /v1/logs", "", false)]
    #[case::read("GET /v1/traces", "OTel OTLP Exporter Rust/0.33.1", false)]
    #[case::another_path("POST /v1/orders", "OTel OTLP Exporter Rust/0.33.1", false)]
    fn exports_are_known_by_path_and_agent(#[case] start: &str, #[case] agent: &str, #[case] expected: bool) {
        let text = format!("{start} HTTP/1.1\r\nhost: tempo\r\nuser-agent: {agent}\r\n\r\n");
        let head = RequestHead::parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!(head.exports_telemetry(), expected);
        assert_eq!(head.exports_traces(), expected && start.contains("trace"));
    }
}
