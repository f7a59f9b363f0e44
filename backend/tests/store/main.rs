//! Guarantee: every store does the same, and what it says is so.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "these are tests, helpers included")]

mod contract;

use coati_backend::store::{LocalStore, MemoryStore, Store};
use tempfile::TempDir;

fn memory() -> ((), MemoryStore) {
    ((), MemoryStore::new())
}

fn local() -> (TempDir, LocalStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(&dir.path().join("a/store")).unwrap();
    (dir, store)
}

/// One test for each part of the contract with a store.
macro_rules! contract {
    ($store:ident: $($part:ident)*) => {
        mod $store {
            use super::*;
            $(
                #[test]
                fn $part() {
                    let (_kept, store) = super::$store();
                    contract::$part(&store as &dyn Store);
                }
            )*
        }
    };
}

macro_rules! contracts {
    ($($store:ident)*) => {
        $(contract! { $store:
            nothing_is_there
            what_is_created_is_read
            ranges
            a_path_is_taken_once
            of_many_creators_one_wins
            uploads
            a_dropped_upload_leaves_nothing
            a_large_upload
            listings
            deletions
            odd_names
            bad_paths
        })*
    };
}

contracts! { memory local }
