//! Which blocks are merged: a pure function of the list of blocks.
//!
//! The blocks that came within five minutes become one of level 1, those of an hour one of level 2, those of a day one of
//! level 3: once the window is over, and before that whenever there are as many as a job takes. Only a higher level comes
//! of a job, so a span is written at most three times after its first; and however many blocks are cut, only so many per
//! level and window wait.
//!
//! A block that is alone in its window is not rewritten: it counts as one of the next level. So does a block that is too
//! large to be merged with its neighbours.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::retention::Ages;
use crate::block::BlockSummary;

/// Most blocks that become one at once. Each costs about 11 MiB of memory while they are merged (measured), besides 40 MiB
/// for the new one.
pub const MAX_INPUTS: usize = 16;

/// Windows of `received_last_ns`; what is merged within the first gets level 1, and so on. Each is a whole number of
/// those before it.
const WINDOWS: [Duration; 3] = [Duration::from_mins(5), Duration::from_hours(1), Duration::from_hours(24)];

/// How long after its end a window counts as over: blocks are cut some time after their spans came.
const SETTLING: Duration = Duration::from_mins(1);

/// Blocks in the last such part of their life are left alone.
const LAST_PART: u64 = 24;

/// What the plan goes by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Policy {
    /// The Parquet files of a job have together at most this many bytes.
    pub max_block_bytes: u64,
    /// How long blocks are kept.
    pub ages: Ages,
}

/// Blocks that are to become one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Job<'a> {
    /// Whose they are.
    pub tenant: &'a Arc<str>,
    /// Level of the new block, higher than that of all inputs.
    pub level: u8,
    /// Two or more, those that were received last at the end.
    pub inputs: Vec<&'a BlockSummary>,
}

/// All merges that are due, none of which has a block of another; those that make the list of blocks short for least work
/// first. `now_ns` is nanoseconds since the epoch.
pub fn plan<'a>(blocks: impl IntoIterator<Item = &'a BlockSummary>, now_ns: u64, policy: &Policy) -> Vec<Job<'a>> {
    let mut tenants: BTreeMap<&str, Vec<&BlockSummary>> = BTreeMap::new();
    for block in blocks {
        let last_part_ns = policy.ages.of(&block.tenant) / LAST_PART;
        if policy.ages.end_ns(block) >= now_ns.saturating_add(last_part_ns) {
            tenants.entry(&block.tenant).or_default().push(block);
        }
    }
    let mut jobs: Vec<_> =
        tenants.into_values().flat_map(|blocks| plan_tenant(blocks, now_ns, policy.max_block_bytes)).collect();
    jobs.sort_by_key(|job| (job.level, job.last().map(order)));
    jobs
}

fn plan_tenant(mut blocks: Vec<&BlockSummary>, now_ns: u64, max_bytes: u64) -> Vec<Job<'_>> {
    blocks.sort_unstable_by_key(|block| order(block));
    let mut jobs: Vec<Job<'_>> = Vec::new();
    for (window, level) in WINDOWS.into_iter().zip(1..) {
        let window_of = |block: &BlockSummary| block.received_last_ns / nanos(window);
        // A window waits for the jobs of the windows in it.
        let waiting: BTreeSet<_> = jobs.iter().filter_map(Job::last).map(window_of).collect();
        let mut next_level = Vec::new();
        for together in blocks.chunk_by(|a, b| window_of(a) == window_of(b)) {
            let Some(number) = together.first().map(|block| window_of(block)) else { continue };
            let is_over = (number + 1).saturating_mul(nanos(window)).saturating_add(nanos(SETTLING)) <= now_ns;
            let (candidates, done): (Vec<_>, Vec<_>) = together.iter().partition(|block| block.level < level);
            next_level.extend(done);
            if is_over && waiting.contains(&number) {
                continue;
            }
            let least = if is_over { 2 } else { MAX_INPUTS };
            for inputs in groups(&candidates, max_bytes) {
                match inputs {
                    [first, ..] if inputs.len() >= least => {
                        jobs.push(Job { tenant: &first.tenant, level, inputs: inputs.to_vec() });
                    }
                    _ if is_over => next_level.extend(inputs),
                    _ => {}
                }
            }
        }
        next_level.sort_unstable_by_key(|block| order(block));
        blocks = next_level;
    }
    jobs
}

impl<'a> Job<'a> {
    /// The input that was received last.
    fn last(&self) -> Option<&'a BlockSummary> {
        self.inputs.last().copied()
    }
}

/// The blocks in their order, as many at a time as fit into one.
fn groups<'s, 'a>(blocks: &'s [&'a BlockSummary], max_bytes: u64) -> impl Iterator<Item = &'s [&'a BlockSummary]> {
    let mut rest = blocks;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fitting = rest.iter().take(MAX_INPUTS).take_while(|block| {
            bytes += block.bytes;
            bytes <= max_bytes
        });
        // One that is too large by itself is a group by itself.
        let (group, others) = rest.split_at(fitting.count().max(1).min(rest.len()));
        rest = others;
        (!group.is_empty()).then_some(group)
    })
}

fn order(block: &BlockSummary) -> impl Ord + use<> {
    (block.received_last_ns, block.received_first_ns, block.id)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::fixture::{block, blocks};
    use super::*;
    use crate::block::BlockId;

    const MINUTE: u64 = 60_000_000_000;
    const DAY: u64 = 24 * 60 * MINUTE;

    fn policy(max_block_bytes: u64) -> Policy {
        Policy { max_block_bytes, ages: Ages::new(Duration::from_hours(7 * 24)) }
    }

    /// Level and minutes of the inputs of each job.
    fn planned(blocks: &[BlockSummary], now_minutes: u64, max_bytes: u64) -> Vec<(u8, Vec<u64>)> {
        let jobs = plan(blocks, now_minutes * MINUTE, &policy(max_bytes));
        let minutes = |job: &Job<'_>| job.inputs.iter().map(|block| block.received_last_ns / MINUTE).collect();
        jobs.iter().map(|job| (job.level, minutes(job))).collect()
    }

    fn at(level: u8, minutes: impl IntoIterator<Item = u64>) -> Vec<BlockSummary> {
        minutes.into_iter().map(|minute| block("a", level, minute * MINUTE, 10)).collect()
    }

    #[test]
    fn a_window_is_merged_when_it_is_over() {
        let blocks = at(0, [0, 4, 5, 6]);
        assert_eq!(planned(&blocks, 5, 1_000), []);
        assert_eq!(planned(&blocks, 6, 1_000), [(1, vec![0, 4])]);
        assert_eq!(planned(&blocks, 11, 1_000), [(1, vec![0, 4]), (1, vec![5, 6])]);
    }

    #[test]
    fn a_window_waits_for_the_jobs_in_it() {
        let mut blocks = at(1, [0, 5]);
        blocks.extend(at(0, [11, 12]));
        assert_eq!(planned(&blocks, 61, 1_000), [(1, vec![11, 12])]);
        let blocks = at(1, [0, 5, 12]);
        assert_eq!(planned(&blocks, 61, 1_000), [(2, vec![0, 5, 12])]);
    }

    #[test]
    fn a_block_alone_in_its_window_counts_as_one_of_the_next_level() {
        let mut blocks = at(1, [0]);
        blocks.extend(at(0, [50]));
        assert_eq!(planned(&blocks, 61, 1_000), [(2, vec![0, 50])]);
        assert_eq!(planned(&at(0, [0, 300]), 24 * 60 + 1, 1_000), [(3, vec![0, 300])]);
        assert_eq!(planned(&at(0, [0, 300]), 24 * 60, 1_000), []);
    }

    #[test]
    fn an_open_window_is_merged_once_there_are_as_many_blocks_as_a_job_takes() {
        let many = |count| at(0, std::iter::repeat_n(1, count));
        assert_eq!(planned(&many(MAX_INPUTS - 1), 2, 1_000), []);
        assert_eq!(planned(&many(MAX_INPUTS), 2, 1_000), [(1, vec![1; MAX_INPUTS])]);
        assert_eq!(planned(&many(2 * MAX_INPUTS + 5), 2, 1_000).len(), 2);
        // Those of another level wait for the end of theirs.
        let mut blocks = many(MAX_INPUTS - 1);
        blocks.extend(at(1, [1]));
        assert_eq!(planned(&blocks, 2, 1_000), []);
    }

    #[test]
    fn what_is_merged_fits_into_a_block() {
        let sizes = [900, 200, 300, 5_000, 400, 100];
        let blocks: Vec<_> = (0..).zip(sizes).map(|(minute, bytes)| block("a", 1, minute * MINUTE, bytes)).collect();
        assert_eq!(planned(&blocks, 61, 1_000), [(2, vec![1, 2]), (2, vec![4, 5])]);
    }

    #[test]
    fn tenants_are_not_mixed_and_small_blocks_come_first() {
        let mut blocks = at(1, [0, 1, 60, 61]);
        blocks.extend([70, 71].map(|minute| block("b", 0, minute * MINUTE, 10)));
        let jobs = [(1, vec![70, 71]), (2, vec![0, 1]), (2, vec![60, 61])];
        assert_eq!(planned(&blocks, 121, 1_000), jobs);
        assert_eq!(planned(&at(0, [1]), 121, 1_000), []);
    }

    #[test]
    fn what_is_deleted_soon_is_not_merged() {
        let week = 7 * 24 * 60;
        let blocks = at(0, [0, 1]);
        assert_eq!(planned(&blocks, week - 7 * 60, 1_000), [(1, vec![0, 1])]);
        assert_eq!(planned(&blocks, week - 6 * 60, 1_000), []);
    }

    /// A store of which only the list of blocks is there, and how often each was written since it was cut.
    #[derive(Clone, Debug, Default)]
    struct Model {
        blocks: Vec<BlockSummary>,
        rewritten: BTreeMap<BlockId, u32>,
    }

    impl Model {
        /// Carries out the first job. Merging saves a little.
        fn step(&mut self, now_ns: u64, policy: &Policy) -> bool {
            let list = self.blocks.clone();
            let jobs = plan(&list, now_ns, policy);
            let Some(Job { tenant, level, inputs }) = jobs.first() else { return false };
            let received_last_ns = inputs.iter().map(|block| block.received_last_ns).max().unwrap();
            let bytes: u64 = inputs.iter().map(|block| block.bytes).sum();
            let made = block(tenant, *level, received_last_ns, bytes - bytes / 50);
            let times = inputs.iter().map(|block| self.rewritten.get(&block.id).copied().unwrap_or_default());
            self.rewritten.insert(made.id, times.max().unwrap() + 1);
            self.blocks.retain(|block| inputs.iter().all(|input| input.id != block.id));
            self.blocks.push(made);
            true
        }

        fn most_rewritten(&self) -> u32 {
            self.rewritten.values().copied().max().unwrap_or_default()
        }
    }

    #[test]
    fn a_day_of_cuts_costs_three_rewrites_and_leaves_few_blocks_at_any_time() {
        let (mut model, policy) = (Model::default(), policy(u64::MAX));
        let mut longest = 0;
        for minute in 0..26 * 60 {
            // Every ten seconds for a day: two jobs in five minutes, two in an hour, three in the day.
            let cuts = if minute < 24 * 60 { 6 } else { 0 };
            model.blocks.extend((0..cuts).map(|cut| block("a", 0, minute * MINUTE + cut * MINUTE / 6, 10)));
            while model.step((minute + 1) * MINUTE, &policy) {}
            longest = longest.max(model.blocks.len());
        }
        assert!(longest <= 3 * MAX_INPUTS, "{longest} blocks");
        assert_eq!((model.blocks.len(), model.most_rewritten()), (3, 3));
    }

    #[test]
    fn a_flood_of_cuts_piles_up_no_blocks() {
        let (mut model, policy) = (Model::default(), policy(u64::MAX));
        for cut in 0..10_000 {
            model.blocks.push(block("a", 0, cut, 10));
            while model.step(cut, &policy) {}
            assert!(model.blocks.len() < 3 * MAX_INPUTS);
        }
        assert_eq!(model.most_rewritten(), 3);
    }

    proptest! {
        #[test]
        fn jobs_keep_the_rules(blocks in blocks(80), now in 0..3 * DAY, max_bytes in 1_u64..1_000) {
            let jobs = plan(&blocks, now, &policy(max_bytes));
            let mut ids = BTreeSet::new();
            for Job { tenant, level, inputs } in &jobs {
                let window = nanos(WINDOWS[usize::from(*level) - 1]);
                prop_assert!((2..=MAX_INPUTS).contains(&inputs.len()));
                prop_assert!(inputs.iter().map(|block| block.bytes).sum::<u64>() <= max_bytes);
                for block in inputs {
                    prop_assert!(ids.insert(block.id), "in two jobs");
                    prop_assert_eq!(&&block.tenant, tenant);
                    prop_assert_eq!(block.received_last_ns / window, inputs[0].received_last_ns / window);
                    prop_assert!(block.level < *level);
                    prop_assert!(block.bytes < max_bytes);
                }
            }
            let reversed: Vec<_> = blocks.iter().rev().cloned().collect();
            prop_assert_eq!(jobs, plan(&reversed, now, &policy(max_bytes)));
        }

        #[test]
        fn work_ends_with_few_blocks(blocks in blocks(60), max_bytes in 1_u64..2_000) {
            let policy = policy(max_bytes);
            let mut model = Model { blocks: blocks.clone(), ..Model::default() };
            let mut steps = 0;
            while model.step(4 * DAY, &policy) {
                steps += 1;
                prop_assert!(steps < blocks.len());
            }
            prop_assert!(model.most_rewritten() <= 3);
            // Of a tenant and a day, one block is left besides those that were done before, those that fill a job and
            // those that are too large to be merged with the next.
            for tenant in ["a", "b"] {
                for day in 0..2 {
                    let of_day = |list: &[BlockSummary]| -> Vec<BlockSummary> {
                        let of_day = |block: &&BlockSummary| &*block.tenant == tenant && block.received_last_ns / DAY == day;
                        list.iter().filter(of_day).cloned().collect()
                    };
                    let before = of_day(&blocks);
                    let done = before.iter().filter(|block| block.level == 3).count();
                    let bytes: u64 = before.iter().map(|block| block.bytes).sum();
                    let left = of_day(&model.blocks).len();
                    let few = done + 1 + before.len() / MAX_INPUTS + (2 * bytes / max_bytes) as usize;
                    prop_assert!(left <= few, "{left} of {}", before.len());
                }
            }
        }

        #[test]
        fn large_blocks_stay_as_they_are(mut blocks in blocks(40), large in 0_usize..40) {
            let id = blocks.get_mut(large).map(|block| {
                block.bytes = 1_000;
                block.id
            });
            let mut model = Model { blocks, ..Model::default() };
            while model.step(4 * DAY, &policy(1_000)) {}
            if let Some(id) = id {
                prop_assert!(model.blocks.iter().any(|block| block.id == id));
            }
        }
    }
}
