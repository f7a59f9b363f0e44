//! Settings that no value shows to be wrong by itself, found before anything is started.

use super::attributes::Wanted;
use super::export::{self, ExportError};
use super::filter::{Filter, FilterError};
use crate::config::{GeneratorConfig, TenantGenerator};

/// A setting that cannot be used: its key, and below it what is wrong.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    /// Which spans count.
    #[error("metrics_generator.processor.span_metrics.filter_policies[{place}]")]
    Filter {
        /// Place in the list, from 0.
        place: usize,
        /// What is wrong with it.
        #[source]
        source: FilterError,
    },
    /// The name cannot be that of a metric.
    #[error("metrics_generator.processor.host_info.metric_name: expected the name of a metric, found `{found}`")]
    MetricName {
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
    check_processors(&settings.over(config)).map_err(wrong)
}

fn check_processors(config: &GeneratorConfig) -> Result<(), SettingError> {
    for (place, policy) in config.processor.span_metrics.filter_policies.iter().enumerate() {
        Filter::new(std::slice::from_ref(policy), &mut Wanted::default())
            .map_err(|source| SettingError::Filter { place, source })?;
    }
    let name = &config.processor.host_info.metric_name;
    let letter = |letter: char| letter.is_ascii_alphabetic() || letter == '_' || letter == ':';
    let is_name = name.starts_with(letter) && name.chars().all(|each| letter(each) || each.is_ascii_digit());
    if is_name { Ok(()) } else { Err(SettingError::MetricName { found: name.clone() }) }
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
