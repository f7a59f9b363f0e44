//! What the answer of an OTLP server means, as the OTLP specification says.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::{StatusExt as _, pb};

use super::causes::with_causes;

/// What became of a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Answer {
    /// The spans were taken, but for `rejected` of them.
    Accepted {
        /// Spans that were not taken.
        rejected: u64,
        /// What the server says about it, often empty.
        message: String,
    },
    /// Not taken; the same request may be taken later.
    Retry {
        /// How long the server asks to wait.
        after: Option<Duration>,
        /// Why it was not taken.
        reason: String,
    },
    /// Not taken, because of who we are or are not.
    Unauthorised {
        /// Why not.
        reason: String,
    },
    /// Not taken, and never will be.
    Refused {
        /// Why not.
        reason: String,
    },
}

/// The meaning of a successful answer.
pub(super) fn accepted(response: ExportTraceServiceResponse) -> Answer {
    let partial = response.partial_success.unwrap_or_default();
    Answer::Accepted { rejected: partial.rejected_spans.try_into().unwrap_or(0), message: partial.error_message }
}

/// The meaning of a gRPC status that is not OK.
pub(super) fn of_status(status: &Status) -> Answer {
    let after = status.get_details_retry_info().and_then(|info| info.retry_delay);
    let mut reason = format!("{:?}: {}", status.code(), status.message());
    if let Some(source) = std::error::Error::source(status) {
        reason = format!("{:?}: {}", status.code(), with_causes(source));
    }
    let retryable = match status.code() {
        // The server said nothing: the connection broke while it was at work, whatever code tonic makes of that.
        _ if std::error::Error::source(status).is_some() => true,
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => true,
        // Without RetryInfo the server does not say that it will ever recover.
        Code::ResourceExhausted => after.is_some(),
        _ => false,
    };
    match status.code() {
        _ if retryable => Answer::Retry { after, reason },
        Code::Unauthenticated | Code::PermissionDenied => Answer::Unauthorised { reason },
        _ => Answer::Refused { reason },
    }
}

/// The meaning of an HTTP answer whose body is at hand.
pub(super) fn of_http(status: StatusCode, headers: &HeaderMap, body: &[u8], now: SystemTime) -> Answer {
    if status.is_success() {
        // A server that answers 200 has taken the spans, whatever it wrote.
        return accepted(ExportTraceServiceResponse::decode(body).unwrap_or_default());
    }
    let message = pb::Status::decode(body).map(|status| status.message).unwrap_or_default();
    let reason = if message.is_empty() { status.to_string() } else { format!("{status}: {message}") };
    match status.as_u16() {
        401 | 403 | 407 => Answer::Unauthorised { reason },
        429 | 502 | 503 | 504 => Answer::Retry { after: retry_after(headers, now), reason },
        _ => Answer::Refused { reason },
    }
}

/// `Retry-After`, seconds or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;
    use proptest::prelude::*;
    use rstest::rstest;
    use tonic_types::ErrorDetails;

    use super::*;

    const RETRY: bool = true;
    const REFUSE: bool = false;

    fn now() -> SystemTime {
        httpdate::parse_http_date("Sat, 21 Nov 2026 08:00:00 GMT").unwrap()
    }

    #[rstest]
    #[case::cancelled(Code::Cancelled, RETRY)]
    #[case::unknown(Code::Unknown, REFUSE)]
    #[case::invalid_argument(Code::InvalidArgument, REFUSE)]
    #[case::deadline(Code::DeadlineExceeded, RETRY)]
    #[case::not_found(Code::NotFound, REFUSE)]
    #[case::permission(Code::PermissionDenied, REFUSE)]
    #[case::exhausted_without_info(Code::ResourceExhausted, REFUSE)]
    #[case::aborted(Code::Aborted, RETRY)]
    #[case::out_of_range(Code::OutOfRange, RETRY)]
    #[case::unimplemented(Code::Unimplemented, REFUSE)]
    #[case::internal(Code::Internal, REFUSE)]
    #[case::unavailable(Code::Unavailable, RETRY)]
    #[case::data_loss(Code::DataLoss, RETRY)]
    #[case::unauthenticated(Code::Unauthenticated, REFUSE)]
    fn grpc_codes(#[case] code: Code, #[case] retried: bool) {
        let answer = of_status(&Status::new(code, "why"));
        assert_eq!(matches!(answer, Answer::Retry { after: None, .. }), retried, "{answer:?}");
        let refused = matches!(answer, Answer::Refused { .. } | Answer::Unauthorised { .. });
        assert_eq!(refused, !retried, "{answer:?}");
    }

    #[rstest]
    #[case::exhausted(Code::ResourceExhausted)]
    #[case::unavailable(Code::Unavailable)]
    fn retry_info_is_read(#[case] code: Code) {
        let delay = Duration::from_millis(1500);
        let status = Status::with_error_details(code, "why", ErrorDetails::with_retry_info(Some(delay)));
        assert!(matches!(of_status(&status), Answer::Retry { after: Some(after), .. } if after == delay));
    }

    #[rstest]
    #[case::bad_request(400, REFUSE)]
    #[case::unauthorised(401, REFUSE)]
    #[case::not_found(404, REFUSE)]
    #[case::too_large(413, REFUSE)]
    #[case::too_many(429, RETRY)]
    #[case::internal(500, REFUSE)]
    #[case::not_implemented(501, REFUSE)]
    #[case::bad_gateway(502, RETRY)]
    #[case::unavailable(503, RETRY)]
    #[case::gateway_timeout(504, RETRY)]
    #[case::redirect(307, REFUSE)]
    fn http_codes(#[case] code: u16, #[case] retried: bool) {
        let body = pb::Status { message: "why".to_owned(), ..pb::Status::default() }.encode_to_vec();
        let answer = of_http(StatusCode::from_u16(code).unwrap(), &HeaderMap::new(), &body, now());
        let (Answer::Retry { reason, .. } | Answer::Refused { reason } | Answer::Unauthorised { reason }) = &answer
        else {
            panic!("{answer:?}")
        };
        assert!(reason.starts_with(&code.to_string()) && reason.ends_with(": why"), "{reason}");
        assert_eq!(matches!(answer, Answer::Retry { after: None, .. }), retried, "{answer:?}");
    }

    #[rstest]
    #[case::seconds("7", Some(7))]
    #[case::spaces(" 7 ", Some(7))]
    #[case::date("Sat, 21 Nov 2026 08:01:30 GMT", Some(90))]
    #[case::past("Sat, 21 Nov 2026 07:00:00 GMT", Some(0))]
    #[case::nonsense("soon", None)]
    #[case::negative("-1", None)]
    fn retry_after_in_both_forms(#[case] value: &str, #[case] seconds: Option<u64>) {
        let headers = HeaderMap::from_iter([(header::RETRY_AFTER, value.parse().unwrap())]);
        let answer = of_http(StatusCode::SERVICE_UNAVAILABLE, &headers, b"", now());
        let Answer::Retry { after, .. } = answer else { panic!("{answer:?}") };
        assert_eq!(after, seconds.map(Duration::from_secs));
    }

    fn partial(rejected_spans: i64) -> ExportTraceServiceResponse {
        let partial = ExportTracePartialSuccess { rejected_spans, error_message: "bad id".to_owned() };
        ExportTraceServiceResponse { partial_success: Some(partial) }
    }

    #[rstest]
    #[case::whole(ExportTraceServiceResponse::default(), 0)]
    #[case::partial(partial(3), 3)]
    #[case::warning_only(partial(0), 0)]
    #[case::nonsense(partial(-1), 0)]
    fn partial_success(#[case] response: ExportTraceServiceResponse, #[case] expected: u64) {
        let body = response.encode_to_vec();
        let answer = of_http(StatusCode::OK, &HeaderMap::new(), &body, now());
        assert!(matches!(answer, Answer::Accepted { rejected, .. } if rejected == expected), "{answer:?}");
    }

    #[test]
    fn takes_every_prefix_of_a_body() {
        let body = partial(3).encode_to_vec();
        for length in 0..body.len() {
            let answer = of_http(StatusCode::OK, &HeaderMap::new(), &body[..length], now());
            assert!(matches!(answer, Answer::Accepted { .. }), "{length}");
        }
    }

    proptest! {
        #[test]
        fn takes_any_answer(code in 100_u16..1000, body: Vec<u8>, retry_after in "[ -~]{0,40}") {
            let headers = HeaderMap::from_iter([(header::RETRY_AFTER, retry_after.parse().unwrap())]);
            let _ = of_http(StatusCode::from_u16(code).unwrap(), &headers, &body, now());
        }
    }
}
