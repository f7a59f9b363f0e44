//! What of the configuration can change while the agent runs.

use serde_json::Value as Json;

use super::Config;
use crate::{discover::Selection, span::SpanConfig};

/// Sections that take effect without a restart.
const LIVE: [&str; 4] = ["discovery", "metrics", "routes", "spans"];

/// What the capture thread is told when the configuration has changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Reload {
    /// Which processes are observed.
    pub selection: Selection,
    /// Whether processes that trace themselves are left out.
    pub excludes_self_traced: bool,
    /// What spans are made of, and which are kept.
    pub spans: SpanConfig,
}

impl Config {
    /// What the capture thread is told.
    pub fn reload(&self) -> Reload {
        Reload {
            selection: self.selection(),
            excludes_self_traced: self.discovery.exclude_otel_instrumented_services,
            spans: self.span_config(),
        }
    }

    /// The keys whose change needs a restart, and that are not the same in `new`.
    pub fn fixed_changes(&self, new: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        // What was read can be written.
        if let (Ok(Json::Object(old)), Ok(Json::Object(new))) = (serde_json::to_value(self), serde_json::to_value(new))
        {
            for (section, value) in &old {
                if !LIVE.contains(&section.as_str()) {
                    compare(section, value, new.get(section), &mut changes);
                }
            }
        }
        // Traces that are open now have been given their ids.
        if self.spans.across_nodes != new.spans.across_nodes {
            changes.push("spans.across_nodes".to_owned());
        }
        changes
    }
}

fn compare(path: &str, old: &Json, new: Option<&Json>, changes: &mut Vec<String>) {
    match (old, new) {
        (Json::Object(old), Some(Json::Object(new))) => {
            for (key, value) in old {
                compare(&format!("{path}.{key}"), value, new.get(key), changes);
            }
            // What has no default is only there if it was set.
            changes.extend(new.keys().filter(|key| !old.contains_key(*key)).map(|key| format!("{path}.{key}")));
        }
        (old, Some(new)) if old == new => {}
        _ => changes.push(path.to_owned()),
    }
}

/// Notices that a file has other content than before. It is read whole, because all else lies: a Kubernetes
/// `ConfigMap` is a link to a link whose times are those of its first file.
#[derive(Clone, Debug, Default)]
pub struct FileWatch {
    seen: Option<Vec<u8>>,
}

impl FileWatch {
    /// Whether the content is another one than at the last look. The first look only remembers; a file that cannot be
    /// read now has not changed.
    pub fn has_changed(&mut self, content: std::io::Result<Vec<u8>>) -> bool {
        let Ok(content) = content else { return false };
        let has_changed = self.seen.as_ref().is_some_and(|seen| *seen != content);
        self.seen = Some(content);
        has_changed
    }
}

#[cfg(test)]
mod tests {
    use std::{io, path::Path};

    use rstest::rstest;

    use super::*;
    use crate::config::file;

    fn config(text: &str) -> Config {
        file::parse(text, Path::new("agent.yaml")).unwrap()
    }

    #[rstest]
    #[case::nothing("", "", &[])]
    #[case::live("spans: {redact_query: false}", "routes: {max_words: 3}\ndiscovery: {services: [{exe_path: x}]}\nmetrics: {max_series: 7}", &[])]
    #[case::scalar("log_level: warn", "", &["log_level"])]
    #[case::in_a_section("export: {timeout: 1s}", "export: {timeout: 2s, batch_spans: 7}", &["export.batch_spans", "export.timeout"])]
    #[case::in_a_live_section("", "spans: {across_nodes: false}", &["spans.across_nodes"])]
    #[case::set("", "export: {endpoint: 'http://a:1'}", &["export.endpoint"])]
    #[case::unset("telemetry: {otlp_metrics: {endpoint: 'http://a:1'}}", "", &["telemetry.otlp_metrics.endpoint"])]
    #[case::secret("export: {headers: {a: x}}", "export: {headers: {a: y}}", &["export.headers.a"])]
    fn what_needs_a_restart(#[case] old: &str, #[case] new: &str, #[case] expected: &[&str]) {
        assert_eq!(config(old).fixed_changes(&config(new)), expected);
    }

    #[test]
    fn a_file_changes_when_its_content_does() {
        let mut watch = FileWatch::default();
        let gone = || Err(io::ErrorKind::NotFound.into());
        assert!(!watch.has_changed(Ok(b"a".to_vec())));
        assert!(!watch.has_changed(Ok(b"a".to_vec())));
        assert!(watch.has_changed(Ok(b"b".to_vec())));
        assert!(!watch.has_changed(gone()));
        assert!(!watch.has_changed(Ok(b"b".to_vec())));
        assert!(watch.has_changed(Ok(b"c".to_vec())));
    }
}
