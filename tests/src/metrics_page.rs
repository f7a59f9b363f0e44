//! `docs/metrics.md`: tables of every metric, made of what `/metrics` says of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::tools::workspace;

/// With this variable set the tests write the files that they compare otherwise.
pub const WRITE: &str = "COATI_WRITE";

/// What to do when a file is not as it should be.
pub const HOW: &str = "run `cargo xtask generate` and look at the difference";

/// A metric as its page tells of it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Metric {
    /// `counter`, `gauge`, `histogram`, `info`.
    pub kind: String,
    /// As `OpenMetrics` names it; empty if it has none.
    pub unit: String,
    /// What it says.
    pub help: String,
    /// Names of labels, `le` not among them.
    pub labels: BTreeSet<String>,
    is_seen: bool,
}

/// The metrics of a page in `OpenMetrics`' text format, by the name of the family.
pub fn metrics(page: &str) -> Result<BTreeMap<String, Metric>> {
    let mut found: BTreeMap<String, Metric> = BTreeMap::new();
    for line in page.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            // `# EOF`
            let Some((what, rest)) = comment.split_once(' ') else { continue };
            let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
            let metric = found.entry(name.to_owned()).or_default();
            match what {
                "TYPE" => text.clone_into(&mut metric.kind),
                "UNIT" => text.clone_into(&mut metric.unit),
                // The library ends a sentence that has no full stop.
                "HELP" => text.trim_end_matches('.').clone_into(&mut metric.help),
                _ => bail!("{line}"),
            }
            continue;
        }
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let family = ["", "_total", "_info", "_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .find(|family| found.contains_key(*family));
        let metric = family.and_then(|family| found.get_mut(family)).with_context(|| format!("no type of: {line}"))?;
        metric.labels.extend(label_names(line)?);
        metric.is_seen = true;
    }
    Ok(found)
}

/// Names of the labels of a sample.
fn label_names(sample: &str) -> Result<Vec<String>> {
    let Some((_, mut rest)) = sample.split_once('{') else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    while let Some((name, value)) = rest.split_once("=\"") {
        names.push(name.to_owned());
        let mut escaped = false;
        let end = value.char_indices().find(|(_, letter)| {
            let ends = *letter == '"' && !escaped;
            escaped = *letter == '\\' && !escaped;
            ends
        });
        let end = end.with_context(|| format!("a value that does not end: {sample}"))?.0;
        rest = value.get(end + 1..).unwrap_or_default();
        match rest.strip_prefix(',') {
            Some(next) => rest = next,
            None => break,
        }
    }
    names.retain(|name| name != "le");
    Ok(names)
}

/// Names that queries use for a metric.
pub fn exposed(name: &str, kind: &str) -> String {
    match kind {
        "counter" => format!("{name}_total"),
        "info" => format!("{name}_info"),
        _ => name.to_owned(),
    }
}

/// The table of a page; fails if a metric has no series, because then its labels are not known.
pub fn table(page: &str) -> Result<String> {
    let mut lines = vec!["| metric | type | unit | labels | |".to_owned(), "|---|---|---|---|---|".to_owned()];
    for (name, metric) in metrics(page)? {
        ensure!(metric.is_seen, "{name} has no series: the test that makes this page must make one of each metric");
        let labels = metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        let Metric { kind, unit, help, .. } = &metric;
        lines.push(format!("| `{}` | {kind} | {unit} | {labels} | {help} |", exposed(&name, kind)));
    }
    Ok(lines.join("\n"))
}

/// Where the page is.
pub fn path() -> PathBuf {
    workspace().join("docs/metrics.md")
}

/// Fails unless the page's `section` is the table of `metrics`; writes it if [`WRITE`] is set.
pub fn check(section: &str, metrics: &str) -> Result<()> {
    let page = fs::read_to_string(path()).with_context(|| path().display().to_string())?;
    let (begin, end) = (format!("<!-- {section} -->\n"), format!("\n<!-- end of {section} -->"));
    let (before, rest) = page.split_once(&begin).with_context(|| format!("docs/metrics.md has no {begin}"))?;
    let (old, after) = rest.split_once(&end).with_context(|| format!("docs/metrics.md has no {end}"))?;
    let new = table(metrics)?;
    if std::env::var_os(WRITE).is_some() {
        fs::write(path(), format!("{before}{begin}{new}{end}{after}"))?;
        return Ok(());
    }
    let (old, new): (BTreeSet<&str>, BTreeSet<&str>) = (old.lines().collect(), new.lines().collect());
    let differences = old.symmetric_difference(&new).map(|line| {
        let sign = if new.contains(line) { '+' } else { '-' };
        format!("{sign} {line}")
    });
    let differences = differences.collect::<Vec<_>>().join("\n");
    ensure!(differences.is_empty(), "docs/metrics.md is not what the code says: {HOW}\n{differences}");
    Ok(())
}

/// Every name that the page documents, as queries use it.
pub fn documented() -> Result<BTreeSet<String>> {
    let page = fs::read_to_string(path()).with_context(|| path().display().to_string())?;
    let mut names = BTreeSet::new();
    for line in page.lines().filter_map(|line| line.strip_prefix("| `")) {
        let (name, rest) = line.split_once("` | ").with_context(|| line.to_owned())?;
        let suffixes: &[&str] = if rest.starts_with("histogram") { &["_bucket", "_sum", "_count"] } else { &[""] };
        names.extend(suffixes.iter().map(|suffix| format!("{name}{suffix}")));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP a Things.\n# TYPE a counter\na_total{x=\"1,\\\"y=\",z=\"\"} 2\n# HELP b_seconds Time.\n\
                        # TYPE b_seconds histogram\n# UNIT b_seconds seconds\nb_seconds_bucket{le=\"+Inf\",y=\"1\"} 0\n# EOF\n";

    #[test]
    fn a_page_tells_of_its_metrics() {
        let table = table(PAGE).unwrap();
        assert!(table.contains("| `a_total` | counter |  | `x`, `z` | Things |"), "{table}");
        assert!(table.contains("| `b_seconds` | histogram | seconds | `y` | Time |"), "{table}");
    }

    #[test]
    fn a_metric_without_series_is_an_error() {
        let error = table("# HELP a Things.\n# TYPE a counter\n").unwrap_err();
        assert!(error.to_string().contains("a has no series"), "{error}");
        assert!(metrics("a_total 1\n").is_err());
    }
}
