//! What holds whatever happens.

use std::collections::HashMap;

use proptest::{prelude::*, sample::Index};

use super::super::testing::{MS, Run, Wire};
use crate::{capture::Record, decode::DecodeConfig};

/// One well-formed exchange.
#[derive(Clone, Debug)]
struct Plan {
    upload: usize,
    status: u16,
    body: PlannedBody,
    request_calls: Vec<Index>,
    response_calls: Vec<Index>,
}

#[derive(Clone, Debug)]
enum PlannedBody {
    Length(usize),
    Chunks(Vec<usize>, bool),
    None,
}

fn plan() -> impl Strategy<Value = Plan> {
    let body = prop_oneof![
        (0_usize..5000).prop_map(PlannedBody::Length),
        (proptest::collection::vec(1_usize..3000, 0..5), any::<bool>())
            .prop_map(|(sizes, has_trailer)| PlannedBody::Chunks(sizes, has_trailer)),
        Just(PlannedBody::None),
    ];
    let cuts = || proptest::collection::vec(any::<Index>(), 0..6);
    (0_usize..3000, 200_u16..600, body, cuts(), cuts()).prop_map(
        |(upload, status, body, request_calls, response_calls)| {
            let status = match body {
                PlannedBody::None => 204,
                _ if matches!(status, 204 | 304) => 200,
                _ => status,
            };
            Plan { upload, status, body, request_calls, response_calls }
        },
    )
}

impl Plan {
    fn request(&self) -> Vec<u8> {
        let head = format!("POST /a HTTP/1.1\r\nHost: shop\r\nContent-Length: {}\r\n\r\n", self.upload);
        [head.as_bytes(), &vec![b'x'; self.upload]].concat()
    }

    /// The response, and the bytes of its body on the wire.
    fn response(&self) -> (Vec<u8>, usize) {
        let (header, body) = match &self.body {
            PlannedBody::None => (String::new(), Vec::new()),
            PlannedBody::Length(length) => (format!("Content-Length: {length}\r\n"), vec![b'x'; *length]),
            PlannedBody::Chunks(sizes, has_trailer) => {
                let mut body = Vec::new();
                for size in sizes {
                    body.extend(format!("{size:x}\r\n").bytes());
                    body.extend(vec![b'x'; *size]);
                    body.extend(b"\r\n");
                }
                // Where the framing cannot be followed, a trailer only ends with the next request.
                let is_followed = body.len() < 500;
                body.extend(if *has_trailer && is_followed { &b"0\r\nA: b\r\n\r\n"[..] } else { b"0\r\n\r\n" });
                ("Transfer-Encoding: chunked\r\n".to_owned(), body)
            }
        };
        let head = format!("HTTP/1.1 {} Some\r\n{header}\r\n", self.status);
        ([head.as_bytes(), &body].concat(), body.len())
    }
}

/// `bytes` in pieces.
fn pieces<'a>(bytes: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.dedup();
    cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

fn play(wire: &mut Wire, plans: &[Plan]) {
    for plan in plans {
        let request = plan.request();
        for piece in pieces(&request, &plan.request_calls) {
            wire.request(piece);
        }
        let (response, _) = plan.response();
        for piece in pieces(&response, &plan.response_calls) {
            wire.response(piece);
        }
    }
}

/// Every exchange that was announced has one end, and the counters add up.
fn assert_accounts(run: &Run, records: &[Record]) {
    let mut ends: HashMap<&str, i32> = HashMap::new();
    for told in &run.told {
        let (word, id) = told.split_once(' ').unwrap();
        let ends = ends.entry(id).or_default();
        match word {
            "ended" | "dropped" => *ends += 1,
            _ => assert_eq!(*ends, 0, "{told} after its end"),
        }
    }
    assert!(ends.values().all(|ends| *ends == 1), "{ends:?}");
    let counters = run.counters();
    assert_eq!(counters.exchanges, counters.ended + counters.dropped());
    assert_eq!(counters.ended as usize, run.exchanges.len());
    let begins = records.iter().filter(|record| matches!(record, Record::Begin(..))).count() as u64;
    assert_eq!(begins + counters.followers, counters.exchanges + counters.begin_late + counters.begin_in_body);
}

proptest! {
    #[test]
    fn well_formed_exchanges_are_told_exactly(
        plans in proptest::collection::vec(plan(), 1..6),
        is_client: bool,
    ) {
        let mut wire = if is_client { Wire::client(7) } else { Wire::server(7) };
        let mut expected = Vec::new();
        for plan in &plans {
            let begin_ns = wire.time_ns + MS;
            play(&mut wire, std::slice::from_ref(plan));
            expected.push((begin_ns, wire.time_ns, plan.upload as u64, plan.status, plan.response().1 as u64));
        }
        let mut run = Run::new(DecodeConfig::default());
        run.feed(&wire.records);
        let found: Vec<_> = run.exchanges.iter().map(|exchange| (
            exchange.origin.begin_ns,
            exchange.end_ns,
            exchange.request_body_bytes.unwrap(),
            exchange.response.as_ref().unwrap().status,
            exchange.response_body_bytes.unwrap(),
        )).collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(run.causes(), Vec::<&str>::new());
        prop_assert!(run.exchanges.iter().all(|exchange| exchange.incomplete.is_none() && exchange.failure.is_none()));
    }

    #[test]
    fn any_order_and_loss_is_accounted_for(
        plans in proptest::collection::vec(plan(), 1..6),
        swaps in proptest::collection::vec((any::<Index>(), any::<Index>()), 0..6),
        losses in proptest::collection::vec(any::<Index>(), 0..6),
        closes: bool,
    ) {
        let mut wire = Wire::server(7);
        play(&mut wire, &plans);
        if closes {
            wire.close();
        }
        let mut records = wire.records;
        for (one, other) in swaps {
            let len = records.len();
            records.swap(one.index(len), other.index(len));
        }
        for loss in losses {
            if records.len() > 1 {
                records.remove(loss.index(records.len()));
            }
        }
        let mut run = Run::of(&records);
        run.with(|decoder, emit| decoder.finish(emit));
        prop_assert_eq!(run.decoder.open_exchanges(), 0);
        assert_accounts(&run, &records);
    }

    #[test]
    fn any_bytes_are_accounted_for(
        calls in proptest::collection::vec((any::<bool>(), call_bytes(), any::<u16>()), 0..30),
    ) {
        let mut wire = Wire::server(7);
        for (is_request, bytes, len) in &calls {
            match (is_request, len % 5) {
                (true, _) => wire.request(bytes),
                (false, 0) => wire.sendfile(u64::from(*len)),
                (false, 1) if *len > 60_000 => wire.close(),
                (false, _) => wire.response(bytes),
            };
        }
        let mut run = Run::of(&wire.records);
        run.with(|decoder, emit| decoder.finish(emit));
        assert_accounts(&run, &wire.records);
    }
}

/// Bytes that are sometimes HTTP.
fn call_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => proptest::sample::select(vec![
            &b"GET /a HTTP/1.1\r\n\r\n"[..],
            b"HEAD /a HTTP/1.1\r\n\r\n",
            b"CONNECT a:1 HTTP/1.1\r\n\r\n",
            b"POST /a HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
            b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\nGET /c",
            b" HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n",
            b"HTTP/1.1 101 Switching\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"3\r\nabc\r\n0\r\n\r\n",
            b"\r\n",
        ]).prop_map(<[u8]>::to_vec),
        1 => proptest::collection::vec(any::<u8>(), 1..40),
        1 => proptest::collection::vec(Just(b'x'), 1..3000),
    ]
}
