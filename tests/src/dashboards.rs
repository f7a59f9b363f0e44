//! Grafana's dashboards and alerts: made of `deploy/grafana/panels` and `deploy/prometheus/rules.yml`, and read back by the
//! test that asks every query.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::tools::workspace;

/// Columns of Grafana's grid.
const COLUMNS: u64 = 24;

/// Where a query is sent.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Metrics made of spans: the backend's own answers, or a Prometheus that has them.
    Spans,
    /// A Prometheus that fetches `/metrics` of agents and backends.
    Prometheus,
    /// The backend, as Tempo.
    Tempo,
}

impl Source {
    /// The data source of a panel: a variable of the dashboard.
    fn reference(self) -> Value {
        match self {
            Self::Spans => json!({"type": "prometheus", "uid": "${spans}"}),
            Self::Prometheus => json!({"type": "prometheus", "uid": "${prometheus}"}),
            Self::Tempo => json!({"type": "tempo", "uid": "${tempo}"}),
        }
    }

    /// The variable: its name, its label, the plugin, the uid of `provisioning/datasources`.
    const fn variable(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Self::Spans => ("spans", "Metrics of spans", "prometheus", "coati-metrics"),
            Self::Prometheus => ("prometheus", "Prometheus", "prometheus", "prometheus"),
            Self::Tempo => ("tempo", "Traces", "tempo", "coati"),
        }
    }
}

/// How a panel shows what it found.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Lines over time.
    Timeseries,
    /// One number.
    Stat,
    /// One number between 0 and a maximum.
    Gauge,
    /// A table of instant queries.
    Table,
    /// Counts by bucket over time.
    Heatmap,
    /// A list of traces.
    Traces,
    /// Grafana's own graph of services.
    ServiceMap,
}

/// A dashboard of `deploy/grafana/panels`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dashboard {
    /// Its title.
    pub title: String,
    /// What links to it name it by.
    pub uid: String,
    /// What a person may choose, besides data sources.
    pub variables: Vec<Variable>,
    /// Panels, in rows.
    pub rows: Vec<Row>,
}

/// What a person may choose.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    /// What queries call it.
    pub name: String,
    label: String,
    /// Who is asked for its values.
    pub source: Source,
    /// `label_values(metric, label)`.
    pub query: String,
}

/// A row of panels.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    title: String,
    /// From left to right.
    pub panels: Vec<Panel>,
}

/// One panel.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Panel {
    /// Its title.
    pub title: String,
    /// How it shows what it found.
    pub kind: Kind,
    /// Whom it asks.
    pub source: Source,
    /// What it asks.
    pub queries: Vec<Query>,
    width: u64,
    height: Option<u64>,
    unit: Option<String>,
    max: Option<f64>,
    #[serde(default)]
    stack: bool,
    help: Option<String>,
    /// Colours and from where on they hold.
    #[serde(default)]
    thresholds: BTreeMap<String, Option<f64>>,
    /// Series that have an axis and a unit of their own, on the right.
    right: Option<Right>,
    /// Other names of a table's columns.
    #[serde(default)]
    columns: BTreeMap<String, String>,
}

/// Series with another axis.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Right {
    pattern: String,
    unit: String,
}

/// One query of a panel.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// `PromQL` or `TraceQL`.
    pub expr: String,
    legend: Option<String>,
}

/// A file of Prometheus' rules.
#[derive(Clone, Debug, Deserialize)]
pub struct Rules {
    /// Groups, in order.
    pub groups: Vec<Group>,
}

/// A group of rules.
#[derive(Clone, Debug, Deserialize)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// An alert.
#[derive(Clone, Debug, Deserialize)]
pub struct Rule {
    /// Its name.
    pub alert: String,
    /// Series of it fire.
    pub expr: String,
    #[serde(rename = "for", default = "at_once")]
    pending: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

fn at_once() -> String {
    "0s".to_owned()
}

/// `deploy/` of the workspace.
pub fn deploy() -> PathBuf {
    workspace().join("deploy")
}

/// Reads a YAML file.
pub fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_saphyr::from_str(&text).with_context(|| path.display().to_string())
}

/// Every dashboard, with the name of its file.
pub fn dashboards() -> Result<Vec<(String, Dashboard)>> {
    let folder = deploy().join("grafana/panels");
    let mut paths = fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    let name = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    paths.iter().map(|path| Ok((name(path), read(path)?))).collect()
}

/// The alerts.
pub fn rules() -> Result<Rules> {
    read(&deploy().join("prometheus/rules.yml"))
}

/// The files that are made, and what must be in them.
pub fn generated() -> Result<Vec<(PathBuf, String)>> {
    let folder = deploy().join("grafana");
    let mut files = Vec::new();
    for (name, dashboard) in dashboards()? {
        files.push((folder.join(format!("dashboards/{name}.json")), pretty(&dashboard.json())?));
    }
    // YAML takes JSON as it is.
    files.push((folder.join("provisioning/alerting/coati.yaml"), pretty(&alerting(&rules()?))?));
    let rule = json!({"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule",
        "metadata": {"name": "coati"}, "spec": read::<Value>(&deploy().join("prometheus/rules.yml"))?});
    files.push((deploy().join("kubernetes/components/monitoring/rules.yaml"), pretty(&rule)?));
    Ok(files)
}

fn pretty(value: &Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

impl Dashboard {
    /// Its panels.
    pub fn panels(&self) -> impl Iterator<Item = &Panel> {
        self.rows.iter().flat_map(|row| &row.panels)
    }

    /// Grafana's JSON.
    pub fn json(&self) -> Value {
        let (mut panels, mut id, mut y) = (Vec::new(), 0, 0);
        let mut next_id = || {
            id += 1;
            id
        };
        for row in &self.rows {
            let grid = json!({"h": 1, "w": COLUMNS, "x": 0, "y": y});
            panels
                .push(json!({"id": next_id(), "type": "row", "title": row.title, "collapsed": false, "gridPos": grid,
                "panels": []}));
            y += 1;
            let (mut x, mut tallest) = (0, 0);
            for panel in &row.panels {
                if x + panel.width > COLUMNS {
                    (x, y, tallest) = (0, y + tallest, 0);
                }
                let grid = json!({"h": panel.height(), "w": panel.width, "x": x, "y": y});
                panels.push(panel.json(next_id(), &grid));
                x += panel.width;
                tallest = tallest.max(panel.height());
            }
            y += tallest;
        }
        let sources = [Source::Spans, Source::Prometheus, Source::Tempo].into_iter();
        let used = sources.filter(|source| {
            let of_variables = self.variables.iter().any(|variable| variable.source == *source);
            of_variables || self.panels().any(|panel| panel.source == *source)
        });
        let variables = used.map(source_variable).chain(self.variables.iter().map(Variable::json));
        json!({
            "uid": self.uid, "title": self.title, "tags": ["coati"], "schemaVersion": 39, "version": 1,
            "editable": true, "graphTooltip": 1, "refresh": "30s", "timezone": "",
            "time": {"from": "now-1h", "to": "now"}, "annotations": {"list": []},
            "links": [{"type": "dashboards", "tags": ["coati"], "asDropdown": true, "title": "Coati",
                "includeVars": false, "keepTime": true}],
            "templating": {"list": variables.collect::<Vec<_>>()},
            "panels": panels,
        })
    }
}

fn source_variable(source: Source) -> Value {
    let (name, label, plugin, uid) = source.variable();
    json!({"type": "datasource", "name": name, "label": label, "query": plugin, "hide": 0, "refresh": 1,
        "current": {"text": uid, "value": uid}, "options": [], "regex": "", "includeAll": false, "multi": false})
}

impl Variable {
    fn json(&self) -> Value {
        let query = json!({"query": self.query, "refId": self.name});
        json!({"type": "query", "name": self.name, "label": self.label, "datasource": self.source.reference(),
            "query": query, "definition": self.query, "refresh": 2, "sort": 1, "includeAll": true, "allValue": ".*",
            "multi": true, "current": {"text": ["All"], "value": ["$__all"]}, "options": [], "regex": "", "hide": 0})
    }

    /// The metric and the label of which it shows the values.
    pub fn metric_and_label(&self) -> Option<(&str, &str)> {
        self.query.strip_prefix("label_values(")?.strip_suffix(')')?.split_once(", ")
    }
}

impl Panel {
    fn height(&self) -> u64 {
        let usual = if matches!(self.kind, Kind::Stat | Kind::Gauge) { 5 } else { 8 };
        self.height.unwrap_or(usual)
    }

    fn json(&self, id: u64, grid: &Value) -> Value {
        let refs = ["A", "B", "C", "D", "E", "F", "G", "H"];
        let targets = self.queries.iter().zip(refs).map(|(query, reference)| self.target(query, reference));
        let kind = match self.kind {
            Kind::Timeseries => "timeseries",
            Kind::Stat => "stat",
            Kind::Gauge => "gauge",
            Kind::Table | Kind::Traces => "table",
            Kind::Heatmap => "heatmap",
            Kind::ServiceMap => "nodeGraph",
        };
        let mut panel = json!({"id": id, "type": kind, "title": self.title, "datasource": self.source.reference(),
            "gridPos": grid, "targets": targets.collect::<Vec<_>>(), "fieldConfig": self.fields(),
            "options": self.options()});
        let mut add = |key: &str, value: Value| panel.as_object_mut().map(|panel| panel.insert(key.to_owned(), value));
        if let Some(help) = &self.help {
            add("description", json!(help));
        }
        if self.kind == Kind::Table {
            let renamed = json!({"excludeByName": {"Time": true}, "renameByName": self.columns});
            add("transformations", json!([{"id": "merge", "options": {}}, {"id": "organize", "options": renamed}]));
        }
        panel
    }

    /// Whether a query is about a moment, not about a range of time.
    pub fn is_instant(&self) -> bool {
        self.kind == Kind::Table
    }

    fn target(&self, query: &Query, reference: &str) -> Value {
        let mut target = json!({"refId": reference, "datasource": self.source.reference()});
        let more = match (self.source, self.kind) {
            (Source::Tempo, Kind::ServiceMap) => json!({"queryType": "serviceMap", "serviceMapQuery": query.expr}),
            (Source::Tempo, kind) => json!({"queryType": "traceql", "query": query.expr, "limit": 20, "spss": 3,
                "tableType": if kind == Kind::Traces { "traces" } else { "spans" }, "metricsQueryType": "range"}),
            _ => json!({"expr": query.expr, "legendFormat": query.legend.as_deref().unwrap_or("__auto"),
                "instant": self.is_instant(), "range": !self.is_instant(), "editorMode": "code",
                "format": if self.is_instant() { "table" } else { "time_series" },
                "exemplar": self.source == Source::Spans && query.expr.contains("_bucket")}),
        };
        if let (Some(target), Value::Object(more)) = (target.as_object_mut(), more) {
            target.extend(more);
        }
        target
    }

    fn fields(&self) -> Value {
        let mut defaults = Map::new();
        if let Some(unit) = &self.unit {
            defaults.insert("unit".to_owned(), json!(unit));
        }
        if let Some(max) = self.max {
            defaults.insert("min".to_owned(), json!(0));
            defaults.insert("max".to_owned(), json!(max));
        }
        if !self.thresholds.is_empty() {
            let mut steps: Vec<_> = self.thresholds.iter().collect();
            steps.sort_by(|a, b| a.1.unwrap_or(f64::MIN).total_cmp(&b.1.unwrap_or(f64::MIN)));
            let steps = steps.iter().map(|(color, from)| json!({"color": color, "value": from}));
            defaults.insert("thresholds".to_owned(), json!({"mode": "absolute", "steps": steps.collect::<Vec<_>>()}));
        }
        if self.kind == Kind::Timeseries {
            let stacking = if self.stack { "normal" } else { "none" };
            let custom = json!({"fillOpacity": if self.stack { 20 } else { 5 }, "lineWidth": 1,
                "showPoints": "never", "stacking": {"mode": stacking, "group": "A"}, "axisSoftMin": 0});
            defaults.insert("custom".to_owned(), custom);
        }
        let right = self.right.iter().map(|right| {
            json!({"matcher": {"id": "byRegexp", "options": right.pattern}, "properties": [
                {"id": "unit", "value": right.unit}, {"id": "custom.axisPlacement", "value": "right"}]})
        });
        json!({"defaults": defaults, "overrides": right.collect::<Vec<_>>()})
    }

    fn options(&self) -> Value {
        match self.kind {
            Kind::Timeseries => json!({"legend": {"displayMode": "list", "placement": "bottom", "showLegend": true},
                "tooltip": {"mode": "multi", "sort": "desc"}}),
            Kind::Stat | Kind::Gauge => {
                json!({"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false}})
            }
            Kind::Heatmap => json!({"calculate": false, "yAxis": {"unit": "s"}}),
            Kind::Table | Kind::Traces | Kind::ServiceMap => json!({}),
        }
    }
}

/// Grafana's own alerts: the same queries, asked by Grafana. A query has series only while its alert should fire, so
/// "no data" is well.
fn alerting(rules: &Rules) -> Value {
    let groups = rules.groups.iter().map(|group| {
        let rules = group.rules.iter().map(alert).collect::<Vec<_>>();
        json!({"orgId": 1, "name": group.name, "folder": "Coati", "interval": "1m", "rules": rules})
    });
    json!({"apiVersion": 1, "groups": groups.collect::<Vec<_>>()})
}

fn alert(rule: &Rule) -> Value {
    // In files that Grafana reads at start a dollar sign that stands for itself is doubled.
    let doubled = |text: &str| text.replace('$', "$$");
    let texts = |of: &BTreeMap<String, String>| -> BTreeMap<String, String> {
        of.iter().map(|(key, text)| (key.clone(), doubled(&text.replace("$value", "$values.A.Value")))).collect()
    };
    let uid: String = rule.alert.chars().map(|letter| letter.to_ascii_lowercase()).collect();
    let query = json!({"refId": "A", "datasourceUid": "prometheus", "relativeTimeRange": {"from": 600, "to": 0},
        "model": {"refId": "A", "expr": doubled(&rule.expr), "instant": true, "range": false}});
    // Whatever the value is, also 0: that there is one is what counts.
    let is_there = json!({"refId": "B", "datasourceUid": "__expr__",
        "model": {"refId": "B", "type": "math", "expression": "is_number($$A) || is_nan($$A) || is_inf($$A)"}});
    let fires = json!({"refId": "C", "datasourceUid": "__expr__",
        "model": {"refId": "C", "type": "threshold", "expression": "B",
            "conditions": [{"evaluator": {"type": "gt", "params": [0]}}]}});
    json!({"uid": uid, "title": rule.alert, "condition": "C", "data": [query, is_there, fires], "for": rule.pending,
        "noDataState": "OK", "execErrState": "Error", "labels": texts(&rule.labels),
        "annotations": texts(&rule.annotations)})
}
