//! Guarantee: the span of a request whose process calls CUDA says what was called between its start and its end.
//!
//! The library is not CUDA's, but has its symbols (`tests/fake-cuda`); every figure is checked against what was called.

use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use coati_fake_cuda::TOO_MUCH;
use coati_tests::agent::{Agent, sum};
use coati_tests::backend::Backend;
use coati_tests::cuda::{CudaServer, simulated};
use coati_tests::seen::{Seen, spans_of};
use coati_tests::{http, process};
use serde_json::{Value, json};

/// Between two requests: longer than a slot of the kernel's counts.
const PAUSE: Duration = Duration::from_millis(30);

/// What a request asks to be called, and what its span is to say.
struct Asked {
    calls: Value,
    expected: &'static [(&'static str, u64)],
    /// Milliseconds in calls that wait, and calls that wait.
    waits: (u64, u64),
}

fn call(name: &str, args: &[usize], count: u64) -> Value {
    json!({"name": name, "args": args, "count": count})
}

fn asked() -> Vec<Asked> {
    let launch = [0; 11];
    let pointer = |name: &str, args: &[usize], count| json!({"name": name, "args": args, "count": count, "through_pointer": true});
    vec![
        Asked {
            calls: json!([call("cuLaunchKernel", &launch, 1000), call("cuMemcpyHtoD_v2", &[0, 0, 4096], 10)]),
            expected: &[("launches", 1000), ("copied.host_to_device", 40_960)],
            waits: (0, 0),
        },
        // Short: done long before the agent looks.
        Asked { calls: json!([call("cuLaunchKernelEx", &[0; 4], 3)]), expected: &[("launches", 3)], waits: (0, 0) },
        // Functions for threads with streams of their own, and pointers that the driver gave.
        Asked {
            calls: json!([
                call("cuLaunchKernel_ptsz", &launch, 5),
                call("cuMemcpyDtoHAsync_v2_ptsz", &[0, 0, 77, 0], 2),
                pointer("cuLaunchKernel", &launch, 20),
                pointer("cuMemcpyHtoDAsync", &[0, 0, 1000, 0], 4),
                call("cuStreamSynchronize_ptsz", &[20], 2),
            ]),
            expected: &[("launches", 25), ("copied.device_to_host", 154), ("copied.host_to_device", 4000)],
            waits: (40, 2),
        },
        Asked {
            calls: json!([
                call("cuMemAlloc_v2", &[0, 1 << 20], 3),
                call("cuMemAlloc_v2", &[0, TOO_MUCH], 1),
                call("cuMemAllocPitch_v2", &[0, 0, 512, 16, 4], 1),
                call("cuMemCreate", &[0, 2 << 20, 0, 0], 1),
                call("cuMemFree_v2", &[0], 2),
                call("cuGraphLaunch", &[0, 0], 6),
                call("cuMemcpyDtoDAsync_v2", &[0, 0, 300, 0], 1),
                call("cuMemcpyPeerAsync", &[0, 0, 0, 0, 40, 0], 1),
                call("cuMemcpyAsync", &[0, 0, 11, 0], 2),
                call("cuMemsetD8_v2", &[0, 0, 99], 5),
                call("cuCtxSynchronize", &[], 1),
                call("cuEventSynchronize", &[50], 1),
            ]),
            expected: &[
                ("launches", 0),
                ("graph_launches", 6),
                ("allocations", 5),
                ("allocated", (5 << 20) + 512 * 16),
                ("frees", 2),
                ("copied.device_to_device", 340),
                ("copied.unspecified", 22),
            ],
            waits: (51, 2),
        },
        Asked { calls: json!([]), expected: &[("launches", 0)], waits: (0, 0) },
    ]
}

#[test]
fn a_span_says_what_was_called_of_cuda() -> Result<()> {
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &[])?;
    let built = std::env::current_exe()?.with_file_name("libcoati_fake_cuda.so");
    let library = simulated(folder.path(), &built)?;
    let server = CudaServer::start(folder.path(), &library, true)?;
    let mut agent = Agent::start(folder.path(), &format!("http://{}", backend.grpc), &[])?;
    // Counted a moment after it is done.
    let begin = Instant::now();
    while agent.metric("coati_agent_cuda_files", &[])? < 0.5 {
        ensure!(begin.elapsed() < Duration::from_secs(5), "no probes: {}", agent.metrics()?);
        thread::sleep(Duration::from_millis(50));
    }

    let all = asked();
    let ask = |asked: &Asked| {
        let body = json!({"calls": asked.calls}).to_string();
        http::post(&server.url(), "application/json", body.as_bytes())
    };
    for asked in &all {
        ask(asked)?;
        thread::sleep(PAUSE);
    }
    // What a call costs with its probe; not checked, as it is another on every machine.
    let begin = Instant::now();
    let many = json!({"calls": [call("cuLaunchKernel", &[0; 11], 100_000)]}).to_string();
    http::post(&server.url(), "application/json", many.as_bytes())?;
    println!("100,000 launches from Python took {:?}", begin.elapsed());
    let count = all.len() as u64 + 1;
    let query = "{ kind = server && span.coati.gpu.cuda.launches != nil }";
    backend.wait_for_count(query, 2 * count, Duration::from_secs(15))?;
    let page = agent.metrics()?;
    ensure!(agent.stop()?.success(), "the agent did not end well:\n{}", agent.process.output());

    let mut spans = spans_of(&backend, query)?;
    spans.sort_by_key(|span| span.start_ns);
    let worker = server.backend.context("a backend")?.port().to_string();
    for (kind, port) in
        [("SPAN_KIND_SERVER", Some(worker.as_str())), ("SPAN_KIND_CLIENT", None), ("SPAN_KIND_SERVER", None)]
    {
        let is_one = |span: &&Seen| {
            let is_worker = span.attribute("server.port") == worker && span.kind == "SPAN_KIND_SERVER";
            // The test's own calls say it too.
            let is_other = span.pid() != Some(std::process::id());
            is_other
                && span.kind == kind
                && is_worker == port.is_some()
                && !span.attribute("coati.gpu.cuda.launches").is_empty()
        };
        let of_kind: Vec<&Seen> = spans.iter().filter(is_one).collect();
        ensure!(of_kind.len() as u64 == count, "{} spans of {kind}: {spans:#?}", of_kind.len());
        for (asked, span) in all.iter().zip(of_kind) {
            check(asked, span).with_context(|| format!("{kind} {port:?}: {} {:#?}", asked.calls, span.attributes))?;
        }
    }
    let launched: u64 = 100_000 + all.iter().map(|it| it.expected.first().map_or(0, |(_, count)| *count)).sum::<u64>();
    let counted = sum(&page, "coati_gpu_cuda_calls_total", &["call=\"launch\""]);
    ensure!((counted - launched as f64).abs() < 0.1, "{counted} launches, not {launched}:\n{page}");
    let waited = sum(&page, "coati_gpu_cuda_synchronization_seconds_total", &[]);
    ensure!((0.091..0.5).contains(&waited), "{waited} s in calls that wait");
    Ok(())
}

fn check(asked: &Asked, span: &Seen) -> Result<()> {
    const PREFIX: &str = "coati.gpu.cuda.";
    let (waited_ms, waits) = asked.waits;
    let said = span.attributes.iter().filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value)));
    for (key, value) in said {
        let expected = match key {
            "synchronization.duration" => {
                let seconds: f64 = value.parse()?;
                let least = waited_ms as f64 / 1e3;
                ensure!((least..least + 0.1).contains(&seconds), "{seconds} s, not {waited_ms} ms");
                continue;
            }
            "synchronizations" => waits,
            key => asked.expected.iter().find(|(name, _)| *name == key).with_context(|| format!("{key} is said"))?.1,
        };
        ensure!(*value == expected.to_string(), "{key} is {value}, not {expected}");
    }
    for (name, _) in asked.expected {
        ensure!(!span.attribute(&format!("{PREFIX}{name}")).is_empty(), "{name} is not said");
    }
    ensure!((waits > 0) == span.attributes.contains_key(&format!("{PREFIX}synchronizations")), "waits");
    Ok(())
}

/// Switched off, nothing is probed and nothing said.
#[test]
fn it_can_be_switched_off() -> Result<()> {
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &[])?;
    let built = std::env::current_exe()?.with_file_name("libcoati_fake_cuda.so");
    let server = CudaServer::start(folder.path(), &simulated(folder.path(), &built)?, false)?;
    let config = folder.path().join("agent.yaml");
    fs::write(&config, "cuda: off\n")?;
    let config = config.to_string_lossy().into_owned();
    let mut agent = Agent::start(folder.path(), &format!("http://{}", backend.grpc), &["--config", &config])?;
    let body = json!({"calls": [call("cuLaunchKernel", &[0; 11], 10)]}).to_string();
    http::post(&server.url(), "application/json", body.as_bytes())?;
    let query = format!("{{ kind = server && resource.process.pid = {} }}", server.process.id());
    backend.wait_for_count(&query, 1, Duration::from_secs(10))?;
    ensure!(agent.metric("coati_agent_cuda_files", &[])? < 0.1, "{}", agent.metrics()?);
    ensure!(agent.stop()?.success(), "the agent did not end well:\n{}", agent.process.output());
    let spans = spans_of(&backend, &query)?;
    ensure!(spans.iter().all(|span| !format!("{span:?}").contains("cuda.launches")), "{spans:?}");
    Ok(())
}
