//! What is asked of the backend, under Tempo's names.

use prometheus_client::encoding::EncodeLabelSet;

/// Labels of a request of any listener.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct RequestLabels {
    /// HTTP method, or `gRPC`.
    pub method: String,
    /// What Tempo calls the route: see [`route_label`].
    pub route: String,
    /// HTTP status code; for gRPC the code's name.
    pub status_code: String,
}

/// Labels of a query.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct QueryLabels {
    /// The tenant.
    pub tenant: String,
    /// `traces` by id, `search`, `metrics`, or `metadata`: names and values of tags.
    pub op: &'static str,
    /// `completed`, well or not, or `canceled` because the client has left.
    pub result: &'static str,
}

/// Names of a pattern's variables here, and in Tempo's patterns.
const VARIABLES: [(&str, &str); 2] = [("{id}", "{traceID}"), ("{*rest}", "{tagName}/values")];

/// Tempo's name of a route of this pattern: letters and digits in lower case, an underscore for whatever stands between them.
///
/// ```
/// # use coati_backend::telemetry::route_label;
/// assert_eq!(route_label("/api/v2/traces/{id}"), "api_v2_traces_traceid");
/// ```
pub fn route_label(pattern: &str) -> String {
    let mut pattern = pattern.to_owned();
    for (here, tempos) in VARIABLES {
        pattern = pattern.replace(here, tempos);
    }
    let words = pattern.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let label = words.collect::<Vec<_>>().join("_").to_ascii_lowercase();
    if label.is_empty() { "root".to_owned() } else { label }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("/api/search", "api_search")]
    #[case("/api/traces/{id}", "api_traces_traceid")]
    #[case("/api/search/tag/{*rest}", "api_search_tag_tagname_values")]
    #[case("/api/metrics/query_range", "api_metrics_query_range")]
    #[case(
        "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
        "opentelemetry_proto_collector_trace_v1_traceservice_export"
    )]
    #[case("/", "root")]
    fn routes_are_called_as_tempo_calls_them(#[case] pattern: &str, #[case] label: &str) {
        assert_eq!(route_label(pattern), label);
    }
}
