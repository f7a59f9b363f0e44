//! An agent of a test.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::http;
use crate::process::{Running, free_port};
use crate::tools::{binaries, binary};

/// How long it may take until its programs are attached.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// A running `coati-agent`.
#[derive(Debug)]
pub struct Agent {
    /// `/metrics`, `/healthz`, `/readyz`.
    pub listen: SocketAddr,
    /// The process.
    pub process: Running,
}

impl Agent {
    /// Starts an agent that exports to `endpoint`, and waits until it captures.
    pub fn start(folder: &Path, endpoint: &str, arguments: &[&str]) -> Result<Self> {
        Self::start_from(&binaries(), folder, endpoint, arguments)
    }

    /// The same, with environment variables of its own.
    pub fn start_with(folder: &Path, endpoint: &str, arguments: &[&str], variables: &[(&str, String)]) -> Result<Self> {
        Self::launch(&binaries(), folder, endpoint, arguments, variables)
    }

    /// The same, with the binary of another build.
    pub fn start_from(binaries: &Path, folder: &Path, endpoint: &str, arguments: &[&str]) -> Result<Self> {
        Self::launch(binaries, folder, endpoint, arguments, &[])
    }

    /// The same, with both.
    pub fn start_from_with(
        binaries: &Path,
        folder: &Path,
        endpoint: &str,
        arguments: &[&str],
        variables: &[(&str, String)],
    ) -> Result<Self> {
        Self::launch(binaries, folder, endpoint, arguments, variables)
    }

    fn launch(
        binaries: &Path,
        folder: &Path,
        endpoint: &str,
        arguments: &[&str],
        variables: &[(&str, String)],
    ) -> Result<Self> {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let mut command = Command::new(binary(binaries, "coati-agent")?);
        command.args(["--otlp-endpoint", endpoint, "--listen", &listen.to_string()]).args(arguments);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let mut process = Running::start("coati-agent", folder, &mut command)?;
        let url = format!("http://{listen}/readyz");
        process.wait_for("ready agent", READY_WITHIN, |_| {
            http::get(&url).is_ok_and(|answer| answer.status == 200).then_some(())
        })?;
        Ok(Self { listen, process })
    }

    /// SIGTERM; the status with which it ended.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.stop()
    }

    /// Its metrics page.
    pub fn metrics(&self) -> Result<String> {
        Ok(http::get(&format!("http://{}/metrics", self.listen)).context("the agent's metrics")?.text())
    }

    /// Sum of the samples of a metric whose labels contain every one of `labels` (as they stand on the page).
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        Ok(sum(&self.metrics()?, name, labels))
    }
}

/// Sum of the samples named `name` on a metrics page whose labels contain every one of `labels`.
pub fn sum(page: &str, name: &str, labels: &[&str]) -> f64 {
    page.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (series, value) = line.split_once(' ').filter(|(series, _)| !series.contains('{')).or_else(|| {
                let end = line.rfind('}')? + 1;
                Some((line.get(..end)?, line.get(end..)?.trim_start()))
            })?;
            let (metric, labelled) = series.split_once('{').unwrap_or((series, ""));
            (metric == name && labels.iter().all(|label| labelled.contains(label)))
                .then(|| value.split(' ').next()?.parse::<f64>().ok())
                .flatten()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn sums_samples_by_name_and_label() {
        let page = "# TYPE a counter\na_total{cause=\"x\"} 2\na_total{cause=\"y\"} 3 1.5\nab_total 7\nb 4\n# EOF\n";
        assert!((sum(page, "a_total", &[]) - 5.0).abs() < 1e-9);
        assert!((sum(page, "a_total", &["cause=\"y\""]) - 3.0).abs() < 1e-9);
        assert!((sum(page, "b", &[]) - 4.0).abs() < 1e-9);
        assert!(sum(page, "c", &[]).abs() < 1e-9);
    }
}
