//! The paths of Prometheus' API that read, below `/prometheus`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderMap, StatusCode, Uri};
use promql_parser::parser::{Expr, VectorSelector, parse};
use serde_json::{Map, Value as JsonValue, json};
use tokio::sync::Semaphore;

use super::aggregate::shown;
use super::eval::{EvalError, Range, evaluate, passes};
use super::{History, Labels, NAME, Samples, Value};
use crate::tenant::{TENANT_HEADER, Tenancy, TenantError};

/// Moments that one query may ask for.
const MAX_MOMENTS: i64 = 11_000;

/// Queries that run at a time.
const QUERIES: usize = 2;

/// Largest body of a request.
const MAX_BODY: usize = 64 << 10;

/// The version whose API and answers this is.
const VERSION: &str = "2.42.0";

#[derive(Clone, Debug)]
struct Api {
    history: Arc<History>,
    tenancy: Tenancy,
    permits: Arc<Semaphore>,
}

#[derive(Debug, thiserror::Error)]
enum ApiError {
    #[error(transparent)]
    Tenant(#[from] TenantError),
    #[error("invalid parameter {name:?}: {why}")]
    Parameter { name: &'static str, why: String },
    #[error(transparent)]
    Eval(#[from] EvalError),
    #[error("query was stopped")]
    Stopped,
}

/// The routes.
pub fn router(history: Arc<History>, tenancy: Tenancy) -> Router {
    let api = Api { history, tenancy, permits: Arc::new(Semaphore::new(QUERIES)) };
    let routes = Router::new()
        .route("/query", get(query).merge(post(query)))
        .route("/query_range", get(query_range).merge(post(query_range)))
        .route("/series", get(series).merge(post(series)))
        .route("/labels", get(labels).merge(post(labels)))
        .route("/label/{name}/values", get(values))
        .route("/metadata", get(metadata))
        .route("/query_exemplars", get(nothing).merge(post(nothing)))
        .route("/rules", get(no_rules))
        .route("/status/buildinfo", get(build_info))
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY))
        .with_state(api);
    Router::new().nest("/prometheus/api/v1", routes)
}

async fn query(State(api): State<Api>, uri: Uri, headers: HeaderMap, body: Bytes) -> Result<Response, ApiError> {
    let params = Params::of(&uri, &body);
    let time = params.time("time")?.unwrap_or_else(now_ms);
    let query = params.get("query").unwrap_or_default().to_owned();
    api.run(&headers, move |history, tenant| {
        let value = evaluate(history, tenant, &query, Range::instant(time))?.pop();
        let at = |value: f64| json!([seconds(time), shown(value)]);
        Ok(match value {
            None => json!({"resultType": "vector", "result": []}),
            Some((_, Value::Scalar(value))) => json!({"resultType": "scalar", "result": at(value)}),
            Some((_, Value::Matrix(series))) => {
                let values = |samples: &Samples| -> Vec<_> {
                    samples.iter().map(|(time, value)| json!([seconds(*time), shown(*value)])).collect()
                };
                let result =
                    series.iter().map(|(labels, samples)| json!({"metric": labels, "values": values(samples)}));
                json!({"resultType": "matrix", "result": result.collect::<Vec<_>>()})
            }
            Some((_, Value::Text(text))) => json!({"resultType": "string", "result": [seconds(time), text]}),
            Some((_, Value::Vector(samples))) => {
                let result = samples.iter().map(|sample| json!({"metric": sample.labels, "value": at(sample.value)}));
                json!({"resultType": "vector", "result": result.collect::<Vec<_>>()})
            }
        })
    })
    .await
}

async fn query_range(State(api): State<Api>, uri: Uri, headers: HeaderMap, body: Bytes) -> Result<Response, ApiError> {
    let params = Params::of(&uri, &body);
    let required = |name| params.time(name)?.ok_or_else(|| ApiError::parameter(name, "cannot be parsed"));
    let (start, end, step) = (required("start")?, required("end")?, params.step()?);
    if end < start {
        return Err(ApiError::parameter("end", "end timestamp must not be before start time"));
    }
    if (end - start) / step > MAX_MOMENTS {
        return Err(ApiError::parameter(
            "step",
            "exceeded maximum resolution of 11,000 points per timeseries. Try decreasing the query resolution (?step=XX)",
        ));
    }
    let query = params.get("query").unwrap_or_default().to_owned();
    api.run(&headers, move |history, tenant| {
        let mut matrix: BTreeMap<Labels, Vec<JsonValue>> = BTreeMap::new();
        for (time, value) in evaluate(history, tenant, &query, Range { start, end, step })? {
            let mut add = |labels, value| {
                matrix.entry(labels).or_default().push(json!([seconds(time), shown(value)]));
            };
            match value {
                Value::Scalar(value) => add(Labels::new(), value),
                Value::Vector(samples) => samples.into_iter().for_each(|sample| add(sample.labels, sample.value)),
                Value::Text(_) => return Err(not_for_a_range("string")),
                Value::Matrix(_) => return Err(not_for_a_range("range vector")),
            }
        }
        let result = matrix.into_iter().map(|(metric, values)| json!({"metric": metric, "values": values}));
        Ok(json!({"resultType": "matrix", "result": result.collect::<Vec<_>>()}))
    })
    .await
}

fn not_for_a_range(kind: &str) -> ApiError {
    let why = format!("invalid expression type {kind:?} for range query, must be Scalar or instant Vector");
    ApiError::parameter("query", &why)
}

async fn series(State(api): State<Api>, uri: Uri, headers: HeaderMap, body: Bytes) -> Result<Response, ApiError> {
    let wanted = Params::of(&uri, &body);
    let limit = wanted.limit();
    let found = wanted.matching()?;
    if found.selectors.is_empty() {
        return Err(ApiError::parameter("match[]", "no match[] parameter provided"));
    }
    api.run(&headers, move |history, tenant| {
        Ok(json!(found.series(history, tenant).into_iter().take(limit).collect::<Vec<_>>()))
    })
    .await
}

async fn labels(State(api): State<Api>, uri: Uri, headers: HeaderMap, body: Bytes) -> Result<Response, ApiError> {
    let params = Params::of(&uri, &body);
    let (limit, found) = (params.limit(), params.matching()?);
    api.run(&headers, move |history, tenant| {
        let names: BTreeSet<_> = found.series(history, tenant).into_iter().flat_map(Labels::into_keys).collect();
        Ok(json!(names.into_iter().take(limit).collect::<Vec<_>>()))
    })
    .await
}

async fn values(
    State(api): State<Api>,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let params = Params::of(&uri, &[]);
    let (limit, found) = (params.limit(), params.matching()?);
    api.run(&headers, move |history, tenant| {
        let series = found.series(history, tenant);
        let values: BTreeSet<_> = series.into_iter().filter_map(|mut labels| labels.remove(&name)).collect();
        Ok(json!(values.into_iter().take(limit).collect::<Vec<_>>()))
    })
    .await
}

async fn metadata(State(api): State<Api>, headers: HeaderMap) -> Result<Response, ApiError> {
    let found = Matching { from: i64::MIN, to: i64::MAX, selectors: Vec::new() };
    api.run(&headers, move |history, tenant| {
        let mut metadata = Map::new();
        for name in found.series(history, tenant).into_iter().filter_map(|mut labels| labels.remove(NAME)) {
            let kind = if name.ends_with("_info") {
                "gauge"
            } else if name.ends_with("_total") {
                "counter"
            } else {
                "histogram"
            };
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
            metadata.insert(base.to_owned(), json!([{"type": kind, "help": "", "unit": ""}]));
        }
        Ok(JsonValue::Object(metadata))
    })
    .await
}

async fn nothing() -> Response {
    success(&json!([]))
}

async fn no_rules() -> Response {
    success(&json!({"groups": []}))
}

async fn build_info() -> Response {
    let empty = ["revision", "branch", "buildUser", "buildDate", "goVersion"].map(|name| (name.to_owned(), json!("")));
    let mut info: Map<_, _> = empty.into_iter().collect();
    info.insert("version".to_owned(), json!(VERSION));
    success(&JsonValue::Object(info))
}

impl Api {
    /// Does what may take long where it holds nobody up.
    async fn run(
        self,
        headers: &HeaderMap,
        work: impl FnOnce(&History, &str) -> Result<JsonValue, ApiError> + Send + 'static,
    ) -> Result<Response, ApiError> {
        let tenant = self.tenancy.tenant(headers.get(TENANT_HEADER).map(http::HeaderValue::as_bytes))?;
        let permit = self.permits.acquire_owned().await.map_err(|_| ApiError::Stopped)?;
        let done = tokio::task::spawn_blocking(move || {
            let data = work(&self.history, &tenant);
            drop(permit);
            data
        });
        Ok(success(&done.await.map_err(|_| ApiError::Stopped)??))
    }
}

fn success(data: &JsonValue) -> Response {
    Json(json!({"status": "success", "data": data})).into_response()
}

impl ApiError {
    fn parameter(name: &'static str, why: &str) -> Self {
        Self::Parameter { name, why: why.to_owned() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, kind) = match &self {
            Self::Tenant(_) => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::Parameter { .. } | Self::Eval(EvalError::Parse(_) | EvalError::TooLong) => {
                (StatusCode::BAD_REQUEST, "bad_data")
            }
            Self::Eval(_) => (StatusCode::UNPROCESSABLE_ENTITY, "execution"),
            Self::Stopped => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        };
        (status, Json(json!({"status": "error", "errorType": kind, "error": self.to_string()}))).into_response()
    }
}

/// What stands in the URL or in the form that was posted.
struct Params(Vec<(String, String)>);

impl Params {
    fn of(uri: &Uri, body: &[u8]) -> Self {
        // Any URL; only what stands behind it counts.
        let Ok(mut url) = reqwest::Url::parse("http://coati/") else { return Self(Vec::new()) };
        let mut pairs = Vec::new();
        for text in [uri.query().unwrap_or_default(), &String::from_utf8_lossy(body)] {
            url.set_query(Some(text));
            pairs.extend(url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())));
        }
        Self(pairs)
    }

    fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(key, value)| key == name && !value.is_empty())?;
        Some(value)
    }

    /// Milliseconds since the epoch.
    fn time(&self, name: &'static str) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let seconds: f64 = text.parse().map_err(|_| ApiError::parameter(name, "expected seconds since 1970"))?;
        // A thousand years are enough, and leave room to add.
        if !(0.0..=32e9).contains(&seconds) {
            return Err(ApiError::parameter(name, "out of bounds"));
        }
        Ok(Some((seconds * 1e3).round() as i64))
    }

    /// Milliseconds.
    fn step(&self) -> Result<i64, ApiError> {
        let text = self.get("step").unwrap_or_default();
        let millis = match text.parse::<f64>() {
            Ok(seconds) => seconds * 1e3,
            Err(_) => promql_parser::util::parse_duration(text).map_or(0.0, |step| step.as_millis() as f64),
        };
        if !(1.0..=1e12).contains(&millis) {
            return Err(ApiError::parameter("step", "zero or negative query resolution step widths are not accepted"));
        }
        Ok(millis as i64)
    }

    fn limit(&self) -> usize {
        let limit = self.get("limit").and_then(|limit| limit.parse().ok());
        limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX)
    }

    fn matching(&self) -> Result<Matching, ApiError> {
        let selectors = self.0.iter().filter(|(name, _)| name == "match[]").map(|(_, text)| match parse(text) {
            Ok(Expr::VectorSelector(selector)) => Ok(selector),
            Ok(_) => Err(ApiError::parameter("match[]", "expected a selector of series")),
            Err(error) => Err(ApiError::parameter("match[]", &error)),
        });
        Ok(Matching {
            from: self.time("start")?.unwrap_or(i64::MIN),
            to: self.time("end")?.unwrap_or(i64::MAX),
            selectors: selectors.collect::<Result<_, _>>()?,
        })
    }
}

/// Series that are asked for; all of them if no selector is given.
struct Matching {
    from: i64,
    to: i64,
    selectors: Vec<VectorSelector>,
}

impl Matching {
    fn series(&self, history: &History, tenant: &str) -> Vec<Labels> {
        let passes = |labels: &Labels| {
            let passes = |selector: &VectorSelector| passes(selector.name.as_deref(), &selector.matchers, labels);
            self.selectors.is_empty() || self.selectors.iter().any(passes)
        };
        history.select(tenant, self.from, self.to, passes).into_iter().map(|(labels, _)| labels).collect()
    }
}

fn seconds(millis: i64) -> JsonValue {
    if millis % 1_000 == 0 { json!(millis / 1_000) } else { json!(millis as f64 / 1e3) }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
