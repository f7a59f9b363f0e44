//! The demo's inference: a server that answers like ollama, questions to it, and what Coati says of the latest one.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use coati_tests::backend::Backend;
use coati_tests::cuda::{self, CudaServer};
use coati_tests::http;
use coati_tests::inference::{Inference, simulated_gpu};
use coati_tests::tools::target;
use serde_json::{Value, json};

use super::report;
use crate::commands::{cargo, execute};

/// Attributes that are shown of an inference span.
const SHOWN: [&str; 21] = [
    "gen_ai.request.model",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "gen_ai.response.time_to_first_chunk",
    "coati.inference.tokens_per_second",
    "coati.inference.cold_load",
    "hw.name",
    "hw.gpu.utilization",
    "hw.gpu.memory.usage",
    "hw.power",
    "hw.energy",
    "coati.gpu.energy.per_token",
    "hw.temperature",
    "coati.gpu.coverage",
    "coati.gpu.requests",
    "coati.gpu.cuda.launches",
    "coati.gpu.cuda.graph_launches",
    "coati.gpu.cuda.copied.host_to_device",
    "coati.gpu.cuda.copied.device_to_host",
    "coati.gpu.cuda.synchronizations",
    "coati.gpu.cuda.synchronization.duration",
];

/// The name of a GPU that is none.
const SIMULATED: &str = "SIMULATED GPU";

/// The inference server, and the GPU that it seems to have.
pub(super) struct Models {
    server: Inference,
    /// With a simulated GPU: who calls what is in the place of CUDA.
    _runner: Option<CudaServer>,
    config: Option<PathBuf>,
}

impl Models {
    /// Starts the server; with `fake_gpu` also writes the configuration for an agent that reads a simulated GPU.
    pub(super) fn start(folder: &Path, fake_gpu: bool) -> Result<Self> {
        if !fake_gpu {
            return Ok(Self { server: Inference::start(folder)?, _runner: None, config: None });
        }
        execute(cargo().args(["build", "--quiet", "-p", "coati-fake-nvml", "-p", "coati-fake-cuda"]))?;
        let built = |name: &str| target().join("debug").join(name);
        let cuda = cuda::simulated(folder, &built("libcoati_fake_cuda.so"))?;
        let runner = CudaServer::start(folder, &cuda, false)?;
        let server = Inference::start_with(folder, Some(runner.address))?;
        let timeline = timeline(runner.process.id()).to_string();
        let library = simulated_gpu(folder, &built("libcoati_fake_nvml.so"), &timeline)?;
        let config = folder.join("agent.yaml");
        fs::write(&config, format!("gpu:\n  library: {}\n", library.display()))?;
        Ok(Self { server, _runner: Some(runner), config: Some(config) })
    }

    pub(super) fn url(&self) -> String {
        self.server.url()
    }

    pub(super) fn agent_arguments(&self) -> Vec<String> {
        let config = self.config.iter().flat_map(|path| ["--config".to_owned(), path.display().to_string()]);
        config.collect()
    }
}

/// A device that is busy for two seconds of three, for an hour from the start of the clock that it is on: steps repeat, so
/// what it shows does not depend on when the machine was started.
fn timeline(pid: u32) -> Value {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = uptime.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or_default();
    let step = |number: u64| {
        let busy = number % 3 != 2;
        json!({
            "at_ms": number * 1000,
            "utilization": if busy { 85 } else { 4 },
            "memory_used": 6_442_450_944_u64,
            "memory_total": 25_769_803_776_u64,
            "power_mw": if busy { 290_000 } else { 45_000 },
            "temperature": if busy { 68 } else { 55 },
            "throttle": 0,
            "processes": [{"pid": pid, "memory": 5_368_709_120_u64, "sm": if busy { 82 } else { 0 }}],
        })
    };
    json!({
        "origin_ns": (seconds * 1e9) as u64,
        "driver_version": "simulated",
        "devices": [{"uuid": "GPU-simulated", "name": SIMULATED, "steps": (0..3600).map(step).collect::<Vec<_>>()}],
    })
}

/// Asks a question now and then until told to stop; the first one has to wait for the model.
pub(super) fn traffic(url: &str, stop: &AtomicBool) -> Result<()> {
    let mut load_ms = "1500";
    while !stop.load(Ordering::Relaxed) {
        let headers = [
            ("content-type", "application/json"),
            ("x-load-ms", load_ms),
            ("x-prompt-ms", "120"),
            ("x-prompt-tokens", "26"),
            ("x-tokens", "80"),
            ("x-gap-us", "15000"),
        ];
        http::post_with(&format!("{url}/api/chat"), &headers, br#"{"model":"llama3.2","messages":[]}"#)?;
        load_ms = "20";
        thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// The latest inference request: its trace, and what its server's span says.
pub(super) fn latest(backend: &Backend) -> Result<Option<String>> {
    let found = backend.search("{ kind = server && span.gen_ai.request.model != nil }", "&limit=1")?;
    let Some(trace) = found.pointer("/traces/0/traceID").and_then(Value::as_str) else { return Ok(None) };
    let answer = backend.get(&format!("/api/v2/traces/{trace}"))?.json()?;
    let mut page = format!("\nan inference request{}", report::tree(trace, &answer));
    let attributes = report::attributes(&answer, "SPAN_KIND_SERVER", "gen_ai.usage.output_tokens");
    if attributes.iter().any(|(key, value)| key == "hw.name" && value == SIMULATED) {
        page.push_str("   (GPU and CUDA are SIMULATED: a timeline and a library that does nothing)\n");
    }
    for (key, value) in attributes {
        if SHOWN.contains(&key.as_str()) {
            let _ = writeln!(page, "   {key} = {value}");
        }
    }
    Ok(Some(page))
}
