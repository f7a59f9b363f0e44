//! The samples on disk, one file for each window of collections of a tenant: `docs/format/history.md`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use prost::Message;
use tracing::warn;

use super::{History, SERIES_BYTES, Series, Tenant, WINDOW, WINDOW_BYTES, Window, read};
use crate::sealed::{Seal, SealError};
use crate::telemetry::chain;

const SEAL: Seal = Seal { magic: *b"CGHI", version: 1 };

/// Samples cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// A file cannot be read or written.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is of another tenant or window than its name says, or its samples are not those of its collections.
    #[error("damaged")]
    Damaged,
    /// What is in it are no samples.
    #[error(transparent)]
    Sealed(#[from] SealError),
}

/// What the name of a file ends with while it is written.
const NEW: &str = ".new";

/// What the name of one ends with that a later version of this program wrote, once it was found here. It stays.
const LATER: &str = ".later";

/// A window of a tenant.
#[derive(Clone, PartialEq, Message)]
struct SavedChunk {
    #[prost(string, tag = "1")]
    tenant: String,
    /// Number of the first collection.
    #[prost(uint64, tag = "2")]
    first: u64,
    /// Milliseconds since the epoch, each less the one before.
    #[prost(sint64, repeated, tag = "3")]
    times: Vec<i64>,
    #[prost(message, repeated, tag = "4")]
    series: Vec<SavedSeries>,
}

#[derive(Clone, PartialEq, Message)]
struct SavedSeries {
    /// Names and values of labels, each ended by 0xff.
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(message, repeated, tag = "2")]
    windows: Vec<SavedWindow>,
}

/// Samples that follow each other.
#[derive(Clone, PartialEq, Message)]
struct SavedWindow {
    /// The collections of the first sample and of the last, counted from the file's first.
    #[prost(uint32, tag = "1")]
    begin: u32,
    #[prost(uint32, tag = "2")]
    end: u32,
    /// Bits of the first value: a message does not tell the two zeros apart.
    #[prost(fixed64, tag = "3")]
    first: u64,
    #[prost(bytes = "vec", tag = "4")]
    changes: Vec<u8>,
    /// When it was zero, if that is before its first sample.
    #[prost(sint64, optional, tag = "5")]
    zero_ms: Option<i64>,
}

/// A folder with the samples.
#[derive(Debug)]
pub struct HistoryFolder {
    path: PathBuf,
    /// The files that are there: by tenant and window, the number behind that of the last collection in them.
    files: BTreeMap<(String, u64), u64>,
}

impl HistoryFolder {
    /// Opens the folder and adds what is in it to a history that is empty; what is damaged is logged, and deleted
    /// with what is before it. What a later version wrote gets another name.
    pub fn open(path: &Path, history: &History) -> Result<Self, HistoryError> {
        crate::store::create_dir(path).map_err(|source| file_error(path, source))?;
        let mut chunks: BTreeMap<(String, u64), SavedChunk> = BTreeMap::new();
        for entry in fs::read_dir(path).map_err(|source| file_error(path, source))? {
            let file = entry.map_err(|source| file_error(path, source))?.path();
            if ends_with(&file, LATER) {
                continue;
            }
            let read = fs::read(&file).map_err(|source| file_error(&file, source)).and_then(|bytes| decode(&bytes));
            match read {
                Ok(chunk) if file == path.join(file_name(&chunk.tenant, chunk.first / WINDOW)) => {
                    chunks.insert((chunk.tenant.clone(), chunk.first), chunk);
                }
                Err(error @ HistoryError::Sealed(SealError::Version(_))) => {
                    let mut later = file.clone().into_os_string();
                    later.push(LATER);
                    warn!(file = %file.display(), error = %chain(&error), "samples stay on disk as `….later` and are not shown");
                    fs::rename(&file, later).map_err(|source| file_error(&file, source))?;
                }
                // What a crash left of one that was being written ends here too.
                other => {
                    if let Err(error) = other.and(Err::<(), _>(HistoryError::Damaged))
                        && !ends_with(&file, NEW)
                    {
                        warn!(file = %file.display(), error = %chain(&error), "samples of the last hours are lost");
                    }
                    fs::remove_file(&file).map_err(|source| file_error(&file, source))?;
                }
            }
        }
        let mut files = BTreeMap::new();
        let mut tenants = history.tenants();
        for ((name, first), chunk) in chunks {
            files.insert((name.clone(), first / WINDOW), first + chunk.times.len() as u64);
            let tenant = tenants.entry(name).or_default();
            if tenant.times.is_empty() || tenant.first + tenant.times.len() as u64 != first {
                // Nothing is known of what is between.
                *tenant = Tenant { first, ..Tenant::default() };
            }
            tenant.add_chunk(chunk);
        }
        for tenant in tenants.values_mut() {
            let newest = tenant.times.back().copied().unwrap_or_default();
            tenant.forget_before(newest.saturating_sub_unsigned(history.max_age_ms));
        }
        drop(tenants);
        let mut folder = Self { path: path.to_owned(), files };
        folder.remove_forgotten(history)?;
        Ok(folder)
    }

    /// Writes what came since the last time, and deletes what is forgotten; on disk when this returns. Blocks.
    pub fn save(&mut self, history: &History) -> Result<(), HistoryError> {
        let mut changed = Vec::new();
        {
            let tenants = history.tenants();
            for (name, tenant) in tenants.iter() {
                for (window, end) in tenant.windows() {
                    let held = self.files.get(&(name.clone(), window));
                    if held.is_none_or(|held| *held < end) {
                        changed.push((window, end, tenant.chunk(name, window)));
                    }
                }
            }
        }
        // Queries go on while this is compressed and written.
        for (window, end, chunk) in &changed {
            let name = file_name(&chunk.tenant, *window);
            let (path, new) = (self.path.join(&name), self.path.join(name + NEW));
            let written = SEAL.encode(chunk).and_then(|bytes| {
                let mut file = File::create(&new)?;
                file.write_all(&bytes)?;
                file.sync_all()?;
                fs::rename(&new, &path)
            });
            written.map_err(|source| file_error(&path, source))?;
            self.files.insert((chunk.tenant.clone(), *window), *end);
        }
        if !changed.is_empty() {
            let synced = File::open(&self.path).and_then(|folder| folder.sync_all());
            synced.map_err(|source| file_error(&self.path, source))?;
        }
        self.remove_forgotten(history)
    }

    fn remove_forgotten(&mut self, history: &History) -> Result<(), HistoryError> {
        let first: BTreeMap<_, _> =
            history.tenants().iter().map(|(name, tenant)| (name.clone(), tenant.first)).collect();
        let forgotten =
            |(name, window): &(String, u64)| first.get(name).is_none_or(|first| (window + 1) * WINDOW <= *first);
        let gone: Vec<_> = self.files.keys().filter(|file| forgotten(file)).cloned().collect();
        for (name, window) in gone {
            let path = self.path.join(file_name(&name, window));
            fs::remove_file(&path).map_err(|source| file_error(&path, source))?;
            self.files.remove(&(name, window));
        }
        Ok(())
    }
}

fn ends_with(file: &Path, end: &str) -> bool {
    file.as_os_str().as_encoded_bytes().ends_with(end.as_bytes())
}

/// Every letter that the name of a tenant may have, that of a file may have too.
fn file_name(tenant: &str, window: u64) -> String {
    format!("{tenant}-{window:010}")
}

fn file_error(path: &Path, source: io::Error) -> HistoryError {
    HistoryError::File { path: path.to_owned(), source }
}

fn decode(bytes: &[u8]) -> Result<SavedChunk, HistoryError> {
    let chunk: SavedChunk = SEAL.decode(bytes)?;
    if chunk.is_sound() { Ok(chunk) } else { Err(HistoryError::Damaged) }
}

/// Reads a file and forgets it: for the fuzz target.
pub fn check_history(bytes: &[u8]) -> Result<(), HistoryError> {
    let chunk = decode(bytes)?;
    let history = History::new(u64::MAX, usize::MAX);
    let name = chunk.tenant.clone();
    let tenant = Tenant { first: chunk.first, ..Tenant::default() };
    history.tenants().entry(name.clone()).or_insert(tenant).add_chunk(chunk);
    history.select(&name, i64::MIN, i64::MAX, |_| true);
    Ok(())
}

impl SavedChunk {
    /// Whether its samples are those of its collections.
    fn is_sound(&self) -> bool {
        let room = WINDOW.saturating_sub(self.first % WINDOW);
        let collections = self.times.len() as u64;
        let sound = |windows: &[SavedWindow]| {
            let each = windows.iter().all(|window| window.is_sound(collections));
            each && windows.is_sorted_by(|before, after| before.end < after.begin)
        };
        (1..=room).contains(&collections)
            && self.first < u64::MAX / 2
            && self.series.iter().all(|series| !series.windows.is_empty() && sound(&series.windows))
    }
}

impl SavedWindow {
    fn is_sound(&self, collections: u64) -> bool {
        if self.begin > self.end || u64::from(self.end) >= collections {
            return false;
        }
        // Every change is at a later collection than the one before, and the last is not behind the end.
        let (mut rest, mut at) = (self.changes.as_slice(), u64::from(self.begin));
        while !rest.is_empty() {
            let Some(gap) = read(&mut rest) else { return false };
            at = at.saturating_add(gap >> 1);
            let value = if gap & 1 == 1 {
                rest.split_first_chunk::<8>().map(|(_, after)| rest = after)
            } else {
                read(&mut rest).map(drop)
            };
            if value.is_none() || gap >> 1 == 0 || at > u64::from(self.end) {
                return false;
            }
        }
        true
    }
}

impl Tenant {
    /// Numbers of the windows of which there are collections, and the number behind that of the last one in each.
    fn windows(&self) -> impl Iterator<Item = (u64, u64)> {
        let end = self.first + self.times.len() as u64;
        let numbers = self.first / WINDOW..end.div_ceil(WINDOW);
        numbers.map(move |window| (window, end.min((window + 1) * WINDOW)))
    }

    fn chunk(&self, name: &str, window: u64) -> SavedChunk {
        let first = self.first.max(window * WINDOW);
        let end = (self.first + self.times.len() as u64).min((window + 1) * WINDOW);
        let place = |number: u64| (number - self.first) as usize;
        let mut before = 0;
        let times = self.times.range(place(first)..place(end)).map(|time| time - std::mem::replace(&mut before, *time));
        let times = times.collect();
        let series = self.series.iter().filter_map(|(key, series)| {
            let inside = series.windows.iter().filter(|held| held.begin / WINDOW == window && held.end >= first);
            let windows: Vec<_> = inside.map(|held| SavedWindow::of(held, first, series)).collect();
            (!windows.is_empty()).then(|| SavedSeries { key: key.to_vec(), windows })
        });
        SavedChunk { tenant: name.to_owned(), first, times, series: series.collect() }
    }

    /// Adds what follows what is there.
    fn add_chunk(&mut self, chunk: SavedChunk) {
        let SavedChunk { first, times, series, .. } = chunk;
        let mut time = 0_i64;
        for step in times {
            time = time.saturating_add(step);
            self.times.push_back(time);
        }
        for SavedSeries { key, windows } in series {
            if !self.series.contains_key(key.as_slice()) {
                self.bytes += key.len() + SERIES_BYTES;
            }
            let held = self.series.entry(key.into_boxed_slice()).or_default();
            for saved in windows {
                let window = saved.window(first);
                self.bytes += WINDOW_BYTES + window.changes.len();
                held.begins.extend(saved.zero_ms.map(|time| (window.begin, time)));
                held.windows.push_back(window);
            }
        }
    }
}

impl SavedWindow {
    fn of(window: &Window, first: u64, series: &Series) -> Self {
        if window.begin < first {
            // The beginning is forgotten.
            let mut left: Option<Window> = None;
            window.samples(|number, value| match &mut left {
                _ if number < first => {}
                Some(left) => _ = left.add(number, value),
                None => left = Some(Window::new(number, value)),
            });
            if let Some(left) = left {
                return Self::of(&left, first, series);
            }
        }
        let zero = series.begins.iter().find(|(number, _)| *number == window.begin);
        Self {
            begin: window.begin.saturating_sub(first) as u32,
            end: window.end.saturating_sub(first) as u32,
            first: window.first.to_bits(),
            changes: window.changes.clone(),
            zero_ms: zero.map(|(_, time)| *time),
        }
    }

    fn window(&self, first: u64) -> Window {
        let begin = first + u64::from(self.begin);
        let mut window = Window { changes: self.changes.clone(), ..Window::new(begin, f64::from_bits(self.first)) };
        window.end = first + u64::from(self.end);
        let (mut last, mut changed) = (window.first, begin);
        window.samples(|number, value| {
            if value.to_bits() != last.to_bits() {
                (last, changed) = (value, number);
            }
        });
        (window.last, window.changed) = (last, changed);
        window
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Labels, Samples};
    use super::*;
    use proptest::prelude::*;

    fn all(history: &History) -> Vec<(Labels, Vec<(i64, u64)>)> {
        let bits = |samples: Samples| samples.into_iter().map(|(time, value)| (time, value.to_bits())).collect();
        let found = history.select("t.1", i64::MIN, i64::MAX, |_| true);
        found.into_iter().map(|(labels, samples)| (labels, bits(samples))).collect()
    }

    /// A collection every 10 ms: `steady`, and `sometimes` where there is a value.
    fn collect(history: &History, number: u64, value: Option<f64>) {
        let mut adding = history.add("t.1", 10 * number);
        adding.sample(&[("__name__", "steady")], 1.0, None);
        if let Some(value) = value {
            let begins = number.is_multiple_of(7).then_some(10 * number - 5);
            adding.sample(&[("__name__", "sometimes"), ("x", "é")], value, begins);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        /// What was saved is there after a restart, and what comes then follows it, whenever it was saved.
        #[test]
        fn a_restart_takes_nothing(
            values in prop::collection::vec(prop::option::of(prop_oneof![
                (0..20_u32).prop_map(f64::from), any::<f64>(), Just(super::super::STALE)
            ]), 1..700),
            restarts in prop::collection::btree_set(0..700_usize, 0..4),
            kept in 10..900_u64,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let expected = History::new(kept * 10, usize::MAX);
            let mut history = History::new(kept * 10, usize::MAX);
            let mut disk = HistoryFolder::open(folder.path(), &history).unwrap();
            for (number, value) in values.iter().enumerate() {
                collect(&expected, number as u64 + 1, *value);
                collect(&history, number as u64 + 1, *value);
                if number % 50 == 0 {
                    disk.save(&history).unwrap();
                }
                if restarts.contains(&number) {
                    disk.save(&history).unwrap();
                    history = History::new(kept * 10, usize::MAX);
                    disk = HistoryFolder::open(folder.path(), &history).unwrap();
                }
            }
            prop_assert_eq!(all(&history), all(&expected));
            disk.save(&history).unwrap();
            let held = fs::read_dir(folder.path()).unwrap().count() as u64;
            prop_assert!(held <= kept.min(values.len() as u64) / WINDOW + 2, "{} files", held);
        }

        #[test]
        fn any_bytes_are_samples_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = check_history(&bytes);
        }

        /// Behind a right checksum too.
        #[test]
        fn any_changes_are_samples_or_refused(
            changes in prop::collection::vec(any::<u8>(), 0..60),
            (begin, end) in (0..5_u32, 0..5_u32),
        ) {
            let windows = vec![SavedWindow { begin, end, first: 1.0_f64.to_bits(), changes, zero_ms: Some(0) }];
            let series = vec![SavedSeries { key: b"a\xffb\xff".to_vec(), windows }];
            let chunk = SavedChunk { tenant: "t".to_owned(), first: 3, times: vec![1; 4], series };
            let _ = check_history(&SEAL.encode(&chunk).unwrap());
        }
    }

    fn history() -> History {
        let history = History::new(u64::MAX, usize::MAX);
        for (number, value) in
            (1..).zip([Some(1.0), Some(2.0), None, Some(0.5), Some(f64::INFINITY), Some(7.0), Some(7.5)])
        {
            collect(&history, number, value);
        }
        history
    }

    #[test]
    fn a_file_that_is_cut_or_changed_is_refused() {
        let bytes = SEAL.encode(&history().tenants()["t.1"].chunk("t.1", 0)).unwrap();
        check_history(&bytes).unwrap();
        for length in 0..bytes.len() {
            assert!(check_history(&bytes[..length]).is_err(), "{length}");
            let mut changed = bytes.clone();
            changed[length] ^= 0x10;
            assert!(check_history(&changed).is_err(), "{length}");
        }
    }

    #[test]
    fn what_is_before_a_damaged_file_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::new(u64::MAX, usize::MAX);
        let mut disk = HistoryFolder::open(folder.path(), &history).unwrap();
        (1..=600).for_each(|number| collect(&history, number, None));
        disk.save(&history).unwrap();
        let path = folder.path().join(file_name("t.1", 1));
        fs::write(&path, b"CGHInoise").unwrap();
        fs::write(folder.path().join("0.new"), b"torn").unwrap();
        let again = History::new(u64::MAX, usize::MAX);
        HistoryFolder::open(folder.path(), &again).unwrap();
        let times: Vec<_> = all(&again)[0].1.iter().map(|(time, _)| *time).collect();
        assert_eq!((times.first(), times.last(), times.len()), (Some(&4_810), Some(&6_000), 120));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_later_version_wrote_stays() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::new(u64::MAX, usize::MAX);
        let mut disk = HistoryFolder::open(folder.path(), &history).unwrap();
        (1..=300).for_each(|number| collect(&history, number, None));
        disk.save(&history).unwrap();
        let path = folder.path().join(file_name("t.1", 1));
        let later = Seal { version: 2, ..SEAL }.encode(&history.tenants()["t.1"].chunk("t.1", 1)).unwrap();
        fs::write(&path, &later).unwrap();
        for _ in 0..2 {
            let again = History::new(u64::MAX, usize::MAX);
            let mut disk = HistoryFolder::open(folder.path(), &again).unwrap();
            assert_eq!(all(&again)[0].1.len(), 240, "the window before it is there");
            // The same window is written again, beside it.
            (241..=250).for_each(|number| collect(&again, number, None));
            disk.save(&again).unwrap();
            fs::remove_file(&path).unwrap();
        }
        assert_eq!(fs::read(folder.path().join("t.1-0000000001.later")).unwrap(), later);
    }

    /// The file of `docs/format/history.md`, as version 1 has it for ever.
    #[test]
    fn the_format_is_that_of_the_fixture() {
        let fixture = include_bytes!("../../../tests/fixtures/history-1");
        let mut chunk = decode(fixture).unwrap();
        let mut expected = history().tenants()["t.1"].chunk("t.1", 0);
        for chunk in [&mut chunk, &mut expected] {
            chunk.series.sort_by(|a, b| a.key.cmp(&b.key));
        }
        assert_eq!(chunk, expected);
    }
}
