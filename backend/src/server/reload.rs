//! Settings of tenants that change while the backend runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::config;
use crate::generator::{self, Generator};
use crate::telemetry::{GeneratorMetrics, chain};

/// Time between two looks at the file.
const INTERVAL: Duration = Duration::from_secs(10);

/// Looks at the configuration's file for ever, and gives what it says of tenants to the generator when it has changed.
pub(super) async fn watch(file: PathBuf, generator: Arc<Generator>, metrics: GeneratorMetrics) {
    metrics.tenants_reloaded.set(1);
    let mut known = fs::read(&file).unwrap_or_default();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let (path, generator) = (file.clone(), Arc::clone(&generator));
        let before = std::mem::take(&mut known);
        let look = move || match fs::read(&path) {
            Ok(bytes) if bytes != before => (reload(&path, &generator).map(|()| true), bytes),
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

fn reload(file: &Path, generator: &Generator) -> Result<(), String> {
    let config = config::read(file).map_err(|error| chain(&error))?.metrics_generator;
    generator::check_tenants(&config).map_err(|error| chain(&error))?;
    generator.set_tenants(&config.tenants).map_err(|error| chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GeneratorConfig;

    #[test]
    fn what_cannot_be_used_changes_nothing_and_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("backend.yaml");
        let generator = Generator::new(&GeneratorConfig::default(), "", GeneratorMetrics::default(), 0).unwrap();
        let say = |text: &str| {
            fs::write(&file, text).unwrap();
            reload(&file, &generator)
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
