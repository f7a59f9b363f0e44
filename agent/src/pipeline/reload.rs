//! A new configuration while the agent runs.

use std::{
    fs,
    path::PathBuf,
    sync::mpsc::{Receiver, Sender, channel},
};

use crate::{
    config::{Config, ConfigError, FileWatch, Reload},
    metrics::RequestMetrics,
};

/// Reads the configuration again, and tells the capture thread and the metrics what is new.
pub(super) struct Reloader<'a> {
    current: Config,
    reread: &'a dyn Fn() -> Result<Config, ConfigError>,
    capture: Sender<Reload>,
    metrics: RequestMetrics,
    watch: FileWatch,
}

impl<'a> Reloader<'a> {
    /// A reloader, and the end that the capture thread listens at.
    pub(super) fn new(
        current: &Config,
        reread: &'a dyn Fn() -> Result<Config, ConfigError>,
        metrics: RequestMetrics,
    ) -> (Self, Receiver<Reload>) {
        let (capture, receiver) = channel();
        let mut reloader = Self { current: current.clone(), reread, capture, metrics, watch: FileWatch::default() };
        // What is there now is what was read.
        reloader.look();
        (reloader, receiver)
    }

    /// The file that is looked at.
    pub(super) fn file(&self) -> Option<&PathBuf> {
        self.current.file.as_ref()
    }

    /// Reads the configuration again if its file has changed.
    pub(super) fn look(&mut self) {
        if let Some(content) = self.current.file.as_ref().map(fs::read)
            && self.watch.has_changed(content)
        {
            self.reload();
        }
    }

    /// Reads the configuration again. What is wrong in it is one line in the log, and all stays as it was.
    pub(super) fn reload(&mut self) {
        let new = match (self.reread)() {
            Ok(new) => new,
            Err(error) => {
                tracing::error!("{error}: the configuration stays as it was");
                return;
            }
        };
        tell(&new);
        let fixed = self.current.fixed_changes(&new);
        if !fixed.is_empty() {
            tracing::warn!(keys = fixed.join(", "), "what has changed in these needs a restart");
        }
        let (old, reload) = (self.current.reload(), new.reload());
        if old == reload {
            tracing::info!("the configuration was read again: nothing new for the capture");
        } else if self.capture.send(reload).is_err() {
            tracing::error!("the capture has ended before its time");
        }
        let settings = new.metrics_settings();
        if self.current.metrics_settings() != settings {
            self.metrics.configure(settings);
        }
        // Keys that need a restart are named until there was one.
        let Config { discovery, metrics, mut spans, routes, .. } = new;
        spans.across_nodes = self.current.spans.across_nodes;
        (self.current.discovery, self.current.spans, self.current.routes) = (discovery, spans, routes);
        self.current.metrics = metrics;
    }
}

/// What was asked for and is not done.
pub(super) fn tell(config: &Config) {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, path::Path};

    use super::*;

    /// A configuration in a file, as it is read again.
    fn run(texts: &[&str]) -> Vec<Reload> {
        run_with(texts, &RequestMetrics::default())
    }

    fn run_with(texts: &[&str], metrics: &RequestMetrics) -> Vec<Reload> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |path: &Path| Config::read(Some(path), &|_| None);
        fs::write(&file, texts[0]).unwrap();
        let current = read(file.path()).unwrap();
        let reread = || read(file.path());
        let (mut reloader, receiver) = Reloader::new(&current, &reread, metrics.clone());
        for text in &texts[1..] {
            fs::write(&file, text).unwrap();
            reloader.look();
            reloader.look();
        }
        receiver.try_iter().collect()
    }

    #[test]
    fn a_changed_file_is_told_once() {
        let told = run(&["spans: {redact_query: true}", "spans: {redact_query: false}"]);
        let [reload] = &told[..] else { panic!("{told:?}") };
        assert!(!reload.spans.redact_query);
    }

    #[test]
    fn a_bad_file_changes_nothing_and_a_good_one_behind_it_does() {
        let told = run(&["", "spans: {redact_query: flase}", "discovery: {instrument: [{open_ports: 80}]}"]);
        let [reload] = &told[..] else { panic!("{told:?}") };
        assert_eq!(reload.selection.include.len(), 1);
    }

    #[test]
    fn metrics_are_others_at_once() {
        let metrics = RequestMetrics::default();
        assert_eq!(run_with(&["", "metrics: {features: none}"], &metrics), [], "nothing of it is the capture's");
        assert!(!metrics.is_on());
        // A rule may ask for some.
        let told = run_with(
            &[
                "metrics: {features: none}",
                "discovery: {instrument: [{open_ports: 80, metrics: {features: application}}]}\nmetrics: {features: none}",
            ],
            &metrics,
        );
        assert_eq!((told.len(), metrics.is_on()), (1, true));
    }

    #[test]
    fn what_needs_a_restart_is_not_told() {
        assert_eq!(run(&["", "log_level: debug\n", "# nothing\n"]), []);
    }

    #[test]
    fn a_signal_reads_without_a_change() {
        let reads = RefCell::new(0);
        let reread = || {
            *reads.borrow_mut() += 1;
            Ok(Config::default())
        };
        let (mut reloader, receiver) = Reloader::new(&Config::default(), &reread, RequestMetrics::default());
        reloader.reload();
        assert_eq!((*reads.borrow(), receiver.try_iter().count()), (1, 0));
    }
}
