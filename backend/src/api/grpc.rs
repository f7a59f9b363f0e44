//! `tempopb.StreamingQuerier`: the same queries over gRPC, beside HTTP/1.1 on the same port.
//!
//! Answers come as a stream. Every message carries what was looked at so far, and is small enough for every client. A
//! trace is sent once, when nothing of it can change any more, and newest traces come first. What goes wrong becomes a
//! status with the text that HTTP answers with.

use std::collections::{BTreeMap, HashSet};

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use prost::Message;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::codegen::BoxFuture;
use tonic::server::{Grpc, ServerStreamingService};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use super::ApiState;
use super::error::ApiError;
use super::measure::Query;
use super::params::Params;
use super::tempopb::{
    QueryInstantRequest, QueryInstantResponse, QueryRangeRequest, QueryRangeResponse, SearchRequest, SearchResponse,
    SearchTagValuesRequest, SearchTagValuesResponse, SearchTagValuesV2Response, SearchTagsRequest, SearchTagsResponse,
    SearchTagsV2Response, TraceSearchMetadata,
};
use super::work::Work;
use super::{metrics, search, tags};
use crate::diff::DiffError;
use crate::query::{TraceMatch, search_in_parts};
use crate::tenant::{TenantError, Tenants};

/// Clients refuse larger messages.
const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// A message is sent when it is as large as this: early results are worth more than few messages.
const FULL_MESSAGE_BYTES: usize = 1 << 20;

/// Takes a message; false when nobody waits for it any more.
type Emit<'s, T> = &'s mut dyn FnMut(T) -> bool;

/// `/tempopb.StreamingQuerier/{method}`.
pub(super) async fn call(State(state): State<ApiState>, Path(method): Path<String>, request: Request) -> Response {
    match method.as_str() {
        "Search" => serve(state, request, "search", search).await,
        "SearchTags" => serve(state, request, "metadata", search_tags).await,
        "SearchTagsV2" => serve(state, request, "metadata", search_tags_v2).await,
        "SearchTagValues" => serve(state, request, "metadata", search_tag_values).await,
        "SearchTagValuesV2" => serve(state, request, "metadata", search_tag_values_v2).await,
        "MetricsQueryRange" => serve(state, request, "metrics", query_range).await,
        "MetricsQueryInstant" => serve(state, request, "metrics", query_instant).await,
        _ => Status::unimplemented("unknown method").into_http::<Body>().into_response(),
    }
}

/// What a method does: it answers a message of one type with messages of another.
trait Method<In, Out>: Fn(&ApiState, &Tenants, In, &Work, Emit<'_, Out>) -> Result<(), ApiError> + Send + 'static {}

impl<In, Out, F> Method<In, Out> for F where
    F: Fn(&ApiState, &Tenants, In, &Work, Emit<'_, Out>) -> Result<(), ApiError> + Send + 'static
{
}

struct Service<F, Out> {
    state: ApiState,
    /// What the metrics call the query.
    op: &'static str,
    method: Option<F>,
    out: std::marker::PhantomData<fn() -> Out>,
}

async fn serve<In, Out>(state: ApiState, request: Request, op: &'static str, method: impl Method<In, Out>) -> Response
where
    In: Message + Default + 'static,
    Out: Message + 'static,
{
    // What only speaks HTTP/1.1 cannot read the status, which comes after the messages.
    if request.version() < http::Version::HTTP_2 {
        return StatusCode::HTTP_VERSION_NOT_SUPPORTED.into_response();
    }
    let service = Service { state, op, method: Some(method), out: std::marker::PhantomData };
    let mut grpc = Grpc::new(ProstCodec::<Out, In>::default()).max_encoding_message_size(MAX_MESSAGE_BYTES);
    grpc.server_streaming(service, request).await.into_response()
}

impl<In, Out, F> ServerStreamingService<In> for Service<F, Out>
where
    In: Message + Default + 'static,
    Out: Message + 'static,
    F: Method<In, Out>,
{
    type Response = Out;
    type ResponseStream = UnboundedReceiverStream<Result<Out, Status>>;
    type Future = BoxFuture<tonic::Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: tonic::Request<In>) -> Self::Future {
        let (state, op, method) = (self.state.clone(), self.op, self.method.take());
        Box::pin(async move {
            let (metadata, _, message) = request.into_parts();
            let tenants = state.tenants(&metadata.into_headers()).map_err(|error| status(&error))?;
            let method = method.ok_or_else(|| Status::internal("called twice"))?;
            // As over HTTP, an answer waits in memory for a slow client, so that the client stops no other query.
            let (sender, receiver) = unbounded_channel();
            let query = Query::begin(&state, op, &tenants);
            tokio::spawn(run(state, query, sender, move |state, work, emit| {
                method(state, &tenants, message, work, emit)
            }));
            Ok(tonic::Response::new(UnboundedReceiverStream::new(receiver)))
        })
    }
}

/// Works on a call until it is answered, or until the client has left.
async fn run<Out: Message + 'static>(
    state: ApiState,
    query: Query,
    sender: UnboundedSender<Result<Out, Status>>,
    job: impl FnOnce(&ApiState, &Work, Emit<'_, Out>) -> Result<(), ApiError> + Send + 'static,
) {
    let messages = sender.clone();
    let done = state.run(move |state, work| job(state, work, &mut |message| messages.send(Ok(message)).is_ok()));
    tokio::select! {
        done = done => {
            query.complete();
            if let Err(error) = done.flatten() {
                // Fails only if the client has left.
                _ = sender.send(Err(status(&error)));
            }
        }
        () = sender.closed() => {}
    }
}

fn status(error: &ApiError) -> Status {
    let code = match error {
        ApiError::BadRequest(_)
        | ApiError::Tenant(TenantError::Invalid | TenantError::Multiple | TenantError::TooMany) => {
            Code::InvalidArgument
        }
        ApiError::TooLarge
        | ApiError::TooMuch { .. }
        | ApiError::TooMuchRead { .. }
        | ApiError::Busy
        | ApiError::Diff(DiffError::TooDeep { .. }) => Code::ResourceExhausted,
        ApiError::TooSlow { .. } => Code::DeadlineExceeded,
        ApiError::Tenant(TenantError::Missing) => Code::Unauthenticated,
        ApiError::NoSuchPath | ApiError::NoSuchTrace | ApiError::NoTraceToCompare(_) => Code::NotFound,
        ApiError::PartialTrace(_) => Code::FailedPrecondition,
        ApiError::Blocks(_) | ApiError::Starting => Code::Unavailable,
        ApiError::Catalog(_) | ApiError::Stopped | ApiError::Unreadable | ApiError::Diff(DiffError::Json(_)) => {
            Code::Internal
        }
    };
    error.log();
    Status::new(code, error.to_string())
}

/// What of a request is set, as the parameters that HTTP has for it.
fn params(pairs: impl IntoIterator<Item = (&'static str, String)>) -> Params {
    Params::of_pairs(pairs.into_iter().filter(|(_, value)| !value.is_empty()))
}

/// A number; 0 is one that is not set.
fn number(name: &'static str, number: impl Into<u64>) -> (&'static str, String) {
    let number = number.into();
    (name, if number == 0 { String::new() } else { number.to_string() })
}

fn search(
    state: &ApiState,
    tenants: &Tenants,
    asked: SearchRequest,
    work: &Work,
    emit: Emit<'_, SearchResponse>,
) -> Result<(), ApiError> {
    let milliseconds = |name, millis: u32| (name, if millis == 0 { String::new() } else { format!("{millis}ms") });
    let asked = params([
        ("q", asked.query),
        ("tags", logfmt(&asked.tags)),
        milliseconds("minDuration", asked.min_duration_ms),
        milliseconds("maxDuration", asked.max_duration_ms),
        number("limit", asked.limit),
        number("start", asked.start),
        number("end", asked.end),
        number("spss", asked.spans_per_span_set),
    ]);
    let request = search::request(&asked, &state.limits)?;
    // If the query is asked again, what was sent stays sent.
    let mut sent = HashSet::new();
    let mut tell = |traces: Vec<TraceMatch>, progress| {
        let mut message = SearchResponse { traces: Vec::new(), metrics: Some(search::metrics(progress)) };
        let mut bytes = 0;
        for found in traces.into_iter().filter(|found| sent.insert(found.id)) {
            let trace = fitting(search::trace(found));
            let len = trace.encoded_len();
            if bytes + len > FULL_MESSAGE_BYTES && !message.traces.is_empty() {
                let traces = std::mem::take(&mut message.traces);
                if !emit(SearchResponse { traces, ..message.clone() }) {
                    return false;
                }
                bytes = 0;
            }
            bytes += len;
            message.traces.push(trace);
        }
        message.traces.is_empty() || emit(message)
    };
    let done = state.query(tenants, work, |view| search_in_parts(view, &request, work.stop(), &mut tell))?;
    // The last one says that all is done, even if nothing was found.
    emit(SearchResponse { traces: Vec::new(), metrics: Some(search::metrics(done)) });
    Ok(())
}

/// `a="b" c="d"`.
fn logfmt(tags: &BTreeMap<String, String>) -> String {
    let quoted = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let pairs: Vec<_> = tags.iter().map(|(key, value)| format!("{key}=\"{}\"", quoted(value))).collect();
    pairs.join(" ")
}

/// Leaves spans away, and the ends of endless names, until the trace fits into a message; `matched` still counts them.
fn fitting(mut trace: TraceSearchMetadata) -> TraceSearchMetadata {
    const MAX_NAME_BYTES: usize = 64 << 10;
    const MAX_BYTES: usize = MAX_MESSAGE_BYTES - 4 * MAX_NAME_BYTES;
    while trace.encoded_len() > MAX_BYTES {
        for name in [&mut trace.root_trace_name, &mut trace.root_service_name] {
            name.truncate(name.floor_char_boundary(MAX_NAME_BYTES));
        }
        let longest = trace.span_sets.iter().map(|set| set.spans.len()).max().unwrap_or_default();
        if longest == 0 {
            // Then it is the number of sets, or of services, that is too large.
            trace.span_sets.truncate(trace.span_sets.len() / 2);
            trace.service_stats.clear();
        }
        for set in &mut trace.span_sets {
            set.spans.truncate(longest / 2);
        }
        trace.span_set = trace.span_sets.first().cloned();
        if trace.span_sets.is_empty() {
            break;
        }
    }
    trace
}

fn tags_params(asked: SearchTagsRequest) -> Params {
    params([
        ("scope", asked.scope),
        ("q", asked.query),
        number("start", asked.start),
        number("end", asked.end),
        number("limit", asked.max_tags_per_scope),
    ])
}

fn search_tags(
    state: &ApiState,
    tenants: &Tenants,
    asked: SearchTagsRequest,
    work: &Work,
    emit: Emit<'_, SearchTagsResponse>,
) -> Result<(), ApiError> {
    let SearchTagsResponse { tag_names, metrics } = tags::tag_names(state, tenants, &tags_params(asked), work)?;
    in_parts(tag_names, String::len, |tag_names| emit(SearchTagsResponse { tag_names, metrics }));
    Ok(())
}

fn search_tags_v2(
    state: &ApiState,
    tenants: &Tenants,
    asked: SearchTagsRequest,
    work: &Work,
    emit: Emit<'_, SearchTagsV2Response>,
) -> Result<(), ApiError> {
    let SearchTagsV2Response { scopes, metrics } = tags::tag_names_v2(state, tenants, &tags_params(asked), work)?;
    in_parts(scopes, Message::encoded_len, |scopes| emit(SearchTagsV2Response { scopes, metrics }));
    Ok(())
}

/// The name of the tag, and the rest.
fn values_params(asked: SearchTagValuesRequest) -> (String, Params) {
    let params = params([
        ("q", asked.query),
        number("start", asked.start),
        number("end", asked.end),
        number("limit", asked.max_tag_values),
    ]);
    (asked.tag_name, params)
}

fn search_tag_values(
    state: &ApiState,
    tenants: &Tenants,
    asked: SearchTagValuesRequest,
    work: &Work,
    emit: Emit<'_, SearchTagValuesResponse>,
) -> Result<(), ApiError> {
    let (name, params) = values_params(asked);
    let found = tags::tag_values(state, tenants, &name, &params, work)?;
    let SearchTagValuesResponse { tag_values, metrics } = found;
    in_parts(tag_values, String::len, |tag_values| emit(SearchTagValuesResponse { tag_values, metrics }));
    Ok(())
}

fn search_tag_values_v2(
    state: &ApiState,
    tenants: &Tenants,
    asked: SearchTagValuesRequest,
    work: &Work,
    emit: Emit<'_, SearchTagValuesV2Response>,
) -> Result<(), ApiError> {
    let (name, params) = values_params(asked);
    let found = tags::tag_values_v2(state, tenants, &name, &params, work)?;
    let SearchTagValuesV2Response { tag_values, metrics } = found;
    in_parts(tag_values, Message::encoded_len, |tag_values| emit(SearchTagValuesV2Response { tag_values, metrics }));
    Ok(())
}

fn query_range(
    state: &ApiState,
    tenants: &Tenants,
    asked: QueryRangeRequest,
    work: &Work,
    emit: Emit<'_, QueryRangeResponse>,
) -> Result<(), ApiError> {
    // Times are nanoseconds here, however few of them; a step of 0 is none.
    let step = if asked.step == 0 { String::new() } else { go_nanos(asked.step) };
    let params = params([
        ("q", asked.query),
        ("start", padded(asked.start)),
        ("end", padded(asked.end)),
        ("step", step),
        number("exemplars", asked.exemplars),
        number("maxSeries", asked.max_series),
    ]);
    let QueryRangeResponse { series, metrics, status, message } = metrics::range(state, tenants, &params, work)?;
    in_parts(series, Message::encoded_len, |series| {
        emit(QueryRangeResponse { series, metrics, status, message: message.clone() })
    });
    Ok(())
}

fn query_instant(
    state: &ApiState,
    tenants: &Tenants,
    asked: QueryInstantRequest,
    work: &Work,
    emit: Emit<'_, QueryInstantResponse>,
) -> Result<(), ApiError> {
    let params = params([("q", asked.query), ("start", padded(asked.start)), ("end", padded(asked.end))]);
    let answer = metrics::instant(state, tenants, &params, work)?;
    // Of several messages clients would keep the last one only.
    if answer.encoded_len() > MAX_MESSAGE_BYTES {
        return Err(ApiError::TooLarge);
    }
    emit(answer);
    Ok(())
}

/// Nanoseconds since the epoch as HTTP has them: few digits would be seconds. Empty for 0, which is not set.
fn padded(nanos: u64) -> String {
    if nanos == 0 { String::new() } else { format!("{nanos:011}") }
}

fn go_nanos(nanos: u64) -> String {
    format!("{nanos}ns")
}

/// Sends a list in messages that are not too large; at least one. Stops when nobody listens.
fn in_parts<T>(items: Vec<T>, len: impl Fn(&T) -> usize, mut emit: impl FnMut(Vec<T>) -> bool) {
    /// Tag and length of an item.
    const FRAME_BYTES: usize = 8;
    let mut part = Vec::new();
    let mut bytes = 0;
    for item in items {
        let len = len(&item) + FRAME_BYTES;
        if bytes + len > FULL_MESSAGE_BYTES && !part.is_empty() {
            if !emit(std::mem::take(&mut part)) {
                return;
            }
            bytes = 0;
        }
        bytes += len;
        part.push(item);
    }
    emit(part);
}
