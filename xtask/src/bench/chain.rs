//! How many requests through six services on two nodes become one trace each, with the right parent everywhere.
//!
//! Each request asks for a number of its own, which every service passes on in its path: a span below one with another number is
//! linked wrongly.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use coati_tests::agent::Agent;
use coati_tests::backend::Backend;
use coati_tests::http;
use coati_tests::nodes::{Node, Nodes};
use coati_tests::sample::{Sample, Server};
use coati_tests::seen::{Seen, spans_of};
use coati_tests::tools::target;

use crate::table::columns;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Requests, each with a number of its own.
    #[arg(long, default_value_t = 10_000)]
    requests: u32,
    /// Requests that are under way at once.
    #[arg(long, default_value_t = 1)]
    concurrency: u32,
    /// Folder of `coati-agent` and `coati-backend`, instead of a release build of this tree.
    #[arg(long)]
    pub(crate) binaries: Option<PathBuf>,
}

/// Requests that are looked for with one query: a search finds 10,000 traces at most.
const LOOKED_AT: u32 = 500;
/// Server and client spans of each service; the last one asks nobody, and nobody watches the client.
const SPANS: usize = 2 * Server::CHAIN.len() - 1;
/// Requests before the others, for each that is under way at once: some programs are looked into when they are first seen to do
/// several things at once.
const WARM_UP: u32 = 4;
/// How long that may take.
const LOOKS_WITHIN: Duration = Duration::from_secs(3);
/// How long the last spans may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// What became of the calls of a service, and of its requests.
#[derive(Debug, Default)]
struct Links {
    /// Requests that it has served, and those that are below the right call.
    served: u32,
    called: u32,
    /// Calls that it has made, and those that are below the request which they were made for.
    calls: u32,
    linked: u32,
    /// Spans below one of another request.
    wrong: u32,
}

pub(crate) fn run(options: &Options, binaries: &Path) -> Result<()> {
    let folder = target().join("bench/chain");
    let _gone_is_fine = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let nodes = Nodes::new(&Server::CHAIN.map(Server::port_across))?;
    // Nothing leaves memory before it was looked at.
    let room = ["--cut-idle", "60m", "--cut-max-age", "60m", "--max-live-bytes", "1GiB"];
    let backend = Backend::start_from(binaries, &folder, &room)?;
    let sample = Sample::start_across(&folder.join("sample"), &nodes, &Server::CHAIN)?;
    let mut agents = Vec::new();
    for (name, programs) in [("a", "{nginx,node,chain}"), ("b", "{python3*,stock}")] {
        let folder = folder.join(name);
        fs::create_dir_all(&folder)?;
        let file = folder.join("agent.yaml");
        fs::write(&file, format!("discovery: {{include: [{{exe_path: \"{programs}\"}}]}}\n"))?;
        let endpoint = format!("http://{}", backend.grpc);
        agents.push(Agent::start_from(binaries, &folder, &endpoint, &["--config", &file.to_string_lossy()])?);
    }
    ask(options.requests..options.requests + WARM_UP * options.concurrency, options, &nodes, &sample)?;
    thread::sleep(LOOKS_WITHIN);
    ask(0..options.requests, options, &nodes, &sample)?;
    let all = options.requests + WARM_UP * options.concurrency;
    let at_the_end = format!("{{ kind = server && resource.service.name = \"{}\" }}", Server::Go.service_name());
    backend.wait_for_count(&at_the_end, u64::from(all), PATIENCE)?;
    for agent in &mut agents {
        let lost = agent.metric("coati_agent_losses_total", &[])?;
        agent.stop()?;
        println!("records lost by an agent: {lost}");
    }
    report(options, &backend)
}

/// Sends requests with these numbers, from outside of both nodes.
fn ask(numbers: Range<u32>, options: &Options, nodes: &Nodes, sample: &Sample) -> Result<()> {
    let (url, next) = (sample.url(Server::Nginx), AtomicU32::new(numbers.start));
    let one_after_the_other = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= numbers.end {
                return Ok(());
            }
            let answer = http::get(&format!("{url}/orders/{number}"))?;
            ensure!(answer.status == 200, "request {number}: status {}: {}", answer.status, answer.text());
        }
    };
    nodes.on(Node::Outside, || {
        thread::scope(|scope| {
            let askers: Vec<_> = (0..options.concurrency).map(|_| scope.spawn(one_after_the_other)).collect();
            askers.into_iter().try_for_each(|asker| asker.join().map_err(|_| anyhow!("a thread panicked"))?)
        })
    })?
}

fn report(options: &Options, backend: &Backend) -> Result<()> {
    let mut links: BTreeMap<&str, Links> = BTreeMap::new();
    let (mut whole, mut looked_at) = (0, HashSet::new());
    for first in (0..options.requests).step_by(LOOKED_AT as usize) {
        let numbers: Vec<_> = (first..options.requests.min(first + LOOKED_AT)).map(|it| it.to_string()).collect();
        let query = format!("{{ span.url.path =~ \"/(orders|prices|stock)/({})\" }}", numbers.join("|"));
        let mut traces: HashMap<String, HashMap<String, Seen>> = HashMap::new();
        for span in spans_of(backend, &query)? {
            traces.entry(span.trace_id.clone()).or_default().insert(span.span_id.clone(), span);
        }
        for (trace, spans) in traces {
            // One that has several requests is found with each.
            if !looked_at.insert(trace) {
                continue;
            }
            let mut right = 0;
            for span in spans.values() {
                let parent = spans.get(&span.parent_span_id);
                right += usize::from(count(span, parent, &mut links)?);
            }
            // The client of the first is outside.
            whole += u32::from(spans.len() == SPANS && right == SPANS - 1);
        }
    }
    let share = |part: u32, of: u32| {
        if of == 0 { "-".to_owned() } else { format!("{:.2} %", 100.0 * f64::from(part) / f64::from(of)) }
    };
    let row = |server: Server| {
        let service = server.service_name();
        let none = Links::default();
        let Links { served, called, calls, linked, wrong } = links.get(service).unwrap_or(&none);
        // Nobody watches who calls the first one.
        let called = if server == Server::Nginx { "-".to_owned() } else { share(*called, *served) };
        let linked = share(*linked, *calls);
        vec![service.to_owned(), served.to_string(), called, calls.to_string(), linked, wrong.to_string()]
    };
    println!("{whole} of {} requests are one trace with the right parent everywhere", options.requests);
    let header = ["service", "requests", "below their call", "calls", "below their request", "wrong"];
    print!("{}", columns(&header, &Server::CHAIN.map(row)));
    Ok(())
}

/// Counts a span; whether it is below the right one.
fn count(span: &Seen, parent: Option<&Seen>, links: &mut BTreeMap<&str, Links>) -> Result<bool> {
    let known = Server::CHAIN.into_iter().map(Server::service_name).find(|name| *name == span.service());
    let of = links.entry(known.with_context(|| format!("of no service: {span:?}"))?).or_default();
    let number = |span: &Seen| span.path().rsplit('/').next().unwrap_or_default().to_owned();
    let is_server = span.kind == "SPAN_KIND_SERVER";
    let is_right = parent.is_some_and(|parent| {
        let is_place_right = (parent.service() == span.service()) != is_server && parent.kind != span.kind;
        is_place_right && number(parent) == number(span)
    });
    of.wrong += u32::from(parent.is_some() && !is_right);
    if is_server {
        of.served += 1;
        of.called += u32::from(is_right);
    } else {
        of.calls += 1;
        of.linked += u32::from(is_right);
    }
    Ok(is_right)
}
