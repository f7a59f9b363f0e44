//! What was counted, on disk: `docs/format/generator.md`.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use prost::Message;

use super::Generator;
use super::collected::{Applied, Collected, SeriesState};
use super::edges::{Connection, Edge, EdgeKey, Edges};
use super::family::{Labels, Series, Shape};
use super::histogram::{Histogram, Native};
use super::tenant::Tenant;
use crate::config::HistogramKind;
use crate::sealed::{Seal, SealError};

const SEAL: Seal = Seal { magic: *b"CGST", version: 1 };

/// What was counted cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file cannot be read.
    #[error("cannot read")]
    Read(#[source] io::Error),
    /// What is in it is no state.
    #[error(transparent)]
    Sealed(#[from] SealError),
}

impl StateError {
    /// Whether a later version of this program wrote it.
    pub fn is_of_later_version(&self) -> bool {
        matches!(self, Self::Sealed(SealError::Version(_)))
    }
}

#[derive(Clone, PartialEq, Message)]
struct SavedState {
    #[prost(uint64, tag = "1")]
    collected_ms: u64,
    #[prost(uint64, tag = "2")]
    below: u64,
    #[prost(uint64, repeated, tag = "3")]
    also: Vec<u64>,
    #[prost(message, repeated, tag = "4")]
    tenants: Vec<SavedTenant>,
}

#[derive(Clone, PartialEq, Message)]
struct SavedTenant {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    families: Vec<SavedFamily>,
    #[prost(message, repeated, tag = "3")]
    edges: Vec<SavedEdge>,
}

/// Series, and how they were called and counted.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SavedFamily {
    /// Name of the first counter.
    #[prost(string, tag = "1")]
    name: String,
    /// Names of labels, unless they are in the keys.
    #[prost(string, repeated, tag = "2")]
    labels: Vec<String>,
    #[prost(double, repeated, tag = "3")]
    bounds: Vec<f64>,
    /// 0 classic, 1 native, 2 both.
    #[prost(uint32, tag = "4")]
    kind: u32,
    #[prost(message, repeated, tag = "5")]
    series: Vec<SavedSeries>,
    /// Names of all counters and histograms. Empty in states of before there was a choice.
    #[prost(string, repeated, tag = "6")]
    names: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct SavedSeries {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(double, repeated, tag = "2")]
    counters: Vec<f64>,
    #[prost(message, repeated, tag = "3")]
    histograms: Vec<SavedHistogram>,
    #[prost(uint64, tag = "4")]
    updated_ms: u64,
    #[prost(uint64, tag = "5")]
    created_ms: u64,
    /// No samples of it were taken yet.
    #[prost(bool, tag = "6")]
    is_new: bool,
}

#[derive(Clone, PartialEq, Message)]
struct SavedHistogram {
    /// Which of the family's.
    #[prost(uint32, tag = "1")]
    place: u32,
    #[prost(double, repeated, tag = "2")]
    counts: Vec<f64>,
    #[prost(double, tag = "3")]
    sum: f64,
    #[prost(message, optional, tag = "4")]
    native: Option<SavedNative>,
}

#[derive(Clone, PartialEq, Message)]
struct SavedNative {
    #[prost(sint32, tag = "1")]
    schema: i32,
    #[prost(double, tag = "2")]
    zero: f64,
    #[prost(sint32, repeated, tag = "3")]
    indexes: Vec<i32>,
    #[prost(double, repeated, tag = "4")]
    counts: Vec<f64>,
}

#[derive(Clone, PartialEq, Message)]
struct SavedEdge {
    #[prost(uint64, tag = "1")]
    until_ms: u64,
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
    #[prost(string, optional, tag = "3")]
    client: Option<String>,
    #[prost(string, optional, tag = "4")]
    server: Option<String>,
    #[prost(string, optional, tag = "5")]
    peer: Option<String>,
    /// Place in [`Connection::ALL`].
    #[prost(uint32, tag = "6")]
    connection: u32,
    #[prost(double, optional, tag = "7")]
    client_seconds: Option<f64>,
    #[prost(double, optional, tag = "8")]
    server_seconds: Option<f64>,
    #[prost(fixed64, tag = "9")]
    client_end_ns: u64,
    #[prost(fixed64, tag = "10")]
    server_start_ns: u64,
    #[prost(bool, tag = "11")]
    failed: bool,
    #[prost(double, tag = "12")]
    times: f64,
    #[prost(string, repeated, tag = "13")]
    dimensions: Vec<String>,
    /// Empty in states of before there was one: then that of the key.
    #[prost(bytes = "vec", tag = "14")]
    trace_id: Vec<u8>,
}

/// Writes what was counted in place of what was there before; on disk when this returns.
pub(super) fn save(path: &Path, collected: &Collected) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(&encode(collected)?)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn encode(collected: &Collected) -> io::Result<Vec<u8>> {
    SEAL.encode(&SavedState::of(collected))
}

fn decode(bytes: &[u8]) -> Result<SavedState, StateError> {
    Ok(SEAL.decode(bytes)?)
}

/// Reads a state and forgets it: for the fuzz target.
pub fn check_state(bytes: &[u8]) -> Result<(), StateError> {
    let saved = decode(bytes)?;
    saved.tenants.into_iter().flat_map(|tenant| tenant.edges).filter_map(SavedEdge::into_edge).count();
    Ok(())
}

impl Generator {
    /// Goes on with what was saved; false if nothing was.
    pub fn restore(&self, path: &Path) -> Result<bool, StateError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(StateError::Read(error)),
        };
        let saved = decode(&bytes)?;
        let mut counted = self.counted();
        let collected_ms = counted.collected_ms.max(saved.collected_ms);
        let mut tenants = HashMap::default();
        for SavedTenant { name, families, edges } in saved.tenants {
            let mut tenant = Tenant::new(Arc::clone(counted.plans.of(&name)), collected_ms);
            tenant.restore(&families);
            if let Some(graphs) = &mut tenant.service_graphs {
                let mut waiting = Edges::default();
                for (until_ms, key, edge) in edges.into_iter().filter_map(SavedEdge::into_edge) {
                    waiting.wait(key, edge, until_ms);
                }
                graphs.edges = waiting;
            }
            tenants.insert(Arc::from(name), tenant);
        }
        let applied = Applied { below: saved.below, also: saved.also.into_iter().collect() };
        (counted.tenants, counted.applied, counted.collected_ms) = (tenants, applied, collected_ms);
        Ok(true)
    }
}

impl SavedState {
    fn of(collected: &Collected) -> Self {
        let tenants = collected.tenants.iter().map(|tenant| SavedTenant {
            name: tenant.tenant.to_string(),
            families: tenant.families.iter().map(|family| SavedFamily::of(&family.shape, family)).collect(),
            edges: tenant.edges.iter().map(|(until_ms, key, edge)| SavedEdge::of(*until_ms, key, edge)).collect(),
        });
        Self {
            collected_ms: collected.time_ms,
            below: collected.applied.below,
            also: collected.applied.also.iter().copied().collect(),
            tenants: tenants.collect(),
        }
    }
}

impl SavedFamily {
    fn of(shape: &Shape, family: &super::collected::FamilySnapshot) -> Self {
        let labels = match &shape.labels {
            Labels::Named(names) => names.iter().map(ToString::to_string).collect(),
            Labels::InKey => Vec::new(),
        };
        let live = family.series.iter().filter(|series| series.state != SeriesState::Gone);
        Self {
            name: shape.counters.first().map(ToString::to_string).unwrap_or_default(),
            labels,
            bounds: shape.bounds.clone(),
            kind: kind_number(shape.kind),
            series: live.map(|series| SavedSeries::of(&series.key, &series.series)).collect(),
            names: names_of(shape).map(str::to_owned).collect(),
        }
    }

    /// Whether its series are those of this shape.
    pub(super) fn is_of(&self, shape: &Shape) -> bool {
        let labels = match &shape.labels {
            Labels::Named(names) => names.iter().map(|name| &**name).eq(self.labels.iter().map(String::as_str)),
            Labels::InKey => self.labels.is_empty(),
        };
        let names = if self.names.is_empty() {
            shape.counters.first().is_some_and(|name| *name == self.name)
        } else {
            names_of(shape).eq(self.names.iter().map(String::as_str))
        };
        labels && names && shape.bounds == self.bounds && kind_number(shape.kind) == self.kind
    }

    /// Keys and series.
    pub(super) fn series(&self) -> impl Iterator<Item = (Arc<[u8]>, Series)> {
        self.series.iter().map(|saved| (saved.key.as_slice().into(), saved.series(self.bounds.len() + 1)))
    }
}

/// Names of the counters and histograms.
fn names_of(shape: &Shape) -> impl Iterator<Item = &str> {
    shape.counters.iter().map(|name| &**name).chain(shape.histograms.iter().copied())
}

const fn kind_number(kind: HistogramKind) -> u32 {
    match kind {
        HistogramKind::Classic => 0,
        HistogramKind::Native => 1,
        HistogramKind::Both => 2,
    }
}

impl SavedSeries {
    fn of(key: &[u8], series: &Series) -> Self {
        let histograms = (0..).zip(&series.histograms).filter_map(|(place, histogram)| {
            let histogram = histogram.as_ref()?;
            let native = histogram.native.as_ref().map(|native| SavedNative {
                schema: native.schema,
                zero: native.zero,
                indexes: native.positive.keys().copied().collect(),
                counts: native.positive.values().copied().collect(),
            });
            Some(SavedHistogram { place, counts: histogram.counts.clone(), sum: histogram.sum, native })
        });
        Self {
            key: key.to_vec(),
            counters: series.counters.to_vec(),
            histograms: histograms.collect(),
            updated_ms: series.updated_ms,
            created_ms: series.created_ms,
            is_new: !series.collected,
        }
    }

    fn series(&self, buckets: usize) -> Series {
        let mut series = Series { collected: !self.is_new, ..Series::default() };
        (series.updated_ms, series.created_ms) = (self.updated_ms, self.created_ms);
        for (counter, saved) in series.counters.iter_mut().zip(&self.counters) {
            *counter = *saved;
        }
        for saved in &self.histograms {
            let mut counts = saved.counts.clone();
            counts.resize(buckets, 0.0);
            let native = saved.native.as_ref().map(|native| {
                let positive: BTreeMap<_, _> =
                    native.indexes.iter().copied().zip(native.counts.iter().copied()).collect();
                Box::new(Native { schema: native.schema.clamp(-4, 8), zero: native.zero, positive })
            });
            if let Some(slot) = series.histograms.get_mut(saved.place as usize) {
                *slot = Some(Box::new(Histogram { counts, sum: saved.sum, native, ..Histogram::default() }));
            }
        }
        series
    }
}

impl SavedEdge {
    fn of(until_ms: u64, key: &EdgeKey, edge: &Edge) -> Self {
        let connection = Connection::ALL.iter().position(|known| *known == edge.connection).unwrap_or_default();
        Self {
            until_ms,
            key: key.to_vec(),
            client: edge.client.as_deref().map(str::to_owned),
            server: edge.server.as_deref().map(str::to_owned),
            peer: edge.peer.as_deref().map(str::to_owned),
            connection: connection as u32,
            client_seconds: edge.client_seconds,
            server_seconds: edge.server_seconds,
            client_end_ns: edge.client_end_ns,
            server_start_ns: edge.server_start_ns,
            failed: edge.failed,
            times: edge.times,
            dimensions: edge.dimensions.iter().map(ToString::to_string).collect(),
            trace_id: edge.trace_id.to_vec(),
        }
    }

    fn into_edge(self) -> Option<(u64, EdgeKey, Edge)> {
        let key: EdgeKey = self.key.try_into().ok()?;
        let trace_id = self.trace_id.as_slice().try_into().ok().or_else(|| key.first_chunk().copied());
        let edge = Edge {
            client: self.client.map(Into::into),
            server: self.server.map(Into::into),
            peer: self.peer.map(Into::into),
            connection: Connection::ALL.get(self.connection as usize).copied()?,
            client_seconds: self.client_seconds,
            server_seconds: self.server_seconds,
            client_end_ns: self.client_end_ns,
            server_start_ns: self.server_start_ns,
            failed: self.failed,
            times: self.times,
            virtual_node: "",
            trace_id: trace_id?,
            dimensions: self.dimensions.into_iter().map(Into::into).collect(),
        };
        Some((self.until_ms, key, edge))
    }
}
