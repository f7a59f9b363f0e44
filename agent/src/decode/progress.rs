//! How far long responses have come, noted while they run; and when what is open is shown.

use super::Progress;

/// How often it is noted, at first.
const EVERY_NS: u64 = 10_000_000_000;
/// Notes of one exchange at most: with more, every other one is dropped, and the next ones come half as often.
const LIMIT: usize = 128;

/// Most time between two showings of an exchange that is open.
const SHOWN_EVERY_NS: u64 = 300_000_000_000;

/// Adds to the notes of an exchange.
#[derive(Debug)]
pub(super) struct Recorder<'a> {
    notes: &'a mut Notes,
    first_ns: u64,
}

/// When an open exchange was shown.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Showings {
    count: u32,
    last_ns: u64,
    /// The end that it was last shown with: it does not end before.
    pub(super) end_ns: u64,
}

impl Showings {
    /// Whether an exchange that began at `begin_ns` is to be shown now: when it has been open for `after_ns`, then after
    /// twice as long, and so on, but every five minutes at least.
    pub(super) fn is_due(&mut self, begin_ns: u64, after_ns: u64, now_ns: u64) -> bool {
        let wait_ns = after_ns.saturating_mul(1 << self.count.min(20)).min(SHOWN_EVERY_NS.max(after_ns));
        let is_due = now_ns.saturating_sub(self.last_ns.max(begin_ns)) >= wait_ns;
        if is_due {
            (self.count, self.last_ns) = (self.count + 1, now_ns);
        }
        is_due
    }
}

/// The notes of an exchange, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes {
    pub(super) all: Vec<Progress>,
    /// How often notes were thinned out.
    halved: u32,
}

impl<'a> Recorder<'a> {
    /// For the exchange whose response began at `first_ns`.
    pub(super) const fn of(notes: &'a mut Notes, first_ns: u64) -> Self {
        Self { notes, first_ns }
    }

    /// Notes `progress`, if the last note is old enough.
    pub(super) fn note(&mut self, progress: Progress) {
        let Notes { all, halved } = self.notes;
        let last_ns = all.last().map_or(self.first_ns, |last| last.time_ns);
        if progress.time_ns.saturating_sub(last_ns) < EVERY_NS << (*halved).min(20) {
            return;
        }
        if all.len() >= LIMIT {
            let mut place = 0_u32;
            all.retain(|_| {
                place += 1;
                place.is_multiple_of(2)
            });
            *halved += 1;
        }
        all.push(progress);
    }
}

/// An answer that began at `first_ns` is a long stream at `now_ns`.
pub(super) const fn is_long(first_ns: u64, now_ns: u64) -> bool {
    first_ns > 0 && now_ns.saturating_sub(first_ns) >= EVERY_NS
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn notes(seconds: u64) -> Vec<u64> {
        let mut notes = Notes::default();
        for second in 0..=seconds {
            let time_ns = (5 + second) * SECOND;
            let progress = Progress { time_ns, request_bytes: 0, response_bytes: second, chunks: 0 };
            Recorder::of(&mut notes, 5 * SECOND).note(progress);
        }
        notes.all.iter().map(|note| note.response_bytes).collect()
    }

    #[test]
    fn every_ten_seconds() {
        assert_eq!(notes(9), [0_u64; 0]);
        assert_eq!(notes(35), [10, 20, 30]);
    }

    #[test]
    fn what_is_open_is_shown_ever_less_often() {
        let mut showings = Showings::default();
        let shown: Vec<u64> =
            (0..2000).filter(|second| showings.is_due(5 * SECOND, 10 * SECOND, (5 + second) * SECOND)).collect();
        assert_eq!(shown, [10, 30, 70, 150, 310, 610, 910, 1210, 1510, 1810]);
    }

    #[test]
    fn a_day_takes_no_more_room_than_an_hour() {
        let day = notes(86_400);
        assert!((LIMIT / 2..=LIMIT).contains(&day.len()), "{}", day.len());
        assert!(day.is_sorted() && *day.last().unwrap() > 84_000, "{day:?}");
    }
}
