//! Tags that wait to be written: those of many requests are written together, with the next checkpoint or for the next who
//! reads.
//!
//! What waits is lost in a crash, and so is no more than what was put after the last checkpoint: the log has it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use prometheus_client::metrics::counter::Counter;

use super::store::{name_key, write};
use super::{CatalogError, Hours, Seen, SledCatalog, values};

/// Bytes that may wait.
const MOST_BYTES: usize = 128 << 10;

/// What came of each name, by the key that it has in the store.
pub(super) type ByName = BTreeMap<Vec<u8>, (Hours, Vec<u8>)>;

/// What waits.
#[derive(Debug)]
pub(super) struct Noted {
    waiting: Mutex<Waiting>,
    /// Held until what was taken is in the store, so that nobody reads in between.
    writing: Mutex<()>,
    failed: Counter,
}

#[derive(Debug, Default)]
struct Waiting {
    by_name: ByName,
    bytes: usize,
}

impl Noted {
    /// Nothing waits; `failed` is told of each time that what does could not be written.
    pub(super) fn new(failed: Counter) -> Self {
        Self { failed, waiting: Mutex::default(), writing: Mutex::default() }
    }
}

impl Waiting {
    /// What came of one name becomes one entry: a store has many values of few names.
    fn add(&mut self, tenant: &str, seen: &[Seen]) {
        for Seen { scope, name, value, hours } in seen {
            let key = name_key(tenant, *scope, name);
            let length = key.len();
            let (all_hours, values) = self.by_name.entry(key).or_insert_with(|| {
                self.bytes += length;
                (*hours, Vec::new())
            });
            *all_hours = all_hours.union(*hours);
            if let Some(value) = value {
                let before = values.len();
                values::push(values, value, *hours);
                self.bytes += values.len() - before;
            }
        }
    }
}

impl SledCatalog {
    /// Lets tags wait; false, and nothing is done, if too many do.
    pub(super) fn let_wait(&self, tenant: &str, seen: &[Seen]) -> bool {
        let mut waiting = self.noted.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.bytes >= MOST_BYTES {
            return false;
        }
        waiting.add(tenant, seen);
        true
    }

    /// Writes tags, and what waits. If that fails all of it is lost, which the caller counts as one failure.
    pub(super) fn write_with(&self, tenant: &str, seen: &[Seen]) -> Result<(), CatalogError> {
        let _one_at_a_time = self.noted.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut waiting = {
            let mut waiting = self.noted.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *waiting)
        };
        waiting.add(tenant, seen);
        if waiting.by_name.is_empty() { Ok(()) } else { self.with(|trees| write(trees, &waiting.by_name)) }
    }

    /// Writes what waits.
    pub(super) fn write_noted(&self) -> Result<(), CatalogError> {
        self.write_with("", &[]).inspect_err(|_| _ = self.noted.failed.inc())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Catalog, Scope, TagValue};
    use crate::telemetry::CatalogMetrics;

    fn open(dir: &std::path::Path) -> SledCatalog {
        SledCatalog::open(&dir.join("catalog"), &CatalogMetrics::default(), Ok).unwrap()
    }

    fn seen(name: &str, number: i64) -> Seen {
        let hours = Hours { first: 7, last: 7 };
        Seen { scope: Scope::Span, name: name.to_owned(), value: Some(TagValue::Int(number)), hours }
    }

    fn values(catalog: &SledCatalog) -> usize {
        catalog.tag_values("t", Scope::Span, "a", None, usize::MAX).unwrap().len()
    }

    #[test]
    fn what_waits_is_read_and_written_with_the_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = open(dir.path());
        assert!(catalog.note("t", &[seen("a", 1)]) && catalog.note("t", &[seen("a", 2), seen("b", 1)]));
        assert_eq!(values(&catalog), 2);
        assert!(catalog.note("t", &[seen("a", 3)]));
        catalog.set_checkpoint(42).unwrap();
        assert!(catalog.note("t", &[seen("a", 4)]));
        drop(catalog);
        let catalog = open(dir.path());
        assert_eq!((catalog.checkpoint().unwrap(), values(&catalog)), (Some(42), 3));
        assert_eq!(catalog.tag_names("t", Scope::Span, None, 9).unwrap(), ["a", "b"]);
    }

    #[test]
    fn it_is_bounded_and_put_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = open(dir.path());
        let noted = (0..100_000).take_while(|number| catalog.note("t", &[seen("a", *number)])).count();
        assert!((5_000..10_000).contains(&noted), "{noted}");
        catalog.put("t", &[seen("a", -1)]).unwrap();
        assert!(catalog.note("t", &[seen("a", -2)]));
        assert_eq!(values(&catalog), noted + 2);
    }
}
