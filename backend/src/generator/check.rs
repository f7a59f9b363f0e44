//! Settings that no value shows to be wrong by itself, found before anything is started.

use super::attributes::Wanted;
use super::filter::{Filter, FilterError};
use super::remote_write::{self, RemoteWriteError};
use crate::config::GeneratorConfig;

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
    /// Where metrics are sent.
    #[error("metrics_generator.storage.remote_write[{place}]")]
    RemoteWrite {
        /// Place in the list, from 0.
        place: usize,
        /// What is wrong with it.
        #[source]
        source: RemoteWriteError,
    },
}

/// Fails if a filter policy, or the settings of a server or files that they name, cannot be used.
pub fn check(config: &GeneratorConfig) -> Result<(), SettingError> {
    for (place, policy) in config.processor.span_metrics.filter_policies.iter().enumerate() {
        Filter::new(std::slice::from_ref(policy), &mut Wanted::default())
            .map_err(|source| SettingError::Filter { place, source })?;
    }
    for (place, server) in config.storage.remote_write.iter().enumerate() {
        remote_write::check(server).map_err(|source| SettingError::RemoteWrite { place, source })?;
    }
    Ok(())
}
