//! Settings that no value shows to be wrong by itself, found before anything is started.

use super::attributes::{Wanted, label_name};
use super::export::{self, ExportError, HeaderError};
use super::filter::{Filter, FilterError};
use super::span_metrics::INTRINSIC;
use crate::config::{GeneratorConfig, ProcessorConfig, SpanMetricsConfig, TenantGenerator};

/// A setting that cannot be used: its key, and below it what is wrong.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    /// Which spans count.
    #[error("metrics_generator.processor.{processor}.filter_policies[{place}]")]
    Filter {
        /// Of which kind of metrics.
        processor: &'static str,
        /// Place in the list, from 0.
        place: usize,
        /// What is wrong with it.
        #[source]
        source: FilterError,
    },
    /// A label that is joined of several has no name, nothing to be joined of, or the name of another one.
    #[error("metrics_generator.processor.span_metrics.dimension_mappings[{place}]: {what}")]
    Mapping {
        /// Place in the list, from 0.
        place: usize,
        /// What is wrong with it.
        what: String,
    },
    /// What requests of remote write are sent with.
    #[error("metrics_generator.tenants.{tenant}.remote_write_headers")]
    Header {
        /// The tenant.
        tenant: String,
        /// What is wrong with it.
        #[source]
        source: HeaderError,
    },
    /// The name cannot be that of a metric.
    #[error("metrics_generator.processor.host_info.metric_name: expected the name of a metric, found `{found}`")]
    MetricName {
        /// What stands there.
        found: String,
    },
    /// The name cannot be that of a label.
    #[error("metrics_generator.trace_id_label_name: expected the name of a label, found `{found}`")]
    LabelName {
        /// What stands there.
        found: String,
    },
    /// What is different for a tenant.
    #[error("metrics_generator.tenants.{tenant}")]
    Tenant {
        /// The tenant.
        tenant: String,
        /// What is wrong with it.
        #[source]
        source: Box<SettingError>,
    },
    /// Where metrics are sent.
    #[error("metrics_generator.storage.remote_write[{place}]")]
    RemoteWrite {
        /// Place in the list, from 0.
        place: usize,
        /// What is wrong with it.
        #[source]
        source: ExportError,
    },
    /// Where metrics are sent by OTLP.
    #[error("metrics_generator.storage.otlp[{place}]")]
    Otlp {
        /// Place in the list, from 0.
        place: usize,
        /// What is wrong with it.
        #[source]
        source: ExportError,
    },
}

/// Fails if what is different for a tenant cannot be used.
pub fn check_tenants(config: &GeneratorConfig) -> Result<(), SettingError> {
    config.tenants.iter().try_for_each(|(tenant, settings)| check_tenant(config, tenant, settings))
}

/// The same of settings of one tenant.
pub fn check_tenant(config: &GeneratorConfig, tenant: &str, settings: &TenantGenerator) -> Result<(), SettingError> {
    let wrong = |source| SettingError::Tenant { tenant: tenant.to_owned(), source: Box::new(source) };
    check_processors(&settings.over(config)).map_err(wrong)?;
    let tenant = || tenant.to_owned();
    export::tenant_headers(settings).map(drop).map_err(|source| SettingError::Header { tenant: tenant(), source })
}

fn check_processors(config: &GeneratorConfig) -> Result<(), SettingError> {
    let ProcessorConfig { span_metrics, service_graphs, .. } = &config.processor;
    for (processor, policies) in
        [("span_metrics", &span_metrics.filter_policies), ("service_graphs", &service_graphs.filter_policies)]
    {
        for (place, policy) in policies.iter().enumerate() {
            Filter::new(std::slice::from_ref(policy), &mut Wanted::default())
                .map_err(|source| SettingError::Filter { processor, place, source })?;
        }
    }
    check_mappings(span_metrics)?;
    let label = &config.trace_id_label_name;
    if !is_name(label, |letter| letter == '_') {
        return Err(SettingError::LabelName { found: label.clone() });
    }
    let metric = &config.processor.host_info.metric_name;
    if !is_name(metric, |letter| matches!(letter, '_' | ':')) {
        return Err(SettingError::MetricName { found: metric.clone() });
    }
    Ok(())
}

/// Whether it is made of letters, digits, but for the first place, and `others`.
fn is_name(name: &str, others: impl Fn(char) -> bool) -> bool {
    let letter = |letter: char| letter.is_ascii_alphabetic() || others(letter);
    name.starts_with(letter) && name.chars().all(|each| letter(each) || each.is_ascii_digit())
}

fn check_mappings(config: &SpanMetricsConfig) -> Result<(), SettingError> {
    let name_of = |name: &str| label_name(name, &INTRINSIC);
    let mut taken: Vec<_> = config.dimensions.iter().map(|key| name_of(key)).collect();
    for (place, mapping) in config.dimension_mappings.iter().enumerate() {
        let label = name_of(&mapping.name);
        let what = if mapping.name.is_empty() {
            "expected a `name`".to_owned()
        } else if mapping.source_labels.is_empty() {
            "expected `source_labels`".to_owned()
        } else if taken.contains(&label) {
            format!("there is a label `{label}` already")
        } else {
            taken.push(label);
            continue;
        };
        return Err(SettingError::Mapping { place, what });
    }
    Ok(())
}

/// Fails if a filter policy, or the settings of a server or files that they name, cannot be used.
pub fn check(config: &GeneratorConfig) -> Result<(), SettingError> {
    check_processors(config)?;
    check_tenants(config)?;
    for (place, server) in config.storage.remote_write.iter().enumerate() {
        export::check_remote_write(server).map_err(|source| SettingError::RemoteWrite { place, source })?;
    }
    for (place, server) in config.storage.otlp.iter().enumerate() {
        export::check_otlp(server).map_err(|source| SettingError::Otlp { place, source })?;
    }
    Ok(())
}
