//! The data of a scenario, as OTLP.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Run;

/// A trace.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Trace {
    /// The last digits of its id, hexadecimal.
    id: String,
    spans: Vec<Span>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Span {
    id: u64,
    #[serde(default)]
    parent: u64,
    service: String,
    name: String,
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    message: String,
    /// Milliseconds after the begin of the run's data.
    start: u64,
    /// Milliseconds.
    lasts: u64,
    #[serde(default)]
    attributes: BTreeMap<String, Value>,
    #[serde(default)]
    resource: BTreeMap<String, Value>,
    #[serde(default)]
    events: Vec<Event>,
    #[serde(default)]
    scope: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Event {
    name: String,
    /// Milliseconds after the start of the span.
    at: u64,
    #[serde(default)]
    attributes: BTreeMap<String, Value>,
}

impl Trace {
    /// A request of OTLP over HTTP. Every resource says of which run it is.
    pub(super) fn as_otlp(&self, run: &Run) -> Result<Value> {
        let spans: Result<Vec<_>> = self.spans.iter().map(|span| span.as_otlp(self, run)).collect();
        Ok(json!({ "resourceSpans": spans? }))
    }
}

impl Span {
    fn as_otlp(&self, trace: &Trace, run: &Run) -> Result<Value> {
        let mut resource = self.resource.clone();
        resource.insert("service.name".to_owned(), self.service.clone().into());
        resource.insert("scenario.run".to_owned(), run.name.clone().into());
        let start = run.begin * 1_000_000_000 + self.start * 1_000_000;
        let events = self.events.iter().map(|event| {
            Ok(json!({
                "name": event.name,
                "timeUnixNano": (start + event.at * 1_000_000).to_string(),
                "attributes": attributes(&event.attributes)?,
            }))
        });
        let mut span = json!({
            "traceId": run.trace_id(&trace.id),
            "spanId": format!("{:016x}", self.id),
            "name": self.name,
            "kind": number(self.kind.as_deref(), &["internal", "server", "client", "producer", "consumer"])?,
            "startTimeUnixNano": start.to_string(),
            "endTimeUnixNano": (start + self.lasts * 1_000_000).to_string(),
            "attributes": attributes(&self.attributes)?,
            "events": events.collect::<Result<Vec<_>>>()?,
            "status": { "code": number(self.status.as_deref(), &["ok", "error"])?, "message": self.message },
        });
        if self.parent != 0
            && let Some(object) = span.as_object_mut()
        {
            object.insert("parentSpanId".to_owned(), format!("{:016x}", self.parent).into());
        }
        Ok(json!({
            "resource": { "attributes": attributes(&resource)? },
            "scopeSpans": [{ "scope": { "name": self.scope }, "spans": [span] }],
        }))
    }
}

/// The number of a name in OTLP; 0 for none.
fn number(name: Option<&str>, names: &[&str]) -> Result<usize> {
    let Some(name) = name else { return Ok(0) };
    let place = names.iter().position(|known| *known == name);
    Ok(1 + place.with_context(|| format!("{name:?} is none of {names:?}"))?)
}

fn attributes(of: &BTreeMap<String, Value>) -> Result<Vec<Value>> {
    of.iter().map(|(key, value)| Ok(json!({ "key": key, "value": any(value)? }))).collect()
}

fn any(value: &Value) -> Result<Value> {
    Ok(match value {
        Value::String(text) => json!({ "stringValue": text }),
        Value::Bool(truth) => json!({ "boolValue": truth }),
        Value::Number(number) if number.is_i64() => json!({ "intValue": number.to_string() }),
        Value::Number(number) => json!({ "doubleValue": number }),
        Value::Array(list) => {
            json!({ "arrayValue": { "values": list.iter().map(any).collect::<Result<Vec<_>>>()? } })
        }
        Value::Null | Value::Object(_) => bail!("{value} cannot be the value of an attribute"),
    })
}
