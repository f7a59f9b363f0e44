//! Guarantee: every store does the same, and what it says is so.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "these are tests, helpers included")]

mod buckets;
mod contract;
mod faults;

use coati_backend::config::S3Config;
use coati_backend::store::memory::{Fault, Operation};
use coati_backend::store::{Limits, LocalStore, MemoryStore, OpenError, S3Store, Store, check_writes};
use coati_backend::telemetry::chain;
use tempfile::TempDir;

use crate::buckets::{moto, rgw};

fn memory() -> ((), MemoryStore) {
    ((), MemoryStore::new())
}

fn local() -> (TempDir, LocalStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(&dir.path().join("a/store")).unwrap();
    (dir, store)
}

/// One test for each part of the contract, with a store of its own.
macro_rules! contracts {
    ($($store:ident)*) => {
        $(mod $store {
            contracts! { @parts $store:
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
            }
        })*
    };
    (@parts $store:ident: $($part:ident)*) => {
        $(
            #[test]
            fn $part() {
                let (_kept, store) = super::$store();
                super::contract::$part(&store);
            }
        )*
    };
}

contracts! { memory local }

/// One test for the whole contract: the servers take a while to begin.
fn whole_contract(store: &dyn Store) {
    contract::nothing_is_there(store);
    contract::what_is_created_is_read(store);
    contract::ranges(store);
    contract::a_path_is_taken_once(store);
    contract::of_many_creators_one_wins(store);
    contract::uploads(store);
    contract::a_dropped_upload_leaves_nothing(store);
    contract::a_large_upload(store);
    contract::listings(store);
    contract::deletions(store);
    contract::odd_names(store);
    contract::bad_paths(store);
}

#[test]
fn moto_keeps_the_contract() {
    let server = moto();
    whole_contract(&server.store(""));
    prefixes_are_apart(&server);
    check_writes(&server.store("")).unwrap();
}

#[test]
fn ceph_keeps_the_contract() {
    let server = rgw();
    whole_contract(&server.store(""));
    prefixes_are_apart(&server);
    check_writes(&server.store("")).unwrap();
    let refused = |config: S3Config| {
        let error = S3Store::open(&config, Limits::default(), &|_| None).unwrap_err();
        let told = chain(&error);
        assert!(told.starts_with("bucket `") && told.contains("access refused"), "{told}");
        assert!(!told.contains("hidden") && told.lines().count() == 1, "{told}");
        told
    };
    let wrong_key = S3Config { access_key: "unknown".into(), ..server.config("") };
    assert!(refused(wrong_key).contains("InvalidAccessKeyId"));
    let wrong_secret = S3Config { secret_key: "hidden".into(), ..server.config("") };
    assert!(refused(wrong_secret).contains("SignatureDoesNotMatch"));
    let no_bucket = S3Config { bucket: "missing".to_owned(), ..server.config("") };
    assert!(refused(no_bucket).contains("NoSuchBucket"));
}

/// A store that takes every creation, as old servers do.
#[test]
fn a_store_that_replaces_objects_is_refused() {
    let store = MemoryStore::new();
    check_writes(&store).unwrap();
    assert_eq!(store.list("").unwrap(), []);
    let forgetful = store.clone();
    store.set_faults(move |operation, path| {
        if operation == Operation::Create {
            forgetful.delete(path).unwrap();
        }
        None
    });
    let error = check_writes(&store).unwrap_err();
    assert!(matches!(error, OpenError::NotConditional { .. }), "{error}");
    store.set_faults(|_, path| Some(Fault::unavailable(path)));
    let error = check_writes(&store).unwrap_err();
    assert!(matches!(error, OpenError::ReadOnly { .. }), "{error}");
}

fn prefixes_are_apart(server: &buckets::Server) {
    let (one, other) = (server.store("some/prefix"), server.store("some/prefix2"));
    one.create("a/b", "one".into()).unwrap();
    other.create("a/b", "other".into()).unwrap();
    assert_eq!(one.get("a/b").unwrap(), "one");
    assert_eq!(one.list("").unwrap().len(), 1);
    assert_eq!(server.store("").list("some/").unwrap().len(), 2);
    one.delete("a/b").unwrap();
    assert_eq!(other.get("a/b").unwrap(), "other");
    assert_eq!(one.list("").unwrap(), []);
}

/// Not a test: prints how long creations take.
#[test]
#[ignore = "prints figures"]
fn creation_latency() {
    let figures = |name: &str, store: &dyn Store| {
        let mut times: Vec<_> = (0..200)
            .map(|number| {
                let begin = std::time::Instant::now();
                store.create(&format!("latency/{number}"), vec![7; 2_000].into()).unwrap();
                begin.elapsed()
            })
            .collect();
        times.sort_unstable();
        eprintln!("{name}: p50 {:?}, p99 {:?}", times[100], times[198]);
    };
    figures("local", &local().1);
    let server = moto();
    figures("moto", &server.store(""));
    let server = rgw();
    figures("ceph", &server.store(""));
}
