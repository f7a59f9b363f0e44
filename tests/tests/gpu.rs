//! Guarantee: the span of a request whose process uses a GPU says what the GPU did between its start and its end.
//!
//! The GPU plays a timeline (`tests/fake-nvml`); the agent reads it through NVML's own symbols, and every value of every
//! span is computed here from the timeline and from when the span began and ended.

use std::fs;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use coati_fake_nvml::timeline::{Device, Process, Step, Timeline};
use coati_tests::agent::{Agent, sum};
use coati_tests::backend::Backend;
use coati_tests::http;
use coati_tests::inference::{Inference, simulated_gpu};
use coati_tests::process::{self, Running};
use coati_tests::seen::{Seen, spans_of};
use rustix::time::{ClockId, clock_gettime};

/// From a step of the timeline to the sample that has it.
const SAMPLE: f64 = 0.15;

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A step with a process that uses three quarters of what is used, and another one.
fn step(at_ms: u64, level: u32, own: u32, other: u32) -> Step {
    let process = |pid, sm| Process { pid, memory: u64::from(sm) << 20, sm, ..Process::default() };
    Step {
        at_ms,
        utilization: Some(level),
        memory_utilization: Some(level / 2),
        memory_used: Some(u64::from(level) << 25),
        memory_total: Some(24 << 30),
        power_mw: Some(level * 3000),
        temperature: Some(30 + level / 2),
        sm_clock: Some(1500),
        throttle: Some(if level == 80 { 0x40 } else { 0 }),
        processes: Some(vec![process(own, level * 3 / 4), process(other, level / 4)]),
        ..Step::default()
    }
}

#[test]
fn a_span_says_what_the_gpu_did_between_its_start_and_its_end() -> Result<()> {
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &[])?;
    let server = Inference::start(folder.path())?;
    let other = Running::start("sleep", folder.path(), std::process::Command::new("sleep").arg("60"))?;

    let origin_ns = monotonic_ns();
    let levels: Vec<u32> = (0..60).map(|number| [20, 40, 80, 40][number % 4]).collect();
    let steps = (0..).zip(&levels).map(|(number, level)| step(number * 500, *level, server.process.id(), other.id()));
    let device = Device {
        uuid: "GPU-5im".to_owned(),
        name: "Simulated GPU".to_owned(),
        steps: steps.collect(),
        mig: Vec::new(),
    };
    let devices = vec![device];
    let timeline = Timeline { origin_ns, driver_version: "580.1".to_owned(), driver_gone_ms: Vec::new(), devices };
    let built = std::env::current_exe()?.with_file_name("libcoati_fake_nvml.so");
    let library = simulated_gpu(folder.path(), &built, &serde_json::to_string(&timeline)?)?;
    let config = folder.path().join("agent.yaml");
    fs::write(&config, format!("gpu:\n  library: {}\n  dcgm_names: true\n", library.display()))?;
    let config = config.to_string_lossy().into_owned();
    let mut agent = Agent::start(folder.path(), &format!("http://{}", backend.grpc), &["--config", &config])?;
    let unix_ns = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    let origin_unix_ns = unix_ns - (monotonic_ns() - origin_ns);
    thread::sleep(Duration::from_millis(1200));

    for work_ms in [2000, 700, 30, 1300] {
        let work = work_ms.to_string();
        http::post_with(&format!("{}/work/{work}", server.url()), &[("x-work-ms", &work)], b"{}")?;
    }
    let page = agent.metrics()?;
    let own = format!("kind = server && resource.process.pid = {}", server.process.id());
    backend.wait_for_count(&format!("{{ {own} }}"), 4, Duration::from_secs(10))?;
    ensure!(agent.stop()?.success(), "the agent did not end well:\n{}", agent.process.output());

    for (name, range) in [
        ("hw_gpu_utilization_ratio", 0.2..=0.8),
        ("hw_gpu_memory_limit_bytes", 2.57e10..=2.58e10),
        ("hw_power_watts", 60.0..=240.0),
        ("hw_temperature_celsius", 40.0..=70.0),
        ("coati_gpu_process_utilization_ratio", 0.2..=0.8),
        ("DCGM_FI_DEV_GPU_UTIL", 20.0..=80.0),
        ("DCGM_FI_DEV_POWER_USAGE", 60.0..=240.0),
    ] {
        let value = sum(&page, name, &[]);
        ensure!(range.contains(&value), "{name} is {value}:\n{page}");
    }
    let energy = sum(&page, "hw_energy_joules_total", &["hw_id=\"GPU-5im\""]);
    ensure!(energy > 100.0, "{energy} J:\n{page}");

    let spans = spans_of(&backend, &format!("{{ {own} }}"))?;
    let of_server = |span: &&Seen| span.kind == "SPAN_KIND_SERVER" && span.pid() == Some(server.process.id());
    let spans: Vec<&Seen> = spans.iter().filter(of_server).collect();
    ensure!(spans.len() == 4, "{} spans", spans.len());
    for span in spans {
        let start = (span.start_ns - origin_unix_ns) as f64 / 1e9;
        check(span, start, &levels).with_context(|| format!("{} from {start} s on: {span:?}", span.path()))?;
    }
    Ok(())
}

/// Compares a span with the timeline; `start` is in seconds behind its origin.
fn check(span: &Seen, start: f64, levels: &[u32]) -> Result<()> {
    let end = start + span.duration_ns as f64 / 1e9;
    let length = end - start;
    let value = |key: &str| -> Result<f64> { span.attribute(key).parse().with_context(|| key.to_owned()) };
    // Seconds of the span in each step, and that step's level.
    let parts: Vec<(f64, f64)> = (0..)
        .zip(levels)
        .map(|(number, level)| {
            let (from, to) = (f64::from(number) * 0.5, f64::from(number) * 0.5 + 0.5);
            ((to.min(end) - from.max(start)).max(0.0), f64::from(*level) / 100.0)
        })
        .filter(|(seconds, _)| *seconds > 0.0)
        .collect();
    let mean = parts.iter().map(|(seconds, level)| seconds * level).sum::<f64>() / length;
    // Each step within the span, and one at each of its ends, may be seen late by a sample.
    let late = (0.4 * SAMPLE * (parts.len() as f64 + 1.0) / length).min(0.6);
    let near = |key: &str, expected: f64, tolerance: f64| -> Result<()> {
        let found = value(key)?;
        ensure!((found - expected).abs() <= tolerance, "{key} is {found}, not {expected} ± {tolerance}");
        Ok(())
    };
    near("hw.gpu.utilization", mean, late)?;
    near("hw.power", mean * 300.0, late * 300.0)?;
    near("coati.gpu.energy", mean * 300.0 * length, 0.4 * 300.0 * SAMPLE)?;
    near("hw.energy", value("coati.gpu.energy")? * 0.75, 1e-6)?;
    ensure!(span.attribute("coati.gpu.energy.method") == "sm_utilization", "method");
    // The highest is that of a step which the span touches for long enough to be sampled, or of a neighbour.
    let levels_near = [mean, 0.2, 0.4, 0.8];
    let max = value("coati.gpu.utilization.max")?;
    ensure!(levels_near.iter().any(|level| (max - level).abs() < 1e-9) || parts.len() > 1, "maximum {max}");
    let highest = parts.iter().filter(|(seconds, _)| *seconds > SAMPLE).map(|(_, level)| *level).fold(0.0, f64::max);
    ensure!(max >= highest - 1e-9 && max <= 0.8 + 1e-9, "maximum {max}, not {highest}");
    near("hw.temperature", 30.0 + max * 50.0, 1e-6)?;
    near("coati.gpu.memory.usage", max * 100.0 * f64::from(1 << 25), 1.0)?;
    near("hw.gpu.memory.usage", (max * 75.0).floor() * f64::from(1 << 20), 1.0)?;
    near("coati.gpu.coverage", 1.0, 0.01)?;
    ensure!(span.attribute("hw.id") == "GPU-5im" && span.attribute("hw.name") == "Simulated GPU", "which GPU");
    ensure!(span.attribute("coati.gpu.others").contains("sleep"), "others: {}", span.attribute("coati.gpu.others"));
    let throttled = span.events.iter().any(|event| event == "coati.gpu.throttled");
    ensure!(throttled == (max > 0.79), "throttled: {throttled}, maximum {max}");
    Ok(())
}
