//! What every store must do. Each part uses paths of its own, so that all can run on one store at once.

use std::collections::BTreeSet;
use std::io::Write;
use std::thread;

use bytes::Bytes;
use coati_backend::store::{Object, Store, StoreError};

fn text(content: &'static str) -> Bytes {
    Bytes::from_static(content.as_bytes())
}

/// Bytes that no compression and no mistake in the order of pieces leaves as they are.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(words.next().unwrap());
    }
    bytes.truncate(len);
    bytes
}

fn paths(store: &dyn Store, prefix: &str) -> Vec<String> {
    store.list(prefix).unwrap().into_iter().map(|object| object.path).collect()
}

pub(crate) fn nothing_is_there(store: &dyn Store) {
    let missing = |error: StoreError| matches!(error, StoreError::NotFound { path } if path == "nothing/here");
    assert!(missing(store.get("nothing/here").unwrap_err()));
    assert!(missing(store.get_ranges("nothing/here", &[0..1, 5..9]).unwrap_err()));
    assert!(missing(store.size("nothing/here").unwrap_err()));
    assert_eq!(store.list("nothing/").unwrap(), []);
    store.delete("nothing/here").unwrap();
}

pub(crate) fn what_is_created_is_read(store: &dyn Store) {
    for (path, content) in [("read/empty", Vec::new()), ("read/one", vec![0]), ("read/a/b/c/large", noise(3 << 20))] {
        store.create(path, content.clone().into()).unwrap();
        assert!(store.get(path).unwrap() == content, "{path}");
        assert_eq!(store.size(path).unwrap(), content.len() as u64, "{path}");
    }
}

pub(crate) fn ranges(store: &dyn Store) {
    let content = noise(5 << 20);
    let size = content.len() as u64;
    store.create("ranges/object", content.clone().into()).unwrap();
    // Out of order, overlapping, next to each other, far apart, empty, all.
    let ranges = [9..17, 0..4, 4..9, 2..12, size - 1..size, 70_000..70_000, 3 << 20..4 << 20, 0..size, size..size];
    let parts = store.get_ranges("ranges/object", &ranges).unwrap();
    assert_eq!(parts.len(), ranges.len());
    for (part, range) in parts.iter().zip(&ranges) {
        assert!(part == &content[range.start as usize..range.end as usize], "{range:?}");
    }
    assert_eq!(store.get_ranges("ranges/object", &[]).unwrap(), Vec::<Bytes>::new());
    for beyond in [size - 1..size + 1, size + 5..size + 6, 0..u64::MAX] {
        let error = store.get_ranges("ranges/object", &[0..1, beyond.clone()]).unwrap_err();
        assert!(matches!(&error, StoreError::OutOfRange { .. }), "{beyond:?}: {error:?}");
    }
}

pub(crate) fn a_path_is_taken_once(store: &dyn Store) {
    store.create("taken/object", text("first")).unwrap();
    let error = store.create("taken/object", text("second")).unwrap_err();
    assert!(matches!(&error, StoreError::AlreadyExists { path } if path == "taken/object"), "{error:?}");
    assert_eq!(store.get("taken/object").unwrap(), text("first"));
    store.delete("taken/object").unwrap();
    store.create("taken/object", text("third")).unwrap();
    assert_eq!(store.get("taken/object").unwrap(), text("third"));
}

pub(crate) fn of_many_creators_one_wins(store: &dyn Store) {
    for round in 0..5 {
        let path = format!("race/{round}");
        let create = |creator: usize| match store.create(&path, vec![creator as u8; 40_000].into()) {
            Ok(()) => true,
            Err(StoreError::AlreadyExists { .. }) => false,
            Err(error) => panic!("{error:?}"),
        };
        let winners: Vec<usize> = thread::scope(|scope| {
            let creators: Vec<_> = (0..8).map(|creator| scope.spawn(move || create(creator))).collect();
            let won = creators.into_iter().map(|creator| creator.join().unwrap());
            won.enumerate().filter(|(_, won)| *won).map(|(creator, _)| creator).collect()
        });
        let [winner] = winners[..] else { panic!("winners of round {round}: {winners:?}") };
        assert!(store.get(&path).unwrap() == vec![winner as u8; 40_000], "round {round}");
    }
}

pub(crate) fn uploads(store: &dyn Store) {
    let mut upload = store.upload("uploads/object").unwrap();
    upload.write_all(b"piece by ").unwrap();
    assert_eq!(paths(store, "uploads/"), [""; 0], "seen before it is finished");
    upload.flush().unwrap();
    upload.write_all(b"piece").unwrap();
    assert_eq!(upload.finish().unwrap(), 14);
    assert_eq!(store.get("uploads/object").unwrap(), text("piece by piece"));
    assert_eq!(store.upload("uploads/empty").unwrap().finish().unwrap(), 0);
    assert_eq!(store.get("uploads/empty").unwrap(), text(""));
}

pub(crate) fn a_dropped_upload_leaves_nothing(store: &dyn Store) {
    for content in [noise(10), noise(12 << 20)] {
        let mut upload = store.upload("dropped/object").unwrap();
        upload.write_all(&content).unwrap();
        drop(upload);
        assert_eq!(paths(store, "dropped/"), [""; 0]);
    }
    store.create("dropped/object", text("other")).unwrap();
}

pub(crate) fn a_large_upload(store: &dyn Store) {
    let content = noise((37 << 20) + 12_345);
    let mut upload = store.upload("large/object").unwrap();
    for piece in content.chunks(700_001) {
        upload.write_all(piece).unwrap();
    }
    assert_eq!(upload.finish().unwrap(), content.len() as u64);
    assert_eq!(store.size("large/object").unwrap(), content.len() as u64);
    assert!(store.get("large/object").unwrap() == content);
    let tail = content.len() as u64 - 100..content.len() as u64;
    assert!(store.get_ranges("large/object", &[0..100, tail]).unwrap()[1] == content[content.len() - 100..]);
}

pub(crate) fn listings(store: &dyn Store) {
    let before: Vec<_> = store.list("").unwrap().into_iter().filter(|object| object.path.starts_with("list")).collect();
    assert_eq!(before, []);
    // `-` sorts before `/`, `0` after it.
    let all = ["list/a-b/1", "list/a/1", "list/a/2", "list/a/b/1", "list/a0", "list/b", "listen/1"];
    for path in all.iter().rev() {
        store.create(path, text("content")).unwrap();
    }
    assert_eq!(paths(store, "list/"), all[..6]);
    assert_eq!(paths(store, "list/a/"), all[1..4]);
    assert_eq!(paths(store, "list/a/b/"), all[3..4]);
    assert_eq!(paths(store, "list/b/"), [""; 0]);
    assert_eq!(paths(store, "lis/"), [""; 0]);
    let everything = paths(store, "");
    assert!(everything.is_sorted());
    assert!(all.iter().all(|path| everything.iter().any(|listed| listed == path)));
    assert!(store.list("list/").unwrap().iter().all(|Object { bytes, .. }| *bytes == 7));
}

pub(crate) fn deletions(store: &dyn Store) {
    store.create("delete/a", text("a")).unwrap();
    store.create("delete/b", text("b")).unwrap();
    store.delete("delete/a").unwrap();
    store.delete("delete/a").unwrap();
    store.delete("delete/b/c").unwrap();
    assert_eq!(paths(store, "delete/"), ["delete/b"]);
    assert!(matches!(store.get("delete/a").unwrap_err(), StoreError::NotFound { .. }));
    assert!(matches!(store.get("delete/b/c").unwrap_err(), StoreError::NotFound { .. }));
}

pub(crate) fn odd_names(store: &dyn Store) {
    let names =
        ["!-_.*'()", "...", "a b", "%2F", "+", "ü€𝄞", "~", "a=b&c?d#e", "{}[]|^`\"<>\\", &"x".repeat(200), "@:,;$"];
    for name in names {
        let path = format!("odd/{name}/object");
        store.create(&path, name.to_owned().into()).unwrap();
        assert_eq!(store.get(&path).unwrap(), name.as_bytes(), "{name}");
        assert_eq!(store.get_ranges(&path, &[0..1, 1..1]).unwrap()[0], name.as_bytes()[..1], "{name}");
        assert_eq!(store.size(&path).unwrap(), name.len() as u64, "{name}");
        assert_eq!(paths(store, &format!("odd/{name}/")), [&*path], "{name}");
        let taken = store.create(&path, text("again")).unwrap_err();
        assert!(matches!(&taken, StoreError::AlreadyExists { path: told } if *told == path), "{name}: {taken:?}");
        let uploaded = format!("odd/{name}/uploaded");
        store.upload(&uploaded).unwrap().finish().unwrap();
        store.delete(&uploaded).unwrap();
    }
    let listed: BTreeSet<String> = paths(store, "odd/").into_iter().collect();
    assert_eq!(listed, names.iter().map(|name| format!("odd/{name}/object")).collect());
}

pub(crate) fn bad_paths(store: &dyn Store) {
    let bad = |error: StoreError| matches!(error, StoreError::InvalidPath { .. });
    for path in ["", "/etc/passwd", "../a", "a/../../b", "a//b", "a/", "a\0b", "tmp/a"] {
        assert!(bad(store.get(path).unwrap_err()), "{path:?}");
        assert!(bad(store.get_ranges(path, &[0..1, 2..3]).unwrap_err()), "{path:?}");
        assert!(bad(store.size(path).unwrap_err()), "{path:?}");
        assert!(bad(store.create(path, text("x")).unwrap_err()), "{path:?}");
        assert!(bad(store.upload(path).err().unwrap()), "{path:?}");
        assert!(bad(store.delete(path).unwrap_err()), "{path:?}");
    }
    for prefix in ["a", "/", "../", "a/../b/"] {
        assert!(bad(store.list(prefix).unwrap_err()), "{prefix:?}");
    }
}
