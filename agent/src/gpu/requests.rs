//! How many requests a process had open at a time, so that what it used can be divided among them.
//!
//! Of requests to models each gets the same part while it is open. Other requests of the same process, such as probes of its
//! health, get a part only while none to a model is open.

use std::collections::VecDeque;

use foldhash::HashMap;

use super::join::Interval;

/// Processes, and changes of each, that are remembered.
const PROCESSES: usize = 1024;
const CHANGES: usize = 65_536;
/// How long: as long as samples are.
const REMEMBERED_NS: u64 = 600_000_000_000;

/// A request that was served, or is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Request {
    /// The process that serves it.
    pub(super) tgid: u32,
    /// When it is open.
    pub(super) interval: Interval,
    /// It is one to a model.
    pub(super) is_model: bool,
}

/// Requests that are open.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Open {
    models: i32,
    others: i32,
}

impl Open {
    const fn of(is_model: bool, count: i32) -> Self {
        if is_model { Self { models: count, others: 0 } } else { Self { models: 0, others: count } }
    }

    /// The part of one of them, 0 to 1. One that is not counted is as the others.
    fn part(self, is_model: bool) -> f64 {
        match (is_model, self.models > 0) {
            (true, _) => 1.0 / f64::from(self.models.max(1)),
            (false, true) => 0.0,
            (false, false) => 1.0 / f64::from(self.others.max(1)),
        }
    }
}

impl std::ops::AddAssign for Open {
    fn add_assign(&mut self, other: Self) {
        self.models += other.models;
        self.others += other.others;
    }
}

impl std::ops::SubAssign for Open {
    fn sub_assign(&mut self, other: Self) {
        self.models -= other.models;
        self.others -= other.others;
    }
}

/// A request began or ended.
#[derive(Clone, Copy, Debug)]
struct Change {
    time_ns: u64,
    by: Open,
}

/// Requests of one process.
#[derive(Clone, Debug, Default)]
struct Line {
    /// What is open behind the last change.
    open: Open,
    /// In the order of their times.
    changes: VecDeque<Change>,
}

impl Line {
    fn add(&mut self, time_ns: u64, by: Open) {
        // Ends are known late, but not very: what is behind the new one is little.
        let behind = self.changes.iter().rev().take_while(|change| change.time_ns > time_ns).count();
        self.changes.insert(self.changes.len() - behind, Change { time_ns, by });
        self.open += by;
        while self.changes.len() > CHANGES
            || self.changes.front().is_some_and(|first| time_ns.saturating_sub(first.time_ns) > REMEMBERED_NS)
        {
            self.changes.pop_front();
        }
    }

    /// The changes behind `time_ns`, and what was open then. Asked of times that are not long ago.
    fn since(&self, time_ns: u64) -> (usize, Open) {
        let (mut index, mut open) = (self.changes.len(), self.open);
        for change in self.changes.iter().rev().take_while(|change| change.time_ns > time_ns) {
            index -= 1;
            open -= change.by;
        }
        (index, open)
    }
}

/// A part of a request's time, and how much of what the process used then is the request's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Piece {
    pub(super) interval: Interval,
    /// 0 to 1.
    pub(super) part: f64,
}

/// The requests of processes.
#[derive(Clone, Debug, Default)]
pub(super) struct Requests {
    lines: HashMap<u32, Line>,
}

impl Requests {
    pub(super) fn began(&mut self, tgid: u32, time_ns: u64, is_model: bool) {
        self.change(tgid, time_ns, Open::of(is_model, 1));
    }

    pub(super) fn ended(&mut self, tgid: u32, time_ns: u64, is_model: bool) {
        self.change(tgid, time_ns, Open::of(is_model, -1));
    }

    /// It was none: takes [`Self::began`] back.
    pub(super) fn dropped(&mut self, tgid: u32, began_ns: u64, is_model: bool) {
        self.change(tgid, began_ns, Open::of(is_model, -1));
    }

    fn change(&mut self, tgid: u32, time_ns: u64, by: Open) {
        if self.lines.len() < PROCESSES || self.lines.contains_key(&tgid) {
            self.lines.entry(tgid).or_default().add(time_ns, by);
        }
    }

    /// Forgets processes that had no request for long.
    pub(super) fn forget(&mut self, now_ns: u64) {
        let is_recent = |change: &Change| now_ns.saturating_sub(change.time_ns) < REMEMBERED_NS;
        self.lines.retain(|_, line| line.changes.back().is_some_and(is_recent));
    }

    /// The request's time, in pieces in which as many were open.
    pub(super) fn pieces(&self, request: Request) -> Vec<Piece> {
        let Interval { start_ns, end_ns } = request.interval;
        let mut pieces = Vec::new();
        let mut from_ns = start_ns;
        for (to_ns, open) in self.steps(request.tgid, request.interval) {
            let part = open.part(request.is_model);
            match pieces.last_mut() {
                Some(Piece { interval, part: last }) if (*last - part).abs() < f64::EPSILON => interval.end_ns = to_ns,
                _ => pieces.push(Piece { interval: Interval { start_ns: from_ns, end_ns: to_ns }, part }),
            }
            from_ns = to_ns;
        }
        if pieces.is_empty() {
            // Without length.
            let part = self.open_at(request.tgid, start_ns).part(request.is_model);
            pieces.push(Piece { interval: Interval { start_ns, end_ns }, part });
        }
        pieces
    }

    /// Most that shared with it at a time, itself included.
    pub(super) fn most(&self, request: Request) -> u64 {
        let least = self.pieces(request).iter().map(|piece| piece.part).filter(|part| *part > 0.0).fold(1.0, f64::min);
        (1.0 / least).round() as u64
    }

    /// What was open from one time to the next: the ends of those times, and how much was open until then.
    fn steps(&self, tgid: u32, interval: Interval) -> Vec<(u64, Open)> {
        let mut steps = Vec::new();
        let mut open = Open::default();
        if let Some(line) = self.lines.get(&tgid) {
            let (index, at_start) = line.since(interval.start_ns);
            open = at_start;
            for change in line.changes.range(index..).take_while(|change| change.time_ns < interval.end_ns) {
                if steps.last().is_none_or(|(to_ns, _)| *to_ns < change.time_ns) {
                    steps.push((change.time_ns, open));
                }
                open += change.by;
            }
        }
        if interval.start_ns < interval.end_ns {
            steps.push((interval.end_ns, open));
        }
        steps
    }

    fn open_at(&self, tgid: u32, time_ns: u64) -> Open {
        self.lines.get(&tgid).map_or(Open::default(), |line| line.since(time_ns).1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(start_ns: u64, end_ns: u64, is_model: bool) -> Request {
        Request { tgid: 7, interval: Interval { start_ns, end_ns }, is_model }
    }

    fn of(all: &[Request]) -> Requests {
        let mut requests = Requests::default();
        for it in all {
            requests.began(it.tgid, it.interval.start_ns, it.is_model);
        }
        for it in all {
            requests.ended(it.tgid, it.interval.end_ns, it.is_model);
        }
        requests
    }

    fn parts(requests: &Requests, of: Request) -> Vec<(u64, u64, f64)> {
        let pieces = requests.pieces(of).into_iter();
        pieces.map(|it| (it.interval.start_ns, it.interval.end_ns, it.part)).collect()
    }

    #[test]
    fn requests_share_while_they_overlap() {
        let all = [request(0, 100, true), request(50, 200, true), request(60, 70, false), request(150, 300, false)];
        let requests = of(&all);
        assert_eq!(parts(&requests, all[0]), [(0, 50, 1.0), (50, 100, 0.5)]);
        assert_eq!(parts(&requests, all[1]), [(50, 100, 0.5), (100, 200, 1.0)]);
        assert_eq!(parts(&requests, all[2]), [(60, 70, 0.0)], "a model is at work");
        assert_eq!(parts(&requests, all[3]), [(150, 200, 0.0), (200, 300, 1.0)]);
        assert_eq!(all.map(|it| requests.most(it)), [2, 2, 1, 1]);
    }

    #[test]
    fn one_of_another_process_does_not_count() {
        let other = Request { tgid: 8, ..request(0, 100, true) };
        let requests = of(&[request(0, 100, true), other]);
        assert_eq!(parts(&requests, other), [(0, 100, 1.0)]);
        assert_eq!(parts(&requests, Request { tgid: 9, ..other }), [(0, 100, 1.0)], "of which nothing is known");
    }

    #[test]
    fn one_that_was_none_is_taken_back() {
        let mut requests = of(&[request(0, 100, true)]);
        requests.began(7, 10, true);
        requests.dropped(7, 10, true);
        assert_eq!(parts(&requests, request(0, 100, true)), [(0, 100, 1.0)]);
    }

    #[test]
    fn what_is_old_is_forgotten_and_what_is_open_is_not() {
        let mut requests = Requests::default();
        requests.began(7, 1, true);
        for number in 1..200_000 {
            requests.began(7, number * 10, true);
            requests.ended(7, number * 10 + 5, true);
        }
        assert!(requests.lines[&7].changes.len() <= CHANGES);
        assert_eq!(requests.open_at(7, 3_000_000), Open { models: 1, others: 0 });
        requests.forget(REMEMBERED_NS + 2_000_000);
        assert_eq!(requests.lines.len(), 0);
    }

    proptest! {
        /// At no time do all requests together get more than there is, and while one is open they get all of it.
        #[test]
        fn parts_add_up(
            all in prop::collection::vec((0_u64..1000, 1_u64..300, any::<bool>()), 1..12),
            at in 0_u64..1300,
        ) {
            let all: Vec<Request> = all.into_iter().map(|(start, length, is_model)| request(start, start + length, is_model)).collect();
            let requests = of(&all);
            let is_open = |it: &&Request| it.interval.start_ns <= at && at < it.interval.end_ns;
            let part = |it: &Request| {
                let pieces = requests.pieces(*it);
                pieces.iter().find(|piece| piece.interval.start_ns <= at && at < piece.interval.end_ns).unwrap().part
            };
            let sum: f64 = all.iter().filter(is_open).map(part).sum();
            let expected = if all.iter().any(|it| is_open(&it)) { 1.0 } else { 0.0 };
            prop_assert!((sum - expected).abs() < 1e-9, "{} at {}", sum, at);
        }
    }
}
