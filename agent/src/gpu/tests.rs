//! What the tests of this module share, and properties of the join.

use proptest::prelude::*;
use rstest::rstest;

use coati_tests::kubernetes::pod;
use prometheus_client::registry::Registry;

use super::{
    Gpu, GpuConfig, GpuMetrics,
    history::{History, Relative},
    join::{Interval, Joined, Share, energy_of, join},
    requests::{Piece, Request, Requests},
    sample::{DeviceInfo, DeviceSample, ProcessSample, Throttle},
};

use crate::kubernetes::testing::{cluster, give_gpu};

const MS: u64 = 1_000_000;
const REACH: u64 = 250 * MS;

pub(super) fn info(id: &str) -> DeviceInfo {
    DeviceInfo { id: id.into(), name: Some("Test GPU".into()), index: 0, minor: Some(3), parent: None, driver: None }
}

fn process(pid: u32, sm: Option<f64>, memory: Option<u64>) -> ProcessSample {
    ProcessSample { pid, memory, sm, ..ProcessSample::default() }
}

/// Metrics of a device of which everything is known, DCGM's names too.
pub(crate) fn all_metrics() -> GpuMetrics {
    let sample = DeviceSample {
        time_ns: 1,
        utilization: Some(1.0),
        memory_utilization: Some(1.0),
        memory_used: Some(1),
        memory_total: Some(1),
        power: Some(1.0),
        power_limit: Some(1.0),
        energy: Some(1.0),
        temperature: Some(1.0),
        sm_clock: Some(1.0),
        memory_clock: Some(1.0),
        throttle: Some(Throttle(0)),
        encoder: Some(1.0),
        decoder: Some(1.0),
        pcie_transmit: Some(1.0),
        pcie_receive: Some(1.0),
        ecc_corrected: Some(1),
        ecc_uncorrected: Some(1),
        xids: Vec::new(),
        processes: Some(vec![process(7, Some(1.0), Some(1))]),
    };
    let mut history = History::default();
    history.push(&DeviceInfo { parent: Some("GPU-0".into()), ..info("MIG-1") }, sample);
    history.set_relatives(vec![Relative { pid: 7, ancestors: [].into(), container: Some("c".into()) }]);
    GpuMetrics::new(&Gpu::of(history, &GpuConfig { dcgm_names: true, ..GpuConfig::default() }), Some("host"))
}

/// A busy device: at 100 ms, 200 ms and so on, use 0.1, 0.2, …; 100 W; processes 7 and 8, the first uses three times as
/// much as the second.
fn busy(count: u64) -> History {
    let mut history = History::default();
    for number in 1..=count {
        let use_of = number as f64 / 10.0;
        let sample = DeviceSample {
            time_ns: number * 100 * MS,
            utilization: Some(use_of),
            memory_used: Some(1000 * number),
            power: Some(100.0),
            energy: Some(10.0 * number as f64),
            temperature: Some(40.0 + number as f64),
            throttle: Some(Throttle(if number == 3 { 0x44 } else { 0x01 })),
            processes: Some(vec![
                process(7, Some(0.6), Some(300 + number)),
                process(8, Some(0.2), Some(100)),
                process(9, Some(0.0), Some(50)),
            ]),
            ..DeviceSample::default()
        };
        history.push(&info("GPU-1"), sample);
    }
    history
}

/// Ten samples, 100 ms apart, of a device that draws 100 W for process `pid` alone.
pub(crate) fn reader(pid: u32) -> super::GpuReader {
    let mut history = History::default();
    for number in 1..=10 {
        let processes = Some(vec![process(pid, Some(0.5), Some(1))]);
        let energy = Some(10.0 * number as f64);
        let sample = DeviceSample { time_ns: number * 100 * MS, energy, processes, ..DeviceSample::default() };
        history.push(&info("GPU-1"), sample);
    }
    history.set_relatives(vec![Relative { pid, ancestors: [].into(), container: None }]);
    super::GpuReader::of(&Gpu::of(history, &GpuConfig::default()))
}

fn between(start_ms: u64, end_ms: u64) -> Interval {
    Interval { start_ns: start_ms * MS, end_ns: end_ms * MS }
}

fn only(history: &History, interval: Interval, pids: &[u32]) -> Option<Joined> {
    let mut joined = join(history, interval, pids, REACH);
    assert!(joined.len() <= 1);
    joined.pop()
}

/// Joules of the processes, shared with no other request.
fn own_energy(history: &History, interval: Interval, pids: &[u32]) -> Option<f64> {
    energy_of(history, &[Piece { interval, part: 1.0 }], pids, REACH)
}

fn close(found: Option<f64>, expected: f64) {
    let found = found.unwrap();
    assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
}

#[rstest]
#[case::whole_samples(200, 400, 0.35, 0.4, 20.0, 2)]
#[case::parts_of_samples(250, 350, 0.35, 0.4, 10.0, 2)]
#[case::within_one(210, 220, 0.3, 0.3, 1.0, 1)]
#[case::a_moment(250, 250, 0.3, 0.3, 0.0, 1)]
fn an_interval_gets_what_samples_say_of_it(
    #[case] start_ms: u64,
    #[case] end_ms: u64,
    #[case] mean: f64,
    #[case] max: f64,
    #[case] energy: f64,
    #[case] samples: usize,
) {
    let joined = only(&busy(10), between(start_ms, end_ms), &[7]).unwrap();
    close(joined.utilization_mean, mean);
    close(joined.utilization_max, max);
    close(joined.energy, energy);
    close(joined.power, 100.0);
    close(joined.process_utilization, 0.6);
    assert!(matches!(joined.share, Some(Share::Utilization(share)) if (share - 0.75).abs() < 1e-9));
    close(own_energy(&busy(10), between(start_ms, end_ms), &[7]), energy * 0.75);
    assert_eq!((joined.samples, joined.others.as_slice()), (samples, &[8][..]));
    assert!((joined.coverage - 1.0).abs() < 1e-9);
}

#[test]
fn memory_and_temperature_are_the_highest_of_the_interval() {
    let joined = only(&busy(10), between(200, 500), &[7]).unwrap();
    assert_eq!((joined.process_memory, joined.device_memory), (Some(305), Some(5000)));
    close(joined.temperature, 45.0);
}

#[test]
fn reasons_for_low_clocks_have_the_time_of_their_first_sample() {
    let joined = only(&busy(10), between(150, 450), &[7]).unwrap();
    assert_eq!(joined.throttled, [("sw_power_cap", 300 * MS), ("hw_thermal_slowdown", 300 * MS)]);
    let short = only(&busy(10), between(210, 220), &[7]).unwrap();
    assert_eq!(short.throttled[0].1, 220 * MS, "the sample that speaks for it was read later");
    assert!(only(&busy(10), between(410, 420), &[7]).unwrap().throttled.is_empty(), "an idle GPU is not slowed down");
}

#[rstest]
#[case::before_the_first(Interval { start_ns: 0, end_ns: 1 })]
#[case::behind_the_last(between(1251, 1300))]
#[case::long_after(between(100_000, 100_001))]
fn what_no_sample_speaks_for_gives_nothing(#[case] interval: Interval) {
    let mut history = busy(10);
    // The first sample speaks for 250 ms before it; begin later than that.
    if interval.start_ns == 0 {
        history = History::default();
        history.push(
            &info("GPU-1"),
            DeviceSample {
                time_ns: 1000 * MS,
                processes: Some(vec![process(7, None, None)]),
                ..DeviceSample::default()
            },
        );
    }
    assert_eq!(only(&history, interval, &[7]), None);
}

#[test]
fn a_part_without_samples_is_told() {
    let joined = only(&busy(10), between(900, 1500), &[7]).unwrap();
    assert!((joined.coverage - 350.0 / 600.0).abs() < 1e-9, "{}", joined.coverage);
    close(joined.utilization_mean, 1.0);
    assert_eq!(joined.energy, None, "neither the counter nor power tells of the end");
}

#[test]
fn a_pause_of_the_sampler_is_not_filled() {
    let mut history = busy(3);
    history.push(
        &info("GPU-1"),
        DeviceSample {
            time_ns: 2000 * MS,
            utilization: Some(1.0),
            energy: Some(200.0),
            processes: Some(vec![process(7, Some(1.0), None)]),
            ..DeviceSample::default()
        },
    );
    assert_eq!(only(&history, between(1000, 1100), &[7]), None);
    let joined = only(&history, between(300, 2000), &[7]).unwrap();
    assert!((joined.coverage - 250.0 / 1700.0).abs() < 1e-9, "{}", joined.coverage);
    close(joined.energy, 170.0);
}

#[rstest]
#[case::nothing_is_known(DeviceSample::default(), None, None)]
#[case::alone(DeviceSample { processes: Some(vec![process(7, None, Some(1))]), ..DeviceSample::default() }, Some(Share::Alone), Some(1))]
#[case::others_and_no_use_known(
    DeviceSample { processes: Some(vec![process(7, None, Some(1)), process(8, None, Some(1))]), ..DeviceSample::default() },
    None,
    Some(1)
)]
#[case::nobody_works(
    DeviceSample { processes: Some(vec![process(7, Some(0.0), None), process(8, Some(0.0), None)]), ..DeviceSample::default() },
    None,
    None
)]
fn what_is_not_known_is_absent(
    #[case] sample: DeviceSample,
    #[case] share: Option<Share>,
    #[case] memory: Option<u64>,
) {
    let mut history = History::default();
    let has_processes = sample.processes.is_some();
    for number in 1..4 {
        history.push(&info("GPU-1"), DeviceSample { time_ns: number * 100 * MS, ..sample.clone() });
    }
    let joined = only(&history, between(150, 250), &[7]);
    assert_eq!(joined.is_some(), has_processes, "nobody knows who uses it");
    let Some(joined) = joined else { return };
    assert_eq!((joined.share, joined.process_memory), (share, memory));
    assert_eq!((joined.utilization_mean, joined.power, joined.energy, joined.temperature), (None, None, None, None));
    assert_eq!(own_energy(&history, between(150, 250), &[7]), None);
}

#[test]
fn energy_comes_from_power_where_there_is_no_counter_and_after_a_reset() {
    let sample = |number: u64, energy| DeviceSample {
        time_ns: number * 100 * MS,
        power: Some(50.0),
        energy,
        processes: Some(vec![process(7, None, None)]),
        ..DeviceSample::default()
    };
    for energies in [[None; 4], [Some(900.0), Some(905.0), Some(1.0), Some(6.0)]] {
        let mut history = History::default();
        for (number, energy) in (1..).zip(energies) {
            history.push(&info("GPU-1"), sample(number, energy));
        }
        close(only(&history, between(100, 400), &[7]).unwrap().energy, 15.0);
    }
}

#[test]
fn the_device_that_was_used_most_comes_first() {
    let mut history = History::default();
    for number in 1..4 {
        for (id, sm) in [("GPU-1", 0.1), ("GPU-2", 0.9), ("GPU-3", 0.5)] {
            let pid = if id == "GPU-3" { 8 } else { 7 };
            history.push(
                &info(id),
                DeviceSample {
                    time_ns: number * 100 * MS,
                    processes: Some(vec![process(pid, Some(sm), None)]),
                    ..DeviceSample::default()
                },
            );
        }
    }
    let ids: Vec<_> =
        join(&history, between(100, 300), &[7], REACH).iter().map(|it| it.device.id.to_string()).collect();
    assert_eq!(ids, ["GPU-2", "GPU-1"]);
}

/// The device is a container's by the kubelet; process 7 runs in another one, process 8 in one of no pod.
#[test]
fn metrics_name_the_pods_of_devices_and_processes() {
    let ids = [7, 8].map(|pid: u32| (pid, format!("{pid:064x}")));
    let mut history = busy(3);
    let relative =
        |(pid, id): &(u32, String)| Relative { pid: *pid, ancestors: [].into(), container: Some(id.as_str().into()) };
    history.set_relatives(ids.iter().map(relative).collect());
    let kubernetes = cluster(&[pod("ml", "immich-0", "node-1", &ids[0].1, "10.42.0.7")], &[]);
    give_gpu(&kubernetes, "GPU-1", "ml", "ollama-0", "server");
    let gpu = Gpu::of(history, &GpuConfig { dcgm_names: true, ..GpuConfig::default() });
    let mut registry = Registry::default();
    registry.register_collector(Box::new(GpuMetrics::new(&gpu, None).in_pods(Some(kubernetes))));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let line =
        |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}: {text}"));
    let of_device = r#"k8s_namespace_name="ml",k8s_pod_name="ollama-0",k8s_container_name="server""#;
    assert!(line("hw_power_watts").contains(of_device), "{text}");
    assert!(line("DCGM_FI_DEV_POWER_USAGE").contains(r#"namespace="ml",pod="ollama-0",container="server""#), "{text}");
    let of_process = r#"k8s_namespace_name="ml",k8s_pod_name="immich-0",k8s_container_name="main""#;
    assert!(
        line(r#"coati_gpu_process_utilization_ratio{hw_id="GPU-1",process_pid="7""#).contains(of_process),
        "{text}"
    );
    assert!(!line(r#"coati_gpu_process_utilization_ratio{hw_id="GPU-1",process_pid="8""#).contains("k8s_"), "{text}");
}

proptest! {
    /// Whatever the samples: means lie between the lowest and the highest, shares and coverage between 0 and 1, and two
    /// halves of an interval have as much energy as the whole.
    #[test]
    fn joins_are_sound(
        steps in prop::collection::vec((1_u64..400, prop::option::of(0.0_f64..1.0), 0.0_f64..50.0, 0.0_f64..1.0), 1..60),
        start_ms in 0_u64..20_000,
        length_ms in 0_u64..20_000,
    ) {
        let mut history = History::default();
        let (mut time_ms, mut energy) = (0, 0.0);
        for (step, utilization, joules, sm) in &steps {
            time_ms += step;
            energy += joules;
            history.push(&info("GPU-1"), DeviceSample {
                time_ns: time_ms * MS,
                utilization: *utilization,
                energy: Some(energy),
                power: Some(*joules),
                processes: Some(vec![process(7, Some(*sm), Some(1)), process(8, Some(1.0 - sm), Some(1))]),
                ..DeviceSample::default()
            });
        }
        let end_ms = start_ms + length_ms;
        if let Some(joined) = only(&history, between(start_ms, end_ms), &[7]) {
            prop_assert!((0.0..=1.0).contains(&joined.coverage) && joined.samples >= 1);
            if let (Some(mean), Some(max)) = (joined.utilization_mean, joined.utilization_max) {
                prop_assert!(mean <= max + 1e-9 && max <= 1.0);
            }
            let share = joined.share.map_or(0.0, Share::ratio);
            prop_assert!((0.0..=1.0).contains(&share));
            prop_assert!(joined.energy.is_none_or(|energy| energy >= 0.0));
            prop_assert_eq!(joined.others, [8]);
        }
        let middle_ms = start_ms + length_ms / 2;
        let counter = |from, to| only(&history, between(from, to), &[7]).and_then(|joined| joined.energy);
        let is_counted = |ms: u64| ms * MS >= history.devices()[0].samples[0].time_ns && ms <= time_ms;
        if let (true, Some(whole), Some(first), Some(second)) = (
            is_counted(start_ms) && is_counted(end_ms),
            counter(start_ms, end_ms),
            counter(start_ms, middle_ms),
            counter(middle_ms, end_ms),
        ) {
            prop_assert!((whole - first - second).abs() < 1e-6, "{whole} = {first} + {second}");
        }
    }

    /// Whatever the samples, and however requests overlap: together they have no more energy than the process had, and all
    /// of it if one was open all the time.
    #[test]
    fn requests_share_what_their_process_used(
        steps in prop::collection::vec((1_u64..200, 0.0_f64..50.0, 0.0_f64..1.0, 0.0_f64..1.0), 20..60),
        requests in prop::collection::vec((0_u64..2000, 1_u64..1500, any::<bool>()), 1..8),
        is_counted: bool,
    ) {
        let mut history = History::default();
        let (mut time_ms, mut energy) = (0, 0.0);
        for (step, joules, own, other) in steps.iter().chain(&[(200, 5.0, 0.5, 0.5); 20]) {
            time_ms += step;
            energy += joules;
            // Now and then nobody computes.
            let sm = |sm: f64| Some(if sm < 0.3 { 0.0 } else { sm });
            history.push(&info("GPU-1"), DeviceSample {
                time_ns: time_ms * MS,
                energy: is_counted.then_some(energy),
                power: Some(joules * 7.0),
                processes: Some(vec![process(7, sm(*own), Some(1)), process(8, sm(*other), Some(1))]),
                ..DeviceSample::default()
            });
        }
        let first_ms = history.devices()[0].samples[0].time_ns / MS;
        let request = |(start, length, is_model): &(u64, u64, bool)| Request {
            tgid: 7,
            interval: between(first_ms + start, first_ms + start + length),
            is_model: *is_model,
        };
        let served: Vec<Request> = requests.iter().map(request).collect();
        let mut open = Requests::default();
        for it in &served {
            open.began(7, it.interval.start_ns, it.is_model);
            open.ended(7, it.interval.end_ns, it.is_model);
        }
        let shares: Vec<_> = served.iter().map(|it| energy_of(&history, &open.pieces(*it), &[7], REACH)).collect();
        // An interval in which nobody computed at all has no share that is known.
        prop_assume!(shares.iter().all(Option::is_some));
        let start_ns = served.iter().map(|it| it.interval.start_ns).min().unwrap();
        let end_ns = served.iter().map(|it| it.interval.end_ns).max().unwrap();
        let Some(whole) = own_energy(&history, Interval { start_ns, end_ns }, &[7]) else { return Ok(()) };
        let sum: f64 = shares.iter().flatten().sum();
        prop_assert!(sum <= whole * (1.0 + 1e-9) + 1e-9, "{sum} of {whole}");
        let is_open = |time_ns: u64| served.iter().any(|it| it.interval.start_ns <= time_ns && time_ns < it.interval.end_ns);
        let ends = served.iter().map(|it| it.interval.end_ns);
        if ends.into_iter().all(|end| end == end_ns || is_open(end)) {
            prop_assert!((sum - whole).abs() <= whole * 1e-9 + 1e-9, "{sum} of {whole}");
        }
    }
}
