//! `cargo xtask demo`: the main job on this machine. Backend, agent, a sample system of real servers with traffic, and
//! what Coati sees of it, read back over the same API that Grafana uses.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use coati_tests::agent::Agent;
use coati_tests::backend::Backend;
use coati_tests::load::{Plan, run as load};
use coati_tests::process::free_port;
use coati_tests::sample::{Sample, Server};
use coati_tests::tools::{binaries, target};

use crate::commands::{cargo, execute};
use crate::{ebpf, setup};

mod inference;
mod report;

/// How often the table is printed.
const EVERY: Duration = Duration::from_secs(10);

/// Requests per second through the sample system, one at a time: a proxy that has several requests open at once leaves
/// open which of them it asks its upstream for, and then the agent makes no link.
const RATE: f64 = 10.0;

/// Paths of the sample system; the one through every service comes often.
const PATHS: &[&str] = &[
    "/orders/{}",
    "/items/{}",
    "/hello.txt",
    "/orders/{}",
    "/stream",
    "/items/{}",
    "/big/1m.bin",
    "/broken",
    "/orders/{}",
    "/slow",
];

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How long to run, such as `30s` or `5m`; without it, until Ctrl-C.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    length: Option<Duration>,
    /// Has a simulated GPU, whose values are in the spans of the inference server.
    #[arg(long)]
    fake_gpu: bool,
}

/// Runs the demo; fails if no span arrived.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::run_for(setup::Need::Demo)?;
    ebpf::build()?;
    println!("building the agent and the backend …");
    execute(cargo().args(["build", "--quiet", "-p", "coati-agent", "-p", "coati-backend", "--bins"]))?;

    let folder = target().join("demo");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let addresses = [3200, 4317, 4318].map(usual_or_free);
    let [api, grpc, http] = addresses;
    let backend = Backend::start_at(&binaries(), &folder, &[], [api?, grpc?, http?])?;
    let models = inference::Models::start(&folder, options.fake_gpu)?;
    let arguments = models.agent_arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let agent = Agent::start(&folder, &format!("http://{}", backend.grpc), &arguments)?;
    // Started after the agent, like any service that is deployed later; what ran before is seen just as well.
    let sample = Sample::start(&folder.join("sample"))?;
    println!("backend  http://{}   (Grafana: a Tempo data source with this URL)", backend.api);
    println!("agent    http://{}/metrics", agent.listen);
    println!("sample   {} → FastAPI → Node → Go, {RATE} requests/s", sample.url(Server::Nginx));
    println!("models   {}/api/chat   (answers like ollama; there is no model behind it)", models.url());
    if options.fake_gpu {
        println!(
            "GPU      SIMULATED: its name, power and temperature come from a timeline, not from a device; CUDA does nothing"
        );
    }
    println!("logs     {}", folder.display());

    let stop = Arc::new(AtomicBool::new(false));
    let traffic = thread::spawn({
        let (address, stop) = (sample.address(Server::Nginx), Arc::clone(&stop));
        move || traffic(address, &stop)
    });
    let questions = thread::spawn({
        let (url, stop) = (models.url(), Arc::clone(&stop));
        move || inference::traffic(&url, &stop)
    });
    let begin = Instant::now();
    while options.length.is_none_or(|length| begin.elapsed() < length) {
        let left = options.length.map_or(EVERY, |length| EVERY.min(length.saturating_sub(begin.elapsed())));
        thread::sleep(left);
        if options.length.is_none_or(|length| begin.elapsed() < length) {
            show(&backend, &agent)?;
        }
    }
    stop.store(true, Ordering::Relaxed);
    traffic.join().map_err(|_| anyhow::anyhow!("the traffic's thread panicked"))??;
    questions.join().map_err(|_| anyhow::anyhow!("the questions' thread panicked"))??;
    // What was captured last is on its way for a moment: batch, export, fsync.
    thread::sleep(Duration::from_secs(1));
    if !show(&backend, &agent)? {
        bail!("no span arrived; see the logs in {}", folder.display());
    }
    println!("\nthe end; what was stored is kept: coati-backend --data-dir {}", folder.join("data").display());
    Ok(())
}

/// The table, one whole trace, and lines to ask for more; false if there is nothing to show.
fn show(backend: &Backend, agent: &Agent) -> Result<bool> {
    let found = recent(backend)?;
    let Some(trace) = report::widest(&found) else {
        println!("\nno span yet");
        return Ok(false);
    };
    print!("{}", report::services(&found));
    print!("{}", report::tree(&trace, &backend.get(&format!("/api/v2/traces/{trace}"))?.json()?));
    if let Some(inference) = inference::latest(backend)? {
        print!("{inference}");
    }
    let lost = agent.metric("coati_agent_losses_total", &[])?;
    println!("\nlost by the agent: {lost}; ask for more while it runs:");
    for path in [
        "/api/search?q=%7B%20status%20%3D%20error%20%7D&limit=5".to_owned(),
        "/api/v2/search/tag/resource.service.name/values".to_owned(),
        format!("/api/traces/{trace}"),
    ] {
        println!("  curl -s 'http://{}{path}'", backend.api);
    }
    Ok(true)
}

fn recent(backend: &Backend) -> Result<Vec<report::Seen>> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let window = format!("&limit=5000&spss=100&start={}&end={}", now.saturating_sub(60), now + 60);
    let query = "{ } | select(resource.service.name, name, kind, span.http.response.status_code)";
    Ok(report::seen(&backend.search(query, &window)?))
}

/// Sends requests through the whole sample system until told to stop.
fn traffic(address: SocketAddr, stop: &AtomicBool) -> Result<()> {
    let mut round = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        let paths = PATHS
            .iter()
            .enumerate()
            .map(|(place, path)| path.replace("{}", &(round as usize * 10 + place).to_string()));
        load(&Plan {
            address,
            paths: paths.collect(),
            requests: RATE as usize,
            rate: RATE,
            connections: 1,
            keep_alive: true,
        })?;
    }
    Ok(())
}

/// The port that everybody expects if it is free, else another.
fn usual_or_free(port: u16) -> Result<SocketAddr> {
    let usual = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    Ok(if TcpListener::bind(usual).is_ok() { usual } else { SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)) })
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number: f64 = digits.parse().map_err(|_| format!("`{text}` is not a duration such as 30s, 5m or 1h"))?;
    let unit = match text.get(digits.len()..).unwrap_or_default() {
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("`{other}` is not a unit of time: s, m or h")),
    };
    Duration::try_from_secs_f64(number * unit).map_err(|error| format!("`{text}`: {error}"))
}

#[cfg(test)]
mod tests {
    use super::duration;
    use std::time::Duration;

    #[test]
    fn durations_need_a_number_and_a_unit() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        for wrong in ["", "30", "s", "-1s", "5d", "30 s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
