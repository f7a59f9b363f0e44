//! What benchmarks measure with.

#![allow(dead_code, reason = "every benchmark uses its own part")]

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;

/// A number from the environment.
pub(crate) fn number(variable: &str, default: u64) -> Result<u64> {
    env::var(variable).map_or(Ok(default), |text| text.parse().with_context(|| format!("{variable}={text}")))
}

/// A folder on a real disk: `$COATI_BENCH_DIR`, else below the build's. `/tmp` may be memory.
pub(crate) fn folder() -> Result<TempDir> {
    let parent =
        env::var_os("COATI_BENCH_DIR").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    tempfile::tempdir_in(&parent).with_context(|| parent.display().to_string())
}

/// Processor time that `work` takes in this process, all threads, user and system.
pub(crate) fn cpu<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let before = cpu_time();
    let outcome = work();
    (outcome, cpu_time().saturating_sub(before))
}

/// Processor time that `work` takes in this thread.
pub(crate) fn cpu_of_thread<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let before = time_of(ClockId::ThreadCPUTime);
    let outcome = work();
    (outcome, time_of(ClockId::ThreadCPUTime).saturating_sub(before))
}

/// Processor time of this process so far, all threads, user and system.
pub(crate) fn cpu_time() -> Duration {
    time_of(ClockId::ProcessCPUTime)
}

/// Processor time of each thread of this process so far, by its name; of those that have ended it is missing.
pub(crate) fn cpu_of_threads() -> Result<BTreeMap<String, Duration>> {
    let mut threads = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/task")? {
        let path = entry?.path();
        // It may end in between.
        let (Ok(name), Ok(times)) = (fs::read_to_string(path.join("comm")), fs::read_to_string(path.join("schedstat")))
        else {
            continue;
        };
        let nanos = times.split_whitespace().next().with_context(|| times.clone())?.parse()?;
        *threads.entry(name.trim().to_owned()).or_default() += Duration::from_nanos(nanos);
    }
    Ok(threads)
}

/// A number of the `/metrics` of a backend that has no labels.
pub(crate) fn metric(address: SocketAddr, name: &str) -> Result<u64> {
    let mut connection = TcpStream::connect(address)?;
    write!(connection, "GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let line = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.with_context(|| format!("no {name}"))?.parse().with_context(|| name.to_owned())
}

fn time_of(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Microseconds per one of `count`.
pub(crate) fn micros(time: Duration, count: u64) -> f64 {
    time.as_secs_f64() * 1e6 / count.max(1) as f64
}

/// MiB of this process in memory now.
pub(crate) fn resident_mib() -> Result<u64> {
    status("VmRSS:")
}

/// MiB of this process in memory at their highest.
pub(crate) fn peak_mib() -> Result<u64> {
    status("VmHWM:")
}

fn status(field: &str) -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| field.to_owned())?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().with_context(|| line.to_owned())?;
    Ok(kib / 1024)
}

/// Bytes of all files below a folder; 0 if there is none.
pub(crate) fn bytes_under(folder: &Path) -> Result<u64> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(0) };
    let mut bytes = 0;
    for entry in entries {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { bytes_under(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}
