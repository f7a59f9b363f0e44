//! A check of the programs' own account: records are numbered for each CPU, so what is missing can be counted.

/// Numbers seen so far.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    /// For each CPU: how many numbers there must be, by the highest that was seen.
    expected: Vec<u64>,
    seen: u64,
}

impl Sequence {
    /// Notes a record.
    pub(super) fn see(&mut self, cpu: u32, number: u64) {
        let cpu = cpu as usize;
        if cpu >= self.expected.len() {
            self.expected.resize(cpu + 1, 0);
        }
        if let Some(expected) = self.expected.get_mut(cpu) {
            *expected = (*expected).max(number.saturating_add(1));
        }
        self.seen += 1;
    }

    /// Records that were numbered, but not seen. A record may overtake the one before it, so this is exact only when
    /// nothing is under way.
    pub(super) fn missing(&self) -> u64 {
        self.expected.iter().sum::<u64>().saturating_sub(self.seen)
    }

    /// Records seen.
    pub(super) const fn seen(&self) -> u64 {
        self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_counted_whatever_the_order() {
        let mut sequence = Sequence::default();
        for (cpu, number) in [(0, 0), (2, 1), (0, 2), (2, 0), (0, 1)] {
            sequence.see(cpu, number);
        }
        assert_eq!((sequence.missing(), sequence.seen()), (0, 5));
        sequence.see(0, 5);
        assert_eq!(sequence.missing(), 2);
        sequence.see(0, 3);
        assert_eq!((sequence.missing(), sequence.seen()), (1, 7));
    }
}
