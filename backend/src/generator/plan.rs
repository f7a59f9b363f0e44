//! How spans of each tenant are counted: as the configuration says, and what is different for the tenant.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::RandomState;

use super::INSTANCE_LABEL;
use super::attributes::{Asked, Wanted, found};
use super::filter::FilterError;
use super::host_info::HostInfoPlan;
use super::parts::{ServiceGraphsParts, SpanMetricsParts};
use super::room::Limits;
use super::service_graphs::ServiceGraphsPlan;
use super::span::Seen;
use super::span_metrics::SpanMetricsPlan;
use crate::config::{GeneratorConfig, LimiterType, ProcessorName, TenantGenerator};
use crate::otlp::ValueRef;
use coati_common::wellknown::span::COATI_SPAN_PARTIAL;

/// How spans of a tenant are counted.
#[derive(Debug)]
pub(super) struct Plan {
    /// Attributes of spans that something is counted by.
    pub(super) wanted: Wanted,
    /// Number of the one that marks a span which is not over, and what to ask for it.
    partial: (usize, Asked),
    pub(super) span_metrics: Option<SpanMetricsPlan>,
    pub(super) service_graphs: Option<ServiceGraphsPlan>,
    pub(super) host_info: Option<HostInfoPlan>,
    pub(super) limits: Limits,
    /// Time between two samples; none if there are to be none.
    pub(super) interval_ms: Option<u64>,
    /// Label of exemplars that holds the trace id.
    pub(super) trace_id_label: Arc<str>,
}

/// The plans of all tenants.
#[derive(Debug)]
pub(super) struct Plans {
    config: GeneratorConfig,
    of_all: Arc<Plan>,
    settings: BTreeMap<String, TenantGenerator>,
    of_tenants: HashMap<Arc<str>, Arc<Plan>, RandomState>,
    pub(super) stale_ms: u64,
    /// Names and values.
    external_labels: Vec<(String, String)>,
}

impl Plan {
    fn new(config: &GeneratorConfig) -> Result<Self, FilterError> {
        let GeneratorConfig { processors, registry, limiter_type, .. } = config;
        let mut wanted = Wanted::default();
        let partial = (wanted.add(COATI_SPAN_PARTIAL), wanted.added());
        let of_spans = SpanMetricsParts::of(processors).map(|parts| SpanMetricsPlan::new(config, parts, &mut wanted));
        let of_graphs =
            ServiceGraphsParts::of(processors).map(|parts| ServiceGraphsPlan::new(config, parts, &mut wanted));
        let (series, entities) = match limiter_type {
            LimiterType::Series => (registry.max_active_series.into(), 0),
            LimiterType::Entity => (0, registry.max_active_entities.into()),
        };
        let (label_values, window_ms) = (registry.max_cardinality_per_label.into(), millis(registry.stale_duration));
        Ok(Self {
            wanted,
            partial,
            span_metrics: of_spans.transpose()?,
            service_graphs: of_graphs.transpose()?,
            host_info: processors.contains(&ProcessorName::HostInfo).then(|| HostInfoPlan::new(config)),
            limits: Limits { series, entities, label_values, window_ms },
            interval_ms: (!config.disable_collection).then(|| millis(registry.collection_interval)),
            trace_id_label: config.trace_id_label_name.as_str().into(),
        })
    }

    /// Which attributes of a span are looked at. Only the agent sends spans before their end.
    pub(super) fn asked(&self, seen: &Seen<'_>) -> Asked {
        let of_end = if seen.of_agent { self.partial.1 } else { Asked::default() };
        let of_spans = self.span_metrics.as_ref().map(|plan| plan.asked);
        let is_end = ServiceGraphsPlan::counts(seen.span.kind);
        let of_graphs = self.service_graphs.as_ref().filter(|_| is_end).map(|plan| plan.asked(seen));
        of_spans.into_iter().chain(of_graphs).fold(of_end, Asked::and)
    }

    /// Whether a span was sent before its end. `values` are what was found of what is asked for.
    pub(super) fn is_partial(&self, seen: &Seen<'_>, values: &[Option<ValueRef<'_>>]) -> bool {
        seen.of_agent && matches!(found(values, self.partial.0), Some(ValueRef::Bool(true)))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Plans {
    /// `instance` is the name of this host.
    pub(super) fn new(config: &GeneratorConfig, instance: &str) -> Result<Self, FilterError> {
        let registry = &config.registry;
        let mut external_labels = registry.external_labels.clone();
        if !instance.is_empty() {
            external_labels.entry(INSTANCE_LABEL.to_owned()).or_insert_with(|| instance.to_owned());
        }
        let mut plans = Self {
            of_all: Arc::new(Plan::new(config)?),
            settings: BTreeMap::new(),
            of_tenants: HashMap::default(),
            stale_ms: millis(registry.stale_duration),
            external_labels: external_labels.into_iter().collect(),
            config: config.clone(),
        };
        for (tenant, settings) in &config.tenants {
            plans.set(tenant, settings)?;
        }
        Ok(plans)
    }

    fn set(&mut self, tenant: &str, settings: &TenantGenerator) -> Result<(), FilterError> {
        let plan = Plan::new(&settings.over(&self.config))?;
        self.of_tenants.insert(tenant.into(), Arc::new(plan));
        self.settings.insert(tenant.to_owned(), settings.clone());
        Ok(())
    }

    /// Fails if settings of a tenant cannot be used.
    pub(super) fn check(&self, settings: &TenantGenerator) -> Result<(), FilterError> {
        Plan::new(&settings.over(&self.config)).map(drop)
    }

    pub(super) fn of(&self, tenant: &str) -> &Arc<Plan> {
        self.of_tenants.get(tenant).unwrap_or(&self.of_all)
    }

    /// Takes settings of a tenant, or with none those of all; false if they are as before.
    pub(super) fn change(&mut self, tenant: &str, settings: Option<&TenantGenerator>) -> Result<bool, FilterError> {
        if self.settings.get(tenant) == settings {
            return Ok(false);
        }
        if let Some(settings) = settings {
            self.set(tenant, settings)?;
        } else {
            self.settings.remove(tenant);
            self.of_tenants.remove(tenant);
        }
        Ok(true)
    }

    /// The tenants that have settings of their own.
    pub(super) fn tenants(&self) -> impl Iterator<Item = &String> {
        self.settings.keys()
    }

    /// Names and values of the labels of every series of a tenant.
    pub(super) fn external_labels(&self, tenant: &str) -> Vec<(String, String)> {
        let mut labels = self.external_labels.clone();
        let label = &self.config.registry.inject_tenant_id_as;
        if !label.is_empty() {
            labels.push((label.clone(), tenant.to_owned()));
        }
        labels
    }
}
