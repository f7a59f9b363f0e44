//! The catalog in sled; `docs/format/catalog.md` says what is in it.

use std::cell::RefCell;

use sled::{Batch, IVec, Tree};

use super::noted::ByName;
use super::opening::{SledCatalog, Trees};
use super::values::{self, Values};
use super::{Catalog, CatalogError, Hours, Scope, Seen, TagValue};

const KEY_CHECKPOINT: &[u8] = b"checkpoint";

impl Catalog for SledCatalog {
    fn put(&self, tenant: &str, seen: &[Seen]) -> Result<(), CatalogError> {
        self.write_with(tenant, seen)
    }

    fn note(&self, tenant: &str, seen: &[Seen]) -> bool {
        self.let_wait(tenant, seen)
    }

    fn tag_names(
        &self,
        tenant: &str,
        scope: Scope,
        within: Option<Hours>,
        limit: usize,
    ) -> Result<Vec<String>, CatalogError> {
        self.write_noted()?;
        let prefix = scope_key(tenant, scope);
        self.with(|trees| {
            let mut names = Vec::new();
            for entry in trees.names.scan_prefix(&prefix) {
                let (key, hours) = entry.map_err(CatalogError::Store)?;
                if is_within(&hours, within, "names")? {
                    names.push(NameKey::parse(&key).ok_or_else(|| malformed("names", &key))?.name.to_owned());
                }
            }
            names.sort_unstable();
            names.truncate(limit);
            Ok(names)
        })
    }

    fn tag_values(
        &self,
        tenant: &str,
        scope: Scope,
        name: &str,
        within: Option<Hours>,
        limit: usize,
    ) -> Result<Vec<TagValue>, CatalogError> {
        self.write_noted()?;
        let prefix = name_key(tenant, scope, name);
        self.with(|trees| {
            let mut found = Values::new();
            for entry in trees.values.scan_prefix(&prefix) {
                let (_, entry) = entry.map_err(CatalogError::Store)?;
                values::merge_into(&mut found, &entry).ok_or_else(|| malformed("values", &entry))?;
            }
            let in_time = |hours: &Hours| within.is_none_or(|within| within.intersects(*hours));
            let values = found.into_iter().filter(|(_, hours)| in_time(hours)).map(|(value, _)| value);
            Ok(values.take(limit).collect())
        })
    }

    fn for_each(&self, visit: &mut dyn FnMut(&str, Seen)) -> Result<(), CatalogError> {
        self.write_noted()?;
        // What was visited before a failure is visited again; who visits must not mind.
        let visit = RefCell::new(visit);
        self.with(|trees| {
            for entry in &trees.names {
                let (key, hours) = entry.map_err(CatalogError::Store)?;
                let hours = parse_hours(&hours).ok_or_else(|| malformed("names", &hours))?;
                let NameKey { tenant, scope, name } = NameKey::parse(&key).ok_or_else(|| malformed("names", &key))?;
                visit.borrow_mut()(tenant, Seen { scope, name: name.to_owned(), value: None, hours });
            }
            // Entries of one name stand together.
            let mut entries = trees.values.iter().peekable();
            while let Some(entry) = entries.next() {
                let (key, entry) = entry.map_err(CatalogError::Store)?;
                let name_key = NameKey::parse(&key).ok_or_else(|| malformed("values", &key))?;
                let mut found = Values::new();
                values::merge_into(&mut found, &entry).ok_or_else(|| malformed("values", &entry))?;
                let is_same = |next: &sled::Result<(IVec, IVec)>| {
                    next.as_ref().is_ok_and(|(key, _)| NameKey::parse(key).as_ref() == Some(&name_key))
                };
                while let Some(Ok((_, entry))) = entries.next_if(is_same) {
                    values::merge_into(&mut found, &entry).ok_or_else(|| malformed("values", &entry))?;
                }
                let NameKey { tenant, scope, name } = name_key;
                for (value, hours) in found {
                    visit.borrow_mut()(tenant, Seen { scope, name: name.to_owned(), value: Some(value), hours });
                }
            }
            Ok(())
        })
    }

    fn prune(&self, before: u32) -> Result<u64, CatalogError> {
        self.write_noted()?;
        self.with(|trees| {
            let mut removed = 0;
            for entry in &trees.names {
                let (key, stored) = entry.map_err(CatalogError::Store)?;
                removed += trees.prune_values(&key, before)?;
                let hours = parse_hours(&stored).ok_or_else(|| malformed("names", &stored))?;
                if hours.last < before {
                    // Unless it has been seen again meanwhile.
                    let swapped = trees.names.compare_and_swap(&key, Some(&stored), None::<&[u8]>);
                    removed += u64::from(swapped.map_err(CatalogError::Store)?.is_ok());
                }
            }
            Ok(removed)
        })
    }

    fn checkpoint(&self) -> Result<Option<u64>, CatalogError> {
        self.with(|trees| {
            let Some(stored) = trees.meta.get(KEY_CHECKPOINT).map_err(CatalogError::Store)? else { return Ok(None) };
            let sequence = stored.as_ref().try_into().map_err(|_| malformed("meta", &stored))?;
            Ok(Some(u64::from_be_bytes(sequence)))
        })
    }

    fn set_checkpoint(&self, sequence: u64) -> Result<(), CatalogError> {
        self.write_noted()?;
        self.with(|trees| {
            // sled recovers a prefix of its history, so whoever finds this finds everything that was put before.
            trees.meta.insert(KEY_CHECKPOINT, &sequence.to_be_bytes()).map_err(CatalogError::Store)?;
            trees.meta.flush().map_err(CatalogError::Store)?;
            Ok(())
        })
    }

    fn losses(&self) -> u64 {
        self.count_losses()
    }
}

impl Trees {
    /// A key for another entry of values of a name.
    fn next_key(&self, name_key: &[u8]) -> Result<Vec<u8>, CatalogError> {
        let number = self.db.generate_id().map_err(CatalogError::Store)?;
        Ok([name_key, &number.to_be_bytes()].concat())
    }

    /// Brings the values of a name together that were put one after the other, without those last seen before an hour;
    /// returns how many these are.
    fn prune_values(&self, name_key: &[u8], before: u32) -> Result<u64, CatalogError> {
        let (mut found, mut entries) = (Values::new(), Batch::default());
        let mut count = 0;
        for entry in self.values.scan_prefix(name_key) {
            let (key, entry) = entry.map_err(CatalogError::Store)?;
            values::merge_into(&mut found, &entry).ok_or_else(|| malformed("values", &entry))?;
            // What is put meanwhile has a key of its own and stays.
            entries.remove(key);
            count += 1;
        }
        let held = found.len();
        found.retain(|_, hours| hours.last >= before);
        let removed = held - found.len();
        let merged = values::encode(&found);
        if removed > 0 || count > merged.len() {
            for entry in merged {
                entries.insert(self.next_key(name_key)?, entry);
            }
            self.values.apply_batch(entries).map_err(CatalogError::Store)?;
        }
        Ok(removed as u64)
    }
}

/// Writes what came of each name.
pub(super) fn write(trees: &Trees, by_name: &ByName) -> Result<(), CatalogError> {
    for (name_key, (hours, values)) in by_name {
        if !values.is_empty() {
            trees.values.insert(trees.next_key(name_key)?, &**values).map_err(CatalogError::Store)?;
        }
        merge(&trees.names, name_key, *hours)?;
    }
    Ok(())
}

pub(super) fn malformed(tree: &'static str, entry: &[u8]) -> CatalogError {
    CatalogError::Malformed { tree, entry: entry.to_vec() }
}

fn merge(tree: &Tree, key: &[u8], hours: Hours) -> Result<(), CatalogError> {
    let stored = tree.get(key).map_err(CatalogError::Store)?;
    if stored.as_deref().and_then(parse_hours).is_some_and(|stored| stored.contains(hours)) {
        return Ok(());
    }
    let merged = tree.update_and_fetch(key, |old| {
        let hours = old.and_then(parse_hours).map_or(hours, |old| old.union(hours));
        Some(encode_hours(hours))
    });
    merged.map(|_| ()).map_err(CatalogError::Store)
}

fn is_within(stored: &IVec, within: Option<Hours>, tree: &'static str) -> Result<bool, CatalogError> {
    let Some(within) = within else { return Ok(true) };
    let hours = parse_hours(stored).ok_or_else(|| malformed(tree, stored))?;
    Ok(hours.intersects(within))
}

// === keys and values; lengths go first, so that no name is the prefix of another one's key ===

#[derive(Eq, PartialEq)]
struct NameKey<'a> {
    tenant: &'a str,
    scope: Scope,
    name: &'a str,
}

impl<'a> NameKey<'a> {
    fn parse(key: &'a [u8]) -> Option<Self> {
        let (len, rest) = key.split_first()?;
        let (tenant, rest) = rest.split_at_checked(usize::from(*len))?;
        let (scope, rest) = rest.split_first()?;
        let (len, rest) = rest.split_first_chunk()?;
        let (name, _) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        let [tenant, name] = [tenant, name].map(std::str::from_utf8);
        let scope = Scope::ALL.into_iter().find(|known| scope_code(*known) == *scope)?;
        Some(Self { tenant: tenant.ok()?, scope, name: name.ok()? })
    }
}

const fn scope_code(scope: Scope) -> u8 {
    match scope {
        Scope::Resource => b'r',
        Scope::Span => b's',
        Scope::Event => b'e',
        Scope::Link => b'l',
        Scope::Instrumentation => b'i',
        Scope::Intrinsic => b'.',
    }
}

fn scope_key(tenant: &str, scope: Scope) -> Vec<u8> {
    let mut key = Vec::with_capacity(64);
    key.push(tenant.len() as u8);
    key.extend_from_slice(tenant.as_bytes());
    key.push(scope_code(scope));
    key
}

pub(super) fn name_key(tenant: &str, scope: Scope, name: &str) -> Vec<u8> {
    let mut key = scope_key(tenant, scope);
    key.extend_from_slice(&(name.len() as u16).to_be_bytes());
    key.extend_from_slice(name.as_bytes());
    key
}

pub(super) fn encode_hours(hours: Hours) -> Vec<u8> {
    [hours.first.to_be_bytes(), hours.last.to_be_bytes()].concat()
}

pub(super) fn parse_hours(bytes: &[u8]) -> Option<Hours> {
    let (first, last) = bytes.split_first_chunk()?;
    Some(Hours { first: u32::from_be_bytes(*first), last: u32::from_be_bytes(last.try_into().ok()?) })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    use super::super::opening::KEY_FORMAT;
    use super::*;
    use crate::catalog::MemoryCatalog;
    use crate::telemetry::CatalogMetrics;
    use proptest::prelude::*;
    use rstest::rstest;

    fn open(dir: &Path) -> (SledCatalog, u64) {
        let metrics = CatalogMetrics::default();
        let catalog = SledCatalog::open(&dir.join("catalog"), &metrics, Ok).unwrap();
        (catalog, metrics.rebuilds.get())
    }

    fn insert(catalog: &SledCatalog, tree: fn(&Trees) -> &Tree, key: &[u8], value: &[u8]) {
        catalog.with(|trees| tree(trees).insert(key, value).map_err(CatalogError::Store)).unwrap();
    }

    #[rstest]
    #[case::malformed_entry(b"x", b"y")]
    #[case::malformed_hours(b"\x01tr\x00\x01n", b"short")]
    fn damage_that_only_reading_finds_is_moved_aside(#[case] key: &[u8], #[case] hours: &[u8]) {
        let dir = tempfile::tempdir().unwrap();
        insert(&open(dir.path()).0, |trees| &trees.names, key, hours);
        let metrics = CatalogMetrics::default();
        let read = |catalog: SledCatalog| catalog.for_each(&mut |_, _| {});
        SledCatalog::open(&dir.path().join("catalog"), &metrics, read).unwrap();
        assert_eq!(metrics.rebuilds.get(), 1);
        assert!(dir.path().join("catalog.broken").is_dir());
    }

    #[test]
    fn a_panic_while_reading_is_caught_once() {
        let dir = tempfile::tempdir().unwrap();
        let first = std::cell::Cell::new(true);
        let metrics = CatalogMetrics::default();
        let read = |catalog| {
            assert!(!first.replace(false), "a damaged page");
            Ok(catalog)
        };
        SledCatalog::open(&dir.path().join("catalog"), &metrics, read).unwrap();
        assert_eq!(metrics.rebuilds.get(), 1);
    }

    #[test]
    fn ruined_data_pages_never_keep_it_from_opening() {
        let dir = tempfile::tempdir().unwrap();
        let (catalog, _) = open(dir.path());
        for number in 0..2_000_u32 {
            let key = name_key("t", Scope::Span, &number.to_string());
            insert(&catalog, |trees| &trees.names, &key, &encode_hours(Hours { first: 1, last: 2 }));
        }
        catalog.set_checkpoint(7).unwrap();
        drop(catalog);
        let db = dir.path().join("catalog/db");
        let mut bytes = fs::read(&db).unwrap();
        let (third, len) = (bytes.len() / 3, bytes.len());
        for byte in &mut bytes[third..len * 2 / 3] {
            *byte ^= 0x55;
        }
        fs::write(&db, bytes).unwrap();
        let read = |catalog: SledCatalog| {
            catalog.checkpoint()?;
            catalog.for_each(&mut |_, _| {})
        };
        SledCatalog::open(&dir.path().join("catalog"), &CatalogMetrics::default(), read).unwrap();
    }

    fn seen(scope: Scope, name: &str, value: TagValue, hour: u32) -> Seen {
        Seen { scope, name: name.to_owned(), value: Some(value), hours: Hours { first: hour, last: hour } }
    }

    fn any_value() -> impl Strategy<Value = TagValue> {
        prop_oneof![
            "[a-c\\x00]{0,3}".prop_map(TagValue::String),
            any::<i64>().prop_map(TagValue::Int),
            any::<f64>().prop_map(TagValue::Float),
            any::<bool>().prop_map(TagValue::Bool),
        ]
    }

    fn any_seen() -> impl Strategy<Value = (String, Seen)> {
        let hours = (0_u32..5, 0_u32..5).prop_map(|(a, b)| Hours { first: a.min(b), last: a.max(b) });
        (
            "[tu]{1,2}",
            prop::sample::select(Scope::ALL.to_vec()),
            "[a-b\\x00]{0,3}",
            prop::option::of(any_value()),
            hours,
        )
            .prop_map(|(tenant, scope, name, value, hours)| (tenant, Seen { scope, name, value, hours }))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn it_answers_as_the_one_in_memory_does(
            entries in prop::collection::vec(any_seen(), 0..40),
            within in prop::option::of((0_u32..6).prop_map(|hour| Hours { first: hour, last: hour })),
            limit in 0_usize..6,
            before in 0_u32..4,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let (stored, _) = open(dir.path());
            let memory = MemoryCatalog::default();
            for (number, (tenant, seen)) in entries.iter().enumerate() {
                if number % 3 == 0 {
                    stored.put(tenant, std::slice::from_ref(seen)).unwrap();
                } else {
                    prop_assert!(stored.note(tenant, std::slice::from_ref(seen)));
                }
                memory.put(tenant, std::slice::from_ref(seen)).unwrap();
            }
            for (tenant, Seen { scope, name, .. }) in &entries {
                prop_assert_eq!(
                    stored.tag_names(tenant, *scope, within, limit).unwrap(),
                    memory.tag_names(tenant, *scope, within, limit).unwrap()
                );
                prop_assert_eq!(
                    stored.tag_values(tenant, *scope, name, within, limit).unwrap(),
                    memory.tag_values(tenant, *scope, name, within, limit).unwrap()
                );
            }
            let all = |catalog: &dyn Catalog| {
                let mut all = Vec::new();
                catalog.for_each(&mut |tenant, seen| all.push(format!("{tenant} {seen:?}"))).unwrap();
                all.sort_unstable();
                all
            };
            prop_assert_eq!(all(&stored), all(&memory));
            prop_assert_eq!(stored.prune(before).unwrap(), memory.prune(before).unwrap());
            prop_assert_eq!(all(&stored), all(&memory));
        }
    }

    #[test]
    fn entries_and_checkpoint_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (catalog, _) = open(dir.path());
        assert_eq!(catalog.checkpoint().unwrap(), None);
        catalog.put("t", &[seen(Scope::Span, "a", TagValue::Int(1), 7)]).unwrap();
        catalog.set_checkpoint(42).unwrap();
        drop(catalog);
        let (catalog, rebuilds) = open(dir.path());
        assert_eq!(rebuilds, 0);
        assert_eq!(catalog.checkpoint().unwrap(), Some(42));
        assert_eq!(catalog.tag_values("t", Scope::Span, "a", None, 9).unwrap(), [TagValue::Int(1)]);
    }

    /// It is opened while another thread still has it, which sled's own may when it was dropped.
    #[test]
    fn a_store_that_is_being_closed_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (catalog, _) = open(dir.path());
        catalog.set_checkpoint(42).unwrap();
        let closing = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(catalog);
        });
        let (catalog, rebuilds) = open(dir.path());
        assert_eq!((rebuilds, catalog.checkpoint().unwrap()), (0, Some(42)));
        closing.join().unwrap();
    }

    #[rstest]
    #[case::noise(|path: &Path| fs::write(path, [0xa5; 4096]).unwrap())]
    #[case::a_directory_in_its_place(|path: &Path| { fs::remove_file(path).unwrap(); fs::create_dir(path).unwrap() })]
    fn a_store_that_cannot_be_opened_is_moved_aside(#[case] damage: impl Fn(&Path)) {
        let dir = tempfile::tempdir().unwrap();
        for round in 1..=2 {
            let (catalog, _) = open(dir.path());
            catalog.put("t", &[seen(Scope::Span, "a", TagValue::Int(round), 7)]).unwrap();
            catalog.set_checkpoint(42).unwrap();
            drop(catalog);
            damage(&dir.path().join("catalog/conf"));
            let (catalog, rebuilds) = open(dir.path());
            assert_eq!(rebuilds, 1, "round {round}");
            assert_eq!(catalog.checkpoint().unwrap(), None);
            assert_eq!(catalog.tag_names("t", Scope::Span, None, 9).unwrap(), Vec::<String>::new());
            assert!(dir.path().join("catalog.broken/conf").exists());
        }
    }

    #[test]
    fn a_store_that_fails_is_opened_again_when_it_can_be() {
        let dir = tempfile::tempdir().unwrap();
        let (mut catalog, _) = open(dir.path());
        catalog.reopen_every = Duration::ZERO;
        catalog.put("t", &[seen(Scope::Span, "a", TagValue::Int(1), 7)]).unwrap();
        catalog.set_checkpoint(42).unwrap();
        assert_eq!(catalog.losses(), 0);
        catalog.close();
        let (path, away) = (dir.path().join("catalog"), dir.path().join("away"));
        fs::rename(&path, &away).unwrap();
        fs::write(&path, "in its place").unwrap();
        assert!(matches!(catalog.checkpoint(), Err(CatalogError::Closed)));
        catalog.put("t", &[seen(Scope::Span, "a", TagValue::Int(2), 7)]).unwrap_err();
        fs::remove_file(&path).unwrap();
        fs::rename(&away, &path).unwrap();
        assert_eq!(catalog.tag_values("t", Scope::Span, "a", None, 9).unwrap(), [TagValue::Int(1)]);
        assert_eq!(catalog.checkpoint().unwrap(), Some(42));
        assert_eq!(catalog.losses(), 3);
    }

    #[test]
    fn it_is_not_tried_all_the_time() {
        let dir = tempfile::tempdir().unwrap();
        let (catalog, _) = open(dir.path());
        catalog.close();
        catalog.checkpoint().unwrap();
        catalog.close();
        assert!(matches!(catalog.checkpoint(), Err(CatalogError::Closed)));
    }

    #[test]
    fn another_format_is_built_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (catalog, _) = open(dir.path());
        insert(&catalog, |trees| &trees.meta, KEY_FORMAT, b"0");
        drop(catalog);
        assert_eq!(open(dir.path()).1, 1);
    }
}
