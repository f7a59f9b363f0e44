//! Names and values of tags, for completion.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::{Path, State};
use axum::response::Response;
use http::{HeaderMap, Uri};

use super::ApiState;
use super::error::ApiError;
use super::llm;
use super::params::Params;
use super::respond::Format;
use super::tempopb::{
    MetadataMetrics, SearchTagValuesResponse, SearchTagValuesV2Response, SearchTagsResponse, SearchTagsV2Response,
    SearchTagsV2Scope, TagValue,
};
use super::work::Work;
use crate::catalog::{self, Hours, Scope};
use crate::query::{Plan, TagScan, Window, scan_names, scan_values};
use crate::tenant::Tenants;
use crate::traceql::{self, Attribute, Field, Intrinsic, Kind, Literal, Status};

/// What can be completed without looking at any span.
const INTRINSICS: [&str; 25] = [
    "duration",
    "event:name",
    "event:timeSinceStart",
    "instrumentation:name",
    "instrumentation:version",
    "kind",
    "link:spanID",
    "link:traceID",
    "name",
    "rootName",
    "rootServiceName",
    "span:duration",
    "span:id",
    "span:kind",
    "span:name",
    "span:parentID",
    "span:status",
    "span:statusMessage",
    "status",
    "statusMessage",
    "trace:duration",
    "trace:id",
    "trace:rootName",
    "trace:rootService",
    "traceDuration",
];

/// Which tags are asked for.
struct TagsRequest {
    /// None for all.
    scope: Option<Scope>,
    /// What the spans must match; none for any.
    plan: Option<Plan>,
    window: Window,
    limit: usize,
}

impl TagsRequest {
    fn of(params: &Params) -> Result<Self, ApiError> {
        let scope = match params.get("scope") {
            None | Some("none") => None,
            Some(name) => {
                let scope = Scope::ALL.into_iter().find(|scope| scope.name() == name);
                Some(scope.ok_or_else(|| ApiError::bad(format!("invalid scope: {name}")))?)
            }
        };
        let limit = params.limit()?.unwrap_or(usize::MAX);
        Ok(Self { scope, plan: plan_of_unfinished(params.get("q")), window: params.window()?, limit })
    }

    fn hours(&self) -> Option<Hours> {
        match self.window {
            Window { start: None, end: None } => None,
            Window { start, end } => Some(Hours::from_seconds(start.unwrap_or_default(), end.unwrap_or(u64::MAX))),
        }
    }
}

/// A query that is being typed narrows the answer as far as it is understood; what is not, narrows nothing.
fn plan_of_unfinished(text: Option<&str>) -> Option<Plan> {
    let filter = traceql::filter_of_unfinished(text?)?;
    if filter == traceql::FieldExpr::Literal(Literal::Bool(true)) {
        return None;
    }
    Plan::of_filter(&filter).ok()
}

pub(super) async fn names(State(state): State<ApiState>, uri: Uri, headers: HeaderMap) -> Result<Response, ApiError> {
    state.answer(uri, &headers, tag_names).await
}

pub(super) async fn names_v2(
    State(state): State<ApiState>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    state.answer(uri, &headers, tag_names_v2).await
}

pub(super) async fn values(
    State(state): State<ApiState>,
    Path(rest): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let name = rest.strip_suffix("/values").ok_or(ApiError::NoSuchPath)?.to_owned();
    let job = move |state: &ApiState, tenants: &Tenants, params: &Params, work: &Work| {
        tag_values(state, tenants, &name, params, work)
    };
    state.answer(uri, &headers, job).await
}

pub(super) async fn values_v2(
    State(state): State<ApiState>,
    Path(rest): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let name = rest.strip_suffix("/values").ok_or(ApiError::NoSuchPath)?.to_owned();
    let format = Format::of(&headers);
    if format.llm {
        let tenants = state.tenants(&headers)?;
        let answer = state.run(move |state, work| {
            let found = tag_values_v2(state, &tenants, &name, &Params::of(&uri)?, work)?;
            Ok(format.answer_llm(&llm::tag_values(&found)))
        });
        return answer.await?;
    }
    let job = move |state: &ApiState, tenants: &Tenants, params: &Params, work: &Work| {
        tag_values_v2(state, tenants, &name, params, work)
    };
    state.answer(uri, &headers, job).await
}

/// Names of all scopes in one list, or of the scope that was chosen.
pub(super) fn tag_names(
    state: &ApiState,
    tenants: &Tenants,
    params: &Params,
    work: &Work,
) -> Result<SearchTagsResponse, ApiError> {
    let found = find_names(state, tenants, params, work)?;
    let scopes = found.scopes.into_iter().filter(|(scope, _)| !found.all || *scope != Scope::Intrinsic.name());
    let names: BTreeSet<String> = scopes.flat_map(|(_, names)| names).collect();
    Ok(SearchTagsResponse { tag_names: names.into_iter().take(found.limit).collect(), metrics: Some(found.metrics) })
}

/// Names by scope.
pub(super) fn tag_names_v2(
    state: &ApiState,
    tenants: &Tenants,
    params: &Params,
    work: &Work,
) -> Result<SearchTagsV2Response, ApiError> {
    let found = find_names(state, tenants, params, work)?;
    let scopes = found.scopes.into_iter().filter(|(_, tags)| !tags.is_empty());
    let scopes = scopes.map(|(name, tags)| SearchTagsV2Scope { name: name.to_owned(), tags }).collect();
    Ok(SearchTagsV2Response { scopes, metrics: Some(found.metrics) })
}

/// Values of a name, which may lack its scope, as texts.
pub(super) fn tag_values(
    state: &ApiState,
    tenants: &Tenants,
    name: &str,
    params: &Params,
    work: &Work,
) -> Result<SearchTagValuesResponse, ApiError> {
    let field = match name {
        "root.name" => Field::Intrinsic(Intrinsic::RootName),
        "root.service.name" => Field::Intrinsic(Intrinsic::RootService),
        "status.code" => Field::Intrinsic(Intrinsic::Status),
        _ => match traceql::parse_field(name) {
            Ok(field @ Field::Intrinsic(_)) => field,
            _ => Field::Attribute(Attribute { parent: false, scope: traceql::Scope::Any, name: name.to_owned() }),
        },
    };
    let found = find_values(state, tenants, &field, params, work)?;
    let mut values: Vec<String> = found.values.into_iter().map(|value| value.value).collect();
    if name == "error" && values.is_empty() {
        // The old search knows it as a name for the status.
        values.push("true".to_owned());
    }
    values.sort_unstable();
    values.dedup();
    Ok(SearchTagValuesResponse { tag_values: values, metrics: Some(found.metrics) })
}

/// Values of a field, with their types.
pub(super) fn tag_values_v2(
    state: &ApiState,
    tenants: &Tenants,
    name: &str,
    params: &Params,
    work: &Work,
) -> Result<SearchTagValuesV2Response, ApiError> {
    let field = traceql::parse_field(name).map_err(|error| {
        let error = error.shown_in(name);
        ApiError::bad(format!("please provide a valid tagName: failed to parse identifier {name}: {error}"))
    })?;
    let found = find_values(state, tenants, &field, params, work)?;
    Ok(SearchTagValuesV2Response { tag_values: found.values, metrics: Some(found.metrics) })
}

struct Names {
    scopes: BTreeMap<&'static str, Vec<String>>,
    /// Whether no scope was chosen.
    all: bool,
    limit: usize,
    metrics: MetadataMetrics,
}

fn find_names(state: &ApiState, tenants: &Tenants, params: &Params, work: &Work) -> Result<Names, ApiError> {
    let request = TagsRequest::of(params)?;
    let hours = request.hours();
    let mut metrics = MetadataMetrics::default();
    let mut scopes: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    let wanted = |scope: Scope| request.scope.is_none_or(|wanted| wanted == scope);
    if wanted(Scope::Intrinsic) {
        scopes.insert(Scope::Intrinsic.name(), INTRINSICS.map(str::to_owned).to_vec());
    }
    if let Some(plan) = request.plan {
        let scan = TagScan { plan: Some(plan), window: request.window, limit: request.limit };
        let (names, inspected) = state.query(tenants, work, |view| scan_names(view, &scan, work.stop()))?;
        metrics.inspected_bytes = inspected.bytes;
        let names = names.into_iter().filter(|(name, _)| request.scope.is_none_or(|scope| scope.name() == *name));
        scopes.extend(names.map(|(scope, names)| (scope, names.into_iter().collect())));
    } else {
        for scope in Scope::ALL.into_iter().filter(|scope| *scope != Scope::Intrinsic && wanted(*scope)) {
            let mut names = BTreeSet::new();
            for tenant in tenants.iter() {
                names.extend(state.catalog.tag_names(tenant, scope, hours, request.limit)?);
            }
            scopes.insert(scope.name(), names.into_iter().take(request.limit).collect());
        }
    }
    Ok(Names { scopes, all: request.scope.is_none(), limit: request.limit, metrics })
}

struct Values {
    values: Vec<TagValue>,
    metrics: MetadataMetrics,
}

fn find_values(
    state: &ApiState,
    tenants: &Tenants,
    field: &Field,
    params: &Params,
    work: &Work,
) -> Result<Values, ApiError> {
    let request = TagsRequest::of(params)?;
    if let Some(keywords) = keywords(field) {
        let value = |name: &str| TagValue { r#type: "keyword".to_owned(), value: name.to_owned() };
        let values = keywords.into_iter().take(request.limit).map(value).collect();
        return Ok(Values { values, metrics: MetadataMetrics::default() });
    }
    let mut metrics = MetadataMetrics::default();
    let values = match indexed(field) {
        Some(index) if request.plan.is_none() => {
            let mut values = BTreeSet::new();
            let of_all = tenants.iter().flat_map(|tenant| index.iter().map(move |of| (tenant, of)));
            for (tenant, (scope, name)) in of_all {
                let hours = request.hours();
                values.extend(state.catalog.tag_values(tenant, *scope, name, hours, request.limit)?);
            }
            values.into_iter().take(request.limit).collect()
        }
        None if is_endless(field) => Vec::new(),
        _ => {
            let scan = TagScan { plan: request.plan, window: request.window, limit: request.limit };
            let (values, inspected) =
                state.query(tenants, work, |view| scan_values(view, field, &scan, work.stop()))?;
            metrics.inspected_bytes = inspected.bytes;
            values
        }
    };
    let value = |value: catalog::TagValue| TagValue { r#type: value.type_name().to_owned(), value: value.to_string() };
    Ok(Values { values: values.into_iter().map(value).collect(), metrics })
}

/// Values that are a closed list.
fn keywords(field: &Field) -> Option<Vec<&'static str>> {
    match field {
        Field::Intrinsic(Intrinsic::Status) => Some(Status::ALL.map(Status::name).to_vec()),
        Field::Intrinsic(Intrinsic::Kind) => {
            let mut names = Kind::ALL.map(Kind::name).to_vec();
            names.sort_unstable();
            Some(names)
        }
        _ => None,
    }
}

/// Where the catalog has the values of a field, if it has them.
fn indexed(field: &Field) -> Option<Vec<(Scope, &str)>> {
    let scope = |scope| match scope {
        traceql::Scope::Any => Scope::ALL.into_iter().filter(|scope| *scope != Scope::Intrinsic).collect(),
        traceql::Scope::Resource => vec![Scope::Resource],
        traceql::Scope::Span => vec![Scope::Span],
        traceql::Scope::Event => vec![Scope::Event],
        traceql::Scope::Link => vec![Scope::Link],
        traceql::Scope::Instrumentation => vec![Scope::Instrumentation],
    };
    let intrinsic = match field {
        Field::Attribute(attribute) => {
            return Some(scope(attribute.scope).into_iter().map(|scope| (scope, attribute.name.as_str())).collect());
        }
        Field::Intrinsic(Intrinsic::Name) => "name",
        Field::Intrinsic(Intrinsic::StatusMessage) => "statusMessage",
        Field::Intrinsic(Intrinsic::RootName) => "rootName",
        Field::Intrinsic(Intrinsic::RootService) => "rootServiceName",
        Field::Intrinsic(Intrinsic::EventName) => "event:name",
        Field::Intrinsic(Intrinsic::InstrumentationName) => "instrumentation:name",
        Field::Intrinsic(Intrinsic::InstrumentationVersion) => "instrumentation:version",
        Field::Intrinsic(_) => return None,
    };
    Some(vec![(Scope::Intrinsic, intrinsic)])
}

/// Whether nearly every span has another value, so that a list of them helps nobody.
fn is_endless(field: &Field) -> bool {
    !matches!(field, Field::Intrinsic(Intrinsic::TraceDuration))
}
