//! What the process may do (capabilities(7)), and what the agent cannot do without it.

/// Capabilities, by their number in `linux/capability.h`.
const DAC_READ_SEARCH: u32 = 2;
const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// What is needed, and what for. `CAP_SYS_ADMIN` includes the first two.
const NEEDED: [(u32, &str, &str); 4] = [
    (BPF, "CAP_BPF", "loading programs"),
    (PERFMON, "CAP_PERFMON", "attaching them"),
    (SYS_PTRACE, "CAP_SYS_PTRACE", "names of services of other users"),
    (DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH", "names of services whose files are private"),
];

/// The effective capabilities of a process; `None` if they are not known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Privileges(Option<u64>);

impl Privileges {
    /// From the text of `/proc/PID/status`.
    pub(super) fn of(status: &str) -> Self {
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        Self(line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()))
    }

    fn has(self, capability: u32) -> bool {
        self.0.is_some_and(|mask| mask >> capability & 1 == 1)
    }

    /// What is missing, and what for.
    pub(super) fn missing(self) -> Vec<(&'static str, &'static str)> {
        let is_missing = |number: u32| {
            let is_included = matches!(number, BPF | PERFMON) && self.has(SYS_ADMIN);
            !self.has(number) && !is_included
        };
        NEEDED
            .into_iter()
            .filter(|(number, ..)| is_missing(*number))
            .map(|(_, name, without)| (name, without))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::root("Name:\tx\nCapEff:\t000001ffffffffff\n", &[])]
    #[case::as_a_container_may_have("CapEff:\t000000c000080004", &[])]
    #[case::the_old_way("CapEff:\t0000000000280004", &[])]
    #[case::two("CapEff: 000000c000000000", &["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"])]
    #[case::nobody("CapEff:\t0000000000000000", &["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"])]
    #[case::not_known("", &["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"])]
    fn what_is_missing(#[case] status: &str, #[case] expected: &[&str]) {
        let found: Vec<_> = Privileges::of(status).missing().into_iter().map(|(name, _)| name).collect();
        assert_eq!(found, expected);
    }
}
