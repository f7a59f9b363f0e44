//! Guarantee: whatever happens to requests, a call ends in time, with the right result or a clear error.

use std::collections::VecDeque;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use coati_backend::store::{Limits, OpenError, S3Store, Store, StoreError};
use coati_tests::fault::{Fault, Proxy};

use crate::buckets::{config, moto};
use crate::contract::noise;

const LIMITS: Limits =
    Limits { attempt: Duration::from_secs(3), total: Duration::from_secs(12), pause: Duration::from_millis(10) };

/// For what cannot succeed.
const IMPATIENT: Limits = Limits { attempt: Duration::from_millis(700), total: Duration::from_secs(2), ..LIMITS };

/// What is beside the limit: the machine may be busy.
const SLACK: Duration = Duration::from_secs(5);

/// Two parts of an upload, the second of them short.
const LARGE: usize = 9 << 20;

/// What happens to the next requests, or to all.
#[derive(Clone, Default)]
struct Weather(Arc<Mutex<(VecDeque<Fault>, Option<Fault>)>>);

impl Weather {
    fn next(&self, faults: impl IntoIterator<Item = Fault>) {
        *self.0.lock().unwrap() = (faults.into_iter().collect(), None);
    }

    fn always(&self, fault: Option<Fault>) {
        *self.0.lock().unwrap() = (VecDeque::new(), fault);
    }

    fn decide(&self) -> Option<Fault> {
        let mut state = self.0.lock().unwrap();
        state.0.pop_front().or(state.1)
    }
}

fn through_proxy(server: SocketAddr, limits: Limits) -> (Proxy, S3Store, Weather) {
    let weather = Weather::default();
    let decide = weather.clone();
    let proxy = Proxy::start(server, move |_, _| decide.decide()).unwrap();
    let store = S3Store::open(&config(proxy.address, ""), limits, &|_| None).unwrap();
    (proxy, store, weather)
}

fn upload(store: &dyn Store, path: &str, content: &[u8]) -> Result<u64, StoreError> {
    let mut upload = store.upload(path)?;
    upload.write_all(content).map_err(|error| StoreError::of_io(path, error))?;
    upload.finish()
}

#[test]
fn what_passes_is_not_seen() {
    let server = moto();
    let direct = server.store("");
    let (_proxy, store, weather) = through_proxy(server.address, LIMITS);
    let large = noise(LARGE);
    direct.create("known", "content".into()).unwrap();
    upload(&direct, "large", &large).unwrap();

    let faults = [
        Fault::Refuse(500, "<Error><Code>InternalError</Code></Error>"),
        Fault::Refuse(503, "<Error><Code>SlowDown</Code></Error>"),
        Fault::Refuse(429, ""),
        Fault::Pretend(500, ""),
        Fault::CutBefore,
        Fault::CutAfter,
        Fault::Truncate(3),
        Fault::Delay(Duration::from_millis(100)),
        Fault::Hang,
    ];
    // A client that was slow is told so with a status that otherwise means something else.
    weather.next([Fault::Refuse(400, "<Error><Code>RequestTimeout</Code></Error>")]);
    store.create("slow", "content".into()).unwrap();

    for (number, fault) in faults.into_iter().enumerate() {
        let times = if fault == Fault::Hang { 1 } else { 2 };
        let bad = || weather.next(std::iter::repeat_n(fault, times));
        let path = |name: &str| format!("{name}/{number}");

        bad();
        store.create(&path("created"), "mine".into()).unwrap();
        assert_eq!(direct.get(&path("created")).unwrap(), "mine", "{fault:?}");
        bad();
        let taken = store.create(&path("created"), "other".into()).unwrap_err();
        assert!(matches!(taken, StoreError::AlreadyExists { .. }), "{fault:?}: {taken:?}");
        bad();
        assert_eq!(store.get("known").unwrap(), "content", "{fault:?}");
        bad();
        assert!(store.get("large").unwrap() == large, "{fault:?}");
        bad();
        assert_eq!(store.get_ranges("known", &[0..2, 3..7]).unwrap(), ["co", "tent"], "{fault:?}");
        bad();
        assert_eq!(store.size("known").unwrap(), 7, "{fault:?}");
        bad();
        assert_eq!(store.list("created/").unwrap().len(), number + 1, "{fault:?}");
        bad();
        store.delete(&path("created")).unwrap();
        assert!(direct.list(&format!("{}/", path("created"))).unwrap().is_empty(), "{fault:?}");
        store.create(&path("created"), "again".into()).unwrap();
        bad();
        assert_eq!(upload(&store, &path("small"), b"small").unwrap(), 5, "{fault:?}");
        assert_eq!(direct.get(&path("small")).unwrap(), "small", "{fault:?}");
        bad();
        assert_eq!(upload(&store, &path("upload"), &large).unwrap(), LARGE as u64, "{fault:?}");
        assert!(direct.get(&path("upload")).unwrap() == large, "{fault:?}");
        // The last request of an upload is the one that makes it an object.
        let mut late = store.upload(&path("late")).unwrap();
        late.write_all(&large).unwrap();
        while direct.list("late/").is_ok_and(|found| found.len() > number) {}
        bad();
        late.finish().unwrap();
        assert!(direct.get(&path("late")).unwrap() == large, "{fault:?}");
    }
}

#[test]
fn what_does_not_pass_is_told_in_time() {
    type Told = fn(&StoreError) -> bool;
    let unavailable: Told = |error| matches!(error, StoreError::Unavailable { .. });
    let denied: Told = |error| matches!(error, StoreError::Denied { .. });
    let full: Told = |error| matches!(error, StoreError::Full { .. });
    let server = moto();
    server.store("").create("known", noise(200 << 10).into()).unwrap();
    let (_proxy, store, weather) = through_proxy(server.address, IMPATIENT);
    let cases = [
        (Fault::Refuse(500, "<Error><Code>InternalError</Code></Error>"), unavailable, false),
        (Fault::Refuse(403, "<Error><Code>AccessDenied</Code></Error>"), denied, true),
        (Fault::Refuse(401, ""), denied, true),
        (Fault::Refuse(400, "<Error><Code>AuthorizationHeaderMalformed</Code></Error>"), denied, true),
        (Fault::Refuse(301, ""), denied, true),
        (Fault::Refuse(404, "<Error><Code>NoSuchBucket</Code></Error>"), denied, true),
        (Fault::Refuse(501, "<Error><Code>NotImplemented</Code></Error>"), denied, true),
        (Fault::Refuse(507, "<Error><Code>XMinioStorageFull</Code></Error>"), full, true),
        (Fault::Refuse(403, "<Error><Code>QuotaExceeded</Code></Error>"), full, true),
        (Fault::CutBefore, unavailable, false),
        (Fault::Hang, unavailable, false),
    ];
    for (number, (fault, told, at_once)) in cases.into_iter().enumerate() {
        weather.always(Some(fault));
        let in_time = |name: &str, call: &mut dyn FnMut() -> Result<(), StoreError>| {
            let begin = Instant::now();
            let error = call().unwrap_err();
            assert!(told(&error), "{name}, {fault:?}: {error:?}");
            let limit = if at_once { SLACK } else { IMPATIENT.total + SLACK };
            assert!(begin.elapsed() < limit, "{name}, {fault:?}: {:?}", begin.elapsed());
        };
        in_time("create", &mut || store.create(&format!("new/{number}"), "x".into()));
        in_time("list", &mut || store.list("").map(drop));
        in_time("get", &mut || store.get("known").map(drop));
        in_time("delete", &mut || store.delete("absent"));
        if at_once {
            in_time("ranges", &mut || store.get_ranges("known", &[0..2, 5..9]).map(drop));
            in_time("upload", &mut || upload(&store, &format!("up/{number}"), &noise(LARGE)).map(drop));
            in_time("small upload", &mut || upload(&store, &format!("small/{number}"), b"x").map(drop));
        }
    }
    // A kibibyte each tenth of a second is no answer.
    weather.always(Some(Fault::Trickle(Duration::from_millis(100))));
    let begin = Instant::now();
    let error = store.get("known").unwrap_err();
    assert!(unavailable(&error), "{error:?}");
    assert!(begin.elapsed() < IMPATIENT.total + SLACK, "{:?}", begin.elapsed());
}

#[test]
fn lost_answers_make_no_second_winner_and_no_wrong_loser() {
    let server = moto();
    let (_proxy, store, weather) = through_proxy(server.address, LIMITS);
    for round in 0..8 {
        let path = format!("race/{round}");
        weather.next([Fault::CutAfter, Fault::Pretend(500, ""), Fault::CutAfter, Fault::CutBefore, Fault::CutAfter]);
        let outcomes: Vec<_> = thread::scope(|scope| {
            let (store, path) = (&store, &path);
            let create = |creator: u8| store.create(path, vec![creator; 1_000].into());
            let creators: Vec<_> = (0..4).map(|creator| scope.spawn(move || create(creator))).collect();
            creators.into_iter().map(|creator| creator.join().unwrap()).collect()
        });
        let winners: Vec<_> = (0_u8..).zip(&outcomes).filter(|(_, outcome)| outcome.is_ok()).collect();
        let [(winner, _)] = winners[..] else { panic!("{outcomes:?}") };
        assert_eq!(store.get(&path).unwrap(), vec![winner; 1_000]);
        let told = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
        assert!(told.into_iter().all(|error| matches!(error, StoreError::AlreadyExists { .. })), "{outcomes:?}");
    }
}

#[test]
fn a_bucket_that_cannot_be_used_is_named_at_start() {
    let server = moto();
    let open = |config| match S3Store::open(&config, LIMITS, &|_| None) {
        Ok(store) => panic!("{store}"),
        Err(error @ OpenError::Unusable { .. }) => coati_backend::telemetry::chain(&error),
        Err(error) => panic!("{error:?}"),
    };
    let mut missing = server.config("p");
    missing.bucket = "missing".to_owned();
    let told = open(missing);
    let place = format!("bucket `missing/p` at http://{} (region us-east-1)", server.address);
    assert!(told.starts_with(&place) && told.contains("NoSuchBucket"), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");

    let begin = Instant::now();
    let told = open(config("127.0.0.1:1".parse().unwrap(), ""));
    assert!(told.starts_with("bucket `traces` at http://127.0.0.1:1 (region us-east-1)"), "{told}");
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
}
