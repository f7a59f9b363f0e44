//! Resources and scopes of a block: each distinct one stands once in the footer, rows say its number.

use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coati_common::wellknown::resource::SERVICE_NAME;
use foldhash::fast::RandomState;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, TracesData};
use parquet::file::metadata::KeyValue;
use prost::Message;

use super::schema::footer;
use super::{BlockError, MAX_SERVICES};
use crate::live::Batch;

/// Largest table that is believed, bytes before compression.
const MAX_TABLE_BYTES: u64 = 1 << 30;

/// Level of zstd. Tables are small, and read by every query.
const ZSTD_LEVEL: i32 = 3;

/// A resource of a block.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResourceEntry {
    /// What spans were sent under.
    pub resource: Resource,
    /// `ResourceSpans.schema_url`.
    pub schema_url: Arc<str>,
}

impl ResourceEntry {
    /// `service.name`, if it is a string.
    pub fn service_name(&self) -> Option<&str> {
        service_name(&self.resource)
    }
}

fn service_name(resource: &Resource) -> Option<&str> {
    let attribute = resource.attributes.iter().find(|attribute| attribute.key == SERVICE_NAME)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(name) => Some(name),
        _ => None,
    }
}

/// A scope of a block.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScopeEntry {
    /// Instrumentation scope.
    pub scope: Arc<InstrumentationScope>,
    /// `ScopeSpans.schema_url`.
    pub schema_url: Arc<str>,
}

/// The tables of a block that is read.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) resources: Vec<ResourceEntry>,
    pub(super) scopes: Vec<ScopeEntry>,
}

impl Tables {
    /// Reads both tables from the values of the footer; `path` names the block in errors.
    pub(super) fn decode(path: &str, resources: &str, scopes: &str) -> Result<Self, BlockError> {
        let bad = |table: &str, why: String| BlockError::damaged(path, format!("{table}: {why}"));
        let resources = unpack(resources).map_err(|why| bad(footer::RESOURCES, why))?;
        let scopes = unpack(scopes).map_err(|why| bad(footer::SCOPES, why))?;
        let resources = TracesData::decode(resources.as_slice()).map_err(|e| bad(footer::RESOURCES, e.to_string()))?;
        let scopes = ResourceSpans::decode(scopes.as_slice()).map_err(|e| bad(footer::SCOPES, e.to_string()))?;
        let resource = |ResourceSpans { resource, schema_url, .. }| ResourceEntry {
            resource: resource.unwrap_or_default(),
            schema_url: schema_url.into(),
        };
        let scope = |ScopeSpans { scope, schema_url, .. }| ScopeEntry {
            scope: Arc::new(scope.unwrap_or_default()),
            schema_url: schema_url.into(),
        };
        Ok(Self {
            resources: resources.resource_spans.into_iter().map(resource).collect(),
            scopes: scopes.scope_spans.into_iter().map(scope).collect(),
        })
    }
}

/// Numbers the distinct resources and scopes of a block that is written.
#[derive(Debug)]
pub(super) struct TableBuilder {
    resources: Vec<ResourceSpans>,
    /// By the schema URL and the encoded resource.
    resource_numbers: HashMap<(Arc<str>, Vec<u8>), i32, RandomState>,
    scopes: Vec<ScopeSpans>,
    scope_numbers: HashMap<(Arc<str>, Vec<u8>), i32, RandomState>,
    /// By the address of the batch, which is held, so that an address means the same as long as it is here.
    remembered: HashMap<usize, (Arc<Batch>, Numbers), RandomState>,
    most_remembered: usize,
}

/// Where the resource and the scope of a batch stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    pub(super) resource: i32,
    pub(super) scope: i32,
}

impl TableBuilder {
    /// Empty tables; remembers the numbers of so many batches, which stay in memory for that.
    pub(super) fn new(most_remembered: usize) -> Self {
        Self {
            resources: Vec::new(),
            resource_numbers: HashMap::default(),
            scopes: Vec::new(),
            scope_numbers: HashMap::default(),
            remembered: HashMap::default(),
            most_remembered,
        }
    }

    /// Numbers of a batch; a resource or scope that is new gets the next one.
    pub(super) fn number(&mut self, batch: &Arc<Batch>) -> Numbers {
        // Spans of one request share it, and come in many traces.
        let address = Arc::as_ptr(batch).addr();
        if let Some((_, numbers)) = self.remembered.get(&address) {
            return *numbers;
        }
        let resource = (Arc::clone(&batch.resource_schema_url), batch.resource.encode_to_vec());
        let scope = (Arc::clone(&batch.scope_schema_url), batch.scope.encode_to_vec());
        let numbers = Numbers {
            resource: *self.resource_numbers.entry(resource).or_insert_with(|| {
                self.resources.push(ResourceSpans {
                    resource: Some(Resource::clone(&batch.resource)),
                    scope_spans: Vec::new(),
                    schema_url: batch.resource_schema_url.to_string(),
                });
                self.resources.len() as i32 - 1
            }),
            scope: *self.scope_numbers.entry(scope).or_insert_with(|| {
                self.scopes.push(ScopeSpans {
                    scope: Some(InstrumentationScope::clone(&batch.scope)),
                    spans: Vec::new(),
                    schema_url: batch.scope_schema_url.to_string(),
                });
                self.scopes.len() as i32 - 1
            }),
        };
        if self.remembered.len() >= self.most_remembered {
            self.remembered.clear();
        }
        self.remembered.insert(address, (Arc::clone(batch), numbers));
        numbers
    }

    /// `service.name` of a resource by its number. Few resources are in many batches: this copy is in the processor's cache.
    pub(super) fn service_name(&self, resource: i32) -> Option<&str> {
        let spans = self.resources.get(usize::try_from(resource).ok()?)?;
        service_name(spans.resource.as_ref()?)
    }

    /// `service.name` of all resources, sorted; none if there are more than [`MAX_SERVICES`], or one that is no string:
    /// queries take the list for all that there is.
    pub(super) fn services(&self) -> Option<Vec<String>> {
        let mut names = BTreeSet::new();
        for resource in self.resources.iter().filter_map(|spans| spans.resource.as_ref()) {
            let is_named = resource.attributes.iter().any(|attribute| attribute.key == SERVICE_NAME);
            match service_name(resource) {
                Some(name) => _ = names.insert(name),
                None if is_named => return None,
                None => {}
            }
            if names.len() > MAX_SERVICES {
                return None;
            }
        }
        Some(names.into_iter().map(str::to_owned).collect())
    }

    /// The entries of the footer.
    pub(super) fn encode(self) -> std::io::Result<Vec<KeyValue>> {
        let resources = TracesData { resource_spans: self.resources };
        let scopes = ResourceSpans { scope_spans: self.scopes, ..ResourceSpans::default() };
        Ok(vec![
            KeyValue::new(footer::RESOURCES.to_owned(), pack(&resources.encode_to_vec())?),
            KeyValue::new(footer::SCOPES.to_owned(), pack(&scopes.encode_to_vec())?),
        ])
    }
}

/// Values of a Parquet footer are text.
fn pack(bytes: &[u8]) -> std::io::Result<String> {
    Ok(STANDARD.encode(zstd::bulk::compress(bytes, ZSTD_LEVEL)?))
}

fn unpack(text: &str) -> Result<Vec<u8>, String> {
    let packed = STANDARD.decode(text).map_err(|error| error.to_string())?;
    let reader = zstd::stream::read::Decoder::new(packed.as_slice()).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    reader.take(MAX_TABLE_BYTES).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}
