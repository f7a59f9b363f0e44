//! The sampler against a library with NVML's own C symbols that plays a timeline: every value, what is missing, what
//! fails, and what goes away and comes back.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use coati_agent::{
    discover::ProcTree,
    gpu::{DeviceSample, Gpu, GpuConfig, History, ProcessSample, Throttle},
};
use coati_fake_nvml::timeline::{Device, Process, Step, Timeline};
use rstest::rstest;
use rustix::time::{ClockId, clock_gettime};

/// A copy of the library with a timeline beside it: every copy that is loaded has its own state.
struct Fake {
    folder: tempfile::TempDir,
}

impl Fake {
    fn new(timeline: &Timeline) -> Self {
        let fake = Self { folder: tempfile::tempdir().unwrap() };
        // Cargo puts the library of a dependency beside the tests.
        let built = std::env::current_exe().unwrap().with_file_name("libcoati_fake_nvml.so");
        fs::copy(&built, fake.library()).unwrap_or_else(|error| panic!("{}: {error}", built.display()));
        fs::write(fake.folder.path().join("nvml.so.json"), serde_json::to_string(timeline).unwrap()).unwrap();
        fake
    }

    fn library(&self) -> PathBuf {
        self.folder.path().join("nvml.so")
    }

    /// Takes a symbol away: under its name nothing is found any more.
    fn without(self, symbol: &str) -> Self {
        let mut bytes = fs::read(self.library()).unwrap();
        let name = [b"\0", symbol.as_bytes(), b"\0"].concat();
        let places: Vec<usize> =
            bytes.windows(name.len()).enumerate().filter(|(_, it)| *it == name).map(|it| it.0).collect();
        assert!(!places.is_empty(), "{symbol} is not in the library");
        for place in places {
            bytes[place + 1] = b'x';
        }
        fs::write(self.library(), bytes).unwrap();
        self
    }

    fn start(&self) -> Gpu {
        let config = GpuConfig {
            library: Some(self.library()),
            interval: Duration::from_millis(10),
            idle_interval: Duration::from_millis(10),
            ..GpuConfig::default()
        };
        Gpu::start(&config, ProcTree::new("/proc")).unwrap()
    }
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Waits until the history is as it should be.
fn wait<T>(gpu: &Gpu, what: &str, mut found: impl FnMut(&History) -> Option<T>) -> T {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(15) {
        if let Some(found) = found(&gpu.history()) {
            return found;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("no {what}: {:?}", gpu.history());
}

/// A step in which everything is known.
fn full(at_ms: u64, seed: u32) -> Step {
    Step {
        at_ms,
        utilization: Some(40 + seed),
        memory_utilization: Some(20 + seed),
        memory_used: Some(3 << 30 | u64::from(seed)),
        memory_total: Some(24 << 30),
        power_mw: Some(200_000 + seed),
        power_limit_mw: Some(450_000),
        temperature: Some(60 + seed),
        sm_clock: Some(1800 + seed),
        memory_clock: Some(9500 + seed),
        throttle: Some(0x04),
        encoder: Some(5 + seed),
        decoder: Some(6 + seed),
        pcie_transmit: Some(1000 + seed),
        pcie_receive: Some(2000 + seed),
        ecc_corrected: Some(3),
        ecc_uncorrected: Some(1),
        processes: Some(vec![
            Process {
                pid: std::process::id(),
                memory: 2 << 30,
                sm: 30 + seed,
                memory_utilization: 7,
                encoder: 3,
                decoder: 4,
            },
            Process { pid: 4_000_000, memory: 1 << 30, ..Process::default() },
        ]),
        ..Step::default()
    }
}

fn device(uuid: &str, steps: Vec<Step>) -> Device {
    Device { uuid: uuid.to_owned(), name: "Simulated GPU".to_owned(), steps, mig: Vec::new() }
}

fn timeline(devices: Vec<Device>) -> Timeline {
    Timeline { origin_ns: now_ns(), driver_version: "580.95.05".to_owned(), driver_gone_ms: Vec::new(), devices }
}

/// What a sample must say in a step, but for its time and its energy.
fn expected(step: &Step) -> DeviceSample {
    let percent = |value: Option<u32>| value.map(|value| f64::from(value) / 100.0);
    let process = |it: &Process| ProcessSample {
        pid: it.pid,
        memory: Some(it.memory),
        sm: Some(f64::from(it.sm) / 100.0),
        memory_utilization: Some(f64::from(it.memory_utilization) / 100.0),
        encoder: Some(f64::from(it.encoder) / 100.0),
        decoder: Some(f64::from(it.decoder) / 100.0),
    };
    DeviceSample {
        utilization: percent(step.utilization),
        memory_utilization: percent(step.memory_utilization),
        memory_used: step.memory_used,
        memory_total: step.memory_total,
        power: step.power_mw.map(|it| f64::from(it) / 1e3),
        power_limit: step.power_limit_mw.map(|it| f64::from(it) / 1e3),
        temperature: step.temperature.map(f64::from),
        sm_clock: step.sm_clock.map(|it| f64::from(it) * 1e6),
        memory_clock: step.memory_clock.map(|it| f64::from(it) * 1e6),
        throttle: step.throttle.map(Throttle),
        encoder: percent(step.encoder),
        decoder: percent(step.decoder),
        processes: step.processes.as_ref().map(|list| list.iter().map(process).collect()),
        ..DeviceSample::default()
    }
}

/// The sample without what is read once a second, what depends on the moment, and with its processes in order.
fn comparable(sample: &DeviceSample) -> DeviceSample {
    let mut sample = DeviceSample {
        time_ns: 0,
        energy: None,
        pcie_transmit: None,
        pcie_receive: None,
        ecc_corrected: None,
        ecc_uncorrected: None,
        ..sample.clone()
    };
    sample.processes.iter_mut().for_each(|processes| processes.sort_by_key(|it| it.pid));
    sample
}

#[test]
fn every_value_of_every_sample_is_that_of_the_timeline() {
    let steps: Vec<Step> = (0..5).map(|number| full(u64::from(number) * 200, number)).collect();
    let timeline = timeline(vec![device("GPU-a", steps.clone()), device("GPU-b", vec![full(0, 30)])]);
    let fake = Fake::new(&timeline);
    let gpu = fake.start();
    let end_ns = timeline.origin_ns + 1_000_000_000;
    wait(&gpu, "sample after the last step", |history| (history.newest_ns() > end_ns).then_some(()));
    let history = gpu.history();
    let [a, b] = history.devices() else { panic!("{history:?}") };
    assert_eq!((&*a.info.id, a.info.name.as_deref(), a.info.index), ("GPU-a", Some("Simulated GPU"), 0));
    assert_eq!((&*b.info.id, b.info.driver.as_deref(), b.info.index), ("GPU-b", Some("580.95.05"), 1));
    assert!(a.samples.len() > 40, "{} samples", a.samples.len());
    let mut seen = [0; 5];
    for sample in &a.samples {
        let elapsed_ns = sample.time_ns - timeline.origin_ns;
        let index = (elapsed_ns / 200_000_000).min(4) as usize;
        // A reading that a step begins in may have values of both.
        if index < 4 && elapsed_ns % 200_000_000 > 190_000_000 {
            continue;
        }
        seen[index] += 1;
        assert_eq!(comparable(sample), expected(&steps[index]), "{elapsed_ns} ns behind the start");
        let energy = timeline.devices[0].energy_mj(elapsed_ns / 1000) as f64 / 1e3;
        let found = sample.energy.unwrap();
        assert!((found - energy).abs() < 2.0, "{found} J, not {energy} J");
    }
    assert!(seen.iter().all(|count| *count > 3), "samples by step: {seen:?}");
    let thorough = b.samples.iter().find(|sample| sample.pcie_transmit.is_some()).expect("a thorough one");
    assert_eq!(
        (thorough.pcie_transmit, thorough.pcie_receive, thorough.ecc_corrected, thorough.ecc_uncorrected),
        (Some(1_030_000.0), Some(2_030_000.0), Some(3), Some(1))
    );
    // This process uses a device, and so its parent's requests do.
    let parent = std::os::unix::process::parent_id();
    assert!(history.processes_of(std::process::id()).contains(&std::process::id()));
    assert!(history.processes_of(parent).contains(&std::process::id()));
}

#[test]
fn what_a_device_does_not_support_is_absent() {
    let fake = Fake::new(&timeline(vec![device("GPU-a", vec![Step::default()])]));
    let gpu = fake.start();
    let sample = wait(&gpu, "sample", |history| Some(history.devices().first()?.samples.front()?.clone()));
    assert_eq!(DeviceSample { time_ns: 0, ..sample }, DeviceSample::default());
}

#[rstest]
#[case("nvmlDeviceGetPowerUsage", "power")]
#[case("nvmlDeviceGetMemoryInfo_v2", "memory")]
#[case("nvmlDeviceGetTotalEnergyConsumption", "energy")]
#[case("nvmlDeviceGetProcessUtilization", "process_utilization")]
#[case("nvmlDeviceGetComputeRunningProcesses_v3", "processes")]
#[case("nvmlDeviceGetUtilizationRates", "utilization")]
#[case("nvmlDeviceGetTemperature", "temperature")]
#[case("nvmlDeviceGetCurrentClocksThrottleReasons", "throttle")]
#[case("nvmlEventSetCreate", "events")]
#[case("nvmlDeviceGetMigMode", "mig")]
#[case("nvmlDeviceGetName", "name")]
fn a_symbol_that_is_missing_takes_its_value_only(#[case] symbol: &str, #[case] value: &str) {
    let step = full(0, 1);
    let fake = Fake::new(&timeline(vec![device("GPU-a", vec![step.clone()])])).without(symbol);
    check_without(&fake, &step, value);
}

#[rstest]
#[case::no_permission("power", 4)]
#[case::unknown("memory", 999)]
#[case::not_supported("energy", 3)]
#[case::no_data("process_utilization", 21)]
#[case::unknown("utilization", 999)]
#[case::invalid("temperature", 2)]
#[case::timeout("throttle", 10)]
#[case::unknown("events", 999)]
fn a_function_that_fails_takes_its_value_only(#[case] value: &str, #[case] code: u32) {
    let mut step = full(0, 1);
    step.errors.insert(value.to_owned(), code);
    let fake = Fake::new(&timeline(vec![device("GPU-a", vec![step.clone()])]));
    check_without(&fake, &step, value);
}

fn check_without(fake: &Fake, step: &Step, value: &str) {
    let gpu = fake.start();
    let (info, found) = wait(&gpu, "sample", |history| {
        let device = history.devices().first()?;
        Some((device.info.clone(), device.samples.back()?.clone()))
    });
    let mut expected = expected(step);
    match value {
        "power" => expected.power = None,
        "memory" => (expected.memory_used, expected.memory_total) = (None, None),
        "utilization" => (expected.utilization, expected.memory_utilization) = (None, None),
        "temperature" => expected.temperature = None,
        "throttle" => expected.throttle = None,
        "process_utilization" => {
            for process in expected.processes.iter_mut().flatten() {
                *process = ProcessSample { pid: process.pid, memory: process.memory, ..ProcessSample::default() };
            }
        }
        // Those at work are still told of by the other function.
        "processes" => {
            let processes = expected.processes.take().unwrap();
            let at_work = processes.into_iter().filter(|it| it.sm > Some(0.0));
            expected.processes = Some(at_work.map(|it| ProcessSample { memory: None, ..it }).collect());
        }
        _ => {}
    }
    assert_eq!(comparable(&found), expected);
    assert_eq!(found.energy.is_none(), value == "energy");
    assert_eq!(info.name.is_none(), value == "name");
}

#[test]
fn a_device_that_falls_off_the_bus_is_gone_until_it_is_back() {
    let lost = Step { at_ms: 300, gone: true, ..Step::default() };
    let timeline =
        timeline(vec![device("GPU-a", vec![full(0, 1), lost, full(900, 2)]), device("GPU-b", vec![full(0, 3)])]);
    let fake = Fake::new(&timeline);
    let gpu = fake.start();
    wait(&gpu, "first sample", |history| history.devices().first()?.current().cloned());
    wait(&gpu, "loss", |history| (!history.devices()[0].is_present).then_some(()));
    let other = gpu.history().devices()[1].samples.len();
    let back = wait(&gpu, "return", |history| history.devices()[0].current().cloned());
    assert!(back.time_ns >= timeline.origin_ns + 900_000_000);
    assert_eq!(back.temperature, Some(62.0));
    let history = gpu.history();
    let gap = history.devices()[0]
        .samples
        .iter()
        .find(|sample| (timeline.origin_ns + 310_000_000..timeline.origin_ns + 890_000_000).contains(&sample.time_ns));
    assert_eq!(gap, None, "a device that is gone has no samples");
    assert!(history.devices()[1].samples.len() > other, "the other one is read on");
    assert!(history.devices()[1].is_present);
}

#[test]
fn a_driver_that_is_loaded_anew_is_found_again() {
    let mut timeline = timeline(vec![device("GPU-a", vec![full(0, 1)])]);
    timeline.driver_gone_ms = vec![(300, 1500)];
    let fake = Fake::new(&timeline);
    let gpu = fake.start();
    wait(&gpu, "first sample", |history| history.devices().first()?.current().cloned());
    wait(&gpu, "loss", |history| (!history.devices()[0].is_present).then_some(()));
    let back = wait(&gpu, "return", |history| history.devices()[0].current().cloned());
    assert!(back.time_ns >= timeline.origin_ns + 1_500_000_000);
}

#[test]
fn a_library_that_is_no_library_does_no_harm() {
    let fake = Fake::new(&timeline(Vec::new()));
    fs::write(fake.library(), "not an ELF file").unwrap();
    let gpu = fake.start();
    thread::sleep(Duration::from_millis(100));
    assert!(gpu.history().devices().is_empty());
}

#[test]
fn critical_errors_are_told_once() {
    let failing = Step { xids: vec![31, 79], ..full(200, 1) };
    let fake =
        Fake::new(&timeline(vec![device("GPU-a", vec![full(0, 1), failing]), device("GPU-b", vec![full(0, 1)])]));
    let gpu = fake.start();
    wait(&gpu, "errors", |history| (history.devices().first()?.xids == 2).then_some(()));
    thread::sleep(Duration::from_millis(100));
    let history = gpu.history();
    let told: Vec<u64> = history.devices()[0].samples.iter().flat_map(|sample| sample.xids.clone()).collect();
    assert_eq!((told, history.devices()[1].xids), (vec![31, 79], 0));
}

#[test]
fn a_divided_gpu_gives_its_processes_to_its_parts() {
    let part = |uuid: &str, pid| {
        let processes = Some(vec![Process { pid, memory: 5, ..Process::default() }]);
        device(uuid, vec![Step { memory_used: Some(5), memory_total: Some(10), processes, ..Step::default() }])
    };
    let mut whole = device("GPU-a", vec![full(0, 1)]);
    whole.mig = vec![part("MIG-1", 11), part("MIG-2", 12)];
    let fake = Fake::new(&timeline(vec![whole]));
    let gpu = fake.start();
    wait(&gpu, "three devices", |history| (history.devices().len() == 3).then_some(()));
    let history = gpu.history();
    let found: Vec<_> = history
        .devices()
        .iter()
        .map(|device| {
            let pids =
                device.samples.back().unwrap().processes.as_ref().map(|list| list.iter().map(|it| it.pid).collect());
            (&*device.info.id, device.info.parent.as_deref(), pids)
        })
        .collect();
    let parent = Some("GPU-a");
    assert_eq!(found, [("GPU-a", None, None), ("MIG-1", parent, Some(vec![11])), ("MIG-2", parent, Some(vec![12]))]);
}
