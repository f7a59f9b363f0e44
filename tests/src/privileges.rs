//! What a running agent may do.

use std::fs;

use anyhow::{Context, Result, ensure};

/// `CAP_DAC_READ_SEARCH` and `CAP_SYS_PTRACE`: what every thread keeps.
const LOOKING: u64 = 1 << 2 | 1 << 19;
/// `CAP_PERFMON`, for probes in TLS libraries of programs that start later.
const PERFMON: u64 = 1 << 38;
/// `CAP_BPF`.
const BPF: u64 = 1 << 39;
/// `CAP_CHECKPOINT_RESTORE`.
const CHECKPOINT_RESTORE: u64 = 1 << 40;
/// `CAP_SYS_ADMIN`.
const SYS_ADMIN: u64 = 1 << 21;

/// Whether this kernel lets programs put themselves into files by links of their own, as 6.6 and later do: then nothing more is
/// needed for probes once the programs are loaded.
pub fn has_probe_links() -> Result<bool> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split('.').map_while(|number| number.parse::<u32>().ok());
    let version = numbers.next().zip(numbers.next()).with_context(|| format!("kernel {release}"))?;
    Ok(version >= (6, 6))
}

/// Fails unless every thread of an agent has given away all that it does not need any more, and can get nothing back. It is
/// one that looks into TLS, on a kernel from 5.19 on.
pub fn assert_given_away(agent: u32) -> Result<()> {
    let has_links = has_probe_links()?;
    let mut capturing = 0;
    for thread in fs::read_dir(format!("/proc/{agent}/task"))? {
        let path = thread?.path();
        // It may have ended meanwhile.
        let Ok(status) = fs::read_to_string(path.join("status")) else { continue };
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
            value.with_context(|| format!("no {name} in {}", path.display()))
        };
        let set = |name: &str| Ok::<_, anyhow::Error>(u64::from_str_radix(field(name)?, 16)?);
        let name = field("Name")?;
        let captures = matches!(name, "capture" | "detach");
        capturing += u32::from(name == "capture");
        let wanted = if captures && !has_links { LOOKING | PERFMON } else { LOOKING };
        // Who began with all may find replaced files; many older kernels let nobody else put probes into files.
        let more = match (captures, has_links) {
            (false, _) => 0,
            (true, true) => CHECKPOINT_RESTORE,
            (true, false) => SYS_ADMIN | CHECKPOINT_RESTORE,
        };
        let (effective, permitted) = (set("CapEff")?, set("CapPrm")?);
        ensure!(effective == permitted, "{name}: {effective:x} of {permitted:x}");
        ensure!(permitted & !more == wanted, "{name} has {permitted:x}, not {wanted:x}");
        let bounding = set("CapBnd")?;
        // An agent of a container may not change what it began with, which is what loading programs takes.
        let never = bounding & !(wanted | more | PERFMON | BPF);
        ensure!(never == 0, "{name}: bounding set {bounding:x}");
        ensure!(set("CapAmb")? == 0 && set("CapInh")? == 0, "{name}: hands capabilities on:\n{status}");
        ensure!(field("NoNewPrivs")? == "1", "{name}: programs that it starts may get more");
    }
    ensure!(capturing == 1, "{capturing} threads capture");
    Ok(())
}
