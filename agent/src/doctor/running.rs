//! What the agent that runs says of itself on `/metrics` and `/readyz`.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// Bytes of an answer that are read.
const ANSWER_LIMIT: u64 = 4 << 20;

/// Why the agent cannot be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum AgentError {
    /// Nobody answers.
    #[error("no answer to GET {path}")]
    Ask {
        /// What was asked for.
        path: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody else does.
    #[error("the answer to GET {path} is not that of an agent: `{line}`")]
    Stranger {
        /// What was asked for.
        path: &'static str,
        /// The answer's first line.
        line: String,
    },
}

/// The metrics of an agent.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Agent {
    pub(super) version: Option<String>,
    /// Whether it works, in words.
    pub(super) ready: String,
    samples: Vec<Sample>,
}

/// A line of `/metrics`.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Sample {
    name: String,
    cause: Option<String>,
    value: u64,
}

impl Agent {
    /// Asks the agent at `address`.
    pub(super) fn ask(address: SocketAddr, patience: Duration) -> Result<Self, AgentError> {
        let (head, metrics) = get(address, "/metrics", patience)?;
        let agent = Self::read(&metrics);
        if !head.contains(" 200 ") || agent.version.is_none() {
            return Err(AgentError::Stranger {
                path: "/metrics",
                line: head.lines().next().unwrap_or_default().to_owned(),
            });
        }
        let (head, why) = get(address, "/readyz", patience)?;
        let ready = if head.contains(" 200 ") { "ready".to_owned() } else { format!("not ready: {}", why.trim()) };
        Ok(Self { ready, ..agent })
    }

    /// Reads the text of `/metrics`; lines that are no whole numbers are left out.
    pub(super) fn read(text: &str) -> Self {
        let mut agent = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            if name == "coati_build_info" && label(labels, "component") == Some("agent") {
                agent.version = label(labels, "version").map(str::to_owned);
            }
            if let Ok(value) = value.parse() {
                let cause = label(labels, "cause").map(str::to_owned);
                agent.samples.push(Sample { name: name.to_owned(), cause, value });
            }
        }
        agent
    }

    /// The sum of a metric's series.
    pub(super) fn sum(&self, name: &str) -> u64 {
        self.samples.iter().filter(|sample| sample.name == name).map(|sample| sample.value).sum()
    }

    /// The causes of a metric that are not 0, largest first.
    pub(super) fn by_cause(&self, name: &str) -> Vec<(&str, u64)> {
        let wanted = self.samples.iter().filter(|sample| sample.name == name && sample.value > 0);
        let mut found: Vec<_> = wanted.filter_map(|sample| Some((sample.cause.as_deref()?, sample.value))).collect();
        found.sort_by_key(|(cause, count)| (std::cmp::Reverse(*count), *cause));
        found
    }
}

/// The value of a label; those of the agent need no escapes.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let parts = labels.trim_end_matches('}').split(',');
    parts
        .filter_map(|part| part.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.trim_matches('"'))
}

/// Head and body of an answer.
fn get(address: SocketAddr, path: &'static str, patience: Duration) -> Result<(String, String), AgentError> {
    let answer = answer(address, path, patience).map_err(|source| AgentError::Ask { path, source })?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok((head.to_owned(), body.to_owned()))
}

fn answer(address: SocketAddr, path: &str, patience: Duration) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    // By HTTP/1.0 the answer is not in chunks and ends with the connection.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_LIMIT).read_to_end(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use rstest::rstest;

    use super::*;
    use crate::telemetry::Telemetry;

    const PATIENCE: Duration = Duration::from_secs(5);

    /// The text that an agent with these losses gives.
    fn text() -> String {
        let telemetry = Telemetry::default();
        telemetry.losses("ring_full_data").inc_by(7);
        telemetry.losses("evicted").inc_by(9);
        telemetry.anomalies("http2_gap").inc_by(2);
        telemetry.exchanges.inc_by(1000);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &telemetry.registry()).unwrap();
        text
    }

    #[test]
    fn metrics_are_read_as_they_are_written() {
        let agent = Agent::read(&text());
        assert_eq!(agent.version.as_deref(), Some(env!("CARGO_PKG_VERSION")));
        assert_eq!(agent.sum("coati_agent_exchanges_total"), 1000);
        assert_eq!(agent.by_cause("coati_agent_losses_total"), [("evicted", 9), ("ring_full_data", 7)]);
        assert_eq!(agent.by_cause("coati_agent_anomalies_total"), [("http2_gap", 2)]);
        assert_eq!(agent.by_cause("coati_agent_spans_dropped_total"), []);
    }

    /// Answers `count` connections with `answer`.
    fn serve(answers: Vec<String>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for answer in answers {
                let mut stream = listener.accept().unwrap().0;
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    #[rstest]
    #[case::ready("HTTP/1.1 200 OK\r\n\r\nok", "ready")]
    #[case::not_yet("HTTP/1.1 503 No\r\n\r\nthe exporter does not run\n", "not ready: the exporter does not run")]
    fn an_agent_is_asked(#[case] readiness: &str, #[case] expected: &str) {
        let address = serve(vec![format!("HTTP/1.1 200 OK\r\n\r\n{}", text()), readiness.to_owned()]);
        let agent = Agent::ask(address, PATIENCE).unwrap();
        assert_eq!((agent.ready.as_str(), agent.sum("coati_agent_exchanges_total")), (expected, 1000));
    }

    #[rstest]
    #[case::another_server(
        "HTTP/1.1 404 Not Found\r\n\r\n",
        "the answer to GET /metrics is not that of an agent: `HTTP/1.1 404 Not Found`"
    )]
    #[case::other_metrics(
        "HTTP/1.1 200 OK\r\n\r\nup 1\n",
        "the answer to GET /metrics is not that of an agent: `HTTP/1.1 200 OK`"
    )]
    #[case::no_http("", "the answer to GET /metrics is not that of an agent: ``")]
    fn others_are_no_agent(#[case] answer: &str, #[case] expected: &str) {
        let address = serve(vec![answer.to_owned()]);
        assert_eq!(Agent::ask(address, PATIENCE).unwrap_err().to_string(), expected);
    }

    #[test]
    fn nobody_is_no_agent() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert_eq!(Agent::ask(address, PATIENCE).unwrap_err().to_string(), "no answer to GET /metrics");
    }
}
