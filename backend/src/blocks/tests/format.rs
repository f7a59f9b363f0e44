//! The bytes of a manifest.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::manifest::{FORMAT_VERSION, RemovedBlock, Snapshot};
use super::*;

fn golden() -> Manifest {
    let other = BlockSummary { tenant: "team-a".into(), services: None, level: 2, ..summary(3) };
    Manifest {
        format: FORMAT_VERSION,
        version: 64,
        commit: "00112233445566778899aabbccddeeff".to_owned(),
        writer: writer(1),
        created_ns: START + 7,
        add: vec![summary(1)],
        remove: vec![block(2)],
        checkpoint: Some(1_234),
        snapshot: Some(Snapshot {
            blocks: vec![Arc::new(summary(1)), Arc::new(other)],
            checkpoints: BTreeMap::from([(writer(1), 1_234), (writer(2), u64::MAX)]),
            removed: vec![RemovedBlock { id: block(2), tenant: "single-tenant".into(), removed_ns: START + 7 }],
        }),
    }
}

/// The fixture was written by the first version of the format; it must be readable for ever.
#[test]
fn the_format_stays_readable() {
    let bytes = include_bytes!("../../../tests/fixtures/manifest-v1.json");
    assert_eq!(Manifest::decode(bytes).unwrap(), golden());
    assert_eq!(String::from_utf8_lossy(&golden().encode().unwrap()), String::from_utf8_lossy(bytes));
}

#[test]
fn every_shorter_manifest_is_refused() {
    let bytes = golden().encode().unwrap();
    for length in 0..bytes.len() {
        let error = Manifest::decode(&bytes[..length]).unwrap_err();
        assert!(matches!(error, ManifestError::Checksum), "{length}: {error}");
    }
}

#[test]
fn every_changed_byte_is_noticed() {
    let bytes = golden().encode().unwrap();
    for at in 0..bytes.len() {
        for change in [0x01, 0x20, 0x80] {
            let mut changed = bytes.clone();
            changed[at] ^= change;
            let error = Manifest::decode(&changed).unwrap_err();
            assert!(matches!(error, ManifestError::Checksum), "{at}: {error}");
        }
    }
}

/// Some JSON object with the checksum that it should have.
fn sealed(object: &str) -> Vec<u8> {
    let open = object.strip_suffix('}').unwrap();
    format!("{open},\"crc32c\":\"{:08x}\"}}\n", crc32c::crc32c(open.as_bytes())).into_bytes()
}

#[test]
fn another_format_is_refused_whatever_else_it_says() {
    let error = Manifest::decode(&sealed(r#"{"format":2,"blocks":{}}"#)).unwrap_err();
    insta::assert_snapshot!(error, @"it has format 2, this program reads format 1: run the version that wrote it, or a newer one");
}

#[test]
fn what_is_no_manifest_is_refused() {
    for object in ["{}", r#"{"format":1}"#, r#"{"format":-1}"#, r#"{"format":1,"version":1,"version":2}"#] {
        let error = Manifest::decode(&sealed(object)).unwrap_err();
        assert!(matches!(error, ManifestError::Json(_)), "{object}: {error}");
    }
}

#[test]
fn members_of_later_versions_are_left_out() {
    let bytes = golden().encode().unwrap();
    let text = std::str::from_utf8(&bytes).unwrap().replacen("{\"format\":1,", "{\"format\":1,\"later\":[{}],", 1);
    let (object, _) = text.split_once(",\"crc32c\"").unwrap();
    assert_eq!(Manifest::decode(&sealed(&format!("{object}}}"))).unwrap(), golden());
}

#[test]
fn names_are_those_of_versions() {
    assert_eq!(Manifest::path(7), "manifest/00000000000000000007.json");
    for version in [1, 64, u64::MAX] {
        assert_eq!(Manifest::version_of(&Manifest::path(version)), Some(version));
    }
    let others = ["", "manifest/", "manifest/7.json", "manifest/+0000000000000000007.json", "manifest/x.json"];
    for path in others.into_iter().chain(["manifest/99999999999999999999.json", "manifest/00000000000000000007.json~"])
    {
        assert_eq!(Manifest::version_of(path), None, "{path}");
    }
}

fn any_summary() -> impl Strategy<Value = BlockSummary> {
    let services = prop::option::of(prop::collection::vec(any::<String>(), 0..4));
    (any::<u128>(), any::<u64>(), "[a-z!()'*._-]{1,9}", any::<[u64; 8]>(), any::<u8>(), services).prop_map(
        |(random, created_ns, tenant, numbers, level, services)| {
            let [start_ns, end_ns, received_first_ns, received_last_ns, spans, traces, bytes, filter_bytes] = numbers;
            let (id, tenant) = (BlockId::new(created_ns, random), tenant.into());
            BlockSummary {
                id,
                tenant,
                level,
                start_ns,
                end_ns,
                received_first_ns,
                received_last_ns,
                spans,
                traces,
                bytes,
                filter_bytes,
                services,
            }
        },
    )
}

fn any_snapshot() -> impl Strategy<Value = Snapshot> {
    let blocks = prop::collection::vec(any_summary().prop_map(Arc::new), 0..4);
    let checkpoints = prop::collection::btree_map(any::<u8>().prop_map(writer), any::<u64>(), 0..4);
    let removed = (any_summary(), any::<u64>()).prop_map(|(block, removed_ns)| RemovedBlock {
        id: block.id,
        tenant: block.tenant,
        removed_ns,
    });
    (blocks, checkpoints, prop::collection::vec(removed, 0..4)).prop_map(|(blocks, checkpoints, removed)| Snapshot {
        blocks,
        checkpoints,
        removed,
    })
}

prop_compose! {
    fn any_manifest()(
        version: u64,
        commit: String,
        by in any::<u8>(),
        created_ns: u64,
        add in prop::collection::vec(any_summary(), 0..4),
        remove in prop::collection::vec(any::<u128>().prop_map(block), 0..4),
        checkpoint: Option<u64>,
        snapshot in prop::option::of(any_snapshot()),
    ) -> Manifest {
        let (format, writer) = (FORMAT_VERSION, writer(by));
        Manifest { format, version, commit, writer, created_ns, add, remove, checkpoint, snapshot }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(manifest in any_manifest()) {
        prop_assert_eq!(Manifest::decode(&manifest.encode().unwrap()).unwrap(), manifest);
    }

    #[test]
    fn other_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Manifest::decode(&bytes).is_err());
    }
}
