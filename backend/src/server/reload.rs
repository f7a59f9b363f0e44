//! Settings of tenants that change while the backend runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::config;
use crate::overrides::Overrides;
use crate::telemetry::{GeneratorMetrics, chain};

/// Time between two looks at the file.
const INTERVAL: Duration = Duration::from_secs(10);

/// Looks at the configuration's file for ever, and gives what it says of tenants to the generator when it has changed.
pub(super) async fn watch(file: PathBuf, overrides: Arc<Overrides>, metrics: GeneratorMetrics) {
    metrics.tenants_reloaded.set(1);
    let mut known = fs::read(&file).unwrap_or_default();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let (path, overrides) = (file.clone(), Arc::clone(&overrides));
        let before = std::mem::take(&mut known);
        let look = move || match fs::read(&path) {
            Ok(bytes) if bytes != before => (reload(&path, &overrides).map(|()| true), bytes),
            // While it is replaced it may be away.
            _ => (Ok(false), before),
        };
        let Ok((outcome, bytes)) = tokio::task::spawn_blocking(look).await else { return };
        known = bytes;
        match outcome {
            Ok(false) => {}
            Ok(true) => {
                metrics.tenants_reloaded.set(1);
                info!(file = %file.display(), "settings of tenants are read again");
            }
            Err(why) => {
                metrics.tenants_reloaded.set(0);
                warn!(file = %file.display(), why, "settings of tenants stay as they were");
            }
        }
    }
}

fn reload(file: &Path, overrides: &Overrides) -> Result<(), String> {
    let config = config::read(file).map_err(|error| chain(&error))?;
    config.given.warnings().iter().for_each(|warning| warn!("{warning}"));
    overrides.set_file(&config).map_err(|error| chain(&error))
}

/// Looks for ever at what tenants said to other backends on the same store.
pub(super) async fn poll(overrides: Arc<Overrides>, interval: Duration, metrics: GeneratorMetrics) {
    loop {
        tokio::time::sleep(interval).await;
        let looking = Arc::clone(&overrides);
        let Ok(outcome) = tokio::task::spawn_blocking(move || looking.refresh()).await else { return };
        if let Err(error) = outcome {
            metrics.failed_overrides.inc();
            warn!(error = %chain(&error), "overrides of tenants stay as they were");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, GeneratorConfig};
    use crate::generator::Generator;

    #[test]
    fn what_cannot_be_used_changes_nothing_and_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("backend.yaml");
        let metrics = GeneratorMetrics::default();
        let generator = Generator::new(&GeneratorConfig::default(), "", metrics.clone(), 0).unwrap();
        let overrides = Overrides::new(&Config::default(), Arc::new(generator), metrics);
        let say = |text: &str| {
            fs::write(&file, text).unwrap();
            reload(&file, &overrides)
        };
        say("metrics_generator: {tenants: {a: {processors: [host-info]}}}").unwrap();
        let policy = "filter_policies: [{include: {match_type: regex, attributes: [{key: name, value: '('}]}}]";
        let why = say(&format!("metrics_generator: {{tenants: {{a: {{processor: {{span_metrics: {{{policy}}}}}}}}}}}"));
        let why = why.unwrap_err();
        let key = "metrics_generator.tenants.a: metrics_generator.processor.span_metrics.filter_policies[0]: expected a regular";
        assert!(why.contains(key), "{why}");
        let why = say("metrics_generator: {tenants: {a: {max_active_serie: 1}}}").unwrap_err();
        assert!(why.contains("metrics_generator.tenants.a.max_active_serie: unknown field"), "{why}");
    }
}
