//! What tenants may say: Tempo's user-configurable overrides, of which only what Coati honours is taken.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::MAX_BYTES;
use crate::config::{self, ProcessorName, TenantGenerator, TenantProcessors};

/// Why what a tenant says is not taken.
#[derive(Debug, thiserror::Error)]
pub enum LimitsError {
    /// It is longer than is read.
    #[error("overrides are longer than {MAX_BYTES} bytes")]
    TooLong,
    /// It is no JSON.
    #[error("overrides are no JSON")]
    Json(#[source] serde_json::Error),
    /// It has a field that is not honoured, or a value that is none.
    #[error("{field}: {message}")]
    Field {
        /// The way to it, with dots.
        field: String,
        /// What is wrong with it.
        message: String,
    },
}

/// All that a tenant may say; only whether it can be read counts.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Limits {
    metrics_generator: GeneratorLimits,
}

/// How many series and values there may be is not among it, nor how they are sent: that is for who runs the backend.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct GeneratorLimits {
    processors: Option<BTreeSet<ProcessorName>>,
    collection_interval: Option<Interval>,
    disable_collection: Option<bool>,
    trace_id_label_name: Option<String>,
    generate_native_histograms: Option<String>,
    native_histogram_bucket_factor: Option<f64>,
    native_histogram_max_bucket_number: Option<u32>,
    span_name_sanitization: Option<String>,
    processor: TenantProcessors,
}

/// Time between two samples. Those of a tenant who asks for too many would wake all others.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Interval;

impl TryFrom<String> for Interval {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let interval = config::duration(&text);
        let may_be = interval.is_some_and(|interval| (MIN_INTERVAL..=MAX_INTERVAL).contains(&interval));
        if may_be { Ok(Self) } else { Err(format!("expected a time from 15s to 5m, found `{text}`")) }
    }
}

/// Tempo's bounds.
const MIN_INTERVAL: Duration = Duration::from_secs(15);
const MAX_INTERVAL: Duration = Duration::from_mins(5);

/// Reads JSON of any kind.
pub(super) fn read(body: &[u8]) -> Result<Value, LimitsError> {
    if body.len() > MAX_BYTES {
        return Err(LimitsError::TooLong);
    }
    serde_json::from_slice(body).map_err(LimitsError::Json)
}

/// Fails if there is something that is not honoured.
pub(super) fn check(limits: &Value) -> Result<(), LimitsError> {
    typed::<Limits>(limits.clone())?;
    let unused = limits.get("metrics_generator").and_then(config::unused_of_tenant);
    unused.map_or(Ok(()), |(field, why)| {
        Err(LimitsError::Field { field: format!("metrics_generator.{field}"), message: format!("not used: {why}") })
    })
}

/// The same as settings.
pub(super) fn typed<T: DeserializeOwned>(value: Value) -> Result<T, LimitsError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = error.path().to_string();
        let field = if field == "." { "overrides".to_owned() } else { field };
        LimitsError::Field { field, message: error.into_inner().to_string() }
    })
}

/// RFC 7386: what is null in the patch goes, objects are merged, all else is replaced.
pub(super) fn merge_patch(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(members) = target else { return };
    for (name, value) in patch {
        if value.is_null() {
            members.remove(&name);
        } else {
            merge_patch(members.entry(name).or_insert(Value::Null), value);
        }
    }
}

/// Settings over others. What is a setting of its own is not merged.
pub(super) fn put_over(below: &mut Value, above: &Value) {
    let (Value::Object(members), Value::Object(above)) = (&mut *below, above) else {
        *below = above.clone();
        return;
    };
    for (name, value) in above {
        match members.get_mut(name) {
            Some(known) if name != "intrinsic_dimensions" => put_over(known, value),
            _ => _ = members.insert(name.clone(), value.clone()),
        }
    }
}

/// Whether these are settings, for the fuzz target.
pub(super) fn is_usable(limits: &Value) -> bool {
    check(limits).is_ok()
        && limits.get("metrics_generator").is_none_or(|generator| typed::<TenantGenerator>(generator.clone()).is_ok())
}
