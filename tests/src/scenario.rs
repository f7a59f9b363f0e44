//! Scenarios: data, requests, and the answers that are expected, in one YAML file that any server with Tempo's API can be
//! asked (`tests/scenarios`; the format is in its README).

mod data;
mod expect;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use self::data::Trace;
use self::expect::differences;
use crate::http;
use crate::tools::workspace;

/// One file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it is about.
    pub about: String,
    traces: Vec<Trace>,
    cases: Vec<Case>,
}

/// One request, and its answer.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    /// Path, without parameters.
    get: String,
    #[serde(default)]
    parameters: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    accept: Option<String>,
    #[serde(default = "ok")]
    status: u16,
    /// Of a JSON body.
    #[serde(default)]
    json: Option<Value>,
    /// What a text body contains.
    #[serde(default)]
    contains: Option<String>,
    /// Why Tempo answers differently, where Coati does so on purpose; not asked of Tempo.
    #[serde(default)]
    tempo_differs: Option<String>,
}

fn ok() -> u16 {
    200
}

/// A server to ask.
#[derive(Clone, Debug)]
pub struct Server {
    /// Tempo's API, as `http://127.0.0.1:3200`.
    pub api: String,
    /// OTLP over HTTP, as `http://127.0.0.1:4318`.
    pub otlp: String,
    /// Whether it is Tempo: then cases that it answers differently on purpose are left out.
    pub is_tempo: bool,
    /// How long an answer may take to become the expected one.
    pub patience: Duration,
}

/// What became of the cases.
#[derive(Debug, Default)]
pub struct Report {
    /// Cases whose answer is the expected one.
    pub passed: usize,
    /// Cases that were not asked, and why.
    pub left_out: Vec<String>,
    /// What is wrong with the others.
    pub failed: Vec<String>,
}

/// All files of `tests/scenarios`.
pub fn files() -> Result<Vec<PathBuf>> {
    let folder = workspace().join("tests/scenarios");
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            files.push(path);
        }
    }
    files.sort();
    ensure!(!files.is_empty(), "{} has no scenarios", folder.display());
    Ok(files)
}

/// Reads a file.
pub fn read(path: &Path) -> Result<Scenario> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_saphyr::from_str(&text).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))
}

/// A scenario whose data was sent.
#[derive(Debug)]
pub struct Sent<'s> {
    scenario: &'s Scenario,
    run: Run,
}

/// What tells the data of one run from that of others on the same server.
#[derive(Clone, Debug)]
struct Run {
    name: String,
    /// When its data begins, seconds since the epoch; the begin of a minute.
    begin: u64,
}

impl Run {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Tempo answers no question about the last half minute.
        let begin = (now.as_secs().saturating_sub(150)) / 60 * 60;
        Self { name: format!("{:012x}", now.as_nanos() & 0xffff_ffff_ffff), begin }
    }

    /// The id of a trace, of which the file has the last digits.
    fn trace_id(&self, digits: &str) -> String {
        format!("5ce7a210{}{digits:0>12}", self.name)
    }

    /// Replaces `$run`, `$start` and `$end` (seconds), `$start_ns`, `$at_ms(12)` (milliseconds after the begin, as those since
    /// the epoch) and `$trace(1)`.
    fn fill(&self, text: &str) -> String {
        let (start, end) = (self.begin, self.begin + 60);
        let filled = text.replace("$start_ns", &format!("{start}000000000"));
        let filled =
            filled.replace("$run", &self.name).replace("$start", &start.to_string()).replace("$end", &end.to_string());
        let trace_id = |digits: &str| self.trace_id(digits);
        let at_ms = |ms: &str| (self.begin * 1000 + ms.parse::<u64>().unwrap_or_default()).to_string();
        replace_calls(&replace_calls(&filled, "$trace(", trace_id), "$at_ms(", at_ms)
    }

    fn fill_json(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.fill(text)),
            Value::Array(list) => list.iter().map(|value| self.fill_json(value)).collect(),
            Value::Object(map) => map
                .iter()
                .map(|(key, value)| (self.fill(key), self.fill_json(value)))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            other => other.clone(),
        }
    }
}

/// Puts `value("1")` in the place of each `name1)`; `name` ends with the bracket.
fn replace_calls(text: &str, name: &str, value: impl Fn(&str) -> String) -> String {
    let mut replaced = text.to_owned();
    while let Some((before, rest)) = replaced.split_once(name) {
        let Some((argument, after)) = rest.split_once(')') else { break };
        replaced = format!("{before}{}{after}", value(argument));
    }
    replaced
}

impl Scenario {
    /// Sends its data.
    pub fn send(&self, server: &Server) -> Result<Sent<'_>> {
        let run = Run::new();
        for trace in &self.traces {
            let body = trace.as_otlp(&run)?.to_string();
            let url = format!("{}/v1/traces", server.otlp);
            let answer = http::post(&url, "application/json", body.as_bytes())?;
            ensure!(answer.status == 200, "{url}: status {}: {}", answer.status, answer.text());
        }
        Ok(Sent { scenario: self, run })
    }
}

impl Sent<'_> {
    /// Asks all cases.
    pub fn ask(&self, server: &Server) -> Result<Report> {
        let mut report = Report::default();
        for case in &self.scenario.cases {
            match &case.tempo_differs {
                Some(reason) if server.is_tempo => report.left_out.push(format!("{}: {reason}", case.name)),
                _ => match self.ask_one(case, server)? {
                    None => report.passed += 1,
                    Some(wrong) => report.failed.push(format!("{}: {wrong}", case.name)),
                },
            }
        }
        Ok(report)
    }

    /// What is wrong with the answer; nothing, if it is right before patience ends.
    fn ask_one(&self, case: &Case, server: &Server) -> Result<Option<String>> {
        let parameters = case.parameters.iter().map(|(name, value)| {
            let name = http::encode(name);
            format!("{name}={}", http::encode(&self.run.fill(value)))
        });
        let parameters: Vec<_> = parameters.collect();
        let url = format!("{}{}?{}", server.api, self.run.fill(&case.get), parameters.join("&"));
        let headers: Vec<_> = case.accept.iter().map(|accept| ("accept", accept.as_str())).collect();
        let begin = Instant::now();
        loop {
            let answer = http::get_with(&url, &headers)?;
            let wrong = self.judge(case, &answer);
            if wrong.is_empty() {
                return Ok(None);
            }
            if begin.elapsed() > server.patience {
                return Ok(Some(format!("{url}\n  {}\n  answer: {}", wrong.join("\n  "), answer.text())));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn judge(&self, case: &Case, answer: &http::Answer) -> Vec<String> {
        let mut wrong = Vec::new();
        if answer.status != case.status {
            wrong.push(format!("status {}, expected {}", answer.status, case.status));
        }
        if let Some(part) = &case.contains
            && !answer.text().contains(&self.run.fill(part))
        {
            wrong.push(format!("does not contain {:?}", self.run.fill(part)));
        }
        if let Some(expected) = &case.json {
            match answer.json() {
                Ok(found) => differences("", &self.run.fill_json(expected), &found, &mut wrong),
                Err(error) => wrong.push(error.to_string()),
            }
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_filled_in() {
        let run = Run { name: "abc".to_owned(), begin: 1_200 };
        let filled = run.fill("$run $start $end $start_ns $at_ms(500) $trace(1) $trace(ff");
        assert_eq!(filled, "abc 1200 1260 1200000000000 1200500 5ce7a210abc000000000001 $trace(ff");
    }

    #[test]
    fn every_file_reads_and_has_cases() {
        for file in files().unwrap() {
            let scenario = read(&file).unwrap();
            assert!(!scenario.cases.is_empty(), "{}", file.display());
            let mut names: Vec<_> = scenario.cases.iter().map(|case| &case.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), scenario.cases.len(), "{}: a name comes twice", file.display());
            for case in &scenario.cases {
                let expects = case.json.is_some() || case.contains.is_some() || case.status != 200;
                assert!(expects, "{}: {} expects nothing", file.display(), case.name);
            }
        }
    }
}
