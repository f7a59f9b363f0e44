//! The same tests on other kernels: this very program is the payload of virtual machines that boot them.
//!
//! `coati_tests::guest` says what they are.

use std::path::Path;
use std::time::Duration;

use coati_tests::guest::{self, Files, Processors};
use rstest::rstest;

use crate::watch::HOOKS;

/// Set by `cargo xtask test`: a guest that cannot be started is a failure then.
const REQUIRED: &str = "COATI_TEST_GUESTS";

/// Set by `cargo xtask vm --kernel`: the image of a kernel of one's own.
const KERNEL: &str = "COATI_TEST_KERNEL";

/// A guest that takes longer hangs. It takes about 20 s when it has a processor for itself.
const PATIENCE: Duration = Duration::from_secs(500);

/// What runs in the guest: what differs between hooks and between kernels, and not what takes long when every
/// instruction is interpreted.
const TESTS: [&str; 22] = [
    "cuda::calls_are_counted",
    "functions::",
    "system_calls::several_buffers",
    "system_calls::peeking",
    "system_calls::bytes_from_files",
    "system_calls::a_first_request_that_fails",
    "exchanges::both_ends",
    "exchanges::ipv6",
    "exchanges::a_connection_from_before",
    "exchanges::long_responses",
    "exchanges::other_protocols",
    "http2::frames_are_told",
    "http2::a_connection_from_before",
    "closing::resets",
    "closing::half_a_close",
    "notes::",
    "privileges::what_is_kept",
    "processes::the_end_of_a_thread",
    "tails::the_end_of_a_large",
    "tails::the_end_of_a_long",
    "unix_sockets::",
    "uprobes::sessions",
];

#[rstest]
#[case::linux_6_1_fentry("6.1", "fentry")]
#[case::linux_6_1_kprobe("6.1", "kprobe")]
#[case::linux_6_1_syscall("6.1", "syscall")]
#[case::linux_6_12_fentry("6.12", "fentry")]
#[case::linux_6_12_kprobe("6.12", "kprobe")]
#[case::linux_6_12_syscall("6.12", "syscall")]
fn the_tests_pass_in_a_guest(#[case] kernel: &str, #[case] hooks: &str) {
    let image = match guest::kernel(kernel) {
        Ok(image) => image,
        Err(why) if std::env::var_os(REQUIRED).is_none() => {
            println!(
                "SKIPPED: no guest can be started ({why:#}; `cargo xtask setup`); not covered: {hooks} on {kernel}"
            );
            return;
        }
        Err(why) => panic!("no guest can be started: {why:#}"),
    };
    let output = run(&image, hooks);
    assert!(output.contains(&format!("guest: Linux {kernel}.")), "another kernel was started");
}

/// What `cargo xtask vm --kernel FILE` runs.
#[rstest]
#[case::fentry("fentry")]
#[case::kprobe("kprobe")]
#[case::syscall("syscall")]
#[ignore = "by hand: cargo xtask vm --kernel FILE"]
fn on_a_kernel_of_ones_own(#[case] hooks: &str) {
    let image = std::env::var_os(KERNEL).expect("COATI_TEST_KERNEL is not set");
    run(Path::new(&image), hooks);
}

/// Runs the tests; what the guest's console shows.
fn run(image: &Path, hooks: &str) -> String {
    let tests = TESTS.join(" ");
    let script = format!("export {HOOKS}={hooks}\n/payload --test-threads=1 {tests}\n");
    let mut files = Files::new(&script).unwrap();
    files.program("payload", &std::env::current_exe().unwrap()).unwrap();
    let output = guest::run(image, files, Processors::Two, PATIENCE).unwrap();
    println!("{output}");
    assert!(output.contains("guest: exit code 0"), "tests failed in the guest");
    let summary = output.lines().find_map(|line| line.strip_prefix("test result: ok. ")).unwrap();
    let passed: usize = summary.split(' ').next().unwrap().parse().unwrap();
    assert!(passed >= TESTS.len(), "{passed} tests ran");
    output
}
